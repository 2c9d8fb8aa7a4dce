"""Two versions of one adapter on the same examples: the paired t-test over them, by groups that belong together."""

import math

import numpy as np
import pytest
from scipy import stats

from lorascope.compare import difference_over_examples


def rows(correct, groups=None):
    return [
        {"id": f"e{index}", "correct": bool(value), "label": "a", "prediction": "b", "logits": [0.0, 1.0], "loss": 0.5}
        | ({} if groups is None else {"group": groups[index]})
        for index, value in enumerate(correct)
    ]


def side(correct, groups=None):
    return rows(correct, groups), {"accuracy": float(np.mean(correct))}


@pytest.fixture
def two():
    generator = np.random.default_rng(3)
    one = generator.random(200) < 0.9
    other = np.where(generator.random(200) < 0.12, ~one, one)
    return one, other


def test_the_interval_is_the_paired_t_tests_over_examples(two):
    one, other = two
    found = difference_over_examples("accuracy", side(one), side(other))
    test = stats.ttest_rel(one.astype(float), other.astype(float))
    ends = test.confidence_interval(0.95)
    assert found.difference == pytest.approx(one.mean() - other.mean())
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-6)
    assert found.p == pytest.approx(test.pvalue, rel=1e-6)
    assert (found.changed, found.groups) == (int((one != other).sum()), 200)


def test_examples_that_belong_together_count_as_one(two):
    one, other = two
    groups = [f"g{index // 5}" for index in range(200)]
    found = difference_over_examples("accuracy", side(one, groups), side(other, groups))
    means = (one.astype(float) - other.astype(float)).reshape(40, 5).mean(axis=1)
    ends = stats.ttest_1samp(means, 0.0).confidence_interval(0.95)
    assert found.groups == 40
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-6)


def test_where_no_example_changed_there_is_no_interval_and_no_difference(two):
    found = difference_over_examples("accuracy", side(two[0]), side(two[0]))
    assert (found.difference, found.low, found.high, found.p, found.changed) == (0.0, None, None, 1.0, 0)


def test_a_metric_that_is_no_sum_over_examples_has_its_difference_alone(two):
    one, other = (predictions for predictions, _ in map(side, two))
    found = difference_over_examples("best_f1", (one, {"best_f1": 0.7}), (other, {"best_f1": 0.6}))
    assert math.isclose(found.difference, 0.1)
    assert (found.low, found.p, found.changed, found.groups) == (None, None, None, None)
