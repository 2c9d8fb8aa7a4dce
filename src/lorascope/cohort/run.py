"""A study, carried out: trials into cohorts, cohorts through training and evaluation, everything into the store.

Reads the steps of ``train`` and the progress of ``evaluate`` and says in plain code what follows from each: store it, drop
a slot that diverged, export, go on. Yields events for whoever shows them. Does not know terminals. Floor: ``cohort``.
"""

from __future__ import annotations

import gc
import json
import platform
import re
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from torch import nn

from lorascope import __version__
from lorascope.base_model import BaseModel, hardware, load_base, weights_checksum
from lorascope.cohort.probe import MemoryMeter, SoloCost, measure_alone
from lorascope.cohort.single import base_path, stack_saved
from lorascope.config import BaseModelConfig, Study, TrainConfig, TrialConfig
from lorascope.data.task import Notice, RawTask, Task, encode_task, read_task
from lorascope.errors import CheckFailed, LorascopeError, ModelError, StoreError
from lorascope.evaluate import Evaluation, EvaluationStep, evaluate
from lorascope.lora.peft_io import HEAD_FILE, read_adapter, write_adapter
from lorascope.lora.stack import AdapterWeights, Slot, Stack
from lorascope.plan import STATE_BYTES, check_lengths, meta_model, parameters, slot_bytes, slot_of
from lorascope.store import Store, atomic_directory, write_atomically
from lorascope.train import SlotStep, StepResult, train

FINAL = ("done", "diverged", "pruned")
_MOST_SLOTS = 16
# Share of the free memory that a cohort may take by estimate.
_MEMORY_SHARE = 0.5
_FLUSH_SECONDS = 2.0


@dataclass(frozen=True)
class StudyStarted:
    """Data are read and every trial is known to be possible; ``pending`` trials, ``trial_steps`` in all, remain to be run."""

    task: Task
    num_trials: int
    pending: int
    num_cohorts: int
    trial_steps: int


@dataclass(frozen=True)
class CohortStarted:
    """A cohort begins: these trials on one copy of the base."""

    cohort: str
    trials: tuple[str, ...]
    num_steps: int


@dataclass(frozen=True)
class ProbeDone:
    """One configuration was measured alone."""

    configuration: str
    cost: SoloCost


@dataclass(frozen=True)
class TrialEnded:
    """A trial reached a final state."""

    trial: str
    status: str
    metrics: Mapping[str, float]
    error: str | None = None


@dataclass(frozen=True)
class Warned:
    """Something was truncated, dropped, replaced or clipped; it is stored too."""

    notice: Notice


Event = StudyStarted | CohortStarted | ProbeDone | TrialEnded | Warned | StepResult | EvaluationStep
Events = Generator[Event, None, None]
Skeletons = Mapping[BaseModelConfig, tuple[nn.Module, tuple[str, ...]]]


@dataclass(frozen=True)
class Cohort:
    """Trials that share every step; ``trains`` is False where they are only evaluated."""

    name: str
    trials: tuple[TrialConfig, ...]
    trains: bool

    def num_steps(self, num_examples: int) -> int:
        """Optimiser steps of each of its trials."""
        return self.trials[0].train.num_steps(num_examples) if self.trains else 0


