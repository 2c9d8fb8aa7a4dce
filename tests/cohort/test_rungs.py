"""Rungs: the worse of a cohort leave the stack, the rest goes on as if alone, and a resume decides alike."""

from contextlib import closing

import pytest

from lorascope.cohort import training
from lorascope.cohort.events import TrialEnded
from lorascope.cohort.run import run_study
from lorascope.config import Study
from lorascope.design import expand
from lorascope.errors import UsageError
from lorascope.search import HalvingSearch, proposer, search_document
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


def told(directory):
    with Store.open(directory) as store:
        return [row["message"] for row in store.warnings() if row["kind"] == "not_pruned"]


def test_the_seeds_of_a_configuration_share_its_end_where_a_batch_takes_several_cohorts(search, carry_out, rows_of, tmp_path):
    study = search((1, 2))
    carry_out(study, tmp_path / "run", trials=proposer(study), most_slots=5)
    rows = rows_of(tmp_path / "run")
    members = {name: {row.status for row in rows if row.trial.startswith(name)} for name in {row.trial[:8] for row in rows}}
    assert sorted(map(sorted, members.values())) == [["done"], ["done"], ["pruned"], ["pruned"]]
    assert len({row.cohort for row in rows}) == 2
    assert told(tmp_path / "run") == []


def test_a_cohort_that_does_not_hold_all_seeds_is_not_pruned_and_says_so(search, carry_out, rows_of, tmp_path):
    study = search((1, 2), over={"learning_rate": RATES[:2]}, trials=2)
    carry_out(study, tmp_path / "run", trials=proposer(study), most_slots=1)
    assert [(row.status, row.rungs) for row in rows_of(tmp_path / "run")] == [("done", {})] * 4
    messages = told(tmp_path / "run")
    assert [message.split(":")[0] for message in messages] == [f"no trial of cohort c{n} is pruned" for n in (1, 2, 3, 4)]
    assert all("does not hold all seeds" in message for message in messages)


@pytest.mark.parametrize(("design", "most_slots"), [({"batch": 4}, 1), ({"batch": 2, "reduction": 3}, 2)])
def test_too_few_configurations_to_drop_one_are_not_scored_at_rungs_and_the_study_says_so(
    design, most_slots, search, carry_out, rows_of, tmp_path
):
    study = search(over={"learning_rate": RATES[:2]}, trials=2, **design)
    carry_out(study, tmp_path / "run", trials=proposer(study), most_slots=most_slots)
    assert [(row.status, row.rungs) for row in rows_of(tmp_path / "run")] == [("done", {})] * 2
    assert len(told(tmp_path / "run")) == 2 // most_slots
    assert all("too few to drop one" in message for message in told(tmp_path / "run"))


class Early(HalvingSearch):
    """Has the rungs of a larger batch."""

    def rungs(self, num_steps):
        return [2, 5, 7]


def test_the_last_of_a_cohort_is_not_scored_again(search, carry_out, rows_of, tmp_path):
    study = search(over={"learning_rate": RATES[:2]}, trials=2)
    carry_out(study, tmp_path / "run", trials=Early(study))
    assert {row.status: list(row.rungs) for row in rows_of(tmp_path / "run")} == {"done": [2], "pruned": [2]}


def test_controls_are_neither_pruned_nor_a_searchs_result(search, carry_out, rows_of, tmp_path):
    study = search().model_copy(update={"controls": [{"method": "head", "learning_rate": 0.1}]})
    carry_out(study, tmp_path / "run", trials=proposer(study), first=expand(study))
    rows = rows_of(tmp_path / "run")
    document = search_document(study, rows)
    assert [row.trial[:8] for row in rows][1:] == [each.configuration for each in proposer(study).propose([])]
    assert {one["configuration"] for one in document["configurations"]} == {row.trial[:8] for row in rows[1:]}
    assert (rows[0].status, rows[0].rungs) == ("done", {})


@pytest.mark.parametrize("task", ["file", "squad"])
def test_what_no_evaluation_will_give_is_refused_before_anything_is_written(task, make_study, tmp_path):
    study = make_study({"file": "bert", "squad": "gpt2"}[task], task=task)
    designs = [
        {"kind": "search", "objective": "rouge_l", "over": {"r": [1, 2]}},
        {"kind": "shapley", "players": ["query"], "values": ["c_score"]},
    ]
    for design, key in zip(designs, ("objective", "values"), strict=True):
        other = Study.model_validate({**study.model_dump(), "design": design})
        with pytest.raises(UsageError, match=rf"design\.{key}.*gives no (rouge_l|c_score).*use one of .*eval_loss"):
            list(run_study(other, [], tmp_path / "run"))
    assert not (tmp_path / "run").exists()


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
