"""How far apart two models are on the same inputs: figures between two sets of logits.

Floor: ``certify``.

Legend: K positions, V classes or vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """Figures of one model's logits against a reference's.

    Attributes:
        positions: how many distributions were compared.
        max_difference: the largest difference of two logits.
        relative_difference: ``‖other − reference‖ / ‖reference‖`` over all logits.
        kl: mean over positions of ``KL(reference ‖ other)``, in nats.
        kl_max: its largest value.
        top1_agreement: share of positions where both have the same likeliest class or token.
        nonfinite: logits of the other model that are NaN or infinite; the figures above are then None.
    """

    positions: int
    max_difference: float | None
    relative_difference: float | None
    kl: float | None
    kl_max: float | None
    top1_agreement: float | None
    nonfinite: int = 0


def difference(reference: list[Tensor], other: list[Tensor]) -> Difference:
    """Compare logits batch by batch, in float64.

    Args:
        reference, other: logits ``[K, V]`` of each batch.

    Raises:
        ValueError: the shapes differ, or there are none.
    """
    sums = {"squared": 0.0, "reference": 0.0, "kl": 0.0, "agree": 0.0}
    largest, kl_max, positions, nonfinite = 0.0, 0.0, 0, 0
    for reference_KV, other_KV in zip(reference, other, strict=True):
        if reference_KV.shape != other_KV.shape:
            raise ValueError(f"logits of shapes {tuple(reference_KV.shape)} and {tuple(other_KV.shape)}")
        positions += len(reference_KV)
        wide_KV, found_KV = reference_KV.double(), other_KV.double()
        nonfinite += int((~torch.isfinite(found_KV)).sum())
        if nonfinite or not len(wide_KV):
            continue
        gap_KV = found_KV - wide_KV
        kl_K = _divergence(wide_KV, found_KV)
        largest = max(largest, float(gap_KV.abs().max()))
        kl_max = max(kl_max, float(kl_K.max()))
        sums["squared"] += float(gap_KV.square().sum())
        sums["reference"] += float(wide_KV.square().sum())
        sums["kl"] += float(kl_K.sum())
        sums["agree"] += float((wide_KV.argmax(-1) == found_KV.argmax(-1)).sum())
    if not positions:
        raise ValueError("no position was compared")
    if nonfinite:
        return Difference(positions, None, None, None, None, None, nonfinite)
    relative = math.sqrt(sums["squared"] / sums["reference"]) if sums["reference"] else math.sqrt(sums["squared"])
    return Difference(positions, largest, relative, sums["kl"] / positions, kl_max, sums["agree"] / positions)


def _divergence(reference_KV: Tensor, other_KV: Tensor) -> Tensor:
    """``KL(reference ‖ other)`` of each position; never below zero, whatever rounding does."""
    log_p_KV, log_q_KV = reference_KV.log_softmax(-1), other_KV.log_softmax(-1)
    return (log_p_KV.exp() * (log_p_KV - log_q_KV)).sum(-1).clamp(min=0.0)
