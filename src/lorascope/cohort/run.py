"""A study, carried out: trials into cohorts, cohorts through training and evaluation, everything into the store.

Reads the steps of ``train`` and the progress of ``evaluate`` and says in plain code what follows from each: store it, drop
a slot that diverged, export, go on. Yields events for whoever shows them. Does not know terminals. Floor: ``cohort``.
"""

from __future__ import annotations

import gc
import math
import platform
import re
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import torch

from lorascope import __version__
from lorascope.adapter import stack_saved
from lorascope.base_model import BaseModel, hardware, load_base, load_tokenizer, read_config, task_type_of, weights_checksum
from lorascope.cohort.events import CohortStarted, Event, Events, ProbeDone, StudyStarted, TrialEnded, Warned
from lorascope.cohort.export import finish_trial
from lorascope.cohort.kernels import Kernels, install_kernels
from lorascope.cohort.planner import Cohort, Group, cut_group, find_impossible, form_groups, packed_weights_budget, replay
from lorascope.cohort.probe import MemoryMeter, SoloCost, measure_alone, steady_allocator
from lorascope.config import BaseModelConfig, Study, TrainConfig, TrialConfig
from lorascope.data.audit import audit, check_kinds
from lorascope.data.task import Notice, RawTask, Task, encode_task, read_task
from lorascope.errors import CheckFailed, LorascopeError, StoreError
from lorascope.evaluate import Decoded, Evaluation, evaluate
from lorascope.judge import Judge, load_judge
from lorascope.lora.peft_io import read_adapter
from lorascope.lora.stack import Slot, Stack
from lorascope.losses import follows_trees
from lorascope.plan import parameters, slot_of
from lorascope.store import Store
from lorascope.train import SlotStep, StepResult, train

FINAL = ("done", "diverged", "pruned")
_FLUSH_SECONDS = 2.0


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
        CheckFailed: the audit found an error in the data that ``task.allow`` does not name.
        LorascopeError: the study cannot be run at all, or the base model's weights changed. A trial that fails is recorded
            as failed and the study goes on.
    """
    if not resume:
        Store.refuse_existing(directory)
    check_kinds(study.task.allow)
    raw = read_task(study.task, study.evaluate.split)
    skeletons = find_impossible(study, raw, trials, device)
    steady_allocator()
    loaded = trials[0].base
    base = load_base(loaded, raw.task_type, raw.labels, device)
    task = _encoded(raw, base, study)
    audited = _audit(study, trials, raw, task, base)
    judge = None if study.evaluate.judge is None else load_judge(study.evaluate.judge, device)
    with Store.create(directory, study, resume=resume) as store:
        store.add_trials(trials)
        _check_unchanged(store, loaded, task, base, judge)
        status = {row.trial: row.status for row in store.trials()}
        pending = [trial for trial in trials if status[trial.trial] not in FINAL]
        groups = form_groups(pending, skeletons)
        trained = [trial for group in groups if group.trains for trial in group.trials]
        trial_steps = sum(trial.train.num_steps(len(task.train)) for trial in trained)
        yield StudyStarted(task, len(trials), len(pending), trial_steps)
        _describe(store, task, base, judge)
        notices = [*_notices(task, base, loaded), *audited, *_dropout_notice(trials), *_warmup_notice(trials, len(task.train))]
        yield from _warn(store, [*notices, *_judge_notice(task, judge)])
        kernels: Kernels | None = None
        for group in groups:
            wanted = group.trials[0].base
            if wanted != loaded:
                del base
                gc.collect()  # the earlier model goes before the next one comes
                base, loaded, kernels = load_base(wanted, raw.task_type, raw.labels, device), wanted, None
                # Another base has another tokenizer.
                task = _encoded(raw, base, study)
                yield from _warn(store, _notices(task, base, loaded))
            if kernels is None:
                kernels, changes = _prepare(store, base, loaded, task, device)
                yield from _warn(store, changes)
            cohorts = _plan(store, group, base, task, kernels, most_slots)
            yield from _warn(store, [change for cohort in cohorts for change in cohort.changes])
            for cohort in cohorts:
                yield from _run_cohort(store, study, task, base, cohort, judge)


def _encoded(raw: RawTask, base: BaseModel, study: Study) -> Task:
    """The task in the base's tokens, and in the form that the base gives it."""
    return encode_task(replace(raw, task_type=base.task_type), base.tokenizer, study.task.max_length)


