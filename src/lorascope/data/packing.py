"""From examples to batches: the order of an epoch, its optimiser batches, their micro-batches, and padded tensors.

Orders are pure functions of (seed, epoch). A micro-batch never changes which examples form an optimiser batch. Does not
know models or devices: tensors are made on the CPU. Floor: data.

Shapes: B rows, T tokens, S decoder tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lorascope.data.record import Example

# Keeps the order's random stream apart from others that are keyed by (seed, epoch).
ORDER_STREAM = 0x0D0E
# What one more forward and backward pass costs, in tokens of work: measured on two cores with a six-layer encoder.
_PASS_OVERHEAD_TOKENS = 128
# So many of the waiting groups are looked through for one that fits: enough to find one, few enough to stay random.
_LOOK_AHEAD = 64


@dataclass(frozen=True)
class Batch:
    """Padded rows.

    Attributes:
        attention_mask_BT: 1 on tokens, 0 on padding.
        is_target_BT: CAUSAL_LM: True where the token itself is to be predicted; False on padding.
        labels_B: SEQ_CLS: class numbers.
        rows: indices into the list of examples.
        target_ids_BS: SEQ_2_SEQ_LM: what the decoder is to produce.
        target_mask_BS: SEQ_2_SEQ_LM: True on targets, False on their padding.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    is_target_BT: Tensor | None
    labels_B: Tensor | None
    token_type_ids_BT: Tensor | None
    rows: list[int]
    target_ids_BS: Tensor | None = None
    target_mask_BS: Tensor | None = None


