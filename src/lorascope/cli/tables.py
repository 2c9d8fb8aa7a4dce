"""Tables for people: the plan of a study and its results. Floor: cli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lorascope.config import AdapterConfig

# Shown in every table, whether they vary or not.
_ALWAYS = ("r", "lora_alpha", "targets")

_ADAPTER_KEYS = frozenset(AdapterConfig.model_fields)
# Words rather than numbers.
_LEFT = ("trial", "status", "configuration", "against", "verdict")

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
    lines = [f"{'' if len(names) == len(trials) else ', '.join(names) + ': '}{reason}" for reason, names in reasons.items()]
    for line in [*lines, *dropped_lines(document.get("dropped", ())), *_total_lines(document)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def dropped_lines(dropped: Sequence[Mapping[str, Any]]) -> list[str]:
    """Reason by reason, the configurations that are dropped."""
    reasons: dict[str, dict[str, None]] = {}
    for one in dropped:
        reasons.setdefault(one["reason"], {})[one["trial"].rpartition("-s")[0]] = None
    return [f"dropped: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _total_lines(document: Mapping[str, Any]) -> list[str]:
    """What training takes in all, and what that rests on."""
    total = document.get("train_seconds_total")
    if total is None:
        return []
    speedup = document["speedup"]
    kept = counted(len(document["trials"]) - len(document["dropped"]), "trial")
    cohorts = speedup["measured_cohorts"]
    how = f"as measured on {counted(cohorts, 'cohort')}" if cohorts else "assumed: none was measured"
    share = f"trials of one cohort together {speedup['value']:.2f} times as fast as one after the other ({how})"
    return [f"training of {kept}: about {seconds_text(total)}; times {document['train_seconds_from']}; {share}"]


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
    print_comparisons(console, document)
    print_decodings(console, document)
    print_ablation(console, document)
    print_controls(console, document)
    if "c_score" in metrics:
        print_judge(console, document["judge"])
    unsettled = [trial for trial in trials if trial["status"] != "done"]
    if unsettled:
        counts = ", ".join(
            f"{sum(trial['status'] == status for trial in unsettled)} {status}"
            for status in dict.fromkeys(trial["status"] for trial in unsettled)
        )
        console.print(f"{len(unsettled)} of {len(trials)} trials have no score: {counts}", highlight=False)


def print_comparisons(console: Console, document: Mapping[str, Any]) -> None:
    """Which configurations differ, and how sure that is; nothing where there is one configuration."""
    compared = document.get("comparisons") or {"rows": []}
    rows = compared["rows"]
    if not rows:
        return
    fewest, metrics = compared["fewest_seeds"], ", ".join(compared["metrics"])
    if all(row["verdict"] == "too few seeds" for row in rows):
        message = f"no verdict on {metrics}: no two configurations have {fewest} seeds in common, the fewest that tell luck"
        console.print(message, markup=False, highlight=False, soft_wrap=True)
        return
    configs = {trial["trial"].partition("-s")[0]: trial["config"] for trial in document["trials"]}
    chosen = [{"config": configs[row["configuration"]]} for row in rows]
    varying = _config_columns([*chosen, *({"config": configs[row["against"]]} for row in rows)])
    columns = {
        "configuration": [row["configuration"] for row in rows],
        **({"against": [row["against"] for row in rows]} if compared["baseline"] is None else {}),
        **{key: cells[: len(rows)] for key, cells in varying.items()},
        **({"metric": [row["metric"] for row in rows]} if len(compared["metrics"]) > 1 else {}),
        "difference": [_signed(row["difference"]) for row in rows],
        f"{compared['level']:.0%} interval": [
            "–" if row["low"] is None else f"{_signed(row['low'])} … {_signed(row['high'])}" for row in rows
        ],
        "p": [number_text(row["p_holm"]) for row in rows],
        "verdict": [row["verdict"] for row in rows],
        "seeds": [str(row["seeds"]) for row in rows],
        "examples": ["–" if row["examples"] is None else f"{row['examples']:,}" for row in rows],
    }
    against = "every two configurations" if compared["baseline"] is None else f"against {compared['baseline']}"
    if compared["baseline"] is not None:
        against += f" ({', '.join(f'{key} {cells[-1]}' for key, cells in varying.items())})"
    title = f"{document['study']}: {metrics} {against}"
    dispensable = ("examples", "p", *(key for key in varying if key not in _ALWAYS), *_ALWAYS)
    _print_table(console, title, columns, varying.keys(), [name for name in dispensable if name in columns])
    lines = [f"p and verdict: {compared['correction']}; intervals: each for itself"]
    lines += dict.fromkeys(row["note"] for row in rows if row["note"])
    for name, counts in compared["configurations"].items():
        lost = ", ".join(f"{number} {status}" for status, number in counts.items() if status != "done")
        lines += [f"{name}: {lost} of {counted(sum(counts.values()), 'seed')}"] if lost else []
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


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


def print_ablation(console: Console, document: Mapping[str, Any]) -> None:
    """Factor by factor: the mean over seeds, and the difference to the baseline."""
    ablation = document.get("ablation")
    if ablation is None:
        return
    rows, metric = ablation["rows"], ablation["metric"]
    columns = {
        "factor": [row["factor"] for row in rows],
        "value": ["" if row["factor"] == "baseline" else text_of(row["value"]) for row in rows],
        metric: [mean_text(row["mean"], row["interval"]) for row in rows],
        "Δ to baseline": [
            "baseline"
            if row["configuration"] == rows[0]["configuration"]
            else mean_text(row["delta"], row["delta_interval"], "+")
            for row in rows
        ],
        "seeds": [_seeds_text(row) for row in rows],
    }
    percent = f"{ablation['confidence']:.0%}"
    _print_table(console, f"{document['study']}: one factor at a time (± {percent} over seeds)", columns, {"value"}, ())


def print_controls(console: Console, document: Mapping[str, Any]) -> None:
    """How far each adapter falls short of full fine-tuning, and of a head alone."""
    controls = document.get("controls")
    if controls is None:
        return
    metric, margin = controls["metric"], controls["margin_percent"]
    for method, found in controls["methods"].items():
        best = found["chosen"]
        if best is None:
            line = f"{method}: no configuration has a score with every seed, so there is nothing to hold adapters against"
        else:
            rates = counted(len(found["tried"]), "configuration")
            edge = "; it is the first or last that was tried, a better one may lie beyond" if found["at_edge"] else ""
            score = f"{metric} {mean_text(best['mean'], best['interval'])} over {counted(best['num_seeds'], 'seed')}"
            line = f"{method}: {score} at learning rate {best['learning_rate']:g}, the best of {rates}{edge}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    rows = controls["shortfalls"]
    if rows:
        columns = {
            "configuration": [row["configuration"] for row in rows],
            **_config_columns(rows),
            metric: [mean_text(row["mean"], row["interval"]) for row in rows],
            "against": [row["against"] for row in rows],
            "shortfall": [mean_text(row["shortfall"], row["interval_of_shortfall"], "+") for row in rows],
            "%": ["–" if row["percent"] is None else f"{row['percent']:+.2f}" for row in rows],
            f"within {margin:g} %": [{None: "–", True: "yes", False: "no"}[row["within_margin"]] for row in rows],
        }
        title = f"{document['study']}: shortfall against controls"
        _print_table(console, title, columns, _config_columns(rows).keys(), (metric, "configuration", "lora_alpha"))
    console.print(f"a control is the best by {controls['chosen_on']}", markup=False, highlight=False, soft_wrap=True)


def _seeds_text(row: Mapping[str, Any]) -> str:
    """``3``, or ``2 of 3`` where a trial has no score."""
    return str(row["num_seeds"]) if row["num_seeds"] == row["num_trials"] else f"{row['num_seeds']} of {row['num_trials']}"


def mean_text(value: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    """``0.9123 ± 0.0040``; no interval where there was one value."""
    if value is None:
        return "–"
    half = "" if interval is None else f" ± {(interval[1] - interval[0]) / 2:.4f}"
    return f"{value:{sign}.4f}{half}"


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
    return {key: [_config_text(trial["config"], key) for trial in trials] for key in keys}


def _config_text(config: Mapping[str, Any], key: str) -> str:
    """What a trial that has no adapter says of one is a default that acts on nothing."""
    idle = key != "method" and key in _ADAPTER_KEYS and config.get("method", "lora") != "lora"
    return text_of(None if idle else config.get(key))


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
        left = header in folding or header in _LEFT
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
