"""Opinions: half praise, half blame, none twice, and no single word gives the answer away."""

from collections import Counter

from lorascope.world.opinions import opinions
from lorascope.world.wording import Novelty


def test_half_of_them_praise(sets):
    for of in sets.values():
        assert abs(sum(one.is_positive for one in of.opinions) - len(of.opinions) / 2) <= 1


def test_no_sentence_comes_twice_or_in_two_splits(sets):
    texts = [one.text for of in sets.values() for one in of.opinions]
    assert len(set(texts)) == len(texts)


def test_a_fault_that_is_granted_does_not_make_the_sentence_one_of_blame():
    """Frequent words occur on both sides: a list of words alone does not tell them apart."""
    counts = {True: Counter(), False: Counter()}
    for one in opinions(1, "train", 1000, Novelty()):
        counts[one.is_positive].update(set(one.text.lower().strip(".").split()))
    both = counts[True] + counts[False]
    frequent = [word for word, number in both.items() if number >= 4]
    assert frequent
    one_sided = sum(min(counts[True][word], counts[False][word]) == 0 for word in frequent)
    assert one_sided / len(frequent) < 0.35


def test_sentences_begin_and_end_as_sentences_do(sets):
    for one in sets["test"].opinions:
        assert one.text[0].isupper()
        assert one.text.endswith(".")
        assert "{" not in one.text
