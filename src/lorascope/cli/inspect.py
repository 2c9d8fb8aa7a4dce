"""``lorascope inspect``: what trained adapters have become. Floor: cli."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.analysis.figures import FIGURES
from lorascope.cli import inspection
from lorascope.cli.console import AsJson, print_json, stderr, stdout
from lorascope.cli.progress import StudyProgress
from lorascope.config import EvaluateConfig, TaskConfig, validate
from lorascope.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from lorascope.analysis.updates import Inspected

_SHOWN = ("effective_rank", "norm")
_SUFFIXES = (".svg", ".png")


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
    as_json: AsJson = False,
) -> None:
    """Sizes, ranks and directions of adapters' updates, layer by module, from their files alone; several are compared."""
    wanted = _figures(figure)
    _check_plot(plot)
    options = {"--data": data, "--base": base, "--quantization": quantization, "--labels": labels, "--speaker": speaker}
    _check_task(task, {**options, "--max-eval": max_eval})
    from lorascope.analysis.overlap import overlap_document
    from lorascope.analysis.updates import adapter_document, places_of, read_adapters

    read = read_adapters(adapters)
    places = places_of(module for one in read for module in one.modules)
    document: dict[str, Any] = {
        "adapters": [adapter_document(one, places) for one in read],
        "overlap": overlap_document(read, places),
        "representations": None,
    }
    if task is not None:
        names = None if labels is None else [name.strip() for name in labels.split(",")]
        values = {"name": task, "data": data, "labels": names, "max_eval": max_eval, "max_length": max_length}
        task_config = validate(TaskConfig, {**values, "speaker": speaker}, "inspect")
        settings = validate(EvaluateConfig, {"split": split}, "inspect")
        chosen = {"base_model": base, "dtype": dtype, "quantization": quantization}
        document["representations"] = _drift(read, task_config, settings, chosen)
    # What acts on an adapter instead of looking at it (a smaller rank) comes here, and adds its own key to the document.
    document["warnings"] = _warnings(document)
    if plot is not None:
        _draw(document, wanted, plot)
    if as_json:
        print_json(document)
        return
    inspection.print_inspection(stdout(), document, wanted)
    for warning in document["warnings"]:
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


def _drift(read: list[Inspected], task: TaskConfig, settings: EvaluateConfig, chosen: dict[str, Any]) -> dict[str, Any]:
    """The drift of hidden states, with its progress on stderr."""
    from lorascope.analysis.drift import drift_document

    run = drift_document(read, task, settings, **chosen)
    with StudyProgress(stderr()) as progress:
        while True:
            try:
                progress.show(next(run))
            except StopIteration as stop:
                found: dict[str, Any] = stop.value
                return found


def _draw(document: dict[str, Any], figures: list[str], path: Path) -> None:
    from lorascope.analysis.pictures import picture
    from lorascope.store import write_atomically

    write_atomically(path, picture(document, figures, path.suffix.lower().removeprefix(".")))
    stderr().print(f"picture: {path}", markup=False, highlight=False, soft_wrap=True)


def _warnings(document: dict[str, Any]) -> list[str]:
    parts = [*document["adapters"], document["overlap"], document["representations"]]
    return [warning for part in parts if part is not None for warning in part["warnings"]]
