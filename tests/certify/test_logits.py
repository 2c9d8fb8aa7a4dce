"""Figures between two sets of logits are those of their definitions, and numbers that are none are counted."""

import math

import pytest
import torch
from scipy.stats import entropy

from lorascope.certify.logits import difference


def drawn(seed, rows=7, classes=5):
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_figures_are_those_of_their_definitions():
    one, other = drawn(1), drawn(2)
    found = difference([one[:3], one[3:]], [other[:3], other[3:]])
    assert found.positions == 7
    assert found.max_difference == pytest.approx(float((one - other).abs().max()), rel=1e-12)
    assert found.relative_difference == pytest.approx(float((one - other).norm() / one.norm()), rel=1e-12)
    divergences = entropy(one.softmax(-1).numpy(), other.softmax(-1).numpy(), axis=1)
    assert found.kl == pytest.approx(divergences.mean(), rel=1e-9)
    assert found.kl_max == pytest.approx(divergences.max(), rel=1e-9)
    assert found.top1_agreement == pytest.approx(float((one.argmax(-1) == other.argmax(-1)).double().mean()))


def test_equal_logits_differ_by_nothing():
    found = difference([drawn(1)], [drawn(1)])
    assert (found.max_difference, found.relative_difference, found.kl, found.kl_max) == (0.0, 0.0, 0.0, 0.0)
    assert found.top1_agreement == 1.0


def test_a_constant_added_to_all_logits_is_no_divergence():
    found = difference([drawn(1)], [drawn(1) + 3.0])
    assert found.kl == pytest.approx(0.0, abs=1e-12)
    assert found.max_difference == pytest.approx(3.0)


def test_logits_that_are_no_numbers_are_counted_and_give_no_figure():
    other = drawn(1)
    other[2, 1], other[3, 0] = math.nan, math.inf
    found = difference([drawn(1)], [other])
    assert found.nonfinite == 2
    assert found.kl is None
    assert found.max_difference is None


def test_logits_of_other_shapes_and_none_at_all_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        difference([drawn(1)], [drawn(1, classes=4)])
    with pytest.raises(ValueError, match="no position"):
        difference([], [])
