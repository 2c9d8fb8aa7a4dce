"""Maps: coalitions read off one adapter are what the adapter does without the others, however often it is interrupted."""

import json
import shutil
import sqlite3
from dataclasses import replace

import pytest
import torch

from lorascope import tracking
from lorascope.attribution import maps
from lorascope.attribution.maps import draw_maps
from lorascope.attribution.players import design_trials, read_game
from lorascope.base_model import load_base
from lorascope.cohort import kernels
from lorascope.cohort.deadline import Deadline
from lorascope.cohort.events import CohortStarted, MapEnded, Warned
from lorascope.cohort.run import run_study
from lorascope.config import Study
from lorascope.data.task import encode_task, read_task
from lorascope.errors import StoreError
from lorascope.evaluate import EvaluationStep, evaluate
from lorascope.lora.peft_io import read_adapter, sliced
from lorascope.lora.stack import Stack
from lorascope.plan import slot_of
from lorascope.shapley import agreement
from lorascope.store import Store
from lorascope.train import StepResult


def maps_of(directory, game):
    with Store.open(directory) as store:
        return store.maps(game)


def coalition_of(record, mask):
    return frozenset(player for index, player in enumerate(record["players"]) if mask >> index & 1)


def test_reliance_is_what_the_adapter_does_without_the_other_players(games):
    """By a stack that never had them: nothing is masked."""
    records = maps_of(games["reliance"], "reliance")
    assert sorted(records) == [1, 2]
    with Store.open(games["reliance"]) as store:
        study, row = store.study, next(row for row in store.trials() if row.seed == 1)
    game = read_game(study)
    trial = next(trial for trial in game.trials([game.everyone]) if trial.seed == 1)
    raw = read_task(study.task, study.evaluate.split)
    base = load_base(study.base, raw.task_type, raw.labels)
    task = encode_task(raw, base.tokenizer, study.task.max_length)
    slot = slot_of(trial, base.model, base.heads)
    weights = sliced(read_adapter(games["reliance"] / row.adapter), slot, "here")
    for mask, worth in zip(records[1]["coalitions"], records[1]["metrics"]["eval_loss"], strict=True):
        members = coalition_of(records[1], mask)
        few = tuple(one for one in slot.placements if one.target.role in members)
        stack = Stack(base.model, [replace(slot, placements=few)], base.heads)
        try:
            keys = [one.target.key for one in few]
            lora_A, lora_B = ({key: of[key] for key in keys} for of in (weights.lora_A, weights.lora_B))
            stack.write(0, replace(weights, placements=few, lora_A=lora_A, lora_B=lora_B))
            run = evaluate(stack, base, task, study.evaluate)
            with pytest.raises(StopIteration) as stop:
                while True:
                    next(run)
        finally:
            stack.detach()
        assert stop.value.value[0].metrics["eval_loss"] == pytest.approx(worth, rel=1e-5)
    everyone = records[1]["metrics"]["eval_loss"][records[1]["coalitions"].index(7)]
    assert everyone == pytest.approx(row.metrics["eval_loss"], rel=1e-5)


def test_a_one_run_map_agrees_with_the_retrained_coalitions(games):
    with Store.open(games["one_run"]) as store:
        game = read_game(store.study)
        retrained = game.worths(store.trials())["eval_loss"]
        records = store.maps("one_run")
    for seed, record in records.items():
        read = {coalition_of(record, mask): worth for mask, worth in zip(record["coalitions"], record["metrics"]["eval_loss"],
                                                                         strict=True)}  # fmt: skip
        assert len(read) == 8
        assert record["steps"] == 2 * 4 * 10
        assert record["train_seconds"] > 0
        assert record["read_seconds"] > 0
        found = agreement([read[one] for one in retrained], [its[seed] for its in retrained.values()])
        assert found["pearson"] > 0.9


@pytest.fixture
def unfinished(games, tmp_path):
    """A one-run study whose second map is missing, and its game."""
    directory = tmp_path / "run"
    shutil.copytree(games["one_run"], directory)
    change(directory, "DELETE FROM maps WHERE seed = 2")
    with Store.open(directory) as store:
        return directory, read_game(store.study)


def change(directory, statement, *values):
    with sqlite3.connect(directory / "study.sqlite") as connection:
        connection.execute(statement, values)
    connection.close()


def told(events, kind):
    return [event.notice.message for event in events if isinstance(event, Warned) and event.notice.kind == kind]


def test_a_map_is_made_once_and_again_only_where_it_is_missing(games, unfinished):
    directory, game = unfinished
    before = maps_of(games["one_run"], "one_run")
    assert list(draw_maps(game, directory, seeds=[1])) == []
    events = draw_maps(game, directory)
    while not isinstance(next(events), StepResult):
        pass
    events.close()
    assert maps_of(directory, "one_run") == {1: before[1]}
    again = [event for event in draw_maps(game, directory) if isinstance(event, CohortStarted)]
    assert [event.cohort for event in again] == ["one-run-s2"]
    after = maps_of(directory, "one_run")
    assert after[1] == before[1]
    assert after[2]["metrics"]["eval_loss"] == pytest.approx(before[2]["metrics"]["eval_loss"], rel=1e-5)


