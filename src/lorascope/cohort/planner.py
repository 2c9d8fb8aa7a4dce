"""Which trials train together, and in how large micro-batches: a memory model with one measurement per group.

Trials that can share steps form a group. Before a group is cut into cohorts, one forward and backward pass of a single slot,
the envelope of the group's slots, over the largest batch says what a stored token takes:

    peak = process, base and packs  +  N · (state + tokens · bytes per token)  +  logits of one chunk

Bytes per token are measured with one slot, and again with as many as seem to fit.

A cohort gets as many slots as fit, with whole batches if one slot fits so, else with the largest micro-batch that does. Knows
memory and who may share steps. Does not train. Floor: ``cohort``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from lorascope.base_model import BaseModel
from lorascope.cohort.kernels import Kernels
from lorascope.cohort.probe import MemoryMeter, measure_footprint
from lorascope.config import BaseModelConfig, Study, TrainConfig, TrialConfig
from lorascope.data.packing import batch_order
from lorascope.data.task import Example, Notice, RawTask
from lorascope.data.tree import sibling_groups
from lorascope.errors import ModelError
from lorascope.lora.stack import Placement, Slot, base_dropouts, count_trainable
from lorascope.losses import follows_trees
from lorascope.memory import free_bytes, total_bytes
from lorascope.plan import (
    LOGIT_POSITIONS,
    STATE_BYTES,
    STEP_BYTES,
    Load,
    check_lengths,
    largest_load,
    meta_model,
    parameters,
    position_bytes,
    product_dtype,
    slot_of,
    token_bytes,
)

Skeletons = Mapping[BaseModelConfig, tuple[nn.Module, tuple[str, ...]]]
_MOST_SLOTS = 16
# Share of the free memory that a cohort may take by forecast; packed weights may take half of it.
_MEMORY_SHARE = 0.7
# Of a longer training the later steps are not looked at: where one of them is larger, memory that runs out halves it.
_STEPS_LOOKED_AT = 10_000
# Steps that a stack of several is measured on besides the largest, and the share of all steps that they may be: batches of
# other shapes break the allocator's heap into pieces.
_FURTHER_STEPS = 5
_FURTHER_SHARE = 0.1
# How much more the heap takes in a whole training than in those few steps: on SST-2 1.4 times after 20 steps, 2.2 after 60.
_HEAP_MARGIN = 1.7
_BIASES = ("none", "lora_only", "all")


@dataclass(frozen=True)
class Group:
    """Trials that can share every step.

    Attributes:
        trains: False where they are only evaluated.
        keep_seeds: the seeds of a configuration belong into one cohort, where they fit into one.
    """

    trials: tuple[TrialConfig, ...]
    trains: bool
    keep_seeds: bool = False


@dataclass(frozen=True)
class Forecast:
    """Peak memory as a function of the number of slots.

    Attributes:
        before_bytes: of the process (of the allocator on CUDA) with the base and its packed weights, before a stack.
        state_bytes: values, gradients and moments of one slot.
        token_bytes: what a stored token of one slot takes; ``position_bytes`` what a logit row does.
        tokens: of one slot's largest micro-batch; ``positions`` those among them that predict a target.
    """

    before_bytes: int
    state_bytes: int
    token_bytes: float
    position_bytes: int
    tokens: int
    positions: int

    def peak_bytes(self, num_slots: int) -> int:
        """Of a cohort of so many slots."""
        logits = _logit_bytes(num_slots, self.positions, self.position_bytes)
        return self.before_bytes + round(num_slots * (self.state_bytes + self.tokens * self.token_bytes) + logits)


@dataclass(frozen=True)
class Cohort:
    """Trials trained, or only evaluated, in one stack.

    Attributes:
        micro_batch_size: most rows of a micro-batch; None for all.
        packs: rows are prefix trees.
        forecast: None where nothing trains.
        changes: a notice for what could not be replayed.
        ended: members that reached their end in an earlier part of the study. They run along, so that the others' sums are
            rounded as before, and nothing more is stored of them.
    """

    name: str
    trials: tuple[TrialConfig, ...]
    trains: bool
    kernels: Kernels
    micro_batch_size: int | None = None
    packs: bool = False
    forecast: Forecast | None = None
    changes: tuple[Notice, ...] = ()
    ended: tuple[str, ...] = ()

    @property
    def pending(self) -> tuple[TrialConfig, ...]:
        """The trials whose results are wanted."""
        return tuple(trial for trial in self.trials if trial.trial not in self.ended)

    def num_steps(self, num_examples: int) -> int:
        """Optimiser steps of each of its trials."""
        return self.trials[0].train.num_steps(num_examples) if self.trains else 0

    @property
    def predicted_peak_bytes(self) -> int | None:
        """Memory at the peak of training."""
        return None if self.forecast is None else self.forecast.peak_bytes(len(self.trials))

    def record(self) -> dict[str, Any]:
        """The plan as it is stored."""
        return {
            "trials": [trial.trial for trial in self.trials],
            "base": self.trials[0].base.model_dump(mode="json"),
            "micro_batch_size": self.micro_batch_size,
            "rows": "trees" if self.packs else "padded",
            "kernels": self.kernels.record(),
            "forecast": None if self.forecast is None else asdict(self.forecast),
            "predicted_peak_bytes": self.predicted_peak_bytes,
            "measured_peak_bytes": None,
        }


def find_impossible(study: Study, raw: RawTask, trials: Sequence[TrialConfig], device: str = "cpu") -> Skeletons:
    """Every base on the meta device; every trial is found to be possible on its own.

    Raises:
        LorascopeError: one is not.
    """
    skeletons: dict[BaseModelConfig, tuple[nn.Module, tuple[str, ...]]] = {}
    for trial in trials:
        if trial.base not in skeletons:
            skeletons[trial.base] = meta_model(trial, raw.task_type, len(raw.labels))
            check_lengths(study.task, study.evaluate, trial.base, generates=raw.generates)
        if trial.train.base_dropout:
            base_dropouts(skeletons[trial.base][0])
        full = trial.adapter.method == "full"
        needed, there = STATE_BYTES * _num_trained(trial, *skeletons[trial.base]), total_bytes(device)
        if needed > there:
            raise ModelError(
                f"what it trains needs {needed / 2**30:.1f} GiB with gradients and AdamW, of {there / 2**30:.1f} GiB",
                where=f"trial {trial.trial} ({'full' if full else f'r {trial.adapter.r}'})",
                fix="choose a smaller base, or leave full fine-tuning out" if full else "lower r or name fewer targets",
            )
    return skeletons


def packed_weights_budget(device: str, most_bytes: int | None = None) -> int:
    """How many bytes of packed weights leave as much again for training.

    Args:
        most_bytes: that the whole process may take at its peak.
    """
    free = free_bytes(device) * _MEMORY_SHARE
    if most_bytes is not None:
        free = min(free, max(0, most_bytes - MemoryMeter(torch.device(device)).peak_bytes()))
    return int(free / 2)


def form_groups(trials: Sequence[TrialConfig], skeletons: Skeletons, *, keep_seeds: bool = False) -> list[Group]:
    """Trials that can share steps, seed by seed. An adapter from disk, and what trains nothing, is only evaluated.

    Full fine-tuning changes the base itself, so each such trial is a group of its own, after those that
    share it.
    """
    groups: dict[tuple[Any, ...], list[TrialConfig]] = {}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        settings = trial.train
        trains_base = trial.adapter.method == "full"
        key = (
            _num_trained(trial, *skeletons[trial.base]) > 0,
            trial.base.model_dump_json(),
            trial.adapter.path,
            settings.epochs,
            settings.batch_size,
            settings.micro_batch_size,
            settings.max_steps,
            settings.base_dropout,
            trial.trial if trains_base else None,
        )
        groups.setdefault(key, []).append(trial)
    found = [Group(tuple(members), bool(key[0]), keep_seeds) for key, members in groups.items()]
    bases = list(dict.fromkeys(group.trials[0].base for group in found))
    return sorted(found, key=lambda group: (bases.index(group.trials[0].base), group.trials[0].adapter.method == "full"))


def replay(
    group: Group,
    kernels: Kernels,
    stored: Mapping[str, Mapping[str, Any]],
    first: int,
    packs: bool,
    ended: Mapping[str, TrialConfig],
) -> list[Cohort]:
    """The cohorts that an earlier part of the study planned for trials of the group, as far as these still have to run.

    A cohort keeps its members, those among ``ended`` too, and with them its name: a trial's bits depend on its neighbours'
    number and shapes. Where one of them is in neither, the rest is numbered from ``first``, and a notice says so.
    """
    plan_of = {trial: name for name, plan in stored.items() for trial in plan["trials"]}
    cohorts: list[Cohort] = []
    renamed = 0
    for name in dict.fromkeys(plan_of[trial.trial] for trial in group.trials if trial.trial in plan_of):
        plan = stored[name]
        members = tuple(trial for trial in group.trials if plan_of.get(trial.trial) == name)
        changes: list[Notice] = []
        new_name = name
        known = {**ended, **{trial.trial: trial for trial in members}}
        finished = tuple(trial for trial in plan["trials"] if trial in ended)
        if all(trial in known for trial in plan["trials"]):
            members = tuple(known[trial] for trial in plan["trials"])
        else:
            finished = ()
            new_name, renamed = f"c{first + renamed}", renamed + 1
            message = f"{len(members)} of the {len(plan['trials'])} trials of cohort {name} are left; they run as {new_name}"
            changes.append(Notice("replay", len(members), f"cohort {name}", message))
        if group.trains and (plan["rows"] == "trees") != packs:
            message = f"cohort {name} was planned with rows as {plan['rows']}, which is now found to be wrong or not needed"
            changes.append(Notice("replay", len(members), f"cohort {name}", message))
        forecast = None if plan["forecast"] is None else Forecast(**plan["forecast"])
        size = plan["micro_batch_size"]
        cohorts.append(Cohort(new_name, members, group.trains, kernels, size, packs, forecast, tuple(changes), finished))
    return cohorts


def cut_group(
    group: Group,
    base: BaseModel,
    examples: Sequence[Example],
    kernels: Kernels,
    first: int,
    most_slots: int | None = None,
    most_bytes: int | None = None,
) -> list[Cohort]:
    """Cut a group into cohorts that fit into memory, numbered from ``first``; a slot is measured on the base if it trains.

    Args:
        most_bytes: that the whole process may take at its peak, by forecast; by default what is free.
    """
    most = most_slots or _MOST_SLOTS
    settings = group.trials[0].train
    if not group.trains or settings.num_steps(len(examples)) == 0:
        parts = _parts(group.trials, 1 if group.trials[0].adapter.path is not None else most)
        return [Cohort(f"c{first + index}", part, group.trains, kernels) for index, part in enumerate(parts)]
    packs = follows_trees(base, examples)
    loads = _Loads(examples, settings, packs)
    one, notices = _measured(group.trials, 1, base, examples, loads)
    num_slots, size = _fitting(group.trials, one, most, base, loads, most_bytes)
    while num_slots > 1 and not notices:
        # Many slots leave more of the allocator's heap in pieces than one does.
        many, failed = _measured(group.trials, num_slots, base, examples, loads, size)
        if not failed and many.micro_batch_size == size:
            one = many
            num_slots, size = _fitting(group.trials, one, num_slots, base, loads, most_bytes)
            break
        notices = failed
        num_slots //= 2
    cohorts: list[Cohort] = []
    for part in (_whole_parts if group.keep_seeds else _parts)(group.trials, num_slots):
        load, _ = loads.largest((trial.seed for trial in part), size, len(part), one.position_tokens)
        name = f"c{first + len(cohorts)}"
        cohorts.append(Cohort(name, part, True, kernels, size, packs, one.forecast(load), notices))
    return cohorts


def _fitting(
    trials: Sequence[TrialConfig],
    one: _One,
    most_slots: int,
    base: BaseModel,
    loads: _Loads,
    most_bytes: int | None,
) -> tuple[int, int | None]:
    """How many slots fit into memory, and the micro-batch with which they do."""
    settings, seeds = trials[0].train, [trial.seed for trial in trials]
    budget = free_bytes(str(base.device)) * _MEMORY_SHARE
    if most_bytes is not None:
        budget = min(budget, most_bytes - one.before_bytes)
    size = one.micro_batch_size
    while True:
        # Cut as for one slot, which is the coarsest: more share the cost of a pass, and are cut finer.
        load, step = loads.largest(seeds, size, 1, one.position_tokens)
        forecast = one.forecast(load)
        most = min(most_slots, len(trials))
        fitting = [num for num in range(1, most + 1) if forecast.peak_bytes(num) - forecast.before_bytes <= budget]
        rows = min(size or settings.batch_size, len(step[0]))
        if fitting or rows == 1:
            return max(fitting, default=1), size
        size = rows // 2


def envelope(slots: Sequence[Slot]) -> Slot:
    """One slot that takes what the widest stack of these does: every target at its largest rank, dropout, biases."""
    placements: dict[str, Placement] = {}
    for placement in (placement for slot in slots for placement in slot.placements):
        known = placements.get(placement.target.key)
        placements[placement.target.key] = placement if known is None or placement.r > known.r else known
    if slots[0].trains_base:
        return slots[0]
    bias = max((slot.bias for slot in slots), key=_BIASES.index)
    return Slot("envelope", slots[0].seed, tuple(placements.values()), max(slot.dropout for slot in slots), bias)


@dataclass(frozen=True)
class _One:
    """What one slot of a group takes."""

    before_bytes: int
    state_bytes: int
    token_bytes: float
    position_bytes: int
    micro_batch_size: int | None

    @property
    def position_tokens(self) -> float:
        return self.position_bytes / max(1.0, self.token_bytes)

    def forecast(self, load: Load) -> Forecast:
        state = self.state_bytes
        return Forecast(self.before_bytes, state, self.token_bytes, self.position_bytes, load.tokens, load.positions)


def _measured(
    trials: Sequence[TrialConfig],
    num_slots: int,
    base: BaseModel,
    examples: Sequence[Example],
    loads: _Loads,
    size: int | None = None,
) -> tuple[_One, tuple[Notice, ...]]:
    """What a slot takes in a stack of so many, each as wide as the widest; by the model's shape where measuring fails.

    Args:
        size: most rows of a micro-batch; None for what the settings say.
    """
    widest = envelope([slot_of(trial, base.model, base.heads) for trial in trials])
    slots = [replace(widest, name=f"{widest.name} {index}", seed=trials[index].seed) for index in range(num_slots)]
    settings, item = trials[0].train, getattr(torch, product_dtype(trials[0])).itemsize
    logits = position_bytes(base.model, item)
    state = STATE_BYTES * count_trainable(base.model, widest, base.heads)
    expected = token_bytes(base.model, widest, item)
    free = free_bytes(str(base.device)) * _MEMORY_SHARE
    weight = logits / max(1, expected)
    size = size or settings.micro_batch_size
    seeds = sorted({slot.seed for slot in slots})
    while True:
        load, step = loads.largest(seeds, size, num_slots, weight)
        rows = min(size or settings.batch_size, len(step[0]))
        # That several fit was measured with one.
        if num_slots > 1 or rows == 1 or load.tokens * expected + _logit_bytes(1, load.positions, logits) <= free:
            break
        size = rows // 2
    further = loads.first(seeds, _FURTHER_STEPS) if num_slots > 1 else []
    steps = [dict(zip(seeds, rows, strict=True)) for rows in (step, *further)]
    try:
        seen = measure_footprint(base, slots, settings.model_copy(update={"micro_batch_size": size}), examples, steps)
    except Exception as error:  # whatever it is, the trials that it is about will raise it again, and fail
        message = f"the memory of {len(trials)} trials is estimated, not measured: {' '.join(str(error).split())[:200]}"
        notice = Notice("not_measured", len(trials), "planner", message)
        return _One(MemoryMeter(base.device).peak_bytes(), state, expected, logits, size), (notice,)
    if seen.micro_batch_size != size:
        load, _ = loads.largest(seeds, seen.micro_batch_size, num_slots, weight)
    # The gradients of a whole base break the heap into pieces as several slots do, and its step comes on top.
    trains_base = widest.trains_base
    margin = _HEAP_MARGIN if (num_slots > 1 or trains_base) and base.device.type == "cpu" else 1.0
    taken = margin * (seen.peak_bytes - seen.before_bytes - _logit_bytes(num_slots, load.positions, logits))
    # Where the system's peak cannot be reset, nothing seems to be taken.
    per_token = max(taken / (num_slots * load.tokens), expected / 2)
    before = seen.before_bytes - num_slots * state
    if trains_base:
        state += STEP_BYTES * state // STATE_BYTES
    return _One(before, state, per_token, logits, seen.micro_batch_size), ()


class _Loads:
    """The largest micro-batches of a group, by seeds, micro-batch and number of slots."""

    def __init__(self, examples: Sequence[Example], settings: TrainConfig, packs: bool) -> None:
        self._examples = examples
        self._settings = settings
        self._packs = packs
        self._groups = sibling_groups(examples)
        self._steps: dict[tuple[int, ...], list[list[list[int]]]] = {}

    def largest(
        self, seeds: Iterable[int], size: int | None, num_slots: int, position_tokens: float
    ) -> tuple[Load, Sequence[Sequence[int]]]:
        """See ``plan.largest_load``; the steps are the training's first 10,000."""
        chosen = tuple(sorted(set(seeds)))
        if chosen not in self._steps:
            num_steps = min(_STEPS_LOOKED_AT, self._settings.num_steps(len(self._examples)))
            self._steps[chosen] = list(islice(self._epochs(chosen), num_steps))
        steps, weight = self._steps[chosen], position_tokens
        return largest_load(self._examples, steps, size, num_slots=num_slots, packs=self._packs, position_tokens=weight)

    def first(self, seeds: Sequence[int], count: int) -> list[list[list[int]]]:
        """The first steps, as far as measuring them is worth it: for each the rows of every seed."""
        worth = int(_FURTHER_SHARE * self._settings.num_steps(len(self._examples)))
        return list(islice(self._epochs(seeds), min(count, worth)))

    def _epochs(self, seeds: Sequence[int]) -> Iterator[list[list[int]]]:
        num_examples, settings = len(self._examples), self._settings
        epochs = -(-settings.num_steps(num_examples) // settings.steps_per_epoch(num_examples))
        for epoch in range(epochs):
            orders = [batch_order(self._groups, settings.batch_size, seed, epoch) for seed in seeds]
            yield from (list(step) for step in zip(*orders, strict=True))


def _logit_bytes(num_slots: int, positions: int, position_bytes: int) -> int:
    return min(num_slots * positions, LOGIT_POSITIONS) * position_bytes


def _parts(trials: Sequence[TrialConfig], size: int) -> list[tuple[TrialConfig, ...]]:
    return [tuple(trials[start : start + size]) for start in range(0, len(trials), size)]


def _whole_parts(trials: Sequence[TrialConfig], size: int) -> list[tuple[TrialConfig, ...]]:
    """Parts that hold each configuration with all of its seeds; as ``_parts`` where one of them does not fit into a part."""
    configurations: dict[str, list[TrialConfig]] = {}
    for trial in trials:
        configurations.setdefault(trial.configuration, []).append(trial)
    if any(len(members) > size for members in configurations.values()):
        return _parts(trials, size)
    parts: list[list[TrialConfig]] = [[]]
    for members in configurations.values():
        if len(parts[-1]) + len(members) > size:
            parts.append([])
        parts[-1] += members
    return [tuple(sorted(part, key=lambda trial: trial.seed)) for part in parts]


def _num_trained(trial: TrialConfig, model: nn.Module, heads: Sequence[str]) -> int:
    """Parameters that the trial trains; 0 for an adapter from disk."""
    slot = slot_of(trial, model, heads)
    return 0 if trial.adapter.path is not None else parameters(model, slot, heads)[0]
