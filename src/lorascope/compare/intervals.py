"""How sure one score is: over the examples that it was measured on, and over the seeds of its configuration.

Knows one trial's ratio, and a list of figures. Does not know stores, nor how two trials compare (``examples``, ``paired``).
Floor: ``compare``.

A share of independent examples (accuracy) has Wilson's interval. Everything else has a percentile bootstrap over groups of
examples that belong together (questions of one context); below ``FEWEST_GROUPS`` that is too narrow to be shown.

Legend: E examples, G groups, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lorascope.compare.scores import Ratio
from lorascope.shapley import CONFIDENCE

FEWEST_GROUPS = 10
_RESAMPLES = 4000
# Resamples at a time: [chunk, G] numbers are in memory.
_CHUNK = 200
_SEED = 20240607


@dataclass(frozen=True)
class Interval:
    """Where a score lies on other examples of the same kind, at ``CONFIDENCE``.

    Attributes:
        low, high: None where nothing tells them.
        method: how they came about, or why there are none, in a few words.
    """

    low: float | None
    high: float | None
    method: str


def score_interval(ratio: Ratio) -> Interval:
    """The interval of one trial's score over its examples."""
    ratio = ratio.select(np.flatnonzero(ratio.counts_E).tolist())
    numerators_E, denominators_E = ratio.numerators_E, ratio.denominators_E
    num_examples = len(numerators_E)
    if not num_examples:
        return Interval(None, None, "no example counts")
    group_E, is_share = ratio.group_numbers(), ratio.is_share
    num_groups = int(group_E.max()) + 1
    if is_share and num_groups == num_examples:
        return _wilson(int(numerators_E.sum()), num_examples, ratio.scale, f"Wilson, {num_examples} examples")
    numerators_G, denominators_G = _sums(group_E, numerators_E), _sums(group_E, denominators_E)
    if np.ptp(numerators_E) == 0 and np.ptp(denominators_E) == 0:
        if not is_share:
            return Interval(None, None, "none: every example scores the same")
        # All right or all wrong: the groups are what is known to be independent.
        hits = num_groups if numerators_E[0] else 0
        return _wilson(hits, num_groups, ratio.scale, f"Wilson, {num_groups} groups of {num_examples} examples")
    among = f"{num_groups} examples" if num_groups == num_examples else f"{num_groups} groups of {num_examples} examples"
    if num_groups < FEWEST_GROUPS:
        return Interval(None, None, f"none: {among} are too few")
    draws_B = _resampled(numerators_G, denominators_G)
    low, high = (float(np.quantile(draws_B, share)) for share in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    if ratio.exponential:
        low, high = (math.exp(min(end, 700.0)) for end in (low, high))
    return Interval(ratio.scale * low, ratio.scale * high, f"bootstrap, {among}")


def seeds_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval of the mean over seeds; None for one seed, or where all agree to the last digit."""
    if len(values) < 2:
        return None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if error <= 1e-12 * max(map(abs, values)):
        return None
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    mean = float(np.mean(values))
    return mean - half, mean + half


def _wilson(hits: int, trials: int, scale: float, method: str) -> Interval:
    found = stats.binomtest(hits, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(scale * float(found.low), scale * float(found.high), method)


def _resampled(numerators_G: NDArray[np.float64], denominators_G: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ratios of resampled groups ``[B]``; draws in which nothing counts are left out."""
    draw = np.random.default_rng(_SEED)
    num_groups = len(numerators_G)
    ratios = []
    for _ in range(_RESAMPLES // _CHUNK):
        chosen_BG = draw.integers(num_groups, size=(_CHUNK, num_groups))
        totals_B = denominators_G[chosen_BG].sum(axis=1)
        counts = totals_B > 0
        ratios.append(numerators_G[chosen_BG].sum(axis=1)[counts] / totals_B[counts])
    return np.concatenate(ratios)


def _sums(group_E: NDArray[np.intp], values_E: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values of each group, summed."""
    return np.asarray(np.bincount(group_E, values_E), dtype=np.float64)
