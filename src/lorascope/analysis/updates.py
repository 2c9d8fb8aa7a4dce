"""Adapters from disk, and the figures of each of their updates, by layer and module; the files alone suffice.

Knows what PEFT's files hold and how modules are named for people. Does not know base models, data or terminals. Floor:
``analysis``.

Legend: D in, O out, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from lorascope.adapter import adapter_names
from lorascope.errors import AdapterError
from lorascope.lora.diagnostics import (
    Decomposition,
    UpdateDiagnostics,
    diagnose_update,
    kept_energy,
    moments,
    overall,
    rank_keeping,
    update_moments,
)
from lorascope.lora.peft_io import SavedAdapter, read_adapter
from lorascope.lora.targets import layer_of
from lorascope.lora.truncate import directions_of

# A B that is zero outside of so small a part of its outputs was made for a slice of a fused projection.
_SLICE_PART = 0.9
_MEAN_FIGURES = ("effective_rank", "stable_rank", "utilisation", "numerical_rank")


@dataclass(frozen=True)
class Inspected:
    """An adapter that is looked at.

    Attributes:
        label: a short name, different from those of the others that are looked at with it.
    """

    label: str
    directory: Path
    saved: SavedAdapter

    @property
    def modules(self) -> list[str]:
        """Full names of its modules, layer 2 before layer 10."""
        return sorted(self.saved.weights.lora_A, key=_natural)

    @cached_property
    def directions(self) -> dict[str, Decomposition]:
        """Every update taken apart, once for all who look at it; twice the adapter's own size in float32."""
        return directions_of(self.saved.weights)

    def factors(self, module: str) -> tuple[Tensor, Tensor, float]:
        """``lora_A [R, D]``, ``lora_B [O, R]`` and the scaling of a module."""
        scaling = next(one.scaling for one in self.saved.slot.placements if one.target.module == module)
        return self.saved.weights.lora_A[module], self.saved.weights.lora_B[module], scaling


@dataclass(frozen=True)
class Place:
    """Where a module stands in tables and pictures: its layer (None outside the layers) and its name within one."""

    layer: int | None
    kind: str


def read_adapters(directories: Sequence[Path], *, factors_only: bool = True) -> list[Inspected]:
    """Read adapters; a trial's directory stands for the adapter in it.

    Args:
        factors_only: to look at their updates, not to run them: kinds of LoRA that cannot be run here are read too.

    Raises:
        UsageError: one is given twice.
        AdapterError: one cannot be read, or its factors do not belong together.
    """
    read = [
        Inspected(name, directory, read_adapter(directory, factors_only=factors_only))
        for name, directory in adapter_names(directories).items()
    ]
    for one in read:
        _check_factors(one)
    return read


def places_of(modules: Iterable[str]) -> dict[str, Place]:
    """Layer and short name of every module; the names are as short as they can be and yet tell the modules apart."""
    layers = {module: layer_of(module) for module in modules}
    patterns = {module: _pattern(module, layer) for module, layer in layers.items()}
    short = _short_names(sorted(set(patterns.values())))
    return {module: Place(layers[module], short[patterns[module]]) for module in layers}


