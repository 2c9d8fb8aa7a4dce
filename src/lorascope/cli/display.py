"""What a running study looks like on a terminal: how far it is, a line with its loss curve for every slot, pace and memory.

``progress`` keeps the state and lets ``rich`` redraw it; here it becomes lines, never more than the terminal is wide and high.
Does not know events. Floor: cli.

    study        ━━━━━━━━━━━━━━━━━╺━━━━━━  5 of 8 trials · 4.1 min left
    ⠹ training   ━━━━━━━━━━━╺━━━━━━━━━━━━  step 120/250 · 33.0 s left
      0b5c1f3e-s42  r 4 · query        █▆▅▄▃▃▂▂▂▁▁▁············  0.3412
      77a9c0d1-s42  r 16 · all-linear  █▇▇██                          –  diverged
    12,345 examples/s · 370,350 tokens/s · 612 MiB (700 MiB foreseen)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

# Levels of a curve, low to high; the second for encodings without block elements.
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.-=+*#@"
# Means of so many equal parts of a training are kept; no terminal shows more.
_MOST_POINTS = 512
_WIDE = 80
_NARROWEST_CURVE, _WIDEST_CURVE = 6, 32
# Columns that a slot's line has besides label and curve: indent, loss, status, the gaps between them.
_FIXED = 30
_STYLES = {"done": "green", "diverged": "bold red", "failed": "bold red", "pruned": "yellow", "evaluating": "cyan"}


@dataclass
class Bar:
    """How far something is: ``done`` of ``total``, and that in words."""

    name: str
    done: float = 0
    total: float = 0
    told: str = ""


@dataclass
class Row:
    """A slot of the cohort at hand; ``status`` is empty while it trains."""

    trial: str
    label: str
    num_steps: int
    status: str = ""
    loss: float | None = None
    _sums: list[float] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        num_points = max(1, min(self.num_steps, _MOST_POINTS))
        self._sums, self._counts = [0.0] * num_points, [0] * num_points

    def add(self, step: int, loss: float) -> None:
        """Take down a step's loss; one that is not finite is shown, but in no curve."""
        self.loss = loss
        if math.isfinite(loss):
            point = min(step * len(self._sums) // max(1, self.num_steps), len(self._sums) - 1)
            self._sums[point] += loss
            self._counts[point] += 1

    def curve(self, width: int) -> list[float | None]:
        """Mean losses of at most ``width`` equal parts of the training; None where none was taken down."""
        width = min(width, len(self._sums))
        sums, counts = [0.0] * width, [0] * width
        for point, (value, count) in enumerate(zip(list(self._sums), list(self._counts), strict=True)):
            column = point * width // len(self._sums)
            sums[column] += value
            counts[column] += count
        return [value / count if count else None for value, count in zip(sums, counts, strict=True)]


@dataclass
class Display:
    """All that is shown; rich calls it several times a second, from a thread of its own.

    Attributes:
        preparing: what goes on before there is anything to count.
        study: how far the study is, if one has started.
        activity: how far what goes on now is: the training of a cohort, an evaluation.
        rows: the cohort's slots.
        pace: throughput and memory, in words.
        message: something that must be seen now.
    """

    preparing: str = "getting ready"
    study: Bar | None = None
    activity: Bar | None = None
    rows: Sequence[Row] = ()
    pace: str = ""
    message: str = ""
    _spinners: dict[bool, Spinner] = field(default_factory=lambda: {True: Spinner("line"), False: Spinner("dots")})

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ascii_only = options.ascii_only
        spinner = self._spinners[ascii_only]
        bars = Table.grid(padding=(0, 1))
        bars.add_column(no_wrap=True)
        for _ in range(3):
            bars.add_column(no_wrap=True, overflow="crop" if ascii_only else "ellipsis")
        size = 24 if options.max_width >= _WIDE else 12
        now = self.activity or Bar(self.preparing)
        for bar in (now,) if self.study is None else (self.study, now):
            drawn = ProgressBar(total=bar.total, completed=bar.done, width=size) if bar.total else None
            bars.add_row(spinner if bar is now else None, Text(bar.name), drawn, Text(_written(bar.told, ascii_only)))
        yield bars
        rows, num_left = self._fitting(list(self.rows), options.size.height)
        if rows:
            yield _slots(rows, options.max_width, ascii_only)
        if num_left:
            yield _line(f"  and {num_left} more", ascii_only, "dim")
        if self.pace:
            yield _line(self.pace, ascii_only, "dim")
        if self.message:
            yield Text(_written(self.message, ascii_only), "bold yellow")

    def _fitting(self, rows: list[Row], height: int) -> tuple[list[Row], int]:
        """The rows that a terminal has room for, those that still train first, and how many others there are."""
        # Two bars, pace, a message of two lines, the line that says what is left out, and one for what is printed above.
        room = max(1, height - 7)
        if len(rows) <= room:
            return rows, 0
        kept = sorted(range(len(rows)), key=lambda index: (rows[index].status in _STYLES, index))[:room]
        return [rows[index] for index in sorted(kept)], len(rows) - room


def _slots(rows: Sequence[Row], width: int, ascii_only: bool) -> Table:
    """One line for each slot; the label is left out where there is little room."""
    name = max(len(row.trial) for row in rows)
    longest = max(len(row.label) for row in rows) if width >= _WIDE else 0
    left = width - name - _FIXED
    label = min(longest, left - _NARROWEST_CURVE - 2, left // 2)
    curve = max(_NARROWEST_CURVE, min(_WIDEST_CURVE, left - label - (2 if label > 0 else 0)))
    curves = [row.curve(curve) for row in rows]
    known = [value for row, drawn in zip(rows, curves, strict=True) if row.status != "diverged" for value in drawn]
    scale = [value for value in known if value is not None]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    if label > 0:
        table.add_column(no_wrap=True, overflow="crop" if ascii_only else "ellipsis", max_width=label)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right", min_width=8)
    table.add_column(no_wrap=True)
    for row, drawn in zip(rows, curves, strict=True):
        over = row.status in ("pruned", "diverged", "failed")
        cells = [Text(f"  {row.trial}")]
        if label > 0:
            cells.append(Text(_written(row.label, ascii_only), "dim"))
        cells.append(Text(sparkline(drawn, scale, ascii_only), "dim" if over else "cyan"))
        cells += [Text(_loss_text(row.loss, ascii_only)), Text(row.status, _STYLES.get(row.status, ""))]
        table.add_row(*cells)
    return table


def sparkline(values: Iterable[float | None], scale: Sequence[float], ascii_only: bool = False) -> str:
    """A curve of one character a value, between the smallest and the largest of ``scale``; a dot, or a blank, for None."""
    levels = _ASCII if ascii_only else _BLOCKS
    low, high = (min(scale), max(scale)) if scale else (0.0, 0.0)
    drawn = []
    for value in values:
        if value is None:
            drawn.append(" " if ascii_only else "·")
        elif high == low:
            drawn.append(levels[len(levels) // 2])
        else:
            share = min(1.0, max(0.0, (value - low) / (high - low)))
            drawn.append(levels[min(len(levels) - 1, int(share * len(levels)))])
    return "".join(drawn)


def _loss_text(loss: float | None, ascii_only: bool) -> str:
    if loss is None:
        return "-" if ascii_only else "–"
    return f"{loss:.4f}" if abs(loss) < 1000 else f"{loss:.3g}"


def _line(text: str, ascii_only: bool, style: str) -> Text:
    return Text(_written(text, ascii_only), style, no_wrap=True, overflow="crop" if ascii_only else "ellipsis")


def _written(text: str, ascii_only: bool) -> str:
    """The text in characters that the terminal has."""
    if not ascii_only:
        return text
    return text.replace(" · ", ", ").replace("–", "-").replace("×", "x").encode("ascii", "replace").decode("ascii")
