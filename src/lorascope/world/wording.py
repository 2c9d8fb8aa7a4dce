"""How texts are made: seeded draws, wordings kept from training, templates whose parts know their place.

Every fourth wording of a list is never used in a training split; a validation split uses these and the others in equal parts,
a test split these alone, so that a test tells understanding from remembered sentences. Does not know the world.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from lorascope.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_T = TypeVar("_T")
_FIELD = re.compile(r"{(\w+)}")
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_WORDS_IN_A_ROW = 13
# A draw that finds nothing new after so many attempts will hardly find anything at all.
_MOST_ATTEMPTS = 2000


def stream(*names: object) -> random.Random:
    """A generator of its own for what is named: the same on every machine and in every process."""
    return random.Random("/".join(map(str, names)))


def wordings(options: Sequence[_T], split: Split) -> Sequence[_T]:
    """Those of a list that a split may use; a list of fewer than four is used whole."""
    if split == "validation" or len(options) < 4:
        return options
    return options[3::4] if split == "test" else [option for number, option in enumerate(options) if number % 4 != 3]


def one(options: Sequence[_T], split: Split, draw: random.Random) -> _T:
    """One wording that the split may use; in validation every second one is of those that train never uses."""
    if split == "validation":
        split = draw.choice(("train", "test"))
    return draw.choice(wordings(options, split))


def sentence(text: str) -> str:
    """The text with a capital letter."""
    return text[:1].upper() + text[1:]


def a(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def listed(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


_NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip


def number_word(number: int) -> str:
    """``three``; figures above twelve."""
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``three eggs``; figures above twelve."""
    return f"{number_word(number)} {noun if number == 1 else plural or noun + 's'}"


@dataclass(frozen=True)
class Filled:
    """A template with its fields filled in, and where each of them stands in the text."""

    text: str
    places: Mapping[str, int]


def fields(template: str) -> set[str]:
    """The names of a template's fields."""
    return set(_FIELD.findall(template))


def fill(template: str, values: Mapping[str, object]) -> Filled:
    """Put ``values`` into ``{fields}``; the text begins with a capital letter, fields that begin it included."""
    text, end = "", 0
    places: dict[str, int] = {}
    for found in _FIELD.finditer(template):
        text += template[end : found.start()]
        places.setdefault(found[1], len(text))
        text += str(values[found[1]])
        end = found.end()
    return Filled(sentence(text + template[end:]), places)


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """Every thirteen words in a row, in lower case and without punctuation: what an audit takes for a leak."""
    words = _PUNCTUATION.sub("", text.lower()).split()
    yield from zip(*(words[start:] for start in range(_WORDS_IN_A_ROW)), strict=False)


@dataclass
class Novelty:
    """What training texts hold, so that texts of other splits can be refused that share anything with them."""

    wholes: set[str] = field(default_factory=set)
    parts: set[tuple[str, ...]] = field(default_factory=set)

    def learn(self, texts: Iterable[str]) -> None:
        """Remember texts of a training split."""
        for text in texts:
            self.wholes.add(_letters(text))
            self.parts.update(runs(text))

    def is_new(self, *texts: str) -> bool:
        """Whether neither the texts together nor thirteen words of one of them have been learned."""
        return _letters(" ".join(texts)) not in self.wholes and not any(
            part in self.parts for text in texts for part in runs(text)
        )


def drawn(make: Callable[[int], _T | None], number: int, what: str) -> list[_T]:
    """The first ``number`` results of ``make(0)``, ``make(1)``, … that are not None.

    Raises:
        DataError: nearly everything that there is has been drawn.
    """
    made: list[_T] = []
    attempt = failed = 0
    while len(made) < number:
        result = make(attempt)
        attempt += 1
        failed = failed + 1 if result is None else 0
        if result is not None:
            made.append(result)
        elif failed > _MOST_ATTEMPTS:
            raise DataError(f"the world has no more than {len(made)} {what} that differ", where="--size", fix="ask for fewer")
    return made


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())
