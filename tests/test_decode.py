"""Greedy answers of a stack are those that transformers' own ``generate`` gives, one example at a time."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lorascope import decode
from lorascope.base_model import load_base
from lorascope.config import BaseModelConfig, DecodingConfig
from lorascope.data.task import Example
from lorascope.decode import Answer, TokenChoice, end_tokens, generate, stream
from lorascope.errors import AdapterError
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve

FAMILIES = ("gpt2", "llama", "qwen2")
NEW_TOKENS = 9


@pytest.fixture
def base_of(model_directory):
    return lambda family: load_base(BaseModelConfig(model=str(model_directory(family)), dtype="float64"), "CAUSAL_LM")


def prompts(count=7):
    """Prompts of different lengths, each followed by an answer that must not be shown to the model."""
    generator = torch.Generator().manual_seed(4)
    examples = []
    for index in range(count):
        length = int(torch.randint(1, 12, (1,), generator=generator))
        ids = torch.randint(4, 150, (length + 3,), generator=generator).tolist()
        examples.append(Example(str(index), ids, [False] * length + [True] * 3, None, length))
    return examples


def stack_of(base, num_slots, random=False):
    placements = tuple(Placement(target, 2, 2.0) for target in resolve(base.model, ["query", "value"], ()))
    stack = Stack(base.model, [Slot(f"s{index}", index, placements) for index in range(num_slots)])
    for index in range(num_slots if random else 0):
        weights = stack.read(index)
        generator = torch.Generator().manual_seed(index)
        for value in weights.lora_B.values():
            value += torch.randn(value.shape, generator=generator, dtype=torch.float64)
        stack.write(index, weights)
    return stack


def answers(stack, base, examples, num_slots, batch_tokens=10**6, max_new_tokens=NEW_TOKENS):
    """By slot and example."""
    table = [[None] * len(examples) for _ in range(num_slots)]
    for rows, generated in generate(stack, base, examples, DecodingConfig(max_new_tokens=max_new_tokens), batch_tokens):
        for slot, slot_answers in enumerate(generated):
            for row, answer in zip(rows, slot_answers, strict=True):
                assert table[slot][row] is None, "an example was answered twice"
                table[slot][row] = answer
    return table


def tokens_by_transformers(base, example):
    """Greedy tokens of the plain model for one unpadded prompt, never stopped."""
    ids = torch.tensor([example.input_ids[: example.prompt_length]])
    settings = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=base.pad_id)
    with torch.no_grad():
        output = base.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return output[0, ids.shape[1] :].tolist()


def text_of(base, tokens):
    return base.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def expected_answer(base, tokens):
    """What is left of never-ending tokens once the end token ends them."""
    ends = [index for index, token in enumerate(tokens) if token in end_tokens(base)]
    return Answer(text_of(base, tokens[: ends[0]] if ends else tokens), finished=bool(ends))


@pytest.mark.parametrize("batch_tokens", [10**6, 60, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_adapters_answer_as_the_plain_model_does_alone_and_unpadded(family, batch_tokens, base_of):
    base = base_of(family)
    examples = prompts()
    expected = [expected_answer(base, tokens_by_transformers(base, example)) for example in examples]
    stack = stack_of(base, 2)
    table = answers(stack, base, examples, 2, batch_tokens)
    stack.detach()
    assert table == [expected, expected]
    assert len(set(expected)) > 3, "the answers must differ, or the test shows nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_slots_answer_together_as_each_answers_alone(family, base_of):
    base = base_of(family)
    examples = prompts()
    stack = stack_of(base, 3, random=True)
    together = answers(stack, base, examples, 3)
    stack.detach()
    assert together[0] != together[1] != together[2]
    for index in range(3):
        stack = stack_of(base, 3, random=True)
        stack.keep([f"s{index}"])
        assert answers(stack, base, examples, 1) == [together[index]]
        stack.detach()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", ["generation config", "tokenizer"])
def test_an_answer_ends_before_the_first_end_token(family, place, base_of):
    base = base_of(family)
    examples = prompts()
    free = [tokens_by_transformers(base, example) for example in examples]
    # The end is declared to be a token that the first answer holds in its middle.
    end = next(token for token in free[0][1:] if token != free[0][0] and token not in end_tokens(base))
    if place == "tokenizer":
        base.tokenizer.eos_token = base.tokenizer.convert_ids_to_tokens(end)
    else:
        base.model.generation_config.eos_token_id = [2, end]
    assert end in end_tokens(base)
    expected = [expected_answer(base, tokens) for tokens in free]
    assert expected[0].finished
    assert expected[0].text != text_of(base, free[0])
    stack = stack_of(base, 1)
    assert answers(stack, base, examples, 1) == [expected]
    stack.detach()


def test_end_tokens_are_the_tokenizers_and_the_models_own(base_of):
    base = base_of("gpt2")
    assert base.tokenizer.eos_token_id == 2
    for declared, ends in ((None, [2]), (7, [2, 7]), ([9, 2, 5], [2, 5, 9])):
        base.model.generation_config.eos_token_id = declared
        assert end_tokens(base) == ends


def test_sampling_that_the_model_recommends_is_not_taken_over(base_of):
    base = base_of("gpt2")
    examples = prompts()
    stack = stack_of(base, 1)
    greedy = answers(stack, base, examples, 1)
    recommended = base.model.generation_config
    recommended.update(do_sample=True, top_k=3, repetition_penalty=9.0, no_repeat_ngram_size=1, max_new_tokens=1)
    assert answers(stack, base, examples, 1) == greedy
    assert base.model.generation_config is recommended, "the model keeps its own for whoever uses it next"
    stack.detach()


def test_max_new_tokens_bounds_the_answer(base_of):
    base = base_of("gpt2")
    stack = stack_of(base, 1)
    first = answers(stack, base, prompts(), 1, max_new_tokens=1)[0]
    stack.detach()
    assert first == [expected_answer(base, tokens_by_transformers(base, example)[:1]) for example in prompts()]
    assert not any(answer.finished for answer in first)


def questions_on_contexts():
    """Two contexts of 40 tokens with four and three questions each, one of them asked twice, and a prompt of its own."""
    generator = torch.Generator().manual_seed(11)

    def drawn(length):
        return torch.randint(4, 150, (length,), generator=generator).tolist()

    contexts = [drawn(40), drawn(40)]
    tails = [(0, drawn(5)), (1, drawn(1)), (0, drawn(9)), (1, drawn(30)), (0, drawn(2)), (1, drawn(7)), (0, drawn(3))]
    rows = [contexts[context] + tail for context, tail in tails]
    rows += [rows[2], drawn(12)]
    masks = [[False] * len(ids) + [True] * 2 for ids in rows]
    return [Example(str(index), [*ids, 5, 6], masks[index], None, len(ids)) for index, ids in enumerate(rows)]


@pytest.mark.parametrize("batch_tokens", [10**6, 200, 60])
@pytest.mark.parametrize("family", FAMILIES)
def test_questions_that_share_a_context_answer_as_each_alone(family, batch_tokens, base_of, monkeypatch):
    base = base_of(family)
    examples = questions_on_contexts()
    free = [tokens_by_transformers(base, example) for example in examples]
    # An end token in the middle of some answers, so that questions leave the batch at different times.
    ends = {tokens[at] for tokens, at in zip(free, (3, 5), strict=False)} - {tokens[0] for tokens in free}
    base.model.generation_config.eos_token_id = sorted(ends)
    expected = [expected_answer(base, tokens) for tokens in free]
    assert ends
    assert any(answer.finished for answer in expected), "some must end early"
    assert not all(answer.finished for answer in expected), "and some not"
    seen = []
    original = decode.steered
    monkeypatch.setattr(decode, "steered", lambda model: seen.append(1) or original(model))
    stack = stack_of(base, 2)
    table = answers(stack, base, examples, 2, batch_tokens)
    stack.detach()
    assert seen, "the prompts were decoded as trees"
    assert table == [expected, expected]


def test_a_base_that_cannot_follow_trees_answers_the_same_padded(base_of):
    base = base_of("qwen2")
    examples = questions_on_contexts()
    sampled = DecodingConfig(strategy="top_k", top_k=5, temperature=0.7, max_new_tokens=6)
    tables = []
    for packs in (True, False):
        base.packs = packs
        stack = stack_of(base, 2, random=True)
        strategies = (DecodingConfig(max_new_tokens=6), sampled)
        tables.append([by_example(generate(stack, base, examples, one, 10**6)) for one in strategies])
        stack.detach()
    assert tables[0] == tables[1]


def by_example(batches):
    return {row: of_row for rows, of_slots in batches for row, *of_row in zip(rows, *of_slots, strict=True)}


STRATEGIES = [
    DecodingConfig(strategy="temperature", temperature=0.6),
    DecodingConfig(strategy="top_k", top_k=3, temperature=1.3),
    DecodingConfig(strategy="top_k", top_k=10**6),
    DecodingConfig(strategy="nucleus", top_p=0.7),
    DecodingConfig(strategy="nucleus", top_p=0.05),
]


def by_transformers_warpers(decoding, logits):
    """Probabilities as transformers' own logits processors leave them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(decoding.temperature)])
    if decoding.strategy == "top_k":
        warpers.append(TopKLogitsWarper(decoding.top_k))
    if decoding.strategy == "nucleus":
        warpers.append(TopPLogitsWarper(decoding.top_p))
    return warpers(torch.zeros(len(logits), 1, dtype=torch.long), logits).softmax(dim=-1)


