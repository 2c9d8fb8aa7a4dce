"""Sums are right where they should be and wrong where they are meant to be."""

import re
from collections import Counter

from conftest import SEED
from lorascope.world.sums import SUMS, computed
from lorascope.world.town import town_of
from lorascope.world.wording import stream

STEP = re.compile(r"(\d+) ([+×÷-]) (\d+) = (\d+)\.")


def test_every_step_that_is_written_down_is_computed_rightly(sets):
    """A mistake is a wrong step, never wrong arithmetic."""
    for of in sets.values():
        for talk in of.talks:
            steps = STEP.findall(f"{talk.solution} {talk.mistaken} {' '.join(text for _, _, text in talk.turns)}")
            assert len(steps) >= 6
            for left, sign, right, result in steps:
                assert computed(sign, int(left), int(right)) == int(result), talk


def test_the_two_solutions_end_differently_and_the_talk_ends_with_the_right_one(sets):
    for talk in sets["train"].talks:
        right, wrong = (re.findall(r"\d+", text)[-1] for text in (talk.solution, talk.mistaken))
        assert right != wrong
        speaker, _, last = talk.turns[-2]
        assert speaker == "Student"
        assert STEP.findall(last)[-1][-1] == STEP.findall(talk.solution)[-1][-1]


def test_speakers_alternate_and_the_teacher_begins_and_ends(sets):
    for talk in sets["validation"].talks:
        speakers = [speaker for speaker, _, _ in talk.turns]
        assert speakers == [("Teacher", "Student")[number % 2] for number in range(len(speakers))]
        assert speakers[-1] == "Teacher"
        assert all((move is not None) == (speaker == "Teacher") for speaker, move, _ in talk.turns)


SELLERS = {"pens on the hill": "shepherd", "'s farm is": "farmer", "The hens on ": "farmer"}


def test_sheep_hens_and_farms_belong_to_those_who_live_by_them(sets):
    met = Counter()
    for split, of in sets.items():
        people = [person for number in range(12) for person in town_of(SEED, split, number).people]
        for talk in of.talks:
            for mark, trade in SELLERS.items():
                if mark in talk.question:
                    met[mark] += 1
                    assert trade in {one.trade.name for one in people if one.full_name in talk.question}, talk.question
            if "a fence" in talk.question:
                [builder] = re.findall(r"(\w+), the carpenter, asks", talk.question)
                assert "carpenter" in {one.trade.name for one in people if one.name == builder}
    assert set(met) == set(SELLERS)


def test_an_insight_answers_the_hint_that_it_follows(sets):
    told = 0
    for kind in SUMS:
        assert len(kind.mistake.hints) >= 4
        assert len({hint for hint, _ in kind.mistake.hints}) == len(kind.mistake.hints)
    for talk in sets["train"].talks:
        turns = [text for _, _, text in talk.turns]
        for hint, insight in (pair for kind in SUMS for pair in kind.mistake.hints):
            # The part of each that holds no field.
            question = max(re.split(r"{\w+}", hint), key=len)
            answer = max(re.split(r"{\w+}", insight), key=len)
            asked = [place for place, text in enumerate(turns) if question in text and talk.turns[place][0] == "Teacher"]
            if asked and "not sure" not in turns[asked[-1] + 1] and answer.strip() in turns[asked[-1] + 1]:
                told += 1
    assert told >= 0.8 * len(sets["train"].talks)


def test_the_mothers_age_is_told_by_the_sisters():
    [ages] = [kind for kind in SUMS if "Their mother" in kind.story]
    assert "as the sister" in ages.story


def test_no_sum_is_set_twice(sets):
    questions = [talk.question for of in sets.values() for talk in of.talks]
    assert len(set(questions)) == len(questions)


def test_divisions_leave_nothing_over_and_no_answer_is_one_or_less():
    for kind in SUMS:
        for number in range(300):
            values = kind.numbers(stream("numbers", number))
            for mistaken in (False, True):
                results = []
                for place, step in enumerate(kind.steps, 1):
                    left, right = (int(side.format(*[None, *results], **values)) for side in (step.left, step.right))
                    sign = kind.mistake.sign if mistaken and place == kind.mistake.step else step.sign
                    assert sign != "÷" or left % right == 0
                    results.append(computed(sign, left, right))
                assert results[-1] > 1, (kind.story, values, mistaken)
