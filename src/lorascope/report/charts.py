"""The pictures of a report: values with intervals, differences, curves, spectra, heat maps.

Each is a function from figures to SVG with a text that says the same. Colours are the page's classes, so that dark and printed
pages have their own. Floor: ``report``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lorascope.report import svg
from lorascope.report.words import MINUS, listed

WIDTH = 360.0
_ROW = 26.0
_LABEL_MOST = 132.0
PLOT_HEIGHT = 206.0
Place = tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """A figure with its interval.

    Attributes:
        written: the figure as text.
        kind: ``strong`` or ``plain``: how it is drawn.
    """

    label: str
    value: float
    low: float | None
    high: float | None
    written: str
    kind: str = "strong"


def bars(rows: Sequence[Bar], axis: str, says: str) -> Markup:
    """Horizontal bars from zero, each with its interval and its figure."""
    left, right = _label_width(rows), _figure_width(rows)
    height = _ROW * len(rows) + 44
    plot = svg.scale_of(_ends(rows), left + 8, WIDTH - right, zero=True, margin=0.04)
    bottom = _ROW * len(rows) + 4
    parts = [*svg.x_axis(plot, bottom, axis, top=2.0)]
    for index, row in enumerate(rows):
        y = _ROW * index + 4
        start, end = sorted((plot(0.0), plot(row.value)))
        kind = "bar" if row.kind == "strong" else "bar quiet"
        parts.append(svg.tag("rect", x=start, y=y + 4, width=max(end - start, 0.5), height=_ROW - 9, class_=kind, rx=1.5))
        parts += _whisker(plot, row, y + _ROW / 2 - 0.5)
        parts += _row_texts(row, left, y)
    parts.append(svg.line(plot(0.0), 2, plot(0.0), bottom, "zero"))
    return svg.picture(WIDTH, height, says, *parts)


def differences(rows: Sequence[Bar], axis: str, says: str) -> Markup:
    """Points with intervals against zero: a filled one where the difference can be told from chance."""
    left, right = _label_width(rows), _figure_width(rows)
    bottom = _ROW * len(rows) + 4
    plot = svg.scale_of(_ends(rows), left + 8, WIDTH - right, zero=True, margin=0.04)
    parts = [*svg.x_axis(plot, bottom, axis, top=2.0), svg.line(plot(0.0), 2, plot(0.0), bottom, "zero")]
    for index, row in enumerate(rows):
        y = _ROW * index + 4
        parts += _whisker(plot, row, y + _ROW / 2 - 0.5, "interval" if row.kind == "strong" else "interval quiet")
        kind = "dot" if row.kind == "strong" else "dot hollow"
        parts.append(svg.tag("circle", cx=plot(row.value), cy=y + _ROW / 2 - 0.5, r=4, class_=kind))
        parts += _row_texts(row, left, y)
    return svg.picture(WIDTH, bottom + 40, says, *parts)


def _ends(rows: Sequence[Bar]) -> list[float]:
    return [end for row in rows for end in (row.value, row.low, row.high) if end is not None]


def _label_width(rows: Sequence[Bar]) -> float:
    return min(max(svg.width_of(row.label) for row in rows), _LABEL_MOST)


def _figure_width(rows: Sequence[Bar]) -> float:
    return max(svg.width_of(row.written) for row in rows) + 10


def _whisker(plot: svg.Scale, row: Bar, y: float, class_: str = "interval") -> list[Markup]:
    if row.low is None or row.high is None:
        return []
    low, high = plot(row.low), plot(row.high)
    ends = [svg.line(x, y - 3.5, x, y + 3.5, class_) for x in (low, high)]
    return [svg.line(low, y, high, y, class_), *ends]


def _row_texts(row: Bar, left: float, y: float) -> list[Markup]:
    label = svg.fitted(row.label, left + 4)
    tip = [svg.tip(row.label)] if label != row.label else []
    baseline = y + _ROW / 2 + 3.5
    return [
        svg.tag("text", label, *tip, x=left, y=baseline, text_anchor="end", font_size=svg.TEXT),
        svg.text(WIDTH, baseline, row.written, anchor="end", class_="figure"),
    ]


# Curves


@dataclass(frozen=True)
class Series:
    """A curve and points measured beside it.

    Attributes:
        kind: ``best``, ``baseline`` or nothing: how it is drawn.
    """

    label: str
    points: Sequence[Place]
    measured: Sequence[Place] = ()
    kind: str = ""


_CLASSES = {"best": "curve strong", "baseline": "curve second", "": "curve quiet"}


def curves(series: Sequence[Series], x_title: str, y_title: str, says: str) -> Markup:
    """All curves on one plot, the best and the baseline in front; diamonds are losses on the evaluation split."""
    x, y = _curve_scales(series, (44, WIDTH - 10), (PLOT_HEIGHT, 26))
    parts = [*svg.y_axis(y, x.start, x.end), *svg.x_axis(x, PLOT_HEIGHT, x_title)]
    parts.append(svg.text(4, 12, y_title, class_="faint", size=svg.SMALL))
    for one in sorted(series, key=lambda one: ("", "baseline", "best").index(one.kind)):
        drawn = [(x(step), y(loss)) for step, loss in one.points]
        parts.append(svg.tag("g", svg.tip(one.label), svg.path(drawn, _CLASSES[one.kind])))
        if one.kind:
            parts += _measured(one, x, y)
    return svg.picture(WIDTH, PLOT_HEIGHT + 38, says, *parts)


def _measured(one: Series, x: svg.Scale, y: svg.Scale) -> list[Markup]:
    places = [(x(step), y(loss)) for step, loss in one.measured]
    kind = "diamond" if one.kind != "baseline" else "diamond second"
    parts = [svg.path(places, "dotted")] if len(places) > 1 else []
    return [*parts, *(svg.tag("path", d=_diamond(*place), class_=kind) for place in places)]


def _diamond(x: float, y: float, size: float = 4.5) -> str:
    return f"M{x:.1f} {y - size:.1f}L{x + size:.1f} {y:.1f}L{x:.1f} {y + size:.1f}L{x - size:.1f} {y:.1f}Z"


def _curve_scales(series: Sequence[Series], across: Place, down: Place) -> tuple[svg.Scale, svg.Scale]:
    steps = [step for one in series for step, _ in (*one.points, *one.measured)]
    losses = [loss for one in series for _, loss in (*one.points, *one.measured)]
    is_log = min(losses) > 0 and max(losses) / min(losses) > 50
    last = max(steps)
    x = svg.Scale(min(0.0, *steps), last if last > 0 else 1.0, *across)
    return x, svg.scale_of(losses, *down, log=is_log, margin=0.04)


_SMALL = (150.0, 84.0)


def small_curves(series: Sequence[Series], name: str) -> list[Markup]:
    """One small plot for each curve, all on one scale, with the others behind it in grey.

    Args:
        name: an id for the page, under which the grey curves are drawn once.
    """
    wide, high = _SMALL
    x, y = _curve_scales(series, (2, wide - 6), (high - 4, 6))
    behind = [svg.path([(x(step), y(loss)) for step, loss in _thinned(one.points)], "curve ghost") for one in series]
    plots = []
    for index, one in enumerate(series):
        others = svg.tag("g", *behind, id=name) if index == 0 else svg.tag("use", href=f"#{name}")
        drawn = svg.path([(x(step), y(loss)) for step, loss in one.points], "curve strong")
        end = f"{one.points[-1][1]:.3g}"
        measured = f", {one.measured[-1][1]:.3g} on the evaluation split" if one.measured else ""
        says = f"{one.label}: training loss from {one.points[0][1]:.3g} to {end}{measured}"
        parts = [svg.line(2, high - 3, wide - 2, high - 3, "axis"), others, drawn, *_measured(one, x, y)]
        plots.append(svg.picture(wide, high, says, *parts, most=1.6))
    return plots


def _thinned(points: Sequence[Place], most: int = 40) -> list[Place]:
    step = max(1, math.ceil(len(points) / most))
    return [*points[::step], points[-1]]


def course(values: Sequence[tuple[int, float | None, float | None]], y_title: str, says: str) -> Markup:
    """How a search's best score grew: a point for each configuration, and the best until then as a line."""
    scored = [(number, score, best) for number, score, best in values if score is not None and best is not None]
    x = svg.Scale(0.0, float(values[-1][0]) + 0.5, 44, WIDTH - 10)
    y = svg.scale_of([score for _, score, _ in scored], PLOT_HEIGHT, 26)
    parts = [*svg.y_axis(y, x.start, x.end), *svg.x_axis(x, PLOT_HEIGHT, "configurations proposed")]
    parts.append(svg.text(4, 12, y_title, class_="faint", size=svg.SMALL))
    stairs: list[Place] = []
    for number, _, best in scored:
        stairs += [(x(number), stairs[-1][1])] if stairs else []
        stairs.append((x(number), y(best)))
    parts.append(svg.path([*stairs, (x.end, stairs[-1][1])], "front"))
    for number, score, best in scored:
        kind = "dot" if score == best else "dot hollow"
        parts.append(svg.tag("circle", svg.tip(f"{number}: {score:.4g}"), cx=x(number), cy=y(score), r=4, class_=kind))
    return svg.picture(WIDTH, PLOT_HEIGHT + 38, says, *parts)


