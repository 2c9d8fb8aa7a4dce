"""PEFT's adapter format, both ways: ``adapter_config.json`` and ``adapter_model.safetensors``.

Export of K slices of one fused projection (query and value of ``c_attn``, say): PEFT knows one adapter per module, so the
slices' A's are concatenated to rank K·r, the B's placed block by block, and ``lora_alpha`` chosen so that the scaling stays
what it was. An adapter with no LoRA part (``targets: []``) has no form in PEFT; its head is ``head.safetensors``.

What PEFT's files have no place for, a classifier's class names in order and the base's checksum, lies beside them in
``lorascope.json``; PEFT reads no file that it does not know, while a key that it does not know in its own would make it warn.

Knows file and key names. Does not know where on disk a study keeps its adapters. Floor: ``lora``.

Legend: D in, O out, R rank.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorascope.config import TaskType
from lorascope.embedded import located_adapter
from lorascope.errors import AdapterError
from lorascope.lora.beside import grown_vocabulary
from lorascope.lora.linear import LinearLayer, features, is_transposed
from lorascope.lora.stack import AdapterWeights, Placement, Slot
from lorascope.lora.targets import Target

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_OLD_WEIGHTS_FILE = "adapter_model.bin"
HEAD_FILE = "head.safetensors"
RECORD_FILE = "lorascope.json"
_PREFIX = "base_model.model."
# Features of PEFT's LoRA that change the arithmetic; an adapter that uses one is refused instead of half understood.
_UNSUPPORTED = (
    "use_dora", "use_qalora", "lora_bias", "target_parameters", "trainable_token_indices", "layer_replication",
    "alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
# Of these, those in whose files B·A is an update as in plain LoRA, and what it does not tell.
_BESIDE_FACTORS = {
    "use_dora": "DoRA: the figures are of B·A, to which the adapter adds a trained magnitude for every output",
    "lora_bias": "biases of its B's are left out",
    "trainable_token_indices": "embeddings that were trained for single tokens are left out",
    "layer_replication": "layers of the base are repeated: numbers of layers are those after that",
    "alora_invocation_tokens": "the adapter acts from its invocation tokens on, not before",
}
# Initialisations that leave the base as it is. The others (PiSSA, OLoRA, …) change its weights when PEFT loads the adapter.
_PLAIN_INITIALISATIONS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter read from disk.

    Attributes:
        base_model: the hub id or directory it was trained on; None where PEFT did not write one.
        task_type: PEFT's, for example ``SEQ_CLS``; None where it was not written.
        slot: its placements, dropout and bias, ready for a stack.
        weights: its numbers.
        labels: class names in the order of the head's outputs; empty where nobody wrote them down.
        origin: what it was trained on, as ``write_record`` wrote it: ``checksum`` (``base_model.weights_checksum``), ``dtype``
            and ``quantization``; empty for an adapter of PEFT's.
        left_out: what the factors do not tell, where it was read for these alone; such an adapter must not be run.
        directory: where it was read; None for one that never was on disk.
    """

    base_model: str | None
    task_type: str | None
    slot: Slot
    weights: AdapterWeights
    config: Mapping[str, Any]
    labels: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    directory: Path | None = None

    def base_at(self, given: str | None = None) -> tuple[str | None, str | None]:
        """The base to take, and its revision: the one that is given, or the one that the adapter names.

        The adapter's revision is of the base that it names, and of no other: giving that very name changes nothing.
        """
        revision = self.config.get("revision") if given in (None, self.base_model) else None
        return given or self.base_model, None if revision is None else str(revision)


def write_adapter(
    directory: Path,
    weights: AdapterWeights,
    slot: Slot,
    model: nn.Module,
    *,
    heads: Sequence[str],
    base_model: str,
    revision: str | None = None,
    task_type: TaskType,
    labels: Sequence[str] = (),
) -> None:
    """Write one slot for PEFT into an existing directory.

    Args:
        model: the base model, stacked or not; looked at for the kind of its layers.
        heads: the modules that were trained whole (PEFT's ``modules_to_save``).
        base_model: what ``from_pretrained`` should be given to load the base, together with ``revision``.
        labels: a classifier's class names in the order of their numbers.
    """
    if not weights.placements:
        tensors = {name: value.contiguous() for name, value in {**weights.biases, **weights.heads}.items()}
        save_file(tensors, directory / HEAD_FILE)
        return
    modules = _by_module(weights.placements)
    ranks, alphas = _ranks_and_alphas(modules, slot.use_rslora)
    config = _peft_config(modules, ranks, alphas, slot, model, heads, base_model, revision, task_type)
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(_tensors(weights, modules, slot, model, heads), directory / WEIGHTS_FILE, metadata={"format": "pt"})
    if labels:
        write_record(directory, labels)


