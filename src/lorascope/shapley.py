"""What each player of a cooperative game adds: Shapley values, exact or sampled, with intervals that cover.

Knows players, coalitions and what each was worth under one or more seeds. Does not know LoRA, models, files or how a worth
comes about. Floor: beside ``metrics``; imports ``errors`` at most.

Legend: P players, C coalitions, K seeds. A coalition is the number whose bit i says whether player i is in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from scipy.linalg import helmert

from lorascope.errors import RunError

Coalition = frozenset[str]
Pair = tuple[str, str]
Array = NDArray[np.float64]

MOST_PLAYERS = 20
# Of every interval and verdict, unless another is asked for.
CONFIDENCE = 0.95
# Differences smaller than this share of the largest worth are rounding.
_ROUNDING = 1e-12
# Below this share of the largest, a direction of the fit is not determined.
_RANK = 1e-9
# Of a p-value, in tens: smaller ones are given as this.
_LEAST_LOG_P = -30.0


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
            together than one by one; of sampled coalitions see ``estimate``.
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
    worth_KC = _table(players, worth.keys(), np.fromiter(worth.values(), np.float64, len(worth))[None])
    return dict(zip(players, _values(worth_KC)[0].tolist(), strict=True))


def exact_interactions(players: Sequence[str], worth: Mapping[Coalition, float]) -> dict[Pair, float]:
    """Pairwise Shapley interaction indices of a game whose every coalition is valued, by pair in the order of ``players``.

    Raises:
        ValueError: as ``exact_values``.

    Source: Grabisch and Roubens 1999, "An axiomatic approach to the concept of interaction", definition 1.
    """
    worth_KC = _table(players, worth.keys(), np.fromiter(worth.values(), np.float64, len(worth))[None])
    return dict(zip(itertools.combinations(players, 2), _interactions(worth_KC)[0].tolist(), strict=True))


def attribute(
    players: Sequence[str],
    worths: Mapping[Coalition, Sequence[float]],
    *,
    higher_is_better: bool = True,
    confidence: float = CONFIDENCE,
) -> Attribution:
    """Shapley values of a game whose every coalition was valued once for each seed.

    A value is linear in the worths, so each seed has values of its own, and these are independent draws: intervals are
    Student's, with K - 1 degrees of freedom. A bootstrap of the seeds is no substitute: at 95 % its intervals held the truth
    in 74 % of the cases with three seeds and in 83 % with five, Student's in 95 %.

    A figure that is the same under every seed, as coarse worths such as accuracies give now and then, is no surer for that: it
    has no interval, and a difference of values the sign test's p.

    A seed in which a worth is NaN or infinite (its trial failed) is left out whole, and ``notes`` says so: its values cannot
    be had, and a mean over other seeds would not be paired. With one seed the intervals' ends are NaN.

    Args:
        worths: by coalition one number for each seed, the same seeds in the same order for all.
        higher_is_better: of the worth; turns the ranking round, not the values.

    Raises:
        ValueError: a coalition lacks, or holds an unknown player; numbers of seeds differ.
        RunError: no seed has a worth for every coalition.
    """
    worth_KC = _table(players, worths.keys(), _matrix(worths))
    complete_K = np.asarray(np.isfinite(worth_KC).all(axis=1))
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
    values_KP = _values(worth_KC)
    return _attribution(
        tuple(players),
        values=_over_seeds(values_KP),
        pairs=_over_seeds(values_KP @ _differences(len(players)).T),
        interactions=_over_seeds(_interactions(worth_KC)),
        full=_over_seeds(worth_KC[:, -1:] - worth_KC[:, :1]),
        rounding=_ROUNDING * float(np.abs(worth_KC).max()),
        num_coalitions=worth_KC.shape[1],
        num_seeds=num_seeds,
        exact=True,
        higher_is_better=higher_is_better,
        confidence=confidence,
        notes=tuple(notes),
    )


def coalitions_of(players: Sequence[str], seed: int) -> Iterator[Coalition]:
    """Coalitions in the order in which to value them where there are too many: none, all, then random ones, each once.

    They come in twos, a coalition and its complement: the beginning of a random permutation and that of its reverse. Every two
    come from a permutation of their own, since neighbours in one permutation resemble each other: from whole permutations, the
    error of as many coalitions (90 to 354) was 1.3 to 1.8 times as large. Sizes come round as often as they weigh in the fit,
    so small and large coalitions more often than middling ones.

    A function of the players and the seed alone, so that whoever stops and begins again meets the same coalitions; it ends
    when every coalition was given.
    """
    num_players = len(players)
    yield frozenset()
    yield frozenset(players)
    generator = np.random.default_rng(seed)
    given: set[Coalition] = set()
    left = {size: _num_of_size(num_players, size) for size in range(1, num_players // 2 + 1)}
    owed = dict.fromkeys(left, 0.0)
    while left:
        for size in left:
            owed[size] += _weight_of_size(num_players, size)
        size = max(left, key=owed.__getitem__)
        owed[size] -= sum(_weight_of_size(num_players, other) for other in left)
        while True:
            order = [players[index] for index in generator.permutation(num_players).tolist()]
            smaller, larger = frozenset(order[:size]), frozenset(order[size:])
            if smaller not in given:
                break
        given |= {smaller, larger}
        left[size] -= 2
        if not left[size]:
            del left[size]
        yield smaller
        yield larger


def estimate(
    players: Sequence[str],
    worths: Mapping[Coalition, Sequence[float]],
    *,
    higher_is_better: bool = True,
    confidence: float = CONFIDENCE,
) -> Attribution:
    """Shapley values of a game of which only some coalitions were valued, the empty and the full one among them.

    Weighted least squares with the Shapley kernel, constrained to add up to what all players together add. Of a coalition and
    its complement only the difference counts, which rids the fit of all interactions of two players; within a size the valued
    coalitions share the size's weight evenly, so that the estimate ends at the exact value when all are valued. Coalitions
    without their complement are used where they are the majority, with a term for the curve of worth over size.

    Intervals take the sizes' valued coalitions as random draws without replacement (``coalitions_of`` gives such) and the
    seeds as random too, and add the variances over both. With one seed they speak of the coalitions alone. Ends are NaN while
    there are not more coalitions than the fit has unknowns.

    Args:
        worths: by coalition one number for each seed, the same seeds in the same order for all. A seed without the empty or
            the full coalition's worth, or without more than half of the worths, is left out; then a coalition that lacks a
            worth in a seed that stayed. ``notes`` says so.
        higher_is_better: of the worth; turns the ranking round, not the values.

    Returns:
        The attribution; that of ``attribute`` where every coalition was valued. ``interactions`` are the pair terms of a
        fit in which at most two players interact, the Shapley index of such a game and otherwise the faithful one; empty,
        and ``notes`` says how many coalitions it takes, where there are no more twins of coalitions than pairs of players.

    Raises:
        ValueError: an unknown player; numbers of seeds differ; the empty or the full coalition lacks.
        RunError: no seed has a worth for the empty and the full coalition.

    Sources: Lundberg and Lee 2017, theorem 2 (the kernel); Covert and Lee 2021, section 4 (complements); Tsai, Yeh and
    Ravikumar 2023 (interactions); MacKinnon and White 1985 (variance of weighted least squares, HC3); Cochran and Cox 1957,
    section 4.14 (intervals from two variances).
    """
    worths, notes = _usable(players, worths)
    if len(players) <= MOST_PLAYERS and len(worths) == 2 ** len(players):
        complete = attribute(players, worths, higher_is_better=higher_is_better, confidence=confidence)
        return replace(complete, notes=(*notes, *complete.notes))
    num_players, num_seeds = len(players), len(next(iter(worths.values())))
    units = _units(players, worths)
    fit, pair_fit = _fit_values(units), _fit_pairs(units)
    if num_seeds == 1:
        notes = [*notes, "one seed: the intervals speak of the sampled coalitions alone"]
    if not fit.freedom:
        notes = [*notes, f"{len(worths)} coalitions are too few for intervals of {num_players} players"]
    if num_players > 1:
        notes = [*notes, _on_interactions(num_players, pair_fit is not None)]
    return _attribution(
        tuple(players),
        values=fit.figures(np.eye(num_players)),
        pairs=fit.figures(_differences(num_players)),
        interactions=None if pair_fit is None else pair_fit.figures(np.eye(math.comb(num_players, 2))),
        full=_over_seeds(units.full_K[:, None]),
        rounding=_ROUNDING * max(abs(value) for values in worths.values() for value in values),
        num_coalitions=units.num_coalitions,
        num_seeds=num_seeds,
        exact=False,
        higher_is_better=higher_is_better,
        confidence=confidence,
        notes=(*notes, *units.notes),
    )


def done(attribution: Attribution, width: float) -> bool:
    """Whether sampling may end: no value's interval is wider than ``width`` times what all players together add.

    An exact attribution is done whatever its width, for there is no coalition left to value.
    """
    widths = [value.high - value.low for value in attribution.values.values()]
    return attribution.exact or all(one <= width * abs(attribution.full.estimate) for one in widths)


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


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected so that any wrong rejection among them is as rare as one was before.

    One that is NaN stays so, and counts among the tests.

    Source: Holm 1979.
    """
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    for position, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(p_values) - position)))
        corrected[index] = largest
    return corrected


