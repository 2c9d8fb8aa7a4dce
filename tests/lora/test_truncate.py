"""An adapter cut to lower ranks: the best approximation there is, with each module's scaling right, in PEFT's form."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lorascope.errors import AdapterError
from lorascope.lora.peft_io import read_adapter, write_adapter
from lorascope.lora.stack import AdapterWeights, Placement, Slot, Stack
from lorascope.lora.targets import Target, resolve
from lorascope.lora.truncate import directions_of, factors_of, num_computed, truncated, write_truncated


def dense(lora_A_RD, lora_B_OR, scaling):
    return scaling * (lora_B_OR.double() @ lora_A_RD.double())


def update_of(saved, module):
    placement = next(one for one in saved.slot.placements if one.target.module == module)
    return dense(saved.weights.lora_A[module], saved.weights.lora_B[module], placement.scaling)


def adapter_of(model, directory, *, r=16, true_rank=3, scaling=2.0, heads=(), base_model="", **slot_values):
    """An adapter of ``r`` whose updates have ``true_rank`` directions, all rows and columns mixed."""
    generator = torch.Generator().manual_seed(3)
    placements = tuple(Placement(target, r, scaling) for target in resolve(model, ["query", "down"], heads))
    slot = Slot("a", 1, placements, **slot_values)
    stack = Stack(model, [slot], heads)
    weights = stack.read(0)
    stack.detach()
    for key in weights.lora_A:
        dtype = weights.lora_A[key].dtype
        inner = torch.randn(r, true_rank, generator=generator, dtype=torch.float64)
        outer = torch.randn(true_rank, r, generator=generator, dtype=torch.float64)
        num_inputs, num_outputs = weights.lora_A[key].shape[1], weights.lora_B[key].shape[0]
        half_A = torch.randn(true_rank, num_inputs, generator=generator, dtype=torch.float64)
        weights.lora_A[key] = (inner @ half_A).to(dtype) / 4
        weights.lora_B[key] = (torch.randn(num_outputs, true_rank, generator=generator).double() @ outer).to(dtype) / 40
    for group in (weights.biases, weights.heads):
        for value in group.values():
            value += 0.2 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    task_type = "SEQ_CLS" if heads else "CAUSAL_LM"
    write_adapter(directory, weights, slot, model, heads=heads, base_model=base_model, task_type=task_type)
    return directory


@settings(max_examples=40, deadline=None)
@given(
    r=st.integers(1, 12),
    size_in=st.integers(1, 20),
    size_out=st.integers(1, 20),
    seed=st.integers(0, 2**31),
    scaling=st.sampled_from([0.25, 2.0, -1.5]),
)
def test_the_first_directions_are_the_best_approximation_of_their_rank(r, size_in, size_out, seed, scaling):
    generator = torch.Generator().manual_seed(seed)
    lora_A_RD = torch.randn(r, size_in, generator=generator, dtype=torch.float64)
    lora_B_OR = torch.randn(size_out, r, generator=generator, dtype=torch.float64)
    weights = AdapterWeights((Placement(Target("m"), r, scaling),), {"m": lora_A_RD}, {"m": lora_B_OR})
    update = directions_of(weights)["m"]
    whole = dense(lora_A_RD, lora_B_OR, scaling)
    values = torch.linalg.svdvals(whole)
    for rank in range(1, len(update.values_S) + 1):
        cut_A_RD, cut_B_OR = factors_of(update, scaling, rank)
        assert cut_A_RD.shape == (rank, size_in)
        assert cut_B_OR.shape == (size_out, rank)
        lost = float(torch.linalg.matrix_norm(whole - dense(cut_A_RD, cut_B_OR, scaling)))
        # Eckart and Young: no matrix of this rank is nearer.
        assert lost == pytest.approx(float(values[rank:].norm()), abs=1e-10 * float(values[0]))


def test_rank_three_inside_sixteen_is_three_however_it_is_mixed_and_stored(tiny_model, tmp_path):
    for dtype in (torch.float32, torch.float64):
        model = tiny_model("llama", "CAUSAL_LM", dtype)
        saved = read_adapter(adapter_of(model, tmp_path))
        assert {one.shape[0] for one in saved.weights.lora_A.values()} == {16}
        assert {update.numerical_rank for update in directions_of(saved.weights).values()} == {3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("full", ["lora_A", "lora_B", "neither"])
def test_of_a_narrow_dtype_what_storing_may_have_made_is_told_from_what_it_explains_not(dtype, full):
    generator = torch.Generator().manual_seed(6)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    placements = tuple(Placement(Target(f"m{number}"), 16, 2.0) for number in range(8))
    weights = AdapterWeights(placements, {}, {})
    for placement in placements:
        lora_A_RD = normal(16, 96) if full == "lora_A" else normal(16, 3) @ normal(3, 96)
        lora_B_OR = normal(128, 16) if full == "lora_B" else normal(128, 3) @ normal(3, 16)
        weights.lora_A[placement.target.key], weights.lora_B[placement.target.key] = lora_A_RD.to(dtype), lora_B_OR.to(dtype)
    directions = directions_of(weights)
    assert {update.numerical_rank for update in directions.values()} == {3}
    computed = [num_computed(weights, one, directions[one.target.key]) for one in placements]
    # Where one factor is full, storing the other makes directions of what were zeros; where neither is, next to none.
    assert set(computed) == {3} if dtype == torch.float32 else min(computed) >= 3 + (full != "neither")


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_cut_module_keeps_its_scaling_so_alpha_falls_with_the_rank(use_rslora, tiny_model, tmp_path):
    model = tiny_model("llama", "CAUSAL_LM")
    source = adapter_of(model, tmp_path, scaling=24 / (4.0 if use_rslora else 16.0), use_rslora=use_rslora)
    saved = read_adapter(source)
    assert saved.config["lora_alpha"] == 24
    first, *others = (placement.target.module for placement in saved.slot.placements)
    cut = truncated(saved, directions_of(saved.weights), {first: 4, **dict.fromkeys(others, 3)})
    expected = (24 * math.sqrt(3 / 16), 24 * math.sqrt(4 / 16)) if use_rslora else (24 * 3 / 16, 24 * 4 / 16)
    assert (cut.config["r"], cut.config["rank_pattern"]) == (3, {first: 4})
    assert cut.config["lora_alpha"] == pytest.approx(expected[0], rel=1e-11)
    assert cut.config["alpha_pattern"] == {first: pytest.approx(expected[1], rel=1e-11)}
    (tmp_path / "cut").mkdir()
    write_truncated(source, tmp_path / "cut", cut)
    again = read_adapter(tmp_path / "cut")
    for placement in again.slot.placements:
        module = placement.target.module
        assert placement.r == (4 if module == first else 3)
        assert placement.scaling == pytest.approx(saved.slot.placements[0].scaling, rel=1e-11)
        torch.testing.assert_close(update_of(again, module), update_of(saved, module), rtol=0, atol=1e-10)


def test_rank_zero_leaves_a_module_out_and_everything_else_as_it_was(tiny_model, tmp_path):
    model = tiny_model("bert")
    source = adapter_of(model, tmp_path, heads=("classifier",), bias="all", dropout=0.1)
    saved = read_adapter(source)
    gone, *others = (placement.target.module for placement in saved.slot.placements)
    cut = truncated(saved, directions_of(saved.weights), {gone: 0, **dict.fromkeys(others, 3)})
    (tmp_path / "cut").mkdir()
    write_truncated(source, tmp_path / "cut", cut)
    again = read_adapter(tmp_path / "cut")
    assert [one.target.module for one in again.slot.placements] == others
    assert json.loads((tmp_path / "cut" / "adapter_config.json").read_text())["target_modules"] == sorted(others)
    assert (again.slot.dropout, again.slot.bias) == (0.1, "all")
    for mine, theirs in ((again.weights.biases, saved.weights.biases), (again.weights.heads, saved.weights.heads)):
        assert mine.keys() == theirs.keys()
        assert mine
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    # A bias whose module is wrapped no longer has no wrapper's name.
    names = set(load_file(tmp_path / "cut" / "adapter_model.safetensors"))
    assert f"base_model.model.{gone}.bias" in names
    assert f"base_model.model.{others[0]}.base_layer.bias" in names
    assert not any(name.startswith(f"base_model.model.{gone}.") and "lora" in name for name in names)


def test_an_adapter_in_bfloat16_is_cut_into_factors_that_are_not_rounded_again(tiny_model, tmp_path):
    model = tiny_model("llama", "CAUSAL_LM", torch.float32)
    saved = read_adapter(adapter_of(model, tmp_path, r=4, true_rank=4))
    for group in (saved.weights.lora_A, saved.weights.lora_B):
        for key, value in group.items():
            group[key] = value.bfloat16()
    cut = truncated(saved, directions_of(saved.weights), {one.target.key: 4 for one in saved.slot.placements})
    for module in cut.weights.lora_A:
        assert cut.weights.lora_A[module].dtype == torch.float32
        torch.testing.assert_close(update_of(cut, module), update_of(saved, module), rtol=1e-5, atol=1e-6)


def test_nothing_left_and_a_bias_without_its_adapter_are_refused(tiny_model, tmp_path):
    model = tiny_model("bert")
    saved = read_adapter(adapter_of(model, tmp_path, heads=("classifier",), bias="lora_only"))
    directions = directions_of(saved.weights)
    ranks = {one.target.key: 2 for one in saved.slot.placements}
    with pytest.raises(AdapterError, match="its trained bias belongs to its adapter"):
        truncated(saved, directions, {**ranks, min(ranks): 0})
    saved = read_adapter(adapter_of(model, tmp_path, heads=("classifier",)))
    with pytest.raises(AdapterError, match="no direction is left of the adapter; use the base model alone"):
        truncated(saved, directions_of(saved.weights), dict.fromkeys(ranks, 0))
