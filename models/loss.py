"""Cross-entropy of the next token where the output layer is trained, too: its gradient is taken while the logits are there.

Logits of all positions would be the largest tensor by far (4,096 × 8,192 in float32 are 134 MB, and their gradient as much
again), read and written many times over. A chunk of them stays in the cache. Knows no model.

Legend: K positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = 512


def next_token_loss(hidden: Tensor, weight_VD: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean cross-entropy in nats.

    Args:
        hidden: ``[..., D]``.
        weight_VD: of an output layer without bias, in float32.
        targets: ``[...]``.
        dtype: in which products are computed; sums and softmax are in float32.
    """
    loss: Tensor = _NextTokenLoss.apply(hidden.flatten(0, -2), weight_VD, targets.flatten(), dtype)
    return loss


class _NextTokenLoss(torch.autograd.Function):
    """Both gradients are known as soon as the logits are (softmax less the target), so backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden_KD: Tensor, weight_VD: Tensor, targets_K: Tensor, dtype: torch.dtype) -> Tensor:
        num_positions = len(hidden_KD)
        weight = weight_VD.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=hidden_KD.device)
        hidden_gradients = []
        weight_gradient_VD = torch.zeros_like(weight_VD)
        for hidden, targets in zip(hidden_KD.to(dtype).split(_CHUNK), targets_K.split(_CHUNK), strict=True):
            scores = (hidden @ weight.T).to(wide)
            normaliser = scores.logsumexp(dim=1)
            loss += (normaliser - scores.gather(1, targets[:, None])[:, 0]).sum()
            scores.sub_(normaliser[:, None]).exp_()
            scores[torch.arange(len(targets), device=targets.device), targets] -= 1.0
            gradient = scores.div_(num_positions).to(dtype)
            hidden_gradients.append(gradient @ weight)
            weight_gradient_VD += gradient.T @ hidden
        ctx.save_for_backward(torch.cat(hidden_gradients).to(hidden_KD.dtype), weight_gradient_VD)
        return loss / num_positions

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_KD, weight_VD = ctx.saved_tensors
        return hidden_KD * gradients[0], weight_VD * gradients[0], None, None
