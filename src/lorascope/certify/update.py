"""What an adapter's files say should be added to a base, read here and nowhere else.

The merge that is checked has a reader of its own; were this the same one, an error in it would cancel out. The rules are
PEFT's: ``scaling = lora_alpha / r`` (over √r with rsLoRA), ``rank_pattern`` and ``alpha_pattern`` by the first expression that
matches the end of a module's name, ``ΔW = scaling · B A``, and whatever was trained whole replaces the base's.

Knows PEFT's files. Does not know how merging is done. Floor: ``certify``.

Legend: D in, O out, R rank.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lorascope.errors import AdapterError, ModelError
from lorascope.lora.linear import LinearLayer, linear_modules
from lorascope.lora.stored_tensors import read_header

_CONFIG, _WEIGHTS, _RECORD = "adapter_config.json", "adapter_model.safetensors", "lorascope.json"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Update:
    """``ΔW = scaling · B A`` of one module."""

    module: str
    lora_A_RD: Tensor
    lora_B_OR: Tensor
    scaling: float

    def rows(self, first: int, stop: int, *, transposed: bool, dtype: torch.dtype, magnitude: bool = False) -> Tensor:
        """Rows ``[first, stop)`` of ΔW as its weight is stored: ``[O, D]``, or ``[D, O]`` where ``transposed``.

        Args:
            magnitude: the sum of the products' absolute values instead, which bounds the rounding of any way to add them up.
        """
        A_RD, B_OR = self.lora_A_RD.to(dtype), self.lora_B_OR.to(dtype)
        if magnitude:
            A_RD, B_OR = A_RD.abs(), B_OR.abs()
        scaling = abs(self.scaling) if magnitude else self.scaling
        if transposed:
            return scaling * (A_RD[:, first:stop].T @ B_OR.T)
        return scaling * (B_OR[first:stop] @ A_RD)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as its files have it.

    Attributes:
        updates: by module, as PEFT names it within the base model.
        replaced: values that stand in for the base's, by parameter name: biases and modules that were trained whole, and
            embeddings that PEFT saved along, which equal the base's where nobody trained them.
        copies: frozen weights of the base that PEFT saved beside an update, by parameter name; loaders pass over them.
        record: what Lorascope wrote beside PEFT's files; empty for others' adapters.
        checksum: SHA-256 of both of PEFT's files.
        nonfinite: keys whose tensors hold NaN or infinite numbers.
        problems: what does not hold together, each a sentence.
    """

    directory: Path
    config: dict[str, Any]
    updates: dict[str, Update]
    replaced: dict[str, Tensor]
    copies: dict[str, Tensor]
    record: dict[str, Any]
    checksum: str
    nonfinite: tuple[str, ...] = ()
    problems: tuple[str, ...] = field(default=())


def read_updates(directory: Path) -> AdapterFiles:
    """Read an adapter.

    Raises:
        AdapterError: a file is missing or damaged.
    """
    config = _read_json(directory / _CONFIG)
    record = _read_json(directory / _RECORD) if (directory / _RECORD).is_file() else {}
    digest = hashlib.sha256((directory / _CONFIG).read_bytes())
    try:
        stored = read_header(directory / _WEIGHTS)
        tensors = {name: tensor.read() for name, tensor in stored.items()}
        digest.update((directory / _WEIGHTS).read_bytes())
    except (OSError, ModelError) as error:
        what = error.what if isinstance(error, ModelError) else str(error)
        raise AdapterError(what, where=str(directory / _WEIGHTS), fix="save the adapter again as safetensors") from None
    factors: dict[str, dict[str, Tensor]] = {}
    replaced: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}
    nonfinite = [key for key, value in sorted(tensors.items()) if not bool(torch.isfinite(value).all())]
    problems = [f"the adapter's {key!r} holds NaN or infinite numbers" for key in nonfinite]
    for key, value in sorted(tensors.items()):
        name = key.removeprefix(_PREFIX)
        module, dot, tail = name.rpartition(".lora_")
        if dot and tail in ("A.weight", "B.weight"):
            factors.setdefault(module, {})[tail[0]] = value
        elif dot:
            problems.append(f"the adapter's {key!r} is no key of PEFT's: it matches nothing")
        elif name.endswith(".base_layer.weight"):
            copies[name.replace(".base_layer.", ".")] = value
        elif ".original_module." not in name:
            plain = re.sub(r"\.modules_to_save\.(default\.)?", ".", name).replace(".base_layer.", ".")
            replaced[plain] = value
    updates = {}
    for module, pair in factors.items():
        if set(pair) != {"A", "B"}:
            problems.append(f"the adapter has {module!r} with one factor alone")
            continue
        r = int(_by_pattern(config.get("rank_pattern"), module, config.get("r", 8)))
        if (len(pair["A"]), pair["B"].shape[1]) != (r, r):
            problems.append(f"{module!r} has rank {len(pair['A'])} in the weights and {r} in {_CONFIG}")
            r = len(pair["A"])
        alpha = float(_by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
        updates[module] = Update(module, pair["A"], pair["B"], alpha / (r**0.5 if config.get("use_rslora") else r))
    checksum = digest.hexdigest()
    return AdapterFiles(directory, config, updates, replaced, copies, record, checksum, tuple(nonfinite), tuple(problems))


def absent_modules(adapter: AdapterFiles, model: nn.Module, heads: Sequence[str] = ()) -> list[str]:
    """Linear layers of the base that the configuration says are adapted, and that have no update in the weights.

    PEFT fills these with random numbers when it loads the adapter, and warns. Which are meant is PEFT's own function.

    Args:
        model: the base, which may be on the meta device.
        heads: what ``all-linear`` leaves out.

    Raises:
        AdapterError: ``target_modules`` is no valid expression.
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    config = adapter.config
    targets = config.get("target_modules")
    if targets is None:
        return []
    if targets == "all-linear":
        targets = list(linear_modules(model, heads))
    keys = ("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "target_parameters")
    meant = SimpleNamespace(target_modules=targets, **{key: config.get(key) for key in keys})
    linear = (name for name, module in model.named_modules() if isinstance(module, LinearLayer))
    try:
        return [name for name in linear if name not in adapter.updates and check_target_module_exists(meant, name)]
    except re.error as error:
        what = f"target_modules or exclude_modules is no valid expression ({error})"
        raise AdapterError(what, where=str(adapter.directory / _CONFIG), fix="save the adapter again") from None


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the whole name, or its end behind a dot."""
    matching = (value for key, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({key})", module))
    return next(matching, default)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"cannot be read ({error})", where=str(path), fix="save the adapter again") from None
    if not isinstance(content, dict):
        raise AdapterError("holds no object", where=str(path), fix="save the adapter again")
    return content
