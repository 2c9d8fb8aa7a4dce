"""An adapter cut to lower ranks: the strongest directions of every module's update, and nothing else changed.

The update ``ΔW = scaling · B A`` of a module is a sum of R directions, its singular values and vectors. They come from the QR
of B and of Aᵀ and the SVD of an R × R matrix, in float64, so that no matrix of a layer's size is ever made. The first r' of
them are the best approximation of rank r' that there is (Eckart and Young 1936). They become new factors

    A' = √S·Vᵀ,   B' = U·√S     with the module's scaling as it was, so lora_alpha' = lora_alpha · r'/r (rsLoRA: √(r'/r))

and ``adapter_config.json`` says so in ``rank_pattern`` and ``alpha_pattern``. A module cut to rank 0 is left out. Heads and
biases keep their numbers to the bit.

Knows adapters off the model and PEFT's two files. Does not know which ranks are good (``analysis.truncated``). Floor: ``lora``.

Legend: D in, O out, R rank, S singular directions.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorascope.errors import AdapterError
from lorascope.lora.peft_io import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE, SavedAdapter
from lorascope.lora.stack import AdapterWeights, Placement

# Rounding of the factors' entries moves singular values by less than this many units of ‖A‖·‖B‖ in the last place.
_ROUNDINGS = 4.0
_LORA_KEY = re.compile(r"(?P<prefix>(?:base_model\.model\.)?)(?P<module>.+)\.(?P<factor>lora_[AB])\.weight")
_BASE_BIAS = ".base_layer.bias"


@dataclass(frozen=True)
class Directions:
    """One module's update as singular directions, strongest first.

    Attributes:
        values_S: singular values of ``ΔW``, the scaling included; float64, on the CPU.
        left_OS, right_SD: of ``B·A``, with orthonormal columns and rows.
        scaling: of the module.
        r: the rank it was given.
        rank: directions above what rounding of A and B in float32 (float64 where they are float64) makes by itself.
    """

    values_S: Tensor
    left_OS: Tensor
    right_SD: Tensor
    scaling: float
    r: int
    rank: int

    def factors(self, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``lora_A`` ``[rank, D]`` and ``lora_B`` ``[O, rank]`` of the strongest directions."""
        root_S = (self.values_S[:rank] / abs(self.scaling)).sqrt() if self.scaling else self.values_S[:rank]
        lora_A_RD = root_S[:, None] * self.right_SD[:rank]
        lora_B_OR = self.left_OS[:, :rank] * root_S
        return lora_A_RD.to(dtype).contiguous(), lora_B_OR.to(dtype).contiguous()


def directions_of(weights: AdapterWeights) -> dict[str, Directions]:
    """Every module's update taken apart, by its target's key."""
    return {
        placement.target.key: _take_apart(
            weights.lora_A[placement.target.key], weights.lora_B[placement.target.key], placement.scaling
        )
        for placement in weights.placements
    }


def _take_apart(lora_A_RD: Tensor, lora_B_OR: Tensor, scaling: float) -> Directions:
    wide_A_RD, wide_B_OR = lora_A_RD.detach().cpu().double(), lora_B_OR.detach().cpu().double()
    right_DS, right_SR = torch.linalg.qr(wide_A_RD.T)
    left_OS, left_SR = torch.linalg.qr(wide_B_OR)
    u, values_S, v = torch.linalg.svd(left_SR @ right_SR.T, full_matrices=False)
    # Narrower dtypes count as float32: what bfloat16 rounds away is part of the adapter as it is.
    eps = torch.finfo(torch.promote_types(lora_A_RD.dtype, torch.float32)).eps
    noise = _ROUNDINGS * eps * float(torch.linalg.matrix_norm(wide_A_RD) * torch.linalg.matrix_norm(wide_B_OR))
    rank = int((values_S > noise).sum()) if scaling else 0
    return Directions(abs(scaling) * values_S, left_OS @ u, v @ right_DS.T, scaling, lora_A_RD.shape[0], rank)


def truncated(saved: SavedAdapter, directions: Mapping[str, Directions], ranks: Mapping[str, int]) -> SavedAdapter:
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
        lora_A[key], lora_B[key] = directions[key].factors(rank, dtype)
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
        one.target.module: _number(round(one.scaling * (one.r**0.5 if use_rslora else one.r), 12)) for one in placements
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

    Every tensor that is no LoRA factor is copied from the file as it is.
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


def _outside(key: str, kept: Any) -> str:
    """A bias of a module that carries no adapter any more has its plain name again."""
    module = key.removesuffix(_BASE_BIAS).removeprefix("base_model.model.")
    return key if not key.endswith(_BASE_BIAS) or module in kept else key.replace(_BASE_BIAS, ".bias")


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
