"""One difference: its interval holds what it says, chance is called a difference rarely, and a real one is found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lorascope.compare import paired_difference
from lorascope.compare.paired import _Mixture
from lorascope.shapley import CONFIDENCE

FINITE = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 3))
PAIRS = st.tuples(st.integers(2, 4), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(arrays(float, shape, elements=FINITE), arrays(float, shape, elements=FINITE))
)


def trained(draw, num_seeds, num_examples=872, gain=0.0, of_configuration=0.2, of_seed=0.02, of_both=0.11):
    """Whether each example was right, by seed, of a baseline and one other configuration.

    A classifier's margin is how easy the example is, the same for both; what the configuration makes of it; the seed's shift;
    and what this seed makes of this example. The sizes, in logits, give an accuracy of 0.83, seeds that differ by 0.45 points
    (standard deviation), and two runs that disagree on 4 % of the examples.
    """
    easy_E = draw.normal(1.6, 1.6, num_examples)
    sides = []
    for shift in (0.0, gain):
        own_E = easy_E + shift + draw.normal(0, of_configuration, num_examples)
        seed_S1 = draw.normal(0, of_seed, (num_seeds, 1))
        sides.append((own_E + seed_S1 + draw.normal(0, of_both, (num_seeds, num_examples)) > 0).astype(float))
    return sides


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("sizes", [{"of_configuration": 0.0}, {"of_seed": 0.15}, {}], ids=["same", "restless", "unlike"])
def test_configurations_of_equal_worth_are_told_apart_in_less_than_one_of_twenty_studies(num_seeds, sizes):
    draw = np.random.default_rng(num_seeds)
    p_values = [paired_difference(*trained(draw, num_seeds, **sizes)).p for _ in range(60)]
    assert sum(p < 1 - CONFIDENCE for p in p_values) <= 5  # three are the nominal rate's
    assert len(set(p_values)) > 30  # no constant answer


def test_two_points_are_found_with_five_seeds_on_872_examples():
    draw = np.random.default_rng(5)
    found = [paired_difference(one, other) for other, one in (trained(draw, 5, gain=0.14) for _ in range(50))]
    assert np.mean([each.difference for each in found]) == pytest.approx(0.02, abs=0.002)
    assert np.mean([each.low > 0 and each.p < 0.05 for each in found]) >= 0.8


def test_intervals_hold_the_true_difference():
    draw = np.random.default_rng(11)
    truth = 0.7
    held = []
    for _ in range(100):
        noise = draw.normal(0, 1, (2, 3, 40)) + draw.normal(0, 0.3, (2, 3, 1)) + draw.normal(0, 1, (2, 1, 40))
        result = paired_difference(noise[0] + truth, noise[1])
        held.append(result.low <= truth <= result.high)
    assert np.mean(held) >= CONFIDENCE - 0.02


@settings(max_examples=50)
@given(PAIRS)
def test_the_other_way_round_is_the_mirror_image(pair):
    one, other = pair
    result, mirrored = paired_difference(one, other), paired_difference(other, one)
    assert mirrored.difference == -result.difference
    assert mirrored.p == pytest.approx(result.p, abs=1e-6)
    assert (mirrored.low, mirrored.high) == pytest.approx((-result.high, -result.low), abs=1e-6, nan_ok=True)
    assert np.isnan(result.low) or result.low <= result.difference <= result.high
    assert 0 <= result.p <= 1


@settings(max_examples=50)
@given(PAIRS)
def test_a_small_p_never_comes_with_an_interval_that_holds_zero(pair):
    result = paired_difference(*pair)
    if result.p < 1 - CONFIDENCE - 1e-6:
        assert not result.low <= 0 <= result.high


def test_what_is_the_same_is_no_difference():
    scores = np.random.default_rng(0).normal(size=(3, 20))
    result = paired_difference(scores, scores)
    assert (result.difference, result.low, result.high, result.p) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("num_examples", [2, 5, 10])
def test_a_handful_of_unanimous_examples_is_no_proof(num_examples):
    result = paired_difference(np.ones((4, num_examples)), np.zeros((4, num_examples)))
    assert result.difference == 1.0
    assert result.p == 2.0 ** (1 - num_examples)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_coarse_figures_that_tie_over_the_seeds_are_no_proof(num_seeds):
    other = np.linspace(0.7, 0.8, num_seeds).round(2)[:, None]
    result = paired_difference(other + 0.01, other)
    assert result.difference == pytest.approx(0.01)
    assert result.p == 2.0 ** (1 - num_seeds)
    assert np.isnan([result.low, result.high]).all()
    same = paired_difference(other, other)
    assert (same.difference, same.p) == (0.0, 1.0)
    assert np.isnan(same.low)


def test_two_accuracies_that_differ_by_one_step_under_both_seeds_are_not_certainly_apart():
    result = paired_difference(np.array([[0.85], [0.84]]), np.array([[0.84], [0.83]]))
    assert result.p == 0.5
    assert np.isnan(result.low)


def test_two_seeds_that_agree_by_chance_do_not_count_as_certain():
    draw = np.random.default_rng(3)
    difference = draw.normal(0, 1, 400)
    difference -= difference.mean() - 0.08
    alike = np.array([difference, draw.permutation(difference)])
    result = paired_difference(alike, np.zeros_like(alike))
    assert alike.mean(axis=1).std() < 1e-12
    assert result.p > 0.05


def test_more_seeds_and_more_examples_narrow_the_interval():
    draw = np.random.default_rng(2)
    noise = draw.normal(0, 1, (10, 900)) + draw.normal(0, 1, 900)
    widths = {}
    for shape in ((2, 900), (5, 900), (10, 900), (10, 100)):
        result = paired_difference(noise[: shape[0], : shape[1]], np.zeros(shape))
        widths[shape] = result.high - result.low
    assert widths[2, 900] > widths[5, 900] > widths[10, 900]
    assert widths[10, 100] > 2 * widths[10, 900]


@pytest.mark.parametrize("few", [1, 2, 4])
@pytest.mark.parametrize("w", [0.05, 0.5, 0.99])
def test_the_mixtures_tails_are_those_of_draws(few, w):
    draw = np.random.default_rng(7)
    values = np.sqrt(w) * draw.standard_t(few, 200_000) + np.sqrt(1 - w) * draw.standard_t(40, 200_000)
    mixture = _Mixture(w, few, 40)
    for probability in (0.3, 0.05, 0.01):
        x = mixture.quantile(probability)
        assert mixture.tails(x) == pytest.approx(probability, abs=1e-6)
        assert np.mean(np.abs(values) > x) == pytest.approx(probability, rel=0.08)


def test_unpaired_scores_and_a_single_seed_are_refused():
    for shapes in (((2, 3), (2, 4)), ((1, 3), (1, 3)), ((2, 0), (2, 0))):
        with pytest.raises(ValueError, match=r"paired|seeds"):
            paired_difference(*map(np.zeros, shapes))
    with pytest.raises(ValueError, match="no number"):
        paired_difference(np.full((2, 2), np.nan), np.zeros((2, 2)))
