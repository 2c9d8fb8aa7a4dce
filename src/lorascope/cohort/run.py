"""A study, carried out: data and base read and checked, trials cut into cohorts, one cohort after another (``training``).

Yields events for whoever shows them. Does not know terminals. Floor: ``cohort``.
"""

from __future__ import annotations

import gc
import math
import platform
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorascope import __version__
from lorascope.base_model import BaseModel, hardware, load_base, load_tokenizer, read_config, task_type_of
from lorascope.cohort.checkpoint import discard_ended
from lorascope.cohort.deadline import Deadline, within
from lorascope.cohort.events import Event, Events, StudyStarted
from lorascope.cohort.kernels import Kernels, install_kernels, recorded_threads
from lorascope.cohort.planner import Cohort, Group, cut_group, find_impossible, form_groups, packed_weights_budget, replay
from lorascope.cohort.probe import steady_allocator
from lorascope.cohort.proposals import Foreseeing, Proposer, Pruner
from lorascope.cohort.rungs import judging
from lorascope.cohort.tracked import follow, open_tracking
from lorascope.cohort.training import FINAL, Bench, run_cohort, warn
from lorascope.config import BaseModelConfig, Study, TrialConfig
from lorascope.data.audit import audit, check_kinds
from lorascope.data.task import Notice, RawTask, Task, encode_task, read_task
from lorascope.errors import StoreError
from lorascope.evaluate import check_metrics
from lorascope.judge import Judge, load_judge
from lorascope.losses import follows_trees
from lorascope.store import Store
from lorascope.tracking import check_installed


@dataclass(frozen=True)
class Limits:
    """Where a study runs, and what it may take.

    Attributes:
        most_slots: upper bound on trials in one cohort; by default what memory allows, 16 at most.
        most_bytes: upper bound on the memory of a cohort by forecast, the process included; by default what is free.
        checkpoint_seconds: see ``Checkpoints``.
        deadline: no cohort begins that would not end in time, and one that does not is interrupted then; what is left stays
            ``planned``, and a warning says so.
    """

    device: str = "cpu"
    most_slots: int | None = None
    most_bytes: int | None = None
    checkpoint_seconds: float | None = None
    deadline: Deadline | None = None


UNLIMITED = Limits()


