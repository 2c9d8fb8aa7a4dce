"""THE LOOP: schedule, optimiser and losses against transformers and torch, and slots that diverge."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from lorascope import losses
from lorascope import train as train_module
from lorascope.base_model import BaseModel, head_modules
from lorascope.config import TrainConfig
from lorascope.data.packing import batch_order, collate
from lorascope.data.task import Example
from lorascope.errors import RunError
from lorascope.lora.parameters import ParameterSpec, SlotParameters
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.losses import model_inputs, padded_losses
from lorascope.train import adamw_step, fitting_gradients, forward_backward, learning_rate, train

SCHEDULES = {
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
    "constant": lambda optimizer, warmup, total: get_constant_schedule_with_warmup(optimizer, warmup),
}
FORMS = [("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM"), ("llama", "CAUSAL_LM")]

SINGLES = [[index] for index in range(10)]


def base_of(model, task_type, plain_head=True):
    model.config.pad_token_id = 0
    return BaseModel(model, None, task_type, head_modules(model, task_type), (), "", plain_head)


def examples_for(task_type, count=10):
    generator = torch.Generator().manual_seed(5)
    examples = []
    for index in range(count):
        length = int(torch.randint(4, 11, (1,), generator=generator))
        ids = torch.randint(4, 150, (length,), generator=generator).tolist()
        causal = task_type == "CAUSAL_LM"
        target = [position >= length - 1 - index % 3 for position in range(length)] if causal else None
        examples.append(Example(str(index), ids, target, None if causal else index % 3, length - 2))
    return examples


def slots_of(base, count=3):
    """Slots of one seed that differ in rank, with dropout and, in one of them, biases."""
    slots = []
    for index in range(count):
        targets = resolve(base.model, ["query", "value"], base.heads)
        placements = tuple(Placement(target, index + 1, 2.0) for target in targets)
        slots.append(Slot(f"s{index}", 1, placements, dropout=0.1 * index, bias="all" if index == 1 else "none"))
    return slots


def randomise_lora_B(stack):
    """B starts at zero, where A has no gradient; here both have one."""
    for index in range(stack.num_slots):
        weights = stack.read(index)
        generator = torch.Generator().manual_seed(index)
        for value in weights.lora_B.values():
            value += 0.2 * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
        stack.write(index, weights)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("total", "ratio"), [(1, 0.06), (7, 0.0), (10, 0.3), (50, 0.06), (33, 0.5), (5, 1.0)])
def test_the_schedule_is_transformers_own(schedule, total, ratio):
    settings = TrainConfig(learning_rate=3e-3, schedule=schedule, warmup_ratio=ratio)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-3)
    scheduler = SCHEDULES[schedule](optimizer, -int(-total * ratio // 1), total)
    theirs = []
    for _ in range(total):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [learning_rate(settings, step, total) for step in range(total)] == pytest.approx(theirs, rel=1e-12, abs=1e-18)


def two_parameters(num_slots):
    specs = [
        ParameterSpec("weight", (3, 4), None, (True,) * num_slots, decays=True),
        ParameterSpec("bias", (4,), None, (True,) * num_slots, decays=False),
    ]
    parameters = SlotParameters(specs, num_slots, torch.float64, torch.device("cpu"))
    parameters.values_NP.copy_(torch.randn(num_slots, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return parameters


@pytest.mark.parametrize("numbers_at_once", [2**22, 5])
def test_the_optimiser_is_torchs_adamw_with_clipping_for_every_slot(numbers_at_once, monkeypatch):
    """Decay on weights and not on biases; the first slot is clipped hard, the second never, the third has no decay."""
    settings = [
        TrainConfig(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.05),
        TrainConfig(learning_rate=3e-2, weight_decay=0.3, max_grad_norm=1e6),
        TrainConfig(learning_rate=2e-3, max_grad_norm=1.0),
    ]
    monkeypatch.setattr(train_module, "_MOST_NUMBERS_AT_ONCE", numbers_at_once)
    parameters = two_parameters(3)
    references, optimizers = [], []
    for slot, one in enumerate(settings):
        row = parameters.values_NP[slot].clone()
        weight, bias = nn.Parameter(row[:12].clone()), nn.Parameter(row[12:].clone())
        references.append((weight, bias))
        groups = [{"params": [weight], "weight_decay": one.weight_decay}, {"params": [bias], "weight_decay": 0.0}]
        optimizers.append(torch.optim.AdamW(groups, lr=one.learning_rate))
    generator = torch.Generator().manual_seed(2)
    for step in range(20):
        gradients_NP = torch.randn(3, 16, generator=generator, dtype=torch.float64)
        rates = [one.learning_rate / (step + 1) for one in settings]
        parameters.gradients_NP.copy_(gradients_NP)
        norms_N, finite_N = adamw_step(parameters, torch.ones(3, dtype=torch.float64), step, rates, settings)
        assert finite_N.all()
        for slot, (optimizer, (weight, bias)) in enumerate(zip(optimizers, references, strict=True)):
            weight.grad, bias.grad = gradients_NP[slot, :12].clone(), gradients_NP[slot, 12:].clone()
            norm = nn.utils.clip_grad_norm_([weight, bias], settings[slot].max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = rates[slot]
            optimizer.step()
            assert norms_N[slot].item() == pytest.approx(norm.item(), rel=1e-12)
            expected = torch.cat([weight, bias]).detach()
            torch.testing.assert_close(parameters.values_NP[slot], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("numbers_at_once", [2**22, 5])
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_slot_that_is_not_finite_is_left_alone_and_said_so(broken, numbers_at_once, monkeypatch):
    monkeypatch.setattr(train_module, "_MOST_NUMBERS_AT_ONCE", numbers_at_once)
    settings = [TrainConfig(weight_decay=0.1)] * 3
    parameters, reference = two_parameters(3), two_parameters(3)
    before = parameters.values_NP.clone()
    gradients_NP = torch.ones(3, 16, dtype=torch.float64)
    losses_N = torch.ones(3, dtype=torch.float64)
    reference.gradients_NP.copy_(gradients_NP)
    adamw_step(reference, losses_N, 0, [1e-2] * 3, settings)
    if broken == "loss":
        losses_N[1] = float("nan")
    else:
        gradients_NP[1, 5] = float("inf")
    parameters.gradients_NP.copy_(gradients_NP)
    _, finite_N = adamw_step(parameters, losses_N, 0, [1e-2] * 3, settings)
    assert finite_N.tolist() == [True, False, True]
    assert torch.equal(parameters.values_NP[1], before[1])
    assert torch.isfinite(parameters.first_moment_NP).all()
    assert torch.isfinite(parameters.second_moment_NP).all()
    for slot in (0, 2):
        assert torch.equal(parameters.values_NP[slot], reference.values_NP[slot])


@pytest.mark.parametrize(("family", "task_type"), FORMS)
def test_a_slot_with_nan_leaves_its_neighbours_trajectories_as_they_were(family, task_type, tiny_model):
    base = base_of(tiny_model(family, task_type), task_type)
    examples = examples_for(task_type)
    settings = {f"s{index}": TrainConfig(batch_size=4, max_steps=5, learning_rate=1e-2) for index in range(3)}

    def run(with_nan):
        stack = Stack(base.model, slots_of(base), base.heads)
        name = next(spec.name for spec in stack.parameters.specs if spec.name.endswith("lora_A"))
        if with_nan:
            stack.parameters[name].data[1, 0, 0] = float("nan")
        before = stack.parameters.values_NP[1].clone()
        steps = list(train(stack, base, examples, settings))
        if with_nan:
            assert torch.equal(stack.parameters.values_NP[1].nan_to_num(nan=7.0), before.nan_to_num(nan=7.0))
        values_NP = stack.parameters.values_NP.clone()
        stack.detach()
        return steps, values_NP

    whole, values_NP = run(with_nan=False)
    broken, others_NP = run(with_nan=True)
    assert all(step.slots[name].finite for step in whole for name in settings)
    assert not any(step.slots["s1"].finite for step in broken)
    for name in ("s0", "s2"):
        assert [step.slots[name] for step in broken] == [step.slots[name] for step in whole]
    assert torch.equal(others_NP[[0, 2]], values_NP[[0, 2]])


def test_a_slot_dropped_after_it_diverged_is_gone_from_the_next_step_and_an_empty_stack_ends_the_loop(tiny_model):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    stack = Stack(base.model, slots_of(base), base.heads)
    seen = []
    for step in train(stack, base, examples_for("SEQ_CLS"), {f"s{i}": TrainConfig(max_steps=9) for i in range(3)}):
        seen.append(sorted(step.slots))
        stack.keep(seen[-1][1:])
    stack.detach()
    assert seen == [["s0", "s1", "s2"], ["s1", "s2"], ["s2"]]


@pytest.mark.parametrize("chunk", [1, 3, 7])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_loss_in_chunks_is_the_loss_in_one_piece_in_value_and_gradient(family, chunk, tiny_model, monkeypatch):
    base = base_of(tiny_model(family, "CAUSAL_LM"), "CAUSAL_LM")
    examples = examples_for("CAUSAL_LM")
    stack = Stack(base.model, slots_of(base))
    randomise_lora_B(stack)
    results = []
    for size in (10**6, chunk):
        monkeypatch.setattr(losses, "LOGIT_CHUNK", size)
        losses_N = forward_backward(stack, base, examples, {1: [0, 1, 2, 3]}, None, 0)
        results.append((losses_N, stack.parameters.gradients_NP.clone()))
    stack.detach()
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-12)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=0, atol=1e-12)
    assert results[0][1].abs().max() > 1e-3


@pytest.mark.parametrize("plain_head", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "phi3"])
def test_the_loss_is_transformers_own_over_the_target_tokens(family, plain_head, tiny_model):
    base = base_of(tiny_model(family, "CAUSAL_LM"), "CAUSAL_LM", plain_head)
    examples = examples_for("CAUSAL_LM")
    rows = [4, 0, 7, 2]
    batch = collate(examples, rows, 0)
    labels = batch.input_ids_BT.masked_fill(~batch.is_target_BT, -100)
    with torch.no_grad():
        theirs = base.model(**model_inputs(batch, base.device), labels=labels).loss.item()
    stack = Stack(base.model, slots_of(base, 2))
    ours_N = forward_backward(stack, base, examples, {1: rows}, None, 0)
    stack.detach()
    # B is zero, so every slot is the base itself; transformers computes the loss in float32.
    assert ours_N.tolist() == pytest.approx([theirs, theirs], rel=1e-5)


def test_an_output_head_that_is_trained_gives_each_slot_its_own_loss(tiny_model):
    """A checkpoint without its output head: the head is new, and every slot has a copy."""
    base = base_of(tiny_model("llama", "CAUSAL_LM"), "CAUSAL_LM")
    examples = examples_for("CAUSAL_LM")
    rows = [4, 0, 7, 2]
    batch = collate(examples, rows, 0)
    labels = batch.input_ids_BT.masked_fill(~batch.is_target_BT, -100)
    theirs = []
    original = base.model.lm_head.weight.detach().clone()
    for factor in (1.0, 0.5):
        with torch.no_grad():
            base.model.lm_head.weight.copy_(factor * original)
            theirs.append(base.model(**model_inputs(batch, base.device), labels=labels).loss.item())
    base.model.lm_head.weight.data.copy_(original)
    stack = Stack(base.model, slots_of(base, 2), ("lm_head",))
    stack.parameters["lm_head.weight"].data[1] *= 0.5
    ours_N = forward_backward(stack, base, examples, {1: rows}, None, 0)
    stack.detach()
    assert ours_N.tolist() == pytest.approx(theirs, rel=1e-5)
    assert abs(theirs[0] - theirs[1]) > 1e-2


def test_the_loss_of_a_classifier_is_transformers_own(tiny_model):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    examples = examples_for("SEQ_CLS")
    batch = collate(examples, [4, 0, 7, 2], 0)
    with torch.no_grad():
        theirs = base.model(**model_inputs(batch, base.device), labels=batch.labels_B).loss.item()
    stack = Stack(base.model, slots_of(base, 2), base.heads)
    ours_N = forward_backward(stack, base, examples, {1: [4, 0, 7, 2]}, 2, 0)
    stack.detach()
    assert ours_N.tolist() == pytest.approx([theirs, theirs], rel=1e-9)


def test_a_row_without_a_target_in_its_batch_adds_nothing(tiny_model):
    base = base_of(tiny_model("gpt2", "CAUSAL_LM"), "CAUSAL_LM")
    examples = examples_for("CAUSAL_LM", 3)
    silent = Example("silent", [5, 6, 7], [True, False, False], None, 1)
    stack = Stack(base.model, slots_of(base, 1))
    alone = forward_backward(stack, base, examples, {1: [0, 1]}, None, 0)
    gradients = stack.parameters.gradients_NP.clone()
    beside = forward_backward(stack, base, [*examples, silent], {1: [0, 1, 3]}, None, 0)
    torch.testing.assert_close(beside, alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(stack.parameters.gradients_NP, gradients, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert padded_losses(base, collate([silent], [0], 0)).tolist() == [0.0]
    with pytest.raises(RunError, match="example silent: a batch has no target token"):
        forward_backward(stack, base, [silent], {1: [0]}, None, 0)
    stack.detach()


def steps_of(base, settings, num_examples=10):
    stack = Stack(base.model, slots_of(base, 1), base.heads)
    steps = list(train(stack, base, examples_for(base.task_type, num_examples), {"s0": settings}))
    values_NP = stack.parameters.values_NP.clone()
    stack.detach()
    return steps, values_NP


def test_a_training_that_was_broken_off_goes_on_from_its_parameters_and_the_number_of_steps_done(tiny_model):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    settings = TrainConfig(batch_size=4, epochs=3, warmup_ratio=0.5)
    whole, values_NP = steps_of(base, settings)
    states = []
    for first, steps in ((0, 4), (4, 5)):
        stack = Stack(base.model, slots_of(base, 1), base.heads)
        if states:
            stack.parameters.load_state(states)
        course = train(stack, base, examples_for("SEQ_CLS", 10), {"s0": settings}, first)
        part = [next(course) for _ in range(steps)]
        states = [(name, tensor.clone()) for name, tensor in stack.parameters.state(with_moments=True).items()]
        assert [replace(step, seconds=0) for step in part] == [
            replace(step, seconds=0) for step in whole[first : first + steps]
        ]
        stack.detach()
    assert torch.equal(dict(states)["values"], values_NP)


def test_epochs_and_max_steps_say_how_long_it_trains(tiny_model):
    base = base_of(tiny_model("distilbert"), "SEQ_CLS")
    steps, _ = steps_of(base, TrainConfig(batch_size=4, epochs=2))
    assert [(step.step, step.num_steps, step.epoch, step.num_examples) for step in steps] == [
        (index, 6, index // 3, 2 if index % 3 == 2 else 4) for index in range(6)
    ]
    steps, _ = steps_of(base, TrainConfig(batch_size=4, epochs=1, max_steps=7))
    assert [(step.epoch, step.num_steps) for step in steps] == [(0, 7)] * 3 + [(1, 7)] * 3 + [(2, 7)]
    steps, _ = steps_of(base, TrainConfig(batch_size=4, epochs=9, max_steps=2))
    assert len(steps) == 2
    assert steps_of(base, TrainConfig(max_steps=0))[0] == []


def test_every_epoch_goes_through_all_examples_in_an_order_of_its_own(tiny_model):
    base = base_of(tiny_model("distilbert"), "SEQ_CLS")
    examples = examples_for("SEQ_CLS")
    lengths = [len(example.input_ids) for example in examples]
    steps, _ = steps_of(base, TrainConfig(batch_size=4, max_steps=6, learning_rate=1e-12))
    orders = [batch_order(SINGLES, 4, 1, epoch) for epoch in (0, 1)]
    assert [step.num_tokens for step in steps] == [
        sum(lengths[row] for row in rows) for rows in itertools.chain.from_iterable(orders)
    ]
    assert sum(step.num_tokens for step in steps) == 2 * sum(lengths)
    assert steps[0].slots["s0"].loss != pytest.approx(steps[3].slots["s0"].loss, abs=1e-6)


def test_a_step_reports_what_was_before_its_update(tiny_model):
    base = base_of(tiny_model("distilbert"), "SEQ_CLS")
    settings = TrainConfig(batch_size=4, max_steps=4, learning_rate=1e-2, warmup_ratio=0.5, max_grad_norm=1e-3)
    steps, _ = steps_of(base, settings)
    stack = Stack(base.model, slots_of(base, 1), base.heads)
    first = forward_backward(stack, base, examples_for("SEQ_CLS"), {1: batch_order(SINGLES, 4, 1, 0)[0]}, None, 0)
    assert steps[0].slots["s0"].loss == pytest.approx(first.item(), abs=1e-12)
    assert steps[0].slots["s0"].grad_norm == pytest.approx(stack.parameters.gradients_NP.norm().item(), rel=1e-12)
    stack.detach()
    assert [step.slots["s0"].learning_rate for step in steps] == pytest.approx([0.0, 5e-3, 1e-2, 5e-3])
    assert all(step.seconds > 0 for step in steps)


def test_the_first_step_of_a_warm_up_has_rate_zero_and_changes_nothing(tiny_model):
    base = base_of(tiny_model("distilbert"), "SEQ_CLS")
    _, still = steps_of(base, TrainConfig(max_steps=1, warmup_ratio=1.0))
    _, initial = steps_of(base, TrainConfig(max_steps=0))
    _, moved = steps_of(base, TrainConfig(max_steps=1, warmup_ratio=0.0))
    assert torch.equal(still, initial)
    assert not torch.equal(moved, initial)


def test_training_moves_the_global_generator_nowhere(tiny_model):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    state = torch.get_rng_state()
    stack = Stack(base.model, slots_of(base), base.heads, base_dropout=True)
    list(train(stack, base, examples_for("SEQ_CLS"), {f"s{index}": TrainConfig(max_steps=2) for index in range(3)}))
    stack.detach()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize(("family", "task_type"), [*FORMS, ("distilbert", "SEQ_CLS"), ("qwen2", "CAUSAL_LM")])
def test_a_base_in_low_precision_gives_the_losses_and_gradients_of_float64(family, task_type, dtype, tolerance, tiny_model):
    """Invariant 1, its second half. The same rounded weights in both precisions, random A's and B's."""
    examples = examples_for(task_type)
    results = []
    for precision in (torch.float64, dtype):
        base = base_of(tiny_model(family, task_type).to(dtype).to(precision), task_type)
        stack = Stack(base.model, slots_of(base), base.heads)
        randomise_lora_B(stack)
        losses_N = forward_backward(stack, base, examples, {1: list(range(8))}, None, 0)
        results.append((losses_N, stack.parameters.gradients_NP.double()))
        stack.detach()
    (losses_N, gradients_NP), (low_losses_N, low_gradients_NP) = results
    torch.testing.assert_close(low_losses_N, losses_N, rtol=tolerance, atol=0)
    torch.testing.assert_close(low_gradients_NP.norm(dim=1), gradients_NP.norm(dim=1), rtol=tolerance, atol=0)
    differences_N = (low_gradients_NP - gradients_NP).norm(dim=1) / gradients_NP.norm(dim=1)
    assert differences_N.max() < 2 * tolerance
    assert gradients_NP.norm(dim=1).min() > 1e-2


def siblings(count=6):
    """Causal examples that share a trunk of 20 tokens, and one that shares nothing; the last tokens are targets."""
    generator = torch.Generator().manual_seed(9)
    trunk = torch.randint(4, 150, (20,), generator=generator).tolist()
    rows = [[*trunk, *torch.randint(4, 150, (3 + index,), generator=generator).tolist()] for index in range(count - 1)]
    rows.append(torch.randint(4, 150, (9,), generator=generator).tolist())
    return [Example(str(i), ids, [place >= len(ids) - 3 for place in range(len(ids))], None, 4) for i, ids in enumerate(rows)]


def scarce(monkeypatch, base, most_tokens, error):
    """Memory for so many tokens of all slots in one forward pass."""
    passes = []
    embedding = base.model.get_input_embeddings()
    original = embedding.forward

    def forward(ids):
        passes.append(ids.numel())
        if passes[-1] > most_tokens:
            raise error
        return original(ids)

    monkeypatch.setattr(embedding, "forward", forward)
    return passes


OUT_OF_MEMORY = [
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("rows", ["encoder", "padded", "trees"])
def test_a_batch_that_runs_out_of_memory_is_done_again_in_halves_with_the_same_gradient(rows, error, tiny_model, monkeypatch):
    """With dropout: a token keeps its mask, also where its trunk is stored in several pieces."""
    task_type = "SEQ_CLS" if rows == "encoder" else "CAUSAL_LM"
    base = base_of(tiny_model("bert" if rows == "encoder" else "gpt2", task_type), task_type)
    base.packs = rows == "trees"
    examples = examples_for(task_type, 6) if rows == "encoder" else siblings()
    stack = Stack(base.model, slots_of(base), base.heads)
    randomise_lora_B(stack)
    batch = {1: [3, 0, 5, 1, 4, 2]}
    whole_N, size = fitting_gradients(stack, base, examples, batch, None, 7)
    gradients_NP = stack.parameters.gradients_NP.clone()
    assert size is None
    most = 3 * max(len(example.input_ids) for example in examples) + 1  # three slots, one row of each
    passes = scarce(monkeypatch, base, most, error)
    losses_N, size = fitting_gradients(stack, base, examples, batch, None, 7)
    assert size == 1
    assert max(passes) > most, "memory ran out"
    stack.detach()
    torch.testing.assert_close(losses_N, whole_N, rtol=0, atol=1e-12)
    torch.testing.assert_close(stack.parameters.gradients_NP, gradients_NP, rtol=0, atol=1e-12)
    assert gradients_NP[2].abs().max() > 1e-3  # a slot with dropout


def test_the_smaller_micro_batch_stays_and_an_example_that_does_not_fit_raises(tiny_model, monkeypatch):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    settings = TrainConfig(batch_size=8, max_steps=3)
    monkeypatch.setattr("lorascope.data.packing._PASS_OVERHEAD_TOKENS", 10**6)  # no cutting by length
    with monkeypatch.context() as patch:
        passes = scarce(patch, base, 4 * 10, MemoryError())
        steps, _ = steps_of(base, settings)
    assert [step.micro_batch_size for step in steps] == [4, 4, 4]
    assert sum(tokens > 40 for tokens in passes) == 1, "it runs out once"
    with monkeypatch.context() as patch:
        scarce(patch, base, 10**9, MemoryError())
        assert [step.micro_batch_size for step in steps_of(base, settings)[0]] == [None] * 3
    scarce(monkeypatch, base, 1, MemoryError())
    with pytest.raises(MemoryError):
        steps_of(base, settings)


def test_another_error_is_not_taken_for_a_lack_of_memory(tiny_model, monkeypatch):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    passes = scarce(monkeypatch, base, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        steps_of(base, TrainConfig(batch_size=8, max_steps=1))
    assert len(passes) == 1


def test_values_whose_squares_overflow_are_not_finite():
    """A norm inside the model may hide them from loss and gradient."""
    parameters = two_parameters(2)
    parameters.values_NP[1, 3] = 1e200
    parameters.gradients_NP.fill_(0.5)
    _, finite_N = adamw_step(parameters, torch.ones(2, dtype=torch.float64), 0, [1e-2] * 2, [TrainConfig()] * 2)
    assert finite_N.tolist() == [True, False]


def test_a_norm_taken_part_by_part_is_the_whole_ones(monkeypatch):
    gradients_NP = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    whole = torch.linalg.vector_norm(gradients_NP.double(), dim=1)
    torch.testing.assert_close(train_module._norms(gradients_NP), whole, rtol=1e-14, atol=0)
    monkeypatch.setattr(train_module, "_MOST_NUMBERS_AT_ONCE", 64)
    torch.testing.assert_close(train_module._norms(gradients_NP), whole, rtol=1e-14, atol=0)
    assert train_module._norms(torch.zeros(2, 0)).tolist() == [0.0, 0.0]
