"""Sections about configurations: scores and differences, ablations, controls, searches, ways of decoding.

Figures are those of ``lorascope results``; here they get columns and pictures. Floor: ``report``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from lorascope.amounts import counted
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.report import charts
from lorascope.report.blocks import (
    Block,
    Cell,
    Column,
    Figure,
    Figures,
    Notes,
    Section,
    Table,
    numbers,
    parameters,
    scores,
    words,
)
from lorascope.report.blocks import useful as with_figures
from lorascope.report.findings import Configuration, Findings
from lorascope.report.words import (
    brief,
    decimals_for,
    decimals_of_measured,
    listed,
    mebibytes,
    metric_name,
    number,
    setting_text,
)

_VERDICT_KINDS = {"better": "good", "worse": "bad", "not distinguishable": "quiet", "too few seeds": "quiet"}
# Rows of a picture; the table has all.
_MOST_BARS = 40


def arrow(metric: str) -> str:
    """The direction in which a metric is better."""
    return {True: " ↑", False: " ↓", None: ""}[HIGHER_IS_BETTER.get(metric)]


def direction(metric: str) -> str:
    """The same in words."""
    return {True: "higher is better", False: "lower is better", None: "no direction"}[HIGHER_IS_BETTER.get(metric)]


def configurations_section(found: Findings) -> Section:
    """Every configuration with its scores over the seeds, and how it stands against the baseline."""
    blocks: list[Block] = []
    rows = [row for row in found.results["comparisons"]["rows"] if row["difference"] is not None]
    if rows and found.metric is not None:
        blocks.append(Figures([_differences(found, rows)]))
    blocks.append(configurations_table(found))
    seeds = len({trial["seed"] for trial in found.trials})
    lead = f"{counted(len(found.configurations), 'configuration')} over {counted(seeds, 'seed')}, best first."
    if found.baseline is not None and len(found.configurations) > 1:
        chosen = found.results["comparisons"]["baseline_chosen"]
        lead += f" The baseline is {found.baseline.label} ({found.baseline.name}): {chosen}."
    return Section("configurations", "Configurations", lead, blocks)


def _differences(found: Findings, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Every configuration against the baseline."""
    name, compared = metric_name(found.metric or ""), found.results["comparisons"]
    order = {one.name: index for index, one in enumerate(found.ranked)}
    rows = sorted(rows, key=lambda row: order.get(row["configuration"], len(order)))
    shown = rows[:_MOST_BARS]
    halves = [(row["high"] - row["low"]) / 2 for row in shown if row["low"] is not None]
    decimals = decimals_for([row["difference"] for row in shown], halves)
    drawn = [
        charts.Bar(
            found.by_name[row["configuration"]].label,
            row["difference"],
            row["low"],
            row["high"],
            number(row["difference"], decimals, sign=True),
            "strong" if row["verdict"] in ("better", "worse") else "quiet",
        )
        for row in shown
    ]
    told = [f"{bar.label} {bar.written}, {row['verdict']}" for bar, row in zip(drawn, shown, strict=True)]
    baseline = "" if found.baseline is None else f" (here: {found.baseline.label})"
    helps = "to the right is better" if found.higher else "to the left is better"
    left_out = f" The first {len(shown)} of {len(rows)} are drawn." if len(shown) < len(rows) else ""
    caption = (
        f"Difference of {name} to the baseline{baseline}, 95 % interval; {helps}. Filled: told from chance after correction "
        f"({compared['correction']}). Intervals are each for itself.{left_out}"
    )
    unit = found.unit(found.metric or "")
    axis = f"difference of {name}{f' ({unit})' if unit else ''}"
    says = f"Differences of {name} to the baseline: {'; '.join(told)}"
    return Figure(charts.differences(drawn, axis, says), f"{name[:1].upper()}{name[1:]} against the baseline", caption)


def configurations_table(found: Findings) -> Table:
    """One row per configuration, best first, those without a score last."""
    scored = {one.name for one in found.ranked}
    ones = [*found.ranked, *(one for one in found.configurations if one.name not in scored)]
    compared = {row["configuration"]: row for row in found.results["comparisons"]["rows"] if row["metric"] == found.metric}
    times = [one.seconds for one in ones]
    columns = [_names(found, ones), *_score(found, ones, found.metrics[:1])]
    columns += _against_baseline(found, ones, compared) if compared else []
    columns += [
        _seeds(ones),
        parameters([one.parameters for one in ones], [one.percent for one in ones]),
        numbers("time alone", times, decimals=decimals_of_measured(times), unit="s / epoch"),
        numbers("memory alone", [mebibytes(one.memory_bytes) for one in ones], decimals=0, unit="MiB, peak"),
        *_score(found, ones, found.metrics[1:]),
    ]
    note = (
        "± is Student’s 95 % interval of the mean over seeds. Δ is paired by seed and, where the predictions allow it, by "
        "example. Time and memory are one short training of this configuration alone, without an interval."
    )
    return Table(with_figures(columns), "Scores and costs", note, is_sortable=len(ones) > 1, is_stacked=True)


