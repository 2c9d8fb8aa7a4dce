"""Two versions of one adapter on the same examples: paired shares, or Student's interval, by groups that belong together."""

import math

import numpy as np
import pytest
from scipy import stats

from lorascope.compare import difference_over_examples, loss_over_examples
from lorascope.compare.proportions import paired_shares


def rows(correct, groups=None):
    return [
        {"id": f"e{index}", "correct": bool(value), "label": "a", "prediction": "b", "logits": [0.0, 1.0], "loss": 0.5}
        | ({} if groups is None else {"group": groups[index]})
        for index, value in enumerate(correct)
    ]


def side(correct, groups=None):
    return rows(correct, groups), {"accuracy": float(np.mean(correct))}


def texts(scores, groups=None):
    """Predictions that are scored by ROUGE-L, a number between 0 and 1."""
    made = [{"id": f"e{index}", "rouge_l": float(value)} for index, value in enumerate(scores)]
    if groups is not None:
        made = [row | {"group": group} for row, group in zip(made, groups, strict=True)]
    return made, {"rouge_l": float(np.mean(scores))}


@pytest.fixture
def two():
    generator = np.random.default_rng(3)
    one = generator.random(200) < 0.9
    other = np.where(generator.random(200) < 0.12, ~one, one)
    return one, other


@pytest.fixture
def two_scores():
    generator = np.random.default_rng(4)
    one = generator.random(200)
    return one, np.clip(one + 0.1 * generator.normal(size=200) - 0.02, 0.0, 1.0)


def test_examples_that_are_right_or_wrong_are_compared_as_paired_shares(two):
    one, other = two
    found = difference_over_examples("accuracy", side(one), side(other))
    expected = paired_shares(one.astype(float), other.astype(float), np.arange(200))
    assert found.difference == pytest.approx(one.mean() - other.mean())
    assert (found.low, found.high, found.p) == (expected.low, expected.high, expected.p)
    assert (found.changed, found.groups) == (int((one != other).sum()), 200)
    assert found.method == "Newcombe's square-and-add, 200 examples"


def test_three_flips_of_872_leave_room_for_a_percent():
    """Student's interval ends at 0.73 %: too near, as often as not."""
    one = np.ones(872)
    other = np.where(np.arange(872) < 3, 0.0, one)
    found = difference_over_examples("accuracy", side(one), side(other))
    assert found.high > 0.0099
    assert found.low < 0.0
    assert found.p == 0.25


def test_where_few_examples_flip_intervals_hold_the_truth_as_often_as_they_say():
    """Four flips of 872 are expected, all one way: studies drawn with a seed."""
    draw, intervals, held = np.random.default_rng(7), {}, 0
    for flips in draw.binomial(872, 4 / 872, size=600).tolist():
        if flips not in intervals:
            other = np.where(np.arange(872) < flips, 0.0, 1.0)
            found = difference_over_examples("accuracy", side(np.ones(872)), side(other))
            intervals[flips] = found.low <= 4 / 872 <= found.high
        held += intervals[flips]
    # 570 expected; Student's would hold about 540.
    assert held >= 560


def test_percentages_of_questions_are_compared_by_paragraph():
    one, other = np.ones(60), np.where(np.arange(60) < 4, 0.0, 1.0)
    groups = [f"paragraph {index // 4}" for index in range(60)]

    def asked(matches):
        made = [
            {"id": f"q{i}", "exact_match": float(m), "group": group}
            for i, (m, group) in enumerate(zip(matches, groups, strict=True))
        ]
        return made, {"exact_match": 100 * float(np.mean(matches))}

    found = difference_over_examples("exact_match", asked(one), asked(other))
    expected = paired_shares(one, other, np.arange(60) // 4)
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert (found.changed, found.groups, found.method) == (1, 15, "Newcombe's square-and-add, 15 groups of 60 examples")


def test_scores_of_any_size_have_the_paired_t_tests_interval(two_scores):
    one, other = two_scores
    found = difference_over_examples("rouge_l", texts(one), texts(other))
    test = stats.ttest_rel(one, other)
    ends = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-6)
    assert found.p == pytest.approx(test.pvalue, rel=1e-6)
    groups = [f"g{index // 5}" for index in range(200)]
    found = difference_over_examples("rouge_l", texts(one, groups), texts(other, groups))
    assert found.changed == 40
    ends = stats.ttest_1samp((one - other).reshape(40, 5).mean(axis=1), 0.0).confidence_interval(0.95)
    assert (found.groups, found.method) == (40, "Student, 40 groups of 200 examples")
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-6)


