"""Accuracy and F1 on cases worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from lorascope.metrics import accuracy, f1

PAIRS = st.lists(st.tuples(st.sampled_from([0, 1]), st.sampled_from([0, 1])), min_size=1, max_size=30)


def test_accuracy_is_the_share_that_is_right():
    assert accuracy([1, 0, 2, 2], [1, 1, 2, 0]) == 0.5


def test_f1_is_that_of_class_one():
    assert f1([1, 1, 0, 0], [1, 0, 1, 0]) == 0.5
    assert f1([1, 1, 1, 0], [1, 1, 0, 0]) == pytest.approx(0.8)


def test_f1_is_zero_where_class_one_does_not_occur():
    assert f1([0, 0], [0, 0]) == 0.0


def test_a_prediction_that_was_not_made_is_wrong():
    assert accuracy([None, 1], [0, 1]) == 0.5
    assert f1([None, 1], [1, 1]) == pytest.approx(2 / 3)


@given(PAIRS)
def test_f1_equals_the_binary_score_of_scikit_learn(pairs):
    predictions, labels = zip(*pairs, strict=True)
    assert f1(predictions, labels) == pytest.approx(f1_score(labels, predictions, pos_label=1, zero_division=0))


@pytest.mark.parametrize("metric", [accuracy, f1])
@pytest.mark.parametrize(("predictions", "labels"), [([], []), ([1], [1, 0])])
def test_nothing_to_score_or_unequal_lengths_are_refused(metric, predictions, labels):
    with pytest.raises(ValueError, match=r"nothing to score|\d predictions for"):
        metric(predictions, labels)
