"""Verdicts on whole studies, from the store and the predictions alone."""

import json

import numpy as np
import pytest

from lorascope.compare import comparisons, primary_metric
from lorascope.config import Study
from lorascope.design import expand
from lorascope.errors import UsageError
from lorascope.store import Store

NUM_EXAMPLES = 400


def right(rate, seed, churn=0.01):
    """Which examples are right: the first so many, but for a few by seed."""
    draw = np.random.default_rng(seed)
    easy = np.arange(NUM_EXAMPLES) < rate * NUM_EXAMPLES
    return np.where(draw.random(NUM_EXAMPLES) < churn, ~easy, easy)


@pytest.fixture
def make(tmp_path):
    """``make(rates, seeds, broken={(configuration, seed): status})``: a finished study of as many configurations."""
    opened = []

    def build(rates, seeds=(1, 2, 3, 4), broken=None, part=None, name="run", rows_of=None, methods=()):
        study = Study.model_validate(
            {
                "name": "study",
                "base": {"model": "some/model"},
                "task": {"name": "sst2", "data": "data"},
                "seeds": list(seeds),
                "design": {
                    "kind": "list",
                    "trials": [
                        {"lora": {"r": 2**index}, "empty": {"targets": []}}.get(method, {"method": method})
                        for index, method in zip(range(len(rates)), (*methods, *["lora"] * len(rates)), strict=False)
                    ],
                },
            }
        )
        trials = expand(study)
        configurations = list(dict.fromkeys(trial.configuration for trial in trials))
        with Store.create(tmp_path / name, study) as store:
            chosen = [trials[i] for i in range(len(trials)) if part is None or i % 2 == part]
            store.add_trials(chosen)
            for trial in chosen:
                index = configurations.index(trial.configuration)
                status = (broken or {}).get((index, trial.seed), "done")
                store.update(trial.trial, status=status)
                if status != "done":
                    continue
                correct = right(rates[index], 100 * index + trial.seed)
                rows = [{"id": str(i), "correct": bool(one)} for i, one in enumerate(correct)]
                rows = rows if rows_of is None else rows_of(rows, index)
                path = store.directory / "trials" / trial.trial / "predictions.jsonl"
                path.parent.mkdir(parents=True)
                path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
                accuracy = float(np.mean([row["correct"] for row in rows]))
                store.set_metrics(trial.trial, {"accuracy": accuracy, "eval_loss": 1 - accuracy, "best_f1_threshold": 0.5})
        opened.append(Store.open(tmp_path / name))
        return opened[-1]

    yield build
    for store in opened:
        store.close()


def verdicts(document):
    return [row["verdict"] for row in document["rows"]]


def test_better_worse_and_neither_are_told_apart(make):
    store = make([0.7, 0.8, 0.7, 0.6])
    document = comparisons([store])
    assert verdicts(document) == ["better", "not distinguishable", "worse"]
    assert document["baseline"] == store.trials()[0].trial.partition("-")[0]
    row = document["rows"][0]
    assert row["difference"] == pytest.approx(0.1, abs=0.02)
    assert row["low"] < row["difference"] < row["high"]
    assert (row["seeds"], row["examples"], row["groups"]) == (4, NUM_EXAMPLES, NUM_EXAMPLES)
    assert (row["failed"], row["diverged"], row["metric"], row["note"]) == (0, 0, "accuracy", None)
    json.dumps(document, allow_nan=False)


def test_a_lower_loss_is_better(make):
    store = make([0.7, 0.8, 0.6])
    document = comparisons([store], metrics=["eval_loss"])
    assert verdicts(document) == ["better", "worse"]
    assert document["rows"][0]["difference"] < 0
    # The predictions of this study do not hold the loss.
    assert document["rows"][0]["examples"] is None
    assert "paired by seed alone" in document["rows"][0]["note"]