def write_record(directory: Path, labels: Sequence[str], origin: Mapping[str, Any] | None = None) -> None:
    """Write what PEFT has no place for beside an adapter.

    Args:
        labels: a classifier's class names in the order of their numbers; may be empty.
        origin: the base that it was trained on: ``checksum``, ``dtype``, ``quantization``; where that packed it,
            ``unpacked_checksum`` of the weights in full.
    """
    record = {"labels": list(labels)} if labels else {}
    if origin is not None:
        record["base"] = dict(origin)  # type: ignore[assignment]
    (directory / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def peft_parameters(model: nn.Module, slot: Slot) -> int:
    """LoRA parameters of the slot once exported: a slice of a fused projection counts with the whole output width."""
    return sum(
        sum(placement.r for placement in placements) * sum(features(_frozen(model, module)))
        for module, placements in _by_module(slot.placements).items()
    )


def read_adapter(
    directory: Path | str, name: str = "adapter", *, factors_only: bool = False, damaged: bool = False
) -> SavedAdapter:
    """Read a PEFT LoRA adapter.

    Args:
        directory: its own, or the name of one that comes with Lorascope.
        name: the slot's name.
        factors_only: to look at its updates B·A, not to run it. Kinds of LoRA that do more than add these are then read too,
            and embeddings, and files of before safetensors; ``left_out`` says what is missing.
        damaged: what does not hold together is left to who looks next (``certify``): numbers that are not finite, another
            rank in the weights than in the configuration; keys that are none of PEFT's and single factors are passed over.

    Raises:
        AdapterError: no adapter there, a file that cannot be read, a kind of LoRA that is not supported, or files that do not
            hold together; names the file and the tensor or key.
    """
    directory = Path(located_adapter(str(directory)))
    config = _read_config(directory)
    left_out = _check_supported(config, directory / CONFIG_FILE, factors_only=factors_only)
    path = directory / WEIGHTS_FILE
    if factors_only and not path.exists() and (directory / _OLD_WEIGHTS_FILE).exists():
        path = directory / _OLD_WEIGHTS_FILE
    tensors = _read_tensors(path, damaged=damaged)
    if factors_only:
        tensors, more = _linear_factors(tensors, path)
        left_out += more
    lora_A, lora_B, biases, heads = _sort_tensors(tensors, path, damaged=damaged)
    if not damaged:
        _check_ranks(config, lora_A, lora_B, path)
    placements = tuple(
        Placement(Target(module), lora_A[module].shape[0], _scaling(config, module, lora_A[module].shape[0]))
        for module in lora_A
    )
    slot = Slot(
        name,
        0,
        placements,
        float(config.get("lora_dropout", 0.0)),
        config.get("bias", "none"),
        bool(config.get("use_rslora")),
    )
    weights = AdapterWeights(placements, lora_A, lora_B, biases, heads)
    labels, origin = _read_record(directory)
    base, task_type = config.get("base_model_name_or_path"), config.get("task_type")
    return SavedAdapter(base, task_type, slot, weights, config, labels, origin, tuple(left_out), directory)


def check_fits(adapter: SavedAdapter, model: nn.Module, where: str) -> None:
    """Raise an AdapterError unless every tensor of the adapter has its place, with its shape, in the model."""
    grown = grown_vocabulary(adapter.weights.heads, model)
    if grown is not None:
        raise AdapterError(grown[0], where=where, fix=grown[1])
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters(remove_duplicate=False))  # a tied head by its own name too
    for placement in adapter.slot.placements:
        module = placement.target.module
        if not isinstance(modules.get(module), LinearLayer):
            raise AdapterError(f"the base model has no linear layer {module!r}", where=where, fix="use its own base model")
        num_inputs, num_outputs = features(modules[module])
        fitting = ((placement.r, num_inputs), (num_outputs, placement.r))
        given = (tuple(adapter.weights.lora_A[module].shape), tuple(adapter.weights.lora_B[module].shape))
        if given != fitting or placement.r < 1:
            shapes = (
                f"lora_A {list(given[0])} and lora_B {list(given[1])} do not fit {num_inputs} inputs, {num_outputs} outputs"
            )
            raise AdapterError(f"{module!r}: {shapes}", where=where, fix="use its own base model")
    for name, value in {**adapter.weights.biases, **adapter.weights.heads}.items():
        if name not in parameters:
            raise AdapterError(f"the base model has no parameter {name!r}", where=where, fix="use its own base model")
        if parameters[name].shape != value.shape:
            shapes = f"{tuple(parameters[name].shape)} in the base, {tuple(value.shape)} here"
            raise AdapterError(f"{name!r} is {shapes}", where=where, fix="check the base model and the number of labels")


