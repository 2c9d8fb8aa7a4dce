"""A study, carried out: trials into cohorts, cohorts through training and evaluation, everything into the store.

Reads the steps of ``train`` and the progress of ``evaluate`` and says in plain code what follows from each: store it, drop
a slot that diverged, export, go on. Yields events for whoever shows them. Does not know terminals. Floor: ``cohort``.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from lorascope import __version__
from lorascope.base_model import BaseModel, hardware, load_base, read_config, weights_checksum
from lorascope.cohort.probe import MemoryMeter, SoloCost, measure_alone
from lorascope.cohort.single import stack_saved
from lorascope.config import BaseModelConfig, Study, TrialConfig
from lorascope.data.task import Notice, RawTask, Task, encode_task, read_task
from lorascope.errors import CheckFailed, LorascopeError, ModelError, StoreError
from lorascope.evaluate import Evaluation, EvaluationStep, evaluate
from lorascope.lora.peft_io import HEAD_FILE, read_adapter, write_adapter
from lorascope.lora.stack import AdapterWeights, Slot, Stack
from lorascope.plan import activation_bytes_per_token, meta_model, parameters, slot_of
from lorascope.store import Store, atomic_directory, write_atomically
from lorascope.train import StepResult, train

FINAL = ("done", "diverged", "pruned")
_MOST_SLOTS = 16
# Share of the free memory that a cohort's activations may take by estimate.
_MEMORY_SHARE = 0.5
_FLUSH_SECONDS = 2.0


@dataclass(frozen=True)
class StudyStarted:
    """Data are read and every trial is known to be possible; ``pending`` trials remain to be run."""

    task: Task
    num_trials: int
    pending: int
    num_cohorts: int


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


@dataclass
class _Cohort:
    name: str
    trials: list[TrialConfig]


def run_study(
    study: Study,
    trials: Sequence[TrialConfig],
    directory: Path,
    *,
    resume: bool = False,
    most_slots: int | None = None,
    device: str = "cpu",
) -> Iterator[Event]:
    """Carry out ``trials`` of ``study`` in ``directory``.

    Everything that can be wrong with the study, the data or the base is found before the directory is made.

    Args:
        resume: go on with a study begun earlier: trials that are done, diverged or pruned stay as they are.
        most_slots: upper bound on trials in one cohort; by default what memory allows, 16 at most.

    Raises:
        LorascopeError: the study cannot be run at all, or the base model's weights changed. A trial that fails is recorded
            as failed and the study goes on.
    """
    raw = read_task(study.task, study.evaluate.split)
    for trial in trials:
        meta, heads = meta_model(trial, raw.task_type, len(raw.labels))
        slot_of(trial, meta, heads)
        _check_lengths(study, raw, trial.base)
    base = load_base(trials[0].base, raw.task_type, raw.labels, device)
    task = encode_task(raw, base.tokenizer, study.task.max_length)
    with Store.create(directory, study, resume=resume) as store:
        store.add_trials(trials)
        status = {row.trial: row.status for row in store.trials()}
        pending = [trial for trial in trials if status[trial.trial] not in FINAL]
        cohorts = form_cohorts(pending, base, task, most_slots)
        yield StudyStarted(task, len(trials), len(pending), len(cohorts))
        _describe(store, task, base)
        notices = [*task.notices, *(Notice("base", 1, study.base.model, warning) for warning in base.warnings)]
        known = {(row["kind"], row["message"]) for row in store.warnings()}
        for notice in notices:
            if (notice.kind, notice.message) not in known:
                store.add_warning(None, notice.kind, notice.count, notice.where, notice.message)
            yield Warned(notice)
        loaded = trials[0].base
        for cohort in cohorts:
            wanted = cohort.trials[0].base
            if wanted != loaded:
                base, loaded = load_base(wanted, raw.task_type, raw.labels, device), wanted
            yield from _run_cohort(store, study, task, base, cohort)


def form_cohorts(trials: Sequence[TrialConfig], base: BaseModel, task: Task, most_slots: int | None) -> list[_Cohort]:
    """Trials that can share steps, seed by seed, cut so that a cohort's activations fit into memory."""
    groups: dict[tuple[Any, ...], list[TrialConfig]] = {}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        settings = trial.train
        key = (
            trial.base.model_dump_json(),
            trial.adapter.path,
            settings.epochs,
            settings.batch_size,
            settings.micro_batch_size,
            settings.max_steps,
            settings.base_dropout,
        )
        groups.setdefault(key, []).append(trial)
    cohorts: list[_Cohort] = []
    for members in groups.values():
        size = 1 if members[0].adapter.path else slots_that_fit(members[0], base, task, most_slots)
        for start in range(0, len(members), size):
            cohorts.append(_Cohort(f"c{len(cohorts) + 1}", members[start : start + size]))
    return cohorts


