"""Attention over prefix trees, for any transformers model that asks ``AttentionInterface`` for its attention.

Before: every row is one example, and a query sees the keys before it in its row.
Within ``steered(model)``: a row is a forest of examples; the model is called with the keyword ``tree``, and a query sees its
own ancestors. Nothing else of the model changes, so a model that cannot be steered is found by comparing its outputs.

transformers hands a registered function no mask of its own making, and takes restarting positions for packed sequences, so a
mask function that makes none is registered along with it. Floor: ``lora``.

Legend: N rows (slots), H heads, G key/value heads, T queries, S keys, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from lorascope.errors import ModelError
from lorascope.lora.frozen import slow_bfloat16

NAME = "lorascope_tree"
# Neighbouring trees are looked at together up to this many tokens: a call costs more than a few masked-out products.
_BLOCK_TOKENS = 128


class Attention(Protocol):
    """What a model's layers call in place of their own attention."""

    def attend(self, layer: nn.Module, q_NHTD: Tensor, k_NGTD: Tensor, v_NGTD: Tensor, scaling: float) -> Tensor:
        """``[N, H, T, D]``: what every query takes from the values that it sees."""


@dataclass(frozen=True)
class Block:
    """Consecutive tokens that see nothing outside; ``bias_TT`` is added to the scores, None where plainly causal."""

    start: int
    stop: int
    bias_TT: Tensor | None


class TreeAttention:
    """Ancestor-visibility attention within rows, the rows grouped by the forest that they hold.

    Args:
        forests: for each distinct forest, its rows' slice and for each tree block the subtree ends, as ``blocks_of`` gives.
            A shorter forest's last block is its padding, which nothing looks at.
    """

    def __init__(self, forests: Sequence[tuple[slice, Sequence[Block]]]) -> None:
        self._forests = forests

    def attend(self, layer: nn.Module, q_NHTD: Tensor, k_NGTD: Tensor, v_NGTD: Tensor, scaling: float) -> Tensor:
        """See ``Attention``."""
        if len(self._forests) == 1:
            return _attend_blocks(self._forests[0][1], q_NHTD, k_NGTD, v_NGTD, scaling)
        parts = [_attend_blocks(blocks, q_NHTD[rows], k_NGTD[rows], v_NGTD[rows], scaling) for rows, blocks in self._forests]
        return torch.cat(parts)


def blocks_of(
    trees: Sequence[tuple[int, int]], end_T: Any, num_tokens: int, dtype: torch.dtype, device: torch.device
) -> list[Block]:
    """The attention blocks of one forest: every tree, small neighbours together.

    Args:
        trees: start and stop of each tree; they follow one another from 0.
        end_T: one past the last token of each token's subtree.
        num_tokens: T; tokens beyond the last tree are padding.
    """
    ranges: list[tuple[int, int]] = []
    for start, stop in trees:
        if ranges and stop - ranges[-1][0] <= _BLOCK_TOKENS:
            ranges[-1] = (ranges[-1][0], stop)
        else:
            ranges.append((start, stop))
    blocks = [Block(start, stop, _visibility(end_T[start:stop] - start, dtype, device)) for start, stop in ranges]
    end = ranges[-1][1] if ranges else 0
    return blocks if end == num_tokens else [*blocks, Block(end, num_tokens, None)]


class PrefixCache:
    """Keys and values of a forest of prompts, each stored once, and those of the tokens that continue its branches.

    The first pass over the forest fills it; every later pass brings one token for each question still open. A question is a
    prompt that ends at some stored token; questions are numbered in the forest's order.

    Args:
        blocks: the forest's, as ``blocks_of`` gives.
        end_T: one past the last token of each stored token's subtree.
        last_E: where each question's prompt ends.
        most_new: how many tokens a question may get.
    """

    def __init__(self, blocks: Sequence[Block], end_T: Any, last_E: Any, most_new: int, dtype: torch.dtype) -> None:
        self._prefill: TreeAttention | None = TreeAttention([(slice(None), blocks)])
        self._open: list[_OpenBlock] = []
        for block in blocks:
            members = [index for index, last in enumerate(last_E) if block.start <= last < block.stop]
            if members:
                ends = torch.as_tensor(end_T[block.start : block.stop])
                last = torch.as_tensor(last_E[members])[:, None]
                tokens = torch.arange(block.start, block.stop)[None, :]
                sees = (tokens <= last) & (last < ends[None, :])
                self._open.append(_OpenBlock(block, members, sees, most_new, dtype))

    def attend(self, layer: nn.Module, q_NHTD: Tensor, k_NGTD: Tensor, v_NGTD: Tensor, scaling: float) -> Tensor:
        """See ``Attention``; T is the forest's tokens in the first pass, the open questions in every other."""
        if self._prefill is not None:
            for block in self._open:
                block.fill(layer, k_NGTD, v_NGTD)
            return self._prefill.attend(layer, q_NHTD, k_NGTD, v_NGTD, scaling)
        sizes = [len(block.members) for block in self._open]
        pieces = zip(self._open, *(tensor.split(sizes, dim=2) for tensor in (q_NHTD, k_NGTD, v_NGTD)), strict=True)
        return torch.cat([block.attend(layer, q, k, v, scaling) for block, q, k, v in pieces], dim=2)

    def advance(self, still_open: Sequence[bool]) -> None:
        """Make room for the next token of the questions that go on; ``still_open`` is over those that were open."""
        self._prefill = None
        start = 0
        for block in self._open:
            count = len(block.members)
            block.advance([index for index in range(count) if still_open[start + index]])
            start += count
        self._open = [block for block in self._open if block.members]


