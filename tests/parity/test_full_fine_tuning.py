"""Full fine-tuning against transformers and torch alone: whole trajectories in float64, and what Trainer lets decay."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer, get_scheduler

from lorascope.base_model import BaseModel, head_modules, head_scale, weights_checksum
from lorascope.config import TrainConfig
from lorascope.data.packing import batch_order
from lorascope.data.record import Example
from lorascope.data.tree import sibling_groups
from lorascope.lora import elementwise, frozen
from lorascope.lora.full import FullStack
from lorascope.lora.last_block import find_last_block
from lorascope.lora.stack import Slot
from lorascope.train import train

FAMILIES = [
    ("bert", "SEQ_CLS"),
    ("gpt2", "CAUSAL_LM"),
    ("qwen2", "CAUSAL_LM"),
    ("t5", "SEQ_2_SEQ_LM"),
]
SETTINGS = TrainConfig(epochs=3, batch_size=4, learning_rate=5e-3, weight_decay=0.1, warmup_ratio=0.2, max_grad_norm=0.5)
SEED = 5


def examples_of(task_type, count=11):
    """Rows of many lengths; those of a causal task share beginnings, so that prefix trees have something to share."""
    generator = torch.Generator().manual_seed(3)

    def draw(length):
        return torch.randint(4, 150, (length,), generator=generator).tolist()

    trunk = draw(9)
    examples = []
    for index in range(count):
        length = 3 + int(torch.randint(0, 8, (1,), generator=generator))
        if task_type == "SEQ_CLS":
            examples.append(Example(str(index), draw(length), None, index % 3, length))
        elif task_type == "SEQ_2_SEQ_LM":
            examples.append(Example(str(index), [*draw(length), 1], None, None, length, target_ids=[*draw(1 + index % 3), 1]))
        else:
            ids = (trunk if index % 3 else []) + draw(length)
            is_target = [place >= len(ids) - 3 for place in range(len(ids))]
            examples.append(Example(str(index), ids, is_target, None, len(ids) - 3))
    return examples


def base_of(model, task_type):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.config.pad_token_id = 0
    heads = head_modules(model, task_type)
    plain = task_type != "SEQ_CLS"
    scale = head_scale(model) if plain else 1.0
    base = BaseModel(model, None, task_type, heads, (), weights_checksum(model, heads), plain, head_scale=scale)
    base.last_block = find_last_block(model, task_type)[0]
    return base


def mean_loss(model, task_type, examples):
    """Of the model's own logits (its loss is float32), one example after the other: the mean over what is supervised."""
    total, count = 0.0, 0
    for example in examples:
        ids = torch.tensor([example.input_ids])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if task_type == "SEQ_CLS":
            logits, labels = model(**inputs).logits, torch.tensor([example.label])
        elif task_type == "SEQ_2_SEQ_LM":
            labels = torch.tensor(example.target_ids)
            logits = model(**inputs, labels=labels[None]).logits[0]
        else:
            labels = ids[0, 1:].masked_fill(~torch.tensor(example.is_target[1:]), -100)
            logits = model(**inputs).logits[0, :-1]
        total = total + F.cross_entropy(logits, labels, reduction="sum")
        count += int((labels >= 0).sum())
    return total / count


def decaying_names(model):
    return Trainer.get_decay_parameter_names(None, model)


def plainly_trained(model, task_type, examples):
    """Losses and gradient norms of torch's AdamW on every parameter, Trainer's groups, clipping and schedule."""
    decaying = set(decaying_names(model))
    groups = [
        {"params": [p for name, p in model.named_parameters() if (name in decaying) == decays], "weight_decay": decay}
        for decays, decay in ((True, SETTINGS.weight_decay), (False, 0.0))
    ]
    optimiser = torch.optim.AdamW(groups, lr=SETTINGS.learning_rate, betas=(0.9, 0.999), eps=1e-8)
    num_steps = SETTINGS.num_steps(len(examples))
    warmup = math.ceil(SETTINGS.warmup_ratio * num_steps)
    schedule = get_scheduler("linear", optimiser, num_warmup_steps=warmup, num_training_steps=num_steps)
    losses, norms = [], []
    for epoch in range(SETTINGS.epochs):
        for rows in batch_order(sibling_groups(examples), SETTINGS.batch_size, SEED, epoch):
            loss = mean_loss(model, task_type, [examples[row] for row in rows])
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.max_grad_norm).item())
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            losses.append(loss.item())
    return losses, norms


@pytest.mark.parametrize(("family", "task_type"), FAMILIES)
def test_a_trajectory_equals_plain_full_fine_tuning_and_the_base_comes_back(family, task_type, tiny_model):
    examples = examples_of(task_type)
    model, alone = tiny_model(family, task_type), tiny_model(family, task_type)
    base = base_of(model, task_type)
    frozen.install(model, "plain", base.heads)
    elementwise.install(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        first = mean_loss(model, task_type, examples)
    stack = FullStack(model, Slot("full", SEED, (), trains_base=True), base.heads)
    steps = list(train(stack, base, examples, {"full": SETTINGS}))
    assert base.packs is (task_type == "CAUSAL_LM" or None)
    losses, norms = plainly_trained(alone, task_type, examples)
    assert [step.slots["full"].loss for step in steps] == pytest.approx(losses, rel=1e-9)
    assert [step.slots["full"].grad_norm for step in steps] == pytest.approx(norms, rel=1e-9)
    assert max(losses) - min(losses) > 1e-2
    for (name, ours), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
        # The gradient of a key's bias is zero but for rounding, which Adam makes a step of.
        if not name.endswith(("key.bias", "k_lin.bias", "k_proj.bias", "c_attn.bias")):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")
    assert weights_checksum(model, base.heads) != base.checksum
    stack.detach()
    assert weights_checksum(model, base.heads) == base.checksum
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(mean_loss(model, task_type, examples), first)


@pytest.mark.parametrize(("family", "task_type"), [*FAMILIES, ("distilbert", "SEQ_CLS"), ("bart", "SEQ_2_SEQ_LM")])
def test_what_decays_is_what_trainer_lets_decay(family, task_type, tiny_model):
    model = tiny_model(family, task_type)
    stack = FullStack(model, Slot("full", SEED, (), trains_base=True))
    ours = {spec.name for spec in stack.parameters.specs if spec.decays}
    stack.detach()
    named = {name for name, _ in model.named_parameters()}
    assert ours == set(decaying_names(model)) & named
    assert ours
    assert named - ours
