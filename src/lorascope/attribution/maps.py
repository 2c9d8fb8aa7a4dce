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
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lorascope.attribution.one_run import NUM_SLOTS, tie, tied_slots, train_with_coalitions
from lorascope.attribution.players import SAMPLING_SEED, Game, is_settled, retrained_coalitions
from lorascope.base_model import BaseModel, load_base, weights_checksum
from lorascope.cohort.deadline import Deadline
from lorascope.cohort.events import CohortStarted, Event, Events, MapEnded
from lorascope.cohort.kernels import recorded_threads
from lorascope.cohort.run import kernels_of, prepare
from lorascope.cohort.tracked import follow, open_tracking
from lorascope.cohort.training import warn
from lorascope.config import TrialConfig
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
from lorascope.tracking import Tracking

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

    @property
    def num_steps(self) -> int:
        """Of a training with random coalitions; none where an adapter is there."""
        if self.game.design.game == "reliance":
            return 0
        return max(1, round(self.game.design.length * self.game.study.train.num_steps(len(self.task.train))))


def draw_maps(
    game: Game,
    directory: Path,
    *,
    device: str = "cpu",
    seeds: Sequence[int] | None = None,
    most_bytes: int | None = None,
    deadline: Deadline | None = None,
) -> Events:
    """Make the map of each seed that has none, in a study whose trials have been run.

    A map is stored when it is whole. One that is interrupted, by closing the generator too, is made again from its start.

    Args:
        seeds: of the study; by default all.
        most_bytes: that the process may take: weights are packed only as far as it allows.
        deadline: no map begins that would not end in time, and one that does not is left; a stored warning says so.

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
        if deadline is not None and deadline.left_seconds <= 0:
            yield from warn(store, _left_over(len(pending), deadline))
            return
        bench = _open(game, store, device)
        tracking = open_tracking(store, game.study)
        with recorded_threads(kernels_of(store, game.study.base), bench.base.device) as threads:
            _, changes = prepare(store, bench.base, game.study.base, bench.task, device, most_bytes)
            yield from warn(store, [*threads, *changes])
            for position, seed in enumerate(pending):
                if not (yield from _within(bench, seed, tracking, deadline)):
                    assert deadline is not None
                    yield from warn(store, _left_over(len(pending) - position, deadline))
                    return
                if weights_checksum(bench.base.model, bench.base.heads) != bench.base.checksum:
                    raise CheckFailed("the base model's weights changed", where="base model", fix="report this; it is a bug")


def _within(bench: _Bench, seed: int, tracking: Tracking, deadline: Deadline | None) -> Generator[Event, None, bool]:
    """Make one map, if it is forecast to end in time; False where it is not begun, or is left at the deadline."""
    draw = _reliance if bench.game.design.game == "reliance" else _one_run
    if deadline is not None and _forecast_seconds(bench, deadline) > deadline.left_seconds:
        return False
    with closing(follow(draw(bench, seed), bench.store, tracking, _untried(bench, seed))) as events:
        for event in events:
            yield event
            if deadline is not None and deadline.left_seconds <= 0 and not isinstance(event, MapEnded):
                return False
    return True


def _forecast_seconds(bench: _Bench, deadline: Deadline) -> float:
    """How long a map takes: as the longest of this study's, else by the speed of its trials; 0 where nothing is measured.

    By that speed an evaluation is taken to cost what training on its examples would.
    """
    records = bench.store.maps(bench.game.design.game).values()
    if records:
        return max(float(record.get("train_seconds", 0.0) + record["read_seconds"]) for record in records)
    speeds = [row.solo_examples_per_second for row in bench.store.trials() if row.solo_examples_per_second]
    if not deadline.knows and speeds:
        deadline.note_alone(min(speeds))
    num_read = bench.game.most_coalitions * len(bench.task.eval)
    num_trained = bench.num_steps * bench.game.study.train.batch_size
    return deadline.forecast_seconds(num_trained + num_read, 0, 0) if deadline.knows else 0.0


def _left_over(num_maps: int, deadline: Deadline) -> list[Notice]:
    message = f"the budget of {deadline.seconds:.0f} s ends the study: {num_maps} of its maps are left; go on with --resume"
    return [Notice("budget", num_maps, "--budget", message)]


def _untried(bench: _Bench, seed: int) -> dict[str, dict[str, Any]]:
    """What trackers are told of the one training, which is no trial."""
    about = {"seed": seed, "game": "one_run", "steps": bench.num_steps, "coalitions_per_step": NUM_SLOTS}
    return {_run_name(seed): {**_whole_trial(bench.game, seed).flat(), **about}}


def _whole_trial(game: Game, seed: int) -> TrialConfig:
    """The trial that trains all players."""
    return next(trial for trial in game.trials([game.everyone]) if trial.seed == seed)


def _run_name(seed: int) -> str:
    return f"one-run-s{seed}"


def _open(game: Game, store: Store, device: str) -> _Bench:
    """The data and the base again."""
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
    trial = _whole_trial(game, seed)
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
    yield _ended(f"reliance-s{seed}", reading)


def _one_run(bench: _Bench, seed: int) -> Events:
    """Train with random coalitions, and read the coalitions off: those that were retrained first."""
    game, store = bench.game, bench.store
    trial = _whole_trial(game, seed)
    slot = replace(slot_of(trial, bench.base.model, bench.base.heads), name=_run_name(seed))
    settings, num_steps = trial.train, bench.num_steps
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
        yield MapEnded(slot.name, "diverged", train_seconds=seconds)
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
    yield _ended(slot.name, reading, seconds)


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


def _ended(name: str, reading: Mapping[str, Any], train_seconds: float = 0.0) -> MapEnded:
    return MapEnded(name, "done", len(reading["coalitions"]), train_seconds, reading["read_seconds"])


def _missing(store: Store, seed: int, reason: str) -> Events:
    yield from warn(store, [Notice("map", 1, "design", f"no map of seed {seed}: {reason}")])


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
