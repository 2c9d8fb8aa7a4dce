"""``lorascope recommend``: a configuration with its reasons, as a study that runs. Floor: cli.

Knows options, the file, the screen and ``--json``; ``recommend.answer`` finds the answer.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from lorascope.amounts import bytes_text, counted, seconds_text
from lorascope.cli.console import AsJson, Device, print_json, stdout
from lorascope.cli.planning import Bounds, Costs, chosen_device
from lorascope.cli.records import with_records
from lorascope.cli.study import results_of
from lorascope.config import load_study, parse_duration, parse_memory
from lorascope.errors import UsageError, did_you_mean
from lorascope.recommend.advice import STRENGTHS, Weighed
from lorascope.recommend.answer import Answer, Asked, answered
from lorascope.recommend.closeness import ORDER
from lorascope.recommend.rules import Choice, Goal, shown
from lorascope.recommend.studies import read_studies
from lorascope.recommend.study_file import as_study, inline_yaml, study_text

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Question:
    """What a configuration is wanted for."""

    task: Annotated[str, typer.Option(help="A task's name, as a study file gives it: sst2, squad, personachat, file, …")]
    base: Annotated[str, typer.Option(metavar="M", help="The base model: a hub id, or a directory; config.json is enough.")]
    data: Annotated[
        str | None, typer.Option(help="A file, a directory or a hub id; by default your nearest study's, or as published.")
    ] = None
    goal: Annotated[str, typer.Option(help="default, faster, better or overfits (it does, and is not to).")] = "default"


@dataclass(frozen=True)
class Means:
    """What training may take, and where it is to run."""

    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory that it may take, e.g. 8GB; what is free here.")
    ] = None
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Training time that it may take, e.g. 2h.")] = None
    device: Device = None


@with_records
def recommend(
    question: Question,
    means: Means,
    runs: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Your studies, or one of them; may be repeated. Default: runs.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="STUDY", help="Write the study file here.")] = None,
    as_json: AsJson = False,
) -> None:
    """A configuration to begin with, a reason for each value, and what would change the answer."""
    asked = _asked(question, means)
    if out is not None and out.exists():
        raise UsageError("is there already", where=f"--out {out}", fix="choose another name, or remove it")
    own = read_studies(runs or [path for path in (Path("runs"),) if path.is_dir()], results_of)
    answer = answered(asked, own, lambda study, directory: Costs(study, directory, Bounds(device=asked.device)))
    text = written(answer, out)
    if as_json:
        print_json(as_document(answer, out))
        return
    print_answer(stdout(), answer, out)
    if out is None:
        typer.echo("add --out STUDY.yaml to write the study file")
    else:
        typer.echo(f"{out}: {len(text.splitlines())} lines; lorascope run {shlex.quote(str(out))}")


def _asked(question: Question, means: Means) -> Asked:
    goals = get_args(Goal)
    if question.goal not in goals:
        raise UsageError(f"no goal {question.goal!r}", where="--goal", fix=did_you_mean(question.goal, list(goals)))
    return Asked(
        question.task,
        question.base,
        question.data,
        None if means.memory is None else parse_memory(means.memory),
        None if means.budget is None else parse_duration(means.budget),
        question.goal,  # type: ignore[arg-type]
        chosen_device(means.device),
    )


def written(answer: Answer, out: Path | None) -> str:
    """The study file's text, proved to be one that loads; on disk where there is an ``out``."""
    reasons = answer.reasons | {f"{part}.{key}": f"{choice.source}: {choice.why}" for part, key, choice in chosen(answer)}
    text = study_text(answer.document, reasons, _opening(answer), _closing(answer, out))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "study.yaml"
        path.write_text(text, encoding="utf-8")
        assert load_study(path) == as_study(answer.document), "the file does not say what was recommended"
    if out is not None:
        from lorascope.store import write_atomically

        write_atomically(out, text)
    return text


def chosen(answer: Answer) -> list[tuple[str, str, Choice]]:
    """Section, key and choice, in the order of the study file."""
    parts = ("base", "adapter", "train")
    return [(part, key, answer.choices[key]) for part in parts for key in answer.document[part]]


def _opening(answer: Answer) -> list[str]:
    asked = answer.asked
    goal = "" if asked.goal == "default" else f", goal {asked.goal}"
    rests = f"Rests on: {answer.advice.basis}."
    reading = "A comment says why, and holds for the lines below it up to the next."
    return [f"Recommended by lorascope for {asked.task} on {asked.model}{goal}.", rests, *answer.notes, reading]


def _closing(answer: Answer, out: Path | None) -> list[str]:
    told = []
    for further in answer.further:
        told += [f"What would change this: {further['what']}. The study that tells ({_price_text(further)}):"]
        told += [command(answer, further, out)]
    return told


def command(answer: Answer, further: Mapping[str, Any], out: Path | None) -> str:
    """The command line of a study that would change the answer."""
    document = answer.document
    suffix = "ablation" if further["design"]["kind"] == "ablation" else "seeds"
    settings = [f"name={document['name']}-{suffix}", f"design={inline_yaml(further['design'])}"]
    if further["seeds"] != document["seeds"]:
        settings.append(f"seeds={inline_yaml(further['seeds'])}")
    parts = ["lorascope", "run", str(out or "STUDY.yaml"), *(part for each in settings for part in ("--set", each))]
    return " ".join(map(shlex.quote, parts))


def _price_text(further: Mapping[str, Any]) -> str:
    text = counted(further["trials"], "trial")
    if further["train_seconds"] is None:
        return f"{text}, time not known"
    over = ", more than the budget" if further["over_budget"] else ""
    return f"{text}, about {seconds_text(further['train_seconds'])} one after the other{over}"


