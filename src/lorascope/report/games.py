"""The section of a Shapley study: what each player adds, what two add together, what is recommended, how far to believe it.

Floor: ``report``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorascope.amounts import counted
from lorascope.config import split_layers
from lorascope.report import charts
from lorascope.report.blocks import Block, Figure, Figures, Notes, Section, Table, numbers, scores, useful, words
from lorascope.report.findings import Findings
from lorascope.report.words import brief, capital, decimals_for, listed, metric_name, named_in_words, number, span_text

_MOST_BARS = 24
_MOST_PAIRED = 24
# Figures that are smaller are the rounding of sums.
_ROUNDING = 1e-9


def players_section(found: Findings) -> Section | None:
    """Of every metric that the game was played for."""
    game = found.results["shapley"]
    if not game:
        return None
    blocks: list[Block] = []
    for name, metric in game["metrics"].items():
        unit = found.unit(name)
        blocks += _metric_blocks(name, metric, unit) if "values" in metric else [_without_values(name, metric)]
    blocks += _cost_notes(game.get("cost"))
    named = [player if its == [player] else f"{player} ({' + '.join(its)})" for player, its in game["players"].items()]
    trials = listed([f"{count} {status}" for status, count in game["trials"].items()]) or "none"
    what = capital(game["what"])
    lead = (
        f"Players: {listed(named)}. {what}. Trials that are coalitions: {trials}. A Shapley value is what a player adds to "
        "the others, on average over all orders in which they could have joined."
    )
    return Section("players", "What each player adds", lead, blocks)


def _without_values(name: str, metric: Mapping[str, Any]) -> Notes:
    return Notes([f"No values for {metric_name(name)}: {metric['reason']}."], kind="caution")


def _metric_blocks(name: str, metric: Mapping[str, Any], unit: str) -> list[Block]:
    order = [player for group in metric["ranking"] for player in group]
    figures = [_value_bars(name, metric, order, unit)]
    layers = _layer_map(name, metric)
    figures += [layers] if layers is not None else []
    pairs = _interaction_map(name, metric, order)
    figures += [pairs] if pairs is not None else []
    return [Figures(figures), _values_table(name, metric, order, unit), Notes(_said(name, metric), title=metric_name(name))]


def _value_bars(name: str, metric: Mapping[str, Any], order: Sequence[str], unit: str) -> Figure:
    values = metric["values"]
    shown = order[:_MOST_BARS]
    decimals = _decimals([values[player] for player in shown])
    told = metric_name(name)
    rows = []
    for player in shown:
        value = values[player]
        clear = value["low"] is not None and (value["low"] > 0 or value["high"] < 0)
        written = number(value["estimate"], decimals, sign=True)
        rows.append(
            charts.Bar(player, value["estimate"], value["low"], value["high"], written, "strong" if clear else "quiet")
        )
    says = f"Shapley values for {told}: " + "; ".join(
        f"{row.label} {row.written}"
        + ("" if row.low is None else f", from {number(row.low, decimals, True)} to {number(row.high, decimals, True)}")
        for row in rows
    )
    helps = "A value to the right helps" if metric["higher_is_better"] else "A value to the left helps: it lowers the loss"
    known = any(row.low is not None for row in rows)
    span = f"{',' if known else ';'} {span_text(metric)}"
    faint = ". Faint: not told from zero" if known and any(row.kind == "quiet" for row in rows) else ""
    left_out = f" The first {len(shown)} of {len(order)} are drawn." if len(shown) < len(order) else ""
    axis = f"Shapley value for {told}{f' ({unit})' if unit else ''}"
    return Figure(charts.bars(rows, axis, says), f"Values for {told}", f"{helps}{span}{faint}.{left_out}")


def _decimals(figures: Sequence[Mapping[str, Any]]) -> int:
    halves = [(one["high"] - one["low"]) / 2 for one in figures if one["low"] is not None]
    return min(decimals_for([one["estimate"] for one in figures], halves), 4)


def _layer_map(name: str, metric: Mapping[str, Any]) -> Figure | None:
    """Values by layer and module, where players are runs of layers."""
    places = {player: split_layers(player) for player in metric["values"]}
    if len(places) < 4 or any(run is None for _, run in places.values()):
        return None
    runs = sorted({run for _, run in places.values() if run is not None})
    modules = list(dict.fromkeys(module for module, _ in places.values()))
    by_place = {place: metric["values"][player]["estimate"] for player, place in places.items()}
    grid = [[by_place.get((module, run)) for module in modules] for run in runs]
    names = [str(first) if first == last else f"{first}–{last}" for first, last in runs]
    title = f"{capital(metric_name(name))}: values by layer and module"
    heat = _signed(names, modules, grid, metric["higher_is_better"], "layer")
    caption = "Blue: helps, orange: hurts; the deeper, the more."
    return Figure(charts.heat_map(heat, charts.heat_says(title, heat)), title, caption)


def _interaction_map(name: str, metric: Mapping[str, Any], order: Sequence[str]) -> Figure | None:
    pairs = {frozenset(pair["players"]): pair for pair in metric["interactions"] if pair["estimate"] is not None}
    if not pairs or not 2 < len(order) <= _MOST_PAIRED:
        return None
    grid = [
        [None if j >= i else (pairs.get(frozenset((one, other))) or {}).get("estimate") for j, other in enumerate(order[:-1])]
        for i, one in enumerate(order)
    ][1:]
    clear = [pair for pair in pairs.values() if pair["low"] is not None and (pair["low"] > 0 or pair["high"] < 0)]
    known = sum(pair["low"] is not None for pair in pairs.values())
    title = f"{capital(metric_name(name))}: interactions"
    heat = _signed(order[1:], order[:-1], grid, metric["higher_is_better"])
    caption = (
        "How much more two players add together than one by one. Blue: more, orange: less, as where one makes up for another."
    )
    caption += f" {len(clear)} of {len(pairs)} can be told from zero, each for itself." if known else ""
    return Figure(charts.heat_map(heat, charts.heat_says(title, heat)), title, caption)


def _signed(
    rows: Sequence[str], columns: Sequence[str], grid: Sequence[Sequence[float | None]], higher: bool, row_title: str = ""
) -> charts.Heat:
    known = [abs(value) for row in grid for value in row if value is not None]
    largest = max(known, default=0.0)
    span = largest if largest > _ROUNDING else 0.0
    decimals = min(decimals_for([span]) - 1, 4) if span else 2
    write = charts.signed(max(decimals, 1))
    return charts.Heat(list(rows), list(columns), grid, span, write, row_title=row_title, is_flipped=not higher)


def _values_table(name: str, metric: Mapping[str, Any], order: Sequence[str], unit: str) -> Table:
    values = [metric["values"][player] for player in order]
    groups = {player: index + 1 for index, group in enumerate(metric["ranking"]) for player in group}
    calibrated = metric.get("calibrated", {}).get("values")
    columns = [
        words("player", order),
        numbers("rank", [groups[player] for player in order], decimals=0, hint="players of one rank are not distinguishable"),
        scores(f"value for {metric_name(name)}", [(one["estimate"], one["low"], one["high"]) for one in values],
               plus_minus=False, sign=True, unit=unit),
        numbers("per million", [one["per_million_parameters"] for one in values], sign=True, unit="parameters"),
        numbers("per second", [one["per_second"] for one in values], sign=True, unit="of an epoch"),
    ]  # fmt: skip
    if calibrated:
        found = [calibrated[player] for player in order]
        hint = "usefulness, by the map as a control variate for the retrained coalitions"
        columns.append(scores("calibrated", [(one["estimate"], one["low"], one["high"]) for one in found], plus_minus=False,
                              sign=True, hint=hint))  # fmt: skip
    return Table(useful(columns), f"Values for {metric_name(name)}", is_sortable=True)


def _said(name: str, metric: Mapping[str, Any]) -> list[str]:
    full = metric["full"]
    lines = [f"Ranking: {metric['verdict']}."]
    lines.append(f"All players together: {_with_ends(full)}{_seeds_alone(metric)}.")
    clear = [p for p in metric["interactions"] if p["low"] is not None and (p["low"] > 0 or p["high"] < 0)]
    if clear:
        largest = sorted(clear, key=lambda pair: -abs(pair["estimate"]))[:3]
        lines.append("Interactions: " + "; ".join(f"{listed(pair['players'])} {_with_ends(pair)}" for pair in largest) + ".")
    if metric["recommended"] is not None:
        chosen = metric["recommended"]
        members = " + ".join(chosen["players"]) or "no player"
        why = named_in_words(chosen["why"], name)
        lines.append(f"Recommended: {members}, mean {metric_name(name)} {brief(chosen['mean'])}. It is {why}.")
    lines += [f"{capital(named_in_words(note, name))}." for note in metric["notes"]]
    return [*lines, *_agreement(metric)]


def _seeds_alone(metric: Mapping[str, Any]) -> str:
    """All together was valued itself, so no sampling adds to its chance."""
    return " (over the seeds alone)" if metric["full"]["low"] is not None and not metric["exact"] else ""


def _with_ends(figure: Mapping[str, Any]) -> str:
    decimals = _decimals([figure])
    text = number(figure["estimate"], decimals, sign=True)
    if figure["low"] is None:
        return text
    return f"{text} [{number(figure['low'], decimals, True)}, {number(figure['high'], decimals, True)}]"


def _agreement(metric: Mapping[str, Any]) -> list[str]:
    """How far a one-run map is to be believed, beside how far retraining agrees with itself."""
    found = metric.get("agreement")
    if found is None:
        return []
    told = {
        f"The map against {counted(found['num_retrained'], 'retrained coalition')}, means over the seeds": [found["of_means"]],
        "The map against retraining, one seed each": found["by_seed"],
        "Retraining against itself with another seed": found["retraining_with_itself"],
        "The players’ additive effects, by the map and by retraining": [found["of_effects"]] if found["of_effects"] else [],
    }
    lines = []
    for what, figures in told.items():
        taus = [one["kendall_tau"] for one in figures if one["kendall_tau"] is not None]
        correlations = [one["pearson"] for one in figures if one["pearson"] is not None]
        if taus and correlations:
            tau, correlation = sum(taus) / len(taus), sum(correlations) / len(correlations)
            lines.append(f"{what}: Kendall’s τ {tau:.2f}, correlation {correlation:.2f}.")
    return lines or ["Agreement with retraining is not known: no retrained coalition is done."]


def _cost_notes(cost: Mapping[str, Any] | None) -> list[Block]:
    if cost is None:
        return []
    if "reason" in cost:
        return [Notes([f"Cost against retraining: {cost['reason']}."])]
    share = 1.0 / cost["share_of_retraining_as_many_as_read"]
    alone = cost["seconds_per_retrained_coalition"] * cost["num_read"]
    text = (
        f"A map took {brief(cost['map_train_seconds'])} s of training and {brief(cost['map_read_seconds'])} s of reading "
        f"{cost['num_read']:g} coalitions; to retrain as many takes {brief(alone)} s alone, {share:.1f} times as long."
    )
    return [Notes([text])]
