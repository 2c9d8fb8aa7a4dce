"""Two shares of the same examples, each right or wrong: how far they lie apart, and how sure that is.

What separates two versions of one model is a handful of flips among many examples, and of so few events Student's interval is
far too narrow: where four flips are expected, all one way, it holds the truth in 91 % of the cases, and where one is in 63 %.
The limits of both rates of flips, up and down, are known by Wilson's intervals, and give those of their difference by
Newcombe's square-and-add: 95 % or a little more (0.955 to 1.000 for half a flip to sixty, one way or both, of 100 and of 872
examples: ``benchmarks/flips.py``), where nothing flipped too. Tango's score interval, narrower by a twentieth, falls to 93 %
for four flips one way.

Knows what each side scored on each example. Does not know metrics or files. Floor: ``compare``.

Legend: E examples, G groups of examples that belong together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lorascope.shapley import CONFIDENCE


@dataclass(frozen=True)
class ShareDifference:
    """One share less the other.

    Attributes:
        low, high: the interval at ``CONFIDENCE``.
        p: two-sided, of the sign test over groups: exact, and 1 where none favours a side.
        changed: groups with a flip.
        groups: all of them.
    """

    difference: float
    low: float
    high: float
    p: float
    changed: int
    groups: int


def paired_shares(one_E: NDArray[np.float64], other_E: NDArray[np.float64], group_E: NDArray[np.intp]) -> ShareDifference:
    """Compare two shares of the same examples.

    Members of a group tend to flip together. So the counts are divided by the design effect, how much more the difference
    varies over groups than it would over as many independent examples (Rao and Scott 1992), and never multiplied by it; where
    nothing flipped, which tells nothing of it, a group counts as one example. The interval is widened to hold zero where the
    exact sign test does not reject it.

    Args:
        one_E, other_E: zeros and ones, at least one example.
        group_E: each example's group, numbered from 0.
    """
    gained_E = one_E - other_E
    num_examples, num_groups = len(gained_E), int(group_E.max()) + 1
    gained_G, flips_G, sizes_G = (
        np.bincount(group_E, weights_E).astype(np.float64)
        for weights_E in (gained_E, np.abs(gained_E), np.ones_like(gained_E))
    )
    effect = _design_effect(gained_G, flips_G, sizes_G)
    up, down = (float((gained_E == sign).sum()) / effect for sign in (1, -1))
    low, high = interval_of_paired_shares(up, down, num_examples / effect)
    favouring = [int((sign * gained_G > 0).sum()) for sign in (1, -1)]
    p = float(stats.binomtest(favouring[0], sum(favouring)).pvalue) if sum(favouring) else 1.0
    if p >= 1 - CONFIDENCE:
        low, high = min(low, 0.0), max(high, 0.0)
    return ShareDifference(float(gained_E.mean()), low, high, p, int((flips_G > 0).sum()), num_groups)


def interval_of_paired_shares(up: float, down: float, count: float) -> tuple[float, float]:
    """The interval of ``(up − down) / count`` at ``CONFIDENCE``, from those of both rates and their correlation.

    Args:
        up, down: examples that the one has right and the other wrong, and the other way round; need not be whole.
        count: of all examples, at least 1.

    Sources: Newcombe 1998 (square-and-add); Zou and Donner 2008, "Construction of confidence limits about effect measures",
    Statistics in Medicine 27 (for estimates that are correlated).
    """
    rising, falling = up / count, down / count
    (least_up, most_up), (least_down, most_down) = _wilson(up, count), _wilson(down, count)
    spread = (1 - rising) * (1 - falling)
    # Of two counts of one multinomial draw.
    correlation = -math.sqrt(rising * falling / spread) if spread > 0.0 else 0.0
    ends = []
    for sign, of_up, of_down in (
        (-1.0, rising - least_up, most_down - falling),
        (1.0, most_up - rising, falling - least_down),
    ):
        both = of_up**2 + of_down**2 - 2 * correlation * of_up * of_down
        ends.append(min(max(rising - falling + sign * math.sqrt(both), -1.0), 1.0))
    return ends[0], ends[1]


def _wilson(events: float, count: float) -> tuple[float, float]:
    """Wilson's limits of a rate; ``events`` need not be whole."""
    quantile = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    rate, square = events / count, quantile**2 / count
    middle, half = rate + square / 2, math.sqrt(square * (rate * (1 - rate) + square / 4))
    return max((middle - half) / (1 + square), 0.0), min((middle + half) / (1 + square), 1.0)


def _design_effect(gained_G: NDArray[np.float64], flips_G: NDArray[np.float64], sizes_G: NDArray[np.float64]) -> float:
    """How many examples count as one independent example, 1 or more."""
    num_groups, num_examples = len(sizes_G), float(sizes_G.sum())
    whole = num_examples / num_groups
    if num_groups == num_examples or num_groups == 1:
        return whole
    mean = float(gained_G.sum()) / num_examples
    independent = (float(flips_G.sum()) / num_examples - mean**2) / num_examples
    if independent <= 0.0:  # nothing flipped, or everything the same way
        return whole
    over_groups = num_groups / (num_groups - 1) * float(((gained_G - sizes_G * mean) ** 2).sum()) / num_examples**2
    return max(1.0, over_groups / independent)
