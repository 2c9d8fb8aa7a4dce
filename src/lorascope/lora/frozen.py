"""The product of a frozen linear layer with its inputs, by the fastest path that is right on this machine.

Frozen weights need no gradient and never change. So no activation is kept for them, a weight may be packed once in the layout
that the processor likes, and a bfloat16 product may be computed in float32 where the processor has no bfloat16. ``choose``
tries the paths on the base's own weights and keeps the fastest whose error is no larger than the plain path's; ``install``
gives every linear layer of the model its product.

Knows torch's matrix products. Does not know adapters or models' architecture. Floor: ``lora``.

Legend: M rows × tokens, D in, O out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Path = Literal["plain", "medium", "float32", "packed"]
# A path other than the plain one must be faster by this much: packing costs memory, and others surprise.
_GAIN = 1.1
# Rows of the trial product: what a small batch has.
_ROWS = 512
# Layers that take turns in it: in training too, a layer's weight has left the cache when its turn comes again.
_TRIAL_LAYERS = 4
_ROW_STEP = 64
_REPEATS = 5
# A path's error may be this much above the plain path's, in units of rounding of the base's dtype.
_ERROR_ROUNDINGS = 8


@dataclass(frozen=True)
class Choice:
    """The path of a base's frozen products, and what every path measured: GFLOP/s and relative error."""

    path: Path
    gflops: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)


