"""What a study says, in one sentence, and the evidence for it; or that it says nothing, and why.

Knows the documents of comparisons and searches (``game_answer`` those of games). Verdicts are theirs; here they are put into
words. Floor: ``report``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorascope.amounts import counted
from lorascope.report.blocks import Answer
from lorascope.report.findings import Configuration, Findings
from lorascope.report.game_answer import game_answer
from lorascope.report.words import (
    brief,
    capital,
    decimals_for,
    few,
    listed,
    metric_name,
    number,
    setting_text,
    with_interval,
)


def answer_of(found: Findings) -> Answer:
    """The answer of any study."""
    if not found.ranked or found.metric is None:
        said = _nothing_scored(found)
    else:
        game = found.results["shapley"]
        said = _of_game(found, game) if game.get("metrics") else _compared(found)
        evidence = [*said.evidence, *_controls(found), *_search(found)]
        said = Answer(said.headline, said.is_clear, evidence, [*said.cautions, *_machines(found)])
    return Answer(said.headline, said.is_clear, said.evidence, [*said.cautions, *_lost(found)])


def _of_game(found: Findings, game: Mapping[str, Any]) -> Answer:
    said = game_answer(game, found.metric or "")
    best = found.best
    if any("values" in metric for metric in game["metrics"].values()) or best is None:
        return said
    return Answer(said.headline, said.is_clear, _best_evidence(found, best), said.cautions)


def _machines(found: Findings) -> list[str]:
    if found.num_machines < 2:
        return []
    return [f"The shards ran on {found.num_machines} different machines: their times and memory are no fair comparison."]


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
            f"{capital(best.label)} reaches {_score_text(found, best)}; {alone}, so there is nothing to compare it with."
        )
        return Answer(headline, False, _best_evidence(found, best, said=True))
    verdicts = {verdict: [row for row in rows if row["verdict"] == verdict] for verdict in ("better", "worse")}
    unknown = [row for row in rows if row["verdict"] == "too few seeds"]
    if len(unknown) == len(rows):
        return _not_compared(found, best)
    if verdicts["better"]:
        return _better(found, verdicts["better"], rows)
    baseline = _baseline_text(found)
    open_rows = [row for row in rows if row["verdict"] == "not distinguishable"]
    if not verdicts["worse"] and len(rows) == 1 and found.baseline is not None:
        other = found.by_name[rows[0]["configuration"]]
        headline = f"{capital(other.label)} and {found.baseline.label} are not distinguishable by {name}."
    elif not verdicts["worse"]:
        headline = f"Not distinguishable: no configuration can be told from {baseline} by {name}."
    elif len(verdicts["worse"]) == len(rows):
        headline = f"Nothing is better than {baseline} by {name}: {len(rows)} of {counted(len(rows), 'other')} worse."
    else:
        parts = [f"{len(verdicts['worse'])} of {counted(len(rows), 'other')} worse"]
        parts += [f"{len(open_rows)} not distinguishable ({_labels(found, open_rows)})"] if open_rows else []
        parts += [f"{len(unknown)} with too few seeds ({_labels(found, unknown)})"] if unknown else []
        headline = f"None is shown to be better than {baseline} by {name}: {listed(parts)}."
    evidence = [*_best_evidence(found, best), *_widest(found, open_rows), *_cheapest(found, open_rows)]
    return Answer(headline, len(verdicts["worse"]) == len(rows), evidence, _cautions(found, unknown))


def _labels(found: Findings, rows: Sequence[Mapping[str, Any]]) -> str:
    return listed(few([found.by_name[row["configuration"]].label for row in rows]))


def _better(found: Findings, better: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Answer:
    sign = 1.0 if found.higher else -1.0
    top = max(better, key=lambda row: sign * row["difference"])
    winner, name = found.by_name[top["configuration"]], metric_name(found.metric or "")
    moved = f"by {_difference_text(top)} in {name}"
    baseline = _baseline_text(found)
    if len(better) == 1:
        headline = f"{capital(winner.label)} is better than {baseline}, {moved}."
        cautions = []
    else:
        headline = (
            f"{capital(winner.label)} has the best {name} of {counted(len(better), 'configuration')} that are better than "
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


def _not_compared(found: Findings, best: Configuration) -> Answer:
    """No row of the comparisons has seeds enough: because of the baseline, or of all."""
    fewest = found.results["comparisons"]["fewest_seeds"]
    leader = f"the {_leader(found, best)} is that of {best.label}, {_score_text(found, best)}"
    baseline = found.baseline
    others = [one for one in found.ranked if one is not baseline]
    num_compared = 0 if baseline is None else _num_scored(found, baseline)
    if baseline is not None and num_compared < fewest <= max(_num_scored(found, one) for one in others):
        ended = f"has a score at {num_compared} of {counted(len(baseline.trials), 'seed')}" if num_compared else "has no score"
        headline = f"The baseline ({baseline.label}) {ended}, so nothing was compared; {leader}."
        why = f"Others have {fewest} seeds or more: it is the baseline that keeps them from being told apart."
        fix = "“lorascope results DIR --pairs” compares every two, “--baseline NAME” with another one."
        return Answer(headline, False, [why, *_best_evidence(found, best, said=True)], [fix])
    headline = f"Too few seeds to tell: {leader}, and may be luck."
    pair = "No two configurations" if baseline is None else "No configuration and the baseline"
    why = f"{pair} finished {fewest} seeds in common, the fewest that tell a difference from chance."
    return Answer(headline, False, [why, *_best_evidence(found, best, said=True)], ["Add seeds: “seeds: [42, 1337, 2024]”."])


def _num_scored(found: Findings, one: Configuration) -> int:
    score = one.scores.get(found.metric or "")
    return 0 if score is None else len(score.by_seed)


def _leader(found: Findings, best: Configuration) -> str:
    """``highest accuracy``, and of which configurations it is that, where others have a better mean."""
    sign = 1.0 if found.higher else -1.0
    name = found.metric or ""
    ahead = [one for one in found.ranked if sign * one.scores[name].mean > sign * best.scores[name].mean]
    whose = " of an adapter" if any(not one.is_adapter for one in ahead) else ""
    whose += " with every seed" if any(one.is_adapter for one in ahead) else ""
    return f"{'highest' if found.higher else 'lowest'} {metric_name(name)}{whose}"


def _baseline_text(found: Findings) -> str:
    return "the baseline" if found.baseline is None else f"the baseline ({found.baseline.label})"


def _row_evidence(found: Findings, row: Mapping[str, Any]) -> str:
    one, other = found.by_name[row["configuration"]], found.by_name[row["against"]]
    examples = "" if row["examples"] is None else f" and {row['examples']:,} examples"
    p = f"; p = {brief(row['p_holm'])}, {found.results['comparisons']['correction']}" if row["p_holm"] is not None else ""
    moved = with_interval(row["difference"], row["low"], row["high"], sign=True)
    of = f"{capital(one.label)} less {other.label}"
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
    start = capital(best.label) if said else f"{capital(best.label)}, {_score_text(found, best)},"
    return [f"{start} {listed(costs)}, measured alone."]


def _cautions(found: Findings, unknown: Sequence[Mapping[str, Any]]) -> list[str]:
    cautions = []
    if unknown:
        fewest = found.results["comparisons"]["fewest_seeds"]
        cautions.append(
            f"{counted(len(unknown), 'configuration')} finished fewer than {fewest} seeds: nothing is said of them."
        )
    notes = dict.fromkeys(row["note"] for row in found.results["comparisons"]["rows"] if row["note"])
    return [*cautions, *(f"{capital(_with_labels(found, note))}." for note in notes)]


def _with_labels(found: Findings, note: str) -> str:
    """A note that names configurations by their hashes, with their labels."""
    return " ".join(found.by_name[word].label if word in found.by_name else word for word in note.split(" "))


def _score_text(found: Findings, one: Configuration) -> str:
    score = one.scores[found.metric or ""]
    decimals = decimals_for([score.mean], [None if score.low is None or score.high is None else (score.high - score.low) / 2])
    half = "" if score.low is None or score.high is None else f" ± {number((score.high - score.low) / 2, decimals)}"
    seeds = f"mean of {counted(len(score.by_seed), 'seed')}" if len(score.by_seed) > 1 else "one seed"
    unit = found.unit(found.metric or "")
    return f"{metric_name(found.metric or '')} {number(score.mean, decimals)}{half}{' %' if unit == '%' else ''} ({seeds})"


def _difference_text(row: Mapping[str, Any]) -> str:
    half = None if row["low"] is None else (row["high"] - row["low"]) / 2
    return number(row["difference"], decimals_for([row["difference"]], [half]), sign=True)


def _unit(found: Findings) -> str:
    return {"%": "points ", "nats": "nats "}.get(found.unit(found.metric or ""), "")


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
            f"{capital(best.label)} falls short of {words.get(row['against'], row['against'])} by {percent} %: "
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
