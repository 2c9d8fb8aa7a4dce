"""Tasks as a whole: splits, held-out records, notices, and encoding of classification."""

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.config import TaskConfig
from lorascope.data.source import Source
from lorascope.data.task import TASKS, encode_task, known_form, read_task
from lorascope.errors import DataError, UsageError


def sst2(directory, train=(), dev=None, test=None):
    directory.mkdir(exist_ok=True)
    for name, rows in (("train", train), ("dev", dev), ("test", test)):
        if rows is not None:
            lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
            (directory / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return str(directory)


def texts(records):
    return [record.text for record in records]


ROWS = [(f"sentence {number}", number % 2) for number in range(40)]


def test_importing_tasks_loads_no_heavy_library():
    heavy = "{'torch', 'datasets', 'transformers', 'pyarrow', 'sklearn', 'numpy'}"
    program = f"import sys, lorascope.data.task; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_an_unknown_task_is_a_usage_error_with_a_suggestion():
    with pytest.raises(UsageError, match=r"task\.name: unknown task 'sst-2'; did you mean 'sst2'\?"):
        read_task(TaskConfig(name="sst-2", data="x"))
    expected = ["dialogue_nli", "file", "mrpc", "personachat", "rte", "sick", "squad", "sst2", "teacher_student"]
    assert sorted(TASKS) == expected


def test_a_speaker_is_refused_by_a_task_without_dialogues(tmp_path):
    with pytest.raises(UsageError, match=r"task\.speaker: sst2 has no speakers; remove the key"):
        read_task(TaskConfig(name="sst2", data=sst2(tmp_path, ROWS, ROWS), speaker="user"))


def test_max_train_and_max_eval_take_the_first_records(tmp_path):
    data = sst2(tmp_path, ROWS, ROWS[:5])
    task = read_task(TaskConfig(name="sst2", data=data, max_train=3, max_eval=2))
    assert texts(task.train) == ["sentence 0", "sentence 1", "sentence 2"]
    assert texts(task.eval) == ["sentence 0", "sentence 1"]


def test_only_the_records_in_use_are_held_though_every_row_is_checked_and_counted(tmp_path):
    train, dev = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    line = json.dumps({"prompt": "lorem ipsum " * 160, "completion": "dolor sit amet " * 136}) + "\n"
    train.write_text(line * 4_000)
    dev.write_text(line * 60)
    config = TaskConfig(name="file", data={"train": str(train), "validation": str(dev)}, max_train=100, max_eval=50)
    tracemalloc.start()
    try:
        task = read_task(config)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2e6 < train.stat().st_size / 7
    assert (len(task.train), len(task.eval)) == (100, 50)
    assert task.counts == {"train": {"rows": 4_000}, "validation": {"rows": 60}}
    with train.open("a") as file:
        file.write(json.dumps({"prompt": "no completion"}))
    with pytest.raises(DataError, match=r"train\.jsonl:4001: column 'completion' has no value"):
        read_task(config)


@pytest.mark.parametrize(("max_train", "max_eval"), [(None, None), (3, None), (None, 2), (3, 7), (7, 3), (1, 1)])
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("with_train", [True, False])
@pytest.mark.parametrize("eval_fraction", [None, 0.4])
def test_limits_give_the_first_records_of_what_is_read_without_them(
    tmp_path, max_train, max_eval, split, with_train, eval_fraction
):
    data = sst2(tmp_path, ROWS, ROWS[:9])
    whole = read_task(TaskConfig(name="sst2", data=data, eval_fraction=eval_fraction), split, with_train=with_train)
    config = TaskConfig(name="sst2", data=data, eval_fraction=eval_fraction, max_train=max_train, max_eval=max_eval)
    task = read_task(config, split, with_train=with_train)
    assert task.train == whole.train[:max_train]
    assert task.eval == whole.eval[:max_eval]


def test_without_an_evaluation_split_the_error_proposes_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"no validation split .*task\.eval_fraction .*data: \{validation: …\}"):
        read_task(TaskConfig(name="sst2", data=sst2(tmp_path, ROWS)))
    with pytest.raises(DataError, match="no test split"):
        read_task(TaskConfig(name="sst2", data=sst2(tmp_path, ROWS), eval_fraction=0.1), "test")
    with pytest.raises(DataError, match="no train split"):
        read_task(TaskConfig(name="sst2", data={"validation": sst2(tmp_path, ROWS) + "/train.tsv"}))


