"""How fast adapters are: merged or not, one or several on one base, and with how many adapted modules.

Each configuration is a handful of modules that take the place of the base's: a merged copy of each layer, or the stack's
layers with N adapters. They are made once and swapped in and out, so that all configurations share the other weights and are
measured in turns, A B C A B C. What else the machine does meanwhile falls on all of them alike, and a ratio is the median
over rounds of two measurements that lie close together. Every time a configuration is put in, one pass goes untimed.

A fast pass that computes something else is no result: the logits of a merged adapter are compared with those of the same
adapter unmerged, and what rounding does not explain is told.

Knows adapters, passes and clocks. Does not know tasks, nor how tables look. Floor: beside ``evaluate``.

Legend: N slots, B rows of a slot, T tokens, V vocabulary or classes.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median, quantiles
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.pytorch_utils import Conv1D

from lorascope.adapter import own_part, stack_several
from lorascope.base_model import BaseModel, num_positions, settled_clock
from lorascope.data.tokens import special_ids
from lorascope.errors import RunError, UsageError
from lorascope.lora.layer import StackedLayerNorm, StackedLinear
from lorascope.lora.merge_plan import module_updates, replacements
from lorascope.lora.peft_io import SavedAdapter
from lorascope.lora.quantised import NF4Linear
from lorascope.lora.stack import AdapterWeights
from lorascope.losses import is_out_of_memory, release_memory

# Shares of an adapter's modules for which latency is measured too.
_SHARES = (0.25, 0.5)
# By how much logits may differ, over the largest of them, where weights are rounded once more or sums are taken otherwise.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
        prompt_tokens, new_tokens: of a row; classifiers take the prompt alone, in one pass.
        batch: rows of each adapter.
        repeats: rounds over all configurations.
        tenants: the most adapters on one base at once.
    """

    prompt_tokens: int = 128
    new_tokens: int = 32
    batch: int = 1
    repeats: int = 5
    tenants: int = 4


@dataclass(frozen=True)
class Timing:
    """One phase of one configuration: seconds of each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the rounds took longer."""
        return median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles: half of the rounds lie between."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Measured:
    """What one configuration took.

    Attributes:
        name: in words.
        kind: ``base``, ``merged``, ``adapter``, ``together`` (several adapters) or ``modules`` (some of an adapter's modules).
        adapters: slots of the stack; 0 without one.
        modules: that carry an adapter.
        rows: of a pass, all slots together.
        phases: ``prefill`` and ``per_token``, or ``forward`` for a classifier.
        against: the adapter's index among those given; None for the base and for several.
    """

    name: str
    kind: str
    adapters: int
    modules: int
    rows: int
    phases: Mapping[str, Timing]
    against: int | None = None


