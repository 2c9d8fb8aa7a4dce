"""A world's files are what the project's own readers take, and pass its own audit."""

import hashlib
import json
import subprocess
import sys

import pytest

from lorascope.config import TaskConfig
from lorascope.data.audit import audit
from lorascope.data.task import read_task
from lorascope.errors import UsageError
from lorascope.world.files import documents, world

TASKS = [
    ("personachat", "personachat"),
    ("dialogue_nli", "dialogue_nli"),
    ("squad", "squad"),
    ("squad", "squad_v2"),
    ("teacher_student", "teacher_student"),
    ("sst2", "sst2"),
]


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(("task", "folder"), TASKS, ids=[folder for _, folder in TASKS])
def test_every_set_is_read_and_nothing_is_found_wrong_with_it(task, folder, split, world_directory):
    raw = read_task(TaskConfig(name=task, data=str(world_directory / folder)), split)
    found = audit(raw, None, None, 512)
    assert [finding.summary for finding in found.findings] == []
    assert raw.notices == []
    assert len(raw.train) > len(raw.eval) > 0


def test_the_counts_are_those_that_the_readers_find(sets, world_directory):
    raw = read_task(TaskConfig(name="personachat", data=str(world_directory / "personachat")))
    assert raw.counts["train"]["dialogues"] == sets["train"].counts["dialogues"]
    assert raw.counts["train"]["replies"] == sets["train"].counts["replies"]
    raw = read_task(TaskConfig(name="squad", data=str(world_directory / "squad_v2")))
    assert raw.counts["train"]["questions"] == sets["train"].counts["questions"]
    assert raw.metric_names == ("squad_v2",)


def test_entailment_rows_belong_to_the_replies_that_the_task_reads(world_directory):
    raw = read_task(TaskConfig(name="personachat", data=str(world_directory / "personachat")))
    lines = (world_directory / "personachat" / "valid_entailment.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["id"], row["reply"], tuple(row["persona"])) for row in rows] == [
        (record.id, record.answers[0], record.persona) for record in raw.eval
    ]
    points = {"entailment": 1, "neutral": 0, "contradiction": -1}
    assert all(row["c_score"] == sum(points[name] for name in row["labels"]) for row in rows)


def test_equal_seeds_give_equal_bytes_in_another_process():
    def digest(files):
        return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()

    program = (
        "import hashlib, json; from lorascope.world.files import documents, world;"
        "print(hashlib.sha256(json.dumps(sorted(documents(world(8, 10), str(8)).items())).encode()).hexdigest())"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == digest(documents(world(8, 10), "8"))
    assert digest(documents(world(9, 10), "8")) != ended.stdout.strip()


@pytest.mark.parametrize("size", [9, 2001])
def test_a_size_out_of_bounds_is_refused(size):
    with pytest.raises(UsageError, match="--size"):
        world(0, size)
