"""Invariant 1: a stack of N equals N separate PEFT runs, in float64, for every model family."""

from collections.abc import Callable

import peft
import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from lorascope.base_model import BaseModel, head_modules, head_scale, weights_checksum
from lorascope.config import TrainConfig
from lorascope.data.packing import batch_order, collate
from lorascope.data.task import Example
from lorascope.data.tree import sibling_groups
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.train import train

STEPS = 6
BATCH = 4
# Raw names, so that PEFT and the stack put one A on the same module; fused slices have their own test.
ATTENTION = {
    "gpt2": ["c_attn"],
    "bert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "roberta": ["query", "value"],
    "llama": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "phi3": ["qkv_proj"],
    "t5": ["q", "v"],
    "gated-t5": ["SelfAttention.q", "EncDecAttention.v"],
    "bart": ["q_proj", "v_proj"],
}
MORE = {
    "gpt2": ["c_attn", "mlp.c_proj"],
    "bert": ["query", "intermediate.dense"],
    "distilbert": ["q_lin", "lin1"],
    "roberta": ["key", "intermediate.dense"],
    "llama": ["k_proj", "down_proj"],
    "qwen2": ["o_proj", "up_proj"],
    "phi3": ["o_proj", "down_proj"],
    "t5": ["EncDecAttention.k", "wi", "wo"],
    "gated-t5": ["k", "o", "wi_0", "wi_1"],
    "bart": ["encoder_attn.k_proj", "fc1"],
}
KEYS = (".key.", ".k_lin.", ".k_proj.", ".c_attn.")


def configurations(family: str) -> list[tuple[dict, TrainConfig, int]]:
    shared = {"batch_size": BATCH, "max_steps": STEPS, "warmup_ratio": 0.3}
    return [
        ({"r": 2, "lora_alpha": 4, "target_modules": ATTENTION[family]}, TrainConfig(learning_rate=1e-2, **shared), 1),
        (
            {"r": 5, "lora_alpha": 3, "target_modules": MORE[family], "use_rslora": True, "bias": "lora_only"},
            TrainConfig(learning_rate=3e-2, weight_decay=0.1, max_grad_norm=0.05, **shared),
            1,
        ),
        (
            {"r": 1, "lora_alpha": 2, "target_modules": ATTENTION[family], "bias": "all"},
            TrainConfig(learning_rate=2e-2, schedule="constant", **shared),
            2,
        ),
    ]


def examples_for(task_type: str) -> list[Example]:
    generator = torch.Generator().manual_seed(3)
    examples = []
    for index in range(10):
        length = int(torch.randint(4, 12, (1,), generator=generator))
        ids = torch.randint(4, 150, (length,), generator=generator).tolist()
        is_target = [position >= length - 3 for position in range(length)] if task_type == "CAUSAL_LM" else None
        label = index % 3 if task_type == "SEQ_CLS" else None
        answer = [*ids[: index % 5][::-1], 1 + index, 1] if task_type == "SEQ_2_SEQ_LM" else None
        examples.append(Example(str(index), ids, is_target, label, length - 3, target_ids=answer))
    return examples


