"""Checks of the user's own base: that Lorascope reads it, finds its projections, leaves it alone and agrees with PEFT on it.

Floor: doctor.

Legend: B rows, T tokens.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig

from lorascope.base_model import (
    BaseModel,
    label_names,
    load_base,
    num_positions,
    read_config,
    skeleton,
    weights_checksum,
)
from lorascope.config import BaseModelConfig, TaskType, TrainConfig
from lorascope.data.record import Example
from lorascope.doctor.finding import Finding, NotReached, Setting, beyond, compared
from lorascope.doctor.models import changed, copied, relative
from lorascope.errors import ModelError
from lorascope.lora.linear import num_parameters
from lorascope.lora.peft_io import write_adapter
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve, roles_of
from lorascope.losses import follows_trees
from lorascope.memory import free_bytes
from lorascope.train import train

_GIB = 2**30
# Of free memory, for the weights; the rest is for the copies that checks make and for passes.
_SHARE = 0.4
_TEXT = "The quick brown fox jumps over the lazy dog, and 12 others look on."
_LONG_ENOUGH = 16
# Relative differences that rounding explains; the copy that PEFT computes with rounds in another order.
_ROUNDING: Mapping[torch.dtype, float] = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def loads(setting: Setting) -> Finding:
    """Configuration, tokenizer and weights are read; no number is missing that is not trained."""
    assert setting.model is not None
    config = read_config(BaseModelConfig(model=setting.model))
    task_type, labels = form_of(config)
    count = num_parameters(skeleton(config, task_type, max(2, len(labels))))
    dtype = _fitting_dtype(count, setting)
    setting.base = base = load_base(BaseModelConfig(model=setting.model, dtype=dtype), task_type, labels, setting.device)
    showed = f"{config.model_type}, {num_parameters(base.model):,} parameters, {base.task_type} in {dtype}"
    if base.heads:
        showed += f"; trained whole: {', '.join(base.heads)}"
    figures = {
        "model_type": config.model_type, "parameters": num_parameters(base.model), "task_type": base.task_type, "dtype": dtype,
        "heads": list(base.heads), "checksum": base.checksum,
    }  # fmt: skip
    return Finding(showed, figures, warnings=tuple(base.warnings), fix="nothing has to be done, but know it")


def form_of(config: PretrainedConfig) -> tuple[TaskType, tuple[str, ...]]:
    """As what a checkpoint is tried: what it was saved as, and with a new head of two classes where it is a body alone."""
    saved_as = " ".join(getattr(config, "architectures", None) or [])
    if "ForSequenceClassification" in saved_as:
        return "SEQ_CLS", label_names(config)
    if getattr(config, "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM", ()
    if "ForCausalLM" in saved_as or "LMHeadModel" in saved_as:
        return "CAUSAL_LM", ()
    return "SEQ_CLS", ("first", "second")


def _fitting_dtype(count: int, setting: Setting) -> Literal["float32", "bfloat16"]:
    """float32 where memory allows, else bfloat16.

    Raises:
        ModelError: neither fits.
    """
    free = free_bytes(setting.device)
    if 4 * count <= _SHARE * free:
        return "float32"
    if 2 * count <= _SHARE * free:
        return "bfloat16"
    what = f"{count:,} parameters need {2 * count / _GIB:.1f} GiB in bfloat16, and {free / _GIB:.1f} GiB are free"
    raise ModelError(what, where=setting.model, fix="free some memory, or choose a smaller base")


def encodes(setting: Setting) -> Finding:
    """The tokenizer gives a text ids that the model has, and the text back."""
    base = setting.loaded()
    ids = _ids(base)
    decoded = str(base.tokenizer.decode(ids, skip_special_tokens=True))
    num_embeddings = len(cast(Tensor, base.model.get_input_embeddings().weight))
    unknown = base.tokenizer.unk_token_id
    num_unknown = sum(one == unknown for one in ids) if unknown is not None else 0
    wrong, warnings = [], []
    if not ids or max(ids) >= num_embeddings:
        wrong.append(f"ids up to {max(ids, default=0)} for {num_embeddings} embeddings")
    if num_unknown:
        warnings.append(f"{num_unknown} of {len(ids)} tokens of plain English are unknown to it")
    elif _letters(decoded) != _letters(_TEXT):
        wrong.append(f"what it encoded comes back as {decoded[:60]!r}")
    size, templated = len(base.tokenizer), bool(base.tokenizer.chat_template)
    shown = f"{size:,} tokens, {'with' if templated else 'without'} a chat template"
    showed = f"{shown}; {len(_TEXT)} characters are {len(ids)} tokens and back"
    figures = {"vocabulary": size, "tokens": len(ids), "unknown": num_unknown, "chat_template": templated}
    return Finding(showed, figures, tuple(wrong), tuple(warnings))


def _letters(text: str) -> str:
    """What must survive, however a tokenizer treats case and space."""
    return "".join(one for one in text.lower() if one.isalnum())


def resolves(setting: Setting) -> Finding:
    """The roles of the family, and the layers that ``all-linear`` stands for, are found."""
    base = setting.loaded()
    counts = {role: len(resolve(base.model, [role], base.heads)) for role in roles_of(base.model)}
    places = len(resolve(base.model, "all-linear", base.heads))
    wrong = () if places else ("no linear layer can be adapted",)
    kind = base.model.config.model_type
    warnings = () if counts else (f"a {kind} model has no role names here: targets are module names, or all-linear",)
    named = ", ".join(f"{role} {count}" for role, count in counts.items())
    return Finding(f"{named or 'module names'}; all-linear {places}", {"roles": counts, "all_linear": places}, wrong, warnings)


def outputs(setting: Setting) -> Finding:
    """Outputs are finite, and padding changes none of them beyond rounding."""
    base = setting.loaded()
    ids = _ids(base)
    with torch.no_grad():
        alone = base.model(**_inputs(base, [ids])).logits[0].float()
        beside = base.model(**_inputs(base, [ids, [*ids, *ids][: len(ids) + 5]])).logits[0].float()
    if alone.dim() > 1:
        beside = beside[-len(alone) :] if base.task_type == "CAUSAL_LM" else beside[: len(alone)]
    figures = {"not_finite": int((~torch.isfinite(alone)).sum()), "padding": relative(beside, alone)}
    wrong = list(beyond(figures, {"padding": _ROUNDING[base.model.dtype]}))
    if figures["not_finite"]:
        wrong.append(f"{figures['not_finite']:,} logits are not finite")
    showed = f"all {alone.numel():,} logits are finite; alone and beside a longer text, {compared('they', figures['padding'])}"
    return Finding(showed, figures, tuple(wrong))


def stays_frozen(setting: Setting) -> Finding:
    """Two training steps with adapters on every projection: the loss is finite, they move, and no base bit changes."""
    base = setting.loaded()
    examples = _examples(base)
    settings = TrainConfig(batch_size=2, max_steps=2, warmup_ratio=0.0, learning_rate=1e-3)
    before = copied(base.model)
    with _stack(base, spread=0.0) as stack:
        begun = stack.parameters.values_NP.clone()
        steps = list(train(stack, base, examples, {"own": settings}))
        held = stack.base_gradients()
        moved = int((stack.parameters.values_NP != begun).sum())
    altered = changed(before, base.model)
    losses = [step.slots["own"].loss for step in steps]
    wrong = [f"{held} base parameters take a gradient"] if held else []
    if altered or weights_checksum(base.model, base.heads) != base.checksum:
        wrong.append(f"{len(altered)} base tensors changed ({', '.join(altered[:1])})")
    if not all(math.isfinite(loss) for loss in losses):
        wrong.append("the loss is not finite")
    if not moved:
        wrong.append("no adapter moved")
    figures = {"losses": losses, "trained": moved, "base_gradients": held, "changed": len(altered)}
    return Finding(f"loss {losses[0]:.3f}; {moved:,} adapter numbers moved, 0 of the base", figures, tuple(wrong))


def shares_prefixes(setting: Setting) -> Finding:
    """Whether prefixes that examples share are stored once on this base, which saves time; the results are the same."""
    base = setting.loaded()
    if base.task_type != "CAUSAL_LM":
        raise NotReached(f"prefix trees are for causal models, and this is tried as {base.task_type}")
    follows = follows_trees(base, _examples(base))
    warnings = () if follows else (next((one for one in base.warnings if "prefixes" in one), "prefixes are not shared"),)
    return Finding("prefix trees give its losses" if follows else "", {"follows": follows}, (), warnings, fix=_SLOWER)


_SLOWER = "nothing has to be done: every example is a padded row, which is slower"


def peft_agrees(setting: Setting) -> Finding:
    """PEFT loads an adapter that was written for this base and gives its logits."""
    import peft

    base = setting.loaded()
    inputs = _inputs(base, [_ids(base)])
    with torch.no_grad():
        bare = base.model(**inputs).logits.float()
        with _stack(base, spread=0.02) as stack:
            ours = base.model(**inputs).logits.float()
            weights, slot = stack.read(0), stack.slots[0]
        with TemporaryDirectory() as name:
            write_adapter(
                Path(name), weights, slot, base.model, heads=base.heads, base_model="", task_type=base.task_type,
                labels=base.labels,
            )  # fmt: skip
            wrapped = peft.PeftModel.from_pretrained(base.model, name).eval()
            try:
                theirs = wrapped(**inputs).logits.float()
            finally:
                wrapped.unload()
    figures = {"logits": relative(theirs, ours), "effect": relative(bare, ours)}
    limit = _ROUNDING[base.model.dtype]
    wrong = list(beyond({"logits": figures["logits"]}, {"logits": limit}))
    if not figures["effect"] > 0.0:
        wrong.append("the adapter changes nothing")
    showed = f"{compared('logits', figures['logits'])}; the adapter itself changes them by {figures['effect']:.1%}"
    return Finding(showed, figures, tuple(wrong))


def _ids(base: BaseModel) -> list[int]:
    """The text as the base's tokenizer has it, no longer than the base has positions for."""
    most = num_positions(base.model.config)
    return cast(list[int], base.tokenizer(_TEXT)["input_ids"])[: None if most is None else most - 6]