@dataclass(frozen=True)
class _Figures:
    """Estimates with the variances that S sources of chance give them, NaN where unknown, and the degrees of freedom of these.

    Attributes:
        estimate_X, variance_SX, freedom_S: of X figures.
    """

    estimate_X: Array
    variance_SX: Array
    freedom_S: Array

    def without_chance(self, rounding: float) -> _Figures:
        """The same, but with the error unknown of figures that are more than rounding and do not vary at all.

        Coarse worths, such as accuracies, give one figure under several seeds now and then; that makes it no surer.
        """
        unknown_X = (self._error() <= rounding) & (np.abs(self.estimate_X) > rounding)
        return replace(self, variance_SX=np.where(unknown_X, np.nan, self.variance_SX))

    def intervals(self, confidence: float) -> list[Interval]:
        half_X = self._quantile(np.full_like(self.estimate_X, 0.5 - confidence / 2)) * self._error()
        ends_X3 = np.stack([self.estimate_X, self.estimate_X - half_X, self.estimate_X + half_X], axis=1)
        return [Interval(*ends) for ends in ends_X3.tolist()]

    def p_values(self, rounding: float) -> list[float]:
        """Of the two-sided test that a figure is zero; one at most ``rounding`` is. NaN where the error is unknown.

        Of a figure that does not vary, the sign test's: as likely as so many draws all fall on one side.
        """
        size_X = np.where(np.abs(self.estimate_X) <= rounding, 0.0, np.abs(self.estimate_X))
        error_X = self._error()
        # The p at which the interval's end meets zero, sought in its logarithm.
        low_X, high_X = np.full_like(size_X, _LEAST_LOG_P), np.zeros_like(size_X)
        for _ in range(40):
            middle_X = (low_X + high_X) / 2
            reaches_X = self._quantile(10.0**middle_X / 2) * error_X >= size_X
            low_X, high_X = np.where(reaches_X, middle_X, low_X), np.where(reaches_X, high_X, middle_X)
        p_X = np.where(error_X <= rounding, 2.0 ** -self.freedom_S.sum(), 10.0**high_X)
        p_X = np.where(size_X == 0.0, 1.0, p_X)
        return [float(p) for p in np.where(np.isfinite(error_X), p_X, np.nan)]

    def _error(self) -> Array:
        return np.asarray(np.sqrt(self.variance_SX.sum(axis=0)))

    def _quantile(self, tail_X: Array) -> Array:
        """Cochran and Cox's: Student's quantile of each source, weighted by its share of the variance.

        Satterthwaite's degrees of freedom trust the shares, which are estimates themselves: where the seeds are the larger
        source, intervals of 95 % over three of them cover 91 %.
        """
        total_X = self.variance_SX.sum(axis=0)
        share_SX = np.full_like(self.variance_SX, 1.0 / len(self.variance_SX))
        np.divide(self.variance_SX, total_X, out=share_SX, where=total_X > 0.0)
        return np.asarray((share_SX * -special.stdtrit(self.freedom_S[:, None], tail_X)).sum(axis=0))


