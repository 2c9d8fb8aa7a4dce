"""Every tensor of a merged model against the base's and the adapter's: ``W′`` should be ``W + ΔW``, and nothing else new.

Knows which names a model has for its tensors and which its files may use, what is tied, and which weights are stored
transposed. Does not know logits, nor what is made of the figures (``checks``). Memory: a few runs of rows. Floor: ``certify``.

Legend: W base, D update (ΔW), M merged.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorascope.certify.checkpoint import Checkpoint, dtype_name
from lorascope.certify.update import AdapterFiles, Update
from lorascope.lora.stored_tensors import StoredTensor


@dataclass(frozen=True)
class Layout:
    """What a model calls its tensors.

    Attributes:
        names: of parameters and persistent buffers, both of a tied pair included.
        prefix: of the body within a model with a head; files may or may not carry it.
        tied: by name, the name whose tensor it shares.
        transposed: modules whose weight is stored as ``[D, O]``.
        optional: expressions for names that transformers computes where a file lacks them.
        in_float32: expressions for modules that transformers keeps in float32 whatever is asked for (a T5's ``wo``).
    """

    names: frozenset[str]
    prefix: str
    tied: Mapping[str, str]
    transposed: frozenset[str]
    optional: tuple[str, ...] = ()
    in_float32: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: PreTrainedModel) -> Layout:
        """The layout of a model, which may be on the meta device."""
        transposed = frozenset(name for name, module in model.named_modules() if isinstance(module, Conv1D))
        tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
        optional = tuple(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())
        kinds = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        in_float32 = tuple(pattern for kind in kinds for pattern in getattr(model, kind, None) or ())
        return cls(frozenset(model.state_dict()), model.base_model_prefix, tied, transposed, optional, in_float32)

    def name_of(self, key: str) -> str | None:
        """The model's name for a tensor of a file; None where it has none."""
        plain = re.sub(r"(LayerNorm)\.(gamma|beta)$", lambda old: f"{old[1]}.{_RENAMED[old[2]]}", key)
        for name in (plain, f"{self.prefix}.{plain}", plain.removeprefix(f"{self.prefix}.")):
            if name in self.names:
                return name
        return None

    def partners(self, name: str) -> list[str]:
        """The other names of what may be the same tensor."""
        source = self.tied.get(name, name)
        return [other for other in (source, *self.tied) if other != name and self.tied.get(other, other) == source]


_RENAMED = {"gamma": "weight", "beta": "bias"}


@dataclass(frozen=True)
class Placed:
    """A checkpoint's tensors under the model's names.

    Attributes:
        held: what the files hold.
        shared: what they do not, and another name has for it.
        absent: what neither has: a loader initialises it anew, in silence.
        unused: keys that have no place in the model.
    """

    held: dict[str, StoredTensor]
    shared: dict[str, str]
    absent: tuple[str, ...]
    unused: tuple[str, ...]

    def get(self, name: str) -> StoredTensor | None:
        """The tensor that a loader puts in this place."""
        return self.held.get(self.shared.get(name, name))


def place(layout: Layout, checkpoint: Checkpoint) -> Placed:
    """Sort a checkpoint's tensors by the model's names, tied ones as transformers ties them."""
    held: dict[str, StoredTensor] = {}
    unused = []
    for key, tensor in checkpoint.tensors.items():
        name = layout.name_of(key)
        if name is None or (name in held and name != key):
            unused.append(key)
        else:
            held[name] = tensor
    shared, absent = {}, []
    for name in sorted(layout.names - set(held)):
        partner = next((other for other in layout.partners(name) if other in held), None)
        if partner is not None:
            shared[name] = partner
        elif not any(re.search(pattern, name) for pattern in layout.optional):
            absent.append(name)
    return Placed(held, shared, tuple(absent), tuple(sorted(unused)))


@dataclass(frozen=True)
class ModuleFigures:
    """One module's weight: what should have been added to it, and how far from that it is.

    Attributes:
        update_norm, weight_norm: ``‖ΔW‖`` and ``‖W‖``, Frobenius.
        ratio: ``‖W′ − W − ΔW‖ / ‖ΔW‖``: 1 for a merge that did nothing, whatever the size of the adapter; None where ΔW is
            zero or W′ is not finite.
        arrived: the share of ΔW that is in ``W′ − W``, by projection; W as the merged file's dtype holds it. None as above.
        rounding: the largest deviation, in what rounding in the merged dtype may come to; above 1, something else is in it.
        nonfinite: NaN or infinite numbers in W′.
        overflows: numbers of ``W + ΔW`` beyond the merged dtype's range.
    """

    module: str
    update_norm: float
    weight_norm: float
    ratio: float | None
    arrived: float | None
    rounding: float
    nonfinite: int
    overflows: int


@dataclass
class TensorFigures:
    """What the files show.

    Attributes:
        modules: those that the adapter has an update for, and both models' files a tensor.
        num_placed: those that the adapter has an update for, and the model a place.
        num_equal: tensors that no update concerns, and are the base's (or the adapter's, where that replaced them).
        differing: those that should be and are not, with the count of numbers that differ and whose they should be.
        nonfinite: counts of NaN or infinite numbers, by name.
        absent: places of the model that the merged files hold nothing for.
        homeless: what the adapter has and the model has no place for.
        misfits: sentences on shapes that do not fit.
        tied: sentences on what is tied and should not be, or the reverse.
        untied: pairs that the base ties and the merged files hold twice, equal.
        strays: numbers that are in another dtype than they should be, by that dtype.
    """

    modules: list[ModuleFigures] = field(default_factory=list)
    num_placed: int = 0
    num_equal: int = 0
    differing: list[tuple[str, int, str]] = field(default_factory=list)
    nonfinite: dict[str, int] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    homeless: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)
    untied: list[str] = field(default_factory=list)
    strays: Counter[str] = field(default_factory=Counter)


