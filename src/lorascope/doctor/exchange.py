"""Checks of what adapters become: files that are read back, merged weights, and PEFT's own results with them.

Floor: doctor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from lorascope.adapter import stack_saved
from lorascope.base_model import BaseModel, load_base, weights_checksum
from lorascope.config import BaseModelConfig, TrainConfig
from lorascope.data.packing import batch_order, collate
from lorascope.data.record import Example
from lorascope.data.tree import sibling_groups
from lorascope.doctor import models
from lorascope.doctor.finding import Finding, Setting, beyond, compared
from lorascope.lora.merge import merged_copy
from lorascope.lora.peft_io import read_adapter, sliced, write_adapter
from lorascope.lora.stack import AdapterWeights, Slot, Stack
from lorascope.merged_model import open_merge_base, write_merged
from lorascope.train import train

_EXACT = 1e-10
_SINGLE = 1e-5
_EFFECT = 1e-3
_UPDATE = 1e-4
_TRAJECTORY = 1e-9
# Raw names, so that PEFT and the stack put one A on the same module.
_WHOLE = ("c_attn", "mlp.c_proj")
_STEPS = 5


@dataclass(frozen=True)
class Written:
    """An adapter on disk, and the logits that it gave before it was written."""

    base: BaseModel
    slot: Slot
    weights: AdapterWeights
    logits: Tensor
    bare: Tensor


def save_and_load(setting: Setting) -> Finding:
    """An adapter with biases and a head, written and read back on another copy of its base, gives the same bits."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        written = _write(_classifier(setting.device), directory, ("query", "value"), bias="lora_only")
        kept = {key: value.clone() for key, value in _numbers(written.weights).items()}
        again = _classifier(setting.device)
        saved = read_adapter(directory)
        stack = stack_saved(again, saved, str(directory))
        try:
            logits = _logits(again)
        finally:
            stack.detach()
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        size = sum(file.stat().st_size for file in directory.iterdir())
        stored = sum(value.numel() for value in load_file(directory / "adapter_model.safetensors").values())
    fused_wrong = _fused_numbers_come_back(setting.device)
    read = _numbers(saved.weights)
    altered = [name for name in kept if name not in read or not torch.equal(read[name].cpu(), kept[name].cpu())]
    wrong = [f"{len(altered)} tensors are not what was written ({altered[0]})"] if altered else []
    if not torch.equal(logits, written.logits):
        wrong.append(f"logits differ by {models.relative(logits, written.logits):.1e}")
    if config.get("peft_type") != "LORA":
        wrong.append("adapter_config.json is not PEFT's")
    if not models.relative(written.bare, written.logits) > _EFFECT:
        wrong.append("the adapter changes nothing")
    wrong += fused_wrong
    figures = {"tensors": len(kept), "numbers": stored, "bytes": size}
    return Finding(f"{len(kept)} tensors and the logits equal to the bit; {size / 1024:.0f} KiB", figures, tuple(wrong))


def _fused_numbers_come_back(device: str) -> list[str]:
    """Slices of a fused projection share one tensor on disk, and come apart again."""
    with TemporaryDirectory() as name:
        written = _write(models.as_base(models.make("gpt2", torch.float32, device)), Path(name), ("query", "value"))
        read = _numbers(sliced(read_adapter(Path(name)), written.slot, name))
    kept = _numbers(written.weights)
    same = read.keys() == kept.keys() and all(torch.equal(read[key].cpu(), kept[key].cpu()) for key in kept)
    return [] if same else ["slices of a fused projection do not come back as they were written"]


