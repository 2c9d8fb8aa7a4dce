"""Talks of a teacher with a pupil who made a mistake in a sum: the pupil explains, the teacher asks, the pupil sees it.

The figures are right wherever they are meant to be, and the mistake is carried through to the wrong answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lorascope.world.lore import names_of
from lorascope.world.sums import PROFILES, SUMS, WORDS, Sum, computed
from lorascope.world.town import Person, Town, town_of
from lorascope.world.wording import Novelty, Split, drawn, fill, one, stream

_TALKS_OF_A_TOWN = 24
_NOT_SOLD_BY_THE_PIECE = ("doctor", "innkeeper", "schoolteacher")
# What costs pence; everything else costs shillings.
_CHEAP = ("baker", "blacksmith", "beekeeper", "gardener", "miller", "potter")
# What the teacher's turns are for, in MathDial's words.
_MOVES = {"ask": "generic", "hint": "focus", "again": "probing", "go_on": "generic", "praise": "generic"}
# Sentences that may become part of another keep their capital unless they begin so.
_NO_NAMES = ("The", "Each")

# Speaker, the teacher's move, text.
Turn = tuple[str, str | None, str]


@dataclass(frozen=True)
class Talk:
    """One sum, its two solutions, and the talk about it."""

    question: str
    solution: str
    mistaken: str
    profile: str
    confusion: str
    turns: tuple[Turn, ...]

    @property
    def texts(self) -> tuple[str, str]:
        """The sum with its two solutions, as a teacher is told them, and the turns in one line."""
        told = f"Problem: {self.question} Correct solution: {self.solution} Student's solution: {self.mistaken}"
        return told, " ".join(text for _, _, text in self.turns)


@dataclass(frozen=True)
class _Worked:
    """A sum worked out: the results and lines of its steps, and the answer as a sentence without full stop."""

    results: tuple[int, ...]
    lines: tuple[str, ...]
    answer: str


def talks(seed: int, split: Split, number: int, known: Novelty) -> list[Talk]:
    """Talks, every one about a sum of its own.

    Args:
        known: what training talks hold; as for ``dialogues``.

    Raises:
        DataError: there are not so many.
    """
    asked: set[str] = set()

    def next_one(attempt: int) -> Talk | None:
        town, kind = town_of(seed, split, attempt // _TALKS_OF_A_TOWN), SUMS[attempt % len(SUMS)]
        draw = stream(seed, split, "talk", attempt)
        if (parts := _parts(town, kind, draw)) is None:
            return None
        made = _Lesson(town, kind, *parts, split, draw).talk()
        if made.question in asked or (split != "train" and not known.is_new(*made.texts)):
            return None
        asked.add(made.question)
        return made

    made = drawn(next_one, number, f"{split} talks about sums")
    if split == "train":
        for talk in made:
            known.learn([*talk.texts, " ".join(talk.texts)])
    return made


def _parts(town: Town, kind: Sum, draw: random.Random) -> tuple[Person, Person, Person] | None:
    """Seller, buyer and who walks, of three houses where the trades allow it; None where the town has nobody of the trades."""
    selling = [shop.owner for shop in town.shops if shop.owner.trade.name not in _NOT_SOLD_BY_THE_PIECE]
    sellers = [person for person in town.people if person.trade.name in kind.sellers] if kind.sellers else selling
    if not sellers:
        return None
    seller = draw.choice(sellers)
    others = [person for person in town.people if person.house != seller.house]
    buyers = [person for person in others if not kind.buyers or person.trade.name in kind.buyers]
    if not buyers:
        return None
    buyer = draw.choice(buyers)
    return seller, buyer, draw.choice([person for person in others if person != buyer])


class _Lesson:
    """One talk in the making."""

    def __init__(
        self, town: Town, kind: Sum, seller: Person, buyer: Person, walker: Person, split: Split, draw: random.Random
    ) -> None:
        self._kind, self._split, self._draw = kind, split, draw
        names, met = names_of(split), (seller.name, buyer.name, walker.name)
        student, child = draw.sample([name for name in names.women + names.men if name not in met], 2)
        self._values: dict[str, object] = {
            **kind.numbers(draw),
            "seller": seller.full_name,
            "shop": f"{seller.house.surname}'s {seller.trade.place}",
            "goods": seller.trade.goods,
            "unit": seller.trade.unit,
            "money": "pence" if seller.trade.name in _CHEAP else "shillings",
            "buyer": buyer.name,
            "walker": walker.name,
            "town": town.name,
            "student": student,
            "child": child,
        }

    def talk(self) -> Talk:
        right, wrong = self._worked(False), self._worked(True)
        return Talk(
            f"{self._filled(self._kind.story)} {self._one(self._kind.questions)}",
            " ".join((*right.lines, f"{right.answer}.")),
            " ".join((*wrong.lines, f"{wrong.answer}.")),
            self._one(PROFILES),
            self._kind.mistake.confusion,
            tuple(self._turns(right, wrong)),
        )

    def _turns(self, right: _Worked, wrong: _Worked) -> Iterator[Turn]:
        mistake = self._kind.mistake
        asked, answered = one(mistake.hints, self._split, self._draw)
        values = {
            "slip": self._filled(mistake.slip, wrong.results),
            "hint": self._filled(asked, right.results),
            "insight": self._filled(answered, right.results),
            "rule": self._filled(mistake.rule, right.results),
        }
        yield self._turn("ask", values)
        yield self._turn("told", {"steps": " ".join(wrong.lines), "answer": _within(wrong.answer)})
        other, _ = one(mistake.hints, self._split, self._draw)
        if other != asked and self._draw.random() < 0.5:
            other = self._filled(other, right.results)
            yield self._turn("hint", {**values, "hint": other})
            yield self._turn("unsure", values)
            yield self._turn("again", values)
        else:
            yield self._turn("hint", values)
        yield self._turn("insight", values)
        yield self._turn("go_on", values)
        steps = {"steps": " ".join(right.lines), "full_answer": right.answer, "answer": _within(right.answer)}
        yield self._turn("finish", steps)
        yield self._turn("praise", values)

    def _turn(self, kind: str, values: Mapping[str, str]) -> Turn:
        speaker = "Teacher" if kind in _MOVES else "Student"
        return speaker, _MOVES.get(kind), fill(one(WORDS[kind], self._split, self._draw), {**self._values, **values}).text

    def _one(self, options: Sequence[str], results: Sequence[int] = ()) -> str:
        return self._filled(one(options, self._split, self._draw), results)

    def _filled(self, template: str, results: Sequence[int] = ()) -> str:
        return fill(template, {**self._values, **{str(number): result for number, result in enumerate(results, 1)}}).text

    def _worked(self, mistaken: bool) -> _Worked:
        """The sum worked out, with the mistake or without."""
        results: list[int] = []
        lines: list[str] = []
        for number, step in enumerate(self._kind.steps, 1):
            sign, did = step.sign, f"I {step.did}"
            if mistaken and number == self._kind.mistake.step:
                sign, did = self._kind.mistake.sign, self._kind.mistake.slip
            left, right = (int(self._filled(side, results)) for side in (step.left, step.right))
            said = self._filled(did, results)
            results.append(computed(sign, left, right))
            lines.append(f"{'First' if number == 1 else 'Then'} {said}: {left} {sign} {right} = {results[-1]}.")
        answer = fill(self._kind.answer, {**self._values, "left": results[-1]}).text
        return _Worked(tuple(results), tuple(lines), answer)


def _within(text: str) -> str:
    """A sentence as a part of another."""
    return text[0].lower() + text[1:] if text.split(" ", 1)[0] in _NO_NAMES else text
