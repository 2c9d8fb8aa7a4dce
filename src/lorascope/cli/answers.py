"""Answers on their way to stdout: as lines, one after the other, or side by side on a terminal. Floor: cli."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorascope.cli.console import printable

if TYPE_CHECKING:
    from lorascope.decode import Answer, Piece

_FRAMES_PER_SECOND = 12


@dataclass
class Growing:
    """One answer as far as it is known; ``answer`` is None until it is over."""

    name: str
    sample: int
    heading: str
    text: str = ""
    answer: Answer | None = None


@dataclass
class Answers:
    """Every answer to one prompt, by who gives it and sample.

    Args:
        names: who answers, in the order of the slots.
    """

    names: Sequence[str]
    num_samples: int
    label: str = ""
    all: list[Growing] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.names:
            for sample in range(self.num_samples):
                parts = [name, self.label, f"sample {sample + 1}" if self.num_samples > 1 else ""]
                self.all.append(Growing(name, sample, ", ".join(part for part in parts if part)))

    def add(self, piece: Piece) -> None:
        """Take a piece in."""
        one = self.all[piece.slot * self.num_samples + piece.question]
        one.text += piece.text
        one.answer = piece.answer or one.answer

    def take(self, pieces: Iterable[Piece]) -> None:
        """Take all pieces in."""
        for piece in pieces:
            self.add(piece)


def print_lines(
    answers: Answers, pieces: Iterable[Piece], stopped: Callable[[], bool] = lambda: False, *, is_first: bool = True
) -> None:
    """Write answers as they come, each in full before the next, with headings where there are several.

    Args:
        stopped: asked after every piece; what has come by then is still written.
        is_first: nothing was written before.
    """
    lines = _Lines(answers.all, len(answers.all) > 1 or bool(answers.label), is_first)
    for piece in pieces:
        answers.add(piece)
        lines.show()
        if stopped():
            break
    lines.show(to_end=True)


class _Lines:
    """What of the answers has been written; one that comes out of turn waits."""

    def __init__(self, answers: Sequence[Growing], has_headings: bool, is_first: bool) -> None:
        self._answers = answers
        self._has_headings = has_headings
        self._is_first = is_first
        self._current = 0
        self._shown: int | None = None

    def show(self, to_end: bool = False) -> None:
        """Write what is new of the answer whose turn it is, and of those that follow once it is over."""
        while self._current < len(self._answers):
            one = self._answers[self._current]
            if self._shown is None and self._has_headings:
                _out(f"[{one.heading}]\n" if self._is_first and self._current == 0 else f"\n[{one.heading}]\n")
            _out(one.text[self._shown or 0 :])
            self._shown = len(one.text)
            if one.answer is None and not to_end:
                return
            _out("\n")
            self._shown = None
            self._current += 1


def print_columns(
    console: Console, answers: Answers, pieces: Iterable[Piece], stopped: Callable[[], bool] = lambda: False
) -> None:
    """Answers side by side while they grow, then in full.

    Args:
        console: a terminal's.
    """
    with Live(console=console, transient=True, refresh_per_second=_FRAMES_PER_SECOND, get_renderable=lambda: columns(answers)):
        for piece in pieces:
            answers.add(piece)
            if stopped():
                break
    console.print(columns(answers))


def columns(answers: Answers) -> Table:
    """A column for each name, a row for each sample."""
    table = Table(expand=True, show_lines=answers.num_samples > 1, title=answers.label or None, title_justify="left")
    for name in answers.names:
        table.add_column(Text(name), ratio=1, overflow="fold")
    for sample in range(answers.num_samples):
        of_sample = answers.all[sample :: answers.num_samples]
        table.add_row(*(Text(printable(one.text) + ("" if one.answer else " …")) for one in of_sample))
    return table


def _out(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
