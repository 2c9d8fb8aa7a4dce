"""``lorascope inspect``: what trained adapters have become. Floor: cli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.analysis.figures import FIGURES
from lorascope.cli import inspection
from lorascope.cli.console import AsJson, print_json, stderr, stdout
from lorascope.cli.progress import StudyProgress
from lorascope.cli.speed import OnBase, print_speed, speed_of
from lorascope.cli.truncate import Scored, print_truncation, truncate_adapter
from lorascope.config import EvaluateConfig, TaskConfig, validate
from lorascope.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from lorascope.analysis.updates import Inspected

_SHOWN = ("effective_rank", "norm")
_SUFFIXES = (".svg", ".png")
_ACTING = ("truncation", "speed")
_PARTS = ("adapters", "overlap", "representations", *_ACTING)


def inspect(
    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER…", help="PEFT adapters' directories, or those of trials; several are compared."),
    ],
    figure: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"What the maps show; may be repeated: {', '.join(FIGURES)}."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture too, FILE.svg or FILE.png.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Compare hidden states with the base's on this task's examples: sst2, squad, file, …")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Its data: a file, a directory or a hub id.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    base: Annotated[str | None, typer.Option(help="The base model, where the adapter does not name it.")] = None,
    dtype: Annotated[str, typer.Option(help="The base model's dtype.")] = "float32",
    quantization: Annotated[str | None, typer.Option(help="nf4: the base in 4 bits.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="The classes in the adapter's order, for example negative,positive.")
    ] = None,
    max_eval: Annotated[int | None, typer.Option(min=1, help="Only the first so many examples.")] = None,
    max_length: Annotated[int, typer.Option(min=8, help="Most tokens of an example.")] = 512,
    speaker: Annotated[str | None, typer.Option(help="The side of a dialogue that is modelled.")] = None,
    truncate: Annotated[
        float | None,
        typer.Option(
            metavar="EPS",
            min=0.0,
            help="Write the adapter with the fewest ranks that lose at most EPS of the task's score to --out; without a task, "
            "of the updates' energy.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="With --truncate: a new directory.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="With --truncate: the score; by default the task's primary metric.")
    ] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="With --truncate: cuts that are scored together; 4.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="With --truncate: most tokens of an answer; 32.")] = None,
    speed: Annotated[
        bool, typer.Option("--speed", help="Measure latency and throughput: merged, unmerged, several on one base.")
    ] = False,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="With --speed: tokens of a prompt; 128.")] = None,
    new_tokens: Annotated[int | None, typer.Option(min=1, help="With --speed: tokens generated after it; 32.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="With --speed: rows of each adapter; 1.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="With --speed: rounds over all configurations; 5.")] = None,
    tenants: Annotated[int | None, typer.Option(min=1, help="With --speed: the most adapters on one base at once; 4.")] = None,
    device: Annotated[str | None, typer.Option(help="With --speed: cpu or cuda; a GPU by default where there is one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sizes, ranks and directions of adapters' updates, layer by module, from their files alone; several are compared."""
    wanted = _figures(figure)
    _check_plot(plot)
    options: dict[str, Any] = {"--data": data, "--base": base, "--quantization": quantization, "--labels": labels}
    options |= {"--max-eval": max_eval, "--speaker": speaker}
    _check_task(task, options if not speed else {**options, "--base": None, "--quantization": None})
    cutting = {"--out": out, "--metric": metric, "--slots": slots, "--max-new-tokens": max_new_tokens}
    _check_truncation(truncate, task, cutting, adapters)
    timing = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batch": batch, "repeats": repeats, "tenants": tenants}
    _check_speed(speed, truncate is None and task is not None, {**timing, "device": device})
    from lorascope.analysis.overlap import overlap_document
    from lorascope.analysis.updates import adapter_document, places_of, read_adapters

    read = read_adapters(adapters)
    places = places_of(module for one in read for module in one.modules)
    document: dict[str, Any] = {
        "adapters": [adapter_document(one, places) for one in read],
        "overlap": overlap_document(read, places),
        "representations": None,
    }
    scored: Scored | None = None
    if task is not None:
        names = None if labels is None else [name.strip() for name in labels.split(",")]
        values = {"name": task, "data": data, "labels": names, "max_eval": max_eval, "max_length": max_length}
        task_config = validate(TaskConfig, {**values, "speaker": speaker}, "inspect")
        decoding = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        settings = validate(EvaluateConfig, {"split": split, "decoding": [decoding]}, "inspect")
        scored = Scored(task_config, settings, metric, base, dtype, quantization)
        if truncate is None:
            chosen = {"base_model": base, "dtype": dtype, "quantization": quantization}
            document["representations"] = _drift(read, task_config, settings, chosen)
    if truncate is not None and out is not None:
        document["truncation"] = truncate_adapter(read[0], truncate, out, scored, slots)
    if speed:
        workload = {name: value for name, value in timing.items() if value is not None}
        document["speed"] = speed_of(read, OnBase(base, dtype, quantization, device), workload)
    document["warnings"] = _warnings(document)
    if plot is not None:
        _draw(document, wanted, plot)
    if as_json:
        print_json(document)
        return
    if "truncation" in document:
        print_truncation(stdout(), document["truncation"])
    if "speed" in document:
        print_speed(stdout(), document["speed"])
    looks = bool(figure) or (truncate is None and not speed)
    if looks:
        inspection.print_inspection(stdout(), document, wanted)
    # Of what is not shown, nothing is told.
    for warning in document["warnings"] if looks else _warnings(document, _ACTING):
        stderr().print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)


