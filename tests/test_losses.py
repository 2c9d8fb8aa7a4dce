"""Losses by tree, by padded row and by the model itself; and which models may be trained on trees at all."""

import inspect
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    NemotronConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
    XGLMConfig,
)

from lorascope import losses
from lorascope.base_model import BaseModel, head_modules, head_scale
from lorascope.data.packing import collate
from lorascope.data.record import Example
from lorascope.data.tree import plant
from lorascope.errors import RunError
from lorascope.lora import attention
from lorascope.lora.frozen import Product
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.losses import follows_trees, model_inputs, padded_losses, tree_losses
from lorascope.train import forward_backward

VOCABULARY = 160
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, **IDS}
ROTARY = {**SMALL, "intermediate_size": 24, "max_position_embeddings": 128}
GROUPED = {**ROTARY, "num_key_value_heads": 2}
GPT = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, **IDS}
FOLLOW = {
    "gpt2": GPT2Config(**GPT, n_positions=128),
    "gpt_bigcode": GPTBigCodeConfig(**GPT, n_positions=128),
    "gpt_neox": GPTNeoXConfig(**ROTARY),
    "opt": OPTConfig(**SMALL, ffn_dim=24, max_position_embeddings=128, word_embed_proj_dim=16),
    "llama": LlamaConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=4),
    "gemma": GemmaConfig(**GROUPED, head_dim=4),
    "phi": PhiConfig(**ROTARY),
    "cohere": CohereConfig(**GROUPED),
    "granite": GraniteConfig(**GROUPED, logits_scaling=4.0),
    "mistral without a window": MistralConfig(**GROUPED, sliding_window=None),
    "values narrower than keys": DeepseekV3Config(
        **ROTARY, first_k_dense_replace=2, q_lora_rank=None, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
        v_head_dim=4,
    ),
}  # fmt: skip
# What each is refused for, in the words of the warning; each trains on padded rows.
REFUSED = {
    "gptj": (GPTJConfig(**GPT, rotary_dim=4, n_positions=128), "its attention cannot be replaced"),
    "gpt_neo": (
        GPTNeoConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_layers=2, num_heads=4, window_size=8, max_position_embeddings=128,
            attention_types=[[["global", "local"], 1]], **IDS,
        ),
        "its attention cannot be replaced",
    ),
    "bloom": (BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=4, **IDS), "cannot be replaced"),
    "mpt": (MptConfig(vocab_size=VOCABULARY, d_model=16, n_layers=2, n_heads=4, max_seq_len=128), "its attention cannot be"),
    "xglm": (XGLMConfig(vocab_size=VOCABULARY, d_model=16, num_layers=2, attention_heads=4, ffn_dim=24), "cannot be replaced"),
    "gemma2": (Gemma2Config(**GROUPED, head_dim=4), "its attention cannot be replaced"),
    "falcon": (FalconConfig(**SMALL, alibi=False), "prefixes are not shared"),
    "falcon with alibi": (FalconConfig(**SMALL, alibi=True), "prefixes are not shared"),
    "stablelm": (StableLmConfig(**ROTARY, num_key_value_heads=4), "does not hand its keywords to its attention"),
    "nemotron": (NemotronConfig(**GROUPED), "does not hand its keywords to its attention"),
    "mistral with a window": (MistralConfig(**GROUPED, sliding_window=8), "it has sliding_window"),
    "qwen2 with a window": (
        Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "it has sliding-window attention",
    ),
    "gemma3": (Gemma3TextConfig(**GROUPED, head_dim=4), "it has sliding-window attention"),
    "dynamic rope": (
        LlamaConfig(**GROUPED, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        r"its rotary positions \(dynamic\) depend on the length of the row",
    ),
}  # fmt: skip