def _audit(study: Study, trials: Sequence[TrialConfig], raw: RawTask, task: Task, base: BaseModel) -> list[Notice]:
    """What is wrong with the data and may be, with every tokenizer of the study.

    Raises:
        CheckFailed: one finding is an error that the study does not allow.
    """
    found = [audit(replace(raw, task_type=task.task_type), task, base.tokenizer, study.task.max_length)]
    bases = {(trial.base.model, trial.base.revision): trial.base for trial in trials}
    for other in list(bases.values())[1:]:
        tokenizer = load_tokenizer(other)
        wanted = replace(raw, task_type=task_type_of(read_config(other), raw.task_type))
        found.append(audit(wanted, encode_task(wanted, tokenizer, study.task.max_length), tokenizer, study.task.max_length))
    for each in found:
        each.check(study.task.allow)
    return list(dict.fromkeys(notice for each in found for notice in each.notices()))


def _prepare(store: Store, base: BaseModel, config: BaseModelConfig, task: Task, device: str) -> tuple[Kernels, list[Notice]]:
    """Give the base the kernels that it had before in this study, or the best ones, and try prefix trees on it."""
    wanted = config.model_dump(mode="json")
    stored = next((plan["kernels"] for plan in store.cohorts().values() if plan["base"] == wanted), None)
    kernels, notices = install_kernels(base, packed_weights_budget(device), stored)
    known = len(base.warnings)
    follows_trees(base, task.train)
    return kernels, [*notices, *(Notice("base", 1, config.model, warning) for warning in base.warnings[known:])]


def _plan(store: Store, group: Group, base: BaseModel, task: Task, kernels: Kernels, most_slots: int | None) -> list[Cohort]:
    """The group's cohorts, stored before the first step: those of an earlier part of the study, and new ones for the rest."""
    packs = group.trains and follows_trees(base, task.train)
    stored = {name: plan for name, plan in store.cohorts().items() if len(plan["trials"]) <= (most_slots or math.inf)}
    cohorts = replay(group, kernels, stored, _next_cohort(store), packs)
    for cohort in cohorts:
        store.set_cohort(cohort.name, cohort.record())
    planned = {trial.trial for cohort in cohorts for trial in cohort.trials}
    left = tuple(trial for trial in group.trials if trial.trial not in planned)
    if left:
        fresh = cut_group(Group(left, group.trains), base, task.train, kernels, _next_cohort(store), most_slots)
        for cohort in fresh:
            store.set_cohort(cohort.name, cohort.record())
        cohorts += fresh
    return cohorts


def _next_cohort(store: Store) -> int:
    """One above the highest number of a cohort that the store knows: names do not repeat."""
    names = [*store.cohorts(), *(row.cohort or "" for row in store.trials())]
    numbers = [re.match(r"c(\d+)", name) for name in names]
    return 1 + max((int(number[1]) for number in numbers if number), default=0)


def _check_unchanged(store: Store, config: BaseModelConfig, task: Task, base: BaseModel, judge: Judge | None) -> None:
    """A study goes on only with the data, the base and the judge of the trials that have ended.

    Raises:
        StoreError: one of them has changed since.
    """
    judged_by = store.info("judge")
    for row in store.trials():
        if row.status not in FINAL:
            continue
        same_base = all(row.config.get(key) == value for key, value in config.model_dump(mode="json").items())
        if row.data_checksum not in (None, task.checksum):
            what = "data"
        elif same_base and row.base_checksum not in (None, base.checksum):
            what = "base model's weights"
        elif judge is not None and judged_by is not None and judged_by["checksum"] != judge.facts["checksum"]:
            what = "judge"
        else:
            continue
        raise StoreError(
            f"the {what} changed since trial {row.trial} ended",
            where=str(store.directory),
            fix="put it back to go on, or choose another directory with --out",
        )


