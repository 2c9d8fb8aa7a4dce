"""Conversations of two people of a town, of whom one is modelled by a few facts about them.

The other asks, listens and answers when asked back; what is said is true of both. Each reply carries the facts that it claims,
so that its relation to every sentence of the persona is known.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lorascope.world.facts import Fact, Label, fact_of, fields_of, label, phrases_of, slots_of
from lorascope.world.small_talk import ASK_BACK, FAREWELLS, GREETINGS, SHOP_TALK, TOWN_TALK
from lorascope.world.town import Person, Town, town_of
from lorascope.world.wording import Novelty, Split, drawn, fill, number_word, one, stream

_T = TypeVar("_T")

# Answers that lead on to a second fact without being asked.
_LEADS_ON = {
    "trade": ("rises", "home"),
    "loves": ("hates", "drink"),
    "hates": ("loves",),
    "pastime": ("instrument", "season"),
    "season": ("pastime", "fear"),
    "home": ("siblings", "pet"),
    "pet": ("fear",),
    "wish": ("siblings",),
}


@dataclass(frozen=True)
class Exchange:
    """What one says and the other replies, with the facts that the reply claims about its speaker."""

    said: str
    reply: str
    claims: tuple[Fact, ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """A conversation; ``persona`` are the sentences about the speaker of the replies, ``facts`` what each of them says."""

    speaker: Person
    persona: tuple[str, ...]
    facts: tuple[Fact, ...]
    exchanges: tuple[Exchange, ...]

    def labels(self, exchange: Exchange) -> list[Label]:
        """What a reply says of every sentence of the persona."""
        return [label(exchange.claims, fact) for fact in self.facts]

    @property
    def texts(self) -> tuple[str, str]:
        """The persona, and all turns in one line."""
        spoken = " ".join(f"{one.said} {one.reply}" for one in self.exchanges)
        return f"Your persona: {' '.join(self.persona)}", spoken


def dialogues(seed: int, split: Split, number: int, known: Novelty) -> list[Dialogue]:
    """Conversations whose speakers all differ, as far as towns go round.

    Args:
        known: what training conversations hold. Those of train are added to it; another split's share nothing with it.

    Raises:
        DataError: there are not so many.
    """
    speakers = _speakers(seed, split)

    def next_one(attempt: int) -> Dialogue | None:
        town, speaker = next(speakers)
        made = _Conversation(town, speaker, split, stream(seed, split, "dialogue", attempt)).dialogue()
        if split != "train" and not known.is_new(*made.texts):
            return None
        return made

    made = drawn(next_one, number, f"{split} dialogues")
    if split == "train":
        for one_made in made:
            known.learn([*one_made.texts, " ".join(one_made.texts)])
    return made


def _speakers(seed: int, split: Split) -> Iterator[tuple[Town, Person]]:
    number = 0
    while True:
        town = town_of(seed, split, number)
        yield from ((town, person) for person in town.people)
        number += 1


class _Conversation:
    """One conversation in the making."""

    def __init__(self, town: Town, speaker: Person, split: Split, draw: random.Random) -> None:
        others = [person for person in town.people if person.house != speaker.house]
        self._town, self._speaker, self._other = town, speaker, draw.choice(others)
        self._split, self._draw = split, draw
        self._weather = draw.choice(list(GREETINGS))
        known = slots_of(speaker)
        slots = draw.sample(known, draw.choice((4, 4, 5)))
        self._persona = tuple(self._say(speaker, slot, "states") for slot in slots)
        self._facts = tuple(fact_of(speaker, slot) for slot in slots)
        self._to_come = draw.sample(slots, draw.choice((3, 3, 4)))
        # Now and then somebody asks for what the persona does not say.
        if draw.random() < 0.15:
            other = draw.choice([slot for slot in known if slot not in slots])
            self._to_come.insert(draw.randrange(len(self._to_come)), other)

    def dialogue(self) -> Dialogue:
        return Dialogue(self._speaker, self._persona, self._facts, tuple(self._exchanges()))

    def _exchanges(self) -> Iterator[Exchange]:
        said = ""
        if self._draw.random() < 0.6:
            yield Exchange(*self._one(GREETINGS[self._weather]))
        town_talk = self._draw.randrange(1, 4) if self._draw.random() < 0.4 else None
        asked = 0
        while self._to_come:
            if asked == town_talk:
                town_talk = None
                question, answer = self._about_town()
                yield Exchange(_both(said, question), answer)
                said = ""
                continue
            slot = self._to_come.pop(0)
            question = _both(said, self._say(self._speaker, slot, "asks"))
            reply, claims, said = self._answer(slot)
            yield Exchange(question, reply, claims)
            asked += 1
        if self._draw.random() < 0.35:
            leaving, answer = self._one(FAREWELLS)
            yield Exchange(_both(said, leaving), answer)

    def _answer(self, slot: str) -> tuple[str, tuple[Fact, ...], str]:
        """The reply, what it claims, and how the other goes on from it."""
        reply, claims = self._say(self._speaker, slot, "answers"), [fact_of(self._speaker, slot)]
        more = [second for second in _LEADS_ON.get(slot, ()) if second in self._to_come]
        if more and self._draw.random() < 0.5:
            second = self._draw.choice(more)
            self._to_come.remove(second)
            reply = _both(reply, self._say(self._speaker, second, "states"))
            claims.append(fact_of(self._speaker, second))
        elif self._to_come and slot in slots_of(self._other) and self._draw.random() < 0.22:
            return _both(reply, self._one(ASK_BACK)), tuple(claims), self._say(self._other, slot, "answers")
        chance = self._draw.random()
        return reply, tuple(claims), self._say(self._speaker, claims[-1].slot, "reacts") if chance < 0.7 else ""

    def _about_town(self) -> tuple[str, str]:
        """A question about the town and its true answer; nothing about the one who answers."""
        shops = [shop for shop in self._town.shops if shop.owner not in (self._speaker, self._other)]
        if shops and self._draw.random() < 0.5:
            shop = self._draw.choice(shops)
            question, answer = self._one(SHOP_TALK)
            values: dict[str, object] = {
                "shop": shop.name,
                "place": shop.owner.trade.place,
                "owner": shop.owner.full_name,
                "owner_first": shop.owner.name,
                "opens": clock(shop.opens),
                "closes": clock(shop.closes),
                "shut": shop.shut,
            }
            return fill(question, values).text, fill(answer, values).text
        landmark = self._draw.choice(self._town.landmarks)
        # Nobody speaks of somebody who takes part as of a third.
        others = [one for one in self._town.happenings if one.winner not in (self._speaker, self._other)]
        happening = self._draw.choice(others or self._town.happenings)
        question, answer = self._one(TOWN_TALK)
        values = {
            "market_day": self._town.market_day,
            "river": self._town.river,
            "town": self._town.name,
            "contest": happening.contest,
            "contest_year": happening.year,
            "winner": happening.winner.full_name,
            "prize": happening.prize,
            "visitors": happening.visitors,
            "weather": happening.weather,
            "landmark": landmark.kind,
            "builder": landmark.builder,
            "year": landmark.year,
            "legend": landmark.legend,
            "feet": landmark.feet,
        }
        return fill(question, values).text, fill(answer, values).text

    def _say(self, person: Person, slot: str, kind: str) -> str:
        return said(person, slot, kind, self._split, self._draw)

    def _one(self, options: Sequence[_T]) -> _T:
        return one(options, self._split, self._draw)


def said(person: Person, slot: str, kind: str, split: Split, draw: random.Random) -> str:
    """A sentence about a person's fact: ``states``, ``asks``, ``answers`` or ``reacts``."""
    options = getattr(phrases_of(fact_of(person, slot)), kind)
    return fill(one(options, split, draw), fields_of(person, slot)).text


def clock(hour: int) -> str:
    """An hour in words; the twelfth is midnight, at which alone something shuts."""
    return "midnight" if hour == 12 else f"{number_word(hour)} o'clock"


def _both(first: str, second: str) -> str:
    return f"{first} {second}".strip()
