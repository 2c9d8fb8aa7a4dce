"""Two versions of one trained adapter on the same examples: is what separates them more than these examples' luck?

No training lies between the two (one was cut, merged or quantised from the other), so seeds do not matter, and what varies is
the examples alone: a paired t-test over them, or over groups of those that belong together. It says nothing of how another
training would have come out; that is ``study``'s question. Floor: ``compare``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorascope.compare.paired import FEWEST_SEEDS, paired_difference
from lorascope.compare.scores import Ratio, Row, ratios_of


@dataclass(frozen=True)
class OverExamples:
    """The first version's score less the second's.

    Attributes:
        low, high: the 95 % interval over other examples of the same kind; None where no example scored differently, or too
            few did to tell.
        p: two-sided, against no difference; None where the metric is not made of examples' scores.
        changed: groups of examples that scored differently.
        groups: all of them; None where the metric is not made of examples' scores.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    changed: int | None
    groups: int | None


def difference_over_examples(
    metric: str, one: tuple[Sequence[Row], Mapping[str, float]], other: tuple[Sequence[Row], Mapping[str, float]]
) -> OverExamples:
    """Compare one metric of two evaluations of the same examples.

    Args:
        one, other: predictions as ``predictions.jsonl`` has them, and metrics.
    """
    difference = one[1][metric] - other[1][metric]
    ratios = [ratios_of(rows, {metric: metrics[metric]}).get(metric) for rows, metrics in (one, other)]
    first, second = ratios
    if first is None or second is None or first.keys != second.keys or first.groups != second.groups:
        return OverExamples(difference, None, None, None, None, None)
    one_G, other_G = _of_groups(first), _of_groups(second)
    changed = int(np.count_nonzero(np.abs(one_G - other_G) > 1e-9 * np.abs(one_G).max(initial=1e-300)))
    if changed == 0 or len(one_G) < FEWEST_SEEDS:
        return OverExamples(difference, None, None, 1.0 if changed == 0 else None, changed, len(one_G))
    found = paired_difference(one_G[:, None], other_G[:, None])
    low, high = (found.low, found.high) if math.isfinite(found.low) else (None, None)
    return OverExamples(difference, low, high, found.p, changed, len(one_G))


def _of_groups(ratio: Ratio) -> NDArray[np.float64]:
    """One score per group, whose mean is the metric."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(ratio.groups))}
    group_E = np.array([numbers[group] for group in ratio.groups])
    share = len(numbers) / len(group_E)
    return np.asarray(ratio.value + share * np.bincount(group_E, ratio.scores() - ratio.value))
