"""What the games of a study show, from its store alone: worths, values, interactions, ranking, a recommendation.

Knows stored trials and maps; loads neither torch nor a model. Floor: ``attribution``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
from scipy import stats

from lorascope.attribution.players import LATENCY_KEY, Game, attribution_of, in_order, stored_game
from lorascope.config import ShapleyDesign
from lorascope.errors import RunError
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.shapley import CONFIDENCE, Attribution, Coalition, Interval, agreement, exact_values
from lorascope.store import Store, TrialRow, merge_results, strict_json

# By coalition one worth for each seed, NaN where there is none.
Worths = Mapping[Coalition, Sequence[float]]

WHAT = {
    "usefulness": "usefulness: every coalition was trained anew",
    "reliance": "reliance: the other players were masked out of one adapter trained with all of them",
    "one_run": "one run: an estimate, read by masking off one training a seed, with random coalitions",
}
_NO_LATENCY = "not measured: the study ended before, or is one of an earlier version; go on with --resume"
# Of fewer retrained coalitions agreement says nothing; a study has at least so many, or all that there are.
_LEAST_RETRAINED = 4


@dataclass(frozen=True)
class _Costs:
    """What players cost; None where it is not known.

    Attributes:
        parameters, seconds: by player, what it trains, and its share of an epoch alone.
        latency: as ``latency.measure_latency`` stored it, or the reason why there is none.
    """

    parameters: Mapping[str, int] | None
    seconds: Mapping[str, float] | None
    latency: Mapping[str, Any]

    def million_parameters(self, player: str) -> float | None:
        """What it trains."""
        return None if self.parameters is None else self.parameters[player] / 1e6

    def seconds_of(self, player: str) -> float | None:
        """Of an epoch."""
        return None if self.seconds is None else self.seconds[player]

    def milliseconds(self, player: str) -> float | None:
        """Of a pass, where they can be told from nothing."""
        measured = self.latency.get("players", {}).get(player)
        return None if measured is None or not (measured["low"] or 0.0) > 0.0 else float(measured["ms"])


def shapley_document(stores: Sequence[Store]) -> dict[str, Any]:
    """The ``shapley`` section of a study's results, over its shards; empty for a study of another design.

    Strict JSON: what cannot be said is null, and ``notes`` or ``reason`` says why. Values have the sign of their metric: what
    lowers a loss has a negative value of ``eval_loss``, and ``ranking`` puts it first.
    """
    study = stores[0].study
    if not isinstance(study.design, ShapleyDesign):
        return {}
    rows = merge_results(stores)
    game = stored_game(study, rows)
    kind = study.design.game
    coalition_rows = [row for row in rows if game.coalition_of(row.config) is not None]
    maps = {seed: record for store in stores for seed, record in store.maps(kind).items()}
    worths = _map_worths(game, maps) if kind != "usefulness" else game.worths(rows)
    parameters = _parameters(game, coalition_rows, maps)
    costs = _Costs(
        parameters,
        _seconds(game, coalition_rows) if kind == "usefulness" else None,
        _latency(stores),
    )
    wanted = study.design.values or [name for name in worths if name in HIGHER_IS_BETTER]
    metrics = {name: _metric(game, name, worths.get(name, {}), costs) for name in wanted}
    document: dict[str, Any] = {
        "game": kind,
        "what": WHAT[kind],
        "players": {player: list(targets) for player, targets in game.players.items()},
        "parameters": parameters,
        "seeds": list(study.seeds),
        "trials": {
            status: sum(row.status == status for row in coalition_rows)
            for status in dict.fromkeys(row.status for row in coalition_rows)
        },
        "metrics": metrics,
        "latency": costs.latency,
    }
    if maps:
        document["maps"] = [_map_facts(record) for _, record in sorted(maps.items())]
    if kind == "one_run":
        retrained = game.worths(rows)
        for name, metric in metrics.items():
            found = _agreement(game, retrained.get(name, {}), worths.get(name, {}))
            calibrated = _calibrated(game, name, retrained.get(name, {}), worths.get(name, {}))
            metrics[name] = _believable(game, {**metric, "agreement": found, "calibrated": calibrated})
        document["cost"] = _cost(game, coalition_rows, list(maps.values()))
    return strict_json(document)  # type: ignore[no-any-return]


def _metric(
    game: Game,
    name: str,
    by_seed: Mapping[Coalition, Mapping[int, float]],
    costs: _Costs,
) -> dict[str, Any]:
    """What one metric says of the players."""
    seeds = game.study.seeds
    worths = {coalition: in_order(its, seeds) for coalition, its in by_seed.items()}
    listed = sorted(worths, key=lambda coalition: (len(coalition), game.targets(coalition)))
    found: dict[str, Any] = {
        "higher_is_better": HIGHER_IS_BETTER[name],
        "coalitions": [{"players": _members(game, one), "worths": worths[one], "mean": _mean(worths[one])} for one in listed],
    }
    if not worths:
        return {**found, "reason": f"no {'trial' if game.design.game == 'usefulness' else 'map'} has {name}"}
    total = 1 << len(game.players)
    if game.is_exact and len(worths) < total:
        return {**found, "reason": f"{len(worths)} of {total} coalitions are valued; all are needed"}
    try:
        attribution = attribution_of(game, name, worths)
    except (RunError, ValueError) as error:
        return {**found, "reason": str(error)}
    values = {
        player: {
            **_interval(value),
            "per_million_parameters": _per(value.estimate, costs.million_parameters(player)),
            "per_second": _per(value.estimate, costs.seconds_of(player)),
            "per_ms_latency": _per(value.estimate, costs.milliseconds(player)),
        }
        for player, value in attribution.values.items()
    }
    return {
        **found,
        "exact": attribution.exact,
        "num_coalitions": attribution.num_coalitions,
        "num_seeds": attribution.num_seeds,
        "confidence": attribution.confidence,
        "values": values,
        "full": _interval(attribution.full),
        "interactions": _pairs(attribution.interactions),
        "differences": [
            {**pair, "p_value": p} for pair, p in zip(_pairs(attribution.pairs), attribution.p_values.values(), strict=True)
        ],
        "ranking": attribution.ranking,
        "verdict": _verdict(attribution),
        "recommended": _recommended(game, name, worths, costs.parameters),
        "notes": list(attribution.notes),
    }


def _believable(game: Game, metric: dict[str, Any]) -> dict[str, Any]:
    """A one-run map's metric, or why nothing is shown of it: without retrained coalitions nobody could say how wrong it is."""
    num_retrained = int(metric["agreement"]["of_means"]["num_compared"])
    least = min(_LEAST_RETRAINED, 1 << len(game.players))
    if num_retrained >= least:
        return metric
    reason = (
        f"{num_retrained} of the coalitions that the map holds were retrained, and {least} are needed to say how far it is "
        "to be believed"
    )
    shown = ("higher_is_better", "agreement")
    return {**{key: metric[key] for key in shown}, "coalitions": [], "reason": metric.get("reason", reason)}


