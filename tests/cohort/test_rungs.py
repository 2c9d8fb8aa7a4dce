"""Rungs: the worse of a cohort leave the stack, the rest goes on as if alone, and a resume decides alike."""

from contextlib import closing

import pytest

from lorascope.cohort import training
from lorascope.cohort.events import TrialEnded
from lorascope.cohort.run import run_study
from lorascope.config import Study
from lorascope.search import proposer, search_document
from lorascope.store import Store
from lorascope.train import StepResult

RATES = [1e-5, 1e-4, 1e-3, 1e-2]


@pytest.fixture
def search(make_study):
    def make(seeds=(1,), **design):
        design = {"kind": "search", "objective": "eval_loss", "over": {"learning_rate": RATES}, "trials": 4} | design
        design = {"pruner": "successive_halving", "reduction": 2, "batch": 4, "sampler": "random"} | design
        sections = {"base": {"dtype": "float64"}}
        study = make_study("bert", [{}], list(seeds), **sections)
        return Study.model_validate({**study.model_dump(), "design": design})

    return make


def test_the_worse_half_leaves_at_each_rung_and_the_rest_is_as_if_alone(search, carry_out, rows_of, losses_of, tmp_path):
    study = search()
    events = carry_out(study, tmp_path / "run", trials=proposer(study))
    rows = rows_of(tmp_path / "run")
    assert sorted(row.status for row in rows) == ["done", "pruned", "pruned", "pruned"]
    steps = [len(event.slots) for event in events if isinstance(event, StepResult)]
    assert steps == [4] * 2 + [2] * 3 + [1] * 5  # of ten; rungs after two and five
    scores = [{row.trial: row.rungs[step]["eval_loss"] for row in rows if step in row.rungs} for step in (2, 5)]
    assert [len(each) for each in scores] == [4, 2]
    assert set(scores[1]) == set(sorted(scores[0], key=scores[0].get)[:2])
    [winner] = [row for row in rows if row.status == "done"]
    assert winner.trial == min(scores[1], key=scores[1].get)
    assert all(row.metrics == {} and row.adapter is None for row in rows if row is not winner)
    assert sum(isinstance(event, TrialEnded) for event in events) == 4
    alone = carry_out(
        study, tmp_path / "alone", trials=[trial for trial in proposer(study).propose([]) if trial.trial == winner.trial]
    )
    assert alone
    [same] = rows_of(tmp_path / "alone")
    assert same.metrics == pytest.approx(winner.metrics, rel=1e-9)
    assert losses_of(tmp_path / "run")[winner.trial] == pytest.approx(losses_of(tmp_path / "alone")[winner.trial], rel=1e-9)
    assert search_document(study, rows)["best"] == winner.trial.rpartition("-s")[0]


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5, 7])
def test_a_search_interrupted_at_any_step_ends_as_one_that_was_not(stop_at, search, carry_out, rows_of, tmp_path):
    study = search((1, 2), trials=8)
    carry_out(study, tmp_path / "whole", trials=proposer(study))
    with closing(run_study(study, proposer(study), tmp_path / "cut")) as events:
        for event in events:
            if isinstance(event, StepResult) and event.step + 1 == stop_at:
                break
    assert "interrupted" in {row.status for row in rows_of(tmp_path / "cut")}
    carry_out(study, tmp_path / "cut", trials=proposer(study), resume=True)
    whole, cut = rows_of(tmp_path / "whole"), rows_of(tmp_path / "cut")
    assert [(row.trial, row.status, row.metrics, row.rungs) for row in cut] == [
        (row.trial, row.status, row.metrics, row.rungs) for row in whole
    ]


def test_a_study_is_open_to_trials_before_those_proposed(search, carry_out, rows_of, make_study, tmp_path):
    study = search()
    first = [trial.model_copy(update={"seed": 9}) for trial in proposer(study).propose([])[:1]]
    carry_out(study, tmp_path / "run", trials=proposer(study), first=first)
    rows = rows_of(tmp_path / "run")
    assert (rows[0].trial, rows[0].status, rows[0].rungs) == (first[0].trial, "done", {})
    assert len(rows) == 5


def test_a_rung_leaves_a_store_that_names_how_far_each_came(search, carry_out, tmp_path):
    study = search()
    carry_out(study, tmp_path / "run", trials=proposer(study))
    with Store.open(tmp_path / "run") as store:
        for row in store.trials():
            assert len(store.steps(row.trial)) == (10 if row.status == "done" else max(row.rungs))
            if row.status == "pruned":
                assert f"pruned after step {max(row.rungs)} of 10" in row.error


def test_a_trial_that_failed_is_tried_again_once_by_a_later_run(search, carry_out, rows_of, tmp_path, monkeypatch):
    study = search(pruner="none", trials=2, batch=2)
    measured = []

    def fail(*_):
        measured.append(1)
        raise RuntimeError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(training, "measure_alone", fail)
        carry_out(study, tmp_path / "run", trials=proposer(study))
        assert [row.status for row in rows_of(tmp_path / "run")] == ["failed", "failed"]
        measured.clear()
        carry_out(study, tmp_path / "run", trials=proposer(study), resume=True)
        assert len(measured) == 2
    carry_out(study, tmp_path / "run", trials=proposer(study), resume=True)
    assert [row.status for row in rows_of(tmp_path / "run")] == ["done", "done"]
