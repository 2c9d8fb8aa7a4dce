"""The user's own data: each known shape, and what is refused rather than guessed."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.config import TaskConfig
from lorascope.data.dialogue import DIALOGUE_METRICS
from lorascope.data.files import SHAPES
from lorascope.data.task import encode_task, read_task
from lorascope.errors import DataError, UsageError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def lines(path, *objects):
    path.write_text("\n".join(json.dumps(value) for value in objects) + "\n", encoding="utf-8")
    return str(path)


def read(train, validation=None, **more):
    return read_task(TaskConfig(name="file", data={"train": train, "validation": validation or train}, **more))


@pytest.mark.parametrize(
    ("row", "shape", "texts", "metric_names"),
    [
        ({"messages": CHAT}, "messages", ["hi", "hello"], DIALOGUE_METRICS),
        ({"conversations": SHAREGPT}, "sharegpt", ["hi", "hello"], DIALOGUE_METRICS),
        ({"prompt": "2+2=", "completion": "4"}, "prompt/completion", ["2+2=", "4"], ("perplexity",)),
    ],
)
def test_generation_shapes_are_told_from_the_columns(tmp_path, row, shape, texts, metric_names):
    task = read(lines(tmp_path / "a.jsonl", row))
    assert task.shape == f"JSONL {shape}"
    assert (task.task_type, task.metric_names) == ("CAUSAL_LM", metric_names)
    assert [segment.text for segment in task.train[0].segments] == texts
    assert [segment.is_target for segment in task.train[0].segments] == [False, True]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*CHAT, {"role": "user", "content": "bye"}, {"role": "assistant", "content": "see you"}, CHAT[0]]},
        {"conversations": [*SHAREGPT, {"from": "human", "value": "bye"}, {"from": "gpt", "value": "see you"}, SHAREGPT[0]]},
    ],
)
def test_the_last_reply_of_a_chat_is_generated_from_all_before_it(tmp_path, row, chat):
    task = encode_task(read(lines(tmp_path / "a.jsonl", row)), chat, 64)
    assert task.generates
    assert "turn_end" in task.metric_names
    [example] = task.eval
    assert example.answers == ("see you",)
    assert chat.decode(example.input_ids[: example.prompt_length]).endswith("bye<|im_end|>\n<|im_start|>assistant\n")
    assert chat.decode(example.input_ids[example.prompt_length :]).startswith("see you<|im_end|>")


def test_text_that_is_continued_is_not_generated(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}]
    tasks = [read(lines(tmp_path / f"{number}.jsonl", row)) for number, row in enumerate(rows)]
    assert [(task.generates, task.metric_names) for task in tasks] == [(False, ("perplexity",))] * 2


def test_alpaca_is_worded_as_published_with_and_without_input(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "2 2", "output": "4"},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
    ]
    with_input, without = read(lines(tmp_path / "a.jsonl", *rows)).train
    assert "".join(segment.text for segment in with_input.segments) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n2 2\n\n### Response:\n4"
    )
    assert "".join(segment.text for segment in without.segments) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay hi.\n\n### Response:\nhi"
    )
    assert [segment.text for segment in with_input.segments if segment.cut] == ["2 2"]


def test_the_alpaca_dataset_with_its_redundant_text_column_is_alpaca(tmp_path):
    row = {"instruction": "Add.", "input": "2 2", "output": "4", "text": "all of it"}
    assert read(lines(tmp_path / "a.jsonl", row)).shape == "JSONL alpaca"


def test_every_assistant_turn_is_a_target(tmp_path):
    turns = [{"role": "system", "content": "be kind"}, *CHAT, *CHAT]
    segments = read(lines(tmp_path / "a.jsonl", {"messages": turns})).train[0].segments
    assert [segment.is_target for segment in segments] == [False, False, True, False, True]
    assert [segment.role for segment in segments] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(("column", "turns"), [("messages", CHAT), ("conversations", SHAREGPT)])
def test_the_users_turns_can_be_the_targets(tmp_path, column, turns):
    path = lines(tmp_path / "a.jsonl", {column: turns * 2})
    task = read(path, speaker="user")
    segments = task.train[0].segments
    assert [(segment.role, segment.text) for segment in segments] == [("assistant", "hi"), ("user", "hello")] * 2
    assert [segment.is_target for segment in segments] == [True, False] * 2
    assert task.train[0].answers == ("hi",)
    assert task.shape.endswith(", the user's turns")
    assert read(path, speaker="assistant").checksum == read(path).checksum


def test_other_roles_stay_when_the_users_turns_are_the_targets(tmp_path):
    turns = [{"role": "system", "content": "be kind"}, *CHAT, {"role": "tool", "content": "4"}]
    segments = read(lines(tmp_path / "a.jsonl", {"messages": turns}), speaker="user").train[0].segments
    assert [segment.role for segment in segments] == ["system", "assistant", "user", "tool"]


def test_a_speaker_that_the_data_do_not_have_is_refused(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"})
    with pytest.raises(UsageError, match=r"task\.speaker: data of the shape prompt/completion have no speakers; remove"):
        read(path, speaker="user")
    path = lines(tmp_path / "b.jsonl", {"messages": CHAT[1:]})
    with pytest.raises(DataError, match=r"b\.jsonl:1: nothing here is to be learned: no user turn"):
        read(path, speaker="user")
    with pytest.raises(UsageError, match=r"unknown speaker 'human'; known: 'assistant', 'user'"):
        read(path, speaker="human")


def test_string_labels_are_sorted_and_integer_labels_keep_their_number(tmp_path):
    words = [{"text": "x", "label": "no"}, {"text": "y", "label": "maybe"}]
    task = read(lines(tmp_path / "words.jsonl", *words))
    assert (task.task_type, task.labels, [record.label for record in task.train]) == (
        "SEQ_CLS",
        ("maybe", "no"),
        [1, 0],
    )
    numbers = [{"text": "x", "label": number} for number in (10, *range(10))]
    task = read(lines(tmp_path / "numbers.jsonl", *numbers))
    assert task.labels == tuple(map(str, range(11)))
    assert [record.label for record in task.train] == [10, *range(10)]


def test_csv_and_parquet_and_tsv_give_the_same_records(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"x, y",1\nz,0\n')
    (tmp_path / "a.tsv").write_text("text\tlabel\nx, y\t1\nz\t0\n")
    pq.write_table(pa.table({"text": ["x, y", "z"], "label": [1, 0]}), tmp_path / "a.parquet")
    tasks = [read(str(tmp_path / f"a.{suffix}")) for suffix in ("csv", "tsv", "parquet")]
    assert len({task.checksum for task in tasks}) == 1
    assert [task.shape for task in tasks] == ["CSV text + label", "TSV text + label", "Parquet text + label"]


@pytest.mark.parametrize("column", ["text_pair", "text2"])
def test_a_second_text_makes_pairs(tmp_path, column):
    rows = [{"text": "x", column: "y", "label": 0}, {"text": "x", column: "z", "label": 1}]
    task = read(lines(tmp_path / "a.jsonl", *rows))
    assert [record.text_pair for record in task.train] == ["y", "z"]


def test_the_users_labels_fix_names_and_order(tmp_path):
    words = lines(tmp_path / "words.jsonl", {"text": "x", "label": "no"}, {"text": "y", "label": "yes"})
    assert [record.label for record in read(words, labels=["yes", "no"]).train] == [1, 0]
    stars = lines(tmp_path / "stars.jsonl", {"text": "x", "label": 1}, {"text": "y", "label": 5})
    assert [record.label for record in read(stars, labels=["1", "2", "3", "4", "5"]).train] == [0, 4]
    numbers = lines(tmp_path / "numbers.jsonl", {"text": "x", "label": 1}, {"text": "y", "label": 0})
    assert [record.label for record in read(numbers, labels=["bad", "good"]).train] == [1, 0]


def test_declared_classes_keep_their_declared_order(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["5", "1"])})
    rows = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "saved")
    task = read_task(TaskConfig(name="file", data=str(tmp_path / "saved")))
    assert (task.labels, [record.label for record in task.train]) == (("5", "1"), [1, 0])


def test_a_directory_is_searched_for_split_names(tmp_path):
    lines(tmp_path / "train.jsonl", {"prompt": "a", "completion": "b"})
    lines(tmp_path / "valid.jsonl", {"prompt": "c", "completion": "d"})
    task = read_task(TaskConfig(name="file", data=str(tmp_path)))
    assert task.eval[0].where == f"{tmp_path}/valid.jsonl:1"


def test_labels_of_all_of_train_count_even_when_few_records_are_used(tmp_path):
    rows = [{"text": f"t{number}", "label": "b" if number < 5 else "a"} for number in range(10)]
    task = read(lines(tmp_path / "a.jsonl", *rows), max_train=3)
    assert (task.labels, [record.label for record in task.train]) == (("a", "b"), [1, 1, 1])


def test_records_with_an_empty_target_are_dropped_and_counted(tmp_path):
    rows = [{"prompt": "a", "completion": " "}, {"prompt": "b", "completion": "c"}]
    task = read(lines(tmp_path / "a.jsonl", *rows))
    assert [record.segments[0].text for record in task.train] == ["b"]
    assert task.counts == {"train": {"rows": 2}, "validation": {"rows": 2}}
    assert [(notice.kind, notice.count, notice.where, notice.places) for notice in task.notices] == [
        ("empty_target", 1, "train", (f"{tmp_path}/a.jsonl:1",)),
        ("empty_target", 1, "validation", (f"{tmp_path}/a.jsonl:1",)),
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"prompt": "a", "completion": "b", "messages": CHAT}], "fit messages and prompt/completion; remove"),
        ([{"question": "a", "answer": "b"}], "the columns 'question', 'answer' fit no known shape; known: messages"),
        ([{"text": "a"}], "fit no known shape"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a"}], "a.jsonl:2: column 'completion' has no value"),
        ([{"prompt": ["a"], "completion": "b"}], "a.jsonl:1: column 'prompt' is list, not text"),
        ([{"messages": CHAT}, {"messages": CHAT[:1]}], "a.jsonl:2: nothing here is to be learned"),
        ([{"messages": "hi"}], "a.jsonl:1: column 'messages' is str, not a list of turns"),
        (
            [{"messages": [{"role": "asistant", "content": "x"}]}],
            "turn 1 of 'messages' is by 'asistant'; did you mean 'assi",
        ),
        ([{"messages": [{"role": "user"}]}], "turn 1 of 'messages' lacks 'role' or 'content'"),
        (
            [{"messages": [{"role": "user", "content": [{"text": "x"}]}]}],
            "'content' in turn 1 of 'messages' is list, not t",
        ),
        ([{"conversations": CHAT}], "turn 1 of 'conversations' lacks 'from' or 'value'"),
        (
            [{"text": "a", "label": 1}, {"text": "b", "label": 3}],
            "must run from 0 to K-1, but are 1, 3; give their order",
        ),
        ([{"text": "a", "label": "x"}], "every label of train is 'x'"),
        ([{"text": "a", "label": 0.5}], "a.jsonl:1: label 0.5 names no class"),
        ([{"text": "a", "label": 0}, {"text": "b", "label": None}], "a.jsonl:2: label None names no class"),
        ([{"text": "a", "label": 0, "text2": "b", "text_pair": "c"}, {"label": 1}], "two second texts"),
    ],
)
def test_what_fits_no_single_shape_is_a_data_error_with_its_place(tmp_path, rows, expected):
    with pytest.raises(DataError) as caught:
        read(lines(tmp_path / "a.jsonl", *rows))
    assert expected in str(caught.value)
    assert "a.jsonl" in str(caught.value)


def test_a_label_unknown_to_train_is_a_data_error_with_its_line(tmp_path):
    train = lines(tmp_path / "train.jsonl", {"text": "x", "label": "no"}, {"text": "y", "label": "yes"})
    dev = lines(tmp_path / "dev.jsonl", {"text": "x", "label": "no"}, {"text": "y", "label": "yess"})
    with pytest.raises(DataError, match=r"dev\.jsonl:2: label 'yess' is out of range; labels are no, yes; did you mean 'yes'"):
        read(train, dev)
    with pytest.raises(DataError, match=r"train\.jsonl:1: label 'no' is out of range"):
        read(train, dev, labels=["yes", "maybe"])


def test_two_splits_of_different_shapes_are_refused(tmp_path):
    train = lines(tmp_path / "train.jsonl", {"prompt": "x", "completion": "y"})
    dev = lines(tmp_path / "dev.jsonl", {"messages": CHAT})
    with pytest.raises(DataError, match=r"the validation split is messages, the train split prompt/completion"):
        read(train, dev)


def test_labels_for_generation_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"task\.labels: data of the shape messages have no labels"):
        read(lines(tmp_path / "a.jsonl", {"messages": CHAT}), labels=["a", "b"])


def test_without_train_the_labels_must_be_named(tmp_path):
    path = lines(tmp_path / "dev.jsonl", {"text": "x", "label": "no"})
    with pytest.raises(DataError, match=r"give task\.labels"):
        read_task(TaskConfig(name="file", data=path), with_train=False)
    task = read_task(TaskConfig(name="file", data=path, labels=["yes", "no"]), with_train=False)
    assert (task.train, [record.label for record in task.eval]) == ([], [1])


@given(st.sampled_from(sorted(SHAPES)), st.lists(st.lists(VALUES, min_size=2, max_size=2), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_any_values_in_a_known_shape_are_read_or_refused_with_a_data_error(tmp_path_factory, shape, rows):
    path = tmp_path_factory.mktemp("fuzz") / "a.jsonl"
    objects = [dict(zip(SHAPES[shape].columns, row, strict=False)) for row in rows]
    try:
        task = read(lines(path, *objects))
    except DataError:
        return
    assert len(task.train) <= len(rows)


@given(st.lists(st.tuples(st.text(max_size=9), st.text(min_size=1, max_size=9).filter(str.strip)), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_prompt_completion_round_trip(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("pairs") / "a.jsonl"
    task = read(lines(path, *({"prompt": prompt, "completion": completion} for prompt, completion in pairs)))
    assert [tuple(segment.text for segment in record.segments) for record in task.train] == pairs
