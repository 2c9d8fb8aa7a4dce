"""What is known of things in general: trades and their tools, animals, dishes, pastimes, seasons, names.

Common knowledge, the same in every split; names of people, places and pets are divided between splits once and for all, so
that none that is met in an evaluation has ever been trained on, whatever the seed. Does not know a town.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorascope.world.wording import Split


@dataclass(frozen=True)
class Trade:
    """A way to earn one's bread.

    Attributes:
        does: what one does in it, ``I …``: what all of that trade do and nobody else does.
        place: where, and ``goods`` what leaves it, ``unit`` one of these.
        hours: when the door is opened and shut, twelve for midnight; without a door, when work begins and ends.
        remark: what people say who hear of it.
    """

    name: str
    does: str
    place: str
    tool: str
    goods: str
    unit: str
    hours: tuple[int, int]
    remark: str


TRADES = (
    Trade(
        "baker",
        "bake bread and rolls",
        "bakery",
        "long wooden shovel",
        "loaves",
        "loaf",
        (6, 3),
        "Then your street must smell of warm bread.",
    ),
    Trade(
        "miller",
        "grind the farmers' corn",
        "mill",
        "great millstone",
        "sacks of flour",
        "sack of flour",
        (7, 5),
        "No wonder your coat is white with flour.",
    ),
    Trade(
        "blacksmith",
        "shoe horses and mend ploughs",
        "forge",
        "heavy hammer",
        "horseshoes",
        "horseshoe",
        (7, 6),
        "I can hear your hammer from my window.",
    ),
    Trade(
        "schoolteacher",
        "teach children to read and to count",
        "school",
        "piece of chalk",
        "copybooks",
        "copybook",
        (8, 2),
        "You must have a great deal of patience.",
    ),
    Trade(
        "carpenter",
        "make tables, chairs and doors",
        "workshop",
        "sharp saw",
        "chairs",
        "chair",
        (7, 5),
        "My kitchen door has been crooked for a year.",
    ),
    Trade(
        "tailor",
        "sew coats and mend trousers",
        "tailoring shop",
        "pair of large scissors",
        "coats",
        "coat",
        (9, 6),
        "My best coat needs a new button.",
    ),
    Trade(
        "shoemaker",
        "make boots and shoes",
        "shoe shop",
        "small hammer and an awl",
        "boots",
        "pair of boots",
        (8, 6),
        "These old shoes of mine let in the water.",
    ),
    Trade(
        "gardener",
        "look after gardens and flower beds",
        "nursery garden",
        "spade",
        "young trees",
        "young tree",
        (8, 5),
        "The roses in the park have never been so fine.",
    ),
    Trade(
        "shepherd",
        "watch over the sheep on the hills",
        "sheepfold",
        "crooked staff",
        "fleeces",
        "fleece",
        (6, 8),
        "It must grow lonely up on the hills.",
    ),
    Trade(
        "doctor",
        "visit the sick and cure them",
        "surgery",
        "little black bag",
        "bottles of medicine",
        "bottle of medicine",
        (9, 4),
        "Then perhaps you can tell me why my knee aches.",
    ),
    Trade(
        "innkeeper",
        "keep an inn",
        "inn",
        "bunch of keys",
        "suppers",
        "supper",
        (7, 12),
        "You must hear all the news before anyone else.",
    ),
    Trade(
        "weaver",
        "weave blankets on a loom",
        "weaving room",
        "tall loom",
        "blankets",
        "blanket",
        (8, 5),
        "My grandmother had a loom when I was small.",
    ),
    Trade(
        "beekeeper",
        "keep bees and sell their honey",
        "honey house",
        "hat with a veil",
        "jars of honey",
        "jar of honey",
        (9, 4),
        "One must learn not to mind being stung.",
    ),
    Trade(
        "clockmaker",
        "mend clocks and watches",
        "clock shop",
        "magnifying glass",
        "clocks",
        "clock",
        (9, 5),
        "Then you at least can never come late.",
    ),
    Trade(
        "potter",
        "make jugs and bowls of clay",
        "pottery",
        "wheel",
        "jugs",
        "jug",
        (8, 4),
        "I broke my last good bowl on Friday.",
    ),
    Trade(
        "bookseller",
        "sell books, old ones and new ones",
        "bookshop",
        "ladder",
        "books",
        "book",
        (10, 6),
        "I have been looking for a good story for my niece.",
    ),
    Trade(
        "farmer",
        "plough my fields and bring in the harvest",
        "farm",
        "plough",
        "baskets of potatoes",
        "basket of potatoes",
        (6, 7),
        "I hope the harvest will be a good one.",
    ),
    Trade(
        "saddler",
        "make saddles and harness",
        "saddlery",
        "strong needle",
        "saddles",
        "saddle",
        (8, 5),
        "I know nothing that smells better than new leather.",
    ),
)
# Of these one town may have several.
COMMON_TRADES = ("farmer", "shepherd", "gardener", "weaver", "carpenter")
# These work out of doors and have no shop.
WITHOUT_SHOP = ("farmer", "shepherd")
# Who lives by animals is not asked for a pet: "I have no pet" and two hundred sheep would puzzle a reader.
WITH_ANIMALS = ("farmer", "shepherd", "beekeeper")


@dataclass(frozen=True)
class Animal:
    """A pet: ``habit`` is what it does, ``It …``; ``remark`` what people say who hear of it."""

    name: str
    habit: str
    remark: str


ANIMALS = (
    Animal("dog", "barks at the coach every morning", "A dog is good company on a long road."),
    Animal("cat", "sleeps on the warm stones by the stove", "Then there are no mice in your house, I suppose."),
    Animal("goose", "hisses at everyone who comes to the gate", "A goose watches the gate better than any lock."),
    Animal("parrot", "says good night at eight in the morning", "I have heard parrots that swear like sailors."),
    Animal("rabbit", "eats the lettuce before I can pick it", "My cousin had a rabbit that could open doors."),
    Animal("pony", "will not pass a carrot without stopping", "A pony must cost you a good deal of hay."),
    Animal("goat", "has eaten two of my hats", "I have heard that goats eat the washing from the line."),
    Animal("donkey", "stands still whenever it rains", "A donkey has a mind of its own, they say."),
    Animal("tortoise", "sleeps in a box of straw all winter", "A tortoise will never run away from you."),
    Animal("duck", "walks behind me like a child", "There are wild ducks on the pond again this week."),
    Animal("hen", "lays its eggs in my work basket", "Fresh eggs for breakfast are worth a little noise."),
    Animal("owl", "sits on the clock and stares at visitors", "I hear an owl in the church tower every night."),
    Animal("raven", "steals spoons and hides them in the roof", "Ravens are cleverer than some people I know."),
    Animal("hedgehog", "comes to the door for milk at dusk", "A hedgehog! I should not like to step on it."),
)


@dataclass(frozen=True)
class Dish:
    """Something to eat; ``many`` tells ``apples are`` from ``soup is``."""

    name: str
    many: bool = False


DISHES = (
    Dish("apple pie"), Dish("plum cake"), Dish("pea soup"), Dish("roast chicken"), Dish("fried fish"),
    Dish("honey cakes", True), Dish("strawberries", True), Dish("toasted cheese"), Dish("mushrooms", True),
    Dish("pancakes", True), Dish("baked potatoes", True), Dish("gingerbread"), Dish("rice pudding"), Dish("cherries", True),
    Dish("mutton stew"), Dish("porridge"), Dish("buttered beans", True), Dish("sausages", True),
)  # fmt: skip
DISLIKED = (
    Dish("onions", True), Dish("cabbage"), Dish("turnips", True), Dish("porridge"), Dish("mushrooms", True), Dish("pea soup"),
    Dish("boiled eggs", True), Dish("fried fish"), Dish("spinach"), Dish("rice pudding"), Dish("sour milk"),
    Dish("mutton stew"),
)  # fmt: skip
DRINKS = ("tea", "coffee", "milk", "cold water", "cider", "cocoa", "lemonade", "ginger beer")


@dataclass(frozen=True)
class Pastime:
    """``doing``: drawing birds; ``does``: draws birds; ``do``: draw birds; ``remark``: what people say who hear of it."""

    doing: str
    does: str
    do: str
    remark: str


PASTIMES = (
    Pastime("drawing birds", "draws birds", "draw birds", "I wonder that the birds sit still so long."),
    Pastime("playing chess", "plays chess", "play chess", "I never know which way the knight may go."),
    Pastime("reading old stories", "reads old stories", "read old stories", "A good story makes a long evening short."),
    Pastime("singing in the choir", "sings in the choir", "sing in the choir", "I thought I knew your voice from the church."),
    Pastime("walking in the hills", "walks in the hills", "walk in the hills", "The view from the top is worth the climb."),
    Pastime("carving little ships", "carves little ships", "carve little ships", "You must have a steady hand."),
    Pastime("painting the river", "paints the river", "paint the river", "The river is never the same colour twice."),
    Pastime("growing roses", "grows roses", "grow roses", "The snails are the great trouble with roses."),
    Pastime("rowing on the lake", "rows on the lake", "row on the lake", "One must be careful not to fall in."),
    Pastime("telling riddles", "tells riddles", "tell riddles", "I could never guess a riddle in my life."),
    Pastime("flying kites", "flies kites", "fly kites", "There was wind enough for it last week."),
    Pastime("dancing", "dances", "dance", "Then we shall see you at the harvest feast."),
    Pastime("watching the stars", "watches the stars", "watch the stars", "I only know the Great Bear."),
    Pastime("collecting shells", "collects shells", "collect shells", "There must be hundreds of them on your window sill."),
    Pastime("knitting", "knits", "knit", "A pair of warm socks is never wasted."),
    Pastime("swimming in the lake", "swims in the lake", "swim in the lake", "The water is far too cold for me."),
)
INSTRUMENTS = ("fiddle", "flute", "piano", "drum", "harp", "trumpet", "guitar", "organ")


@dataclass(frozen=True)
class Season:
    """``because``: why somebody likes it; ``remark``: what others say to that."""

    name: str
    because: str
    remark: str


SEASONS = (
    Season("spring", "the hedges turn green", "The first warm day is the best of the year."),
    Season("summer", "the evenings are long", "The heat is hard on some people, though."),
    Season("autumn", "the woods are red", "The fogs are bad for my chest, though."),
    Season("winter", "the snow lies deep", "The snow is hard on the old people, though."),
)
WISHES = (
    "the sea", "Paris", "London", "Switzerland", "Egypt", "Rome", "the great desert", "India", "the ice of the north",
    "New York", "Australia", "China",
)  # fmt: skip
FEARS = ("thunder", "the dark", "high ladders", "deep water", "spiders", "bulls", "ghosts", "snakes", "wasps", "fire")
# Nobody lives in two streets.
HOMES = (
    "in Mill Lane", "in Church Street", "in Castle Street", "in Orchard Road", "in Bridge Street", "in Market Row",
    "in Well Lane", "in Tower Street", "in School Lane", "in Fish Street", "in Duck Lane", "in Hill Road",
)  # fmt: skip
# With the hour of the clock that it is.
RISING: Mapping[str, float] = {
    "at five o'clock": 5.0,
    "at half past five": 5.5,
    "at six o'clock": 6.0,
    "at half past six": 6.5,
    "at seven o'clock": 7.0,
    "at half past seven": 7.5,
    "at eight o'clock": 8.0,
    "at nine o'clock": 9.0,
}
SIBLINGS = (
    "no brothers or sisters", "one brother and no sisters", "one sister and no brothers", "two brothers and no sisters",
    "two sisters and no brothers", "three brothers and no sisters", "one brother and one sister",
    "four sisters and one brother",
)  # fmt: skip
CHILDREN = ("no children", "one son", "one daughter", "twin girls", "two sons", "a son and a daughter", "three daughters")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
# Every shop is shut on one of them.
DAYS_OF_REST = (*DAYS, "Sunday")


def _words(text: str) -> list[str]:
    return text.split()


_WOMEN = _words(
    """
    Anna Bella Clara Dora Edith Fanny Grace Hannah Ida Jane Kate Lucy Mary Nora Olive Polly Rose Sarah Tessa Martha Agnes
    Ruth Emma Alice Harriet Susan Ellen Flora Louisa Rachel
    """
)
_MEN = _words(
    """
    Adam Ben Charles Daniel Edward Frank George Henry Isaac James Luke Martin Ned Oliver Peter Ralph Samuel Thomas Walter
    William Arthur Hugh Jacob Robert Simon Stephen Andrew Philip Matthew Giles
    """
)
_SURNAMES = _words(
    """
    Abbott Archer Barlow Barton Bell Benson Birch Bishop Blake Bond Brook Burton Carver Chandler Chapman Clay Cole Cooper
    Cross Dale Dean Dixon Drake Dunn Ellis Farrow Fenn Fisher Flint Ford Foster Frost Gale Gibson Goodwin Graham Grant
    Green Hale Harding Hart Hayes Heath Hill Holt Hooper Hope Howard Hunt Hurst Kemp Kent King Knight Lacey Lamb Lane
    Lawson Lee Lock Long Lowe Marsh Mason May Mercer Miles Moore Moss Nash Neal North Page Parker Pearce Perry Pike Pond
    Poole Porter Pratt Price Quill Rand Read Rowe Sharp Shaw Short Snow Spencer Stone Swan Thorne Tucker Turner Vale Wade
    Ward Webb Wells West White Wood
    """
)
_PET_NAMES = _words(
    """
    Bramble Captain Pepper Snowball Ginger Star Prince Button Clover Shadow Biscuit Thistle Duchess Copper Daisy Nutmeg
    Pebble Patch Robin Scamper Toby Velvet Whisper Bonny Cobweb Dusty Feather Jolly Merry Nettle Pickle Rusty Sooty Tansy
    Turnip Walnut
    """
)
_TOWNS_BEGIN = _words(
    """
    Ash Elm Oak Thorn Stone Marsh Fern Fox Swan Hazel Raven Lark Willow Clay Moor Otter
    """
)
_TOWNS_END = {
    "train": ("ford", "bridge", "field", "dale", "ley", "wick", "hurst"),
    "validation": ("combe", "well"),
    "test": ("mere", "stead"),
}


def _divided(names: list[str], split: Split) -> tuple[str, ...]:
    """Five of seven names are train's, the sixth validation's, the seventh the test's."""
    remainders = {"train": (0, 1, 2, 3, 4), "validation": (5,), "test": (6,)}[split]
    return tuple(name for number, name in enumerate(names) if number % 7 in remainders)


@dataclass(frozen=True)
class Names:
    """The names that one split may use."""

    women: tuple[str, ...]
    men: tuple[str, ...]
    surnames: tuple[str, ...]
    pets: tuple[str, ...]
    towns: tuple[str, ...]


def names_of(split: Split) -> Names:
    """The names that a split may use, and no other does."""
    towns = tuple(begin + end for end in _TOWNS_END[split] for begin in _TOWNS_BEGIN)
    lists = (_WOMEN, _MEN, _SURNAMES, _PET_NAMES)
    women, men, surnames, pets = (_divided(names, split) for names in lists)
    return Names(women, men, surnames, pets, towns)
