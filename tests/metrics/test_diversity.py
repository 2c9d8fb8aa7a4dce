"""Distinct-n and self-BLEU on cases worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.metrics import distinct_n, self_bleu

TEXTS = st.lists(st.sampled_from(["a", "b", "C", "d.", "e"]), max_size=7).map(" ".join)


@pytest.mark.parametrize(
    ("texts", "unigrams", "bigrams"),
    [
        (["a b c"], 1.0, 1.0),
        (["a b", "a b"], 0.5, 0.5),
        (["a a a a"], 0.25, 1 / 3),
        (["I am", "i am."], 0.75, 1.0),
        (["a", "b"], 1.0, 0.0),
        (["a b", "c d"], 1.0, 1.0),
        (["", " "], 0.0, 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_distinct_n_of_known_cases(texts, unigrams, bigrams):
    assert distinct_n(texts, 1) == pytest.approx(unigrams)
    assert distinct_n(texts, 2) == pytest.approx(bigrams)


@given(st.lists(TEXTS, min_size=1, max_size=5), st.integers(1, 3))
def test_texts_said_twice_are_half_as_distinct(texts, n):
    assert distinct_n([*texts, *texts], n) == pytest.approx(distinct_n(texts, n) / 2)


def test_samples_that_repeat_each_other_have_the_most_self_bleu_and_unlike_ones_none():
    assert self_bleu(["we like dogs very much"] * 3) == pytest.approx([100.0] * 3)
    assert self_bleu(["we like dogs", "they saw two birds"]) == [0.0, 0.0]
    assert self_bleu(["yes", "yes", "no"]) == pytest.approx([100.0, 100.0, 0.0])
    assert self_bleu(["", "", "yes"]) == [0.0, 0.0, 0.0]


def test_a_sample_may_take_its_ngrams_from_several_others():
    both, first, second = self_bleu(["a b c d", "a b", "c d"])
    # 4 of 4 words, 2 of 3 pairs; no triple or quadruple, which smoothing gives 1/2 of 2 and 1/4 of 1.
    assert both == pytest.approx(100 * math.prod([1, 2 / 3, 1 / 4, 1 / 4]) ** 0.25)
    assert first == second == pytest.approx(100.0)


def test_one_sample_has_no_self_bleu():
    with pytest.raises(ValueError, match="at least two samples"):
        self_bleu(["a"])


@given(st.lists(TEXTS, min_size=2, max_size=4))
def test_the_order_of_samples_moves_their_values_along(samples):
    values = self_bleu(samples)
    assert all(0.0 <= value <= 100.0 + 1e-9 for value in values)
    assert self_bleu(samples[::-1]) == pytest.approx(values[::-1])
