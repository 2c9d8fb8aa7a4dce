"""Every wording can be filled for everybody whom it is about, and says what its slot is about."""

import string

import pytest

from lorascope.world import phrases, tastes
from lorascope.world.facts import NO_PET, SLOTS, fact_of, fields_of, phrases_of
from lorascope.world.town import town_of
from lorascope.world.wording import fill, wordings

PEOPLE = [person for number in range(6) for person in town_of(1, "train", number).people]


@pytest.mark.parametrize("slot", SLOTS)
def test_every_wording_is_filled_for_everyone(slot):
    for person in PEOPLE:
        fact = fact_of(person, slot)
        found = phrases_of(fact)
        for text in (*found.states, *found.asks, *found.answers, *found.reacts):
            filled = fill(text, fields_of(person, slot)).text
            assert filled[-1] in ".?!", filled
            assert filled[0] in string.ascii_uppercase, filled
            assert not set("{}") & set(filled), filled
        # A sentence that does not name its value would say nothing to a judge.
        for text in (*found.states, *found.answers):
            filled = fill(text, fields_of(person, slot)).text.lower()
            told = [fact.name] if fact.name else [fact.value, *fields_of(person, slot).values()]
            assert fact.value == NO_PET or any(str(word).lower() in filled for word in told if word), filled


KINDS = [phrases.TRADE, phrases.NAMED_PET, phrases.PET, phrases.NO_PET, phrases.HOME, phrases.RISES, phrases.SIBLINGS]
KINDS += [tastes.LOVES, tastes.HATES, tastes.DRINK, tastes.PASTIME, tastes.INSTRUMENT, tastes.SEASON, tastes.WISH, tastes.FEAR]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.states[0])
def test_of_twelve_wordings_three_are_kept_for_tests(kind):
    for options in (kind.states, kind.answers):
        assert len(set(options)) == len(options) >= 12
        assert len(wordings(options, "test")) >= 3
        assert set(wordings(options, "test")).isdisjoint(wordings(options, "train"))
    assert len(wordings(kind.asks, "test")) >= 2
    # A reply that equals its sentence is no question.
    assert set(kind.states).isdisjoint(kind.answers)


def test_a_sentence_about_pets_says_nothing_of_sheep_cows_and_bees():
    """ "I keep no animals" would contradict a shepherd."""
    for kind in (phrases.NAMED_PET, phrases.PET, phrases.NO_PET):
        assert all("pet" in text.lower() for text in (*kind.states, *kind.answers[:3]))
        assert not any(word in text for text in (*kind.states, *kind.answers) for word in ("animal", "beast", "creature"))
