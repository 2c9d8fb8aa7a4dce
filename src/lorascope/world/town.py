"""The towns: who lives where, with whom, from what, and what each of them likes. Every set tells of these and of nothing else.

A town belongs to one split, with its people, its shops and its pets. It is drawn from (seed, split, number), so that it is the
same town whichever set asks for it. Families share their name, house, children and pet; a trade with a door to open has its
hours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from lorascope.world.lore import (
    ANIMALS,
    CHILDREN,
    COMMON_TRADES,
    DAYS,
    DAYS_OF_REST,
    DISHES,
    DISLIKED,
    DRINKS,
    FEARS,
    HOMES,
    INSTRUMENTS,
    PASTIMES,
    RISING,
    SEASONS,
    SIBLINGS,
    TRADES,
    WISHES,
    WITHOUT_SHOP,
    Animal,
    Dish,
    Names,
    Pastime,
    Season,
    Trade,
    names_of,
)
from lorascope.world.wording import Split, stream

_T = TypeVar("_T")
_HOUSEHOLDS = 12
# What nobody does or is who fears something.
_UNLIKELY = {
    "deep water": ("rowing on the lake", "swimming in the lake"),
    "the dark": ("watching the stars",),
    "bulls": ("walking in the hills", "farmer", "shepherd"),
    "fire": ("blacksmith", "baker", "potter"),
    "wasps": ("beekeeper",),
    "high ladders": ("bookseller",),
}


@dataclass(frozen=True)
class House:
    """What a family shares. ``pet`` is None for no animal, ``pet_name`` for one without a name."""

    surname: str
    home: str
    children: str
    pet: Animal | None
    pet_name: str | None


@dataclass(frozen=True)
class Person:
    """A grown-up of a town."""

    name: str
    is_woman: bool
    house: House
    town: str
    trade: Trade
    siblings: str
    loves: Dish
    hates: Dish
    drink: str
    pastime: Pastime
    instrument: str
    season: Season
    wish: str
    fear: str
    rises: str
    spouse: str | None = None

    @property
    def full_name(self) -> str:
        """First name and surname."""
        return f"{self.name} {self.house.surname}"

    @property
    def pronoun(self) -> str:
        """He or she."""
        return "she" if self.is_woman else "he"

    @property
    def possessive(self) -> str:
        """His or her."""
        return "her" if self.is_woman else "his"


@dataclass(frozen=True)
class Shop:
    """Where somebody works: ``shut`` is the day on which it is not open."""

    owner: Person
    opens: int
    closes: int
    shut: str

    @property
    def name(self) -> str:
        """``Thorne's bakery``."""
        return f"{self.owner.house.surname}'s {self.owner.trade.place}"


@dataclass(frozen=True)
class Landmark:
    """Something old in a town: what, who made it, when, of what, how high, where it stands and what is told of it."""

    kind: str
    builder: str
    year: int
    material: str
    feet: int
    place: str
    legend: str


@dataclass(frozen=True)
class Happening:
    """A day that a town remembers, and who was the best at what."""

    contest: str
    day: str
    season: str
    year: int
    winner: Person
    second: Person
    prize: str
    visitors: int
    weather: str


@dataclass(frozen=True)
class Town:
    """A small town with its river, its people and their shops."""

    name: str
    river: str
    market_day: str
    people: tuple[Person, ...]
    shops: tuple[Shop, ...]
    landmarks: tuple[Landmark, ...]
    happenings: tuple[Happening, ...]

    def of_trade(self, trade: str) -> Person | None:
        """Who follows a trade here, the first where there are several; None where nobody does."""
        return next((person for person in self.people if person.trade.name == trade), None)

    def shop_of(self, person: Person) -> Shop | None:
        """The person's own shop; None for who has none."""
        return next((shop for shop in self.shops if shop.owner == person), None)


@lru_cache(maxsize=256)
def town_of(seed: int, split: Split, number: int) -> Town:
    """The town of that number: a pure function of seed, split and number.

    After as many towns as there are names, the names begin again with other people.
    """
    draw, names = stream(seed, split, "town", number), names_of(split)
    order = list(names.towns)
    stream(seed, split, "towns").shuffle(order)
    name = order[number % len(order)]
    people = tuple(_people(draw, names, name))
    return Town(
        name,
        f"the {draw.choice(('Lark', 'Otter', 'Silver', 'Willow', 'Black', 'Heron', 'Trout', 'White'))} Water",
        draw.choice(DAYS),
        people,
        tuple(_shops(draw, people)),
        tuple(_landmarks(draw, names)),
        tuple(_happenings(draw, people)),
    )