def slots_that_fit(trial: TrialConfig, base: BaseModel, task: Task, most_slots: int | None) -> int:
    """Slots whose activations take at most half of the free memory by estimate; at least one."""
    longest = max(len(example.input_ids) for example in task.train)
    rows = min(trial.train.micro_batch_size or trial.train.batch_size, trial.train.batch_size)
    item = base.model.dtype.itemsize
    per_slot = rows * longest * activation_bytes_per_token(base.model, item)
    on_gpu = base.device.type == "cuda"
    free = torch.cuda.mem_get_info(base.device)[0] if on_gpu else psutil.virtual_memory().available
    fitting = int(free * _MEMORY_SHARE // max(1, per_slot))
    return max(1, min(fitting, most_slots or _MOST_SLOTS))


def _run_cohort(store: Store, study: Study, task: Task, base: BaseModel, cohort: _Cohort) -> Generator[Event, None, None]:
    """Train, evaluate and store one cohort. Whatever ends it, none of its trials stays ``running``."""
    running = {trial.trial for trial in cohort.trials}
    try:
        for event in _cohort_events(store, study, task, base, cohort):
            if isinstance(event, TrialEnded):
                running.discard(event.trial)
            yield event
    except (KeyboardInterrupt, GeneratorExit):
        for name in running:
            store.update(name, status="interrupted")
        raise
    except StoreError:
        raise
    except Exception as error:  # a failed trial is a result: recorded, counted, never ranked
        message = str(error) if isinstance(error, LorascopeError) else f"{type(error).__name__}: {error}"
        message = " ".join(message.split())[:500]
        for name in sorted(running):
            store.update(name, status="failed", error=message)
            yield TrialEnded(name, "failed", {}, message)
        if isinstance(error, CheckFailed):
            raise


def _cohort_events(store: Store, study: Study, task: Task, base: BaseModel, cohort: _Cohort) -> Generator[Event, None, None]:
    trials = {trial.trial: trial for trial in cohort.trials}
    slots = [slot_of(trial, base.model, base.heads) for trial in cohort.trials]
    settings = {trial.trial: trial.train for trial in cohort.trials}
    imported = cohort.trials[0].adapter.path
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
    shared = cohort.trials[0].train
    steps_per_epoch = -(-len(task.train) // shared.batch_size)
    num_steps = shared.epochs * steps_per_epoch if shared.max_steps is None else shared.max_steps
    num_steps = 0 if imported is not None else num_steps
    yield CohortStarted(cohort.name, tuple(trials), num_steps)
    if num_steps:
        yield from _probe(store, task, base, cohort, slots)
    meter = MemoryMeter(base.device)
    if imported is None:
        stack = Stack(base.model, slots, base.heads, base.initial_head, shared.base_dropout)
    else:
        stack = stack_saved(base, read_adapter(imported, slots[0].name), imported)
    try:
        seconds = 0.0
        if num_steps:
            seconds = yield from _train(store, stack, base, task, settings)
        if not stack.slots:
            return
        evaluations = yield from evaluate(stack, base, task, study.evaluate)
        _check_frozen(stack, base)
        peak = meter.peak_bytes()
        for index, (slot, evaluation) in enumerate(zip(list(stack.slots), evaluations, strict=True)):
            examples = num_steps * shared.batch_size if shared.max_steps else shared.epochs * len(task.train)
            if num_steps:
                store.update(slot.name, train_seconds=seconds, examples_per_second=examples / seconds)
            store.update(slot.name, peak_memory_bytes=peak)
            yield _finish(store, base, trials[slot.name], stack.read(index), slot, evaluation)
    finally:
        stack.detach()


def _probe(store: Store, task: Task, base: BaseModel, cohort: _Cohort, slots: Sequence[Slot]) -> Generator[Event, None, None]:
    """Measure each configuration of the cohort alone, unless another seed of it was measured already."""
    measured = {row.trial.rpartition("-s")[0]: row for row in store.trials() if row.solo_peak_memory_bytes is not None}
    for trial, slot in zip(cohort.trials, slots, strict=True):
        earlier = measured.get(trial.configuration)
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
        measured = {row.trial.rpartition("-s")[0]: row for row in store.trials() if row.solo_peak_memory_bytes is not None}


def _train(
    store: Store, stack: Stack, base: BaseModel, task: Task, settings: Mapping[str, Any]
) -> Generator[Event, None, float]:
    """Train the stack, storing curves as they grow; returns the seconds that the steps took."""
    buffers: dict[str, list[dict[str, float | int]]] = {slot.name: [] for slot in stack.slots}
    flushed = time.perf_counter()
    seconds = 0.0
    for step in train(stack, base, task.train, settings):
        seconds += step.seconds
        diverged = [name for name, slot_step in step.slots.items() if not slot_step.finite]
        for name, slot_step in step.slots.items():
            buffers[name].append(
                {
                    "step": step.step,
                    "epoch": step.epoch,
                    "loss": slot_step.loss,
                    "grad_norm": slot_step.grad_norm,
                    "learning_rate": slot_step.learning_rate,
                    "seconds": step.seconds,
                    "tokens": step.num_tokens,
                }
            )
        if step.step == 0 and stack.base_gradients():
            raise CheckFailed(f"{stack.base_gradients()} base parameters receive a gradient", where="base model")
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
    return seconds


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
    if trial.adapter.path is not None:
        return None
    model = trial.base.model
    model = str(Path(model).resolve()) if Path(model).is_dir() else model
    home = store.directory / "trials" / slot.name
    place = home / ("adapter" if weights.placements else "head")
    with atomic_directory(place) as directory:
        write_adapter(directory, weights, slot, base.model, heads=base.heads, base_model=model, task_type=base.task_type)
        if weights.placements:
            (directory / "README.md").write_text(_card(store, trial, model, evaluation), encoding="utf-8")
    if weights.placements:
        return str(place.relative_to(store.directory))
    head = place / HEAD_FILE
    if head.exists():
        head.replace(home / HEAD_FILE)
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


def _check_lengths(study: Study, raw: RawTask, base: BaseModelConfig) -> None:
    """Rows, with the answers that are to be generated, must not be longer than the model has positions."""
    positions = getattr(read_config(base), "max_position_embeddings", None)
    if positions is None:
        return
    if read_config(base).model_type in ("roberta", "xlm-roberta"):
        positions -= 2  # their positions start after the padding id
    answer = max(decoding.max_new_tokens for decoding in study.evaluate.decoding) if raw.generates else 0
    if study.task.max_length + answer > positions:
        extra = f" + {answer} new tokens" if answer else ""
        raise ModelError(
            f"max_length {study.task.max_length}{extra} exceeds the model's {positions} positions",
            where="task.max_length",
            fix=f"set it to {positions - answer} or less",
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
