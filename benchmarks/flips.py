"""How often intervals of two shares on the same examples hold the truth, where few examples flip.

    python -m benchmarks.flips

Nothing is drawn: every outcome counts as often as it occurs. Ours is that of ``lorascope.compare.proportions``; Tango's score
interval and Student's of the paired differences are what it is held against. In brackets the mean width, in examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from lorascope.compare.proportions import paired_shares
from lorascope.shapley import CONFIDENCE

_CASES = [(0.5, 0), (1, 0), (2, 0), (4, 0), (8, 0), (20, 0), (1, 1), (3, 1), (4, 4), (8, 4), (12, 3), (30, 30)]
_LEAST_CHANCE = 1e-7
Ends = tuple[float, float]


def ours(up: int, down: int, count: int) -> Ends:
    """As examples that flip are compared."""
    one, other = np.ones(count), np.ones(count)
    other[:up] = 0.0
    one[up : up + down] = 0.0
    found = paired_shares(one, other, np.arange(count))
    return found.low, found.high


def tango(up: int, down: int, count: int) -> Ends:
    """By inverting the score test (Tango 1998)."""
    quantile = float(stats.norm.ppf((1 + CONFIDENCE) / 2))

    def end(up: int, down: int) -> float:
        def margin(delta: float) -> float:
            linear = (2 * count - up + down) * delta - up - down
            root = math.sqrt(max(linear**2 + 8 * count * down * delta * (1 - delta), 0.0))
            variance = (root - linear) / 2 + count * delta * (1 - delta)
            return up - down - count * delta + quantile * math.sqrt(max(variance, 0.0))

        return float(brentq(margin, (up - down) / count + 1e-12, 1.0)) if margin(1.0) < 0.0 else 1.0

    return -end(down, up), end(up, down)


def student(up: int, down: int, count: int) -> Ends:
    """The paired t-test's."""
    difference = (up - down) / count
    error = math.sqrt(max((up + down) / count - difference**2, 0.0) / (count - 1))
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return difference - half, difference + half


def main() -> None:
    """Print a Markdown table."""
    methods: dict[str, Callable[[int, int, int], Ends]] = {"ours": ours, "Tango": tango, "Student": student}
    methods = {name: cache(method) for name, method in methods.items()}
    print(f"| examples | flips expected, up and down | {' | '.join(methods)} |\n|---|---|{'---|' * len(methods)}")
    for count in (100, 872):
        for up, down in _CASES:
            shares = [up / count, down / count, 1 - (up + down) / count]
            held, width = dict.fromkeys(methods, 0.0), dict.fromkeys(methods, 0.0)
            for ups in range(_most(up)):
                for downs in range(_most(down)):
                    chance = float(stats.multinomial.pmf([ups, downs, count - ups - downs], count, shares))
                    if chance < _LEAST_CHANCE:
                        continue
                    for name, method in methods.items():
                        low, high = method(ups, downs, count)
                        held[name] += chance * (low <= shares[0] - shares[1] <= high)
                        width[name] += chance * (high - low) * count
            cells = " | ".join(f"{held[name]:.3f} ({width[name]:.1f})" for name in methods)
            print(f"| {count} | {up:g}, {down:g} | {cells} |", flush=True)


def _most(expected: float) -> int:
    return int(expected + 8 * math.sqrt(expected) + 8) if expected else 1


if __name__ == "__main__":
    main()
