"""What a trial will cost, before it runs: exact parameter counts, and estimates of memory and time.

Parameters are counted on the meta device, so a directory with only ``config.json`` is enough. Memory and time are models,
described in ``estimate``; the figures measured by a run replace them. Floor: beside ``train``.

The memory model: the process, the base, and for each slot four copies of what trains, what the backward pass keeps of each
token of the largest micro-batch, and the logits of the positions that predict a token, of which one chunk exists at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import nn

from lorascope.base_model import (
    checkpoint_keys,
    head_modules,
    num_positions,
    read_config,
    skeleton,
    task_type_of,
    unties_head,
)
from lorascope.config import BaseModelConfig, EvaluateConfig, TaskConfig, TaskType, TrialConfig
from lorascope.data.packing import batch_order, micro_batches
from lorascope.data.record import Example
from lorascope.data.tree import cut, sibling_groups
from lorascope.errors import ModelError
from lorascope.lora.linear import features, linear_modules, num_parameters
from lorascope.lora.peft_io import check_fits, peft_parameters, read_adapter
from lorascope.lora.quantised import BITS_PER_WEIGHT, check_installed
from lorascope.lora.sides import is_encoder_decoder
from lorascope.lora.stack import Placement, Slot, count_adapter, count_trainable, head_parameters
from lorascope.lora.targets import resolve
from lorascope.losses import LOGIT_CHUNK

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
# Of one trained number in single precision: value, gradient and AdamW's two moments.
STATE_BYTES = 16
# Besides, where the whole base trains: its gradients before they are added up, and a mark of what decays.
STEP_BYTES = 5
# Positions whose logits exist together.
LOGIT_POSITIONS = LOGIT_CHUNK
# Batches that are looked at for the largest micro-batch, those first that could hold it.
_BATCHES_LOOKED_AT = 512
# Interpreter, torch and transformers themselves, as measured before a model is loaded.
_PROCESS_BYTES = 450 * 2**20
# Share of the probed matrix-product rate that a plain training step reaches.
_EFFICIENCY = 0.5


@dataclass(frozen=True)
class Workload:
    """The data of a trial as far as costs go; None, or no examples, where they are not at hand.

    Attributes:
        mean_tokens: of an encoder–decoder's example, those of its encoder.
        mean_decoder_tokens: those of its decoder.
        examples: some of the training examples, as token ids.
    """

    num_examples: int | None
    mean_tokens: float | None
    longest_tokens: int
    examples: Sequence[Example] = ()
    mean_decoder_tokens: float = 0.0


@dataclass(frozen=True)
class Load:
    """What one slot's largest micro-batch holds: stored tokens, padding included, and positions with a target."""

    tokens: int
    positions: int


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
    if adapter.method == "full":
        return Slot(trial.trial, trial.seed, (), trains_base=True)
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
    if slot.trains_base:
        return trainable, base, base
    head = sum(parameter.numel() for parameter in head_parameters(dict(model.named_parameters()), heads).values())
    return trainable, base + count_adapter(model, slot), base + peft_parameters(model, slot) + head


