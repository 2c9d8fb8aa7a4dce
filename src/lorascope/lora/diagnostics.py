"""What an adapter has become: size, rank and directions of its updates, from the factors alone.

The update of a module is ``ΔW = scaling · B A``. Its singular values are those of an R × R matrix, from the QR of B and of Aᵀ,
and its moments follow from the factors' sums and Gram matrices, so that no matrix of a layer's size is ever made. Everything
is computed in float64.

Knows adapters off the model. Does not know how they were trained, nor where the figures go. Floor: ``lora``.

Legend: D in, O out, R rank, S singular values, N rows of a basis, I and J directions of two bases.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from lorascope.lora.stack import AdapterWeights

# What a product of factors that are stored in float64 loses to the computation itself, relative to its factors.
_COMPUTING_EPSILON = 64 * torch.finfo(torch.float64).eps
# Standard errors above zero from which on a direction that both factors have is one of the product's.
_CERTAIN = 3.0


@dataclass(frozen=True)
class UpdateDiagnostics:
    """Figures of one update ``ΔW``; the ranks of a zero update are 0.

    Attributes:
        r: the rank it was given.
        norm, spectral_norm, nuclear_norm: of ΔW, the scaling included: Frobenius norm, largest singular value, their sum.
        norm_A, norm_B: Frobenius norms of the factors.
        effective_rank: exponential of the entropy of the normalised singular values (Roy and Vetterli 2007); between 1 and r.
        stable_rank: ``‖ΔW‖²_F / ‖ΔW‖²_2``.
        utilisation: ``effective_rank / r``.
        numerical_rank, rounding: as a ``Decomposition`` has them.
        values_S: the singular values, falling; all others are zero.
    """

    r: int
    norm: float
    spectral_norm: float
    nuclear_norm: float
    norm_A: float
    norm_B: float
    effective_rank: float
    stable_rank: float
    utilisation: float
    numerical_rank: int
    rounding: float
    values_S: Tensor


@dataclass(frozen=True)
class OverallDiagnostics:
    """All updates of an adapter as one: ``r`` is the sum, norms are over everything, and ranks are means."""

    r: int
    norm: float
    norm_A: float
    norm_B: float
    effective_rank: float
    stable_rank: float
    utilisation: float
    numerical_rank: float


@dataclass(frozen=True)
class Decomposition:
    """The thin singular value decomposition ``left · diag(values) · rightᵀ`` of one update, on the CPU in float64.

    Attributes:
        left_OS, right_DS: orthonormal columns; those of a singular value of zero are arbitrary.
        values_S: falling; S is ``min(R, D, O)``, all other singular values are zero.
        rounding: the largest singular value that the rounding of the stored numbers explains (``rounding_level``).
        numerical_rank: directions, the strongest first, that it does not explain: those above ``rounding``, and of a narrow
            dtype those that both factors have (``_shared_rank``).
    """

    left_OS: Tensor
    values_S: Tensor
    right_DS: Tensor
    rounding: float
    numerical_rank: int


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of all numbers of a matrix (population, no correction), and its Frobenius norm."""

    mean: float
    std: float
    norm: float


@dataclass(frozen=True)
class SubspaceOverlap:
    """How alike the directions of two updates are, on one side.

    Attributes:
        similarity_IJ: the Grassmann similarity ``φ(i, j) = ‖U_iᵀ V_j‖²_F / min(i, j)`` of the first i directions of one and
            the first j of the other: 1 where the smaller space lies within the larger, 0 where they are orthogonal (Hu et al.
            2021, section 7.2). ``[i - 1, j - 1]`` holds φ(i, j).
        angles: principal angles between the two spaces in radians, rising; ``min(I, J)`` of them.
        width: N, of the vectors: random spaces have a similarity of ``max(i, j) / N`` on average.
    """

    similarity_IJ: Tensor
    angles: Tensor
    width: int

    def chance(self, i: int, j: int) -> float:
        """What φ(i, j) is on average where the directions of one are random."""
        return max(i, j) / self.width


@dataclass(frozen=True)
class Overlap:
    """Two updates of one module, compared.

    Attributes:
        cosine: ``⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖)``; None where one is zero.
        left, right: the outputs that they write to, and the inputs that they read from; None where one of them has no
            direction.
    """

    cosine: float | None
    left: SubspaceOverlap | None
    right: SubspaceOverlap | None


