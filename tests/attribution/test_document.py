"""What a study's games show, from its store alone."""

import json
import math

import pytest

from lorascope.attribution.document import shapley_document
from lorascope.attribution.players import Game, design_trials, shared_players
from lorascope.config import Study
from lorascope.design import shard
from lorascope.shapley import exact_values
from lorascope.store import Store

PLAYERS = ("query", "key", "value")


def document_of(*directories):
    stores = [Store.open(directory) for directory in directories]
    try:
        return shapley_document(stores)
    finally:
        for store in stores:
            store.__exit__(None, None, None)


@pytest.mark.parametrize("game", ["usefulness", "reliance", "one_run"])
def test_where_only_the_value_projection_can_help_it_is_first_for_every_seed(game, games, known_answer):
    document = document_of(games[game])
    assert document["game"] == game
    metric = document["metrics"]["eval_loss"]
    assert metric["ranking"][0][0] == "value"
    for values in known_answer["values_by_seed"](document).values():
        assert values["value"] < -0.02
        assert max(abs(values["query"]), abs(values["key"])) < 1e-6
    assert sum(one["estimate"] for one in metric["values"].values()) == pytest.approx(metric["full"]["estimate"])
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_smallest_coalition_that_is_as_good_as_the_best_is_recommended(games):
    chosen = document_of(games["usefulness"])["metrics"]["eval_loss"]["recommended"]
    assert chosen["players"] == chosen["targets"] == ["value"]
    assert "fewest parameters" in chosen["why"]
    assert document_of(games["reliance"])["metrics"]["eval_loss"]["recommended"] is None
    assert document_of(games["one_run"])["metrics"]["eval_loss"]["recommended"]["why"].startswith("by the map")


def test_a_one_run_map_is_shown_with_its_agreement_and_its_cost(games):
    document = document_of(games["one_run"])
    found = document["metrics"]["eval_loss"]["agreement"]
    assert found["num_retrained"] == 4
    assert [each["seed"] for each in found["by_seed"]] == [1, 2]
    assert all(each["pearson"] > 0.9 for each in [*found["by_seed"], found["of_means"], *found["retraining_with_itself"]])
    cost = document["cost"]
    total = cost["map_train_seconds"] + cost["map_read_seconds"]
    assert cost["share_of_retraining"] == pytest.approx(total / (4 * cost["seconds_per_retrained_coalition"]))
    assert cost["num_read"] == 8


def test_a_study_of_another_design_shows_no_game(tmp_path):
    study = Study.model_validate({"name": "a", "base": {"model": "m"}, "task": {"name": "sst2", "data": "x"}})
    with Store.create(tmp_path / "run", study) as store:
        assert shapley_document([store]) == {}


class Stored:
    """A study whose trials are worth what a function says, without any training."""

    def __init__(self, directory, players=PLAYERS, seeds=(1, 2, 3), part=(1, 1), **design):
        sections = {"kind": "shapley", "players": list(players), "values": ["accuracy"], **design}
        self.study = Study.model_validate(
            {
                "name": "a", "base": {"model": "m"}, "task": {"name": "sst2", "data": "x"}, "seeds": list(seeds),
                "design": sections,
            }
        )  # fmt: skip
        self.game = Game(self.study, shared_players(self.study.design, None))
        self.directory, self.part = directory, part

    def fill(self, worth, leave_out=(), seconds=None):
        with Store.create(self.directory, self.study) as store:
            trials = shard(design_trials(self.game), *self.part)
            store.add_trials(trials)
            for trial in trials:
                coalition = self.game.coalition_of(trial.flat())
                if (coalition, trial.seed) in leave_out:
                    store.update(trial.trial, status="failed", error="it did")
                    continue
                more = {} if seconds is None or not coalition else {"solo_train_seconds_per_epoch": seconds(coalition)}
                store.update(trial.trial, status="done", trainable_params=100 + 10 * len(coalition), **more)
                store.set_metrics(trial.trial, {"accuracy": worth(coalition, trial.seed)})
        return document_of(self.directory)


def by_size_and_seed(coalition, seed):
    """Value helps, more with query; seeds differ for all alike and a little for each."""
    wobble = 0.001 * math.sin(7 * seed + 3 * len(coalition) + 5 * ("key" in coalition) + 2 * ("value" in coalition))
    return 0.5 + 0.2 * ("value" in coalition) + 0.1 * ({"value", "query"} <= coalition) + 0.01 * seed + wobble