def run_study(
    study: Study,
    trials: Sequence[TrialConfig],
    directory: Path,
    *,
    resume: bool = False,
    most_slots: int | None = None,
    device: str = "cpu",
) -> Events:
    """Carry out ``trials`` of ``study`` in ``directory``.

    Everything that can be wrong with the study, the data or the base is found before the directory is made. Close the
    generator to interrupt the study: what is done stays done, and what was running is marked as interrupted.

    Args:
        resume: go on with a study begun earlier: trials that are done, diverged or pruned stay as they are.
        most_slots: upper bound on trials in one cohort; by default what memory allows, 16 at most.

    Raises:
        LorascopeError: the study cannot be run at all, or the base model's weights changed. A trial that fails is recorded
            as failed and the study goes on.
    """
    if not resume:
        Store.refuse_existing(directory)
    raw = read_task(study.task, study.evaluate.split)
    skeletons = _skeletons(study, raw, trials, device)
    loaded = trials[0].base
    base = load_base(loaded, raw.task_type, raw.labels, device)
    task = encode_task(raw, base.tokenizer, study.task.max_length)
    with Store.create(directory, study, resume=resume) as store:
        store.add_trials(trials)
        _check_unchanged(store, loaded, task, base)
        status = {row.trial: row.status for row in store.trials()}
        pending = [trial for trial in trials if status[trial.trial] not in FINAL]
        cohorts = form_cohorts(pending, skeletons, task, most_slots, device, first=_next_cohort(store))
        trial_steps = sum(cohort.num_steps(len(task.train)) * len(cohort.trials) for cohort in cohorts)
        yield StudyStarted(task, len(trials), len(pending), len(cohorts), trial_steps)
        _describe(store, task, base)
        yield from _warn(store, [*_notices(task, base, loaded), *_dropout_notice(trials)])
        for cohort in cohorts:
            wanted = cohort.trials[0].base
            if wanted != loaded:
                del base
                gc.collect()  # the earlier model goes before the next one comes
                base, loaded = load_base(wanted, raw.task_type, raw.labels, device), wanted
                # Another base has another tokenizer.
                task = encode_task(raw, base.tokenizer, study.task.max_length)
                yield from _warn(store, _notices(task, base, loaded))
            yield from _run_cohort(store, study, task, base, cohort)


def _skeletons(study: Study, raw: RawTask, trials: Sequence[TrialConfig], device: str = "cpu") -> Skeletons:
    """Every base on the meta device; every trial is found to be possible on its own.

    Raises:
        LorascopeError: one is not.
    """
    skeletons: dict[BaseModelConfig, tuple[nn.Module, tuple[str, ...]]] = {}
    for trial in trials:
        if trial.base not in skeletons:
            skeletons[trial.base] = meta_model(trial, raw.task_type, len(raw.labels))
            check_lengths(study.task, study.evaluate, trial.base, generates=raw.generates)
        needed, there = STATE_BYTES * _num_trained(trial, *skeletons[trial.base]), _memory_bytes(device)[1]
        if needed > there:
            raise ModelError(
                f"what it trains needs {needed / 2**30:.1f} GiB with gradients and AdamW, of {there / 2**30:.1f} GiB",
                where=f"trial {trial.trial} (r {trial.adapter.r})",
                fix="lower r or name fewer targets",
            )
    return skeletons


def _num_trained(trial: TrialConfig, model: nn.Module, heads: Sequence[str]) -> int:
    """Parameters that the trial trains; 0 for an adapter from disk."""
    slot = slot_of(trial, model, heads)
    return 0 if trial.adapter.path is not None else parameters(model, slot, heads)[0]


def _memory_bytes(device: str) -> tuple[int, int]:
    """Free memory and all of it."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def form_cohorts(
    trials: Sequence[TrialConfig],
    skeletons: Skeletons,
    task: Task,
    most_slots: int | None = None,
    device: str = "cpu",
    first: int = 1,
) -> list[Cohort]:
    """Trials that can share steps, seed by seed, cut so that a cohort's activations fit into memory.

    An adapter from disk, and a trial in which nothing trains, are only evaluated. Cohorts are numbered from ``first``.
    """
    groups: dict[tuple[Any, ...], list[TrialConfig]] = {}
    num_trained: dict[str, int] = {}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        settings = trial.train
        num_trained[trial.trial] = _num_trained(trial, *skeletons[trial.base])
        key = (
            num_trained[trial.trial] > 0,
            trial.base.model_dump_json(),
            trial.adapter.path,
            settings.epochs,
            settings.batch_size,
            settings.micro_batch_size,
            settings.max_steps,
            settings.base_dropout,
        )
        groups.setdefault(key, []).append(trial)
    cohorts: list[Cohort] = []
    for (trains, *_), members in groups.items():
        size = 1
        if members[0].adapter.path is None:
            most = max(num_trained[trial.trial] for trial in members)
            size = slots_that_fit(members[0], skeletons[members[0].base][0], task, most, most_slots, device)
        for start in range(0, len(members), size):
            cohorts.append(Cohort(f"c{first + len(cohorts)}", tuple(members[start : start + size]), trains))
    return cohorts


def slots_that_fit(
    trial: TrialConfig, model: nn.Module, task: Task, num_trained: int, most_slots: int | None, device: str
) -> int:
    """Slots that take at most half of the free memory by estimate; at least one."""
    longest = max(len(example.input_ids) for example in task.train)
    rows = min(trial.train.micro_batch_size or trial.train.batch_size, trial.train.batch_size, len(task.train))
    per_slot = slot_bytes(model, rows, longest, getattr(torch, trial.base.dtype).itemsize, num_trained)
    fitting = int(_memory_bytes(device)[0] * _MEMORY_SHARE // max(1, per_slot))
    return max(1, min(fitting, most_slots or _MOST_SLOTS))


def _next_cohort(store: Store) -> int:
    """One above the highest number of a cohort that the store knows: a resumed study's names do not repeat."""
    numbers = [re.match(r"c(\d+)", row.cohort or "") for row in store.trials()]
    return 1 + max((int(number[1]) for number in numbers if number), default=0)