def sliced(saved: SavedAdapter, slot: Slot, where: str) -> AdapterWeights:
    """The saved numbers at the places where ``slot`` has its adapters: slices of a fused projection come apart again.

    Args:
        slot: what the adapter was written from.

    Raises:
        AdapterError: it was written from something else.
    """
    lora_A, lora_B = {}, {}
    modules = _by_module(slot.placements)
    if modules.keys() != saved.weights.lora_A.keys():
        raise AdapterError("the adapter has other targets than its trial", where=where, fix="train the trial again")
    for module, placements in modules.items():
        if sum(placement.r for placement in placements) != len(saved.weights.lora_A[module]):
            raise AdapterError(f"the adapter has another rank at {module!r}", where=where, fix="train the trial again")
        column = 0
        for placement in placements:
            start, stop = placement.target.part or (0, len(saved.weights.lora_B[module]))
            columns = slice(column, column + placement.r)
            lora_A[placement.target.key] = saved.weights.lora_A[module][columns]
            lora_B[placement.target.key] = saved.weights.lora_B[module][start:stop, columns]
            column += placement.r
    return AdapterWeights(slot.placements, lora_A, lora_B, saved.weights.biases, saved.weights.heads)


def _by_module(placements: Sequence[Placement]) -> dict[str, list[Placement]]:
    modules: dict[str, list[Placement]] = {}
    for placement in placements:
        modules.setdefault(placement.target.module, []).append(placement)
    return modules


def _ranks_and_alphas(modules: Mapping[str, list[Placement]], use_rslora: bool) -> tuple[dict[str, int], dict[str, float]]:
    """Per module the rank and the ``lora_alpha`` with which PEFT arrives at the slot's scaling."""
    ranks = {module: sum(placement.r for placement in placements) for module, placements in modules.items()}
    alphas = {}
    for module, placements in modules.items():
        scalings = {placement.scaling for placement in placements}
        assert len(scalings) == 1, f"slices of {module} with different scaling"
        alphas[module] = round(scalings.pop() * (ranks[module] ** 0.5 if use_rslora else ranks[module]), 12)
    return ranks, alphas


def _peft_config(
    modules: Mapping[str, list[Placement]],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    slot: Slot,
    model: nn.Module,
    heads: Sequence[str],
    base_model: str,
    revision: str | None,
    task_type: str,
) -> dict[str, Any]:
    from peft import LoraConfig

    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    peft_config = LoraConfig(
        r=r,
        lora_alpha=whole_number(alpha),  # type: ignore[arg-type]
        lora_dropout=slot.dropout,
        target_modules=sorted(modules),
        rank_pattern={module: rank for module, rank in ranks.items() if rank != r},
        alpha_pattern={module: whole_number(value) for module, value in alphas.items() if value != alpha},
        use_rslora=slot.use_rslora,
        bias=slot.bias,
        fan_in_fan_out=all(is_transposed(_frozen(model, module)) for module in modules),
        modules_to_save=list(heads) or None,
        task_type=task_type,
        base_model_name_or_path=base_model,
        revision=revision,
        inference_mode=True,
    )
    config: dict[str, Any] = peft_config.to_dict()  # type: ignore[no-untyped-call]
    config["target_modules"] = sorted(modules)
    return {key: value.value if hasattr(value, "value") else value for key, value in config.items()}


