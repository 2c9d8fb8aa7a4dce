"""What a game says of its players, in one sentence, with its evidence: who is told from whom, and who is told to help at all.

Knows the document of a game (``attribution.document``), whose ranking and intervals it puts into words. A one-run map is no
more than an estimate: what it says is clear only where the retrained coalitions confirm it. Floor: ``report``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

from lorascope.amounts import counted
from lorascope.report.blocks import Answer
from lorascope.report.words import (
    FEW,
    brief,
    capital,
    few,
    listed,
    metric_name,
    named_in_words,
    number,
    span_text,
    with_interval,
)

Metric = Mapping[str, Any]
# Below this Kendall's tau more than a quarter of the pairs are in another order than retraining has them.
WEAK_TAU = 0.5


def game_answer(game: Mapping[str, Any], wanted: str) -> Answer:
    """The answer of a Shapley study.

    Args:
        game: the ``shapley`` section of the study's results.
        wanted: the metric to speak of, where it has values.
    """
    valued = [name for name, metric in game["metrics"].items() if "values" in metric]
    if not valued:
        reasons = dict.fromkeys(metric["reason"] for metric in game["metrics"].values() if "reason" in metric)
        return Answer(f"No Shapley values yet: {next(iter(reasons), 'no metric was valued')}.", False)
    name = wanted if wanted in valued else valued[0]
    metric, said = game["metrics"][name], metric_name(name)
    is_one_run = game["game"] == "one_run"
    headline, pairs = _headline(metric, said)
    is_clear, doubts = bool(pairs), []
    if is_one_run:
        doubts = _doubts(metric, pairs)
        is_clear = is_clear and not doubts
        trainings = "one training" if metric["num_seeds"] == 1 else f"{metric['num_seeds']} trainings, one a seed"
        unconfirmed = "" if is_clear or not pairs else ", not confirmed by retraining"
        headline = f"{headline[:-1]} — an estimate from {trainings}{unconfirmed}."
    evidence = [_values_text(metric, said), *_recommended_text(metric, name)]
    evidence += [f"By {metric_name(other)}: {game['metrics'][other]['verdict']}." for other in valued if other != name]
    seeds = counted(metric["num_seeds"], "seed")
    evidence.append(f"{capital(game['what'])}; {counted(metric['num_coalitions'], 'coalition')}, {seeds}.")
    cautions = [f"{capital(named_in_words(note, name))}." for note in metric["notes"]]
    joined = [group for group in metric["ranking"] if len(group) > 1] if pairs else []
    cautions += [f"{capital(listed(few(group)))} are not distinguishable from each other." for group in joined]
    return Answer(headline, is_clear, evidence, [*doubts, *cautions, *_harm_text(metric, said), *_agreement(metric)])


# Who is told from whom

Pair = tuple[str, str]


@dataclass(frozen=True)
class _Verb:
    """How a player stands above another: ``adds more to accuracy``, of many ``add …``, and ``more`` when it is said again."""

    one: str
    many: str
    again: str


def _headline(metric: Metric, said: str) -> tuple[str, list[Pair]]:
    """The sentence, and the pairs that it says are told apart, the better player first."""
    ranking: list[list[str]] = metric["ranking"]
    if len(metric["values"]) == 1:
        return f"{capital(ranking[0][0])} is the only player.", []
    if metric["num_seeds"] == 1 and metric["exact"]:
        order = " > ".join(player for group in ranking for player in group)
        return f"One seed puts the players in the order {order} for {said}; another seed may not.", []
    if len(ranking) == 1:
        told = f"The players are not distinguishable by what they do to {said}: {listed(few(ranking[0]))}"
        return f"{told}{_help_text(metric, said)}.", []
    text, pairs = _order_text(metric, said)
    return f"{text}{_help_text(metric, said)}.", pairs


def _order_text(metric: Metric, said: str) -> tuple[str, list[Pair]]:
    """What can be told apart and no more: groups of a ranking are joined by less than that."""
    ranking: list[list[str]] = metric["ranking"]
    p_values = {frozenset(pair["players"]): pair["p_value"] for pair in metric["differences"]}

    def differ(one: str, other: str) -> bool:
        p = p_values.get(frozenset((one, other)))
        return p is not None and p < 1 - metric["confidence"]

    crossed = [(one, other) for upper, lower in combinations(ranking, 2) for one in upper for other in lower]
    if all(differ(*pair) for pair in crossed):
        verb = _verb(metric, said, crossed)
        groups = [listed(few(group)) for group in ranking]
        rest = "".join(f", and {one} {verb.again} than {other}" for one, other in pairwise(groups[1:]))
        first = verb.one if len(ranking[0]) == 1 else verb.many
        return f"{capital(groups[0])} {first} than {groups[1]}{rest}", crossed
    order = [player for group in ranking for player in group]
    first, *others = order
    less = [player for player in others if differ(first, player)]
    if less:
        pairs = [(first, player) for player in less]
        alike = [player for player in others if player not in less]
        untold = f"; it cannot be told from {listed(few(alike))}" if alike else ""
        return f"{capital(first)} {_verb(metric, said, pairs).one} than {listed(few(less))}{untold}", pairs
    told = [pair for pair in combinations(order, 2) if differ(*pair)]
    if not told:
        return f"By {said}: {metric['verdict']}", []
    clearest = " and ".join(min(told, key=lambda pair: p_values[frozenset(pair)]))
    return f"By {said}, {len(told)} of {len(p_values)} pairs of players can be told apart, most clearly {clearest}", told


def _verb(metric: Metric, said: str, pairs: Sequence[Pair]) -> _Verb:
    """``adds more`` only of players that are told to help, ``costs less`` only of those that are told to hurt."""
    higher = metric["higher_is_better"]
    if all(_effect(metric, one) > 0 for one, _ in pairs):
        if higher:
            return _Verb(f"adds more to {said}", f"add more to {said}", "more")
        return _Verb(f"lowers the {said} more", f"lower the {said} more", "more")
    if all(_effect(metric, player) < 0 for pair in pairs for player in pair):
        if higher:
            return _Verb(f"costs less {said}", f"cost less {said}", "less")
        return _Verb(f"raises the {said} less", f"raise the {said} less", "less")
    return _Verb(f"is better for {said}", f"are better for {said}", "better")


def _effect(metric: Metric, player: str) -> int:
    """1 where the whole interval of its value is on the side that helps, -1 on the one that hurts, else 0."""
    value = metric["values"][player]
    if value["low"] is None or value["low"] <= 0 <= value["high"]:
        return 0
    return 1 if (value["low"] > 0) == metric["higher_is_better"] else -1


def _help_text(metric: Metric, said: str) -> str:
    """Where no player is told to help, that; nothing where there are no intervals to tell by."""
    if all(value["low"] is None for value in metric["values"].values()):
        return ""
    effects = [_effect(metric, player) for player in metric["values"]]
    if all(effect < 0 for effect in effects):
        return "; every player hurts"
    return "" if any(effect > 0 for effect in effects) else "; no player is told to help"


def _harm_text(metric: Metric, said: str) -> list[str]:
    """Players that are told to hurt, where others do not."""
    hurt = [player for group in metric["ranking"] for player in group if _effect(metric, player) < 0]
    if not hurt or len(hurt) == len(metric["values"]):
        return []
    return [f"{capital(listed(few(hurt)))} hurt{'s' if len(hurt) == 1 else ''}: {said} is worse with than without."]


# How far a map is to be believed


def _doubts(metric: Metric, pairs: Sequence[Pair]) -> list[str]:
    """Why what a one-run map says is no evidence, where the retrained coalitions do not bear it out."""
    doubts = []
    taus = [tau for tau in _taus(metric) if tau is not None]
    if not taus:
        doubts.append("How far the map is to be believed is not known: nothing could be compared with retraining.")
    elif min(taus) < WEAK_TAU:
        doubts.append(
            f"The map agrees weakly with retraining (Kendall’s τ {number(min(taus), 2)}, less than {WEAK_TAU:g}): its order "
            "is no evidence."
        )
    calibrated = metric.get("calibrated") or {}
    if pairs and "values" not in calibrated:
        why = calibrated.get("reason", "no coalition was retrained")
        doubts.append(f"The map’s order is not confirmed by retraining: calibration {why}.")
    elif pairs:
        open_pairs = [pair for pair in pairs if not _is_confirmed(metric, *pair)]
        which = "none" if len(open_pairs) == len(pairs) else f"{len(pairs) - len(open_pairs)}"
        if open_pairs:
            doubts.append(
                f"Of {counted(len(pairs), 'pair')} of players that the map tells apart, {which} can be told apart once it is "
                f"calibrated by {counted(calibrated['num_retrained'], 'retrained coalition')}."
            )
    return doubts


def _is_confirmed(metric: Metric, one: str, other: str) -> bool:
    """Whether the calibrated intervals of both lie apart, in the map's order."""
    better, worse = (metric["calibrated"]["values"][player] for player in (one, other))
    if better["low"] is None or worse["low"] is None:
        return False
    return bool(better["low"] > worse["high"] if metric["higher_is_better"] else better["high"] < worse["low"])