def _over_seeds(draws_KX: Array) -> _Figures:
    num_seeds = len(draws_KX)
    variance_X = np.full(draws_KX.shape[1], np.nan)
    if num_seeds > 1:
        variance_X = draws_KX.var(axis=0, ddof=1) / num_seeds
    return _Figures(draws_KX.mean(axis=0), variance_X[None], np.array([max(num_seeds - 1.0, 1.0)]))


def _attribution(
    players: tuple[str, ...],
    *,
    values: _Figures,
    pairs: _Figures,
    interactions: _Figures | None,
    full: _Figures,
    rounding: float,
    num_coalitions: int,
    num_seeds: int,
    exact: bool,
    higher_is_better: bool,
    confidence: float,
    notes: tuple[str, ...],
) -> Attribution:
    names = list(itertools.combinations(players, 2))
    figures = {"values": values, "pairs": pairs, "full": full, "interactions": interactions}
    ends = {
        name: [] if its is None else (its.without_chance(rounding) if exact else its).intervals(confidence)
        for name, its in figures.items()
    }
    unknown = sum(math.isnan(value.low) for value in ends["values"])
    if exact and num_seeds > 1 and unknown:
        text = f"{unknown} of {len(players)} values have no interval: the seeds agree to the last digit, as coarse worths do"
        notes = (*notes, text)
    p_values = dict(zip(names, holm(pairs.p_values(rounding)), strict=True))
    estimates = dict(zip(players, values.estimate_X.tolist(), strict=True))
    order = sorted(players, key=estimates.__getitem__, reverse=higher_is_better)
    return Attribution(
        players=players,
        values=dict(zip(players, ends["values"], strict=True)),
        interactions=dict(zip(names, ends["interactions"], strict=bool(ends["interactions"]))),
        pairs=dict(zip(names, ends["pairs"], strict=True)),
        p_values=p_values,
        ranking=_groups(order, {pair for pair, p in p_values.items() if p < 1.0 - confidence}),
        full=ends["full"][0],
        num_coalitions=num_coalitions,
        num_seeds=num_seeds,
        exact=exact,
        confidence=confidence,
        notes=notes,
    )


