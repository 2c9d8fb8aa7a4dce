"""The last transformer block, computed only for the tokens that are read from it.

Before: every token passes through the whole of every block.
Within ``only_at(model, last_block, places)``: in the last one, queries, the attention's output projection and the
feed-forward part are computed at ``places`` alone. Elsewhere nothing reads the block's output, because no later block looks
at it. Keys and values, and queries that are one layer with them (GPT-2), are still those of every token.

Which parts those are is known for the usual architectures, by their names, and tried on the model itself. Knows no tasks
and no losses. Floor: ``lora``.

Legend: B rows (of all slots), T tokens, K read tokens of a row, M read tokens of all rows, D features in, O features out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorascope.config import TaskType
from lorascope.lora.layer import Places, SlotContext

# Of a block: what works on each token by itself and feeds nothing but that token's own output.
_ROW_WISE = (
    ("self_attn.q_proj", "self_attn.o_proj", "mlp"),  # Llama, Mistral, Qwen2, Qwen3, Gemma
    ("attn.c_proj", "mlp"),  # GPT-2
    ("attention.self.query", "attention.output.dense", "feed_forward_chunk"),  # BERT, RoBERTa, ELECTRA
    ("attention.q_lin", "attention.out_lin", "ffn"),  # DistilBERT
)
# Largest relative error of the trial: products of fewer rows round otherwise.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_TOLERANCE_OF_OTHERS = 5e-2


@dataclass(frozen=True)
class LastBlock:
    """Where the row-wise parts of the last block are: modules, or methods of one, by their full name."""

    parts: tuple[str, ...]


def find_last_block(model: PreTrainedModel, task_type: TaskType) -> tuple[LastBlock | None, str | None]:
    """The row-wise parts of the model's last block; None where its architecture is unknown or a trial gives other results.

    Returns:
        The parts, and why those that seemed to be known are not to be used.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        return None, None
    found = None
    for name, module in model.named_modules():
        names = next((names for names in _ROW_WISE if all(_has(module, part) for part in names)), None)
        if names is not None:
            found = LastBlock(tuple(f"{name}.{part}" for part in names))
    if found is None:
        return None, None
    try:
        agrees = _agrees(model, task_type, found)
    except Exception as error:  # whatever a model's own code raises when its parts get other shapes than they know
        return None, " ".join(str(error).split())[:200] or type(error).__name__
    return (found, None) if agrees else (None, "computed where it is read alone, it gives other results")


@contextmanager
def only_at(model: nn.Module, last_block: LastBlock, places: Places) -> Iterator[None]:
    """While it lasts, the model's last hidden states are right at ``places``, and meaningless elsewhere."""
    changed: list[tuple[nn.Module, str, Callable[[Tensor], Tensor] | None]] = []
    try:
        for name in last_block.parts:
            owner, attribute = _part(model, name)
            changed.append((owner, attribute, owner.__dict__.get(attribute)))
            owner.__dict__[attribute] = partial(_compute, getattr(owner, attribute), places, _context(owner))
        yield
    finally:
        for owner, attribute, own in changed:
            if own is None:
                del owner.__dict__[attribute]
            else:
                owner.__dict__[attribute] = own


def read_places(model: PreTrainedModel, input_ids_BT: Tensor) -> Places:
    """The tokens that a classifier may read: the first, or the last that is not padding, found as transformers does."""
    num_rows, width = input_ids_BT.shape
    place_T = torch.arange(width, device=input_ids_BT.device)
    last_B = (place_T * (input_ids_BT != model.config.pad_token_id)).argmax(dim=1)
    row_B = torch.arange(num_rows, device=input_ids_BT.device)
    return Places(row_B.repeat(2), torch.cat([torch.zeros_like(last_B), last_B]), num_rows, width)


def _compute(part: Callable[[Tensor], Tensor], places: Places, context: SlotContext | None, x_BTD: Tensor) -> Tensor:
    """The part at ``places``, ``[B, T, D] → [B, T, O]``; stacked layers inside are told whose dropout masks they draw."""
    with nullcontext() if context is None else context.at(places):
        return places.put(part(places.take(x_BTD)))


def _context(owner: nn.Module) -> SlotContext | None:
    """What the stacked layers inside share; None where there are none."""
    contexts = (getattr(module, "context", None) for module in owner.modules())
    return next((context for context in contexts if isinstance(context, SlotContext)), None)


def _has(block: nn.Module, name: str) -> bool:
    try:
        _part(block, name)
    except AttributeError:
        return False
    return True


def _part(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """A module and the name of its method that computes the part."""
    parent, _, last = name.rpartition(".")
    owner = model.get_submodule(parent)
    part = getattr(owner, last)
    return (part, "forward") if isinstance(part, nn.Module) else (owner, last)


@torch.no_grad()
def _agrees(model: PreTrainedModel, task_type: TaskType, last: LastBlock) -> bool:
    """Whether what is read of two short rows stays the same when the last block is computed only there."""
    pad_id = cast(int, model.config.pad_token_id)
    ordinary = [token for token in range(12) if token != pad_id]
    ids_BT = torch.tensor([ordinary[:8], [*ordinary[2:8], pad_id, pad_id]], device=model.device)
    inputs = {"input_ids": ids_BT, "attention_mask": (ids_BT != pad_id).long()}
    if task_type == "SEQ_CLS":
        whole = model(**inputs).logits
        with only_at(model, last, read_places(model, ids_BT)):
            part = model(**inputs).logits
    else:
        row_M, place_M = torch.tensor([[0, 0, 1], [1, 6, 3]], device=model.device)
        whole = model.base_model(**inputs, use_cache=False).last_hidden_state[row_M, place_M]
        with only_at(model, last, Places(row_M, place_M, *ids_BT.shape)):
            part = model.base_model(**inputs, use_cache=False).last_hidden_state[row_M, place_M]
    error = (part.double() - whole.double()).norm() / whole.double().norm()
    return bool(error <= _TOLERANCE.get(part.dtype, _TOLERANCE_OF_OTHERS))
