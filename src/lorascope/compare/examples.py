"""Two trained models on the same examples: is what separates them more than these examples' luck?

No seeds are compared: the two are one training (one was cut, merged or quantised from the other), or two trainings taken for
what they are. What varies is the examples alone, or groups of those that belong together. It says nothing of how another
training would have come out; that is ``study``'s question.

Examples that are right or wrong are compared as paired shares (``proportions``). Scores with more values than two have
Student's interval of their differences, where ten groups at least differ, with the degrees of freedom of those that do: what
is nearly always zero has its spread from the few others. Simulated, it holds the truth in 93 to 98 % where differences go both
ways, and in 84 to 97 % where all go one way and few of them are large (``benchmarks/score_intervals.py``). Floor: ``compare``.

Legend: E examples, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from lorascope.compare.proportions import paired_shares
from lorascope.compare.scores import Ratio, Row, ratios_of
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.shapley import CONFIDENCE

# A spread is not known from a handful of differences, whether the others are zero or there are no others.
_FEWEST_CHANGED = 10
# Scores that differ by less than this share of the largest are the same.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class OverExamples:
    """The first version's score less the second's.

    Attributes:
        low, high: the 95 % interval over other examples of the same kind; None where nothing tells it.
        p: two-sided, against no difference, and never below what signs alone can give; None where the metric is not made of
            examples' scores.
        changed: groups of examples that scored differently.
        groups: all of them; None where the metric is not made of examples' scores.
        method: how the interval came about, or why there is none, in a few words.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    changed: int | None
    groups: int | None
    method: str


def difference_over_examples(
    metric: str, one: tuple[Sequence[Row], Mapping[str, float]], other: tuple[Sequence[Row], Mapping[str, float]]
) -> OverExamples:
    """Compare one metric of two evaluations of the same examples.

    Args:
        one, other: predictions as ``predictions.jsonl`` has them, and metrics.
    """
    difference = one[1][metric] - other[1][metric]
    first, second = (ratios_of(rows, {metric: metrics[metric]}).get(metric) for rows, metrics in (one, other))
    if first is None or second is None or first.keys != second.keys or first.groups != second.groups:
        return OverExamples(difference, None, None, None, None, None, "none: the metric is no sum over examples")
    if first.is_share and second.is_share and bool((first.counts_E == second.counts_E).all()):
        return _of_shares(difference, first, second)
    return _of_scores(difference, first, second)


def loss_over_examples(
    metric: str, epsilon: float, whole: tuple[Sequence[Row], Mapping[str, float]],
    cut: tuple[Sequence[Row], Mapping[str, float]],
) -> dict[str, Any]:  # fmt: skip
    """By how much ``cut`` is worse than what it was made of, and what that says of other examples.

    The interval takes the examples for others than those that the cut was chosen on. Where it was searched on these very ones,
    the loss looks a little smaller than it is, and no share of confidence is claimed.

    Args:
        epsilon: the loss that is allowed, in the metric's unit.
        whole, cut: as ``difference_over_examples`` takes them.

    Returns:
        What JSON can hold: ``loss``, positive where the cut is worse, its interval, and ``verdict`` in words.
    """
    found = difference_over_examples(metric, whole, cut)
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    ends = None if found.low is None or found.high is None else sorted((sign * found.low, sign * found.high))
    if ends is None and found.changed == 0:
        verdict = "no example scores differently"
    elif ends is None:
        verdict = "it holds for these very examples; nothing tells how far others would differ"
    elif ends[1] <= epsilon:
        verdict = "it would most probably hold for other examples of the same kind too"
    else:
        verdict = "it holds for these examples; for others of the same kind the interval does not exclude a larger loss"
    record = {name: value for name, value in asdict(found).items() if name not in ("difference", "low", "high")}
    low, high = ends or (None, None)
    return {"loss": sign * found.difference, "low": low, "high": high, **record, "verdict": verdict}


def _of_shares(difference: float, one: Ratio, other: Ratio) -> OverExamples:
    """Each example right or wrong on either side."""
    counted = np.flatnonzero(one.counts_E).tolist()
    one, other = one.select(counted), other.select(counted)
    found = paired_shares(one.numerators_E, other.numerators_E, one.group_numbers())
    low, high = one.scale * found.low, one.scale * found.high
    method = f"Newcombe's square-and-add, {_among(found.groups, len(counted))}"
    return OverExamples(difference, low, high, found.p, found.changed, found.groups, method)


def _of_scores(difference: float, one: Ratio, other: Ratio) -> OverExamples:
    """Scores of any size."""
    one_G, other_G = one.group_scores(), other.group_scores()
    gained_G, num_groups = one_G - other_G, len(one_G)
    changed = int(np.count_nonzero(np.abs(gained_G) > _ROUNDING * np.abs(one_G).max(initial=1e-300)))
    among = _among(num_groups, len(one.keys))
    if changed == 0:
        return OverExamples(difference, None, None, 1.0, 0, num_groups, f"none: {among} score the same")
    least = min(1.0, 2.0 ** (1 - changed))
    if changed < _FEWEST_CHANGED:
        method = f"none: {changed} of {among} score differently, which is too few"
        return OverExamples(difference, None, None, least, changed, num_groups, method)
    error = float(stats.sem(gained_G))
    if error <= _ROUNDING * abs(difference):
        return OverExamples(difference, None, None, least, changed, num_groups, f"none: {among} differ by exactly as much")
    half = half_width(error, changed)
    p = max(least, float(2 * stats.t.sf(abs(difference) / error, changed - 1)))
    return OverExamples(difference, difference - half, difference + half, p, changed, num_groups, f"Student, {among}")


def half_width(error: float, changed: int) -> float:
    """Half of the interval of a mean of differences, at ``CONFIDENCE``.

    Args:
        error: the mean's standard error, from all of them.
        changed: how many are not zero, two at least.
    """
    return error * float(stats.t.ppf((1 + CONFIDENCE) / 2, changed - 1))


def _among(num_groups: int, num_examples: int) -> str:
    return f"{num_examples} examples" if num_groups == num_examples else f"{num_groups} groups of {num_examples} examples"