def diagnose(weights: AdapterWeights) -> dict[str, UpdateDiagnostics]:
    """Figures of every update, by its target's key; empty for an adapter that holds a head alone.

    An adapter read back from PEFT's files has one update for each module, so the slices of a fused projection count as one.
    """
    return {
        placement.target.key: diagnose_update(
            weights.lora_A[placement.target.key], weights.lora_B[placement.target.key], placement.scaling
        )
        for placement in weights.placements
    }


def diagnose_update(
    lora_A_RD: Tensor, lora_B_OR: Tensor, scaling: float, update: Decomposition | None = None
) -> UpdateDiagnostics:
    """Figures of ``scaling · B A``; ``update`` is the same taken apart, where somebody has done so."""
    update = decompose(lora_A_RD, lora_B_OR, scaling) if update is None else update
    values_S = update.values_S
    effective, stable = effective_rank(values_S), stable_rank(values_S)
    r, largest = lora_A_RD.shape[0], float(values_S.max())
    return UpdateDiagnostics(
        r=r,
        norm=largest * math.sqrt(stable),
        spectral_norm=largest,
        nuclear_norm=float(values_S.sum()),
        norm_A=float(torch.linalg.vector_norm(_on_cpu(lora_A_RD))),
        norm_B=float(torch.linalg.vector_norm(_on_cpu(lora_B_OR))),
        effective_rank=effective,
        stable_rank=stable,
        utilisation=effective / r,
        numerical_rank=update.numerical_rank,
        rounding=update.rounding,
        values_S=values_S,
    )


def overall(updates: Collection[UpdateDiagnostics]) -> OverallDiagnostics | None:
    """All updates as one; None where there is none."""
    if not updates:
        return None
    return OverallDiagnostics(
        r=sum(one.r for one in updates),
        norm=math.hypot(*(one.norm for one in updates)),
        norm_A=math.hypot(*(one.norm_A for one in updates)),
        norm_B=math.hypot(*(one.norm_B for one in updates)),
        effective_rank=sum(one.effective_rank for one in updates) / len(updates),
        stable_rank=sum(one.stable_rank for one in updates) / len(updates),
        utilisation=sum(one.utilisation for one in updates) / len(updates),
        numerical_rank=sum(one.numerical_rank for one in updates) / len(updates),
    )


def singular_values(lora_A_RD: Tensor, lora_B_OR: Tensor, scaling: float) -> Tensor:
    """Singular values ``[min(R, D, O)]`` of ``scaling · B A``, falling, in float64 on the CPU; the others are zero."""
    _, right = torch.linalg.qr(_on_cpu(lora_A_RD).T)
    _, left = torch.linalg.qr(_on_cpu(lora_B_OR))
    values_S: Tensor = torch.linalg.svdvals(left @ right.T)
    return abs(scaling) * values_S


def decompose(lora_A_RD: Tensor, lora_B_OR: Tensor, scaling: float) -> Decomposition:
    """The thin singular value decomposition of ``scaling · B A``, from the factors."""
    basis_D, right = torch.linalg.qr(_on_cpu(lora_A_RD).T)
    basis_O, left = torch.linalg.qr(_on_cpu(lora_B_OR))
    inner_left, values_S, inner_right = torch.linalg.svd(left @ right.T, full_matrices=False)
    values_S = abs(scaling) * values_S
    left_OS, right_DS = (-1.0 if scaling < 0.0 else 1.0) * (basis_O @ inner_left), basis_D @ inner_right.T
    rounding = rounding_level(lora_A_RD, lora_B_OR, scaling)
    rank = int((values_S > rounding).sum())
    if rank < len(values_S) and (_is_narrow(lora_A_RD) or _is_narrow(lora_B_OR)):
        errors_S = _errors_of_directions(lora_A_RD, lora_B_OR, scaling, left_OS, right_DS)
        rank = max(rank, _shared_rank(lora_A_RD, lora_B_OR, values_S / errors_S))
    return Decomposition(left_OS, values_S, right_DS, rounding, rank)


def rounding_level(lora_A_RD: Tensor, lora_B_OR: Tensor, scaling: float) -> float:
    """How far the rounding of the stored numbers moves a singular value of ``scaling · B A``.

    No singular value moves farther than the matrix does (Weyl). Each factor's error counts times the other's largest singular
    value, and the two are independent. What rounding to bfloat16 made of the zeros of rank 3 inside 16 was never above half of
    this level, in 16 to 3072 dimensions.
    """
    parts = (_error_norm(lora_A_RD) * _spectral_norm(lora_B_OR), _error_norm(lora_B_OR) * _spectral_norm(lora_A_RD))
    return abs(scaling) * math.hypot(*parts)


