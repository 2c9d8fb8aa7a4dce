"""What each factor of an ablation changed, and how far adapters fall short of their controls; read off the trials alone.

Knows which trials belong together and how to average over seeds. Does not correct for many comparisons and gives no verdicts
(``compare``). Floor: above ``design``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from lorascope.compare import is_adapter, primary_metric
from lorascope.config import Study
from lorascope.design import factors
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.shapley import CONFIDENCE
from lorascope.store import TrialRow, by_configuration

# Of the control's score: an adapter whose shortfall is surely smaller is said to be within it.
MARGIN_PERCENT = 3.0
_CONTROLS = ("full", "head")
# Differences smaller than this share of the largest value are rounding.
_ROUNDING = 1e-12


def ablation_document(study: Study, rows: Sequence[TrialRow]) -> dict[str, Any] | None:
    """For every value of every factor the mean over seeds, and how far it is from the baseline.

    Returns:
        ``metric``, ``rows`` with ``factor``, ``value``, ``mean``, ``interval``, ``delta`` and ``delta_interval`` (of the seeds
        that both have; None where these are fewer than two). None for other designs, and before anything was scored.
    """
    table, metric = factors(study), primary_metric(study, _names(rows))
    if not table or metric is None:
        return None
    configurations = by_configuration(rows)
    baseline = _scores(configurations.get(table[0][2], ()), metric)
    found = []
    for factor, value, configuration in table:
        members = configurations.get(configuration, [])
        scores = _scores(members, metric)
        deltas = [scores[seed] - baseline[seed] for seed in scores if seed in baseline]
        same = configuration == table[0][2]
        found.append(
            {
                "factor": factor,
                "value": value,
                "configuration": configuration,
                **_summary(members, scores),
                "delta": None if same or not deltas else mean(deltas),
                "delta_interval": None if same else t_interval(deltas),
            }
        )
    return {"metric": metric, "higher_is_better": HIGHER_IS_BETTER[metric], "confidence": CONFIDENCE, "rows": found}


def controls_document(study: Study, rows: Sequence[TrialRow]) -> dict[str, Any] | None:
    """Full fine-tuning and head-only training at their best learning rate, and every adapter's shortfall against them.

    A control's learning rate is the one whose mean over seeds is best on the very split that is reported, which favours the
    control a little; the document says so. Only configurations whose every trial has a score are chosen from.

    Returns:
        ``methods`` (by method, what was tried and chosen) and ``shortfalls``: positive where the adapter is worse, paired by
        seed, in percent of the control's mean too (taken as it is). ``within_margin`` is True or False where every seed has a
        score and the whole interval lies on one side of the margin, None where that is not known. None for a study without
        controls, and before anything was scored.
    """
    metric = primary_metric(study, _names(rows))
    configurations = by_configuration(rows)
    methods = {method: _tried(configurations, method, metric) for method in _CONTROLS}
    methods = {method: tried for method, tried in methods.items() if tried}
    if not methods or metric is None:
        return None
    document: dict[str, Any] = {
        "metric": metric,
        "higher_is_better": HIGHER_IS_BETTER[metric],
        "confidence": CONFIDENCE,
        "margin_percent": MARGIN_PERCENT,
        "chosen_on": f"the mean over seeds on {study.evaluate.split}, the split that is reported",
        "methods": {},
        "shortfalls": [],
    }
    for method, tried in methods.items():
        best = _best(tried, metric)
        document["methods"][method] = {"chosen": best, "tried": tried, "at_edge": best is not None and _at_edge(best, tried)}
        if best is None:
            continue
        control = _scores(configurations[best["configuration"]], metric)
        for name, members in configurations.items():
            if is_adapter(members[0].config):
                document["shortfalls"].append(_shortfall(method, name, members, control, metric))
    return document


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval of the mean; None for fewer than two values, and where they agree to the last digit.

    Coarse figures agree by chance now and then, which tells nothing of how far the next one would be.
    """
    if len(values) < 2 or stdev(values) <= _ROUNDING * max(map(abs, values)):
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def _names(rows: Sequence[TrialRow]) -> set[str]:
    return {name for row in rows for name in row.metrics}


def _scores(members: Sequence[TrialRow], metric: str) -> dict[int, float]:
    """By seed; a trial that diverged, failed or was pruned has none."""
    done = {row.seed: row.metrics.get(metric, math.nan) for row in members if row.status == "done"}
    return {seed: value for seed, value in done.items() if math.isfinite(value)}


def _summary(members: Sequence[TrialRow], scores: Mapping[int, float]) -> dict[str, Any]:
    values = list(scores.values())
    return {
        "mean": mean(values) if values else None,
        "interval": t_interval(values),
        "num_seeds": len(values),
        "num_trials": len(members),
    }


def _tried(configurations: Mapping[str, Sequence[TrialRow]], method: str, metric: str | None) -> list[dict[str, Any]]:
    """A method's configurations, with what they scored."""
    return [
        {
            "configuration": name,
            "learning_rate": members[0].config["learning_rate"],
            "config": members[0].config,
            **_summary(members, {} if metric is None else _scores(members, metric)),
        }
        for name, members in configurations.items()
        if members[0].config.get("method") == method
    ]


def _best(tried: Sequence[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    complete = [one for one in tried if one["num_seeds"] == one["num_trials"]]
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    return max(complete, key=lambda one: sign * one["mean"], default=None)


def _at_edge(best: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a learning rate beyond those that were tried might be better still."""
    rates = {one["learning_rate"] for one in tried}
    return best["learning_rate"] in (min(rates), max(rates))


def _shortfall(
    method: str, name: str, members: Sequence[TrialRow], control: Mapping[int, float], metric: str
) -> dict[str, Any]:
    scores = _scores(members, metric)
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    seeds = [seed for seed in scores if seed in control]
    missing = [sign * (control[seed] - scores[seed]) for seed in seeds]
    reference = abs(mean(control[seed] for seed in seeds)) if seeds else 0.0
    interval = t_interval(missing)
    percent = 100.0 / reference if reference else None
    ends = None if interval is None or percent is None else [percent * end for end in interval]
    return {
        "against": method,
        "configuration": name,
        "config": members[0].config,
        **_summary(members, scores),
        "paired_seeds": len(seeds),
        "shortfall": mean(missing) if missing else None,
        "interval_of_shortfall": interval,
        "percent": None if percent is None else percent * mean(missing),
        "percent_interval": ends,
        "within_margin": _within(ends) if len(seeds) == len(members) else None,
    }


def _within(ends: Sequence[float] | None) -> bool | None:
    """Whether an interval lies below the margin, or above; None where it holds it, or is not known."""
    if ends is None or ends[0] <= MARGIN_PERCENT < ends[1]:
        return None
    return ends[1] <= MARGIN_PERCENT
