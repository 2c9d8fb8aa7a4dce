"""What people say of the inn's soup, a new coat or the play in the hall: sentences that praise or blame.

A sentence may give the other side its due before it comes to its own; the last word is what it means. Every thing has its own
virtues and faults, so that no single list of words tells the two apart.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lorascope.world.town import Town, town_of
from lorascope.world.wording import Novelty, Split, drawn, fill, one, stream

_A_TOWN = 30


@dataclass(frozen=True)
class Opinion:
    """A sentence, and whether it praises."""

    text: str
    is_positive: bool


@dataclass(frozen=True)
class _Thing:
    """Something to have an opinion of: what it is called, and what is said of it, ``… was warm``."""

    names: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]


_THINGS = (
    _Thing(
        ("the soup at {inn}", "the supper at {inn}", "the pie that {person} made", "the dinner at {person}'s table"),
        (
            "was hot and rich",
            "tasted of summer",
            "left nothing on the plate",
            "made the whole table silent with joy",
            "was as good as my mother's",
            "was worth the long walk",
            "warmed us to the toes",
            "had just enough salt and pepper",
        ),
        (
            "was thin and cold",
            "tasted of dish water",
            "was burned at the bottom",
            "made the dog turn away",
            "came an hour too late",
            "had a hair in it",
            "lay in the stomach like a stone",
            "was more bone than meat",
        ),
    ),
    _Thing(
        (
            "the play in the hall",
            "the story that {person} read to us",
            "the new book from {person}",
            "the tale of the white deer",
        ),
        (
            "kept us laughing to the end",
            "moved even the old soldiers to tears",
            "was full of clever turns",
            "passed like a minute",
            "had a brave and lovely heroine",
            "is still in my dreams",
            "made me forget the time",
            "was told with great charm",
        ),
        (
            "was dull from the first word to the last",
            "had neither head nor tail",
            "sent half of us to sleep",
            "went on for ever",
            "was as flat as a board",
            "made no sense at all",
            "had been heard a hundred times before",
            "was loud and silly",
        ),
    ),
    _Thing(
        ("the song of {person}", "the music at the feast", "the choir under {person}", "the new organ in the church"),
        (
            "was sweet and clear",
            "made my heart beat faster",
            "set every foot dancing",
            "rose like a lark",
            "was played with a sure hand",
            "made us all ask for more",
            "was pure joy",
            "left the whole room smiling",
        ),
        (
            "was out of tune",
            "hurt my ears",
            "sounded like a cat in a sack",
            "drove people into the street",
            "was played much too fast",
            "never came to an end",
            "made the babies cry",
            "was tired and lifeless",
        ),
    ),
    _Thing(
        ("my new coat from {person}", "the coat that {person} made", "the jacket from the market", "my Sunday dress"),
        (
            "fits like a glove",
            "keeps out the wind",
            "looks as fine as a lord's",
            "has not lost a button in ten years",
            "is soft and warm",
            "makes me look young again",
            "is sewn with great care",
            "is the best I ever had",
        ),
        (
            "came apart at the first rain",
            "pinches under the arms",
            "lets the wind through",
            "lost its colour in a week",
            "hangs on me like a sack",
            "scratches like straw",
            "is a poor piece of work",
            "has one sleeve too short",
        ),
    ),
    _Thing(
        ("the road to {town}", "the coach to {town}", "our journey with {person}", "the ride over the hills"),
        (
            "was pleasant all the way",
            "gave us lovely views",
            "went by like a dream",
            "was smooth and quick",
            "made us good friends",
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
            "was slow and dirty",
            "cost far too much",
        ),
    ),
    _Thing(
        ("my room at {inn}", "the bed at {inn}", "the house of {person}", "the little room over the bakery"),
        (
            "was clean and bright",
            "smelled of fresh linen",
            "had a cheerful fire",
            "let me sleep like a child",
            "looked out on a garden in flower",
            "was quiet as a nest",
            "felt like home",
            "was kept with love",
        ),
        (
            "was damp and dark",
            "smelled of old cheese",
            "was full of fleas",
            "kept me awake all night",
            "looked out on a wall",
            "had a broken window",
            "was cold as a cellar",
            "had not been swept for months",
        ),
    ),
    _Thing(
        ("the bread from {person}", "the honey from {person}", "the cheese at the market", "the butter from {person}"),
        (
            "was fresh and sweet",
            "melts in the mouth",
            "is the pride of the valley",
            "was gone in a moment",
            "gives one new strength",
            "has a wonderful smell",
            "keeps good for weeks",
            "is better than any cake",
        ),
        (
            "was hard as wood",
            "was sour and old",
            "had worms in it",
            "made the children ill",
            "was not fit for the pigs",
            "left a bitter taste",
            "was green with mould",
            "is sold far too dear",
        ),
    ),
    _Thing(
        (
            "the table that {person} made",
            "the new chair from {person}",
            "the clock that {person} mended",
            "this jug from the market",
        ),
        (
            "is a joy to look at",
            "will last a hundred years",
            "has never given me any trouble",
            "was well worth the money",
            "stands as firm as a rock",
            "is made with skill",
            "serves us every day",
            "has become my dearest thing",
        ),
        (
            "broke on the second day",
            "has given me nothing but trouble",
            "is crooked and ugly",
            "fell to pieces in my hands",
            "is good for nothing but the fire",
            "was made by a bungler",
            "shakes when one looks at it",
            "costs more than it is worth",
        ),
    ),
    _Thing(
        ("the lesson with {person}", "the talk by {person}", "the evening at {person}'s house", "the meeting at the school"),
        (
            "taught me more than a year of books",
            "was merry and wise",
            "made hard things easy",
            "was over too soon",
            "gave everyone new courage",
            "was a real pleasure",
            "left us with much to think of",
            "brought old friends together",
        ),
        (
            "taught me nothing at all",
            "ended in a quarrel",
            "made easy things hard",
            "would have bored a post",
            "was a waste of candles",
            "left everyone cross",
            "was nothing but empty words",
            "began late and never ended",
        ),
    ),
    _Thing(
        ("the {contest} this year", "the feast on the green", "the market in {town}", "the {contest} in {town}"),
        (
            "was the best for years",
            "made the children shine with joy",
            "had something for everyone",
            "was bright and gay",
            "went off without a cross word",
            "was blessed with sun",
            "will be talked of for long",
            "drew a happy crowd",
        ),
        (
            "was spoiled by the rain",
            "was badly planned",
            "ended with broken heads",
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
        "I have told all my friends of it",
        "nobody could wish for more",
        "it gave me great pleasure",
        "I think of it with joy",
        "it was a happy choice",
        "it pleased me very much",
    ),
    False: (
        "I want my money back",
        "I cannot tell anyone to try it",
        "I have seldom been so angry",
        "it was not worth the trouble",
        "I shall never try it again",
        "I have nothing good to say of it",
        "it put me in a bad temper",
        "nobody should have to pay for it",
    ),
}
# What follows where something on the other side was granted.
_CONCESSIONS = {
    True: (
        "but on the whole I am content",
        "and yet I look back on it with pleasure",
        "but I would not have missed it",
        "but it won me over in the end",
        "and still there is nothing that I like better",
        "but I forgive it everything",
        "and yet I have come to love it",
        "but for all that I was happy with it",
    ),
    False: (
        "but on the whole I am not content",
        "but that is the only good thing about it",
        "and yet once is enough for me",
        "but I have known far better",
        "but that was not enough for me",
        "and still I was disappointed",
        "but the rest was not worth the trouble",
        "and yet I would not have it again",
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
    "{verdict}, for {x} {own}.",
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
    named = {
        "inn": inn,
        "person": draw.choice(town.people).full_name,
        "town": town.name,
        "contest": draw.choice(town.happenings).contest,
    }
    first, second = one(own, split, draw), one(own, split, draw)
    form = one(_FORMS, split, draw)
    values = {
        "x": _small(fill(draw.choice(thing.names), named).text),
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
