"""How often the intervals of Shapley values hold the truth, and how near sampled values come: simulated games.

Run ``python -m benchmarks.coverage TABLE``; each prints a table of docs/decisions/0008. ``--games 50`` is a quick look.

- ``seeds``: every coalition valued, few seeds; Student's interval and the percentile bootstrap.
- ``sampled``: some coalitions valued; values, differences of values, interactions, wrong verdicts.
- ``samplers``: the error of as many coalitions by other samplers (needs the extra ``interactions``).
- ``stopping``: how many coalitions it takes until intervals are narrow.

Legend: P players, C coalitions, K seeds, Q pairs. Worths of all coalitions come in the order of their numbers.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lorascope.shapley import attribute, coalitions_of, done, estimate

Array = NDArray[np.float64]
Worth = Callable[[Array], Array]  # of rows of zeros and ones [C, P]


@dataclass(frozen=True)
class Row:
    """One row of ``sampled``."""

    game: str
    num_players: int
    num_coalitions: int
    num_seeds: int = 1
    noise: float = 0.0


SAMPLED = [
    Row("unanimity", 12, 46),
    Row("unanimity", 12, 90),
    Row("unanimity", 12, 178),
    Row("unanimity", 12, 178, 3, 0.5),
    Row("unanimity", 12, 90, 3, 0.1),
    Row("unanimity", 12, 90, 3, 0.5),
    Row("unanimity", 12, 90, 5, 0.5),
    Row("saturating", 12, 46),
    Row("saturating", 12, 90),
    Row("saturating", 12, 178),
    Row("saturating", 12, 178, 3, 0.1),
    Row("saturating", 12, 90, 3, 0.1),
    Row("saturating", 12, 90, 5, 0.1),
]


def unanimity(num_players: int, draw: np.random.Generator) -> Worth:
    """Forty terms, each paid once all of its one to six players are there."""
    chosen = [draw.choice(num_players, int(draw.integers(1, 7)), replace=False) for _ in range(40)]
    pays = draw.normal(size=40)
    return lambda has_CP: sum((pay * has_CP[:, its].all(axis=1) for its, pay in zip(chosen, pays, strict=True)), np.zeros(1))


def saturating(num_players: int, draw: np.random.Generator) -> Worth:
    """Players who make up for each other, as adapters do: the first ones add most."""
    weights = draw.gamma(1.0, 1.0, num_players)
    return lambda has_CP: 1.0 - np.exp(-0.4 * has_CP @ weights)


GAMES = {"unanimity": unanimity, "saturating": saturating}


@cache
def everything(num_players: int) -> Array:
    """All coalitions as rows of zeros and ones."""
    return ((np.arange(2**num_players)[:, None] >> np.arange(num_players)) & 1).astype(float)


@cache
def weights_of_values(num_players: int) -> Array:
    """``[P, C]``: the Shapley value of each player as a sum over the worths of all coalitions."""
    has_CP = everything(num_players)
    size_C = has_CP.sum(axis=1).astype(int)
    joins_C = np.array([1 / (num_players * math.comb(num_players - 1, s - 1)) if s else 0.0 for s in size_C])
    lacks_C = np.array([1 / (num_players * math.comb(num_players - 1, s)) if s < num_players else 0.0 for s in size_C])
    return np.where(has_CP == 1.0, joins_C[:, None], -lacks_C[:, None]).T


@cache
def weights_of_interactions(num_players: int) -> Array:
    """``[Q, C]``: the faithful interaction of each pair, as the fit of order two that is exact at none and all."""
    has_CP = everything(num_players)
    size_C = has_CP.sum(axis=1).astype(int)
    first_Q, second_Q = np.triu_indices(num_players, 1)
    design = np.hstack([np.ones((len(has_CP), 1)), has_CP, has_CP[:, first_Q] * has_CP[:, second_Q]])
    weight_C = [1 / (math.comb(num_players, s) * s * (num_players - s)) if 0 < s < num_players else 1e6 for s in size_C]
    root_C = np.sqrt(weight_C)
    return np.asarray(np.linalg.pinv(design * root_C[:, None])[1 + num_players :] * root_C)


def noisy(worth_C: Array, has_CP: Array, num_seeds: int, noise: float, draw: np.random.Generator) -> Array:
    """``[K, C]``: each seed shifts all, is kinder to some players, and every training is noisy."""
    worth_KC = np.tile(worth_C, (num_seeds, 1))
    if noise:
        kindness_KP = draw.normal(size=(num_seeds, has_CP.shape[1]))
        worth_KC += noise * (draw.normal(size=(num_seeds, 1)) + 0.5 * kindness_KP @ has_CP.T)
        worth_KC += noise * draw.normal(size=worth_KC.shape)
    return worth_KC


def seeds(num_games: int) -> None:
    """Four players, every coalition valued, normal noise."""
    players, has_CP = list("abcd"), everything(4)
    coalitions = [frozenset(itertools.compress(players, row)) for row in has_CP]
    print("| seeds | Student | percentile bootstrap |\n|---|---|---|")
    for num_seeds in (2, 3, 5, 10, 20):
        draw = np.random.default_rng(num_seeds)
        held: dict[str, list[float]] = {"student": [], "bootstrap": []}
        for _ in range(num_games):
            worth_C = draw.normal(size=16)
            worth_KC = noisy(worth_C, has_CP, num_seeds, 1.0, draw)
            truth_P = weights_of_values(4) @ worth_C
            found = attribute(players, dict(zip(coalitions, worth_KC.T.tolist(), strict=True))).values.values()
            held["student"] += [one.low <= truth <= one.high for one, truth in zip(found, truth_P, strict=True)]
            value_KP = worth_KC @ weights_of_values(4).T
            means_BP = value_KP[draw.integers(0, num_seeds, (1000, num_seeds))].mean(axis=1)
            low_P, high_P = np.quantile(means_BP, [0.025, 0.975], axis=0)
            held["bootstrap"] += ((low_P <= truth_P) & (truth_P <= high_P)).tolist()
        print(f"| {num_seeds} | {np.mean(held['student']):.3f} | {np.mean(held['bootstrap']):.3f} |", flush=True)


def sampled(num_games: int) -> None:
    """An interval that could not be given counts as one that missed; interactions where they were estimated."""
    heading = (
        "game | players | coalitions | seeds | noise | values held | differences held | interactions held | wrong verdicts"
    )
    print(f"| {heading} |\n|{'---|' * 9}")
    for number, row in enumerate(SAMPLED):
        players = [f"p{index:02}" for index in range(row.num_players)]
        names = list(itertools.combinations(players, 2))
        held: dict[str, list[bool]] = {"values": [], "pairs": [], "interactions": []}
        num_wrong = 0
        for game in range(num_games):
            draw = np.random.default_rng([number, game])
            worth = GAMES[row.game](row.num_players, draw)
            all_C = worth(everything(row.num_players))
            truth = dict(zip(players, weights_of_values(row.num_players) @ all_C, strict=True))
            pair_truth = dict(zip(names, weights_of_interactions(row.num_players) @ all_C, strict=True))
            coalitions = list(itertools.islice(coalitions_of(players, game), row.num_coalitions))
            has_CP = np.array([[player in one for player in players] for one in coalitions], dtype=float)
            worth_KC = noisy(worth(has_CP), has_CP, row.num_seeds, row.noise, draw)
            found = estimate(players, dict(zip(coalitions, worth_KC.T.tolist(), strict=True)))
            held["values"] += [one.low <= truth[player] <= one.high for player, one in found.values.items()]
            held["pairs"] += [one.low <= truth[a] - truth[b] <= one.high for (a, b), one in found.pairs.items()]
            held["interactions"] += [one.low <= pair_truth[pair] <= one.high for pair, one in found.interactions.items()]
            num_wrong += any(
                p < 0.05 and (found.values[a].estimate > found.values[b].estimate) != (truth[a] > truth[b])
                for (a, b), p in found.p_values.items()
            )
        interactions = f"{np.mean(held['interactions']):.3f}" if held["interactions"] else "too few"
        cells = [
            row.game, str(row.num_players), str(row.num_coalitions), str(row.num_seeds), f"{row.noise:g}",
            f"{np.mean(held['values']):.3f}", f"{np.mean(held['pairs']):.3f}", interactions, f"{num_wrong / num_games:.1%}",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


def samplers(num_games: int) -> None:
    """Root mean square error over the spread of the values, twelve players."""
    import shapiq

    bits = 1 << np.arange(12)
    print("| game | coalitions | ours | shapiq KernelSHAP, paired | KernelSHAP | permutations |\n|---|---|---|---|---|---|")
    for (name, make), num_coalitions in itertools.product(GAMES.items(), (90, 178)):
        errors: dict[str, list[float]] = {}
        for seed in range(num_games):
            numbers = make(12, np.random.default_rng(seed))(everything(12))
            truth_P = weights_of_values(12) @ numbers
            players = [f"p{index:02}" for index in range(12)]
            coalitions = itertools.islice(coalitions_of(players, seed), num_coalitions)
            worths = {one: [float(numbers[bits[[p in one for p in players]].sum()])] for one in coalitions}
            found = {"ours": [value.estimate for value in estimate(players, worths).values.values()]}
            for label, sampler in {
                "paired": shapiq.KernelSHAP(12, pairing_trick=True, random_state=seed),
                "KernelSHAP": shapiq.KernelSHAP(12, random_state=seed),
                "permutations": shapiq.PermutationSamplingSV(12, random_state=seed),
            }.items():
                values = sampler.approximate(num_coalitions, lambda rows: numbers[np.atleast_2d(rows).astype(int) @ bits])  # noqa: B023
                found[label] = [values[(index,)] for index in range(12)]
            for label, estimates in found.items():
                errors.setdefault(label, []).append(float(((np.array(estimates) - truth_P) ** 2).mean() / truth_P.var()))
        cells = [f"{np.sqrt(np.mean(squares)):.3f}" for squares in errors.values()]
        print(f"| {name} | {num_coalitions} | {' | '.join(cells)} |", flush=True)


def stopping(num_games: int) -> None:
    """Saturating games of twelve players, looked at after every eight coalitions."""
    players = [f"p{index:02}" for index in range(12)]
    print("| interval no wider than | coalitions (median) | values held |\n|---|---|---|")
    for name, width in (("a sixth", 1 / 6), ("a tenth", 1 / 10)):
        counts, held = [], []
        for seed in range(num_games):
            worth = saturating(12, np.random.default_rng(seed))
            order = list(itertools.islice(coalitions_of(players, seed), 1024))
            has_CP = np.array([[player in one for player in players] for one in order], dtype=float)
            worths = {one: [value] for one, value in zip(order, worth(has_CP).tolist(), strict=True)}
            for num_coalitions in range(32, 1025, 8):
                found = estimate(players, dict(itertools.islice(worths.items(), num_coalitions)))
                if done(found, width):
                    break
            truth_P = weights_of_values(12) @ worth(everything(12))
            counts.append(num_coalitions)
            held += [one.low <= truth <= one.high for one, truth in zip(found.values.values(), truth_P, strict=True)]
        print(f"| {name} | {np.median(counts):.0f} | {np.mean(held):.3f} |", flush=True)


TABLES = {"seeds": (seeds, 1500), "sampled": (sampled, 1000), "samplers": (samplers, 20), "stopping": (stopping, 60)}


def main() -> None:
    """Print one table, and how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--games", type=int, help="of each row")
    arguments = parser.parse_args()
    table, num_games = TABLES[arguments.table]
    started = time.perf_counter()
    table(arguments.games or num_games)
    print(f"\n{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()