def _tensors(
    weights: AdapterWeights,
    modules: Mapping[str, list[Placement]],
    slot: Slot,
    model: nn.Module,
    heads: Sequence[str],
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module, placements in modules.items():
        keys = [placement.target.key for placement in placements]
        lora_A_RD = torch.cat([weights.lora_A[key] for key in keys])
        num_outputs = features(_frozen(model, module))[1]
        lora_B_OR = torch.zeros(num_outputs, lora_A_RD.shape[0], dtype=lora_A_RD.dtype)
        column = 0
        for key, placement in zip(keys, placements, strict=True):
            start, stop = placement.target.part or (0, num_outputs)
            lora_B_OR[start:stop, column : column + placement.r] = weights.lora_B[key]
            column += placement.r
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = lora_A_RD
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = lora_B_OR
    for name, value in weights.biases.items():
        owner = name.removesuffix(".bias")
        key = f"{owner}.base_layer.bias" if owner in modules else name
        tensors[f"{_PREFIX}{key}"] = value
    for name, value in weights.heads.items():
        tensors[f"{_PREFIX}{name}"] = value
        if slot.bias == "all" and name.endswith(".bias"):
            # PEFT's `bias: all` collects every key ending in ".bias", its wrapper's own among them.
            head = next(head for head in heads if name.startswith(f"{head}."))
            inner = name.removeprefix(f"{head}.")
            wrapper = "modules_to_save" if inner == "bias" else "modules_to_save.default"
            tensors[f"{_PREFIX}{head}.{wrapper}.{inner}"] = value.clone()
    return {name: value.cpu().contiguous() for name, value in tensors.items()}


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = "give the directory that holds adapter_config.json and adapter_model.safetensors"
        if (directory / HEAD_FILE).exists():
            fix = "this trial trained a head and no adapter; PEFT has no form for it"
        raise AdapterError("no PEFT adapter here", where=str(directory), fix=fix) from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"cannot be read ({error})", where=str(path)) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(f"this is a {kind} adapter", where=str(path), fix="only LoRA adapters are supported")
    return config


def _check_supported(config: Mapping[str, Any], path: Path, *, factors_only: bool) -> list[str]:
    """What of the configuration B·A does not tell; nothing but where the factors alone are asked for.

    Raises:
        AdapterError: it changes the arithmetic.
    """
    notes = []
    initialisation = config.get("init_lora_weights", True)
    if initialisation not in _PLAIN_INITIALISATIONS:
        if not factors_only:
            raise AdapterError(
                f"init_lora_weights is {initialisation!r}, which changes the base model's weights",
                where=str(path),
                fix="convert the adapter to plain LoRA with PEFT's path_initial_model_for_weight_conversion",
            )
        notes.append(
            f"init_lora_weights is {initialisation!r}: PEFT takes the initial B·A off the base's weights, so the figures are "
            "not of what differs from the base as it was published"
        )
    for key in _UNSUPPORTED:
        if config.get(key):
            if not factors_only or key not in _BESIDE_FACTORS:
                raise AdapterError(f"the adapter uses {key}", where=str(path), fix="only plain LoRA and rsLoRA are supported")
            notes.append(_BESIDE_FACTORS[key])
    return notes


def _read_record(directory: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    path = directory / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return (), {}
    except (OSError, ValueError) as error:
        raise AdapterError(f"cannot be read ({error})", where=str(path), fix="correct or remove it") from None
    labels = record.get("labels", []) if isinstance(record, dict) else None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise AdapterError("'labels' is no list of class names", where=str(path), fix="correct or remove the file")
    origin = record.get("base", {})
    if not isinstance(origin, dict):
        raise AdapterError("'base' is no mapping", where=str(path), fix="correct or remove the file")
    return tuple(labels), origin


def _read_tensors(path: Path, *, damaged: bool = False) -> dict[str, Tensor]:
    try:
        # A pickle is read as numbers alone: nothing in it is carried out.
        pickled = path.name == _OLD_WEIGHTS_FILE
        tensors: dict[str, Tensor] = torch.load(path, "cpu", weights_only=True) if pickled else load_file(path)
    except FileNotFoundError:
        raise AdapterError("the adapter's weights are missing", where=str(path), fix="save it as safetensors") from None
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"no valid safetensors file ({error})", where=str(path), fix="write it again") from None
    except (RuntimeError, EOFError, UnpicklingError) as error:
        what = f"no file of tensors alone ({' '.join(str(error).split())[:200]})"
        raise AdapterError(what, where=str(path), fix="save it as safetensors") from None
    for name, value in tensors.items():
        if not damaged and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise AdapterError(
                f"{name!r} holds {count} NaN or infinite numbers", where=str(path), fix="train or export it again"
            )
    return tensors


