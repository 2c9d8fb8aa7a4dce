"""Figures of an adapter's updates, against the dense matrix in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.lora.diagnostics import (
    compare_updates,
    decompose,
    diagnose,
    diagnose_update,
    kept_energy,
    moments,
    overall,
    rank_keeping,
    singular_values,
    subspace_overlap,
    update_moments,
)
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
    assert found.nuclear_norm == pytest.approx(float(found.values_S.sum()), rel=1e-12)
    assert found.spectral_norm == pytest.approx(norm / math.sqrt(stable_rank), rel=1e-6)
    update = decompose(lora_A_RD, lora_B_OR, scaling)
    assert (found.numerical_rank, found.rounding) == (update.numerical_rank, update.rounding)


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
    found = overall(updates.values())
    dense = [0.5 * torch.eye(6, 2) @ torch.eye(2, 5), 2.0 * torch.eye(6, 4) @ torch.eye(4, 5)]
    assert found.norm == pytest.approx(float(torch.cat(dense).norm()))
    assert (found.r, found.effective_rank, found.stable_rank, found.utilisation) == pytest.approx((6, 3.0, 3.0, 1.0))
    assert overall([]) is None


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis(size, rank, seed=0):
    return torch.linalg.qr(normal(size, rank, seed=seed))[0]


@pytest.mark.parametrize("scaling", [2.0, -0.5])
@pytest.mark.parametrize(("size_out", "size_in", "rank"), [(30, 20, 4), (3, 20, 5), (20, 4, 6)])
def test_the_decomposition_gives_the_update_again(size_out, size_in, rank, scaling):
    lora_A_RD, lora_B_OR = normal(rank, size_in, seed=1), normal(size_out, rank, seed=2)
    found = decompose(lora_A_RD, lora_B_OR, scaling)
    number = min(rank, size_in, size_out)
    assert found.values_S.shape == (number,)
    torch.testing.assert_close(found.left_OS.T @ found.left_OS, torch.eye(number, dtype=torch.float64))
    torch.testing.assert_close(found.right_DS.T @ found.right_DS, torch.eye(number, dtype=torch.float64))
    torch.testing.assert_close(found.left_OS * found.values_S @ found.right_DS.T, scaling * lora_B_OR @ lora_A_RD)
    torch.testing.assert_close(found.values_S, singular_values(lora_A_RD, lora_B_OR, scaling))


@settings(max_examples=60, deadline=None)
@given(
    rank=st.integers(1, 8),
    size_in=st.integers(1, 30),
    size_out=st.integers(1, 30),
    seed=st.integers(0, 2**31),
    offset=st.sampled_from([0.0, 1.0, 1e6]),
    scaling=st.sampled_from([1.0, -3.0, 1e-3]),
)
def test_moments_from_the_factors_are_those_of_the_dense_matrix(rank, size_in, size_out, seed, offset, scaling):
    generator = torch.Generator().manual_seed(seed)
    lora_A_RD = offset + torch.randn(rank, size_in, generator=generator, dtype=torch.float64)
    lora_B_OR = torch.randn(size_out, rank, generator=generator, dtype=torch.float64)
    found = update_moments(lora_A_RD, lora_B_OR, scaling)
    dense = scaling * (lora_B_OR @ lora_A_RD)
    unit = float(dense.abs().max())
    assert found.mean == pytest.approx(float(dense.mean()), rel=1e-9, abs=1e-13 * unit)
    assert found.std == pytest.approx(float(dense.std(correction=0)), rel=1e-9, abs=1e-13 * unit)
    assert found.norm == pytest.approx(float(dense.norm()), rel=1e-9)


def test_moments_of_tiny_and_of_zero_updates():
    lora_A_RD, lora_B_OR = normal(3, 9) * 1e-170, normal(7, 3) * 1e-30
    tiny = update_moments(lora_A_RD, lora_B_OR, 1.0)
    usual = (lora_B_OR * 1e30) @ (lora_A_RD * 1e170)
    assert tiny.std == pytest.approx(float(usual.std(correction=0)) * 1e-200, rel=1e-9, abs=0.0)
    zero = update_moments(lora_A_RD, torch.zeros(7, 3), 2.0)
    assert (zero.mean, zero.std, zero.norm) == (0.0, 0.0, 0.0)


def test_moments_of_a_stored_matrix_have_no_correction():
    found = moments(torch.tensor([[1.0, 3.0]], dtype=torch.bfloat16))
    assert (found.mean, found.std, found.norm) == (2.0, 1.0, pytest.approx(math.sqrt(10.0)))
    assert moments(torch.tensor([4.0])).std == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("computed_in", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(5))
def test_rank_three_inside_sixteen_is_three(dtype, computed_in, seed):
    mixed_A = normal(16, 3, seed=seed).to(computed_in) @ normal(3, 96, seed=seed + 10).to(computed_in)
    mixed_B = normal(64, 16, seed=seed + 20).to(computed_in) / 4
    if dtype == torch.float64 and computed_in == torch.float32:
        return  # float64 that holds the rounding of float32 has rank 16 indeed
    assert decompose(mixed_A.to(dtype), mixed_B.to(dtype), 2.0).numerical_rank == 3
    padded_A, padded_B = torch.zeros(16, 96), torch.zeros(64, 16)
    padded_A[4:7], padded_B[:, 4:7] = normal(3, 96, seed=seed).float(), normal(64, 3, seed=seed).float()
    assert decompose(padded_A.to(dtype), padded_B.to(dtype), 2.0).numerical_rank == 3


@pytest.mark.parametrize(("rank", "size_in", "size_out"), [(8, 16, 24), (16, 16, 16), (16, 24, 16), (16, 96, 64)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_three_directions_that_both_factors_have_are_three_though_one_is_weak(rank, size_in, size_out, dtype):
    """Few dimensions, in which random directions are of very different strength."""
    found = []
    for seed in range(20):
        lora_A_RD = normal(rank, 3, seed=4 * seed) @ normal(3, size_in, seed=4 * seed + 1)
        lora_B_OR = normal(size_out, 3, seed=4 * seed + 2) @ normal(3, rank, seed=4 * seed + 3)
        found.append(decompose(lora_A_RD.to(dtype), lora_B_OR.to(dtype), 2.0).numerical_rank)
    assert max(found) == 3
    assert found.count(3) >= 19


def test_rounding_hides_no_direction_that_is_there():
    for rank in (1, 5, 16):
        lora_A_RD, lora_B_OR = normal(rank, 96, seed=rank), normal(64, rank, seed=rank + 1)
        for dtype in (torch.float32, torch.bfloat16):
            assert decompose(lora_A_RD.to(dtype), lora_B_OR.to(dtype), 1.0).numerical_rank == rank
    assert decompose(normal(4, 9), torch.zeros(7, 4), 1.0).numerical_rank == 0


def test_energy_is_what_the_best_approximation_of_each_rank_keeps():
    lora_A_RD, lora_B_OR = normal(5, 20, seed=3), normal(30, 5, seed=4)
    found = decompose(lora_A_RD, lora_B_OR, 0.5)
    energy_S = kept_energy(found.values_S)
    dense = 0.5 * lora_B_OR @ lora_A_RD
    for rank in range(1, 6):
        left = dense - found.left_OS[:, :rank] * found.values_S[:rank] @ found.right_DS[:, :rank].T
        assert float(energy_S[rank - 1]) == pytest.approx(1.0 - float(left.square().sum() / dense.square().sum()), abs=1e-12)


def test_the_rank_that_keeps_a_share_is_the_smallest():
    energy_S = kept_energy(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64))
    assert energy_S.tolist() == pytest.approx([0.9, 1.0, 1.0])
    assert [rank_keeping(energy_S, share) for share in (0.5, 0.89, 0.95, 0.99)] == [1, 1, 2, 2]
    nothing = kept_energy(torch.zeros(3, dtype=torch.float64))
    assert (len(nothing), rank_keeping(nothing, 0.9)) == (0, 0)


def test_similarity_is_that_of_hu_et_al():
    first_NI, second_NJ = basis(40, 5, seed=1), basis(40, 3, seed=2)
    found = subspace_overlap(first_NI, second_NJ)
    assert found.similarity_IJ.shape == (5, 3)
    for i in range(1, 6):
        for j in range(1, 4):
            expected = float((first_NI[:, :i].T @ second_NJ[:, :j]).norm() ** 2) / min(i, j)
            assert float(found.similarity_IJ[i - 1, j - 1]) == pytest.approx(expected, rel=1e-12)


def test_equal_spaces_overlap_wholly_and_orthogonal_ones_not_at_all():
    whole = basis(20, 6, seed=3)
    turned = whole[:, :3] @ basis(3, 3, seed=4)
    same = subspace_overlap(whole[:, :3], turned)
    assert float(same.similarity_IJ[-1, -1]) == pytest.approx(1.0)
    assert same.angles.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)
    apart = subspace_overlap(whole[:, :3], whole[:, 3:])
    assert apart.similarity_IJ.abs().max() < 1e-24
    assert apart.angles.tolist() == pytest.approx([math.pi / 2] * 3)


def test_principal_angles_are_the_angles_between_the_spaces():
    first = torch.eye(5, 2, dtype=torch.float64)
    second = torch.zeros(5, 2, dtype=torch.float64)
    second[0, 0], second[3, 0] = math.cos(1e-9), math.sin(1e-9)  # too small for an arc cosine
    second[1, 1], second[4, 1] = math.cos(0.7), math.sin(0.7)
    assert subspace_overlap(first, second).angles.tolist() == pytest.approx([1e-9, 0.7], rel=1e-6)


def test_random_spaces_overlap_as_chance_says():
    found = [subspace_overlap(basis(50, 8, seed=seed), basis(50, 4, seed=seed + 1000)) for seed in range(200)]
    for i, j in ((1, 1), (8, 4), (2, 4)):
        mean = sum(float(one.similarity_IJ[i - 1, j - 1]) for one in found) / len(found)
        assert mean == pytest.approx(found[0].chance(i, j), rel=0.15)


def test_updates_are_compared_as_matrices_and_by_the_directions_above_rounding():
    one = normal(4, 20, seed=1), normal(30, 4, seed=2), 0.5
    other = normal(6, 20, seed=3), normal(30, 6, seed=4), -2.0
    found = compare_updates(decompose(*one), decompose(*other))
    dense = [scaling * lora_B @ lora_A for lora_A, lora_B, scaling in (one, other)]
    cosine = float((dense[0] * dense[1]).sum() / (dense[0].norm() * dense[1].norm()))
    assert found.cosine == pytest.approx(cosine, rel=1e-9)
    assert (found.left.similarity_IJ.shape, found.left.width) == ((4, 6), 30)
    assert (found.right.similarity_IJ.shape, found.right.width) == ((4, 6), 20)
    # A rank-1 adapter whose direction the other holds: written by it, read by it.
    lone = other[0][:1], other[1][:, :1], 1.0
    inside = compare_updates(decompose(*lone), decompose(*other))
    assert float(inside.left.similarity_IJ[0, -1]) == pytest.approx(1.0)
    assert float(inside.right.similarity_IJ[0, -1]) == pytest.approx(1.0)


def test_an_update_of_zero_overlaps_with_nothing():
    zero = decompose(normal(4, 20), torch.zeros(30, 4), 1.0)
    found = compare_updates(zero, decompose(normal(4, 20, seed=1), normal(30, 4, seed=2), 1.0))
    assert (found.cosine, found.left, found.right) == (None, None, None)
