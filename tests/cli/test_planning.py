"""What a study takes, before it runs: what a plan says of it, and that a run within the same bounds does just that."""

import json
import re

import pytest

from lorascope.cli import planning
from lorascope.store import Store

SHAPLEY = {"kind": "shapley", "players": ["query", "value"]}
SEARCH = {
    "kind": "search", "over": {"r": [1, 2, 4], "learning_rate": {"log": [1e-4, 1e-1]}}, "trials": 6, "batch": 3,
    "objective": "eval_loss", "pruner": "successive_halving", "sampler": "random",
}  # fmt: skip


@pytest.fixture
def _slow_machine(monkeypatch):
    """A trial takes minutes by every estimate."""
    monkeypatch.setattr("lorascope.plan.probe_flops", lambda *_: 1e5)


def plan(cli, path, *options):
    ended = cli("plan", path, *options, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_a_budget_that_is_none_is_refused(cli, study_file, tmp_path):
    assert cli("run", study_file(), "--out", tmp_path / "run", "--budget", "soon").code == 2


def test_a_budget_over_before_the_first_cohort_leaves_trials_planned(cli, study_file, tmp_path, monkeypatch):
    monkeypatch.setattr("lorascope.plan.probe_flops", lambda *_: 1e15)
    ended = cli("run", study_file(), "--out", tmp_path / "run", "--budget", "0.01s", "--json")
    document = json.loads(ended.out)
    assert ended.code == 0
    assert {trial["status"] for trial in document["trials"]} == {"planned"}
    (warning,) = [warning for warning in document["warnings"] if warning["kind"] == "budget"]
    assert warning["count"] == 2
    assert warning["message"] == "the budget of 0.01 s ends the study with 2 of 2 trials left; go on with --resume"


@pytest.mark.usefixtures("_slow_machine")
def test_a_run_within_a_budget_begins_what_its_plan_keeps_and_names_what_it_drops(cli, study_file, tmp_path):
    path = study_file(design={"kind": "list", "trials": [{"max_steps": 1}, {"max_steps": 9}, {"max_steps": 1, "r": 3}]})
    first, second, third = plan(cli, path)["trials"]
    budget = f"{first['train_seconds'] + third['train_seconds'] + 1:.0f}s"
    planned = plan(cli, path, "--budget", budget)
    assert [one["trial"] for one in planned["dropped"]] == [second["trial"]]
    ran = cli("run", path, "--out", tmp_path / "run", "--budget", budget, "--json")
    assert [trial["trial"] for trial in json.loads(ran.out)["trials"]] == [first["trial"], third["trial"]]
    assert f"dropped: {second['trial'].rpartition('-s')[0]}: takes about" in ran.err
    again = cli(
        "run", path, "--out", tmp_path / "run", "--budget", f"{second['train_seconds'] + 1:.0f}s", "--resume", "--json"
    )
    assert {trial["status"] for trial in json.loads(again.out)["trials"]} == {"done"}
    assert len(json.loads(again.out)["trials"]) == 3
    none = cli("run", path, "--out", tmp_path / "none", "--budget", "0.1s")
    assert none.code == 2
    assert none.err.splitlines()[-1].startswith("lorascope: --budget: every configuration takes longer; ")
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("_slow_machine")
@pytest.mark.parametrize("game", ["usefulness", "one_run"])
def test_a_game_that_would_lack_a_coalition_is_refused_with_the_time_that_it_takes(game, cli, study_file, tmp_path):
    design = {**SHAPLEY, "game": game} | ({"retrained": 4, "length": 3} if game == "one_run" else {})
    path = study_file(design=design, controls=[{"method": "head"}])
    whole = plan(cli, path)
    *coalitions, _ = whole["trials"]
    maps = 3 * max(trial["train_seconds"] for trial in coalitions) if game == "one_run" else 0.0
    assert whole["train_seconds_total"] == pytest.approx(sum(trial["train_seconds"] for trial in whole["trials"]) + maps)
    assert ("maps" in whole["train_seconds_scope"]) == (game == "one_run")
    needed = sum(trial["train_seconds"] for trial in coalitions) + maps
    assert plan(cli, path, "--budget", f"{needed + 0.1:.1f}s")["refused"] is None
    short = plan(cli, path, "--budget", f"{needed - 1:.0f}s")["refused"]
    assert re.search(r"the game has no values: all of it takes about [\d.]+ (s|min|h)$", short["what"])
    text = cli("plan", path, "--budget", f"{needed - 1:.0f}s").out
    assert "a run within this is refused: without 1 of its 4 trials the game has no values" in text
    refused = cli("run", path, "--out", tmp_path / "run", "--budget", f"{needed - 1:.0f}s")
    assert (refused.code, short["what"] in refused.err) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_budget_bounds_the_maps_too(cli, study_file, tmp_path, monkeypatch):
    monkeypatch.setattr("lorascope.plan.probe_flops", lambda *_: 1e15)
    path = study_file(design={**SHAPLEY, "game": "reliance"})
    ended = cli("run", path, "--out", tmp_path / "run", "--budget", "0.01s", "--json")
    assert ended.code == 0, ended.err
    with Store.open(tmp_path / "run") as store:
        assert store.maps("reliance") == {}
        assert [row.status for row in store.trials()] == ["planned"]


def test_a_search_runs_within_a_memory_that_holds_its_extremes_and_not_within_less(cli, study_file, tmp_path):
    path = study_file(design=SEARCH | {"trials": 2, "batch": 2}, controls=[{"method": "head"}])
    largest = plan(cli, path)["search"]["costliest"]["memory_bytes"]
    ran = cli("run", path, "--out", tmp_path / "run", "--memory", f"{largest / 1e6 + 1:.0f}MB", "--json")
    assert ran.code == 0, ran.err
    assert len(json.loads(ran.out)["trials"]) == 3
    less = f"{largest / 1e3 - 0.5:.1f}KB"
    refused = cli("run", path, "--out", tmp_path / "other", "--memory", less)
    assert refused.code == 2
    assert "lorascope: --memory: what may be proposed needs up to" in refused.err.splitlines()[-1]
    assert not (tmp_path / "other").exists()
    assert "does not fit: r 4, learning_rate" in cli("plan", path, "--memory", less).out


def test_the_total_of_a_search_is_that_of_all_its_configurations(cli, study_file):
    planned = plan(cli, study_file(design=SEARCH, seeds=[1, 2]))
    shown = sum(trial["train_seconds"] for trial in planned["trials"])
    assert planned["train_seconds_total"] == pytest.approx(2 * shown)
    scope = "all 6 configurations with 2 seeds, at the cost of the first 3, none pruned"
    assert planned["train_seconds_scope"] == scope


def test_the_total_of_a_sampled_game_is_that_of_the_most_coalitions(cli, study_file):
    design = {"kind": "shapley", "players": ["query", "key", "value", "output", "up"], "coalitions": 24}
    planned = plan(cli, study_file(design=design, controls=[{"method": "head"}]))
    *coalitions, _ = planned["trials"]
    assert planned["train_seconds_scope"] == "at most 24 coalitions with 1 seed, at the cost of the first 16"
    assert planned["train_seconds_total"] >= 24 / 16 * sum(trial["train_seconds"] for trial in coalitions)


def test_what_trains_nothing_takes_no_time_of_a_budget(cli, study_file, tmp_path):
    first = json.loads(cli("run", study_file(), "--out", tmp_path / "run", "--json").out)["trials"][0]
    adapter = tmp_path / "run" / first["adapter"]
    ended = cli("run", study_file(), "--out", tmp_path / "more", "--adapter", adapter, "--budget", "1h", "--dry-run", "--json")
    assert json.loads(ended.out)["dropped"] == []


def test_a_shard_makes_the_maps_of_its_own_seeds(cli, study_file):
    study, _ = planning.study_and_trials(study_file(seeds=[1, 2, 3]), None, None, None)
    assert [planning.seeds_of(study, part) for part in (None, (1, 2), (2, 2))] == [[1, 2, 3], [1, 3], [2]]


CONTROLLED = {
    "design": {"kind": "ablation", "over": {"r": [1, 2]}},
    "controls": [{"method": "full", "learning_rate": [1.0e-3, 1.0e-4]}, {"method": "head"}],
    "seeds": [1, 2],
}


def test_a_plan_drops_what_a_budget_does_not_hold_with_all_its_seeds_and_says_why(cli, study_file):
    path = study_file(**CONTROLLED)
    whole = json.loads(cli("plan", path, "--json").out)
    assert (whole["dropped"], len(whole["trials"])) == ([], 12)
    assert whole["train_seconds_total"] == pytest.approx(sum(trial["train_seconds"] for trial in whole["trials"]), rel=1e-6)
    assert whole["speedup"] == {"value": 1.0, "measured_cohorts": 0}
    largest = max(trial["memory_bytes"] for trial in whole["trials"])
    tight = json.loads(cli("plan", path, "--memory", f"{largest / 1e3 - 0.5:.1f}KB", "--json").out)
    full = [trial["trial"] for trial in whole["trials"] if trial["config"]["method"] == "full"]
    assert [one["trial"] for one in tight["dropped"]] == full
    assert all(one["reason"].startswith("needs about ") for one in tight["dropped"])
    assert tight["train_seconds_total"] < whole["train_seconds_total"]
    none = json.loads(cli("plan", path, "--budget", "0.0000001s", "--json").out)
    assert [one["trial"] for one in none["dropped"]] == [trial["trial"] for trial in whole["trials"]]
    assert all("of the budget are left" in one["reason"] for one in none["dropped"])
    text = cli("plan", path, "--budget", "1h").out
    assert "training of 12 trials: about" in text
    assert "assumed: none was measured" in text
    assert cli("plan", path, "--budget", "soon").code == cli("plan", path, "--memory", "much").code == 2


def test_controls_and_factors_are_part_of_the_results_and_correct_the_next_plan(cli, study_file, tmp_path):
    path = study_file(**CONTROLLED)
    ran = cli("run", path, "--out", tmp_path / "run", "--json")
    document = json.loads(ran.out)
    assert {trial["status"] for trial in document["trials"]} == {"done"}
    assert document["controls"] == json.loads(cli("results", tmp_path / "run", "--json").out)["controls"]
    assert {one["against"] for one in document["controls"]["shortfalls"]} == {"full", "head"}
    tried = document["controls"]["methods"]["full"]["tried"]
    assert [one["learning_rate"] for one in tried] == [1e-3, 1e-4]
    assert [row["factor"] for row in document["ablation"]["rows"]] == ["baseline", "r", "r"]
    text = cli("results", tmp_path / "run").out
    assert "one factor at a time" in text
    assert "shortfall against controls" in text
    assert "the split that is reported" in text
    plan = json.loads(cli("plan", path, "--out", tmp_path / "run", "--json").out)
    assert plan["train_seconds_from"] == "12 measured in an earlier run"
    assert plan["speedup"]["measured_cohorts"] == 1
    epochs = 2  # what the study file says
    for planned, trial in zip(plan["trials"], document["trials"], strict=True):
        assert planned["train_seconds"] == pytest.approx(epochs * trial["solo_train_seconds_per_epoch"], rel=1e-6)


def test_a_run_within_a_bound_on_memory_leaves_out_what_needs_more(cli, study_file, tmp_path):
    path = study_file(design={"kind": "list", "trials": [{}]}, controls=[{"method": "full"}, {"method": "head"}])
    planned = json.loads(cli("plan", path, "--json").out)["trials"]
    largest = max(trial["memory_bytes"] for trial in planned)
    ran = cli("run", path, "--out", tmp_path / "run", "--memory", f"{largest / 1e3 - 0.5:.1f}KB", "--json")
    assert {trial["config"]["method"] for trial in json.loads(ran.out)["trials"]} == {"lora", "head"}
    (full,) = [trial["trial"] for trial in planned if trial["config"]["method"] == "full"]
    assert f"dropped: {full.rpartition('-s')[0]}: needs about" in ran.err
    nothing = cli("run", path, "--out", tmp_path / "other", "--memory", "1KB")
    assert nothing.code == 2
    assert nothing.err.splitlines()[-1].startswith("lorascope: --memory: every trial needs more; ")
    assert not (tmp_path / "other").exists()
