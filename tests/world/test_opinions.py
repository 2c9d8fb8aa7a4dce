"""Opinions: half praise, half blame, none twice, and no single word gives the answer away."""

import re
from collections import Counter

from lorascope.world.opinions import opinions
from lorascope.world.town import town_of
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


MADE_BY = {
    r"bread from (\w+ \w+)": "baker",
    r"honey from (\w+ \w+)": "beekeeper",
    r"coat (?:from|that) (\w+ \w+)": "tailor",
    r"(?:table that|chair from) (\w+ \w+)": "carpenter",
    r"clock that (\w+ \w+) mended": "clockmaker",
    r"new book from (\w+ \w+)": "bookseller",
}


def test_bread_is_the_bakers_and_coats_are_the_tailors():
    made = opinions(1, "train", 1000, Novelty())
    people = {(one.full_name, one.trade.name) for number in range(60) for one in town_of(1, "train", number).people}
    for pattern, trade in MADE_BY.items():
        makers = {maker for one in made for maker in re.findall(pattern, one.text)}
        assert makers, pattern
        assert {(maker, trade) for maker in makers} <= people


def test_sentences_begin_and_end_as_sentences_do(sets):
    for one in sets["test"].opinions:
        assert one.text[0].isupper()
        assert one.text.endswith(".")
        assert "{" not in one.text
