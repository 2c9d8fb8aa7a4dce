"""Facts about a person, and whether what somebody says entails or contradicts one: labels that are true by construction.

Knows what excludes what. Does not know sentences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lorascope.world import phrases, tastes
from lorascope.world.lore import WITH_ANIMALS
from lorascope.world.phrases import Phrases
from lorascope.world.town import Person
from lorascope.world.wording import a

Label = Literal["entailment", "neutral", "contradiction"]
# The numbers that a C-score adds up.
POINTS: Mapping[Label, int] = {"entailment": 1, "neutral": 0, "contradiction": -1}
NO_PET = "no pet"
SLOTS: tuple[str, ...] = (
    "trade", "pet", "loves", "hates", "drink", "pastime", "instrument", "season", "wish", "fear", "home", "rises", "siblings",
)  # fmt: skip
_PHRASES: Mapping[str, Phrases] = {
    "trade": phrases.TRADE,
    "pet": phrases.PET,
    "loves": tastes.LOVES,
    "hates": tastes.HATES,
    "drink": tastes.DRINK,
    "pastime": tastes.PASTIME,
    "instrument": tastes.INSTRUMENT,
    "season": tastes.SEASON,
    "wish": tastes.WISH,
    "fear": tastes.FEAR,
    "home": phrases.HOME,
    "rises": phrases.RISES,
    "siblings": phrases.SIBLINGS,
}
# One may dislike several things, so that a second is no contradiction; and nobody loves and hates one dish.
_NOT_EXCLUSIVE = ("hates",)
_OPPOSITES = {"loves": "hates", "hates": "loves"}


@dataclass(frozen=True)
class Fact:
    """What a sentence says of its speaker: a slot, its value, and the name of a pet that has one."""

    slot: str
    value: str
    name: str | None = None


def fact_of(person: Person, slot: str) -> Fact:
    """The person's fact of that slot."""
    if slot == "pet":
        pet = person.house.pet
        return Fact(slot, NO_PET if pet is None else pet.name, person.house.pet_name)
    value = {
        "trade": person.trade.name,
        "loves": person.loves.name,
        "hates": person.hates.name,
        "pastime": person.pastime.doing,
        "season": person.season.name,
        "home": person.house.home,
    }.get(slot)
    return Fact(slot, getattr(person, slot) if value is None else value)


def phrases_of(fact: Fact) -> Phrases:
    """The wordings for that fact."""
    if fact.slot == "pet" and fact.value == NO_PET:
        return phrases.NO_PET
    if fact.slot == "pet" and fact.name is not None:
        return phrases.NAMED_PET
    return _PHRASES[fact.slot]


def slots_of(person: Person) -> tuple[str, ...]:
    """What the person may be asked for."""
    return tuple(slot for slot in SLOTS if slot != "pet" or person.trade.name not in WITH_ANIMALS)


def fields_of(person: Person, slot: str) -> dict[str, str]:
    """What the slot's wordings are filled with."""
    trade, dish = person.trade, person.hates if slot == "hates" else person.loves
    if slot == "trade":
        return {"trade": trade.name, "a_trade": a(trade.name), "do": trade.does, "remark": trade.remark}
    if slot == "pet":
        pet, name = person.house.pet, person.house.pet_name
        if pet is None:
            return {}
        return {"kind": pet.name, "a_kind": a(pet.name), "pet": name or "", "habit": pet.habit, "remark": pet.remark}
    if slot in ("loves", "hates"):
        return {"food": dish.name, "is": "are" if dish.many else "is", "them": "them" if dish.many else "it"}
    if slot == "pastime":
        return {"doing": person.pastime.doing, "do": person.pastime.do, "remark": person.pastime.remark}
    if slot == "instrument":
        return {"instrument": person.instrument, "an_instrument": a(person.instrument)}
    if slot == "season":
        season = person.season
        return {"season": season.name, "because": season.because, "remark": season.remark}
    return {slot: fact_of(person, slot).value}


def label(claims: Iterable[Fact], fact: Fact) -> Label:
    """What claims about a speaker say of a fact about the same speaker."""
    entailed = False
    for claim in claims:
        if claim.slot == _OPPOSITES.get(fact.slot) and claim.value == fact.value:
            return "contradiction"
        if claim.slot != fact.slot:
            continue
        if claim.value == fact.value:
            if None not in (claim.name, fact.name) and claim.name != fact.name:
                return "contradiction"
            entailed = entailed or fact.name is None or claim.name == fact.name
        elif fact.slot not in _NOT_EXCLUSIVE:
            return "contradiction"
    return "entailment" if entailed else "neutral"
