"""Pairs are of three classes in equal parts, none twice, none known from training, and their labels are a reader's."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lorascope.config import TaskConfig
from lorascope.data.task import read_task
from lorascope.world import phrases, tastes
from lorascope.world.decoys import DECOYS
from lorascope.world.facts import SLOTS, Fact, fact_of, fields_of, label, phrases_of
from lorascope.world.lore import (
    ANIMALS,
    DISHES,
    DISLIKED,
    DRINKS,
    FEARS,
    HOMES,
    INSTRUMENTS,
    PASTIMES,
    RISING,
    SEASONS,
    SIBLINGS,
    TRADES,
    WISHES,
    names_of,
)
from lorascope.world.town import town_of
from lorascope.world.wording import fill

# Labels that were written down by reading both texts, not computed.
HAND_LABELLED = [
    tuple(line.split("\t"))
    for line in Path(__file__).with_name("hand_labelled.tsv").read_text(encoding="utf-8").splitlines()[1:]
]
KINDS = [kind for module in (phrases, tastes) for kind in vars(module).values() if isinstance(kind, phrases.Phrases)]


def everybody(slot):
    """Somebody for every value of the slot."""
    one = town_of(1, "train", 0).people[0]
    if slot == "pet":
        for pet_name in (None, *names_of("train").pets):
            for pet in (None, *ANIMALS):
                yield replace(one, house=replace(one.house, pet=pet, pet_name=pet and pet_name))
    elif slot == "home":
        yield from (replace(one, house=replace(one.house, home=home)) for home in HOMES)
    else:
        values = {
            "trade": TRADES,
            "loves": {*DISHES, *DISLIKED},
            "hates": {*DISHES, *DISLIKED},
            "drink": DRINKS,
            "pastime": PASTIMES,
            "instrument": INSTRUMENTS,
            "season": SEASONS,
            "wish": WISHES,
            "fear": FEARS,
            "rises": RISING,
            "siblings": SIBLINGS,
        }
        yield from (replace(one, **{slot: value}) for value in values[slot])


@pytest.fixture(scope="module")
def known():
    """Every sentence, answer and decoy there is: its text, what it claims, and the wording that it is made of."""
    texts: dict[str, tuple[Fact | None, set[str]]] = {}
    for slot in SLOTS:
        for person in everybody(slot):
            fact, fields = fact_of(person, slot), fields_of(person, slot)
            found = phrases_of(fact)
            for wording in (*found.states, *found.answers):
                texts.setdefault(fill(wording, fields).text, (fact, set()))[1].add(wording)
            for wording in DECOYS[slot] if fields else ():
                texts.setdefault(fill(wording, fields).text, (None, set()))[1].add(wording)
    return texts


@pytest.mark.parametrize("expected", ["entailment", "neutral", "contradiction"])
def test_a_reader_and_the_facts_agree_on_every_pair_labelled_by_hand(expected, known):
    chosen = [(reply, sentence) for name, reply, sentence in HAND_LABELLED if name == expected]
    assert len(chosen) >= 150
    for reply, sentence in chosen:
        claim, fact = known[reply][0], known[sentence][0]
        assert fact is not None
        assert label(() if claim is None else (claim,), fact) == expected, (reply, sentence)


def test_every_wording_stands_in_a_pair_labelled_by_hand(known):
    met = {wording for _, *texts in HAND_LABELLED for text in texts for wording in known[text][1]}
    stock = {wording for kind in KINDS for wording in (*kind.states, *kind.answers)}
    stock |= {wording for decoys in DECOYS.values() for wording in decoys}
    assert sorted(stock - met) == []


def test_the_classes_are_equally_frequent_and_the_labels_follow_from_the_facts(sets):
    for of in sets.values():
        counts = Counter(pair.label for pair in of.pairs)
        assert set(counts) == {"entailment", "neutral", "contradiction"}
        assert len(set(counts.values())) == 1
        assert all(label(pair.claims, pair.fact) == pair.label for pair in of.pairs)


def test_pairs_say_of_which_wording_their_sentence_is_made(sets, world_directory):
    for of in sets.values():
        assert of.counts["patterns"] == len({pair.pattern for pair in of.pairs})
        assert all(pair.pattern in phrases_of(pair.fact).states for pair in of.pairs)
    lines = (world_directory / "dialogue_nli" / "dialogue_nli_test.jsonl").read_text(encoding="utf-8").splitlines()
    groups = [json.loads(line)["group"] for line in lines]
    assert groups == [pair.pattern for pair in sets["test"].pairs]
    raw = read_task(TaskConfig(name="dialogue_nli", data=str(world_directory / "dialogue_nli")), "test")
    assert [record.group for record in raw.eval] == groups


def test_no_pair_comes_twice_or_in_two_splits(sets):
    texts = [(pair.reply, pair.sentence) for of in sets.values() for pair in of.pairs]
    assert len(set(texts)) == len(texts)


def test_words_in_common_do_not_tell_the_classes_apart(sets):
    """A judge that counted words shared by both texts would do little better than one that says always the same."""

    def shared(pair):
        first, second = ({word.strip(".,?!").lower() for word in text.split()} for text in (pair.reply, pair.sentence))
        return len(first & second)

    pairs = sets["train"].pairs
    best = Counter()
    for number in {shared(pair) for pair in pairs}:
        best[number] = max(Counter(pair.label for pair in pairs if shared(pair) == number).values())
    assert best.total() / len(pairs) < 0.62