def meta_model(trial: TrialConfig, task_type: TaskType, num_labels: int) -> tuple[nn.Module, tuple[str, ...]]:
    """The trial's base on the meta device, in the form that ``task_type`` takes on it, and the modules trained whole.

    A pooler that a local checkpoint lacks is newly initialised when the base is loaded, and trained then; so it counts.

    Raises:
        ModelError: the model is not there or cannot be quantised here; it is known before anything is trained.
    """
    if trial.base.quantization is not None:
        check_installed()
    config = read_config(trial.base)
    task_type = task_type_of(config, task_type)
    model = skeleton(config, task_type, num_labels)
    if task_type == "SEQ_2_SEQ_LM" and unties_head(trial.base, config):
        output = model.get_output_embeddings()
        output.weight = nn.Parameter(torch.empty_like(output.weight))
    heads = head_modules(model, task_type)
    keys = checkpoint_keys(trial.base.place)
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

    Memory: the process, the base as ``base_bytes`` counts it, and ``slot_bytes`` for the largest micro-batch: of the examples
    at hand, as prefix trees for a causal model, else of rows that are all as long as the longest. Weights that a run packs
    for speed, where memory allows, come on top.
    Time: two operations per base weight and token forward, two backward (frozen weights get no gradient; two more where the
    base trains), at the rate probed on this machine times a usual efficiency. An encoder–decoder's token passes through one of
    its halves.
    """
    slot = slot_of(trial, model, heads)
    trainable, total, peft_total = parameters(model, slot, heads)
    item = _BYTES[product_dtype(trial)]
    slot_memory = slot_bytes(model, slot, _planned_load(trial, model, work), item, trainable)
    memory = _PROCESS_BYTES + base_bytes(trial.base, model, heads) + slot_memory
    seconds = None
    if work.num_examples is not None and work.mean_tokens is not None and trial.adapter.path is None:
        epochs = trial.train.num_steps(work.num_examples) / trial.train.steps_per_epoch(work.num_examples)
        each = 6.0 if slot.trains_base else 4.0
        operations = each * _products(model, work.mean_tokens, work.mean_decoder_tokens) * work.num_examples * epochs
        seconds = operations / (flops_per_second * _EFFICIENCY)
    fits = memory <= memory_bytes
    reason = None
    if not fits:
        fix = "leave full fine-tuning out" if slot.trains_base else "lower micro_batch_size or dtype"
        reason = f"needs about {memory / 2**30:.1f} GiB of {memory_bytes / 2**30:.1f} GiB; {fix}"
    return Cost(trainable, total, peft_total, memory, seconds, fits, reason)


def _products(model: nn.Module, tokens: float, decoder_tokens: float) -> float:
    """Base weights that an example's tokens are multiplied with, each as often as it is."""
    body: Any = model
    embedding = body.get_input_embeddings().weight.numel()
    if not is_encoder_decoder(model):
        return float((num_parameters(model) - embedding) * tokens)
    encoder, decoder = (num_parameters(side) - embedding for side in (body.get_encoder(), body.get_decoder()))
    return float(encoder * tokens + (decoder + embedding) * decoder_tokens)


def product_dtype(trial: TrialConfig) -> str:
    """What the trial computes in: the base's dtype, or float32 where a bfloat16 base trains as a whole."""
    return "float32" if trial.adapter.method == "full" and trial.base.dtype == "bfloat16" else trial.base.dtype


def base_bytes(base: BaseModelConfig, model: nn.Module, heads: Sequence[str]) -> int:
    """The base while it trains: in its dtype, or packed, with the largest weight in full for the length of a product."""
    item = _BYTES[base.dtype]
    total = num_parameters(model) * item
    if base.quantization is None:
        return total
    packed = [math.prod(features(layer)) for layer in linear_modules(model, heads).values()]
    # In float32, which is what processors without bfloat16 products compute in.
    return total - sum(packed) * item + math.ceil(sum(packed) * BITS_PER_WEIGHT / 8) + 4 * max(packed, default=0)


def slot_bytes(model: nn.Module, slot: Slot, load: Load, item: int, num_trained: int) -> int:
    """What one slot adds to the base: its state, its activations and its logits."""
    logits = min(load.positions, LOGIT_POSITIONS) * position_bytes(model, item)
    state = STATE_BYTES + STEP_BYTES if slot.trains_base else STATE_BYTES
    return num_trained * state + load.tokens * token_bytes(model, slot, item) + logits