def base_of(config, dtype=torch.float64, scale=5.0):
    """Seeded random weights, large enough for context to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(type(config).from_dict(config.to_dict())).to(dtype).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() == 2:
            parameter *= scale
    model.config.pad_token_id = 0
    return BaseModel(model, None, "CAUSAL_LM", (), (), "", head_scale(model) is not None)


def random_ids(length, seed):
    return torch.randint(4, 150, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def example(ids, first_target=4):
    return Example("x", ids, [place >= first_target for place in range(len(ids))], None, first_target)


def examples_for():
    """A star, a chain and two strangers."""
    context, dialogue = random_ids(20, 0), random_ids(40, 1)
    star = [example(context + random_ids(length, length), 18 + index) for index, length in enumerate((4, 6, 5))]
    chain = [example(dialogue[:length], length - 5) for length in (25, 33, 40)]
    return [*star, *chain, example(random_ids(9, 2)), example(random_ids(30, 3))]


def stack_on(base, num_slots=1, dropout=0.0):
    placements = tuple(Placement(target, 2, 2.0) for target in resolve(base.model, "all-linear", base.heads))
    stack = Stack(base.model, [Slot(f"s{index}", index, placements, dropout) for index in range(num_slots)])
    generator = torch.Generator().manual_seed(0)
    for spec in stack.parameters.specs:
        if spec.name.endswith("lora_B"):
            leaf = stack.parameters[spec.name].data
            leaf += 0.2 * torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.dtype)
    return stack


def packed_and_padded(base, examples):
    forest = plant(examples, range(len(examples)))
    with torch.no_grad():
        packed = tree_losses(base, [forest])[0]
        padded = padded_losses(base, collate(examples, forest.rows, 0))
    return packed, padded


@pytest.mark.parametrize("name", FOLLOW)
def test_a_model_that_follows_trees_is_found_and_its_losses_are_those_of_rows(name):
    base = base_of(FOLLOW[name])
    examples = examples_for()
    assert follows_trees(base, examples)
    assert base.packs
    assert base.warnings == []
    packed, padded = packed_and_padded(base, examples)
    torch.testing.assert_close(packed, padded, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_does_not_is_refused_with_the_reason(name):
    config, reason = REFUSED[name]
    base = base_of(config, torch.float32)
    examples = examples_for()
    assert not follows_trees(base, examples)
    (warning,) = base.warnings
    assert re.search(reason, warning)
    assert "every example is a padded row, which is slower" in warning
    assert not follows_trees(base, examples)
    assert len(base.warnings) == 1, "said once"
    assert base.model.config._attn_implementation != attention.NAME


def leaks(*_):
    """No mask at all: a branch sees the branches before it, and a tree the trees before it."""


def forgets_positions(model):
    """An attention that is steered, in a model that goes by the place in the row."""
    forward = model.base_model.forward

    def wrong(*args, position_ids=None, **keywords):
        return forward(*args, **keywords)

    wrong.__signature__ = inspect.signature(forward)
    model.base_model.forward = wrong


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_an_attention_that_leaks_is_caught_in_every_precision(name, dtype, scale, monkeypatch):
    examples = examples_for()
    assert follows_trees(base_of(FOLLOW[name], dtype, scale), examples)
    monkeypatch.setattr(attention, "_visibility", leaks)
    base = base_of(FOLLOW[name], dtype, scale)
    assert not follows_trees(base, examples)
    assert "a packed row's loss differs from a padded row's" in base.warnings[0]


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_model_that_ignores_positions_or_masks_is_caught_however_few_or_alike_the_examples(name, count, monkeypatch):
    """A chain alone would be right on any causal model, and what is found is remembered for other examples."""
    dialogue = random_ids(40, 1)
    examples = [example(dialogue[: 20 + index]) for index in range(count)]
    assert follows_trees(base_of(FOLLOW[name]), examples)
    base = base_of(FOLLOW[name])
    forgets_positions(base.model)
    assert not follows_trees(base, examples)
    monkeypatch.setattr(attention, "_visibility", leaks)
    assert not follows_trees(base_of(FOLLOW[name]), examples)


def test_short_examples_are_checked_too(monkeypatch):
    examples = [example([5, 6, 7], 1), example([5], 1)]
    assert follows_trees(base_of(FOLLOW["gpt2"]), examples)
    monkeypatch.setattr(attention, "_visibility", leaks)
    assert not follows_trees(base_of(FOLLOW["gpt2"]), examples)


def test_a_model_whose_attention_never_asks_is_caught(tiny_model, monkeypatch):
    """An architecture that says it can be steered, and attends in its own way all the same."""
    base = base_of(FOLLOW["llama"])
    own = attention._forward
    from transformers import AttentionInterface

    def ignoring(module, query, key, value, attention_mask, scaling=None, dropout=0.0, tree=None, **others):
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling).transpose(1, 2), None

    AttentionInterface.register(attention.NAME, ignoring)
    try:
        assert not follows_trees(base, examples_for())
    finally:
        AttentionInterface.register(attention.NAME, own)
    assert "a packed row's loss differs" in base.warnings[0]


def test_an_error_in_the_models_own_code_is_a_reason_and_no_crash(monkeypatch):
    base = base_of(FOLLOW["llama"])

    def attend(*_):
        raise RuntimeError("the shape is\n  not right")

    monkeypatch.setattr(attention.TreeAttention, "attend", attend)
    assert not follows_trees(base, examples_for())
    assert "prefixes are not shared: the shape is not right;" in base.warnings[0]


def test_a_classifier_follows_no_trees_and_needs_no_warning(tiny_model):
    model = tiny_model("gpt2")
    base = BaseModel(model, None, "SEQ_CLS", head_modules(model, "SEQ_CLS"), (), "", True)
    assert not follows_trees(base, [Example("x", [5, 6], None, 0, 0)])
    assert (base.packs, base.warnings) == (None, [])


@pytest.mark.parametrize("num_slots", [1, 3])
def test_the_check_looks_through_a_stack(num_slots):
    base = base_of(FOLLOW["qwen2"])
    stack = stack_on(base, num_slots)
    assert follows_trees(base, examples_for(), num_slots)
    stack.detach()


HEADS = {
    "tied embeddings": GPT2Config(**GPT, n_positions=128),
    "tied rotary": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "untied": LlamaConfig(**GROUPED, tie_word_embeddings=False),
    "scaled logits": CohereConfig(**GROUPED, logit_scale=0.25),
    "divided logits": GraniteConfig(**GROUPED, logits_scaling=4.0),
    "capped logits": Gemma2Config(**GROUPED, head_dim=4, final_logit_softcapping=2.0),
}


@pytest.mark.parametrize("packs", [None, False])
@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradient_are_the_models_own_whatever_its_head(name, packs):
    base = base_of(HEADS[name])
    base.packs = packs
    assert base.plain_head == (name in ("tied embeddings", "tied rotary", "untied"))
    examples = examples_for()
    rows = [0, 3, 1, 4, 7]
    stack = stack_on(base)
    losses_N = forward_backward(stack, base, examples, {0: rows}, None, 0)
    gradients_NP = stack.parameters.gradients_NP.clone()
    batch = collate(examples, rows, 0)
    labels = batch.input_ids_BT.masked_fill(~batch.is_target_BT, -100)
    theirs = base.model(**model_inputs(batch, base.device), labels=labels).loss
    stack.parameters.zero_gradients()
    stack.parameters.accumulate_gradients(theirs)
    stack.detach()
    # transformers computes the loss in float32.
    assert losses_N.item() == pytest.approx(theirs.item(), rel=1e-6)
    difference = (stack.parameters.gradients_NP - gradients_NP).norm() / gradients_NP.norm()
    assert difference < 1e-6
    assert gradients_NP.norm() > 1e-2
    assert base.packs == (packs is None and name != "capped logits")


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("name", ["tied embeddings", "untied"])
def test_tree_losses_in_chunks_are_those_in_one_piece_in_value_and_gradient(name, chunk, monkeypatch):
    base = base_of(HEADS[name])
    base.packs = True
    examples = examples_for()
    stack = stack_on(base, 2)
    rows = {seed: list(range(len(examples))) for seed in (0, 1)}
    results = []
    for size in (10**6, chunk):
        monkeypatch.setattr(losses, "LOGIT_CHUNK", size)
        losses_N = forward_backward(stack, base, examples, rows, None, 0)
        results.append((losses_N, stack.parameters.gradients_NP.clone()))
    stack.detach()
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-12, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=0, atol=1e-11)
    assert results[0][1].abs().max() > 1e-3


class Counting(Product):
    """The layer's plain product, and how many rows each call had."""

    def __init__(self, layer):
        super().__init__(layer, "plain")
        self.rows = []

    def forward(self, x, bias, out=None):
        self.rows.append(x.shape[:-1].numel())
        return super().forward(x, bias, out)


