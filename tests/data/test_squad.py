"""SQuAD v1.1: the official files, hub rows, and what is refused."""

import json

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.config import TaskConfig
from lorascope.data.task import read_task
from lorascope.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=15)
JSON_VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "paragraphs", "context", "qas", "id", "question", "answers"]), inner)
    ),
    max_leaves=12,
)


SHARED_FILES = {"train": "train-v1.1.subset11877.json", "validation": "dev-v1.1.json"}


def question(identity="q1", context="Ada wrote it in London.", text="Ada", start=0, **more):
    answers = [{"text": text, "answer_start": start}]
    item = {"id": identity, "question": "Who wrote it? ", "answers": answers, **more}
    return {"context": context, "qas": [item]}


def official(*paragraphs, version="1.1"):
    return {"version": version, "data": [{"title": "t", "paragraphs": list(paragraphs)}]}


def read(tmp_path, document, **more):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return read_task(TaskConfig(name="squad", data={"train": str(path), "validation": str(path)}, **more))


@pytest.mark.shared_data
def test_published_row_counts(shared_data):
    data = {name: str(shared_data / "squad" / file) for name, file in SHARED_FILES.items()}
    task = read_task(TaskConfig(name="squad", data=data))
    assert (len(task.train), len(task.eval)) == (11_877, 10_570)
    assert len({record.group for record in task.train}) == 2_429  # of 2,430 paragraphs, one occurs twice
    assert len({record.group for record in task.eval}) == 2_067
    assert len({record.id for record in task.eval}) == 10_570
    assert not [notice for notice in task.notices if notice.kind == "misplaced_answer"]


@pytest.mark.shared_data
def test_published_v2_questions_are_refused_by_name(shared_data):
    config = TaskConfig(name="squad", data=str(shared_data / "squad" / "dev-v2.0.rebuilt.json"), eval_fraction=0.1)
    with pytest.raises(DataError, match=r"question \w+: a question without an answer \(SQuAD v2\.0\), which is not supp"):
        read_task(config)


def test_prompt_and_target_are_the_three_segments(tmp_path):
    record = read(tmp_path, official(question())).train[0]
    assert [segment.text for segment in record.segments] == [
        "Ada wrote it in London.",
        "\nQuestion: Who wrote it?\nAnswer:",
        " Ada",
    ]
    assert [segment.is_target for segment in record.segments] == [False, False, True]
    assert [segment.cut for segment in record.segments] == ["end", None, None]
    assert record.where.endswith("train.json, question q1")


def test_all_gold_answers_are_kept_and_the_first_is_learned(tmp_path):
    paragraph = question()
    paragraph["qas"][0]["answers"].append({"text": "London", "answer_start": 16})
    record = read(tmp_path, official(paragraph)).eval[0]
    assert record.answers == ("Ada", "London")
    assert record.answer_spans == ((0, 3), (16, 22))
    assert record.segments[-1].text == " Ada"


def test_misplaced_answers_are_counted_and_found_where_they_are(tmp_path):
    paragraphs = [question("q1", start=4), question("q2", text="Eve"), question("q3"), question("q4", text="London", start=-7)]
    task = read(tmp_path, official(*paragraphs))
    assert [record.answer_spans[0] for record in task.train] == [(0, 3), None, (0, 3), (16, 22)]
    assert [(notice.kind, notice.count) for notice in task.notices if notice.kind == "misplaced_answer"] == [
        ("misplaced_answer", 3),
        ("misplaced_answer", 3),
    ]


def test_hub_rows_give_the_same_records_as_the_official_file(tmp_path):
    rows = datasets.Dataset.from_list(
        [
            {
                "id": "q1",
                "title": "t",
                "context": "Ada wrote it in London.",
                "question": "Who wrote it? ",
                "answers": {"text": ["Ada"], "answer_start": [0]},
            }
        ]
    )
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "hub")
    from_hub = read_task(TaskConfig(name="squad", data=str(tmp_path / "hub")))
    from_file = read(tmp_path, official(question()))
    assert from_hub.checksum == from_file.checksum
    assert (from_hub.shape, from_file.shape) == ("SQuAD v1.1 dataset rows", "SQuAD v1.1 official JSON")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (official(question(is_impossible=True), version="v2.0"), "v2.0"),
        (official(question(answers=[])), "v2.0"),
        (official(question(text=" ")), "an answer is empty"),
        (official(question(start="0")), "answer_start is '0', not an integer"),
        (official(question(context=None)), "context is NoneType, not text"),
        (official(question(identity=3)), "id is int, not text"),
        (official(), "holds no questions"),
        ({"rows": []}, "no 'data' here, so this is not SQuAD's form"),
        ({"data": {}}, "'data' is no list"),
        ([], "no 'data' here"),
    ],
)
def test_what_is_not_squad_v1_is_a_data_error(tmp_path, document, expected):
    with pytest.raises(DataError) as caught:
        read(tmp_path, document)
    assert expected in str(caught.value)
    assert "train.json" in str(caught.value)


def test_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"task\.labels: squad has no labels"):
        read(tmp_path, official(question()), labels=["a", "b"])


@given(JSON_VALUES)
@settings(max_examples=150, deadline=None)
def test_any_json_is_read_or_refused_with_a_data_error(tmp_path_factory, document):
    with pytest.raises(DataError):
        read(tmp_path_factory.mktemp("json"), document)


@given(TEXT, TEXT.filter(str.strip), TEXT)
@settings(max_examples=80, deadline=None)
def test_the_recorded_span_holds_the_answer(tmp_path_factory, before, answer, after):
    context = before + answer + after
    document = official(question(context=context, text=answer, start=len(before)))
    record = read(tmp_path_factory.mktemp("span"), document).train[0]
    start, end = record.answer_spans[0]
    assert record.segments[0].text[start:end] == record.answers[0] == answer
