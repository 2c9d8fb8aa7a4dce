"""What each player of a cooperative game adds: Shapley values, exact or sampled, with intervals that cover.

Knows players, coalitions and what each was worth under one or more seeds. Does not know LoRA, models, files or how a worth
comes about. Floor: beside ``metrics``; imports ``errors`` at most.

Legend: P players, C coalitions, K seeds. A coalition is the number whose bit i says whether player i is in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lorascope.errors import RunError

Coalition = frozenset[str]
Pair = tuple[str, str]
Array = NDArray[np.float64]

MOST_PLAYERS = 20
# Differences smaller than this share of the largest worth are rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its confidence interval; the ends are NaN where nothing is known of its error."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Attribution:
    """What each player adds, in the units and with the sign of the worths: of a loss, a helpful player's value is negative.

    Attributes:
        values: by player, its Shapley value.
        interactions: by pair, in the order of ``players``, the pairwise Shapley interaction index: how much more the two add
            together than one by one.
        pairs: by pair (a, b), the value of a minus that of b, paired by seed.
        p_values: by pair, of the hypothesis that both have one value, corrected for all pairs by Holm's method; NaN where
            nothing is known of the error.
        ranking: groups of players, best first, and within a group by estimate. In the order of the estimates a player joins
            the group before it unless one of that group's members is distinguishable from it (Holm's p below 1 - confidence);
            so no two players of one group are distinguishable, and each group's first player is from at least one player of
            the group before it. Other players of neighbouring groups need not be: ``p_values`` tells.
        full: what all players together add, the sum of the values.
        num_coalitions: that were valued and used.
        num_seeds: that were used.
        exact: every coalition was valued, so that the intervals speak of the seeds alone.
        confidence: of every interval, for itself.
        notes: what was left out and what the intervals do not cover, a sentence each.
    """

    players: tuple[str, ...]
    values: dict[str, Interval]
    interactions: dict[Pair, Interval]
    pairs: dict[Pair, Interval]
    p_values: dict[Pair, float]
    ranking: list[list[str]]
    full: Interval
    num_coalitions: int
    num_seeds: int
    exact: bool
    confidence: float
    notes: tuple[str, ...] = ()


def exact_values(players: Sequence[str], worth: Mapping[Coalition, float]) -> dict[str, float]:
    """Shapley values of a game whose every coalition is valued.

    Raises:
        ValueError: a coalition lacks, or holds an unknown player; a player twice, none, or more than 20.

    Source: Shapley 1953, "A value for n-person games".
    """
    worth_KC = _table(players, {coalition: (value,) for coalition, value in worth.items()})
    return dict(zip(players, _values(worth_KC)[0].tolist(), strict=True))


def exact_interactions(players: Sequence[str], worth: Mapping[Coalition, float]) -> dict[Pair, float]:
    """Pairwise Shapley interaction indices of a game whose every coalition is valued, by pair in the order of ``players``.

    Raises:
        ValueError: as ``exact_values``.

    Source: Grabisch and Roubens 1999, "An axiomatic approach to the concept of interaction", definition 1.
    """
    worth_KC = _table(players, {coalition: (value,) for coalition, value in worth.items()})
    return dict(zip(itertools.combinations(players, 2), _interactions(worth_KC)[0].tolist(), strict=True))


def attribute(
    players: Sequence[str],
    worths: Mapping[Coalition, Sequence[float]],
    *,
    higher_is_better: bool = True,
    confidence: float = 0.95,
) -> Attribution:
    """Shapley values of a game whose every coalition was valued once for each seed.

    A value is linear in the worths, so each seed has values of its own, and these are independent draws: intervals are
    Student's, with K - 1 degrees of freedom. Bootstrapping the seeds is no substitute, for three seeds have only ten different
    resamples. A seed in which a worth is NaN or infinite (its trial failed) is left out whole, and ``notes`` says so: its
    values cannot be had, and a mean over other seeds would not be paired. With one seed the intervals' ends are NaN.

    Args:
        worths: by coalition one number for each seed, the same seeds in the same order for all.
        higher_is_better: of the worth; turns the ranking round, not the values.

    Raises:
        ValueError: a coalition lacks, or holds an unknown player; numbers of seeds differ.
        RunError: no seed has a worth for every coalition.
    """
    worth_KC = _table(players, worths)
    complete_K = np.isfinite(worth_KC).all(axis=1)
    if not complete_K.any():
        where = [_name(players, int(mask)) for mask in np.flatnonzero(~np.isfinite(worth_KC).any(axis=0))]
        raise RunError(
            "no seed has a worth for every coalition" + (f"; none at all: {', '.join(where[:3])}" if where else ""),
            fix="run the failed trials again",
        )
    worth_KC = worth_KC[complete_K]
    num_seeds = len(worth_KC)
    notes = []
    if num_seeds < len(complete_K):
        notes.append(f"{len(complete_K) - num_seeds} of {len(complete_K)} seeds left out: a coalition has no worth there")
    if num_seeds == 1:
        notes.append("one seed: no intervals and no verdicts")
    return _attribution(
        tuple(players),
        _Draws(_values(worth_KC), _interactions(worth_KC), worth_KC[:, -1] - worth_KC[:, 0]),
        num_coalitions=worth_KC.shape[1],
        higher_is_better=higher_is_better,
        confidence=confidence,
        notes=tuple(notes),
    )


def coalitions_of(players: Sequence[str], seed: int) -> Iterator[Coalition]:
    """Coalitions in the order in which to value them where there are too many: none, all, then random ones, each once.

    They come in twos, a coalition and its complement, which are the beginnings of a random permutation and of its reverse.
    The iterator ends when every coalition was given. A function of the players and the seed alone, so that whoever stops and
    begins again meets the same coalitions.
    """
    yield frozenset()
    yield frozenset(players)
    generator = np.random.default_rng(seed)
    given: set[Coalition] = set()
    while len(given) < 2 ** len(players) - 2:
        order = [players[int(index)] for index in generator.permutation(len(players))]
        for size in range(1, len(players)):
            for coalition in (frozenset(order[:size]), frozenset(order[size:])):
                if coalition not in given:
                    given.add(coalition)
                    yield coalition


def estimate(
    players: Sequence[str],
    worths: Mapping[Coalition, Sequence[float]],
    *,
    higher_is_better: bool = True,
    confidence: float = 0.95,
) -> Attribution:
    """Shapley values of a game of which only some coalitions were valued; the empty and the full one must be.

    Raises:
        ValueError: an unknown player; numbers of seeds differ.
        RunError: no seed has a worth for the empty and the full coalition.
    """
    raise NotImplementedError


def done(attribution: Attribution, width: float) -> bool:
    """Whether sampling may end: no value's interval is wider than ``width`` times what all players together add.

    An exact attribution is done whatever its width, for there is no coalition left to value.
    """
    widest = max(value.high - value.low for value in attribution.values.values())
    return attribution.exact or bool(widest <= width * abs(attribution.full.estimate))


def agreement(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """How far two lists of worths or values agree: ``kendall_tau`` (tau-b), ``pearson`` and ``spearman``.

    Positions where either holds a NaN or an infinity are left out; ``num_compared`` says how many stayed. Fewer than two, or a
    list of equal numbers, agree with nothing: NaN.

    Raises:
        ValueError: the lengths differ.
    """
    if len(one) != len(other):
        raise ValueError(f"{len(one)} numbers against {len(other)}")
    both = np.array([one, other], dtype=np.float64)
    both = both[:, np.isfinite(both).all(axis=0)]
    figures = {"kendall_tau": math.nan, "pearson": math.nan, "spearman": math.nan}
    if both.shape[1] >= 2 and (both.min(axis=1) < both.max(axis=1)).all():
        figures = {
            "kendall_tau": float(stats.kendalltau(*both).statistic),
            "pearson": float(stats.pearsonr(*both).statistic),
            "spearman": float(stats.spearmanr(*both).statistic),
        }
    return {**figures, "num_compared": float(both.shape[1])}


@dataclass(frozen=True)
class _Draws:
    """Each seed's figures, independent of each other: Shapley values, interactions by pair, and what all players add."""

    values_KP: Array
    interactions_KQ: Array
    full_K: Array