def test_a_mapping_names_each_split(tmp_path):
    data = sst2(tmp_path, ROWS[:2], ROWS[2:4], ROWS[4:6])
    mapping = {"train": f"{data}/train.tsv", "validation": f"{data}/test.tsv", "test": data}
    task = read_task(TaskConfig(name="sst2", data=mapping))
    assert texts(task.eval) == ["sentence 4", "sentence 5"]
    assert texts(read_task(TaskConfig(name="sst2", data=mapping), "test").eval) == ["sentence 4", "sentence 5"]


def test_evaluation_on_train_is_on_the_training_records(tmp_path):
    task = read_task(TaskConfig(name="sst2", data=sst2(tmp_path, ROWS), max_eval=4), "train")
    assert (task.eval_split, texts(task.eval)) == ("train", texts(task.train)[:4])


def test_evaluation_alone_needs_no_train_split(tmp_path):
    data = sst2(tmp_path, ROWS, ROWS[:5])
    task = read_task(TaskConfig(name="sst2", data=f"{data}/dev.tsv"), with_train=False)
    assert (task.train, len(task.eval)) == ([], 5)
    held_out = TaskConfig(name="sst2", data=f"{data}/train.tsv", eval_fraction=0.25)
    assert texts(read_task(held_out, with_train=False).eval) == texts(read_task(held_out).eval)


def test_held_out_records_are_told_and_left_out_of_train(tmp_path):
    config = TaskConfig(name="sst2", data=sst2(tmp_path, ROWS), eval_fraction=0.25)
    task = read_task(config)
    assert (len(task.train), len(task.eval)) == (30, 10)
    assert sorted(texts(task.train) + texts(task.eval)) == sorted(text for text, _ in ROWS)
    assert [(notice.kind, notice.count) for notice in task.notices] == [("held_out", 10)]
    assert task.eval_split == "validation (held out of train)"
    assert texts(read_task(config, "train").train) == texts(task.train)


def test_held_out_records_do_not_depend_on_their_order(tmp_path):
    one = read_task(TaskConfig(name="sst2", data=sst2(tmp_path / "a", ROWS), eval_fraction=0.25))
    other = read_task(TaskConfig(name="sst2", data=sst2(tmp_path / "b", ROWS[::-1]), eval_fraction=0.25))
    assert set(texts(one.eval)) == set(texts(other.eval))
    assert one.checksum != other.checksum


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([0, 1])), min_size=1, max_size=20),
    st.floats(0.01, 0.99),
)
@settings(max_examples=60, deadline=None)
def test_equal_texts_are_never_divided_and_neither_side_is_empty(tmp_path_factory, rows, fraction):
    data = sst2(tmp_path_factory.mktemp("held"), rows)
    config = TaskConfig(name="sst2", data=data, eval_fraction=fraction)
    if len({text for text, _ in rows}) == 1:
        with pytest.raises(DataError, match="the validation split is empty"):
            read_task(config)
        return
    task = read_task(config)
    assert task.train
    assert task.eval
    assert not set(texts(task.train)) & set(texts(task.eval))
    assert len(task.train) + len(task.eval) == len(rows)