def _figures(names: list[str] | None) -> list[str]:
    unknown = next((name for name in names or () if name not in FIGURES), None)
    if unknown is not None:
        raise UsageError(f"there is no figure {unknown!r}", where="--figure", fix=did_you_mean(unknown, list(FIGURES)))
    return list(dict.fromkeys(names or _SHOWN))


def _check_plot(plot: Path | None) -> None:
    if plot is not None and plot.suffix.lower() not in _SUFFIXES:
        raise UsageError("a picture is written as SVG or PNG", where="--plot", fix="give FILE.svg or FILE.png")


def _check_task(task: str | None, options: dict[str, Any]) -> None:
    """Hidden states need a task with its data; options for them mean nothing without."""
    if task is not None and options["--data"] is None:
        raise UsageError("the task has no data", where="--task", fix="give a file, a directory or a hub id with --data")
    idle = next((name for name, value in options.items() if value is not None), None)
    if task is None and idle is not None:
        raise UsageError("it says how to compare hidden states, which needs a task", where=idle, fix="give one with --task")


def _check_truncation(truncate: float | None, task: str | None, options: Mapping[str, Any], adapters: Sequence[Path]) -> None:
    """``--truncate`` has one adapter and a place to write to; what belongs to it means nothing without, or without a task."""
    idle = {name: value for name, value in options.items() if value is not None and (truncate is None or name != "--out")}
    if truncate is None and idle:
        raise UsageError("it belongs to --truncate", where=min(idle), fix="add --truncate EPS")
    if truncate is None:
        return
    if options["--out"] is None:
        raise UsageError("the truncated adapter has no place", where="--truncate", fix="give a new directory with --out")
    if len(adapters) > 1:
        raise UsageError("one adapter is truncated at a time", where="--truncate", fix="give one")
    if task is None and idle:
        raise UsageError("it says how to score, which needs a task", where=min(idle), fix="give one with --task and --data")


def _check_speed(speed: bool, has_idle_task: bool, options: Mapping[str, Any]) -> None:
    """What belongs to ``--speed`` means nothing without; and it needs no task."""
    idle = next((name for name, value in options.items() if value is not None), None)
    if not speed and idle is not None:
        raise UsageError("it belongs to --speed", where=f"--{idle.replace('_', '-')}", fix="add --speed")
    if speed and has_idle_task:
        raise UsageError("it has no effect with --speed", where="--task", fix="measure speed and hidden states one by one")


def _drift(read: list[Inspected], task: TaskConfig, settings: EvaluateConfig, chosen: dict[str, Any]) -> dict[str, Any]:
    """The drift of hidden states, with its progress on stderr."""
    from lorascope.analysis.drift import drift_document
    from lorascope.evaluate import run_to_end

    run = drift_document(read, task, settings, **chosen)
    with StudyProgress(stderr()) as progress:
        return run_to_end(run, progress.show)


def _draw(document: dict[str, Any], figures: list[str], path: Path) -> None:
    from lorascope.analysis.pictures import picture
    from lorascope.store import write_atomically

    write_atomically(path, picture(document, figures, path.suffix.lower().removeprefix(".")))
    stderr().print(f"picture: {path}", markup=False, highlight=False, soft_wrap=True)


def _warnings(document: Mapping[str, Any], parts: Sequence[str] = _PARTS) -> list[str]:
    """What the document's parts warn of."""
    found = [document[name] for name in parts if document.get(name) is not None]
    listed = [one for part in found for one in (part if isinstance(part, list) else [part])]
    return [warning for part in listed for warning in part["warnings"]]
