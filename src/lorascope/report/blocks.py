"""What sections of a report are made of: tables, pictures, notes, text. The page's template knows one form of each.

Floor: ``report``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from lorascope.report.words import NONE, decimals_for, number


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        value: what the column is sorted by, with all its digits; None where there is no figure.
        more: a smaller text after it, such as an interval.
        kind: a class of the page: ``code``, ``good``, ``bad``, ``quiet``.
    """

    text: str
    value: float | None = None
    more: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Column:
    """A column with its cells.

    Attributes:
        unit: written below the title.
        hint: what the title means; told below the table.
    """

    title: str
    cells: Sequence[Cell]
    unit: str = ""
    hint: str = ""
    is_number: bool = False


@dataclass(frozen=True)
class Table:
    """Columns of one length.

    Attributes:
        caption: what it holds, above it, also for those who go from table to table by ear.
        note: what has to be known to read it, below it.
        is_sortable: by a script, where it runs.
        is_stacked: what follows a figure stands below it, so that the table is narrower and higher.
    """

    columns: Sequence[Column]
    caption: str
    note: str = ""
    is_sortable: bool = False
    is_stacked: bool = False
    form: ClassVar[str] = "table"

    @property
    def hints(self) -> dict[str, str]:
        """What titles mean that do not say it themselves."""
        return {column.title: column.hint for column in self.columns if column.hint}

    @property
    def rows(self) -> list[tuple[tuple[Column, Cell], ...]]:
        """Row by row, each cell with its column."""
        return list(zip(*([(column, cell) for cell in column.cells] for column in self.columns), strict=True))


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        legend: signs and what they mean.
    """

    picture: Markup
    title: str
    caption: str = ""
    legend: Sequence[tuple[Markup, str]] = ()


@dataclass(frozen=True)
class Figures:
    """Pictures side by side, where the page is wide enough; small ones in more columns."""

    figures: Sequence[Figure]
    note: str = ""
    title: str = ""
    is_small: bool = False
    form: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Notes:
    """Sentences, one an item."""

    items: Sequence[str]
    title: str = ""
    kind: str = ""
    form: ClassVar[str] = "notes"


@dataclass(frozen=True)
class Code:
    """Text as it is, such as commands; folded away where it is long."""

    text: str
    title: str = ""
    is_folded: bool = False
    form: ClassVar[str] = "code"


@dataclass(frozen=True)
class Side:
    """What one trial answered: pieces of text, the ones that differ marked; what it scored."""

    pieces: Sequence[tuple[str, bool]]
    verdict: str
    kind: str = ""


@dataclass(frozen=True)
class Pair:
    """An example, with the answers of two trials."""

    name: str
    gold: Sequence[str]
    one: Side
    other: Side


@dataclass(frozen=True)
class Pairs:
    """Examples side by side."""

    titles: tuple[str, str]
    pairs: Sequence[Pair]
    form: ClassVar[str] = "pairs"


Block = Table | Figures | Notes | Code | Pairs


@dataclass(frozen=True)
class Answer:
    """The sentence at the head of the page, and what it rests on.

    Attributes:
        is_clear: whether the study can tell what it was asked.
        evidence: sentences with figures.
        cautions: what keeps the evidence from being more.
    """

    headline: str
    is_clear: bool
    evidence: Sequence[str] = field(default_factory=list)
    cautions: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """A part of the page under one title."""

    name: str
    title: str
    lead: str = ""
    blocks: Sequence[Block] = field(default_factory=tuple)


def numbers(
    title: str,
    values: Sequence[float | None],
    *,
    decimals: int | None = None,
    sign: bool = False,
    unit: str = "",
    hint: str = "",
) -> Column:
    """A column of figures with the same decimals, by default as many as they take."""
    places = decimals_for(values) if decimals is None else decimals
    return Column(title, [Cell(number(value, places, sign), finite(value)) for value in values], unit, hint, is_number=True)


def words(title: str, texts: Iterable[str], *, kind: str = "", kinds: Sequence[str] = (), hint: str = "") -> Column:
    """A column of text, all of one kind or each of its own."""
    cells = [Cell(text, kind=kinds[index] if kinds else kind) for index, text in enumerate(texts)]
    return Column(title, cells, hint=hint)


def scores(
    title: str, triples: Sequence[tuple[float | None, float | None, float | None]], *, unit: str = "", hint: str = "",
    plus_minus: bool = True, sign: bool = False,
) -> Column:  # fmt: skip
    """A column of figures with their intervals: (figure, low, high), written ``0.783 ± 0.012`` or ``0.783 [0.755, 0.809]``."""
    halves = [(high - low) / 2 for _, low, high in triples if low is not None and high is not None]
    places = decimals_for([value for value, _, _ in triples], halves)
    cells = []
    for value, low, high in triples:
        more = ""
        if low is not None and high is not None:
            ends = f"[{number(low, places, sign)}, {number(high, places, sign)}]"
            more = f"± {number((high - low) / 2, places)}" if plus_minus else ends
        cells.append(Cell(number(value, places, sign), finite(value), more))
    return Column(title, cells, unit, hint, is_number=True)


def useful(columns: Iterable[Column]) -> list[Column]:
    """Without columns in which there is nothing."""
    return [column for column in columns if any(cell.text not in (NONE, "") for cell in column.cells)]


def parameters(counts: Sequence[float | None], percents: Sequence[float | None]) -> Column:
    """How many numbers are trained, with their share of the model."""
    places = decimals_for(percents)
    cells = [
        Cell(number(count, 0), finite(count), "" if percent is None else f"{number(percent, places)} %")
        for count, percent in zip(counts, percents, strict=True)
    ]
    return Column("trainable", cells, "parameters, % of all", is_number=True)


def finite(value: float | None) -> float | None:
    """The figure where it is one."""
    return None if value is None or not math.isfinite(value) else float(value)
