"""What an ablation's factors changed and how far adapters fall short of controls, computed from the trials' rows alone."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lorascope.config import BaseModelConfig, Study, TaskConfig
from lorascope.design import expand
from lorascope.effects import ablation_document, controls_document, t_interval


def study(design, controls=(), seeds=(1, 2, 3)):
    return Study(
        name="s", base=BaseModelConfig(model="m"), task=TaskConfig(name="sst2", data="x"), seeds=list(seeds), design=design,
        controls=list(controls),
    )  # fmt: skip


def rows_of(of, scores, metric="accuracy"):
    """Rows of the study's trials; ``scores(config, seed)`` is a score, or None for a trial that diverged."""
    found = []
    for trial in expand(of):
        score = scores(trial.flat(), trial.seed)
        metrics = {} if score is None else {metric: score, "eval_loss": 0.1}
        status = "diverged" if score is None else "done"
        found.append(
            SimpleNamespace(
                trial=trial.trial, configuration=trial.configuration, seed=trial.seed, status=status, config=trial.flat(),
                metrics=metrics,
            )
        )  # fmt: skip
    return found


ABLATION = {"kind": "ablation", "over": {"r": [4, 8, 16], "bias": ["lora_only"]}}


def test_an_ablation_is_shown_factor_by_factor_against_the_baseline():
    of = study(ABLATION)
    gains = {4: lambda seed: -0.02 + 0.01 * (seed - 2), 8: lambda seed: 0.0, 16: lambda seed: 0.03 * seed}
    rows = rows_of(of, lambda config, seed: 0.8 + 0.01 * seed + gains[config["r"]](seed))
    document = ablation_document(of, rows)
    assert (document["metric"], document["higher_is_better"]) == ("accuracy", True)
    baseline, four, eight, sixteen, bias = document["rows"]
    assert [row["factor"] for row in document["rows"]] == ["baseline", "r", "r", "r", "bias"]
    assert baseline["mean"] == pytest.approx(0.82)
    assert baseline["interval"] == pytest.approx(stats.t.interval(0.95, 2, loc=0.82, scale=0.01 / math.sqrt(3)))
    assert four["delta"] == pytest.approx(-0.02)
    assert four["delta_interval"] == pytest.approx(stats.t.interval(0.95, 2, loc=-0.02, scale=0.01 / math.sqrt(3)))
    assert eight["configuration"] == baseline["configuration"]
    assert (eight["delta"], eight["delta_interval"]) == (None, None)
    assert sixteen["delta"] == pytest.approx(0.06)
    assert sixteen["delta_interval"] == pytest.approx(stats.t.interval(0.95, 2, loc=0.06, scale=0.03 / math.sqrt(3)))
    assert (bias["delta"], bias["delta_interval"]) == (pytest.approx(0.0), None)  # no spread tells nothing of the next seed


def test_a_trial_without_a_score_is_counted_and_left_out_of_means_and_pairs():
    of = study(ABLATION)
    rows = rows_of(of, lambda config, seed: None if (config["r"], seed) in ((4, 1), (8, 2)) else 0.5 + seed)
    baseline, four, *_ = ablation_document(of, rows)["rows"]
    assert (baseline["num_seeds"], baseline["num_trials"], baseline["mean"]) == (2, 3, pytest.approx(2.5))
    assert (four["num_seeds"], four["delta"], four["delta_interval"]) == (2, 0.0, None)


def test_nothing_is_said_of_other_designs_nor_before_anything_is_scored():
    of = study({"kind": "grid", "over": {"r": [4]}})
    assert ablation_document(of, rows_of(of, lambda config, seed: 0.5)) is None
    assert controls_document(of, rows_of(of, lambda config, seed: 0.5)) is None
    of = study(ABLATION, [{"method": "head"}])
    none = rows_of(of, lambda config, seed: None)
    assert ablation_document(of, none) is None
    assert controls_document(of, none) is None


CONTROLS = [{"method": "full", "learning_rate": [1e-5, 3e-5, 1e-4]}, {"method": "head"}]


def controlled(full, head=0.6, lora=0.9, metric="accuracy", controls=CONTROLS):
    of = study({"kind": "list", "trials": [{"r": 4}]}, controls)

    def score(config, seed):
        method = config["method"]
        value = lora if method == "lora" else head if method == "head" else full[config["learning_rate"]]
        if callable(value):
            return value(seed)
        # Adapters vary a little with the seed, against their controls too.
        return value + (0.001 * (seed - 2) if method == "lora" else 0.0)

    return controls_document(of, rows_of(of, score, metric))


def test_a_control_is_the_best_learning_rate_by_the_mean_over_seeds():
    document = controlled({1e-5: 0.90, 3e-5: 0.94, 1e-4: lambda seed: 0.97 if seed == 1 else 0.5})
    full, head = document["methods"]["full"], document["methods"]["head"]
    assert (full["chosen"]["learning_rate"], full["chosen"]["mean"], full["at_edge"]) == (3e-5, pytest.approx(0.94), False)
    assert [one["learning_rate"] for one in full["tried"]] == [1e-5, 3e-5, 1e-4]
    assert head["at_edge"] is True
    assert "the split that is reported" in document["chosen_on"]
    against_full, against_head = document["shortfalls"]
    assert against_full["shortfall"] == pytest.approx(0.04)
    assert against_full["percent"] == pytest.approx(4 / 0.94)
    assert against_full["within_margin"] is False
    assert (against_head["against"], against_head["shortfall"]) == ("head", pytest.approx(-0.3))
    assert against_head["within_margin"] is True


