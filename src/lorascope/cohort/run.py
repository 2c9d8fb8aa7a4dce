"""A study, carried out: data and base read and checked, trials cut into cohorts, one cohort after another (``training``).

Yields events for whoever shows them. Does not know terminals. Floor: ``cohort``.
"""

from __future__ import annotations

import gc
import math
import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lorascope import __version__
from lorascope.base_model import BaseModel, hardware, load_base, load_tokenizer, read_config, task_type_of
from lorascope.cohort.budget import Budget, within
from lorascope.cohort.checkpoint import discard_ended
from lorascope.cohort.events import Events, StudyStarted
from lorascope.cohort.kernels import Kernels, install_kernels, recorded_threads
from lorascope.cohort.planner import Cohort, Group, cut_group, find_impossible, form_groups, packed_weights_budget, replay
from lorascope.cohort.probe import steady_allocator
from lorascope.cohort.proposals import Foreseeing, Proposer, Pruner
from lorascope.cohort.training import FINAL, run_cohort, warn
from lorascope.config import BaseModelConfig, Study, TrialConfig
from lorascope.data.audit import audit, check_kinds
from lorascope.data.task import Notice, RawTask, Task, encode_task, read_task
from lorascope.errors import StoreError
from lorascope.judge import Judge, load_judge
from lorascope.losses import follows_trees
from lorascope.store import Store


def run_study(
    study: Study,
    trials: Sequence[TrialConfig] | Proposer,
    directory: Path,
    *,
    first: Sequence[TrialConfig] = (),
    resume: bool = False,
    most_slots: int | None = None,
    device: str = "cpu",
    checkpoint_seconds: float | None = None,
    budget: Budget | None = None,
) -> Events:
    """Carry out ``trials`` of ``study`` in ``directory``.

    Everything that can be wrong with the study, the data or the base is found before the directory is made. Close the
    generator to interrupt the study: what is done stays done, the state of the cohort that was training is saved, and what was
    running is marked as interrupted.

    Args:
        trials: a list, or what proposes them; a proposer that is a ``Pruner`` too stops the worse of each cohort.
        first: trials that are carried out before those proposed, and that the proposer does not see.
        resume: go on with a study begun earlier: trials that are done, diverged or pruned stay as they are.
        most_slots: upper bound on trials in one cohort; by default what memory allows, 16 at most.
        checkpoint_seconds: see ``Checkpoints``.
        budget: no cohort begins that would not end in time, and one that does not is interrupted at the deadline; what is left
            stays ``planned``, and a warning says so.

    Raises:
        CheckFailed: the audit found an error in the data that ``task.allow`` does not name.
        LorascopeError: the study cannot be run at all, or the base model's weights changed. A trial that fails is recorded
            as failed and the study goes on.
    """
    if not resume:
        Store.refuse_existing(directory)
    check_kinds(study.task.allow)
    raw = read_task(study.task, study.evaluate.split)
    proposer = trials if isinstance(trials, Proposer) else None
    known = [*first, *(trials.propose([]) if isinstance(trials, Proposer) else trials)]
    possible = [*known, *(trials.foreseen() if isinstance(trials, Foreseeing) else [])]
    skeletons = find_impossible(study, raw, possible, device)
    steady_allocator()
    loaded = known[0].base
    base = load_base(loaded, raw.task_type, raw.labels, device)
    task = _encoded(raw, base, study)
    audited = _audit(study, possible, raw, task, base)
    judge = None if study.evaluate.judge is None else load_judge(study.evaluate.judge, device)
    pruner = trials if isinstance(trials, Pruner) else None
    names = {trial.trial for trial in first}
    with Store.create(directory, study, resume=resume) as store, recorded_threads(_kernels(store), base) as threads:
        batches = [list(trials)] if not isinstance(trials, Proposer) else [list(first)] if first else []
        kernels: Kernels | None = None
        started = False
        while True:
            batch = batches.pop() if batches else []
            of_pruner = None
            if not batch and proposer is not None:
                batch = proposer.propose([row for row in store.trials() if row.trial not in names])
                of_pruner = pruner
            if not batch:
                return
            store.add_trials(batch)
            status = {row.trial: row.status for row in store.trials()}
            pending = [trial for trial in batch if status[trial.trial] not in FINAL]
            groups = form_groups(pending, {**skeletons, **find_impossible(study, raw, pending, device)})
            trained = [trial for group in groups if group.trains for trial in group.trials]
            trial_steps = sum(trial.train.num_steps(len(task.train)) for trial in trained)
            if not started:
                _check_unchanged(store, loaded, task, base, judge)
                discard_ended(store, FINAL)
            yield StudyStarted(task, len(batch), len(pending), trial_steps)
            if not started:
                _describe(store, task, base, judge)
                notices = [*_notices(task, base, loaded), *audited]
                yield from warn(store, [*notices, *_judge_notice(task, judge), *threads])
                started = True
            yield from warn(store, [*_dropout_notice(batch), *_warmup_notice(batch, len(task.train))])
            for group in groups:
                wanted = group.trials[0].base
                if wanted != loaded:
                    del base
                    gc.collect()  # the earlier model goes before the next one comes
                    base, loaded, kernels = load_base(wanted, raw.task_type, raw.labels, device), wanted, None
                    # Another base has another tokenizer.
                    task = _encoded(raw, base, study)
                    yield from warn(store, _notices(task, base, loaded))
                if kernels is None:
                    kernels, changes = _prepare(store, base, loaded, task, device)
                    yield from warn(store, changes)
                cohorts = _plan(store, group, base, task, kernels, most_slots)
                yield from warn(store, [change for cohort in cohorts for change in cohort.changes])
                for cohort in cohorts:
                    course = run_cohort(store, study, task, base, cohort, judge, checkpoint_seconds, of_pruner)
                    if budget is None:
                        yield from course
                    elif not (yield from within(budget, course, cohort, task, of_pruner)):
                        yield from warn(store, _left_over(store))
                        return


def _left_over(store: Store) -> list[Notice]:
    """What the budget did not suffice for."""
    left = sum(row.status in ("planned", "interrupted") for row in store.trials())
    message = f"the budget of time ends the study: {left} of its trials are left; go on with --resume"
    return [Notice("budget", left, "--budget", message)]


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
    kernels, notices = install_kernels(base, packed_weights_budget(device), _kernels(store, config))
    known = len(base.warnings)
    follows_trees(base, task.train)
    return kernels, [*notices, *(Notice("base", 1, config.model, warning) for warning in base.warnings[known:])]


def _kernels(store: Store, config: BaseModelConfig | None = None) -> dict[str, Any] | None:
    """What an earlier part of the study computed with, on one base or on any."""
    wanted = None if config is None else config.model_dump(mode="json")
    return next((plan["kernels"] for plan in store.cohorts().values() if wanted in (None, plan["base"])), None)


def _plan(store: Store, group: Group, base: BaseModel, task: Task, kernels: Kernels, most_slots: int | None) -> list[Cohort]:
    """The group's cohorts, stored before the first step: those of an earlier part of the study, and new ones for the rest."""
    packs = group.trains and follows_trees(base, task.train)
    stored = {name: plan for name, plan in store.cohorts().items() if len(plan["trials"]) <= (most_slots or math.inf)}
    ended = {row.trial: TrialConfig.from_flat(row.config, row.seed) for row in store.trials() if row.status in FINAL}
    cohorts = replay(group, kernels, stored, _next_cohort(store), packs, ended)
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
    store.set_info("data", {"checksum": task.checksum, "shape": task.shape, "split": task.eval_split})
    if judge is not None:
        store.set_info("judge", judge.facts)
