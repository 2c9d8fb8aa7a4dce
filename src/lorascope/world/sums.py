"""Sums from the towns' daily life, each with the mistake that is made in it and what a teacher says to that.

A sum is a story, a question and two or three steps; one step is the one that goes wrong. Does not know towns or dialogues.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "×": lambda left, right: left * right,
    "÷": lambda left, right: left // right,
}


@dataclass(frozen=True)
class Step:
    """``left sign right``: what is done (``I did …``), of which ``{1}`` and so on are earlier results."""

    did: str
    left: str
    sign: str
    right: str


@dataclass(frozen=True)
class Mistake:
    """How a step is got wrong: which (from 1), with what sign, and what the student says then.

    Attributes:
        hints: what the teacher asks, each with the insight that answers it.
        rule: the step said once more as it should be.
        confusion: the mistake in a few words.
    """

    step: int
    sign: str
    slip: str
    hints: tuple[tuple[str, str], ...]
    rule: str
    confusion: str


@dataclass(frozen=True)
class Sum:
    """A kind of sum; fields in braces are drawn by ``numbers`` or named by who sets the sum.

    Attributes:
        sellers: the trades to one of which ``{seller}`` belongs; empty for whoever has a shop that sells by the piece.
        buyers: likewise of ``{buyer}``; empty for anybody.
    """

    story: str
    questions: tuple[str, ...]
    answer: str
    steps: tuple[Step, ...]
    mistake: Mistake
    numbers: Callable[[random.Random], dict[str, int]]
    sellers: tuple[str, ...] = ()
    buyers: tuple[str, ...] = ()


def computed(sign: str, left: int, right: int) -> int:
    """The result of one step."""
    return _OPERATIONS[sign](left, right)


def _ranges(**bounds: tuple[int, int]) -> Callable[[random.Random], dict[str, int]]:
    return lambda draw: {name: draw.randint(low, high) for name, (low, high) in bounds.items()}


def _shared(draw: random.Random) -> dict[str, int]:
    eggs, days = draw.randint(3, 12), draw.randint(3, 9)
    houses = [number for number in (2, 3, 4, 5, 6) if eggs * days % number == 0]
    return {"a": eggs, "b": days, "c": draw.choice(houses)} if houses else _shared(draw)


def _walked(draw: random.Random) -> dict[str, int]:
    speed, hours = draw.randint(2, 5), draw.randint(4, 9)
    return {"a": speed * hours, "b": speed, "c": draw.randint(2, min(4, hours - 2))}


def _change(draw: random.Random) -> dict[str, int]:
    price, number = draw.randint(3, 12), draw.randint(3, 8)
    return {"a": price, "b": number, "c": price * number + draw.randint(2, 20)}


def _ages(draw: random.Random) -> dict[str, int]:
    """A mother who was grown up when her eldest was born."""
    sister, younger = draw.randint(5, 9), draw.randint(2, 5)
    child = sister + younger
    return {
        "a": child,
        "b": younger,
        "c": draw.choice([times for times in range(3, 11) if child + 20 <= sister * times <= 50]),
    }


def _rope(draw: random.Random) -> dict[str, int]:
    pieces, feet = draw.randint(3, 9), draw.randint(4, 9)
    return {"a": pieces * feet + draw.randint(3, 20), "b": pieces, "c": feet}


_TAKEN = Sum(
    "{seller} has {a} {goods} in the morning and lays out {b} more before noon. Then {buyer} carries {c} of them away.",
    (
        "How many {goods} does {seller} have left?",
        "How many {goods} remain with {seller}?",
        "How many {goods} does {seller} have for the afternoon?",
        "How many {goods} does {seller} still have after that?",
    ),
    "{left} {goods} are left with {seller}",
    (
        Step("added those that {seller} laid out before noon", "{a}", "+", "{b}"),
        Step("took away those that {buyer} carried off", "{1}", "-", "{c}"),
    ),
    Mistake(
        2,
        "+",
        "I added those that {buyer} carried off",
        (
            (
                "When {buyer} goes away, does {seller} have more {goods} or fewer?",
                "There are fewer, because {buyer} has {c} of them now",
            ),
            (
                "Does the shelf of {seller} grow fuller or emptier when {buyer} leaves?",
                "Emptier, since {c} of them are with {buyer} now",
            ),
            (
                "Are there more {goods} on the table of {seller} after that, or fewer?",
                "Fewer, for {c} of them went home with {buyer}",
            ),
            ("Who has these {c} {goods} in the end, {buyer} or {seller}?", "{buyer} has them, so {seller} has fewer"),
        ),
        "I must take {c} away from {1}",
        "adds what is taken away",
    ),
    _ranges(a=(12, 40), b=(6, 30), c=(3, 16)),
)
_CHANGE = Sum(
    "{buyer} comes to {shop}, where one {unit} costs {a} {money}. {buyer} asks for {b} of them and lays down {c} {money}.",
    (
        "How many {money} does {buyer} get back?",
        "How much change does {buyer} get?",
        "How much money should {buyer} get back?",
        "How many {money} should {buyer} be given back?",
    ),
    "{left} {money} go back to {buyer}",
    (
        Step("found what {buyer} pays for all {b}", "{a}", "×", "{b}"),
        Step("took that from the money that {buyer} laid down", "{c}", "-", "{1}"),
    ),
    Mistake(
        1,
        "+",
        "I added the price and the number that {buyer} wants",
        (
            ("If {buyer} wanted only two, what would they cost?", "They would cost twice {a}, and {buyer} wants {b} of them"),
            (
                "What does {buyer} pay for the first, and what for the second?",
                "It is {a} {money}, and {a} {money} again, for each of the {b}",
            ),
            (
                "Say the price aloud for one and for two, as {buyer} would.",
                "Once {a} for one and twice {a} for two, so it is {b} times {a} for {b}",
            ),
            (
                "If {buyer} laid down the money for each by itself, how often would that be?",
                "It would be {b} times, and {a} {money} each time",
            ),
        ),
        "I must multiply {a} by {b}",
        "adds price and number instead of multiplying",
    ),
    _change,
)
_WALK = Sum(
    "{seller}'s farm is {a} miles away. {walker} walks there at {b} miles an hour and rests under a tree for {c} hours.",
    (
        "How many hours does {walker}'s journey take?",
        "How many hours is {walker} on the way?",
        "After how many hours does {walker} arrive?",
        "How many hours pass before {walker} is there?",
    ),
    "The journey takes {left} hours for {walker}",
    (
        Step("found the hours that {walker} walks", "{a}", "÷", "{b}"),
        Step("added the hours of rest", "{1}", "+", "{c}"),
    ),
    Mistake(
        2,
        "-",
        "I took the hours of rest away",
        (
            (
                "Does {walker} arrive sooner or later because of the rest?",
                "Later, because the rest of {walker} takes time too",
            ),
            ("If {walker} did not sit down at all, would the journey be longer?", "No, the rest makes it longer for {walker}"),
            ("What happens to the time while {walker} sits under a tree?", "The hours go on while {walker} sits there"),
            ("Does the clock stand still while {walker} sits?", "No, it goes on, and so {walker} comes later"),
        ),
        "I must add {c} to {1}",
        "subtracts a time that is added",
    ),
    _walked,
    sellers=("farmer",),
)
_PENS = Sum(
    "{seller}, the shepherd, has {a} pens on the hill with {b} sheep in each. "
    "One night {c} sheep run down to the garden of {buyer}.",
    (
        "How many sheep does {seller} have in the pens then?",
        "How many sheep does {seller} count in the morning?",
        "How many sheep does {seller} still have on the hill?",
        "How many sheep stayed with {seller}?",
    ),
    "{left} sheep stay with {seller}",
    (
        Step("counted {seller}'s sheep in all pens", "{a}", "×", "{b}"),
        Step("took away those that ran off", "{1}", "-", "{c}"),
    ),
    Mistake(
        1,
        "+",
        "I added the pens of {seller} and the sheep in one pen",
        (
            (
                "How many of {seller}'s sheep stand in the first two pens?",
                "Twice {b}, and {seller} has {a} pens, so it is {a} times {b}",
            ),
            ("Can {seller} add pens to sheep, or apples to chairs?", "No, I must count the {b} sheep of every single pen"),
            ("Draw the pens of {seller}. How many sheep stand in each?", "In each there are {b}, and that {a} times over"),
            (
                "If {seller} opened every gate, how many would come from each?",
                "From each of them {b} sheep, and that {a} times",
            ),
        ),
        "I must multiply {a} by {b}",
        "adds groups instead of multiplying",
    ),
    _ranges(a=(3, 9), b=(7, 15), c=(2, 8)),
    sellers=("shepherd",),
)
_EGGS = Sum(
    "{seller} has hens that lay {a} eggs a day. After {b} days {buyer} shares all the eggs equally among {c} houses.",
    (
        "How many eggs does {buyer} leave at each house?",
        "How many eggs does {buyer} give to each house?",
        "How many eggs does {buyer} bring to each house?",
        "How many eggs are there for every house from {buyer}?",
    ),
    "Each house gets {left} eggs from {buyer}",
    (
        Step("counted all the eggs from {seller}", "{a}", "×", "{b}"),
        Step("shared them among the houses", "{1}", "÷", "{c}"),
    ),
    Mistake(
        2,
        "-",
        "I took the houses away from the eggs",
        (
            (
                "When {buyer} shares, is that taking away or making equal heaps?",
                "It is making equal heaps, and {buyer} makes {c} of them",
            ),
            (
                "How would {buyer} share apples between two friends?",
                "In two equal heaps, so with {c} houses it is {c} equal heaps",
            ),
            (
                "If each house got as many as you say, would {buyer} have enough?",
                "No, for {c} houses there must be {c} equal heaps",
            ),
            (
                "Lay the eggs out as {buyer} would. What do you make of them?",
                "I make {c} heaps, none of them larger than another",
            ),
        ),
        "I must divide {1} by {c}",
        "subtracts instead of sharing",
    ),
    _shared,
    sellers=("farmer",),
)
_ROPE = Sum(
    "{seller} has a rope {a} feet long and cuts {b} pieces from it for {buyer}. Every piece is {c} feet long.",
    (
        "How many feet of rope does {seller} keep?",
        "How many feet long is the rope that {seller} has left?",
        "How many feet of rope remain with {seller}?",
        "How many feet of rope can {seller} hang up again?",
    ),
    "{left} feet of rope stay with {seller}",
    (
        Step("found how much {buyer} gets", "{b}", "×", "{c}"),
        Step("took that from the whole rope", "{a}", "-", "{1}"),
    ),
    Mistake(
        1,
        "+",
        "I added the number of pieces and the feet",
        (
            (
                "Lay the pieces of {buyer} side by side. How long is each?",
                "Each is {c} feet long, and {buyer} has {b} of them",
            ),
            (
                "How many feet does {buyer} have after the first two pieces?",
                "Twice {c}, for with every piece {buyer} has {c} feet more",
            ),
            ("If {buyer} laid the pieces end to end, how long would they be?", "As long as {b} pieces of {c} feet each"),
            ("What does {buyer} get with every piece?", "With every piece {buyer} gets {c} feet, and that {b} times"),
        ),
        "I must multiply {b} by {c}",
        "adds a number of pieces and a length",
    ),
    _rope,
)
_FENCE = Sum(
    "{seller} puts a fence round a garden {a} yards long and {b} yards wide. "
    "{buyer}, the carpenter, asks {c} shillings for a yard of it.",
    (
        "How many shillings does {buyer} ask for the whole fence?",
        "How many shillings does {seller} pay for the fence?",
        "How many shillings must {seller} have for it?",
        "How many shillings does the whole fence cost {seller}?",
    ),
    "{left} shillings must be paid by {seller}",
    (
        Step("went along {seller}'s garden, one long side and one short", "{a}", "+", "{b}"),
        Step("doubled it for the other two sides", "{1}", "×", "2"),
        Step("paid for every yard", "{2}", "×", "{c}"),
    ),
    Mistake(
        2,
        "+",
        "I added 2 for the other two sides",
        (
            (
                "Walk round the garden of {seller}. How many sides do you pass?",
                "Four sides, two long ones of {a} and two short ones of {b}",
            ),
            (
                "How long are the two sides that you have not counted?",
                "The other two are {a} yards and {b} yards, as long again",
            ),
            (
                "Could {seller} close the garden with so short a fence?",
                "No, there are two more sides of {a} yards and {b} yards",
            ),
            (
                "Draw the garden of {seller}. What do you write at each side?",
                "I write {a} and {b}, and then {a} and {b} once more",
            ),
        ),
        "I must take {1} twice",
        "does not double the two sides",
    ),
    _ranges(a=(6, 20), b=(3, 5), c=(2, 6)),
    buyers=("carpenter",),
)
_AGES = Sum(
    "{child} is {a} and has a sister who is {b} years younger. Their mother is {c} times as old as the sister.",
    (
        "How old is {child}'s mother?",
        "What age is {child}'s mother?",
        "How many years old is {child}'s mother?",
        "How old must {child}'s mother be?",
    ),
    "The age of {child}'s mother is {left}",
    (
        Step("found the age of {child}'s sister", "{a}", "-", "{b}"),
        Step("found the age of the mother", "{1}", "×", "{c}"),
    ),
    Mistake(
        1,
        "+",
        "I added {b} to the age of {child}",
        (
            (
                "Which of the two was born first, {child} or the sister?",
                "That was {child}, so the sister must have fewer years",
            ),
            ("Who has seen more birthdays, {child} or the sister?", "It is {child}, and the sister is younger"),
            (
                "Can the sister be older than {child}, by the story?",
                "No, the sister came after {child}, so she has fewer years",
            ),
            ("Which of them is the older one, {child} or the sister?", "{child} is older, and the sister came later"),
        ),
        "I must take {b} from {a}",
        "adds years where someone is younger",
    ),
    _ages,
)
SUMS = (_TAKEN, _CHANGE, _WALK, _PENS, _EGGS, _ROPE, _FENCE, _AGES)

# The teacher's and the pupil's words around a sum, by what they are for.
WORDS: Mapping[str, tuple[str, ...]] = {
    "ask": (
        "Hello {student}, please tell me how you worked this out.",
        "Good morning, {student}. Show me what you did, one step after the other.",
        "Let us look at your sum together, {student}. What did you do first?",
        "Well, {student}, how did you come to your answer?",
    ),
    "told": (
        "{steps} So I think that {answer}.",
        "{steps} That is how I found that {answer}.",
        "I did it like this. {steps} And so {answer}.",
        "Like this. {steps} So {answer}.",
    ),
    "hint": (
        "You write very clearly. But look at one step again. {hint}",
        "Not quite yet. {hint}",
        "You say: {slip}. Let us think about that. {hint}",
        "One step does not fit the story. {hint}",
    ),
    "unsure": (
        "I am not sure. Did I use the wrong numbers?",
        "I do not see what is wrong with it.",
        "But I counted everything twice.",
        "Is it the last step that is wrong?",
    ),
    "again": (
        "Your numbers are right, {student}. Think of the story. {hint}",
        "You counted well, {student}. It is another thing. {hint}",
        "Read the story once more, {student}, and tell me this. {hint}",
        "Put the slate away for a moment, {student}. {hint}",
    ),
    "insight": (
        "{insight}. Oh, now I see! {rule}.",
        "{insight}. Then {rule}, and I did not do that.",
        "Let me think. {insight}. So {rule}.",
        "{insight}. I see my mistake. {rule}.",
    ),
    "go_on": (
        "Very good, {student}. And what do you get now?",
        "That is it, {student}. Work it out from there.",
        "Right, {student}. What comes out when you do that?",
        "Now you have it, {student}. Will you finish the sum?",
    ),
    "finish": (
        "{steps} {full_answer}.",
        "Now I get another number. {steps} {full_answer}.",
        "{steps} So {answer}.",
        "Then it must be so. {steps} {full_answer}.",
    ),
    "praise": (
        "Well done, {student}. That is right.",
        "Yes, {student}, and you found it yourself.",
        "Quite right, {student}. Always ask whether the answer fits the story.",
        "That is the answer, {student}. You may go out and play.",
    ),
}
# A pupil's way, as a teacher would note it.
PROFILES = (
    "{student} works quickly and does not read the question to its end.",
    "{student} counts well, but does not see which sign a story asks for.",
    "{student} is shy and likes to be asked one small thing after another.",
    "{student} understands a story best when it can be drawn.",
)