def test_the_one_training_is_followed_by_trackers(unfinished, monkeypatch):
    sent = {"config": {}, "rows": [], "figures": {}, "ends": []}

    class Recorder:
        note = ""

        def __init__(self, origin):
            pass

        def begin(self, trial, config):
            sent["config"][trial] = config
            return 0

        def log(self, trial, rows):
            sent["rows"] += rows

        def summary(self, trial, metrics):
            sent["figures"][trial] = metrics

        def end(self, trial, status):
            sent["ends"].append((trial, status))

    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", Recorder)
    directory, game = unfinished
    study = game.study.model_copy(update={"tracking": game.study.tracking.model_copy(update={"to": ["tensorboard"]})})
    events = list(draw_maps(replace(game, study=study), directory))
    assert sent["config"]["one-run-s2"]["game"] == "one_run"
    losses = [event.slots["one-run-s2"].loss for event in events if isinstance(event, StepResult)]
    assert [metrics["training/loss"] for _, metrics in sent["rows"]] == losses
    record = maps_of(directory, "one_run")[2]
    assert sent["figures"]["one-run-s2"]["efficiency/read_seconds"] == pytest.approx(record["read_seconds"])
    assert sent["ends"] == [("one-run-s2", "done")]


def test_a_map_computes_with_the_threads_of_the_trials(unfinished, monkeypatch):
    directory, game = unfinished
    own = torch.get_num_threads()
    monkeypatch.setattr(kernels.os, "sched_getaffinity", lambda _: range(own + 1), raising=False)
    with Store.open(directory) as store:
        (name, plan), *_ = store.cohorts().items()
    plan["kernels"]["machine"]["threads"] = own + 1
    change(directory, "UPDATE cohorts SET plan = ? WHERE cohort = ?", json.dumps(plan), name)
    used, events = set(), []
    for event in draw_maps(game, directory):
        events.append(event)
        if isinstance(event, StepResult):
            used.add(torch.get_num_threads())
    assert used == {own + 1}
    assert torch.get_num_threads() == own
    assert told(events, "replay") == [
        f"goes on with {own + 1} threads as before, not {own}, so that it computes the same bits"
    ]


def test_kernels_that_cannot_be_replayed_for_a_map_are_named(unfinished):
    directory, game = unfinished
    with Store.open(directory) as store:
        (name, plan), *_ = store.cohorts().items()
    plan["kernels"]["machine"]["torch"] = "1.0"
    change(directory, "UPDATE cohorts SET plan = ? WHERE cohort = ?", json.dumps(plan), name)
    (message,) = told(draw_maps(game, directory), "replay")
    assert "kernels were chosen anew" in message


def test_weights_are_packed_for_a_map_only_as_far_as_memory_is_allowed(unfinished, monkeypatch):
    directory, game = unfinished
    allowed = []
    monkeypatch.setattr(maps, "prepare", lambda *arguments: allowed.append(arguments[-1]) or (None, []))
    list(draw_maps(game, directory, most_bytes=123))
    assert allowed == [123]


class Clock:
    """Ten seconds pass with every step of training, and none otherwise."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def tick(self, events):
        for event in events:
            self.now += 10.0 * isinstance(event, StepResult)
            yield event


@pytest.mark.parametrize("seconds", [0.0, 49.0, 55.0, 10000.0])
def test_a_map_that_would_not_end_in_time_is_not_begun_and_one_past_the_deadline_is_left(seconds, unfinished):
    """The first map took 50 seconds by its record; the second takes 800 of the clock."""
    directory, game = unfinished
    record = {**maps_of(directory, "one_run")[1], "train_seconds": 20.0, "read_seconds": 30.0}
    change(directory, "UPDATE maps SET record = ? WHERE seed = 1", json.dumps(record))
    clock = Clock()
    events = list(clock.tick(draw_maps(game, directory, deadline=Deadline(seconds, clock))))
    assert sum(isinstance(event, StepResult) for event in events) == {0.0: 0, 49.0: 0, 55.0: 6, 10000.0: 80}[seconds]
    assert (2 in maps_of(directory, "one_run")) == (seconds == 10000.0)
    messages = [f"the budget of {seconds:.0f} s ends the study: 1 of its maps are left; go on with --resume"]
    assert told(events, "budget") == (messages if seconds < 10000.0 else [])
    with Store.open(directory) as store:
        assert [row["message"] for row in store.warnings() if row["kind"] == "budget"] == told(events, "budget")
    assert [event.name for event in events if isinstance(event, MapEnded)] == ["one-run-s2"] * (seconds == 10000.0)


def test_the_first_map_is_forecast_by_the_measured_speed_of_the_trials(unfinished):
    directory, game = unfinished
    change(directory, "DELETE FROM maps")
    change(directory, "UPDATE trials SET solo_examples_per_second = 10.0")
    clock = Clock()
    # 80 steps of 16 examples and 8 coalitions of 80 examples, a tenth of a second each and a tenth more: 211.2 s.
    events = clock.tick(draw_maps(game, directory, seeds=[1], deadline=Deadline(211.0, clock)))
    assert not any(isinstance(event, CohortStarted) for event in events)
    events = clock.tick(draw_maps(game, directory, seeds=[1], deadline=Deadline(212.0, clock)))
    assert any(isinstance(event, CohortStarted) for event in events)


def test_slices_of_a_fused_projection_are_masked_one_by_one(model_directory, known_task, play, tmp_path):
    """GPT-2's query, key and value are one adapter in the file; none of them may be masked with the others."""
    study = Study.model_validate(
        {
            "name": "fused",
            "base": {"model": str(model_directory("gpt2"))},
            "task": {
                "name": "file", "data": {split: str(known_task / f"{split}.jsonl") for split in ("train", "validation")},
                "labels": ["no", "yes"], "max_length": 16,
            },
            "adapter": {"r": 2},
            "train": {"batch_size": 16, "epochs": 1, "learning_rate": 0.02},
            "seeds": [1],
            "design": {"kind": "shapley", "players": ["query", "key", "value"], "game": "reliance"},
        }
    )  # fmt: skip
    play(study, tmp_path / "run")
    record = maps_of(tmp_path / "run", "reliance")[1]
    losses = dict(zip(record["coalitions"], record["metrics"]["eval_loss"], strict=True))
    assert len({round(loss, 6) for loss in losses.values()}) == 8
    with Store.open(tmp_path / "run") as store:
        assert losses[7] == pytest.approx(store.trials()[0].metrics["eval_loss"], rel=1e-5)
    assert record["parameters"] == dict.fromkeys(("query", "key", "value"), 2 * 2 * (16 + 16))


