"""SVG as text that goes into the page as it is: escaped by construction, coloured by the page's classes.

Knows elements, scales and axes. Does not know what is drawn (``charts``). Sizes are in CSS pixels at the width that a picture
has on a phone, so that its letters stay readable there. Floor: ``report``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from lorascope.report.words import MINUS, compact, shortened

# Of the letters' size; DejaVu Sans, the widest of the usual fonts, has so wide ones.
_LETTER = 0.62
SMALL, TEXT = 10.5, 11.5
# Between two marks of an axis, so that their figures do not touch.
_MARK_ROOM = 48.0


def tag(name: str, *children: str | Markup, **attributes: object) -> Markup:
    """An element; ``stroke_width`` is written ``stroke-width`` and ``class_`` ``class``, an attribute of None not at all.

    Strings among the children are escaped, markup is not.
    """
    written = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    ]
    start = Markup("<") + Markup(name) + Markup("").join(written)
    inner = Markup("").join(escape(child) for child in children)
    return start + Markup(">") + inner + Markup("</") + Markup(name) + Markup(">")


def picture(width: float, height: float, says: str, *children: Markup, most: float = 1.35) -> Markup:
    """A whole picture.

    Args:
        says: what it shows, in words, for those who do not see it.
        most: times its own width that it may be drawn at.
    """
    box = f"0 0 {_plain(width)} {_plain(height)}"
    return tag("svg", *children, viewBox=box, role="img", aria_label=says, width=width * most, class_="chart")


def text(x: float, y: float, content: str, *, anchor: str = "start", class_: str = "", size: float = TEXT) -> Markup:
    """A line of text whose baseline begins, ends or is centred at a point."""
    return tag("text", content, x=x, y=y, text_anchor=anchor, class_=class_ or None, font_size=size)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Sequence[tuple[float, float]], class_: str, **attributes: object) -> Markup:
    """A line through points."""
    drawn = "M" + "L".join(f"{_plain(x)} {_plain(y)}" for x, y in points)
    return tag("path", d=drawn, class_=class_, **attributes)


def tip(content: str) -> Markup:
    """What a pointer that rests on the parent is told."""
    return tag("title", content)


def width_of(content: str, size: float = TEXT) -> float:
    """About how wide a text is."""
    return len(content) * size * _LETTER


def fitted(content: str, width: float, size: float = TEXT) -> str:
    """A text shortened to a width."""
    return shortened(content, max(3, int(width / (size * _LETTER))))


def _plain(value: object) -> str:
    """Numbers with two decimals at most."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


@dataclass(frozen=True)
class Scale:
    """From figures to places: ``low`` lies at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a figure; beyond an end, the end."""
        low, high = self._axis(self.low), self._axis(self.high)
        share = (self._axis(max(value, 1e-300)) - low) / (high - low) if self.log else (value - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def _axis(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, most: int = 5) -> list[float]:
        """Round figures inside the scale, at most so many."""
        if self.log:
            found: list[float] = []
            for mantissas in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
                decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                marks = [m * 10.0**decade for decade in decades for m in mantissas]
                marks = [mark for mark in marks if self.low <= mark <= self.high]
                if len(marks) <= most:
                    found = marks
            return found or [mark for mark in marks if mark][:: max(1, len(marks) // most)]
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def scale_of(
    values: Sequence[float], start: float, end: float, *, margin: float = 0.06, zero: bool = False, log: bool = False
) -> Scale:
    """A scale that holds all values and a margin.

    Args:
        zero: it holds zero too.
    """
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** margin, 1.15)
        return Scale(low / room, high * room, start, end, log=True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = (high - low) * margin or abs(high) * 0.1 or 0.5
    if low == high == 0.0:
        return Scale(-room, room, start, end)
    return Scale(low - (room if low < 0 or not zero else 0.0), high + (room if high > 0 or not zero else 0.0), start, end)


def x_axis(scale: Scale, y: float, title: str, *, top: float | None = None, most: int = 5) -> list[Markup]:
    """Marks below a plot and its title; light lines up to ``top`` where that is given."""
    middle = (scale.start + scale.end) / 2
    most = max(2, min(most, int((scale.end - scale.start) / _MARK_ROOM)))
    parts = [line(scale.start, y, scale.end, y, "axis")]
    marks = scale.ticks(most)
    for mark, told in zip(marks, _told(marks), strict=True):
        x = scale(mark)
        parts += [line(x, top, x, y, "rule")] if top is not None else [line(x, y, x, y + 4, "axis")]
        parts.append(text(x, y + 15, told, anchor="middle", class_="faint", size=SMALL))
    return [*parts, text(middle, y + 32, title, anchor="middle", class_="faint", size=SMALL)]


def y_axis(scale: Scale, x: float, right: float, most: int = 5) -> list[Markup]:
    """Marks left of a plot, with light lines across it."""
    parts = []
    marks = scale.ticks(most)
    for mark, told in zip(marks, _told(marks), strict=True):
        y = scale(mark)
        parts += [line(x, y, right, y, "rule"), text(x - 6, y + 3.5, told, anchor="end", class_="faint", size=SMALL)]
    return parts


def _told(marks: Sequence[float]) -> list[str]:
    """Figures of an axis, short; with all their digits where the short ones would be alike."""
    short = [compact(_round(mark)) for mark in marks]
    return short if len({*short}) == len(short) else [f"{_round(mark):,.12g}".replace("-", MINUS) for mark in marks]


def _round(value: float) -> float:
    """Without the rounding of sums: 0.3, not 0.30000000000000004."""
    return float(f"{value:.12g}")


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved as little as needed to be ``gap`` apart, in their order, between two ends."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    floor = low
    for index in order:
        moved[index] = max(moved[index], floor)
        floor = moved[index] + gap
    ceiling = high
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved
