"""What a trial will cost, before it runs: exact parameter counts, and estimates of memory and time.

Parameters are counted on the meta device, so a directory with only ``config.json`` is enough. Memory and time are models,
described in ``estimate``; the figures measured by a run replace them. Floor: beside ``train``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, cast

import torch
from torch import nn

from lorascope.base_model import checkpoint_keys, head_modules, read_config, skeleton
from lorascope.config import BaseModelConfig, EvaluateConfig, TaskConfig, TrialConfig
from lorascope.errors import ModelError
from lorascope.lora.linear import features, linear_modules, num_parameters
from lorascope.lora.peft_io import check_fits, peft_parameters, read_adapter
from lorascope.lora.quantised import BITS_PER_WEIGHT, check_installed
from lorascope.lora.stack import Placement, Slot, count_adapter, count_trainable, head_parameters
from lorascope.lora.targets import resolve

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
# Of one trained number in single precision: value, gradient and AdamW's two moments.
STATE_BYTES = 16
# Supervised positions of a batch whose logits exist together: a few answers' worth.
_LOGIT_POSITIONS = 256
# Interpreter, torch and transformers themselves, as measured before a model is loaded.
_PROCESS_BYTES = 450 * 2**20
# Share of the probed matrix-product rate that a plain training step reaches.
_EFFICIENCY = 0.5


@dataclass(frozen=True)
class Workload:
    """The data of a trial as far as costs go; None where they are not at hand."""

    num_examples: int | None
    mean_tokens: float | None
    longest_tokens: int


@dataclass(frozen=True)
class Cost:
    """A trial's size. Counts are exact; ``memory_bytes`` and ``train_seconds`` are estimates for the trial alone."""

    trainable_params: int
    total_params: int
    peft_total_params: int
    memory_bytes: int
    train_seconds: float | None
    fits: bool
    reason: str | None

    @property
    def trainable_percent(self) -> float:
        """Trainable parameters in percent of base + adapter."""
        return 100.0 * self.trainable_params / self.total_params


def slot_of(trial: TrialConfig, model: nn.Module, heads: Sequence[str]) -> Slot:
    """What the trial trains on this model; the meta device will do.

    Raises:
        ModelError: a target that the model does not have, or nothing to train.
        AdapterError: ``path`` names an adapter that does not fit.
    """
    adapter = trial.adapter
    if adapter.path is not None:
        saved = read_adapter(adapter.path, trial.trial)
        check_fits(saved, model, adapter.path)
        return saved.slot
    targets = () if adapter.method == "head" else resolve(model, adapter.targets, heads)
    if adapter.method == "head" and not heads:
        raise ModelError("there is no head to train", where="adapter.method", fix="a causal model has none; use lora")
    placements = tuple(Placement(target, adapter.r, adapter.scaling) for target in targets)
    bias = "none" if adapter.method == "head" else adapter.bias
    return Slot(trial.trial, trial.seed, placements, adapter.lora_dropout, bias, adapter.use_rslora)


def parameters(model: nn.Module, slot: Slot, heads: Sequence[str]) -> tuple[int, int, int]:
    """(trainable, base + adapter with the head counted once, total as PEFT prints it); exact."""
    trainable = count_trainable(model, slot, heads)
    base = num_parameters(model)
    head = sum(parameter.numel() for parameter in head_parameters(dict(model.named_parameters()), heads).values())
    return trainable, base + count_adapter(model, slot), base + peft_parameters(model, slot) + head


def meta_model(trial: TrialConfig, task_type: str, num_labels: int) -> tuple[nn.Module, tuple[str, ...]]:
    """The trial's base on the meta device, and the modules that will be trained whole.

    A pooler that a local checkpoint lacks is newly initialised when the base is loaded, and trained then; so it counts.

    Raises:
        ModelError: the model is not there or cannot be quantised here; it is known before anything is trained.
    """
    if trial.base.quantization is not None:
        check_installed()
    config = read_config(trial.base)
    model = skeleton(config, task_type, num_labels)  # type: ignore[arg-type]
    heads = head_modules(model, task_type)  # type: ignore[arg-type]
    keys = checkpoint_keys(trial.base.model)
    poolers = [name for name, _ in model.named_parameters() if ".pooler." in name]
    if keys is not None and poolers and not any("pooler." in key for key in keys):
        heads = (*heads, *dict.fromkeys(name.rpartition(".")[0] for name in poolers))
    return model, heads


def estimate(
    trial: TrialConfig,
    model: nn.Module,
    heads: Sequence[str],
    work: Workload,
    memory_bytes: int,
    flops_per_second: float,
) -> Cost:
    """The trial's cost when it runs alone.

    Memory: the process, the base as ``base_bytes`` counts it, four copies of what trains, and the activations of one
    micro-batch of the longest rows that the backward pass keeps (about 16 widths and 4 feed-forward widths a token and
    layer), with the logits.
    Time: two operations per base weight and token forward, two backward (frozen weights get no gradient), at the rate
    probed on this machine times a usual efficiency.
    """
    slot = slot_of(trial, model, heads)
    trainable, total, peft_total = parameters(model, slot, heads)
    item = _BYTES[trial.base.dtype]
    rows = min(trial.train.micro_batch_size or trial.train.batch_size, trial.train.batch_size)
    base = num_parameters(model)
    slot_memory = slot_bytes(model, rows, work.longest_tokens, item, trainable)
    memory = _PROCESS_BYTES + base_bytes(trial.base, model, heads) + slot_memory
    seconds = None
    if work.num_examples is not None and work.mean_tokens is not None and trial.adapter.path is None:
        epochs = trial.train.num_steps(work.num_examples) / trial.train.steps_per_epoch(work.num_examples)
        embedding = model.get_input_embeddings().weight.numel()  # type: ignore[operator]
        operations = 4.0 * (base - embedding) * work.num_examples * work.mean_tokens * epochs
        seconds = operations / (flops_per_second * _EFFICIENCY)
    fits = memory <= memory_bytes
    reason = None
    if not fits:
        reason = f"needs about {memory / 2**30:.1f} GiB of {memory_bytes / 2**30:.1f} GiB; lower micro_batch_size or dtype"
    return Cost(trainable, total, peft_total, memory, seconds, fits, reason)


def base_bytes(base: BaseModelConfig, model: nn.Module, heads: Sequence[str]) -> int:
    """The base while it trains: in its dtype, or packed, with the largest weight in full for the length of a product."""
    item = _BYTES[base.dtype]
    total = num_parameters(model) * item
    if base.quantization is None:
        return total
    packed = [math.prod(features(layer)) for layer in linear_modules(model, heads).values()]
    # In float32, which is what processors without bfloat16 products compute in.
    return total - sum(packed) * item + math.ceil(sum(packed) * BITS_PER_WEIGHT / 8) + 4 * max(packed, default=0)


def slot_bytes(model: nn.Module, rows: int, longest_tokens: int, item: int, trainable: int) -> int:
    """What one slot adds to the base: its state, its activations, and the logits of one chunk, held about three times."""
    vocabulary = int(getattr(cast(Any, model).config, "vocab_size", 0))
    causal = getattr(model, "get_output_embeddings", lambda: None)() is not None
    logits = 3 * 4 * vocabulary * min(rows * longest_tokens, _LOGIT_POSITIONS) if causal else 0
    return trainable * STATE_BYTES + rows * longest_tokens * activation_bytes_per_token(model, item) + logits


def activation_bytes_per_token(model: nn.Module, item: int) -> int:
    """What the backward pass keeps of one token: a rough count over widths, all layers together."""
    config: Any = model.config
    width = int(config.hidden_size)
    inner = int(
        getattr(config, "intermediate_size", None)
        or getattr(config, "n_inner", None)
        or getattr(config, "hidden_dim", None)
        or 4 * width
    )
    return int(config.num_hidden_layers) * (16 * width + 4 * inner) * item


def probe_flops(dtype: str) -> float:
    """Matrix-product rate of this machine in operations per second, from a fifth of a second of work."""
    x = torch.randn(512, 768, dtype=getattr(torch, dtype))
    weight = torch.randn(768, 3072, dtype=getattr(torch, dtype))
    torch.mm(x, weight)
    started = time.perf_counter()
    count = 0
    while time.perf_counter() - started < 0.2:
        torch.mm(x, weight)
        count += 1
    return 2.0 * 512 * 768 * 3072 * count / (time.perf_counter() - started)


def workload(lengths: Sequence[int], num_examples: int) -> Workload:
    """From the token counts of some examples and the number of all."""
    return Workload(num_examples, mean(lengths), max(lengths))


def check_lengths(task: TaskConfig, settings: EvaluateConfig, base: BaseModelConfig, *, generates: bool) -> None:
    """Rows, with the answers that are to be generated, must not be longer than the model has positions.

    Raises:
        ModelError: they could be.
    """
    config = read_config(base)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return
    if config.model_type in ("roberta", "xlm-roberta"):
        positions -= 2  # their positions start after the padding id
    answer = max(decoding.max_new_tokens for decoding in settings.decoding) if generates else 0
    if task.max_length + answer > positions:
        extra = f" + {answer} new tokens" if answer else ""
        raise ModelError(
            f"max_length {task.max_length}{extra} exceeds the model's {positions} positions",
            where="task.max_length",
            fix=f"set it to {positions - answer} or less",
        )
