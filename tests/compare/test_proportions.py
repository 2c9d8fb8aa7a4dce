"""Two shares of the same examples: an interval by groups where examples belong together, as sure as it says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lorascope.compare.proportions import interval_of_paired_shares, paired_shares


def alone(count):
    return np.arange(count)


def flips(up, down, count):
    """Both sides of so many examples, the first of which flip."""
    one, other = np.ones(count), np.ones(count)
    other[:up] = 0.0
    one[up : up + down] = 0.0
    return one, other


def test_the_interval_is_square_and_add_of_wilsons():
    """By scipy's Wilson limits of both rates; flips one way alone, so that nothing is correlated."""
    for up, count in ((3, 872), (1, 20), (7, 60)):
        low, high = interval_of_paired_shares(up, 0, count)
        rising, falling = (stats.binomtest(flips, count).proportion_ci(0.95, method="wilson") for flips in (up, 0))
        share = up / count
        assert low == pytest.approx(share - math.hypot(share - rising.low, falling.high), abs=1e-12)
        assert high == pytest.approx(rising.high, abs=1e-12)


@given(up=st.integers(0, 30), down=st.integers(0, 30), more=st.integers(1, 200))
def test_the_interval_holds_the_estimate_and_turns_with_the_sides(up, down, more):
    count = up + down + more
    low, high = interval_of_paired_shares(up, down, count)
    assert -1.0 <= low <= (up - down) / count <= high <= 1.0
    assert interval_of_paired_shares(down, up, count) == pytest.approx((-high, -low), abs=1e-12)


def test_of_many_flips_the_interval_is_that_of_the_normal_distribution():
    for up, down, count in ((3000, 1000, 50_000), (4000, 4000, 20_000), (9000, 500, 10_000)):
        low, high = interval_of_paired_shares(up, down, count)
        difference = (up - down) / count
        half = stats.norm.ppf(0.975) * math.sqrt(((up + down) / count - difference**2) / count)
        assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.05 * half)


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


@pytest.mark.parametrize(
    ("count", "up", "down"),
    [(872, 4 / 872, 0.0), (872, 3 / 872, 1 / 872), (872, 8 / 872, 8 / 872), (200, 0.03, 0.0), (100, 0.05, 0.03)],
)
def test_intervals_of_a_few_flips_hold_the_truth_as_often_as_they_say(count, up, down):
    """Over all outcomes, each as often as it occurs."""
    ours = students = 0.0
    for ups in range(40):
        for downs in range(40 if down else 1):
            chance = stats.multinomial.pmf([ups, downs, count - ups - downs], count, [up, down, 1 - up - down])
            if chance < 1e-9:
                continue
            found = paired_shares(*flips(ups, downs, count), alone(count))
            ours += chance * (found.low <= up - down <= found.high)
            difference = (ups - downs) / count
            error = math.sqrt(((ups + downs) / count - difference**2) / (count - 1))
            students += chance * (abs(difference - up + down) <= stats.t.ppf(0.975, count - 1) * error)
    assert ours > 0.95
    if count * (up + down) < 5:
        assert students < 0.94


def test_intervals_of_flips_in_clumps_hold_the_truth_too():
    draw, held = np.random.default_rng(5), 0
    group_E = np.repeat(alone(150), 4)
    for _ in range(400):
        gained_E = np.repeat(draw.choice([1.0, -1.0, 0.0], size=150, p=[0.04, 0.02, 0.94]), 4)
        found = paired_shares((gained_E > 0).astype(float), (gained_E < 0).astype(float), group_E)
        held += found.low <= 0.02 <= found.high
    assert held > 0.94 * 400
