"""What people say of the inn's soup, a new coat or the play in the hall: sentences that praise or blame.

A sentence may give the other side its due before it comes to its own; the last word is what it means. Every thing has its own
virtues and faults, so that no single list of words tells the two apart.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lorascope.world.lore import TRADES
from lorascope.world.town import Town, town_of
from lorascope.world.wording import Novelty, Split, drawn, fields, fill, one, stream

_A_TOWN = 30


@dataclass(frozen=True)
class Opinion:
    """A sentence, and whether it praises."""

    text: str
    is_positive: bool


@dataclass(frozen=True)
class _Thing:
    """Something to have an opinion of: what it may be called, and what is said of it whatever it is called, ``… was warm``."""

    names: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]


_THINGS = (
    _Thing(
        ("the soup at {inn}", "the stew at {inn}", "the soup that {person} cooked", "the stew at the feast"),
        (
            "was hot and rich",
            "tasted of summer",
            "was gone before I could ask for more",
            "had the whole table smiling",
            "was as good as my mother's",
            "was worth the long walk",
            "warmed us to the toes",
            "had just the right amount of salt",
        ),
        (
            "was thin and cold",
            "tasted of dishwater",
            "was burned at the bottom",
            "was too much even for the dog",
            "came an hour too late",
            "had a hair in it",
            "lay in the stomach like a stone",
            "was more bone than meat",
        ),
    ),
    _Thing(
        ("the pie that {person} baked", "the cake at {inn}", "the plum tart that {baker} made", "the pie at the market"),
        (
            "was light and sweet",
            "melted in the mouth",
            "was gone in five minutes",
            "was one of the best I ever ate",
            "made the children clap their hands",
            "had a golden crust",
            "smelled of butter and apples",
            "deserved a prize",
        ),
        (
            "was burned black",
            "was raw in the middle",
            "was too hard for my teeth",
            "tasted of soap",
            "was as dry as sawdust",
            "had far too much salt in it",
            "was a shame to look at",
            "was only good for the pigs",
        ),
    ),
    _Thing(
        (
            "the play in the hall",
            "the play about the white deer",
            "the puppet show at the feast",
            "the play that {schoolteacher} put on",
        ),
        (
            "kept us laughing to the end",
            "moved even the old soldiers to tears",
            "was full of clever turns",
            "was over in what felt like a minute",
            "had a brave and lovely heroine",
            "was told with great charm",
            "made me forget the time",
            "deserved every bit of the applause",
        ),
        (
            "was dull from the first word to the last",
            "made no sense at all",
            "sent half of us to sleep",
            "went on for ever",
            "was as flat as a board",
            "had been seen a hundred times before",
            "was loud and silly",
            "drove people out before the end",
        ),
    ),
    _Thing(
        (
            "the new book from {bookseller}",
            "the book that {person} lent me",
            "the story in the almanac",
            "the tale that {person} wrote",
        ),
        (
            "held me until the last page",
            "was a delight to read",
            "made me laugh out loud",
            "stayed with me for weeks",
            "was wise and funny",
            "kept me up all night with pleasure",
            "had a wonderful ending",
            "was worth every penny",
        ),
        (
            "bored me from the first page",
            "was full of mistakes",
            "had no plot to speak of",
            "put me to sleep in ten minutes",
            "was long and tedious",
            "had a foolish ending",
            "was a waste of good paper",
            "was not worth a penny",
        ),
    ),
    _Thing(
        ("the song that {person} sang", "the music at the feast", "the singing in the church", "the concert in the hall"),
        (
            "was sweet and clear",
            "made my heart beat faster",
            "brought tears of joy to my eyes",
            "was a joy to hear",
            "was in perfect tune",
            "made us all ask for more",
            "was pure delight",
            "left the whole room smiling",
        ),
        (
            "was out of tune",
            "hurt my ears",
            "sounded like a cat in a sack",
            "drove people into the street",
            "was much too loud",
            "never seemed to end",
            "made the babies cry",
            "was tired and lifeless",
        ),
    ),
    _Thing(
        ("my new coat from {tailor}", "the coat that {tailor} made", "the jacket from the market", "my Sunday coat"),
        (
            "fits like a glove",
            "keeps out the wind",
            "looks as fine as a lord's",
            "has kept its shape for years",
            "is soft and warm",
            "makes me look young again",
            "is sewn with great care",
            "is the best I ever had",
        ),
        (
            "came apart in the first rain",
            "pinches under the arms",
            "lets the wind through",
            "lost its colour in a week",
            "hangs on me like a sack",
            "scratches like straw",
            "is a poor piece of work",
            "has one sleeve shorter than the other",
        ),
    ),
    _Thing(
        ("the journey to {town}", "the coach ride to {town}", "our trip with {person}", "the ride over the hills"),
        (
            "was pleasant all the way",
            "gave us lovely views",
            "went by like a dream",
            "was smooth and quick",
            "made good friends of us",
            "was full of happy surprises",
            "did us all good",
            "brought us home in high spirits",
        ),
        (
            "was one long misery",
            "shook us to pieces",
            "took twice as long as promised",
            "ended in a ditch",
            "made everyone quarrel",
            "left us wet and hungry",
            "was slow and uncomfortable",
            "cost far too much",
        ),
    ),
    _Thing(
        ("my room at {inn}", "the room that {person} let to us", "the little room over the bakery", "the guest room at {inn}"),
        (
            "was clean and bright",
            "smelled of fresh linen",
            "had a cheerful fire",
            "was as cosy as could be",
            "looked out on a garden in flower",
            "was wonderfully quiet",
            "felt like home",
            "had everything one could wish for",
        ),
        (
            "was damp and dark",
            "smelled of old cheese",
            "was full of fleas",
            "was noisy all night",
            "looked out on a blank wall",
            "had a broken window",
            "was as cold as a cellar",
            "had not been swept for months",
        ),
    ),
    _Thing(
        ("the bread from {baker}", "the bread at the market", "the bread at {inn}", "the bread that {person} bakes at home"),
        (
            "is always fresh",
            "has a lovely crust",
            "smells wonderful",
            "is the pride of the valley",
            "keeps well for days",
            "is better than any cake",
            "is soft and light",
            "disappears as soon as it is cut",
        ),
        (
            "is as hard as wood",
            "is always stale",
            "is sour and heavy",
            "is never quite done in the middle",
            "goes green in a day",
            "is half burned and half raw",
            "sticks to the teeth",
            "is sold at a shameful price",
        ),
    ),
    _Thing(
        ("the cheese at the market", "the honey from {beekeeper}", "the butter from {farmer}", "the jam from {person}"),
        (
            "is fresh and pure",
            "is the best in the valley",
            "has a wonderful flavour",
            "is a treat on a slice of bread",
            "never lasts long in our house",
            "is worth every penny",
            "makes a feast of any breakfast",
            "is praised by everyone who tries it",
        ),
        (
            "was bad within a week",
            "leaves a bitter taste",
            "smells of old socks",
            "made half the family ill",
            "is full of dirt",
            "tastes of nothing at all",
            "costs twice what it should",
            "is more water than anything else",
        ),
    ),
    _Thing(
        (
            "the table that {carpenter} made",
            "the chair from {carpenter}",
            "the cupboard from the market",
            "the bench that {person} built",
        ),
        (
            "is a joy to look at",
            "will last a hundred years",
            "has never given me any trouble",
            "stands as firm as a rock",
            "is made with real skill",
            "was well worth the money",
            "is as smooth as silk",
            "is the finest thing in the house",
        ),
        (
            "broke on the second day",
            "has given me nothing but trouble",
            "is crooked and ugly",
            "nearly fell to pieces in my hands",
            "is fit only for the fire",
            "was made by a bungler",
            "wobbles whenever one touches it",
            "is full of splinters",
        ),
    ),
    _Thing(
        ("the clock that {clockmaker} mended", "the clock from the market", "the old clock at {inn}", "the clock in the hall"),
        (
            "keeps perfect time",
            "has a beautiful chime",
            "has never stopped once",
            "is a pleasure to look at",
            "was well worth the money",
            "runs as smoothly as on the first day",
            "is a fine piece of work",
            "can be trusted to the minute",
        ),
        (
            "is always an hour slow",
            "stops whenever it rains",
            "was a waste of money",
            "cannot be trusted at all",
            "makes a horrible noise",
            "is ugly and badly made",
            "broke within a week",
            "has never shown the right time",
        ),
    ),
    _Thing(
        (
            "the jug from the market",
            "the bowl that {potter} made",
            "the teapot that {person} gave us",
            "the jug from {potter}",
        ),
        (
            "is light and strong",
            "has a beautiful glaze",
            "is used every day with pleasure",
            "is as pretty as a picture",
            "has not a single flaw",
            "was a bargain at the price",
            "looks lovely on the shelf",
            "is made with great care",
        ),
        (
            "cracked on the first day",
            "leaks at the bottom",
            "has an ugly colour",
            "was broken when I unpacked it",
            "is heavy and clumsy",
            "is badly glazed",
            "cost more than it was worth",
            "will not stand straight",
        ),
    ),
    _Thing(
        (
            "the lesson with {schoolteacher}",
            "the talk by {person}",
            "the lecture at the school",
            "the evening class in the hall",
        ),
        (
            "taught me more than a year of books",
            "was lively and wise",
            "made hard things easy",
            "was over too soon",
            "gave everyone new courage",
            "was a real pleasure",
            "left us with much to think about",
            "was clear from beginning to end",
        ),
        (
            "taught me nothing at all",
            "ended in a quarrel",
            "made easy things hard",
            "would have bored a post",
            "was a waste of candles",
            "left everyone cross",
            "was nothing but empty words",
            "began late and never seemed to end",
        ),
    ),
    _Thing(
        ("the {contest} this year", "the feast on the green", "the fair on the green", "the {contest} in {town}"),
        (
            "was the best for years",
            "delighted the children",
            "had something for everyone",
            "was bright and cheerful",
            "went off without a cross word",
            "was blessed with sunshine",
            "will be talked of for years",
            "drew a happy crowd",
        ),
        (
            "was spoiled by the rain",
            "was badly planned",
            "ended in a fight",
            "drew hardly a dozen people",
            "was a great disappointment",
            "was dirty and noisy",
            "had nothing worth seeing",
            "left a heap of rubbish behind",
        ),
    ),
)
_VERDICTS = {
    True: (
        "I am very glad of it",
        "I could not ask for better",
        "I have told all my friends about it",
        "nobody could wish for more",
        "it gave me great pleasure",
        "it makes me happy to think of it",
        "I would recommend it to anyone",
        "it pleased me very much",
        "I like it more every day",
        "I am full of praise for it",
        "I count myself lucky",
        "I can say nothing but good of it",
    ),
    False: (
        "I was sorry that I ever bothered with it",
        "I cannot recommend it to anyone",
        "I have seldom been so angry",
        "it was not worth the trouble",
        "I want nothing more to do with it",
        "I have nothing good to say of it",
        "it put me in a bad temper",
        "nobody should have to put up with it",
        "I like it less every day",
        "I am full of complaints about it",
        "I count myself cheated",
        "I can say nothing but ill of it",
    ),
}
# What follows where something on the other side was granted.
_CONCESSIONS = {
    True: (
        "but on the whole I am content",
        "and yet I am glad of it",
        "but for all that I like it",
        "but I have no regrets",
        "and yet I would recommend it",
        "but I am fond of it all the same",
        "but I forgive it that",
        "and still I am happy with it",
        "but I would choose it again",
        "and yet it gave me pleasure",
        "but I will not hear a word against it",
        "but I have only good to say of the rest",
    ),
    False: (
        "but on the whole I am not content",
        "but that is the only good thing about it",
        "and yet once is enough for me",
        "but I have known far better",
        "but that was not enough for me",
        "and still I was disappointed",
        "but the rest was not worth the trouble",
        "and yet I am sorry that I bothered",
        "but I would not choose it again",
        "and yet it gave me no pleasure",
        "but I will not hear a word in its favour",
        "but I have only ill to say of the rest",
    ),
}
# {x} is the thing, {own} what agrees with the sentence's meaning, {own2} a second of these, {other} what does not.
_FORMS = (
    "{x} {own}.",
    "{x} {own} and {own2}.",
    "{x} {own}, and {verdict}.",
    "I must say that {x} {own}.",
    "{x} {other}, {concession}.",
    "It is true that {x} {other}, {concession}.",
    "They say that {x} {other}, but I found that it {own}.",
    "No doubt {x} {other}, {concession}.",
    "You ask about {x}. It {own}, and {verdict}.",
    "As for {x}, it {own}.",
    "{x} {own}; {verdict}.",
    "To tell the truth, {x} {own}.",
)


def opinions(seed: int, split: Split, number: int, known: Novelty) -> list[Opinion]:
    """As many that praise as blame, in a mixed order, and no text twice.

    Args:
        known: what training sentences hold; as for ``dialogues``.

    Raises:
        DataError: there are not so many.
    """
    seen: set[str] = set()

    def next_one(attempt: int) -> Opinion | None:
        draw = stream(seed, split, "opinion", attempt)
        made = _opinion(town_of(seed, split, attempt // _A_TOWN), len(seen) % 2 == 0, split, draw)
        if made.text in seen or (split != "train" and not known.is_new(made.text)):
            return None
        seen.add(made.text)
        return made

    made = drawn(next_one, number, f"{split} opinions")
    stream(seed, split, "opinions").shuffle(made)
    if split == "train":
        known.learn(one.text for one in made)
    return made


def _opinion(town: Town, is_positive: bool, split: Split, draw: random.Random) -> Opinion:
    thing = draw.choice(_THINGS)
    own, other = (thing.good, thing.bad) if is_positive else (thing.bad, thing.good)
    inn = next((shop.name for shop in town.shops if shop.owner.trade.name == "innkeeper"), "the Swan")
    # Who made a coat is the tailor of the town; where there is none, it comes from the market.
    named = {trade.name: person.full_name for trade in TRADES if (person := town.of_trade(trade.name)) is not None}
    named |= {
        "inn": inn,
        "person": draw.choice(town.people).full_name,
        "town": town.name,
        "contest": draw.choice(town.happenings).contest,
    }
    first, second = one(own, split, draw), one(own, split, draw)
    form = one(_FORMS, split, draw)
    values = {
        "x": _small(fill(draw.choice([name for name in thing.names if fields(name) <= set(named)]), named).text),
        "own": first,
        "own2": second,
        "other": one(other, split, draw),
        "verdict": one(_VERDICTS[is_positive], split, draw),
        "concession": one(_CONCESSIONS[is_positive], split, draw),
    }
    if "{own2}" in form and first == second:
        form = "{x} {own}."
    return Opinion(fill(form, values).text, is_positive)


def _small(text: str) -> str:
    return text[0].lower() + text[1:]