def adapter_document(one: Inspected, places: Mapping[str, Place]) -> dict[str, Any]:
    """Everything that the files say of an adapter: its configuration, and the figures of each update, bias and head.

    Args:
        places: of all its modules (``places_of``).

    Returns:
        What JSON can hold. Norms and standard deviations are those of whole matrices, the latter without a correction.
    """
    saved = one.saved
    config = saved.config
    updates = {module: diagnose_update(*one.factors(module), one.directions[module]) for module in one.modules}
    whole = overall([updates[module] for module in one.modules])
    assert whole is not None, "an adapter without modules is not read"
    rows = []
    for module in one.modules:
        place, factors = places[module], one.factors(module)
        about = {"module": module, "layer": place.layer, "kind": place.kind}
        rows.append(about | update_record(updates[module], *factors) | {"slices": _slice_records(*factors)})
    biases, heads = (
        [{"name": name, "size": value.numel(), **_moments_record(value)} for name, value in sorted(group.items())]
        for group in (saved.weights.biases, saved.weights.heads)
    )
    return {
        "label": one.label,
        "adapter": str(one.directory),
        "base": saved.base_model,
        "revision": config.get("revision"),
        "task_type": saved.task_type,
        "r": config.get("r"),
        "lora_alpha": config.get("lora_alpha"),
        "rank_pattern": config.get("rank_pattern") or {},
        "alpha_pattern": config.get("alpha_pattern") or {},
        "use_rslora": saved.slot.use_rslora,
        "lora_dropout": saved.slot.dropout,
        "bias": saved.slot.bias,
        "lora_params": sum(row["r"] * (row["in_features"] + row["out_features"]) for row in rows),
        "bias_params": sum(bias["size"] for bias in biases),
        "head_params": sum(head["size"] for head in heads),
        "overall": {name: getattr(whole, name) for name in ("norm", *_MEAN_FIGURES)},
        "modules": rows,
        "biases": biases,
        "heads": heads,
        "warnings": _warnings(one, rows),
    }


def update_record(found: UpdateDiagnostics, lora_A_RD: Tensor, lora_B_OR: Tensor, scaling: float) -> dict[str, Any]:
    """Figures of ``ΔW = scaling · B A`` (``found``) and of its factors, as JSON can hold them."""
    moved, energy_S = update_moments(lora_A_RD, lora_B_OR, scaling), kept_energy(found.values_S)
    return {
        "r": found.r,
        "scaling": scaling,
        "in_features": lora_A_RD.shape[1],
        "out_features": lora_B_OR.shape[0],
        "dtype": str(lora_B_OR.dtype).removeprefix("torch."),
        "norm": found.norm,
        "spectral_norm": found.spectral_norm,
        "nuclear_norm": found.nuclear_norm,
        "mean": moved.mean,
        "std": moved.std,
        "lora_A": _moments_record(lora_A_RD),
        "lora_B": _moments_record(lora_B_OR),
        "singular_values": found.values_S.tolist(),
        "effective_rank": found.effective_rank,
        "stable_rank": found.stable_rank,
        "utilisation": found.utilisation,
        "numerical_rank": found.numerical_rank,
        "rounding": found.rounding,
        "energy": energy_S.tolist(),
        "rank_for_90": rank_keeping(energy_S, 0.9),
        "rank_for_99": rank_keeping(energy_S, 0.99),
    }


def _moments_record(matrix: Tensor) -> dict[str, float]:
    found = moments(matrix)
    return {"mean": found.mean, "std": found.std, "norm": found.norm}


def _slice_records(lora_A_RD: Tensor, lora_B_OR: Tensor, scaling: float) -> list[dict[str, Any]]:
    """Figures of each slice of a fused projection, where B's columns were made for slices; else nothing.

    PEFT's files do not say so, but B does: a column of a slice is zero outside of it.
    """
    groups: list[tuple[int, int, list[int]]] = []
    used = lora_B_OR != 0
    spans = [
        (int(rows[0]), int(rows[-1]) + 1, column)
        for column in range(lora_B_OR.shape[1])
        if len(rows := used[:, column].nonzero()[:, 0])
    ]
    for start, stop, column in sorted(spans):
        if groups and start < groups[-1][1]:
            before = groups[-1]
            groups[-1] = (before[0], max(before[1], stop), [*before[2], column])
        else:
            groups.append((start, stop, [column]))
    if len(groups) < 2 and not any(stop - start <= _SLICE_PART * len(lora_B_OR) for start, stop, _ in groups):
        return []
    return [
        {"start": start, "stop": stop, **_slice_record(lora_A_RD[columns], lora_B_OR[start:stop, columns], scaling)}
        for start, stop, columns in ((start, stop, sorted(columns)) for start, stop, columns in groups)
    ]