@pytest.mark.parametrize("decoding", STRATEGIES, ids=lambda one: f"{one.strategy}-{one.temperature}-{one.top_k}-{one.top_p}")
def test_tokens_are_drawn_from_the_distribution_that_transformers_warpers_leave(decoding):
    logits = 2 * torch.randn(1, 1, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = by_transformers_warpers(decoding, logits[0])[0]
    draws = 4000
    choice = TokenChoice(decoding, [7], [str(index) for index in range(draws)])
    tokens = choice.choose(logits.expand(1, draws, 12), range(draws), 0)[0]
    observed = torch.bincount(tokens, minlength=12) / draws
    assert observed[expected == 0].sum() == 0, "no token that was cut off is drawn"
    # Four standard deviations of a frequency.
    assert ((observed - expected).abs() <= 4 * (expected * (1 - expected) / draws).sqrt() + 1e-12).all()


def test_sampling_depends_on_seed_and_question_alone():
    decoding = DecodingConfig(strategy="temperature", max_new_tokens=4)
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    both = TokenChoice(decoding, [1, 2], ["a", "b", "c"])
    state = torch.get_rng_state()
    for step in range(4):
        together = both.choose(logits, range(3), step)
        alone = TokenChoice(decoding, [2], ["c", "x"]).choose(logits[1:, 2:], [0], step)
        assert alone.item() == together[1, 2].item()
        assert both.choose(logits[:, 1:2], [1], step).tolist() == together[:, 1:2].tolist()
    assert torch.equal(torch.get_rng_state(), state)
    ids = [str(index) for index in range(40)]
    many = TokenChoice(decoding, [1], ids).choose(logits[:1, :1].expand(1, 40, 50), range(40), 0)
    assert len(set(many[0].tolist())) > 10


def test_a_setting_that_the_strategy_does_not_use_is_refused():
    for wrong in (
        {"top_k": 5},
        {"temperature": 0.5},
        {"strategy": "nucleus", "top_k": 5},
        {"strategy": "top_k", "top_p": 0.5},
    ):
        with pytest.raises(ValueError, match="has no effect"):
            DecodingConfig(**wrong)
    assert DecodingConfig(strategy="nucleus", top_p=0.5, temperature=2.0).top_p == 0.5


@pytest.mark.parametrize("decoding", STRATEGIES[:1] + STRATEGIES[2:3], ids=["temperature", "top_k of all"])
def test_rounding_of_almost_equal_logits_hardly_ever_changes_a_drawn_token(decoding):
    """What a token's neighbours do to its logits is rounding, and an untrained model's probabilities are almost equal."""
    generator = torch.Generator().manual_seed(4)
    logits = 1e-4 * torch.randn(1, 1, 5000, generator=generator, dtype=torch.float64)
    draws = 300
    choice = TokenChoice(decoding, [3], [str(index) for index in range(draws)])
    rounded = logits + 1e-7 * torch.randn(1, 1, 5000, generator=generator, dtype=torch.float64)
    tokens, others = (choice.choose(one.expand(1, draws, 5000), range(draws), 0) for one in (logits, rounded))
    assert (tokens != others).sum() <= 1


@pytest.mark.parametrize("strategy", ["temperature", "top_k", "nucleus"])
def test_a_tiny_temperature_takes_the_likeliest_token(strategy):
    logits = torch.randn(1, 20, 30, generator=torch.Generator().manual_seed(6))
    choice = TokenChoice(DecodingConfig(strategy=strategy, temperature=1e-320), [1], [str(index) for index in range(20)])
    assert choice.choose(logits, range(20), 0).tolist() == logits.argmax(dim=-1).tolist()


SAMPLED = DecodingConfig(strategy="nucleus", top_p=0.8, temperature=0.7, samples=2, max_new_tokens=6)


def streamed(pieces):
    """Texts and answers by (slot, question)."""
    texts, ended = {}, {}
    for piece in pieces:
        key = (piece.slot, piece.question)
        assert key not in ended, "nothing follows an answer's end"
        texts[key] = texts.get(key, "") + piece.text
        if piece.answer is not None:
            ended[key] = piece.answer
    return texts, ended


@pytest.mark.parametrize("decoding", [DecodingConfig(max_new_tokens=NEW_TOKENS), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "padded qwen2", "t5", "bart"])
def test_a_streamed_answer_has_the_tokens_and_the_text_of_the_batch_form(family, decoding, model_directory):
    directory = model_directory(family.removeprefix("padded "))
    base = load_base(BaseModelConfig(model=str(directory), dtype="float64"), "CAUSAL_LM")
    examples = questions_on_contexts()[:4] if base.task_type == "CAUSAL_LM" else inputs_of_encoder()
    base.packs = False if "padded" in family else None
    stack = stack_of(base, 2, random=True)
    batch = by_example(generate(stack, base, examples, decoding, 10**6))
    texts, ended = streamed(stream(stack, base, examples, decoding))
    stack.detach()
    expected = {(slot, row): answer for row, answers in batch.items() for slot, answer in enumerate(answers)}
    assert ended == expected
    assert {key: answer.tokens for key, answer in ended.items()} == {key: one.tokens for key, one in expected.items()}
    assert texts == {key: answer.text for key, answer in expected.items()}


def inputs_of_encoder():
    generator = torch.Generator().manual_seed(9)
    rows = [torch.randint(4, 150, (length,), generator=generator).tolist() for length in (9, 4, 14)]
    return [Example(str(index), ids, None, None, len(ids)) for index, ids in enumerate(rows)]


def test_a_stream_ends_at_the_same_token_as_the_batch_form(base_of):
    base = base_of("gpt2")
    examples = prompts()
    first = tokens_by_transformers(base, examples[0])
    base.model.generation_config.eos_token_id = [first[3]]
    stack = stack_of(base, 2, random=True)
    batch = by_example(generate(stack, base, examples, DecodingConfig(max_new_tokens=NEW_TOKENS), 10**6))
    _, ended = streamed(stream(stack, base, examples, DecodingConfig(max_new_tokens=NEW_TOKENS)))
    longest = max(ended, key=lambda key: len(ended[key].tokens))
    more = ended[longest].tokens[2]
    stopped = streamed(stream(stack, base, examples, DecodingConfig(max_new_tokens=NEW_TOKENS), [more]))[1]
    stack.detach()
    expected = {(slot, row): answer for row, answers in batch.items() for slot, answer in enumerate(answers)}
    assert ended == expected
    assert any(answer.finished for answer in ended.values())
    for key, answer in ended.items():
        cut = answer.tokens.index(more) if more in answer.tokens else len(answer.tokens)
        assert stopped[key].tokens == answer.tokens[:cut]
    assert len(stopped[longest].tokens) <= 2


@pytest.mark.parametrize("packs", [True, False])
def test_a_further_token_is_one_pass_over_one_token(packs, base_of, monkeypatch):
    base = base_of("qwen2")
    base.packs = packs
    stack = stack_of(base, 2)
    widths = []
    embedding = base.model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda module, given, output: widths.append(given[0].shape[-1]))
    try:
        list(stream(stack, base, prompts(1), DecodingConfig(max_new_tokens=NEW_TOKENS)))
    finally:
        handle.remove()
        stack.detach()
    assert widths == [prompts(1)[0].prompt_length, *[1] * (NEW_TOKENS - 1)]


