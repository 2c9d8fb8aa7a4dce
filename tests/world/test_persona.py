"""Conversations are consistent with who speaks, and share nothing between splits."""

import re

from lorascope.data.overlap import leaked
from lorascope.world.facts import SLOTS, fact_of
from lorascope.world.persona import clock, dialogues
from lorascope.world.small_talk import GREETINGS
from lorascope.world.wording import Novelty, runs


def test_no_reply_contradicts_its_own_speakers_persona(sets):
    for of in sets.values():
        for dialogue in of.dialogues:
            for exchange in dialogue.exchanges:
                assert "contradiction" not in dialogue.labels(exchange)
                assert all(fact_of(dialogue.speaker, claim.slot) == claim for claim in exchange.claims)


def test_nobody_who_lives_by_animals_speaks_of_pets(sets):
    """By the words alone: "I keep bees" and "I have no pet" never stand together."""
    seen = 0
    for of in sets.values():
        for dialogue in of.dialogues:
            if dialogue.speaker.trade.name not in ("farmer", "shepherd", "beekeeper"):
                continue
            seen += 1
            replies = " ".join((*dialogue.persona, *(made.reply for made in dialogue.exchanges)))
            assert not re.search(r"\bpets?\b", replies), replies
    assert seen > 3


def test_a_greeting_is_answered_by_its_own_answer(sets):
    answers = {first: answer for pairs in GREETINGS.values() for first, answer in pairs}
    greeted = [one.exchanges[0] for of in sets.values() for one in of.dialogues if one.exchanges[0].said in answers]
    assert len(greeted) > 10
    assert all(made.reply == answers[made.said] for made in greeted)


def test_nobody_is_told_to_come_from_elsewhere_or_to_share_the_house_with_an_animal_alone(sets):
    for of in sets.values():
        spoken = " ".join(text for one in of.dialogues for text in one.texts)
        assert not re.search("another village|shares my house|born in", spoken)


def test_most_replies_rest_on_the_persona_and_some_on_nothing(sets):
    labels = [label for one in sets["train"].dialogues for made in one.exchanges for label in one.labels(made)]
    replies = [one.labels(made) for one in sets["train"].dialogues for made in one.exchanges]
    resting = sum("entailment" in found for found in replies) / len(replies)
    assert 0.45 < resting < 0.9
    assert labels.count("neutral") > labels.count("entailment")


def test_every_persona_states_facts_of_different_kinds(sets):
    for dialogue in sets["validation"].dialogues:
        slots = [fact.slot for fact in dialogue.facts]
        assert len(set(slots)) == len(slots) == len(dialogue.persona)
        assert set(slots) <= set(SLOTS)


def test_speakers_differ_as_long_as_a_town_lasts(sets):
    names = [one.speaker for one in sets["train"].dialogues]
    assert len(set(names)) == len(names)


def test_no_thirteen_words_of_an_evaluation_dialogue_stand_in_training(sets):
    seen = {run for one in sets["train"].dialogues for text in one.texts for run in runs(text)}
    for split in ("validation", "test"):
        assert all(seen.isdisjoint(runs(text)) for one in sets[split].dialogues for text in one.texts)


def test_a_larger_world_begins_with_the_smaller_ones_dialogues():
    assert dialogues(2, "train", 5, Novelty()) == dialogues(2, "train", 9, Novelty())[:5]


def test_hours_are_words():
    assert (clock(6), clock(12)) == ("six o'clock", "midnight")


def test_the_overlap_check_is_the_one_that_a_study_makes():
    """The words in a row are counted as the audit counts them."""
    from lorascope.data.record import Record

    text = "one two three four five six seven, eight nine ten eleven twelve thirteen fourteen"
    records = [Record("0", "a:1", f"x {text} y"), Record("1", "a:2", f"z {text.upper()}!")]
    assert leaked(records[:1], records[1:])[0].grade == "13-gram"
    assert set(runs(records[0].text)) & set(runs(records[1].text))
