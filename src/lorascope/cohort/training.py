"""One cohort, carried out: each configuration measured alone, the stack trained, evaluated, exported and stored.

Reads the steps of ``train`` and the progress of ``evaluate`` and says in plain code what follows from each: store it, drop
a slot that diverged, go on. Does not know the study's other cohorts (``run``). Floor: ``cohort``.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace

from lorascope.adapter import stack_saved
from lorascope.base_model import BaseModel, weights_checksum
from lorascope.cohort.checkpoint import Checkpoints, Progress, discard
from lorascope.cohort.events import CohortStarted, Event, Events, ProbeDone, TrialEnded, Warned
from lorascope.cohort.export import finish_trial
from lorascope.cohort.planner import Cohort
from lorascope.cohort.probe import Heap, MemoryMeter, SoloCost, measure_alone
from lorascope.cohort.proposals import Pruner
from lorascope.cohort.rungs import Rungs, judging
from lorascope.config import Study, TrainConfig, TrialConfig
from lorascope.data.task import Notice, Task
from lorascope.errors import CheckFailed, LorascopeError, StoreError
from lorascope.evaluate import Decoded, Evaluation, evaluate
from lorascope.judge import Judge
from lorascope.lora.full import installed
from lorascope.lora.peft_io import read_adapter
from lorascope.lora.stack import Slot, Stack
from lorascope.plan import parameters, slot_of
from lorascope.store import Store
from lorascope.train import SlotStep, StepResult, train

FINAL = ("done", "diverged", "pruned")
_FLUSH_SECONDS = 2.0


@dataclass(frozen=True)
class Bench:
    """What cohorts are carried out with.

    Attributes:
        checkpoint_seconds: see ``Checkpoints``.
        pruner: stops the worse trials while they train.
    """

    store: Store
    study: Study
    task: Task
    base: BaseModel
    judge: Judge | None
    checkpoint_seconds: float | None = None
    pruner: Pruner | None = None


def run_cohort(bench: Bench, cohort: Cohort) -> Events:
    """Train, evaluate and store one cohort, from its latest checkpoint where there is one.

    Whatever ends it, none of its trials stays ``running``.

    What raises in a cohort of several may be one trial's doing, or that of all of them together (memory): each half then
    runs again on its own, down to single trials. A single trial that raises has failed.
    """
    store = bench.store
    running = {trial.trial: trial for trial in cohort.pending}
    checkpoints = Checkpoints(store, cohort, bench.task, bench.base, bench.judge, bench.checkpoint_seconds)
    failure: str | None = None
    try:
        judges, reasons = judging(bench.pruner, bench.study, cohort, bench.task)
        yield from warn(store, reasons)
        rungs = None if judges is None else Rungs(store, bench.study, bench.base, cohort, bench.task, bench.judge, judges)
        with closing(_cohort_events(bench, cohort, checkpoints, rungs)) as events:
            for event in events:
                if isinstance(event, TrialEnded):
                    del running[event.trial]
                yield event
    except CheckFailed as error:
        checkpoints.discard()
        _set_status(store, running, "failed", _one_line(error))
        raise
    except (StoreError, KeyboardInterrupt, GeneratorExit):
        with suppress(StoreError):  # the first one is what has to be told
            _set_status(store, running, "interrupted", None)
        raise
    except Exception as error:
        # Only its text: the error itself holds the frames, and with them the stack's memory.
        failure = _one_line(error)
    if failure is not None and len(running) > 1:
        for half in _halves(store, cohort, list(running.values())):
            message = f"cohort {cohort.name} failed ({failure}); {len(half.trials)} of its trials start again as {half.name}"
            yield from warn(store, [Notice("retry", len(half.trials), f"cohort {cohort.name}", message)])
            yield from run_cohort(bench, half)
    elif failure is not None:
        _set_status(store, running, "failed", failure)
        for name in running:
            yield TrialEnded(name, "failed", {}, failure)


def _halves(store: Store, cohort: Cohort, trials: Sequence[TrialConfig]) -> list[Cohort]:
    """The trials that a failed cohort left over, as two cohorts that start again."""
    _set_status(store, [trial.trial for trial in trials], "planned", None)
    middle = len(trials) // 2
    halves = [
        replace(cohort, name=cohort.name + part, trials=tuple(members), ended=())
        for part, members in (("a", trials[:middle]), ("b", trials[middle:]))
    ]
    for half in halves:
        store.set_cohort(half.name, half.record())
    discard(store, cohort.name)
    return halves


def _set_status(store: Store, names: Iterable[str], status: str, error: str | None) -> None:
    """Set the status of those trials that have not reached a final one."""
    final = {row.trial for row in store.trials() if row.status in FINAL}
    for name in names:
        if name not in final:
            store.update(name, status=status, error=error)


def _one_line(error: Exception) -> str:
    message = str(error) if isinstance(error, LorascopeError) else f"{type(error).__name__}: {error}"
    return " ".join(message.split())[:500]


def _cohort_events(bench: Bench, cohort: Cohort, checkpoints: Checkpoints, rungs: Rungs | None) -> Events:
    store, task, base, judge = bench.store, bench.task, bench.base, bench.judge
    trials = {trial.trial: trial for trial in cohort.pending}
    slots = [slot_of(trial, base.model, base.heads) for trial in cohort.trials]
    _begin(store, task, base, cohort, [slot for slot in slots if slot.name in trials])
    num_steps = cohort.num_steps(len(task.train))
    configs = {name: trial.flat() for name, trial in trials.items()}
    yield CohortStarted(cohort.name, tuple(trials), num_steps, cohort.predicted_peak_bytes, configs)
    if num_steps:
        yield from _probe(store, task, base, cohort, slots)
    meter = MemoryMeter(base.device)
    imported, known = cohort.trials[0].adapter.path, len(base.warnings)
    if imported is None:
        stack = installed(base.model, slots, base.heads, base.initial_head, cohort.trials[0].train.base_dropout)
    else:
        stack = stack_saved(base, read_adapter(imported, slots[0].name), imported)
    try:
        progress, told = checkpoints.restore(stack, trials) if num_steps else (Progress(0, None), [])
        for trial in trials:
            store.clear_trial(trial, progress.step)
        yield from warn(store, told)
        for trial in trials:
            yield from warn(store, [Notice("adapter", 1, str(imported), text) for text in base.warnings[known:]], trial)
        if num_steps:
            progress = yield from _train(bench, stack, cohort, checkpoints, progress, meter, rungs)
            # The plan is about training; evaluation bounds its memory by ``batch_tokens``.
            store.set_cohort(cohort.name, {**store.cohorts()[cohort.name], "measured_peak_bytes": progress.peak_bytes})
        if not any(slot.name in trials for slot in stack.slots):
            checkpoints.discard()
            return
        evaluations = yield from evaluate(stack, base, task, bench.study.evaluate, judge)
        if cohort.trials[0].adapter.method == "full":
            stack.detach()  # what has to be unchanged are the base's own weights, which come back
        _check_frozen(stack, base)
        peak = max(progress.peak_bytes, meter.peak_bytes())
        yield from warn(store, _memory_notice(evaluations[0], bench.study.evaluate.batch_tokens, cohort.name))
        if judge is not None and judge.num_truncated:
            message = f"cohort {cohort.name}: {judge.num_truncated} pairs were cut to the judge's {judge.max_length} tokens"
            yield from warn(store, [Notice("judge", judge.num_truncated, "evaluate.judge", message)])
            judge.num_truncated = 0
        for index, (slot, evaluation) in enumerate(zip(list(stack.slots), evaluations, strict=True)):
            if slot.name not in trials:
                continue
            if num_steps:
                rate = progress.num_examples / progress.seconds
                store.update(slot.name, train_seconds=progress.seconds, examples_per_second=rate)
            store.update(slot.name, peak_memory_bytes=peak)
            told = [Notice("evaluation", 1, task.eval_split, warning) for warning in evaluation.warnings]
            yield from warn(store, [*told, *_unfinished(evaluation.decoded, task.eval_split)], slot.name)
            ended, told = finish_trial(store, base, trials[slot.name], stack.read(index), slot, evaluation)
            yield from warn(store, told, slot.name)
            yield ended
        checkpoints.discard()
    finally:
        stack.detach()


def _unfinished(decoded: Sequence[Decoded], split: str) -> list[Notice]:
    return [
        Notice("unfinished", one.unfinished, split, f"{one.decoding.label}: {one.unfinished_message}")
        for one in decoded
        if one.unfinished
    ]


def _begin(store: Store, task: Task, base: BaseModel, cohort: Cohort, slots: Sequence[Slot]) -> None:
    """Mark the cohort's trials as running, with all that is known of them beforehand."""
    for slot in slots:
        trainable, total, peft_total = parameters(base.model, slot, base.heads)
        store.update(
            slot.name,
            status="running",
            error=None,
            trainable_params=trainable,
            total_params=total,
            peft_total_params=peft_total,
            data_checksum=task.checksum,
            base_checksum=base.checksum,
            cohort=cohort.name,
        )