@pytest.mark.parametrize("packs", [True, False])
def test_logits_exist_for_predicting_positions_alone_and_a_chunk_at_a_time(packs, monkeypatch):
    base = base_of(FOLLOW["llama"])
    base.packs = packs
    examples = examples_for()
    product = base.model.lm_head.__dict__["frozen_product"] = Counting(base.model.lm_head)
    monkeypatch.setattr(losses, "LOGIT_CHUNK", 10)
    stack = stack_on(base)
    forward_backward(stack, base, examples, {0: list(range(len(examples)))}, None, 0)
    stack.detach()
    assert max(product.rows) == 10
    assert sum(product.rows) == sum(sum(one.is_target[1:]) for one in examples)


@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_a_frozen_heads_loss_is_torchs_cross_entropy_and_its_gradient_that_of_finite_differences(bias, chunk, monkeypatch):
    monkeypatch.setattr(losses, "LOGIT_CHUNK", chunk)
    head = nn.Linear(5, 11, bias=bias).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, 11, (7,), generator=generator)
    scratch: dict[str, torch.Tensor] = {}
    found = losses._frozen_losses(head, hidden, targets, scratch)
    torch.testing.assert_close(found, F.cross_entropy(head(hidden), targets, reduction="none"), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda hidden: losses._frozen_losses(head, hidden, targets, scratch), [hidden])
    low = hidden.detach().bfloat16().requires_grad_()
    own = low.detach().clone().requires_grad_()
    head = head.bfloat16()
    for loss, leaf in (
        (losses._frozen_losses(head, low, targets, scratch), low),
        (F.cross_entropy(head(own).float(), targets, reduction="none"), own),
    ):
        assert loss.dtype == torch.float32
        (loss * torch.arange(1.0, 8.0)).sum().backward()
        assert leaf.grad.dtype == torch.bfloat16
    assert (low.grad.float() - own.grad.float()).norm() <= 1e-2 * own.grad.float().norm()