def test_a_handful_of_scores_that_changed_has_no_interval_and_signs_bound_its_p(two_scores):
    one = two_scores[0]
    few = np.where(np.arange(200) < 5, one - 0.1, one)
    found = difference_over_examples("rouge_l", texts(one), texts(few))
    assert (found.low, found.changed, found.p) == (None, 5, 2.0**-4)
    assert "5 of 200 examples score differently, which is too few" in found.method
    alike = difference_over_examples("rouge_l", texts(one), texts(one - 0.1))
    assert (alike.low, alike.method) == (None, "none: 200 examples differ by exactly as much")


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_fewer_than_ten_groups_have_no_interval_and_nothing_is_promised_of_others(count):
    """Of five differences of one sign the signs' p is 0.06, while Student's interval leaves zero out."""
    one = np.linspace(0.5, 0.9, count)
    other = one - np.linspace(0.09, 0.11, count)
    found = difference_over_examples("rouge_l", texts(one), texts(other))
    assert (found.low, found.high, found.changed) == (None, None, count)
    assert found.p == 2.0 ** (1 - count)
    assert found.method == f"none: {count} of {count} examples score differently, which is too few"
    loss = loss_over_examples("rouge_l", 0.5, texts(one), texts(other))
    assert loss["verdict"] == "it holds for these very examples; nothing tells how far others would differ"


def test_an_interval_and_its_p_never_contradict_each_other():
    draw = np.random.default_rng(5)
    for count in (10, 11, 15, 40):
        for shift in (0.0, 0.02, 0.05, 0.2):
            one = draw.random(count)
            found = difference_over_examples("rouge_l", texts(one), texts(one - shift + 0.05 * draw.normal(size=count)))
            assert (found.p < 0.05) == (not found.low <= 0.0 <= found.high)


def test_the_spread_of_scores_that_are_mostly_equal_is_known_from_those_that_differ():
    draw = np.random.default_rng(6)
    one = draw.random(200)
    gained = np.where(np.arange(200) < 12, draw.normal(0.1, 0.05, 200), 0.0)
    found = difference_over_examples("rouge_l", texts(one), texts(one - gained))
    assert found.changed == 12
    half = stats.sem(gained) * stats.t.ppf(0.975, 11)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-6)


@pytest.mark.parametrize(("count", "rate"), [(12, 1.0), (100, 0.15)])
def test_where_few_scores_differ_intervals_hold_the_truth_nearly_as_often_as_they_say(count, rate):
    """Three in four differ in one direction, by exponential sizes; studies drawn with a seed."""
    draw, held, given = np.random.default_rng(8), 0, 0
    for _ in range(400):
        gained = (draw.random(count) < rate) * np.where(draw.random(count) < 0.75, 1.0, -1.0) * draw.exponential(1.0, count)
        found = difference_over_examples("rouge_l", texts(gained), texts(np.zeros(count)))
        given += found.low is not None
        held += found.low is not None and found.low <= 0.5 * rate <= found.high
    assert given > 300
    assert held >= 0.93 * given


def test_where_no_example_changed_there_is_no_difference_and_shares_still_have_room(two, two_scores):
    found = difference_over_examples("accuracy", side(two[0]), side(two[0]))
    assert (found.difference, found.p, found.changed) == (0.0, 1.0, 0)
    assert (found.low, found.high) == pytest.approx((-0.0188, 0.0188), abs=1e-4)
    found = difference_over_examples("rouge_l", texts(two_scores[0]), texts(two_scores[0]))
    assert (found.difference, found.low, found.p, found.changed) == (0.0, None, 1.0, 0)


def test_a_metric_that_is_no_sum_over_examples_has_its_difference_alone(two):
    one, other = (predictions for predictions, _ in map(side, two))
    found = difference_over_examples("best_f1", (one, {"best_f1": 0.7}), (other, {"best_f1": 0.6}))
    assert math.isclose(found.difference, 0.1)
    assert (found.low, found.p, found.changed, found.groups) == (None, None, None, None)
    assert "no sum" in found.method


def test_a_loss_is_positive_where_the_cut_is_worse_and_its_verdict_claims_no_confidence(two):
    one, other = two
    best, worst = sorted((side(one), side(other)), key=lambda its: -its[1]["accuracy"])
    found = loss_over_examples("accuracy", 0.5, best, worst)
    assert found["loss"] > 0.0
    assert found["low"] < found["loss"] < found["high"]
    assert found["verdict"] == "it would most probably hold for other examples of the same kind too"
    assert "does not exclude a larger loss" in loss_over_examples("accuracy", found["loss"], best, worst)["verdict"]
    # The other way round it gains, and a metric that should be low turns the sign.
    assert loss_over_examples("accuracy", 0.5, worst, best)["loss"] == pytest.approx(-found["loss"])
    lower = [([row | {"loss": loss} for row in rows(one)], {"eval_loss": loss}) for loss in (0.5, 0.7)]
    assert loss_over_examples("eval_loss", 0.1, *lower)["loss"] == pytest.approx(0.2)