def _probe(store: Store, task: Task, base: BaseModel, cohort: Cohort, slots: Sequence[Slot]) -> Events:
    """Measure each configuration of the cohort alone, unless another seed of it was measured already."""
    for trial, slot in zip(cohort.trials, slots, strict=True):
        if trial.trial in cohort.ended:
            continue
        rows = {row.configuration: row for row in store.trials() if row.solo_peak_memory_bytes is not None}
        earlier = rows.get(trial.configuration)
        if earlier is None:
            cost = measure_alone(base, slot, _settings(trial, cohort), task.train)
            yield ProbeDone(trial.configuration, cost)
        else:
            cost = SoloCost(
                earlier.solo_train_seconds_per_epoch or 0.0,
                earlier.solo_examples_per_second or 0.0,
                earlier.solo_peak_memory_bytes or 0,
            )
        store.update(
            trial.trial,
            solo_train_seconds_per_epoch=cost.seconds_per_epoch,
            solo_examples_per_second=cost.examples_per_second,
            solo_peak_memory_bytes=cost.peak_memory_bytes,
        )


def _settings(trial: TrialConfig, cohort: Cohort) -> TrainConfig:
    """The trial's, with the micro-batch that the cohort was planned with."""
    return trial.train.model_copy(update={"micro_batch_size": cohort.micro_batch_size})


