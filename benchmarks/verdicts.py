"""How often a comparison says ``better`` or ``worse`` of equal configurations, and how often it finds a true gap: simulated.

The truth is known only where it was put in. A margin, in logits, is how easy the example is (shared by all configurations),
what the configuration makes of it (``c``), the seed's shift (``u``) and what the seed makes of the example (``v``); its sign
says right or wrong. Run ``python -m benchmarks.verdicts equal`` or ``gap``; each prints a table of docs/comparisons.md.
``--studies 50`` is a quick look.

Legend: S seeds, E examples.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from lorascope.compare import paired_difference
from lorascope.shapley import CONFIDENCE, holm

# Of how easy examples are; accuracy is 0.84 at u = v = c = 0.
_MEAN, _SPREAD = 1.6, 1.6
# One of so many trainings collapses, and its margins fall by so much.
_COLLAPSE_SHIFT = 1.6


@dataclass(frozen=True)
class World:
    """Standard deviations in logits, and what else differs between the simulated studies."""

    u: float
    v: float
    c: float
    num_examples: int = 872
    collapse: float = 0.0

    def gain(self, gap: float) -> float:
        """The shift of a margin that makes accuracy so much higher."""
        spread = float(np.sqrt(_SPREAD**2 + self.u**2 + self.v**2 + self.c**2))
        return spread * float(ndtri(ndtr(_MEAN / spread) + gap)) - _MEAN

    def study(self, draw: np.random.Generator, num_seeds: int, gains: tuple[float, ...]) -> list[NDArray[np.float64]]:
        """Which examples each configuration is right on, ``[S, E]``."""
        easy_E = draw.normal(_MEAN, _SPREAD, self.num_examples)
        sides = []
        for gain in gains:
            own_E = easy_E + gain + draw.normal(0, self.c, self.num_examples)
            shift_S1 = draw.normal(0, self.u, (num_seeds, 1)) - _COLLAPSE_SHIFT * (draw.random((num_seeds, 1)) < self.collapse)
            margin_SE = own_E + shift_S1 + draw.normal(0, self.v, (num_seeds, self.num_examples))
            sides.append((margin_SE > 0).astype(float))
        return sides


EQUAL = {
    "all the same (`u` 0.03, `v` 0.3, `c` 0)": World(0.03, 0.3, 0.0),
    "seeds that differ more (`u` 0.15)": World(0.15, 0.3, 0.0),
    "equal on average, unlike by example (`c` 0.4)": World(0.03, 0.3, 0.4),
    "one training in ten collapses": World(0.03, 0.3, 0.0, collapse=0.1),
    "100 examples (`c` 0.3)": World(0.03, 0.3, 0.3, num_examples=100),
}
GAPS = {
    "`u` 0.02, `v` 0.11, `c` 0": World(0.02, 0.11, 0.0),
    "`u` 0.02, `v` 0.11, `c` 0.2": World(0.02, 0.11, 0.2),
    "`u` 0.02, `v` 0.11, `c` 0.4": World(0.02, 0.11, 0.4),
    "`u` 0.03, `v` 0.3, `c` 0.2": World(0.03, 0.3, 0.2),
    "`u` 0.03, `v` 0.3, `c` 0.4": World(0.03, 0.3, 0.4),
    "`u` 0.06, `v` 0.11, `c` 0.2": World(0.06, 0.11, 0.2),
}


def equal(num_studies: int) -> None:
    """Four configurations of equal worth, each of three held against the first: studies with any verdict."""
    seeds = (2, 3, 5, 10)
    _heading("", [f"{num} seeds" for num in seeds])
    for name, world in EQUAL.items():
        cells = []
        for num_seeds in seeds:
            draw = np.random.default_rng([num_seeds, list(EQUAL).index(name)])
            any_verdict = any_better = 0
            for _ in range(num_studies):
                baseline, *others = world.study(draw, num_seeds, (0.0,) * 4)
                found = [paired_difference(other, baseline) for other in others]
                clear = [p < 1 - CONFIDENCE for p in holm([each.p for each in found])]
                any_verdict += any(clear)
                any_better += any(yes and each.difference > 0 for yes, each in zip(clear, found, strict=True))
            cells.append(f"{any_verdict / num_studies:.1%} ({any_better / num_studies:.1%})")
        _row(name, cells)


def gap(num_studies: int) -> None:
    """A true gap of two points: found by one comparison, and as one of three."""
    seeds = (3, 5, 10)
    _heading("", ["seeds differ by", "two runs disagree on", *(f"{num} seeds" for num in seeds)])
    for name, world in GAPS.items():
        cells, deviations, disagree = [], [], []
        for num_seeds in seeds:
            draw = np.random.default_rng([num_seeds, list(GAPS).index(name)])
            alone = among = 0
            for _ in range(num_studies):
                baseline, better, *others = world.study(draw, num_seeds, (0.0, world.gain(0.02), 0.0, 0.0))
                found = [paired_difference(other, baseline) for other in (better, *others)]
                alone += found[0].p < 1 - CONFIDENCE and found[0].difference > 0
                among += holm([each.p for each in found])[0] < 1 - CONFIDENCE and found[0].difference > 0
                deviations.append(baseline.mean(axis=1).var(ddof=1))
                disagree.append(np.abs(baseline - better).mean())
            cells.append(f"{alone / num_studies:.0%} ({among / num_studies:.0%})")
        _row(name, [f"{100 * np.sqrt(np.mean(deviations)):.2f} points", f"{np.mean(disagree):.1%}", *cells])


def _heading(first: str, names: list[str]) -> None:
    _row(first, names)
    _row("---", ["---"] * len(names))


def _row(name: str, cells: list[str]) -> None:
    print(f"| {' | '.join((name, *cells))} |", flush=True)


def main() -> None:
    """Print one table, and how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["equal", "gap"])
    parser.add_argument("--studies", type=int, help="of each cell; by default 1,000 (equal) or 500 (gap)")
    arguments = parser.parse_args()
    started = time.perf_counter()
    if arguments.table == "equal":
        equal(arguments.studies or 1000)
    else:
        gap(arguments.studies or 500)
    print(f"\n{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()
