"""SQuAD v1.1 and v2.0: the official files, hub rows, and what is refused."""

import json

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.config import TaskConfig
from lorascope.data.squad import NO_ANSWER
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
def test_published_counts_of_paragraphs_and_articles(shared_data):
    data = {name: str(shared_data / "squad" / file) for name, file in SHARED_FILES.items()}
    assert read_task(TaskConfig(name="squad", data=data, max_train=1, max_eval=1)).counts == {
        "train": {"questions": 11_877, "paragraphs": 2_430, "articles": 44},
        "validation": {"questions": 10_570, "paragraphs": 2_067, "articles": 48},
    }


@pytest.mark.shared_data
def test_published_v2_questions_without_answer_have_a_target_of_their_own(shared_data):
    config = TaskConfig(name="squad", data=str(shared_data / "squad" / "dev-v2.0.rebuilt.json"))
    task = read_task(config, with_train=False)
    assert (task.shape, task.metric_names) == ("SQuAD v2.0 official JSON", ("squad_v2",))
    counts = task.counts["validation"]
    assert (counts["questions"], counts["unanswerable"], counts["articles"]) == (11_873, 5_945, 35)
    unanswerable = [record for record in task.eval if not record.answers]
    assert len(unanswerable) == 5_945
    assert {record.segments[-1].text for record in unanswerable} == {" unanswerable"}
    assert {record.candidates for record in task.eval} == {(" unanswerable",)}


@pytest.mark.shared_data
def test_two_published_versions_in_one_directory_are_not_guessed_between(shared_data):
    with pytest.raises(
        DataError, match=r"several files could be the validation split: dev-v1\.1\.json, dev-v2\.0\.re.*name one"
    ):
        read_task(TaskConfig(name="squad", data=str(shared_data / "squad")))


def impossible(identity="q9", **more):
    paragraph = question(identity, is_impossible=True, **more)
    paragraph["qas"][0]["answers"] = []
    return paragraph


def test_one_question_without_answer_makes_the_data_v2(tmp_path):
    plausible = [{"text": "London", "answer_start": 16}]
    for more in ({}, {"plausible_answers": plausible}):
        task = read(tmp_path, official(question(is_impossible=False), impossible(**more), version="v2.0"))
        answered, unanswerable = task.train
        assert (unanswerable.answers, unanswerable.answer_spans) == ((), ())
        assert (answered.answers, answered.segments[-1].text) == (("Ada",), " Ada")
        assert unanswerable.segments[-1].text == f" {NO_ANSWER}" == " unanswerable"
        assert answered.candidates == unanswerable.candidates == (" unanswerable",)
        assert task.counts["train"] == {"questions": 2, "paragraphs": 2, "articles": 1, "unanswerable": 1}
        assert (task.shape, task.metric_names) == ("SQuAD v2.0 official JSON", ("squad_v2",))


def test_data_in_which_all_is_answerable_stay_v1(tmp_path):
    task = read(tmp_path, official(question()))
    assert (task.shape, task.metric_names) == ("SQuAD v1.1 official JSON", ("exact_match", "f1"))
    assert task.train[0].candidates == ()
    assert task.counts["train"] == {"questions": 1, "paragraphs": 1, "articles": 1}


def test_a_v1_train_split_beside_v2_is_scored_as_v2(tmp_path):
    for name, document in (("train", official(question())), ("dev", official(impossible()))):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    task = read_task(TaskConfig(name="squad", data=str(tmp_path)))
    assert task.shape == "SQuAD v1.1 official JSON and v2.0 official JSON"
    assert (task.metric_names, task.train[0].candidates) == (("squad_v2",), (" unanswerable",))


def test_hub_rows_without_an_answer_are_unanswerable(tmp_path):
    rows = [
        {"id": f"q{n}", "context": "Ada.", "question": "Who?", "answers": {"text": texts, "answer_start": [0] * len(texts)}}
        for n, texts in enumerate((["Ada"], []))
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = read_task(TaskConfig(name="squad", data=str(path)), with_train=False)
    assert [record.answers for record in task.eval] == [("Ada",), ()]
    assert task.counts["validation"] == {"questions": 2, "paragraphs": 1, "unanswerable": 1}
    assert task.shape == "SQuAD v2.0 jsonl rows"


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
        (official(question(is_impossible=True), version="v2.0"), "question q1: it has answers, but is_impossible is set"),
        (official(question(answers=[])), "question q1: it has no answers, but is_impossible is not set"),
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
def test_what_is_not_squad_is_a_data_error(tmp_path, document, expected):
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
