"""Element-wise work in one kernel where transformers takes several: tanh-GELU and RMS norm.

A module is taken over only when its own outputs, on numbers drawn for the purpose, are those of the fused kernel up to
rounding; so a variant that looks alike (a norm with ``1 + weight``, say) stays as it is. Floor: ``lora``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What the names of RMS norms end with; a T5's says "layer norm" and is none.
_RMS_NORMS = ("RMSNorm", "T5LayerNorm")
# A module's own rounding against the fused kernel's, in units of the dtype's resolution.
_ROUNDINGS = 16


@torch.no_grad()
def install(model: nn.Module) -> list[str]:
    """Give activations and norms their fused forward; returns the classes that were taken over."""
    taken: set[str] = set()
    for module in model.modules():
        fused = _fused(module)
        if fused is not None and _agrees(module, fused):
            module.__dict__["forward"] = fused
            taken.add(type(module).__name__)
    return sorted(taken)


def _fused(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The one kernel that might be what the module computes."""
    name = type(module).__name__
    if "GELU" in name and not list(module.parameters()) and not isinstance(module, nn.GELU):
        return partial(F.gelu, approximate="tanh")
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if name.endswith(_RMS_NORMS) and isinstance(epsilon, float) and isinstance(weight, Tensor) and weight.ndim == 1:
        return partial(_rms_norm, module, epsilon)
    return None


class _RMSNorm(torch.autograd.Function):
    """``w · x / √(mean(x²) + ε)`` with a frozen ``w``; Zhang and Sennrich 2019, equation 4. Computed in at least float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        scale = (torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        normed: Tensor = (wide * scale).to(x.dtype)
        return normed.mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        scaled = (gradients[0] * weight).to(scale.dtype)
        along = (scaled * x).sum(dim=-1, keepdim=True).mul_(scale.pow(3) / -x.shape[-1])
        return scaled.mul_(scale).addcmul_(x.to(scale.dtype), along).to(x.dtype), None, None


def _rms_norm(module: nn.Module, epsilon: float, x: Tensor) -> Tensor:
    result: Tensor = _RMSNorm.apply(x, module.weight, epsilon)  # type: ignore[no-untyped-call]
    return result


def _agrees(module: nn.Module, fused: Callable[[Tensor], Tensor]) -> bool:
    weight = getattr(module, "weight", None)
    width = 64 if weight is None else len(weight)
    dtype, device = (torch.float32, torch.device("cpu")) if weight is None else (weight.dtype, weight.device)
    # Rows of small numbers, because that is where norms differ by what they do with their epsilon.
    sizes = torch.tensor([[6.0], [6.0], [1e-2], [1e-3]], dtype=torch.float64)
    x = (sizes * torch.linspace(-1.0, 1.0, 4 * width, dtype=torch.float64).reshape(4, width)).to(dtype=dtype, device=device)
    own, other = module(x).double(), fused(x).double()
    return bool((own - other).abs().max() <= _ROUNDINGS * torch.finfo(dtype).eps * own.abs().max())
