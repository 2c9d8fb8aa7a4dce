"""Token ids of causal records: targets, special tokens, chat templates, truncation that loses no answer silently."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.data.prompt import encode_pairs, encode_records
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


def conversation(*turns, **kwargs):
    segments = tuple(Segment(text, role == "assistant", role=role) for role, text in turns)
    return Record("c", "chat.jsonl:1", segments=segments, **kwargs)


def replies(*turns, **kwargs):
    """One record for each turn of the assistant: the turns before it are history, the assistant's among them."""
    segments = [Segment(text, role=role) for role, text in turns]
    return [
        Record(f"r{index}", "chat.jsonl:1", segments=(*segments[:index], Segment(text, True, role=role)), **kwargs)
        for index, (role, text) in enumerate(turns)
        if role == "assistant"
    ]


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


def test_a_beginning_token_is_put_first_exactly_when_the_tokenizer_does_so(causal, causal_with_bos):
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


DIALOGUE = (
    ("system", "be kind"),
    ("user", "hi the cat"),
    ("assistant", "yo"),
    ("user", "bye, é!"),
    ("assistant", "ciao cat"),
    ("user", "a dog ran"),
    ("assistant", "so"),
)
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DROPS_SYSTEM = "{% set messages = messages[1:] if messages[0].role == 'system' else messages %}"
ALTERNATES = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
)
LLAMA_2_LIKE = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ '<s>[INST] ' + message.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content + ' </s>' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("name", ["causal", "causal_with_bos", "chat", "metaspace"])
def test_the_records_of_one_dialogue_continue_each_other(name, request):
    tokenizer = request.getfixturevalue(name)
    examples, notices = encode_records(replies(*DIALOGUE), tokenizer, 512, "train", training=True, generates=True)
    assert [sum(example.is_target) for example in examples] == [len(targets(example)) for example in examples]
    for shorter, longer in pairwise(examples):
        assert longer.input_ids[: len(shorter.input_ids)] == shorter.input_ids
        assert longer.prompt_length > len(shorter.input_ids)
    assert [tokenizer.decode(targets(example)).strip() for example in examples] == (
        ["yo</s>", "ciao cat</s>", "so</s>"] if "causal" in name else ["yo<|im_end|>", "ciao cat<|im_end|>", "so<|im_end|>"]
    )
    assert notices == []


def test_one_record_of_all_replies_has_the_tokens_of_the_last_of_one_record_each(causal, chat):
    for tokenizer in (causal, chat):
        [whole], _ = encode(conversation(*DIALOGUE), tokenizer)
        *_, last = encode_records(replies(*DIALOGUE), tokenizer, 512, "train", training=True, generates=True)[0]
        assert (whole.input_ids, whole.prompt_length) == (last.input_ids, last.prompt_length)
        assert sum(whole.is_target) > sum(last.is_target)