def _verdict(attribution: Attribution) -> str:
    """The ranking in words."""
    if attribution.num_seeds == 1 and attribution.exact:
        return "one seed: the order is that of the estimates, and nothing is said of what another seed would give"
    if len(attribution.ranking) == 1:
        return "not distinguishable" if len(attribution.players) > 1 else "one player"
    order = " > ".join(", ".join(group) for group in attribution.ranking)
    joined = any(len(group) > 1 for group in attribution.ranking)
    return f"{order} (a comma joins players that are not distinguishable)" if joined else order


def _recommended(game: Game, name: str, worths: Worths, parameters: Mapping[str, int] | None) -> dict[str, Any] | None:
    """The smallest coalition that is as good as the best, as far as the seeds can tell; None in a game of masks alone."""
    if game.design.game == "reliance":
        return None
    table = {coalition: np.array(its) for coalition, its in worths.items() if np.isfinite(its).all()}
    if not table:
        return None
    sign = 1.0 if HIGHER_IS_BETTER[name] else -1.0
    best = max(table, key=lambda coalition: sign * float(table[coalition].mean()))
    margin = _margin(np.array(list(table.values())))
    as_good = [one for one in table if sign * float(table[best].mean() - table[one].mean()) <= margin]

    def size(coalition: Coalition) -> tuple[float, int, float]:
        weight = float(len(coalition)) if parameters is None else float(sum(parameters[player] for player in coalition))
        return weight, len(coalition), -sign * float(table[coalition].mean())

    chosen = min(as_good, key=size)
    size_of = "players" if parameters is None else "parameters"
    why = (
        f"the coalition with the fewest {size_of} whose mean {name} over the seeds is within the 95 % margin of the "
        f"best one's, {margin:.2g} (Student's, with the variance between seeds pooled over all coalitions)"
        if margin > 0.0
        else f"the best mean {name}: one seed says nothing of how far chance reaches"
    )
    if game.design.game == "one_run":
        why = f"by the map, not by retraining: {why}"
    return {
        "players": _members(game, chosen),
        "targets": game.targets(chosen),
        "mean": float(table[chosen].mean()),
        "best": {"players": _members(game, best), "mean": float(table[best].mean())},
        "margin": margin,
        "why": why,
    }