def _attribution(
    players: tuple[str, ...],
    draws: _Draws,
    *,
    num_coalitions: int,
    higher_is_better: bool,
    confidence: float,
    notes: tuple[str, ...],
) -> Attribution:
    pairs = list(itertools.combinations(players, 2))
    first_Q, second_Q = np.triu_indices(len(players), 1)
    differences_KQ = draws.values_KP[:, first_Q] - draws.values_KP[:, second_Q]
    values = _intervals(draws.values_KP, confidence)
    p_values = dict(zip(pairs, _holm(_p_values(differences_KQ, _scale(draws.values_KP))), strict=True))
    order = sorted(players, key=lambda player: values[players.index(player)].estimate, reverse=higher_is_better)
    return Attribution(
        players=players,
        values=dict(zip(players, values, strict=True)),
        interactions=dict(zip(pairs, _intervals(draws.interactions_KQ, confidence), strict=True)),
        pairs=dict(zip(pairs, _intervals(differences_KQ, confidence), strict=True)),
        p_values=p_values,
        ranking=_groups(order, {pair for pair, p in p_values.items() if p < 1.0 - confidence}),
        full=_intervals(draws.full_K[:, None], confidence)[0],
        num_coalitions=num_coalitions,
        num_seeds=len(draws.full_K),
        exact=True,
        confidence=confidence,
        notes=notes,
    )


