"""``lorascope inspect``: what trained adapters have become. Floor: cli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.analysis.figures import FIGURES
from lorascope.cli import inspection
from lorascope.cli.console import AsJson, print_json, stderr, stdout, tell
from lorascope.cli.options import Answers, Base, Examples
from lorascope.cli.progress import StudyProgress
from lorascope.cli.records import given, with_records
from lorascope.cli.speed import print_speed, speed_of
from lorascope.cli.truncate import print_truncation, told
from lorascope.config import EvaluateConfig, validate
from lorascope.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from lorascope.analysis.updates import Inspected
    from lorascope.smallest_adapter import Cut, Scoring

_SHOWN = ("effective_rank", "norm")
_SUFFIXES = (".svg", ".png")
_ACTING = ("truncation", "speed")
_PARTS = ("adapters", "overlap", "representations", *_ACTING)


@dataclass(frozen=True)
class Looks:
    """How updates are shown."""

    figure: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"What the maps show; may be repeated: {', '.join(FIGURES)}."),
    ] = None
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture too, FILE.svg or FILE.png.")] = None


@dataclass(frozen=True, kw_only=True)
class OnTask(Examples):
    """Examples that hidden states are compared on, or a cut is scored on."""

    task: Annotated[
        str | None, typer.Option(help="Compare hidden states with the base's on this task's examples: sst2, squad, file, …")
    ] = None
    data: Annotated[str | None, typer.Option(help="Its data: a file, a directory or a hub id.")] = None


@dataclass(frozen=True)
class Running(Base):
    """The base that adapters run on, with a task or for their speed."""

    slots: Annotated[
        int | None,
        typer.Option(min=1, help="Most at once on one base: with --truncate cuts that are scored, with --speed adapters; 4."),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Of an answer: with --truncate the most, with --speed as many as are timed; 32."),
    ] = None


@dataclass(frozen=True)
class Cutting:
    """How an adapter is cut."""

    truncate: Annotated[
        float | None,
        typer.Option(
            metavar="EPS",
            min=0.0,
            help="Write the adapter with the fewest ranks that lose at most EPS of the task's score to --out; without a task, "
            "of the updates' energy.",
        ),
    ] = None
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="With --truncate: a new directory.")] = None
    metric: Annotated[str | None, typer.Option(help="With --truncate: the score; by default the task's primary metric.")] = (
        None
    )


@dataclass(frozen=True)
class Timing:
    """What is timed."""

    speed: Annotated[
        bool, typer.Option("--speed", help="Measure latency and throughput: merged, unmerged, several on one base.")
    ] = False
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="With --speed: tokens of a prompt; 128.")] = None
    batch: Annotated[int | None, typer.Option(min=1, help="With --speed: rows of each adapter; 1.")] = None
    repeats: Annotated[int | None, typer.Option(min=1, help="With --speed: rounds over all configurations; 5.")] = None


@with_records
def inspect(
    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER…", help="PEFT adapters' directories, or those of trials; several are compared."),
    ],
    looks: Looks,
    on_task: OnTask,
    running: Running,
    cutting: Cutting,
    timing: Timing,
    as_json: AsJson = False,
) -> None:
    """Sizes, ranks and directions of adapters' updates, layer by module, from their files alone; several are compared."""
    wanted = _figures(looks.figure)
    _check_looks(looks, as_json)
    _check_task(on_task, running, cutting, timing)
    _check_truncation(cutting, on_task, adapters)
    _check_speed(timing, cutting, on_task)
    shows = bool(looks.figure) or (cutting.truncate is None and not timing.speed)
    figures = shows or as_json or looks.plot is not None
    document = _document(adapters, on_task, running, cutting, timing, with_figures=figures)
    if looks.plot is not None:
        _draw(document, wanted, looks.plot)
    if as_json:
        print_json(document)
        return
    if "truncation" in document:
        print_truncation(stdout(), document["truncation"])
    if "speed" in document:
        print_speed(stdout(), document["speed"])
    if shows:
        inspection.print_inspection(stdout(), document, wanted)
    # Of what is not shown, nothing is told.
    for warning in document["warnings"] if shows else _warnings(document, _ACTING):
        tell(f"warning: {warning}")


def _document(
    directories: Sequence[Path],
    on_task: OnTask,
    running: Running,
    cutting: Cutting,
    timing: Timing,
    *,
    with_figures: bool,
) -> dict[str, Any]:
    """What ``--json`` prints; without the updates' figures where nobody looks at them."""
    from lorascope.analysis.overlap import overlap_document
    from lorascope.analysis.updates import adapter_document, places_of, read_adapters

    runs = on_task.task is not None or cutting.truncate is not None or timing.speed
    read = read_adapters(directories, factors_only=not runs)
    places = places_of(module for one in read for module in one.modules)
    document: dict[str, Any] = {
        "adapters": [adapter_document(one, places) for one in read] if with_figures else [],
        "overlap": overlap_document(read, places) if with_figures else None,
        "representations": None,
    }
    timed = read
    if cutting.truncate is not None and cutting.out is not None:
        document["truncation"] = _cut(read[0], on_task, running, cutting).document()
        if timing.speed:
            tell(f"written to {cutting.out}")
            # What was cut is what one wants to know the speed of, beside that of the whole.
            timed = read_adapters([*directories, cutting.out], factors_only=False)
    elif on_task.task is not None:
        document["representations"] = _drift(read, _scoring(on_task, running, cutting))
    if timing.speed:
        document["speed"] = speed_of(timed, running.on_base(), _workload(timing, running))
    return document | {"warnings": _warnings(document)}