def test_values_parameters_and_times_are_those_of_the_game(tmp_path):
    seconds = {"query": 1.0, "key": 2.0, "value": 4.0}
    document = Stored(tmp_path / "run").fill(by_size_and_seed, seconds=lambda one: sum(seconds[player] for player in one))
    metric = document["metrics"]["accuracy"]
    means = {frozenset(one["players"]): one["mean"] for one in metric["coalitions"]}
    expected = exact_values(PLAYERS, means)
    assert document["parameters"] == dict.fromkeys(PLAYERS, 10)
    for player in PLAYERS:
        value = metric["values"][player]
        assert value["estimate"] == pytest.approx(expected[player])
        assert value["per_million_parameters"] == pytest.approx(expected[player] / 1e-5)
        assert value["per_second"] == pytest.approx(expected[player] / seconds[player])
        assert value["per_ms_latency"] is None
        assert value["low"] < value["estimate"] < value["high"]
    (interaction,) = (one for one in metric["interactions"] if set(one["players"]) == {"query", "value"})
    assert interaction["low"] > 0.05
    assert metric["ranking"][0] == ["value"]
    assert metric["recommended"]["players"] == ["query", "value"]
    assert document["latency"] == {
        "reason": "not measured: the study ended before, or is one of an earlier version; go on with --resume"
    }


def test_values_are_shown_per_millisecond_of_latency_where_that_was_measured_and_is_clear(tmp_path):
    stored = Stored(tmp_path / "run")
    stored.fill(by_size_and_seed)
    players = {
        "query": {"ms": 0.5, "low": 0.4, "high": 0.6},
        "key": {"ms": 0.1, "low": -0.1, "high": 0.3},
        "value": {"ms": 0.2, "low": None, "high": None},
    }
    how = {
        "exact": True, "num_coalitions": 8, "rounds": 5, "tokens": 27, "rows": 1, "phase": "one pass", "device": "a processor",
        "threads": 2, "torch": "2", "dtype": "float32", "quantization": None, "without_ms": 9.0, "with_all_ms": 9.8,
    }  # fmt: skip
    with Store.create(tmp_path / "run", stored.study, resume=True) as store:
        store.set_info("latency", {"players": players, **how})
    document = document_of(tmp_path / "run")
    values = document["metrics"]["accuracy"]["values"]
    assert values["query"]["per_ms_latency"] == pytest.approx(values["query"]["estimate"] / 0.5)
    assert (values["key"]["per_ms_latency"], values["value"]["per_ms_latency"]) == (None, None)
    assert document["latency"]["what"] == (
        "unmerged, one pass over one row of 27 tokens, on a processor with 2 threads, float32; mean of 5 rounds; a merged "
        "adapter adds none"
    )
    with Store.create(tmp_path / "run", stored.study, resume=True) as store:
        store.set_info("latency", {"reason": "no time"})
    assert document_of(tmp_path / "run")["latency"] == {"reason": "not measured: no time"}


def test_a_study_that_is_not_complete_shows_worths_and_no_values(tmp_path):
    everyone = frozenset(PLAYERS)
    metric = Stored(tmp_path / "run").fill(by_size_and_seed, [(everyone, seed) for seed in (1, 2, 3)])["metrics"]["accuracy"]
    assert "values" not in metric
    assert metric["reason"] == "7 of 8 coalitions are valued; all are needed"
    assert len(metric["coalitions"]) == 7


def test_a_seed_in_which_a_trial_failed_is_left_out_and_named(tmp_path):
    document = Stored(tmp_path / "run").fill(by_size_and_seed, [(frozenset(["key"]), 2)])
    metric = document["metrics"]["accuracy"]
    assert metric["num_seeds"] == 2
    assert any("1 of 3 seeds left out" in note for note in metric["notes"])
    assert document["trials"] == {"done": 23, "failed": 1}


def test_one_seed_has_values_and_no_verdict(tmp_path):
    metric = Stored(tmp_path / "run", seeds=(1,)).fill(by_size_and_seed)["metrics"]["accuracy"]
    assert metric["values"]["value"]["low"] is None
    assert "nothing is said of what another seed would give" in metric["verdict"]
    assert metric["recommended"]["margin"] == 0.0
    assert "one seed says nothing" in metric["recommended"]["why"]


def test_a_metric_that_no_trial_has_is_named(tmp_path):
    document = Stored(tmp_path / "run", values=["accuracy", "f1"]).fill(by_size_and_seed)
    assert document["metrics"]["f1"]["reason"] == "no trial has f1"


def test_shards_show_what_the_whole_shows(tmp_path):
    whole = Stored(tmp_path / "whole").fill(by_size_and_seed)
    for index in (1, 2):
        Stored(tmp_path / str(index), part=(index, 2)).fill(by_size_and_seed)
    assert document_of(tmp_path / "1", tmp_path / "2") == whole
    assert "values" not in document_of(tmp_path / "1")["metrics"]["accuracy"]


