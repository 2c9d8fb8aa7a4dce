"""Sections about training and what came of it: score against cost, loss curves, the adapters' updates by layer and module.

Floor: ``report``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorascope.amounts import counted
from lorascope.analysis.figures import FIGURES, grid_of, span_of
from lorascope.errors import LorascopeError
from lorascope.report import charts
from lorascope.report.blocks import Block, Figure, Figures, Notes, Section
from lorascope.report.findings import Configuration, Findings
from lorascope.report.sections import arrow
from lorascope.report.words import clean, compact, decimals_for, listed, metric_name, number

# Small curves, lines of the large picture, and maps of adapters.
_MOST_CURVES = 24
_MOST_LINES = 200
_MOST_ADAPTERS = 4


@dataclass(frozen=True)
class _Cost:
    title: str
    axis: str
    of: Callable[[Configuration], float | None]


_COSTS = (
    _Cost("parameters", "trainable parameters", lambda one: one.parameters),
    _Cost("time", "seconds an epoch, measured alone", lambda one: one.seconds),
    _Cost("memory", "peak memory in MiB, measured alone", lambda one: one.memory_bytes and one.memory_bytes / 2**20),
)


def cost_section(found: Findings) -> Section | None:
    """The score against parameters, time and memory; what nothing beats at its cost."""
    if found.metric is None or len(found.ranked) < 2:
        return None
    figures = [figure for cost in _COSTS if (figure := _against(found, cost)) is not None]
    if not figures:
        return None
    lead = (
        "Filled points are the Pareto front: no other configuration scores at least as well for less. The front goes by means "
        "alone; the intervals say which steps of it are more than chance."
    )
    return Section("cost", "Score against cost", lead, [Figures(figures)])


def _against(found: Findings, cost: _Cost) -> Figure | None:
    metric = found.metric or ""
    points = []
    for one in found.ranked:
        value, score = cost.of(one), one.scores[metric]
        if value is not None:
            kind = "baseline" if one is found.baseline else ""
            points.append(charts.Point(one.label, value, score.mean, score.low, score.high, kind))
    if len(points) < 2:
        return None
    best = charts.front(points, found.higher)
    told = listed([f"{point.label} ({compact(point.cost)}, {point.score:.3g})" for point in best])
    name = metric_name(metric)
    says = f"{name} against {cost.axis} of {counted(len(points), 'configuration')}; on the Pareto front: {told}"
    signs = {"front": "Pareto front", "beaten": "others"}
    signs |= {"ring": "baseline"} if any(point.kind for point in points) else {}
    signs |= {"interval": "95 % over seeds"} if any(point.low is not None for point in points) else {}
    unit = found.unit(metric)
    title = f"{name}{arrow(metric)}{f' ({unit})' if unit else ''}"
    drawn = charts.against_cost(points, found.higher, cost.axis, title, says)
    return Figure(drawn, f"{name[:1].upper()}{name[1:]} against {cost.title}", f"On the front: {told}.", charts.legend(signs))


def curves_section(found: Findings) -> Section | None:
    """Training loss by step, and the loss on the evaluation split where it was measured."""
    with_curves = [one for one in (*found.ranked, *found.configurations) if one.curve is not None]
    every = list({one.name: one for one in with_curves}.values())
    ones = [one for number, one in enumerate(every) if number < _MOST_LINES or one is found.baseline]
    if not ones:
        return None
    series = [_series(found, one) for one in ones]
    title = "training loss"
    best = next((one for one in series if one.kind == "best"), None)
    base = next((one for one in series if one.kind == "baseline"), None)
    ends = [f"{one.label} ends at {one.points[-1][1]:.3g}" for one in (best, base) if one is not None]
    says = f"Training loss of {counted(len(series), 'configuration')} by step; {listed(ends) or 'none is finished'}"
    signs = {"best": f"best: {best.label}"} if best is not None else {}
    signs |= {"baseline": f"baseline: {base.label}"} if base is not None else {}
    signs |= {"other": "others"} if any(not one.kind for one in series) else {}
    signs |= {"measured": f"loss on {found.study.evaluate.split}"} if any(one.measured and one.kind for one in series) else {}
    caption = "Means over seeds that finished; each point is the mean over a run of steps."
    caption += f" The best {len(ones)} of {len(every)} configurations are drawn." if len(ones) < len(every) else ""
    unfinished = sum(not one.num_done for one in ones)
    lost = f" Of {counted(unfinished, 'configuration')} no seed finished: the one that came furthest is drawn."
    caption += lost if unfinished else ""
    drawn = charts.curves(series, "optimiser step", f"{title} (nats)", says)
    figure = Figure(drawn, "Training loss", caption, charts.legend(signs))
    blocks: list[Block] = [Figures([figure])]
    if len(series) > 1:
        blocks += _small(series)
    split = found.study.evaluate.split
    lead = f"The loss on {split} is measured when a trial ends, and at the rungs of a search: diamonds, not a curve."
    return Section("curves", "Loss curves", lead, blocks)


def _series(found: Findings, one: Configuration) -> charts.Series:
    assert one.curve is not None
    kind = "best" if one is found.best else "baseline" if one is found.baseline else ""
    return charts.Series(one.label, list(zip(one.curve.steps, one.curve.losses, strict=True)), one.validation, kind)


def _small(series: Sequence[charts.Series]) -> list[Block]:
    shown = series[:_MOST_CURVES]
    drawn = charts.small_curves(shown, "all-curves")
    figures = [
        Figure(plot, one.label, f"ends at {number(one.points[-1][1], 3)}" + _validated(one))
        for plot, one in zip(drawn, shown, strict=True)
    ]
    left_out = f" The first {len(shown)} of {len(series)} are shown." if len(shown) < len(series) else ""
    note = "Each configuration in front of all others, on one scale, in the order of their scores." + left_out
    return [Figures(figures, note, is_small=True)]


def _validated(one: charts.Series) -> str:
    return f", {number(one.measured[-1][1], 3)} on the evaluation split" if one.measured else ""


def layers_section(found: Findings) -> Section | None:
    """How large the updates are that adapters make, by layer and module; of the best, the baseline and the next ones."""
    chosen = _adapters(found)
    if not chosen:
        return None
    try:
        documents = _documents([path for _, path in chosen])
    except (LorascopeError, OSError) as error:
        note = f"The adapters could not be read: {clean(str(error))}."
        return Section("layers", "Updates by layer and module", "", [Notes([note], kind="caution")])
    grids = [grid_of(document["modules"], lambda row: row["norm"]) for document in documents]
    span = span_of(grids)[1]
    write = charts.plain(f".{max(decimals_for([span]) - 1, 1)}f")
    figures = []
    for (label, _), document, grid in zip(chosen, documents, grids, strict=True):
        heat = charts.Heat(grid.rows, grid.columns, grid.values, span, write, row_title="layer")
        title = f"‖ΔW‖, {label}"
        whole = f"Norm of all updates together: {FIGURES['norm'].text(document['overall']['norm'])}."
        figures.append(Figure(charts.heat_map(heat, charts.heat_says(title, heat)), title, whole))
    first = grid_of(documents[0]["modules"], lambda row: row["utilisation"])
    heat = charts.Heat(first.rows, first.columns, first.values, 1.0, FIGURES["utilisation"].text, row_title="layer")
    title = f"Effective rank / r, {chosen[0][0]}"
    caption = "The share of its rank that an update makes use of; 1 is all of it."
    figures.append(Figure(charts.heat_map(heat, charts.heat_says(title, heat)), title, caption))
    warnings = [warning for document in documents for warning in document["warnings"]]
    lead = (
        "Frobenius norms of the updates ΔW = scaling · B A, on one scale: where an adapter moved the base, not what that was "
        "worth. “lorascope inspect” shows every figure of every adapter."
    )
    blocks: list[Block] = [Figures(figures), *([Notes(clean(warnings), kind="caution")] if warnings else [])]
    return Section("layers", "Updates by layer and module", lead, blocks)


def _adapters(found: Findings) -> list[tuple[str, Path]]:
    """One adapter a configuration: of its first seed that is done."""
    order = [one for one in (found.best, found.baseline, *found.ranked) if one is not None]
    chosen = []
    for one in {one.name: one for one in order}.values():
        for trial in one.trials:
            path = _adapter_path(found, trial)
            if trial["status"] == "done" and path is not None:
                chosen.append((f"{one.label} (seed {trial['seed']})", path))
                break
    return chosen[:_MOST_ADAPTERS]


def _adapter_path(found: Findings, trial: Mapping[str, Any]) -> Path | None:
    path = found.places[trial["trial"]].directory / "trials" / str(trial["trial"]) / "adapter"
    return path if trial["adapter"] is not None and (path / "adapter_config.json").is_file() else None


def _documents(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """What the adapters' files say."""
    from lorascope.analysis.updates import adapter_document, places_of, read_adapters  # these need torch

    read = read_adapters(paths)
    places = places_of(module for one in read for module in one.modules)
    return [adapter_document(one, places) for one in read]
