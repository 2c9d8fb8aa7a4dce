"""Checks of the stack's own promises: what trains and what does not, and that every number is the one of plain products.

Floor: doctor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from transformers import GPT2Config

from lorascope.base_model import BaseModel, skeleton, weights_checksum
from lorascope.config import TrainConfig
from lorascope.data.record import Example
from lorascope.data.tree import plant
from lorascope.doctor import models
from lorascope.doctor.finding import Finding, Setting, beyond
from lorascope.lora.linear import num_parameters
from lorascope.lora.stack import AdapterWeights, Placement, Slot, Stack, count_trainable
from lorascope.lora.targets import resolve
from lorascope.train import SlotStep, forward_backward, train

# Relative differences that rounding explains.
_EXACT = 1e-10
_SINGLE = 1e-4
# An adapter changes the outputs by this share of them at least, or equal outputs would show nothing.
_EFFECT = 1e-3
# r, lora_alpha, target modules, trainable parameters, all of them, percent: GPT-2 (124,439,808 parameters).
_GPT2 = 124_439_808
_GPT2_TABLE = (
    (4, 16, ("c_attn",), 147_456, 124_587_264, "0.1184"),
    (8, 16, ("c_attn",), 294_912, 124_734_720, "0.2364"),
    (16, 16, ("c_attn",), 589_824, 125_029_632, "0.4717"),
    (8, 16, ("c_attn", "mlp.c_proj"), 663_552, 125_103_360, "0.5304"),
    (32, 32, ("c_attn", "mlp.c_proj"), 2_654_208, 127_094_016, "2.0884"),
)


def frozen_base(setting: Setting) -> Finding:
    """Train a classifier's adapters, biases and head for some steps: no base number takes a gradient, none changes a bit."""
    base = models.as_base(models.make("bert", torch.float32, setting.device), "SEQ_CLS")
    parameters = dict(base.model.named_parameters())
    before = models.copied(base.model)
    slots = [models.slot(base.model, "a", 1, "all-linear", bias="all"), models.slot(base.model, "b", 2)]
    settings = TrainConfig(batch_size=4, max_steps=4, learning_rate=1e-2, warmup_ratio=0.0)
    with models.installed(base, slots) as stack:
        begun = stack.parameters.values_NP.clone()
        for _ in train(stack, base, models.classified(), {"a": settings, "b": settings}):
            pass
        counted = stack.base_gradients()
        held = [name for name, one in parameters.items() if one.requires_grad or one.grad is not None]
        moved = int((stack.parameters.values_NP != begun).sum())
        during = weights_checksum(base.model, base.heads)
    altered = models.changed(before, base.model)
    after = weights_checksum(base.model, base.heads)
    wrong = []
    if held or counted:
        wrong.append(f"{max(len(held), counted)} base parameters take a gradient ({', '.join(held[:2]) or 'by count'})")
    if altered:
        wrong.append(f"{len(altered)} base tensors changed ({altered[0]})")
    if {during, after} != {base.checksum}:
        wrong.append("the base's checksum changed")
    if not moved:
        wrong.append("nothing was trained")
    numbers = sum(one.numel() for one in parameters.values())
    figures = {"base_parameters": numbers, "with_gradient": len(held), "changed": len(altered), "trained": moved}
    showed = f"{numbers:,} base numbers: 0 gradients, 0 changed, checksum equal; {moved:,} trained"
    return Finding(showed, figures, tuple(wrong))


def gradients_in_adapters(setting: Setting) -> Finding:
    """Gradients of two slots of different rank and targets lie in every number of their own adapters, and nowhere else."""
    model = models.make("gpt2", torch.float64, setting.device)
    base = models.as_base(model, packs=False)
    # By hand: r·(D + O) numbers a layer; D = 32, and a slice of c_attn has O = 32.
    slots = [models.slot(model, "small", 1, ("query",), r=2), models.slot(model, "large", 1, ("query", "value"), r=4)]
    expected = [2 * 2 * (32 + 32), 2 * 2 * 4 * (32 + 32)]
    examples = models.rows()
    with models.installed(base, slots) as stack:
        forward_backward(stack, base, examples, {1: list(range(len(examples)))}, None, 0)
        found = [models.gradients(stack, index) for index in range(2)]
        held = sum(one.grad is not None or one.requires_grad for one in model.parameters())
        shares = [_inside(gradients, one) for gradients, one in zip(found, slots, strict=True)]
    inside, outside = [one[0] for one in shares], sum(one[1] for one in shares)
    wrong = [f"{held} base parameters take a gradient"] if held else []
    if inside != expected:
        wrong.append(f"{inside} numbers of the two slots' adapters have a gradient, not {expected}")
    if outside:
        wrong.append(f"{outside:,} numbers outside a slot's own adapters have one")
    figures = {"inside": inside, "expected": expected, "outside": outside, "base": held}
    showed = f"in {inside[0]:,} and {inside[1]:,} numbers of two slots, as counted by hand; 0 elsewhere"
    return Finding(showed, figures, tuple(wrong))


