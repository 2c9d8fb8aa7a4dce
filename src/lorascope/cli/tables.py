"""Tables for people: the plan of a study and its results. Floor: cli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Shown in every table, whether they vary or not.
_ALWAYS = ("r", "lora_alpha", "targets")

# A configuration's value may be folded down to so many characters.
_FOLD_WIDTH = 12


def varying_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys worth a column: rank, alpha and targets, and whatever differs between trials."""
    keys = dict.fromkeys(key for config in configs for key in config)
    varying = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    return [*(key for key in _ALWAYS if key in keys), *(key for key in varying if key not in _ALWAYS)]


def print_plan(console: Console, document: Mapping[str, Any]) -> None:
    """The output of ``lorascope plan``."""
    trials = document["trials"]
    columns = {
        "trial": [trial["trial"] for trial in trials],
        **_config_columns(trials),
        "trainable": [f"{trial['trainable_params']:,}" for trial in trials],
        "all": [f"{trial['total_params']:,}" for trial in trials],
        "%": [f"{trial['trainable_percent']:.4f}" for trial in trials],
        "memory": [bytes_text(trial["memory_bytes"]) for trial in trials],
        "time": [seconds_text(trial["train_seconds"]) for trial in trials],
        "fits": ["yes" if trial["fits"] else "no" for trial in trials],
    }
    _print_table(console, _title(document), columns, _config_columns(trials).keys(), ("all", "%", "memory"))
    reasons: dict[str, list[str]] = {}
    for trial in trials:
        if trial["reason"]:
            reasons.setdefault(trial["reason"], []).append(trial["trial"])
    if "search" in document:
        _print_space(console, document["search"])
    for reason, names in reasons.items():
        who = "" if len(names) == len(trials) else f"{', '.join(names)}: "
        console.print(f"{who}{reason}", markup=False, highlight=False, soft_wrap=True)


def print_results(console: Console, document: Mapping[str, Any]) -> None:
    """The output of ``lorascope results``."""
    trials = document["trials"]
    metrics = list(dict.fromkeys(name for trial in trials for name in trial["metrics"]))
    columns = {
        "trial": [trial["trial"] for trial in trials],
        "status": [trial["status"] for trial in trials],
        **_config_columns(trials),
        **{name: [number_text(trial["metrics"].get(name)) for trial in trials] for name in metrics},
        "trainable": ["–" if (n := trial["trainable_params"]) is None else f"{n:,}" for trial in trials],
        "%": [number_text(trial["trainable_percent"]) for trial in trials],
        "alone: s/epoch": [seconds_text(trial["solo_train_seconds_per_epoch"]) for trial in trials],
        "ex/s": [number_text(trial["solo_examples_per_second"], 1) for trial in trials],
        "memory": [bytes_text(trial["solo_peak_memory_bytes"]) for trial in trials],
    }
    # A column is whole or absent: half a number looks like another one.
    dispensable = ("ex/s", "%", "memory", "alone: s/epoch", "trainable", *reversed(metrics))
    _print_table(console, _title(document), columns, _config_columns(trials).keys(), dispensable)
    print_decodings(console, document)
    if "search" in document:
        print_search(console, document)
    if "c_score" in metrics:
        print_judge(console, document["judge"])
    unsettled = [trial for trial in trials if trial["status"] != "done"]
    if unsettled:
        counts = ", ".join(
            f"{sum(trial['status'] == status for trial in unsettled)} {status}"
            for status in dict.fromkeys(trial["status"] for trial in unsettled)
        )
        console.print(f"{len(unsettled)} of {len(trials)} trials have no score: {counts}", highlight=False)


def print_search(console: Console, document: Mapping[str, Any]) -> None:
    """A search's configurations, best first, how its best score grew, and which keys mattered."""
    search = document["search"]
    rows = search["configurations"]
    name = search["objective"]
    columns = {
        "configuration": [row["configuration"] for row in rows],
        "proposed": [str(row["number"] + 1) for row in rows],
        **{key: [text_of(row["values"][key]) for row in rows] for key in (rows[0]["values"] if rows else ())},
        name: [number_text(row["objective"]) for row in rows],
        "status": [
            row["status"] if (rung := row["last_rung"]) is None or row["objective"] is not None
            else f"{row['status']} at step {rung['step']}: {rung['objective']:.4f}"
            for row in rows
        ],
    }  # fmt: skip
    title = f"{document['study']}: {counted(len(rows), 'configuration')} by {search['sampler']}, best first"
    folding = {*(rows[0]["values"] if rows else ()), "status"}
    _print_table(console, title, columns, folding, ("proposed",))
    if search["best"] is not None:
        grown = [step for step, before in zip(search["course"], [None, *search["course"]], strict=False)
                 if step["best"] is not None and (before is None or step["best"] != before["best"])]  # fmt: skip
        steps = ", ".join(f"{step['best']:.4f} ({step['proposed']})" for step in grown)
        console.print(f"best: {search['best']}; {name} by configurations proposed: {steps}", highlight=False, soft_wrap=True)
    if search["importances"]:
        shares = ", ".join(f"{key} {share:.2f}" for key, share in search["importances"].items())
        console.print(f"share of each key in {name} (fANOVA): {shares}", highlight=False, soft_wrap=True)