def as_document(answer: Answer, out: Path | None) -> dict[str, Any]:
    """What ``--json`` prints."""
    reasons = []
    for part, key, choice in chosen(answer):
        reasons.append(
            {
                "key": f"{part}.{key}",
                "value": choice.value,
                "source": choice.source,
                "why": choice.why,
                "study": choice.study,
                "configurations": list(choice.trials),
            }
        )
    return {
        "task": answer.asked.task,
        "kind": answer.request.task.kind,
        "model": answer.document["base"]["model"],
        "goal": answer.asked.goal,
        "memory_bytes": answer.most_bytes,
        "memory_from": "asked for" if answer.asked.memory_bytes is not None else "free on this machine",
        "budget_seconds": answer.asked.budget_seconds,
        "basis": answer.advice.basis,
        "config": {key: value for part in ("base", "adapter", "train") for key, value in answer.document[part].items()},
        "reasons": reasons,
        "notes": answer.notes,
        "forecast": {key: answer.cost[key] for key in _COST_KEYS},
        "evidence": [_weighed_document(one) for one in answer.advice.weighed],
        "left_out": answer.left_out,
        "would_change": [{**further, "command": command(answer, further, out)} for further in answer.further],
        "study": answer.document,
        "out": None if out is None else str(out),
    }


_COST_KEYS = ("trainable_params", "total_params", "trainable_percent", "memory_bytes", "train_seconds", "reason")


def _weighed_document(one: Weighed) -> dict[str, Any]:
    study, chosen = one.study, one.chosen
    return {
        "study": study.name,
        "directory": study.directory,
        "nearness": one.nearness,
        "place": None if one.place is None else one.place + 1,
        "design": study.design,
        "model": study.model.reference,
        "metric": study.metric,
        "configurations": len(study.tried),
        "trials": study.counts(),
        "chosen": None
        if chosen is None
        else {
            "configuration": chosen.tried.name,
            "config": dict(chosen.tried.config),
            "mean": chosen.tried.mean,
            "seeds": len(chosen.tried.scores),
            "trials": [] if chosen.strength == "map" else [f"{chosen.tried.name}-s{seed}" for seed in chosen.tried.scores],
            "strength": chosen.strength,
            "why": chosen.why,
            "not_told_apart": [rival.name for rival in chosen.rivals],
            "notes": list(chosen.notes),
        },
        "use": one.use,
    }


def print_answer(console: Console, answer: Answer, out: Path | None = None) -> None:
    """The recommendation, the studies it weighed, what it takes, and what would change it."""
    from rich.markup import escape
    from rich.table import Table

    goal = "" if answer.asked.goal == "default" else f", goal {answer.asked.goal}"
    title = f"{answer.asked.task} on {answer.asked.model}{goal}"
    table = Table(title=escape(title), title_justify="left", show_lines=True)
    for header in ("recommended", "from", "why"):
        table.add_column(header, overflow="fold", no_wrap=header == "from", max_width=30 if header == "recommended" else None)
    alike: dict[tuple[str, str], list[str]] = {}
    for _, key, choice in chosen(answer):
        alike.setdefault((choice.source, choice.why), []).append(f"{key} {shown(choice.value)}")
    for (source, why), values in alike.items():
        if source not in ("default", "model"):
            table.add_row(*map(escape, ("\n".join(values), source, why)))
    defaults = [value for (source, _), values in alike.items() if source == "default" for value in values]
    console.print(table)
    lines = [f"rests on: {answer.advice.basis}"]
    lines += [f"by default, for no rule speaks of it: {', '.join(defaults)}"] if defaults else []
    _print_lines(console, lines)
    if answer.advice.weighed:
        _print_weighed(console, answer.advice.weighed)
    lines = [f"left out: {one['directory']}: {one['reason']}" for one in answer.left_out]
    lines += [f"note: {note}" for note in answer.notes]
    _print_lines(console, [*lines, *_cost_lines(answer)])
    for further in answer.further:
        what = f"what would change this: {further['what']} ({_price_text(further)})"
        _print_lines(console, [what, f"  {command(answer, further, out)}"])


def _print_weighed(console: Console, weighed: Sequence[Weighed]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="your studies, nearest first", title_justify="left", show_lines=True)
    for header in ("study", "nearness", "trials", "speaks for", "use"):
        table.add_column(header, overflow="fold")
    for one in weighed:
        counts = ", ".join(f"{number} {status}" for status, number in one.study.counts().items())
        place = one.nearness if one.place is None else f"{one.place + 1} of {len(ORDER)}: {one.nearness}"
        speaks = "–"
        if one.chosen is not None:
            tried = one.chosen.tried
            score = f"{one.study.metric} {tried.mean:.4f} over {counted(len(tried.scores), 'seed')}"
            speaks = f"{tried.name}: {score}; {STRENGTHS[one.chosen.strength]}"
        table.add_row(*map(escape, (one.study.directory, place, counts, speaks, one.use)))
    console.print(table)


def _cost_lines(answer: Answer) -> list[str]:
    cost, seeds = answer.cost, len(answer.document["seeds"])
    where = "allowed" if answer.asked.memory_bytes is not None else "free here"
    memory = f"{bytes_text(cost['memory_bytes'])} of {bytes_text(answer.most_bytes)} {where}"
    params = f"{cost['trainable_params']:,} of {cost['total_params']:,} parameters ({cost['trainable_percent']:.4f} %)"
    time = cost["train_seconds"]
    taking = cost["reason"] if time is None else f"about {seconds_text(time)} a seed, {counted(seeds, 'seed')}"
    return [f"forecast: {params}; memory {memory}; training {taking}"]


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