def token_bytes(model: nn.Module, slot: Slot, item: int) -> int:
    """What the backward pass keeps of one token in all layers, and works with in one.

    Frozen products keep nothing of their input; where the base trains, every linear layer keeps its own. A layer keeps the
    inputs of its two norms, what attention reads and writes, the inputs of its activation (three of the inner width where it
    is gated) and those of adapted layers, which some share, with a mask each where they drop out.
    """
    config: Any = model.config
    width, inner, num_layers = int(config.hidden_size), _inner_width(config), int(config.num_hidden_layers)
    heads = int(config.num_attention_heads) * int(getattr(config, "head_dim", None) or width // config.num_attention_heads)
    gated = any(name.endswith(("gate_proj", "gate_up_proj", "wi_0")) for name, _ in model.named_modules())
    kept = num_layers * (2 * width + 4 * heads + (3 if gated else 1) * inner)
    if is_encoder_decoder(model):
        # A decoder's token looks at the encoder's too; the keys and values for that are among an encoder token's.
        kept += _num_decoder_layers(config) * (width + 2 * heads)
    trained = list(linear_modules(model, ())) if slot.trains_base else _adapted(slot)
    adapted = {name: features(model.get_submodule(name))[0] for name in dict.fromkeys(trained)}
    kept += sum({(name.rpartition(".")[0], num): num for name, num in adapted.items()}.values())
    masks = 4 * sum(adapted.values()) if slot.dropout else 0
    return (kept + 3 * inner) * item + masks


def position_bytes(model: nn.Module, item: int) -> int:
    """Logits of one position and their sum's exponentials: in float32 at least, and logits and gradient in a lesser dtype."""
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        return 0
    config: Any = model.config
    return int(config.vocab_size) * (2 * max(item, 4) + (2 * item if item < 4 else 0))


def largest_load(
    examples: Sequence[Example],
    steps: Iterable[Sequence[Sequence[int]]],
    most_rows: int | None,
    *,
    num_slots: int,
    packs: bool,
    position_tokens: float,
) -> tuple[Load, Sequence[Sequence[int]]]:
    """The largest micro-batch of these optimiser steps, and its step; of the likeliest of them where there are very many.

    Args:
        steps: for each step the rows of every seed: seeds of one cohort are cut at the same places.
        most_rows: upper bound on the rows of a micro-batch.
        packs: prefix trees, else padded rows.
        position_tokens: how many tokens a target's position weighs.
    """
    lengths = [example.num_tokens for example in examples]
    targets = [example.num_targets for example in examples]

    def bound(step: Sequence[Sequence[int]]) -> float:
        stored = [sum(lengths[row] for row in rows) for rows in step] if packs else [_padded_tokens(examples, step)]
        return max(stored) + position_tokens * max(sum(targets[row] for row in rows) for rows in step)

    bounded = sorted(((bound(step), step) for step in steps), key=lambda pair: -pair[0])
    best, most, its_step = Load(0, 0), 0.0, bounded[0][1]
    for limit, step in bounded[:_BATCHES_LOOKED_AT]:
        if limit <= most:
            break
        loads = _tree_loads(examples, step, most_rows) if packs else _row_loads(examples, targets, step, most_rows, num_slots)
        for load in loads:
            weight = load.tokens + position_tokens * load.positions
            if weight > most:
                best, most, its_step = load, weight, step
    return best, its_step


def _tree_loads(examples: Sequence[Example], step: Sequence[Sequence[int]], most_rows: int | None) -> Iterator[Load]:
    for rows in step:
        for forest in cut(examples, rows, most_rows, None):
            yield Load(forest.num_tokens, len(forest.predictor_K))


def _row_loads(
    examples: Sequence[Example], targets: Sequence[int], step: Sequence[Sequence[int]], most_rows: int | None, num_slots: int
) -> Iterator[Load]:
    for _, pieces in micro_batches(step, lambda row: examples[row].num_tokens, most_rows, num_slots):
        yield Load(_padded_tokens(examples, pieces), max(sum(targets[row] for row in rows) for rows in pieces))


def _padded_tokens(examples: Sequence[Example], pieces: Sequence[Sequence[int]]) -> int:
    """Stored tokens of one seed's padded rows, a decoder's included; seeds share the widths of the widest."""
    rows = [row for piece in pieces for row in piece]
    longest = max(len(examples[row].input_ids) for row in rows)
    return max(map(len, pieces)) * (longest + max(len(examples[row].target_ids or ()) for row in rows))


def _planned_load(trial: TrialConfig, model: nn.Module, work: Workload) -> Load:
    """The largest micro-batch as far as the data are at hand, else of rows of the greatest length, a quarter of it targets."""
    rows = min(trial.train.micro_batch_size or trial.train.batch_size, trial.train.batch_size)
    produces_text = getattr(model, "get_output_embeddings", lambda: None)() is not None
    if not work.examples:
        tokens = rows * work.longest_tokens
        return Load(tokens, tokens // 4 if produces_text else 0)
    order = batch_order(sibling_groups(work.examples), trial.train.batch_size, trial.seed, 0)
    item = _BYTES[trial.base.dtype]
    weight = position_bytes(model, item) / max(1, token_bytes(model, Slot("", 0, ()), item))
    steps = [[batch] for batch in order]
    packs = produces_text and not is_encoder_decoder(model)
    return largest_load(work.examples, steps, rows, num_slots=1, packs=packs, position_tokens=weight)[0]


def _adapted(slot: Slot) -> list[str]:
    return [placement.target.module for placement in slot.placements]


def _inner_width(config: Any) -> int:
    """Width of the feed-forward layer, by each family's own name."""
    names = ("intermediate_size", "n_inner", "hidden_dim", "d_ff", "encoder_ffn_dim")
    return int(next((value for name in names if (value := getattr(config, name, None))), 4 * config.hidden_size))


def _num_decoder_layers(config: Any) -> int:
    names = ("num_decoder_layers", "decoder_layers")
    return int(next((value for name in names if (value := getattr(config, name, None))), config.num_hidden_layers))


def probe_flops(dtype: str, device: str = "cpu") -> float:
    """Matrix-product rate of this machine in operations per second, from a fifth of a second of work."""
    x = torch.randn(512, 768, dtype=getattr(torch, dtype), device=device)
    weight = torch.randn(768, 3072, dtype=getattr(torch, dtype), device=device)
    torch.mm(x, weight)
    started = time.perf_counter()
    count = 0
    while time.perf_counter() - started < 0.2:
        torch.mm(x, weight)
        if x.is_cuda:
            torch.cuda.synchronize()
        count += 1
    return 2.0 * 512 * 768 * 3072 * count / (time.perf_counter() - started)


def workload(examples: Sequence[Example], num_examples: int) -> Workload:
    """From some of the examples and the number of all."""
    return Workload(
        num_examples,
        mean(len(example.input_ids) for example in examples),
        max(example.num_tokens for example in examples),
        examples,
        mean(len(example.target_ids or ()) for example in examples),
    )


def fitting_lengths(
    task: TaskConfig, settings: EvaluateConfig, base: BaseModelConfig, *, generates: bool
) -> tuple[TaskConfig, list[str]]:
    """The task with rows that the model has positions for: a length that nobody gave is cut to them, which a notice says.

    Raises:
        ModelError: a length that was given does not fit, or answers leave rows less than half of the positions.
    """
    positions, answer = _positions(settings, base, generates=generates)
    room = None if positions is None else positions - answer
    if positions is None or room is None or task.max_length <= room:
        return task, []
    if "max_length" in task.model_fields_set or room < max(8, positions // 2):
        check_lengths(task, settings, base, generates=generates)
    extra = f", {answer} of them for the answer" if answer else ""
    notice = f"max_length is {room}: the model has {positions} positions{extra} (by default it would be {task.max_length})"
    return task.model_copy(update={"max_length": room}), [notice]


def _positions(settings: EvaluateConfig, base: BaseModelConfig, *, generates: bool) -> tuple[int | None, int]:
    """The model's positions, None where it has no end of them, and those of a row that an answer takes."""
    config = read_config(base)
    positions = num_positions(config)
    answer = max(decoding.max_new_tokens for decoding in settings.decoding) if generates else 0
    if positions is not None and getattr(config, "is_encoder_decoder", False) and answer <= positions:
        answer = 0
    return positions, answer


def check_lengths(task: TaskConfig, settings: EvaluateConfig, base: BaseModelConfig, *, generates: bool) -> None:
    """Rows, with the answers that are to be generated, must not be longer than the model has positions.

    An encoder–decoder counts the answer's from the start.

    Raises:
        ModelError: they could be.
    """
    positions, answer = _positions(settings, base, generates=generates)
    if positions is not None and task.max_length + answer > positions:
        extra = f" + {answer} new tokens" if answer else ""
        room = positions - answer
        by_length = room >= positions // 2
        raise ModelError(
            f"max_length {task.max_length}{extra} exceeds the model's {positions} positions",
            where="task.max_length" if by_length else "evaluate.decoding.max_new_tokens",
            fix=f"set it to {room} or less" if by_length else "ask for fewer new tokens",
        )
