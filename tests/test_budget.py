"""What fits into a budget: configurations whole, in the design's order, at prices that measurements correct."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.budget import Price, correct, measured_speedup, select
from lorascope.config import AdapterConfig, BaseModelConfig, TrainConfig, TrialConfig

GB = 10**9


def prices(*configurations, num_seeds=2, stacks=True):
    """``(seconds, gigabytes)`` of each configuration's trials."""
    return [
        Price(f"c{index}-s{seed}", f"c{index}", seconds, round(size * GB), stacks)
        for index, (seconds, size) in enumerate(configurations)
        for seed in range(num_seeds)
    ]


def test_without_a_budget_all_is_kept_and_the_time_added_up():
    chosen = select(prices((10.0, 1), (20.0, 2)))
    assert (len(chosen.kept), chosen.dropped, chosen.train_seconds) == (4, {}, 60.0)


def test_a_configuration_that_does_not_fit_is_dropped_with_all_its_seeds_and_later_cheaper_ones_are_kept():
    chosen = select(prices((10.0, 1), (20.0, 1), (4.0, 1)), budget_seconds=30.0)
    assert chosen.kept == ["c0-s0", "c0-s1", "c2-s0", "c2-s1"]
    assert chosen.dropped == dict.fromkeys(("c1-s0", "c1-s1"), "takes about 40 s with 2 seeds; 10 s of the budget are left")
    assert chosen.train_seconds == 28.0


def test_what_needs_more_memory_is_dropped_whatever_the_time():
    chosen = select(prices((1.0, 9.5), (1.0, 8)), memory_bytes=8 * GB)
    assert chosen.dropped == dict.fromkeys(("c0-s0", "c0-s1"), "needs about 9.50 GB of 8.00 GB")


def test_a_cohorts_trials_are_priced_together_and_full_fine_tuning_alone():
    assert select(prices((10.0, 1)), speedup=2.0).train_seconds == 10.0
    assert select(prices((10.0, 1), stacks=False), speedup=2.0).train_seconds == 20.0


def test_an_unknown_time_is_no_reason_to_drop():
    unknown = prices((None, 1), (2.0, 1), (9.0, 1))
    assert select(unknown).dropped == {}
    assert select(unknown).train_seconds is None
    chosen = select(unknown, budget_seconds=10.0)
    assert chosen.kept == ["c0-s0", "c0-s1", "c1-s0", "c1-s1"]
    assert chosen.train_seconds is None


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 10)), max_size=12), st.floats(1, 300), st.floats(1.0, 4.0))
def test_whatever_is_kept_fits_and_every_trial_is_kept_or_dropped(configurations, budget, speedup):
    priced = prices(*configurations)
    chosen = select(priced, budget_seconds=budget, memory_bytes=5 * GB, speedup=speedup)
    assert chosen.train_seconds <= budget
    assert sorted([*chosen.kept, *chosen.dropped]) == sorted(price.trial for price in priced)
    by_name = {price.trial: price for price in priced}
    assert all(by_name[name].memory_bytes <= 5 * GB for name in chosen.kept)
    assert {name[:-3] for name in chosen.kept}.isdisjoint(name[:-3] for name in chosen.dropped)
    assert chosen.train_seconds == pytest.approx(sum(by_name[name].train_seconds / speedup for name in chosen.kept))


def row(trial, cohort=None, together=None, rate=None, alone=None):
    return SimpleNamespace(
        trial=trial, cohort=cohort, train_seconds=together, examples_per_second=rate, solo_examples_per_second=alone
    )


def test_the_speedup_is_the_time_alone_over_the_time_together():
    # 200 examples in 10 s together; alone 200 / 50 and 200 / 25 s.
    cohort = [row("a-s1", "c1", 10.0, 20.0, 50.0), row("b-s1", "c1", 10.0, 20.0, 25.0)]
    assert measured_speedup(cohort) == (pytest.approx((4 + 8) / 10), 1)
    assert measured_speedup([*cohort, row("c-s1", "c2", 5.0, 4.0, 1.0)]) == measured_speedup(cohort)
    assert measured_speedup([row("c-s1", "c2", 5.0, 4.0, 1.0), row("d-s1")]) is None


def test_a_cohort_that_was_halved_took_as_long_as_its_longest_member():
    # 40 examples until the first rung in 2 s, 200 in 7 s all the way.
    pruned = row("a-s1", "c1", 2.0, 20.0, 20.0)
    winner = row("b-s1", "c1", 7.0, 200 / 7, 20.0)
    assert measured_speedup([pruned, winner]) == measured_speedup([winner, pruned]) == (pytest.approx((2 + 10) / 7), 1)


def planned(trial, seconds, **train):
    config = TrialConfig(base=BaseModelConfig(model="m"), adapter=AdapterConfig(), train=TrainConfig(**train), seed=1).flat()
    return {"trial": trial, "config": config, "train_seconds": seconds}


def test_measured_times_replace_estimates_of_every_seed_and_scale_the_others():
    plan = [planned("a-s1", 10.0, epochs=2), planned("a-s2", 10.0, epochs=2), planned("b-s1", 3.0), planned("c-s1", None)]
    source = correct(plan, [row("a-s1", alone=5.0)], num_examples=100)
    assert [one["train_seconds"] for one in plan] == [40.0, 40.0, 12.0, None]
    assert source == "2 measured in an earlier run, 2 estimated and multiplied by 4.00, as those turned out"


def test_a_training_of_few_steps_takes_its_share_of_an_epoch():
    plan = [planned("a-s1", 1.0, max_steps=5, batch_size=10)]
    correct(plan, [row("a-s1", alone=5.0)], num_examples=100)
    assert plan[0]["train_seconds"] == pytest.approx(0.5 * 100 / 5.0)


def test_without_measurements_estimates_stay():
    plan = [planned("a-s1", 10.0)]
    assert correct(plan, [row("b-s1", alone=5.0), row("a-s1")], 100).startswith("estimated")
    assert plan[0]["train_seconds"] == 10.0
