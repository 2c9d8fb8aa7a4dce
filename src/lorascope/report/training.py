"""Sections about training: score against cost, and loss curves.

Floor: ``report``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorascope.amounts import counted
from lorascope.report import charts, scatter
from lorascope.report.blocks import Block, Figure, Figures, Section
from lorascope.report.findings import Configuration, Findings
from lorascope.report.sections import arrow
from lorascope.report.words import compact, listed, mebibytes, metric_name, number

# Small curves, lines of the large picture, and names in a caption.
_MOST_CURVES = 24
_MOST_LINES = 200
_MOST_NAMED = 3
# One short measurement does not tell smaller differences.
_EQUAL = 0.05


@dataclass(frozen=True)
class _Cost:
    """A cost, and the part of it by which two may differ and still count as equal."""

    title: str
    axis: str
    of: Callable[[Configuration], float | None]
    equal: float = 0.0


_COSTS = (
    _Cost("parameters", "trainable parameters", lambda one: one.parameters),
    _Cost("time", "seconds an epoch, measured alone", lambda one: one.seconds, _EQUAL),
    _Cost("memory", "peak memory in MiB, measured alone", lambda one: mebibytes(one.memory_bytes), _EQUAL),
)


def cost_section(found: Findings) -> Section | None:
    """The score against parameters, time and memory; what nothing beats at its cost."""
    if found.metric is None or len(found.ranked) < 2:
        return None
    drawn = {cost: figure for cost in _COSTS if (figure := _against(found, cost)) is not None}
    if not drawn:
        return None
    lead = (
        "Filled points are the Pareto front: of the configurations that finished every seed, none scores better for as much "
        "or less. The front goes by mean scores; the intervals say which steps of it are more than chance."
    )
    if any(cost.equal for cost in drawn):
        lead += (
            " Time and memory are one short measurement of each configuration and have no interval: costs within "
            f"{_EQUAL * 100:g} % count as equal here, and a larger difference may still be the measurement’s."
        )
    return Section("cost", "Score against cost", lead, [Figures(list(drawn.values()))])


def _against(found: Findings, cost: _Cost) -> Figure | None:
    points = _points(found, cost)
    if len(points) < 2:
        return None
    metric = found.metric or ""
    name = metric_name(metric)
    best = scatter.front(points, found.higher, cost.equal)
    told = listed([f"{point.label} ({compact(point.cost)}, {point.score:.3g})" for point in best])
    on_front = f"on the Pareto front: {told}" if best else "no configuration finished every seed, so there is no Pareto front"
    says = f"{name} against {cost.axis} of {counted(len(points), 'configuration')}; {on_front}"
    unit = found.unit(metric)
    title = f"{name}{arrow(metric)}{f' ({unit})' if unit else ''}"
    drawn = scatter.against_cost(points, best, cost.axis, title, says)
    caption = f"On the front: {told}." if best else f"{on_front[:1].upper()}{on_front[1:]}."
    caption = " ".join([caption, *_reading(points)])
    return Figure(drawn, f"{name[:1].upper()}{name[1:]} against {cost.title}", caption, charts.legend(_signs(points, best)))


def _points(found: Findings, cost: _Cost) -> list[scatter.Point]:
    points = []
    for one in found.ranked:
        value, score = cost.of(one), one.scores[found.metric or ""]
        if value is not None:
            is_short = one.num_done < len(one.trials)
            point = scatter.Point(one.label, value, score.mean, score.low, score.high, one is found.baseline, is_short)
            points.append(point)
    return points


def _signs(points: Sequence[scatter.Point], best: Sequence[scatter.Point]) -> dict[str, str]:
    signs = {"front": "Pareto front"} if best else {}
    signs |= {"beaten": "others"} if any(not point.is_short and point not in best for point in points) else {}
    signs |= {"short": "without every seed"} if any(point.is_short for point in points) else {}
    signs |= {"ring": "baseline"} if any(point.is_baseline for point in points) else {}
    signs |= {"interval": "95 % over seeds"} if any(point.low is not None for point in points) else {}
    return signs | ({"cut": "goes on beyond the frame"} if scatter.num_cut(points) else {})


def _reading(points: Sequence[scatter.Point]) -> list[str]:
    """What the picture leaves out."""
    short, cut = [point.label for point in points if point.is_short], scatter.num_cut(points)
    told = []
    if short:
        which = listed(short) if len(short) <= _MOST_NAMED else counted(len(short), "configuration")
        told.append(f"Not held against the others, as seeds of it have no score: {which}.")
    if cut:
        go = "goes" if cut == 1 else "go"
        told.append(f"{counted(cut, 'interval')} of {len(points)} {go} on beyond the frame (arrows).")
    return told + (["The axis has a break: what lies beyond it is not to scale."] if scatter.is_broken(points) else [])


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
