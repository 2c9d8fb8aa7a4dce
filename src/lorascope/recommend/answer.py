"""The answer of ``lorascope recommend``: own studies weighed, memory and budget kept, what would change it.

Puts the rest of this package together: the task's section, the advice, what fits, and further studies. Does not know how
studies are found, how costs are estimated, or screens. Floor: ``recommend``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorascope.amounts import bytes_text, counted, seconds_text
from lorascope.config import DEFAULT_SEEDS, Study, TaskConfig, TrialConfig, validate
from lorascope.errors import UsageError, did_you_mean
from lorascope.memory import free_bytes, total_bytes
from lorascope.recommend.advice import Advice, Request, advise
from lorascope.recommend.closeness import SAME_MODEL, ModelFacts, TaskFacts, closeness
from lorascope.recommend.evidence import StudyEvidence
from lorascope.recommend.facts import absolute, model_facts, task_facts
from lorascope.recommend.further import Costs, further_studies, priced_rows
from lorascope.recommend.memory import fit
from lorascope.recommend.rules import LITTLE_MEMORY, Choice, Goal, by_rule, shown
from lorascope.recommend.section import evaluate_section, kind_of, task_section, with_lengths
from lorascope.recommend.study_file import as_study, study_document


@dataclass(frozen=True)
class Asked:
    """What is asked for.

    Attributes:
        model: a directory or a hub id.
        data: None for those of the nearest study, or as published.
        memory_bytes: that training may take; None for what is free on ``device``.
    """

    task: str
    model: str
    data: str | None = None
    memory_bytes: int | None = None
    budget_seconds: float | None = None
    goal: Goal = "default"
    device: str = "cpu"


@dataclass(frozen=True)
class OwnStudies:
    """The user's own studies.

    Attributes:
        studies: the studies' definitions, by their evidence's directory.
        left_out: what could not be read, with ``directory`` and ``reason``.
    """

    evidence: tuple[StudyEvidence, ...] = ()
    studies: Mapping[str, Study] = field(default_factory=dict)
    left_out: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What is recommended, and what it takes.

    Attributes:
        choices: by key of ``base``, ``adapter`` and ``train``, as they fit.
        document: the study file's content.
        reasons: of the other sections, by dotted key.
        cost: of one seed, a row of a plan.
        most_bytes: the memory that it was made to fit.
        further: studies that would change the answer: ``what``, ``design``, ``seeds``, ``trials``, ``train_seconds``.
    """

    asked: Asked
    request: Request
    advice: Advice
    choices: dict[str, Choice]
    document: dict[str, Any]
    reasons: dict[str, str]
    cost: dict[str, Any]
    most_bytes: int
    further: list[dict[str, Any]]
    left_out: tuple[dict[str, str], ...]
    notes: list[str]


def answered(asked: Asked, own: OwnStudies, costs_of: Callable[[Study, Path], Costs]) -> Answer:
    """Everything but the file and the screen.

    Args:
        costs_of: what trials take, of a study and of the directory of an earlier one whose measurements correct estimates.

    Raises:
        UsageError: the task is unknown, its data are not named, or nothing fits.
        ModelError: the model is not there, or has no form for the task.
    """
    from lorascope.data.task import TASKS

    if asked.task not in TASKS:
        raise UsageError(f"unknown task {asked.task!r}", where="--task", fix=did_you_mean(asked.task, list(TASKS)))
    facts = model_facts(asked.model)
    section, section_why, origin = task_section(asked.task, asked.data, facts, own.evidence)
    kind, section = kind_of(asked.task, section)
    section, fitted = with_lengths(asked.model, kind, section)
    section_why |= fitted
    task = task_facts(validate(TaskConfig, section, "recommend"), kind)
    evaluate = evaluate_section(own.studies, origin)
    base = {"model": Choice(absolute(asked.model), "model", "as asked for")}
    shape = TrialConfig.from_flat({"model": asked.model}, 0)
    study = as_study(study_document("probe", base | {"targets": Choice([], "rule", "")}, section, [0], evaluate))
    costs = costs_of(study, _measured(task, facts, own.evidence))
    facts = replace(facts, num_params=costs.rows([_without_adapter(shape)])[0][0]["total_params"])
    there = asked.memory_bytes or total_bytes(asked.device)
    request = Request(task, facts, asked.goal, there, costs.roles(shape))
    advice = advise(request, own.evidence)
    notes = list(advice.notes)
    most_bytes = asked.memory_bytes or free_bytes(asked.device)
    choices = _fitting(request, {**advice.choices, **base}, costs, most_bytes, notes)
    choices, seeds, seeds_why = _within_budget(asked, choices, costs, notes)
    (cost,) = priced_rows(costs, [_trial(choices)])
    name = f"recommended-{asked.task.replace('_', '-')}" + ("" if asked.goal == "default" else f"-{asked.goal}")
    document = study_document(name, choices, section, seeds, evaluate)
    reasons = {f"task.{key}": why for key, why in section_why.items()} | {"seeds": seeds_why}
    further = further_studies(advice, choices, document, costs, asked.budget_seconds)
    return Answer(asked, request, advice, choices, document, reasons, cost, most_bytes, further, own.left_out, notes)