def run_study(
    study: Study,
    trials: Sequence[TrialConfig] | Proposer,
    directory: Path,
    *,
    first: Sequence[TrialConfig] = (),
    resume: bool = False,
    limits: Limits = UNLIMITED,
) -> Events:
    """Carry out ``trials`` of ``study`` in ``directory``.

    Everything that can be wrong with the study, the data or the base is found before the directory is made. Close the
    generator to interrupt the study: what is done stays done, the state of the cohort that was training is saved, and what was
    running is marked as interrupted.

    Args:
        trials: a list, or what proposes them; a proposer that is a ``Pruner`` too stops the worse of each cohort.
        first: trials that are carried out before those proposed; the proposer tells its own from them.
        resume: go on with a study begun earlier: trials that are done, diverged or pruned stay as they are, and failed ones
            are tried again once.

    Raises:
        CheckFailed: the audit found an error in the data that ``task.allow`` does not name.
        LorascopeError: the study cannot be run at all, or the base model's weights changed. A trial that fails is recorded
            as failed and the study goes on.
    """
    if not resume:
        Store.refuse_existing(directory)
    check_kinds(study.task.allow)
    check_installed(study.tracking.to)
    raw = read_task(study.task, study.evaluate.split)
    check_metrics(study, raw)
    known = [*first, *(trials.propose([]) if isinstance(trials, Proposer) else trials)]
    possible = [*known, *(trials.foreseen() if isinstance(trials, Foreseeing) else [])]
    device, deadline = limits.device, limits.deadline
    skeletons = find_impossible(study, raw, possible, device)
    steady_allocator()
    base = load_base(known[0].base, raw.task_type, raw.labels, device)
    loaded = _Loaded(known[0].base, base, _encoded(raw, base, study))
    audited = _audit(study, possible, raw, loaded.task, base)
    judge = None if study.evaluate.judge is None else load_judge(study.evaluate.judge, device)
    del base  # ``loaded`` alone holds it: another may take its place
    with (
        Store.create(directory, study, resume=resume) as store,
        recorded_threads(kernels_of(store), loaded.base.device) as threads,
    ):
        tracking = open_tracking(store, study)
        opening = [*_notices(loaded.task, loaded.base, loaded.config), *audited, *_judge_notice(loaded.task, judge), *threads]
        opening += [Notice("tracking", 1, "tracking", note) for note in tracking.notes]
        begun = False
        for batch, pruner in _batches(store, trials, first):
            task = loaded.task
            store.add_trials(batch)
            status = {row.trial: row.status for row in store.trials()}
            pending = [trial for trial in batch if status[trial.trial] not in FINAL]
            known_bases = {**skeletons, **find_impossible(study, raw, pending, device)}
            groups = form_groups(pending, known_bases, keep_seeds=pruner is not None)
            if not begun:
                _check_unchanged(store, loaded.config, task, loaded.base, judge)
                discard_ended(store, FINAL)
            trained = [trial for group in groups if group.trains for trial in group.trials]
            yield StudyStarted(task, len(batch), len(pending), sum(one.train.num_steps(len(task.train)) for one in trained))
            if not begun:
                _describe(store, task, loaded.base, judge)
            about = [*_dropout_notice(batch), *_full_notice(batch), *_warmup_notice(batch, len(task.train))]
            yield from warn(store, about if begun else [*opening, *about])
            begun = True
            for group in groups:
                on_time = deadline is None or deadline.left_seconds > 0
                for cohort in (yield from _cohorts(store, study, raw, group, loaded, limits)) if on_time else []:
                    judges, _ = judging(pruner, study, cohort, loaded.task)
                    # Named nowhere, so that the base goes when its cohorts have ended.
                    course = run_cohort(
                        Bench(store, study, loaded.task, loaded.base, judge, limits.checkpoint_seconds, pruner), cohort
                    )
                    on_time = yield from within(deadline, follow(course, store, tracking), cohort, loaded.task, judges)
                    if not on_time:
                        break
                if deadline is not None and not on_time:
                    yield from warn(store, _left_over(store, deadline, trials))
                    return


@dataclass
class _Loaded:
    """The base in memory, the task in its tokens, and what it computes with; kernels None before they were chosen."""

    config: BaseModelConfig
    base: BaseModel
    task: Task
    kernels: Kernels | None = None


def _batches(
    store: Store, trials: Sequence[TrialConfig] | Proposer, first: Sequence[TrialConfig]
) -> Iterator[tuple[list[TrialConfig], Pruner | None]]:
    """The trials to carry out next, and what prunes them: all at once, or as long as more are proposed.

    A proposer takes failed trials for ended ones, so those of an earlier part of the study are tried again first, once.
    """
    if not isinstance(trials, Proposer):
        yield list(trials), None
        return
    pruner = trials if isinstance(trials, Pruner) else None
    names = {trial.trial for trial in first}
    failed = [row for row in store.trials() if row.status == "failed" and row.trial not in names]
    if first:
        yield list(first), None
    if failed:
        yield [TrialConfig.from_flat(row.config, row.seed) for row in failed], pruner
    retried = {row.trial for row in failed}
    while batch := trials.propose(store.trials()):
        yield [trial for trial in batch if trial.trial not in retried] or batch, pruner


def _cohorts(
    store: Store, study: Study, raw: RawTask, group: Group, loaded: _Loaded, limits: Limits
) -> Generator[Event, None, list[Cohort]]:
    """The group's cohorts, with its base in memory and that base's kernels chosen."""
    wanted = group.trials[0].base
    if wanted != loaded.config:
        del loaded.base
        gc.collect()  # the earlier model goes before the next one comes
        loaded.base = load_base(wanted, raw.task_type, raw.labels, limits.device)
        # Another base has another tokenizer.
        loaded.config, loaded.kernels, loaded.task = wanted, None, _encoded(raw, loaded.base, study)
        yield from warn(store, _notices(loaded.task, loaded.base, wanted))
    if loaded.kernels is None:
        loaded.kernels, changes = prepare(store, loaded.base, wanted, loaded.task, limits.device, limits.most_bytes)
        yield from warn(store, changes)
    cohorts = _plan(store, group, loaded, loaded.kernels, limits)
    yield from warn(store, [change for cohort in cohorts for change in cohort.changes])
    return cohorts