@dataclass(frozen=True)
class _Fit:
    """A least-squares fit of sampled coalitions. U units: a coalition with its complement, or a lone one; X figures.

    Attributes:
        figure_KX: of each seed.
        pull_XU: how much each unit's (weighted) observation moves each figure.
        residual_KU: of the fit, each as it would be had the unit not been fitted; zero where a size is valued whole, for there
            is nothing random about it.
        freedom: degrees of freedom of the residuals; 0 where there are not more units than unknowns, or these are not
            determined.
    """

    figure_KX: Array
    pull_XU: Array
    residual_KU: Array
    freedom: int

    def figures(self, contrasts_QX: Array) -> _Figures:
        """Linear combinations of the figures, with their errors over coalitions and seeds."""
        over_seeds = _over_seeds(self.figure_KX @ contrasts_QX.T)
        variance_Q = np.full_like(over_seeds.estimate_X, np.nan)
        if self.freedom:
            variance_Q = (contrasts_QX @ self.pull_XU) ** 2 @ self.residual_KU.mean(axis=0) ** 2
        freedom = max(self.freedom, 1.0)
        if len(self.figure_KX) == 1:
            return _Figures(over_seeds.estimate_X, variance_Q[None], np.array([freedom]))
        variance_SQ = np.vstack([variance_Q, over_seeds.variance_SX])
        return _Figures(over_seeds.estimate_X, variance_SQ, np.append(freedom, over_seeds.freedom_S))