def _linear_factors(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Of PEFT's keys those that are known, embeddings as linear layers, and what was left out.

    An embedding's factors have the form of a linear layer's with the tokens as inputs; what PEFT adds is their transpose.
    """
    kept, others = {}, Counter[str]()
    for key, value in tensors.items():
        name = re.sub(r"\.lora_embedding_([AB])$", r".lora_\1.weight", key)
        is_factor = re.fullmatch(r".+\.lora_[AB]\.weight", name) is not None
        if is_factor and value.dim() != 2:
            others["convolution"] += name.endswith(".lora_A.weight")
        elif ".lora_" in name and not is_factor:
            others["lora_" + name.rpartition(".lora_")[2].removesuffix(".weight")] += 1
        else:
            kept[name] = value
    if not any(".lora_" in name for name in kept):
        raise AdapterError("the file holds no factors of linear layers or embeddings", where=str(path), fix="give another")
    return kept, [f"left out: {count} × {what}" for what, count in others.items()]


def _sort_tensors(
    tensors: Mapping[str, Tensor], path: Path, *, damaged: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """PEFT's keys as (lora_A by module, lora_B by module, biases by name, head parameters by name)."""
    lora: dict[str, dict[str, Tensor]] = {"lora_A": {}, "lora_B": {}}
    biases: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = key.removeprefix(_PREFIX)
        matched = re.fullmatch(r"(.+)\.(lora_[AB])\.weight", name)
        if matched:
            lora[matched[2]][matched[1]] = value
        elif re.search(r"\.lora_(embedding_[AB]|magnitude_vector|[AB]\.bias)$", name):
            raise AdapterError(f"{key!r} is no adapter of a linear layer", where=str(path), fix="only those are supported")
        elif ".lora_" in name:
            if not damaged:
                what = f"{key!r} is no key of PEFT's: it matches nothing"
                raise AdapterError(what, where=str(path), fix="save it with PEFT")
        elif name.endswith(".base_layer.bias"):
            biases[name.replace(".base_layer.bias", ".bias")] = value
        # PEFT writes a copy of an adapted head's own, frozen weight: the base has it.
        elif ".original_module." not in name and not name.endswith(".base_layer.weight"):
            heads[re.sub(r"\.modules_to_save\.(default\.)?", ".", name)] = value
    unpaired = set(lora["lora_A"]) ^ set(lora["lora_B"])
    if damaged:
        lora = {kind: {name: value for name, value in one.items() if name not in unpaired} for kind, one in lora.items()}
    elif unpaired or not lora["lora_A"]:
        what = f"{min(unpaired)!r} lacks lora_A or lora_B" if unpaired else "the file holds no LoRA weights"
        raise AdapterError(what, where=str(path), fix="save the adapter again")
    # A key that ends in ".bias" and has no weight beside it belongs to the base, not to a head.
    for name in [name for name in heads if name.endswith(".bias")]:
        if name.removesuffix("bias") + "weight" not in heads:
            biases[name] = heads.pop(name)
    return lora["lora_A"], lora["lora_B"], biases, heads


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """PEFT's scaling of a module: ``lora_alpha``, or what ``alpha_pattern`` says, over the rank (or its root)."""
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _check_ranks(config: Mapping[str, Any], lora_A: Mapping[str, Tensor], lora_B: Mapping[str, Tensor], path: Path) -> None:
    """That the weights have the ranks that the configuration says, without which PEFT does not load them either."""
    for module in lora_A:
        rank = int(_by_pattern(config.get("rank_pattern"), module, config.get("r", 8)))
        held = (len(lora_A[module]), lora_B[module].shape[-1])
        if lora_A[module].dim() == lora_B[module].dim() == 2 and held != (rank, rank):
            found = str(held[0]) if held[0] == held[1] else f"{held[0]} and {held[1]}"
            what = f"{module!r} has rank {found} in the weights and {rank} in {CONFIG_FILE}"
            raise AdapterError(what, where=str(path), fix="save the adapter again, both files together")


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the whole name, or its end behind a dot."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _frozen(model: nn.Module, module: str) -> nn.Module:
    found = model.get_submodule(module)
    frozen = getattr(found, "frozen", found)
    assert isinstance(frozen, nn.Module)
    return frozen


def whole_number(value: float) -> int | float:
    """An integer where it is one: PEFT writes ``lora_alpha`` as an integer."""
    return int(value) if float(value).is_integer() else value
