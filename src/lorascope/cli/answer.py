"""The answer of ``lorascope recommend``: own studies weighed, memory and budget kept, what would change it. Floor: cli.

Reads the task's data as far as they are here, and the model's ``config.json``; ``recommend`` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorascope.cli import tables
from lorascope.cli.evidence import absolute, model_facts, read_studies, task_facts
from lorascope.cli.planning import Bounds, Costs, chosen_device
from lorascope.config import DEFAULT_SEEDS, BaseModelConfig, DecodingConfig, Study, TaskConfig, TrialConfig, validate
from lorascope.errors import MissingSplit, ModelError, UsageError, did_you_mean
from lorascope.memory import free_bytes
from lorascope.recommend.advice import Advice, Request, advise
from lorascope.recommend.closeness import SAME_MODEL, ModelFacts, TaskFacts, closeness
from lorascope.recommend.evidence import GROUPS, StudyEvidence
from lorascope.recommend.memory import fit
from lorascope.recommend.rules import KINDS, LITTLE_MEMORY_BYTES, Choice, Goal, Kind, by_rule, shown
from lorascope.recommend.study_file import as_study, study_document

# Where a task's data are published, for who names no others.
_PUBLISHED = {
    "sst2": "nyu-mll/glue",
    "mrpc": "nyu-mll/glue",
    "rte": "nyu-mll/glue",
    "squad": "rajpurkar/squad",
    "personachat": "google/Synthetic-Persona-Chat",
    "teacher_student": "eth-nlped/mathdial",
}
_MOST_TOKENS = 512
_HELD_OUT = 0.1
_MORE_SEEDS = (*DEFAULT_SEEDS, 7, 99)
_MOST_RIVALS = 3
# Configurations of a measured study that say how far the estimates are off.
_MOST_MEASURED = 5


@dataclass(frozen=True)
class Asked:
    """The options, checked."""

    task: str
    model: str
    data: str | None
    memory_bytes: int | None
    budget_seconds: float | None
    goal: Goal
    runs: tuple[Path, ...]


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
    left_out: list[dict[str, str]]
    notes: list[str]


def answered(asked: Asked) -> Answer:
    """Everything but the file and the screen.

    Raises:
        UsageError: the task is unknown, its data are not named, or nothing fits.
        ModelError: the model is not there, or has no form for the task.
    """
    from lorascope.data.task import TASKS

    if asked.task not in TASKS:
        raise UsageError(f"unknown task {asked.task!r}", where="--task", fix=did_you_mean(asked.task, list(TASKS)))
    evidence, studies, left_out = read_studies(asked.runs)
    facts = model_facts(asked.model)
    section, section_why, origin = _task_section(asked, facts, evidence)
    kind, section = _kind(asked, section)
    section, fitted = _lengths(asked, kind, section)
    section_why |= fitted
    task = task_facts(validate(TaskConfig, section, "recommend"), kind)
    evaluate = _evaluate_section(studies, origin, section)
    base = {"model": Choice(absolute(asked.model), "model", "as asked for")}
    shape = TrialConfig.from_flat({"model": asked.model}, 0)
    study = as_study(study_document("probe", base | {"targets": Choice([], "rule", "")}, section, [0], evaluate))
    costs = Costs(study, _measured(task, facts, evidence), Bounds(device=chosen_device()))
    facts = replace(facts, num_params=costs.rows([_without_adapter(shape)])[0][0]["total_params"])
    request = Request(task, facts, asked.goal, asked.memory_bytes, costs.roles(shape))
    advice = advise(request, evidence)
    notes = list(advice.notes)
    choices, most_bytes = _fitting(request, advice, base, costs, notes)
    choices, seeds, seeds_why = _within_budget(asked, choices, costs, notes)
    (cost,) = _rows(costs, [_trial(choices)])
    name = f"recommended-{asked.task.replace('_', '-')}" + ("" if asked.goal == "default" else f"-{asked.goal}")
    document = study_document(name, choices, section, seeds, evaluate)
    reasons = {f"task.{key}": why for key, why in section_why.items()} | {"seeds": seeds_why}
    further = _further(asked, advice, choices, document, costs)
    return Answer(asked, request, advice, choices, document, reasons, cost, most_bytes, further, left_out, notes)


def _task_section(
    asked: Asked, model: ModelFacts, evidence: Sequence[StudyEvidence]
) -> tuple[dict[str, Any], dict[str, str], str | None]:
    """The study file's ``task``, a reason for each key, and the study that it was taken from.

    That of the nearest study of the same task, so that results can be compared with it; other data are taken as they are.
    """
    if asked.data is not None:
        section = {"name": asked.task, "data": absolute(asked.data)}
        probe = task_facts(validate(TaskConfig, section, "--data"), KINDS.get(asked.task, "generation"))
        same = [one for one in evidence if one.task.name == asked.task and one.task.data == probe.data]
    else:
        section = {}
        same = [one for one in evidence if one.task.name == asked.task and asked.task != "file"]
    near = min(same, key=lambda one: (closeness(one.task, model, one.task, one.model) or 0, -_num_trials(one)), default=None)
    if near is not None:
        taken = {key: value for key, value in near.task_section.items() if value not in (None, [])}
        taken["data"] = _absolute_data(taken["data"])
        why = f"as in your study {near.directory}, so that results compare"
        reasons = dict.fromkeys(taken, why)
        if "max_train" in taken:
            reasons["max_train"] = f"{why}; leave it out to train on all there is"
        return taken, reasons, near.directory
    if not section:
        if asked.task not in _PUBLISHED:
            raise UsageError(
                f"where are the data of {asked.task}?", where="--data", fix="give a file, a directory or a hub id"
            )
        section = {"name": asked.task, "data": _PUBLISHED[asked.task]}
        return section, {"name": "as asked for", "data": "where it is published; --data names other data"}, None
    return section, dict.fromkeys(section, "as asked for"), None


def _absolute_data(data: str | Mapping[str, str]) -> str | dict[str, str]:
    return absolute(data) if isinstance(data, str) else {split: absolute(place) for split, place in data.items()}


def _kind(asked: Asked, section: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
    """The kind of task, which of a user's own files they tell, and ``eval_fraction`` where they hold no validation split."""
    from lorascope.data.task import read_task

    places = [section["data"]] if isinstance(section["data"], str) else list(section["data"].values())
    here = all(Path(place).exists() for place in places)
    if not here:
        if asked.task in KINDS:
            return KINDS[asked.task], section
        raise UsageError(
            "these are not on this machine", where=f"--data {places[0]}", fix="give a file or a directory that is"
        )
    try:
        raw = read_task(validate(TaskConfig, section, "--data"))
    except MissingSplit:
        section = section | {"eval_fraction": _HELD_OUT}
        raw = read_task(validate(TaskConfig, section, "--data"))
    return KINDS.get(asked.task, "classification" if raw.task_type == "SEQ_CLS" else "generation"), section


