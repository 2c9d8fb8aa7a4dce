"""What the figures of updates are called, how they are written, and how they lie on a map of layers and modules.

Needs neither torch nor adapters, only their documents. Floor: ``analysis``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A figure of an update: its title, and how its number is written."""

    title: str
    form: str

    def text(self, value: float | None) -> str:
        """The number in a cell; a dash where there is none."""
        return "–" if value is None else format(value, self.form)


# By their keys in the document of an update.
FIGURES = {
    "effective_rank": Figure("effective rank", ".1f"),
    "stable_rank": Figure("stable rank", ".1f"),
    "utilisation": Figure("effective rank / r", ".2f"),
    "numerical_rank": Figure("numerical rank", "d"),
    "rank_for_90": Figure("rank that keeps 90 % of the energy", "d"),
    "rank_for_99": Figure("rank that keeps 99 % of the energy", "d"),
    "r": Figure("r", "d"),
    "norm": Figure("‖ΔW‖ (Frobenius)", ".3g"),
    "spectral_norm": Figure("‖ΔW‖₂ (spectral)", ".3g"),
    "nuclear_norm": Figure("‖ΔW‖* (nuclear)", ".3g"),
    "mean": Figure("mean of ΔW", ".1e"),
    "std": Figure("standard deviation of ΔW", ".1e"),
}
SIMILARITY = Figure("similarity", ".2f")
SIDE_TITLES = {"left": "outputs written", "right": "inputs read"}


Span = tuple[float, float]


@dataclass(frozen=True)
class Grid:
    """A map: ``values[i][j]`` belongs to row i, a layer, and column j, a module; None where there is none."""

    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]


def grid_of(records: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float | None]) -> Grid:
    """A map of records that each say their ``layer`` and ``kind``; modules outside the layers come last."""
    layers = sorted({row["layer"] for row in records}, key=lambda layer: (layer is None, layer))
    kinds = list(dict.fromkeys(row["kind"] for row in records))
    values = {(row["layer"], row["kind"]): value(row) for row in records}
    names = ["other" if layer is None else str(layer) for layer in layers]
    return Grid(names, kinds, [[values.get((layer, kind)) for kind in kinds] for layer in layers])


def span_of(grids: Iterable[Grid]) -> Span:
    """The smallest and the largest value of maps that share a scale; zeros where there is none."""
    known = [value for grid in grids for row in grid.values for value in row if value is not None]
    return (min(known), max(known)) if known else (0.0, 0.0)


def leading_of(side: str) -> Callable[[Mapping[str, Any]], float | None]:
    """What a map of two adapters' overlap shows of a module."""
    return lambda row: None if row[side] is None else row[side]["leading"]