def _names(found: Findings, ones: Sequence[Configuration]) -> Column:
    marks = {found.baseline.name: ", the baseline"} if found.baseline is not None and len(ones) > 1 else {}
    cells = [Cell(one.label, more=one.name + marks.get(one.name, "")) for one in ones]
    return Column("configuration", cells, hint="below it the first eight digits of its hash, its name in results and trials")


def _score(found: Findings, ones: Sequence[Configuration], metrics: Sequence[str]) -> list[Column]:
    columns = []
    for metric in metrics:
        known = [one.scores.get(metric) for one in ones]
        triples = [(None, None, None) if one is None else (one.mean, one.low, one.high) for one in known]
        title = metric_name(metric) + arrow(metric)
        columns.append(scores(title, triples, unit=found.unit(metric), hint=f"{metric}, mean over seeds; {direction(metric)}"))
    return columns


def _against_baseline(
    found: Findings, ones: Sequence[Configuration], compared: Mapping[str, Mapping[str, Any]]
) -> list[Column]:
    rows = [compared.get(one.name) for one in ones]
    triples = [(None, None, None) if row is None else (row["difference"], row["low"], row["high"]) for row in rows]
    title, unit = f"Δ {metric_name(found.metric or '')}", "to the baseline"
    verdicts = ["" if row is None else row["verdict"] for row in rows]
    return [
        words("verdict", verdicts, kinds=[_VERDICT_KINDS.get(verdict, "") for verdict in verdicts]),
        scores(title, triples, unit=unit, plus_minus=False, sign=True, hint="difference to the baseline, 95 % interval"),
        numbers("p", [None if row is None else row["p_holm"] for row in rows], decimals=3, hint="corrected by Holm’s method"),
    ]


def _seeds(ones: Sequence[Configuration]) -> Column:
    cells = []
    for one in ones:
        total = len(one.trials)
        text = str(total) if one.num_done == total else f"{one.num_done} of {total}"
        cells.append(Cell(text, float(one.num_done), kind="" if one.num_done == total else "bad"))
    return Column("seeds", cells, "done", is_number=True)


# Ablations and controls


def ablation_section(found: Findings) -> Section | None:
    """One factor at a time: the mean over seeds, and what the value changed."""
    ablation = found.results.get("ablation")
    if not ablation:
        return None
    rows, metric = ablation["rows"], ablation["metric"]
    means = [(row["mean"], *(row["interval"] or (None, None))) for row in rows]
    deltas = [(row["delta"], *(row["delta_interval"] or (None, None))) for row in rows]
    values = ["the study’s own" if row["factor"] == "baseline" else _value_text(row["factor"], row["value"]) for row in rows]
    columns = [
        words("factor", [row["factor"] for row in rows]),
        words("value", values),
        scores(metric_name(metric) + arrow(metric), means, unit=found.unit(metric)),
        scores("Δ to the baseline", deltas, sign=True),
        words("seeds", [_of(row["num_seeds"], row["num_trials"]) for row in rows]),
    ]
    lead = "Each row changes one factor of the baseline and leaves the rest. ± is a 95 % interval over seeds, each for itself."
    return Section("factors", "One factor at a time", lead, [Table(columns, "Factors", is_sortable=True)])


def _value_text(factor: str, value: Any) -> str:
    return setting_text(factor, value) or str(value)


def _of(some: int, every: int) -> str:
    return str(some) if some == every else f"{some} of {every}"


def controls_section(found: Findings) -> Section | None:
    """How far adapters fall short of full fine-tuning, and of a head alone."""
    controls = found.results.get("controls")
    if not controls:
        return None
    metric = metric_name(controls["metric"])
    told = []
    for method, tried in controls["methods"].items():
        best, name = tried["chosen"], setting_method(method)
        if best is None:
            told.append(f"{name}: no configuration has a score with every seed, so there is nothing to hold adapters against.")
            continue
        edge = " It is the first or last that was tried: a better one may lie beyond." if tried["at_edge"] else ""
        told.append(
            f"{name}: {metric} {brief(best['mean'])} over {counted(best['num_seeds'], 'seed')} at learning rate "
            f"{best['learning_rate']:g}, the best of {counted(len(tried['tried']), 'configuration')}.{edge}"
        )
    blocks: list[Block] = [Notes(told)]
    rows = controls["shortfalls"]
    if rows:
        within = {None: "not known", True: "yes", False: "no"}
        missing = [(row["shortfall"], *(row["interval_of_shortfall"] or (None, None))) for row in rows]
        columns = [
            words("configuration", [found.by_name[row["configuration"]].label for row in rows]),
            words("against", [setting_method(row["against"]) for row in rows]),
            scores("shortfall", missing, sign=True),
            scores("of the control", [(row["percent"], *(row["percent_interval"] or (None, None))) for row in rows], unit="%",
                   plus_minus=False, sign=True),
            words(f"within {controls['margin_percent']:g} %", [within[row["within_margin"]] for row in rows]),
            words("paired seeds", [_of(row["paired_seeds"], row["num_trials"]) for row in rows]),
        ]  # fmt: skip
        note = f"Positive: the adapter is worse. A control is the best by {controls['chosen_on']}."
        blocks.append(Table(columns, "Shortfalls", note, is_sortable=True))
    return Section("controls", "Against full fine-tuning and a head alone", "", blocks)


