"""The audit finds what is planted, says where, and finds nothing in clean data; published data have no errors."""

import json
import random
from dataclasses import replace

import pytest

from lorascope.config import TaskConfig
from lorascope.data.audit import audit
from lorascope.data.marking import mark_examples
from lorascope.data.task import encode_task, read_task
from lorascope.errors import CheckFailed, UsageError

MAX_LENGTH = 700
NUM_TRAIN, NUM_EVAL = 12, 5
WORDS = [
    "".join(pair) for pair in zip(*[iter("".join(a + b for a in "bdfgklmnprst" for b in "aeiou") * 12)] * 4, strict=False)
]
WORDS = sorted({word[i:] + word[:i] + extra for word in WORDS for i in range(4) for extra in ("", "ba", "no", "ti")})
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATE_WITHOUT_END = TEMPLATE.replace("<|im_end|>", "")
TEMPLATE_WITHOUT_GENERATION_PROMPT = TEMPLATE.partition("{% if add")[0]


def words(draw, least, most):
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))


class PromptCompletion:
    """Rows of prompt and completion."""

    faults = (
        "long_answer", "cut_answer", "blank_answer", "no_end", "learns_prompt", "answer_not_learned", "duplicate",
        "leaked", "leaked_in_capitals", "leaked_in_part",
    )  # fmt: skip

    def row(self, draw):
        return {"prompt": f"Say, {words(draw, 14, 20)}.\n", "completion": words(draw, 3, 12)}

    def blank_answer(self, row):
        return row | {"completion": " \n"}

    def long_answer(self, row, draw):
        return row | {"completion": words(draw, 400, 400)}

    def in_capitals(self, row):
        return {key: f"{text.upper().replace(' ', '  ')}!" for key, text in row.items()}

    def in_part(self, row, draw):
        shared = " ".join(row["prompt"].split()[1:14])
        return self.row(draw) | {"prompt": f"{words(draw, 3, 9)} {shared} {words(draw, 3, 9)}"}

    def write(self, directory, splits):
        for split, rows in splits.items():
            (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return TaskConfig(name="file", data=str(directory), max_length=MAX_LENGTH)

    def place(self, directory, split, index):
        return f"{directory}/{split}.jsonl:{index + 1}"


class Messages(PromptCompletion):
    """Chats of two turns each, with a system prompt that all share."""

    faults = (*PromptCompletion.faults, "template_without_end", "template_without_generation_prompt")

    def row(self, draw):
        system = "You are a patient teacher who answers every question of the pupil in short and plain words."
        turns = [("system", system)]
        for _ in range(2):
            turns += [("user", f"Why {words(draw, 8, 14)}?"), ("assistant", f"{words(draw, 2, 10)}.")]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    def _changed(self, row, change, turns):
        messages = [dict(message) for message in row["messages"]]
        for turn in turns:
            messages[turn]["content"] = change(messages[turn]["content"])
        return {"messages": messages}

    def blank_answer(self, row):
        return self._changed(row, lambda _: " ", [2])

    def long_answer(self, row, draw):
        return self._changed(row, lambda _: words(draw, 400, 400), [4])

    def in_capitals(self, row):
        return self._changed(row, lambda text: f"{text.upper()} …", [1, 2, 3, 4])

    def in_part(self, row, draw):
        return self._changed(self.row(draw), lambda _: f"{words(draw, 3, 9)} {self.shared(row)}", [3])

    def shared(self, row):
        return " ".join(" ".join(message["content"] for message in row["messages"][1:]).split()[2:15])


class Squad(PromptCompletion):
    """Paragraphs with two questions each."""

    faults = tuple(fault for fault in PromptCompletion.faults if fault != "blank_answer")

    def row(self, draw):
        context, answer = words(draw, 30, 40), words(draw, 2, 4)
        return {
            "context": f"{context} {answer} {words(draw, 5, 9)}",
            "question": f"Where {words(draw, 4, 8)}?",
            "answer": answer,
        }

    def long_answer(self, row, draw):
        return row | {"context": f"{words(draw, 400, 400)} {row['answer']}"}

    def in_capitals(self, row):
        return {key: f"{text.upper().replace(' ', '   ')}," for key, text in row.items()}

    def in_part(self, row, draw):
        other = self.row(draw)
        return other | {"context": f"{other['context']} {' '.join(row['context'].split()[7:20])}"}

    def write(self, directory, splits):
        for split, rows in splits.items():
            paragraphs = []
            for index, row in enumerate(rows):
                start = row["context"].index(row["answer"].rstrip(","))
                answers = [{"text": row["answer"].rstrip(","), "answer_start": start}]
                question = {"id": f"{split}{index}", "question": row["question"], "answers": answers}
                more = {"id": f"{split}{index}b", "question": f"And then, {row['question']}", "answers": answers}
                paragraphs.append({"context": row["context"], "qas": [question] if "alone" in row else [question, more]})
            document = {"data": [{"paragraphs": paragraphs}]}
            (directory / f"{PUBLISHED[split]}.json").write_text(json.dumps(document), encoding="utf-8")
        return TaskConfig(name="squad", data=str(directory), max_length=MAX_LENGTH)

    def place(self, directory, split, index):
        return f"{directory}/{PUBLISHED[split]}.json, question {split}{index}"


class TextLabel(PromptCompletion):
    """Texts of two classes."""

    faults = ("duplicate", "leaked", "leaked_in_capitals", "leaked_in_part")

    def row(self, draw):
        return {"text": words(draw, 14, 22), "label": draw.choice(("no", "yes"))}

    def in_capitals(self, row):
        return row | {"text": f'"{row["text"].title()}"'}

    def in_part(self, row, draw):
        return self.row(draw) | {"text": f"{words(draw, 3, 9)} {' '.join(row['text'].split()[1:14])}"}


PUBLISHED = {"train": "train-v1.1", "validation": "dev-v1.1"}
SHAPES = {"prompt/completion": PromptCompletion(), "messages": Messages(), "squad": Squad(), "text + label": TextLabel()}
EXPECTED = {
    "long_answer": "truncated_target", "cut_answer": "truncated_target", "blank_answer": "empty_target",
    "no_end": "missing_end", "template_without_end": "missing_end", "learns_prompt": "wrong_mask",
    "answer_not_learned": "wrong_mask", "template_without_generation_prompt": "wrong_mask", "duplicate": "duplicate",
    "leaked": "overlap", "leaked_in_capitals": "overlap", "leaked_in_part": "overlap",
}  # fmt: skip
_ONCE = [(shape, fault) for shape, maker in SHAPES.items() for fault in maker.faults]
PLANTED = [(shape, fault, seed) for seed in (1, 2) for shape, fault in _ONCE][:50]


def corrupted(example, fault, draw):
    """The example as a broken encoder would have made it."""
    ids, mask, start = list(example.input_ids), list(example.is_target), example.prompt_length
    if fault == "no_end":
        return replace(example, input_ids=ids[:-1], is_target=mask[:-1])
    if fault == "cut_answer":
        kept = start + (len(ids) - 1 - start) // 2
        end = ids[-1:] if draw.random() < 0.5 else []
        ids = ids[:kept] + end
        return replace(example, input_ids=ids, is_target=mask[:kept] + [True] * len(end))
    if fault == "learns_prompt":
        first = draw.choice((1, start - 6))
        mask[first:start] = [True] * (start - first)
    else:
        last = draw.choice((start + 2, len(ids) - 1))
        mask[start:last] = [False] * (last - start)
    return replace(example, is_target=mask)


def plant(splits, fault, maker, draw):
    """Rows with one fault; where it is, as ``(split, index)``, and where the other one is that it shares something with."""
    splits = {split: list(rows) for split, rows in splits.items()}
    train, evaluation = splits["train"], splits["validation"]
    index = draw.randrange(1, len(train))
    if fault in ("long_answer", "blank_answer"):
        row = train[index]
        train[index] = maker.long_answer(row, draw) if fault == "long_answer" else maker.blank_answer(row)
        return splits, ("train", index), None
    if fault == "duplicate":
        source = draw.randrange(index)
        train[index] = train[source]
        return splits, ("train", index), ("train", source)
    place = draw.randrange(len(evaluation))
    evaluation[place] = {
        "leaked": lambda: train[index],
        "leaked_in_capitals": lambda: maker.in_capitals(train[index]),
        "leaked_in_part": lambda: maker.in_part(train[index], draw),
    }[fault]()
    return splits, ("validation", place), ("train", index)


def audited(config, tokenizer, change=lambda task: task):
    raw = read_task(config)
    task = change(encode_task(raw, tokenizer, config.max_length))
    return audit(raw, task, tokenizer, config.max_length)


@pytest.mark.parametrize(("shape", "fault", "seed"), PLANTED)
def test_every_planted_fault_is_found_in_its_place_and_clean_data_have_none(shape, fault, seed, tmp_path, causal, chat):
    maker, draw = SHAPES[shape], random.Random(f"{shape} {fault} {seed}")
    tokenizer = chat if shape == "messages" else causal
    splits = {"train": [maker.row(draw) for _ in range(NUM_TRAIN)], "validation": [maker.row(draw) for _ in range(NUM_EVAL)]}
    config = maker.write(tmp_path, splits)
    assert audited(config, tokenizer).findings == ()

    kind = EXPECTED[fault]
    if fault.startswith("template"):
        templates = {"end": TEMPLATE_WITHOUT_END, "prompt": TEMPLATE_WITHOUT_GENERATION_PROMPT}
        tokenizer.chat_template = templates[fault.rpartition("_")[2]]
        findings = audited(config, tokenizer).findings
        assert [(finding.kind, finding.count, finding.places[0]) for finding in findings] == [
            (kind, NUM_TRAIN, maker.place(tmp_path, "train", 0)),
            (kind, NUM_EVAL, maker.place(tmp_path, "validation", 0)),
        ]
        return
    if fault in ("cut_answer", "no_end", "learns_prompt", "answer_not_learned"):
        index = draw.randrange(NUM_TRAIN)
        of_row = 2 if shape == "squad" else 1

        def change(task):
            examples = list(task.train)
            examples[of_row * index] = corrupted(examples[of_row * index], fault, draw)
            return replace(task, train=examples)

        findings = audited(config, tokenizer, change).findings
        place, source = ("train", index), None
    else:
        planted, place, source = plant(splits, fault, maker, draw)
        findings = audited(maker.write(tmp_path, planted), tokenizer).findings
    assert [finding.kind for finding in findings] == [kind]
    [finding] = findings
    assert finding.split == place[0]
    where = maker.place(tmp_path, *place)
    expected = where if source is None else f"{where}, like {maker.place(tmp_path, *source)}"
    assert finding.places[0] == expected
    assert expected in finding.message


def test_fifty_faults_are_planted_of_every_kind_and_in_every_shape():
    assert len(set(PLANTED)) == 50
    assert {shape for shape, _, _ in PLANTED} == set(SHAPES)
    assert {EXPECTED[fault] for _, fault, _ in PLANTED} == {
        "truncated_target", "empty_target", "missing_end", "wrong_mask", "duplicate", "overlap",
    }  # fmt: skip


def records_audited(config, **changes):
    raw = replace(read_task(config), **changes)
    return audit(raw, None, None, config.max_length)


@pytest.mark.parametrize(("num_eval", "severity"), [(99, "error"), (100, "warning")])
def test_leakage_is_an_error_above_one_in_a_hundred(num_eval, severity, tmp_path):
    draw, maker = random.Random(3), SHAPES["text + label"]
    train = [maker.row(draw) for _ in range(6)]
    evaluation = [maker.row(draw) for _ in range(num_eval - 1)]
    config = maker.write(tmp_path, {"train": train, "validation": [*evaluation, train[2]]})
    [finding] = records_audited(config).findings
    assert (finding.kind, finding.severity, finding.count) == ("overlap", severity, 1)


def long_conversations(directory, seed, num_exchanges=6):
    """Chats of several answers; a max_length that some of them exceed so far that their oldest exchanges go."""
    draw, maker = random.Random(seed), SHAPES["messages"]
    rows = []
    for _ in range(8):
        messages = maker.row(draw)["messages"]
        for _ in range(draw.randint(0, num_exchanges)):
            messages += maker.row(draw)["messages"][1:3]
        # A dropped answer may be in the text that stays, be how the system prompt ends, or be given twice.
        messages[2]["content"] = draw.choice(("so", "."))
        if draw.random() < 0.3:
            messages[1:1] = messages[1:3]
        rows.append({"messages": messages})
    config = maker.write(directory, {"train": rows[:5], "validation": rows[5:]})
    return config.model_copy(update={"max_length": 420})


@pytest.mark.parametrize("name", ["causal", "causal_with_bos", "chat", "metaspace"])
def test_targets_that_go_with_the_oldest_exchanges_are_no_fault(name, tmp_path, request):
    tokenizer = request.getfixturevalue(name)
    for seed in range(3):
        config = long_conversations(tmp_path, seed)
        raw = read_task(config)
        task = encode_task(raw, tokenizer, config.max_length)
        assert "target_dropped" in {notice.kind for notice in task.notices}
        found = audit(raw, task, tokenizer, config.max_length)
        assert {(finding.kind, finding.severity) for finding in found.findings} <= {("truncated", "warning")}


@pytest.mark.parametrize("fault", ["whole_answer", "half_an_answer", "question"])
@pytest.mark.parametrize("name", ["causal", "chat"])
def test_a_wrong_mask_in_a_conversation_that_was_cut_is_found(name, fault, tmp_path, request):
    tokenizer = request.getfixturevalue(name)
    config = long_conversations(tmp_path, 1)
    whole = encode_task(read_task(config), tokenizer, 10**6)
    cut_at = []

    def change(task):
        examples = list(task.train)
        cut = [place for place, example in enumerate(examples) if len(example.input_ids) < len(whole.train[place].input_ids)]
        cut_at.extend(cut)
        example = examples[cut[-1]]
        mask = list(example.is_target)
        start = mask.index(True)
        stop = mask.index(False, start)
        assert True in mask[stop:]  # more than one answer stayed
        if fault == "question":
            mask[start - 9 : start - 4] = [True] * 5
        else:
            first = start if fault == "whole_answer" else (start + stop) // 2
            mask[first:stop] = [False] * (stop - first)
        examples[cut[-1]] = replace(example, is_target=mask)
        return replace(task, train=examples)

    findings = audited(config, tokenizer, change).findings
    [finding] = [finding for finding in findings if finding.severity == "error"]
    assert (finding.kind, finding.count, finding.split) == ("wrong_mask", 1, "train")
    assert finding.places == (SHAPES["messages"].place(tmp_path, "train", cut_at[-1]),)


@pytest.mark.parametrize("max_length", [420, 90])
def test_an_encoder_decoders_examples_of_one_target_each_are_compared_with_their_own_answers(
    max_length, tmp_path, encoder_decoder
):
    config = long_conversations(tmp_path, 2).model_copy(update={"max_length": max_length})
    raw = replace(read_task(config), task_type="SEQ_2_SEQ_LM")
    task = encode_task(raw, encoder_decoder, max_length)
    found = audit(raw, task, encoder_decoder, max_length)
    assert {(finding.kind, finding.severity) for finding in found.findings} <= {("truncated", "warning")}
    assert [figures.num_records for figures in found.figures] == [len(raw.train), len(raw.eval)]
    assert found.figures[0].num_examples == len(task.train) > len(raw.train)

    marked = mark_examples(raw, task, encoder_decoder, 3)
    assert [example.id for example in marked if example.split == "train"] == [f"{raw.train[0].id}.{n}" for n in (1, 2, 3)]
    answers = [segment.text for segment in raw.train[0].segments if segment.is_target][:3]
    learned = ["".join(token.text for token in example.tokens if token.is_target) for example in marked[:3]]
    assert [text.removesuffix("</s>").strip() for text in learned] == answers

    swapped = [task.train[0], replace(task.train[1], target_ids=task.train[2].target_ids), *task.train[2:]]
    findings = audit(raw, replace(task, train=swapped), encoder_decoder, max_length).findings
    assert [(f.kind, f.count, f.places) for f in findings if f.severity == "error"] == [
        ("wrong_mask", 1, (raw.train[0].where,))
    ]


def test_an_error_stops_unless_its_kind_is_allowed(tmp_path):
    draw, maker = random.Random(4), SHAPES["text + label"]
    train = [maker.row(draw) for _ in range(6)]
    config = maker.write(tmp_path, {"train": train, "validation": [train[5], *(maker.row(draw) for _ in range(6))]})
    found = records_audited(config)
    with pytest.raises(CheckFailed, match=r"validation\.jsonl:1, like .*train\.jsonl:6: overlap: 1 of 7 .*--allow overlap"):
        found.check([])
    found.check(["overlap"])
    assert [notice.kind for notice in found.notices()] == ["overlap"]
    with pytest.raises(UsageError, match="did you mean 'overlap'"):
        found.check(["overlp"])


def test_evaluation_on_train_is_no_leakage(tmp_path):
    draw, maker = random.Random(5), SHAPES["text + label"]
    config = maker.write(tmp_path, {"train": [maker.row(draw) for _ in range(9)]})
    found = audit(read_task(config, "train"), None, None, config.max_length)
    assert ([figures.split for figures in found.figures], found.findings) == (["train"], ())


def test_equal_inputs_with_other_answers_and_missing_classes_are_told(tmp_path):
    rows = [{"text": f"text {number}", "label": "a"} for number in range(4)]
    write = SHAPES["text + label"].write
    config = write(tmp_path, {"train": [*rows, {"text": "text 1", "label": "b"}], "validation": [{"text": "z", "label": "a"}]})
    three = config.model_copy(update={"labels": ["a", "b", "c"]})
    assert [(finding.kind, finding.count, finding.severity) for finding in records_audited(three).findings] == [
        ("conflict", 1, "warning"),
        ("label_missing", 1, "warning"),
    ]
    few = config.model_copy(update={"max_train": 3})
    assert [finding.kind for finding in records_audited(few).findings] == ["one_class"]


def test_texts_that_a_tokenizer_does_not_know_are_told(tmp_path, encoder):
    rows = [{"text": "the cat", "label": "a"}, {"text": "Ωμέγα", "label": "b"}]
    config = SHAPES["text + label"].write(tmp_path, {"train": rows, "validation": [{"text": "a dog", "label": "a"}]})
    [finding] = audited(config, encoder).findings
    assert (finding.kind, finding.places) == ("no_tokens", (f"{tmp_path}/train.jsonl:2",))


def test_figures_count_tokens_and_targets(tmp_path, causal):
    draw, maker = random.Random(6), SHAPES["prompt/completion"]
    config = maker.write(tmp_path, {"train": [maker.row(draw) for _ in range(9)], "validation": [maker.row(draw)]})
    task = encode_task(read_task(config), causal, config.max_length)
    train = audited(config, causal).figures[0]
    lengths = [len(example.input_ids) for example in task.train]
    assert (train.num_examples, train.num_tokens, train.longest_tokens) == (9, sum(lengths), max(lengths))
    assert train.num_target_tokens == sum(sum(example.is_target) for example in task.train)
    for low, high, count in train.lengths:
        assert count == sum(low <= length <= high for length in lengths)
    assert sum(count for _, _, count in train.lengths) == 9


def test_figures_count_the_targets_that_an_earlier_one_equals(tmp_path):
    said = ["i like that too", "no", "i like that too ", "No", "i like that too"]
    rows = [{"prompt": f"{number}?", "completion": text} for number, text in enumerate(said)]
    config = SHAPES["prompt/completion"].write(tmp_path, {"train": rows, "validation": rows[:2]})
    found = records_audited(config)
    assert [figures.num_repeated_targets for figures in found.figures] == [2, 0]
    assert "duplicate" not in {finding.kind for finding in found.findings}
    rows = [{"text": f"text {number}", "label": label} for number, label in enumerate(("no", "yes", "no"))]
    config = SHAPES["text + label"].write(tmp_path, {"train": rows, "validation": rows[:1]})
    assert [figures.num_repeated_targets for figures in records_audited(config).figures] == [None, None]


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["causal", "chat"])
@pytest.mark.parametrize(
    ("task", "data"),
    [
        ("personachat", "personachat/valid_self_original.txt"),
        ("personachat", "synthetic_persona_chat/Synthetic-Persona-Chat_valid.csv"),
        ("teacher_student", "mathdial/test.jsonl"),
        ("squad", "squad/dev-v2.0.rebuilt.json"),
        ("sick", "sick/SICK.txt"),
        ("dialogue_nli", "dialogue_nli"),
    ],
)
def test_the_examples_of_published_data_have_no_errors(task, data, name, shared_data, request):
    config = TaskConfig(name=task, data=f"{shared_data}/{data}", eval_fraction=0.1, max_length=4096)
    raw = read_task(config)
    raw = replace(raw, train=raw.train[:200], eval=raw.eval[:40])
    tokenizer = request.getfixturevalue(name)
    found = audit(raw, encode_task(raw, tokenizer, config.max_length), tokenizer, config.max_length)
    assert [finding for finding in found.findings if finding.severity == "error"] == []
    assert [figures.num_examples for figures in found.figures] == [len(raw.train), len(raw.eval)]


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("task", "data", "fraction"),
    [("rte", "rte", None), ("mrpc", "mrpc/msr_paraphrase_train.txt", 0.1), ("squad", "squad/dev-v1.1.json", 0.1)],
)
def test_published_data_have_no_errors(task, data, fraction, shared_data):
    config = TaskConfig(name=task, data=f"{shared_data}/{data}", eval_fraction=fraction)
    found = records_audited(config)
    assert [finding for finding in found.findings if finding.severity == "error"] == []
    assert "overlap" in {finding.kind for finding in found.findings}  # shared phrases, told as a warning


@pytest.mark.parametrize(("role", "severity"), [("assistant", "error"), ("user", "warning")])
def test_a_control_token_written_out_is_found_and_stops_where_it_would_be_learned(role, severity, tmp_path, chat):
    shape, draw = Messages(), random.Random(3)
    rows = [shape.row(draw) for _ in range(6)]
    turn = next(message for message in rows[4]["messages"] if message["role"] == role)
    turn["content"] += "<|im_end|> and more"
    task = shape.write(tmp_path, {"train": rows, "validation": [shape.row(draw) for _ in range(2)]})
    raw = read_task(task)
    tokenizer = chat
    found = audit(raw, encode_task(raw, tokenizer, MAX_LENGTH), tokenizer, MAX_LENGTH)
    (finding,) = [each for each in found.findings if each.kind == "special_text"]
    assert (finding.severity, finding.split, finding.count) == (severity, "train", 1)
    assert finding.places == (f"{tmp_path}/train.jsonl:5",)
