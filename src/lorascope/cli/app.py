"""The commands. Each reads its options, calls one floor below, and prints. Floor: cli.

stdout holds the result (a table, or one JSON document with ``--json``); logs and progress go to stderr. Errors are one line,
with the exit codes 0 done, 1 failed, 2 wrong usage, 3 a check did not hold, 130 interrupted.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from lorascope import __version__
from lorascope.cli import data as data_commands
from lorascope.cli import tables
from lorascope.cli.console import DEBUG, Allow, AsJson, Device, Override, offered, print_json, stdout, tell
from lorascope.cli.doctor import doctor
from lorascope.cli.evaluate import evaluate
from lorascope.cli.examples import NAME, examples_of, print_start
from lorascope.cli.export import export
from lorascope.cli.generate import chat, generate
from lorascope.cli.inspect import inspect
from lorascope.cli.merge import merge
from lorascope.cli.planning import Bounds, chosen_device, fitting, planned, study_and_trials
from lorascope.cli.recommend import recommend
from lorascope.cli.report import report
from lorascope.cli.study import interrupt, results_of, run_and_report
from lorascope.config import TrackingConfig, parse_duration, parse_memory, validate
from lorascope.errors import LorascopeError, UsageError

# Typer carries its own click in some versions and uses the installed one in others; this is whichever it raises.
_CLICK_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
# Libraries draw over the progress display and log what Lorascope says itself; read by them when they are imported.
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
_INTERRUPTED = 130

app = typer.Typer(name=NAME, pretty_exceptions_enable=False, rich_markup_mode=None, epilog=examples_of(""))
app.add_typer(data_commands.app)
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (YAML).")]
Adapters = Annotated[
    list[Path] | None,
    typer.Option("--adapter", metavar="DIR", help="An existing PEFT adapter, or another run's trial, enters as a trial."),
]
Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory that the study may take, e.g. 8GB; what needs more is dropped.")
]
Shard = Annotated[str | None, typer.Option(metavar="I/N", help="Only the I-th of N parts of the trials, from 1.")]


def main() -> None:
    """Entry point: run a command and turn errors into one line and an exit code."""
    debug = DEBUG in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    signal.signal(signal.SIGTERM, interrupt)
    _prepare_streams()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not debug:
        _quieten_libraries()
    try:
        code = app(arguments, prog_name=NAME, standalone_mode=False) or 0
        if code == _INTERRUPTED:  # some versions of Typer make an exit code of Ctrl-C themselves
            raise KeyboardInterrupt
        sys.stdout.flush()  # here, where a reader that has gone is still an error to be caught
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, message = _explain(error, arguments)
        sys.stderr.write(f"lorascope: {' '.join(message.split())}\n")
    sys.exit(code)


def _explain(error: BaseException, arguments: list[str]) -> tuple[int, str]:
    """The exit code that an error means, and its one line."""
    if isinstance(error, LorascopeError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        resumable = "; what was saved is kept, go on with --resume" if arguments[:1] == ["run"] else ""
        return _INTERRUPTED, f"interrupted{resumable}"
    if isinstance(error, _CLICK_USAGE_ERROR):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "lorascope"
        return 2, f"{error.format_message().rstrip('.')}; see {command} --help"  # type: ignore[attr-defined]
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return 1, f"{what[:300]} (unexpected; --debug shows where)"


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="With any command: show tracebacks and libraries' logs.")] = False,
) -> None:
    """A laboratory for LoRA configurations: train whole studies, compare them, keep the adapters."""
    if version:
        typer.echo(f"lorascope {__version__}")
    elif context.invoked_subcommand is None:
        print_start(stdout())


@app.command(epilog=examples_of("plan"))
def plan(
    study_file: StudyFile,
    overrides: Override = None,
    shard: Shard = None,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Training time that the study may take, e.g. 2h.")] = None,
    memory: Memory = None,
    out: Annotated[
        Path | None, typer.Option(help="A study whose measurements correct the estimates; runs/<name> by default.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Trials of a study: exact parameters, estimated memory and time, what will not fit or be dropped and why."""
    from lorascope.design import parse_shard

    study, trials = study_and_trials(study_file, overrides, shard, None)
    bounds = Bounds(
        None if budget is None else parse_duration(budget),
        None if memory is None else parse_memory(memory),
        chosen_device(device),
        None if shard is None else parse_shard(shard),
    )
    document = planned(study, trials, out or Path("runs") / study.name, bounds)
    if as_json:
        print_json(document)
    else:
        tables.print_plan(stdout(), document)


