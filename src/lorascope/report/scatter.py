"""Score against cost: points with their intervals, the Pareto front among them, names where there is room.

Floor: ``report``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lorascope.report import svg
from lorascope.report.charts import PLOT_HEIGHT, WIDTH, Place
from lorascope.report.words import compact, shortened


@dataclass(frozen=True)
class Point:
    """A configuration: what it costs, and what it scores.

    Attributes:
        cost: of one kind.
        is_baseline: it has a ring.
        is_short: some of its seeds have no score, so its mean is held against nothing.
    """

    label: str
    cost: float
    score: float
    low: float | None
    high: float | None
    is_baseline: bool = False
    is_short: bool = False


def front(points: Sequence[Point], higher: bool, equal: float = 0.0) -> list[Point]:
    """The points that none beats at the same cost or less, cheapest first; only of those with every seed.

    Args:
        equal: a part of its cost; what saves no more than that beside a point of the front saves nothing.
    """
    sign = -1.0 if higher else 1.0
    found: list[Point] = []
    for point in sorted((point for point in points if not point.is_short), key=lambda one: (sign * one.score, one.cost)):
        if not found or point.cost * (1.0 + equal) < found[-1].cost:
            found.append(point)
    return found[::-1]


def num_cut(points: Sequence[Point]) -> int:
    """How many intervals go on beyond the frame, where an arrow says so."""
    y = _down(points)
    return sum(_is_below(point, y) or _is_above(point, y) for point in points)


def is_broken(points: Sequence[Point]) -> bool:
    """Whether the axis of the costs has a break."""
    return bool(_across(points).far)


def against_cost(points: Sequence[Point], best: Sequence[Point], x_title: str, y_title: str, says: str) -> Markup:
    """Points with the seeds' intervals; those of the front (``best``) are filled, joined and named where there is room."""
    x, y = _across(points), _down(points)
    parts = [*svg.y_axis(y, _LEFT, _RIGHT), *svg.x_axis(x.scale, PLOT_HEIGHT, x_title), *_break(x)]
    parts.append(svg.text(4, 12, y_title, class_="faint", size=svg.SMALL))
    parts += [_front_line(best, x, y)] if best else []
    for point in sorted(points, key=lambda point: point in best):
        parts += _drawn(point, x, y, point in best)
    return svg.picture(WIDTH, PLOT_HEIGHT + 38, says, *parts, *_names(best, points, x, y))


# Scales

_LEFT, _RIGHT = 44.0, WIDTH - 10
_LOG_FROM = 12.0
# A strip for costs far from all others, and the gap with the sign of the break.
_STRIP, _GAP = 30.0, 14.0
# The rest has to lie on so small a part of the axis; so many may be far, and so far apart, of the gap.
_HEAP = 0.25
_FAR_MOST = 0.2
_ALIKE = 0.1


@dataclass(frozen=True)
class _Across:
    """From costs to places.

    Attributes:
        far: costs that stand in a strip of their own at one end, at ``place``; rising.
    """

    scale: svg.Scale
    far: tuple[float, ...] = ()
    place: float = 0.0

    def __call__(self, cost: float) -> float:
        return self.place if cost in self.far else self.scale(cost)


def _across(points: Sequence[Point]) -> _Across:
    costs = sorted(point.cost for point in points)
    is_log = costs[0] > 0 and costs[-1] / costs[0] >= _LOG_FROM
    far = _far(costs, is_log)
    near = [cost for cost in costs if cost not in far]
    if not far:
        return _Across(svg.scale_of(near, _LEFT, _RIGHT, log=is_log))
    is_log = near[0] > 0 and near[-1] / near[0] >= _LOG_FROM
    if far[0] < near[0]:
        return _Across(svg.scale_of(near, _LEFT + _STRIP + _GAP, _RIGHT, log=is_log), far, _LEFT + _STRIP / 2)
    return _Across(svg.scale_of(near, _LEFT, _RIGHT - _STRIP - _GAP, log=is_log), far, _RIGHT - _STRIP / 2)


def _far(costs: Sequence[float], is_log: bool) -> tuple[float, ...]:
    """The lowest or the highest few, alike, where the others would lie on a heap far from them."""
    places = [math.log(cost) for cost in costs] if is_log else list(costs)
    for many in range(1, int(len(costs) * _FAR_MOST) + 1):
        for is_low, cut in ((True, many), (False, len(costs) - many)):
            below, above = places[:cut], places[cut:]
            far, near = (below, above) if is_low else (above, below)
            gap = above[0] - below[-1]
            if far[-1] - far[0] <= _ALIKE * gap and 0.0 < near[-1] - near[0] < _HEAP * (places[-1] - places[0]):
                return tuple(costs[:cut] if is_low else costs[cut:])
    return ()