def test_a_control_beside_the_coalitions_changes_nothing(tmp_path):
    stored = Stored(tmp_path / "run")
    before = stored.fill(by_size_and_seed)
    with Store.create(tmp_path / "run", stored.study, resume=True) as store:
        trial = stored.game.trials([frozenset()])[0]
        control = trial.model_copy(update={"adapter": trial.adapter.model_copy(update={"r": 99})})
        store.add_trials([control])
        store.update(control.trial, status="done", trainable_params=7)
        store.set_metrics(control.trial, {"accuracy": 1.0})
    assert document_of(tmp_path / "run") == before


def test_maps_that_read_different_coalitions_are_compared_on_those_of_both(tmp_path):
    stored = Stored(tmp_path / "run", seeds=(1, 2), game="reliance", coalitions=5)
    record = {
        "players": {player: [player] for player in PLAYERS}, "parameters": dict.fromkeys(PLAYERS, 10), "stopped": "coalitions",
    }  # fmt: skip
    with Store.create(tmp_path / "run", stored.study) as store:
        store.set_map("reliance", 1, {**record, "coalitions": [0, 7, 1, 6], "metrics": {"accuracy": [0.5, 0.8, 0.5, 0.8]}})
        store.set_map("reliance", 2, {**record, "coalitions": [0, 7, 1], "metrics": {"accuracy": [0.5, 0.9, math.nan]}})
    metric = document_of(tmp_path / "run")["metrics"]["accuracy"]
    assert [one["players"] for one in metric["coalitions"]] == [[], ["query"], list(PLAYERS)]
    assert metric["coalitions"][1]["worths"] == [0.5, None]


def test_a_wrong_map_is_put_right_by_retrained_coalitions(tmp_path):
    """The truth is additive; the map shrinks it, shifts it, and has one player upside down."""
    effects = dict(zip("abcdef", (0.30, 0.20, 0.10, 0.05, -0.05, 0.02), strict=True))
    stored = Stored(tmp_path / "run", players=effects, seeds=(1, 2), game="one_run", retrained=40)
    before = stored.fill(lambda coalition, seed: 0.5 + 0.01 * seed + sum(effects[player] for player in coalition))
    assert before["cost"] == {"reason": "no map yet"}
    assert before["metrics"]["accuracy"]["reason"] == "no map has accuracy"
    players = list(effects)
    distorted = {**{player: 0.5 * effect for player, effect in effects.items()}, "c": -0.05}
    masks = list(range(2 ** len(players)))
    column = [0.1 + sum(distorted[player] for bit, player in enumerate(players) if mask >> bit & 1) for mask in masks]
    with Store.create(tmp_path / "run", stored.study, resume=True) as store:
        for seed in (1, 2):
            store.set_map("one_run", seed, map_of(players, column))
    metric = document_of(tmp_path / "run")["metrics"]["accuracy"]
    assert metric["values"]["c"]["estimate"] == pytest.approx(-0.05)
    assert {player: one["estimate"] for player, one in metric["calibrated"]["values"].items()} == pytest.approx(
        effects, abs=1e-6
    )
    assert metric["agreement"]["of_effects"]["kendall_tau"] < 1.0
    assert metric["agreement"]["retraining_with_itself"][0]["kendall_tau"] > 0.99


def map_of(players, column, **more):
    """A one-run map in which every coalition is read."""
    return {
        "players": {player: [player] for player in players}, "parameters": dict.fromkeys(players, 10), "stopped": "all",
        "coalitions": list(range(2 ** len(players))), "metrics": {"accuracy": column}, "trial_epochs": 1.0,
        "train_seconds": 1.0, "read_seconds": 1.0, **more,
    }  # fmt: skip


@pytest.mark.parametrize("done", [0, 3, 4])
def test_a_map_that_too_few_retrained_coalitions_speak_for_is_not_shown(done, tmp_path):
    stored = Stored(tmp_path / "run", seeds=(1,), game="one_run", retrained=4)
    trials = design_trials(stored.game)
    stored.fill(by_size_and_seed, [(stored.game.coalition_of(trial.flat()), trial.seed) for trial in trials[done:]])
    column = [0.1 * mask for mask in range(8)]
    with Store.create(tmp_path / "run", stored.study, resume=True) as store:
        store.set_map("one_run", 1, map_of(PLAYERS, column))
    metric = document_of(tmp_path / "run")["metrics"]["accuracy"]
    if done == 4:
        assert metric["recommended"]["players"] == list(PLAYERS)
        return
    assert metric["reason"].startswith(f"{done} of the coalitions that the map holds were retrained, and 4 are needed")
    assert not {"values", "ranking", "verdict", "recommended", "calibrated"} & set(metric)
    assert metric["coalitions"] == []


def test_too_few_retrained_coalitions_calibrate_nothing(games):
    calibrated = document_of(games["one_run"])["metrics"]["eval_loss"]["calibrated"]
    assert calibrated["reason"].startswith("needs 6 retrained coalitions")
