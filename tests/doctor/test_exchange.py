"""Each check of files, merging and PEFT passes here, and catches what it is there for."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorascope import train as train_module
from lorascope.doctor import exchange
from lorascope.lora import peft_io
from lorascope.lora.stack import Placement


@pytest.mark.parametrize("name", ["save and load", "merge", "PEFT reads it", "PEFT trains so"])
def test_the_check_passes_here(name, check):
    result = check(name)
    assert result.status == "passed", result.showed
    assert result.showed
    assert result.figures


def reading_after(change):
    """``read_adapter`` of a file in which ``change(tensors)`` was made."""
    original = peft_io.read_adapter

    def read(directory, *arguments):
        path = directory / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        return original(directory, *arguments)

    return read


def rounded(tensors):
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    tensors[name] = tensors[name].bfloat16().float()


def test_a_file_with_other_numbers_is_caught(check, monkeypatch):
    monkeypatch.setattr(exchange, "read_adapter", reading_after(rounded))
    result = check("save and load")
    assert result.status == "failed"
    assert "1 tensors are not what was written" in result.showed
    assert "logits differ" in result.showed
    assert "fused projection do not come back" in result.showed


def test_a_lost_bias_is_caught(check, monkeypatch):
    def without_a_bias(tensors):
        for name in [name for name in tensors if name.endswith("query.base_layer.bias")][:1]:
            del tensors[name]

    monkeypatch.setattr(exchange, "read_adapter", reading_after(without_a_bias))
    assert check("save and load").status == "failed"


def test_a_scaling_read_wrongly_is_caught(check, monkeypatch):
    original = peft_io.read_adapter

    def read(*arguments):
        saved = original(*arguments)
        placements = tuple(Placement(one.target, one.r, 1.01 * one.scaling) for one in saved.slot.placements)
        return replace(saved, slot=replace(saved.slot, placements=placements))

    monkeypatch.setattr(exchange, "read_adapter", read)
    assert check("save and load").showed.startswith("logits differ")


def test_a_file_that_is_not_written_is_caught(check, monkeypatch):
    monkeypatch.setattr(exchange, "write_adapter", lambda *_, **__: None)
    for name in ("save and load", "merge", "PEFT reads it"):
        result = check(name)
        assert result.status == "failed"
        assert "\n" not in result.showed


def test_a_merge_that_does_nothing_is_caught(check, monkeypatch):
    monkeypatch.setattr(exchange, "merged_copy", lambda model, saved: copy.deepcopy(model))
    result = check("merge")
    assert result.status == "failed"
    assert "update in memory 1.0e+00" in result.showed
    assert "logits in memory" in result.showed
    assert "on disk" not in result.showed


def test_a_merge_of_all_modules_but_one_is_caught(check, monkeypatch):
    original = exchange.merged_copy

    def merged(model, saved):
        made = original(model, saved)
        last = saved.slot.placements[-1].target.module
        made.get_submodule(last).weight.data.copy_(model.get_submodule(last).weight)
        return made

    monkeypatch.setattr(exchange, "merged_copy", merged)
    assert "update in memory 1.0e+00" in check("merge").showed


def test_merged_files_that_hold_other_numbers_are_caught(check, monkeypatch):
    original = exchange.write_merged

    def write(saved, adapter, base, directory):
        original(saved, adapter, base, directory)
        path = directory / "model.safetensors"
        tensors = load_file(path)
        name = next(name for name in tensors if name.endswith("h.1.mlp.c_proj.weight"))
        save_file({**tensors, name: tensors[name].bfloat16().float()}, path, metadata={"format": "pt"})

    monkeypatch.setattr(exchange, "write_merged", write)
    result = check("merge")
    assert "update on disk" in result.showed
    assert "logits on disk" in result.showed
    assert "in memory" not in result.showed


def test_a_merge_into_the_base_itself_is_caught(check, monkeypatch):
    original = exchange.merged_copy

    def merged(model, saved):
        made = original(model, saved)
        model.load_state_dict(made.state_dict())
        return made

    monkeypatch.setattr(exchange, "merged_copy", merged)
    assert "base tensors changed" in check("merge").showed


def test_an_alpha_written_wrongly_is_caught_by_peft(check, monkeypatch):
    original = peft_io._ranks_and_alphas

    def other(modules, use_rslora):
        ranks, alphas = original(modules, use_rslora)
        return ranks, {name: 1.01 * value for name, value in alphas.items()}

    monkeypatch.setattr(peft_io, "_ranks_and_alphas", other)
    result = check("PEFT reads it")
    assert result.status == "failed"
    assert "gpt2" in result.showed
    assert "bert" in result.showed


def test_a_head_that_is_not_written_is_caught(check, monkeypatch):
    original = exchange.write_adapter

    def without_heads(directory, weights, *others, **named):
        original(directory, replace(weights, heads={}), *others, **named)

    monkeypatch.setattr(exchange, "write_adapter", without_heads)
    assert check("PEFT reads it").status == "failed"
    assert check("save and load").status == "failed"


@pytest.mark.parametrize(
    ("name", "value"),
    [("ADAM_EPSILON", 1e-7), ("ADAM_BETAS", (0.9, 0.9991)), ("learning_rate", lambda settings, *_: settings.learning_rate)],
)
def test_another_optimiser_than_pefts_is_caught(name, value, check, monkeypatch):
    monkeypatch.setattr(train_module, name, value)
    result = check("PEFT trains so")
    assert result.status == "failed"
    assert "weights" in result.showed


def test_another_loss_than_pefts_is_caught(check, monkeypatch):
    monkeypatch.setattr(train_module, "_num_supervised", lambda examples, rows: len(rows))
    result = check("PEFT trains so")
    assert "loss" in result.showed
    assert "gradient norm" in result.showed


def test_an_adapter_that_changes_nothing_shows_nothing(check, monkeypatch):
    original = exchange.models.installed
    monkeypatch.setattr(exchange.models, "installed", lambda base, slots, spread=0.0: original(base, slots, 0.0))
    for name in ("save and load", "merge", "PEFT reads it"):
        assert "the adapter changes nothing" in check(name).showed


def test_a_base_that_an_adapter_changes_is_caught(check, monkeypatch):
    original = exchange._logits

    def logits(base):
        next(base.model.parameters()).data.view(-1)[:3] += torch.tensor([1e-3, 0.0, 0.0])
        return original(base)

    monkeypatch.setattr(exchange, "_logits", logits)
    assert "the base changed" in check("save and load").showed