def _measured(task: TaskFacts, model: ModelFacts, evidence: Sequence[StudyEvidence]) -> Path:
    """The study whose measured times correct the estimates: one of the same task and model, or none."""
    same = [one for one in evidence if closeness(task, model, one.task, one.model) == SAME_MODEL[0]]
    largest = max(same, key=lambda one: one.num_trials, default=None)
    return Path("runs/none" if largest is None else largest.directory.partition(" + ")[0])


def _without_adapter(trial: TrialConfig) -> TrialConfig:
    return trial.model_copy(update={"adapter": trial.adapter.model_copy(update={"targets": []})})


def _trial(choices: Mapping[str, Choice], seed: int = DEFAULT_SEEDS[0]) -> TrialConfig:
    return TrialConfig.from_flat({key: choice.value for key, choice in choices.items()}, seed)


def _fitting(request: Request, choices: dict[str, Choice], costs: Costs, most: int, notes: list[str]) -> dict[str, Choice]:
    """The choices made to fit into so many bytes."""
    from importlib.util import find_spec

    can_quantise = find_spec("bitsandbytes") is not None
    if choices["quantization"].value is not None and not can_quantise:
        why = (
            f"4 bits need bitsandbytes, which is not installed (pip install 'lorascope[quant]'); {choices['quantization'].why}"
        )
        choices |= {"quantization": Choice(None, "memory", why), "dtype": Choice("bfloat16", "memory", "16 bits instead of 4")}

    def forecast(of: Mapping[str, Choice]) -> int:
        return int(costs.rows([_trial(of)])[0][0]["memory_bytes"])

    choices, needed = fit(choices, forecast, most, request.roles, can_quantise=can_quantise)
    if needed > most:
        what = f"nothing fits: the smallest configuration of {request.model.reference} needs {bytes_text(needed)}"
        fix = "allow more, or choose a smaller model or a shorter task.max_length"
        raise UsageError(what, where=f"memory of {bytes_text(most)}", fix=fix)
    if any(choice.source == "rule" and LITTLE_MEMORY.name in choice.why for choice in choices.values()):
        plain = {**choices, **by_rule(request.task.kind, request.roles, None)}
        plain |= {"quantization": Choice(None, "rule", ""), "dtype": Choice("float32", "rule", "")}
        full = forecast(plain)
        if full <= most:
            notes.append(
                f"the rule of thumb for {LITTLE_MEMORY.name} gives up more than this model needs: r {plain['r'].value} on "
                f"{shown(plain['targets'].value)} in 32 bits is forecast at {bytes_text(full)} and fits too; "
                "with --memory 8GB it is what the rules give"
            )
    return choices


def _within_budget(
    asked: Asked, choices: dict[str, Choice], costs: Costs, notes: list[str]
) -> tuple[dict[str, Choice], list[int], str]:
    """As many seeds as the budget has time for, and of one seed as many steps; the seeds with their reason."""
    seeds = list(DEFAULT_SEEDS)
    why = "three seeds: from one nobody can tell how far the next would come out elsewhere"
    (row,) = priced_rows(costs, [_trial(choices)])
    seconds, budget = row["train_seconds"], asked.budget_seconds
    if budget is None:
        return choices, seeds, why
    if seconds is None:
        notes.append(f"the budget could not be held against anything: {row['reason']}; run --budget holds to it")
        return choices, seeds, why
    affordable = int(budget // seconds) if seconds else len(seeds)
    if affordable < len(seeds):
        seeds = seeds[: max(1, affordable)]
        why = f"{counted(len(seeds), 'seed')}: the budget of {seconds_text(budget)} has time for no more"
        why += f", at about {seconds_text(seconds)} each" + ("; luck is not told from one" if len(seeds) == 1 else "")
    if affordable < 1 and costs.num_examples is not None:
        steps = _trial(choices).train.num_steps(costs.num_examples)
        fewer = max(1, int(steps * budget / seconds))
        because = f"{steps} steps take about {seconds_text(seconds)} and the budget is {seconds_text(budget)}"
        choices = choices | {"max_steps": Choice(fewer, "budget", because)}
        notes.append(f"the budget cuts training from {steps} steps to {fewer}: a result of that says little")
    return choices, seeds, why
