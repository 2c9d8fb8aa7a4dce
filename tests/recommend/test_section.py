"""The task's section: the nearest study's, as published, or as named; cut to what the model has positions for."""

import json

import pytest

from lorascope.config import Study
from lorascope.errors import UsageError
from lorascope.recommend.closeness import ModelFacts, TaskFacts
from lorascope.recommend.section import evaluate_section, kind_of, task_section, with_lengths

MODEL = ModelFacts("/models/bert", "bert", (64, 2), 1_000_000)


def test_without_studies_data_are_as_named_or_as_published():
    assert task_section("sst2", None, MODEL, [])[0] == {"name": "sst2", "data": "nyu-mll/glue"}
    assert task_section("file", "my/data", MODEL, [])[0] == {"name": "file", "data": "my/data"}
    with pytest.raises(UsageError, match="where are the data of dialogue_nli"):
        task_section("dialogue_nli", None, MODEL, [])


def test_the_nearest_study_of_the_task_gives_its_section(evidence):
    near = evidence({"a": ({}, (0.5,))}, directory="runs/near")
    far = evidence({"a": ({}, (0.5,))}, directory="runs/far", model=ModelFacts("gpt2", "gpt2"))
    near.task_section["data"] = far.task_section["data"] = "the/data"
    near.task_section["max_train"] = 9
    section, why, origin = task_section("sst2", None, MODEL, [far, near])
    assert (section, origin) == ({"name": "sst2", "data": "the/data", "max_train": 9}, "runs/near")
    assert why["max_train"].endswith("leave it out to train on all there is")
    other = evidence({"a": ({}, (0.5,))}, task=TaskFacts("sst2", "classification", ("elsewhere",)))
    assert task_section("sst2", "my/data", MODEL, [other])[2] is None, "other data are other data"


def test_how_a_study_was_scored_is_taken_as_far_as_it_said_so():
    study = Study.model_validate(
        {"name": "a", "base": {"model": "m"}, "task": {"name": "sst2", "data": "d"}, "evaluate": {"split": "test"}}
    )
    assert evaluate_section({"runs/a": study}, "runs/a") == {"split": "test"}
    assert evaluate_section({}, None) == {}


def test_ones_own_files_tell_their_kind_and_hold_an_evaluation_out(tmp_path):
    rows = [{"text": f"the film {number}", "label": ("no", "yes")[number % 2]} for number in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"name": "file", "data": str(tmp_path / "train.jsonl")}
    assert kind_of("file", section) == ("classification", {**section, "eval_fraction": 0.1})
    assert kind_of("squad", {"name": "squad", "data": "not/here"})[0] == "question answering"
    with pytest.raises(UsageError, match="not on this machine"):
        kind_of("file", {"name": "file", "data": "not/here"})


def test_examples_are_cut_to_the_models_positions_less_an_answer(model_directory):
    gpt2, bert = str(model_directory("gpt2")), str(model_directory("bert"))
    section, why = with_lengths(gpt2, "generation", {})
    assert section["max_length"] == 128 - 32
    assert why["max_length"] == "the model has 128 positions, 32 of them for the answer"
    assert with_lengths(bert, "classification", {})[0]["max_length"] == 130
    assert with_lengths(bert, "classification", {"max_length": 64}) == ({"max_length": 64}, {})
