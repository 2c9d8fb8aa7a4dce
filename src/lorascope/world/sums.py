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
        hints: what the teacher asks, in several wordings; every insight answers every hint.
        rule: the step said once more as it should be.
        confusion: the mistake in a few words.
    """

    step: int
    sign: str
    slip: str
    hints: tuple[str, ...]
    insights: tuple[str, ...]
    rule: str
    confusion: str


@dataclass(frozen=True)
class Sum:
    """A kind of sum; fields in braces are drawn by ``numbers`` or named by who sets the sum."""

    story: str
    questions: tuple[str, ...]
    answer: str
    steps: tuple[Step, ...]
    mistake: Mistake
    numbers: Callable[[random.Random], dict[str, int]]


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
        "How many {goods} has {seller} left?",
        "How many {goods} remain with {seller}?",
        "With how many {goods} does {seller} go into the afternoon?",
        "After that, how many {goods} does {seller} still have?",
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
            "When {buyer} goes away, does {seller} have more {goods} or fewer?",
            "Does the shelf of {seller} grow fuller or emptier when {buyer} leaves?",
            "Are there more {goods} on the table of {seller} after that, or fewer?",
            "Who has these {c} {goods} in the end, {buyer} or {seller}?",
        ),
        (
            "There are fewer, because {buyer} has {c} of them now",
            "They are with {buyer} now, so {seller} has fewer",
            "Fewer, for {c} of them went home with {buyer}",
            "{buyer} has them in the basket, and {seller} has fewer",
        ),
        "I must take {c} away from {1}",
        "adds what is taken away",
    ),
    _ranges(a=(12, 40), b=(6, 30), c=(3, 16)),
)
_CHANGE = Sum(
    "{buyer} comes to {shop}, where one {unit} costs {a} pennies, asks for {b} of the kind and lays down {c} pennies.",
    (
        "How many pennies does {buyer} get back?",
        "What does {buyer} get back?",
        "How much money should {buyer} get back?",
        "With how many pennies does {buyer} go home?",
    ),
    "{left} pennies go back to {buyer}",
    (
        Step("found what {buyer} pays for all {b}", "{a}", "×", "{b}"),
        Step("took that from the money that {buyer} laid down", "{c}", "-", "{1}"),
    ),
    Mistake(
        1,
        "+",
        "I added the price and the number that {buyer} wants",
        (
            "If {buyer} wanted only two, what would they cost?",
            "What does {buyer} pay for the first, and what for the second?",
            "Say the price aloud for one and for two, as {buyer} would.",
            "If {buyer} laid down the money for each, how often would that be?",
        ),
        (
            "Each of them costs {a} pennies, and {buyer} wants {b}",
            "It is {a} pennies, and {a} pennies again, for all {b}",
            "{buyer} must pay {a} pennies for every single one",
            "For each one {buyer} lays down {a} pennies more",
        ),
        "I must multiply {a} by {b}",
        "adds price and number instead of multiplying",
    ),
    _change,
)
_WALK = Sum(
    "{seller}'s farm is {a} miles from town. {walker} walks {b} miles an hour, and under a tree {walker} rests for {c} hours.",
    (
        "How many hours does {walker}'s journey take?",
        "How long is {walker} on the way?",
        "After how many hours does {walker} arrive?",
        "How many hours pass before {walker} knocks at the door?",
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
            "Does {walker} arrive sooner or later because of the rest?",
            "If {walker} did not sit down at all, would the journey be longer?",
            "What happens to the journey while {walker} sits under a tree?",
            "Does the clock stand still while {walker} sits?",
        ),
        (
            "{walker} comes later, because the rest takes time too",
            "No, the rest makes it longer for {walker}",
            "The hours go on while {walker} sits there",
            "The clock goes on, and {walker} comes later",
        ),
        "I must add {c} to {1}",
        "subtracts a time that is added",
    ),
    _walked,
)
_PENS = Sum(
    "{seller} has {a} pens on the hill with {b} sheep in each. One night {c} sheep run down to the garden of {buyer}.",
    (
        "How many sheep has {seller} in the pens then?",
        "How many sheep does {seller} count in the morning?",
        "How many sheep has {seller} still on the hill?",
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
        "I added {seller}'s pens and the sheep",
        (
            "How many sheep of {seller} stand in the first two pens?",
            "Can {seller} add pens and sheep, or apples and chairs?",
            "Draw the pens of {seller}. How many sheep stand in each?",
            "If {seller} opened every gate, how many would come from each?",
        ),
        (
            "There are {b} in every pen, and {seller} has {a} pens",
            "Every pen of {seller} holds {b} sheep again",
            "In each there are {b}, and that {a} times",
            "It is {b} sheep again and again, {a} times",
        ),
        "I must multiply {a} by {b}",
        "adds groups instead of multiplying",
    ),
    _ranges(a=(3, 9), b=(7, 15), c=(2, 8)),
)
_EGGS = Sum(
    "{seller}'s hens lay {a} eggs a day. After {b} days {buyer} shares all of them fairly among {c} houses.",
    (
        "How many eggs does {buyer} leave at each house?",
        "How many eggs does {buyer} give to each house?",
        "What does {buyer} bring to each house?",
        "How many eggs has {buyer} for every house?",
    ),
    "Each house gets {left} eggs from {buyer}",
    (
        Step("counted the eggs of {seller}'s hens", "{a}", "×", "{b}"),
        Step("shared them among the houses", "{1}", "÷", "{c}"),
    ),
    Mistake(
        2,
        "-",
        "I took the houses away from the eggs",
        (
            "When {buyer} shares, does one take away or make equal heaps?",
            "How would {buyer} share apples between two friends?",
            "Would {buyer} have so many eggs left for one single house?",
            "Lay the eggs out as {buyer} would. What do you make of them?",
        ),
        (
            "{buyer} makes {c} heaps, and all of them are equal",
            "One makes equal heaps, as many as {buyer} has houses",
            "There must be {c} heaps of the same size",
            "I would make {c} heaps, none larger than another",
        ),
        "I must divide {1} by {c}",
        "subtracts instead of sharing",
    ),
    _shared,
)
_ROPE = Sum(
    "{seller} has a rope of {a} feet. For {buyer} it is cut {b} times, and every piece is {c} feet long.",
    (
        "How many feet of rope does {seller} keep?",
        "How long is the rope that {seller} has left?",
        "How much rope remains with {seller}?",
        "How many feet can {seller} hang up again?",
    ),
    "{left} feet of rope stay with {seller}",
    (
        Step("found how much {buyer} gets", "{b}", "×", "{c}"),
        Step("took that from the whole rope", "{a}", "-", "{1}"),
    ),
    Mistake(
        1,
        "+",
        "I added the pieces and the feet",
        (
            "Lay the pieces of {buyer} side by side. How long is each?",
            "How many feet does {buyer} have after the first two cuts?",
            "If {buyer} tied the pieces together, how long would they be?",
            "What does {buyer} hold in the hand after every cut?",
        ),
        (
            "Each is {c} feet long, and {buyer} has {b} of them",
            "With every cut {buyer} has {c} feet more",
            "There are {b} pieces, and every one has {c} feet",
            "{buyer} gets {c} feet each time, {b} times",
        ),
        "I must multiply {b} by {c}",
        "adds a number of pieces and a length",
    ),
    _rope,
)
_FENCE = Sum(
    "{seller} puts a fence round a garden {a} yards long and {b} yards wide. {buyer} asks {c} pennies for a yard of it.",
    (
        "How many pennies does {buyer} ask for the whole fence?",
        "What does {seller} pay for the fence?",
        "How many pennies must {seller} have for it?",
        "What is the price that {seller} pays?",
    ),
    "{left} pennies must be paid by {seller}",
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
            "Walk round the garden of {seller}. How many sides do you pass?",
            "How long are the two sides that {seller} has not counted?",
            "Can {seller} close the garden with so short a fence?",
            "Draw the garden of {seller}. What do you write at each side?",
        ),
        (
            "There are two long ones of {a} and two short ones of {b}",
            "It has four, and the other two are as long again",
            "The other two are {a} yards and {b} yards too",
            "On the far side it is {a} and {b} once more",
        ),
        "I must take {1} twice",
        "does not double the two sides",
    ),
    _ranges(a=(6, 20), b=(3, 5), c=(2, 6)),
)
_AGES = Sum(
    "{child} is {a} and has a sister who is {b} years younger. {child}'s mother is {c} times as old as she is.",
    (
        "How old is {child}'s mother?",
        "What age is {child}'s mother?",
        "How many years old is {child}'s mother?",
        "What age has {child}'s mother reached?",
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
            "Which of the two was born first, {child} or the sister?",
            "Who has seen more birthdays, {child} or the sister?",
            "Can the sister be older than {child}, by the story?",
            "Which of them went to school first, {child} or the sister?",
        ),
        (
            "That was {child}, so the sister must have fewer years",
            "It is {child}, and the sister is younger",
            "The sister came after {child}, so she has fewer",
            "{child} is the older one, the sister came later",
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
        "Yes, I can. {steps} So {answer}.",
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
        "{insight}. Then {rule}, and I did not.",
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