def _people(draw: random.Random, names: Names, town: str) -> Iterator[Person]:
    women, men = _deck(names.women, draw), _deck(names.men, draw)
    homes, pets, trades = _deck(HOMES, draw), _deck(names.pets, draw), _trades(draw)
    for surname in draw.sample(names.surnames, _HOUSEHOLDS):
        pet = draw.choice(ANIMALS) if draw.random() < 0.85 else None
        pet_name = next(pets) if pet is not None and draw.random() < 0.6 else None
        house = House(surname, next(homes), draw.choice(CHILDREN), pet, pet_name)
        wife, husband = (
            _person(draw, next(given), is_woman, house, town, next(trades))
            for given, is_woman in ((women, True), (men, False))
        )
        kind = draw.random()
        if kind < 0.6:
            yield replace(wife, spouse=husband.name)
            yield replace(husband, spouse=wife.name)
        else:
            yield wife if kind < 0.8 else husband


def _person(draw: random.Random, name: str, is_woman: bool, house: House, town: str, trade: Trade) -> Person:
    pastime, loves = draw.choice(PASTIMES), draw.choice(DISHES)
    unlikely = (pastime.doing, trade.name)
    return Person(
        name,
        is_woman,
        house,
        town,
        trade,
        siblings=draw.choice(SIBLINGS),
        loves=loves,
        hates=draw.choice([dish for dish in DISLIKED if dish != loves]),
        drink=draw.choice(DRINKS),
        pastime=pastime,
        instrument=draw.choice(INSTRUMENTS),
        season=draw.choice(SEASONS),
        wish=draw.choice(WISHES),
        fear=draw.choice([fear for fear in FEARS if not set(_UNLIKELY.get(fear, ())) & set(unlikely)]),
        # Nobody sleeps when the door should be open.
        rises=draw.choice([rises for rises, hour in RISING.items() if hour < trade.hours[0]]),
    )


def _deck(items: Sequence[_T], draw: random.Random) -> Iterator[_T]:
    """All items in a drawn order, again and again."""
    while True:
        yield from draw.sample(items, len(items))


def _trades(draw: random.Random) -> Iterator[Trade]:
    """Every trade once, then those of which a town has room for several."""
    yield from draw.sample(TRADES, len(TRADES))
    yield from _deck([trade for trade in TRADES if trade.name in COMMON_TRADES], draw)


def _shops(draw: random.Random, people: Sequence[Person]) -> Iterator[Shop]:
    """The first of each trade has the shop; the others work in the fields, or at home."""
    owned: set[str] = set()
    for person in people:
        trade = person.trade
        if trade.name not in owned and trade.name not in WITHOUT_SHOP:
            owned.add(trade.name)
            yield Shop(person, trade.hours[0] + draw.choice((0, 0, 1)), trade.hours[1], draw.choice(DAYS_OF_REST))


_LANDMARKS = (
    ("stone bridge", ("grey stone", "red stone"), (20, 40), "where the road to the hills begins",
     "that a bell rings under it at midnight"),
    ("clock tower", ("red brick", "white stone"), (60, 110), "in the middle of the market place",
     "that it once struck thirteen before a great storm"),
    ("lighthouse", ("white stone", "oak and iron"), (40, 70), "on a rock in the lake",
     "that a boy once kept its lamp burning alone"),
    ("old mill", ("oak", "grey stone"), (30, 50), "where the river bends",
     "that a bag of silver lies behind its wheel"),
    ("town gate", ("red brick", "grey stone"), (30, 60), "at the end of the high street",
     "that it was opened once for a lost child"),
    ("castle", ("grey stone", "black stone"), (80, 140), "on the hill above the town",
     "that a white deer walks there before good news"),
)  # fmt: skip


def _landmarks(draw: random.Random, names: Names) -> Iterator[Landmark]:
    for kind, materials, (low, high), place, legend in draw.sample(_LANDMARKS, 3):
        builder = f"{draw.choice(names.women + names.men)} {draw.choice(names.surnames)}"
        feet = draw.randrange(low, high, 5)
        yield Landmark(kind, builder, draw.randrange(1480, 1860), draw.choice(materials), feet, place, legend)


_CONTESTS = (
    ("boat race", ("a silver cup", "a new pair of oars")),
    ("pie contest", ("a copper kettle", "a white goose")),
    ("sheep fair", ("a blue ribbon", "a young ram")),
    ("singing contest", ("a silver flute", "a wreath of oak leaves")),
    ("kite day", ("a box of paints", "a brass telescope")),
    ("ploughing match", ("a leather harness", "ten silver coins")),
)
_WEATHERS = (
    "it rained from noon until dark",
    "the sun shone all day",
    "a strong wind blew from the west",
    "there was fog until ten",
)


def _happenings(draw: random.Random, people: Sequence[Person]) -> Iterator[Happening]:
    for contest, prizes in draw.sample(_CONTESTS, 3):
        winner, second = draw.sample(people, 2)
        yield Happening(
            contest,
            draw.choice(DAYS),
            draw.choice(SEASONS).name,
            draw.randrange(1862, 1899),
            winner,
            second,
            draw.choice(prizes),
            draw.randrange(80, 900, 20),
            draw.choice(_WEATHERS),
        )
