"""Adapters compared with one another, module by module: do they write and read the same directions?

Compares configurations, or the seeds of one. Knows adapters from disk. Does not know what they score. Floor: ``analysis``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from lorascope.analysis.updates import Inspected, Place
from lorascope.errors import AdapterError
from lorascope.lora.diagnostics import (
    Decomposition,
    SubspaceOverlap,
    compare_updates,
    kept_energy,
    rank_keeping,
)

SIDES = ("left", "right")
# The directions that are called leading hold so much of an update's energy.
LEADING_SHARE = 0.9
# Digits of a similarity in a grid of them.
_GRID_DIGITS = 6


def overlap_document(adapters: Sequence[Inspected], places: Mapping[str, Place]) -> dict[str, Any] | None:
    """Every two adapters compared on the modules that both adapt; None where there is one adapter alone.

    Args:
        places: of all their modules.

    Returns:
        For each pair and module the cosine of the updates, and for the outputs written (``left``) and the inputs read
        (``right``) the Grassmann similarities of the top directions, of the leading ones, which hold 90 % of each
        update's energy, and of all; the latter two beside what random directions would have.

    Raises:
        AdapterError: a module of one name has different sizes: the adapters belong to different bases.
    """
    if len(adapters) < 2:
        return None
    pairs = list(combinations(adapters, 2))
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {(one.label, other.label): [] for one, other in pairs}
    for module, place in places.items():
        having = [one for one in adapters if module in one.saved.weights.lora_A]
        _check_same_size(having, module)
        for one, other in combinations(having, 2):
            about = {"module": module, "layer": place.layer, "kind": place.kind}
            found = _module_record(one.directions[module], other.directions[module])
            rows[one.label, other.label].append(about | found)
    documents = [_pair_record(one, other, rows[one.label, other.label]) for one, other in pairs]
    return {"leading_share": LEADING_SHARE, "pairs": documents, "warnings": _warnings(adapters, documents)}


def _pair_record(one: Inspected, other: Inspected, rows: list[dict[str, Any]]) -> dict[str, Any]:
    own, others = set(one.modules), set(other.modules)
    return {
        "first": one.label,
        "second": other.label,
        "num_shared": len(rows),
        "only_first": sorted(own - others),
        "only_second": sorted(others - own),
        "mean": {
            "cosine": _mean([row["cosine"] for row in rows]),
            **{side: _mean_side([row[side] for row in rows]) for side in SIDES},
        },
        "modules": rows,
    }


def _module_record(first: Decomposition, second: Decomposition) -> dict[str, Any]:
    found = compare_updates(first, second)
    leading = _leading(first), _leading(second)
    return {
        "cosine": found.cosine,
        "left": None if found.left is None else _side_record(found.left, leading),
        "right": None if found.right is None else _side_record(found.right, leading),
    }


def _side_record(side: SubspaceOverlap, leading: tuple[int, int]) -> dict[str, Any]:
    whole = side.similarity_IJ.shape[0], side.similarity_IJ.shape[1]
    ranks = min(leading[0], whole[0]), min(leading[1], whole[1])
    return {
        "top": float(side.similarity_IJ[0, 0]),
        "leading": float(side.similarity_IJ[ranks[0] - 1, ranks[1] - 1]),
        "leading_ranks": list(ranks),
        "leading_by_chance": side.chance(*ranks),
        "all": float(side.similarity_IJ[-1, -1]),
        "all_ranks": list(whole),
        "all_by_chance": side.chance(*whole),
        "angles_degrees": [math.degrees(angle) for angle in side.angles.tolist()],
        "similarity": [[round(value, _GRID_DIGITS) for value in row] for row in side.similarity_IJ.tolist()],
    }


def _leading(update: Decomposition) -> int:
    return rank_keeping(kept_energy(update.values_S), LEADING_SHARE)


def _mean_side(sides: Sequence[Mapping[str, Any] | None]) -> dict[str, float | None]:
    there = [side for side in sides if side is not None]
    names = ("top", "leading", "leading_by_chance", "all", "all_by_chance")
    return {name: _mean([side[name] for side in there]) for name in names}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _check_same_size(having: Sequence[Inspected], module: str) -> None:
    sizes = {}
    for one in having:
        lora_A_RD, lora_B_OR, _ = one.factors(module)
        sizes[one.label] = (lora_B_OR.shape[0], lora_A_RD.shape[1])
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{outputs} × {inputs} in {label}" for label, (outputs, inputs) in sizes.items())
        raise AdapterError(f"{module!r} is {told}", where="inspect", fix="compare adapters of one base model")


def _warnings(adapters: Sequence[Inspected], pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    bases = {one.saved.base_model for one in adapters}
    warnings = [f"the adapters name different bases: {', '.join(sorted(map(str, bases)))}"] if len(bases) > 1 else []
    for pair in pairs:
        apart = len(pair["only_first"]) + len(pair["only_second"])
        if apart:
            both = f"{pair['first']} and {pair['second']}"
            warnings.append(f"{both}: {apart} modules are adapted by one of them alone and not compared")
    return warnings
