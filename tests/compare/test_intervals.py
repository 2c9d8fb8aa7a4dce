"""How sure a score is, over examples and over seeds, against outside references."""

import math

import numpy as np
import pytest
from scipy import stats

from lorascope.compare.intervals import FEWEST_GROUPS, score_interval, seeds_interval
from lorascope.compare.scores import Ratio


def ratio(numerators, denominators=None, groups=None, **options):
    count = len(numerators)
    keys = tuple((f"e{number}", 0) for number in range(count))
    groups = tuple(f"g{number}" for number in range(count)) if groups is None else tuple(groups)
    denominators = [1.0] * count if denominators is None else denominators
    return Ratio(keys, groups, np.array(numerators, float), np.array(denominators, float), **options)


@pytest.mark.parametrize(("hits", "count"), [(7, 8), (0, 8), (8, 8), (430, 872)])
def test_a_share_of_independent_examples_has_wilsons_interval(hits, count):
    found = score_interval(ratio([1.0] * hits + [0.0] * (count - hits)))
    z, p = stats.norm.ppf(0.975), hits / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count**2))
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-12)
    assert found.method == f"Wilson, {count} examples"


def test_percentages_have_their_interval_in_percent():
    shares, percent = score_interval(ratio([1, 0, 1, 1])), score_interval(ratio([1, 0, 1, 1], scale=100.0))
    assert (percent.low, percent.high) == pytest.approx((100 * shares.low, 100 * shares.high))


@pytest.mark.parametrize("grouped", [False, True])
def test_bootstrapped_intervals_hold_the_truth_about_as_often_as_they_say(grouped):
    draw = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        of_group = np.repeat(draw.normal(size=40), 3) if grouped else draw.normal(size=120)
        groups = np.repeat(np.arange(40), 3) if grouped else np.arange(120)
        found = score_interval(ratio(of_group + 0.3 * draw.normal(size=120), groups=map(str, groups)))
        held += found.low <= 0 <= found.high
    # 190 expected of 200; a bootstrap that took the groups' members for independent holds about 150.
    assert 178 <= held <= 199


def test_a_bootstrap_is_the_same_every_time_and_follows_the_exponential():
    losses, tokens = np.random.default_rng(1).uniform(1, 40, 50), np.full(50, 10.0)
    plain, perplexity = score_interval(ratio(losses, tokens)), score_interval(ratio(losses, tokens, exponential=True))
    assert plain == score_interval(ratio(losses, tokens))
    assert (perplexity.low, perplexity.high) == pytest.approx((math.exp(plain.low), math.exp(plain.high)))


def test_what_cannot_be_told_is_said_and_not_made_up():
    few = score_interval(ratio([0.1, 0.5, 0.3] * 2))
    assert (few.low, few.high, few.method) == (None, None, "none: 6 examples are too few")
    same = score_interval(ratio([0.0] * 30, scale=1.0, denominators=[2.0] * 30))
    assert (same.low, same.method) == (None, "none: every example scores the same")
    assert score_interval(ratio([0.0, 0.0], [0.0, 0.0])).method == "no example counts"


def test_all_wrong_in_few_groups_is_known_no_better_than_the_groups_are():
    found = score_interval(ratio([0.0] * 40, groups=[str(number // 10) for number in range(40)]))
    assert found.method == "Wilson, 4 groups of 40 examples"
    assert found.high == pytest.approx(score_interval(ratio([0.0] * 4)).high)


def test_examples_that_do_not_count_leave_no_trace():
    answered = [1.0] * 12 + [0.0] * 8
    with_others = score_interval(ratio([*answered, *[0.0] * 30], [*[1.0] * 20, *[0.0] * 30]))
    assert with_others == score_interval(ratio(answered))
    # Resamples in which nothing counts are left out, and raise no warning.
    sparse = score_interval(ratio([1.0] * 12, [1.0, *[2.0] * 11], groups=map(str, range(12))))
    assert sparse.low is not None
    assert FEWEST_GROUPS <= 12


def test_an_interval_over_seeds_is_students():
    values = [0.81, 0.84, 0.9]
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert seeds_interval(values) == pytest.approx((reference.low, reference.high))
    assert seeds_interval([0.5]) is None
    assert seeds_interval([0.5, 0.5]) is None