def _shared_rank(lora_A_RD: Tensor, lora_B_OR: Tensor, certainty_S: Tensor) -> int:
    """Directions of the product that both factors have, each by its own rounding, and that are not zero by chance.

    ``rounding_level`` is what may be made of nothing, anywhere in O × D dimensions. Of few directions that are known to be
    there rounding changes the strengths far less: by a single number each.

    Args:
        certainty_S: singular values over their standard errors, the strongest direction first.
    """
    ranks = [int((torch.linalg.svdvals(_on_cpu(one)) > _error_norm(one)).sum()) for one in (lora_A_RD, lora_B_OR)]
    return min(*ranks, int((certainty_S > _CERTAIN).cumprod(0).sum()))


def _errors_of_directions(lora_A_RD: Tensor, lora_B_OR: Tensor, scaling: float, left_OS: Tensor, right_DS: Tensor) -> Tensor:
    """Standard errors ``[S]`` of the singular values, to first order ``uᵀ(E_B A + B E_A)v`` with the directions given."""
    errors_A, errors_B = _rounding_errors(lora_A_RD).square(), _rounding_errors(lora_B_OR).square()
    by_A_S = ((_on_cpu(lora_B_OR).T @ left_OS).square() * (errors_A @ right_DS.square())).sum(dim=0)
    by_B_S = ((_on_cpu(lora_A_RD) @ right_DS).square() * (errors_B.T @ left_OS.square())).sum(dim=0)
    return abs(scaling) * (by_A_S + by_B_S).sqrt()


