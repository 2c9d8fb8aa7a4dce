"""Which of a study's configurations differ: each against a baseline, or all pairs, with a verdict that luck does not give.

Knows trials, seeds and what became of them. Does not know how a difference is measured (``paired``) or what a metric is made
of (``scores``). Floor: ``compare``.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorascope.compare.paired import FEWEST_SEEDS, Difference, Scores, paired_difference
from lorascope.compare.scores import Ratio, read_ratios
from lorascope.config import SearchDesign, ShapleyDesign, Study, configuration_of
from lorascope.errors import UsageError, did_you_mean
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.shapley import CONFIDENCE, holm
from lorascope.store import Store, by_configuration
from lorascope.store.results import merged_rows

# Of the metrics that a study has, the first of these is its primary one where the design names none.
_FIRST = ("accuracy", "f1", "rouge_l", "token_f1", "hits_at_1", "c_score", "exact_match", "eval_loss")
# Ends that say something about the configuration: what is left of its seeds is no fair sample of them.
_DROPPED = ("diverged", "pruned")


@dataclass
class _Configuration:
    """One configuration's trials: what became of each seed, and its metrics where it was done."""

    config: Mapping[str, Any]
    status: dict[int, str] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    ratios: dict[int, dict[str, Ratio]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Seeds by what became of them."""
        return dict(Counter(self.status.values()))


def comparisons(
    stores: Sequence[Store],
    *,
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    pairs: bool = False,
) -> dict[str, Any]:
    """The comparisons of a study, computed anew from its store and predictions.

    Args:
        stores: the study, or its shards.
        baseline: the configuration to compare with, or one of its trials; by default the first that trains an adapter (of an
            ablation, its baseline); controls come first in a search, and are none.
        metrics: what is compared; by default what the design aims at, else the task's first metric.
        pairs: compare every two configurations, rather than each with the baseline.

    Returns:
        A document that JSON can hold. ``baseline``, and ``baseline_chosen``, why this one; ``rows``: one for each comparison
        and metric, with the difference ``configuration − against``, its interval, p as it is and corrected (Holm) over all
        rows, and the verdict ``better``, ``worse``, ``not distinguishable`` or ``too few seeds``; ``configurations``: what
        became of the seeds of each.

    Raises:
        UsageError: the study has no such baseline or metric, or the directories hold different studies.
    """
    found = _configurations(stores)
    chosen = _metrics(stores[0].study, found, metrics)
    _read_predictions(stores, found, chosen)
    if not found:
        raise UsageError("the study has no trial yet", where=str(stores[0].directory), fix="wait until it has begun")
    first, why = _baseline(found, baseline)
    couples = itertools.combinations(found, 2) if pairs else ((first, name) for name in found if name != first)
    rows = [_row(found, against, name, metric) for against, name in couples for metric in chosen]
    _judge(rows, found)
    return {
        "baseline": None if pairs else first,
        "baseline_chosen": None if pairs else why,
        "metric": next(iter(chosen), None),
        "metrics": chosen,
        "level": CONFIDENCE,
        "fewest_seeds": FEWEST_SEEDS,
        "correction": f"Holm over {len([row for row in rows if row['p'] is not None])} comparisons",
        "configurations": {name: configuration.counts() for name, configuration in found.items()},
        "rows": rows,
    }


def primary_metric(study: Study, names: Collection[str]) -> str | None:
    """Of the metrics that trials have, the one that they are held against each other by.

    A search's objective, the first of a Shapley design's values that is there, else the task's first metric; None where there
    is none with a direction.
    """
    aims: Sequence[str] = ()
    if isinstance(study.design, SearchDesign):
        aims = [study.design.objective]
    elif isinstance(study.design, ShapleyDesign):
        aims = study.design.values or ()
    return next((name for name in (*aims, *_FIRST, *HIGHER_IS_BETTER) if name in names and name in HIGHER_IS_BETTER), None)


def is_adapter(config: Mapping[str, Any]) -> bool:
    """Whether a trial trains an adapter: neither a control nor an adapter that came from disk."""
    return config.get("method") not in ("full", "head") and config.get("path") is None


def _configurations(stores: Sequence[Store]) -> dict[str, _Configuration]:
    grouped = by_configuration([row for _, row in merged_rows(stores)])
    return {
        name: _Configuration(
            config=members[0].config,
            status={row.seed: row.status for row in members},
            metrics={row.seed: row.metrics for row in members if row.status == "done"},
        )
        for name, members in grouped.items()
    }


def _metrics(study: Study, found: Mapping[str, _Configuration], asked: Sequence[str] | None) -> list[str]:
    """What is compared: of the metrics that some trial has, those with a direction."""
    names = {name for each in found.values() for metrics in each.metrics.values() for name in metrics}
    known = [name for name in HIGHER_IS_BETTER if name in names]
    for name in asked or ():
        if known and name not in known:
            raise UsageError(f"no trial has a metric {name!r}", where="--metric", fix=did_you_mean(name, known))
    if asked:
        return [name for name in dict.fromkeys(asked) if name in known]
    primary = primary_metric(study, names)
    return [] if primary is None else [primary]


def _baseline(found: Mapping[str, _Configuration], asked: str | None) -> tuple[str, str]:
    """What the others are held against, and why this one."""
    if asked is None:
        adapter = next((name for name, configuration in found.items() if is_adapter(configuration.config)), None)
        if adapter is not None:
            adapts = found[adapter].config.get("targets") != []
            return adapter, "the first adapter of the study" if adapts else "the first of the study, which adapts no module"
        return next(iter(found)), "the first configuration of the study, which trains no adapter"
    name = configuration_of(asked)
    if name not in found:
        raise UsageError(f"no configuration {asked!r} in this study", where="--baseline", fix=did_you_mean(name, list(found)))
    return name, "as asked for"


def _read_predictions(stores: Sequence[Store], found: Mapping[str, _Configuration], metrics: Sequence[str]) -> None:
    for store, row in merged_rows(stores):
        if row.status == "done":
            stored = {name: row.metrics[name] for name in metrics if name in row.metrics}
            path = store.directory / "trials" / row.trial / "predictions.jsonl"
            found[row.configuration].ratios[row.seed] = read_ratios(path, stored)


def _row(found: Mapping[str, _Configuration], against: str, name: str, metric: str) -> dict[str, Any]:
    one, other = found[name], found[against]
    seeds = [seed for seed in one.metrics if seed in other.metrics]
    seeds = [s for s in seeds if all(math.isfinite(each.metrics[s].get(metric, math.nan)) for each in (one, other))]
    row: dict[str, Any] = {
        "configuration": name,
        "against": against,
        "metric": metric,
        "difference": None,
        "low": None,
        "high": None,
        "p": None,
        "p_holm": None,
        "verdict": "too few seeds",
        "seeds": len(seeds),
        "examples": None,
        "groups": None,
        "failed": one.counts().get("failed", 0),
        "diverged": one.counts().get("diverged", 0),
        "pruned": one.counts().get("pruned", 0),
        "note": None,
    }
    if not seeds:
        return row
    scores = _paired_scores(one, other, seeds, metric)
    if scores is None:
        row["note"] = "paired by seed alone: what it says holds for these very examples"
        table = np.array([[each.metrics[seed][metric] for seed in seeds] for each in (one, other)])[:, :, None]
        one_SE, other_SE = table
    else:
        one_SE, other_SE, row["examples"] = scores
        row["groups"] = one_SE.shape[1]
    row["difference"] = float((one_SE - other_SE).mean())
    if len(seeds) >= FEWEST_SEEDS:
        _enter(row, paired_difference(one_SE, other_SE))
    return row


def _enter(row: dict[str, Any], result: Difference) -> None:
    row |= {"difference": result.difference, "p": result.p}
    if math.isfinite(result.low):
        row |= {"low": result.low, "high": result.high}
    else:
        _note(row, "no interval: the seeds agree to the last digit, as coarse figures do by chance")


def _note(row: dict[str, Any], text: str) -> None:
    row["note"] = "; ".join(filter(None, (row["note"], text)))


def _paired_scores(
    one: _Configuration, other: _Configuration, seeds: Sequence[int], metric: str
) -> tuple[Scores, Scores, int] | None:
    """Both sides' scores ``[seed, group]`` on the examples that all trials have, and how many these are."""
    ratios = [each.ratios.get(seed, {}).get(metric) for each in (one, other) for seed in seeds]
    whole = [ratio for ratio in ratios if ratio is not None]
    if len(whole) < len(ratios):
        return None
    if any(ratio.keys != whole[0].keys for ratio in whole):
        shared = set(whole[0].keys).intersection(*(ratio.keys for ratio in whole))
        if not shared:
            return None
        places = [{key: index for index, key in enumerate(ratio.keys)} for ratio in whole]
        order = [key for key in whole[0].keys if key in shared]
        whole = [ratio.select([place[key] for key in order]) for ratio, place in zip(whole, places, strict=True)]
    if not all(math.isfinite(ratio.value) for ratio in whole):
        return None
    table = [ratio.group_scores() for ratio in whole]
    return np.array(table[: len(seeds)]), np.array(table[len(seeds) :]), len(whole[0].keys)


def _judge(rows: Sequence[dict[str, Any]], found: Mapping[str, _Configuration]) -> None:
    """Correct the p-values over all rows, and say what they mean."""
    tested = [row for row in rows if row["p"] is not None]
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = corrected
        improves = (row["difference"] > 0) == HIGHER_IS_BETTER[row["metric"]]
        winner, loser = (row["configuration"], row["against"]) if improves else (row["against"], row["configuration"])
        dropped = _dropped(found[winner], found[loser])
        if corrected >= 1 - CONFIDENCE:
            row["verdict"] = "not distinguishable"
        elif dropped:
            row["verdict"] = "not distinguishable"
            _note(row, f"{winner} did not end at {dropped} of the seeds where {loser} did: those left are no fair sample")
        else:
            row["verdict"] = "better" if improves else "worse"


def _dropped(winner: _Configuration, loser: _Configuration) -> int:
    """Seeds at which the winner diverged or was pruned and the loser was not."""
    return sum(status in _DROPPED and loser.status.get(seed) == "done" for seed, status in winner.status.items())
