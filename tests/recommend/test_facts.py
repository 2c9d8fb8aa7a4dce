"""Facts of tasks and models are read without loading or downloading anything."""

import json

from lorascope.config import TaskConfig
from lorascope.recommend.facts import absolute, model_facts, task_facts


def test_a_path_that_exists_is_absolute_and_a_hub_id_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    assert absolute("base") == str(tmp_path / "base")
    assert absolute("org/base") == "org/base"


def test_a_directory_of_ones_own_files_is_the_files_in_it(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("{}\n")
    files = tuple(sorted(str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")))
    assert task_facts(TaskConfig(name="file", data=str(tmp_path)), "generation").data == files
    assert task_facts(TaskConfig(name="sst2", data=str(tmp_path)), "classification").data == (str(tmp_path),)


def test_a_model_is_its_family_and_sizes_or_its_name_alone(tmp_path):
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = model_facts(str(tmp_path))
    assert (facts.family, facts.sizes) == ("gpt2", (8, 2, None, 2, None, 9))
    (tmp_path / "config.json").write_text("{")
    assert model_facts(str(tmp_path), 7).family is None
    assert model_facts("no/such", 7).num_params == 7
