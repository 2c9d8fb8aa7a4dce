"""An adapter cut to lower ranks: the strongest directions of every module's update, and nothing else changed.

The update ``ΔW = scaling · B A`` of a module is a sum of R directions, its singular values and vectors (``diagnostics``, from
the factors in float64). The first r' of them are the best approximation of rank r' that there is (Eckart and Young 1936). They
become new factors

    A' = √S·Vᵀ,   B' = U·√S     with the module's scaling as it was, so lora_alpha' = lora_alpha · r'/r (rsLoRA: √(r'/r))

and ``adapter_config.json`` says so in ``rank_pattern`` and ``alpha_pattern``. A module cut to rank 0 is left out. Heads and
biases keep their numbers to the bit.

Knows adapters off the model and PEFT's two files. Does not know which ranks are good (``analysis.truncated``).
Floor: ``lora``.

Legend: D in, O out, R rank, S singular directions.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorascope.errors import AdapterError
from lorascope.lora.beside import TOKENIZER_FILES, copy_files
from lorascope.lora.diagnostics import Decomposition, decompose, rounding_level
from lorascope.lora.peft_io import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE, SavedAdapter, whole_number
from lorascope.lora.stack import AdapterWeights, Placement

_LORA_KEY = re.compile(r"(?P<prefix>(?:base_model\.model\.)?)(?P<module>.+)\.(?P<factor>lora_[AB])\.weight")


def directions_of(weights: AdapterWeights) -> dict[str, Decomposition]:
    """Every module's update taken apart, by its target's key; what rounding explains is that of the dtype it is stored in."""
    return {
        placement.target.key: decompose(
            weights.lora_A[placement.target.key], weights.lora_B[placement.target.key], placement.scaling
        )
        for placement in weights.placements
    }


def num_computed(weights: AdapterWeights, placement: Placement, update: Decomposition) -> int:
    """Directions of a module that the rounding of a computation in float32 does not explain.

    Of an adapter that is stored in a narrower dtype these may be more than ``numerical_rank``: weak directions that storing it
    made, or only blurred.
    """
    key = placement.target.key
    lora_A_RD, lora_B_OR = (group[key] for group in (weights.lora_A, weights.lora_B))
    wide = torch.promote_types(lora_A_RD.dtype, torch.float32)
    level = rounding_level(lora_A_RD.to(wide), lora_B_OR.to(wide), placement.scaling)
    return max(update.numerical_rank, int((update.values_S > level).sum()))


def factors_of(update: Decomposition, scaling: float, rank: int) -> tuple[Tensor, Tensor]:
    """``lora_A`` ``[rank, D]`` and ``lora_B`` ``[O, rank]`` of the strongest directions, of one size; float64."""
    root_S = (update.values_S[:rank] / (abs(scaling) or 1.0)).sqrt()
    sign = -1.0 if scaling < 0.0 else 1.0
    return root_S[:, None] * update.right_DS[:, :rank].T, sign * update.left_OS[:, :rank] * root_S


def truncated(saved: SavedAdapter, directions: Mapping[str, Decomposition], ranks: Mapping[str, int]) -> SavedAdapter:
    """The adapter with every module cut to its rank; 0 leaves the module out.

    Args:
        directions: of ``saved``, from ``directions_of``.
        ranks: by target key; a module may keep no more directions than it has.

    Raises:
        AdapterError: no module is left, or one is left out whose bias was trained with it (``bias: lora_only``).
    """
    placements, lora_A, lora_B = [], {}, {}
    for placement in saved.slot.placements:
        key, rank = placement.target.key, ranks[placement.target.key]
        assert 0 <= rank <= len(directions[key].values_S), f"rank {rank} of {key}"
        if rank == 0:
            _check_droppable(saved, placement)
            continue
        # Float32 at least: the new factors are other numbers than the old ones, and rounding them once more would show.
        dtype = torch.promote_types(saved.weights.lora_A[key].dtype, torch.float32)
        placements.append(replace(placement, r=rank))
        factors = factors_of(directions[key], placement.scaling, rank)
        lora_A[key], lora_B[key] = (factor.to(dtype).contiguous() for factor in factors)
    if not placements:
        raise AdapterError("no direction is left of the adapter", fix="use the base model alone")
    kept = tuple(placements)
    weights = AdapterWeights(kept, lora_A, lora_B, saved.weights.biases, saved.weights.heads)
    config = _config(saved.config, kept, saved.slot.use_rslora)
    return replace(saved, slot=replace(saved.slot, placements=kept), weights=weights, config=config)


def _check_droppable(saved: SavedAdapter, placement: Placement) -> None:
    module = placement.target.module
    if saved.slot.bias == "lora_only" and f"{module}.bias" in saved.weights.biases:
        what = f"{module!r} cannot be left out: its trained bias belongs to its adapter (bias: lora_only)"
        raise AdapterError(what, fix="keep one direction of it")


def _config(config: Mapping[str, Any], placements: tuple[Placement, ...], use_rslora: bool) -> dict[str, Any]:
    """PEFT's configuration with the new ranks; everything else is as it was."""
    ranks = {one.target.module: one.r for one in placements}
    alphas = {
        one.target.module: whole_number(round(one.scaling * (one.r**0.5 if use_rslora else one.r), 12)) for one in placements
    }
    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        **config,
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != r},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        # By full name: suffixes and patterns would take in what was left out.
        "target_modules": sorted(ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def write_truncated(source: Path, directory: Path, cut: SavedAdapter) -> None:
    """Write the adapter of ``source`` as ``cut`` has it into an existing directory.

    Every tensor that is no LoRA factor is copied from the file as it is, and so is a tokenizer beside it.
    """
    tensors: dict[str, Tensor] = {}
    kept = cut.weights.lora_A.keys()
    for key, value in load_file(source / WEIGHTS_FILE).items():
        matched = _LORA_KEY.fullmatch(key)
        if matched is None:
            tensors[_outside(key, kept)] = value
        elif matched["module"] in kept:
            factors = cut.weights.lora_A if matched["factor"] == "lora_A" else cut.weights.lora_B
            tensors[key] = factors[matched["module"]]
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    text = json.dumps(dict(cut.config), indent=2, sort_keys=True) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
    if (source / RECORD_FILE).is_file():
        shutil.copyfile(source / RECORD_FILE, directory / RECORD_FILE)
    copy_files(source, directory, TOKENIZER_FILES)


def _outside(key: str, kept: Collection[str]) -> str:
    """A bias of a module that carries no adapter any more has its plain name again."""
    module, wrapper, kind = key.rpartition(".base_layer.")
    return f"{module}.{kind}" if wrapper and module.removeprefix("base_model.model.") not in kept else key
