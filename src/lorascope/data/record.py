"""The types that data pass through: Record (read), Example (tokenised), RawTask and Task (all of a task).

Knows what makes two records equal and how a dataset is hashed. Does not know file formats, tokenizers or tensors.
Floor: data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lorascope.config import TaskType


@dataclass(frozen=True)
class Notice:
    """Something that was done to the data and that people must be told: counted, placed, stored with the trial.

    ``where`` is a split, a file or a key; ``places`` are the first records concerned.
    """

    kind: str
    count: int
    where: str
    message: str
    places: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a causal language model's input.

    Attributes:
        text: the piece itself; with a ``role``, a message's bare content.
        is_target: the model learns to produce this piece.
        cut: the side from which this piece loses tokens when the whole is too long; None for never.
        role: speaker of a chat message (``user``, ``assistant``, …), rendered only when a tokenizer is known. A message of
            role ``assistant`` closes with an end token whether it is a target or history.
    """

    text: str
    is_target: bool = False
    cut: Literal["start", "end"] | None = None
    role: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One item as read, before tokenisation.

    Attributes:
        where: ``file:line``, or dataset, split and row.
        answer_spans: for each answer, its characters ``[start, end)`` in the segment that may be cut; None where the
            answer does not occur there.
        group: records of one group are never divided between train and a held-out split; empty: the record's own text.
        persona: sentences that a judge compares a reply with.
        candidates: texts whose likelihood as the last target is measured; for ranking, the right one is the last.
    """

    id: str
    where: str
    text: str = ""
    text_pair: str | None = None
    label: int | None = None
    segments: tuple[Segment, ...] = ()
    answers: tuple[str, ...] = ()
    answer_spans: tuple[tuple[int, int] | None, ...] = ()
    group: str = ""
    persona: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()

    @property
    def group_key(self) -> str:
        """The group in twelve characters; empty where it is the record's own text."""
        return hashlib.sha256(self.group.encode("utf-8", "surrogatepass")).hexdigest()[:12] if self.group else ""

    @property
    def content(self) -> tuple[object, ...]:
        """What makes two records the same item: everything but identity and place."""
        return (self.text, self.text_pair, self.label, self.segments, self.answers, self.persona, self.candidates)


@dataclass(frozen=True)
class RawTask:
    """A task as read: needs no tokenizer.

    Attributes:
        labels: class names in the order of their numbers; empty unless SEQ_CLS.
        eval_split: the split that ``eval`` holds, in words.
        shape: format and columns that were found, for people to check.
        checksum: SHA-256 over the records in use, order included, independent of where they lie.
        generates: evaluation generates answers, rather than classify or measure perplexity.
        counts: what the data hold by split, before anything is left out, in the task's own units (dialogues, replies, …).
    """

    name: str
    task_type: TaskType
    labels: tuple[str, ...]
    train: list[Record]
    eval: list[Record]
    eval_split: str
    shape: str
    checksum: str
    notices: list[Notice]
    generates: bool
    metric_names: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Example:
    """One item as token ids.

    Attributes:
        is_target: CAUSAL_LM: per token, True where the token itself is to be predicted; None for the other types.
        label: SEQ_CLS: the class's number.
        prompt_length: what generation is fed. CAUSAL_LM: the tokens before the last target; SEQ_2_SEQ_LM: all that the
            encoder reads; 0 for SEQ_CLS.
        token_type_ids: for pairs, where the tokenizer gives them.
        target_ids: SEQ_2_SEQ_LM: what the decoder is to produce, the end token included; None for the other types.
        persona: sentences that a judge compares a reply with.
        candidate_ids: token ids of each candidate, to be put in the place of the last target, the end token included.
        group: key of the record's group: questions of one context, replies of one dialogue; empty where it is alone.
    """

    id: str
    input_ids: list[int]
    is_target: list[bool] | None
    label: int | None
    prompt_length: int
    answers: tuple[str, ...] = ()
    token_type_ids: list[int] | None = None
    target_ids: list[int] | None = None
    persona: tuple[str, ...] = ()
    candidate_ids: tuple[tuple[int, ...], ...] = ()
    group: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens that a model reads for it: those of the input, and those of the decoder where there is one."""
        return len(self.input_ids) + len(self.target_ids or ())

    @property
    def num_targets(self) -> int:
        """Tokens that are to be predicted; the first of a causal row never is. 0 for SEQ_CLS."""
        return sum((self.is_target or ())[1:]) if self.target_ids is None else len(self.target_ids)


@dataclass(frozen=True)
class Task:
    """A RawTask whose records became token ids; ``notices`` holds those of reading and of encoding."""

    name: str
    task_type: TaskType
    labels: tuple[str, ...]
    train: list[Example]
    eval: list[Example]
    eval_split: str
    shape: str
    checksum: str
    notices: list[Notice]
    generates: bool
    metric_names: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What a task's reader makes of its sources: records by split, before any is held out, cut off or counted."""

    task_type: TaskType
    splits: dict[str, list[Record]]
    shape: str
    labels: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()
    generates: bool = False
    metric_names: tuple[str, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def checksum(labels: tuple[str, ...], train: Iterable[Record], evaluation: Iterable[Record]) -> str:
    """SHA-256 over label names and the records of both splits in order; places and paths are not part of it."""
    digest = hashlib.sha256(json.dumps(labels).encode())
    for split, records in (("train", train), ("eval", evaluation)):
        for record in records:
            segments = [(segment.text, segment.is_target, segment.cut, segment.role) for segment in record.segments]
            fields = [split, record.id, *record.content[:3], segments, record.answers, record.answer_spans]
            fields += [extra for extra in (record.persona, record.candidates) if extra]
            digest.update(json.dumps(fields).encode())
            digest.update(b"\n")
    return digest.hexdigest()