def _fit_values(units: _Units) -> _Fit:
    """The values less an equal share each, in coordinates that add up to zero; along with the curve of lone coalitions."""
    num_players = units.side_UP.shape[1]
    coordinates_PM = helmert(num_players).T
    design_UM = units.side_UP @ coordinates_PM
    if units.is_lone:
        design_UM = np.hstack([design_UM, units.curve_U[:, None]])
        coordinates_PM = np.hstack([coordinates_PM, np.zeros((num_players, 1))])
    target_KU = units.gain_KU - np.outer(units.full_K / num_players, units.side_UP.sum(axis=1))
    fit = _least_squares(units, design_UM, target_KU, coordinates_PM)
    return replace(fit, figure_KX=units.full_K[:, None] / num_players + fit.figure_KX)


def _fit_pairs(units: _Units) -> _Fit | None:
    """The pair terms of the best game in which at most two players interact; None where they are not determined.

    Of a coalition and its complement their sum counts, in which a pair shows only where the two separate it: the sum falls
    short of what none and all are worth by the pair's term. Terms of single players cancel.

    Source: Tsai, Yeh and Ravikumar 2023, "Faith-Shap" (the kernel's fit of order two, exact at none and all).
    """
    num_players = units.side_UP.shape[1]
    first_Q, second_Q = np.triu_indices(num_players, 1)
    if units.is_lone or len(units.side_UP) <= len(first_Q):
        return None
    separated_UQ = units.side_UP[:, first_Q] != units.side_UP[:, second_Q]
    fit = _least_squares(units, -separated_UQ.astype(np.float64), units.excess_KU, np.eye(len(first_Q)))
    return fit if fit.freedom else None


def _least_squares(units: _Units, design_UM: Array, target_KU: Array, coordinates_XM: Array) -> _Fit:
    """Fit M unknowns to the units' targets by their weights; figures are linear in the unknowns."""
    root_U = np.sqrt(units.weight_U)
    target_KU = target_KU * root_U
    left_US, scale_S, right_SM = np.linalg.svd(design_UM * root_U[:, None], full_matrices=False)
    kept_S = scale_S > _RANK * scale_S.max(initial=0.0)
    left_US, scale_S, right_SM = left_US[:, kept_S], scale_S[kept_S], right_SM[kept_S]
    pull_XU = coordinates_XM @ ((right_SM.T / scale_S) @ left_US.T)
    residual_KU = target_KU - (target_KU @ left_US) @ left_US.T
    own_U = 1.0 - (left_US**2).sum(axis=1)
    fitted_exactly_U = own_U < _RANK
    residual_KU = np.where(fitted_exactly_U, 0.0, residual_KU / np.where(fitted_exactly_U, 1.0, own_U))
    num_units, num_unknowns = design_UM.shape
    known = len(scale_S) == num_unknowns < num_units and not (fitted_exactly_U & (units.share_left_U > 0.0)).any()
    return _Fit(
        figure_KX=target_KU @ pull_XU.T,
        pull_XU=pull_XU,
        residual_KU=residual_KU * np.sqrt(units.share_left_U),
        freedom=num_units - num_unknowns if known else 0,
    )


def _on_interactions(num_players: int, estimated: bool) -> str:
    """What there is to say of the interactions of sampled coalitions."""
    if estimated:
        return (
            "interactions are pair terms fitted to the sampled coalitions; where three players interact, these share in them"
        )
    num_pairs = math.comb(num_players, 2)
    fewest = min(2 * num_pairs + 4, 2**num_players)
    return f"interactions are not estimated: {num_pairs} pairs take at least {fewest} coalitions with their complements"


@dataclass(frozen=True)
class _Units:
    """What is fitted: coalitions with their complements, or lone ones.

    Attributes:
        side_UP: 1 for the players in the coalition, -1 for the others.
        gain_KU: the worth of the coalition less that of its complement; of a lone one, as if the two were worth together what
            none and all are, but for the curve.
        excess_KU: of a coalition and its complement, what the two are worth together beyond none and all; zero for a lone one.
        curve_U: of a lone coalition how far its size is from the ends.
        share_left_U: of the coalitions of the unit's size, those that were not valued; 1 for a lone one, whose complement may
            be anything however many of its size are valued.
    """

    side_UP: Array
    gain_KU: Array
    excess_KU: Array
    weight_U: Array
    share_left_U: Array
    curve_U: Array
    full_K: Array
    is_lone: bool
    num_coalitions: int
    notes: tuple[str, ...]