def _left_over(store: Store, deadline: Deadline, trials: Sequence[TrialConfig] | Proposer) -> list[Notice]:
    """What the budget did not suffice for; nothing where nothing is left."""
    rows = store.trials()
    left = {row.trial for row in rows if row.status in ("planned", "interrupted")}
    more = 0
    if isinstance(trials, Proposer):
        # What would follow if those that are left were over.
        over = [replace(row, status="failed") if row.trial in left else row for row in rows]
        more = len(trials.propose(over))
    if not left and not more:
        return []
    what = [*([f"{len(left)} of {len(rows)} trials left"] if left else []), *(["others still to be proposed"] if more else [])]
    message = f"the budget of {deadline.seconds:g} s ends the study with {' and '.join(what)}; go on with --resume"
    return [Notice("budget", len(left) or more, "--budget", message)]


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


def prepare(
    store: Store, base: BaseModel, config: BaseModelConfig, task: Task, device: str, most_bytes: int | None
) -> tuple[Kernels, list[Notice]]:
    """Give the base the kernels that it had before in this study, or the best ones, and try prefix trees on it."""
    kernels, notices = install_kernels(base, packed_weights_budget(device, most_bytes), kernels_of(store, config))
    known = len(base.warnings)
    follows_trees(base, task.train)
    return kernels, [*notices, *(Notice("base", 1, config.model, warning) for warning in base.warnings[known:])]


def kernels_of(store: Store, config: BaseModelConfig | None = None) -> dict[str, Any] | None:
    """What an earlier part of the study computed with, on one base or on any."""
    wanted = None if config is None else config.model_dump(mode="json")
    return next((plan["kernels"] for plan in store.cohorts().values() if wanted in (None, plan["base"])), None)


def _plan(store: Store, group: Group, loaded: _Loaded, kernels: Kernels, limits: Limits) -> list[Cohort]:
    """The group's cohorts, stored before the first step: those of an earlier part of the study, and new ones for the rest."""
    base, examples, most_slots = loaded.base, loaded.task.train, limits.most_slots
    packs = group.trains and follows_trees(base, examples)
    stored = {name: plan for name, plan in store.cohorts().items() if len(plan["trials"]) <= (most_slots or math.inf)}
    ended = {row.trial: TrialConfig.from_flat(row.config, row.seed) for row in store.trials() if row.status in FINAL}
    cohorts = replay(group, kernels, stored, _next_cohort(store), packs, ended)
    for cohort in cohorts:
        store.set_cohort(cohort.name, cohort.record())
    planned = {trial.trial for cohort in cohorts for trial in cohort.trials}
    left = tuple(trial for trial in group.trials if trial.trial not in planned)
    if left:
        first = _next_cohort(store)
        fresh = cut_group(replace(group, trials=left), base, examples, kernels, first, most_slots, limits.most_bytes)
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


def _full_notice(trials: Sequence[TrialConfig]) -> list[Notice]:
    """What full fine-tuning leaves behind, and what its numbers are."""
    full = [trial for trial in trials if trial.adapter.method == "full"]
    dtype = " in float32, though the base is bfloat16," if any(trial.base.dtype == "bfloat16" for trial in full) else ""
    message = f"{len(full)} trials train the whole base{dtype} one at a time; their scores are kept, their weights are not"
    return [Notice("full", len(full), "adapter.method", message)] if full else []


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
    places = [store.study.task.data] if isinstance(store.study.task.data, str) else list(store.study.task.data.values())
    data = {
        "checksum": task.checksum,
        "shape": task.shape,
        "split": task.eval_split,
        "num_train": len(task.train),
        "num_eval": len(task.eval),
        "hub_ids": [place for place in places if not Path(place).expanduser().exists()],
    }
    store.set_info("data", data)
    if judge is not None:
        store.set_info("judge", judge.facts)
