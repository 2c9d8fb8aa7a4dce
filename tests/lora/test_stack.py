"""Invariants 2 and 4: a slot does not feel its neighbours, and the base is not touched."""

import math

import pytest
import torch

from lorascope.base_model import BaseModel, head_modules, head_scale, weights_checksum
from lorascope.config import TrainConfig
from lorascope.data.task import Example
from lorascope.errors import ModelError
from lorascope.lora.stack import AdapterWeights, Placement, Slot, Stack, count_trainable
from lorascope.lora.targets import resolve
from lorascope.train import forward_backward, train

FAMILIES = [(f, "SEQ_CLS") for f in ("gpt2", "bert", "distilbert", "roberta", "llama", "qwen2")] + [
    (f, "CAUSAL_LM") for f in ("gpt2", "llama", "qwen2", "phi3")
]
FAMILIES += [(f, "SEQ_2_SEQ_LM") for f in ("t5", "bart")]
SETTINGS = TrainConfig(batch_size=4, max_steps=5, learning_rate=1e-2, warmup_ratio=0.2)


def base_of(model, task_type):
    model.config.pad_token_id = 0
    heads = head_modules(model, task_type)
    scale = head_scale(model) if task_type == "SEQ_2_SEQ_LM" else 1.0
    checksum = weights_checksum(model, heads)
    return BaseModel(model, None, task_type, heads, (), checksum, plain_head=True, head_scale=scale)


def examples_for(task_type, count=10):
    generator = torch.Generator().manual_seed(5)
    examples = []
    for index in range(count):
        length = int(torch.randint(4, 11, (1,), generator=generator))
        ids = torch.randint(4, 150, (length,), generator=generator).tolist()
        causal = task_type == "CAUSAL_LM"
        target = [position >= length - 2 for position in range(length)] if causal else None
        label = index % 3 if task_type == "SEQ_CLS" else None
        # Some answers are as long as their question, some are not.
        answer = [*ids[::-1][: 2 + index % 9], 1] if task_type == "SEQ_2_SEQ_LM" else None
        examples.append(Example(str(index), ids, target, label, length - 2, target_ids=answer))
    return examples


def slot(base, name, targets, r, seed, **more):
    placements = tuple(Placement(target, r, 2.0) for target in resolve(base.model, targets, base.heads))
    return Slot(name, seed, placements, **more)


def randomise(stack):
    generator = torch.Generator().manual_seed(3)
    for index in range(stack.num_slots):
        weights = stack.read(index)
        for group in (weights.lora_B, weights.biases, weights.heads):
            for value in group.values():
                value += 0.2 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        stack.write(index, weights)


def mixed_slots(base):
    """Different rank, targets, dropout, bias and seed in every slot."""
    return [
        slot(base, "a", ["query", "value"], 2, 1, dropout=0.3),
        slot(base, "b", "all-linear", 6, 1, dropout=0.5, bias="all"),
        slot(base, "c", ["query"], 3, 2),
        slot(base, "d", ["output"], 1, 3, dropout=0.1, bias="lora_only"),
    ]


def run(base, slots, examples, base_dropout=False, drop_after=None, micro=None):
    """Losses by slot and final numbers by slot."""
    stack = Stack(base.model, slots, base.heads, base_dropout=base_dropout)
    losses = {one.name: [] for one in slots}
    settings = SETTINGS.model_copy(update={"micro_batch_size": micro})
    for step in train(stack, base, examples, {one.name: settings for one in slots}):
        for name, result in step.slots.items():
            losses[name].append(result.loss)
        if drop_after is not None and step.step == drop_after[0]:
            stack.keep([one.name for one in stack.slots if one.name != drop_after[1]])
    weights = {one.name: stack.read(index) for index, one in enumerate(stack.slots)}
    stack.detach()
    return losses, weights


