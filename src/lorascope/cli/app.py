"""The commands. Each reads its options, calls one floor below, and prints. Floor: cli.

stdout holds the result (a table, or one JSON document with ``--json``); logs and progress go to stderr. Errors are one line,
with the exit codes 0 done, 1 failed, 2 wrong usage, 3 a check did not hold, 130 interrupted.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope import __version__
from lorascope.cli import data as data_commands
from lorascope.cli import tables
from lorascope.cli.console import Allow, AsJson, Override, print_json, stderr, stdout
from lorascope.config import (
    BaseModelConfig,
    EvaluateConfig,
    SearchDesign,
    ShapleyDesign,
    Study,
    TaskConfig,
    TaskType,
    TrackingConfig,
    TrialConfig,
    load_study,
    parse_duration,
    parse_memory,
    parse_override,
    validate,
)
from lorascope.errors import LorascopeError, UsageError

if TYPE_CHECKING:
    from lorascope.cohort.events import Events
    from lorascope.cohort.proposals import Proposer
    from lorascope.plan import Cost, Workload
    from lorascope.search import Search
    from lorascope.store import Store, TrialRow

# Typer carries its own click in some versions and uses the installed one in others; this is whichever it raises.
_CLICK_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
# Libraries draw over the progress display and log what Lorascope says itself; read by them when they are imported.
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
_INTERRUPTED = 130

app = typer.Typer(name="lorascope", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(data_commands.app)
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (YAML).")]
Adapters = Annotated[
    list[Path] | None,
    typer.Option("--adapter", metavar="DIR", help="An existing PEFT adapter that enters the study as a trial."),
]
Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory that the study may take, e.g. 8GB; what needs more is dropped.")
]
Shard = Annotated[str | None, typer.Option(metavar="I/N", help="Only the I-th of N parts of the trials, from 1.")]


def main() -> None:
    """Entry point: run a command and turn errors into one line and an exit code."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    signal.signal(signal.SIGTERM, _interrupt)
    _prepare_streams()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not debug:
        _quieten_libraries()
    try:
        code = app(arguments, standalone_mode=False) or 0
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
    debug: Annotated[bool, typer.Option("--debug", help="With any command: show tracebacks and libraries' logs.")] = False,
) -> None:
    """A laboratory for LoRA configurations: train whole studies, compare them, keep the adapters."""
    if version:
        typer.echo(f"lorascope {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def plan(
    study_file: StudyFile,
    overrides: Override = None,
    shard: Shard = None,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Training time that the study may take, e.g. 2h.")] = None,
    memory: Memory = None,
    out: Annotated[
        Path | None, typer.Option(help="A study whose measurements correct the estimates; runs/<name> by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Trials of a study: exact parameters, estimated memory and time, what will not fit or be dropped and why."""
    study, trials = _study_and_trials(study_file, overrides, shard, None)
    seconds = None if budget is None else parse_duration(budget)
    most_bytes = None if memory is None else parse_memory(memory)
    document = _planned(study, trials, out or Path("runs") / study.name, seconds, most_bytes)
    if as_json:
        print_json(document)
    else:
        tables.print_plan(stdout(), document)


@app.command()
def run(
    study_file: StudyFile,
    out: Annotated[Path | None, typer.Option(help="The study's directory; runs/<name> by default.")] = None,
    overrides: Override = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a study begun earlier.")] = False,
    shard: Shard = None,
    adapter: Adapters = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Most trials trained together.")] = None,
    memory: Memory = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU by default where there is one.")] = None,
    checkpoint_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="Save a training cohort so often; every minute by default, 0 for every step."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Begin no cohort that would not end in so much time: 90s, 30m, 1h30m.")
    ] = None,
    allow: Allow = None,
    track: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Send curves to wandb, tensorboard or mlflow; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate and store every trial of a study."""
    from lorascope.design import parse_shard

    seconds = None if budget is None else parse_duration(budget)
    started = time.monotonic()
    study, trials = _study_and_trials(study_file, overrides, shard, adapter)
    if track:
        to = {"to": list(dict.fromkeys([*study.tracking.to, *track])), "project": study.tracking.project}
        study = study.model_copy(update={"tracking": validate(TrackingConfig, to, "--track")})
    if allow:
        permitted = study.task.model_copy(update={"allow": list(dict.fromkeys([*study.task.allow, *allow]))})
        study = study.model_copy(update={"task": permitted})
    directory = out or Path("runs") / study.name
    most_bytes = None if memory is None else parse_memory(memory)
    if dry_run:
        document = _planned(study, trials, directory, seconds, most_bytes)
        print_json(document) if as_json else tables.print_plan(stdout(), document)
        return
    if most_bytes is not None and isinstance(trials, list):
        trials = _fitting(study, trials, directory, most_bytes)
    document = run_and_report(
        study,
        trials,
        directory,
        resume=resume,
        slots=slots,
        device=device,
        most_bytes=most_bytes,
        checkpoint_seconds=checkpoint_seconds,
        budget_seconds=None if seconds is None else seconds - (time.monotonic() - started),
        part=None if shard is None else parse_shard(shard),
    )
    if as_json:
        print_json(document)
    else:
        tables.print_results(stdout(), document)
        stderr().print(f"results, adapters and predictions: {directory}", markup=False, highlight=False)
    failed = sum(trial["status"] == "failed" for trial in document["trials"])
    if failed:
        raise LorascopeError(f"{failed} of {len(document['trials'])} trials failed", where=str(directory))


@app.command()
def results(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR…", help="A study, or the shards of one.")],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="TRIAL", help="The trial or configuration that others are compared with; the first by default."),
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
        document = _results(stores, baseline, metric, pairs)
    if as_json:
        print_json(document)
    elif as_csv:
        _print_csv(document)
    else:
        tables.print_results(stdout(), document)


@app.command()
def evaluate(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A PEFT adapter's directory.")],
    task: Annotated[str, typer.Option(help="A task's name, as a study file gives it: sst2, squad, personachat, file, …")],
    data: Annotated[str, typer.Option(help="A file, a directory or a hub id.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    base: Annotated[str | None, typer.Option(help="The base model, where the adapter does not name it.")] = None,
    dtype: Annotated[str, typer.Option(help="The base model's dtype.")] = "float32",
    quantization: Annotated[str | None, typer.Option(help="nf4: score on the base in 4 bits, as it was trained.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="The classes in the adapter's order, for example negative,positive.")
    ] = None,
    max_eval: Annotated[int | None, typer.Option(min=1, help="Only the first so many examples.")] = None,
    max_length: Annotated[int, typer.Option(min=8, help="Most tokens of an example.")] = 512,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 32,
    decode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STRATEGY[,K=V…]", help="A way to decode, e.g. nucleus,top_p=0.9,samples=4; several are compared."
        ),
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="The side of a dialogue that is modelled.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="An NLI model or adapter: gives replies to a persona their C-score.")
    ] = None,
    judge_data: Annotated[str | None, typer.Option(help="SICK, to measure the judge's own accuracy on.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write one JSON line per example here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score an adapter, ours or PEFT's own, on a task."""
    names = None if labels is None else [name.strip() for name in labels.split(",")]
    task_config = validate(
        TaskConfig,
        {"name": task, "data": data, "labels": names, "max_eval": max_eval, "max_length": max_length, "speaker": speaker},
        "evaluate",
    )
    decodings = [{"max_new_tokens": max_new_tokens, **_decoding(text)} for text in decode or ["greedy"]]
    if judge_data is not None and judge is None:
        raise UsageError("there is no judge to measure", where="--judge-data", fix="give one with --judge")
    check = None if judge_data is None else {"data": judge_data}
    judge_values = None if judge is None else {"model": judge, "check": check}
    settings = validate(EvaluateConfig, {"split": split, "decoding": decodings, "judge": judge_values}, "evaluate")
    from lorascope.cohort.single import evaluate_adapter

    evaluation, facts = evaluate_adapter(
        adapter, task_config, settings, base_model=base, dtype=dtype, quantization=quantization
    )
    if predictions is not None:
        from lorascope.store import write_atomically

        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in evaluation.predictions)
        write_atomically(predictions, "".join(lines))
    document = {"adapter": str(adapter), **facts, "metrics": evaluation.metrics}
    if as_json:
        print_json(document)
    else:
        for warning in facts["warnings"]:
            stderr().print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
        for name, value in evaluation.metrics.items():
            typer.echo(f"{name} {value:.4f}")
        row = {"trial": adapter.name, "decoding": facts["decoding"]}
        tables.print_decodings(stdout(), {"study": str(adapter), "trials": [row]})
        tables.print_judge(stdout(), facts["judge"])


def _decoding(text: str) -> dict[str, Any]:
    """``"nucleus,top_p=0.9"`` as a study file writes it."""
    strategy, *settings = text.split(",")
    bare = next((setting for setting in settings if "=" not in setting), None)
    if bare is not None:
        raise UsageError(f"{bare.strip()!r} has no value", where="--decode", fix=f"write {bare.strip()}=VALUE")
    return {"strategy": strategy.strip(), **dict(parse_override(setting) for setting in settings)}


@app.command()
def export(
    trial: Annotated[Path, typer.Argument(metavar="TRIAL", help="A trial's directory, runs/<study>/trials/<trial>.")],
    out: Annotated[Path, typer.Option(help="A new directory for the script and its inputs.")],
    script: Annotated[
        bool, typer.Option("--script", help="Write a standalone PEFT + Trainer script that reproduces the trial.")
    ] = False,
) -> None:
    """Hand a trial to other tools."""
    from lorascope.cohort.script import write_script

    if not script:
        raise UsageError("nothing to export", where="export", fix="add --script; the adapter itself is TRIAL/adapter")
    write_script(trial, out)
    typer.echo(f"{out / 'train_peft.py'}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the model, the data and the study go.")] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """A three-configuration study on a small model and data that this command makes; run again, it shows the results."""
    from lorascope.cli.demo import prepare_demo

    study_file = prepare_demo(out)
    study = load_study(study_file)
    from lorascope.design import expand

    document = run_and_report(study, expand(study), out / "study", resume=True)
    if as_json:
        print_json(document)
        return
    tables.print_results(stdout(), document)
    console = stderr()
    console.print(f"study file: {study_file}", markup=False, highlight=False)
    console.print(f"results, adapters and predictions: {out / 'study'}", markup=False, highlight=False)


def run_and_report(
    study: Study,
    trials: list[TrialConfig] | Proposer,
    directory: Path,
    *,
    resume: bool = False,
    slots: int | None = None,
    device: str | None = None,
    most_bytes: int | None = None,
    checkpoint_seconds: float | None = None,
    budget_seconds: float | None = None,
    part: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Run with progress on stderr; the results document.

    Args:
        part: the shard that this is, as (index from 1, count).

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the step in progress was finished, and the cohort's state saved.
    """
    from lorascope.cohort.deadline import Deadline
    from lorascope.store import Store

    chosen = _device(device)
    if not resume:
        Store.refuse_existing(directory)
    from lorascope.cohort.run import run_study

    proposer = _proposer(study)
    _show(
        run_study(
            study,
            trials if proposer is None else proposer,
            directory,
            first=trials if proposer is not None and isinstance(trials, list) else [],
            resume=resume,
            most_slots=slots,
            device=chosen,
            most_bytes=most_bytes,
            checkpoint_seconds=checkpoint_seconds,
            deadline=None if budget_seconds is None else Deadline(budget_seconds),
        )
    )
    if isinstance(study.design, ShapleyDesign) and study.design.game != "usefulness":
        from lorascope.attribution.maps import draw_maps
        from lorascope.attribution.players import read_game

        seeds = study.seeds if part is None else study.seeds[part[0] - 1 :: part[1]]
        _show(draw_maps(read_game(study), directory, device=chosen, seeds=seeds))
    with Store.open(directory) as store:
        return _results([store])


def _show(running: Events) -> None:
    """Carry something out with its progress on stderr; closed at once whatever ends it, so that its trials say so.

    Raises:
        KeyboardInterrupt: see `run_and_report`.
    """
    from lorascope.cli.progress import StudyProgress

    with StudyProgress(stderr()) as progress, closing(running) as events:
        for event in islice(events, 1):
            progress.show(event)  # until then there is nothing to save
        with _deferred_signals() as interrupted:
            for event in events:
                progress.show(event)
                if interrupted():
                    raise KeyboardInterrupt


def _proposer(study: Study) -> Search | None:
    """What proposes the trials of a search."""
    if not isinstance(study.design, SearchDesign):
        return None
    from lorascope.search import proposer

    return proposer(study)


def _planned(
    study: Study,
    trials: list[TrialConfig] | Proposer,
    directory: Path,
    budget_seconds: float | None = None,
    most_bytes: int | None = None,
) -> dict[str, Any]:
    """The plan; of a search the first proposals, which depend on no result, and what its extremes cost."""
    search = _proposer(study)
    if search is None or not isinstance(trials, list):
        return _plan_document(study, trials, directory, budget_seconds, most_bytes)
    shown = [*trials, *search.propose([])]
    document = _plan_document(study, shown, directory, budget_seconds, most_bytes)
    extremes = _plan_document(study, search.foreseen(), directory)["trials"]
    by_cost = sorted(extremes, key=lambda row: (row["train_seconds"] or 0.0, row["trainable_params"]))
    document["search"] = {
        "over": study.model_dump(mode="json", by_alias=True)["design"]["over"],
        "configurations": search.design.trials,
        "batch": search.batch,
        "cheapest": by_cost[0],
        "costliest": by_cost[-1],
        "does_not_fit": [row["config"] for row in extremes if not row["fits"]],
    }
    return document


def _results(
    stores: Sequence[Store], baseline: str | None = None, metrics: Sequence[str] | None = None, pairs: bool = False
) -> dict[str, Any]:
    """What a study's trials gave, and what they show together; recomputed from the stores, so that shards count as one."""
    from lorascope.attribution.document import shapley_document
    from lorascope.compare import comparisons
    from lorascope.effects import ablation_document, controls_document
    from lorascope.store import merge_results, results_document

    study, rows = stores[0].study, merge_results(stores)
    found = {
        "comparisons": comparisons(stores, baseline=baseline, metrics=metrics, pairs=pairs),
        "shapley": shapley_document(stores),
        "ablation": ablation_document(study, rows),
        "controls": controls_document(study, rows),
        **_search_document(stores),
    }
    return results_document(stores) | {name: document for name, document in found.items() if document is not None}


def _search_document(stores: Sequence[Store]) -> dict[str, Any]:
    """``{"search": …}`` of a search, else nothing."""
    if not isinstance(stores[0].study.design, SearchDesign):
        return {}
    from lorascope.search import search_document
    from lorascope.store import merge_results

    return {"search": search_document(stores[0].study, merge_results(stores))}


def _device(name: str | None) -> str:
    """The device asked for, or the GPU where there is one.

    Raises:
        UsageError: this machine has no such device.
    """
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if num_gpus else []), *(f"cuda:{index}" for index in range(num_gpus))]
    if name is not None and name not in known:
        raise UsageError(f"no device {name!r} here", where="--device", fix=f"use {' or '.join(known)}")
    return name or ("cuda" if num_gpus else "cpu")


