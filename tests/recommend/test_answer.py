"""The answer below the command line: rules by the memory there is, seeds by the budget, and what cannot be answered."""

import json
from pathlib import Path

import pytest

from lorascope.config import Study, TrialConfig
from lorascope.errors import UsageError
from lorascope.recommend import answer
from lorascope.recommend.answer import Asked, OwnStudies, answered
from lorascope.recommend.closeness import TaskFacts
from lorascope.recommend.facts import model_facts


@pytest.fixture
def asked(tmp_path, model_directory, monkeypatch):
    """``asked(**more)``: a question on a file of one's own and the tiny BERT."""
    for split in ("train", "validation"):
        rows = [{"text": f"the film {number}", "label": ("no", "yes")[number % 2]} for number in range(8)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(answer, "total_bytes", lambda _: 64 * 10**9)
    monkeypatch.setattr(answer, "free_bytes", lambda _: 32 * 10**9)
    return lambda **more: Asked("file", str(model_directory("bert")), str(tmp_path), **more)


def test_little_memory_is_what_was_said_or_what_the_machine_has(asked, costs, monkeypatch):
    def rank(**more):
        return answered(asked(**more), OwnStudies(), lambda *_: costs).choices["r"].value

    assert (rank(), rank(memory_bytes=6 * 10**9)) == (16, 4)
    monkeypatch.setattr(answer, "free_bytes", lambda _: 6 * 10**9)
    assert rank() == 16, "what is in use now is no property of the machine"
    monkeypatch.setattr(answer, "total_bytes", lambda _: 7 * 10**9)
    assert (rank(), rank(memory_bytes=8 * 10**9), rank(goal="better")) == (4, 16, 32)


def test_a_budget_takes_seeds_and_then_steps(asked, costs):
    def found(budget_seconds):
        one = answered(asked(budget_seconds=budget_seconds), OwnStudies(), lambda *_: costs)
        return one.document["seeds"], one.choices["max_steps"].value

    assert [found(budget) for budget in (None, 35.0, 25.0)] == [([42, 1337, 2024], None)] * 2 + [([42, 1337], None)]
    seeds, steps = found(5.0)
    assert seeds == [42]
    assert 0 < steps < TrialConfig.from_flat({"model": "m"}, 1).train.num_steps(100)


def test_what_needs_more_than_there_is_is_refused(asked, costs):
    with pytest.raises(UsageError, match=r"memory of 1 MiB: nothing fits: the smallest configuration of"):
        answered(asked(memory_bytes=2**20), OwnStudies(), lambda *_: costs)


def test_the_study_of_the_same_task_and_model_corrects_the_estimates(asked, costs, evidence):
    question, seen = asked(), []

    def costs_of(study, directory):
        seen.append(directory)
        return costs

    answered(question, OwnStudies(), costs_of)
    files = tuple(sorted(str(Path(question.data) / f"{split}.jsonl") for split in ("train", "validation")))
    same = evidence(
        {"a": ({}, (0.5,))}, task=TaskFacts("file", "classification", files), model=model_facts(question.model),
        directory="runs/mine",
    )  # fmt: skip
    same.task_section["data"] = question.data
    answered(question, OwnStudies((same,), {"runs/mine": _study(question)}), costs_of)
    assert seen == [Path("runs/none"), Path("runs/mine")]


def _study(question):
    return Study.model_validate(
        {"name": "a", "base": {"model": question.model}, "task": {"name": "file", "data": question.data}}
    )
