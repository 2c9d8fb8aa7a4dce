"""Token ids of causal records: targets, special tokens, chat templates, truncation that loses no answer silently."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.data.prompt import beginning, encode_records
from lorascope.data.record import Record, Segment
from lorascope.errors import DataError, ModelError

WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=6)
WORDS = st.lists(WORD, max_size=12).map(" ".join)


def squad(context="the cat sat on the mat", question="who sat?", answer="the cat", start=None, identity="q"):
    start = context.find(answer) if start is None else start
    segments = (
        Segment(context, cut="end"),
        Segment(f"\nQuestion: {question}\nAnswer:"),
        Segment(f" {answer}", True),
    )
    return Record(
        identity,
        f"file, {identity}",
        segments=segments,
        answers=(answer,),
        answer_spans=((start, start + len(answer)),),
    )


def conversation(*turns):
    segments = tuple(Segment(text, role == "assistant", role=role) for role, text in turns)
    return Record("c", "chat.jsonl:1", segments=segments)


def encode(record, tokenizer, max_length=512, training=True, generates=True):
    return encode_records([record], tokenizer, max_length, "train", training=training, generates=generates)


def targets(example):
    return [token for token, is_target in zip(example.input_ids, example.is_target, strict=True) if is_target]


def kinds(notices):
    return [(notice.kind, notice.count) for notice in notices]


def test_answer_and_end_token_are_the_targets(causal):
    [example], notices = encode(squad(), causal)
    assert causal.decode(example.input_ids) == "the cat sat on the mat\nQuestion: who sat?\nAnswer: the cat</s>"
    assert causal.decode(targets(example)) == " the cat</s>"
    assert causal.decode(example.input_ids[: example.prompt_length]).endswith("Answer:")
    assert example.is_target[example.prompt_length :] == [True] * (len(example.input_ids) - example.prompt_length)
    assert example.answers == ("the cat",)
    assert notices == []


def test_questions_on_one_paragraph_share_its_tokens(causal):
    records = [squad(question="who sat?"), squad(question="where?", answer="mat")]
    (first, second), _ = encode_records(records, causal, 512, "train", training=True, generates=True)
    shared = len(causal("the cat sat on the mat\n", add_special_tokens=False)["input_ids"])
    assert first.input_ids[:shared] == second.input_ids[:shared]
    assert first.input_ids != second.input_ids


def test_a_beginning_token_is_put_first_exactly_when_the_tokenizer_does_so(causal, causal_with_bos, encoder):
    assert (beginning(causal), beginning(causal_with_bos)) == ([], [causal_with_bos.bos_token_id])
    assert beginning(encoder) == [encoder.cls_token_id]
    [without], _ = encode(squad(), causal)
    [example], _ = encode(squad(), causal_with_bos)
    assert example.input_ids == [causal_with_bos.bos_token_id, *without.input_ids]
    assert example.is_target[0] is False
    assert example.prompt_length == without.prompt_length + 1


def test_a_tokenizer_without_end_token_is_refused(encoder):
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        encode(squad(), encoder)


def test_truncation_takes_the_end_of_the_context_only(causal):
    record = squad(context="the cat sat on the mat " * 20, answer="the cat", start=0)
    [full], _ = encode(record, causal)
    [example], notices = encode(record, causal, 60)
    assert len(example.input_ids) == 60
    assert causal.decode(example.input_ids).endswith("\nQuestion: who sat?\nAnswer: the cat</s>")
    assert causal.decode(example.input_ids).startswith("the cat sat")
    assert kinds(notices) == [("truncated", 1)]
    assert f"losing {len(full.input_ids) - 60} prompt tokens (first: file, q)" in notices[0].message


def test_a_training_example_whose_answer_is_cut_away_is_dropped_and_counted(causal):
    context = "a dog ran " * 20 + "the cat"
    examples, notices = encode(squad(context=context), causal, 60)
    assert examples == []
    assert kinds(notices) == [("dropped", 1)]
    assert "cuts their answer away" in notices[0].message


def test_a_training_example_that_cannot_fit_is_dropped_and_counted(causal):
    examples, notices = encode(squad(question="who sat there? " * 20), causal, 60)
    assert examples == []
    assert kinds(notices) == [("dropped", 1)]
    assert "even when cut" in notices[0].message


def test_an_evaluation_example_stays_and_its_lost_answer_is_counted(causal):
    context = "a dog ran " * 20 + "the cat"
    [example], notices = encode(squad(context=context), causal, 60, training=False)
    assert len(example.input_ids) == 60
    assert causal.decode(example.input_ids[: example.prompt_length]).endswith("\nQuestion: who sat?\nAnswer:")
    assert kinds(notices) == [("truncated", 1), ("answer_lost", 1)]


def test_one_gold_answer_within_the_kept_context_is_enough(causal):
    record = squad(context="the cat " + "a dog ran " * 20 + "the cat", start=len("the cat " + "a dog ran " * 20))
    record = Record("q", "w", segments=record.segments, answers=("the cat",) * 2, answer_spans=(*record.answer_spans, (0, 7)))
    _, notices = encode(record, causal, 60, training=False)
    assert kinds(notices) == [("truncated", 1)]
    assert encode(record, causal, 60, training=True)[0] == []


def test_the_prompt_of_a_cut_evaluation_example_does_not_tell_the_answers_length(causal):
    context = "the cat sat on the mat and a dog ran " * 10
    records = [squad(context=context, answer=answer, start=0) for answer in ("the", "the cat sat on the mat")]
    (short, long), _ = encode_records(records, causal, 80, "validation", training=False, generates=True)
    assert short.input_ids[: short.prompt_length] == long.input_ids[: long.prompt_length]
    assert len(long.input_ids) == 80


def test_an_evaluation_question_that_does_not_fit_is_a_data_error_that_names_the_needed_length(causal):
    record = squad(question="who sat there? " * 20)
    with pytest.raises(DataError, match="max_length 60 is too small") as caught:
        encode(record, causal, 60, training=False)
    needed = int(str(caught.value).split("set task.max_length to ")[1].split()[0])
    [example], _ = encode(record, causal, needed, training=False)
    assert len(example.input_ids) == needed
    with pytest.raises(DataError):
        encode(record, causal, needed - 1, training=False)


def test_a_prompt_is_cut_from_its_start_and_the_completion_stays_whole(causal):
    segments = (Segment("a dog ran " * 20 + "to the cat", cut="start"), Segment(" and sat", is_target=True))
    [example], notices = encode(Record("p", "w", segments=segments), causal, 20, generates=False)
    assert len(example.input_ids) == 20
    assert causal.decode(example.input_ids).endswith("ran to the cat and sat</s>")
    assert causal.decode(targets(example)) == " and sat</s>"
    assert kinds(notices) == [("truncated", 1)]


def test_one_token_of_a_prompt_stays_to_predict_what_follows(causal):
    segments = (Segment("cat" * 9, cut="start"), Segment("a dog ran", is_target=True))
    record = Record("p", "w", segments=segments)
    [example], _ = encode(record, causal, generates=False)
    num_targets = sum(example.is_target)
    [example], _ = encode(record, causal, num_targets + 1, generates=False)
    assert example.prompt_length == 1
    examples, notices = encode(record, causal, num_targets, generates=False)
    assert (examples, kinds(notices)) == ([], [("dropped", 1)])


def test_a_completion_that_does_not_fit_is_dropped_and_counted(causal):
    segments = (Segment("who?", cut="start"), Segment("a dog ran " * 20, is_target=True))
    examples, notices = encode(Record("p", "w", segments=segments), causal, 20, training=False, generates=False)
    assert examples == []
    assert kinds(notices) == [("dropped", 1)]


def test_the_first_token_is_no_target_where_nothing_precedes_it(causal, causal_with_bos):
    record = Record("p", "w", segments=(Segment("", cut="start"), Segment("a dog ran", is_target=True)))
    [example], notices = encode(record, causal, generates=False)
    assert example.is_target == [False] + [True] * (len(example.input_ids) - 1)
    assert kinds(notices) == [("first_token", 1)]
    [example], notices = encode(record, causal_with_bos, generates=False)
    assert (example.is_target[:2], notices) == ([False, True], [])


def test_chat_without_a_template_is_plain_and_every_answer_ends(causal):
    record = conversation(("system", "be kind"), ("user", "hi"), ("assistant", "yo"), ("user", "bye"), ("assistant", "ciao"))
    [example], _ = encode(record, causal, generates=False)
    assert causal.decode(example.input_ids) == ("be kind\nUser: hi\nAssistant: yo</s>User: bye\nAssistant: ciao</s>")
    assert causal.decode(targets(example)) == " yo</s> ciao</s>"
    assert causal.decode(example.input_ids[example.prompt_length :]) == " ciao</s>"


def test_chat_with_a_template_is_what_the_template_renders_and_answers_end_with_its_token(chat):
    turns = [("system", "be kind"), ("user", "hi"), ("assistant", "yo"), ("user", "bye"), ("assistant", "ciao")]
    [example], notices = encode(conversation(*turns), chat, generates=False)
    messages = [{"role": role, "content": text} for role, text in turns]
    assert chat.decode(example.input_ids) + "\n" == chat.apply_chat_template(messages, tokenize=False)
    assert chat.decode(targets(example)) == "yo<|im_end|>ciao<|im_end|>"
    prompt = chat.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert example.input_ids[: example.prompt_length] == chat(prompt, add_special_tokens=False)["input_ids"]
    assert notices == []


def test_a_long_chat_loses_its_start_but_neither_answers_nor_the_generation_prompt(chat):
    record = conversation(("user", "a dog ran to the cat " * 20), ("assistant", "yo"))
    [example], notices = encode(record, chat, 30, generates=False)
    assert len(example.input_ids) == 30
    assert chat.decode(example.input_ids).endswith("cat <|im_end|>\n<|im_start|>assistant\nyo<|im_end|>")
    assert kinds(notices) == [("truncated", 1)]


def test_a_templates_beginning_token_survives_the_cut(chat):
    chat.chat_template = "<s>" + chat.chat_template
    record = conversation(("user", "a dog ran to the cat " * 20), ("assistant", "yo"))
    [example], _ = encode(record, chat, 30, generates=False)
    assert (len(example.input_ids), example.input_ids[0]) == (30, chat.bos_token_id)
    assert chat.bos_token_id not in example.input_ids[1:]


def test_a_template_that_rewrites_earlier_turns_is_refused(chat):
    chat.chat_template = (
        "{% for message in messages %}{{ message.role }}{% if loop.last %}!{% endif %}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant!: {% endif %}"
    )
    turns = [("user", "hi"), ("assistant", "yo")]
    with pytest.raises(DataError, match=r"chat\.jsonl:1: the chat template rewrites earlier text"):
        encode(conversation(*turns, *turns), chat, generates=False)


def test_a_template_that_drops_the_thoughts_of_earlier_turns_is_refused(chat):
    chat.chat_template = (
        "{% for message in messages %}{{ message.role }}: {% if loop.last and message.role == 'assistant' %}hm {% endif %}"
        "{{ message.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    turns = [("user", "hi"), ("assistant", "yo")]
    encode(conversation(*turns), chat, generates=False)
    with pytest.raises(DataError, match="the chat template rewrites earlier text when turn 4 is added"):
        encode(conversation(*turns, *turns), chat, generates=False)


def test_a_conversation_that_the_template_refuses_is_a_data_error(chat):
    chat.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"chat\.jsonl:1: the chat template cannot render .*roles must alternate"):
        encode(conversation(("user", "hi"), ("assistant", "yo")), chat, generates=False)


def test_a_template_that_ends_no_answer_is_noticed(chat):
    chat.chat_template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    chat.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
    _, notices = encode(conversation(("user", "hi"), ("assistant", "yo")), chat, generates=False)
    assert kinds(notices) == [("no_end", 1)]


@given(before=WORDS, answer=WORD.filter(str.strip), after=WORDS, question=WORD, max_length=st.integers(8, 120))
@settings(max_examples=200, deadline=None)
def test_truncation_never_cuts_an_answer_silently(causal, before, answer, after, question, max_length):
    context = f"{before} {answer} {after}"
    record = squad(context, question, answer, start=len(before) + 1)
    examples, notices = encode(record, causal, max_length)
    if not examples:
        assert kinds(notices) == [("dropped", 1)]
        return
    [example] = examples
    text = causal.decode(example.input_ids)
    assert len(example.input_ids) <= max_length
    assert text.endswith(f"\nQuestion: {question}\nAnswer: {answer}</s>")
    kept = text.removesuffix(f"\nQuestion: {question}\nAnswer: {answer}</s>")
    whole = kept == context
    assert whole or kept.startswith(f"{before} {answer}")
    assert kinds(notices) == ([] if whole else [("truncated", 1)])


@given(contexts=st.lists(WORDS, min_size=1, max_size=4), max_length=st.integers(40, 90))
@settings(max_examples=100, deadline=None)
def test_every_evaluation_example_is_kept_within_max_length(causal, contexts, max_length):
    records = [squad(f"{context} the cat", identity=str(number)) for number, context in enumerate(contexts)]
    examples, notices = encode_records(records, causal, max_length, "validation", training=False, generates=True)
    assert [example.id for example in examples] == [record.id for record in records]
    assert all(len(example.input_ids) <= max_length for example in examples)
    lost = sum("the cat" not in causal.decode(example.input_ids).split("\nQuestion: who sat?")[0] for example in examples)
    assert dict(kinds(notices)).get("answer_lost", 0) == lost