class Product:
    """``x·Wᵀ`` and its input gradient ``g·W`` by one path.

    Args:
        layer: an ``nn.Linear`` or ``Conv1D``; its weight is read in place, and never copied but by ``packed``.
    """

    def __init__(self, layer: nn.Module, path: Path) -> None:
        self._layer = layer
        self.path = path
        if path == "packed":
            self._forward_pack = _pack(self.weight_OD.contiguous())
            self._backward_pack = _pack(self.weight_OD.T.contiguous())

    @property
    def weight_OD(self) -> Tensor:
        """The layer's weight as it is now; in a copy of the layer, the copy's."""
        weight = cast(Tensor, self._layer.weight).detach()
        return weight.T if isinstance(self._layer, Conv1D) else weight

    def forward(self, x: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
        """``[…, D] → […, O]``.

        Args:
            out: ``[M, O]``, for ``[M, D]``: may be filled and returned, by paths that can.
        """
        if self.path == "float32":
            wide = None if bias is None else bias.float()
            return F.linear(x.float(), self.weight_OD.float(), wide).to(x.dtype)
        if self.path == "packed":
            return _packed_linear(x, self._forward_pack, bias)
        with _precision(self.path):
            if out is not None:
                product = torch.mm(x, self.weight_OD.T, out=out)
                return product if bias is None else product.add_(bias)
            return F.linear(x, self.weight_OD, bias)

    def backward(self, gradient: Tensor) -> Tensor:
        """``[…, O] → […, D]``."""
        if self.path == "float32":
            return torch.matmul(gradient.float(), self.weight_OD.float()).to(gradient.dtype)
        if self.path == "packed":
            return _packed_linear(gradient.contiguous(), self._backward_pack, None)
        with _precision(self.path):
            return torch.matmul(gradient, self.weight_OD)


class FrozenProduct(Protocol):
    """What a frozen layer multiplies with; neither method is seen by autograd."""

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x·Wᵀ + bias``, ``[…, D] → […, O]``."""

    def backward(self, gradient: Tensor) -> Tensor:
        """``gradient·W``, ``[…, O] → […, D]``."""


class _Apply(torch.autograd.Function):
    """A product whose weight takes no gradient: nothing of its input is kept, and no backward where no gradient is asked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, product: FrozenProduct) -> Tensor:
        ctx.product = product
        return product.forward(x, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        return (ctx.product.backward(gradients[0]) if ctx.needs_input_grad[0] else None), None, None


def product_of(layer: nn.Module) -> FrozenProduct:
    """The layer's installed product, its own (a 4-bit layer's), or the plain one."""
    product: FrozenProduct | None = getattr(layer, "frozen_product", None)
    return Product(layer, "plain") if product is None else product


def apply(product: FrozenProduct, x: Tensor, bias: Tensor | None) -> Tensor:
    """``x·Wᵀ + bias`` with a gradient for ``x`` alone."""
    result: Tensor = _Apply.apply(x, bias, product)  # type: ignore[no-untyped-call]
    return result


def install(model: nn.Module, path: Path, skip: Iterable[str] = ()) -> None:
    """Give every linear layer outside ``skip`` its product; layers that bring their own (4-bit ones) keep it.

    The layer's class, parameters and names stay as they were; only its instance's ``forward`` is another.
    """
    remove(model)
    for layer in _linears(model, skip).values():
        product = Product(layer, path)
        layer.__dict__["frozen_product"] = product
        layer.__dict__["forward"] = partial(_forward, layer, product)


def _forward(layer: nn.Linear, product: FrozenProduct, x: Tensor) -> Tensor:
    return apply(product, x, layer.bias)


def remove(model: nn.Module) -> None:
    """Undo ``install``."""
    for layer in model.modules():
        if "frozen_product" in layer.__dict__:
            del layer.__dict__["frozen_product"], layer.__dict__["forward"]


@torch.no_grad()
def choose(model: nn.Module, skip: Iterable[str] = (), free_bytes: int | None = None) -> Choice:
    """Try every path on the model's most frequent layer shape; the fastest right one.

    The plain path on anything but a CPU, in float64, and where nothing wins by a tenth.

    Args:
        free_bytes: memory that packed weights, twice the base's, may take; unlimited by default.
    """
    layers = list(_linears(model, skip).values())
    if not layers or layers[0].weight.device.type != "cpu" or layers[0].weight.dtype == torch.float64:
        return Choice("plain")
    shape = Counter(tuple(layer.weight.shape) for layer in layers).most_common(1)[0][0]
    alike = [layer for layer in layers if tuple(layer.weight.shape) == shape][:_TRIAL_LAYERS]
    dtype: torch.dtype = alike[0].weight.dtype
    paths: list[Path] = ["plain", "float32" if dtype != torch.float32 else "medium"]
    packed_bytes = 2 * sum(layer.weight.nbytes for layer in layers)
    if free_bytes is None or packed_bytes <= free_bytes:
        paths.append("packed")
    products = {path: found for path in paths if (found := _try_all(alike, path))}
    gflops, errors = _measure(products)
    limit = errors["plain"] + _ERROR_ROUNDINGS * torch.finfo(dtype).eps
    right = [path for path in products if errors[path] <= limit]
    best = max(right, key=lambda path: gflops[path])
    return Choice(best if gflops[best] >= _GAIN * gflops["plain"] else "plain", gflops, errors)


def slow_bfloat16(tensor: Tensor) -> bool:
    """Whether this bfloat16 tensor lies with a processor that has to emulate products in bfloat16."""
    return tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _linears(model: nn.Module, skip: Iterable[str]) -> dict[str, nn.Linear]:
    """Linear layers by name; a ``Conv1D`` differs only in how its weight lies."""
    skipped = tuple(skip)
    return {
        name: cast(nn.Linear, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not hasattr(type(module), "frozen_product")
        and not any(name == one or name.startswith(f"{one}.") for one in skipped)
    }


def _try_all(layers: Sequence[nn.Module], path: Path) -> list[Product]:
    """The layers' products by a path; empty where one cannot be had."""
    products = [product for layer in layers if (product := _try(layer, path)) is not None]
    return products if len(products) == len(layers) else []


def _try(layer: nn.Module, path: Path) -> Product | None:
    """The product by a path, or None where this build of torch or this processor does not have it."""
    try:
        product = Product(layer, path)
        probe = torch.zeros(2, product.weight_OD.shape[1], dtype=product.weight_OD.dtype)
        product.backward(product.forward(probe, None))
    except (RuntimeError, NotImplementedError, AttributeError):
        return None
    return product


def _measure(products: Mapping[Path, Sequence[Product]]) -> tuple[dict[str, float], dict[str, float]]:
    """GFLOP/s of a forward and a backward product, and the larger of their errors against float64; taken in turns."""
    weight_OD = next(iter(products.values()))[0].weight_OD
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {path: [] for path in products}
    errors: dict[str, float] = {}
    # Emulated bfloat16 may be hundreds of times slower: such a path is timed on a few rows, once.
    few = torch.randn(16, weight_OD.shape[1], generator=generator).to(weight_OD.dtype)
    few_back = torch.randn(16, weight_OD.shape[0], generator=generator).to(weight_OD.dtype)
    exact, exact_back = few.double() @ weight_OD.double().T, few_back.double() @ weight_OD.double()
    slow: dict[str, float] = {}
    for path, (product, *_) in products.items():
        errors[path] = max(
            _relative_error(product.forward(few, None), exact), _relative_error(product.backward(few_back), exact_back)
        )
        started = time.perf_counter()
        product.backward(product.forward(few, None))
        slow[path] = (time.perf_counter() - started) * _ROWS / len(few)
    x = torch.randn(_ROWS, weight_OD.shape[1], generator=generator).to(weight_OD.dtype)
    for _ in range(_REPEATS):
        for path, alike in products.items():
            if slow[path] > 20 * min(slow.values()):
                seconds[path] = [slow[path]]
                continue
            started = time.perf_counter()
            for product in alike:
                product.backward(product.forward(x, None))
            seconds[path].append((time.perf_counter() - started) / len(alike))
    operations = 4.0 * _ROWS * weight_OD.numel()
    return {path: operations / median(times) / 1e9 for path, times in seconds.items()}, errors


def _relative_error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).norm() / exact.norm().clamp(min=torch.finfo(result.dtype).tiny))


class _precision:
    """torch's float32 matmul precision for one product; ``medium`` lets oneDNN take it where it can."""

    def __init__(self, path: Path) -> None:
        self._wanted = path == "medium"

    def __enter__(self) -> None:
        if self._wanted:
            self._own = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("medium")

    def __exit__(self, *_: object) -> None:
        if self._wanted:
            torch.set_float32_matmul_precision(self._own)


def _pack(weight_OD: Tensor) -> Tensor:
    """A weight in oneDNN's own layout. It cannot be copied, saved or looked into."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OD, _ROWS)
    return packed


def _packed_linear(x: Tensor, pack: Tensor, bias: Tensor | None) -> Tensor:
    """The rows are filled up to a multiple of 64: oneDNN keeps megabytes for every number of rows that it has seen."""
    rows = x.detach().reshape(-1, x.shape[-1])
    missing = -len(rows) % _ROW_STEP
    filled = F.pad(rows, (0, 0, 0, missing)) if missing else rows
    result: Tensor = torch.ops.mkldnn._linear_pointwise(filled, pack, bias, "none", [], "")
    return result[: len(rows)].reshape(*x.shape[:-1], result.shape[-1])