@pytest.mark.parametrize("packs", [True, False])
def test_a_stream_that_is_left_early_computes_nothing_more(packs, base_of):
    base = base_of("qwen2")
    base.packs = packs
    stack = stack_of(base, 1)
    threads = threading.active_count()
    pieces = stream(stack, base, prompts(1), DecodingConfig(max_new_tokens=100))
    next(pieces)
    pieces.close()
    assert threading.active_count() == threads
    passes = []
    handle = base.model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    again = streamed(stream(stack, base, prompts(1), DecodingConfig(max_new_tokens=3)))[1]
    handle.remove()
    stack.detach()
    assert len(again[0, 0].tokens) == 3
    assert len(passes) == 3


def test_an_answer_that_goes_on_with_a_text_keeps_the_space_between_them():
    tokenizer = TOKENIZERS["pieces"]
    base = type("Base", (), {"tokenizer": tokenizer})()
    the, cat, end = tokenizer.convert_tokens_to_ids(["▁the", "▁cat", "<end>"])
    for before, expected in (((), "cat"), ((the,), " cat")):
        growing = decode._Growing(base, 0, 0, [end], 9, before)
        pieces = [growing.add(token) for token in (cat, end)]
        assert pieces[-1].answer.text == "".join(piece.text for piece in pieces) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_without_a_finite_greatest_are_refused(value, base_of):
    base = base_of("gpt2")
    stack = stack_of(base, 2)
    choice = decode._NumbersOnly(stack, DecodingConfig(), ["a"])
    logits_NEV = torch.zeros(2, 1, 5)
    logits_NEV[0, 0, 3] = float("-inf")
    assert choice.choose(logits_NEV, [0], 0).shape == (2, 1)
    logits_NEV[1, 0, 2] = value
    with pytest.raises(AdapterError, match="s1: the outputs are not finite"):
        choice.choose(logits_NEV, [0], 0)
    with pytest.raises(AdapterError, match="s0: the outputs are not finite"):
        choice.choose(torch.full((2, 1, 5), float("-inf")), [0], 0)
    stack.detach()


