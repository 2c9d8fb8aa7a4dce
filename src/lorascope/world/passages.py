"""Passages about the towns with questions whose answers stand in them, or do not.

A passage tells some of what is true of its subject. Each sentence has its questions, and where the answer to each begins; what
is not told makes the questions that the passage cannot answer, so that those look like the others and are still right.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorascope.world.lives import PERSON
from lorascope.world.persona import clock
from lorascope.world.tellings import HAPPENING, LANDMARK, SHOPS, Telling
from lorascope.world.town import Person, Shop, Town, town_of
from lorascope.world.wording import Novelty, Split, a, drawn, fill, one, stream

# Of what may be told, so many sentences are, beside the first.
_FEWEST, _MOST = 4, 6
_UNANSWERED = 2
# Passages of each kind about one town, each with a subject of its own.
_OF_EACH_KIND = 3


@dataclass(frozen=True)
class Question:
    """A question with its answer and where it begins in the passage; None for both where the passage does not tell."""

    text: str
    answer: str | None
    start: int | None


@dataclass(frozen=True)
class Passage:
    """A paragraph of an article about ``town``."""

    town: str
    text: str
    questions: tuple[Question, ...]


def passages(seed: int, split: Split, number: int, known: Novelty) -> list[Passage]:
    """Passages in the order of their towns.

    Args:
        known: what training passages hold; as for ``dialogues``.

    Raises:
        DataError: there are not so many.
    """
    kinds = (_person, _landmark, _happening, _shops)

    def next_one(attempt: int) -> Passage | None:
        draw = stream(seed, split, "passage", attempt)
        number, place = divmod(attempt, _OF_EACH_KIND * len(kinds))
        subject, kind = divmod(place, len(kinds))
        town = town_of(seed, split, number)
        made = _passage(town.name, *kinds[kind](town, subject, draw), split, draw)
        return made if split == "train" or known.is_new(made.text) else None

    made = drawn(next_one, number, f"{split} passages")
    if split == "train":
        known.learn(one.text for one in made)
    return made


def _passage(
    town: str, tellings: Sequence[Telling], values: Mapping[str, object], split: Split, draw: random.Random
) -> Passage:
    first, *others = tellings
    # One thing at least is left untold.
    told = sorted(draw.sample(range(len(others)), min(len(others) - 1, draw.randint(_FEWEST, _MOST))))
    text = ""
    answered: list[Question] = []
    for telling in (first, *(others[index] for index in told)):
        template = one(telling.sentences, split, draw)
        filled = fill(template, values)
        start = len(text) + bool(text)
        text = f"{text} {filled.text}".strip()
        asked = {field: options for field, options in telling.questions.items() if field in filled.places}
        for field, options in asked.items():
            place = start + filled.places[field]
            answer = text[place : place + len(str(values[field]))]
            answered.append(Question(fill(one(options, split, draw), values).text, answer, place))
    left = [telling for index, telling in enumerate(others) if index not in told and telling.questions]
    open_ones = [
        Question(fill(one(draw.choice(list(telling.questions.values())), split, draw), values).text, None, None)
        for telling in draw.sample(left, min(_UNANSWERED, len(left)))
    ]
    chosen = draw.sample(answered, min(len(answered), draw.randint(3, 5)))
    return Passage(town, text, (*chosen, *open_ones))


def _person(town: Town, subject: int, draw: random.Random) -> tuple[Sequence[Telling], dict[str, object]]:
    person = town.people[subject * len(town.people) // _OF_EACH_KIND]
    house, shop = person.house, town.shop_of(person)
    values: dict[str, object] = _named(person) | {
        "town": town.name,
        "trade": person.trade.name,
        "an": a(person.trade.name).split()[0],
        "tool": a(person.trade.tool),
        "home": house.home,
        "children": house.children,
        "loves": person.loves.name,
        "drink": person.drink,
        "doing": person.pastime.doing,
        "instrument": person.instrument,
        "wish": person.wish,
        "fear": person.fear,
        "rises": person.rises,
    }
    without = set()
    if house.pet is None or house.pet_name is None:
        without.add("pet")
    else:
        values |= {"kind": house.pet.name, "a_kind": a(house.pet.name), "pet": house.pet_name}
    if person.spouse is None:
        without.add("spouse")
    else:
        values |= {"spouse": person.spouse, "partner": "husband" if person.is_woman else "wife"}
    if shop is None:
        without |= {"opens", "shut"}
    else:
        values |= _hours(shop)
    return [telling for telling in PERSON if not without & set(telling.questions)], values


def _named(person: Person) -> dict[str, object]:
    return {
        "full": person.full_name,
        "name": person.name,
        "he": person.pronoun,
        "his": person.possessive,
        "him_or_her": "her" if person.is_woman else "him",
    }


def _hours(shop: Shop) -> dict[str, object]:
    hours = {"opens": clock(shop.opens), "closes": clock(shop.closes)}
    return {"shop": shop.name, "place": shop.owner.trade.place, "shut": shop.shut, **hours}


def _landmark(town: Town, subject: int, draw: random.Random) -> tuple[Sequence[Telling], dict[str, object]]:
    mark, keeper = town.landmarks[subject], draw.choice(town.people)
    return LANDMARK, {
        "kind": mark.kind,
        "town": town.name,
        "builder": mark.builder,
        "year": mark.year,
        "material": mark.material,
        "feet": f"{mark.feet} feet",
        "where": mark.place,
        "legend": mark.legend,
        "keeper": keeper.full_name,
        "repaired": mark.year + draw.randrange(20, 150, 5),
    }


def _happening(town: Town, subject: int, draw: random.Random) -> tuple[Sequence[Telling], dict[str, object]]:
    day = town.happenings[subject]
    return HAPPENING, {
        "contest": day.contest,
        "town": town.name,
        "day": day.day,
        "season": day.season,
        "year": day.year,
        "winner": day.winner.full_name,
        "winner_trade": day.winner.trade.name,
        "second": day.second.full_name,
        "prize": day.prize,
        "visitors": day.visitors,
        "weather": day.weather,
    }


def _shops(town: Town, subject: int, draw: random.Random) -> tuple[Sequence[Telling], dict[str, object]]:
    del subject  # four shops of the town, whichever
    chosen = draw.sample(town.shops, 4)
    values: dict[str, object] = {"town": town.name, "market_day": town.market_day, "river": town.river}
    for number, shop in enumerate(chosen, 1):
        own = _hours(shop) | {"owner": shop.owner.full_name, "goods": shop.owner.trade.goods}
        values |= {f"{name}{number}": value for name, value in own.items()}
    return SHOPS, values