def test_everything_in_the_table_is_corrected_together(make):
    store = make([0.7, 0.72, 0.71])
    one = comparisons([store])["rows"]
    two = comparisons([store], metrics=["accuracy", "eval_loss"])["rows"]
    pairs = comparisons([store], pairs=True)["rows"]
    assert (len(one), len(two), len(pairs)) == (2, 4, 3)
    least = min(one, key=lambda row: row["p"])
    assert least["p_holm"] == pytest.approx(2 * least["p"])
    for rows in (one, two, pairs):
        assert all(row["p"] <= row["p_holm"] <= len(rows) * row["p"] + 1e-12 for row in rows)


def test_pairs_are_every_two_configurations(make):
    store = make([0.6, 0.7, 0.8])
    document = comparisons([store], pairs=True)
    names = list(document["configurations"])
    assert [(row["against"], row["configuration"]) for row in document["rows"]] == [
        (names[0], names[1]), (names[0], names[2]), (names[1], names[2])
    ]  # fmt: skip
    assert document["baseline"] is None
    assert verdicts(document) == ["better"] * 3


def test_another_baseline_is_named_by_its_trial_or_configuration(make):
    store = make([0.6, 0.7, 0.8])
    trial = store.trials()[-1].trial
    by_trial, by_name = (comparisons([store], baseline=name) for name in (trial, trial.partition("-")[0]))
    assert by_trial == by_name
    assert verdicts(by_trial) == ["worse", "worse"]
    with pytest.raises(UsageError, match="no configuration 'ffffffff'"):
        comparisons([store], baseline="ffffffff")
    with pytest.raises(UsageError, match="no trial has a metric 'acuracy'; did you mean 'accuracy'"):
        comparisons([store], metrics=["acuracy"])


def test_the_baseline_is_the_first_adapter_and_no_control_that_happens_to_come_first(make):
    store = make([0.9, 0.5, 0.7, 0.8], methods=("full", "head"))
    document = comparisons([store])
    assert document["baseline"] == list(document["configurations"])[2]
    assert document["baseline_chosen"] == "the first adapter of the study"
    assert verdicts(document) == ["better", "worse", "better"]
    asked = comparisons([store], baseline=store.trials()[0].trial)
    assert (asked["baseline"], asked["baseline_chosen"]) == (store.trials()[0].configuration, "as asked for")
    alone = comparisons([make([0.9, 0.5], methods=("full", "head"), name="controls")])
    assert alone["baseline_chosen"] == "the first configuration of the study, which trains no adapter"
    assert comparisons([store], pairs=True)["baseline_chosen"] is None


def test_a_baseline_that_adapts_nothing_is_not_called_an_adapter(make):
    document = comparisons([make([0.5, 0.7], methods=("empty",))])
    assert document["baseline"] == next(iter(document["configurations"]))
    assert document["baseline_chosen"] == "the first of the study, which adapts no module"


def test_one_seed_gives_no_verdict(make):
    document = comparisons([make([0.5, 0.9], seeds=[1])])
    (row,) = document["rows"]
    assert (row["verdict"], row["seeds"], row["p"], row["p_holm"], row["low"]) == ("too few seeds", 1, None, None, None)
    assert row["difference"] == pytest.approx(0.4, abs=0.05)


def test_only_common_seeds_are_compared_and_the_lost_ones_counted(make):
    document = comparisons([make([0.7, 0.8, 0.8], broken={(0, 1): "failed", (1, 2): "failed", (2, 3): "planned"})])
    assert [row["seeds"] for row in document["rows"]] == [2, 2]
    assert [row["failed"] for row in document["rows"]] == [1, 0]
    first = document["configurations"][document["baseline"]]
    assert first == {"done": 3, "failed": 1}


@pytest.mark.parametrize("status", ["diverged", "pruned"])
def test_what_is_left_after_divergence_is_never_better(make, status):
    broken = {(1, 1): status, (2, 1): status, (0, 4): status, (3, 4): status}
    document = comparisons([make([0.7, 0.8, 0.6, 0.8], seeds=range(1, 6), broken=broken)])
    assert verdicts(document) == ["not distinguishable", "not distinguishable", "better"]
    assert [row[status] for row in document["rows"]] == [1, 1, 1]
    assert "no fair sample" in document["rows"][0]["note"]
    assert document["rows"][0]["p_holm"] < 0.05


