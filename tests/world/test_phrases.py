"""Every wording can be filled for everybody whom it is about, and says what its slot is about."""

import string

import pytest

from lorascope.world.facts import NO_PET, SLOTS, fact_of, fields_of, phrases_of
from lorascope.world.phrases import DECOYS
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


@pytest.mark.parametrize("slot", SLOTS)
def test_questions_and_answers_have_wordings_that_only_a_test_uses(slot):
    found = phrases_of(fact_of(PEOPLE[0], slot))
    for options in (found.states, found.asks, found.answers):
        assert len(options) >= 4
        assert set(wordings(options, "test")).isdisjoint(wordings(options, "train"))
        assert len(set(options)) == len(options)


@pytest.mark.parametrize("slot", DECOYS)
def test_decoys_hold_the_value_and_do_not_speak_of_the_speaker(slot):
    for person in PEOPLE[:12]:
        if slot == "pet" and person.house.pet is None:
            continue
        values = [value.lower() for value in fields_of(person, slot).values() if value]
        for decoy in DECOYS[slot]:
            filled = fill(decoy, fields_of(person, slot)).text.lower()
            assert any(value in filled for value in values), filled
