"""Every tensor of the merged files against the base's and the adapter's: nothing but the update may be new."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorascope.certify.checkpoint import open_checkpoint
from lorascope.certify.layout import Layout
from lorascope.certify.tensors import compare_tensors
from lorascope.certify.update import read_updates
from lorascope.lora import stored_tensors


def compared(scene, ties=None):
    layout = Layout.of(scene.claim().model)
    base, merged = open_checkpoint(scene.base), open_checkpoint(scene.merged)
    ties = layout.tied if ties is None else ties
    return compare_tensors(layout, ties, base, merged, read_updates(scene.adapter), scene.dtype)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_peft_s_own_merge_is_the_base_plus_the_update(scene, family):
    made = scene(family)
    figures = compared(made)
    assert len(figures.modules) == len(made.deltas())
    for module in figures.modules:
        delta = made.deltas()[f"{module.module}.weight"]
        assert module.update_norm == pytest.approx(float(delta.norm()), rel=1e-6)
        assert module.ratio < 1e-6
        assert module.arrived == pytest.approx(1.0, abs=1e-6)
        assert module.rounding < 1.0
    nothing_wrong = (figures.differing, figures.nonfinite, figures.absent, figures.leftover, figures.misfits, figures.tied)
    assert all(not one for one in nothing_wrong)
    assert figures.num_equal + len(figures.modules) >= len(load_file(made.merged / "model.safetensors")) - 1


def test_a_ratio_of_one_is_a_merge_that_did_nothing(scene):
    made = scene("llama", "small")
    made.reweigh(lambda name: 0.0)
    for module in compared(made).modules:
        assert module.ratio == pytest.approx(1.0, abs=1e-3)
        assert module.arrived == pytest.approx(0.0, abs=1e-3)
        assert module.rounding > 1.0


def test_figures_do_not_depend_on_how_many_rows_are_read_at_a_time(scene, monkeypatch):
    made = scene("gpt2", dtype="bfloat16")
    whole = compared(made)
    monkeypatch.setattr(stored_tensors, "CHUNK_NUMBERS", 100)
    for one, other in zip(compared(made).modules, whole.modules, strict=True):
        assert one.ratio == pytest.approx(other.ratio, rel=1e-6)
        assert one.update_norm == pytest.approx(other.update_norm, rel=1e-6)


def test_ties_are_as_in_the_base_or_told(scene):
    made = scene("gpt2")
    assert compared(made).tied == []

    def change(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()

    made.edit(change)
    assert compared(made, ties={}).untied != []
    made.edit(lambda tensors: tensors["lm_head.weight"].neg_())
    assert compared(made, ties={}).tied != []
    assert "loaders disagree" in compared(made).tied[0]
    own = scene("llama")
    own.edit(lambda tensors: tensors.__delitem__("lm_head.weight"))
    figures = compared(own, ties={"lm_head.weight": "model.embed_tokens.weight"})
    assert "which it is not in the base" in figures.tied[0]
    assert [name for name, *_ in figures.differing] == ["lm_head.weight"]


def test_experts_that_the_loader_joins_are_compared_by_their_names_in_the_files(scene):
    made = scene("mixtral")
    figures = compared(made)
    assert (figures.absent, figures.leftover, figures.misfits, figures.differing) == ([], [], [], [])
    assert len(figures.modules) == len(made.deltas())
    expert = next(name for name in load_file(made.merged / "model.safetensors") if name.endswith("experts.2.w1.weight"))
    made.edit(lambda tensors: tensors[expert].add_(0.5))
    assert [name for name, *_ in compared(made).differing] == [expert.removeprefix("model.")]
    made.edit(lambda tensors: tensors.__delitem__(expert))
    assert compared(made).absent == [expert.removeprefix("model.")]


def test_tensors_without_a_place_are_told_and_buffers_of_old_are_not(scene):
    made = scene("gpt2")

    def change(tensors):
        tensors["transformer.h.0.attn.c_attn.lora_A.weight"] = torch.full((2, 2), float("nan"))
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4)

    made.edit(change)
    assert compared(made).leftover == ["transformer.h.0.attn.c_attn.lora_A.weight"]


def test_a_head_in_another_dtype_than_the_body_keeps_it(scene):
    made = scene("bert", dtype="bfloat16")
    merged = load_file(made.merged / "model.safetensors")
    head = {name: value.float() for name, value in merged.items() if name.startswith("classifier")}
    save_file(merged | head, made.merged / "model.safetensors")
    held = load_file(made.base / "model.safetensors")
    save_file(held | {name: torch.zeros_like(value) for name, value in head.items()}, made.base / "model.safetensors")
    layout, adapter = Layout.of(made.claim().model), read_updates(made.adapter)
    base, merged = open_checkpoint(made.base), open_checkpoint(made.merged)
    assert compare_tensors(layout, layout.tied, base, merged, adapter, "as-base").strays == {}
    assert compare_tensors(layout, layout.tied, base, merged, adapter, "bfloat16").strays != {}


def test_where_the_dtype_changes_the_base_s_own_rounding_is_no_part_of_the_ratio(scene):
    made = scene("llama", "small", "bfloat16", base_dtype="float32")
    for module in compared(made).modules:
        assert module.recast > 0.05
        assert module.arrived == pytest.approx(1.0, abs=0.2)
    assert all(module.recast == 0.0 for module in compared(scene("llama", "large", "bfloat16")).modules)


def test_an_embedding_that_was_saved_along_is_the_base_s(scene):
    made = scene("qwen2")
    path = made.adapter / "adapter_model.safetensors"
    embedding = load_file(made.base / "model.safetensors")["model.embed_tokens.weight"]
    save_file({**load_file(path), "base_model.model.model.embed_tokens.weight": embedding}, path)
    figures = compared(made)
    assert (figures.tied, figures.untied, figures.differing) == ([], [], [])