def _dropout_notice(trials: Sequence[TrialConfig]) -> list[Notice]:
    """What ``base_dropout`` leaves out: the stack draws the masks of dropout modules, not those inside attention."""
    count = sum(trial.train.base_dropout for trial in trials)
    message = f"in {count} trials the base model's dropout acts, but not on attention probabilities"
    return [Notice("base_dropout", count, "train.base_dropout", message)] if count else []


def _memory_notice(evaluation: Evaluation, wanted_tokens: int, cohort: str) -> list[Notice]:
    """What it took to evaluate where memory ran out."""
    message = f"memory ran out; cohort {cohort} was evaluated in batches of {evaluation.batch_tokens} tokens"
    return [Notice("memory", 1, "evaluate.batch_tokens", message)] if evaluation.batch_tokens < wanted_tokens else []


def _warmup_notice(trials: Sequence[TrialConfig], num_examples: int) -> list[Notice]:
    """A single step is all warm-up, as in transformers: its rate is 0, and nothing moves."""
    trained = [trial.train for trial in trials if trial.adapter.path is None]
    count = sum(train.num_steps(num_examples) == 1 and train.warmup_ratio > 0 for train in trained)
    message = f"in {count} trials the only step is the warm-up's first, at learning rate 0: nothing is trained"
    return [Notice("warmup", count, "train.warmup_ratio", message)] if count else []


def _judge_notice(task: Task, judge: Judge | None) -> list[Notice]:
    """How far the judge is to be believed, what it cannot do here, or what is not to be had without one."""
    num_personas = sum(bool(example.persona) for example in task.eval)
    if judge is None and num_personas:
        message = f"no C-score for {num_personas} replies to a persona: name an NLI model under evaluate.judge"
        return [Notice("judge", num_personas, "evaluate.judge", message)]
    notes = [] if judge is None else list(judge.notes)
    if judge is not None and not num_personas:
        notes.append("no example has a persona: the judge has nothing to compare with")
    return [Notice("judge", 1, "evaluate.judge", note) for note in notes]


def _notices(task: Task, base: BaseModel, config: BaseModelConfig) -> list[Notice]:
    return [*task.notices, *(Notice("base", 1, config.model, warning) for warning in base.warnings)]


def _warn(store: Store, notices: Iterable[Notice], trial: str | None = None) -> Events:
    """Store what is not stored yet, with the study or a trial, and show all."""
    known = {(row["trial"], row["kind"], row["where"], row["message"]) for row in store.warnings()}
    for notice in notices:
        if (trial, notice.kind, notice.where, notice.message) not in known:
            store.add_warning(trial, notice.kind, notice.count, notice.where, notice.message)
        yield Warned(notice)


def _run_cohort(store: Store, study: Study, task: Task, base: BaseModel, cohort: Cohort, judge: Judge | None) -> Events:
    """Train, evaluate and store one cohort. Whatever ends it, none of its trials stays ``running``.

    What raises in a cohort of several may be one trial's doing, or that of all of them together (memory): each half then
    runs again on its own, down to single trials. A single trial that raises has failed.
    """
    running = {trial.trial: trial for trial in cohort.trials}
    failure: str | None = None
    try:
        with closing(_cohort_events(store, study, task, base, cohort, judge)) as events:
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
        for half in _halves(store, cohort, list(running.values())):
            message = f"cohort {cohort.name} failed ({failure}); {len(half.trials)} of its trials start again as {half.name}"
            yield from _warn(store, [Notice("retry", len(half.trials), f"cohort {cohort.name}", message)])
            yield from _run_cohort(store, study, task, base, half, judge)
    elif failure is not None:
        _set_status(store, running, "failed", failure)
        for name in running:
            yield TrialEnded(name, "failed", {}, failure)


