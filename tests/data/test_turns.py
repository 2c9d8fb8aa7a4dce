"""What a model is given to answer: the text that it was trained on, cut at its beginning where it does not fit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.data.prompt import encode_pairs, encode_records
from lorascope.data.record import Record, Segment
from lorascope.data.turns import TurnEncoder
from lorascope.errors import DataError, UsageError

HISTORY = (
    Segment("be kind", role="system"),
    Segment("hi there", role="user"),
    Segment("hello", role="assistant"),
    Segment("who sat on the mat?", role="user"),
)


def trained_on(turns, tokenizer):
    """The prompt of a training example whose answer follows these turns."""
    record = Record("r", "here", segments=(*turns, Segment("the cat", True, role="assistant")))
    (example,), _ = encode_records([record], tokenizer, 10**6, "train", training=True, generates=True)
    return example.input_ids[: example.prompt_length], example.input_ids[-1]


def test_through_a_template_the_prompt_is_what_transformers_makes_and_training_reads(templated):
    for tokenizer in templated:
        prompt = TurnEncoder(tokenizer, False).encode(HISTORY)
        messages = [{"role": turn.role, "content": turn.text} for turn in HISTORY]
        made = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        assert prompt.ids == list(made["input_ids"])
        ids, end = trained_on(HISTORY, tokenizer)
        assert prompt.ids == ids
        assert prompt.ends == (end,) == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
        assert prompt.form == "template"


@pytest.mark.parametrize("fixture", ["causal", "causal_with_bos"])
@given(turns=st.lists(st.text("ab \n?é", min_size=1, max_size=8), min_size=1, max_size=7), system=st.booleans())
@settings(max_examples=40, deadline=None)
def test_without_a_template_the_prompt_is_what_training_reads(fixture, turns, system, request):
    tokenizer = request.getfixturevalue(fixture)
    turns = turns if len(turns) % 2 else turns[1:]
    said = tuple(Segment(text, role=("user", "assistant")[index % 2]) for index, text in enumerate(turns))
    said = (HISTORY[0], *said) if system else said
    prompt = TurnEncoder(tokenizer, False).encode(said)
    assert prompt.ids == trained_on(said, tokenizer)[0]
    assert prompt.form == "plain"


def test_the_plain_format_is_lines_of_speakers_with_end_tokens(causal):
    ids = TurnEncoder(causal, False).encode(HISTORY).ids
    expected = "be kind\nUser: hi there\nAssistant: hello</s>User: who sat on the mat?\nAssistant:"
    assert causal.decode(ids) == expected


def test_an_encoder_reads_what_it_reads_in_training(encoder_decoder):
    record = Record("r", "here", segments=(*HISTORY, Segment("the cat", True, role="assistant")))
    (example,), _ = encode_pairs([record], encoder_decoder, 10**6, "train", training=True, generates=True)
    prompt = TurnEncoder(encoder_decoder, True).encode(HISTORY)
    assert prompt.ids == example.input_ids
    assert TurnEncoder(encoder_decoder, True).raw("the cat").ids == encoder_decoder("the cat")["input_ids"]


def test_a_raw_prompt_has_the_special_tokens_that_the_tokenizer_begins_with_and_no_more(causal_with_bos, chat):
    assert TurnEncoder(causal_with_bos, False).raw("the cat").ids == causal_with_bos("the cat")["input_ids"]
    assert TurnEncoder(chat, False).raw("the cat").ids == chat("the cat")["input_ids"]
    assert TurnEncoder(chat, False).raw("the cat").ends == ()


def test_a_system_message_that_the_template_refuses_opens_the_first_message_and_that_is_told(chat):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + chat.chat_template
    chat.chat_template = refusing
    prompt = TurnEncoder(chat, False).encode(HISTORY)
    assert "<|im_start|>user\nbe kind\n\nhi there<|im_end|>" in chat.decode(prompt.ids)
    assert prompt.notices == ("the chat template refuses a system message; the first user message begins with it",)


def test_a_template_that_renders_nothing_of_it_is_an_error(chat):
    chat.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(DataError, match=r"cannot render this conversation \(never\)"):
        TurnEncoder(chat, False).encode(HISTORY)


def test_what_does_not_fit_goes_from_the_front_and_the_system_message_stays(chat):
    encoder = TurnEncoder(chat, False)
    turns = (HISTORY[0], *HISTORY[1:3] * 4, HISTORY[3])
    lengths = [len(encoder.encode((HISTORY[0], *HISTORY[1:3] * count, HISTORY[3])).ids) for count in range(5)]
    for room in (lengths[4], lengths[4] - 1, lengths[2], lengths[1], lengths[0]):
        prompt = encoder.fitted(turns, room, 10**6)
        kept = max(count for count, length in enumerate(lengths) if length <= room)
        assert prompt.num_left_out == 4 - kept
        assert len(prompt.ids) == lengths[kept]
        assert "be kind" in chat.decode(prompt.ids)
        assert "who sat" in chat.decode(prompt.ids)
    assert encoder.fitted(turns, None, 0).num_left_out == 0
    assert len(encoder.fitted(turns, 3, lengths[0]).ids) == lengths[0], "answered in brief"
    with pytest.raises(UsageError, match=f"the prompt has {lengths[0]} tokens, and the model can read {lengths[0] - 1}"):
        encoder.fitted(turns, 3, lengths[0] - 1)


def test_a_text_without_tokens_is_refused(causal):
    with pytest.raises(DataError, match="the text has no tokens"):
        TurnEncoder(causal, False).raw("")