def _study_and_trials(
    study_file: Path, overrides: list[str] | None, shard: str | None, adapters: list[Path] | None
) -> tuple[Study, list[TrialConfig] | Proposer]:
    from lorascope import design

    study = load_study(study_file, dict(parse_override(text) for text in overrides or []))
    trials = design.expand(study)
    if isinstance(study.design, ShapleyDesign):
        from lorascope.attribution.players import design_trials, read_game

        proposed = design_trials(read_game(study), trials)
        if not isinstance(proposed, list):
            if shard is not None or adapters:
                where, fix = "--shard" if shard else "--adapter", "leave it out, or give at most 10 players and no coalitions"
                raise UsageError("coalitions are proposed from the results of all earlier ones", where=where, fix=fix)
            return study, proposed
        trials = proposed
    if adapters:
        from lorascope.cohort.single import adapter_trial

        trials += [adapter_trial(study, path) for path in dict.fromkeys(adapters)]
    if shard is not None and isinstance(study.design, SearchDesign):
        what = "a search cannot be cut into shards: what it proposes depends on all that there is"
        raise UsageError(what, where="--shard", fix="run it on one machine")
    if shard is not None:
        trials = design.shard(trials, *design.parse_shard(shard))
        if not trials:
            raise UsageError(f"shard {shard} holds no trial", where="--shard", fix="use fewer shards")
    return study, trials