def _check_unchanged(store: Store, config: BaseModelConfig, task: Task, base: BaseModel) -> None:
    """A study goes on only with the data and the base of the trials that have ended.

    Raises:
        StoreError: one of them has changed since.
    """
    for row in store.trials():
        if row.status not in FINAL:
            continue
        same_base = all(row.config.get(key) == value for key, value in config.model_dump(mode="json").items())
        if row.data_checksum not in (None, task.checksum):
            what = "data"
        elif same_base and row.base_checksum not in (None, base.checksum):
            what = "base model's weights"
        else:
            continue
        raise StoreError(
            f"the {what} changed since trial {row.trial} ended",
            where=str(store.directory),
            fix="put them back to go on, or choose another directory with --out",
        )


def _dropout_notice(trials: Sequence[TrialConfig]) -> list[Notice]:
    """What ``base_dropout`` leaves out: the stack draws the masks of dropout modules, not those inside attention."""
    count = sum(trial.train.base_dropout for trial in trials)
    message = f"in {count} trials the base model's dropout acts, but not on attention probabilities"
    return [Notice("base_dropout", count, "train.base_dropout", message)] if count else []


def _notices(task: Task, base: BaseModel, config: BaseModelConfig) -> list[Notice]:
    return [*task.notices, *(Notice("base", 1, config.model, warning) for warning in base.warnings)]


def _warn(store: Store, notices: Iterable[Notice], trial: str | None = None) -> Events:
    """Store what is not stored yet, with the study or a trial, and show all."""
    known = {(row["trial"], row["kind"], row["where"], row["message"]) for row in store.warnings()}
    for notice in notices:
        if (trial, notice.kind, notice.where, notice.message) not in known:
            store.add_warning(trial, notice.kind, notice.count, notice.where, notice.message)
        yield Warned(notice)


def _run_cohort(store: Store, study: Study, task: Task, base: BaseModel, cohort: Cohort) -> Events:
    """Train, evaluate and store one cohort. Whatever ends it, none of its trials stays ``running``.

    What raises in a cohort of several may be one trial's doing, or that of all of them together (memory): each half then
    runs again on its own, down to single trials. A single trial that raises has failed.
    """
    running = {trial.trial: trial for trial in cohort.trials}
    failure: str | None = None
    try:
        with closing(_cohort_events(store, study, task, base, cohort)) as events:
            for event in events:
                if isinstance(event, TrialEnded):
                    del running[event.trial]
                yield event
    except CheckFailed as error:
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
        yield from _run_halves(store, study, task, base, cohort, list(running.values()), failure)
    elif failure is not None:
        _set_status(store, running, "failed", failure)
        for name in running:
            yield TrialEnded(name, "failed", {}, failure)


def _run_halves(
    store: Store, study: Study, task: Task, base: BaseModel, cohort: Cohort, trials: Sequence[TrialConfig], failure: str
) -> Events:
    """Run the trials that a failed cohort left over again, as two cohorts."""
    _set_status(store, [trial.trial for trial in trials], "planned", None)
    message = f"cohort {cohort.name} failed ({failure}); its {len(trials)} trials start again as two cohorts"
    yield from _warn(store, [Notice("retry", len(trials), f"cohort {cohort.name}", message)])
    middle = len(trials) // 2
    for part, members in (("a", trials[:middle]), ("b", trials[middle:])):
        yield from _run_cohort(store, study, task, base, Cohort(cohort.name + part, tuple(members), cohort.trains))


