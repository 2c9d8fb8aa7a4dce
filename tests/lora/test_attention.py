"""Attention over prefix trees against a dense mask, and the ways in which a model refuses to be steered.

Legend: N rows, H heads, G key/value heads, T tokens, D head width.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config

from lorascope.data.record import Example
from lorascope.data.tree import plant
from lorascope.errors import ModelError
from lorascope.lora import attention
from lorascope.lora.attention import NAME, TreeAttention, blocks_of, steered, why_unsteerable

CPU = torch.device("cpu")
TRUNK = list(range(1, 21))
FORESTS = {
    "one chain": [TRUNK, [*TRUNK, 30, 31]],
    "a star": [[*TRUNK, 30, 31], [*TRUNK, 40], [*TRUNK, 50, 51, 52]],
    "a tree and a stranger": [[*TRUNK, 30], [*TRUNK, 40, 41, 50], [*TRUNK, 40, 41, 60], [7, 8, 9]],
    "strangers": [[1, 2, 3], [4, 5], [6]],
}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def forest_of(rows):
    examples = [Example(str(index), ids, [True] * len(ids), None, 1) for index, ids in enumerate(rows)]
    return plant(examples, range(len(rows)))


def blocks(forest, width=None):
    return blocks_of(forest.trees, forest.end_T, width or forest.num_tokens, torch.float64, CPU)


def dense(forest, q_NHTD, k_NGTD, v_NGTD, scaling):
    """What every stored token takes from its ancestors, by the softmax written out."""
    places = np.arange(forest.num_tokens)
    visible = torch.from_numpy((places[None, :] <= places[:, None]) & (places[:, None] < forest.end_T[None, :]))
    k_NHTD, v_NHTD = (x.repeat_interleave(q_NHTD.shape[1] // x.shape[1], dim=1) for x in (k_NGTD, v_NGTD))
    scores = (q_NHTD @ k_NHTD.transpose(2, 3) * scaling).masked_fill(~visible, float("-inf"))
    return scores.softmax(dim=-1) @ v_NHTD


@pytest.mark.parametrize("block_tokens", [1, 8, 128])
@pytest.mark.parametrize("name", FORESTS)
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_a_token_attends_to_its_ancestors(name, groups, block_tokens, monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK_TOKENS", block_tokens)
    forest = forest_of(FORESTS[name])
    num = forest.num_tokens
    q, k, v = random(2, 4, num, 6), random(2, groups, num, 6, seed=1), random(2, groups, num, 6, seed=2)
    tree = TreeAttention([(slice(0, 2), blocks(forest))])
    torch.testing.assert_close(tree.attend(nn.Identity(), q, k, v, 0.3), dense(forest, q, k, v, 0.3), rtol=0, atol=1e-12)


def test_rows_of_other_forests_are_looked_at_apart_and_padding_reaches_nobody():
    forests = [forest_of(FORESTS[name]) for name in ("a star", "strangers", "a tree and a stranger")]
    width = max(forest.num_tokens for forest in forests) + 3
    rows = [slice(0, 1), slice(1, 3), slice(3, 4)]
    tree = TreeAttention([(row, blocks(forest, width)) for row, forest in zip(rows, forests, strict=True)])
    q, k, v = random(4, 4, width, 6), random(4, 2, width, 6, seed=1), random(4, 2, width, 6, seed=2)
    for forest, row in zip(forests, rows, strict=True):
        k[row, :, forest.num_tokens :] = 1e3
    out = tree.attend(nn.Identity(), q, k, v, 0.5)
    assert torch.isfinite(out).all()
    for forest, row in zip(forests, rows, strict=True):
        num = forest.num_tokens
        wanted = dense(forest, q[row, :, :num], k[row, :, :num], v[row, :, :num], 0.5)
        torch.testing.assert_close(out[row, :, :num], wanted, rtol=0, atol=1e-12)


def test_a_row_without_a_tree_is_all_padding_and_finite():
    tree = TreeAttention([(slice(0, 1), blocks_of([], [], 5, torch.float64, CPU))])
    assert torch.isfinite(tree.attend(nn.Identity(), random(1, 2, 5, 4), random(1, 2, 5, 4), random(1, 2, 5, 4), 1.0)).all()


def test_small_neighbours_share_a_block_and_a_chain_alone_needs_no_mask(monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK_TOKENS", 5)
    found = blocks_of([(0, 3), (3, 5), (5, 12), (12, 13)], np.array([3, 3, 3, 5, 5, *[12] * 7, 13]), 16, torch.float64, CPU)
    assert [(block.start, block.stop, block.bias_TT is None) for block in found] == [
        (0, 5, False),
        (5, 12, True),
        (12, 13, True),
        (13, 16, True),
    ]


def test_a_model_attends_its_own_way_again_even_after_an_error(tiny_model):
    model = tiny_model("gpt2", "CAUSAL_LM")
    own = model.config._attn_implementation
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
    with pytest.raises(KeyError), steered(model):
        assert model.config._attn_implementation == NAME
        raise KeyError
    assert model.config._attn_implementation == own
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)


def test_a_steered_model_without_a_tree_is_refused(tiny_model):
    model = tiny_model("llama", "CAUSAL_LM")
    with pytest.raises(ModelError, match="does not hand its keywords"), steered(model), torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))


@pytest.mark.parametrize("keyword", ["softcap", "sliding_window", "s_aux", "position_bias"])
def test_a_variant_of_attention_is_refused_by_name(keyword):
    tree = TreeAttention([(slice(0, 1), blocks_of([(0, 3)], np.array([3, 3, 3]), 3, torch.float64, CPU))])
    q, k, v = random(1, 2, 3, 4), random(1, 2, 3, 4, seed=1), random(1, 2, 3, 4, seed=2)
    out, _ = attention._forward(nn.Identity(), q, k, v, None, tree=tree, **{keyword: None})
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    with pytest.raises(ModelError, match=f"cannot follow a prefix tree: it has {keyword}"):
        attention._forward(nn.Identity(), q, k, v, None, tree=tree, **{keyword: 4})
    with pytest.raises(ModelError, match="cannot follow a prefix tree"):
        attention._forward(nn.Identity(), q, k, v, torch.zeros(1, 1, 3, 3), tree=tree)


class Steerable(nn.Module):
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__()
        self.config = config


class Unsteerable(Steerable):
    _supports_sdpa = False


SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 64}
REASONS = {
    "nothing": (LlamaConfig(**SMALL), None),
    "stretched rotary positions": (LlamaConfig(**SMALL, rope_parameters={"rope_type": "linear", "factor": 2.0}), None),
    "dynamic rotary positions": (LlamaConfig(**SMALL, rope_parameters={"rope_type": "dynamic", "factor": 2.0}), "dynamic"),
    "sliding layers": (Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=8, max_window_layers=1), "sliding-window"),
    "alternating layers": (Gemma2Config(**SMALL, head_dim=8), "sliding-window"),
    # Mistral says it to each call of its attention, and there it is refused.
    "a window outside layer types": (MistralConfig(**SMALL, sliding_window=8), None),
    "an encoder-decoder": (LlamaConfig(**SMALL, is_encoder_decoder=True), "encoder-decoder"),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_configuration_tells_what_cannot_be_right(name):
    config, reason = REASONS[name]
    found = why_unsteerable(Steerable(config))
    assert found is None if reason is None else reason in found
    assert why_unsteerable(Unsteerable(config)) is not None