def _fitting(study: Study, trials: list[TrialConfig], directory: Path, most_bytes: int) -> list[TrialConfig]:
    """The trials that the memory is enough for; the others are named on stderr.

    Raises:
        UsageError: none is left.
    """
    document = _plan_document(study, trials, directory, most_bytes=most_bytes)
    for line in tables.dropped_lines(document["dropped"]):
        stderr().print(line, markup=False, highlight=False, soft_wrap=True)
    names = {one["trial"] for one in document["dropped"]}
    left = [trial for trial in trials if trial.trial not in names]
    if not left:
        raise UsageError("every trial needs more", where="--memory", fix="allow more, or choose a smaller base or batch")
    return left


def _plan_document(
    study: Study,
    trials: list[TrialConfig] | Proposer,
    directory: Path,
    budget_seconds: float | None = None,
    most_bytes: int | None = None,
) -> dict[str, Any]:
    """What ``plan`` prints; one model skeleton per base, one probe per dtype. Of trials that are proposed, the first ones.

    Times are corrected by what an earlier part of the study in ``directory`` measured.
    """
    import psutil

    from lorascope import budget
    from lorascope import plan as planning

    trials = trials if isinstance(trials, list) else trials.propose([])
    work, task_type, num_labels, reason = _workload(study)
    memory = min(psutil.virtual_memory().available, most_bytes or sys.maxsize)
    rates = {dtype: planning.probe_flops(dtype) for dtype in dict.fromkeys(map(planning.product_dtype, trials))}
    skeletons: dict[BaseModelConfig, tuple[Any, tuple[str, ...]]] = {}
    rows = []
    for trial in trials:
        if trial.base not in skeletons:
            skeletons[trial.base] = planning.meta_model(trial, task_type, num_labels)
        cost = planning.estimate(trial, *skeletons[trial.base], work, memory, rates[planning.product_dtype(trial)])
        rows.append(_plan_row(trial, cost, reason))
    measured = _measured_rows(directory)
    source = budget.correct(rows, measured, work.num_examples)
    prices = [
        budget.Price(row["trial"], trial.configuration, row["train_seconds"], row["memory_bytes"], _stacks(trial))
        for trial, row in zip(trials, rows, strict=True)
    ]
    speedup = budget.measured_speedup(measured)
    ratio = budget.ASSUMED_SPEEDUP if speedup is None else speedup[0]
    chosen = budget.select(prices, budget_seconds=budget_seconds, memory_bytes=most_bytes, speedup=ratio)
    document: dict[str, Any] = {
        "study": study.name,
        "trials": rows,
        "dropped": [{"trial": name, "reason": why} for name, why in chosen.dropped.items()],
        "train_seconds_total": chosen.train_seconds,
        "train_seconds_from": source,
        "speedup": {"value": ratio, "measured_cohorts": 0 if speedup is None else speedup[1]},
    }
    if isinstance(study.design, ShapleyDesign):
        from lorascope.attribution.players import game_plan, read_game

        document["shapley"] = game_plan(read_game(study))
    return document