@pytest.mark.parametrize("decoding", [DecodingConfig(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("packs", [True, False])
def test_a_slot_whose_outputs_are_no_numbers_is_named(packs, decoding, base_of):
    base = base_of("gpt2")
    base.packs = packs
    stack = stack_of(base, 3)
    weights = stack.read(1)
    for value in weights.lora_B.values():
        value.fill_(1e308)
    stack.write(1, weights)
    with pytest.raises(AdapterError, match="s1: the outputs are not finite"):
        list(stream(stack, base, prompts(2), decoding))
    stack.detach()


def test_what_goes_wrong_while_streaming_padded_reaches_the_reader(base_of):
    base = base_of("qwen2")
    base.packs = False
    stack = stack_of(base, 1)
    pieces = stream(stack, base, prompts(1), DecodingConfig(max_new_tokens=9))
    next(pieces)

    def fail(*_):
        raise RuntimeError("no more")

    handle = base.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no more"):
        list(pieces)
    handle.remove()
    stack.detach()


def bytes_tokenizer():
    """A byte-level BPE: its tokens are all 256 bytes, pieces of characters among them, and a few merges across them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["naïve café über größe 日本語 日本", "to be or not to be"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def pieces_tokenizer():
    """SentencePiece's way: a space at the front of words, bytes for what has no piece."""
    pieces = ["<unk>", "<end>", "▁", "▁the", "▁cat", "s", "cat", ".", "\n", "é"]
    vocabulary = [(piece, -float(index)) for index, piece in enumerate(pieces)]
    vocabulary += [(f"<0x{byte:02X}>", -50.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")


def words_tokenizer():
    words = ["[UNK]", "[SEP]", "the", "cat", "##s", "##er", ".", "n", "'", "t", "do", "is"]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]", unk_token="[UNK]")


TOKENIZERS = {"bytes": bytes_tokenizer(), "pieces": pieces_tokenizer(), "words": words_tokenizer()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_pieces_of_any_tokens_make_up_the_answers_text_and_hold_no_broken_character(kind, data):
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=24))
    before = data.draw(st.sampled_from([(), tokenizer("the cat", add_special_tokens=False)["input_ids"]]))
    base = type("Base", (), {"tokenizer": tokenizer})()
    growing = decode._Growing(base, 0, 0, [], len(ids), before)
    pieces = [growing.add(token) for token in ids]
    answer = pieces[-1].answer
    assert answer.tokens == tuple(ids)
    assert "".join(piece.text for piece in pieces) == answer.text
    if before:
        texts = [tokenizer.decode([*before, *more], skip_special_tokens=True) for more in ([], ids)]
        assert texts[0] + answer.text == texts[1]
    assert all(piece.answer is None for piece in pieces[:-1])


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_characters_of_several_tokens_come_whole(text):
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer(text)["input_ids"]
    growing = decode._Growing(type("Base", (), {"tokenizer": tokenizer})(), 0, 0, [], len(ids) + 1)
    shown = "".join(growing.add(token).text for token in ids)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert text.strip().startswith(shown)
        assert shown == text.strip()