def _units(players: Sequence[str], worths: Mapping[Coalition, Sequence[float]]) -> _Units:
    num_players, everyone = len(players), frozenset(players)
    none_K, all_K = (np.array(worths[one], dtype=np.float64) for one in (frozenset(), everyone))
    between = [one for one in worths if 0 < len(one) < num_players]
    twins = [one for one in between if players[0] in one and everyone - one in worths]
    lone = [one for one in between if everyone - one not in worths]
    notes: tuple[str, ...] = ()
    if lone and len(lone) <= 2 * len(twins):
        notes, lone = (f"{len(lone)} coalitions left out: their complements have no worth",), []
    gains_UK = [np.subtract(worths[one], worths[everyone - one]) for one in twins]
    gains_UK += [2.0 * np.array(worths[one]) - none_K - all_K for one in lone]
    excess_UK = [np.add(worths[one], worths[everyone - one]) - none_K - all_K for one in twins] + [0.0 * none_K for _ in lone]
    side_UP = np.array([[1.0 if player in one else -1.0 for player in players] for one in twins + lone])
    num_members_U = np.array([2] * len(twins) + [1] * len(lone))
    size_U = np.array([min(len(one), num_players - len(one)) for one in twins + lone], dtype=np.intp)
    num_valued = np.bincount(size_U, weights=num_members_U, minlength=num_players)
    num_of_size_U = np.array([float(_num_of_size(num_players, size)) for size in size_U.tolist()])
    weight_U = np.array([_weight_of_size(num_players, size) for size in size_U.tolist()])
    curve_U = np.where(num_members_U == 1, size_U * (num_players - size_U) / num_players**2, 0.0)
    return _Units(
        side_UP=side_UP.reshape(-1, num_players),
        gain_KU=np.array(gains_UK).reshape(-1, len(none_K)).T,
        excess_KU=np.array(excess_UK).reshape(-1, len(none_K)).T,
        weight_U=weight_U * num_members_U / num_valued[size_U],
        share_left_U=np.where(num_members_U == 1, 1.0, 1.0 - num_valued[size_U] / num_of_size_U),
        curve_U=curve_U,
        full_K=all_K - none_K,
        is_lone=bool(lone),
        num_coalitions=2 + int(num_members_U.sum()),
        notes=notes,
    )


def _num_of_size(num_players: int, size: int) -> int:
    """Coalitions of a size, up to half of the players, and their complements."""
    return math.comb(num_players, size) * (1 if 2 * size == num_players else 2)


def _weight_of_size(num_players: int, size: int) -> float:
    """What all coalitions of a size, and their complements, weigh together by the Shapley kernel."""
    return (1.0 if 2 * size == num_players else 2.0) / (size * (num_players - size))


def _usable(
    players: Sequence[str], worths: Mapping[Coalition, Sequence[float]]
) -> tuple[dict[Coalition, tuple[float, ...]], list[str]]:
    """The coalitions that have a worth in every seed that is used, and what was left out."""
    _bits(players, worths.keys())
    worth_KC, coalitions = _matrix(worths), list(worths)
    ends = [coalitions.index(one) for one in (frozenset(), frozenset(players)) if one in worths]
    if len(ends) < 2:
        raise ValueError("the empty and the full coalition need a worth")
    valued_KC = np.isfinite(worth_KC)
    used_K = valued_KC[:, ends].all(axis=1) & (2 * valued_KC.sum(axis=1) > len(coalitions))
    if not used_K.any():
        raise RunError(
            "no seed has a worth for the empty and the full coalition and for more than half of all",
            fix="run the failed trials again",
        )
    used_C = valued_KC[used_K].all(axis=0)
    notes = []
    if not used_K.all():
        notes.append(f"{int((~used_K).sum())} of {len(used_K)} seeds left out: too many coalitions have no worth there")
    if not used_C.all():
        notes.append(f"{int((~used_C).sum())} of {len(used_C)} coalitions left out: a seed has no worth there")
    columns = zip(coalitions, used_C, worth_KC[used_K].T.tolist(), strict=True)
    return {coalition: tuple(column) for coalition, used, column in columns if used}, notes


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
    values_PK: list[Array] = []
    for player in range(num_players):
        without_C, having_C = _split(worth_KC, player)
        # Over the last axis numpy adds pairwise, which keeps the error of a million terms near that of one.
        values_PK.append(((having_C - without_C) * weights_C).sum(axis=-1))
    return np.stack(values_PK, axis=1)


