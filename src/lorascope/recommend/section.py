"""The study file's ``task`` for a recommendation: which data, of which kind, cut to how many tokens, scored how.

Reads the task's data as far as they are here, and the model's ``config.json``. Does not know adapters or costs. Floor:
``recommend``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorascope.config import BaseModelConfig, DecodingConfig, Study, TaskConfig, validate
from lorascope.errors import MissingSplit, UsageError
from lorascope.recommend.closeness import ModelFacts, closeness
from lorascope.recommend.evidence import StudyEvidence
from lorascope.recommend.facts import absolute, task_facts
from lorascope.recommend.rules import KINDS, Kind

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


def task_section(
    name: str, data: str | None, model: ModelFacts, evidence: Sequence[StudyEvidence]
) -> tuple[dict[str, Any], dict[str, str], str | None]:
    """The study file's ``task``, a reason for each key, and the study that it was taken from.

    That of the nearest study of the same task, so that results can be compared with it; other data are taken as they are.

    Raises:
        UsageError: nobody says where the data are.
    """
    if data is not None:
        section = {"name": name, "data": absolute(data)}
        probe = task_facts(validate(TaskConfig, section, "--data"), KINDS.get(name, "generation"))
        same = [one for one in evidence if one.task.name == name and one.task.data == probe.data]
    else:
        section = {}
        same = [one for one in evidence if one.task.name == name and name != "file"]
    near = min(same, key=lambda one: (closeness(one.task, model, one.task, one.model) or 0, -one.num_trials), default=None)
    if near is not None:
        taken = {key: value for key, value in near.task_section.items() if value not in (None, [])}
        taken["data"] = _absolute_data(taken["data"])
        why = f"as in your study {near.directory}, so that results compare"
        reasons = dict.fromkeys(taken, why)
        if "max_train" in taken:
            reasons["max_train"] = f"{why}; leave it out to train on all there is"
        return taken, reasons, near.directory
    if not section:
        if name not in _PUBLISHED:
            raise UsageError(f"where are the data of {name}?", where="--data", fix="give a file, a directory or a hub id")
        section = {"name": name, "data": _PUBLISHED[name]}
        return section, {"name": "as asked for", "data": "where it is published; --data names other data"}, None
    return section, dict.fromkeys(section, "as asked for"), None


def _absolute_data(data: str | Mapping[str, str]) -> str | dict[str, str]:
    return absolute(data) if isinstance(data, str) else {split: absolute(place) for split, place in data.items()}


def kind_of(name: str, section: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
    """The kind of task, which of a user's own files they tell, and ``eval_fraction`` where they hold no validation split."""
    from lorascope.data.task import read_task

    places = [section["data"]] if isinstance(section["data"], str) else list(section["data"].values())
    here = all(Path(place).exists() for place in places)
    if not here:
        if name in KINDS:
            return KINDS[name], section
        raise UsageError(
            "these are not on this machine", where=f"--data {places[0]}", fix="give a file or a directory that is"
        )
    try:
        raw = read_task(validate(TaskConfig, section, "--data"))
    except MissingSplit:
        section = section | {"eval_fraction": _HELD_OUT}
        raw = read_task(validate(TaskConfig, section, "--data"))
    return KINDS.get(name, "classification" if raw.task_type == "SEQ_CLS" else "generation"), section


def with_lengths(model: str, kind: Kind, section: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """``max_length`` that the model has positions for, with reasons for what is new in the section."""
    from lorascope.base_model import num_positions, read_config

    config = read_config(BaseModelConfig(model=model))
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


def evaluate_section(studies: Mapping[str, Study], origin: str | None) -> dict[str, Any]:
    """How the study was scored that the task was taken from, as far as it said so."""
    if origin is None:
        return {}
    given: dict[str, Any] = studies[origin].evaluate.model_dump(mode="json", exclude_defaults=True)
    return given