def test_a_task_that_produces_text_is_valued_by_its_loss_alone(model_directory, play, tmp_path):
    rows = "".join(
        f'{{"prompt": "the film is {word}", "completion": " so warm {word}"}}\n' for word in ("long", "slow", "funny")
    )
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(rows.replace("so", "so" if split == "train" else "too"), encoding="utf-8")
    study = Study.model_validate(
        {
            "name": "text",
            "base": {"model": str(model_directory("qwen2"))},
            "task": {"name": "file", "data": str(tmp_path), "max_length": 32, "allow": ["overlap"]},
            "adapter": {"r": 2},
            "train": {"batch_size": 2, "max_steps": 4, "learning_rate": 0.02},
            "seeds": [1],
            "design": {"kind": "shapley", "players": ["query", "value"], "game": "one_run", "retrained": 4},
        }
    )
    events = play(study, tmp_path / "run")
    record = maps_of(tmp_path / "run", "one_run")[1]
    assert set(record["metrics"]) == {"eval_loss", "perplexity"}
    assert {event.stage for event in events if isinstance(event, EvaluationStep)} == {"measuring the loss"}
    assert sum(isinstance(event, StepResult) for event in events) == record["steps"] == 12
    # Without a head, no player is the untouched base, in the map as in the retrained trial.
    with Store.open(tmp_path / "run") as store:
        empty = next(row for row in store.trials() if not row.config["targets"])
    untouched = record["metrics"]["eval_loss"][record["coalitions"].index(0)]
    assert untouched == pytest.approx(empty.metrics["eval_loss"], rel=1e-5)


def test_a_map_without_its_trial_is_named_and_the_others_are_made(known_study, tmp_path):
    study = known_study("reliance")
    game, directory = read_game(study), tmp_path / "run"
    list(run_study(study, design_trials(game)[:1], directory))
    warned = [event for event in draw_maps(game, directory) if isinstance(event, Warned)]
    assert len(warned) == 1
    assert "no map of seed 2" in warned[0].notice.message
    assert list(maps_of(directory, "reliance")) == [1]
    with Store.open(directory) as store:
        assert [row["message"] for row in store.warnings() if row["kind"] == "map"] == [warned[0].notice.message]


def test_a_one_training_that_diverges_leaves_no_map(known_study, play, tmp_path, monkeypatch):
    class Broken(maps.Stack):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            if self.slots[0].name.startswith("one-run"):
                with torch.no_grad():
                    self.parameters.values_NP.fill_(float("nan"))

    monkeypatch.setattr(maps, "Stack", Broken)
    events = play(known_study("one_run", seeds=(1,)), tmp_path / "run")
    assert any(isinstance(event, Warned) and "diverged" in event.notice.message for event in events)
    assert maps_of(tmp_path / "run", "one_run") == {}


def test_a_map_of_other_data_than_the_trials_is_refused(known_study, tmp_path):
    study = known_study("reliance", seeds=(1,))
    game, directory = read_game(study), tmp_path / "run"
    list(run_study(study, design_trials(game), directory))
    with Store.create(directory, study, resume=True) as store:
        store.update(store.trials()[0].trial, data_checksum="another")
    with pytest.raises(StoreError, match="the data changed since trial"):
        list(draw_maps(game, directory))
