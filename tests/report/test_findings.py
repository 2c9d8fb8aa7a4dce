"""What the report reads from a store is what the store holds."""

import math

import pytest

from lorascope.compare import seeds_interval
from lorascope.store import Store


def test_configurations_average_what_their_seeds_scored(study_of, written, findings_of):
    directory = written(study_of(), ended={8: {"status": "diverged"}})
    found = findings_of(directory)
    with Store.open(directory) as store:
        rows = store.trials()
    for number, one in enumerate(found.configurations):
        values = [row.metrics["accuracy"] for row in rows[3 * number : 3 * number + 3] if row.status == "done"]
        score = one.scores["accuracy"]
        assert score.mean == pytest.approx(sum(values) / len(values))
        assert (score.low, score.high) == (seeds_interval(values) or (None, None))
    assert [one.num_done for one in found.configurations] == [3, 3, 2]


def test_a_configuration_that_lost_a_seed_is_ranked_behind_those_that_did_not(study_of, written, findings_of):
    found = findings_of(written(study_of(), ended={8: {"status": "diverged"}}))
    assert [one.label for one in found.ranked] == ["r 4 · query + value", "r 8 · query + value", "r 16 · all-linear"]
    assert found.best is found.ranked[0]


def test_a_control_is_not_the_best_adapter(study_of, written, findings_of):
    study = study_of(design={"kind": "list", "trials": [{"r": 4, "targets": ["query"]}]}, controls=[{"method": "full"}])
    found = findings_of(written(study))
    assert found.best is not None
    assert found.best.is_adapter


def test_a_curve_is_the_mean_over_steps_and_seeds(study_of, written, findings_of):
    found = findings_of(written(study_of()))
    curve = found.configurations[0].curve
    assert curve is not None
    assert (curve.steps[0], curve.steps[-1], len(curve.steps)) == (1, 50, 50)
    assert curve.losses == pytest.approx([math.exp(-step / 40) + 0.1 / 4 for step in range(50)])
    assert found.configurations[0].validation[0][0] == 50


def test_the_last_loss_on_validation_is_that_of_the_whole_split(study_of, written, findings_of):
    study = study_of()
    directory = written(study)
    with Store.create(directory, study, resume=True) as store:
        for row in store.trials():
            store.add_steps(row.trial, [{"step": step, "loss": 1.0} for step in range(50, 120)])
            store.set_rung(row.trial, 60, {"eval_loss": 3.0})
            store.set_rung(row.trial, 120, {"eval_loss": 2.0})
    one = findings_of(directory).configurations[0]
    assert one.curve is not None
    assert one.curve.steps[-1] < 120
    assert one.validation == [(60, 3.0), (120, pytest.approx(one.scores["eval_loss"].mean))]


def test_losses_on_validation_are_of_seeds_that_finished(study_of, written, findings_of):
    study = study_of()
    directory = written(study, ended={0: {"status": "pruned"}})
    with Store.create(directory, study, resume=True) as store:
        for row, loss in zip(store.trials()[:2], (9.0, 3.0), strict=True):
            store.set_rung(row.trial, 20, {"eval_loss": loss})
    assert findings_of(directory).configurations[0].validation[0] == (20, 3.0)


def test_a_seed_that_lacks_a_step_still_counts_in_the_curve(study_of, written, findings_of):
    study = study_of(seeds=[1, 2])
    directory = written(study)
    with Store.create(directory, study, resume=True) as store:
        one, other = (row.trial for row in store.trials()[:2])
        store.clear_trial(one, first_step=0)
        store.add_steps(one, [{"step": step, "loss": 5.0} for step in range(50) if step != 3])
        store.clear_trial(other, first_step=0)
        store.add_steps(other, [{"step": step, "loss": 1.0} for step in range(50)])
    curve = findings_of(directory).configurations[0].curve
    assert curve is not None
    assert curve.losses == pytest.approx([1.0 if step == 3 else 3.0 for step in range(50)])


def test_a_loss_that_was_no_number_ends_no_report(study_of, written, findings_of):
    study = study_of()
    directory = written(study, ended={0: {"status": "diverged"}, 1: {"status": "diverged"}, 2: {"status": "diverged"}})
    with Store.create(directory, study, resume=True) as store:
        store.add_steps(store.trials()[0].trial, [{"step": 0, "loss": 2.0}, {"step": 1, "loss": math.nan}])
    curve = findings_of(directory).configurations[0].curve
    assert curve is not None
    assert (curve.steps, curve.losses) == ([1], [2.0])


def test_scores_have_intervals_over_examples_only_where_predictions_give_them(study_of, written, findings_of):
    directory = written(study_of())
    with Store.open(directory) as store:
        names = [row.trial for row in store.trials()]
    (directory / "trials" / names[0] / "predictions.jsonl").unlink()
    found = findings_of(directory)
    assert set(found.intervals) == set(names[1:])
    assert all(end.method.startswith("Wilson") for end in found.intervals.values())