def _inside(gradients: dict[str, Tensor], slot: Slot) -> tuple[int, int]:
    """How many numbers of a slot's own adapters have a gradient, and how many others."""
    own = 0
    for placement in slot.placements:
        key = placement.target.key
        own += int(gradients[f"{key}.lora_A"][: placement.r].count_nonzero())
        own += int(gradients[f"{key}.lora_B"][:, : placement.r].count_nonzero())
    return own, sum(int(value.count_nonzero()) for value in gradients.values()) - own


def forward(setting: Setting) -> Finding:
    """Logits of a stack against those of the bare model with ``W + (alpha / r)·B·A`` in the place of W, in float64."""
    figures = {
        "float64": _forward_error("gpt2", torch.float64, setting.device),
        "float32": _forward_error("llama", torch.float32, setting.device),
    }
    errors = {name: error for name, (error, _) in figures.items()}
    wrong = list(beyond(errors, {"float64": _EXACT, "float32": _SINGLE}))
    effect = min(effect for _, effect in figures.values())
    if not effect > _EFFECT:
        wrong.append("the adapters change nothing")
    showed = f"logits differ by {errors['float64']:.0e} (GPT-2, float64) and {errors['float32']:.0e} (Llama, float32)"
    return Finding(showed, {**errors, "effect": effect}, tuple(wrong))


