"""Where only seeds or only examples vary, a comparison is SciPy's paired t-test; F1 taken apart is scikit-learn's."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, log_loss

from lorascope.compare import paired_difference
from lorascope.compare.scores import Ratio


def of_seeds(num_seeds):
    """One figure of the whole dataset for each seed: only seeds vary."""
    draw = np.random.default_rng(num_seeds)
    return draw.normal(0.8, 0.1, (num_seeds, 1)), draw.normal(0.7, 0.1, (num_seeds, 1))


def of_examples(num_examples):
    """Seeds that all say the same: only examples vary."""
    draw = np.random.default_rng(num_examples)
    return np.tile(draw.normal(0.2, 1, num_examples), (3, 1)), np.tile(draw.normal(0, 1, num_examples), (3, 1))


@pytest.mark.parametrize(
    ("one_SE", "other_SE"), [*(of_seeds(count) for count in (2, 3, 5, 10)), of_examples(50)],
    ids=["2 seeds", "3 seeds", "5 seeds", "10 seeds", "50 examples"],
)  # fmt: skip
def test_where_one_thing_varies_the_comparison_is_scipys_paired_t_test(one_SE, other_SE):
    result = paired_difference(one_SE, other_SE)
    if one_SE.shape[1] == 1:
        expected = stats.ttest_rel(one_SE[:, 0], other_SE[:, 0])
    else:
        expected = stats.ttest_rel(one_SE[0], other_SE[0])
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
