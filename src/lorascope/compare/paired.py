"""Two configurations, seed by seed and example by example: how far apart they are, and how sure that is.

Knows arrays of scores. Does not know studies, metrics or files. Floor: ``compare``.

What seed s makes of example e differs between the two by ``δ + seed_s + example_e + rest_se``. The mean over all of it
estimates δ, and its variance has two parts: ``(seed + rest) / S``, known only as well as S seeds tell it, and
``example / E``, known well. A percentile bootstrap over three to five seeds is too narrow by far, and so is Satterthwaite's
approximation (2.6 times the nominal errors at two seeds). The sum of a scarce and a plentiful estimate is the Behrens–Fisher
problem; its fiducial distribution errs on the safe side at every mixture (Robinson 1976), so it is the one used here.

Legend: S seeds, E examples, or groups of examples that belong together; K, L nodes of a quadrature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr, roots_legendre, stdtr, stdtrit

from lorascope.shapley import CONFIDENCE

# With one seed nothing tells how far another seed would have come out elsewhere.
FEWEST_SEEDS = 2
# Differences smaller than this share of the largest score are rounding.
_ROUNDING = 1e-12

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The mean of one's scores less the other's.

    Attributes:
        low, high: the interval that holds the true difference at ``CONFIDENCE``, for this comparison alone; NaN where nothing
            varies, so that nothing tells how far chance reaches.
        p: two-sided, against no difference.
    """

    difference: float
    low: float
    high: float
    p: float


def paired_difference(one_SE: Scores, other_SE: Scores) -> Difference:
    """Compare scores of the same seeds on the same examples.

    With a single column (a figure of the whole dataset) only seeds vary, and the answer holds for these very examples. Figures
    in coarse steps, such as accuracy, may differ by exactly as much under every seed; that makes nothing certain, and then p
    is the sign test's.

    Raises:
        ValueError: shapes differ, there are fewer than ``FEWEST_SEEDS`` rows, or a score is no number.
    """
    if one_SE.shape != other_SE.shape or one_SE.ndim != 2:
        raise ValueError(f"scores of shapes {one_SE.shape} and {other_SE.shape} are not paired")
    num_seeds, num_examples = one_SE.shape
    if num_seeds < FEWEST_SEEDS or num_examples == 0:
        raise ValueError(f"{num_seeds} seeds and {num_examples} examples: at least {FEWEST_SEEDS} and 1 are needed")
    difference_SE = one_SE - other_SE
    if not np.isfinite(difference_SE).all():
        raise ValueError("a score is no number")
    difference = float(difference_SE.mean())
    of_seeds, of_examples = _variances(difference_SE)
    rounding = _ROUNDING * max(float(np.abs(side).max()) for side in (one_SE, other_SE))
    if math.sqrt(of_seeds + of_examples) <= rounding:
        same = abs(difference) <= rounding
        # Examples that are all the same are known to be; one figure may be the same by chance.
        end = difference if same and num_examples > 1 else math.nan
        return Difference(difference, end, end, 1.0 if same else _sign_test(difference_SE, rounding))
    error = math.sqrt(of_seeds + of_examples)
    mixture = _Mixture(of_seeds / (of_seeds + of_examples), num_seeds - 1, max(num_examples - 1, 1))
    half = error * mixture.quantile(1 - CONFIDENCE)
    p = mixture.tails(abs(difference) / error)
    if num_examples > 1:
        p = max(p, _sign_test(difference_SE, rounding))
    return Difference(difference, difference - half, difference + half, p)


def _variances(difference_SE: Scores) -> tuple[float, float]:
    """The two parts of the mean's variance: what more seeds would lessen, and what only more examples would.

    Mean squares of a two-way layout without repetition. Seeds are never taken to vary less than the rest makes them: that
    two of them agree by chance does not show that seeds do not matter.
    """
    num_seeds, num_examples = difference_SE.shape
    seed_S, example_E = difference_SE.mean(axis=1), difference_SE.mean(axis=0)
    of_seeds = float(seed_S.var(ddof=1)) / num_seeds
    if num_examples == 1:
        return of_seeds, 0.0
    rest_SE = difference_SE - seed_S[:, None] - example_E + difference_SE.mean()
    rest = float((rest_SE**2).sum()) / ((num_seeds - 1) * (num_examples - 1)) / (num_seeds * num_examples)
    return max(of_seeds, rest), max(float(example_E.var(ddof=1)) / num_examples - rest, 0.0)


def _sign_test(difference_SE: Scores, rounding: float) -> float:
    """The least p that signs can give, of examples or, of one figure, of seeds: five that favour one side prove nothing."""
    difference_X = difference_SE.mean(axis=0) if difference_SE.shape[1] > 1 else difference_SE[:, 0]
    num_unequal = int(np.count_nonzero(np.abs(difference_X) > rounding))
    return min(1.0, 2.0 ** (1 - num_unequal))


@dataclass(frozen=True)
class _Mixture:
    """``√w·t(few) + √(1 − w)·t(many)``: how far the mean may lie from δ, in standard errors as they were estimated."""

    w: float
    few: int
    many: int

    def tails(self, x: float) -> float:
        """Probability beyond ±x: given the two variances the sum is normal, and these are scaled chi-squares."""
        if self.w in (0.0, 1.0):
            return float(2 * stdtr(self.few if self.w else self.many, -x))
        (few_K, weights_K), (many_L, weights_L) = _chi_squares(self.few, 128), _chi_squares(self.many, 64)
        spread_KL = np.sqrt(self.w / few_K[:, None] + (1.0 - self.w) / many_L)
        return min(1.0, float(2 * weights_K @ ndtr(-x / spread_KL) @ weights_L))

    def quantile(self, probability: float) -> float:
        """The x beyond whose ± lies this probability."""
        farthest = max(float(stdtrit(degrees, 1 - probability / 2)) for degrees in (self.few, self.many))
        # √w + √(1 − w) ≤ √2: of two Cauchys, the sum reaches so much farther than either.
        return float(brentq(lambda x: self.tails(x) - probability, 0.0, 2 * farthest, xtol=1e-7))


@cache
def _chi_squares(degrees: int, num_nodes: int) -> tuple[Scores, Scores]:
    """Nodes and weights that average over chi-square / degrees; near zero, where the tails come from, they lie dense."""
    roots, weights = roots_legendre(num_nodes)
    s = (roots + 1) / 2
    return gammaincinv(degrees / 2, s**4) * 2 / degrees, weights / 2 * 4 * s**3
