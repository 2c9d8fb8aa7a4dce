"""Figures of an adapter's updates, against the dense matrix in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.lora.diagnostics import diagnose, diagnose_update, overall, singular_values
from lorascope.lora.stack import AdapterWeights, Placement
from lorascope.lora.targets import Target


def dense_figures(lora_A_RD, lora_B_OR, scaling):
    """Norm, effective rank and stable rank of the whole matrix, by their definitions."""
    update_OD = scaling * (lora_B_OR.double() @ lora_A_RD.double())
    values = torch.linalg.svdvals(update_OD)
    shares = values / values.sum()
    shares = shares[shares > 1e-14]
    entropy = -float((shares * shares.log()).sum())
    spectral = float(torch.linalg.matrix_norm(update_OD, 2))
    return float(torch.linalg.matrix_norm(update_OD)), math.exp(entropy), float(update_OD.square().sum()) / spectral**2


@settings(max_examples=60, deadline=None)
@given(
    rank=st.integers(1, 24),
    size_in=st.integers(1, 40),
    size_out=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    scaling=st.floats(0.01, 64.0),
    spread=st.floats(0.0, 6.0),
)
def test_figures_from_the_factors_are_those_of_the_dense_matrix(rank, size_in, size_out, seed, scaling, spread):
    generator = torch.Generator().manual_seed(seed)
    # Directions of very different size, as in a trained adapter.
    sizes_R = 10.0 ** -(spread * torch.rand(rank, 1, generator=generator))
    lora_A_RD = sizes_R * torch.randn(rank, size_in, generator=generator)
    lora_B_OR = torch.randn(size_out, rank, generator=generator)
    found = diagnose_update(lora_A_RD, lora_B_OR, scaling)
    norm, effective_rank, stable_rank = dense_figures(lora_A_RD, lora_B_OR, scaling)
    assert found.norm == pytest.approx(norm, rel=1e-6)
    assert found.effective_rank == pytest.approx(effective_rank, rel=1e-6)
    assert found.stable_rank == pytest.approx(stable_rank, rel=1e-6)
    assert found.utilisation == pytest.approx(effective_rank / rank, rel=1e-6)
    assert found.norm_A == pytest.approx(float(lora_A_RD.double().norm()), rel=1e-12)
    assert found.norm_B == pytest.approx(float(lora_B_OR.double().norm()), rel=1e-12)
    assert found.r == rank


def test_singular_values_are_those_of_the_dense_matrix_at_a_layers_size():
    generator = torch.Generator().manual_seed(1)
    lora_A_RD, lora_B_OR = torch.randn(8, 768, generator=generator), torch.randn(3072, 8, generator=generator)
    dense = torch.linalg.svdvals(2.0 * (lora_B_OR.double() @ lora_A_RD.double()))[:8]
    torch.testing.assert_close(singular_values(lora_A_RD, lora_B_OR, 2.0), dense, rtol=1e-12, atol=0)


def test_equal_singular_values_use_the_whole_rank_and_a_lone_one_a_single_direction():
    whole = diagnose_update(torch.eye(4, 9), torch.eye(7, 4), 3.0)
    assert (whole.effective_rank, whole.stable_rank, whole.utilisation) == pytest.approx((4.0, 4.0, 1.0))
    assert whole.norm == pytest.approx(6.0)
    lone = diagnose_update(torch.ones(4, 9), torch.ones(7, 4), 1.0)
    assert (lone.effective_rank, lone.stable_rank, lone.utilisation) == pytest.approx((1.0, 1.0, 0.25))


def test_an_adapter_that_was_not_trained_has_no_rank():
    fresh = diagnose_update(torch.ones(4, 9), torch.zeros(7, 4), 2.0)
    assert (fresh.norm, fresh.norm_B, fresh.effective_rank, fresh.stable_rank, fresh.utilisation) == (0.0,) * 5
    assert fresh.norm_A == 6.0


def test_tiny_updates_keep_their_rank():
    tiny = diagnose_update(torch.eye(4, 9) * 1e-30, torch.eye(7, 4) * 1e-30, 1e-200)
    assert tiny.stable_rank == pytest.approx(4.0)


def test_overall_norms_are_over_everything_and_ranks_on_average():
    placements = (Placement(Target("a"), 2, 0.5), Placement(Target("b", (0, 6)), 4, 2.0))
    weights = AdapterWeights(
        placements,
        {"a": torch.eye(2, 5), "b[0:6]": torch.eye(4, 5)},
        {"a": torch.eye(6, 2), "b[0:6]": torch.eye(6, 4)},
    )
    updates = diagnose(weights)
    assert list(updates) == ["a", "b[0:6]"]
    found = overall(updates)
    dense = [0.5 * torch.eye(6, 2) @ torch.eye(2, 5), 2.0 * torch.eye(6, 4) @ torch.eye(4, 5)]
    assert found.norm == pytest.approx(float(torch.cat(dense).norm()))
    assert (found.r, found.effective_rank, found.stable_rank, found.utilisation) == pytest.approx((6, 3.0, 3.0, 1.0))
    assert overall({}) is None
