"""Two shares of the same examples: Tango's interval, by groups where examples belong together, as sure as it says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lorascope.compare.proportions import paired_shares, score_interval_of_paired_shares


def alone(count):
    return np.arange(count)


def flips(up, down, count):
    """Both sides of so many examples, the first of which flip."""
    one, other = np.ones(count), np.ones(count)
    other[:up] = 0.0
    one[up : up + down] = 0.0
    return one, other


def test_the_interval_is_the_published_one():
    # Children before and after a transplantation, in Fagerland, Lydersen and Laake 2014, "Recommended tests and confidence
    # intervals for paired binomial proportions", Statistics in Medicine 33; R's PropCIs gives the same.
    assert score_interval_of_paired_shares(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@given(up=st.integers(0, 12), down=st.integers(0, 12), more=st.integers(0, 60))
def test_at_the_ends_the_score_test_just_rejects(up, down, more):
    """Against the likelihood maximised numerically under the difference that is tested."""
    count = up + down + more
    if count == 0:
        return
    low, high = score_interval_of_paired_shares(up, down, count)
    assert -1.0 <= low <= (up - down) / count <= high <= 1.0
    for end in (low, high):
        if abs(end) > 1.0 - 1e-9 or min(up, down) == 0:
            continue
        shares = np.linspace(max(0.0, -end), (1.0 - end) / 2, 200_001)[1:-1]  # of flips down
        likelihood = up * np.log(shares + end) + down * np.log(shares) + more * np.log1p(-2 * shares - end)
        falling = shares[int(likelihood.argmax())]
        statistic = (up - down - count * end) / math.sqrt(count * (2 * falling + end * (1 - end)))
        assert abs(statistic) == pytest.approx(stats.norm.ppf(0.975), rel=2e-3)


def test_where_nothing_flipped_the_interval_is_as_wide_as_the_examples_are_few():
    z2 = stats.norm.ppf(0.975) ** 2
    for count in (6, 100, 872):
        found = paired_shares(*flips(0, 0, count), alone(count))
        assert (found.low, found.high) == pytest.approx((-z2 / (count + z2), z2 / (count + z2)), abs=1e-9)
        assert (found.p, found.changed) == (1.0, 0)
    # Groups of ten are what is known to be independent.
    grouped = paired_shares(*flips(0, 0, 100), alone(100) // 10)
    assert grouped.high == pytest.approx(z2 / (10 + z2), abs=1e-9)


def test_p_is_mcnemars_exact_one_and_zero_is_held_where_it_rejects_nothing():
    for up, down in ((4, 0), (5, 0), (6, 0), (9, 2), (40, 20)):
        found = paired_shares(*flips(up, down, 500), alone(500))
        assert found.p == pytest.approx(stats.binomtest(up, up + down).pvalue)
        assert (found.low > 0.0) == (found.p < 0.05)
        assert found.changed == up + down


def test_flips_that_come_in_clumps_count_as_fewer():
    one, other = flips(12, 0, 600)
    clumped, spread = paired_shares(one, other, alone(600) // 6), paired_shares(one, other, alone(600) % 100)
    assert (clumped.changed, spread.changed) == (2, 12)
    assert clumped.high - clumped.low > 2 * (spread.high - spread.low)
    assert clumped.p > 0.4 > 0.01 > spread.p
    independent = paired_shares(one, other, alone(600))
    assert spread.high == pytest.approx(independent.high, rel=0.05)


def test_a_single_group_tells_next_to_nothing():
    found = paired_shares(*flips(3, 0, 50), np.zeros(50, dtype=int))
    assert found.low < 0.0
    assert found.high > 0.7


def held(draw, count, up, down, num_draws, groups_of=1):
    """How often the interval holds the true difference, and how often Student's would, where flips come as often as said."""
    held_by = np.zeros(2)
    group_E = np.repeat(alone(count // groups_of), groups_of)
    for _ in range(num_draws):
        kind_G = draw.choice([1.0, -1.0, 0.0], size=count // groups_of, p=[up, down, 1 - up - down])
        gained_E = np.repeat(kind_G, groups_of)
        found = paired_shares((gained_E > 0).astype(float), (gained_E < 0).astype(float), group_E)
        held_by[0] += found.low <= up - down <= found.high
        half = 1.96 * kind_G.std(ddof=1) / math.sqrt(len(kind_G))
        held_by[1] += abs(kind_G.mean() - (up - down)) <= half
    return held_by / num_draws


@pytest.mark.parametrize(
    ("count", "up", "down"),
    [(872, 4 / 872, 0.0), (872, 3 / 872, 1 / 872), (200, 0.01, 0.01), (200, 0.03, 0.0), (100, 0.05, 0.03), (872, 0.03, 0.02)],
)
def test_intervals_of_a_few_flips_hold_the_truth_as_often_as_they_say(count, up, down):
    ours, students = held(np.random.default_rng(11), count, up, down, 1500)
    # 95 %, less what chance and discreteness take.
    assert ours > 0.93
    if count * (up + down) < 5:
        assert students < 0.92


def test_intervals_of_flips_in_clumps_hold_the_truth_too():
    ours, _ = held(np.random.default_rng(5), 600, 0.04, 0.02, 800, groups_of=4)
    assert ours > 0.93
