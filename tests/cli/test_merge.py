"""``lorascope merge``: a directory that loads, or one line that says why there is none."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


@pytest.fixture
def adapter(peft_adapter):
    return peft_adapter("llama", "CAUSAL_LM")[0]


def test_the_merged_directory_loads_and_the_document_says_what_it_is(cli, adapter, model_directory, tmp_path):
    ended = cli("merge", adapter, "--out", tmp_path / "merged", "--max-shard-size", "20KB", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["base"]["name"] == str(model_directory("llama"))
    assert document["class"] == "LlamaForCausalLM"
    assert "model.safetensors.index.json" in document["files"]
    assert sorted(document["files"]) == sorted(path.name for path in (tmp_path / "merged").iterdir())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float32


def test_a_screen_shows_base_class_size_and_updates(cli, adapter, model_directory, tmp_path):
    ended = cli("merge", adapter, "--out", tmp_path / "merged", "--dtype", "bfloat16")
    assert ended.code == 0, ended.err
    for text in (str(model_directory("llama")), "LlamaForCausalLM", "4 modules", "bfloat16"):
        assert text in ended.out


def test_a_directory_that_holds_something_is_left_as_it_is(cli, adapter, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    ended = cli("merge", adapter, "--out", tmp_path / "merged")
    assert ended.code == 2
    assert "something is there already; give a new directory" in ended.err
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "bfloat61"], "--dtype: there is no dtype 'bfloat61'; did you mean 'bfloat16'?"),
        (["--max-shard-size", "much"], "--max-shard-size: 'much' is no amount of memory"),
        (["--base", "/nowhere"], "/nowhere: no such model directory"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing(options, message, cli, adapter, tmp_path):
    before = set(tmp_path.iterdir())
    ended = cli("merge", adapter, "--out", tmp_path / "merged", *options)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert set(tmp_path.iterdir()) == before


def test_an_overflow_ends_with_three_and_no_directory_remains(cli, adapter, tmp_path):
    path = adapter / "adapter_model.safetensors"
    save_file({name: value * (1e6 if "lora_B" in name else 1) for name, value in load_file(path).items()}, path)
    before = set(tmp_path.iterdir())
    ended = cli("merge", adapter, "--out", tmp_path / "merged", "--dtype", "float16")
    assert ended.code == 3
    assert "overflow float16; merge with --dtype bfloat16 or float32" in ended.err
    assert set(tmp_path.iterdir()) == before


def test_a_missing_shard_of_the_base_is_named_and_no_directory_remains(cli, adapter, model_directory, tmp_path):
    base = shutil.copytree(model_directory("llama"), tmp_path / "base")
    weight_map = dict.fromkeys(load_file(base / "model.safetensors"), "model-00001-of-00001.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (base / "model.safetensors").unlink()
    ended = cli("merge", adapter, "--out", tmp_path / "merged", "--base", base)
    assert ended.code == 2
    assert "the shard 'model-00001-of-00001.safetensors' is missing; download or copy the whole checkpoint" in ended.err
    assert not (tmp_path / "merged").exists()
