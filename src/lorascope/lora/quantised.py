"""A frozen linear layer whose weight lies in four bits: QLoRA's NormalFloat (NF4), packed by bitsandbytes.

Before: ``h.0.attn.c_attn = Conv1D(D → O)`` with a weight in 16 or 32 bits.
After ``quantise``: ``h.0.attn.c_attn = NF4Linear`` that holds the weight as codes of 4 bits and one float32 scale for each
64 of them, 4.5 bits a weight in all. A weight in full exists only during a product: it is dequantised once in the forward
pass and once in the backward pass, for all rows of all slots, and kept in neither.

bitsandbytes' own ``Linear4bit`` is not used: on a CPU it packs its weight anew for evaluation and then has no backward.
Knows packing. Does not know which layers to pack (``linear``) nor adapters. Floor: ``lora``.

Legend: D in, O out.

Source: Dettmers et al. 2023 (QLoRA), section 3, without double quantisation.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorascope.errors import ModelError
from lorascope.lora.frozen import apply, slow_bfloat16

BLOCK_SIZE = 64
# Four for the code, and a float32 scale per block.
BITS_PER_WEIGHT = 4 + 32 / BLOCK_SIZE


class NF4Linear(nn.Module):
    """``nn.Linear`` with a packed, frozen weight; stands in for ``Conv1D`` too.

    Both buffers are bytes, so that ``.to(dtype)`` and its relatives, which cast what is floating, leave them alone.

    Attributes:
        transposed: whether the replaced layer stored its weight as ``[D, O]``; here it is ``[O, D]`` always.
        dtype: of the replaced layer's weight.
    """

    packed: Tensor
    absmax_bytes: Tensor
    bias: nn.Parameter | None

    def __init__(
        self, packed: Tensor, absmax: Tensor, shape: tuple[int, int], bias: Tensor | None, dtype: torch.dtype, transposed: bool
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.dtype = dtype
        self.transposed = transposed
        self.register_buffer("packed", packed)
        self.register_buffer("absmax_bytes", absmax.view(torch.uint8))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    @classmethod
    def pack(cls, layer: nn.Linear | Conv1D, device: torch.device | str | None = None) -> NF4Linear:
        """Quantise ``layer``'s weight on ``device``, by default where it is; its bias is kept as it is."""
        from bitsandbytes.functional import quantize_4bit

        transposed = isinstance(layer, Conv1D)
        weight = layer.weight.detach().to(device or layer.weight.device)
        weight_OD = (weight.T if transposed else weight).contiguous()
        packed, state = quantize_4bit(weight_OD, blocksize=BLOCK_SIZE, quant_type="nf4")
        bias = None if layer.bias is None else layer.bias.detach().to(weight.device)
        packed_layer = cls(packed, state.absmax, (len(weight_OD), weight_OD.shape[1]), bias, weight.dtype, transposed)
        return packed_layer.train(layer.training)

    @property
    def weight(self) -> Tensor:
        """``[O, D]`` in ``dtype``, dequantised anew at every look."""
        return self.dequantised(self.dtype)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight ``[O, D]``; in float64 it is the float32 one, cast."""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        made = torch.float32 if dtype == torch.float64 else dtype
        state = QuantState(
            self.absmax_bytes.view(torch.float32),
            self._kernel_shape(),
            blocksize=BLOCK_SIZE,
            quant_type="nf4",
            dtype=made,
        )
        weight: Tensor = dequantize_4bit(self.packed, state)
        return weight.reshape(self.out_features, self.in_features).to(dtype)

    def _kernel_shape(self) -> torch.Size:
        """The shape under which bitsandbytes unpacks: its AVX512 kernel takes wrong scales where a row ends inside a block."""
        numbers = self.out_features * self.in_features
        if self.in_features % BLOCK_SIZE == 0:
            return torch.Size((self.out_features, self.in_features))
        return torch.Size((numbers,) if numbers % BLOCK_SIZE else (numbers // BLOCK_SIZE, BLOCK_SIZE))

    @property
    def frozen_product(self) -> NF4Product:
        """What the layer multiplies with."""
        return NF4Product(self)

    def forward(self, x: Tensor) -> Tensor:
        """``x·Wᵀ + bias``, ``[…, D] → […, O]`` in x's dtype; no activation and no dequantised weight is kept."""
        return apply(self.frozen_product, x, self.bias)

    def extra_repr(self) -> str:
        """As ``nn.Linear`` shows itself."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class NF4Product:
    """``x·Wᵀ`` and its input gradient ``g·W`` (a ``frozen.FrozenProduct``), each with a weight that goes when it is done."""

    def __init__(self, layer: NF4Linear) -> None:
        self.layer = layer

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``[…, D] → […, O]`` in x's dtype."""
        dtype = _product_dtype(x)
        own_bias = None if bias is None else bias.to(dtype)
        return F.linear(x.to(dtype), self.layer.dequantised(dtype), own_bias).to(x.dtype)

    def backward(self, gradient: Tensor) -> Tensor:
        """``[…, O] → […, D]`` in the gradient's dtype."""
        dtype = _product_dtype(gradient)
        return torch.matmul(gradient.to(dtype), self.layer.dequantised(dtype)).to(gradient.dtype)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype to compute in: x's own, but not bfloat16 where products in it are emulated, a hundred times slower."""
    return torch.float32 if slow_bfloat16(x) else x.dtype


def quantise(model: nn.Module, names: Iterable[str], device: torch.device | str | None = None) -> None:
    """Replace the linear layers of these names, one after the other, by packed ones on ``device``.

    Args:
        device: where the packed layers go; by default each stays where it is. The weights in full arrive there one at a time.
    """
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | Conv1D)
        model.set_submodule(name, NF4Linear.pack(layer, device))


def check_installed() -> None:
    """Raise a ModelError unless bitsandbytes can be imported."""
    if find_spec("bitsandbytes") is None:
        fix = "pip install 'lorascope[quant]', or leave quantization out"
        raise ModelError("nf4 needs bitsandbytes, which is not installed", where="base.quantization", fix=fix)
