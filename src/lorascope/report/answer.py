"""What a study says, in one sentence, and the evidence for it; or that it says nothing, and why.

Knows the documents of comparisons, games and searches. Verdicts are theirs; here they are put into words. Floor: ``report``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any

from lorascope.amounts import counted
from lorascope.report.findings import Configuration, Findings
from lorascope.report.words import (
    brief,
    decimals_for,
    listed,
    metric_name,
    metric_unit,
    number,
    setting_text,
    with_interval,
)


@dataclass(frozen=True)
class Answer:
    """The sentence, and what it rests on.

    Attributes:
        is_clear: whether the study can tell what it was asked.
        evidence: sentences with figures.
        cautions: what keeps the evidence from being more.
    """

    headline: str
    is_clear: bool
    evidence: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)


def answer_of(found: Findings) -> Answer:
    """The answer of any study."""
    if not found.ranked or found.metric is None:
        said = _nothing_scored(found)
    else:
        games = found.results["shapley"].get("metrics", {})
        valued = [name for name, metric in games.items() if "values" in metric]
        said = _of_game(found, valued) if valued else _of_game_without_values(found, games) if games else _compared(found)
        said = Answer(said.headline, said.is_clear, [*said.evidence, *_controls(found), *_search(found)], said.cautions)
    return Answer(said.headline, said.is_clear, said.evidence, [*said.cautions, *_lost(found)])


def _nothing_scored(found: Findings) -> Answer:
    counts = ", ".join(f"{count} {status}" for status, count in found.counts.items())
    if set(found.counts) <= {"planned", "running", "interrupted"}:
        return Answer(f"No trial has finished yet ({counts}).", False, [], ["This page shows the store as it is now."])
    reason = "no trial has a score that can be compared" if "done" in found.counts else "no trial came to a score"
    return Answer(f"Nothing can be said: {reason} ({counts}).", False)


def _lost(found: Findings) -> list[str]:
    """Trials that have no score, counted."""
    ended = {status: count for status, count in found.counts.items() if status != "done"}
    if not ended or not found.ranked:
        return []
    counts = listed([f"{count} {status}" for status, count in ended.items()])
    total = len(found.trials)
    return [f"{counts} of {counted(total, 'trial')} have no score; they are counted, and never ranked."]


# Comparisons


def _compared(found: Findings) -> Answer:
    rows = [row for row in found.results["comparisons"]["rows"] if row["metric"] == found.metric]
    best = found.best
    assert best is not None
    name = metric_name(found.metric or "")
    if len(found.ranked) == 1:
        alone = "the study has one configuration" if len(found.configurations) == 1 else "no other configuration has a score"
        headline = (
            f"{_capital(best.label)} reaches {_score_text(found, best)}; {alone}, so there is nothing to compare it with."
        )
        return Answer(headline, False, _best_evidence(found, best, said=True))
    verdicts = {verdict: [row for row in rows if row["verdict"] == verdict] for verdict in ("better", "worse")}
    unknown = [row for row in rows if row["verdict"] == "too few seeds"]
    if len(unknown) == len(rows):
        return _too_few_seeds(found, best)
    if verdicts["better"]:
        return _better(found, verdicts["better"], rows)
    baseline = _baseline_text(found)
    open_rows = [row for row in rows if row["verdict"] == "not distinguishable"]
    if not verdicts["worse"] and len(rows) == 1 and found.baseline is not None:
        other = found.by_name[rows[0]["configuration"]]
        headline = f"{_capital(other.label)} and {found.baseline.label} are not distinguishable by {name}."
    elif not verdicts["worse"]:
        headline = f"Not distinguishable: no configuration can be told from {baseline} by {name}."
    else:
        parts = [f"{len(verdicts['worse'])} of {counted(len(rows), 'other')} worse"]
        parts += [f"{len(open_rows)} not distinguishable"] if open_rows else []
        headline = f"Nothing is better than {baseline} by {name}: {listed(parts)}."
    evidence = [*_best_evidence(found, best), *_widest(found, open_rows), *_cheapest(found, open_rows)]
    return Answer(headline, bool(verdicts["worse"]), evidence, _cautions(found, unknown))


def _better(found: Findings, better: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Answer:
    sign = 1.0 if found.higher else -1.0
    top = max(better, key=lambda row: sign * row["difference"])
    winner, name = found.by_name[top["configuration"]], metric_name(found.metric or "")
    moved = f"by {_difference_text(top)} in {name}"
    baseline = _baseline_text(found)
    if len(better) == 1:
        headline = f"{_capital(winner.label)} is better than {baseline}, {moved}."
        cautions = []
    else:
        headline = (
            f"{_capital(winner.label)} has the best {name} of {counted(len(better), 'configuration')} that are better than "
            f"{baseline}: {_difference_text(top)}."
        )
        cautions = [
            f"Whether {winner.label} is better than the other {len(better) - 1} is not what was tested; "
            "“lorascope results DIR --pairs” compares every two."
        ]
    others = [row for row in rows if row["verdict"] in ("worse", "not distinguishable")]
    evidence = [_row_evidence(found, top), *_best_evidence(found, winner)]
    if others:
        counts = {verdict: sum(row["verdict"] == verdict for row in others) for verdict in ("not distinguishable", "worse")}
        told = listed([f"{count} {verdict}" for verdict, count in counts.items() if count])
        evidence.append(f"Of the others, {told}.")
    evidence += _cheapest_better(found, better, winner)
    unknown = [row for row in rows if row["verdict"] == "too few seeds"]
    return Answer(headline, True, evidence, [*cautions, *_cautions(found, unknown)])


def _too_few_seeds(found: Findings, best: Configuration) -> Answer:
    fewest = found.results["comparisons"]["fewest_seeds"]
    name = metric_name(found.metric or "")
    end = "highest" if found.higher else "lowest"
    headline = f"Too few seeds to tell: the {end} {name} is that of {best.label}, {_score_text(found, best)}, and may be luck."
    why = f"No two configurations finished {fewest} seeds in common, the fewest that tell a difference from chance."
    return Answer(headline, False, [why, *_best_evidence(found, best, said=True)], ["Add seeds: “seeds: [42, 1337, 2024]”."])


def _baseline_text(found: Findings) -> str:
    return "the baseline" if found.baseline is None else f"the baseline ({found.baseline.label})"


def _row_evidence(found: Findings, row: Mapping[str, Any]) -> str:
    one, other = found.by_name[row["configuration"]], found.by_name[row["against"]]
    examples = "" if row["examples"] is None else f" and {row['examples']:,} examples"
    p = f"; p = {brief(row['p_holm'])}, {found.results['comparisons']['correction']}" if row["p_holm"] is not None else ""
    moved = with_interval(row["difference"], row["low"], row["high"], sign=True)
    of = f"{_capital(one.label)} less {other.label}"
    return f"{of}: {moved} {_unit(found)}over {counted(row['seeds'], 'seed')}{examples} (95 % interval{p})."


def _widest(found: Findings, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How large a difference the study leaves open."""
    known = [row for row in rows if row["low"] is not None]
    if not known:
        return []
    row = max(known, key=lambda row: max(abs(row["low"]), abs(row["high"])))
    text = _row_evidence(found, row)
    return [f"{text[:-1]}: that is how much the study leaves open. Not distinguishable is not the same as equal."]