@dataclass(frozen=True)
class Agreement:
    """By how much a merged adapter's logits differ at most from those of the stack, and how far it moves the base's.

    Attributes:
        limit: the largest difference that the dtype's rounding explains.
    """

    difference: float
    effect: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether both compute the same; NaN never does."""
        return self.difference <= self.limit


@dataclass(frozen=True)
class Speed:
    """All measurements of one run; ``agreements`` has one for each adapter."""

    workload: Workload
    rows: tuple[Measured, ...]
    agreements: tuple[Agreement, ...]

    def ratio(self, one: Measured, other: Measured, phase: str) -> float:
        """The median over rounds of what ``one`` took over what ``other`` took."""
        return median(a / b for a, b in zip(one.phases[phase].seconds, other.phases[phase].seconds, strict=True))


@dataclass
class _Configuration:
    """Modules to put in, by name, and what is timed of them so far."""

    name: str
    kind: str
    adapters: int
    modules: int
    num_slots: int
    swaps: Mapping[str, nn.Module]
    against: int | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    logits_BV: Tensor = field(default_factory=lambda: torch.empty(0))


def measure(
    base: BaseModel, adapters: Sequence[SavedAdapter], names: Sequence[str], workload: Workload
) -> Generator[tuple[int, int], None, Speed]:
    """Time every configuration in turns.

    Args:
        adapters: at least one; where ``workload.tenants`` asks for more at once, they take turns in the slots.
        names: what to call each.

    Yields:
        Rounds done, and how many there are.

    Raises:
        AdapterError: one does not fit the base.
        UsageError: the rows are longer than the model has positions.
        RunError: memory ran out.
    """
    _check_length(base, workload)
    ids_BT = _token_ids(base, workload)
    with _memory_of(base, "the layers were made"):
        configurations = list(_configurations(base, adapters, names, workload))
    with torch.no_grad():
        for number in range(workload.repeats):
            for one in configurations:
                with _memory_of(base, f"{one.name} was measured"):
                    _time(base, one, ids_BT, workload)
            yield number + 1, workload.repeats
    rows = tuple(
        Measured(
            one.name, one.kind, one.adapters, one.modules, one.num_slots * workload.batch,
            {phase: Timing(tuple(seconds)) for phase, seconds in one.seconds.items()}, one.against,
        )
        for one in configurations
    )  # fmt: skip
    return Speed(workload, rows, tuple(_agreements(configurations, _ROUNDING[base.model.dtype])))


@contextmanager
def _memory_of(base: BaseModel, doing: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        release_memory(base.device)
        fix = "measure fewer adapters at once, or fewer rows or tokens"
        raise RunError(f"memory ran out while {doing}", where="speed", fix=fix) from None


def phases_of(base: BaseModel) -> tuple[str, ...]:
    """What a pass of this kind of model consists of."""
    return ("forward",) if base.task_type == "SEQ_CLS" else ("prefill", "per_token")


def _check_length(base: BaseModel, workload: Workload) -> None:
    most = num_positions(base.model.config)
    # A decoder of its own counts new tokens from the start.
    together = base.task_type == "CAUSAL_LM"
    needed = workload.prompt_tokens + (workload.new_tokens if together else 0)
    if most is not None and max(needed, workload.new_tokens if base.task_type != "SEQ_CLS" else 0) > most:
        extra = f" + {workload.new_tokens} new tokens" if together else ""
        raise UsageError(
            f"{workload.prompt_tokens} prompt tokens{extra} exceed the model's {most} positions",
            where="--prompt-tokens",
            fix="ask for fewer",
        )


def _token_ids(base: BaseModel, workload: Workload) -> Tensor:
    """``[B, T]`` random tokens, none of them special: how long a pass takes does not depend on which."""
    special = special_ids(base.tokenizer) if base.tokenizer is not None else {base.pad_id}
    num_embeddings = len(cast(Tensor, base.model.get_input_embeddings().weight))
    plain = torch.tensor([one for one in range(num_embeddings) if one not in special])
    chosen = torch.randint(len(plain), (workload.batch, workload.prompt_tokens), generator=torch.Generator().manual_seed(0))
    return plain[chosen].to(base.device)


def _configurations(
    base: BaseModel, adapters: Sequence[SavedAdapter], names: Sequence[str], workload: Workload
) -> Iterator[_Configuration]:
    yield _Configuration("base alone", "base", 0, 0, 1, {})
    for index, (saved, name) in enumerate(zip(adapters, names, strict=True)):
        number = len(saved.slot.placements)
        unmerged = _stacked(base, [saved], [name])  # first, for it is refused where it does not fit
        yield _Configuration(f"{name}, merged", "merged", 0, number, 1, _merged(base, saved), index)
        yield _Configuration(f"{name}, unmerged", "adapter", 1, number, 1, unmerged, index)
    first = adapters[0]
    whole = len(first.slot.placements)
    for number in sorted({max(1, round(share * whole)) for share in _SHARES} - {whole}):
        swaps = _stacked(base, [_some_modules(first, number)], names[:1])
        yield _Configuration(f"{names[0]}, {number} of {whole} modules", "modules", 1, number, 1, swaps, 0)
    for number in _together(workload.tenants):
        chosen = [index % len(adapters) for index in range(number)]
        swaps = _stacked(base, [adapters[index] for index in chosen], [names[index] for index in chosen])
        modules = len({p.target.module for index in chosen for p in adapters[index].slot.placements})
        yield _Configuration(f"{number} adapters at once", "together", number, modules, number, swaps)


def _together(most: int) -> list[int]:
    """How many adapters at once are measured: 2, 4, 8 and so on, and as many as were asked for."""
    powers = [2**power for power in range(1, most.bit_length()) if 2**power < most]
    return [*powers, *([most] if most > 1 else [])]


def _some_modules(saved: SavedAdapter, number: int) -> SavedAdapter:
    """The adapter at so many of its modules, evenly apart, its heads and biases as they were."""
    placements = saved.slot.placements
    kept = tuple(placements[index * len(placements) // number] for index in range(number))
    keys = {placement.target.key for placement in kept}
    modules = {placement.target.module for placement in kept}
    weights = saved.weights
    biases = {
        name: value
        for name, value in weights.biases.items()
        if saved.slot.bias != "lora_only" or name.removesuffix(".bias") in modules
    }
    lora_A, lora_B = ({key: group[key] for key in keys} for group in (weights.lora_A, weights.lora_B))
    cut = AdapterWeights(kept, lora_A, lora_B, biases, weights.heads)
    return replace(saved, slot=replace(saved.slot, placements=kept), weights=cut)


def _stacked(base: BaseModel, adapters: Sequence[SavedAdapter], names: Sequence[str]) -> dict[str, nn.Module]:
    """The layers of a stack, taken out of the model again; they go on working wherever they are put in."""
    # One adapter may take several slots, and errors name it as the user did.
    places = [name if name not in names[:slot] else f"{name} in slot {slot}" for slot, name in enumerate(names)]
    stack = stack_several(base, dict(zip(places, adapters, strict=True)))
    try:
        kinds = (StackedLinear, StackedLayerNorm)
        return {name: module for name, module in base.model.named_modules() if isinstance(module, kinds)}
    finally:
        stack.detach()


@torch.no_grad()
def _merged(base: BaseModel, saved: SavedAdapter) -> dict[str, nn.Module]:
    """A copy of every layer that the adapter changes, with the update, heads and biases in its weights."""
    swaps: dict[str, nn.Module] = {}
    saved = own_part(saved, base.model)
    for module, update in module_updates(saved, base.model).items():
        swaps[module] = layer = _plain_copy(base.model.get_submodule(module))
        weight = cast(Tensor, layer.weight)
        weight.copy_(weight.cpu().double() + update.full(torch.float64))
    for name, value in replacements(saved).items():
        owner, _, kind = name.rpartition(".")
        layer = swaps.setdefault(owner, copy.deepcopy(base.model.get_submodule(owner)))
        getattr(layer, kind).copy_(value)
    return swaps


def _plain_copy(layer: nn.Module) -> nn.Module:
    """A copy of its own; of a packed layer the layer in full, as nothing can be merged into four bits."""
    if not isinstance(layer, NF4Linear):
        return copy.deepcopy(layer)
    own_OD, bias = layer.weight, layer.bias
    full: nn.Linear | Conv1D
    if layer.transposed:
        full = Conv1D(layer.out_features, layer.in_features)
        full.weight = nn.Parameter(own_OD.T.contiguous())
        full.bias = nn.Parameter(torch.zeros_like(own_OD[:, 0]) if bias is None else bias.clone())
    else:
        full = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta")
        full.weight = nn.Parameter(own_OD.clone())
        if bias is not None:
            full.bias = nn.Parameter(bias.clone())
    return full.requires_grad_(False).eval()


@contextmanager
def _put_in(model: nn.Module, swaps: Mapping[str, nn.Module]) -> Iterator[None]:
    own = {name: model.get_submodule(name) for name in swaps}
    for name, module in swaps.items():
        model.set_submodule(name, module)
    try:
        yield
    finally:
        for name, module in own.items():
            model.set_submodule(name, module)


def _time(base: BaseModel, one: _Configuration, ids_BT: Tensor, workload: Workload) -> None:
    """One untimed pass, then one of every phase against the clock."""
    ids_MT = ids_BT.repeat(one.num_slots, 1)
    run = _run_classifier if base.task_type == "SEQ_CLS" else _run_generator
    with _put_in(base.model, one.swaps):
        run(base, ids_MT, min(1, workload.new_tokens))
        seconds, logits_MV = run(base, ids_MT, workload.new_tokens)
    one.logits_BV = logits_MV[: len(ids_BT)].float().cpu()
    for phase, value in seconds.items():
        one.seconds.setdefault(phase, []).append(value)


def _run_classifier(base: BaseModel, ids_MT: Tensor, _: int) -> tuple[dict[str, float], Tensor]:
    started = settled_clock(base)
    logits_MV = base.model(input_ids=ids_MT, attention_mask=torch.ones_like(ids_MT)).logits
    return {"forward": settled_clock(base) - started}, logits_MV


def _run_generator(base: BaseModel, ids_MT: Tensor, new_tokens: int) -> tuple[dict[str, float], Tensor]:
    """The prompt in one pass, then greedy tokens one by one."""
    model = cast(Any, base.model)
    mask_MT = torch.ones_like(ids_MT)
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    started = settled_clock(base)
    if base.task_type == "SEQ_2_SEQ_LM":
        given: dict[str, Any] = {
            "encoder_outputs": model.get_encoder()(input_ids=ids_MT, attention_mask=mask_MT),
            "attention_mask": mask_MT,
        }
        cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        name, next_M1 = "decoder_input_ids", torch.full_like(ids_MT[:, :1], base.start_id)
    else:
        given, cache, name, next_M1 = {}, DynamicCache(config=model.config), "input_ids", ids_MT
    logits = model(**given, **{name: next_M1}, past_key_values=cache, use_cache=True, **last).logits[:, -1]
    prefilled = settled_clock(base)
    first_MV = logits
    for _ in range(new_tokens):
        next_M1 = logits.argmax(dim=-1, keepdim=True)
        logits = model(**given, **{name: next_M1}, past_key_values=cache, use_cache=True).logits[:, -1]
    return {"prefill": prefilled - started, "per_token": (settled_clock(base) - prefilled) / max(new_tokens, 1)}, first_MV


def _agreements(configurations: Sequence[_Configuration], rounding: float) -> Iterator[Agreement]:
    base = next(one for one in configurations if one.kind == "base")
    for merged in (one for one in configurations if one.kind == "merged"):
        stacked = next(one for one in configurations if one.kind == "adapter" and one.against == merged.against)
        yield Agreement(
            float((merged.logits_BV - stacked.logits_BV).abs().max()),
            float((stacked.logits_BV - base.logits_BV).abs().max()),
            rounding * float(stacked.logits_BV.abs().max()),
        )
