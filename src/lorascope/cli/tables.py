"""Tables for people: the plan of a study and its results. Floor: cli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

# Shown in every table, whether they vary or not.
_ALWAYS = ("r", "lora_alpha", "targets")
# Too long for a column; `study.yaml` and --json have them.
_NEVER = ("model", "revision")


def varying_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys worth a column: rank, alpha and targets, and whatever differs between trials."""
    keys = dict.fromkeys(key for config in configs for key in config if key not in _NEVER)
    varying = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    return [*(key for key in _ALWAYS if key in keys), *(key for key in varying if key not in _ALWAYS)]


def print_plan(console: Console, document: Mapping[str, Any]) -> None:
    """The output of ``lorascope plan``."""
    trials = document["trials"]
    table = Table(title=f"{document['study']}: {len(trials)} trials", title_justify="left")
    table.add_column("trial", no_wrap=True)
    keys = varying_keys([trial["config"] for trial in trials])
    for key in keys:
        table.add_column(key)
    for name in ("trainable", "all", "%", "memory", "time", "fits"):
        table.add_column(name, justify="right", no_wrap=True)
    for trial in trials:
        table.add_row(
            trial["trial"],
            *(text_of(trial["config"].get(key)) for key in keys),
            f"{trial['trainable_params']:,}",
            f"{trial['total_params']:,}",
            f"{trial['trainable_percent']:.4f}",
            bytes_text(trial["memory_bytes"]),
            seconds_text(trial["train_seconds"]),
            "yes" if trial["fits"] else "no",
        )
    console.print(table)
    for trial in trials:
        if trial["reason"]:
            console.print(f"{trial['trial']}: {trial['reason']}", markup=False, highlight=False)


def print_results(console: Console, document: Mapping[str, Any]) -> None:
    """The output of ``lorascope results``."""
    trials = document["trials"]
    metrics = list(dict.fromkeys(name for trial in trials for name in trial["metrics"]))
    table = Table(title=f"{document['study']}: {len(trials)} trials", title_justify="left")
    table.add_column("trial", no_wrap=True)
    table.add_column("status")
    keys = varying_keys([trial["config"] for trial in trials])
    for key in keys:
        table.add_column(key)
    for name in (*metrics, "trainable", "%", "alone: s/epoch", "ex/s", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for trial in trials:
        percent = trial["trainable_percent"]
        table.add_row(
            trial["trial"],
            trial["status"],
            *(text_of(trial["config"].get(key)) for key in keys),
            *(number_text(trial["metrics"].get(name)) for name in metrics),
            "–" if trial["trainable_params"] is None else f"{trial['trainable_params']:,}",
            "–" if percent is None else f"{percent:.4f}",
            seconds_text(trial["solo_train_seconds_per_epoch"]),
            number_text(trial["solo_examples_per_second"], 1),
            bytes_text(trial["solo_peak_memory_bytes"]),
        )
    console.print(table)
    unsettled = [trial for trial in trials if trial["status"] != "done"]
    if unsettled:
        counts = ", ".join(
            f"{sum(trial['status'] == status for trial in unsettled)} {status}"
            for status in dict.fromkeys(trial["status"] for trial in unsettled)
        )
        console.print(f"{len(unsettled)} of {len(trials)} trials have no score: {counts}", highlight=False)


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
