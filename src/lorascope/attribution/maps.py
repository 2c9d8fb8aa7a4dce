"""What every coalition is worth, read off one trained adapter by masking the others' adapters.

In *reliance* the adapter is a trial's, trained with all players; in *one_run* it is trained here, with random coalitions. The
worths of one seed are a *map*, stored whole: a map that was interrupted is made again, one that is there stays. Carries out
what comes after a study's trials, and yields events for whoever shows them. Does not judge what it reads (``document``).
Floor: ``attribution``.

Legend: K slots.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lorascope.attribution.one_run import NUM_SLOTS, tie, tied_slots, train_with_coalitions
from lorascope.attribution.players import SAMPLING_SEED, Game, is_settled, retrained_coalitions
from lorascope.base_model import BaseModel, load_base, weights_checksum
from lorascope.cohort.events import CohortStarted, Event, Events, Warned
from lorascope.cohort.kernels import install_kernels
from lorascope.cohort.planner import packed_weights_budget
from lorascope.data.task import Notice, Task, encode_task, read_task
from lorascope.errors import CheckFailed, RunError, StoreError
from lorascope.evaluate import Evaluation, EvaluationRun, evaluate
from lorascope.evaluate.likelihood import token_losses
from lorascope.judge import Judge, load_judge
from lorascope.lora.peft_io import read_adapter, sliced
from lorascope.lora.stack import AdapterWeights, Slot, Stack, count_adapter
from lorascope.lora.targets import resolve
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.plan import slot_of
from lorascope.shapley import Coalition, coalitions_of
from lorascope.store import Store

# Coalitions that are evaluated in one stack.
_READ_SLOTS = 16
_LOSSES = ("eval_loss", "perplexity")


@dataclass(frozen=True)
class _Bench:
    """What the maps of a study are made with."""

    game: Game
    store: Store
    base: BaseModel
    task: Task
    judge: Judge | None
    keys: Mapping[str, list[str]]

    @property
    def wanted(self) -> list[str] | None:
        """Metrics to read; None for what costs no more than the loss."""
        return self.game.design.values


def draw_maps(game: Game, directory: Path, *, device: str = "cpu", seeds: Sequence[int] | None = None) -> Events:
    """Make the map of each seed that has none, in a study whose trials have been run.

    Args:
        seeds: of the study; by default all.

    Raises:
        StoreError: the data or the base changed since the trials ended.
        CheckFailed: the base model's weights changed.
    """
    with Store.create(directory, game.study, resume=True) as store:
        kind = game.design.game
        there = store.maps(kind)
        pending = [seed for seed in (game.study.seeds if seeds is None else seeds) if seed not in there]
        if not pending:
            return
        bench = _open(game, store, device)
        for seed in pending:
            if kind == "reliance":
                yield from _reliance(bench, seed)
            else:
                yield from _one_run(bench, seed)
            if weights_checksum(bench.base.model, bench.base.heads) != bench.base.checksum:
                raise CheckFailed("the base model's weights changed", where="base model", fix="report this; it is a bug")


def _open(game: Game, store: Store, device: str) -> _Bench:
    """The data and the base again, with the kernels that the study's trials were trained with."""
    study = game.study
    raw = read_task(study.task, study.evaluate.split)
    base = load_base(study.base, raw.task_type, raw.labels, device)
    task = encode_task(replace(raw, task_type=base.task_type), base.tokenizer, study.task.max_length)
    for row in store.trials():
        if row.status != "done" or game.coalition_of(row.config) is None:
            continue
        if row.data_checksum != task.checksum or row.base_checksum != base.checksum:
            what = "data" if row.data_checksum != task.checksum else "base model's weights"
            fix = "put it back to go on, or choose another directory with --out"
            raise StoreError(f"the {what} changed since trial {row.trial} ended", where=str(store.directory), fix=fix)
    wanted = study.base.model_dump(mode="json")
    stored = next((plan["kernels"] for plan in store.cohorts().values() if plan["base"] == wanted), None)
    install_kernels(base, packed_weights_budget(device), stored)
    keys = {
        player: [target.key for target in resolve(base.model, list(targets), base.heads)]
        for player, targets in game.players.items()
    }
    asks_judge = study.evaluate.judge is not None and "c_score" in (game.design.values or ())
    judge = load_judge(study.evaluate.judge, device) if asks_judge and study.evaluate.judge is not None else None
    return _Bench(game, store, base, task, judge, keys)


def _reliance(bench: _Bench, seed: int) -> Events:
    """Read the coalitions off the trial that trained all players with this seed."""
    game, store = bench.game, bench.store
    trial = next(trial for trial in game.trials([game.everyone]) if trial.seed == seed)
    row = next((row for row in store.trials() if row.trial == trial.trial), None)
    if row is None or row.status != "done" or row.adapter is None:
        state = "not there" if row is None else row.status
        yield from _missing(store, seed, f"the trial of all players, {trial.trial}, is {state}")
        return
    slot = slot_of(trial, bench.base.model, bench.base.heads)
    where = store.directory / row.adapter
    weights = sliced(read_adapter(where), slot, str(where))
    reading = yield from _read(bench, slot, weights, [])
    store.set_map("reliance", seed, {"seed": seed, "trial": trial.trial, **_facts(bench, slot), **reading})


