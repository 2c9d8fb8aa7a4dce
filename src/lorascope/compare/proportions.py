"""Two shares of the same examples, each right or wrong: how far they lie apart, and how sure that is.

What separates two versions of one model is a handful of flips among many examples, and of so few events a normal or Student's
interval is too narrow (three flips that all go one way put the end that matters 1.4 times too near). Tango's score interval
holds there, and where nothing flipped at all: 872 examples without a flip leave room for ±0.44 points.

Knows what each side scored on each example. Does not know metrics or files. Floor: ``compare``.

Legend: E examples, G groups of examples that belong together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

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
    gained_G, flips_G = np.bincount(group_E, gained_E), np.bincount(group_E, np.abs(gained_E))
    sizes_G = np.bincount(group_E).astype(np.float64)
    effect = _design_effect(gained_G, flips_G, sizes_G)
    up, down = (float((gained_E == sign).sum()) / effect for sign in (1, -1))
    low, high = score_interval_of_paired_shares(up, down, num_examples / effect)
    favouring = [int((sign * gained_G > 0).sum()) for sign in (1, -1)]
    p = float(stats.binomtest(favouring[0], sum(favouring)).pvalue) if sum(favouring) else 1.0
    if p >= 1 - CONFIDENCE:
        low, high = min(low, 0.0), max(high, 0.0)
    return ShareDifference(float(gained_E.mean()), low, high, p, int((flips_G > 0).sum()), num_groups)


def score_interval_of_paired_shares(up: float, down: float, count: float) -> tuple[float, float]:
    """Tango's interval of ``(up − down) / count`` at ``CONFIDENCE``, by inverting the score test.

    Args:
        up, down: examples that the one has right and the other wrong, and the other way round; need not be whole.
        count: of all examples, at least 1.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17.
    """
    return -_upper_end(down, up, count), _upper_end(up, down, count)


def _upper_end(up: float, down: float, count: float) -> float:
    """The largest difference that the score test does not reject."""
    quantile = float(stats.norm.ppf((1 + CONFIDENCE) / 2))

    def margin(delta: float) -> float:
        """Above zero while ``delta`` is not rejected, for differences above the estimate."""
        linear = (2 * count - up + down) * delta - up - down
        # The likeliest share of flips down, were the difference ``delta``.
        falling = (math.sqrt(max(linear**2 + 8 * count * down * delta * (1 - delta), 0.0)) - linear) / (4 * count)
        variance = count * (2 * falling + delta * (1 - delta))
        return up - down - count * delta + quantile * math.sqrt(max(variance, 0.0))

    # The estimate itself is never rejected; where nothing flipped its statistic is 0/0, so begin just above.
    start = (up - down) / count + 1e-12
    return float(brentq(margin, start, 1.0, xtol=1e-12)) if margin(1.0) < 0.0 else 1.0


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