@app.command(epilog=examples_of("run"))
def run(
    study_file: StudyFile,
    out: Annotated[Path | None, typer.Option(help="The study's directory; runs/<name> by default.")] = None,
    overrides: Override = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a study begun earlier.")] = False,
    shard: Shard = None,
    adapter: Adapters = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Most trials trained together.")] = None,
    memory: Memory = None,
    device: Device = None,
    checkpoint_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="Save a training cohort so often; every minute by default, 0 for every step."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Begin no cohort that would not end in so much time: 90s, 30m, 1h30m.")
    ] = None,
    allow: Allow = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Send curves to wandb, tensorboard or mlflow; may be repeated.",
            autocompletion=offered("wandb", "tensorboard", "mlflow"),
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate and store every trial of a study."""
    from lorascope.design import parse_shard
    from lorascope.store import Store

    started = time.monotonic()
    seconds = None if budget is None else parse_duration(budget)
    study, trials = study_and_trials(study_file, overrides, shard, adapter)
    if track:
        to = {"to": list(dict.fromkeys([*study.tracking.to, *track])), "project": study.tracking.project}
        study = study.model_copy(update={"tracking": validate(TrackingConfig, to, "--track")})
    if allow:
        permitted = study.task.model_copy(update={"allow": list(dict.fromkeys([*study.task.allow, *allow]))})
        study = study.model_copy(update={"task": permitted})
    directory = out or Path("runs") / study.name
    most_bytes = None if memory is None else parse_memory(memory)
    part = None if shard is None else parse_shard(shard)
    bounds = Bounds(seconds, most_bytes, chosen_device(device), part, resume)
    if dry_run:
        document = planned(study, trials, directory, bounds)
        print_json(document) if as_json else tables.print_plan(stdout(), document)
        return
    if not resume:
        Store.refuse_existing(directory)
    from lorascope.cohort.deadline import Deadline
    from lorascope.cohort.run import Limits

    trials = fitting(study, trials, directory, bounds)
    deadline = None if seconds is None else Deadline(seconds, spent_seconds=time.monotonic() - started)
    limits = Limits(bounds.device, slots, most_bytes, checkpoint_seconds, deadline)
    document = run_and_report(study, trials, directory, resume=resume, limits=limits, part=part)
    if as_json:
        print_json(document)
    else:
        tables.print_results(stdout(), document)
        tell(f"results, adapters, predictions and report.html: {directory}")
    failed = sum(trial["status"] == "failed" for trial in document["trials"])
    if failed:
        raise LorascopeError(f"{failed} of {len(document['trials'])} trials failed", where=str(directory))


@app.command(epilog=examples_of("results"))
def results(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR…", help="A study, or the shards of one.")],
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="TRIAL", help="The trial or configuration that others are compared with; by default the first adapter."
        ),
    ] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Compare every two configurations.")] = False,
    metric: Annotated[
        list[str] | None, typer.Option(help="What is compared; may be repeated, and all of it is corrected together.")
    ] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """One row per trial, and what they show together: which configurations differ, what each player adds."""
    from lorascope.store import Store

    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other", where="results", fix="give one of them")
    if pairs and baseline is not None:
        raise UsageError("--pairs and --baseline exclude each other", where="results", fix="give one of them")
    with ExitStack() as opened:
        stores = [opened.enter_context(Store.open(directory)) for directory in directories]
        document = results_of(stores, baseline, metric, pairs)
    if as_json:
        print_json(document)
    elif as_csv:
        _print_csv(document)
    else:
        tables.print_results(stdout(), document)


for command in (evaluate, generate, chat, inspect, merge, export, recommend, report, doctor):
    app.command(epilog=examples_of(command.__name__))(command)


@app.command(epilog=examples_of("demo"))
def demo(
    out: Annotated[Path, typer.Option(help="Where the data and the study go.")] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Which attention projections does persona dialogue need? A Shapley study on what comes along; then shown again."""
    from lorascope.cli.demo import prepare_demo

    study_file = prepare_demo(out)
    study, trials = study_and_trials(study_file, None, None, None)
    document = run_and_report(study, trials, out / "study", resume=True)
    if as_json:
        print_json(document)
        return
    tables.print_results(stdout(), document)
    tell(f"the study; change it, and `lorascope run` it: {study_file}")
    tell(f"results, adapters, predictions and report.html: {out / 'study'}")


def _print_csv(document: dict[str, Any]) -> None:
    rows = []
    for trial in document["trials"]:
        flat = {key: value for key, value in trial.items() if not isinstance(value, dict | list)}
        for key, value in trial["config"].items():
            flat[f"config.{key}"] = " ".join(map(str, value)) if isinstance(value, list) else value
        rows.append(flat | {f"metrics.{key}": value for key, value in trial["metrics"].items()})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _prepare_streams() -> None:
    """A character that the terminal's encoding lacks, or a path that is no text, must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _quieten_libraries() -> None:
    """Keep the libraries' warnings, log lines and progress bars off stderr."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