def _forward_error(family: models.Family, dtype: torch.dtype, device: str) -> tuple[float, float]:
    """The largest error of two slots' logits, and how much the adapters change them at least."""
    base = models.as_base(models.make(family, dtype, device))
    exact = models.make(family, torch.float64, device)
    slots = [models.slot(exact, "a", 1, ("query", "value", "down")), models.slot(exact, "b", 2, r=2, scaling=0.5)]
    ids = models.ids_batch(device)
    with torch.no_grad(), models.installed(base, slots) as stack:
        found = base.model(input_ids=ids.repeat(2, 1)).logits.reshape(2, *ids.shape, -1)
        weights = [stack.read(index) for index in range(2)]
    with torch.no_grad():
        bare = exact(input_ids=ids).logits
        expected = [_dense_logits(exact, one, ids) for one in weights]
    error = max(models.relative(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    return error, min(models.relative(bare, theirs) for theirs in expected)


def _dense_logits(model: torch.nn.Module, weights: AdapterWeights, ids: Tensor) -> Tensor:
    logits: Tensor = functional_call(model, models.adapted_weights(model, weights), kwargs={"input_ids": ids}).logits
    return logits


def backward(setting: Setting) -> Finding:
    """Loss and gradients of A and B against autograd through ``W + (alpha / r)·B·A``, in float64 and by the float32 path."""
    errors: dict[str, float] = {}
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        errors |= {f"{name}_{kind}": error for kind, error in _backward_errors(dtype, setting.device).items()}
    limits = {name: _EXACT if name.startswith("float64") else _SINGLE for name in errors}
    wrong = beyond(errors, limits)
    showed = f"gradients differ by {errors['float64_gradient']:.0e} (float64) and {errors['float32_gradient']:.0e} (float32)"
    return Finding(showed, errors, wrong)


def _backward_errors(dtype: torch.dtype, device: str) -> dict[str, float]:
    base = models.as_base(models.make("gpt2", dtype, device), packs=False)
    exact = models.make("gpt2", torch.float64, device)
    examples = models.rows(4)
    slots = [models.slot(exact, "a", 1, ("query", "value", "down")), models.slot(exact, "b", 1, ("c_fc",), r=2, scaling=0.5)]
    with models.installed(base, slots) as stack:
        losses_N = forward_backward(stack, base, examples, {1: list(range(len(examples)))}, None, 0)
        weights = [stack.read(index) for index in range(2)]
        found = [models.gradients(stack, index) for index in range(2)]
    loss_error = gradient_error = 0.0
    for index, one in enumerate(weights):
        loss, expected = _dense_gradients(exact, one, examples)
        loss_error = max(loss_error, abs(float(losses_N[index]) - loss) / abs(loss))
        for name, gradient in expected.items():
            mine = found[index][name][tuple(slice(0, size) for size in gradient.shape)].double()
            gradient_error = max(gradient_error, float((mine - gradient).norm() / gradient.norm()))
    return {"loss": loss_error, "gradient": gradient_error}


def _dense_gradients(
    model: torch.nn.Module, weights: AdapterWeights, examples: list[Example]
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss over the target tokens, one row at a time without padding, and its gradients by the stack's names."""
    leaves = {
        f"{key}.{kind}": value.double().requires_grad_()
        for kind, group in (("lora_A", weights.lora_A), ("lora_B", weights.lora_B))
        for key, value in group.items()
    }
    lora_A = {key: leaves[f"{key}.lora_A"] for key in weights.lora_A}
    lora_B = {key: leaves[f"{key}.lora_B"] for key in weights.lora_B}
    losses = []
    for example in examples:
        ids = torch.tensor([example.input_ids], device=next(model.parameters()).device)
        logits = _dense_logits(model, AdapterWeights(weights.placements, lora_A, lora_B), ids)[0, :-1]
        chosen = torch.tensor((example.is_target or [])[1:], device=ids.device)
        losses.append(F.cross_entropy(logits[chosen], ids[0, 1:][chosen], reduction="none"))
    loss = torch.cat(losses).mean()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return float(loss.detach()), dict(zip(leaves, gradients, strict=True))


def loss_falls(setting: Setting) -> Finding:
    """A task that can be learned is learned: the next word of a cycle, and which of two classes a text is of."""
    cycle = [models.continued(str(k), [models.NUM_SPECIAL + (k + 3 * n) % 10 for n in range(5 + k % 5)], 1) for k in range(24)]
    causal = models.as_base(models.make("gpt2", torch.float32, setting.device), packs=False)
    classifier = models.as_base(models.make("bert", torch.float32, setting.device), "SEQ_CLS")
    figures: dict[str, float] = {}
    for name, base, examples in (("next_word", causal, cycle), ("classes", classifier, models.classified(24))):
        first, last = _learned(base, examples)
        figures |= {f"{name}_first": first, f"{name}_last": last}
    wrong = tuple(
        f"the loss of {name.replace('_', ' ')} went from {figures[f'{name}_first']:.2f} to {figures[f'{name}_last']:.2f}"
        for name in ("next_word", "classes")
        if not figures[f"{name}_last"] < 0.5 * figures[f"{name}_first"]
    )
    showed = "; ".join(
        f"{label} {figures[f'{name}_first']:.2f} → {figures[f'{name}_last']:.2f}"
        for name, label in (("next_word", "next word"), ("classes", "classes"))
    )
    return Finding(f"{showed} in 40 steps", figures, wrong)


def _learned(base: BaseModel, examples: list[Example]) -> tuple[float, float]:
    """Loss of the first three steps and of the last three."""
    settings = TrainConfig(batch_size=8, epochs=14, max_steps=40, learning_rate=1e-2)
    with models.installed(base, [models.slot(base.model, "a", 1, "all-linear", r=8)], spread=0.0) as stack:
        losses = [step.slots["a"].loss for step in train(stack, base, examples, {"a": settings})]
    return sum(losses[:3]) / 3, sum(losses[-3:]) / 3


def parameter_counts(setting: Setting) -> Finding:
    """The published counts of five GPT-2 configurations, on the meta device, without a weight."""
    model = skeleton(GPT2Config(), "CAUSAL_LM")
    base, rows = num_parameters(model), []
    wrong = []
    if base != _GPT2:
        wrong.append(f"GPT-2 has {base:,} parameters, not {_GPT2:,}")
    for r, alpha, targets, *expected in _GPT2_TABLE:
        placements = tuple(Placement(target, r, alpha / r) for target in resolve(model, targets, ()))
        trainable = count_trainable(model, Slot("table", 0, placements), ())
        found = [trainable, base + trainable, f"{100 * trainable / (base + trainable):.4f}"]
        rows.append(found)
        if found != expected:
            wrong.append(f"r={r} on {' and '.join(targets)}: {found}, not {expected}")
    showed = f"GPT-2 {base:,}; five configurations from {rows[0][0]:,} to {rows[-1][0]:,} trainable, all exact"
    return Finding(showed, {"base": base, "rows": rows}, tuple(wrong))


def prefix_trees(setting: Setting) -> Finding:
    """Losses and gradients of examples stored as prefix trees against one padded row for each."""
    examples = models.branching()
    own = {name: _packing_errors(*kind, examples, setting.device) for name, kind in _PACKED.items()}
    errors = {f"{name}_{kind}": error for name, found in own.items() for kind, error in found.items()}
    wrong = list(beyond(errors, {name: _EXACT if name.startswith("float64") else _SINGLE for name in errors}))
    stored = plant(examples, range(len(examples))).num_tokens
    tokens = sum(len(example.input_ids) for example in examples)
    if not stored < 0.7 * tokens:
        wrong.append(f"{stored} of {tokens} tokens are stored: what is shared is not found")
    figures = {**errors, "tokens": tokens, "stored": stored}
    error = errors["float64_gradient"]
    return Finding(f"{tokens} tokens stored as {stored}; gradients differ by {error:.0e} (float64)", figures, tuple(wrong))


_PACKED: dict[str, tuple[models.Family, torch.dtype]] = {
    "float64": ("gpt2", torch.float64),
    "float32": ("llama", torch.float32),
}


def _packing_errors(family: models.Family, dtype: torch.dtype, examples: list[Example], device: str) -> dict[str, float]:
    model = models.make(family, dtype, device)
    slots = [models.slot(model, "a", 1), models.slot(model, "b", 1, ("key", "down"), r=2)]
    results = []
    for packs in (True, False):
        base = models.as_base(model, packs=packs)
        with models.installed(base, slots) as stack:
            losses_N = forward_backward(stack, base, examples, {1: list(range(len(examples)))}, None, 0)
            results.append((losses_N, stack.parameters.gradients_NP.clone()))
    (loss, gradient), (plain_loss, plain_gradient) = results
    difference = float((gradient - plain_gradient).norm() / plain_gradient.norm())
    return {"loss": models.relative(loss, plain_loss), "gradient": difference}


def neighbours(setting: Setting) -> Finding:
    """A slot trained with dropout between others, one of which leaves, ends with the numbers of the slot trained alone."""
    base = models.as_base(models.make("gpt2", torch.float64, setting.device))
    slots = [
        models.slot(base.model, "first", 1, ("query",), r=8, dropout=0.1),
        models.slot(base.model, "middle", 2, r=3, dropout=0.4),
        models.slot(base.model, "last", 2, "all-linear", r=2, dropout=0.2),
    ]
    together, among = _trained(base, slots, "middle", leaves="first")
    lonely, alone = _trained(base, slots[1:2], "middle")
    errors = {
        "values": max(models.relative(among[name], value) for name, value in alone.items()),
        "loss": max(abs(one.loss - other.loss) / other.loss for one, other in zip(together, lonely, strict=True)),
    }
    wrong = beyond(errors, dict.fromkeys(errors, 1e-8))
    showed = f"between two others, one of which leaves, and alone: values differ by {errors['values']:.0e} after 5 steps"
    return Finding(showed, errors, wrong)


def _trained(
    base: BaseModel, slots: list[Slot], name: str, leaves: str | None = None
) -> tuple[list[SlotStep], dict[str, Tensor]]:
    """What one slot of several went through in five steps, and what it became.

    Args:
        leaves: a slot that is dropped after the second step.
    """
    settings = TrainConfig(batch_size=4, epochs=9, max_steps=5, learning_rate=1e-2, warmup_ratio=0.0, weight_decay=0.1)
    examples = [*models.branching(), *models.rows()]
    steps: list[SlotStep] = []
    with models.installed(base, slots) as stack:
        for step in train(stack, base, examples, dict.fromkeys((one.name for one in slots), settings)):
            steps.append(step.slots[name])
            if step.step == 1 and leaves is not None:
                stack.keep([one.name for one in slots if one.name != leaves])
        return steps, _values(stack, name)


def _values(stack: Stack, name: str) -> dict[str, Tensor]:
    index = [one.name for one in stack.slots].index(name)
    weights = stack.read(index)
    pairs = (("lora_A", weights.lora_A), ("lora_B", weights.lora_B))
    return {f"{key}.{kind}": value for kind, group in pairs for key, value in group.items()}
