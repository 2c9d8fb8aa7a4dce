"""Every tensor of a merged model against the base's and the adapter's: ``W′`` should be ``W + ΔW``, and nothing else new.

Knows what each tensor should be. Does not know which name is whose (``layout``), logits, nor what is made of the figures
(``checks``). Memory: a few runs of rows. Floor: ``certify``.

Legend: W base, D update (ΔW), M merged.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lorascope.certify.checkpoint import Checkpoint, dtype_name
from lorascope.certify.layout import Layout, Placed, place
from lorascope.certify.update import AdapterFiles, Update
from lorascope.lora.stored_tensors import StoredTensor


@dataclass(frozen=True)
class ModuleFigures:
    """One module's weight: what should have been added to it, and how far from that it is.

    Attributes:
        update_norm, weight_norm: ``‖ΔW‖`` and ``‖W‖``, Frobenius.
        ratio: ``‖W′ − W − ΔW‖ / ‖ΔW‖``, W as the merged file's dtype holds it: 1 for a merge that did nothing, whatever the
            size of the adapter; None where ΔW is zero or W′ is not finite.
        arrived: the share of ΔW that is in ``W′ − W``, by projection; W and None as above.
        recast: ``‖cast(W) − W‖ / ‖ΔW‖``: what another dtype than the base's costs the base alone; zero in the base's own.
        rounding: the largest deviation, in what rounding in the merged dtype may come to; above 1, something else is in it.
        nonfinite: NaN or infinite numbers in W′.
        overflows: numbers of ``W + ΔW`` beyond the merged dtype's range.
    """

    module: str
    update_norm: float
    weight_norm: float
    ratio: float | None
    arrived: float | None
    recast: float
    rounding: float
    nonfinite: int
    overflows: int


@dataclass
class TensorFigures:
    """What the files show.

    Attributes:
        modules: those that the adapter has an update for, and both models' files a tensor.
        num_equal: tensors that no update concerns, and are the base's (or the adapter's, where that replaced them).
        differing: those that should be and are not, with the count of numbers that differ and whose they should be.
        nonfinite: counts of NaN or infinite numbers, by name.
        absent: places of the model that the merged files hold nothing for.
        leftover: names in the merged files that the model has no place for.
        misfits: sentences on shapes that do not fit.
        tied: sentences on what is tied and should not be, or the reverse.
        untied: pairs that the base ties and the merged files hold twice, equal.
        strays: numbers that are in another dtype than they should be, by that dtype.
    """

    modules: list[ModuleFigures] = field(default_factory=list)
    num_equal: int = 0
    differing: list[tuple[str, int, str]] = field(default_factory=list)
    nonfinite: dict[str, int] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    leftover: list[str] = field(default_factory=list)
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
        dtype: what every floating-point tensor should be in; ``as-base`` for each the base's, and the dtype of most of the
            base's numbers where that has none.
    """
    written = replace(layout, tied=merged_ties)
    before, after = place(layout, base), place(written, merged)
    figures = TensorFigures(absent=list(after.absent), leftover=[key for key in after.unused if not layout.ignores(key)])
    weights = {f"{module}.weight": update for module, update in adapter.updates.items()}
    replaced = {name: value for name, value in adapter.replaced.items() if not is_base_s(value, before.get(name))}
    for name, tensor in after.held.items():
        own = before.get(name)
        _check_dtype(figures, layout, name, tensor, dtype if dtype != "as-base" else _dtype_of(own, base))
    for name in sorted(layout.shapes):
        found = after.get(name)
        if found is None:
            continue
        special = name in weights or name in replaced
        if name in after.shared and name in before.shared and not special:
            continue  # looked at under its other name
        source: StoredTensor | _Held | None = _Held(replaced[name]) if name in replaced else before.get(name)
        if source is None:
            figures.misfits.append(f"{name} is neither in the base's files nor in the adapter's")
        elif name in weights:
            _compare_updated(figures, weights[name], source, found, transposed=name.rpartition(".")[0] in layout.transposed)
        else:
            _compare_equal(figures, name, source, found, "the adapter" if name in replaced else "the base")
    _compare_converted(figures, layout, before, after, base, dtype)
    _compare_ties(figures, layout, written, before, after, {*weights, *replaced})
    return figures


def is_base_s(value: Tensor, own: StoredTensor | None) -> bool:
    """Whether an adapter's tensor is the base's own, in its dtype: PEFT saves embeddings along that nobody trained."""
    if own is None or own.shape != tuple(value.shape):
        return False
    held = _Held(value)
    return all(torch.equal(own.read(*rows).to(value.dtype), held.read(*rows)) for rows in own.chunks())


def _dtype_of(own: StoredTensor | None, base: Checkpoint) -> str:
    return base.main_dtype if own is None else dtype_name(own.dtype)


def _check_dtype(figures: TensorFigures, layout: Layout, name: str, tensor: StoredTensor, expected: str) -> None:
    if not tensor.dtype.is_floating_point or dtype_name(tensor.dtype) == expected:
        return
    if not (tensor.dtype == torch.float32 and layout.keeps_float32(name)):
        figures.strays[dtype_name(tensor.dtype)] += math.prod(tensor.shape)


def _compare_converted(
    figures: TensorFigures, layout: Layout, before: Placed, after: Placed, base: Checkpoint, dtype: str
) -> None:
    """What a loader cuts or joins, by the files' own names: no update can concern it, so the two files hold the same."""
    for key in sorted(before.converted.keys() | after.converted.keys()):
        own, found = before.converted.get(key), after.converted.get(key)
        if found is None:
            figures.absent.append(key)
        elif own is None:
            figures.misfits.append(f"{key} is not in the base's files, which hold what it becomes in another form")
        else:
            _check_dtype(figures, layout, key, found, dtype if dtype != "as-base" else _dtype_of(own, base))
            _compare_equal(figures, key, own, found, "the base")


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
        error, exact = M - cast - D, M - W - D
        allowed = limits.eps * (W.abs() + of_products * bound) + limits.smallest_normal * limits.eps
        nonfinite += int((~torch.isfinite(M)).sum())
        overflows += int(((W + D).abs() > limits.max).sum())
        rounding = max(rounding, float((exact.abs() / allowed).nan_to_num(nan=math.inf).max()))
        sums["error"] += _squares(error)
        sums["update"] += _squares(D)
        sums["weight"] += _squares(W)
        sums["recast"] += _squares(cast - W)
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
            recast=math.sqrt(sums["recast"] / sums["update"]) if judged else 0.0,
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