def _cut(one: Inspected, on_task: OnTask, running: Running, cutting: Cutting) -> Cut:
    """The smallest adapter inside this one, written."""
    from lorascope.smallest_adapter import cut_by_energy, cut_by_score

    assert cutting.truncate is not None
    assert cutting.out is not None
    if on_task.task is None:
        return cut_by_energy(one, cutting.truncate, cutting.out)
    return told(cut_by_score(one, cutting.truncate, cutting.out, _scoring(on_task, running, cutting)))


def _workload(timing: Timing, running: Running) -> dict[str, int]:
    """What was given of ``speed.Workload``."""
    values = {"prompt_tokens": timing.prompt_tokens, "batch": timing.batch, "repeats": timing.repeats}
    values |= {"new_tokens": running.max_new_tokens, "tenants": running.slots}
    return {name: value for name, value in values.items() if value is not None}


def _scoring(on_task: OnTask, running: Running, cutting: Cutting) -> Scoring:
    """What the score is of, or hidden states are compared on."""
    from lorascope.smallest_adapter import Scoring

    decodings = Answers(max_new_tokens=running.max_new_tokens).decodings()
    task = on_task.task_config(on_task.task, on_task.data, "inspect")
    settings = validate(EvaluateConfig, {"decoding": decodings, **on_task.evaluation()}, "inspect")
    bound = {} if running.slots is None else {"num_slots": running.slots}
    return Scoring(task, settings, running.on_base(), cutting.metric, **bound)


def _figures(names: list[str] | None) -> list[str]:
    unknown = next((name for name in names or () if name not in FIGURES), None)
    if unknown is not None:
        raise UsageError(f"there is no figure {unknown!r}", where="--figure", fix=did_you_mean(unknown, list(FIGURES)))
    return list(dict.fromkeys(names or _SHOWN))


def _check_looks(looks: Looks, as_json: bool) -> None:
    if looks.plot is not None and looks.plot.suffix.lower() not in _SUFFIXES:
        raise UsageError("a picture is written as SVG or PNG", where="--plot", fix="give FILE.svg or FILE.png")
    if looks.figure and as_json and looks.plot is None:
        fix = "leave it out, or draw it with --plot"
        raise UsageError("it says what maps show, and --json holds every figure", where="--figure", fix=fix)


def _check_task(on_task: OnTask, running: Running, cutting: Cutting, timing: Timing) -> None:
    """A task needs its data; what belongs to a task means nothing without, nor what belongs to a base where none is loaded."""
    if on_task.task is not None:
        if on_task.data is None:
            raise UsageError("the task has no data", where="--task", fix="give a file, a directory or a hub id with --data")
        acts = cutting.truncate is not None or timing.speed
        for option in () if acts else given(running, "base", "dtype", "quantization", "device"):
            raise UsageError("hidden states need no such bound", where=option, fix="leave it out, or add --truncate EPS")
        return
    for option in given(on_task):
        raise UsageError(
            "it says on what to compare or to score, which needs a task", where=option, fix="give one with --task"
        )
    for option in given(running) if not timing.speed else ():
        fix = "leave it out, or give --task and --data, or --speed"
        raise UsageError("the adapter's files are read alone, without a base", where=option, fix=fix)


def _check_truncation(cutting: Cutting, on_task: OnTask, adapters: Sequence[Path]) -> None:
    """``--truncate`` has one adapter and a place to write to; what belongs to it means nothing without, or without a task."""
    if cutting.truncate is None:
        for option in given(cutting):
            raise UsageError("it belongs to --truncate", where=option, fix="add --truncate EPS")
        return
    if cutting.out is None:
        raise UsageError("the truncated adapter has no place", where="--truncate", fix="give a new directory with --out")
    if len(adapters) > 1:
        raise UsageError("one adapter is truncated at a time", where="--truncate", fix="give one")
    for option in given(cutting, "truncate", "out") if on_task.task is None else ():
        raise UsageError("it says how to score, which needs a task", where=option, fix="give one with --task and --data")


def _check_speed(timing: Timing, cutting: Cutting, on_task: OnTask) -> None:
    """What belongs to ``--speed`` means nothing without; and it needs no task."""
    for option in given(timing) if not timing.speed else ():
        raise UsageError("it belongs to --speed", where=option, fix="add --speed")
    if timing.speed and cutting.truncate is None and on_task.task is not None:
        raise UsageError("it has no effect with --speed", where="--task", fix="measure speed and hidden states one by one")


def _drift(read: list[Inspected], scoring: Scoring) -> dict[str, Any]:
    """The drift of hidden states, with its progress on stderr."""
    from lorascope.analysis.drift import drift_document
    from lorascope.evaluate import run_to_end

    with StudyProgress(stderr()) as progress:
        return run_to_end(drift_document(read, scoring.task, scoring.settings, scoring.on), progress.show)


def _draw(document: dict[str, Any], figures: list[str], path: Path) -> None:
    from lorascope.analysis.pictures import picture
    from lorascope.store import write_atomically

    write_atomically(path, picture(document, figures, path.suffix.lower().removeprefix(".")))
    tell(f"picture: {path}")


def _warnings(document: Mapping[str, Any], parts: Sequence[str] = _PARTS) -> list[str]:
    """What the document's parts warn of."""
    found = [document[name] for name in parts if document.get(name) is not None]
    listed = [one for part in found for one in (part if isinstance(part, list) else [part])]
    return [warning for part in listed for warning in part["warnings"]]