def _set_status(store: Store, names: Iterable[str], status: str, error: str | None) -> None:
    """Set the status of those trials that have not reached a final one."""
    final = {row.trial for row in store.trials() if row.status in FINAL}
    for name in names:
        if name not in final:
            store.update(name, status=status, error=error)


def _one_line(error: Exception) -> str:
    message = str(error) if isinstance(error, LorascopeError) else f"{type(error).__name__}: {error}"
    return " ".join(message.split())[:500]


def _cohort_events(store: Store, study: Study, task: Task, base: BaseModel, cohort: Cohort) -> Events:
    trials = {trial.trial: trial for trial in cohort.trials}
    slots = [slot_of(trial, base.model, base.heads) for trial in cohort.trials]
    _begin(store, task, base, cohort, slots)
    num_steps = cohort.num_steps(len(task.train))
    yield CohortStarted(cohort.name, tuple(trials), num_steps)
    if num_steps:
        yield from _probe(store, task, base, cohort, slots)
    meter = MemoryMeter(base.device)
    imported = cohort.trials[0].adapter.path
    if imported is None:
        stack = Stack(base.model, slots, base.heads, base.initial_head, cohort.trials[0].train.base_dropout)
    else:
        stack = stack_saved(base, read_adapter(imported, slots[0].name), imported)
    try:
        if num_steps:
            settings = {trial.trial: trial.train for trial in cohort.trials}
            seconds, num_examples = yield from _train(store, stack, base, task, settings)
        if not stack.slots:
            return
        evaluations = yield from evaluate(stack, base, task, study.evaluate)
        _check_frozen(stack, base)
        peak = meter.peak_bytes()
        for index, (slot, evaluation) in enumerate(zip(list(stack.slots), evaluations, strict=True)):
            if num_steps:
                store.update(slot.name, train_seconds=seconds, examples_per_second=num_examples / seconds)
            store.update(slot.name, peak_memory_bytes=peak)
            if evaluation.unfinished:
                count, limit = evaluation.unfinished, study.evaluate.decoding[0].max_new_tokens
                message = f"{count} answers were cut at max_new_tokens {limit}, before their end token"
                yield from _warn(store, [Notice("unfinished", count, task.eval_split, message)], slot.name)
            yield _finish(store, base, trials[slot.name], stack.read(index), slot, evaluation)
    finally:
        stack.detach()


def _begin(store: Store, task: Task, base: BaseModel, cohort: Cohort, slots: Sequence[Slot]) -> None:
    """Mark the cohort's trials as running, with all that is known of them beforehand."""
    for slot in slots:
        trainable, total, peft_total = parameters(base.model, slot, base.heads)
        store.clear_trial(slot.name)
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
        rows = {row.trial.rpartition("-s")[0]: row for row in store.trials() if row.solo_peak_memory_bytes is not None}
        earlier = rows.get(trial.configuration)
        if earlier is None:
            cost = measure_alone(base, slot, trial.train, task.train)
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


def _train(
    store: Store, stack: Stack, base: BaseModel, task: Task, settings: Mapping[str, TrainConfig]
) -> Generator[Event, None, tuple[float, int]]:
    """Train the stack, storing curves as they grow; returns the seconds that the steps took and one slot's examples."""
    buffers: dict[str, list[dict[str, float | int]]] = {slot.name: [] for slot in stack.slots}
    flushed = time.perf_counter()
    seconds, num_examples = 0.0, 0
    for step in train(stack, base, task.train, settings):
        seconds += step.seconds
        num_examples += step.num_examples
        for name, slot_step in step.slots.items():
            buffers[name].append(_step_row(step, slot_step))
        if step.step == 0 and stack.base_gradients():
            raise CheckFailed(f"{stack.base_gradients()} base parameters receive a gradient", where="base model")
        diverged = [name for name, slot_step in step.slots.items() if not slot_step.finite]
        if diverged or time.perf_counter() - flushed > _FLUSH_SECONDS or step.step + 1 == step.num_steps:
            _flush(store, buffers)
            flushed = time.perf_counter()
        yield step
        for name in diverged:
            message = f"loss or gradient is not finite at step {step.step}"
            store.update(name, status="diverged", error=message)
            yield TrialEnded(name, "diverged", {}, message)
        if diverged:
            stack.keep([slot.name for slot in stack.slots if slot.name not in diverged])
    return seconds, num_examples


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