def _lengths(asked: Asked, kind: Kind, section: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """``max_length`` that the model has positions for, with reasons for what is new in the section."""
    from lorascope.base_model import num_positions, read_config

    config = read_config(BaseModelConfig(model=asked.model))
    positions = num_positions(config)
    answer = 0
    if kind != "classification" and not getattr(config, "is_encoder_decoder", False):
        answer = int(DecodingConfig.model_fields["max_new_tokens"].default)
    room = _MOST_TOKENS if positions is None else positions - answer
    wanted = section.get("max_length", _MOST_TOKENS)
    reasons = {}
    if section.get("eval_fraction") == _HELD_OUT and "eval_fraction" not in reasons:
        reasons["eval_fraction"] = "held out of train where the data hold no validation split"
    if room < wanted:
        reasons["max_length"] = f"the model has {positions} positions" + (
            f", {answer} of them for the answer" if answer else ""
        )
    elif "max_length" not in section:
        reasons["max_length"] = "the study file's default; shorter is faster where examples are"
    return section | {"max_length": max(8, min(wanted, room))}, reasons


def _evaluate_section(studies: Mapping[str, Study], origin: str | None, section: Mapping[str, Any]) -> dict[str, Any]:
    """How the study was scored that the task was taken from, as far as it said so."""
    if origin is None:
        return {}
    given: dict[str, Any] = studies[origin].evaluate.model_dump(mode="json", exclude_defaults=True)
    return given


def _measured(task: TaskFacts, model: ModelFacts, evidence: Sequence[StudyEvidence]) -> Path:
    """The study whose measured times correct the estimates: one of the same task and model, or none."""
    same = [one for one in evidence if closeness(task, model, one.task, one.model) == SAME_MODEL[0]]
    largest = max(same, key=_num_trials, default=None)
    return Path("runs/none" if largest is None else largest.directory.partition(" + ")[0])


def _num_trials(one: StudyEvidence) -> int:
    return sum(one.counts().values())


def _without_adapter(trial: TrialConfig) -> TrialConfig:
    return trial.model_copy(update={"adapter": trial.adapter.model_copy(update={"targets": []})})


def _trial(choices: Mapping[str, Choice], seed: int = DEFAULT_SEEDS[0]) -> TrialConfig:
    return TrialConfig.from_flat({key: choice.value for key, choice in choices.items()}, seed)


def _rows(costs: Costs, trials: Sequence[TrialConfig]) -> list[dict[str, Any]]:
    """The plan's rows of these trials; measured ones are planned along, so that what they took corrects the others."""
    from lorascope.compare import is_adapter

    measured = [row for row in costs.measured if row.solo_examples_per_second and is_adapter(row.config)]
    known = {row.configuration: TrialConfig.from_flat(row.config, row.seed) for row in measured}
    return costs.rows([*trials, *list(known.values())[:_MOST_MEASURED]])[0][: len(trials)]


def _fitting(
    request: Request, advice: Advice, base: Mapping[str, Choice], costs: Costs, notes: list[str]
) -> tuple[dict[str, Choice], int]:
    """The advice made to fit into the memory that is allowed, or free; and how much that is."""
    from importlib.util import find_spec

    most = request.memory_bytes or free_bytes(chosen_device())
    can_quantise = find_spec("bitsandbytes") is not None
    choices = {**advice.choices, **base}
    if choices["quantization"].value is not None and not can_quantise:
        why = (
            f"4 bits need bitsandbytes, which is not installed (pip install 'lorascope[quant]'); {choices['quantization'].why}"
        )
        choices |= {"quantization": Choice(None, "memory", why), "dtype": Choice("bfloat16", "memory", "16 bits instead of 4")}

    def forecast(of: Mapping[str, Choice]) -> int:
        return int(costs.rows([_trial(of)])[0][0]["memory_bytes"])

    choices, needed = fit(choices, forecast, most, request.roles, can_quantise=can_quantise)
    if needed > most:
        what = f"nothing fits: the smallest configuration of {request.model.reference} needs {tables.bytes_text(needed)}"
        fix = "allow more, or choose a smaller model or a shorter task.max_length"
        raise UsageError(what, where=f"memory of {tables.bytes_text(most)}", fix=fix)
    if request.memory_bytes is not None and request.memory_bytes < LITTLE_MEMORY_BYTES and request.goal != "better":
        plain = {**choices, **by_rule(request.task.kind, request.roles, "default", None)}
        plain |= {"quantization": Choice(None, "rule", ""), "dtype": Choice("float32", "rule", "")}
        full = forecast(plain)
        if full <= most and any(choice.source == "rule" and "under 8 GB" in choice.why for choice in choices.values()):
            notes.append(
                f"the rule of thumb for under 8 GB gives up more than this model needs: r {plain['r'].value} on "
                f"{shown(plain['targets'].value)} in 32 bits is forecast at {tables.bytes_text(full)} and fits too; "
                "without --memory it is what the rules give"
            )
    return choices, most


def _within_budget(
    asked: Asked, choices: dict[str, Choice], costs: Costs, notes: list[str]
) -> tuple[dict[str, Choice], list[int], str]:
    """As many seeds as the budget has time for, and of one seed as many steps; the seeds with their reason."""
    seeds = list(DEFAULT_SEEDS)
    why = "three seeds: from one nobody can tell how far the next would come out elsewhere"
    (row,) = _rows(costs, [_trial(choices)])
    seconds, budget = row["train_seconds"], asked.budget_seconds
    if budget is None:
        return choices, seeds, why
    if seconds is None:
        notes.append(f"the budget could not be held against anything: {row['reason']}; run --budget holds to it")
        return choices, seeds, why
    affordable = int(budget // seconds) if seconds else len(seeds)
    if affordable < len(seeds):
        seeds = seeds[: max(1, affordable)]
        why = f"{tables.counted(len(seeds), 'seed')}: the budget of {tables.seconds_text(budget)} has time for no more"
        why += f", at about {tables.seconds_text(seconds)} each" + ("; luck is not told from one" if len(seeds) == 1 else "")
    if affordable < 1 and costs.num_examples is not None:
        steps = _trial(choices).train.num_steps(costs.num_examples)
        fewer = max(1, int(steps * budget / seconds))
        because = f"{steps} steps take about {tables.seconds_text(seconds)} and the budget is {tables.seconds_text(budget)}"
        choices = choices | {"max_steps": Choice(fewer, "budget", because)}
        notes.append(f"the budget cuts training from {steps} steps to {fewer}: a result of that says little")
    return choices, seeds, why


def _further(
    asked: Asked, advice: Advice, choices: Mapping[str, Choice], document: Mapping[str, Any], costs: Costs
) -> list[dict[str, Any]]:
    """The studies whose results could change the answer: an ablation over what is not known, and more seeds for the rivals."""
    seeds = document["seeds"] if len(document["seeds"]) > 1 else list(DEFAULT_SEEDS)
    most_seconds = asked.budget_seconds or float("inf")
    found = []
    over = _unknown(advice, choices)
    while over:
        priced = _priced(document, {"kind": "ablation", "over": over}, seeds, costs)
        too_long = priced["train_seconds"] is not None and priced["train_seconds"] > most_seconds
        if not too_long or len(over) == 1:
            what = f"no study of this task and a model of this shape compared {', '.join(over)}"
            found.append({"what": what, "over_budget": too_long, **priced})
            break
        over.popitem()
    others = _rivals(advice, choices)
    if others or not found:
        where = "" if advice.recipe is None else advice.recipe.study.directory
        told = f"not told apart from it in your study {where}: {', '.join(others)}"
        trials = [{}, *others.values()]
        priced = _priced(document, {"kind": "list", "trials": trials}, _MORE_SEEDS, costs)
        too_long = priced["train_seconds"] is not None and priced["train_seconds"] > most_seconds
        found.append({"what": told if others else "does it hold with fresh seeds?", "over_budget": too_long, **priced})
    return found


def _unknown(advice: Advice, choices: Mapping[str, Choice]) -> dict[str, list[Any]]:
    """By key, the other values of what no study compared."""
    asked = {_QUESTION_KEYS[group]: values for group, values in advice.open_questions.items()}
    others = {key: [value for value in values if value != choices[key].value] for key, values in asked.items()}
    return {key: values for key, values in others.items() if values}


def _rivals(advice: Advice, choices: Mapping[str, Choice]) -> dict[str, dict[str, Any]]:
    """Of configurations that could be as good, the best few, each as what it has other than the recommendation."""
    if advice.recipe is None or advice.recipe.chosen is None:
        return {}
    chosen, higher = advice.recipe.chosen, advice.recipe.study.higher_is_better
    ranked = sorted(chosen.rivals, key=lambda one: one.mean, reverse=higher)[:_MOST_RIVALS]
    keys = [key for group in GROUPS.values() for key in group if key in choices]
    others = {}
    for one in (chosen.tried, *ranked):
        overrides = {key: one.config[key] for key in keys if one.config.get(key, choices[key].value) != choices[key].value}
        if overrides:
            others[one.name] = overrides
    return others


_QUESTION_KEYS = {
    "learning_rate": "learning_rate",
    "rank": "r",
    "targets": "targets",
    "lora_dropout": "lora_dropout",
    "bias": "bias",
}


def _priced(document: Mapping[str, Any], design: dict[str, Any], seeds: Sequence[int], costs: Costs) -> dict[str, Any]:
    """A study with this design: its trials and their training time, one after the other."""
    from lorascope.design import expand

    study = as_study({**document, "design": design, "seeds": list(seeds)})
    try:
        rows = _rows(costs, expand(study))
    except ModelError:  # targets of a study on another model, among the rivals
        rows = []
    times = [row["train_seconds"] for row in rows]
    total = None if None in times or not times else sum(times)
    return {"design": design, "seeds": list(seeds), "trials": len(expand(study)), "train_seconds": total}