def _margin(worth_CK: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """How far two coalitions' means may lie apart by chance: coalitions and seeds as a two-way layout; 0 with one seed."""
    num_coalitions, num_seeds = worth_CK.shape
    freedom = (num_coalitions - 1) * (num_seeds - 1)
    if freedom == 0:
        return 0.0
    residual_CK = worth_CK - worth_CK.mean(axis=1, keepdims=True) - worth_CK.mean(axis=0) + worth_CK.mean()
    variance = float((residual_CK**2).sum()) / freedom
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * math.sqrt(2.0 * variance / num_seeds)


def _map_worths(game: Game, maps: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[Coalition, dict[int, float]]]:
    """By metric, coalition and seed; only coalitions that the map of every seed holds."""
    found: dict[str, dict[Coalition, dict[int, float]]] = {}
    common = set.intersection(*(set(record["coalitions"]) for record in maps.values())) if maps else set()
    for seed, record in maps.items():
        players = list(record["players"])
        for name, column in record["metrics"].items():
            for mask, value in zip(record["coalitions"], column, strict=True):
                if mask in common:
                    coalition = frozenset(player for index, player in enumerate(players) if mask >> index & 1)
                    its = found.setdefault(name, {}).setdefault(coalition, {})
                    its[seed] = math.nan if value is None else value
    return found


def _map_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """A map without its worths."""
    left_out = ("metrics", "coalitions", "players", "parameters")
    return {"num_coalitions": len(record["coalitions"]), **{key: record[key] for key in record if key not in left_out}}


def _parameters(game: Game, rows: Iterable[TrialRow], maps: Mapping[int, Mapping[str, Any]]) -> dict[str, int] | None:
    """How many numbers each player trains: as a map says, or from the counts of trials, which add up player by player."""
    for record in maps.values():
        return dict(record["parameters"])
    counts: dict[Coalition, int] = {}
    for row in rows:
        coalition = game.coalition_of(row.config)
        if coalition is not None and row.trainable_params is not None:
            counts[coalition] = row.trainable_params
    players = list(game.players)
    membership = np.array([[1.0, *(float(player in one) for player in players)] for one in counts])
    if len(counts) <= len(players) or np.linalg.matrix_rank(membership) <= len(players):
        return None
    solution = np.linalg.lstsq(membership, np.array(list(counts.values()), dtype=np.float64), rcond=None)[0]
    return {player: round(count) for player, count in zip(players, solution[1:], strict=True)}


def _seconds(game: Game, rows: Sequence[TrialRow]) -> dict[str, float] | None:
    """Each player's share of an epoch's training time, measured alone: the Shapley value of the time. None where not known."""
    measured: dict[Coalition, list[float]] = {frozenset(): []}
    for row in rows:
        coalition = game.coalition_of(row.config)
        if coalition is not None and row.solo_train_seconds_per_epoch is not None:
            measured.setdefault(coalition, []).append(row.solo_train_seconds_per_epoch)
    times = {coalition: mean(its) if its else 0.0 for coalition, its in measured.items()}
    return exact_values(list(game.players), times) if len(times) == 1 << len(game.players) else None


def _latency(stores: Sequence[Store]) -> dict[str, Any]:
    """What players add to a pass, on the machine of the first shard that measured it, and what that is in words."""
    stored = [record for store in stores if (record := store.info(LATENCY_KEY)) is not None]
    measured = next((record for record in stored if "players" in record), None)
    if measured is None:
        return {"reason": f"not measured: {stored[0]['reason']}" if stored else _NO_LATENCY}
    tokens, held = measured["tokens"], measured["quantization"] or measured["dtype"]
    how = "" if measured["exact"] else f", {measured['num_coalitions']} coalitions sampled"
    what = (
        f"unmerged, {measured['phase']} over one row of {tokens} tokens, on {measured['device']} with {measured['threads']} "
        f"threads, {held}; mean of {measured['rounds']} rounds{how}; a merged adapter adds none"
    )
    return {"what": what, **measured}


def _agreement(
    game: Game, retrained: Mapping[Coalition, Mapping[int, float]], mapped: Mapping[Coalition, Mapping[int, float]]
) -> dict[str, Any]:
    """The map against retraining, coalition by coalition, and retraining against itself with another seed."""
    seeds = [seed for seed in game.study.seeds if any(seed in its for its in mapped.values())]
    shared = [coalition for coalition in retrained if coalition in mapped]
    truth = {coalition: in_order(retrained[coalition], game.study.seeds) for coalition in shared}
    estimates = {coalition: in_order(mapped[coalition], seeds) for coalition in shared}
    each = [
        {"seed": seed, **agreement([mapped[one].get(seed, math.nan) for one in shared],
                                   [retrained[one].get(seed, math.nan) for one in shared])}
        for seed in seeds
    ]  # fmt: skip
    itself = [
        {"seeds": [one, other], **agreement([retrained[c].get(one, math.nan) for c in shared],
                                            [retrained[c].get(other, math.nan) for c in shared])}
        for index, one in enumerate(game.study.seeds)
        for other in game.study.seeds[index + 1 :]
    ]  # fmt: skip
    return {
        "num_retrained": len(shared),
        "by_seed": each,
        "of_means": agreement([_nanmean(estimates[one]) for one in shared], [_nanmean(truth[one]) for one in shared]),
        "of_effects": _effects_agreement(game, shared, estimates, truth),
        "retraining_with_itself": itself,
    }


def _effects_agreement(game: Game, shared: Sequence[Coalition], one: Worths, other: Worths) -> dict[str, float] | None:
    """Of the players' additive effects, fitted to the same coalitions; None where these are too few to fit."""
    players = list(game.players)
    worths = np.array([[_nanmean(one[coalition]), _nanmean(other[coalition])] for coalition in shared]).reshape(-1, 2)
    usable = np.isfinite(worths).all(axis=1)
    membership = np.array([[1.0, *(float(p in c) for p in players)] for c in shared]).reshape(-1, 1 + len(players))[usable]
    if len(membership) < len(players) + 2 or np.linalg.matrix_rank(membership) <= len(players):
        return None
    effects = np.linalg.lstsq(membership, worths[usable], rcond=None)[0][1:]
    # A fit to worths that are all alike leaves rounding, in which an order would be chance.
    scale = max(float(np.abs(worths[usable]).max()), 1e-300)
    rounded = np.round(effects / scale, 9)
    return agreement(rounded[:, 0].tolist(), rounded[:, 1].tolist())


def _calibrated(
    game: Game, name: str, retrained: Mapping[Coalition, Mapping[int, float]], mapped: Mapping[Coalition, Mapping[int, float]]
) -> dict[str, Any]:
    """Usefulness from a few retrained coalitions, with the map as control variate.

    A worth is split into the map's times a slope and what is left. The Shapley value of the first part is the map's; that of
    the second, which varies less than the worths, is estimated from the retrained coalitions. The sum is right on average
    however wrong the map is, but for the slope, which is fitted to the same coalitions. Halves of intervals add in quadrature.

    Source: the control variate of Monte Carlo methods (Owen 2013, section 8.9).
    """
    shared = [coalition for coalition in retrained if coalition in mapped]
    seeds = [seed for seed in game.study.seeds if all(seed in of[one] for of in (retrained, mapped) for one in shared)]
    if len(shared) < len(game.players) + 3 or not seeds or not {frozenset(), game.everyone} <= set(shared):
        needed = f"{len(game.players) + 3} retrained coalitions with a map of the same seed, none and all among them"
        return {"reason": f"needs {needed}"}
    truth_CK = np.array([[retrained[one][seed] for seed in seeds] for one in shared])
    map_CK = np.array([[mapped[one][seed] for seed in seeds] for one in shared])
    centred_CK = map_CK - map_CK.mean(axis=0)
    spread = float((centred_CK**2).sum())
    if not np.isfinite(map_CK).all() or spread <= 1e-18 * float((map_CK**2).sum()):
        return {"reason": "the map is the same for all coalitions, or not finite"}
    slope = float((centred_CK * truth_CK).sum()) / spread
    left = {one: (truth_CK[index] - slope * map_CK[index]).tolist() for index, one in enumerate(shared)}
    try:
        by_map = attribution_of(game, name, {one: in_order(its, seeds) for one, its in mapped.items()})
        rest = attribution_of(game, name, left)
    except (RunError, ValueError) as error:
        return {"reason": str(error)}
    values = {}
    for player in game.players:
        one, other = by_map.values[player], rest.values[player]
        estimate = slope * one.estimate + other.estimate
        half = math.hypot(slope * (one.high - one.estimate), other.high - other.estimate)
        values[player] = _interval(Interval(estimate, estimate - half, estimate + half))
    return {"slope": slope, "num_retrained": len(shared), "values": values}


def _cost(game: Game, rows: Sequence[TrialRow], maps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds of a map (training and reading) against those of retraining, training alone, for one seed.

    As shares of retraining the coalitions that were retrained, and as many as were read.
    """
    alone = [row.solo_train_seconds_per_epoch for row in rows if row.solo_train_seconds_per_epoch is not None]
    if not maps or not alone:
        return {"reason": "no retrained coalition was measured alone" if maps else "no map yet"}
    one = mean(alone) * mean(record["trial_epochs"] for record in maps)
    train = mean(record["train_seconds"] for record in maps)
    read = mean(record["read_seconds"] for record in maps)
    num_read = mean(len(record["coalitions"]) for record in maps)
    num_retrained = len({game.coalition_of(row.config) for row in rows})
    return {
        "map_train_seconds": train,
        "map_read_seconds": read,
        "seconds_per_retrained_coalition": one,
        "num_retrained": num_retrained,
        "num_read": num_read,
        "share_of_retraining": (train + read) / (one * num_retrained),
        "share_of_retraining_as_many_as_read": (train + read) / (one * num_read),
    }


def _members(game: Game, coalition: Coalition) -> list[str]:
    return [player for player in game.players if player in coalition]


def _interval(interval: Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _pairs(intervals: Mapping[tuple[str, str], Interval]) -> list[dict[str, Any]]:
    return [{"players": list(pair), **_interval(interval)} for pair, interval in intervals.items()]


def _per(value: float, amount: float | None) -> float | None:
    """A share of what is not there, or costs less than nothing by the clock's jitter, means nothing."""
    return value / amount if amount is not None and amount > 0.0 else None


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _nanmean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return mean(finite) if finite else math.nan
