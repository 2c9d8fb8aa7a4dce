"""Invariant 3: prefix-tree rows give the losses, gradients and trajectories of one row per example, PEFT's among them."""

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lorascope.base_model import BaseModel
from lorascope.config import EvaluateConfig, TrainConfig
from lorascope.data.packing import batch_order, collate
from lorascope.data.record import Example, Task
from lorascope.data.tree import cut, plant, sibling_groups
from lorascope.evaluate import evaluate
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.train import forward_backward, train

FAMILIES = ["gpt2", "llama", "qwen2"]
BATCH = 5
# Raw names, so that PEFT and the stack put one A on the same module.
TARGETS = {"gpt2": ["c_attn", "mlp.c_proj"], "llama": ["q_proj", "down_proj"], "qwen2": ["k_proj", "v_proj", "up_proj"]}


def random_ids(length, seed):
    return torch.randint(4, 150, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def example(ids, first_target, last_target=None):
    stop = len(ids) if last_target is None else last_target
    return Example("x", ids, [first_target <= place < stop for place in range(len(ids))], None, first_target)


def chain():
    """A dialogue: every reply is a target, with the history before it."""
    ids = random_ids(52, 1)
    return [example(ids[:stop], stop - length) for stop, length in ((22, 4), (31, 5), (40, 3), (52, 6))]


def star():
    """Questions about one context; one answer begins right behind it, so the branching token predicts."""
    context = random_ids(24, 2)
    tails = [random_ids(length, 10 + length) for length in (3, 8, 5, 1)]
    return [example(context + tail, 24 + min(index, len(tail) - 1)) for index, tail in enumerate(tails)]


def branching():
    """A trunk, twigs and leaves; an example that is a prefix of another, one twice, one with targets in the trunk."""
    trunk, twig, other = random_ids(19, 3), random_ids(5, 4), random_ids(6, 5)
    return [
        example(trunk + twig + random_ids(4, 6), 24),
        example(trunk + twig + random_ids(7, 7), 21),
        example(trunk + other, 20),
        example(trunk + other + random_ids(3, 8), 25),
        example(trunk + other, 20),
        example(trunk + twig, 3, 20),
    ]


STRANGER = example(random_ids(11, 9), 6)
SHAPES = {"chain": chain(), "star": star(), "tree": branching()}
EVERYTHING = [*chain(), *star(), *branching(), STRANGER]


def exact(model):
    """transformers' RMS norm computes in float32 whatever it is given; a comparison to 1e-10 needs one that does not."""
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm") and module.weight.dtype == torch.float64:
            norm = nn.RMSNorm(len(module.weight), module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model


def base_of(model, packs=True):
    exact(model)
    model.config.pad_token_id = 0
    return BaseModel(model, None, "CAUSAL_LM", (), (), "", plain_head=True, packs=packs)


def stack_on(base, family, seeds, dropout=0.0):
    """Slots that differ in rank and scaling, with random B's."""
    targets = resolve(base.model, TARGETS[family], ())
    slots = [
        Slot(f"s{index}", seed, tuple(Placement(target, index + 1, 2.0 - 0.5 * index) for target in targets), dropout)
        for index, seed in enumerate(seeds)
    ]
    stack = Stack(base.model, slots)
    for index in range(len(seeds)):
        weights = stack.read(index)
        generator = torch.Generator().manual_seed(index)
        for value in weights.lora_B.values():
            value += 0.2 * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
        stack.write(index, weights)
    return stack


def measured(stack, base, examples, rows_by_seed, packs=True, micro_batch_size=None, step=0):
    base.packs = packs
    losses_N = forward_backward(stack, base, examples, rows_by_seed, micro_batch_size, step)
    assert stack.base_gradients() == 0
    return losses_N, stack.parameters.gradients_NP.clone()


def assert_same(found, wanted, stack, tolerance):
    """Losses, and the gradients of every parameter of every slot, each against its own largest number."""
    torch.testing.assert_close(found[0], wanted[0], rtol=tolerance, atol=0)
    start = 0
    for spec in stack.parameters.specs:
        size = torch.Size(spec.shape).numel()
        for own, reference in zip(found[1][:, start : start + size], wanted[1][:, start : start + size], strict=True):
            assert reference.norm() > 1e-6
            assert (own - reference).norm() <= tolerance * reference.norm(), spec.name
        start += size


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_unpacked_in_loss_and_gradient(family, shape, dtype, tolerance, tiny_model):
    examples = [*SHAPES[shape], STRANGER]
    rows = list(range(len(examples)))
    assert plant(examples, rows).num_tokens < 0.7 * sum(len(one.input_ids) for one in examples)
    base = base_of(tiny_model(family, "CAUSAL_LM", dtype))
    stack = stack_on(base, family, [0, 0])
    packed = measured(stack, base, examples, {0: rows})
    padded = measured(stack, base, examples, {0: rows}, packs=False)
    alone = measured(stack, base, examples, {0: rows}, packs=False, micro_batch_size=1)
    stack.detach()
    assert_same(packed, padded, stack, tolerance)
    assert_same(packed, alone, stack, tolerance)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_slots_of_other_seeds_have_other_trees_and_micro_batches_change_nothing(family, micro_batch_size, tiny_model):
    base = base_of(tiny_model(family, "CAUSAL_LM"))
    stack = stack_on(base, family, [0, 1, 1, 2])
    rows = {0: [0, 1, 2, 4, 5, 6], 1: [0, 1, 4, 5, 8, 9], 2: [14, 3, 7, 10, 12, 13]}
    if micro_batch_size == 3:
        numbers = [len(cut(EVERYTHING, one, micro_batch_size, None)) for one in rows.values()]
        assert len(set(numbers)) > 1, "one slot has nothing left in another's last pass"
    padded = measured(stack, base, EVERYTHING, rows, packs=False)
    assert_same(measured(stack, base, EVERYTHING, rows), padded, stack, 1e-10)
    assert_same(measured(stack, base, EVERYTHING, rows, micro_batch_size=micro_batch_size), padded, stack, 1e-10)
    stack.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stored_token_has_one_dropout_mask_however_the_batch_is_cut(family, tiny_model):
    base = base_of(tiny_model(family, "CAUSAL_LM"))
    stack = stack_on(base, family, [0, 1], dropout=0.5)
    rows = {0: [*range(8), 14], 1: [8, 9, 10, 11, 12, 13, 14, 2, 3]}
    whole = measured(stack, base, EVERYTHING, rows, step=3)
    for micro_batch_size in (1, 2, 3, 4):
        pieces = measured(stack, base, EVERYTHING, rows, micro_batch_size=micro_batch_size, step=3)
        assert_same(pieces, whole, stack, 1e-10)
    other = measured(stack, base, EVERYTHING, rows, step=4)
    assert (other[0] - whole[0]).abs().min() > 1e-4, "another step, another mask"
    stack.detach()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_slots_tree_has_no_neighbours(family, dropout, tiny_model):
    """Alone, beside slots of its own seed, and beside one with a larger forest."""
    base = base_of(tiny_model(family, "CAUSAL_LM"))
    rows = {0: [4, 6, 14], 1: list(range(14))}
    stack = stack_on(base, family, [0, 0, 1], dropout)
    losses_N, gradients_NP = measured(stack, base, EVERYTHING, rows)
    stack.keep(["s0"])
    alone = measured(stack, base, EVERYTHING, {0: rows[0]})
    torch.testing.assert_close(alone[0], losses_N[:1], rtol=1e-10, atol=0)
    torch.testing.assert_close(alone[1], gradients_NP[:1], rtol=0, atol=1e-10 * float(gradients_NP[0].norm()))
    stack.detach()


def run_peft(model, family, rank, scaling, initial, settings, seed):
    """One row per example by PEFT and torch alone: losses, gradient norms and final weights."""
    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(
            task_type="CAUSAL_LM", r=rank, lora_alpha=scaling * rank, target_modules=TARGETS[family],
            fan_in_fan_out=family == "gpt2",
        ),
        autocast_adapter_dtype=False,
    )  # fmt: skip
    wrapped.eval()
    trained = {name: value for name, value in wrapped.named_parameters() if value.requires_grad}
    assert set(trained) == set(initial)
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(initial[name])
    optimizer = torch.optim.AdamW(trained.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    losses, norms = [], []
    per_epoch = -(-len(EVERYTHING) // BATCH)
    for step in range(settings.max_steps):
        rows = batch_order(sibling_groups(EVERYTHING), BATCH, seed, step // per_epoch)[step % per_epoch]
        batch = collate(EVERYTHING, rows, pad_id=0)
        logits = wrapped(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
        labels = batch.input_ids_BT.masked_fill(~batch.is_target_BT, -100)[:, 1:]
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), settings.max_grad_norm)))
        losses.append(loss.item())
        optimizer.step()
    return losses, norms, {name: value.detach().clone() for name, value in trained.items()}


def peft_names(stack, index):
    weights = stack.read(index)
    pairs = [(weights.lora_A, "lora_A"), (weights.lora_B, "lora_B")]
    return {f"base_model.model.{module}.{kind}.default.weight": value for own, kind in pairs for module, value in own.items()}


@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_trajectories_are_those_of_peft_with_one_row_per_example(family, micro_batch_size, tiny_model):
    """Three slots of two seeds; one is dropped halfway, and nothing changes for the others."""
    seeds = [1, 2, 1]
    rates = [1e-2, 2e-2, 5e-3]
    settings = [
        TrainConfig(
            batch_size=BATCH, micro_batch_size=micro_batch_size, max_steps=5, learning_rate=rate, schedule="constant",
            warmup_ratio=0.0, weight_decay=0.1, max_grad_norm=0.5,
        )
        for rate in rates
    ]  # fmt: skip
    base = base_of(tiny_model(family, "CAUSAL_LM"), packs=None)
    stack = stack_on(base, family, seeds)
    initial = [peft_names(stack, index) for index in range(3)]
    history, dropped = [], None
    for result in train(stack, base, EVERYTHING, {f"s{index}": one for index, one in enumerate(settings)}):
        history.append(result.slots)
        if result.step == 2:
            dropped = peft_names(stack, 1)
            stack.keep(["s0", "s2"])
    assert base.packs, base.warnings
    finals = {0: peft_names(stack, 0), 1: dropped, 2: peft_names(stack, 1)}
    stack.detach()
    for index, seed in enumerate(seeds):
        steps = 3 if index == 1 else 5
        model = exact(tiny_model(family, "CAUSAL_LM"))
        own = settings[index].model_copy(update={"max_steps": steps})
        losses, norms, expected = run_peft(model, family, index + 1, 2.0 - 0.5 * index, initial[index], own, seed)
        found = [slots[f"s{index}"] for slots in history if f"s{index}" in slots]
        assert len(found) == steps
        assert [one.loss for one in found] == pytest.approx(losses, abs=1e-9)
        assert [one.grad_norm for one in found] == pytest.approx(norms, abs=1e-9)
        assert losses[-1] != losses[0]
        for name, value in expected.items():
            torch.testing.assert_close(finals[index][name], value, rtol=0, atol=1e-9)
            assert not torch.equal(value, initial[index][name])


@pytest.mark.parametrize("batch_tokens", [30, 200, 10**6])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_evaluation_by_trees_is_one_by_rows(family, batch_tokens, tiny_model):
    task = Task("t", "CAUSAL_LM", (), [], EVERYTHING, "validation", "", "", [], False, ())
    results = []
    for packs in (True, False):
        base = base_of(tiny_model(family, "CAUSAL_LM"), packs)
        stack = stack_on(base, family, [0, 1])
        run = evaluate(stack, base, task, EvaluateConfig(batch_tokens=batch_tokens))
        while True:
            try:
                next(run)
            except StopIteration as stop:
                results.append(stop.value)
                break
        stack.detach()
    for packed, padded in zip(*results, strict=True):
        assert packed.metrics == pytest.approx(padded.metrics, rel=1e-10)
        assert packed.predictions == padded.predictions
    assert results[0][0].metrics["eval_loss"] != pytest.approx(results[0][1].metrics["eval_loss"], rel=1e-3)