@given(texts=st.lists(WORDS, min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_templated_conversation_has_the_tokens_of_its_whole_text(templated, texts):
    for tokenizer in templated:
        turns = [("assistant" if index % 2 else "user", text) for index, text in enumerate(texts)]
        turns = turns[: len(turns) // 2 * 2]
        text = tokenizer.apply_chat_template([{"role": r, "content": t} for r, t in turns], tokenize=False)
        [example], notices = encode(conversation(*turns), tokenizer)
        assert example.input_ids == tokenizer(text.removesuffix("\n"), add_special_tokens=False)["input_ids"]
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        learned_ends = [t for t, token in zip(example.is_target, example.input_ids, strict=True) if token == end]
        assert learned_ends == [False, True] * (len(turns) // 2)
        assert notices == []


def test_a_space_between_prompt_and_answer_belongs_to_the_side_that_wrote_it(metaspace):
    metaspace.chat_template = LLAMA_2_LIKE
    [example], notices = encode(conversation(("user", "hi"), ("assistant", "the cat")), metaspace)
    assert metaspace.convert_ids_to_tokens(targets(example)) == ["▁the", "▁cat", "▁", "</s>"]
    assert notices == []


def test_an_answer_that_runs_into_its_prompt_is_tokenised_apart_and_counted(metaspace):
    metaspace.chat_template = LLAMA_2_LIKE.replace("' [/INST]'", "' [/INST] '").replace("' ' + message", "message")
    record = conversation(("user", "hi"), ("assistant", "the cat"), candidates=("a dog", "the cat"))
    [example], notices = encode(record, metaspace, training=False)
    assert kinds(notices) == [("seam", 1)]
    assert metaspace.decode(example.input_ids[: example.prompt_length]).endswith("[/INST] ")
    assert metaspace.convert_ids_to_tokens(targets(example))[:2] == ["▁the", "▁cat"]
    assert list(example.candidate_ids[1]) == targets(example)


def test_a_system_message_that_the_template_refuses_or_drops_opens_the_conversation(chat):
    plain = chat.chat_template
    turns = [("system", "be kind"), ("user", "hi"), ("assistant", "yo")]
    expected, _ = encode(conversation(("user", "be kind\n\nhi"), ("assistant", "yo")), chat)
    for prefix in (REFUSES_SYSTEM, DROPS_SYSTEM):
        chat.chat_template = prefix + plain
        examples, notices = encode(conversation(*turns), chat)
        assert [example.input_ids for example in examples] == [example.input_ids for example in expected]
        assert kinds(notices) == [("system_role", 1)]


def test_an_assistant_that_begins_is_preceded_by_a_user_who_says_nothing_where_the_template_asks_for_one(chat):
    turns = [("assistant", "yo"), ("user", "hi"), ("assistant", "bye")]
    [example], notices = encode(conversation(*turns), chat)
    assert chat.decode(example.input_ids).startswith("<|im_start|>assistant\nyo<|im_end|>")
    assert notices == []
    plain = chat.chat_template
    chat.chat_template = ALTERNATES + plain
    [example], notices = encode(conversation(*turns), chat)
    assert chat.decode(example.input_ids).startswith("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>")
    assert chat.decode(targets(example)) == "yo<|im_end|>bye<|im_end|>"
    assert kinds(notices) == [("opening_turn", 1)]
    chat.chat_template = REFUSES_SYSTEM + ALTERNATES + plain
    [example], notices = encode(conversation(("system", "be kind"), *turns), chat)
    assert chat.decode(example.input_ids).startswith("<|im_start|>user\nbe kind<|im_end|>\n<|im_start|>assistant\nyo")
    assert kinds(notices) == [("system_role", 1), ("opening_turn", 1)]


@pytest.mark.parametrize("name", ["causal", "chat"])
def test_a_long_conversation_loses_whole_exchanges_after_its_system_message(name, request):
    tokenizer = request.getfixturevalue(name)
    system, *turns = DIALOGUE
    for num_kept in (1, 2):
        expected, _ = encode(replies(system, *turns[-2 * num_kept :])[-1], tokenizer)
        full, _ = encode(replies(*DIALOGUE)[-1], tokenizer)
        length = len(expected[0].input_ids)
        for max_length in (length, length + 2):
            examples, notices = encode(replies(*DIALOGUE)[-1], tokenizer, max_length)
            assert [example.input_ids for example in examples] == [example.input_ids for example in expected]
            assert kinds(notices) == [("truncated", 1)]
            assert f"losing {len(full[0].input_ids) - length} prompt tokens" in notices[0].message


def test_targets_that_go_with_their_exchanges_are_counted(causal):
    expected, _ = encode(conversation(DIALOGUE[0], *DIALOGUE[-2:]), causal)
    [example], notices = encode(conversation(*DIALOGUE), causal, len(expected[0].input_ids))
    assert example.input_ids == expected[0].input_ids
    assert kinds(notices) == [("truncated", 1), ("target_dropped", 2)]


def test_when_no_exchange_is_left_to_drop_the_start_of_the_rest_is_cut(causal):
    expected, _ = encode(conversation(*DIALOGUE[-2:]), causal)
    [example], _ = encode(conversation(*DIALOGUE[1:]), causal, len(expected[0].input_ids) - 3)
    assert example.input_ids == expected[0].input_ids[3:]


PERSONA = "your persona: i have a dog .\nyour persona: my cat ran to the mat ."
LONG_TURN = "hm the cat sat " + "on the mat and ran " * 12 + "bye dog"


def persona_dialogue():
    """The last exchange alone is too long for what a test allows."""
    old = [("user", "hi"), ("assistant", "yo")]
    return replies(("system", PERSONA), *old, ("user", LONG_TURN), ("assistant", "the dog"), persona=("i have a dog .",))[-1]


@pytest.mark.parametrize("prefix", ["", REFUSES_SYSTEM])
@pytest.mark.parametrize("name", ["causal", "causal_with_bos", "chat", "metaspace"])
def test_a_cut_begins_behind_the_system_message(name, prefix, request):
    tokenizer = request.getfixturevalue(name)
    if tokenizer.chat_template:
        tokenizer.chat_template = prefix + tokenizer.chat_template
    [alone], _ = encode(replies(("system", PERSONA), ("user", LONG_TURN), ("assistant", "the dog"))[0], tokenizer)
    for excess in (1, 20):
        [example], notices = encode(persona_dialogue(), tokenizer, len(alone.input_ids) - excess)
        assert len(example.input_ids) == len(alone.input_ids) - excess
        text, whole = tokenizer.decode(example.input_ids), tokenizer.decode(alone.input_ids)
        assert PERSONA in text
        head, tail = whole.split("hm the cat sat")
        assert text.startswith(head.removesuffix("User: ").rstrip())  # nothing went before the turn
        assert excess == 1 or "hm the" not in text
        assert tail.endswith(text[-60:])
        assert targets(example) == targets(alone)
        assert "system_cut" not in dict(kinds(notices))


def test_a_system_message_that_is_too_long_by_itself_is_not_cut_but_the_example_dropped(causal, chat):
    for tokenizer in (causal, chat):
        examples, notices = encode(persona_dialogue(), tokenizer, len(tokenizer(PERSONA)["input_ids"]) + 3)
        assert (examples, kinds(notices)) == ([], [("dropped", 1)])


def test_a_system_message_is_cut_where_the_turn_behind_it_is_not_found_and_that_is_told(chat):
    said = "{{ message.content if message.role == 'system' else message.content | upper }}"
    chat.chat_template = chat.chat_template.replace("{{ message.content }}", said)
    record = persona_dialogue()
    [whole], _ = encode(record, chat)
    length = len(whole.input_ids) - 90
    [example], notices = encode(record, chat, length)
    assert PERSONA not in chat.decode(example.input_ids)
    assert kinds(notices) == [("truncated", 1), ("system_cut", 1)]


def test_an_encoders_cut_begins_behind_the_system_message(encoder_decoder):
    [alone], _ = pairs(replies(("system", PERSONA), ("user", LONG_TURN), ("assistant", "the dog"))[0], encoder_decoder)
    for excess in (1, 20):
        [example], notices = pairs(persona_dialogue(), encoder_decoder, len(alone.input_ids) - excess)
        num_system = len(encoder_decoder(PERSONA, add_special_tokens=False)["input_ids"])
        assert example.input_ids[:num_system] == alone.input_ids[:num_system]
        assert PERSONA in encoder_decoder.decode(example.input_ids)
        kept = len(example.input_ids) - num_system - 1
        assert example.input_ids[-kept:] == alone.input_ids[-kept:]
        assert kinds(notices) == [("truncated", 1)]


@pytest.mark.parametrize("name", ["causal", "causal_with_bos", "chat", "metaspace"])
@pytest.mark.parametrize("max_length", [512, 90])
def test_the_right_candidate_has_the_ids_of_the_records_own_target(name, max_length, request):
    tokenizer = request.getfixturevalue(name)
    candidates = ("the dog", "  yo  ", "é, 漢", "so")
    records = replies(*DIALOGUE, persona=("i like cats .",), candidates=candidates)[-1:]
    [example], _ = encode_records(records, tokenizer, max_length, "validation", training=False, generates=True)
    assert list(example.candidate_ids[-1]) == targets(example) == example.input_ids[example.prompt_length :]
    assert example.persona == ("i like cats .",)
    for text, ids in zip(candidates, example.candidate_ids, strict=True):
        system, *turns = DIALOGUE
        said = replies(system, *turns[:-1], ("assistant", text))[-1]
        [own], _ = encode(said, tokenizer)
        assert list(ids) == own.input_ids[own.prompt_length :]


def test_a_candidate_that_does_not_fit_loses_its_end_and_is_counted(causal):
    record = replies(*DIALOGUE, candidates=("a dog ran " * 30, "so"))[-1]
    [full], _ = encode(record, causal, training=False, generates=False)
    [example], notices = encode(record, causal, len(full.input_ids), training=False, generates=False)
    assert len(example.candidate_ids[0]) == len(full.input_ids) - full.prompt_length
    assert example.candidate_ids[0] == full.candidate_ids[0][: len(example.candidate_ids[0])]
    assert kinds(notices) == [("candidate_cut", 1)]


def pairs(record, tokenizer, max_length=512, training=True):
    return encode_pairs([record], tokenizer, max_length, "train", training=training, generates=True)


def test_an_encoder_reads_what_precedes_a_target_and_the_decoder_writes_it(encoder_decoder):
    [example], notices = pairs(squad(), encoder_decoder)
    text = "the cat sat on the mat\nQuestion: who sat?\nAnswer:"
    assert example.input_ids == encoder_decoder(text)["input_ids"]
    assert example.target_ids == encoder_decoder("the cat")["input_ids"]
    assert (example.is_target, example.prompt_length, example.answers) == (None, len(example.input_ids), ("the cat",))
    assert notices == []


def test_an_encoder_reads_a_dialogue_without_end_tokens_and_has_an_example_for_each_reply(encoder_decoder):
    record = conversation(*DIALOGUE[:5], answers=("ciao cat",), candidates=("a dog", "ciao cat"), persona=("i sat .",))
    examples, _ = pairs(record, encoder_decoder, training=False)
    assert [example.id for example in examples] == ["c.1", "c.2"]
    first, second = (encoder_decoder.decode(example.input_ids) for example in examples)
    assert first == "be kind\nUser: hi the cat\n</s>"
    assert second == "be kind\nUser: hi the cat\nAssistant: yo\nUser: bye, é!\n</s>"
    assert [encoder_decoder.decode(example.target_ids) for example in examples] == ["yo</s>", "ciao cat</s>"]
    assert [example.answers for example in examples] == [("yo",), ("ciao cat",)]
    assert [len(example.candidate_ids) for example in examples] == [0, 2]
    assert list(examples[1].candidate_ids[1]) == examples[1].target_ids
    assert {example.persona for example in examples} == {("i sat .",)}


def test_an_encoders_long_context_is_cut_from_its_end_and_the_question_stays(encoder_decoder):
    record = squad(context="the cat sat on the mat " * 20, answer="the cat", start=0)
    [example], notices = pairs(record, encoder_decoder, 50)
    assert len(example.input_ids) == 50
    text = encoder_decoder.decode(example.input_ids)
    assert text.startswith("the cat sat on the mat the cat")
    assert text.endswith("Question: who sat?\nAnswer:</s>")
    assert kinds(notices) == [("truncated", 1)]
    lost = squad(context="a dog ran " * 20 + "the cat")
    assert (pairs(lost, encoder_decoder, 50)[0], kinds(pairs(lost, encoder_decoder, 50)[1])) == ([], [("dropped", 1)])
    assert kinds(pairs(lost, encoder_decoder, 50, training=False)[1]) == [("truncated", 1), ("answer_lost", 1)]


def test_an_encoders_long_dialogue_loses_its_oldest_exchanges(encoder_decoder):
    record = replies(*DIALOGUE)[-1]
    [expected], _ = pairs(replies(DIALOGUE[0], *DIALOGUE[-2:])[0], encoder_decoder)
    [example], notices = pairs(record, encoder_decoder, len(expected.input_ids))
    assert (example.input_ids, example.target_ids) == (expected.input_ids, expected.target_ids)
    assert kinds(notices) == [("truncated", 1)]
    [expected], _ = pairs(replies(*DIALOGUE[-2:])[0], encoder_decoder)
    [example], _ = pairs(replies(*DIALOGUE[1:])[-1], encoder_decoder, len(expected.input_ids) - 2)
    assert example.input_ids == expected.input_ids[2:]


def test_a_target_longer_than_max_length_is_dropped_or_cut_and_counted(encoder_decoder):
    segments = (Segment("who?", cut="start"), Segment("a dog ran " * 20, is_target=True))
    record = Record("p", "w", segments=segments)
    examples, notices = pairs(record, encoder_decoder, 20)
    assert (examples, kinds(notices)) == ([], [("dropped", 1)])
    [example], notices = pairs(record, encoder_decoder, 20, training=False)
    assert (len(example.target_ids), kinds(notices)) == (20, [("target_cut", 1)])


def test_an_encoders_question_that_does_not_fit_is_a_data_error_that_names_the_needed_length(encoder_decoder):
    record = squad(question="who sat there? " * 20)
    with pytest.raises(DataError, match="max_length 60 is too small") as caught:
        pairs(record, encoder_decoder, 60, training=False)
    needed = int(str(caught.value).split("set task.max_length to ")[1].split()[0])
    [example], _ = pairs(record, encoder_decoder, needed, training=False)
    assert len(example.input_ids) == needed


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