def _train(
    bench: Bench,
    stack: Stack,
    cohort: Cohort,
    checkpoints: Checkpoints,
    progress: Progress,
    meter: MemoryMeter,
    rungs: Rungs | None,
) -> Generator[Event, None, Progress]:
    """Train the stack from ``progress`` on, storing curves as they grow and checkpoints as they are due."""
    store, task, base = bench.store, bench.task, bench.base
    settings = {
        trial.trial: trial.train.model_copy(update={"micro_batch_size": progress.micro_batch_size}) for trial in cohort.trials
    }
    buffers: dict[str, list[dict[str, float | int]]] = {trial.trial: [] for trial in cohort.pending}
    flushed = time.perf_counter()
    earlier, size = progress, progress.micro_batch_size
    heap = Heap(cohort.predicted_peak_bytes or 0) if base.device.type == "cpu" else None

    def saved() -> list[Notice]:
        """A checkpoint of the state at hand, after the curves that lead there."""
        _flush(store, buffers)
        peak = max(earlier.peak_bytes, meter.peak_bytes())
        return checkpoints.save(stack, replace(progress, peak_bytes=peak))

    if rungs is not None and rungs.at(progress.step):  # saved before the rung was done
        yield from rungs.judged(stack, progress.step, progress.seconds, progress.num_examples)
    for step in train(stack, base, task.train, settings, progress.step):
        progress = progress.after(step)
        if heap is not None:
            heap.settle()
        for name, rows in buffers.items():
            if name in step.slots:
                rows.append(_step_row(step, step.slots[name]))
        if progress.step == earlier.step + 1 and stack.base_gradients():
            raise CheckFailed(f"{stack.base_gradients()} base parameters receive a gradient", where="base model")
        smaller = step.micro_batch_size != size
        size = step.micro_batch_size
        told: list[Event] = list(_note_smaller(store, cohort, step)) if smaller else []
        diverged = [name for name, slot_step in step.slots.items() if not slot_step.finite]
        if diverged or time.perf_counter() - flushed > _FLUSH_SECONDS or progress.step == step.num_steps:
            _flush(store, buffers)
            flushed = time.perf_counter()
        if diverged:
            told += _drop_diverged(store, stack, diverged, buffers, step.step)
        # From here to the next step nothing changes any more that a checkpoint holds.
        try:
            yield replace(step, slots={name: step.slots[name] for name in buffers if name in step.slots})
            yield from told
            if rungs is not None and stack.slots and rungs.at(progress.step):
                _flush(store, buffers)
                yield from rungs.judged(stack, progress.step, progress.seconds, progress.num_examples)
        except GeneratorExit:
            with suppress(StoreError):  # of the warning; the curves have been flushed or raise
                list(warn(store, saved()))
            raise
        if not any(slot.name in buffers for slot in stack.slots):
            break
        if progress.step < step.num_steps and (smaller or checkpoints.due()):
            yield from warn(store, saved())
    progress = replace(progress, peak_bytes=max(earlier.peak_bytes, meter.peak_bytes()))
    if any(slot.name in buffers for slot in stack.slots):
        yield from warn(store, checkpoints.save(stack, progress))
    return progress