def compare_tensors(
    layout: Layout, merged_ties: Mapping[str, str], base: Checkpoint, merged: Checkpoint, adapter: AdapterFiles, dtype: str
) -> TensorFigures:
    """Look at every tensor of the merged model.

    Args:
        layout: of the base's configuration, with the adapter's task.
        merged_ties: what the merged model's own configuration ties.
        dtype: what every floating-point tensor should be in; ``as-base`` for each the base's.
    """
    written = replace(layout, tied=merged_ties)
    before, after = place(layout, base), place(written, merged)
    figures = TensorFigures(absent=list(after.absent))
    weights = {f"{module}.weight": update for module, update in adapter.updates.items()}
    figures.num_placed = sum(name in layout.names for name in weights)
    figures.homeless += sorted(name for name in (*weights, *adapter.replaced) if name not in layout.names)
    for name, tensor in after.held.items():
        if tensor.dtype.is_floating_point:
            source = before.get(name)
            kept = base.main_dtype if source is None or name in adapter.replaced else dtype_name(source.dtype)
            spared = tensor.dtype == torch.float32 and any(
                re.search(rf"(^|\.){pattern}(\.|$)", name) for pattern in layout.in_float32
            )
            if not spared and dtype_name(tensor.dtype) != (kept if dtype == "as-base" else dtype):
                figures.strays[dtype_name(tensor.dtype)] += math.prod(tensor.shape)
    for name in sorted(layout.names):
        found = after.get(name)
        if found is None:
            continue
        special = name in weights or name in adapter.replaced
        if name in after.shared and name in before.shared and not special:
            continue  # looked at under its other name
        replaced = name in adapter.replaced
        own: StoredTensor | _Held | None = _Held(adapter.replaced[name]) if replaced else before.get(name)
        if own is None:
            figures.misfits.append(f"{name} is neither in the base's files nor in the adapter's")
        elif name in weights:
            _compare_updated(figures, weights[name], own, found, transposed=name.rpartition(".")[0] in layout.transposed)
        else:
            _compare_equal(figures, name, own, found, "the adapter" if replaced else "the base")
    _compare_ties(figures, layout, written, before, after, {*weights, *adapter.replaced})
    return figures


def base_weights_checksum(layout: Layout, base: Checkpoint, heads: Sequence[str], dtype: torch.dtype) -> str:
    """What ``base_model.weights_checksum`` gives for this base once it is loaded in ``dtype``, without loading it."""
    placed = place(layout, base)
    outside = tuple(f"{head}." for head in (*heads, *(name.rpartition(".")[0] for name in placed.absent)))
    digest = hashlib.sha256()
    for name in sorted(layout.names):
        tensor = placed.get(name)
        if tensor is None or name.startswith(outside):
            continue
        held = dtype if tensor.dtype.is_floating_point else tensor.dtype
        digest.update(f"{name} {held} {tensor.shape}".encode())
        for rows in tensor.chunks():
            value = tensor.read(*rows).to(held).contiguous()
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _Held:
    """A tensor in memory, read as one from a file is."""

    def __init__(self, value: Tensor) -> None:
        self._value = value
        self.shape = tuple(value.shape)

    def read(self, first: int, stop: int) -> Tensor:
        return self._value[first:stop] if self.shape else self._value


