"""Teacher–student dialogue: MathDial's forms, the two sides, and what is refused."""

import csv
import json
from itertools import pairwise

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.config import TaskConfig
from lorascope.data.dialogue import Turn, joined, reply_records
from lorascope.data.task import read_task
from lorascope.errors import DataError, UsageError

TURNS_MET = (
    "Teacher: (generic)Hi Mariana, how?",
    "Mariana: I halved: (2/3)*249",
    "Teacher: (focus) Halved?",
    "Student: (probing) yes",
)
ROW = {
    "qid": 1,
    "question": "How many? ",
    "ground_truth": "Two.\n 2",
    "student_incorrect_solution": "Three.",
    "student_profile": "Mariana is a 7th grade student.",
    "conversation": "|EOM|".join(TURNS_MET),
}
TURNS = st.lists(st.builds(Turn, st.text(max_size=3), st.booleans(), st.just("here")), max_size=12)


def lines(path, *objects):
    path.write_text("".join(json.dumps(value) + "\n" for value in objects), encoding="utf-8")
    return path


def read(path, **more):
    return read_task(TaskConfig(name="teacher_student", data={"train": str(path), "validation": str(path)}, **more))


def spoken(record):
    return [(segment.role, segment.text) for segment in record.segments[1:]]


def conversation(*turns):
    return {**ROW, "conversation": "|EOM|".join(turns)}


@pytest.mark.shared_data
def test_published_dialogues_are_read_whole_from_either_side(shared_data):
    for speaker, opening in (("teacher", "Hi Mariana"), ("student", "Sure. I started")):
        config = TaskConfig(name="teacher_student", data=str(shared_data / "mathdial"), speaker=speaker)
        task = read_task(config, "test", with_train=False)
        assert task.counts["test"] == {"dialogues": 599, "replies": len(task.eval)}
        assert task.eval[0].answers[0].startswith(opening)
        assert len({record.id.split("-")[0] for record in task.eval}) == 599
        blank = [notice.count for notice in task.notices if notice.kind == "blank_turn"]
        assert (blank, {notice.kind for notice in task.notices}) == ([13], {"blank_turn"})
        every = [segment.text for record in task.eval for segment in record.segments[1:]]
        assert not any(text.startswith(("(generic)", "(focus)", "(probing)", "(telling)", "Teacher:")) for text in every)
        roles = [[role for role, _ in spoken(record)] for record in task.eval]
        assert not any(a == b for turns in roles for a, b in pairwise(turns))


def test_the_teacher_is_told_the_solution_and_the_students_mistake(tmp_path):
    first, second = read(lines(tmp_path / "a.jsonl", ROW)).train
    assert first.segments[0].text == (
        "You are a teacher. Help the student to find and correct the mistake.\n"
        "Problem: How many?\nCorrect solution: Two.\n 2\nStudent's solution: Three."
    )
    opening = [("assistant", "Hi Mariana, how?")]
    assert spoken(first) == opening
    assert spoken(second) == [*opening, ("user", "I halved: (2/3)*249"), ("assistant", "Halved?")]
    assert [segment.is_target for segment in second.segments] == [False, False, False, True]
    assert (second.answers, second.id, second.where) == (("Halved?",), "0-1", f"{tmp_path}/a.jsonl:1, turn 3")


def test_the_student_is_told_the_problem_alone(tmp_path):
    task = read(lines(tmp_path / "a.jsonl", ROW), speaker="student")
    _, last = task.train
    assert last.segments[0].text == "You are a student. You work on a problem with your teacher.\nProblem: How many?"
    assert [role for role, _ in spoken(last)] == ["user", "assistant", "user", "assistant"]
    assert last.answers == ("(probing) yes",)
    assert task.shape == "MathDial JSONL, the student's turns"


def test_what_is_scored_and_that_replies_are_generated(tmp_path):
    task = read(lines(tmp_path / "a.jsonl", ROW))
    assert (task.task_type, task.generates) == ("CAUSAL_LM", True)
    assert task.metric_names == ("rouge_l", "token_f1", "distinct_1", "distinct_2", "turn_end")


def test_csv_and_hub_rows_give_the_same_records(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([ROW.keys(), ROW.values()])
    rows = datasets.Dataset.from_list([ROW])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "hub")
    hub = read_task(TaskConfig(name="teacher_student", data=str(tmp_path / "hub")), "test")
    assert hub.checksum == read(tmp_path / "a.csv").checksum == read(lines(tmp_path / "a.jsonl", ROW)).checksum


