"""Pairs are of three classes in equal parts, none twice, and none of an evaluation split known from training."""

from collections import Counter

from lorascope.world.facts import label


def test_the_classes_are_balanced_and_the_labels_follow_from_the_facts(sets):
    for of in sets.values():
        counts = Counter(pair.label for pair in of.pairs)
        assert set(counts) == {"entailment", "neutral", "contradiction"}
        assert max(counts.values()) < 1.3 * min(counts.values())
        assert all(label(pair.claims, pair.fact) == pair.label for pair in of.pairs)


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
