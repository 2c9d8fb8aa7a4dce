"""Every tensor of the merged files against the base's and the adapter's: nothing but the update may be new."""

import pytest
import torch
from safetensors.torch import load_file

from lorascope.base_model import head_modules, weights_checksum
from lorascope.certify.checkpoint import open_checkpoint
from lorascope.certify.tensors import Layout, base_weights_checksum, compare_tensors, place
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
    nothing_wrong = (figures.differing, figures.nonfinite, figures.absent, figures.homeless, figures.misfits, figures.tied)
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


def test_names_of_old_and_without_the_body_s_prefix_find_their_place(scene):
    layout = Layout.of(scene("bert").claim().model)
    assert layout.name_of("encoder.layer.0.attention.output.LayerNorm.gamma") is not None
    assert layout.name_of("bert.embeddings.word_embeddings.weight") == "bert.embeddings.word_embeddings.weight"
    assert layout.name_of("cls.predictions.bias") is None
    placed = place(layout, open_checkpoint(scene("bert").base))
    assert set(placed.absent) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(("family", "dtype"), [("bert", torch.float32), ("gpt2", torch.bfloat16)])
def test_the_base_s_checksum_is_that_of_the_loaded_base(scene, family, dtype):
    made = scene(family)
    claim = made.claim()
    heads = head_modules(claim.model, claim.task_type)
    loaded = weights_checksum(made.load(str(dtype).removeprefix("torch.")), heads)
    assert base_weights_checksum(Layout.of(claim.model), open_checkpoint(made.base), heads, dtype) == loaded
