"""Sums are right where they should be and wrong where they are meant to be."""

import re
from collections import Counter
from itertools import pairwise

import pytest

from lorascope.world.sums import SUMS, WORDS, computed
from lorascope.world.town import town_of
from lorascope.world.tutoring import talks
from lorascope.world.wording import Novelty, stream

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


SELLERS = {"pens on the hill": "shepherd", "'s farm is": "farmer", "has hens that lay": "farmer"}


@pytest.fixture(scope="module")
def made():
    return talks(1, "train", 120, Novelty())


def test_sheep_hens_and_farms_belong_to_those_who_live_by_them(made):
    people = [person for number in range(20) for person in town_of(1, "train", number).people]
    met = Counter()
    for talk in made:
        for mark, trade in SELLERS.items():
            if mark in talk.question:
                met[mark] += 1
                assert trade in {one.trade.name for one in people if one.full_name in talk.question}, talk.question
        if "a fence" in talk.question:
            [builder] = re.findall(r"(\w+), the carpenter, asks", talk.question)
            assert "carpenter" in {one.trade.name for one in people if one.name == builder}
    assert set(met) == set(SELLERS)


def test_an_insight_answers_the_hint_that_it_follows(made):
    def pattern(template):
        return ".+?".join(map(re.escape, re.split(r"{\w+}", template)))

    told = 0
    for talk in made:
        for (_, _, text), (_, _, following) in pairwise(talk.turns):
            hinted = [insight for kind in SUMS for hint, insight in kind.mistake.hints if re.search(f"{pattern(hint)}$", text)]
            if hinted and following not in WORDS["unsure"]:
                told += 1
                assert any(re.search(pattern(insight), following) for insight in hinted), (text, following)
    assert told == len(made)


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
