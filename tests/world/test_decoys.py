"""Decoys hold a slot's word in another part, and leave open what the speaker is, has and likes."""

import re

import pytest

from lorascope.world.decoys import DECOYS
from lorascope.world.facts import SLOTS, fields_of
from lorascope.world.town import town_of
from lorascope.world.wording import fill, wordings

PEOPLE = [person for person in town_of(1, "train", 0).people if person.house.pet is not None]


def test_every_slot_has_decoys_and_three_of_them_for_tests():
    assert set(DECOYS) == set(SLOTS)
    for decoys in DECOYS.values():
        assert len(set(decoys)) == len(decoys) >= 12
        assert len(wordings(decoys, "test")) >= 3


@pytest.mark.parametrize("slot", DECOYS)
def test_decoys_hold_the_value_and_do_not_speak_of_the_speaker(slot):
    for person in PEOPLE:
        values = [value.lower() for value in fields_of(person, slot).values() if value]
        for decoy in DECOYS[slot]:
            filled = fill(decoy, fields_of(person, slot)).text
            assert any(value in filled.lower() for value in values), filled
            assert "{" not in filled
            # Of himself the speaker says at most what he saw, heard, read, met or lost.
            told = re.findall(
                r"\bI (?!send|saw|heard|passed|lost|met|believe|know|shared|came|have just read|once knew)", filled
            )
            assert not told, filled
            assert not re.search("my (brother|sister)", filled.lower())


def test_no_decoy_tells_of_the_one_baker_whom_the_town_has():
    """To the town's baker "have you seen the baker today?" would say that another is meant."""
    assert not [decoy for decoy in DECOYS["trade"] if "the {trade}" in decoy]