def test_a_configuration_whose_every_trial_was_lost_is_not_ranked(make):
    broken = {(1, seed): "diverged" for seed in range(1, 5)}
    (row,) = comparisons([make([0.7, 0.9], broken=broken)])["rows"]
    assert (row["verdict"], row["seeds"], row["diverged"], row["difference"]) == ("too few seeds", 0, 4, None)


def test_shards_give_what_the_whole_gives(make):
    whole = make([0.7, 0.72, 0.74])
    parts = [make([0.7, 0.72, 0.74], part=part, name=f"part{part}") for part in (0, 1)]
    assert comparisons(parts) == comparisons([whole])


def test_examples_that_one_side_lacks_are_left_out_on_both(make):
    store = make([0.7, 0.8], rows_of=lambda rows, index: rows[10:] if index else rows[::-1])
    (row,) = comparisons([store])["rows"]
    assert row["examples"] == NUM_EXAMPLES - 10
    means = [np.mean([right(rate, 100 * i + seed)[10:] for seed in range(1, 5)]) for i, rate in enumerate((0.7, 0.8))]
    assert row["difference"] == pytest.approx(means[1] - means[0], abs=1e-9)


def test_examples_of_one_group_count_as_one_draw(make):
    alone = make([0.7, 0.8])
    grouped = make([0.7, 0.8], name="grouped", rows_of=lambda rows, _: [{**r, "group": str(int(r["id"]) // 40)} for r in rows])
    (one,), (other,) = (comparisons([store])["rows"] for store in (alone, grouped))
    assert other["difference"] == pytest.approx(one["difference"], abs=1e-12)
    assert (other["examples"], other["groups"]) == (NUM_EXAMPLES, 10)
    # The 40 examples that the better one gains are one group, or two.
    assert other["high"] - other["low"] > 2 * (one["high"] - one["low"])


def test_lost_predictions_leave_the_seeds(make):
    store = make([0.7, 0.8])
    for path in (store.directory / "trials").glob("*/predictions.jsonl"):
        path.unlink()
    (row,) = comparisons([store])["rows"]
    assert (row["verdict"], row["examples"]) == ("better", None)


def test_accuracies_that_tie_over_two_seeds_give_no_verdict_and_no_interval(make):
    """Without predictions a study has one coarse figure a seed, and two such differ by exactly as much now and then."""
    store = make([0.6, 0.7], seeds=(1, 2), rows_of=lambda rows, index: [{"correct": i < 60 + index} for i in range(100)])
    (row,) = comparisons([store])["rows"]
    assert (row["verdict"], row["difference"]) == ("not distinguishable", pytest.approx(0.01))
    assert (row["low"], row["high"], row["p"]) == (None, None, 0.5)
    assert "no interval: the seeds agree to the last digit" in row["note"]


def test_a_single_configuration_has_nothing_to_be_compared_with(make):
    assert comparisons([make([0.7])])["rows"] == []


DESIGNS = {
    "list": {"kind": "list", "trials": [{}]},
    "search": {"kind": "search", "over": {"r": [1]}, "objective": "eval_loss"},
    "shapley": {"kind": "shapley", "players": ["query"], "values": ["c_score", "f1", "eval_loss"]},
}


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        ("list", ["eval_loss", "f1", "accuracy"], "accuracy"),
        ("list", ["eval_loss", "perplexity", "hits_at_1"], "hits_at_1"),
        ("list", ["best_f1_threshold"], None),
        ("search", ["accuracy", "eval_loss"], "eval_loss"),
        ("search", ["accuracy"], "accuracy"),
        ("shapley", ["accuracy", "eval_loss", "f1"], "f1"),
    ],
)
def test_the_primary_metric_is_what_the_design_aims_at_or_the_tasks_first(kind, names, expected):
    study = Study.model_validate(
        {"name": "s", "base": {"model": "m"}, "task": {"name": "sst2", "data": "x"}, "design": DESIGNS[kind]}
    )
    assert primary_metric(study, names) == expected