def _taus(metric: Metric) -> list[float | None]:
    """Kendall's tau of the map with retraining: over coalitions, and over the players' additive effects where there is one."""
    found = metric.get("agreement") or {}
    return [found[key]["kendall_tau"] for key in ("of_means", "of_effects") if found.get(key)]


def _agreement(metric: Metric) -> list[str]:
    found = metric.get("agreement")
    if found is None or found["of_means"]["kendall_tau"] is None:
        return []
    many = counted(found["num_retrained"], "retrained coalition")
    text = f"Agreement with {many}: Kendall’s τ {number(found['of_means']['kendall_tau'], 2)}"
    if found["of_effects"] and found["of_effects"]["kendall_tau"] is not None:
        text += f", τ {number(found['of_effects']['kendall_tau'], 2)} over the players’ additive effects"
    itself = [one["kendall_tau"] for one in found["retraining_with_itself"] if one["kendall_tau"] is not None]
    text += f"; retraining with another seed agrees with itself at τ {number(sum(itself) / len(itself), 2)}" if itself else ""
    return [f"{text}."]


# Evidence


def _values_text(metric: Metric, said: str) -> str:
    order = [player for group in metric["ranking"] for player in group]
    told = [f"{player} {_figure_text(metric['values'][player])}" for player in order[: _num_told(order)]]
    told += [f"{len(order) - len(told)} more"] if len(told) < len(order) else []
    is_sampled = metric["full"]["low"] is not None and not metric["exact"]
    own = "; that of all together is over the seeds alone" if is_sampled else ""
    whole = _figure_text(metric["full"])
    return f"Shapley values for {said}: {listed(told)}; all together {whole} ({span_text(metric)}{own})."


def _num_told(order: Sequence[str]) -> int:
    return len(order) if len(order) <= FEW + 1 else FEW


def _figure_text(figure: Mapping[str, Any]) -> str:
    return with_interval(figure["estimate"], figure["low"], figure["high"], sign=True)


def _recommended_text(metric: Metric, name: str) -> list[str]:
    chosen = metric["recommended"]
    if chosen is None:
        return []
    members, best = " + ".join(chosen["players"]) or "no player", _members_text(chosen["best"]["players"])
    text = f"Recommended: {members}, mean {metric_name(name)} {brief(chosen['mean'])}"
    if chosen["players"] != chosen["best"]["players"]:
        text += f"; the best mean is that of {best}, {brief(chosen['best']['mean'])}"
    return [f"{text}. It is {named_in_words(chosen['why'], name)}."]


def _members_text(players: Sequence[str]) -> str:
    return " + ".join(players) or "no player" if len(players) <= FEW + 1 else f"{len(players)} players together"