def merge(setting: Setting) -> Finding:
    """A saved adapter on its base against the base that it was merged into, in memory and from file to file."""
    base = models.as_base(models.make("gpt2", torch.float32, setting.device))
    own = models.copied(base.model)
    with TemporaryDirectory() as name:
        before, adapter, after = (Path(name) / part for part in ("base", "adapter", "merged"))
        adapter.mkdir()
        after.mkdir()
        models.write(base.model, before)
        written = _write(base, adapter, ("query", "value", "down"))
        saved = read_adapter(adapter)
        in_memory = merged_copy(base.model, saved)
        write_merged(saved, adapter, open_merge_base(saved, str(adapter), str(before)), after)
        on_disk = load_base(BaseModelConfig(model=str(after)), "CAUSAL_LM", device=setting.device).model
    altered = models.changed(own, base.model)
    exact = models.adapted_weights(base.model, written.weights)
    errors: dict[str, float] = {}
    for place, merged in (("in_memory", in_memory), ("on_disk", on_disk)):
        found = dict(merged.named_parameters())
        with torch.no_grad():
            logits = merged(input_ids=models.ids_batch(setting.device)).logits
        errors[f"logits_{place}"] = models.relative(logits, written.logits)
        # In units of the update, so that a merge that did nothing shows as 1 however small the adapter is.
        errors[f"update_{place}"] = max(
            float((found[name].double() - value).norm() / (value - own[name].to(value)).norm())
            for name, value in exact.items()
        )
    effect = models.relative(written.bare, written.logits)
    wrong = list(beyond(errors, {name: _SINGLE if name.startswith("logits") else _UPDATE for name in errors}))
    if not effect > _EFFECT:
        wrong.append("the adapter changes nothing")
    if altered:
        wrong.append(f"{len(altered)} base tensors changed ({altered[0]})")
    worst = max(errors["logits_in_memory"], errors["logits_on_disk"])
    showed = f"in memory and on disk, {compared('logits', worst)}; the adapter itself changes them by {effect:.0%}"
    return Finding(showed, {**errors, "effect": effect, "modules": len(exact)}, tuple(wrong))


def peft_reads(setting: Setting) -> Finding:
    """PEFT loads an adapter of ours, slices, biases and a head among it, and gives our logits."""
    import peft

    figures: dict[str, float] = {}
    effects = []
    for family, base in (
        ("gpt2", models.as_base(models.make("gpt2", torch.float64, setting.device))),
        ("bert", _classifier(setting.device, torch.float64)),
    ):
        with TemporaryDirectory() as name:
            written = _write(base, Path(name), ("query", "value", "down"), bias="lora_only" if family == "bert" else "none")
            twin = models.make("gpt2" if family == "gpt2" else "bert", torch.float64, setting.device)
            wrapped = peft.PeftModel.from_pretrained(twin, name, autocast_adapter_dtype=False).eval()
            with torch.no_grad():
                theirs = wrapped(input_ids=models.ids_batch(setting.device)).logits
        figures[family] = models.relative(theirs, written.logits)
        effects.append(models.relative(written.bare, written.logits))
    wrong = list(beyond(figures, dict.fromkeys(figures, _EXACT)))
    if not min(effects) > _EFFECT:
        wrong.append("the adapter changes nothing")
    differ = f"{figures['gpt2']:.0e} (GPT-2), {figures['bert']:.0e} (BERT with a head)"
    showed = f"peft {peft.__version__}: logits differ by {differ}"
    return Finding(showed, {**figures, "effect": min(effects), "peft": peft.__version__}, tuple(wrong))


def peft_trajectory(setting: Setting) -> Finding:
    """Two slots of one stack against two trainings by PEFT and ``torch.optim``, in float64: losses, norms, final weights."""
    base = models.as_base(models.make("gpt2", torch.float64, setting.device), packs=False)
    shared: dict[str, Any] = {"batch_size": 4, "max_steps": _STEPS, "warmup_ratio": 0.3}
    runs = {
        "a": (models.slot(base.model, "a", 1, _WHOLE, r=2), TrainConfig(learning_rate=1e-2, **shared)),
        "b": (
            models.slot(base.model, "b", 2, _WHOLE, r=5, scaling=0.6),
            TrainConfig(learning_rate=3e-2, weight_decay=0.1, max_grad_norm=0.05, **shared),
        ),
    }
    examples = models.rows(10)
    slots = [slot for slot, _ in runs.values()]
    with models.installed(base, slots, spread=0.0) as stack:
        initial = [_peft_names(stack, index) for index in range(2)]
        steps = list(train(stack, base, examples, {name: settings for name, (_, settings) in runs.items()}))
        ours = [_peft_names(stack, index) for index in range(2)]
    errors = {"loss": 0.0, "gradient_norm": 0.0, "weights": 0.0}
    moved = []
    for index, (name, (slot, settings)) in enumerate(runs.items()):
        model = models.make("gpt2", torch.float64, setting.device)
        losses, norms, final = _train_by_peft(model, slot, settings, examples, initial[index])
        own = [step.slots[name] for step in steps]
        pairs = {
            "loss": max(abs(one.loss - loss) for one, loss in zip(own, losses, strict=True)),
            "gradient_norm": max(abs(one.grad_norm - norm) for one, norm in zip(own, norms, strict=True)),
            "weights": max(float((ours[index][key] - value).abs().max()) for key, value in final.items()),
        }
        errors = {key: max(errors[key], value) for key, value in pairs.items()}
        moved.append(max(float((value - initial[index][key]).abs().max()) for key, value in final.items()))
    wrong = list(beyond(errors, dict.fromkeys(errors, _TRAJECTORY)))
    if not min(moved) > _EFFECT:
        wrong.append("nothing was trained")
    differ = f"losses differ by {errors['loss']:.0e}, final weights by {errors['weights']:.0e}"
    showed = f"two trainings of {_STEPS} steps: {differ}"
    return Finding(showed, {**errors, "moved": min(moved), "steps": _STEPS}, tuple(wrong))