def _halves(store: Store, cohort: Cohort, trials: Sequence[TrialConfig]) -> list[Cohort]:
    """The trials that a failed cohort left over, as two cohorts that start again."""
    _set_status(store, [trial.trial for trial in trials], "planned", None)
    middle = len(trials) // 2
    halves = [
        replace(cohort, name=cohort.name + part, trials=tuple(members))
        for part, members in (("a", trials[:middle]), ("b", trials[middle:]))
    ]
    for half in halves:
        store.set_cohort(half.name, half.record())
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


def _cohort_events(store: Store, study: Study, task: Task, base: BaseModel, cohort: Cohort, judge: Judge | None) -> Events:
    trials = {trial.trial: trial for trial in cohort.trials}
    slots = [slot_of(trial, base.model, base.heads) for trial in cohort.trials]
    _begin(store, task, base, cohort, slots)
    num_steps = cohort.num_steps(len(task.train))
    yield CohortStarted(cohort.name, tuple(trials), num_steps, cohort.predicted_peak_bytes)
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
            seconds, num_examples = yield from _train(store, stack, base, task, cohort)
            # The plan is about training; evaluation bounds its memory by ``batch_tokens``.
            store.set_cohort(cohort.name, {**store.cohorts()[cohort.name], "measured_peak_bytes": meter.peak_bytes()})
        if not stack.slots:
            return
        evaluations = yield from evaluate(stack, base, task, study.evaluate, judge)
        _check_frozen(stack, base)
        peak = meter.peak_bytes()
        yield from _warn(store, _memory_notice(evaluations[0], study.evaluate.batch_tokens, cohort.name))
        if judge is not None and judge.num_truncated:
            message = f"cohort {cohort.name}: {judge.num_truncated} pairs were cut to the judge's {judge.max_length} tokens"
            yield from _warn(store, [Notice("judge", judge.num_truncated, "evaluate.judge", message)])
            judge.num_truncated = 0
        for index, (slot, evaluation) in enumerate(zip(list(stack.slots), evaluations, strict=True)):
            if num_steps:
                store.update(slot.name, train_seconds=seconds, examples_per_second=num_examples / seconds)
            store.update(slot.name, peak_memory_bytes=peak)
            told = [Notice("evaluation", 1, task.eval_split, warning) for warning in evaluation.warnings]
            yield from _warn(store, [*told, *_unfinished(evaluation.decoded, task.eval_split)], slot.name)
            yield finish_trial(store, base, trials[slot.name], stack.read(index), slot, evaluation)
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
    store: Store, stack: Stack, base: BaseModel, task: Task, cohort: Cohort
) -> Generator[Event, None, tuple[float, int]]:
    """Train the stack, storing curves as they grow; returns the seconds that the steps took and one slot's examples."""
    settings = {trial.trial: _settings(trial, cohort) for trial in cohort.trials}
    size = cohort.micro_batch_size
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
        if step.micro_batch_size != size:
            size = step.micro_batch_size
            yield from _note_smaller(store, cohort, step)
        for name in diverged:
            message = f"loss, gradient or weights are not finite at step {step.step}"
            store.update(name, status="diverged", error=message)
            yield TrialEnded(name, "diverged", {}, message)
        if diverged:
            stack.keep([slot.name for slot in stack.slots if slot.name not in diverged])
    return seconds, num_examples


def _note_smaller(store: Store, cohort: Cohort, step: StepResult) -> Events:
    """Memory ran out: the plan changes, so that a resumed cohort begins with what fitted."""
    size = step.micro_batch_size
    store.set_cohort(cohort.name, {**store.cohorts()[cohort.name], "micro_batch_size": size})
    message = f"memory ran out at step {step.step}; micro-batches of {size} from there on, with the same gradients"
    yield from _warn(store, [Notice("out_of_memory", 1, f"cohort {cohort.name}", message)])


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


def _describe(store: Store, task: Task, base: BaseModel, judge: Judge | None) -> None:
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
    if judge is not None:
        store.set_info("judge", judge.facts)
