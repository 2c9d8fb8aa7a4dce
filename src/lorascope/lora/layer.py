"""One frozen layer, N adapters: the arithmetic of the stack.

Before: ``h.0.attn.c_attn = Conv1D(D → O)`` with a weight that belongs to the base.
After: ``h.0.attn.c_attn = StackedLinear`` that holds the same ``Conv1D`` and, for N slots,

    y = W·x + b  +  scaling_N · B_N · A_N · dropout_N(x)

Activations are ``[N·B, …, D]``, slot-major; the frozen product is one GEMM for all slots, the low-rank products are batched
over slots. Knows nothing of models, files or training. Floor: ``lora``.

Legend: N slots, B rows, T tokens, M rows × tokens of one slot, D in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorascope.lora import streams


@dataclass
class DropoutPlan:
    """Where each slot's dropout stream stands in this forward pass.

    Attributes:
        step: the optimiser step.
        rows: per slot, for each of its B rows, the offset of the row's first token in its optimiser batch and its length.
    """

    step: int
    rows: Sequence[Sequence[tuple[int, int]]]


@dataclass
class SlotContext:
    """What the layers of one stack share during a forward pass. ``dropout`` is None while evaluating."""

    seeds: list[int]
    dropout: DropoutPlan | None = None

    @property
    def num_slots(self) -> int:
        """N."""
        return len(self.seeds)

    def dropout_mask(self, probabilities: Sequence[float], module: str, x_NBTD: Tensor) -> Tensor | None:
        """``[N, B, T, D]`` of zeros and inverse keep rates, or None where nothing is dropped."""
        if self.dropout is None or not any(probabilities):
            return None
        num_rows, width, num_features = x_NBTD.shape[1:]
        masks = [
            # A pooled activation has one "token" a row; it takes the place of the row's first.
            streams.keep_mask(
                probability,
                num_features,
                [(first, min(length, width)) for first, length in rows],
                width,
                self.dropout.step,
                module,
                seed=seed,
            )
            if probability > 0.0
            else torch.ones(num_rows, width, num_features)
            for probability, rows, seed in zip(probabilities, self.dropout.rows, self.seeds, strict=True)
        ]
        return torch.stack(masks).to(dtype=x_NBTD.dtype, device=x_NBTD.device)


@dataclass
class Part:
    """The adapters of all slots on one place: a whole layer, or the outputs ``[start, stop)`` of a fused one.

    ``scaling_N`` is zero where a slot leaves the place alone. A is stored as PEFT stores it, ``[N, R, D]``, B ``[N, O, R]``;
    both are zero-padded to the largest rank, so a smaller adapter's tail contributes nothing and never moves.
    """

    start: int
    stop: int
    scaling_N: Tensor
    lora_A_NRD: Tensor = field(default_factory=lambda: torch.empty(0))
    lora_B_NOR: Tensor = field(default_factory=lambda: torch.empty(0))


class StackedLinear(nn.Module):
    """A frozen ``nn.Linear`` or ``Conv1D`` with N adapters; its weight or bias may also be trained, one copy per slot."""

    def __init__(self, frozen: nn.Module, name: str, context: SlotContext) -> None:
        super().__init__()
        self.frozen = frozen
        self.name = name
        self.context = context
        self.parts: dict[str, Part] = {}
        self.dropouts: list[float] = [0.0] * context.num_slots
        self.trained_weight: Tensor | None = None
        self.trained_bias: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for model code that looks at its dtype or device."""
        return self.frozen.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.frozen.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """``[N·B, …, D] → [N·B, …, O]``."""
        num_slots = self.context.num_slots
        x_NMD = x.reshape(num_slots, -1, x.shape[-1])
        y_NMO = self._own_product(x, x_NMD)
        if self.trained_bias is not None:
            y_NMO = y_NMO + self.trained_bias[:, None].to(y_NMO.dtype)
        if self.parts:
            y_NMO = self._add_updates(y_NMO, x, x_NMD)
        return y_NMO.reshape(*x.shape[:-1], y_NMO.shape[-1])

    def _own_product(self, x: Tensor, x_NMD: Tensor) -> Tensor:
        """The layer itself, without a bias that is trained."""
        transposed = isinstance(self.frozen, Conv1D)
        bias = None if self.trained_bias is not None else self.bias
        if self.trained_weight is not None:
            weight_NDO = self.trained_weight if transposed else self.trained_weight.transpose(1, 2)
            y_NMO = torch.bmm(x_NMD, weight_NDO.to(x.dtype))
            return y_NMO if bias is None else y_NMO + bias
        weight_OD = self.weight.T if transposed else self.weight
        return F.linear(x, weight_OD, bias).reshape(*x_NMD.shape[:2], -1)

    def _add_updates(self, y_NMO: Tensor, x: Tensor, x_NMD: Tensor) -> Tensor:
        """The low-rank updates, computed in the adapters' dtype as PEFT does, returned in the layer's."""
        parts = list(self.parts.values())
        x_NMD = x_NMD.to(parts[0].lora_A_NRD.dtype)
        num_rows = x.shape[0] // self.context.num_slots
        x_NBTD = x_NMD.reshape(self.context.num_slots, num_rows, -1, x.shape[-1])
        mask_NBTD = self.context.dropout_mask(self.dropouts, self.name, x_NBTD)
        if mask_NBTD is not None:
            x_NMD = (x_NBTD * mask_NBTD).reshape(x_NMD.shape)
        num_outputs = y_NMO.shape[-1]
        lora_A_NRD = torch.cat([part.lora_A_NRD for part in parts], dim=1)
        lora_B_NOR = torch.cat(
            [
                F.pad(part.scaling_N[:, None, None] * part.lora_B_NOR, (0, 0, part.start, num_outputs - part.stop))
                for part in parts
            ],
            dim=2,
        )
        h_NMR = torch.bmm(x_NMD, lora_A_NRD.transpose(1, 2))
        update_NMO = torch.baddbmm(y_NMO.to(h_NMR.dtype), h_NMR, lora_B_NOR.transpose(1, 2))
        return update_NMO.to(y_NMO.dtype)