def assert_same(one, other, tolerance=1e-9):
    for kind in ("lora_A", "lora_B", "biases", "heads"):
        left, right = getattr(one, kind), getattr(other, kind)
        assert left.keys() == right.keys()
        for name, value in left.items():
            # A bias of keys, alone or inside a fused projection, has no true gradient; Adam amplifies its rounding.
            if kind == "biases" and any(part in name for part in (".key.", "k_lin", "k_proj", "c_attn", "qkv_proj")):
                continue
            torch.testing.assert_close(value, right[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("family", "task_type"), FAMILIES)
def test_a_slots_result_does_not_depend_on_its_neighbours(family, task_type, tiny_model):
    base = base_of(tiny_model(family, task_type), task_type)
    examples = examples_for(task_type)
    together, weights = run(base, mixed_slots(base), examples)
    for one in mixed_slots(base):
        alone, own = run(base, [one], examples)
        assert together[one.name] == pytest.approx(alone[one.name], abs=1e-9)
        assert_same(weights[one.name], own[one.name])


def test_dropping_a_slot_in_the_middle_changes_nothing_for_the_others(tiny_model):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    examples = examples_for("SEQ_CLS")
    whole, weights = run(base, mixed_slots(base), examples)
    dropped, fewer = run(base, mixed_slots(base), examples, drop_after=(1, "b"))
    assert len(dropped["b"]) == 2
    for name in "acd":
        assert dropped[name] == pytest.approx(whole[name], abs=1e-9)
        assert_same(fewer[name], weights[name])


@pytest.mark.parametrize(("family", "task_type"), [("bert", "SEQ_CLS"), ("t5", "SEQ_2_SEQ_LM")])
def test_the_base_models_dropout_is_per_slot_too(family, task_type, tiny_model):
    base = base_of(tiny_model(family, task_type), task_type)
    examples = examples_for(task_type)
    together, _ = run(base, mixed_slots(base), examples, base_dropout=True)
    cut, _ = run(base, mixed_slots(base), examples, base_dropout=True, micro=1)
    alone, _ = run(base, mixed_slots(base)[2:3], examples, base_dropout=True)
    without, _ = run(base, mixed_slots(base)[2:3], examples)
    assert together["c"] == pytest.approx(alone["c"], abs=1e-9)
    assert cut["c"] == pytest.approx(alone["c"], abs=1e-9)
    assert alone["c"] != without["c"]


@pytest.mark.parametrize(("family", "task_type"), FAMILIES)
def test_a_slot_computes_with_its_active_targets_as_if_it_had_no_others(family, task_type, tiny_model):
    base = base_of(tiny_model(family, task_type), task_type)
    examples = examples_for(task_type)
    whole = slot(base, "whole", ["query", "value", "output"], 3, 1, dropout=0.3)
    trained = run(base, [whole], examples)[1]["whole"]
    everything = [placement.target.key for placement in whole.placements]
    coalitions = [["value"], [], ["query", "output"], ["query", "value", "output"]]
    without = [slot(base, "whole", names, 3, 1, dropout=0.3) for names in coalitions]
    results = [losses_alone(base, few, trained, examples) for few in without]
    stack = Stack(base.model, [whole, slot(base, "other", ["down"], 2, 2)], base.heads)
    try:
        stack.write(0, trained)
        for few, (alone, own) in zip(without, results, strict=True):
            stack.set_active(0, [placement.target.key for placement in few.placements])
            masked = losses_and_gradients(stack, base, examples, everything)
            assert masked[0] == pytest.approx(alone, abs=1e-12)
            for key in everything:
                expected = own.get(key, torch.zeros_like(masked[1][key]))
                torch.testing.assert_close(masked[1][key], expected, rtol=0, atol=1e-12)
        # It stays so when a neighbour goes.
        stack.set_active(0, [])
        empty = losses_and_gradients(stack, base, examples, everything)[0]
        stack.keep(["whole"])
        assert losses_and_gradients(stack, base, examples, everything)[0] == pytest.approx(empty, abs=1e-12)
    finally:
        stack.detach()


def losses_and_gradients(stack, base, examples, keys):
    """The first slot's loss and the gradients of its B's, by target."""
    rows = {seed: list(range(len(examples))) for seed in stack.context.seeds}
    loss = forward_backward(stack, base, examples, rows, None, 0)[0]
    gradients = {spec.name: value for spec, value in zip(stack.parameters.specs, gradients_of(stack), strict=True)}
    return float(loss), {key: gradients[f"{key}.lora_B"] for key in keys if f"{key}.lora_B" in gradients}


def gradients_of(stack):
    sizes = [math.prod(spec.shape) for spec in stack.parameters.specs]
    pieces = stack.parameters.gradients_NP[0].split(sizes)
    return [piece.clone().reshape(spec.shape) for piece, spec in zip(pieces, stack.parameters.specs, strict=True)]


def losses_alone(base, few, trained, examples):
    stack = Stack(base.model, [few], base.heads)
    try:
        keys = [placement.target.key for placement in few.placements]
        lora_A, lora_B = ({key: of[key] for key in keys} for of in (trained.lora_A, trained.lora_B))
        stack.write(0, AdapterWeights(few.placements, lora_A, lora_B, {}, trained.heads))
        return losses_and_gradients(stack, base, examples, keys)
    finally:
        stack.detach()


def test_dropout_that_is_no_module_is_refused_and_the_model_left_whole(tiny_model):
    base = base_of(tiny_model("bart", "SEQ_2_SEQ_LM"), "SEQ_2_SEQ_LM")
    names = [name for name, _ in base.model.named_modules()]
    with pytest.raises(ModelError, match=r"base_dropout.*per slot"):
        Stack(base.model, mixed_slots(base), base_dropout=True)
    assert [name for name, _ in base.model.named_modules()] == names


@pytest.mark.parametrize(
    ("family", "task_type"),
    [("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM"), ("llama", "CAUSAL_LM"), ("gated-t5", "SEQ_2_SEQ_LM")],
)
def test_micro_batches_change_neither_losses_nor_weights(family, task_type, tiny_model):
    """Invariant 6, dropout included: a mask belongs to a token, not to a micro-batch."""
    base = base_of(tiny_model(family, task_type), task_type)
    examples = examples_for(task_type)
    whole, weights = run(base, mixed_slots(base), examples)
    for micro in (1, 3):
        cut, other = run(base, mixed_slots(base), examples, micro=micro)
        for name in whole:
            assert cut[name] == pytest.approx(whole[name], abs=1e-9)
            assert_same(other[name], weights[name])


@pytest.mark.parametrize(("family", "task_type"), FAMILIES)
def test_training_and_detaching_leave_the_base_as_it_was(family, task_type, tiny_model):
    model = tiny_model(family, task_type)
    base = base_of(model, task_type)
    names = [name for name, _ in model.named_modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stack = Stack(model, mixed_slots(base), base.heads)
    assert weights_checksum(model, base.heads) == base.checksum
    list(train(stack, base, examples_for(task_type), dict.fromkeys("abcd", SETTINGS)))
    assert stack.base_gradients() == 0
    assert weights_checksum(model, base.heads) == base.checksum
    stack.detach()
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_changed_base_weight_changes_the_checksum(tiny_model):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    with torch.no_grad():
        base.model.bert.encoder.layer[1].output.dense.weight[3, 4] += 1e-7
    assert weights_checksum(base.model, base.heads) != base.checksum


@pytest.mark.parametrize(("family", "task_type"), FAMILIES)
def test_the_count_of_trainable_parameters_is_what_trains(family, task_type, tiny_model):
    base = base_of(tiny_model(family, task_type), task_type)
    for one in mixed_slots(base):
        expected = count_trainable(base.model, one, base.heads)
        stack = Stack(base.model, [one], base.heads)
        assert stack.parameters.values_NP.shape == (1, expected)
        weights = stack.read(0)
        groups = (weights.lora_A, weights.lora_B, weights.biases, weights.heads)
        assert sum(value.numel() for group in groups for value in group.values()) == expected
        stack.detach()


def test_the_empty_coalition_trains_the_head_alone(tiny_model):
    base = base_of(tiny_model("distilbert"), "SEQ_CLS")
    _, weights = run(base, [Slot("none", 1, ())], examples_for("SEQ_CLS"))
    assert set(weights["none"].heads) == {
        "pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"
    }  # fmt: skip
    assert not torch.equal(weights["none"].heads["classifier.weight"], base.model.classifier.weight)


def test_what_cannot_be_stacked_is_refused_and_the_model_left_whole(tiny_model):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    names = [name for name, _ in base.model.named_modules()]
    with pytest.raises(ModelError, match="word_embeddings"):
        Stack(base.model, mixed_slots(base), (*base.heads, "bert.embeddings.word_embeddings"))
    assert [name for name, _ in base.model.named_modules()] == names


def test_a_trained_output_head_keeps_slots_apart(tiny_model):
    """Slots of different seeds have different numbers of target tokens; each must meet its own head."""
    base = base_of(tiny_model("llama", "CAUSAL_LM"), "CAUSAL_LM")
    base.heads = ("lm_head",)
    generator = torch.Generator().manual_seed(8)
    examples = []
    for index in range(10):
        length = 5 + index % 4
        ids = torch.randint(4, 150, (length,), generator=generator).tolist()
        examples.append(Example(str(index), ids, [position > index % 3 for position in range(length)], None, 1))
    slots = [slot(base, "a", ["query"], 2, 1), slot(base, "b", ["query"], 2, 2)]
    together, weights = run(base, slots, examples)
    for one in slots:
        alone, own = run(base, [one], examples)
        assert together[one.name] == pytest.approx(alone[one.name], abs=1e-9)
        assert_same(weights[one.name], own[one.name])


def test_a_stack_that_fails_halfway_leaves_the_model_whole(tiny_model, monkeypatch):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    names = [name for name, _ in base.model.named_modules()]

    def out_of_memory(*arguments, **more):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("lorascope.lora.stack.SlotParameters", out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            Stack(base.model, mixed_slots(base), base.heads)
    assert [name for name, _ in base.model.named_modules()] == names
    Stack(base.model, mixed_slots(base), base.heads).detach()


@pytest.mark.parametrize(("family", "task_type"), [("gpt2", "CAUSAL_LM"), ("bert", "SEQ_CLS"), ("t5", "SEQ_2_SEQ_LM")])
def test_some_slots_run_alone_as_they_run_among_all(family, task_type, tiny_model):
    base = base_of(tiny_model(family, task_type), task_type)
    stack = Stack(base.model, [*mixed_slots(base), Slot("none", 7, ())], base.heads)
    randomise(stack)
    ids = torch.tensor([[5, 9, 33, 71, 12, 4], [8, 90, 14, 7, 3, 6]])

    def logits(times):
        inputs = {"input_ids": ids.repeat(times, 1)}
        inputs |= {"decoder_input_ids": ids[:, 1:4].repeat(times, 1)} if task_type == "SEQ_2_SEQ_LM" else {}
        with torch.no_grad():
            return base.model(**inputs).logits.unflatten(0, (times, 2))

    among_all = logits(5)
    for chosen in ([1], [4], [3, 0], [2, 4, 1]):
        with stack.running(chosen):
            assert stack.num_slots == len(chosen)
            assert stack.context.seeds == [[1, 1, 2, 3, 7][index] for index in chosen]
            torch.testing.assert_close(logits(len(chosen)), among_all[chosen], rtol=0, atol=1e-11)
    assert torch.equal(logits(5), among_all)
    with pytest.raises(KeyError, match="stopped"), stack.running([1]):
        raise KeyError("stopped")
    assert torch.equal(logits(5), among_all)
    stack.detach()
