"""``lorascope evaluate``: an adapter's score on a task. Floor: cli."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from lorascope.cli import tables
from lorascope.cli.console import AsJson, print_json, stdout, tell
from lorascope.cli.options import Answers, Base, Examples
from lorascope.cli.records import with_records
from lorascope.config import EvaluateConfig, validate
from lorascope.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Scored(Examples):
    """What is scored."""

    task: Annotated[str, typer.Option(help="A task's name, as a study file gives it: sst2, squad, personachat, file, …")]
    data: Annotated[str, typer.Option(help="A file, a directory or a hub id.")]


@dataclass(frozen=True)
class Answering(Answers):
    """How answers are generated, each way to decode beside the others, and who judges them."""

    judge: Annotated[str | None, typer.Option(help="An NLI model or adapter: gives replies to a persona their C-score.")] = (
        None
    )
    judge_data: Annotated[str | None, typer.Option(help="SICK, to measure the judge's own accuracy on.")] = None


@with_records
def evaluate(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A PEFT adapter's directory, or a trial's.")],
    scored: Scored,
    base: Base,
    answering: Answering,
    predictions: Annotated[Path | None, typer.Option(help="Write one JSON line per example here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score an adapter, ours or PEFT's own, on a task."""
    task = scored.task_config(scored.task, scored.data, "evaluate")
    settings = validate(EvaluateConfig, {**scored.evaluation(), **_settings(answering)}, "evaluate")
    from lorascope.cohort.single import evaluate_adapter

    evaluation, facts = evaluate_adapter(adapter, task, settings, base.on_base())
    if predictions is not None:
        from lorascope.store import write_atomically

        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in evaluation.predictions)
        write_atomically(predictions, "".join(lines))
    document = {"adapter": str(adapter), **facts, "metrics": evaluation.metrics}
    if as_json:
        print_json(document)
        return
    for warning in facts["warnings"]:
        tell(f"warning: {warning}")
    for name, value in evaluation.metrics.items():
        typer.echo(f"{name} {value:.4f}")
    row = {"trial": adapter.name, "decoding": facts["decoding"]}
    tables.print_decodings(stdout(), {"study": str(adapter), "trials": [row]})
    tables.print_judge(stdout(), facts["judge"])


def _settings(answering: Answering) -> dict[str, Any]:
    """What the options say of a study file's ``evaluate``."""
    if answering.judge_data is not None and answering.judge is None:
        raise UsageError("there is no judge to measure", where="--judge-data", fix="give one with --judge")
    check = None if answering.judge_data is None else {"data": answering.judge_data}
    judge = None if answering.judge is None else {"model": answering.judge, "check": check}
    return {"decoding": answering.decodings(), "judge": judge}