class StackedLayerNorm(nn.Module):
    """A frozen ``nn.LayerNorm`` whose bias or weight is trained, one copy per slot."""

    def __init__(self, frozen: nn.LayerNorm, name: str, context: SlotContext) -> None:
        super().__init__()
        self.frozen = frozen
        self.name = name
        self.context = context
        self.trained_weight: Tensor | None = None
        self.trained_bias: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The frozen weight."""
        return self.frozen.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.frozen.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[N·B, …, D] → [N·B, …, D]``."""
        weight = None if self.trained_weight is not None else self.frozen.weight
        bias = None if self.trained_bias is not None or weight is None else self.frozen.bias
        y = F.layer_norm(x, self.frozen.normalized_shape, weight, bias, self.frozen.eps)
        y_NMD = y.reshape(self.context.num_slots, -1, y.shape[-1])
        if self.trained_weight is not None:
            y_NMD = y_NMD * self.trained_weight[:, None].to(y.dtype)
            y_NMD = y_NMD if self.trained_bias is not None or self.bias is None else y_NMD + self.bias
        if self.trained_bias is not None:
            y_NMD = y_NMD + self.trained_bias[:, None].to(y.dtype)
        return y_NMD.reshape(x.shape)


class StackedDropout(nn.Module):
    """The base model's own dropout, drawn per slot; in place only with ``train.base_dropout``."""

    def __init__(self, frozen: nn.Dropout, name: str, context: SlotContext) -> None:
        super().__init__()
        self.frozen = frozen
        self.name = name
        self.context = context

    def forward(self, x: Tensor) -> Tensor:
        """``[N·B, …, D] → [N·B, …, D]``; the identity while evaluating."""
        num_slots = self.context.num_slots
        x_NBTD = x.reshape(num_slots, x.shape[0] // num_slots, -1, x.shape[-1])
        mask_NBTD = self.context.dropout_mask([self.frozen.p] * num_slots, self.name, x_NBTD)
        return x if mask_NBTD is None else (x_NBTD * mask_NBTD).reshape(x.shape)