def test_turns_in_succession_are_one_message_and_blank_ones_are_counted(tmp_path):
    row = conversation(
        "Teacher: (focus)a", "Teacher: (telling)b", "Student: c", "Teacher: (generic)", "Student: d", "Teacher: e"
    )
    task = read(lines(tmp_path / "a.jsonl", row))
    assert spoken(task.train[1]) == [("assistant", "a\nb"), ("user", "c\nd"), ("assistant", "e")]
    assert task.counts["train"] == {"dialogues": 1, "replies": 2}
    assert [(notice.kind, notice.count) for notice in task.notices if notice.where == "train"] == [("blank_turn", 1)]
    assert "a.jsonl:1, turn 4" in task.notices[0].message


def test_dialogues_on_one_problem_are_held_out_together(tmp_path):
    rows = [{**ROW, "question": f"problem {number % 5}", "student_profile": str(number)} for number in range(20)]
    config = TaskConfig(name="teacher_student", data=str(lines(tmp_path / "a.jsonl", *rows)), eval_fraction=0.4)
    task = read_task(config)
    assert (len(task.train), len(task.eval)) == (24, 16)
    assert not {record.group for record in task.train} & {record.group for record in task.eval}


def test_a_name_that_is_not_the_students_is_told_about(tmp_path):
    task = read(lines(tmp_path / "a.jsonl", ROW, conversation("Teacher: (focus)a", "Cody: b", "Teacher: (focus)c")))
    [notice] = [notice for notice in task.notices if (notice.kind, notice.where) == ("speaker", "train")]
    assert notice.message == f"train: turns by Cody were taken as the student's (first: {tmp_path}/a.jsonl:2)."
    assert spoken(task.train[-1])[1] == ("user", "b")


def test_a_dialogue_without_a_reply_is_left_out_and_counted(tmp_path):
    task = read(lines(tmp_path / "a.jsonl", ROW, conversation("Teacher: (focus)a")), speaker="student")
    assert task.counts["train"] == {"dialogues": 2, "replies": 2}
    assert [(notice.kind, notice.count) for notice in task.notices if notice.where == "train"] == [("dropped", 1)]


def test_a_missing_solution_is_left_out_of_the_prompt(tmp_path):
    system = read(lines(tmp_path / "a.jsonl", {**ROW, "ground_truth": None})).train[0].segments[0].text
    assert "Correct solution" not in system
    assert "Student's solution: Three." in system


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({key: value for key, value in ROW.items() if key != "conversation"}, "no column 'conversation'; the columns are"),
        ({key: value for key, value in ROW.items() if key != "ground_truth"}, "no column 'ground_truth'"),
        ({**ROW, "question": None}, "a.jsonl:1: column 'question' has no value"),
        ({**ROW, "conversation": ["Teacher: a"]}, "a.jsonl:1: column 'conversation' is list, not text"),
        (conversation("Teacher: (focus)a", "I think so"), "a.jsonl:1: turn 2 of the conversation names no speaker; begin it"),
        (conversation(""), "a.jsonl:1: turn 1 of the conversation names no speaker"),
    ],
)
def test_broken_dialogues_are_data_errors_with_their_line(tmp_path, row, expected):
    with pytest.raises(DataError) as caught:
        read(lines(tmp_path / "a.jsonl", row))
    assert expected in str(caught.value)


def test_an_unknown_speaker_and_labels_are_refused(tmp_path):
    path = lines(tmp_path / "a.jsonl", ROW)
    with pytest.raises(UsageError, match=r"task\.speaker: unknown speaker 'pupil'; known: 'teacher', 'student'"):
        read(path, speaker="pupil")
    with pytest.raises(DataError, match=r"task\.labels: teacher_student has no labels"):
        read(path, labels=["a", "b"])


@given(TURNS)
@settings(max_examples=100, deadline=None)
def test_joining_keeps_every_text_and_leaves_speakers_alternating(turns):
    merged = joined(turns)
    assert "\n".join(turn.text for turn in merged) == "\n".join(turn.text for turn in turns)
    assert all(one.is_modelled != other.is_modelled for one, other in pairwise(merged))


@given(TURNS)
@settings(max_examples=100, deadline=None)
def test_every_reply_is_once_a_target_and_each_record_extends_the_one_before(turns):
    records = reply_records(turns, "d", "system", "group")
    assert [record.answers[0] for record in records] == [turn.text for turn in turns if turn.is_modelled]
    for earlier, later in pairwise(records):
        told = [(segment.role, segment.text) for segment in earlier.segments]
        assert [(segment.role, segment.text) for segment in later.segments][: len(told)] == told
    for record in records:
        assert [segment.is_target for segment in record.segments] == [False] * (len(record.segments) - 1) + [True]