def _train_by_peft(
    model: Any, slot: Slot, settings: TrainConfig, examples: Sequence[Example], initial: Mapping[str, Tensor]
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """The slot's training by PEFT and torch alone, with its batches: losses, gradient norms, final weights."""
    import peft
    from transformers import get_linear_schedule_with_warmup

    r, alpha = slot.placements[0].r, slot.placements[0].scaling * slot.placements[0].r
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=r, lora_alpha=cast(int, alpha), target_modules=list(_WHOLE), fan_in_fan_out=True
    )  # fmt: skip
    wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    trained = {name: value for name, value in wrapped.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(initial[name])
    rate, decay = settings.learning_rate, settings.weight_decay
    optimizer = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=decay)
    schedule = get_linear_schedule_with_warmup(optimizer, -(-_STEPS * 3 // 10), _STEPS)
    losses, norms = [], []
    per_epoch = settings.steps_per_epoch(len(examples))
    for step in range(_STEPS):
        epoch, place = divmod(step, per_epoch)
        rows = batch_order(sibling_groups(examples), settings.batch_size, slot.seed, epoch)[place]
        batch = collate(examples, rows, pad_id=0)
        assert batch.is_target_BT is not None
        ids = batch.input_ids_BT.to(model.device)
        logits = wrapped(input_ids=ids, attention_mask=batch.attention_mask_BT.to(model.device)).logits
        labels = ids.masked_fill(~batch.is_target_BT.to(model.device), -100)[:, 1:]
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(trained.values()), settings.max_grad_norm)))
        losses.append(float(loss.detach()))
        optimizer.step()
        schedule.step()
    return losses, norms, {name: value.detach().clone() for name, value in trained.items()}


def _peft_names(stack: Stack, index: int) -> dict[str, Tensor]:
    """A slot's numbers by the names that PEFT gives its parameters."""
    weights = stack.read(index)
    pairs = (("lora_A", weights.lora_A), ("lora_B", weights.lora_B))
    return {f"base_model.model.{key}.{kind}.default.weight": value for kind, group in pairs for key, value in group.items()}


def _classifier(device: str, dtype: torch.dtype = torch.float32) -> BaseModel:
    return models.as_base(models.make("bert", dtype, device), "SEQ_CLS")


def _write(base: BaseModel, directory: Path, targets: Sequence[str], bias: Any = "none") -> Written:
    """An adapter of random numbers, beside another slot, and its files in ``directory``.

    Raises:
        AssertionError: the base changed meanwhile.
    """
    slots = [models.slot(base.model, "other", 1, ("key",), r=2), models.slot(base.model, "kept", 2, targets, r=3, bias=bias)]
    bare = _logits(base)
    with models.installed(base, slots[1:]) as stack:
        logits = _logits(base)
    with models.installed(base, slots) as stack:
        weights = stack.read(1)
    write_adapter(
        directory, weights, slots[1], base.model, heads=base.heads, base_model="", task_type=base.task_type, labels=base.labels
    )
    assert weights_checksum(base.model, base.heads) == base.checksum, "the base changed"
    return Written(base, slots[1], weights, logits, bare)


@torch.no_grad()
def _logits(base: BaseModel) -> Tensor:
    logits: Tensor = base.model(input_ids=models.ids_batch(str(base.device))).logits
    return logits


def _numbers(weights: AdapterWeights) -> dict[str, Tensor]:
    """All tensors of an adapter by name."""
    pairs = (("lora_A", weights.lora_A), ("lora_B", weights.lora_B))
    factors = {f"{key}.{kind}": value for kind, group in pairs for key, value in group.items()}
    return {**factors, **weights.biases, **weights.heads}