def _scale(values_KP: Array) -> float:
    return float(np.abs(values_KP).max(initial=0.0))


def _intervals(draws_KX: Array, confidence: float) -> list[Interval]:
    """Student's interval of each column's mean."""
    num_seeds = len(draws_KX)
    mean_X = draws_KX.mean(axis=0)
    half_X = np.full_like(mean_X, np.nan)
    if num_seeds > 1:
        quantile = float(stats.t.ppf(0.5 + confidence / 2, num_seeds - 1))
        half_X = quantile * draws_KX.std(axis=0, ddof=1) / math.sqrt(num_seeds)
    return [Interval(float(mean), float(mean - half), float(mean + half)) for mean, half in zip(mean_X, half_X, strict=True)]


def _p_values(draws_KX: Array, scale: float) -> list[float]:
    """Two-sided, of Student's test that each column's mean is zero; NaN with one seed."""
    num_seeds = len(draws_KX)
    if num_seeds < 2:
        return [math.nan] * draws_KX.shape[1]
    mean_X = np.abs(draws_KX.mean(axis=0))
    error_X = draws_KX.std(axis=0, ddof=1) / math.sqrt(num_seeds)
    p_values = []
    for mean, error in zip(mean_X.tolist(), error_X.tolist(), strict=True):
        if mean <= _ROUNDING * scale:
            p_values.append(1.0)
        else:
            p_values.append(2.0 * float(stats.t.sf(mean / error, num_seeds - 1)) if error > 0.0 else 0.0)
    return p_values