def test_slots_may_have_other_forests_or_none_and_get_what_each_gets_alone():
    base = base_of(FOLLOW["qwen2"])
    examples = examples_for()
    forests = [plant(examples, [0, 1, 2, 6]), None, plant(examples, [3, 4]), plant(examples, range(8))]
    stack = stack_on(base, 4)
    with torch.no_grad():
        together = tree_losses(base, forests)
        assert together.shape == (4, 8)
        assert not together[1].any()
        assert not together[0, 4:].any()
        for slot, forest in enumerate(forests):
            if forest is not None:
                batch = collate(examples, forest.rows, 0)
                padded = padded_losses(base, _repeated(batch, 4)).reshape(4, -1)[slot]
                torch.testing.assert_close(together[slot, : len(forest.rows)], padded, rtol=1e-10, atol=0)
    stack.detach()


def _repeated(batch, count):
    return losses.concatenate([batch] * count)


def test_an_example_without_targets_has_no_loss_and_a_piece_of_them_alone_has_a_gradient_of_zero():
    base = base_of(FOLLOW["gpt2"])
    base.packs = True
    silent = Example("silent", random_ids(20, 9), [True] + [False] * 19, None, 1)
    examples = [example(random_ids(12, 5)), silent]
    stack = stack_on(base)
    whole_N = forward_backward(stack, base, examples, {0: [0, 1]}, None, 0)
    whole = stack.parameters.gradients_NP.clone()
    pieces_N = forward_backward(stack, base, examples, {0: [0, 1]}, 1, 0)
    torch.testing.assert_close(pieces_N, whole_N, rtol=1e-12, atol=0)
    torch.testing.assert_close(stack.parameters.gradients_NP, whole, rtol=0, atol=1e-12)
    stack.detach()


def test_padded_losses_of_a_classifier_are_those_of_its_labels(tiny_model):
    model = tiny_model("bert")
    model.config.pad_token_id = 0
    base = BaseModel(model, None, "SEQ_CLS", head_modules(model, "SEQ_CLS"), (), "", True)
    rows = [Example("x", [5, 6, 7], None, 2, 0), Example("y", [8, 9], None, 0, 0)]
    with torch.no_grad():
        found = padded_losses(base, collate(rows, [0, 1], 0))
        for value, one in zip(found, rows, strict=True):
            logits = model(input_ids=torch.tensor([one.input_ids])).logits
            assert value.item() == pytest.approx(nn.CrossEntropyLoss()(logits, torch.tensor([one.label])).item(), rel=1e-10)


def test_where_memory_runs_out_the_check_looks_at_made_examples_alone(monkeypatch):
    base = base_of(FOLLOW["gpt2"])
    examples = [Example(str(seed), random_ids(60, seed), [True] * 60, None, 1) for seed in range(4)]
    own = losses.padded_losses
    rows = []

    def scarce(base, batch):
        rows.append(len(batch.rows))
        if len(rows) <= refused:
            raise MemoryError
        return own(base, batch)

    monkeypatch.setattr(losses, "padded_losses", scarce)
    refused = 1
    assert follows_trees(base, examples)
    assert rows == [7, 3]
    base.packs, refused = None, 100
    with pytest.raises(RunError, match=r"base\.model: memory ran out at the first pass"):
        follows_trees(base, examples)