def test_questions_on_one_paragraph_are_never_divided(tmp_path):
    def paragraph(number):
        context = f"paragraph {number}"
        answer = [{"text": "paragraph", "answer_start": 0}]
        return {"context": context, "qas": [{"id": f"{number}{k}", "question": k, "answers": answer} for k in "abc"]}

    document = {"data": [{"paragraphs": [paragraph(number) for number in range(10)]}]}
    (tmp_path / "all.json").write_text(json.dumps(document))
    task = read_task(TaskConfig(name="squad", data=str(tmp_path / "all.json"), eval_fraction=0.3))
    assert (len(task.train), len(task.eval)) == (21, 9)
    assert not {record.group for record in task.train} & {record.group for record in task.eval}


def test_near_copies_are_never_divided(tmp_path):
    rows = [
        (f"{text}{end}", 1) for text in ("A film", "two  plots", "Three", "IV", "5 warm hearts") for end in ("", " .", "!")
    ]
    for fraction in (0.2, 0.5, 0.8):
        task = read_task(TaskConfig(name="sst2", data=sst2(tmp_path, rows), eval_fraction=fraction))
        assert {text[:2] for text in texts(task.train)}.isdisjoint({text[:2] for text in texts(task.eval)})


def test_classification_is_encoded_as_the_tokenizer_does_it(tmp_path, encoder):
    header = "sentence1\tsentence2\tlabel\n"
    (tmp_path / "train.tsv").write_text(f"{header}the cat\ta dog ran\tentailment\n")
    (tmp_path / "dev.tsv").write_text(f"{header}a dog\tthe cat sat\tnot_entailment\n")
    task = encode_task(read_task(TaskConfig(name="rte", data=str(tmp_path))), encoder, 16)
    expected = encoder("the cat", "a dog ran")
    [example] = task.train
    assert (example.input_ids, example.token_type_ids) == (expected["input_ids"], expected["token_type_ids"])
    assert (example.label, example.is_target, example.prompt_length) == (0, None, 0)
    assert task.eval[0].label == 1


def test_token_types_are_left_out_where_they_say_nothing(tmp_path, encoder):
    task = encode_task(read_task(TaskConfig(name="sst2", data=sst2(tmp_path, ROWS, ROWS))), encoder, 16)
    assert task.train[0].token_type_ids is None


def test_classification_truncates_the_longest_text_and_counts(tmp_path, encoder):
    header = "sentence1\tsentence2\tlabel\n"
    rows = f"a dog\t{'the cat sat on ' * 5}\tentailment\na dog\tthe cat\tnot_entailment\n"
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text(header + rows)
    raw = read_task(TaskConfig(name="rte", data=str(tmp_path)))
    task = encode_task(raw, encoder, 10)
    assert encoder.decode(task.train[0].input_ids) == "[CLS] a dog [SEP] the cat sat on the [SEP]"
    assert len(task.train[0].input_ids) == len(task.train[0].token_type_ids) == 10
    cut = [notice for notice in task.notices if notice.kind == "truncated"]
    assert [(notice.count, notice.where) for notice in cut] == [(1, "train"), (1, "validation")]
    assert "train.tsv:2" in cut[0].message
    assert task.checksum == raw.checksum


def test_a_text_without_tokens_is_dropped_from_train_and_refused_in_evaluation(tmp_path, causal):
    data = sst2(tmp_path, [("", 1), ("x", 0)], [("x", 0)])
    task = encode_task(read_task(TaskConfig(name="sst2", data=data)), causal, 16)
    assert [example.label for example in task.train] == [0]
    assert [(notice.kind, notice.count) for notice in task.notices if notice.kind == "dropped"] == [("dropped", 1)]
    data = sst2(tmp_path, [("x", 0)], [("y", 1), ("", 0)])
    with pytest.raises(DataError, match=r"dev\.tsv:3: the text has no tokens"):
        encode_task(read_task(TaskConfig(name="sst2", data=data)), causal, 16)


