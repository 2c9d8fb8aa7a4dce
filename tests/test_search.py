"""Search: what samplers propose, what a rung keeps, that resuming changes nothing, and what is said of it afterwards."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.cohort.proposals import Pruner
from lorascope.config import BaseModelConfig, Study, TaskConfig, TrialConfig
from lorascope.design import expand
from lorascope.errors import UsageError
from lorascope.search import configurations, proposer, search_document
from lorascope.store import TrialRow

SPACE = {
    "r": [4, 8, 16, 32],
    "learning_rate": {"log": [1e-5, 1e-2]},
    "lora_dropout": {"uniform": [0.0, 0.5]},
    "targets": [["query"], ["query", "value"], "all-linear"],
}
ABSENT = [
    "trainable_params", "total_params", "peft_total_params", "train_seconds", "examples_per_second", "peak_memory_bytes",
    "solo_train_seconds_per_epoch", "solo_examples_per_second", "solo_peak_memory_bytes", "adapter", "data_checksum",
    "base_checksum", "cohort", "error",
]  # fmt: skip


def study(seeds=(1,), over=SPACE, controls=(), **design):
    design = {"kind": "search", "objective": "accuracy", "over": over, "trials": 40} | design
    base, task = BaseModelConfig(model="m"), TaskConfig(name="sst2", data="x")
    return Study(name="s", base=base, task=task, seeds=list(seeds), design=design, controls=list(controls))


def row(trial, status="done", **values):
    blank = dict.fromkeys(ABSENT) | {"metrics": {}, "rungs": {}}
    return TrialRow(trial=trial.trial, seed=trial.seed, status=status, config=trial.flat(), **(blank | values))


def score(config):
    rate = 1 - 0.1 * (math.log10(config["learning_rate"]) + 3.2) ** 2
    return rate - 0.3 * (config["lora_dropout"] - 0.1) ** 2 - (0.05 if config["targets"] == ["query"] else 0.0)


def searched(search, rows=()):
    rows = list(rows)
    while batch := search.propose(rows):
        rows += [row(trial, metrics={"accuracy": score(trial.flat()) - trial.seed * 1e-3}) for trial in batch]
    return rows


def test_tpe_finds_a_better_region_than_chance_over_ten_seeds():
    late = {}
    for sampler in ("tpe", "random"):
        means = []
        for seed in range(10):
            rows = searched(proposer(study(sampler=sampler, sampler_seed=seed)))
            means.append(sum(each.metrics["accuracy"] for each in rows[-10:]) / 10)
        late[sampler] = sum(means) / len(means)
    assert 1 - late["tpe"] < 0.6 * (1 - late["random"])


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp", "cmaes"])
@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_a_search_that_goes_on_from_its_rows_proposes_what_it_would_have_proposed(sampler, seeds):
    whole = searched(proposer(study(seeds, sampler=sampler, trials=13)))
    assert len(whole) == 13 * len(seeds)
    search = proposer(study(seeds, sampler=sampler, trials=13))
    for num_batches in (1, 2):
        part = whole[: num_batches * search.batch * len(seeds)]
        assert [each.trial for each in searched(search, part)] == [each.trial for each in whole]


def test_a_batch_that_has_not_ended_is_proposed_again():
    search = proposer(study((1, 2), trials=12))
    first = search.propose([])
    rows = [row(trial, metrics={"accuracy": 0.5}) for trial in first]
    rows[-1] = row(first[-1], "interrupted")
    assert search.propose(rows) == first
    assert {trial.trial for trial in search.propose([*rows[:-1], row(first[-1], "failed")])}.isdisjoint(
        trial.trial for trial in first
    )


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp"])
def test_a_finite_space_is_proposed_once_and_then_the_search_ends(sampler):
    over = {"r": [4, 8], "learning_rate": [1e-4, 2e-4, 3e-4], "lora_dropout": [0.1]}
    rows = searched(proposer(study(over=over, sampler=sampler)))
    assert len(rows) == len({each.trial for each in rows}) == 6


def test_the_cohort_of_sixteen_bounds_a_batch_with_all_seeds():
    assert proposer(study(trials=100)).batch == 16
    assert proposer(study((1, 2, 3), trials=100)).batch == 5
    assert proposer(study(trials=16)).batch == 4
    assert proposer(study(trials=16, batch=9)).batch == 9


def test_what_was_proposed_is_read_back_from_its_rows():
    over = SPACE | {"lora_alpha": ["1r", "2r", 7], "epochs": {"int": [1, 9]}}
    search = proposer(study(over=over, sampler="random", batch=16))
    for trial in search.propose([]):
        read = search.overrides(trial.flat())
        flat = trial.flat()
        alpha = read["lora_alpha"] * 1 if isinstance(read["lora_alpha"], int) else int(read["lora_alpha"][0]) * flat["r"]
        assert {**read, "lora_alpha": alpha} == {key: flat[key] for key in over}


@pytest.mark.parametrize("bad", ["diverged", "pruned"])
def test_the_sampler_avoids_where_trials_diverged_or_were_pruned(bad):
    search = proposer(study(over={"learning_rate": {"log": [1e-6, 1e0]}}, trials=60))
    rows = []
    while batch := search.propose(rows):
        for trial in batch:
            rate = trial.train.learning_rate
            rungs = {3: {"accuracy": 0.1}} if bad == "pruned" else {}
            rows.append(row(trial, bad, rungs=rungs) if rate > 1e-3 else row(trial, metrics={"accuracy": 0.5}))
    late = [each for each in rows[-20:] if each.status == bad]
    assert len(late) < 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "acuracy"}, "did you mean 'accuracy'"),
        ({"over": {"rank": [4]}}, "no section has a key 'rank'"),
        ({"over": {"r": [4, "x"]}}, "r = \"x\""),
        ({"over": {"r": {"log": [4.0, 64.0]}}}, "r is a whole number; give its range as int"),
        ({"over": {"lora_dropout": {"uniform": [0.0, 2.0]}}}, "lora_dropout"),
        ({"sampler": "cmaes", "over": {"learning_rate": {"log": [1e-5, 1e-3]}}}, "two ranges at least"),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_is_refused_before_it_begins(changes, words):
    with pytest.raises(UsageError, match=words):
        proposer(study(**changes))


def test_what_is_foreseen_has_the_largest_rank_and_dropout_at_once():
    over = {"r": [4, 64], "lora_dropout": {"uniform": [0.0, 0.2]}, "learning_rate": {"log": [1e-5, 1e-3]}}
    foreseen = [trial.adapter for trial in proposer(study(over=over)).foreseen()]
    assert max(adapter.r for adapter in foreseen if adapter.lora_dropout > 0) == 64


def test_cmaes_names_what_to_install(monkeypatch):
    monkeypatch.setattr("lorascope.search.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install 'lorascope\\[cmaes\\]'"):
        proposer(study(sampler="cmaes"))


def test_a_search_whose_trials_lack_the_objective_ends_and_says_why():
    one = study(objective="f1", trials=8)
    search = proposer(one)
    rows = [row(trial, metrics={"accuracy": 1.0, "eval_loss": 2.0}) for trial in search.propose([])]
    assert search.propose(rows) == []
    document = search_document(one, rows)
    assert (document["best"], document["reason"]) == (None, "no trial has a f1; there is accuracy, eval_loss")
    assert search_document(one, rows[:0])["reason"] is None


def test_a_lone_trial_without_the_objective_is_forgotten_and_the_search_goes_on():
    search = proposer(study(trials=8))
    first = search.propose([])
    rows = [row(trial, metrics={"accuracy": 0.5}) for trial in first[:-1]] + [row(first[-1], metrics={"eval_loss": 1.0})]
    assert search.propose(rows)
    assert [trial.state.name for trial in search.history(rows).trials] == ["COMPLETE", "FAIL"]


def with_others(one, rows):
    """The rows, with those of every control, of an adapter from disk and of a further seed before them."""
    adapter = rows[0].config | {"path": "somewhere", "targets": ["c_attn"]}
    further = TrialConfig.from_flat(rows[0].config, 99)
    return [
        *(row(trial, metrics={"accuracy": 1.0}) for trial in expand(one)),
        replace(rows[0], trial="0a0a0a0a-s1", config=adapter, metrics={"accuracy": 1.0}),
        row(further, metrics={"accuracy": 1.0}),
        *rows,
    ]


@pytest.mark.parametrize("over", [SPACE, {"method": ["lora", "head"], "learning_rate": [1e-5, 1e-4, 1e-3]}])
def test_controls_adapters_from_disk_and_further_seeds_are_no_part_of_a_search(over):
    controls = [{"method": "full", "learning_rate": [1e-5, 1e-4]}, {"method": "head", "learning_rate": [1e-4, 0.5]}]
    one = study(over=over, controls=controls, trials=5)
    batch = proposer(one).propose([])
    rows = [row(trial, metrics={"accuracy": 0.5}) for trial in batch]
    foreign = with_others(one, rows)
    assert search_document(one, foreign) == search_document(one, rows)
    assert proposer(one).own(foreign) == rows
    assert proposer(one).propose(foreign) == proposer(one).propose(rows)
    assert len(proposer(one).history(foreign).trials) == len(rows)
    assert not {trial.trial for trial in expand(one)} & {
        each.trial for each in searched(proposer(one), foreign)[len(foreign) :]
    }


def test_every_configuration_of_a_mixed_space_is_known_again_as_the_searchs_own():
    over = SPACE | {"lora_alpha": ["1r", 16], "method": ["lora", "head"], "use_rslora": [True, False], "max_steps": [None, 3]}
    search = proposer(study(over=over, sampler="random", batch=16))
    rows = [row(trial) for trial in search.propose([])]
    assert search.own(rows) == rows


def halving(**design):
    return proposer(study(pruner="successive_halving", **design))


def test_only_a_halving_search_prunes():
    assert isinstance(halving(), Pruner)
    assert not isinstance(proposer(study()), Pruner)


def test_rungs_are_as_many_as_a_batch_can_be_divided_by_the_reduction():
    assert halving(batch=9).rungs(90) == [10, 30]
    assert halving(batch=8).rungs(90) == [30]
    assert halving(batch=8, reduction=2).rungs(80) == [10, 20, 40]
    assert halving(batch=2).rungs(90) == []
    assert halving(batch=27).rungs(5) == [1]


@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.5, math.nan, None]), min_size=1, max_size=12),
    st.integers(1, 3),
    st.integers(2, 4),
)
@settings(deadline=None)
def test_a_rung_keeps_the_best_whole_configurations_and_never_none(each, num_seeds, reduction):
    search = halving(reduction=reduction)
    trials = [f"c{number}-s{seed}" for number in range(len(each)) for seed in range(num_seeds)]
    scores = {name: each[int(name[1:].split("-")[0])] for name in trials}
    scores = {name: value for name, value in scores.items() if value is not None}
    kept = search.keep(trials, 5, 10, scores)
    numbers = {int(name[1:].split("-")[0]) for name in kept}
    assert kept == {f"c{number}-s{seed}" for number in numbers for seed in range(num_seeds)}
    finite = [value for value in each if value is not None and math.isfinite(value)]
    if finite:
        assert len(kept) == num_seeds * math.ceil(len(each) / reduction)
        worst_kept = min(each[n] if each[n] is not None and math.isfinite(each[n]) else -1.0 for n in numbers)
        others = [each[n] for n in set(range(len(each))) - numbers]
        assert all(value is None or not math.isfinite(value) or value <= worst_kept for value in others)
    assert not scores or kept & scores.keys()


def test_equals_go_by_their_order_and_a_diverged_seed_condemns_its_configuration():
    search = halving()
    assert search.keep(["a-s1", "b-s1", "c-s1"], 1, 9, dict.fromkeys(["a-s1", "b-s1", "c-s1"], 0.5)) == {"a-s1"}
    scores = {"a-s1": 0.9, "b-s1": 0.1, "b-s2": 0.2}
    assert halving(reduction=2).keep(["a-s1", "a-s2", "b-s1", "b-s2"], 1, 9, scores) == {"b-s1", "b-s2"}


def test_a_lower_objective_is_better_where_its_metric_says_so():
    assert halving(objective="eval_loss").keep(["a-s1", "b-s1"], 1, 9, {"a-s1": 2.0, "b-s1": 1.0}) == {"b-s1"}


def test_the_document_ranks_finished_ones_first_then_by_how_far_they_came():
    one = study(pruner="successive_halving", trials=20, batch=8)
    search = proposer(one)
    batch = search.propose([])
    rows = [row(trial, metrics={"accuracy": number / 10}) for number, trial in enumerate(batch[:5])]
    rows.append(row(batch[5], "pruned", rungs={3: {"accuracy": 0.9}}))
    rows.append(row(batch[6], "pruned", rungs={3: {"accuracy": 0.9}, 9: {"accuracy": 0.2}}))
    rows.append(row(batch[7], "diverged"))
    document = search_document(one, rows)
    assert [each["number"] for each in document["configurations"]] == [4, 3, 2, 1, 0, 6, 5, 7]
    assert document["best"] == batch[4].configuration == list(configurations(rows))[4]
    assert [step["best"] for step in document["course"]] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4]
    assert (document["finished"], document["chosen_on"]) == (5, "validation")


def test_the_key_that_matters_has_the_greatest_importance():
    rows = searched(proposer(study(sampler="random", trials=60)))
    importances = search_document(study(sampler="random", trials=60), rows)["importances"]
    assert set(importances) == set(SPACE)
    assert sum(importances.values()) == pytest.approx(1.0)
    assert max(importances, key=importances.get) == "learning_rate"


def test_of_few_configurations_nothing_is_said_about_which_key_matters():
    rows = searched(proposer(study(sampler="random", trials=24)))
    assert search_document(study(sampler="random", trials=24), rows[:23])["importances"] is None
    assert search_document(study(sampler="random", trials=24), rows)["importances"] is not None
