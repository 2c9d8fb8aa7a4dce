"""Examples as people should see them: every token apart, which of them are learned, and where some were cut away.

Knows examples and their tokenizer. Does not know colours or pages. Floor: data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from lorascope.config import TaskType
from lorascope.data.audit import paired
from lorascope.data.prompt import UNCUT
from lorascope.data.record import Example, RawTask, Record, Task
from lorascope.data.task import encode_task
from lorascope.data.tokens import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Token:
    """One token: its text (spaces included), whether the model learns to produce it, and how many were cut before it."""

    text: str
    is_target: bool = False
    is_special: bool = False
    num_cut: int = 0


@dataclass(frozen=True)
class MarkedExample:
    """An example's tokens, the decoder's after the encoder's.

    Attributes:
        label: the class's name, where there are classes.
        num_input: how many of the tokens are the encoder's; all, where there is no decoder.
        num_cut_after: how many tokens were cut behind the last.
    """

    split: str
    id: str
    where: str
    label: str | None
    tokens: tuple[Token, ...]
    num_input: int
    num_cut_after: int = 0


def mark_examples(raw: RawTask, task: Task, tokenizer: PreTrainedTokenizerBase, num_examples: int) -> list[MarkedExample]:
    """The first ``num_examples`` of each split, with their masks."""
    chosen = [("train", *_first(raw.train, task.train, task.task_type, num_examples))]
    if raw.eval_split != "train":
        chosen.append((raw.eval_split, *_first(raw.eval, task.eval, task.task_type, num_examples)))
    records = [of_split for _, of_split, _ in chosen]
    few = replace(raw, train=records[0], eval=records[1] if len(records) > 1 else [], notices=[])
    whole = encode_task(few, tokenizer, UNCUT)
    special = special_ids(tokenizer)
    marked = []
    for (split, of_split, examples), uncut in zip(chosen, (whole.train, whole.eval), strict=False):
        for record, example, full in zip(of_split, examples, uncut, strict=True):
            label = None if example.label is None else raw.labels[example.label]
            cuts = _cuts(full.input_ids, example.input_ids)
            tokens = tuple(_tokens(example, cuts, special, tokenizer))
            after = cuts.get(len(example.input_ids), 0)
            marked.append(MarkedExample(split, record.id, record.where, label, tokens, len(example.input_ids), after))
    return marked


def mark_records(raw: RawTask, num_records: int) -> list[MarkedExample]:
    """As ``mark_examples`` where there is no tokenizer: whole pieces of text stand for their tokens."""
    splits = [("train", raw.train)] + ([(raw.eval_split, raw.eval)] if raw.eval_split != "train" else [])
    marked = []
    for split, records in splits:
        for record in records[:num_records]:
            texts = [text for text in (record.text, record.text_pair) if text]
            pieces = [Token(text) for text in texts] + [Token(piece.text, piece.is_target) for piece in record.segments]
            label = None if record.label is None else raw.labels[record.label]
            marked.append(MarkedExample(split, record.id, record.where, label, tuple(pieces), len(pieces)))
    return marked


def _first(
    records: Sequence[Record], examples: Sequence[Example], task_type: TaskType, count: int
) -> tuple[list[Record], list[Example]]:
    pairs = paired(records, examples, task_type)[0][:count]
    return [record for record, _ in pairs], [example for _, example in pairs]


def _tokens(
    example: Example, cuts: Mapping[int, int], special: Collection[int], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Token]:
    is_target = example.is_target or [False] * len(example.input_ids)
    for place, (token, learned) in enumerate(zip(example.input_ids, is_target, strict=True)):
        yield Token(token_text(token, tokenizer), learned, token in special, cuts.get(place, 0))
    for token in example.target_ids or []:
        yield Token(token_text(token, tokenizer), True, token in special)


def _cuts(full: Sequence[int], kept: Sequence[int]) -> dict[int, int]:
    """How many tokens of ``full`` are missing before each place of ``kept``."""
    if len(full) == len(kept):
        return {}
    changes = SequenceMatcher(None, full, kept, autojunk=False).get_opcodes()
    return {
        at: (stop - start) - (end - at)
        for kind, start, stop, at, end in changes
        if kind != "equal" and stop - start > end - at
    }


def token_text(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the token stands for; a part of a character is shown as the replacement character."""
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    # SentencePiece decoders take a first space away.
    starts_word = str(tokenizer.convert_ids_to_tokens(token)).startswith("▁") and not text.startswith(" ")
    return f" {text}" if starts_word else text