def test_a_split_of_which_nothing_is_left_is_a_data_error(tmp_path, causal):
    rows = [{"prompt": "who?", "completion": "a dog ran " * 30}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    raw = read_task(TaskConfig(name="file", data={"train": f"{tmp_path}/a.jsonl", "validation": f"{tmp_path}/a.jsonl"}))
    with pytest.raises(DataError, match="no train example is left: 1 train examples were dropped"):
        encode_task(raw, causal, 20)


@pytest.mark.shared_data
def test_real_squad_decodes_to_its_prompt_and_answer(shared_data, gpt2_tokenizer):
    data = {
        "train": f"{shared_data}/squad/train-v1.1.subset11877.json",
        "validation": f"{shared_data}/squad/dev-v1.1.json",
    }
    raw = read_task(TaskConfig(name="squad", data=data, max_train=300, max_eval=300))
    task = encode_task(raw, gpt2_tokenizer, 384)
    for record, example in zip(raw.eval, task.eval, strict=True):
        prompt = gpt2_tokenizer.decode(example.input_ids[: example.prompt_length])
        answer = gpt2_tokenizer.decode(example.input_ids[example.prompt_length :])
        assert prompt.endswith(record.segments[1].text)
        assert answer == f" {record.answers[0]}<|endoftext|>"
    short = encode_task(raw, gpt2_tokenizer, 160)
    dropped = sum(notice.count for notice in short.notices if notice.kind == "dropped")
    assert dropped > 0
    assert len(short.train) + dropped == 300
    by_id = {record.id: record for record in raw.train}
    for example in short.train:
        context = gpt2_tokenizer.decode(example.input_ids).split("\nQuestion: ")[0]
        assert by_id[example.id].answers[0] in context


@pytest.mark.shared_data
def test_real_rte_pairs_have_token_types(shared_data, bert_tokenizer):
    task = encode_task(read_task(TaskConfig(name="rte", data=f"{shared_data}/rte")), bert_tokenizer, 128)
    assert bert_tokenizer.decode(task.train[0].input_ids) == (
        "[CLS] no weapons of mass destruction found in iraq yet . [SEP] weapons of mass destruction found in iraq . [SEP]"
    )
    assert all(sum(example.token_type_ids) > 0 for example in task.train)
    assert max(len(example.input_ids) for example in task.train + task.eval) == 128


def test_task_type_and_labels_are_known_without_the_data_where_the_task_fixes_them():
    assert known_form(TaskConfig(name="mrpc", data="nowhere")) == ("SEQ_CLS", 2)
    for name in ("sick", "dialogue_nli"):
        assert known_form(TaskConfig(name=name, data="nowhere")) == ("SEQ_CLS", 3)
    for name in ("squad", "personachat", "teacher_student"):
        assert known_form(TaskConfig(name=name, data="nowhere")) == ("CAUSAL_LM", 0)
    assert known_form(TaskConfig(name="file", data="nowhere", labels=["a", "b", "c"])) == ("SEQ_CLS", 3)
    assert known_form(TaskConfig(name="file", data="nowhere")) is None


def test_a_generation_task_is_encoded_for_the_model_that_it_is_for(tmp_path, encoder_decoder):
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "the cat sat", "completion": " on the mat"}) + "\n")
    raw = read_task(TaskConfig(name="file", data=str(tmp_path / "train.jsonl")), "train")
    [causal] = encode_task(raw, encoder_decoder, 64).train
    [pair] = encode_task(replace(raw, task_type="SEQ_2_SEQ_LM"), encoder_decoder, 64).train
    assert (causal.target_ids, pair.is_target) == (None, None)
    assert pair.input_ids == encoder_decoder("the cat sat")["input_ids"]
    assert pair.target_ids == encoder_decoder("on the mat")["input_ids"]
    assert sum(causal.is_target) == len(pair.target_ids)


