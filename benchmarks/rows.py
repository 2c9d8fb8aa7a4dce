"""Examples as plain rows of token ids: what both sides train on, how much work a batch is, and which batches are timed.

Knows no torch and no Lorascope.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One training row or question.

    Attributes:
        is_target: causal models: per token, True where it is to be predicted; None for classification.
        label: classification: the class's number.
        weight: how many of the workload's units the row holds (a dialogue: its replies).
    """

    id: str
    input_ids: list[int]
    is_target: list[bool] | None = None
    label: int | None = None
    token_type_ids: list[int] | None = None
    prompt_length: int = 0
    weight: int = 1

    @property
    def num_supervised(self) -> int:
        """Positions whose logits the loss needs. The first token of a row is never predicted."""
        return sum((self.is_target or [])[1:])


@dataclass(frozen=True)
class Work:
    """How much one batch asks for.

    Attributes:
        tokens: of the rows themselves.
        stored_tokens: distinct prefixes among the rows, each once: the nodes of their prefix tree.
        attended_pairs: (query, visible key) pairs of the stored tokens.
        supervised: positions whose logits the loss needs.
        padded_tokens: rows times the longest.
    """

    tokens: int
    stored_tokens: int
    attended_pairs: int
    supervised: int
    padded_tokens: int

    def __add__(self, other: Work) -> Work:
        return Work(*(mine + theirs for mine, theirs in zip(asdict(self).values(), asdict(other).values(), strict=True)))


NO_WORK = Work(0, 0, 0, 0, 0)


def work_of(rows: Sequence[Row], shared: bool) -> Work:
    """The work of a batch; ``shared`` stores equal prefixes once (causal models), else every row stands alone."""
    lengths = [len(row.input_ids) for row in rows]
    stored = pairs = 0
    previous: list[int] = []
    for ids in sorted(row.input_ids for row in rows):
        start = 0
        if shared:
            limit = min(len(previous), len(ids))
            while start < limit and previous[start] == ids[start]:
                start += 1
            pairs += (len(ids) * (len(ids) + 1) - start * (start + 1)) // 2
        else:
            pairs += len(ids) ** 2
        stored += len(ids) - start
        previous = ids
    return Work(sum(lengths), stored, pairs, sum(row.num_supervised for row in rows), len(rows) * max(lengths))


def spread(count: int) -> list[int]:
    """The numbers below ``count`` in bit-reversed order: every beginning of it is evenly spread."""
    bits = max(1, (count - 1).bit_length())
    reversed_bits = (int(f"{index:0{bits}b}"[::-1], 2) for index in range(2**bits))
    return [value for value in reversed_bits if value < count]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[Row]:
    """What ``write_rows`` wrote."""
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def dialogue_rows(rows: Sequence[Row]) -> list[Row]:
    """One row per dialogue (ids ``<dialogue>-<turn>``) with every reply a target.

    A reply whose row does not extend the dialogue so far (its history was cut) starts a row of its own.
    """
    merged: list[Row] = []
    for row in rows:
        dialogue = row.id.rpartition("-")[0]
        last = merged[-1] if merged and merged[-1].id.rpartition("-")[0] == dialogue else None
        if last is None or row.input_ids[: len(last.input_ids)] != last.input_ids:
            merged.append(row)
            continue
        assert row.is_target is not None
        assert last.is_target is not None
        targets = [*last.is_target, *row.is_target[len(last.input_ids) :]]
        merged[-1] = Row(row.id, row.input_ids, targets, weight=last.weight + row.weight)
    return merged