def test_a_control_of_which_a_seed_diverged_is_never_chosen():
    document = controlled({1e-5: 0.90, 3e-5: lambda seed: 0.99 if seed > 1 else None, 1e-4: 0.91})
    assert document["methods"]["full"]["chosen"]["learning_rate"] == 1e-4
    gone = controlled(dict.fromkeys((1e-5, 3e-5, 1e-4), lambda seed: None if seed == 1 else 0.9))
    assert gone["methods"]["full"]["chosen"] is None
    assert {one["against"] for one in gone["shortfalls"]} == {"head"}


def test_the_shortfall_is_paired_by_seed():
    document = controlled(
        dict.fromkeys((1e-5, 3e-5, 1e-4), lambda seed: 0.5 + 0.1 * seed), lora=lambda seed: 0.49 + 0.0995 * seed + 0.001
    )
    (shortfall, _) = document["shortfalls"]
    half = stats.t.ppf(0.975, 2) * 0.0005 / math.sqrt(3)
    assert shortfall["interval_of_shortfall"] == pytest.approx((0.01 - half, 0.01 + half))
    assert shortfall["paired_seeds"] == 3
    assert shortfall["percent_interval"] == pytest.approx([(1 - 100 * half) / 0.7, (1 + 100 * half) / 0.7])
    assert shortfall["within_margin"] is True


@pytest.mark.parametrize(
    ("lora", "within"),
    [
        ([0.89, 0.90, 0.89], True),
        ([0.80, 0.81, 0.80], False),
        ([0.85, 0.90, 0.87], None),  # 2.96 % on average, and an interval that holds the margin
        ([0.95, 0.94, None], None),  # a seed was lost
        ([0.95, None, None], None),
        ([0.89, 0.89, 0.89], None),  # nothing tells how far the next one would be
    ],
)
def test_an_adapter_is_within_the_margin_only_where_every_seed_and_the_whole_interval_say_so(lora, within):
    document = controlled(dict.fromkeys((1e-5, 3e-5, 1e-4), lambda seed: 0.9), lora=lambda seed: lora[seed - 1])
    assert document["shortfalls"][0]["within_margin"] is within


def test_one_seed_gives_no_verdict_on_the_margin():
    of = study({"kind": "list", "trials": [{"r": 4}]}, CONTROLS[1:], seeds=(1,))
    (shortfall,) = controls_document(of, rows_of(of, lambda config, seed: 0.9))["shortfalls"]
    assert (shortfall["paired_seeds"], shortfall["within_margin"]) == (1, None)


def test_of_a_metric_that_falls_the_shortfall_is_what_the_adapter_has_more():
    document = controlled({1e-5: 4.0, 3e-5: 2.0, 1e-4: 3.0}, lora=2.5, metric="perplexity")
    assert document["metric"] == "eval_loss"  # of metrics the first of the table
    of = study({"kind": "list", "trials": [{"r": 4}]}, CONTROLS[:1])
    value = {"lora": 2.5, "full": 2.0}
    rows = rows_of(of, lambda config, seed: value[config["method"]], "perplexity")
    for row in rows:
        del row.metrics["eval_loss"]
    (shortfall,) = controls_document(of, rows)["shortfalls"]
    assert (shortfall["shortfall"], shortfall["percent"]) == (pytest.approx(0.5), pytest.approx(25.0))


def test_an_adapter_from_disk_is_held_against_nothing():
    of = study({"kind": "list", "trials": [{"r": 4}, {"path": "somewhere"}]}, CONTROLS[1:])
    document = controls_document(of, rows_of(of, lambda config, seed: 0.5))
    assert [one["config"]["r"] for one in document["shortfalls"]] == [4]


def test_an_ablation_and_its_controls_are_shown_by_the_metric_that_comparisons_take():
    of = study(ABLATION, CONTROLS[1:])
    rows = rows_of(of, lambda config, seed: 0.5 + 0.1 * seed, "c_score")  # beside a loss, which comes first in the table
    assert ablation_document(of, rows)["metric"] == controls_document(of, rows)["metric"] == "c_score"
    named = study({"kind": "shapley", "players": ["query"], "values": ["eval_loss"]}, CONTROLS[1:])
    assert controls_document(named, rows)["metric"] == "eval_loss"


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_the_interval_is_students(values):
    if np.std(values) < 1e-9 * max(map(abs, values), default=0.0) or not any(values):
        return
    low, high = t_interval(values)
    scale = np.std(values, ddof=1) / math.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * scale
    assert (high - low) / 2 == pytest.approx(half, abs=1e-9)
    assert low <= sum(values) / len(values) + 1e-9
    assert t_interval(values[:1]) is None
    assert t_interval([values[0]] * 3) is None