def _finish(
    store: Store, base: BaseModel, trial: TrialConfig, weights: AdapterWeights, slot: Slot, evaluation: Evaluation
) -> TrialEnded:
    """Write what a trial leaves behind; its status comes last, so that ``done`` means that all of it is there."""
    if not evaluation.finite:
        message = "the evaluation's loss or logits are not finite"
        store.update(slot.name, status="diverged", error=message)
        return TrialEnded(slot.name, "diverged", {}, message)
    adapter = _write_adapter(store, base, trial, weights, slot, evaluation)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in evaluation.predictions)
    write_atomically(store.directory / "trials" / slot.name / "predictions.jsonl", lines)
    store.set_metrics(slot.name, evaluation.metrics)
    store.update(slot.name, adapter=adapter, status="done")
    return TrialEnded(slot.name, "done", evaluation.metrics)


def _write_adapter(
    store: Store, base: BaseModel, trial: TrialConfig, weights: AdapterWeights, slot: Slot, evaluation: Evaluation
) -> str | None:
    """The trial's adapter in PEFT's format, by its path within the study; None where there is nothing but a head."""
    if trial.adapter.path is not None or not (weights.placements or weights.biases or weights.heads):
        return None
    model = base_path(trial.base)
    home = store.directory / "trials" / slot.name
    place = home / ("adapter" if weights.placements else "head")
    with atomic_directory(place) as directory:
        try:
            write_adapter(
                directory,
                weights,
                slot,
                base.model,
                heads=base.heads,
                base_model=model,
                revision=trial.base.revision,
                task_type=base.task_type,
            )
        except SafetensorError as error:  # it wraps the system's error, a full disk among them
            raise StoreError(f"cannot write ({error})", where=str(place), fix="free some space, then use --resume") from error
        if weights.placements:
            (directory / "README.md").write_text(_card(store, trial, model, evaluation), encoding="utf-8")
    if weights.placements:
        return str(place.relative_to(store.directory))
    (place / HEAD_FILE).replace(home / HEAD_FILE)
    place.rmdir()
    return None


def _card(store: Store, trial: TrialConfig, model: str, evaluation: Evaluation) -> str:
    """A short model card in the hub's form."""
    config = trial.flat()
    rows = "\n".join(f"| {name} | {value} |" for name, value in config.items())
    scores = "\n".join(f"| {name} | {value:.4f} |" for name, value in evaluation.metrics.items())
    task = store.study.task
    return (
        f"---\nlibrary_name: peft\nbase_model: {model}\ntags: [lora, lorascope]\n---\n\n"
        f"# {store.study.name}: {trial.trial}\n\n"
        f"LoRA adapter for `{model}`, trained on {task.name} by Lorascope {__version__}.\n\n"
        f"| metric ({store.study.evaluate.split}) | value |\n|---|---|\n{scores}\n\n"
        f"| setting | value |\n|---|---|\n| seed | {trial.seed} |\n{rows}\n\n"
        '```python\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base_model, "this directory")\n```\n'
    )


def _check_frozen(stack: Stack, base: BaseModel) -> None:
    if stack.base_gradients() or weights_checksum(base.model, base.heads) != base.checksum:
        raise CheckFailed(
            "the base model's weights changed while training", where="base model", fix="report this; it is a bug"
        )


def _describe(store: Store, task: Task, base: BaseModel) -> None:
    import peft
    import transformers

    versions = {
        "lorascope": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    store.set_info("versions", versions)
    store.set_info("hardware", hardware())
    store.set_info("base_checksum", base.checksum)
    store.set_info("data", {"checksum": task.checksum, "shape": task.shape, "split": task.eval_split})
