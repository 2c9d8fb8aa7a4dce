"""Studies carried out: what a run leaves behind, and what failure, divergence and interruption leave of it."""

import errno
import hashlib
import json
import math
import shutil
import weakref

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lorascope.base_model import load_base, weights_checksum
from lorascope.cohort import export, run, training
from lorascope.cohort.events import CohortStarted, StudyStarted, TrialEnded, Warned
from lorascope.cohort.run import Limits, run_study
from lorascope.cohort.single import OnBase, evaluate_adapter
from lorascope.config import BaseModelConfig, Study
from lorascope.data.task import read_task
from lorascope.design import expand, shard
from lorascope.errors import AdapterError, CheckFailed, LorascopeError, ModelError, StoreError
from lorascope.evaluate import EvaluationStep, foreseen_metrics
from lorascope.evaluate import run as evaluation_run
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.store import Store, results_document
from lorascope.train import StepResult


def statuses(rows):
    return [row.status for row in rows]


def snapshot(directory):
    """Every file below with its bytes and time of change; SQLite's own files but the database left out."""
    return {
        path.relative_to(directory): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_times(row):
    return (row.trial, row.status, row.metrics, row.trainable_params, row.total_params, row.adapter, row.config)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_classification_study_leaves_everything_behind(family, make_study, carry_out, rows_of, tmp_path):
    study = make_study(family, [{}, {"r": 4, "targets": "all-linear"}], [1, 2])
    events = carry_out(study, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert statuses(rows) == ["done"] * 4
    for row in rows:
        assert 0 <= row.metrics["accuracy"] <= 1
        assert row.metrics["eval_loss"] > 0
        assert min(row.solo_train_seconds_per_epoch, row.solo_examples_per_second, row.solo_peak_memory_bytes) > 0
        assert min(row.train_seconds, row.examples_per_second, row.peak_memory_bytes) > 0
        assert len(row.data_checksum) == len(row.base_checksum) == 64
        adapter = tmp_path / "run" / row.adapter
        config = json.loads((adapter / "adapter_config.json").read_text())
        assert (config["peft_type"], config["task_type"], config["r"]) == ("LORA", "SEQ_CLS", row.config["r"])
        assert any(
            value.abs().max() > 0 for key, value in load_file(adapter / "adapter_model.safetensors").items() if "_B" in key
        )
        assert "library_name: peft" in (adapter / "README.md").read_text()
        origin = {"checksum": row.base_checksum, "dtype": "float32", "quantization": None}
        assert json.loads((adapter / "lorascope.json").read_text()) == {"labels": ["negative", "positive"], "base": origin}
        predictions = lines(tmp_path / "run" / "trials" / row.trial / "predictions.jsonl")
        assert len(predictions) == 8
        assert sum(line["correct"] for line in predictions) / 8 == row.metrics["accuracy"]
    with Store.open(tmp_path / "run") as store:
        for row in rows:
            steps = store.steps(row.trial)
            assert [step["step"] for step in steps] == list(range(10))
            assert all(None not in step.values() for step in steps)
        assert store.info("base_checksum") == rows[0].base_checksum
        assert store.info("versions")["torch"] == torch.__version__
    kinds = [type(event) for event in events]
    assert kinds.count(StepResult) == 10
    assert kinds.count(TrialEnded) == 4
    assert events[0].trial_steps == 40


def test_an_adapter_of_a_packed_base_knows_the_checksum_of_the_base_in_full(make_study, carry_out, rows_of, tmp_path):
    pytest.importorskip("bitsandbytes")
    study = make_study("bert", base={"quantization": "nf4"}, train={"max_steps": 1})
    carry_out(study, tmp_path / "run")
    (row,) = rows_of(tmp_path / "run")
    origin = json.loads((tmp_path / "run" / row.adapter / "lorascope.json").read_text())["base"]
    full = load_base(BaseModelConfig(model=study.base.model), "SEQ_CLS", ["negative", "positive"]).checksum
    assert (origin["checksum"], origin["quantization"]) == (row.base_checksum, "nf4")
    assert origin["unpacked_checksum"] == full != row.base_checksum


@pytest.mark.parametrize(
    ("family", "task_type"), [("gpt2", "CAUSAL_LM"), ("qwen2", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM"), ("bart", "SEQ_2_SEQ_LM")]
)
def test_a_squad_study_leaves_everything_behind(family, task_type, make_study, carry_out, rows_of, tmp_path):
    # BART has 64 positions in its encoder, and as many in its decoder.
    data = {"max_length": 64} if family == "bart" else {}
    study = make_study(family, [{}, {"targets": "all-linear", "lora_dropout": 0.1}], task="squad", data=data)
    carry_out(study, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert statuses(rows) == ["done", "done"]
    for row in rows:
        assert set(row.metrics) == {"exact_match", "f1", "eval_loss", "perplexity"}
        assert row.metrics["perplexity"] == pytest.approx(math.exp(row.metrics["eval_loss"]))
        predictions = lines(tmp_path / "run" / "trials" / row.trial / "predictions.jsonl")
        assert [line["id"] for line in predictions] == [f"q{number}" for number in range(8)]
        assert all(isinstance(line["prediction"], str) and line["answers"] for line in predictions)
        config = json.loads((tmp_path / "run" / row.adapter / "adapter_config.json").read_text())
        assert config["task_type"] == task_type
        assert row.solo_examples_per_second > 0
    evaluation, facts = evaluate_adapter(tmp_path / "run" / rows[1].adapter, study.task, study.evaluate, OnBase())
    assert facts["base_checksum"] == rows[1].base_checksum
    assert evaluation.metrics == pytest.approx(rows[1].metrics, rel=1e-4)


def test_an_encoder_decoder_learns_every_answer_of_a_conversation(make_study, carry_out, rows_of, tmp_path):
    turns = [("user", "the movie"), ("assistant", "good"), ("user", "and the actor"), ("assistant", "bad")]
    rows = [[(role, f"{text} {number}") for role, text in turns] for number in range(12)]
    for split, some in (("train", rows[:8]), ("validation", rows[8:])):
        messages = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in some]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages), encoding="utf-8")
    study = make_study("t5", data={"data": str(tmp_path)})
    events = carry_out(study, tmp_path / "run")
    [row] = rows_of(tmp_path / "run")
    assert (row.status, sum(isinstance(event, StepResult) for event in events)) == ("done", 2 * 16 / 4)
    assert row.metrics["perplexity"] == pytest.approx(math.exp(row.metrics["eval_loss"]))


def test_a_run_changes_nothing_about_the_base_on_disk(make_study, carry_out, rows_of, model_directory, tmp_path):
    before = snapshot(model_directory("bert"))
    study = make_study("bert", [{"bias": "all", "targets": "all-linear"}, {"method": "head"}])
    carry_out(study, tmp_path / "run")
    assert snapshot(model_directory("bert")) == before
    assert len({row.base_checksum for row in rows_of(tmp_path / "run")}) == 1


def test_a_base_weight_that_changed_ends_the_study(make_study, carry_out, rows_of, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "weights_checksum", lambda *_: "another")
    with pytest.raises(CheckFailed, match="weights changed"):
        carry_out(make_study(), tmp_path / "run")
    assert statuses(rows_of(tmp_path / "run")) == ["failed"]


def test_an_adapter_from_disk_is_evaluated_and_not_trained(bert_run, make_study, carry_out, rows_of, tmp_path):
    done = rows_of(bert_run)[0]
    events = carry_out(make_study("bert", [{}, {"path": str(bert_run / done.adapter)}], [1, 2]), tmp_path / "run")
    imported = [row for row in rows_of(tmp_path / "run") if "path" in row.config]
    assert len(imported) == 1
    assert imported[0].metrics["accuracy"] == done.metrics["accuracy"]
    assert imported[0].metrics["eval_loss"] == pytest.approx(done.metrics["eval_loss"], rel=1e-6)
    assert (imported[0].adapter, imported[0].train_seconds, imported[0].solo_peak_memory_bytes) == (None, None, None)
    assert not any(imported[0].trial in event.slots for event in events if isinstance(event, StepResult))
    ours, theirs = (
        [line["prediction"] for line in lines(directory / "trials" / trial / "predictions.jsonl")]
        for directory, trial in ((tmp_path / "run", imported[0].trial), (bert_run, done.trial))
    )
    assert ours == theirs


@pytest.mark.parametrize("trial", [{"targets": []}, {"method": "head"}])
def test_a_head_alone_is_trained_and_kept_beside_the_trial(trial, make_study, carry_out, rows_of, tmp_path):
    carry_out(make_study("bert", [trial]), tmp_path / "run")
    (row,) = rows_of(tmp_path / "run")
    assert (row.status, row.adapter) == ("done", None)
    home = tmp_path / "run" / "trials" / row.trial
    assert sorted(path.name for path in home.iterdir()) == ["head.safetensors", "predictions.jsonl"]
    assert set(load_file(home / "head.safetensors")) == {"classifier.weight", "classifier.bias"}
    assert row.trainable_params == 2 * 16 + 2


def test_the_empty_coalition_of_a_causal_model_is_evaluated_untrained(make_study, carry_out, rows_of, losses_of, tmp_path):
    study = make_study("gpt2", [{"targets": []}, {"targets": "all-linear"}, {"max_steps": 0}], task="squad")
    carry_out(study, tmp_path / "run")
    empty, trained, untrained = rows_of(tmp_path / "run")
    assert (empty.status, empty.adapter, empty.trainable_params, empty.train_seconds) == ("done", None, 0, None)
    assert losses_of(tmp_path / "run")[empty.trial] == []
    assert sorted(path.name for path in (tmp_path / "run" / "trials" / empty.trial).iterdir()) == ["predictions.jsonl"]
    assert empty.metrics["eval_loss"] == pytest.approx(untrained.metrics["eval_loss"], rel=1e-6)
    assert trained.metrics["eval_loss"] < empty.metrics["eval_loss"] - 0.01


def test_no_steps_write_the_initial_adapters(make_study, carry_out, rows_of, tmp_path):
    study = make_study("bert", [{}, {"targets": "all-linear"}], [1, 2], train={"max_steps": 0})
    carry_out(study, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert statuses(rows) == ["done"] * 4
    for row in rows:
        tensors = load_file(tmp_path / "run" / row.adapter / "adapter_model.safetensors")
        assert all(value.abs().max() == 0 for key, value in tensors.items() if "lora_B" in key)
        assert all(value.abs().max() > 0 for key, value in tensors.items() if "lora_A" in key)
    assert rows[0].metrics == pytest.approx(rows[2].metrics)  # one seed, one head, no adapter yet
    assert rows[0].metrics != pytest.approx(rows[1].metrics)


def test_a_diverged_trial_leaves_its_neighbours_alone(make_study, carry_out, rows_of, losses_of, tmp_path):
    exact = {"base": {"dtype": "float64"}}
    carry_out(make_study("bert", [{}, {"learning_rate": 1e200}, {"r": 3}], **exact), tmp_path / "with")
    carry_out(make_study("bert", [{}, {"r": 3}], **exact), tmp_path / "without")
    first, diverged, third = rows_of(tmp_path / "with")
    assert statuses([first, diverged, third]) == ["done", "diverged", "done"]
    assert (diverged.metrics, diverged.adapter) == ({}, None)
    assert "not finite at step" in diverged.error
    assert not (tmp_path / "with" / "trials" / diverged.trial).exists()
    for row, other in zip((first, third), rows_of(tmp_path / "without"), strict=True):
        assert row.trial == other.trial
        assert row.metrics == pytest.approx(other.metrics, rel=1e-9)
    curves, others = losses_of(tmp_path / "with"), losses_of(tmp_path / "without")
    assert len(curves[diverged.trial]) < 10
    for trial, losses in others.items():
        assert curves[trial] == pytest.approx(losses, rel=1e-9)
    with Store.open(tmp_path / "with") as store:
        document = results_document([store])
    assert [trial["status"] for trial in document["trials"]] == ["done", "diverged", "done"]


def test_a_study_in_which_every_trial_diverges_ends(make_study, carry_out, rows_of, tmp_path):
    carry_out(make_study("gpt2", [{"learning_rate": 1e30}, {"learning_rate": 1e29}], task="squad"), tmp_path / "run")
    assert statuses(rows_of(tmp_path / "run")) == ["diverged", "diverged"]


def refuse_rank(monkeypatch, rank):
    """A cohort that holds an adapter of this rank cannot be built."""
    original = training.installed

    def refusing(model, slots, *more):
        if any(placement.r == rank for slot in slots for placement in slot.placements):
            raise RuntimeError("not enough\nmemory")
        return original(model, slots, *more)

    monkeypatch.setattr(training, "installed", refusing)


def test_a_trial_that_raises_has_failed_and_its_neighbours_go_on(make_study, carry_out, rows_of, tmp_path, monkeypatch):
    study = make_study("bert", [{}, {"r": 3}, {"r": 4}, {"r": 5}])
    refuse_rank(monkeypatch, 3)
    events = carry_out(study, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert statuses(rows) == ["done", "failed", "done", "done"]
    assert rows[1].error == "RuntimeError: not enough memory"
    assert (rows[1].metrics, rows[1].adapter) == ({}, None)
    retries = [event.notice for event in events if isinstance(event, Warned) and event.notice.kind == "retry"]
    halves = [("cohort c1", 2), ("cohort c1a", 1), ("cohort c1a", 1), ("cohort c1", 2)]
    assert [(notice.where, notice.count) for notice in retries] == halves
    with Store.open(tmp_path / "run") as store:
        assert [row["where"] for row in store.warnings() if row["kind"] == "retry"] == [where for where, _ in halves]

    monkeypatch.undo()
    carry_out(study, tmp_path / "run", resume=True)
    after = rows_of(tmp_path / "run")
    assert statuses(after) == ["done"] * 4
    assert after[1].error is None
    assert [without_times(after[index]) for index in (0, 2, 3)] == [without_times(rows[index]) for index in (0, 2, 3)]


def test_an_interrupted_study_goes_on_where_it_stopped(make_study, carry_out, rows_of, losses_of, tmp_path):
    study = make_study("bert", [{}, {"r": 3}, {"r": 4}])
    trials = expand(study)
    events = run_study(study, trials, tmp_path / "run", limits=Limits(most_slots=1))
    for event in events:
        if isinstance(event, StepResult) and trials[1].trial in event.slots and event.step == 3:
            break
    events.close()
    assert statuses(rows_of(tmp_path / "run")) == ["done", "interrupted", "planned"]
    kept = snapshot(tmp_path / "run" / "trials")

    resumed = carry_out(study, tmp_path / "run", most_slots=1, resume=True)
    assert (resumed[0].pending, resumed[0].num_trials) == (2, 3)
    after = snapshot(tmp_path / "run" / "trials")
    assert {path: after[path] for path in kept} == kept
    carry_out(study, tmp_path / "whole", most_slots=1)
    whole = rows_of(tmp_path / "whole")
    assert [without_times(row) for row in rows_of(tmp_path / "run")] == [without_times(row) for row in whole]
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")
    assert carry_out(study, tmp_path / "run", resume=True)[0].pending == 0


@pytest.mark.parametrize("place", ["train", "evaluate"])
def test_ctrl_c_leaves_no_trial_running(place, make_study, carry_out, rows_of, tmp_path, monkeypatch):
    original = getattr(training, place)

    def interrupted(*arguments):
        events = original(*arguments)
        yield next(events)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, place, interrupted)
    with pytest.raises(KeyboardInterrupt):
        carry_out(make_study("bert", [{}, {"r": 3}]), tmp_path / "run")
    assert statuses(rows_of(tmp_path / "run")) == ["interrupted", "interrupted"]


def test_an_interruption_between_two_trials_of_a_cohort_keeps_the_first(make_study, rows_of, tmp_path):
    study = make_study("bert", [{}, {"r": 3}])
    events = run_study(study, expand(study), tmp_path / "run")
    next(event for event in events if isinstance(event, TrialEnded))
    events.close()
    assert statuses(rows_of(tmp_path / "run")) == ["done", "interrupted"]


def test_another_study_is_not_resumed(bert_run, make_study, carry_out):
    before = snapshot(bert_run)
    with pytest.raises(StoreError, match="holds another study; these sections differ: adapter"):
        carry_out(make_study("bert", [{}, {"r": 4, "targets": "all-linear", "bias": "all"}], [1, 2], train={"epochs": 6},
                             adapter={"r": 7}), bert_run, resume=True)  # fmt: skip
    with pytest.raises(StoreError, match="holds a study already"):
        carry_out(make_study(), bert_run)
    assert snapshot(bert_run) == before


def test_shards_together_are_the_whole_study(bert_run, rows_of, carry_out, tmp_path):
    with Store.open(bert_run) as store:
        study = store.study
    trials = expand(study)
    for index in (1, 2):
        carry_out(study, tmp_path / str(index), trials=shard(trials, index, 2))
    with Store.open(tmp_path / "1") as one, Store.open(tmp_path / "2") as two:
        merged = results_document([one, two])["trials"]
    whole = {row.trial: row for row in rows_of(bert_run)}
    assert {trial["trial"] for trial in merged} == set(whole)
    for trial in merged:
        assert trial["status"] == "done"
        assert trial["metrics"] == pytest.approx(whole[trial["trial"]].metrics, rel=1e-3)


def test_results_do_not_depend_on_the_size_of_cohorts(make_study, carry_out, rows_of, losses_of, tmp_path):
    study = make_study("gpt2", [{}, {"r": 5, "targets": ["value", "up"]}], [1, 2], task="squad", base={"dtype": "float64"})
    alone = carry_out(study, tmp_path / "alone", most_slots=1)
    together = carry_out(study, tmp_path / "together")
    assert [len(event.trials) for event in alone if isinstance(event, CohortStarted)] == [1, 1, 1, 1]
    assert [len(event.trials) for event in together if isinstance(event, CohortStarted)] == [4]
    curves = losses_of(tmp_path / "together")
    for trial, losses in losses_of(tmp_path / "alone").items():
        assert curves[trial] == pytest.approx(losses, rel=1e-9)
    for row, other in zip(rows_of(tmp_path / "alone"), rows_of(tmp_path / "together"), strict=True):
        assert row.metrics == pytest.approx(other.metrics, rel=1e-9)


def cohorts_of(study, carry_out, directory):
    events = carry_out(study, directory)
    return [len(event.trials) for event in events if isinstance(event, CohortStarted)]


def test_trials_that_cannot_share_steps_have_cohorts_of_their_own(make_study, carry_out, rows_of, tmp_path):
    trials = [{}, {"r": 3}, {"max_steps": 3}, {"batch_size": 5}, {"dtype": "float64"}, {"learning_rate": 1e-3}]
    assert cohorts_of(make_study("bert", trials), carry_out, tmp_path / "run") == [3, 1, 1, 1]
    rows = rows_of(tmp_path / "run")
    assert statuses(rows) == ["done"] * 6
    assert len({row.base_checksum for row in rows}) == 2


def test_another_base_gets_its_own_tokens(make_study, carry_out, rows_of, model_directory, tmp_path):
    bert, gpt2 = str(model_directory("bert")), str(model_directory("gpt2"))
    carry_out(make_study("bert", [{"model": bert}, {"model": gpt2}]), tmp_path / "both")
    carry_out(make_study("gpt2"), tmp_path / "alone")
    (alone,) = rows_of(tmp_path / "alone")
    assert rows_of(tmp_path / "both")[1].metrics == alone.metrics


def test_a_base_has_left_the_memory_before_the_next_one_comes(make_study, carry_out, rows_of, tmp_path, monkeypatch):
    earlier, alive = [], []

    def loading(*arguments):
        alive.append([model() is not None for model in earlier])
        base = load_base(*arguments)
        earlier.append(weakref.ref(base.model))
        return base

    monkeypatch.setattr(run, "load_base", loading)
    carry_out(make_study(trials=[{}, {"dtype": "float64"}, {"dtype": "bfloat16"}]), tmp_path / "run")
    assert statuses(rows_of(tmp_path / "run")) == ["done"] * 3
    assert alive == [[], [False], [False, False]]


def test_each_base_gives_a_text_task_the_form_that_it_has(make_study, carry_out, rows_of, model_directory, tmp_path):
    models = [str(model_directory(family)) for family in ("t5", "gpt2", "gated-t5")]
    study = make_study("t5", [{"model": model} for model in models], task="squad", train={"epochs": 1})
    carry_out(study, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert statuses(rows) == ["done"] * 3
    adapters = [tmp_path / "run" / row.adapter / "adapter_config.json" for row in rows]
    types = [json.loads(path.read_text())["task_type"] for path in adapters]
    assert types == ["SEQ_2_SEQ_LM", "CAUSAL_LM", "SEQ_2_SEQ_LM"]


def test_dropout_that_cannot_be_drawn_per_slot_is_found_before_the_directory_is_made(make_study, carry_out, tmp_path):
    with pytest.raises(ModelError, match="base_dropout"):
        carry_out(make_study("bart", task="squad", data={"max_length": 64}, train={"base_dropout": True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "write_adapter"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "write_adapter"),
        (StoreError("the study's database fails (database or disk is full)"), "write_atomically"),
    ],
)
def test_a_full_disk_ends_the_study_and_no_trial_is_done(error, place, make_study, carry_out, rows_of, tmp_path, monkeypatch):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(export, place, full)
    with pytest.raises(StoreError, match=r"No space left|disk is full"):
        carry_out(make_study("bert", [{}, {"r": 3}]), tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert statuses(rows) == ["interrupted", "interrupted"]
    assert {row.adapter for row in rows} == {None}
    assert not list((tmp_path / "run").rglob("*.part"))
    monkeypatch.undo()
    carry_out(make_study("bert", [{}, {"r": 3}]), tmp_path / "run", resume=True)
    assert statuses(rows_of(tmp_path / "run")) == ["done", "done"]


def test_an_adapter_whose_card_cannot_be_made_is_kept_and_that_is_told(make_study, carry_out, rows_of, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("license\nis none of the Hub's")

    monkeypatch.setattr(export, "trial_card", fail)
    events = carry_out(make_study("bert"), tmp_path / "run")
    (row,) = rows_of(tmp_path / "run")
    assert row.status == "done"
    assert sorted(path.name for path in (tmp_path / "run" / row.adapter).iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "lorascope.json",
    ]  # fmt: skip
    told = [event.notice.message for event in events if isinstance(event, Warned) and event.notice.kind == "model_card"]
    assert told == ["the adapter has no model card (license is none of the Hub's); `lorascope export` writes one"]
    with Store.open(tmp_path / "run") as store:
        assert [warning["trial"] for warning in store.warnings() if warning["kind"] == "model_card"] == [row.trial]


def test_a_head_that_takes_its_place_is_on_the_disk_with_its_name(make_study, carry_out, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(export, "fsync", synced.append)
    carry_out(make_study("bert", [{"method": "head"}]), tmp_path / "run")
    (head,) = (tmp_path / "run").rglob("head.safetensors")
    assert synced == [head.parent]


def test_a_full_disk_that_cannot_even_take_the_status_is_still_told(make_study, carry_out, tmp_path, monkeypatch):
    full = StoreError("the study's database fails (database or disk is full)")

    def fail(*_, **__):
        raise full

    monkeypatch.setattr(Store, "add_steps", fail)
    monkeypatch.setattr(training, "_set_status", fail)
    with pytest.raises(StoreError) as caught:
        carry_out(make_study(), tmp_path / "run")
    assert caught.value is full


def test_what_cannot_work_is_found_before_the_directory_is_made(make_study, carry_out, model_directory, tmp_path):
    impossible = [
        (make_study("bert", [{"targets": ["gate"]}]), ModelError, "no target 'gate'"),
        (make_study("bert", task="file", base={"model": str(tmp_path)}), ModelError, "no config.json"),
        (make_study("bert", [{}, {"r": 10**10}]), ModelError, r"r 10000000000.*needs .* GiB .*lower r"),
        (make_study("gpt2", [{"method": "head"}], task="squad"), ModelError, "no head to train"),
        (make_study("gpt2", [{}, {"path": str(tmp_path)}], task="squad"), AdapterError, "no PEFT adapter here"),
    ]
    for study, kind, message in impossible:
        with pytest.raises(kind, match=message):
            carry_out(study, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("family", "task", "most"), [("bert", "file", 130), ("roberta", "file", 128), ("gpt2", "squad", 124)])
def test_rows_longer_than_the_model_has_positions_are_refused(family, task, most, make_study, carry_out, tmp_path):
    study = make_study(family, task=task).model_dump()
    study["task"]["max_length"] = most + 1
    with pytest.raises(LorascopeError, match=f"set it to {most} or less"):
        carry_out(Study.model_validate(study), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_warnings_about_data_are_stored_once(make_study, carry_out, tmp_path):
    study = make_study("bert", task="file", train={"max_steps": 1}, data={"max_length": 8})
    shown = [event.notice.kind for event in carry_out(study, tmp_path / "run") if isinstance(event, Warned)]
    assert "truncated" in shown
    carry_out(study, tmp_path / "run", resume=True)
    with Store.open(tmp_path / "run") as store:
        stored = [(row["kind"], row["message"]) for row in store.warnings()]
    assert [kind for kind, _ in stored] == shown
    assert len(set(stored)) == len(stored)


def test_events_come_in_the_order_of_the_work(bert_run, make_study, carry_out, tmp_path):
    events = carry_out(make_study("bert", [{}]), tmp_path / "run")
    order = [type(event).__name__ for event in events if not isinstance(event, Warned)]
    assert list(dict.fromkeys(order)) == [
        "StudyStarted", "CohortStarted", "ProbeDone", "StepResult", "EvaluationStep", "TrialEnded",
    ]  # fmt: skip
    assert isinstance(events[0], StudyStarted)
    assert [event.done for event in events if isinstance(event, EvaluationStep)][-1] == 8


def test_the_base_checksum_is_that_of_the_files(bert_run, rows_of, model_directory):
    """Equal for two runs on one base, and no constant."""
    checksum = rows_of(bert_run)[0].base_checksum
    assert checksum != hashlib.sha256().hexdigest()
    base = load_base(BaseModelConfig(model=str(model_directory("bert"))), "SEQ_CLS", ("a", "b"))
    assert base.checksum == checksum
    with torch.no_grad():
        next(base.model.parameters()).add_(1e-3)
    assert weights_checksum(base.model, base.heads) != checksum


def test_a_study_does_not_go_on_with_other_data_or_another_base(
    make_study, carry_out, data_directory, model_directory, tmp_path
):
    shutil.copytree(data_directory, tmp_path / "data")
    shutil.copytree(model_directory("bert"), tmp_path / "model")
    study = make_study("bert", [{}, {"r": 3}], data={"data": str(tmp_path / "data")}, base={"model": str(tmp_path / "model")})
    events = run_study(study, expand(study), tmp_path / "run", limits=Limits(most_slots=1))
    next(event for event in events if isinstance(event, TrialEnded))
    events.close()

    weights = load_file(tmp_path / "model" / "model.safetensors")
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "kept")
    name = next(name for name in weights if "word_embeddings" in name)
    save_file({**weights, name: weights[name] + 0.01}, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(StoreError, match="base model's weights changed since trial"):
        carry_out(study, tmp_path / "run", resume=True)
    shutil.copy(tmp_path / "kept", tmp_path / "model" / "model.safetensors")

    train = tmp_path / "data" / "train.jsonl"
    text = train.read_text(encoding="utf-8")
    train.write_text(text.replace("the film", "the movie", 1), encoding="utf-8")
    with pytest.raises(StoreError, match="data changed since trial"):
        carry_out(study, tmp_path / "run", resume=True)
    train.write_text(text, encoding="utf-8")
    assert carry_out(study, tmp_path / "run", resume=True)[0].pending == 1


def test_cohorts_of_a_resumed_study_get_numbers_of_their_own(make_study, carry_out, rows_of, tmp_path):
    study = make_study("bert", [{}, {"r": 3}])
    events = run_study(study, expand(study), tmp_path / "run", limits=Limits(most_slots=1))
    next(event for event in events if isinstance(event, TrialEnded))
    events.close()
    carry_out(study, tmp_path / "run", most_slots=1, resume=True)
    assert [row.cohort for row in rows_of(tmp_path / "run")] == ["c1", "c2"]


def test_answers_cut_before_their_end_are_counted_with_the_trial(squad_run):
    with Store.open(squad_run) as store:
        cut = {row["trial"]: row["count"] for row in store.warnings() if row["kind"] == "unfinished"}
        assert cut
        assert set(cut) <= {row.trial for row in store.trials()}
        document = results_document([store])
    assert {row["kind"] for row in document["warnings"]} >= {"unfinished"}


def test_base_dropout_says_what_it_does_not_reach(make_study, carry_out, tmp_path):
    events = carry_out(make_study("bert", train={"base_dropout": True, "max_steps": 1}), tmp_path / "run")
    assert any(isinstance(event, Warned) and "attention probabilities" in event.notice.message for event in events)


def test_a_training_of_one_warm_up_step_is_named(make_study, carry_out, tmp_path):
    study = make_study("bert", [{}, {"r": 4}], [1], train={"max_steps": 1, "warmup_ratio": 0.1})
    notices = [event.notice for event in carry_out(study, tmp_path / "run") if isinstance(event, Warned)]
    assert [(one.count, one.where) for one in notices if one.kind == "warmup"] == [(2, "train.warmup_ratio")]
    quiet = make_study("bert", [{}], [1], train={"max_steps": 2, "warmup_ratio": 0.1})
    assert not [e for e in carry_out(quiet, tmp_path / "other") if isinstance(e, Warned) and e.notice.kind == "warmup"]


def test_an_evaluation_in_smaller_batches_is_named(make_study, carry_out, tmp_path, monkeypatch):
    own = evaluation_run.class_logits
    calls = []

    def scarce(base, batch):
        calls.append(batch.input_ids_BT.numel())
        if len(calls) == 1:
            raise MemoryError
        return own(base, batch)

    monkeypatch.setattr(evaluation_run, "class_logits", scarce)
    study = make_study("bert", [{}], [1])
    events = carry_out(study, tmp_path / "run")
    half = study.evaluate.batch_tokens // 2
    notices = [event.notice for event in events if isinstance(event, Warned)]
    assert [one.where for one in notices if one.kind == "memory"] == ["evaluate.batch_tokens"]
    assert any(f"batches of {half} tokens" in one.message for one in notices)


def test_full_fine_tuning_is_a_trial_of_the_same_study(make_study, carry_out, rows_of, losses_of, tmp_path):
    full = {"method": "full", "learning_rate": 1e-3}
    carry_out(make_study("bert", [{}, full, {"method": "head"}], [1, 2]), tmp_path / "run")
    rows = {(row.config["method"], row.seed): row for row in rows_of(tmp_path / "run")}
    assert {row.status for row in rows.values()} == {"done"}
    assert len({row.base_checksum for row in rows.values()}) == len({row.data_checksum for row in rows.values()}) == 1
    for seed in (1, 2):
        row = rows["full", seed]
        assert (row.adapter, row.trainable_params) == (None, row.total_params)
        assert row.total_params == row.peft_total_params > rows["lora", seed].trainable_params
        assert {"accuracy", "eval_loss"} <= set(row.metrics)
        assert min(row.solo_peak_memory_bytes, row.solo_train_seconds_per_epoch, row.train_seconds) > 0
        assert [path.name for path in (tmp_path / "run" / "trials" / row.trial).iterdir()] == ["predictions.jsonl"]
        # The warm-up's first rate is 0, and head and batches are those of its seed.
        losses = losses_of(tmp_path / "run")
        assert losses[row.trial][:2] == pytest.approx(losses[rows["head", seed].trial][:2], rel=1e-5)
        assert losses[row.trial][2:] != pytest.approx(losses[rows["head", seed].trial][2:], rel=1e-4)
    assert len({rows["full", seed].cohort for seed in (1, 2)} - {rows["lora", 1].cohort}) == 2
    with Store.open(tmp_path / "run") as store:
        (notice,) = [row for row in store.warnings() if row["kind"] == "full"]
        assert notice["message"] == "2 trials train the whole base one at a time; their scores are kept, their weights are not"
        assert all(plan["forecast"]["state_bytes"] > 0 for plan in store.cohorts().values())
    carry_out(make_study("bert", [{}, {"method": "head"}], [1, 2]), tmp_path / "without")
    without = losses_of(tmp_path / "without")
    assert {name: losses[name] for name in without} == without


@pytest.mark.parametrize(("family", "dtype"), [("gpt2", "float32"), ("t5", "float32"), ("qwen2", "bfloat16")])
def test_full_fine_tuning_answers_questions(family, dtype, make_study, carry_out, rows_of, tmp_path):
    base = {"dtype": dtype}
    study = make_study(family, [{"method": "full"}], task="squad", train={"max_steps": 3}, base=base, adapter={"targets": []})
    events = carry_out(study, tmp_path / "run")
    (row,) = rows_of(tmp_path / "run")
    assert (row.status, row.adapter, row.error) == ("done", None, None)
    assert {"exact_match", "f1", "perplexity"} <= set(row.metrics)
    (warned,) = [event for event in events if isinstance(event, Warned) and event.notice.kind == "full"]
    assert ("in float32, though the base is bfloat16," in warned.notice.message) == (dtype == "bfloat16")


def test_a_full_fine_tuning_that_diverges_leaves_the_base_as_it_was(make_study, carry_out, rows_of, tmp_path):
    study = make_study("bert", [{"method": "full", "learning_rate": 1e30}, {"method": "full", "learning_rate": 1e-3}])
    carry_out(study, tmp_path / "run")
    assert [row.status for row in rows_of(tmp_path / "run")] == ["diverged", "done"]


def test_an_interrupted_full_fine_tuning_ends_with_the_same_numbers(make_study, carry_out, rows_of, losses_of, tmp_path):
    study = make_study("bert", [{"method": "full", "learning_rate": 1e-3}])
    carry_out(study, tmp_path / "whole")
    for event in (events := run_study(study, expand(study), tmp_path / "run", limits=Limits(checkpoint_seconds=0))):
        if isinstance(event, StepResult) and event.step == 4:
            events.close()
    assert [row.status for row in rows_of(tmp_path / "run")] == ["interrupted"]
    again = carry_out(study, tmp_path / "run", resume=True)
    assert next(event.step for event in again if isinstance(event, StepResult)) == 5
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")
    assert rows_of(tmp_path / "run")[0].metrics == rows_of(tmp_path / "whole")[0].metrics


def test_trials_have_the_metrics_that_were_foreseen(bert_run, squad_run):
    for directory in (bert_run, squad_run):
        with Store.open(directory) as store:
            raw = read_task(store.study.task, store.study.evaluate.split)
            foreseen = foreseen_metrics(raw, store.study.evaluate)
            for row in store.trials():
                assert set(foreseen) == row.metrics.keys() & HIGHER_IS_BETTER.keys()