# Spectra

_SPECTRUM = (200.0, 118.0)
# Lines of the first layer are so faint, those of the last one full.
_FIRST_LAYER = 0.3
# Ranks up to which every value has a dot.
_MOST_DOTS = 16


@dataclass(frozen=True)
class Spectrum:
    """Singular values of the updates of one kind of module, by layer, each falling.

    Attributes:
        lines: (layer, its singular values), first layer first.
    """

    label: str
    lines: Sequence[tuple[str, Sequence[float]]]


def spectra(ones: Sequence[Spectrum], says: Sequence[str]) -> list[Markup]:
    """One small plot for each kind, all on one scale: singular values by their number, a line for each layer."""
    wide, high = _SPECTRUM
    values = [value for one in ones for _, line in one.lines for value in line]
    most = max(len(line) for one in ones for _, line in one.lines)
    x = svg.Scale(1.0, float(max(most, 2)), 42, wide - 8)
    y = svg.scale_of(values, high - 18, 8, zero=True)
    return [_spectrum(one, x, y, most, told) for one, told in zip(ones, says, strict=True)]


def _spectrum(one: Spectrum, x: svg.Scale, y: svg.Scale, most: int, says: str) -> Markup:
    wide, high = _SPECTRUM
    parts = [*svg.y_axis(y, 36, wide - 2, most=3), svg.line(36, y(0.0), wide - 2, y(0.0), "axis")]
    for number in dict.fromkeys((1, most)):
        parts.append(svg.text(x(number), high - 4, str(number), anchor="middle", class_="faint", size=svg.SMALL))
    for index, (layer, line) in enumerate(one.lines):
        depth = index / (len(one.lines) - 1) if len(one.lines) > 1 else 1.0
        opacity = round(_FIRST_LAYER + (1.0 - _FIRST_LAYER) * depth, 2)
        places = [(x(number), y(value)) for number, value in enumerate(line, 1)]
        dots = [svg.tag("circle", cx=across, cy=down, r=1.7) for across, down in places] if most <= _MOST_DOTS else []
        drawn = [svg.path(places, "spectrum"), svg.tag("g", *dots, class_="spectrum-dots")]
        told = svg.tip(f"{layer}: {', '.join(f'{value:.3g}' for value in line[:8])}{', …' if len(line) > 8 else ''}")
        parts.append(svg.tag("g", told, *drawn, opacity=opacity))
    return svg.picture(wide, high, says, *parts)