def _slice_record(lora_A_RD: Tensor, lora_B_OR: Tensor, scaling: float) -> dict[str, Any]:
    return update_record(diagnose_update(lora_A_RD, lora_B_OR, scaling), lora_A_RD, lora_B_OR, scaling)


def _warnings(one: Inspected, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    warnings = [f"{one.label}: {what}" for what in one.saved.left_out]
    zero = [row["module"] for row in rows if row["spectral_norm"] == 0.0]
    if not zero:
        return warnings
    if len(zero) == len(rows):
        what = "every update is zero; the adapter was not trained, or changes nothing but heads and biases"
    else:
        what = f"{len(zero)} of {len(rows)} updates are zero: {zero[0]}{', …' if len(zero) > 1 else ''}"
    return [*warnings, f"{one.label}: {what}"]


def _check_factors(one: Inspected) -> None:
    for module in one.modules:
        lora_A_RD, lora_B_OR, _ = one.factors(module)
        if lora_A_RD.dim() != 2 or lora_B_OR.dim() != 2:
            raise AdapterError(
                f"{module!r} is no linear layer", where=str(one.directory), fix="only adapters of linear layers are supported"
            )
        if lora_A_RD.shape[0] != lora_B_OR.shape[1] or 0 in (*lora_A_RD.shape, *lora_B_OR.shape):
            shapes = f"lora_A {list(lora_A_RD.shape)} and lora_B {list(lora_B_OR.shape)} do not belong together"
            raise AdapterError(f"{module!r}: {shapes}", where=str(one.directory), fix="save the adapter again")


def _shortest_ends(names: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """For each name its shortest end with which no other name ends, or the whole of it."""
    ends = []
    for index, name in enumerate(names):
        others = [other for position, other in enumerate(names) if position != index]
        lengths = range(1, len(name) + 1)
        length = next((n for n in lengths if not any(other[-n:] == name[-n:] for other in others)), len(name))
        ends.append(name[-length:])
    return ends


def _pattern(module: str, layer: int | None) -> str:
    """The module's name with ``*`` for its layer's number."""
    return module if layer is None else re.sub(r"(^|\.)\d+\.", r"\1*.", module, count=1)


def _short_names(patterns: Sequence[str]) -> dict[str, str]:
    """The shortest telling end of what follows the layer, after a word for the part of the model where there are several."""
    groups: dict[str | None, list[str]] = {}
    for pattern in patterns:
        before, star, _ = pattern.partition("*")
        groups.setdefault(before if star else None, []).append(pattern)
    words = _telling_words([prefix for prefix in groups if prefix is not None])
    names = {}
    for prefix, members in groups.items():
        ends = _shortest_ends([tuple((member.partition("*.")[2] or member).split(".")) for member in members])
        word = "" if prefix is None else words[prefix]
        names.update({member: f"{word} {'.'.join(end)}".strip() for member, end in zip(members, ends, strict=True)})
    return names if len(set(names.values())) == len(names) else {pattern: pattern for pattern in patterns}


def _telling_words(prefixes: Sequence[str]) -> dict[str, str]:
    """The first part in which prefixes such as ``encoder.block.`` and ``decoder.block.`` differ; nothing for a lone one."""
    split = {prefix: prefix.strip(".").split(".") for prefix in prefixes}
    if len(split) < 2:
        return dict.fromkeys(prefixes, "")
    longest = max(map(len, split.values()))
    padded = {prefix: [*parts, *[""] * (longest - len(parts))] for prefix, parts in split.items()}
    place = next(place for place in range(longest) if len({parts[place] for parts in padded.values()}) > 1)
    telling = {prefix: parts[place] for prefix, parts in padded.items()}
    return telling if len(set(telling.values())) == len(telling) else {prefix: prefix.strip(".") for prefix in prefixes}


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers within names as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
