"""The last block, computed where it is read: the same losses, gradients and logits as when it is computed for every token."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, ModernBertConfig, T5Config, T5ForConditionalGeneration

from lorascope.base_model import BaseModel, head_modules
from lorascope.data.packing import collate
from lorascope.data.record import Example
from lorascope.data.tree import plant
from lorascope.lora import elementwise, frozen
from lorascope.lora.last_block import LastBlock, find_last_block, only_at, read_places
from lorascope.lora.layer import Places
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.losses import class_logits, column_logits, tree_losses
from lorascope.train import forward_backward

CASES = [
    ("bert", "SEQ_CLS"), ("distilbert", "SEQ_CLS"), ("roberta", "SEQ_CLS"), ("gpt2", "SEQ_CLS"), ("llama", "SEQ_CLS"),
    ("gpt2", "CAUSAL_LM"), ("llama", "CAUSAL_LM"), ("qwen2", "CAUSAL_LM"),
]  # fmt: skip


def prepared(tiny_model, family, task_type, dtype=torch.float64):
    model = tiny_model(family, task_type, dtype)
    model.config.pad_token_id = 0
    heads = head_modules(model, task_type)
    last_block, reason = find_last_block(model, task_type)
    assert last_block is not None, f"the architecture is known, and its trial succeeds: {reason}"
    return BaseModel(model, None, task_type, heads, (), "", plain_head=True, last_block=last_block)


def examples_of(task_type):
    generator = torch.Generator().manual_seed(3)

    def drawn(length):
        return torch.randint(4, 150, (length,), generator=generator).tolist()

    context = drawn(20)
    rows = [context + drawn(length) for length in (3, 6, 9)] + [drawn(12)]
    if task_type == "SEQ_CLS":
        return [Example(str(index), ids, None, index % 3, 0) for index, ids in enumerate(rows)]
    # Rows with one, two and three targets: the places of the shorter ones are filled up.
    targets = [[place >= len(ids) - 1 - index % 3 for place in range(len(ids))] for index, ids in enumerate(rows)]
    return [Example(str(index), ids, targets[index], None, 1) for index, ids in enumerate(rows)]


def stack_on(base, dropout, base_dropout):
    everywhere = resolve(base.model, "all-linear", base.heads)
    slots = [
        Slot("all", 1, tuple(Placement(target, 3, 2.0) for target in everywhere), dropout),
        Slot("other seed", 2, tuple(Placement(target, 2, 1.0) for target in everywhere)),
    ]
    stack = Stack(base.model, slots, base.heads, base_dropout=base_dropout)
    for index in range(len(slots)):
        weights = stack.read(index)
        generator = torch.Generator().manual_seed(index)
        for value in weights.lora_B.values():
            value += 0.3 * torch.randn(value.shape, generator=generator).to(value.dtype)
        stack.write(index, weights)
    return stack


def counted_tokens(base):
    """How many tokens the feed-forward part of the last block sees, pass by pass."""
    seen = []
    owner = base.model.get_submodule(base.last_block.parts[-1].replace(".feed_forward_chunk", ".intermediate"))
    inner = next(module for module in owner.modules() if type(module).__name__ in ("StackedLinear", "Conv1D", "Linear"))
    inner.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:-1].numel()))
    return seen


@pytest.mark.parametrize(("dropout", "base_dropout"), [(0.0, False), (0.5, False), (0.5, True)])
@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(("family", "task_type"), CASES)
def test_losses_and_gradients_are_those_of_the_whole_block(family, task_type, packs, dropout, base_dropout, tiny_model):
    if task_type == "SEQ_CLS" and packs:
        packs = None
    base = prepared(tiny_model, family, task_type)
    base.packs = packs
    frozen.install(base.model, "plain", base.heads)
    elementwise.install(base.model)
    stack = stack_on(base, dropout, base_dropout)
    examples = examples_of(task_type)
    batch = {1: [0, 1, 2, 3], 2: [3, 2, 1, 0]}
    part_N = forward_backward(stack, base, examples, batch, None, 2)
    part_NP = stack.parameters.gradients_NP.clone()
    base.last_block = None
    whole_N = forward_backward(stack, base, examples, batch, None, 2)
    torch.testing.assert_close(part_N, whole_N, rtol=1e-12, atol=0)
    torch.testing.assert_close(part_NP, stack.parameters.gradients_NP, rtol=0, atol=1e-12)
    assert float(part_NP.abs().max()) > 1e-3


@pytest.mark.parametrize(("family", "task_type"), CASES)
def test_the_last_block_works_on_the_tokens_that_are_read(family, task_type, tiny_model):
    base = prepared(tiny_model, family, task_type, torch.float32)
    seen = counted_tokens(base)
    batch = collate(examples_of(task_type), [0, 1, 2, 3], 0)
    if task_type == "SEQ_CLS":
        logits = class_logits(base, batch)
        assert seen == [4 * 2], "the first and the last token of each row"
        whole = base.model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
    else:
        columns = torch.tensor([3, 7])
        inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
        logits = column_logits(base, inputs, columns)
        assert seen == [4 * 2]
        whole = base.model(**inputs).logits[:, columns]
    torch.testing.assert_close(logits, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", ["plain", "packed"])
def test_a_pass_in_which_nothing_is_read_has_no_loss_and_a_gradient_of_zero(path, tiny_model):
    """A micro-batch of examples without targets, and a slot whose batch has ended."""
    base = prepared(tiny_model, "llama", "CAUSAL_LM", torch.float32)
    if frozen._try(base.model.model.layers[0].mlp.up_proj, path) is None:
        pytest.skip(f"no {path} product here")
    frozen.install(base.model, path, base.heads)
    stack = stack_on(base, 0.0, False)
    nothing = [Example(one.id, one.input_ids, [False] * len(one.input_ids), None, 1) for one in examples_of("CAUSAL_LM")]
    losses_NE = tree_losses(base, [plant(nothing, [0, 1]), None])
    stack.parameters.zero_gradients()
    stack.parameters.accumulate_gradients(losses_NE.sum())
    assert losses_NE.tolist() == [[0.0, 0.0]] * 2
    assert float(stack.parameters.gradients_NP.abs().max()) == 0.0


def test_every_module_is_as_before_afterwards(tiny_model):
    base = prepared(tiny_model, "bert", "SEQ_CLS")
    frozen.install(base.model, "plain", base.heads)
    before = {name: dict(module.__dict__) for name, module in base.model.named_modules()}
    places = Places(torch.tensor([0]), torch.tensor([0]), 1, 4)
    with pytest.raises(KeyError), only_at(base.model, base.last_block, places):
        raise KeyError
    after = {name: module.__dict__ for name, module in base.model.named_modules()}
    assert all(before[name].keys() == after[name].keys() for name in before)
    assert all(before[name].get("forward") is after[name].get("forward") for name in before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_classifier_that_reads_every_token_is_left_alone(dtype, tiny_model):
    model = tiny_model("bert", "SEQ_CLS", dtype)
    pooler = model.bert.pooler
    pooler.forward = lambda hidden: torch.tanh(pooler.dense(hidden.mean(dim=1)))
    found, reason = find_last_block(model, "SEQ_CLS")
    assert found is None
    assert "other results" in reason


def test_unknown_architectures_are_left_alone():
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    model = AutoModelForSequenceClassification.from_config(ModernBertConfig(**sizes, **ids)).eval()
    assert find_last_block(model, "SEQ_CLS") == (None, None)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)).eval()
    assert find_last_block(t5, "CAUSAL_LM") == (None, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parts_that_are_not_row_wise_are_found_out(dtype, tiny_model):
    model = tiny_model("llama", "CAUSAL_LM", dtype)
    own = model.model.layers[-1].mlp.forward
    model.model.layers[-1].mlp.forward = lambda x: own(x - x.mean(dim=1, keepdim=True))
    model.config.pad_token_id = 0
    found, reason = find_last_block(model, "CAUSAL_LM")
    assert found is None
    assert "other results" in reason


def test_parts_that_raise_are_left_alone_with_the_reason(tiny_model):
    model = tiny_model("llama", "CAUSAL_LM", torch.float64)

    def only_whole_rows(x):
        assert x.shape[1] == 8, "rows of eight"
        return x

    model.model.layers[-1].mlp.forward = only_whole_rows
    model.config.pad_token_id = 0
    found, reason = find_last_block(model, "CAUSAL_LM")
    assert found is None
    assert "rows of eight" in reason


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_classifier_reads_the_token_that_transformers_reads(family, tiny_model):
    """Padding in the middle of a row, and a row whose last token is the padding id."""
    base = prepared(tiny_model, family, "SEQ_CLS")
    ids = torch.tensor([[5, 0, 7, 8, 0, 0], [5, 6, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [4, 5, 6, 7, 8, 9]])
    whole = base.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    with only_at(base.model, base.last_block, read_places(base.model, ids)):
        part = base.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)


def test_places_take_and_put_what_they_name():
    row, place = torch.tensor([1, 0, 0, 1, 0]), torch.tensor([2, 3, 0, 2, 1])
    places = Places(row, place, 3, 4)
    assert places.num_places == 3
    x = torch.arange(24.0).reshape(3, 4, 2)
    taken = places.take(x)
    assert taken[0].tolist() == x[0, [0, 1, 3]].tolist()
    assert taken[1, 0].tolist() == x[1, 2].tolist()
    put = places.put(taken)
    kept = torch.zeros(3, 4, dtype=torch.bool)
    kept[row, place] = True
    assert put.tolist() == torch.where(kept[..., None], x, 0.0).tolist()
    with pytest.raises(AssertionError, match="rows of 5 tokens"):
        places.take(torch.zeros(3, 5, 2))


def test_the_place_of_a_part_survives_a_copy_of_the_model(tiny_model):
    base = prepared(tiny_model, "gpt2", "CAUSAL_LM")
    other = copy.deepcopy(base.model)
    parts = ("transformer.h.1.attn.c_proj", "transformer.h.1.mlp")
    assert find_last_block(other, "CAUSAL_LM")[0] == base.last_block == LastBlock(parts)
    assert isinstance(other.get_submodule(base.last_block.parts[0]), nn.Module)
