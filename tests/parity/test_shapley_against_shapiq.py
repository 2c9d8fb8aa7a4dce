"""Exact Shapley values and pairwise interactions against shapiq's exact computer; sampled values against its samplers."""

import itertools

import numpy as np
import pytest

shapiq = pytest.importorskip("shapiq", reason="the reference is an optional extra")

from lorascope.shapley import exact_interactions, exact_values  # noqa: E402


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