def _inputs(base: BaseModel, rows: list[list[int]]) -> dict[str, Tensor]:
    """The rows, padded where that could be seen: a text of a causal model on the left, as it is generated from."""
    width = max(map(len, rows))
    left = base.task_type == "CAUSAL_LM"

    def padded(row: list[int], value: int) -> list[int]:
        more = [value] * (width - len(row))
        return [*more, *row] if left else [*row, *more]

    ids = torch.tensor([padded(row, base.pad_id) for row in rows], device=base.device)
    mask = torch.tensor([padded([1] * len(row), 0) for row in rows], device=base.device)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if left and "position_ids" in inspect.signature(base.model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    if base.task_type == "SEQ_2_SEQ_LM":
        inputs["decoder_input_ids"] = torch.tensor([[base.start_id, *rows[0][:4]]] * len(rows), device=base.device)
    return inputs


def _examples(base: BaseModel) -> list[Example]:
    """Two examples that begin alike, in the base's form."""
    ids = (_ids(base) * _LONG_ENOUGH)[: max(_LONG_ENOUGH + 4, len(_ids(base)))]
    texts = [ids, [*ids[:-3], *ids[:3]]]
    examples = []
    for index, text in enumerate(texts):
        targets: dict[str, Any] = {"is_target": None, "label": None, "prompt_length": len(text)}
        if base.task_type == "SEQ_CLS":
            targets |= {"label": index % 2, "prompt_length": 0}
        elif base.task_type == "CAUSAL_LM":
            targets |= {"is_target": [place >= len(text) - 4 for place in range(len(text))], "prompt_length": len(text) - 4}
        else:
            targets["target_ids"] = text[:3]
        examples.append(Example(str(index), text, **targets))
    return examples


@contextmanager
def _stack(base: BaseModel, spread: float) -> Iterator[Stack]:
    """One adapter of rank 2 on every projection while it lasts.

    Args:
        spread: of random numbers in the place of B's zeros.
    """
    placements = tuple(Placement(target, 2, 2.0) for target in resolve(base.model, "all-linear", base.heads))
    stack = Stack(base.model, [Slot("own", 1, placements)], base.heads)
    try:
        weights = stack.read(0)
        generator = torch.Generator().manual_seed(1)
        for value in weights.lora_B.values():
            value += (spread * torch.randn(value.shape, generator=generator)).to(value)
        stack.write(0, weights)
        yield stack
    finally:
        stack.detach()