SPEECH = "Teacher: (focus)Why?|EOM|Student: Because.|EOM|Teacher: (generic)Fine."
LIMITED = {
    "parlai": (
        "personachat",
        "a.txt",
        "".join(f"1 your persona: i am {n} .\n2 hi {n}\tyo\n3 how ?\tso {n}\n" for n in range(4)),
    ),
    "synthetic": (
        "personachat",
        "a.csv",
        "user 1 personas,user 2 personas,Best Generated Conversation\n"
        + "".join(f'a,b {n},"User 1: hi\n[later]\nUser 2: yo {n}\nUser 1: so\nUser 2: no"\n' for n in range(4)),
    ),
    "both_splits": (
        "personachat",
        "a.json",
        json.dumps(
            {
                split: [
                    {"personality": [f"i {n}"], "utterances": [{"history": ["a"], "candidates": ["x", f"b {n}"]}]}
                    for n in "abcd"
                ]
                for split in ("train", "valid")
            }
        ),
    ),
    "replies": (
        "personachat",
        "a.jsonl",
        "".join(json.dumps({"personality": [n], "history": ["a"], "candidates": ["x", n]}) + "\n" for n in "abcd"),
    ),
    "tutoring": (
        "teacher_student",
        "a.jsonl",
        "".join(
            json.dumps({"conversation": SPEECH, "question": f"q {n}", "ground_truth": "1", "student_incorrect_solution": "2"})
            + "\n"
            for n in range(4)
        ),
    ),
    "sick": (
        "sick",
        "a.txt",
        "pair_ID\tsentence_A\tsentence_B\tentailment_judgment\n" + "".join(f"{n}\ta {n}\tb\tNEUTRAL\n" for n in range(6)),
    ),
    "sick_sets": (
        "sick",
        "a.txt",
        "sentence_A\tsentence_B\tentailment_label\tSemEval_set\n"
        + "".join(f"a {n}\tb\tNEUTRAL\t{part}\n" for n in range(4) for part in ("TRAIN", "TRIAL")),
    ),
    "nli_pairs": (
        "dialogue_nli",
        "a.jsonl",
        json.dumps([{"sentence1": f"a {n}", "sentence2": "b", "label": "positive"} for n in range(5)]),
    ),
    "nli_items": (
        "dialogue_nli",
        "a.jsonl",
        "".join(
            json.dumps(
                {
                    "relevant_persona_sentence": f"i {n}",
                    "candidates": {"label": ["x"], "neg": ["y", "y"], "rand": ["z"], "similar": []},
                }
            )
            + "\n"
            for n in range(3)
        ),
    ),
    "squad": (
        "squad",
        "a.json",
        json.dumps(
            {
                "data": [
                    {
                        "paragraphs": [
                            {
                                "context": f"Ada {n}",
                                "qas": [
                                    {"id": f"{n}a", "question": "q", "answers": [{"text": "Ada", "answer_start": 1}]},
                                    {"id": f"{n}b", "question": "q", "answers": [], "is_impossible": True},
                                ],
                            }
                        ]
                    }
                    for n in range(3)
                ]
            }
        ),
    ),
    "squad_rows": (
        "squad",
        "a.jsonl",
        "".join(
            json.dumps({"id": str(n), "context": f"Ada {n // 2}", "question": "q", "answers": answers}) + "\n"
            for n, answers in enumerate([{"text": ["Ada"], "answer_start": [1]}] * 4 + [{"text": [], "answer_start": []}])
        ),
    ),
}


@pytest.mark.parametrize("form", LIMITED)
def test_a_limit_takes_the_first_records_and_leaves_what_is_told_of_the_whole(tmp_path, form):
    name, file, text = LIMITED[form]
    (tmp_path / file).write_text(text, encoding="utf-8")
    data = {"train": str(tmp_path / file), "validation": str(tmp_path / file)}
    whole = read_task(TaskConfig(name=name, data=data))
    task = read_task(TaskConfig(name=name, data=data, max_train=1, max_eval=3))
    assert len(whole.train) > 3
    assert (task.train, task.eval) == (whole.train[:1], whole.eval[:3])
    assert (task.counts, task.notices, task.shape) == (whole.counts, whole.notices, whole.shape)
    source = Source("train", data["train"], tmp_path / file, most=2)
    assert len(TASKS[name].read({"train": source}, TaskConfig(name=name, data=data)).splits["train"]) == 2