def _print_space(console: Console, search: Mapping[str, Any]) -> None:
    """What a search's plan adds: how much is proposed, and what the cheapest and the costliest configurations take."""
    text = f"{counted(search['configurations'], 'configuration')} in all, {search['batch']} at a time; the first are shown"
    console.print(f"{text}: they depend on no result", highlight=False, soft_wrap=True)
    for which in ("cheapest", "costliest"):
        row = search[which]
        cost = (
            f"{row['trainable_params']:,} parameters, {bytes_text(row['memory_bytes'])}, {seconds_text(row['train_seconds'])}"
        )
        console.print(f"{which}: {cost}", highlight=False, soft_wrap=True)


def print_decodings(console: Console, document: Mapping[str, Any]) -> None:
    """Adapter × way of decoding, where there are several ways: score, diversity, length and speed."""
    rows = [(trial, one) for trial in document["trials"] for one in trial["decoding"]]
    if all(len(trial["decoding"]) < 2 for trial in document["trials"]):
        return
    metrics = list(dict.fromkeys(name for _, one in rows for name in one["metrics"]))
    columns = {
        "trial": [trial["trial"] for trial, _ in rows],
        "decoding": [one["label"] for _, one in rows],
        **{name: [number_text(one["metrics"].get(name)) for _, one in rows] for name in metrics},
        "tokens": [number_text(one["tokens_per_answer"], 1) for _, one in rows],
        "answers/s": [number_text(one["answers_per_second"], 1) for _, one in rows],
        "unfinished": [str(one["unfinished"]) for _, one in rows],
    }
    title = f"{document['study']}: {counted(len({one['label'] for _, one in rows}), 'decoding')}"
    dispensable = ("unfinished", *reversed(metrics))
    _print_table(console, title, columns, {"decoding"}, dispensable)


def print_judge(console: Console, judge: Mapping[str, Any] | None) -> None:
    """Whose opinion a C-score is, and how often it is right."""
    if judge is None:
        return
    name = judge["model"] if judge["revision"] is None else f"{judge['model']} at {judge['revision'][:12]}"
    name = name if judge["adapter"] is None else f"{name} with {judge['adapter']}"
    check = judge["check"]
    known = (
        "its accuracy was not measured (give evaluate.judge.check)"
        if check is None
        else f"accuracy {check['accuracy']:.4f} on {check['num_examples']:,} examples of {check['task']} ({check['split']})"
    )
    console.print(f"c_score is judged by {name}: {known}", markup=False, highlight=False, soft_wrap=True)


def _title(document: Mapping[str, Any]) -> str:
    return f"{document['study']}: {counted(len(document['trials']), 'trial')}"


def _config_columns(trials: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    keys = varying_keys([trial["config"] for trial in trials])
    return {key: [text_of(trial["config"].get(key)) for trial in trials] for key in keys}


def _print_table(
    console: Console,
    title: str,
    columns: Mapping[str, Sequence[str]],
    folding: Set[str],
    dispensable: Sequence[str],
) -> None:
    """Print the columns; on a narrow terminal the folding ones fold, and then the dispensable ones go, by name."""
    shown = dict(columns)
    hidden = []
    for name in dispensable:
        if sum(_width(header, cells, header in folding) for header, cells in shown.items()) < console.width:
            break
        hidden.append(name)
        del shown[name]
    table = Table(title=escape(title), title_justify="left")
    for header in shown:
        left = header in folding or header in ("trial", "status")
        table.add_column(escape(header), justify="left" if left else "right", overflow="fold", no_wrap=header not in folding)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*map(escape, row))
    console.print(table)
    if hidden:
        console.print(f"no room for: {', '.join(hidden)} (--json has all)", markup=False, highlight=False)


def _width(header: str, cells: Sequence[str], folds: bool) -> int:
    """Characters that a column takes with its padding and border."""
    width = max(map(cell_len, (header, *cells)))
    return 3 + (min(width, _FOLD_WIDTH) if folds else width)


def text_of(value: Any) -> str:
    """A configuration's value in a cell."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "(none)"
    return f"{value:g}" if isinstance(value, float) else str(value)


def number_text(value: float | None, digits: int = 4) -> str:
    """A metric in a cell."""
    return "–" if value is None else f"{value:.{digits}f}"


def counted(number: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def bytes_text(value: int | None) -> str:
    """MiB or GiB."""
    if value is None:
        return "–"
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def seconds_text(value: float | None) -> str:
    """Seconds, minutes or hours."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