def run_peft(
    model: PreTrainedModel,
    config: dict,
    settings: TrainConfig,
    seed: int,
    examples: list[Example],
    initial: dict[str, torch.Tensor],
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """The same run by PEFT and torch.optim alone: losses, gradient norms and final weights."""
    task_type = "SEQ_CLS" if examples[0].label is not None else "CAUSAL_LM"
    task_type = task_type if examples[0].target_ids is None else "SEQ_2_SEQ_LM"
    heads = list(head_modules(model, task_type))
    model.config.pad_token_id = 0
    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(
            task_type=task_type,
            modules_to_save=heads or None,
            fan_in_fan_out=model.config.model_type == "gpt2",
            **config,
        ),
        autocast_adapter_dtype=False,
    )
    wrapped.eval()
    named = dict(wrapped.named_parameters())
    trained = [name for name, parameter in named.items() if parameter.requires_grad]
    with torch.no_grad():
        for name in trained:
            if "lora_" in name:
                named[name].copy_(initial[name])
    no_decay = [n for n in trained if n.endswith("bias")]
    optimizer = torch.optim.AdamW(
        [
            {"params": [named[n] for n in trained if n not in no_decay], "weight_decay": settings.weight_decay},
            {"params": [named[n] for n in no_decay], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    warmup = -(-STEPS * 3 // 10)
    if settings.schedule == "linear":
        scheduler = get_linear_schedule_with_warmup(optimizer, warmup, STEPS)
    else:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / warmup))
    losses, norms = [], []
    per_epoch = -(-len(examples) // BATCH)
    for step in range(STEPS):
        rows = batch_order(sibling_groups(examples), BATCH, seed, step // per_epoch)[step % per_epoch]
        batch = collate(examples, rows, pad_id=0)
        inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
        if task_type == "SEQ_2_SEQ_LM":
            # What the decoder reads is left to the model, which makes it of the labels.
            labels = batch.target_ids_BS.masked_fill(~batch.target_mask_BS, -100)
            loss = F.cross_entropy(wrapped(**inputs, labels=labels).logits.flatten(0, 1), labels.flatten())
        elif task_type == "SEQ_CLS":
            output = wrapped(**inputs)
            loss = F.cross_entropy(output.logits, batch.labels_B)
        else:
            output = wrapped(**inputs)
            labels = batch.input_ids_BT.masked_fill(~batch.is_target_BT, -100)[:, 1:]
            loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_([named[n] for n in trained], settings.max_grad_norm)))
        losses.append(loss.item())
        optimizer.step()
        scheduler.step()
    return losses, norms, {name: named[name].detach().clone() for name in trained}


def slot_for(model: PreTrainedModel, name: str, config: dict, seed: int, heads: tuple[str, ...]) -> Slot:
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    targets = resolve(model, config["target_modules"], heads)
    placements = tuple(Placement(target, config["r"], scaling) for target in targets)
    return Slot(name, seed, placements, bias=config.get("bias", "none"), use_rslora=config.get("use_rslora", False))


def peft_names(stack: Stack, index: int) -> dict[str, torch.Tensor]:
    """A slot's numbers under the names that PEFT's parameters have."""
    weights = stack.read(index)
    targeted = {placement.target.module for placement in weights.placements}
    names = {}
    for module in weights.lora_A:
        names[f"base_model.model.{module}.lora_A.default.weight"] = weights.lora_A[module]
        names[f"base_model.model.{module}.lora_B.default.weight"] = weights.lora_B[module]
    for name, value in weights.biases.items():
        owner = name.removesuffix(".bias")
        names[f"base_model.model.{owner}.base_layer.bias" if owner in targeted else f"base_model.model.{name}"] = value
    for name, value in weights.heads.items():
        head = next(head for head in stack.heads if name.startswith(f"{head}."))
        names[f"base_model.model.{head}.modules_to_save.default{name.removeprefix(head)}"] = value
    return names


def base_of(model: PreTrainedModel, task_type: str) -> BaseModel:
    model.config.pad_token_id = 0
    heads = head_modules(model, task_type)
    scale = head_scale(model) if task_type == "SEQ_2_SEQ_LM" else 1.0
    checksum = weights_checksum(model, heads)
    return BaseModel(model, None, task_type, heads, (), checksum, plain_head=True, head_scale=scale)


@pytest.mark.parametrize(
    ("family", "task_type"),
    [(f, "SEQ_CLS") for f in ("gpt2", "bert", "distilbert", "roberta", "llama", "qwen2")]
    + [(f, "CAUSAL_LM") for f in ("gpt2", "llama", "qwen2", "phi3")]
    + [(f, "SEQ_2_SEQ_LM") for f in ("t5", "gated-t5", "bart")],
)
def test_a_stack_of_n_equals_n_separate_peft_runs(
    family: str, task_type: str, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    examples = examples_for(task_type)
    base = base_of(tiny_model(family, task_type), task_type)
    runs = configurations(family)
    slots = [slot_for(base.model, f"s{i}", config, seed, base.heads) for i, (config, _, seed) in enumerate(runs)]
    stack = Stack(base.model, slots, base.heads)
    initial = [peft_names(stack, index) for index in range(len(runs))]
    history = list(train(stack, base, examples, {f"s{i}": settings for i, (_, settings, _) in enumerate(runs)}))
    assert len(history) == STEPS
    assert stack.base_gradients() == 0
    for index, (config, settings, seed) in enumerate(runs):
        losses, norms, expected = run_peft(tiny_model(family, task_type), config, settings, seed, examples, initial[index])
        assert [step.slots[f"s{index}"].loss for step in history] == pytest.approx(losses, abs=1e-9)
        assert [step.slots[f"s{index}"].grad_norm for step in history] == pytest.approx(norms, abs=1e-9)
        assert losses[-1] != losses[0]
        ours = peft_names(stack, index)
        assert set(ours) == set(expected)
        for name, value in expected.items():
            # A key's bias has no true gradient: its rounding errors are all that Adam sees.
            if not (name.endswith("bias") and any(part in name for part in KEYS)):
                torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    stack.detach()
    assert weights_checksum(base.model, base.heads) == base.checksum
