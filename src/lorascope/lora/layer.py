"""One frozen layer, N adapters: the arithmetic of the stack.

Before: ``h.0.attn.c_attn = Conv1D(D → O)`` with a weight that belongs to the base.
After: ``h.0.attn.c_attn = StackedLinear`` that holds the same ``Conv1D`` and, for N slots,

    y = W·x + b  +  scaling_N · B_N · A_N · dropout_N(x)

Activations are ``[N·B, …, D]``, slot-major; the frozen product is one GEMM for all slots, the low-rank products are batched
over slots. Knows nothing of models, files or training. Floor: ``lora``.

Legend: N slots, B rows, T tokens, M rows × tokens of one slot (of ``Places``: tokens that are read), K read tokens of a row,
C columns, D in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorascope.lora import streams
from lorascope.lora.frozen import FrozenProduct, apply, product_of
from lorascope.lora.linear import features

# The tokens of a row, as (offset of the first in its optimiser batch, how many).
Spans = list[tuple[int, int]]


@dataclass
class DropoutPlan:
    """Where each slot's dropout stream stands in this forward pass: the optimiser step, and per slot its rows' tokens.

    ``decoder_rows`` are those of an encoder–decoder's decoder, where they are others than the encoder's.
    """

    step: int
    rows: Sequence[Sequence[Spans]]
    decoder_rows: Sequence[Sequence[Spans]] | None = None


class Places:
    """Tokens of rows that a part of the model is computed for, where it is not computed for all.

    Args:
        row_M, place_M: the tokens, in any order; one may occur more than once.
        num_rows: B, of all slots.
        width: T.

    Attributes:
        num_places: K, of the row that has most. A row with fewer takes tokens along that are then left out.
    """

    def __init__(self, row_M: Tensor, place_M: Tensor, num_rows: int, width: int) -> None:
        self.width = width
        self._flat_M = (row_M * width + place_M).unique()
        row_M, place_M = self._flat_M // width, self._flat_M % width
        counts_B = row_M.bincount(minlength=num_rows)
        self.num_places = int(counts_B.max())
        column_M = torch.arange(len(row_M), device=row_M.device) - (counts_B.cumsum(0) - counts_B)[row_M]
        place_BK = place_M.new_zeros(num_rows, self.num_places)
        place_BK[row_M, column_M] = place_M
        first_B = torch.arange(num_rows, device=row_M.device) * width
        self._taken = (first_B[:, None] + place_BK).reshape(-1)
        self._kept_M = None if len(row_M) == len(self._taken) else row_M * self.num_places + column_M

    @classmethod
    def columns(cls, column_C: Tensor, num_rows: int, width: int) -> Places:
        """The same tokens of every row."""
        rows = torch.arange(num_rows, device=column_C.device)
        return cls(rows.repeat_interleave(len(column_C)), column_C.repeat(num_rows), num_rows, width)

    def take(self, x_BTD: Tensor) -> Tensor:
        """``[B, K, D]``."""
        num_rows, width, num_features = x_BTD.shape
        assert width == self.width, f"rows of {width} tokens where {self.width} were expected"
        return x_BTD.reshape(-1, num_features).index_select(0, self._taken).reshape(num_rows, -1, num_features)

    def put(self, y_BKO: Tensor) -> Tensor:
        """``[B, T, O]``, zero where nothing was computed."""
        num_rows, _, num_features = y_BKO.shape
        y_MO = y_BKO.reshape(-1, num_features)
        y_MO = y_MO if self._kept_M is None else y_MO.index_select(0, self._kept_M)
        whole = y_MO.new_zeros(num_rows * self.width, num_features)
        return whole.index_copy(0, self._flat_M, y_MO).reshape(num_rows, self.width, num_features)


@dataclass
class SlotContext:
    """What the layers of one stack share during a forward pass.

    Attributes:
        dropout: None while evaluating.
        places: while layers see these tokens only; None while they see all.
        decoder_fed: names of the modules that are given a decoder's rows (``sides.decoder_fed``).
    """

    seeds: list[int]
    dropout: DropoutPlan | None = None
    places: Places | None = None
    decoder_fed: frozenset[str] = frozenset()

    @property
    def num_slots(self) -> int:
        """N."""
        return len(self.seeds)

    @contextmanager
    def at(self, places: Places) -> Iterator[None]:
        """While it lasts, layers are given these tokens only."""
        self.places = places
        try:
            yield
        finally:
            self.places = None

    def dropout_mask(self, probabilities: Sequence[float], module: str, x_NBTD: Tensor, call: int = 0) -> Tensor | None:
        """``[N, B, T, D]`` of zeros and inverse keep rates, or None where nothing is dropped.

        Slots of one seed have the same rows, so their masks at one probability are the same, and drawn once.

        Args:
            call: how often the module has been called before in this pass; each call has a mask of its own.
        """
        if self.dropout is None or not any(probabilities):
            return None
        num_rows, width, num_features = x_NBTD.shape[1:]
        width = width if self.places is None else self.places.width
        plan, is_decoder_fed = self.dropout, module in self.decoder_fed
        rows_of_slots = plan.decoder_rows if is_decoder_fed and plan.decoder_rows is not None else plan.rows
        stream = f"{module}#{call}" if call else module
        drawn: dict[tuple[int, float], Tensor] = {}
        for probability, rows, seed in zip(probabilities, rows_of_slots, self.seeds, strict=True):
            if (seed, probability) not in drawn:
                drawn[seed, probability] = (
                    streams.keep_mask(probability, num_features, rows, width, plan.step, stream, seed=seed)
                    if probability > 0.0
                    else torch.ones(num_rows, width, num_features)
                )
        masks = [drawn[key] for key in zip(self.seeds, probabilities, strict=True)]
        mask_NBTD = torch.stack(masks).to(dtype=x_NBTD.dtype, device=x_NBTD.device)
        return mask_NBTD if self.places is None else self.places.take(mask_NBTD.flatten(0, 1)).reshape(x_NBTD.shape)


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
        self._active_slots: slice | None = None
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

    @property
    def num_outputs(self) -> int:
        """O."""
        return features(self.frozen)[1]

    def forward(self, x: Tensor) -> Tensor:
        """``[N·B, …, D] → [N·B, …, O]``."""
        num_slots = self.context.num_slots
        bias = None if self.trained_bias is not None else self.bias
        x_NMD = x.reshape(num_slots, -1, x.shape[-1])
        if self.trained_weight is not None:
            y_NMO = self._trained_product(x_NMD, bias)
        elif self.parts:
            lora_A_NRD, lora_B_NOR = self._factors(self.active)
            mask_NMD = self._mask(x, lora_A_NRD.dtype)
            y_NMO = _StackedProduct.apply(  # type: ignore[no-untyped-call]
                x_NMD, bias, lora_A_NRD, lora_B_NOR, mask_NMD, self.active, product_of(self.frozen)
            )
        else:
            y_NMO = apply(product_of(self.frozen), x_NMD, bias)
        if self.trained_bias is not None:
            y_NMO = y_NMO + self.trained_bias[:, None].to(y_NMO.dtype)
        return y_NMO.reshape(*x.shape[:-1], y_NMO.shape[-1])

    def _trained_product(self, x_NMD: Tensor, bias: Tensor | None) -> Tensor:
        """A head's own product: one weight per slot."""
        assert self.trained_weight is not None
        weight_NDO = self.trained_weight if isinstance(self.frozen, Conv1D) else self.trained_weight.transpose(1, 2)
        y_NMO = torch.bmm(x_NMD, weight_NDO.to(x_NMD.dtype))
        return y_NMO if bias is None else y_NMO + bias

    def _factors(self, active: slice) -> tuple[Tensor, Tensor]:
        """The active slots' A's ``[N, R, D]`` and scaled B's ``[N, O, R]``, all parts side by side along the rank."""
        parts = list(self.parts.values())
        lora_A_NRD = torch.cat([part.lora_A_NRD for part in parts], dim=1) if len(parts) > 1 else parts[0].lora_A_NRD
        scaled = [
            F.pad(part.scaling_N[:, None, None] * part.lora_B_NOR, (0, 0, part.start, self.num_outputs - part.stop))
            for part in parts
        ]
        lora_B_NOR = torch.cat(scaled, dim=2) if len(scaled) > 1 else scaled[0]
        return lora_A_NRD[active], lora_B_NOR[active]

    @property
    def active(self) -> slice:
        """The slots from the first to the last that has an adapter here; the low-rank products leave the others out."""
        if self._active_slots is None:
            used = [index for part in self.parts.values() for index in part.scaling_N.nonzero()[:, 0].tolist()]
            self._active_slots = slice(min(used, default=0), max(used, default=-1) + 1)
        return self._active_slots

    def set_part(self, key: str, part: Part) -> None:
        """Put the adapters of one place in, or put others in their stead."""
        self.parts[key] = part
        self._active_slots = None

    def set_scaling(self, key: str, slot: int, scaling: float) -> None:
        """Change one slot's scaling at one place, in place; zero switches the adapter off."""
        self.parts[key].scaling_N[slot] = scaling
        self._active_slots = None

    def _mask(self, x: Tensor, dtype: torch.dtype) -> Tensor | None:
        """``[N, M, D]``: this step's dropout of the adapters' input."""
        num_slots = self.context.num_slots
        x_NBTD = x.reshape(num_slots, x.shape[0] // num_slots, -1, x.shape[-1])
        inside = range(num_slots)[self.active]
        probabilities = [dropout if index in inside else 0.0 for index, dropout in enumerate(self.dropouts)]
        mask_NBTD = self.context.dropout_mask(probabilities, self.name, x_NBTD)
        return None if mask_NBTD is None else mask_NBTD.reshape(num_slots, -1, x.shape[-1]).to(dtype)


class _StackedProduct(torch.autograd.Function):
    """Frozen product and low-rank update in one pass over the output, and one over the input's gradient.

    The update is computed in the adapters' dtype, as PEFT does, and the sum rounded once to the layer's. A's and B's are those
    of the active slots; x, bias and mask those of all.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NMD: Tensor,
        bias: Tensor | None,
        lora_A_NRD: Tensor,
        lora_B_NOR: Tensor,
        mask_NMD: Tensor | None,
        active: slice,
        product: FrozenProduct,
    ) -> Tensor:
        y_NMO = product.forward(x_NMD, bias)
        own_NMD, own_mask_NMD = x_NMD[active], None if mask_NMD is None else mask_NMD[active]
        h_NMR = torch.bmm(_dropped(own_NMD, own_mask_NMD, lora_A_NRD.dtype), lora_A_NRD.transpose(1, 2))
        ctx.save_for_backward(own_NMD, lora_A_NRD, lora_B_NOR, own_mask_NMD, h_NMR)
        ctx.active, ctx.product = active, product
        _add_product(y_NMO[active], h_NMR, lora_B_NOR.transpose(1, 2))
        return y_NMO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own_NMD, lora_A_NRD, lora_B_NOR, mask_NMD, h_NMR = ctx.saved_tensors
        own_g_NMO = gradients[0][ctx.active].to(lora_B_NOR.dtype)
        gh_NMR = torch.bmm(own_g_NMO, lora_B_NOR)
        grad_A = grad_B = grad_x = None
        if ctx.needs_input_grad[3]:
            grad_B = torch.bmm(own_g_NMO.transpose(1, 2), h_NMR)
        if ctx.needs_input_grad[2]:
            grad_A = torch.bmm(gh_NMR.transpose(1, 2), _dropped(own_NMD, mask_NMD, lora_A_NRD.dtype))
        if ctx.needs_input_grad[0]:
            grad_x = ctx.product.backward(gradients[0])
            if mask_NMD is None:
                _add_product(grad_x[ctx.active], gh_NMR, lora_A_NRD)
            else:
                grad_x[ctx.active] += (torch.bmm(gh_NMR, lora_A_NRD) * mask_NMD).to(grad_x.dtype)
        return grad_x, None, grad_A, grad_B, None, None, None


def _dropped(x_NMD: Tensor, mask_NMD: Tensor | None, dtype: torch.dtype) -> Tensor:
    return x_NMD.to(dtype) if mask_NMD is None else x_NMD.to(dtype) * mask_NMD


def _add_product(sum_NMO: Tensor, left_NMR: Tensor, right_NRO: Tensor) -> None:
    """Add ``left·right``, computed in its own dtype and rounded once, in place."""
    if sum_NMO.dtype == left_NMR.dtype:
        sum_NMO.baddbmm_(left_NMR, right_NRO)
    else:
        sum_NMO.copy_(torch.baddbmm(sum_NMO.to(left_NMR.dtype), left_NMR, right_NRO))


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
        self._plan: DropoutPlan | None = None
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """``[N·B, …, D] → [N·B, …, D]``; the identity while evaluating."""
        num_slots = self.context.num_slots
        x_NBTD = x.reshape(num_slots, x.shape[0] // num_slots, -1, x.shape[-1])
        # T5 drops out the input and the output of a whole stack with one module.
        self._calls = self._calls + 1 if self._plan is self.context.dropout else 0
        self._plan = self.context.dropout
        mask_NBTD = self.context.dropout_mask([self.frozen.p] * num_slots, self.name, x_NBTD, self._calls)
        return x if mask_NBTD is None else (x_NBTD * mask_NBTD).reshape(x.shape)