class _OpenBlock:
    """A block of the forest with the questions that end in it, their new tokens behind it in one buffer per layer."""

    def __init__(self, block: Block, members: list[int], sees_ET: Tensor, most_new: int, dtype: torch.dtype) -> None:
        self.members = members
        self._block = block
        self._end = block.stop - block.start
        self._room = self._end + len(members) * most_new
        self._bias_ES = torch.full((len(members), self._room), float("-inf"), dtype=dtype)
        self._bias_ES[:, : self._end].masked_fill_(sees_ET, 0.0)
        self._buffers: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def fill(self, layer: nn.Module, k_NGTD: Tensor, v_NGTD: Tensor) -> None:
        """Keep the forest's keys and values of a layer."""
        kept = []
        for source in (k_NGTD, v_NGTD):
            shape = (*source.shape[:2], self._room, source.shape[3])
            buffer = source.new_empty(shape, dtype=self._bias_ES.dtype)
            buffer[:, :, : self._end] = source[:, :, self._block.start : self._block.stop]
            kept.append(buffer)
        self._bias_ES = self._bias_ES.to(k_NGTD.device)
        self._buffers[layer] = (kept[0], kept[1])

    def advance(self, going_on: Sequence[int]) -> None:
        """Each question that goes on sees the column of its next token, and no other's."""
        self.members = [self.members[index] for index in going_on]
        if len(going_on) < len(self._bias_ES):
            self._bias_ES = self._bias_ES[list(going_on)]
        columns = range(self._end, self._end + len(going_on))
        self._bias_ES[range(len(going_on)), columns] = 0.0
        self._end += len(going_on)

    def attend(self, layer: nn.Module, q_NHED: Tensor, k_NGED: Tensor, v_NGED: Tensor, scaling: float) -> Tensor:
        """Attention of each question's newest token to its prompt and to what came after."""
        keys, values = self._buffers[layer]
        num_open = len(self.members)
        keys[:, :, self._end - num_open : self._end] = k_NGED
        values[:, :, self._end - num_open : self._end] = v_NGED
        num_slots, num_heads, _, width = q_NHED.shape
        # Query heads that share a key head stand under one another, so no key is copied.
        repeats = num_heads // keys.shape[1]
        q = q_NHED.reshape(num_slots, keys.shape[1], repeats * num_open, width).to(keys.dtype)
        bias = self._bias_ES[:, : self._end].repeat(repeats, 1)
        out = F.scaled_dot_product_attention(
            q, keys[:, :, : self._end], values[:, :, : self._end], attn_mask=bias, scale=scaling
        )
        return out.reshape(num_slots, num_heads, num_open, -1).to(q_NHED.dtype)


@contextmanager
def steered(model: nn.Module) -> Iterator[None]:
    """While it lasts, the model's layers attend by the keyword ``tree`` that its forward is called with."""
    config: Any = model.config
    # Setting it sets those of nested configurations too.
    nested = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    configs = [one for one in (config, *nested) if one is not None]
    own = [one._attn_implementation for one in configs]
    config._attn_implementation = NAME
    try:
        yield
    finally:
        for one, implementation in zip(configs, own, strict=True):
            one._attn_implementation = implementation


def why_unsteerable(model: nn.Module) -> str | None:
    """Why prefix trees cannot be right for this architecture, as far as its configuration tells; None where they may be."""
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if not getattr(model, "_supports_sdpa", False):
        return "its attention cannot be replaced"
    if {"sliding_attention", "chunked_attention"} & set(getattr(config, "layer_types", None) or ()):
        return "it has sliding-window attention"
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", "default") if isinstance(scaling, dict) else "default"
    if kind in ("dynamic", "longrope"):
        return f"its rotary positions ({kind}) depend on the length of the row"
    return None


def _visibility(end_T: Any, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """``[T, T]``: 0 where the key is the query or its ancestor, else −∞; None for a plain chain."""
    num = len(end_T)
    if bool((end_T == num).all()):
        return None
    ends = torch.as_tensor(end_T)
    index = torch.arange(num)
    visible = (index[None, :] <= index[:, None]) & (index[:, None] < ends[None, :])
    return torch.zeros(num, num, dtype=dtype).masked_fill_(~visible, float("-inf")).to(device)


def _attend_blocks(blocks: Sequence[Block], q_NHTD: Tensor, k_NGTD: Tensor, v_NGTD: Tensor, scaling: float) -> Tensor:
    sizes = [block.stop - block.start for block in blocks]
    pieces = zip(blocks, *(tensor.split(sizes, dim=2) for tensor in (q_NHTD, k_NGTD, v_NGTD)), strict=True)
    return torch.cat([_scaled_dot_product(q, k, v, block.bias_TT, scaling) for block, q, k, v in pieces], dim=2)


def _scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    own = q.dtype
    if slow_bfloat16(q):
        q, k, v = q.float(), k.float(), v.float()
    if q.shape[1] != k.shape[1]:
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
    bias = None if bias is None else bias.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None, scale=scaling).to(own)


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: Attention | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls; ``[N, T, H, D]``."""
    unknown = [name for name in ("softcap", "sliding_window", "s_aux", "position_bias") if others.get(name) is not None]
    if tree is None or attention_mask is not None or unknown:
        what = f"it has {unknown[0]}" if unknown else "it does not hand its keywords to its attention"
        raise ModelError(f"the model's attention cannot follow a prefix tree: {what}", where="base.model")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return tree.attend(module, query, key, value, scaling).transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The tree is the mask."""


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, _no_mask)