def _holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for as many tests as there are. Source: Holm 1979."""
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - position)))
        corrected[index] = math.nan if math.isnan(p_values[index]) else largest
    return corrected


def _groups(order: Sequence[str], distinguishable: set[Pair]) -> list[list[str]]:
    groups: list[list[str]] = []
    for player in order:
        apart = not groups or any({(player, other), (other, player)} & distinguishable for other in groups[-1])
        if apart:
            groups.append([player])
        else:
            groups[-1].append(player)
    return groups


def _values(worth_KC: Array) -> Array:
    """Shapley values ``[K, P]`` of worths ``[K, 2^P]``."""
    num_players = worth_KC.shape[1].bit_length() - 1
    weights_by_size = np.array([1.0 / (num_players * math.comb(num_players - 1, size)) for size in range(num_players)])
    weights_C = weights_by_size[_sizes(num_players - 1)]
    values_PK = []
    for player in range(num_players):
        without_C, having_C = _split(worth_KC, player)
        # Over the last axis numpy adds pairwise, which keeps the error of a million terms near that of one.
        values_PK.append(((having_C - without_C) * weights_C).sum(axis=-1))
    return np.array(values_PK).T


def _interactions(worth_KC: Array) -> Array:
    """Pairwise interaction indices ``[K, Q]`` of worths ``[K, 2^P]``."""
    num_players = worth_KC.shape[1].bit_length() - 1
    others = num_players - 2
    interactions_QK = [np.empty((0, len(worth_KC)))]
    if num_players > 1:
        weights_by_size = np.array([1.0 / ((others + 1) * math.comb(others, size)) for size in range(others + 1)])
        weights_C = weights_by_size[_sizes(others)]
    for first, second in itertools.combinations(range(num_players), 2):
        without, having = (_split(half, first) for half in _split(worth_KC, second))
        interactions_QK.append((((having[1] - having[0]) - (without[1] - without[0])) * weights_C).sum(axis=-1)[None])
    return np.concatenate(interactions_QK).T


def _split(worth_KC: Array, player: int) -> tuple[Array, Array]:
    """The worths of the coalitions without and with a player, in the order of the coalitions without its bit."""
    halves = worth_KC.reshape(len(worth_KC), -1, 2, 2**player)
    return halves[:, :, 0].reshape(len(worth_KC), -1), halves[:, :, 1].reshape(len(worth_KC), -1)


def _sizes(num_players: int) -> NDArray[np.intp]:
    return np.bitwise_count(np.arange(2**num_players)).astype(np.intp)


def _table(players: Sequence[str], worths: Mapping[Coalition, Sequence[float]]) -> Array:
    """Worths ``[K, 2^P]`` of a game whose every coalition is valued."""
    if not 1 <= len(players) <= MOST_PLAYERS:
        raise ValueError(f"{len(players)} players; every coalition can be valued of 1 to {MOST_PLAYERS}")
    masks, worth_KC = _read(players, worths)
    missing = np.setdiff1d(np.arange(2 ** len(players)), masks)
    if len(missing):
        raise ValueError(f"{len(missing)} coalitions have no worth, among them {_name(players, int(missing[0]))}")
    table_KC = np.empty_like(worth_KC)
    table_KC[:, masks] = worth_KC
    return table_KC


def _read(players: Sequence[str], worths: Mapping[Coalition, Sequence[float]]) -> tuple[NDArray[np.int64], Array]:
    """Coalitions ``[C]`` as numbers, in the order given, and their worths ``[K, C]``."""
    if len(set(players)) < len(players):
        raise ValueError("a player occurs twice")
    bits = {player: 1 << index for index, player in enumerate(players)}
    unknown = {player for coalition in worths for player in coalition} - bits.keys()
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is no player; known: {', '.join(players)}")
    num_seeds = {len(values) for values in worths.values()}
    if len(num_seeds) != 1 or num_seeds == {0}:
        raise ValueError("every coalition needs as many worths as the others, one for each seed")
    masks = np.fromiter((sum(bits[player] for player in coalition) for coalition in worths), np.int64, len(worths))
    return masks, np.array(list(worths.values()), dtype=np.float64).T.copy()


def _name(players: Sequence[str], mask: int) -> str:
    return "{" + ", ".join(player for index, player in enumerate(players) if mask >> index & 1) + "}"
