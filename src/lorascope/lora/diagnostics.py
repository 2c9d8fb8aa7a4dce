"""What an adapter has become: size and effective rank of its updates, from the factors alone.

The update of a module is ``ΔW = scaling · B A``. Its singular values are those of an R × R matrix, from the QR of B and of Aᵀ,
so that no matrix of a layer's size is ever made. Everything is computed in float64.

Knows adapters off the model. Does not know how they were trained, nor where the figures go. Floor: ``lora``.

Legend: D in, O out, R rank, S singular values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lorascope.lora.stack import AdapterWeights


@dataclass(frozen=True)
class UpdateDiagnostics:
    """Figures of one update ``ΔW``, or over all of an adapter's.

    Attributes:
        r: the rank it was given; over all, the sum.
        norm: Frobenius norm of ΔW, the scaling included.
        norm_A, norm_B: Frobenius norms of the factors.
        effective_rank: exponential of the entropy of the normalised singular values (Roy and Vetterli 2007); between 1 and r,
            and 0 where ΔW is zero. Over all, the mean.
        stable_rank: ``‖ΔW‖²_F / ‖ΔW‖²_2``; 0 where ΔW is zero. Over all, the mean.
        utilisation: ``effective_rank / r``; over all, the mean.
    """

    r: int
    norm: float
    norm_A: float
    norm_B: float
    effective_rank: float
    stable_rank: float
    utilisation: float


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


def diagnose_update(lora_A_RD: Tensor, lora_B_OR: Tensor, scaling: float) -> UpdateDiagnostics:
    """Figures of ``scaling · B A``."""
    r = lora_A_RD.shape[0]
    values_S = singular_values(lora_A_RD, lora_B_OR, scaling)
    largest = float(values_S.max())
    norm_A = float(torch.linalg.vector_norm(lora_A_RD.double()))
    norm_B = float(torch.linalg.vector_norm(lora_B_OR.double()))
    if largest == 0.0:
        return UpdateDiagnostics(r, 0.0, norm_A, norm_B, 0.0, 0.0, 0.0)
    shares_S = values_S / values_S.sum()
    # xlogy: a singular value of zero adds nothing to the entropy.
    effective_rank = math.exp(-float(torch.xlogy(shares_S, shares_S).sum()))
    # Divided before squaring: the squares of tiny updates would vanish.
    stable_rank = float((values_S / largest).square().sum())
    return UpdateDiagnostics(
        r, largest * math.sqrt(stable_rank), norm_A, norm_B, effective_rank, stable_rank, effective_rank / r
    )


def singular_values(lora_A_RD: Tensor, lora_B_OR: Tensor, scaling: float) -> Tensor:
    """Singular values ``[min(R, D, O)]`` of ``scaling · B A``, falling, in float64 on the CPU; the others are zero."""
    _, right = torch.linalg.qr(lora_A_RD.detach().cpu().double().T)
    _, left = torch.linalg.qr(lora_B_OR.detach().cpu().double())
    values_S: Tensor = torch.linalg.svdvals(left @ right.T)
    return abs(scaling) * values_S


def overall(updates: dict[str, UpdateDiagnostics]) -> UpdateDiagnostics | None:
    """All updates as one: norms over everything, ranks on average; None where there is no update."""
    if not updates:
        return None
    each = list(updates.values())
    return UpdateDiagnostics(
        r=sum(one.r for one in each),
        norm=math.hypot(*(one.norm for one in each)),
        norm_A=math.hypot(*(one.norm_A for one in each)),
        norm_B=math.hypot(*(one.norm_B for one in each)),
        effective_rank=sum(one.effective_rank for one in each) / len(each),
        stable_rank=sum(one.stable_rank for one in each) / len(each),
        utilisation=sum(one.utilisation for one in each) / len(each),
    )