def _cheapest(found: Findings, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of what cannot be told from the baseline, what trains fewer parameters than it."""
    candidates = [found.by_name[row["configuration"]] for row in rows]
    baseline = found.baseline
    if baseline is None or baseline.parameters is None:
        return []
    fewer = [one for one in candidates if one.parameters is not None and one.parameters < baseline.parameters]
    if not fewer:
        return []
    one = min(fewer, key=lambda one: one.parameters or 0.0)
    share = (one.parameters or 0.0) / baseline.parameters
    return [f"The smallest of them, {one.label}, trains {one.parameters:,.0f} parameters, {share:.0%} of the baseline’s."]


def _cheapest_better(found: Findings, rows: Sequence[Mapping[str, Any]], winner: Configuration) -> list[str]:
    cheap = [one for row in rows if (one := found.by_name[row["configuration"]]).parameters is not None]
    if len(cheap) < 2:
        return []
    one = min(cheap, key=lambda one: one.parameters or 0.0)
    if one is winner:
        return [f"None of them trains fewer parameters ({one.parameters:,.0f})."]
    return [
        f"The smallest of those that are better is {one.label}: {_score_text(found, one)}, {one.parameters:,.0f} parameters."
    ]


def _best_evidence(found: Findings, best: Configuration, said: bool = False) -> list[str]:
    """The best score and what it costs."""
    costs = []
    if best.parameters is not None:
        percent = "" if best.percent is None else f" ({brief(best.percent)} % of the model)"
        costs.append(f"trains {best.parameters:,.0f} parameters{percent}")
    if best.seconds is not None:
        costs.append(f"takes {brief(best.seconds)} s an epoch")
    if best.memory_bytes is not None:
        costs.append(f"needs {best.memory_bytes / 2**20:,.0f} MiB")
    if not costs:
        return []
    start = _capital(best.label) if said else f"{_capital(best.label)}, {_score_text(found, best)},"
    return [f"{start} {listed(costs)}, measured alone."]


def _cautions(found: Findings, unknown: Sequence[Mapping[str, Any]]) -> list[str]:
    cautions = []
    if unknown:
        fewest = found.results["comparisons"]["fewest_seeds"]
        cautions.append(
            f"{counted(len(unknown), 'configuration')} finished fewer than {fewest} seeds: nothing is said of them."
        )
    notes = dict.fromkeys(row["note"] for row in found.results["comparisons"]["rows"] if row["note"])
    return [*cautions, *(f"{_capital(note)}." for note in notes)]


def _score_text(found: Findings, one: Configuration) -> str:
    score = one.scores[found.metric or ""]
    decimals = decimals_for([score.mean], [None if score.low is None or score.high is None else (score.high - score.low) / 2])
    half = "" if score.low is None or score.high is None else f" ± {number((score.high - score.low) / 2, decimals)}"
    seeds = f"mean of {counted(len(score.by_seed), 'seed')}" if len(score.by_seed) > 1 else "one seed"
    unit = metric_unit(found.metric or "", [score.mean])
    return f"{metric_name(found.metric or '')} {number(score.mean, decimals)}{half}{' %' if unit == '%' else ''} ({seeds})"


def _difference_text(row: Mapping[str, Any]) -> str:
    half = None if row["low"] is None else (row["high"] - row["low"]) / 2
    return number(row["difference"], decimals_for([row["difference"]], [half]), sign=True)


def _unit(found: Findings) -> str:
    unit = metric_unit(found.metric or "", [one.scores[found.metric or ""].mean for one in found.ranked])
    return {"%": "points ", "nats": "nats "}.get(unit, "")


# Games


def _of_game(found: Findings, valued: Sequence[str]) -> Answer:
    game = found.results["shapley"]
    name = next((one for one in valued if one == found.metric), valued[0])
    metric = game["metrics"][name]
    ranking: list[list[str]] = metric["ranking"]
    said = metric_name(name)
    seeds = counted(metric["num_seeds"], "seed")
    is_one_seed = metric["num_seeds"] == 1 and metric["exact"]
    if len(metric["values"]) == 1:
        headline, clear = f"{_capital(ranking[0][0])} is the only player.", False
    elif is_one_seed:
        order = " > ".join(player for group in ranking for player in group)
        headline = f"One seed puts the players in the order {order} for {said}; another seed may not."
        clear = False
    elif len(ranking) == 1:
        headline = f"The players are not distinguishable by what they add to {said}: {listed(_few(ranking[0]))}."
        clear = False
    else:
        headline, clear = _order_text(metric, said), True
    if game["game"] == "one_run":
        headline = f"{headline[:-1]} — an estimate from one training."
    evidence = [_values_text(metric, ranking, said), *_recommended_text(metric, said)]
    evidence += [_other_metric(game["metrics"][other], other) for other in valued if other != name]
    evidence.append(f"{_capital(game['what'])}; {counted(metric['num_coalitions'], 'coalition')}, {seeds}.")
    cautions = [f"{_capital(note)}." for note in metric["notes"]]
    joined = [group for group in ranking if len(group) > 1] if clear else []
    cautions += [f"{_capital(listed(_few(group)))} are not distinguishable from each other." for group in joined]
    return Answer(headline, clear, evidence, [*cautions, *_agreement(metric)])


def _order_text(metric: Mapping[str, Any], said: str) -> str:
    """``For accuracy, …``, of what can be told apart and no more: groups of a ranking are joined by less than that."""
    ranking: list[list[str]] = metric["ranking"]
    p_values = {frozenset(pair["players"]): pair["p_value"] for pair in metric["differences"]}

    def differ(one: str, other: str) -> bool:
        p = p_values.get(frozenset((one, other)))
        return p is not None and p < 1 - metric["confidence"]

    def more(many: bool) -> str:
        add = f"add{'' if many else 's'} more to {said}"
        return add if metric["higher_is_better"] else f"lower{'' if many else 's'} the {said} more"

    if all(differ(one, other) for upper, lower in combinations(ranking, 2) for one in upper for other in lower):
        groups = [listed(_few(group)) for group in ranking]
        rest = "".join(f", and {one} more than {other}" for one, other in pairwise(groups[1:]))
        return f"{_capital(groups[0])} {more(len(ranking[0]) > 1)} than {groups[1]}{rest}."
    first, *others = [player for group in ranking for player in group]
    less = [player for player in others if differ(first, player)]
    if less:
        alike = [player for player in others if player not in less]
        untold = f"; it cannot be told from {listed(_few(alike))}" if alike else ""
        return f"{_capital(first)} {more(False)} than {listed(_few(less))}{untold}."
    told = [pair for pair in metric["differences"] if differ(*pair["players"])]
    if not told:
        return f"By {said}: {metric['verdict']}."
    clearest = " and ".join(min(told, key=lambda pair: pair["p_value"])["players"])
    return f"By {said}, {len(told)} of {len(p_values)} pairs of players can be told apart, most clearly {clearest}."


def _of_game_without_values(found: Findings, games: Mapping[str, Any]) -> Answer:
    reasons = dict.fromkeys(metric["reason"] for metric in games.values() if "reason" in metric)
    headline = f"No Shapley values yet: {next(iter(reasons), 'no metric was valued')}."
    best = found.best
    return Answer(headline, False, [] if best is None else _best_evidence(found, best))


_FEW = 4


def _few(players: Sequence[str]) -> list[str]:
    """The first players of a group, and how many more there are."""
    return [*players] if len(players) <= _FEW + 1 else [*players[:_FEW], f"{len(players) - _FEW} more"]


def _values_text(metric: Mapping[str, Any], ranking: Sequence[Sequence[str]], said: str) -> str:
    players = _few([player for group in ranking for player in group])
    told = [
        f"{player} {_figure_text(metric['values'][player])}" if player in metric["values"] else player for player in players
    ]
    whole = _figure_text(metric["full"])
    known = " (95 % interval over the seeds)" if metric["full"]["low"] is not None else ""
    return f"Shapley values for {said}: {listed(told)}; all together {whole}{known}."


def _figure_text(figure: Mapping[str, Any]) -> str:
    return with_interval(figure["estimate"], figure["low"], figure["high"], sign=True)


def _recommended_text(metric: Mapping[str, Any], said: str) -> list[str]:
    chosen = metric["recommended"]
    if chosen is None:
        return []
    members, best = " + ".join(chosen["players"]) or "no player", _members_text(chosen["best"]["players"])
    text = f"Recommended: {members}, mean {said} {brief(chosen['mean'])}"
    if chosen["players"] != chosen["best"]["players"]:
        text += f"; the best mean is that of {best}, {brief(chosen['best']['mean'])}"
    return [f"{text}. It is {chosen['why']}."]


def _members_text(players: Sequence[str]) -> str:
    return " + ".join(players) or "no player" if len(players) <= _FEW + 1 else f"{len(players)} players together"


def _other_metric(metric: Mapping[str, Any], name: str) -> str:
    return f"By {metric_name(name)}: {metric['verdict']}."


def _agreement(metric: Mapping[str, Any]) -> list[str]:
    found = metric.get("agreement")
    if found is None:
        return []
    tau, pearson = found["of_means"]["kendall_tau"], found["of_means"]["pearson"]
    if tau is None:
        return ["How far the map is to be believed is not known: no retrained coalition is done."]
    many = counted(found["num_retrained"], "retrained coalition")
    return [f"Against {many}, the map agrees with Kendall’s τ {tau:.2f} and correlation {pearson:.2f}."]


# Controls and searches


def _controls(found: Findings) -> list[str]:
    controls = found.results.get("controls")
    best = found.best
    if not controls or best is None:
        return []
    words = {"full": "full fine-tuning", "head": "training the head alone"}
    told = []
    for row in controls["shortfalls"]:
        if row["configuration"] != best.name or row["percent"] is None:
            continue
        ends = row["percent_interval"] or (None, None)
        margin = f"{controls['margin_percent']:g} %"
        within = {True: f"within {margin}", False: f"not within {margin}", None: f"whether it is within {margin} is not known"}
        percent = with_interval(row["percent"], *ends)
        told.append(
            f"{_capital(best.label)} falls short of {words.get(row['against'], row['against'])} by {percent} %: "
            f"{within[row['within_margin']]}."
        )
    return told


def _search(found: Findings) -> list[str]:
    search = found.results.get("search")
    if not search:
        return []
    if search["best"] is None:
        return [f"The search has no best configuration{'' if search['reason'] is None else ': ' + search['reason']}."]
    one = next(row for row in search["configurations"] if row["configuration"] == search["best"])
    values = listed([text for key, value in one["values"].items() if (text := setting_text(key, value))])
    pruner = f", {search['pruner'].replace('_', ' ')}" if search["pruner"] else ""
    return [
        f"Best of {search['finished']} finished among {search['proposed']} proposed ({search['sampler']}{pruner}): {values}; "
        f"{metric_name(search['objective'])} {brief(one['objective'])}. It was chosen on {search['chosen_on']}, the split "
        "that it is scored on: expect less of it on other data."
    ]


def _capital(text: str) -> str:
    """With a capital at its start, unless that is a sign or a name such as r, lr or ``query.L0``."""
    first = text.partition(" ")[0].rstrip(",;")
    return text[:1].upper() + text[1:] if len(first) > 2 and first.replace("-", "").isalpha() else text