def _one_run(bench: _Bench, seed: int) -> Events:
    """Train with random coalitions, and read the coalitions off: those that were retrained first."""
    game, store = bench.game, bench.store
    trial = next(trial for trial in game.trials([game.everyone]) if trial.seed == seed)
    slot = replace(slot_of(trial, bench.base.model, bench.base.heads), name=f"one-run-s{seed}")
    settings = trial.train
    num_steps = max(1, round(game.design.length * settings.num_steps(len(bench.task.train))))
    yield CohortStarted(slot.name, (slot.name,), num_steps)
    stack = Stack(
        bench.base.model, tied_slots(slot, NUM_SLOTS), bench.base.heads, bench.base.initial_head, settings.base_dropout
    )
    seconds, finite = 0.0, True
    try:
        tie(stack)
        steps = train_with_coalitions(stack, bench.base, bench.task.train, settings, num_steps, bench.keys)
        for step in steps:
            seconds += step.seconds
            finite = step.slots[slot.name].finite
            yield step
        weights = stack.read(0)
    finally:
        stack.detach()
    if not finite:
        yield from _missing(store, seed, "the one training diverged; a lower learning rate may help")
        return
    reading = yield from _read(bench, slot, weights, retrained_coalitions(game))
    num_examples = len(bench.task.train)
    facts = {
        "seed": seed,
        **_facts(bench, slot),
        "steps": num_steps,
        "slots": NUM_SLOTS,
        "trial_epochs": settings.num_steps(num_examples) / settings.steps_per_epoch(num_examples),
        "train_seconds": seconds,
    }
    store.set_map("one_run", seed, {**facts, **reading})


def _facts(bench: _Bench, slot: Slot) -> dict[str, Any]:
    """What a map is of."""
    parameters = {
        player: count_adapter(
            bench.base.model, replace(slot, placements=tuple(one for one in slot.placements if one.target.key in set(keys)))
        )
        for player, keys in bench.keys.items()
    }
    return {
        "players": {player: list(targets) for player, targets in bench.game.players.items()},
        "parameters": parameters,
        "data_checksum": bench.task.checksum,
        "base_checksum": bench.base.checksum,
    }


def _missing(store: Store, seed: int, reason: str) -> Events:
    message = f"no map of seed {seed}: {reason}"
    if all(row["message"] != message for row in store.warnings()):
        store.add_warning(None, "map", 1, "design", message)
    yield Warned(Notice("map", 1, "design", message))


def _read(
    bench: _Bench, slot: Slot, weights: AdapterWeights, first: Sequence[Coalition]
) -> Generator[Event, None, dict[str, Any]]:
    """The worths of all coalitions, or of as many as it takes; ``first`` are read in any case.

    Returns:
        ``coalitions`` (bit i is the i-th player), ``metrics`` (their worths in the same order, NaN where an evaluation was not
        finite), ``stopped`` (``all``, ``width`` or ``coalitions``) and ``read_seconds``.
    """
    game, started = bench.game, time.perf_counter()
    pending = _reading_order(game, first)
    read: list[Coalition] = []
    metrics: dict[str, list[float]] = {}
    slots = [replace(slot, name=f"{slot.name}#{index}") for index in range(min(_READ_SLOTS, game.most_coalitions))]
    stack = Stack(bench.base.model, slots, bench.base.heads)
    stopped = "all" if game.is_exact else "coalitions"
    try:
        stack.write(0, weights)
        tie(stack)
        while batch := list(islice(pending, stack.num_slots)):
            if len(batch) < stack.num_slots:
                stack.keep([one.name for one in slots[: len(batch)]])
            for index, coalition in enumerate(batch):
                stack.set_active(index, [key for player in coalition for key in bench.keys[player]])
            evaluations = yield from _valued(bench, stack)
            read += batch
            _append(metrics, evaluations, bench.wanted)
            if not game.is_exact and len(read) >= len(first) and is_settled(game, _by_coalition(metrics, read)):
                stopped = "width"
                break
    finally:
        stack.detach()
    if not metrics:
        raise RunError("no coalition gives a finite loss", where=f"map of seed {slot.seed}", fix="lower the learning rate")
    players = list(game.players)
    masks = [sum(1 << players.index(player) for player in coalition) for coalition in read]
    return {"coalitions": masks, "metrics": metrics, "stopped": stopped, "read_seconds": time.perf_counter() - started}


def _reading_order(game: Game, first: Sequence[Coalition]) -> Iterator[Coalition]:
    everything = game.coalitions() if game.is_exact else coalitions_of(list(game.players), SAMPLING_SEED)
    known = set(first)
    rest = (coalition for coalition in everything if coalition not in known)
    yield from first
    yield from islice(rest, max(0, game.most_coalitions - len(first)))


@torch.no_grad()
def _valued(bench: _Bench, stack: Stack) -> EvaluationRun:
    """One evaluation per slot; of a task that produces text no more than the loss, unless more was asked for."""
    settings = bench.game.study.evaluate
    if bench.task.task_type == "SEQ_CLS" or set(bench.wanted or ()) - set(_LOSSES):
        return (yield from evaluate(stack, bench.base, bench.task, settings, bench.judge))
    return (yield from token_losses(stack, bench.base, bench.task, settings))


def _append(metrics: dict[str, list[float]], evaluations: Sequence[Evaluation], wanted: Sequence[str] | None) -> None:
    known = len(next(iter(metrics.values()), []))
    for index, evaluation in enumerate(evaluations):
        for name, value in evaluation.metrics.items():
            if name in HIGHER_IS_BETTER and (wanted is None or name in wanted):
                column = metrics.setdefault(name, [])
                column += [float("nan")] * (known + index - len(column))
                column.append(value)
    for column in metrics.values():
        column += [float("nan")] * (known + len(evaluations) - len(column))


def _by_coalition(metrics: Mapping[str, list[float]], read: Sequence[Coalition]) -> dict[str, dict[Coalition, list[float]]]:
    return {name: {one: [value] for one, value in zip(read, column, strict=True)} for name, column in metrics.items()}
