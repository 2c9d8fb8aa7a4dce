"""ΔW from an adapter's files alone: PEFT's own, whatever the scaling; what does not hold together is told."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lorascope.certify.update import read_updates
from lorascope.errors import AdapterError


def make_adapter(model, directory, **lora):
    """An adapter of PEFT's with random B, and PEFT's own ΔW by module."""
    values = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **lora}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapted = get_peft_model(model, LoraConfig(**values))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    adapted.save_pretrained(directory)
    return {
        name: module.get_delta_weight("default")
        for name, module in adapted.base_model.model.named_modules()
        if hasattr(module, "get_delta_weight") and "default" in module.scaling
    }


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 11}},
        {"rank_pattern": {"v_proj": 2}, "use_rslora": True},
    ],
    ids=["plain", "rslora", "patterns", "pattern and rslora"],
)
def test_updates_are_those_of_peft(tiny_model, tmp_path, lora):
    expected = make_adapter(tiny_model("llama", "CAUSAL_LM", torch.float32), tmp_path, **lora)
    adapter = read_updates(tmp_path)
    assert adapter.problems == ()
    assert adapter.updates.keys() == expected.keys()
    for module, delta in expected.items():
        update = adapter.updates[module]
        rows = len(delta)
        whole = update.rows(0, rows, transposed=False, dtype=torch.float64)
        torch.testing.assert_close(whole, delta.double(), rtol=1e-5, atol=1e-6)
        parts = [update.rows(*part, transposed=True, dtype=torch.float64) for part in ((0, 5), (5, whole.shape[1]))]
        torch.testing.assert_close(torch.cat(parts), whole.T, rtol=1e-13, atol=1e-15)  # BLAS adds in an order of its own
        assert (update.rows(0, rows, transposed=False, dtype=torch.float64, magnitude=True) >= whole.abs() - 1e-12).all()


def test_a_rank_that_the_configuration_does_not_have_is_told(tiny_model, tmp_path):
    make_adapter(tiny_model("llama", "CAUSAL_LM", torch.float32), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 4}))
    assert any("has rank 3 in the weights and 4 in" in problem for problem in read_updates(tmp_path).problems)


def test_nan_and_lone_factors_are_told(tiny_model, tmp_path):
    make_adapter(tiny_model("llama", "CAUSAL_LM", torch.float32), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    first, second, *_ = sorted(tensors)
    tensors[first][0, 0] = float("nan")
    tensors.pop(second)
    save_file(tensors, path)
    problems = " ".join(read_updates(tmp_path).problems)
    assert "NaN" in problems
    assert read_updates(tmp_path).nonfinite == (first,)
    assert "one factor alone" in problems


def test_a_frozen_weight_that_was_saved_beside_its_update_is_a_copy_and_replaces_nothing(tiny_model, tmp_path):
    make_adapter(tiny_model("llama", "CAUSAL_LM", torch.float32), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    module = "model.layers.0.self_attn.q_proj"
    weight, bias = torch.ones(16, 16), torch.ones(16)
    more = {f"base_model.model.{module}.base_layer.weight": weight, f"base_model.model.{module}.base_layer.bias": bias}
    save_file({**load_file(path), **more}, path)
    adapter = read_updates(tmp_path)
    assert torch.equal(adapter.copies[f"{module}.weight"], weight)
    assert torch.equal(adapter.replaced[f"{module}.bias"], bias)
    assert f"{module}.weight" not in adapter.replaced
    assert adapter.problems == ()


def test_a_damaged_adapter_is_refused(tiny_model, tmp_path):
    make_adapter(tiny_model("llama", "CAUSAL_LM", torch.float32), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(AdapterError, match="the checkpoint cannot be read"):
        read_updates(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(AdapterError, match="cannot be read"):
        read_updates(tmp_path)