def _drop_diverged(store: Store, stack: Stack, diverged: Sequence[str], wanted: Iterable[str], step: int) -> list[Event]:
    """Take slots whose numbers are lost out of the stack; nothing is told of those whose end was told before."""
    message = f"loss, gradient or weights are not finite at step {step}"
    ended = [name for name in diverged if name in wanted]
    for name in ended:
        store.update(name, status="diverged", error=message)
    stack.keep([slot.name for slot in stack.slots if slot.name not in diverged])
    return [TrialEnded(name, "diverged", {}, message) for name in ended]


def _note_smaller(store: Store, cohort: Cohort, step: StepResult) -> Events:
    """Memory ran out: the plan changes, so that a resumed cohort begins with what fitted."""
    size = step.micro_batch_size
    store.set_cohort(cohort.name, {**store.cohorts()[cohort.name], "micro_batch_size": size})
    message = f"memory ran out at step {step.step}; micro-batches of {size} from there on, with the same gradients"
    yield from warn(store, [Notice("out_of_memory", 1, f"cohort {cohort.name}", message)])


def _step_row(step: StepResult, slot_step: SlotStep) -> dict[str, float | int]:
    return {
        "step": step.step,
        "epoch": step.epoch,
        "loss": slot_step.loss,
        "grad_norm": slot_step.grad_norm,
        "learning_rate": slot_step.learning_rate,
        "seconds": step.seconds,
        "tokens": step.num_tokens,
    }


def _flush(store: Store, buffers: Mapping[str, list[dict[str, float | int]]]) -> None:
    for name, rows in buffers.items():
        if rows:
            store.add_steps(name, rows)
            rows.clear()


def _check_frozen(stack: Stack, base: BaseModel) -> None:
    if stack.base_gradients() or weights_checksum(base.model, base.heads) != base.checksum:
        raise CheckFailed(
            "the base model's weights changed while training", where="base model", fix="report this; it is a bug"
        )


def _memory_notice(evaluation: Evaluation, wanted_tokens: int, cohort: str) -> list[Notice]:
    """What it took to evaluate where memory ran out."""
    message = f"memory ran out; cohort {cohort} was evaluated in batches of {evaluation.batch_tokens} tokens"
    return [Notice("memory", 1, "evaluate.batch_tokens", message)] if evaluation.batch_tokens < wanted_tokens else []


def warn(store: Store, notices: Iterable[Notice], trial: str | None = None) -> Events:
    """Store what is not stored yet, with the study or a trial, and show all."""
    known = {(row["trial"], row["kind"], row["where"], row["message"]) for row in store.warnings()}
    for notice in notices:
        if (trial, notice.kind, notice.where, notice.message) not in known:
            store.add_warning(trial, notice.kind, notice.count, notice.where, notice.message)
        yield Warned(notice)
