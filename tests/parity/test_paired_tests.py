"""Where only seeds or only examples vary, a comparison is SciPy's paired t-test; F1 taken apart is scikit-learn's."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, log_loss

from lorascope.compare import paired_difference
from lorascope.compare.scores import Ratio


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
def test_a_figure_of_the_whole_dataset_is_compared_by_scipys_paired_t_test(num_seeds):
    draw = np.random.default_rng(num_seeds)
    one, other = draw.normal(0.8, 0.1, num_seeds), draw.normal(0.7, 0.1, num_seeds)
    result = paired_difference(one[:, None], other[:, None])
    expected = stats.ttest_rel(one, other)
    interval = expected.confidence_interval(0.95)
    assert (result.p, result.low, result.high) == pytest.approx((expected.pvalue, interval.low, interval.high), rel=1e-6)


def test_seeds_that_all_say_the_same_leave_scipys_paired_t_test_over_examples():
    draw = np.random.default_rng(1)
    one_E, other_E = draw.normal(0.2, 1, 50), draw.normal(0, 1, 50)
    result = paired_difference(np.tile(one_E, (3, 1)), np.tile(other_E, (3, 1)))
    expected = stats.ttest_rel(one_E, other_E)
    interval = expected.confidence_interval(0.95)
    assert (result.p, result.low, result.high) == pytest.approx((expected.pvalue, interval.low, interval.high), rel=1e-4)


def test_an_f1_and_a_loss_taken_apart_are_scikit_learns():
    draw = np.random.default_rng(4)
    gold, guess = draw.integers(0, 2, 200), draw.integers(0, 2, 200)
    keys = tuple((str(number), 0) for number in range(200))
    hits, counts = 2.0 * (gold & guess), 1.0 * (gold + guess)
    ratio = Ratio(keys, tuple(map(str, keys)), hits, counts)
    assert ratio.value == pytest.approx(f1_score(gold, guess), rel=1e-12)
    probability = draw.uniform(0.01, 0.99, 200)
    losses = -np.log(np.where(gold == 1, probability, 1 - probability))
    assert Ratio(keys, tuple(map(str, keys)), losses, np.ones(200)).value == pytest.approx(log_loss(gold, probability))