def _stacks(trial: TrialConfig) -> bool:
    return trial.adapter.method != "full" and trial.adapter.path is None


def _measured_rows(directory: Path) -> list[TrialRow]:
    """What an earlier part of the study knows; nothing where there is none."""
    from lorascope.store import DATABASE, Store

    if not (directory / DATABASE).is_file():
        return []
    with Store.open(directory) as store:
        return store.trials()


def _plan_row(trial: TrialConfig, cost: Cost, reason: str | None) -> dict[str, Any]:
    return {
        "trial": trial.trial,
        "seed": trial.seed,
        "config": trial.flat(),
        "trainable_params": cost.trainable_params,
        "total_params": cost.total_params,
        "peft_total_params": cost.peft_total_params,
        "trainable_percent": cost.trainable_percent,
        "memory_bytes": cost.memory_bytes,
        "train_seconds": cost.train_seconds,
        "fits": cost.fits,
        "reason": cost.reason or reason,
    }


def _workload(study: Study) -> tuple[Workload, TaskType, int, str | None]:
    """The data as far as they are at hand: (workload, task type, number of labels, why there is no time estimate)."""
    from dataclasses import replace

    from lorascope import plan as planning
    from lorascope.base_model import load_tokenizer, read_config, task_type_of
    from lorascope.data.task import encode_task, known_form, read_task
    from lorascope.errors import DataError, ModelError
    from lorascope.evaluate import check_metrics

    unknown = planning.Workload(None, None, study.task.max_length)
    form = known_form(study.task)
    places = [study.task.data] if isinstance(study.task.data, str) else list(study.task.data.values())
    if not all(Path(place).expanduser().exists() for place in places):
        if form is None:
            raise DataError("the data are not on this machine", where="task.data", fix="their labels are needed to plan")
        return unknown, *form, f"no time estimate: the data ({places[0]}) are not on this machine"
    raw = read_task(study.task, study.evaluate.split)
    check_metrics(study, raw)
    raw = replace(raw, task_type=task_type_of(read_config(study.base), raw.task_type))
    planning.check_lengths(study.task, study.evaluate, study.base, generates=raw.generates)
    try:
        tokenizer = load_tokenizer(study.base)
        sample = replace(raw, train=raw.train[:256], eval=raw.eval[:1], notices=[])
        encoded = encode_task(sample, tokenizer, study.task.max_length)
    except ModelError:
        return unknown, raw.task_type, len(raw.labels), "no time estimate: the base has no tokenizer here"
    return planning.workload(encoded.train, len(raw.train)), raw.task_type, len(raw.labels), None


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


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _deferred_signals() -> Iterator[Callable[[], bool]]:
    """Within, the first SIGINT or SIGTERM is only noted; a second one interrupts at once.

    Yields:
        Whether one came.
    """
    came: list[int] = []

    def note(number: int, _: object) -> None:
        for each in own:
            signal.signal(each, _interrupt)
        came.append(number)
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\nsaving after the step in progress; interrupt again to end at once\n")

    # Ignored where a shell without job control started the command in the background; that is left alone.
    own = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    own = {each: handler for each, handler in own.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for each in own:
            signal.signal(each, note)
        yield lambda: bool(came)
    finally:
        for each, handler in own.items():
            signal.signal(each, handler)


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
