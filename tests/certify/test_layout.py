"""Where a file's tensors go: as the loader has it, tied, joined, or nowhere."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorascope.base_model import head_modules, weights_checksum
from lorascope.certify.checkpoint import open_checkpoint
from lorascope.certify.layout import Layout, base_weights_checksum, place

pytestmark = pytest.mark.filterwarnings("ignore")


def test_names_of_old_and_without_the_body_s_prefix_find_their_place(scene):
    layout = Layout.of(scene("bert").claim().model)
    assert layout.name_of("encoder.layer.0.attention.output.LayerNorm.gamma") is not None
    assert layout.name_of("bert.embeddings.word_embeddings.weight") == "bert.embeddings.word_embeddings.weight"
    assert layout.name_of("cls.predictions.bias") is None
    placed = place(layout, open_checkpoint(scene("bert").base))
    assert set(placed.absent) == {"classifier.weight", "classifier.bias"}
    assert placed.unused == ()


def test_of_two_names_for_one_place_the_exact_one_is_taken_and_the_other_is_told(scene):
    made = scene("bert")
    path = made.base / "model.safetensors"
    tensors = load_file(path)
    tensors["bert.pooler.dense.bias"] = tensors["pooler.dense.bias"] + 1
    save_file(tensors, path)
    placed = place(Layout.of(made.claim().model), open_checkpoint(made.base))
    assert placed.unused == ("pooler.dense.bias",)
    assert torch.equal(placed.held["bert.pooler.dense.bias"].read(), tensors["bert.pooler.dense.bias"])


def test_experts_are_joined_and_nothing_is_absent(scene):
    made = scene("mixtral")
    layout, base = Layout.of(made.claim().model), open_checkpoint(made.base)
    placed = place(layout, base)
    assert (placed.absent, placed.unused) == ((), ())
    assert len(placed.converted) == 2 * 4 * 3
    assert base_weights_checksum(layout, base, (), torch.float32) is None
    del base.tensors[next(key for key in base.tensors if key.endswith("gate.weight"))]
    assert len(place(layout, base).absent) == 1


def test_buffers_that_loaders_pass_over_are_known(scene):
    layout = Layout.of(scene("gpt2").claim().model)
    assert layout.ignores("transformer.h.0.attn.bias")
    assert not layout.ignores("transformer.h.0.attn.c_attn.lora_A.weight")
    rotary = Layout.of(scene("llama").claim().model)
    assert rotary.ignores("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not layout.ignores("model.layers.0.self_attn.rotary_emb.inv_freq")


@pytest.mark.parametrize(("family", "dtype"), [("bert", torch.float32), ("gpt2", torch.bfloat16)])
def test_the_base_s_checksum_is_that_of_the_loaded_base(scene, family, dtype):
    made = scene(family)
    claim = made.claim()
    heads = head_modules(claim.model, claim.task_type)
    loaded = weights_checksum(made.load(str(dtype).removeprefix("torch.")), heads)
    assert base_weights_checksum(Layout.of(claim.model), open_checkpoint(made.base), heads, dtype) == loaded