def _compare_equal(figures: TensorFigures, name: str, own: StoredTensor | _Held, found: StoredTensor, whose: str) -> None:
    """A tensor that should be another's, in the merged file's dtype."""
    if own.shape != found.shape:
        figures.misfits.append(f"{name} is {list(found.shape)} in the merged model, {list(own.shape)} in {whose}")
        return
    differing = nonfinite = 0
    for first, stop in found.chunks():
        expected, value = own.read(first, stop).to(found.dtype), found.read(first, stop)
        if value.dtype.is_floating_point:
            nonfinite += int((~torch.isfinite(value)).sum())
        if not torch.equal(expected, value):
            differing += int((expected != value).sum())
    if nonfinite:
        figures.nonfinite[name] = nonfinite
    if differing:
        figures.differing.append((name, differing, whose))
    else:
        figures.num_equal += 1


def _compare_updated(
    figures: TensorFigures, update: Update, own: StoredTensor | _Held, found: StoredTensor, *, transposed: bool
) -> None:
    """A weight that should be the base's plus the update."""
    shape = (update.lora_B_OR.shape[0], update.lora_A_RD.shape[1])
    shape = shape[::-1] if transposed else shape
    if not own.shape == found.shape == shape:
        shapes = f"{list(own.shape)} in the base, {list(found.shape)} merged, {list(shape)} in the adapter"
        figures.misfits.append(f"{update.module} is {shapes}")
        return
    # Rounding in 16 bits is far above what float32 computes.
    wide = torch.float64 if found.dtype in (torch.float32, torch.float64) else torch.float32
    limits = torch.finfo(found.dtype)
    of_products = 4.0 if wide == torch.float64 else 2.0
    sums: dict[str, float] = defaultdict(float)
    rounding, nonfinite, overflows = 0.0, 0, 0
    for first, stop in found.chunks():
        stored, M = own.read(first, stop), found.read(first, stop).to(wide)
        W, cast = stored.to(wide), stored.to(found.dtype).to(wide)
        D = update.rows(first, stop, transposed=transposed, dtype=wide)
        bound = update.rows(first, stop, transposed=transposed, dtype=wide, magnitude=True)
        error = M - W - D
        allowed = limits.eps * (W.abs() + of_products * bound) + limits.smallest_normal * limits.eps
        nonfinite += int((~torch.isfinite(M)).sum())
        overflows += int(((W + D).abs() > limits.max).sum())
        rounding = max(rounding, float((error.abs() / allowed).nan_to_num(nan=math.inf).max()))
        sums["error"] += _squares(error)
        sums["update"] += _squares(D)
        sums["weight"] += _squares(W)
        sums["along"] += float(((M - cast) * D).sum(dtype=torch.float64))
    if nonfinite:
        figures.nonfinite[f"{update.module}.weight"] = nonfinite
    judged = sums["update"] > 0.0 and nonfinite == 0
    figures.modules.append(
        ModuleFigures(
            module=update.module,
            update_norm=math.sqrt(sums["update"]),
            weight_norm=math.sqrt(sums["weight"]),
            ratio=math.sqrt(sums["error"] / sums["update"]) if judged else None,
            arrived=sums["along"] / sums["update"] if judged else None,
            rounding=rounding,
            nonfinite=nonfinite,
            overflows=overflows,
        )
    )


def _compare_ties(
    figures: TensorFigures, layout: Layout, written: Layout, before: Placed, after: Placed, changed: set[str]
) -> None:
    """Pairs that one of the two models ties: as the base has them, unless the adapter changed one of the two."""
    for name, source in sorted({**layout.tied, **written.tied}.items()):
        was, now = _is_one(layout, before, name, source), _is_one(written, after, name, source)
        declared, parted = written.tied.get(name) == source, bool({name, source} & changed)
        twice = name in after.held and source in after.held
        if declared and not now and not (layout.tied.get(name) == source and not was):
            figures.tied.append(f"config.json ties {name} to {source}, and the files hold two that differ: loaders disagree")
        elif now and (parted or not was):
            why = "which the adapter parted" if parted else "which it is not in the base"
            figures.tied.append(f"{name} is tied to {source}, {why}")
        elif was and not declared and twice and not parted:
            same = _equal(after.held[name], after.held[source])
            where = figures.untied if same else figures.tied
            where.append(f"{name} is no longer tied to {source}" + ("" if same else ", and differs from it"))
        elif was and not declared and not twice:
            figures.tied.append(f"{name} was tied to {source}; now nothing ties them, and the files hold one of the two")


def _is_one(layout: Layout, placed: Placed, name: str, source: str) -> bool:
    """Whether a loader makes one tensor of the two names."""
    if layout.tied.get(name) != source:
        return False
    if name in placed.held and source in placed.held:
        return _equal(placed.held[name], placed.held[source])
    return placed.get(name) is not None


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return all(torch.equal(one.read(*rows), other.read(*rows)) for rows in one.chunks())


def _squares(values: Tensor) -> float:
    # Not by norm and square: the squares of tiny numbers vanish in float32.
    return float(values.double().square().sum())