# Heat maps


@dataclass(frozen=True)
class Heat:
    """A map of figures by row and column; None where there is none.

    Attributes:
        span: the figure that has the full colour.
        write: a figure as text in its cell.
        row_title, column_title: what the rows and the columns are.
        is_flipped: figures below zero have the first colour, those above it the second.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    span: float
    write: Callable[[float], str]
    row_title: str = ""
    column_title: str = ""
    is_flipped: bool = False


def heat_map(heat: Heat, says: str) -> Markup:
    """Cells whose colour is the figure; with the figure in it where there is room, else for a pointer."""
    left = min(max(svg.width_of(name, svg.SMALL) for name in (*heat.rows, heat.row_title)), 110.0) + 10
    top = 34.0 if heat.column_title else 20.0
    written = [heat.write(value) for row in heat.values for value in row if value is not None]
    room = (WIDTH - left) / len(heat.columns)
    needed = max([svg.width_of(text, svg.SMALL) for text in written] or [0.0]) + 6
    wide = min(room, max(needed, 46.0))
    high = 24.0 if len(heat.rows) <= 16 else 15.0
    has_text = needed <= wide and high > 20
    parts = []
    for index, name in enumerate(heat.columns):
        middle = left + wide * (index + 0.5)
        shown = svg.fitted(name, wide, svg.SMALL) if wide > 22 else ""
        tip = [svg.tip(name)] if shown != name else []
        parts.append(
            svg.tag("text", shown, *tip, x=middle, y=top - 6, text_anchor="middle", class_="faint", font_size=svg.SMALL)
        )
    for row, name in enumerate(heat.rows):
        y = top + high * row
        label = svg.fitted(name, left - 6, svg.SMALL)
        parts.append(svg.text(left - 7, y + high / 2 + 3.5, label, anchor="end", class_="faint", size=svg.SMALL))
        for column, value in enumerate(heat.values[row]):
            if value is not None:
                place = (left + wide * column, y, wide, high)
                parts += _cell(heat, value, place, f"{name}, {heat.columns[column]}", has_text)
    if heat.column_title:
        parts.append(svg.text(left, 12, heat.column_title, class_="faint", size=svg.SMALL))
    if heat.row_title:
        parts.append(svg.text(left - 7, top - 6, heat.row_title, anchor="end", class_="faint", size=svg.SMALL))
    return svg.picture(max(left + wide * len(heat.columns), 200), top + high * len(heat.rows) + 2, says, *parts)


def _cell(heat: Heat, value: float, place: tuple[float, float, float, float], where: str, has_text: bool) -> list[Markup]:
    x, y, wide, high = place
    share = min(abs(value) / heat.span, 1.0) if heat.span else 0.0
    # The page's style holds the deepest colour back so far that the figure in it stays readable in its one colour.
    opacity = round(0.07 + 0.93 * share, 3)
    told = svg.tip(f"{where}: {heat.write(value)}")
    kind = "cell" if value == 0 or (value > 0) != heat.is_flipped else "cell below"
    parts = [svg.tag("rect", told, x=x + 1, y=y + 1, width=wide - 2, height=high - 2, class_=kind, fill_opacity=opacity, rx=2)]
    if has_text:
        middle = x + wide / 2, y + high / 2 + 3.5
        parts.append(svg.text(*middle, heat.write(value), anchor="middle", class_="cell-text", size=svg.SMALL))
    return parts


def heat_says(title: str, heat: Heat) -> str:
    """The largest cells of a map in words."""
    cells = [
        (value, f"{row}, {column}")
        for row, values in zip(heat.rows, heat.values, strict=True)
        for column, value in zip(heat.columns, values, strict=True)
        if value is not None
    ]
    most = sorted(cells, key=lambda cell: -abs(cell[0]))[:3]
    told = listed([f"{where} {heat.write(value)}" for value, where in most])
    return f"{title}: {len(heat.rows)} × {len(heat.columns)} cells; largest: {told}"


def signed(decimals: int) -> Callable[[float], str]:
    """Writes ``+0.12`` and ``−0.12``."""
    return lambda value: f"{value:+.{decimals}f}".replace("-", MINUS)


def plain(form: str) -> Callable[[float], str]:
    """Writes a figure as a format says."""
    return lambda value: format(value, form)


def legend(kinds: Mapping[str, str]) -> list[tuple[Markup, str]]:
    """Small signs, by the class of what they stand for, and what they mean."""
    signs = {
        "best": svg.path([(1, 7), (25, 7)], "curve strong"),
        "baseline": svg.path([(1, 7), (25, 7)], "curve second"),
        "other": svg.path([(1, 7), (25, 7)], "curve quiet"),
        "measured": svg.tag("path", d=_diamond(13, 7), class_="diamond"),
        "front": svg.tag("circle", cx=13, cy=7, r=4.5, class_="dot"),
        "beaten": svg.tag("circle", cx=13, cy=7, r=4.5, class_="dot hollow"),
        "short": svg.tag("circle", cx=13, cy=7, r=4.5, class_="dot hollow short"),
        "ring": svg.tag("circle", cx=13, cy=7, r=6, class_="ring"),
        "interval": svg.path([(13, 1), (13, 13)], "interval"),
        "cut": svg.path([(13, 13), (13, 1), (10, 5), (13, 1), (16, 5)], "interval"),
    }
    return [
        (svg.tag("svg", signs[kind], viewBox="0 0 26 14", width=26, height=14, aria_hidden="true", class_="sign"), meaning)
        for kind, meaning in kinds.items()
    ]