def effective_rank(values_S: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values; 0 where all are zero (Roy and Vetterli 2007)."""
    total = float(values_S.sum())
    if total == 0.0:
        return 0.0
    shares_S = values_S / total
    # xlogy: a singular value of zero adds nothing to the entropy.
    return math.exp(-float(torch.xlogy(shares_S, shares_S).sum()))


def stable_rank(values_S: Tensor) -> float:
    """``‖·‖²_F / ‖·‖²_2``; 0 where all singular values are zero."""
    largest = float(values_S.max())
    # Divided before squaring: the squares of tiny updates would vanish.
    return 0.0 if largest == 0.0 else float((values_S / largest).square().sum())


def kept_energy(values_S: Tensor) -> Tensor:
    """Share of ``‖ΔW‖²_F`` that the best approximation of each rank keeps, ``[S]`` from rank 1; empty for a zero update."""
    largest = float(values_S.max())
    if largest == 0.0:
        return values_S[:0]
    sums_S = (values_S / largest).square().cumsum(0)
    return sums_S / sums_S[-1]


def rank_keeping(energy_S: Tensor, share: float) -> int:
    """The smallest rank that keeps a share of the energy; 0 for a zero update."""
    return int((energy_S < share).sum()) + 1 if len(energy_S) else 0


def moments(matrix: Tensor) -> Moments:
    """Moments of a stored matrix, of a bias or a head."""
    numbers = _on_cpu(matrix)
    return Moments(float(numbers.mean()), float(numbers.std(correction=0)), float(torch.linalg.vector_norm(numbers)))


def update_moments(lora_A_RD: Tensor, lora_B_OR: Tensor, scaling: float) -> Moments:
    """Moments of ``scaling · B A``.

    The mean of B A is ``(1ᵀB)(A1) / (O·D)``. Its squares come from the Gram matrices of the centred factors: with
    ``B = B′ + 1b̄ᵀ`` and ``A = A′ + ā1ᵀ`` it falls into four orthogonal terms, ``B′A′ + B′ā1ᵀ + 1b̄ᵀA′ + 1b̄ᵀā1ᵀ``. The last is
    the mean and the others the deviation, so nothing cancels where the mean is large.
    """
    num_outputs, num_inputs = lora_B_OR.shape[0], lora_A_RD.shape[1]
    size_A, size_B = _largest(lora_A_RD), _largest(lora_B_OR)
    lora_A, lora_B = _on_cpu(lora_A_RD) / size_A, _on_cpu(lora_B_OR) / size_B
    mean_A_R, mean_B_R = lora_A.mean(dim=1), lora_B.mean(dim=0)
    gram_A_RR = (lora_A - mean_A_R[:, None]) @ (lora_A - mean_A_R[:, None]).T
    gram_B_RR = (lora_B - mean_B_R).T @ (lora_B - mean_B_R)
    deviation = float((gram_A_RR * gram_B_RR).sum())
    deviation += num_inputs * float(mean_A_R @ gram_B_RR @ mean_A_R)
    deviation += num_outputs * float(mean_B_R @ gram_A_RR @ mean_B_R)
    mean = float(mean_B_R @ mean_A_R)
    count = num_inputs * num_outputs
    deviation = max(0.0, deviation)  # sums of squares, but for rounding
    unit = size_A * size_B * scaling
    return Moments(
        unit * mean, abs(unit) * math.sqrt(deviation / count), abs(unit) * math.sqrt(deviation + count * mean * mean)
    )


def compare_updates(first: Decomposition, second: Decomposition) -> Overlap:
    """How alike two updates of one module are: as matrices, in what they write and in what they read.

    Only directions above each one's rounding count.
    """
    cross_left = first.left_OS.T @ second.left_OS
    cross_right = first.right_DS.T @ second.right_DS
    largest = float(first.values_S.max()), float(second.values_S.max())
    cosine = None
    if min(largest) > 0.0:
        # Divided by the largest, as above.
        scaled = (first.values_S / largest[0])[:, None] * (second.values_S / largest[1])
        norms = math.sqrt(stable_rank(first.values_S) * stable_rank(second.values_S))
        cosine = float((scaled * cross_left * cross_right).sum()) / norms
    ranks = first.numerical_rank, second.numerical_rank
    if min(ranks) == 0:
        return Overlap(cosine, None, None)
    return Overlap(
        cosine,
        subspace_overlap(first.left_OS[:, : ranks[0]], second.left_OS[:, : ranks[1]]),
        subspace_overlap(first.right_DS[:, : ranks[0]], second.right_DS[:, : ranks[1]]),
    )


def subspace_overlap(first_NI: Tensor, second_NJ: Tensor) -> SubspaceOverlap:
    """Compare two orthonormal bases, each ordered from the most important direction on.

    Source: Hu et al. 2021, section 7.2; the angles by Knyazev and Argentati 2002, exact for small ones too.
    """
    from scipy.linalg import subspace_angles

    squares_IJ = (first_NI.T @ second_NJ).square().cumsum(0).cumsum(1)
    i_I = torch.arange(1, squares_IJ.shape[0] + 1)
    j_J = torch.arange(1, squares_IJ.shape[1] + 1)
    similarity_IJ = squares_IJ / torch.minimum(i_I[:, None], j_J)
    angles = torch.from_numpy(subspace_angles(first_NI.numpy(), second_NJ.numpy()).copy()).flip(0)
    return SubspaceOverlap(similarity_IJ.clamp(max=1.0), angles, len(first_NI))


def _on_cpu(stored: Tensor) -> Tensor:
    return stored.detach().cpu().double()


def _rounding_errors(stored: Tensor) -> Tensor:
    """How far each number may be from what it would be without rounding.

    Of a dtype narrower than float32 the numbers are taken for the results of a wider computation, rounded once: evenly, by up
    to half of the step between neighbours, so with a deviation of a step / √12. In float32 and float64 they are sums of
    rounded products themselves, and ε of each is allowed, three to four times as much.
    """
    numbers = _on_cpu(stored)
    epsilon = torch.finfo(stored.dtype).eps
    if not _is_narrow(stored):
        return max(epsilon, _COMPUTING_EPSILON) * numbers
    _, exponents = torch.frexp(numbers)
    steps = torch.ldexp(torch.full_like(numbers, epsilon), exponents - 1)
    return torch.where(numbers == 0.0, 0.0, steps / math.sqrt(12.0))


def _error_norm(stored: Tensor) -> float:
    """The spectral norm of a matrix of such independent errors: about its largest row's norm plus its largest column's.

    Source: Bandeira and van Handel 2016, "Sharp nonasymptotic bounds on the norm of random matrices".
    """
    errors = _rounding_errors(stored)
    return sum(float(torch.linalg.vector_norm(errors, dim=dim).max()) for dim in (0, 1))


def _is_narrow(stored: Tensor) -> bool:
    return stored.dtype not in (torch.float32, torch.float64)


def _spectral_norm(factor: Tensor) -> float:
    """The largest singular value of a long and thin factor, from its Gram matrix."""
    size = _largest(factor)
    numbers = _on_cpu(factor) / size
    gram = numbers @ numbers.T if numbers.shape[0] < numbers.shape[1] else numbers.T @ numbers
    return size * math.sqrt(float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0.0)))


def _largest(factor: Tensor) -> float:
    """The largest number, to divide by; 1 where all are zero."""
    return float(_on_cpu(factor).abs().max()) or 1.0
