"""The document of ``lorascope inspect`` as one picture: maps, energy against rank, overlap, drift. Floor: ``analysis``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from operator import itemgetter
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from lorascope.analysis.figures import FIGURES, SIDE_TITLES, SIMILARITY, Figure, Grid, Span, grid_of, leading_of, span_of

# Beyond so many cells a map carries colours alone.
_MOST_NUMBERS = 400
_CELL_INCHES = 0.24
_DPI = 150
# The same document gives the same bytes.
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "lorascope",
    "svg.fonttype": "none",
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "text.parse_math": False,
}

Panel = Callable[[Axes], None]


def picture(document: Mapping[str, Any], figures: Sequence[str], form: str) -> bytes:
    """Draw the document: a row for each adapter, then one for their overlap and one for hidden states, where there are these.

    Args:
        figures: keys of ``FIGURES``, a map each.
        form: ``svg`` or ``png``.

    Returns:
        The file's bytes.
    """
    adapters = document["adapters"]
    grids = {name: [grid_of(adapter["modules"], itemgetter(name)) for adapter in adapters] for name in figures}
    rows = [_adapter_row(adapter, {name: grids[name][i] for name in figures}, grids) for i, adapter in enumerate(adapters)]
    if document["overlap"] is not None:
        rows.append(_overlap_row(document["overlap"], [adapter["label"] for adapter in document["adapters"]]))
    if document["representations"] is not None:
        rows.append(_drift_row(document["representations"]))
    heights = [height for height, _ in rows]
    num_columns = max(len(panels) for _, panels in rows)
    with matplotlib.rc_context(_SETTINGS):
        canvas = Canvas(figsize=(_width(document) * num_columns, sum(heights)), layout="constrained")
        axes = canvas.subplots(len(rows), num_columns, squeeze=False, height_ratios=heights)
        for row, (_, panels) in zip(axes, rows, strict=True):
            for place, panel in zip(row, panels, strict=False):
                panel(place)
            for place in row[len(panels) :]:
                place.set_axis_off()
        target = BytesIO()
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        canvas.savefig(target, format=form, dpi=_DPI, metadata=metadata)
    return target.getvalue()


def _width(document: Mapping[str, Any]) -> float:
    """Inches of a column: a map's cells and its scale."""
    most = max(len({row["kind"] for row in adapter["modules"]}) for adapter in document["adapters"])
    return max(4.2, 0.5 * most + 1.4)


def _adapter_row(
    adapter: Mapping[str, Any], own: Mapping[str, Grid], all_grids: Mapping[str, Sequence[Grid]]
) -> tuple[float, list[Panel]]:
    """An adapter's maps, in the colours of all adapters', and its energy."""

    def draw(axes: Axes, name: str) -> None:
        title = f"{adapter['label']}: {FIGURES[name].title}"
        _draw_map(axes, own[name], FIGURES[name], title, span_of(all_grids[name]))

    panels: list[Panel] = [partial(draw, name=name) for name in own]
    return _height(max(len(grid.rows) for grid in own.values())), [*panels, lambda axes: _draw_energy(axes, adapter)]


def _height(num_layers: int) -> float:
    return max(2.6, _CELL_INCHES * num_layers + 1.3)


def _draw_map(axes: Axes, grid: Grid, figure: Figure, title: str, span: Span) -> None:
    low, high = span
    # NaN marks a module that a layer does not have: it stays blank.
    values = np.array([[math.nan if value is None else value for value in row] for row in grid.values], dtype=float)
    image = axes.imshow(values, cmap="viridis", vmin=low, vmax=high if high > low else low + 1.0, aspect="auto")
    axes.set_xticks(range(len(grid.columns)), grid.columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(grid.rows)), grid.rows)
    axes.set_title(title)
    if values.size <= _MOST_NUMBERS:
        for i, row in enumerate(grid.values):
            for j, value in enumerate(row):
                if value is not None:
                    dark = value <= low + 0.6 * (high - low)
                    colour = "white" if dark else "black"
                    axes.text(j, i, figure.text(value), ha="center", va="center", color=colour, fontsize=6)
    axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)


def _draw_energy(axes: Axes, adapter: Mapping[str, Any]) -> None:
    """Share of ``‖ΔW‖²`` kept at each rank, a line for each kind of module: the mean over layers."""
    kinds: dict[str, list[list[float]]] = {}
    for row in adapter["modules"]:
        if row["energy"]:
            kinds.setdefault(row["kind"], []).append(row["energy"])
    for kind, curves in kinds.items():
        longest = max(map(len, curves))
        padded = np.array([[*curve, *[1.0] * (longest - len(curve))] for curve in curves])
        axes.plot(range(1, longest + 1), padded.mean(axis=0), marker=".", linewidth=1.0, label=kind)
    axes.set_xlabel("rank kept")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("share of ‖ΔW‖²")
    axes.set_ylim(0.0, 1.03)
    axes.set_title(f"{adapter['label']}: energy kept at each rank")
    axes.grid(alpha=0.3)
    if kinds:
        axes.legend(fontsize=6, loc="lower right")


def _overlap_row(overlap: Mapping[str, Any], labels: Sequence[str]) -> tuple[float, list[Panel]]:
    """Of two adapters the maps of both sides; of more the means of all pairs."""
    pairs = overlap["pairs"]
    grids: dict[str, Grid] = {}
    for side in SIDE_TITLES:
        if len(pairs) == 1:
            grids[side] = grid_of(pairs[0]["modules"], leading_of(side))
        else:
            grids[side] = _pair_grid(pairs, labels, side)
    panels: list[Panel] = [
        partial(_draw_overlap, grid=grid, title=f"overlap of leading directions, {SIDE_TITLES[side]}")
        for side, grid in grids.items()
    ]
    if len(pairs) == 1:
        return _height(max(len(grid.rows) for grid in grids.values())), panels
    return max(2.8, 0.35 * len(labels) + 1.6), panels


def _pair_grid(pairs: Sequence[Mapping[str, Any]], labels: Sequence[str], side: str) -> Grid:
    """Adapters against adapters."""
    means = {(pair["first"], pair["second"]): pair["mean"][side]["leading"] for pair in pairs}
    values = [[means.get((one, other), means.get((other, one))) for other in labels] for one in labels]
    return Grid(list(labels), list(labels), values)


def _draw_overlap(axes: Axes, grid: Grid, title: str) -> None:
    if not grid.rows:
        axes.set_title(f"{title}: no module is shared")
        axes.set_axis_off()
        return
    _draw_map(axes, grid, SIMILARITY, title, (0.0, 1.0))


def _drift_row(found: Mapping[str, Any]) -> tuple[float, list[Panel]]:
    def draw(axes: Axes, figure: str, title: str) -> None:
        for adapter in found["adapters"]:
            drifts = adapter["layers"]
            values = [math.nan if drift[figure] is None else drift[figure] for drift in drifts]
            axes.plot(range(len(drifts)), values, marker=".", linewidth=1.0, label=adapter["label"])
        names = [drift["layer"].replace("layer ", "") for drift in found["adapters"][0]["layers"]]
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_xlabel("layer")
        axes.set_title(f"{title} ({found['task']}, {found['split']})")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)

    return 2.8, [
        lambda axes: draw(axes, "cka_debiased", "linear CKA of adapter and base, debiased"),
        lambda axes: draw(axes, "relative_norm", "hidden states moved, ‖h_a − h_b‖ / ‖h_b‖"),
    ]