def setting_method(method: str) -> str:
    """A control in words."""
    return {"full": "full fine-tuning", "head": "head only"}.get(method, method)


# Searches and decodings


def search_section(found: Findings) -> Section | None:
    """What was proposed, how the best score grew, which keys mattered."""
    search = found.results.get("search")
    if not search or not search["configurations"]:
        return None
    objective = search["objective"]
    name = metric_name(objective)
    figures = []
    if any(step["objective"] is not None for step in search["course"]):
        steps = [(step["proposed"], step["objective"], step["best"]) for step in search["course"]]
        last = next(best for _, _, best in reversed(steps) if best is not None)
        says = f"The best {name} after {counted(len(steps), 'configuration')} is {brief(last)}"
        caption = "Each point is a finished configuration; the line is the best until then."
        figures.append(Figure(charts.course(steps, name + arrow(objective), says), "How the best score grew", caption))
    if search["importances"]:
        shares = [charts.Bar(key, share, None, None, f"{share:.0%}") for key, share in search["importances"].items()]
        says = f"Share of each key in {name}: {listed([f'{bar.label} {bar.written}' for bar in shares])}"
        caption = f"fANOVA over {search['finished']} finished configurations."
        figures.append(Figure(charts.bars(shares, f"share of the variance of {name}", says), "Which keys mattered", caption))
    blocks: list[Block] = [Figures(figures)] if figures else []
    rows = search["configurations"]
    keys = list(rows[0]["values"])
    columns = [
        words("name", [row["configuration"] for row in rows], kind="code"),
        numbers("proposed as", [row["number"] + 1 for row in rows], decimals=0),
        *(words(key, [_value_text(key, row["values"][key]) for row in rows]) for key in keys),
        numbers(name + arrow(objective), [row["objective"] for row in rows], unit=found.unit(objective)),
        words("status", [_search_status(row) for row in rows]),
    ]
    blocks.append(Table(columns, "Configurations proposed", is_sortable=True))
    pruner = search["pruner"].replace("_", " ") if search["pruner"] else "nothing"
    lead = (
        f"{search['proposed']} of {counted(search['trials'], 'configuration')} proposed by {search['sampler']}, "
        f"stopped early by {pruner}; {search['finished']} finished with every seed."
    )
    return Section("search", "The search", lead, blocks)


def _search_status(row: Mapping[str, Any]) -> str:
    rung = row["last_rung"]
    if rung is None or row["objective"] is not None:
        return str(row["status"])
    return f"{row['status']} at step {rung['step']}: {brief(rung['objective'])}"


def decodings_section(found: Findings) -> Section | None:
    """Configuration × way of decoding, means over seeds; where there are several ways."""
    ones = [one for one in found.configurations if any(len(trial["decoding"]) > 1 for trial in one.trials)]
    rows = [
        (one, label, [record for trial in one.trials for record in trial["decoding"] if record["label"] == label])
        for one in sorted(ones, key=lambda one: found.ranked.index(one) if one in found.ranked else len(found.ranked))
        for label in dict.fromkeys(record["label"] for trial in one.trials for record in trial["decoding"])
    ]
    if not rows:
        return None
    metrics = list(dict.fromkeys(name for _, _, records in rows for record in records for name in record["metrics"]))
    columns = [
        words("configuration", [one.label for one, _, _ in rows]),
        words("decoding", [label for _, label, _ in rows]),
    ]
    for metric in metrics:
        values = [_mean([record["metrics"].get(metric) for record in records]) for _, _, records in rows]
        title = metric_name(metric) + arrow(metric)
        columns.append(numbers(title, values, decimals=_decimals(values), unit=found.unit(metric)))
    lengths = [_mean([record["tokens_per_answer"] for record in records]) for _, _, records in rows]
    speeds = [_mean([record["answers_per_second"] for record in records]) for _, _, records in rows]
    cut = [sum(record["unfinished"] for record in records) for _, _, records in rows]
    columns += [
        numbers("length", lengths, decimals=1, unit="tokens"),
        numbers("speed", speeds, decimals=1, unit="answers / s", hint="of all slots that were decoded together"),
        numbers("cut", cut, decimals=0, unit="answers", hint="ended by max_new_tokens, not by the end token"),
        numbers("seeds", [len(records) for _, _, records in rows], decimals=0),
    ]
    note = "Means over seeds; cut answers are summed. The scores of the first decoding are the trial’s."
    return Section("decoding", "Ways of decoding", "", [Table(columns, "Scores, length and speed", note, is_sortable=True)])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _decimals(values: Sequence[float | None]) -> int:
    return min(decimals_for(values), 4)