def batch_order(groups: Sequence[Sequence[int]], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Optimiser batches of one epoch, a function of the groups and (seed, epoch) alone.

    Groups come in random order; one that is larger than a batch is first cut into parts of random members. Each batch takes
    the next one, then others, of the next few, that fit into the room left; a group is split only where none fits. Every
    example occurs exactly once, and only the last batch may be short.

    Args:
        groups: examples that should share a batch (``tree.sibling_groups``); single examples where there are none.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be >= 1")
    generator = np.random.default_rng(np.random.SeedSequence([seed, epoch, ORDER_STREAM]))
    parts = [part for group in groups for part in _parts(group, batch_size, generator)]
    waiting = [parts[index] for index in generator.permutation(len(parts))]
    batches: list[list[int]] = []
    while waiting:
        batch: list[int] = []
        while waiting and len(batch) < batch_size:
            room = batch_size - len(batch)
            ahead = waiting[:_LOOK_AHEAD] if batch else waiting[:1]
            fitting = next((index for index, group in enumerate(ahead) if len(group) <= room), 0)
            group = waiting[fitting]
            batch += group[:room]
            waiting[fitting : fitting + 1] = [group[room:]] if len(group) > room else []
        batches.append(batch)
    return batches


def _parts(group: Sequence[int], batch_size: int, generator: np.random.Generator) -> list[list[int]]:
    """The group, or random parts of at most a batch."""
    if len(group) <= batch_size:
        return [list(group)]
    members = [group[index] for index in generator.permutation(len(group))]
    return [members[start : start + batch_size] for start in range(0, len(members), batch_size)]


def token_spans(origin_T: Sequence[int] | npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers as (first, length)."""
    numbers = np.asarray(origin_T)
    if not len(numbers):
        return []
    starts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist()]
    return [(int(numbers[start]), stop - start) for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True)]


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Batches of one width as one batch."""
    if len(batches) == 1:
        return batches[0]

    def joined(name: str) -> Tensor | None:
        values = [getattr(batch, name) for batch in batches]
        return None if values[0] is None else torch.cat(values)

    return Batch(
        input_ids_BT=torch.cat([batch.input_ids_BT for batch in batches]),
        attention_mask_BT=torch.cat([batch.attention_mask_BT for batch in batches]),
        is_target_BT=joined("is_target_BT"),
        labels_B=joined("labels_B"),
        token_type_ids_BT=joined("token_type_ids_BT"),
        rows=[row for batch in batches for row in batch.rows],
        target_ids_BS=joined("target_ids_BS"),
        target_mask_BS=joined("target_mask_BS"),
    )


def length_groups(lengths: Sequence[int], most_rows: int | None, overhead_tokens: int) -> list[int]:
    """Cut an optimiser batch, longest row first, into micro-batches that cost least.

    A micro-batch costs its rows times its longest row, plus ``overhead_tokens`` for being one more.

    Args:
        lengths: tokens of each row, in descending order.
        most_rows: upper bound on the rows of a micro-batch.
        overhead_tokens: how many tokens' work a further forward and backward pass is worth.

    Returns:
        The number of rows of each micro-batch, in order.
    """
    if most_rows is not None and most_rows < 1:
        raise ValueError(f"most_rows {most_rows} must be >= 1")
    limit = len(lengths) if most_rows is None else most_rows
    # Least cost of the first `end` rows, and where the last group of that solution starts.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(lengths) + 1):
        starts = range(max(0, end - limit), end)
        best.append(min((best[start][0] + (end - start) * lengths[start] + overhead_tokens, start) for start in starts))
    sizes: list[int] = []
    end = len(lengths)
    while end > 0:
        start = best[end][1]
        sizes.append(end - start)
        end = start
    return sizes[::-1]


def micro_batches(
    rows_by_seed: Sequence[Sequence[int]], length_of: Callable[[int], int], most_rows: int | None, num_slots: int
) -> Iterator[tuple[int, list[list[int]]]]:
    """An optimiser batch of every seed, cut at the same places into micro-batches of nearly equal length.

    Args:
        most_rows: upper bound on a seed's rows in a micro-batch.
        num_slots: how many slots share a pass, and with it what a pass costs.

    Yields:
        The longest row's length, and every seed's rows; longest first.
    """
    by_length = [sorted(rows, key=length_of, reverse=True) for rows in rows_by_seed]
    widths = [max(map(length_of, rank)) for rank in zip(*by_length, strict=True)]
    start = 0
    for size in length_groups(widths, most_rows, -(-_PASS_OVERHEAD_TOKENS // num_slots)):
        yield widths[start], [rows[start : start + size] for rows in by_length]
        start += size


def evaluation_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Rows grouped by length, shortest first, so that rows times longest stays within ``batch_tokens``.

    A row that is longer than ``batch_tokens`` is a batch of its own. Equal lengths keep their order.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        # Lengths ascend, so the row at hand is the longest of the batch that it joins.
        if batches and (len(batches[-1]) + 1) * lengths[row] <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(
    examples: Sequence[Example],
    rows: Sequence[int],
    pad_id: int,
    *,
    side: Literal["right", "left"] = "right",
    pad_to: int | None = None,
    targets_to: int | None = None,
) -> Batch:
    """Pad the examples at ``rows`` to one length, and what a decoder is to produce for them to another.

    Args:
        examples: the split's examples.
        rows: indices into ``examples``, in the order of the batch.
        pad_id: fills the padding; masked everywhere, so any id that the model knows will do.
        side: where the padding goes; ``left`` for generation, so that every row ends at its last token.
        pad_to: total length; the longest row's by default.
        targets_to: total length of the decoder's targets, which are always padded on the right; the longest's by default.

    Raises:
        ValueError: there are no rows, or ``pad_to`` or ``targets_to`` is shorter than the longest.
    """
    chosen = [examples[row] for row in rows]
    if not chosen:
        raise ValueError("a batch needs at least one row")

    def padded(
        sequences: Sequence[Sequence[int]], fill: int, dtype: torch.dtype, to: int | None = pad_to, left: bool = side == "left"
    ) -> Tensor:
        longest = max(map(len, sequences))
        width = longest if to is None else to
        if width < longest:
            raise ValueError(f"padding to {width} is shorter than the longest row, {longest} tokens")
        table_BT = torch.full((len(sequences), width), fill, dtype=dtype)
        for index, sequence in enumerate(sequences):
            start = width - len(sequence) if left else 0
            table_BT[index, start : start + len(sequence)] = torch.tensor(sequence, dtype=dtype)
        return table_BT

    lengths = [len(example.input_ids) for example in chosen]
    decoded = [example.target_ids for example in chosen if example.target_ids is not None]
    assert len(decoded) in (0, len(chosen)), "examples of two task types in a batch"
    targets = [example.is_target for example in chosen if example.is_target is not None]
    labels = [example.label for example in chosen if example.label is not None]
    types = [example.token_type_ids or [0] * len(example.input_ids) for example in chosen]
    has_types = any(example.token_type_ids is not None for example in chosen)
    assert len(targets) in (0, len(chosen)), "examples of two task types in a batch"
    assert len(labels) in (0, len(chosen)), "examples of two task types in a batch"
    return Batch(
        input_ids_BT=padded([example.input_ids for example in chosen], pad_id, torch.long),
        attention_mask_BT=padded([[1] * length for length in lengths], 0, torch.long),
        is_target_BT=padded(targets, 0, torch.bool) if targets else None,
        labels_B=torch.tensor(labels) if labels else None,
        token_type_ids_BT=padded(types, 0, torch.long) if has_types else None,
        rows=list(rows),
        target_ids_BS=padded(decoded, pad_id, torch.long, targets_to, False) if decoded else None,
        target_mask_BS=padded([[1] * len(ids) for ids in decoded], 0, torch.bool, targets_to, False) if decoded else None,
    )
