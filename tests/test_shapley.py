"""Shapley values of games whose values are known in closed form, the axioms, and how often intervals hold the truth."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.errors import RunError
from lorascope.shapley import agreement, attribute, coalitions_of, done, estimate, exact_interactions, exact_values, holm

PLAYERS = ["query", "key", "value", "output"]


def every_coalition(players):
    return [frozenset(some) for size in range(len(players) + 1) for some in itertools.combinations(players, size)]


def game(players, worth):
    return {coalition: float(worth(coalition)) for coalition in every_coalition(players)}


def weighted_vote(weights, quota):
    return game(list(weights), lambda coalition: sum(weights[player] for player in coalition) >= quota)


def unanimity_sum(terms):
    """Worth of a sum of unanimity games: each term pays once all of its players are there."""
    return lambda coalition: math.fsum(pay for needed, pay in terms if needed <= coalition)


def known_value(terms, player):
    return math.fsum(pay / len(needed) for needed, pay in terms if player in needed)


def known_interaction(terms, pair):
    return math.fsum(pay / (len(needed) - 1) for needed, pay in terms if needed >= set(pair))


@st.composite
def unanimity_games(draw, max_players=7):
    players = [f"p{index}" for index in range(draw(st.integers(2, max_players)))]
    needed = st.frozensets(st.sampled_from(players), min_size=1)
    terms = draw(st.lists(st.tuples(needed, st.floats(-1.0, 1.0)), min_size=1, max_size=12))
    return players, terms


def random_terms(players, generator, *, num_terms=40, most=6):
    terms = []
    for _ in range(num_terms):
        chosen = generator.choice(len(players), int(generator.integers(1, most + 1)), replace=False)
        terms.append((frozenset(players[index] for index in chosen), float(generator.normal())))
    return terms


def sampled_worths(players, terms, num_coalitions, *, seed, generator=None, noise=0.0, num_seeds=1):
    """Worths of the first coalitions; each seed shifts all, is kinder to some players, and is noisy."""
    coalitions = list(itertools.islice(coalitions_of(players, seed), num_coalitions))
    has = np.array([[player in coalition for player in players] for coalition in coalitions], dtype=float)
    worth_KC = np.tile([unanimity_sum(terms)(coalition) for coalition in coalitions], (num_seeds, 1))
    if generator is not None:
        kindness_KP = generator.normal(size=(num_seeds, len(players)))
        worth_KC += noise * (generator.normal(size=(num_seeds, 1)) + 0.5 * kindness_KP @ has.T)
        worth_KC += noise * generator.normal(size=worth_KC.shape)
    return {coalition: column.tolist() for coalition, column in zip(coalitions, worth_KC.T, strict=True)}


def test_a_runway_is_shared_by_those_who_need_its_length():
    costs = {"small": 3.0, "medium": 7.0, "large": 8.0, "largest": 20.0}
    values = exact_values(list(costs), game(list(costs), lambda some: max((costs[player] for player in some), default=0.0)))
    shares = [3 / 4, 3 / 4 + 4 / 3, 3 / 4 + 4 / 3 + 1 / 2, 3 / 4 + 4 / 3 + 1 / 2 + 12]
    assert list(values.values()) == pytest.approx(shares, abs=1e-12)


def test_the_owner_of_the_scarce_glove_gets_most():
    worth = game(["left", "right", "other right"], lambda some: "left" in some and len(some) > 1)
    assert exact_values(["left", "right", "other right"], worth) == pytest.approx(
        {"left": 2 / 3, "right": 1 / 6, "other right": 1 / 6}, abs=1e-12
    )


def test_one_share_of_fifty_one_is_worth_as_much_as_forty_nine():
    weights = {"a": 50, "b": 49, "c": 1}
    values = exact_values(list(weights), weighted_vote(weights, 51))
    assert values == pytest.approx({"a": 2 / 3, "b": 1 / 6, "c": 1 / 6}, abs=1e-12)


def test_the_security_council_has_its_published_powers():
    # Fifteen players: a motion needs nine votes, all five permanent members among them.
    weights = {f"permanent {n}": 7 for n in range(5)} | {f"elected {n}": 1 for n in range(10)}
    values = exact_values(list(weights), weighted_vote(weights, 39))
    assert values["permanent 0"] == pytest.approx(float(Fraction(421, 2145)), abs=1e-12)
    assert values["elected 9"] == pytest.approx(float(Fraction(4, 2145)), abs=1e-12)


def test_players_who_only_add_up_are_worth_what_they_add():
    adds = {"query": 0.5, "key": -0.25, "value": 3.0, "output": 0.0}
    worth = game(PLAYERS, lambda some: 7.0 + sum(adds[player] for player in some))
    assert exact_values(PLAYERS, worth) == pytest.approx(adds, abs=1e-12)
    assert list(exact_interactions(PLAYERS, worth).values()) == pytest.approx([0.0] * 6, abs=1e-12)


def test_a_lone_player_gets_all_there_is():
    assert exact_values(["query"], game(["query"], len)) == {"query": 1.0}
    assert exact_interactions(["query"], game(["query"], len)) == {}


@given(unanimity_games())
@settings(max_examples=40)
def test_values_and_interactions_of_unanimity_games_are_exact(case):
    players, terms = case
    worth = game(players, unanimity_sum(terms))
    values = exact_values(players, worth)
    assert values == pytest.approx({player: known_value(terms, player) for player in players}, abs=1e-12)
    interactions = exact_interactions(players, worth)
    pairs = itertools.combinations(players, 2)
    assert interactions == pytest.approx({pair: known_interaction(terms, pair) for pair in pairs}, abs=1e-12)


WORTHS = st.lists(st.floats(-1e3, 1e3), min_size=16, max_size=16)


@given(WORTHS)
def test_values_add_up_to_what_all_players_add(numbers):
    worth = dict(zip(every_coalition(PLAYERS), numbers, strict=True))
    total = worth[frozenset(PLAYERS)] - worth[frozenset()]
    assert math.fsum(exact_values(PLAYERS, worth).values()) == pytest.approx(total, abs=1e-9)


@given(WORTHS)
def test_players_who_can_be_swapped_have_one_value(numbers):
    worth = dict(zip(every_coalition(PLAYERS), numbers, strict=True))
    swap = {"query": "key", "key": "query"}
    swapped = {frozenset(swap.get(player, player) for player in some): value for some, value in worth.items()}
    both = {some: value + swapped[some] for some, value in worth.items()}
    values = exact_values(PLAYERS, both)
    assert values["query"] == pytest.approx(values["key"], abs=1e-9)


@given(WORTHS)
def test_a_player_who_never_adds_has_no_value_and_no_interaction(numbers):
    worth = dict(zip(every_coalition(PLAYERS), numbers, strict=True))
    dummy = {some: worth[some - {"output"}] for some in worth}
    assert exact_values(PLAYERS, dummy)["output"] == 0.0
    assert all(value == 0.0 for pair, value in exact_interactions(PLAYERS, dummy).items() if "output" in pair)


@given(WORTHS, WORTHS, st.floats(-10.0, 10.0))
def test_values_of_a_combined_game_are_the_combined_values(one, other, factor):
    coalitions = every_coalition(PLAYERS)
    parts = [exact_values(PLAYERS, dict(zip(coalitions, numbers, strict=True))) for numbers in (one, other)]
    combined = {some: a + factor * b for some, a, b in zip(coalitions, one, other, strict=True)}
    expected = {player: parts[0][player] + factor * parts[1][player] for player in PLAYERS}
    assert exact_values(PLAYERS, combined) == pytest.approx(expected, abs=1e-8)


def test_a_game_that_does_not_hold_together_is_refused():
    worth = game(PLAYERS, len)
    with pytest.raises(ValueError, match=r"1 coalitions have no worth, among them \{query, key\}"):
        exact_values(PLAYERS, {some: value for some, value in worth.items() if some != {"query", "key"}})
    with pytest.raises(ValueError, match="'mlp' is no player; known: query, key, value, output"):
        exact_values(PLAYERS, {**worth, frozenset({"mlp"}): 1.0})
    with pytest.raises(ValueError, match="a player occurs twice"):
        exact_values(["query", "query"], worth)
    with pytest.raises(ValueError, match="21 players"):
        exact_values([str(number) for number in range(21)], {frozenset(): 0.0})
    with pytest.raises(ValueError, match="as many worths as the others"):
        attribute(PLAYERS, {some: [value] * (1 + (not some)) for some, value in worth.items()})


def test_an_attribution_is_the_mean_of_the_seeds_with_students_interval():
    # One player; its value is 1, 2 and 6 under three seeds: mean 3, standard deviation √7.
    attribution = attribute(["query"], {frozenset(): [0.0, 5.0, 1.0], frozenset({"query"}): [1.0, 7.0, 7.0]})
    half = 4.302652729911275 * math.sqrt(7) / math.sqrt(3)
    value = attribution.values["query"]
    assert (value.estimate, value.low, value.high) == pytest.approx((3.0, 3.0 - half, 3.0 + half))
    assert attribution.full == value
    assert (attribution.num_coalitions, attribution.num_seeds, attribution.exact, attribution.notes) == (2, 3, True, ())


def test_what_a_seed_shifts_for_all_does_not_widen_the_intervals():
    plain = separate({"query": 1.0, "key": 5.0, "value": 2.0, "output": 3.0})
    shifted = {some: [one, two + 16.0, three - 32.0] for some, (one, two, three) in plain.items()}
    narrow, same = (attribute(PLAYERS, worths).values for worths in (plain, shifted))
    for player in PLAYERS:
        assert same[player].high - same[player].low == pytest.approx(narrow[player].high - narrow[player].low)
        assert 0 < same[player].high - same[player].low < 0.1


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_worths_that_tie_over_the_seeds_prove_nothing(num_seeds):
    """Accuracies of few examples repeat: a difference that never varied is no surer than that all seeds favour one side."""
    adds = {"query": 0.02, "key": 0.01, "value": 0.0}
    worth = game(list(adds), lambda some: 0.8 + sum(adds[player] for player in some))
    attribution = attribute(list(adds), {some: [value] * num_seeds for some, value in worth.items()})
    assert attribution.ranking == [["query", "key", "value"]]
    assert attribution.p_values["query", "key"] == pytest.approx(min(1.0, 3 * 2.0 ** (1 - num_seeds)))
    assert math.isnan(attribution.values["query"].low)
    assert math.isnan(attribution.pairs["query", "key"].low)
    assert attribution.values["value"].high == pytest.approx(0.0, abs=1e-12)
    assert "2 of 3 values have no interval: the seeds agree to the last digit, as coarse worths do" in attribution.notes


def test_a_seed_with_a_failed_trial_is_left_out_whole_and_said():
    worth = game(PLAYERS, len)
    worths = {some: [value, 2 * value, math.nan if len(some) == 2 else value] for some, value in worth.items()}
    attribution = attribute(PLAYERS, worths)
    assert attribution.values["key"].estimate == pytest.approx(1.5)
    assert attribution.num_seeds == 2
    assert attribution.notes == ("1 of 3 seeds left out: a coalition has no worth there",)


def test_a_coalition_that_failed_under_every_seed_stops_the_attribution():
    worths = {some: [math.nan if some == {"key"} else value] * 2 for some, value in game(PLAYERS, len).items()}
    with pytest.raises(
        RunError, match=r"no seed has a worth for every coalition; none at all: \{key\}; run the failed trials"
    ):
        attribute(PLAYERS, worths)


def test_one_seed_gives_values_but_no_intervals_and_no_verdicts():
    attribution = attribute(PLAYERS, {some: [value] for some, value in game(PLAYERS, lambda some: "key" in some).items()})
    assert attribution.values["key"].estimate == 1.0
    assert all(math.isnan(value.low) and math.isnan(value.high) for value in attribution.values.values())
    assert all(math.isnan(p) for p in attribution.p_values.values())
    assert attribution.ranking == [["key", "query", "value", "output"]]
    assert attribution.notes == ("one seed: no intervals and no verdicts",)


def separate(values_by_player, spread=0.01):
    """A game of players who only add up, with three seeds that differ by ``spread``."""
    noise = dict(zip(values_by_player, ([1, 0, -1], [0, 1, -1], [-1, 0, 1], [1, -1, 0]), strict=False))
    return {
        some: [sum(values_by_player[player] + spread * noise[player][seed] for player in some) for seed in range(3)]
        for some in every_coalition(list(values_by_player))
    }


def test_the_ranking_puts_apart_what_is_distinguishable_and_together_what_is_not():
    attribution = attribute(PLAYERS, separate({"query": 1.0, "key": 5.0, "value": 5.001, "output": 3.0}))
    assert attribution.ranking == [["value", "key"], ["output"], ["query"]]
    assert attribution.pairs["query", "key"].estimate == pytest.approx(-4.0)
    assert attribution.p_values["key", "value"] > 0.05 > attribution.p_values["query", "key"]


def test_where_lower_is_better_the_most_negative_value_is_ranked_first():
    attribution = attribute(
        PLAYERS, separate({"query": -1.0, "key": -5.0, "value": 2.0, "output": 0.0}), higher_is_better=False
    )
    assert attribution.ranking == [["key"], ["query"], ["output"], ["value"]]
    assert attribution.values["key"].estimate == pytest.approx(-5.0)


def test_a_player_between_two_distinguishable_ones_joins_the_better():
    # a and c are apart, b is from neither: b stays with a, and p_values says that b and c are not apart.
    spread = {"a": [0.0, 0.0, 0.0], "b": [0.5, -0.5, 0.0], "c": [0.0, 0.01, -0.01]}
    means = {"a": 2.0, "b": 1.5, "c": 1.0}
    worths = {
        some: [sum(means[player] + spread[player][seed] for player in some) for seed in range(3)]
        for some in every_coalition("abc")
    }
    attribution = attribute(["a", "b", "c"], worths)
    assert attribution.ranking == [["a", "b"], ["c"]]
    assert attribution.p_values["b", "c"] > 0.05


def test_p_values_are_holms():
    attribution = attribute(["a", "b", "c"], separate({"a": 0.05, "b": 0.0, "c": 0.02}))
    differences = {("a", "b"): [0.06, 0.04, 0.05], ("a", "c"): [0.05, 0.03, 0.01], ("b", "c"): [-0.01, -0.01, -0.04]}
    plain = {pair: student_p(values) for pair, values in differences.items()}
    first, second, third = sorted(plain, key=plain.__getitem__)
    expected = {first: 3 * plain[first], second: 2 * plain[second], third: max(plain[third], 2 * plain[second])}
    assert attribution.p_values == pytest.approx({pair: min(1.0, p) for pair, p in expected.items()}, rel=1e-6)


def test_holm_multiplies_the_smallest_by_all_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_the_p_values_and_bonferroni(p_values):
    adjusted = holm(p_values)
    for p, after in zip(p_values, adjusted, strict=True):
        assert p <= after <= min(1.0, len(p_values) * p)
    ranks = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[i] for i in ranks] == sorted(adjusted)


def test_holm_leaves_what_is_not_known_and_counts_it():
    corrected = holm([math.nan, 0.02, 0.01])
    assert math.isnan(corrected[0])
    assert corrected[1:] == pytest.approx([0.04, 0.03])


def student_p(values):
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(values, 0.0).pvalue)


def test_equal_players_are_not_told_apart_by_rounding():
    worth = game(PLAYERS, lambda some: 0.1 * len(some) + 0.3 * len(some) ** 3)
    attribution = attribute(PLAYERS, {some: [value, value + 0.1, value + 0.7] for some, value in worth.items()})
    assert len(attribution.ranking) == 1
    assert set(attribution.p_values.values()) == {1.0}


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "skewed"])
def test_intervals_of_few_seeds_hold_the_truth_as_often_as_they_say(num_seeds, kind):
    players = ["query", "key", "value"]
    generator = np.random.default_rng(num_seeds)
    draw = {
        "normal": generator.normal,
        "heavy tails": lambda size: generator.standard_t(3, size),
        "skewed": lambda size: generator.exponential(size=size) - 1.0,
    }[kind]
    held = []
    for _ in range(120):
        worth = dict(zip(every_coalition(players), generator.normal(size=8).tolist(), strict=True))
        truth = exact_values(players, worth)
        shift = draw(size=num_seeds)
        values = attribute(players, {some: (w + shift + draw(size=num_seeds)).tolist() for some, w in worth.items()}).values
        held += [values[player].low <= truth[player] <= values[player].high for player in players]
    assert 0.92 <= np.mean(held) <= 0.98


TWELVE = [f"layer {index}" for index in range(12)]
EVERYONE = frozenset(TWELVE)


def test_coalitions_come_with_their_complements_and_sizes_as_often_as_they_weigh():
    coalitions = list(itertools.islice(coalitions_of(TWELVE, 3), 62))
    assert coalitions[:2] == [frozenset(), EVERYONE]
    twins = zip(coalitions[::2], coalitions[1::2], strict=True)
    assert all(one | other == EVERYONE and not one & other for one, other in twins)
    assert len(set(coalitions)) == len(coalitions)
    # Of thirty twins, in proportion to 2/11, 2/20, 2/27, 2/32, 2/35 and 1/36.
    assert [sum(len(one) == size for one in coalitions) for size in (1, 2, 3, 4, 5, 6)] == [11, 6, 4, 4, 3, 4]
    assert [sum(len(one) == size for one in coalitions) for size in (11, 10, 9, 8, 7)] == [11, 6, 4, 4, 3]


def test_coalitions_are_the_same_for_the_same_seed_and_others_for_another():
    first, again, other = (list(itertools.islice(coalitions_of(TWELVE, seed), 60)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("num_players", [1, 2, 3, 6, 7])
def test_coalitions_end_when_every_one_was_given(num_players):
    coalitions = list(coalitions_of(TWELVE[:num_players], 0))
    assert sorted(map(sorted, coalitions)) == sorted(map(sorted, every_coalition(TWELVE[:num_players])))


@given(unanimity_games(), st.integers(0, 2**32))
@settings(max_examples=30)
def test_an_estimate_from_every_coalition_is_the_exact_attribution(case, seed):
    players, terms = case
    worths = {some: [worth, worth + 1.0] for some in coalitions_of(players, seed) for worth in [unanimity_sum(terms)(some)]}
    assert str(estimate(players, worths)) == str(attribute(players, worths))  # unknown ends are not equal to themselves


@given(st.integers(0, 2**32), st.integers(2, 200))
@settings(max_examples=30)
def test_estimates_add_up_to_what_all_players_add(seed, num_coalitions):
    terms = random_terms(TWELVE, np.random.default_rng(seed))
    attribution = estimate(TWELVE, sampled_worths(TWELVE, terms, num_coalitions, seed=seed))
    total = sum(value.estimate for value in attribution.values.values())
    assert total == pytest.approx(attribution.full.estimate, abs=1e-9)
    assert attribution.full.estimate == pytest.approx(math.fsum(pay for _, pay in terms), abs=1e-9)


def test_players_who_act_at_most_in_twos_are_estimated_without_error():
    terms = random_terms(TWELVE, np.random.default_rng(0), most=2)
    attribution = estimate(TWELVE, sampled_worths(TWELVE, terms, 60, seed=0))
    truth = {player: known_value(terms, player) for player in TWELVE}
    assert {player: value.estimate for player, value in attribution.values.items()} == pytest.approx(truth, abs=1e-10)
    assert max(value.high - value.low for value in attribution.values.values()) < 1e-9


def test_estimates_come_nearer_to_the_truth_with_more_coalitions():
    errors = []
    for num_coalitions in (60, 240, 960):
        squares = []
        for seed in range(10):
            terms = random_terms(TWELVE, np.random.default_rng(seed))
            values = estimate(TWELVE, sampled_worths(TWELVE, terms, num_coalitions, seed=seed)).values
            squares += [(values[player].estimate - known_value(terms, player)) ** 2 for player in TWELVE]
        errors.append(math.sqrt(np.mean(squares)))
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


@pytest.mark.parametrize(
    ("num_coalitions", "num_seeds", "noise"), [(46, 1, 0.0), (90, 1, 0.0), (90, 3, 1.0), (178, 3, 3.0), (178, 5, 1.0)]
)
def test_sampled_intervals_hold_the_truth_as_often_as_they_say(num_coalitions, num_seeds, noise):
    held, held_pairs = [], []
    for seed in range(50):
        generator = np.random.default_rng([seed, num_coalitions, num_seeds])
        terms = random_terms(TWELVE, generator)
        worths = sampled_worths(
            TWELVE, terms, num_coalitions, seed=seed, generator=generator, noise=noise, num_seeds=num_seeds
        )
        attribution = estimate(TWELVE, worths)
        truth = {player: known_value(terms, player) for player in TWELVE}
        held += [value.low <= truth[player] <= value.high for player, value in attribution.values.items()]
        held_pairs += [i.low <= truth[a] - truth[b] <= i.high for (a, b), i in attribution.pairs.items()]
    assert 0.92 <= np.mean(held) <= 0.995
    assert 0.92 <= np.mean(held_pairs) <= 0.995


def test_a_p_value_is_that_at_which_the_interval_ends_at_zero():
    generator = np.random.default_rng(1)
    terms = random_terms(TWELVE, generator)
    worths = sampled_worths(TWELVE, terms, 178, seed=1, generator=generator, noise=1.0, num_seeds=4)
    p_values = estimate(TWELVE, worths).p_values
    clearest = min(p_values, key=p_values.__getitem__)
    # Holm multiplies the smallest of 66 by 66.
    difference = estimate(TWELVE, worths, confidence=1.0 - p_values[clearest] / 66).pairs[clearest]
    nearest = min(abs(difference.low), abs(difference.high))
    assert nearest == pytest.approx(0.0, abs=1e-6 * abs(difference.estimate))


def test_coalitions_without_their_complements_are_used_where_they_are_the_most():
    held = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        terms = random_terms(TWELVE, generator, most=4)
        worths = sampled_worths(TWELVE, terms, 302, seed=seed)
        one_of_two = {some: value for some, value in worths.items() if not 0 < len(some) < 12 or generator.random() < 0.5}
        lone = {some: value for some, value in one_of_two.items() if len(some) in (0, 12) or EVERYONE - some not in one_of_two}
        attribution = estimate(TWELVE, lone)
        assert attribution.num_coalitions == len(lone)
        held += [value.low <= known_value(terms, player) <= value.high for player, value in attribution.values.items()]
    assert 0.92 <= np.mean(held) <= 0.99


def test_a_failed_coalition_is_left_out_with_its_complement_and_said():
    terms = random_terms(TWELVE, np.random.default_rng(0))
    worths = sampled_worths(TWELVE, terms, 90, seed=0)
    failed = list(worths)[40]
    attribution = estimate(TWELVE, {some: [math.nan] if some == failed else value for some, value in worths.items()})
    without = {some: value for some, value in worths.items() if some not in (failed, EVERYONE - failed)}
    assert attribution.values == estimate(TWELVE, without).values
    assert attribution.num_coalitions == 88
    assert "1 of 90 coalitions left out: a seed has no worth there" in attribution.notes
    assert "1 coalitions left out: their complements have no worth" in attribution.notes


def test_a_seed_that_is_hardly_run_is_left_out_and_said():
    terms = random_terms(TWELVE, np.random.default_rng(0))
    worths = sampled_worths(TWELVE, terms, 90, seed=0)
    half_run = {some: [*value, value[0] if index < 30 else math.nan] for index, (some, value) in enumerate(worths.items())}
    attribution = estimate(TWELVE, half_run)
    assert attribution.num_seeds == 1
    assert attribution.values == estimate(TWELVE, worths).values
    assert "1 of 2 seeds left out: too many coalitions have no worth there" in attribution.notes


def test_few_coalitions_give_an_estimate_without_intervals_and_that_is_said():
    terms = random_terms(TWELVE, np.random.default_rng(0))
    for num_coalitions in (2, 12, 24):
        attribution = estimate(TWELVE, sampled_worths(TWELVE, terms, num_coalitions, seed=0))
        assert all(math.isnan(value.low) for value in attribution.values.values())
        assert f"{num_coalitions} coalitions are too few for intervals of 12 players" in attribution.notes
        assert len(attribution.ranking) == 1


def faithful_interactions(players, worth):
    """Pair terms of the best fit of order two by the Shapley kernel, with none and all fitted exactly, from all coalitions."""
    coalitions, pairs = list(worth), list(itertools.combinations(players, 2))
    has = np.array([[player in some for player in players] for some in coalitions], dtype=float)
    columns = [players.index(a) for a, _ in pairs], [players.index(b) for _, b in pairs]
    design = np.hstack([np.ones((len(has), 1)), has, has[:, columns[0]] * has[:, columns[1]]])
    sizes = has.sum(axis=1).astype(int)
    weights = [1.0 / (math.comb(len(players), s) * s * (len(players) - s)) if 0 < s < len(players) else 1e6 for s in sizes]
    root = np.sqrt(weights)
    terms = np.linalg.lstsq(design * root[:, None], np.array(list(worth.values())) * root, rcond=None)[0]
    return dict(zip(pairs, terms[1 + len(players) :], strict=True))


def test_interactions_of_players_who_act_at_most_in_twos_are_estimated_without_error():
    terms = random_terms(TWELVE, np.random.default_rng(0), most=2)
    attribution = estimate(TWELVE, sampled_worths(TWELVE, terms, 200, seed=0))
    truth = {pair: known_interaction(terms, pair) for pair in itertools.combinations(TWELVE, 2)}
    assert {pair: one.estimate for pair, one in attribution.interactions.items()} == pytest.approx(truth, abs=1e-9)
    assert any(abs(value) > 0.1 for value in truth.values())
    assert any(note.startswith("interactions are pair terms fitted") for note in attribution.notes)


@pytest.mark.parametrize(("num_coalitions", "num_seeds", "noise"), [(110, 1, 0.0), (110, 3, 0.3)])
def test_intervals_of_sampled_interactions_hold_the_faithful_index(num_coalitions, num_seeds, noise):
    players = TWELVE[:8]
    held = []
    for seed in range(40):
        generator = np.random.default_rng([seed, num_coalitions, num_seeds])
        terms = random_terms(players, generator)
        worths = sampled_worths(
            players, terms, num_coalitions, seed=seed, generator=generator, noise=noise, num_seeds=num_seeds
        )
        found = estimate(players, worths).interactions
        truth = faithful_interactions(players, game(players, unanimity_sum(terms)))
        held += [one.low <= truth[pair] <= one.high for pair, one in found.items()]
    assert len(held) == 40 * 28
    assert np.mean(held) >= 0.93  # they are wide: HC3 with about as many unknowns as units


def test_too_few_coalitions_for_interactions_give_none_and_say_how_many_it_takes():
    terms = random_terms(TWELVE, np.random.default_rng(0))
    attribution = estimate(TWELVE, sampled_worths(TWELVE, terms, 90, seed=0))
    assert attribution.interactions == {}
    told = "interactions are not estimated: 66 pairs take at least 136 coalitions with their complements"
    assert told in attribution.notes
    assert not estimate(TWELVE, sampled_worths(TWELVE, terms, 134, seed=0)).interactions
    assert len(estimate(TWELVE, sampled_worths(TWELVE, terms, 178, seed=0)).interactions) == 66


def test_what_all_players_add_is_needed_for_an_estimate():
    worths = sampled_worths(TWELVE, random_terms(TWELVE, np.random.default_rng(0)), 60, seed=0)
    with pytest.raises(ValueError, match="the empty and the full coalition need a worth"):
        estimate(TWELVE, {some: value for some, value in worths.items() if some})
    with pytest.raises(RunError, match="no seed has a worth for the empty and the full coalition"):
        estimate(TWELVE, {some: value if some else [math.nan] for some, value in worths.items()})


def test_sampling_is_done_when_the_widest_interval_is_narrow_enough():
    terms = random_terms(TWELVE, np.random.default_rng(0), most=3)
    attribution = estimate(TWELVE, sampled_worths(TWELVE, terms, 120, seed=0))
    widest = max(value.high - value.low for value in attribution.values.values()) / abs(attribution.full.estimate)
    assert done(attribution, 1.01 * widest)
    assert not done(attribution, 0.99 * widest)


def test_sampling_goes_on_while_the_error_is_unknown_and_ends_when_nothing_is_left():
    terms = random_terms(TWELVE, np.random.default_rng(0))
    assert not done(estimate(TWELVE, sampled_worths(TWELVE, terms, 12, seed=0)), 1e9)
    assert done(attribute(PLAYERS, {some: [value] for some, value in game(PLAYERS, len).items()}), 1e-9)


def test_agreement_is_of_the_positions_that_both_hold():
    figures = agreement([1.0, 2.0, math.nan, 3.0, 4.0], [10.0, 30.0, 5.0, 20.0, math.inf])
    # Of (1, 2, 3) with (10, 30, 20): two pairs in order, one not.
    assert figures == pytest.approx({"kendall_tau": 1 / 3, "pearson": 0.5, "spearman": 0.5, "num_compared": 3})


def test_nothing_agrees_with_a_constant_or_with_a_single_number():
    for one, other in (([1.0, 1.0], [1.0, 2.0]), ([1.0], [1.0]), ([], [])):
        figures = agreement(one, other)
        assert all(math.isnan(figures[name]) for name in ("kendall_tau", "pearson", "spearman"))
    with pytest.raises(ValueError, match="2 numbers against 1"):
        agreement([1.0, 2.0], [1.0])
