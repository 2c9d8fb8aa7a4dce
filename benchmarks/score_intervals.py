"""How often intervals of a difference of scores hold the truth, where few groups of examples differ, or few there are.

    python -m benchmarks.score_intervals

Studies are drawn with a seed: so many groups, so many of which are expected to score differently, by sizes of three shapes,
all one way or one in four the other way. Ours is that of ``lorascope.compare.examples``; studies in which fewer than ten
groups differ have none and are left out (their share is told). Beside it Student's with the degrees of freedom of all groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lorascope.compare.examples import half_width

_STUDIES = 4000
_FEWEST_CHANGED = 10
_CASES = [(10, 10), (20, 20), (100, 12), (100, 20), (100, 40), (872, 12), (872, 20), (872, 40), (872, 100)]
Sizes = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]
# Each with its mean.
_SIZES: dict[str, tuple[Sizes, float]] = {
    "nearly equal": (lambda draw, shape: 1 + 0.1 * draw.normal(size=shape), 1.0),
    "exponential": (lambda draw, shape: draw.exponential(1.0, shape), 1.0),
    "log-normal": (lambda draw, shape: draw.lognormal(0.0, 1.0, shape), math.exp(0.5)),
}


def coverage(num_groups: int, expected: int, up: float, sizes: str) -> tuple[float, float, float]:
    """The share of studies that have an interval, and of those the share in which ours and Student's hold the truth."""
    draw, (sizes_of, mean) = np.random.default_rng(11), _SIZES[sizes]
    rate = expected / num_groups
    shape = (_STUDIES, num_groups)
    changed = draw.random(shape) < rate
    gained = changed * np.where(draw.random(shape) < up, 1.0, -1.0) * sizes_of(draw, shape)
    truth = rate * (2 * up - 1) * mean
    counts = changed.sum(axis=1)
    has_one = counts >= _FEWEST_CHANGED
    # In standard errors.
    off = (np.abs(gained.mean(axis=1) - truth) / stats.sem(gained, axis=1))[has_one]
    ours = {count: half_width(1.0, count) for count in set(counts[has_one].tolist())}
    held = off <= np.array([ours[count] for count in counts[has_one].tolist()])
    return float(has_one.mean()), float(held.mean()), float((off <= half_width(1.0, num_groups)).mean())


def main() -> None:
    """Print a Markdown table: ours, and Student's in brackets."""
    columns = [(way, sizes) for way in ("one way", "both ways") for sizes in _SIZES]
    print(f"| groups, expected to differ | have one | {' | '.join(f'{sizes}, {way}' for way, sizes in columns)} |")
    print(f"|---|---|{'---|' * len(columns)}")
    for num_groups, expected in _CASES:
        found = [coverage(num_groups, expected, 1.0 if way == "one way" else 0.75, sizes) for way, sizes in columns]
        cells = " | ".join(f"{ours:.3f} ({theirs:.3f})" for _, ours, theirs in found)
        print(f"| {num_groups}, {expected} | {found[0][0]:.2f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
