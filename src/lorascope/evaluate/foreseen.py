"""Which metrics an evaluation will give, known from the task before anything is trained. Floor: ``evaluate``."""

from __future__ import annotations

from lorascope.config import EvaluateConfig, SearchDesign, ShapleyDesign, Study
from lorascope.data.task import RawTask
from lorascope.errors import UsageError


def foreseen_metrics(task: RawTask, settings: EvaluateConfig) -> list[str]:
    """The metrics with a direction that every trial of the task has once it is evaluated."""
    if task.task_type == "SEQ_CLS":
        return [*task.metric_names, "eval_loss"]
    names = ["eval_loss", "perplexity"]
    if any(len(record.candidates) > 1 for record in task.eval):
        names.append("hits_at_1")
    if not task.generates:
        return names
    for name in task.metric_names:
        if name == "squad_v2":
            names += _squad_v2(task)
        elif name != "self_bleu" or settings.decoding[0].samples > 1:
            names.append(name)
    if settings.judge is not None and _has_personas(task):
        names.append("c_score")
    return names


def check_metrics(study: Study, task: RawTask) -> None:
    """What the study's design goes by is found to be among the metrics that its trials will have.

    Raises:
        UsageError: it is not.
    """
    design = study.design
    if isinstance(design, SearchDesign):
        wanted, key = [design.objective], "objective"
    elif isinstance(design, ShapleyDesign):
        wanted, key = design.values or [], "values"
    else:
        return
    there = foreseen_metrics(task, study.evaluate)
    for name in wanted:
        if name not in there:
            fix = f"use one of {', '.join(there)}"
            if name == "c_score" and task.generates and _has_personas(task):
                fix = f"name an NLI model under evaluate.judge, or {fix}"
            where = study.place("design", key)
            raise UsageError(f"the evaluation of {study.task.name} here gives no {name}", where=where, fix=fix)


def _has_personas(task: RawTask) -> bool:
    return any(record.persona for record in task.eval)


def _squad_v2(task: RawTask) -> list[str]:
    there = {bool(record.answers) for record in task.eval}
    kinds = [prefix for prefix, has_answer in (("has_ans_", True), ("no_ans_", False)) if has_answer in there]
    if all(record.candidates for record in task.eval):
        kinds.append("best_")
    return [prefix + score for prefix in ("", *kinds) for score in ("exact_match", "f1")]
