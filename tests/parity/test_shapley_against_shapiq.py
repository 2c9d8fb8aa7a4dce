"""Exact Shapley values and pairwise interactions against shapiq's exact computer; sampled values against its samplers."""

import itertools

import numpy as np
import pytest

shapiq = pytest.importorskip("shapiq", reason="the reference is an optional extra")

from lorascope.shapley import coalitions_of, estimate, exact_interactions, exact_values  # noqa: E402


def random_game(num_players, seed):
    """Worths by coalition, and the same as a function of rows of booleans."""
    generator = np.random.default_rng(seed)
    numbers = generator.normal(size=2**num_players).cumsum()
    players = [f"p{index}" for index in range(num_players)]
    worth = {}
    for size in range(num_players + 1):
        for some in itertools.combinations(range(num_players), size):
            worth[frozenset(players[index] for index in some)] = float(numbers[sum(1 << index for index in some)])
    return players, worth, lambda rows: numbers[np.asarray(rows, dtype=int) @ (1 << np.arange(num_players))]


@pytest.mark.parametrize(("num_players", "seed"), [(2, 0), (3, 1), (6, 2), (9, 3)])
def test_exact_values_and_interactions_equal_shapiqs(num_players, seed):
    players, worth, function = random_game(num_players, seed)
    computer = shapiq.ExactComputer(n_players=num_players, game=function)
    shapley = computer("SV", 1)
    values = exact_values(players, worth)
    assert list(values.values()) == pytest.approx([shapley[(index,)] for index in range(num_players)], abs=1e-9)
    pairwise = computer("SII", 2)
    expected = {(players[a], players[b]): pairwise[(a, b)] for a, b in itertools.combinations(range(num_players), 2)}
    assert exact_interactions(players, worth) == pytest.approx(expected, abs=1e-9)


def test_sampled_interactions_near_shapiqs_faithful_index_as_the_last_coalitions_come_in():
    players, worth, function = random_game(8, 4)
    pairwise = shapiq.ExactComputer(n_players=8, game=function)("FSII", 2)
    expected = np.array([pairwise[(a, b)] for a, b in itertools.combinations(range(8), 2)])
    errors = []
    for num_coalitions in (110, 180, 254):
        sampled = {some: [worth[some]] for some in itertools.islice(coalitions_of(players, 0), num_coalitions)}
        found = np.array([one.estimate for one in estimate(players, sampled).interactions.values()])
        errors.append(float(np.abs(found - expected).max() / np.abs(expected).max()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def saturating_game(num_players, generator):
    """Players who make up for each other, as adapters do: the first ones add most. Worth of every coalition, by its number."""
    has = (np.arange(2**num_players)[:, None] >> np.arange(num_players)) & 1
    return 1.0 - np.exp(-0.4 * has @ generator.gamma(1.0, 1.0, num_players))


def test_as_many_coalitions_bring_values_as_near_as_shapiqs_best_sampler():
    num_players, num_coalitions = 12, 90
    players = [f"p{index:02}" for index in range(num_players)]
    bits = 1 << np.arange(num_players)
    errors = {"ours": [], "permutations": [], "KernelSHAP": [], "KernelSHAP, paired": []}
    for seed in range(10):
        numbers = saturating_game(num_players, np.random.default_rng(seed))
        worth = {
            some: float(numbers[bits[[player in some for player in players]].sum()]) for some in coalitions_of(players, seed)
        }
        truth = np.array(list(exact_values(players, worth).values()))
        sampled = {some: [worth[some]] for some in itertools.islice(coalitions_of(players, seed), num_coalitions)}
        found = {"ours": [value.estimate for value in estimate(players, sampled).values.values()]}
        for name, sampler in {
            "permutations": shapiq.PermutationSamplingSV(num_players, random_state=seed),
            "KernelSHAP": shapiq.KernelSHAP(num_players, random_state=seed),
            "KernelSHAP, paired": shapiq.KernelSHAP(num_players, pairing_trick=True, random_state=seed),
        }.items():
            values = sampler.approximate(num_coalitions, lambda rows: numbers[np.atleast_2d(rows).astype(int) @ bits])  # noqa: B023
            found[name] = [values[(index,)] for index in range(num_players)]
        for name, estimates in found.items():
            errors[name].append(float(((np.array(estimates) - truth) ** 2).mean() / truth.var()))
    rms = {name: float(np.sqrt(np.mean(squares))) for name, squares in errors.items()}
    assert rms["ours"] < rms["permutations"]
    assert rms["ours"] < rms["KernelSHAP"] / 2
    assert rms["ours"] < 1.15 * rms["KernelSHAP, paired"]