def _break(x: _Across) -> list[Markup]:
    """The axis of the strip with its figure, and the sign of the break."""
    if not x.far:
        return []
    start, end = x.place - _STRIP / 2, x.place + _STRIP / 2
    middle = end + _GAP / 2 if x.place < x.scale.start else start - _GAP / 2
    low, high = compact(x.far[0]), compact(x.far[-1])
    label = low if low == high else f"{low}–{high}"
    slants = [svg.line(at - 2.5, PLOT_HEIGHT + 5, at + 2.5, PLOT_HEIGHT - 5, "axis") for at in (middle - 2.5, middle + 2.5)]
    mark = svg.text(x.place, PLOT_HEIGHT + 15, label, anchor="middle", class_="faint", size=svg.SMALL)
    tick = svg.line(x.place, PLOT_HEIGHT, x.place, PLOT_HEIGHT + 4, "axis")
    return [svg.line(start, PLOT_HEIGHT, end, PLOT_HEIGHT, "axis"), tick, mark, *slants]


def _down(points: Sequence[Point]) -> svg.Scale:
    """Of the scores, and of intervals as far as they do not squeeze the scores."""
    scores = [point.score for point in points]
    low, high = min(scores), max(scores)
    room = max(2 * (high - low), abs(high) * 0.04)
    lows = [max(point.low, low - room) for point in points if point.low is not None]
    highs = [min(point.high, high + room) for point in points if point.high is not None]
    return svg.scale_of([low, *lows, high, *highs], PLOT_HEIGHT, 26)


def _is_below(point: Point, y: svg.Scale) -> bool:
    return point.low is not None and point.low < y.low


def _is_above(point: Point, y: svg.Scale) -> bool:
    return point.high is not None and point.high > y.high


# Points


def _front_line(best: Sequence[Point], x: _Across, y: svg.Scale) -> Markup:
    """A staircase: what at most so much cost buys."""
    stairs: list[Place] = []
    for point in best:
        stairs += [(x(point.cost), stairs[-1][1])] if stairs else []
        stairs.append((x(point.cost), y(point.score)))
    stairs.append((_RIGHT, stairs[-1][1]))
    return svg.path(stairs, "front")


def _drawn(point: Point, x: _Across, y: svg.Scale, is_front: bool) -> list[Markup]:
    at = x(point.cost), y(point.score)
    parts = []
    if point.low is not None and point.high is not None:
        kind = "interval" if is_front else "interval quiet"
        parts.append(svg.line(at[0], y(point.low), at[0], y(point.high), kind))
        parts += [_arrow(at[0], y.start, 1.0, kind)] if _is_below(point, y) else []
        parts += [_arrow(at[0], y.end, -1.0, kind)] if _is_above(point, y) else []
    told = f"{point.label}: {compact(point.cost)}, {point.score:.4g}"
    kind = "dot" if is_front else "dot hollow short" if point.is_short else "dot hollow"
    parts.append(svg.tag("circle", svg.tip(told), cx=at[0], cy=at[1], r=4.5, class_=kind))
    if point.is_baseline:
        parts.append(svg.tag("circle", cx=at[0], cy=at[1], r=8, class_="ring"))
    return parts


def _arrow(x: float, y: float, down: float, class_: str) -> Markup:
    """The head of an arrow that points out of the frame: downwards (1) or upwards (-1)."""
    return svg.path([(x - 3, y - 4 * down), (x, y), (x + 3, y - 4 * down)], class_)


def _names(best: Sequence[Point], points: Sequence[Point], x: _Across, y: svg.Scale) -> list[Markup]:
    """Names of the best points, best score first, where they cover neither a point nor each other."""
    taken = [(x(p.cost) - 7, y(p.score) - 7, x(p.cost) + 7, y(p.score) + 7) for p in points]
    parts = []
    for point in reversed(best):
        label = shortened(point.label, 24)
        wide = svg.width_of(label, svg.SMALL)
        at = x(point.cost), y(point.score)
        choices = [
            (at[0] + 10, at[1] + 14, "start"),
            (at[0] + 10, at[1] - 7, "start"),
            (at[0] - 10, at[1] - 7, "end"),
            (at[0] - 10, at[1] + 14, "end"),
            (at[0], at[1] - 13, "middle"),
            (at[0], at[1] + 21, "middle"),
        ]
        for across, down, anchor in choices:
            start = across - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
            box = (start, down - 10, start + wide, down + 3)
            inside = box[0] >= _LEFT and box[2] <= WIDTH and box[1] >= 16 and box[3] <= PLOT_HEIGHT - 2
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts.append(svg.text(across, down, label, anchor=anchor, class_="halo", size=svg.SMALL))
                break
    return parts


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