def _interactions(worth_KC: Array) -> Array:
    """Pairwise interaction indices ``[K, Q]`` of worths ``[K, 2^P]``."""
    num_players = worth_KC.shape[1].bit_length() - 1
    others = num_players - 2
    interactions_QK: list[Array] = []
    if num_players > 1:
        weights_by_size = np.array([1.0 / ((others + 1) * math.comb(others, size)) for size in range(others + 1)])
        weights_C = weights_by_size[_sizes(others)]
    for first, second in itertools.combinations(range(num_players), 2):
        without, having = (_split(half, first) for half in _split(worth_KC, second))
        interactions_QK.append((((having[1] - having[0]) - (without[1] - without[0])) * weights_C).sum(axis=-1))
    return np.stack(interactions_QK, axis=1) if interactions_QK else np.empty((len(worth_KC), 0))


def _split(worth_KC: Array, player: int) -> tuple[Array, Array]:
    """The worths of the coalitions without and with a player, in the order of the coalitions without its bit."""
    halves = worth_KC.reshape(len(worth_KC), -1, 2, 2**player)
    return halves[:, :, 0].reshape(len(worth_KC), -1), halves[:, :, 1].reshape(len(worth_KC), -1)


def _sizes(num_players: int) -> NDArray[np.intp]:
    return np.bitwise_count(np.arange(2**num_players)).astype(np.intp)


def _differences(num_players: int) -> Array:
    """``[Q, P]``: by pair of players, the first one's value less the second's."""
    first_Q, second_Q = np.triu_indices(num_players, 1)
    identity = np.eye(num_players)
    return identity[first_Q] - identity[second_Q]


def _table(players: Sequence[str], coalitions: Collection[Coalition], worth_KC: Array) -> Array:
    """Worths ``[K, 2^P]``, by the coalition's number, of a game whose every coalition is valued."""
    if not 1 <= len(players) <= MOST_PLAYERS:
        raise ValueError(f"{len(players)} players; every coalition can be valued of 1 to {MOST_PLAYERS}")
    bits = _bits(players, coalitions)
    masks = np.fromiter((sum(bits[player] for player in coalition) for coalition in coalitions), np.int64, len(coalitions))
    missing = np.setdiff1d(np.arange(2 ** len(players)), masks)
    if len(missing):
        raise ValueError(f"{len(missing)} coalitions have no worth, among them {_name(players, int(missing[0]))}")
    table_KC = np.empty_like(worth_KC)
    table_KC[:, masks] = worth_KC
    return table_KC


def _bits(players: Sequence[str], coalitions: Collection[Coalition]) -> dict[str, int]:
    if len(set(players)) < len(players):
        raise ValueError("a player occurs twice")
    unknown = frozenset().union(*coalitions) - set(players)
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is no player; known: {', '.join(players)}")
    return {player: 1 << index for index, player in enumerate(players)}


def _matrix(worths: Mapping[Coalition, Sequence[float]]) -> Array:
    """Worths ``[K, C]`` in the order given."""
    num_seeds = {len(values) for values in worths.values()}
    if len(num_seeds) != 1 or num_seeds == {0}:
        raise ValueError("every coalition needs as many worths as the others, one for each seed")
    return np.ascontiguousarray(np.array(list(worths.values()), dtype=np.float64).T)


def _name(players: Sequence[str], mask: int) -> str:
    return "{" + ", ".join(player for index, player in enumerate(players) if mask >> index & 1) + "}"
