"""Tasks from their configuration: ``read_task`` reads records, ``encode_task`` turns them into token ids.

Knows which tasks there are and how an evaluation split is held out. Does not know file formats (``table``), places
(``source``), prompts (``prompt``) or what is wrong with data (``audit``). Importing it loads neither torch nor
``datasets``. Floor: data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorascope.config import TaskConfig, TaskType
from lorascope.data.files import FILE_PUBLISHED, read_file
from lorascope.data.glue import GLUE, read_glue
from lorascope.data.overlap import letters
from lorascope.data.prompt import encode_records
from lorascope.data.record import Example, Notice, RawTask, Reading, Record, Segment, Task, checksum
from lorascope.data.source import Published, Source, locate
from lorascope.data.squad import SQUAD_PUBLISHED, read_squad
from lorascope.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TASKS",
    "Example",
    "Notice",
    "RawTask",
    "Record",
    "Segment",
    "Task",
    "TaskReader",
    "encode_task",
    "known_form",
    "read_task",
]


@dataclass(frozen=True)
class TaskReader:
    """How a task's data are published, and the function that turns them into records."""

    read: Callable[[Mapping[str, Source], TaskConfig], Reading]
    published: Published


TASKS: dict[str, TaskReader] = {
    "sst2": TaskReader(read_glue, GLUE["sst2"].published),
    "mrpc": TaskReader(read_glue, GLUE["mrpc"].published),
    "rte": TaskReader(read_glue, GLUE["rte"].published),
    "squad": TaskReader(read_squad, SQUAD_PUBLISHED),
    "file": TaskReader(read_file, FILE_PUBLISHED),
}


def read_task(config: TaskConfig, split: str = "validation", *, with_train: bool = True) -> RawTask:
    """Read a task's training records and those of the split to evaluate on.

    ``max_train`` and ``max_eval`` take the first records of their split. With ``eval_fraction`` the validation split is
    held out of train by a hash of the records' text, whatever else the data hold; texts that are equal but for case,
    punctuation and whitespace fall on the same side.

    Args:
        config: the study's task section.
        split: ``train``, ``validation`` or ``test``.
        with_train: False to evaluate only: ``train`` stays empty, and a lone file is the split to evaluate on.

    Raises:
        UsageError: the task is unknown.
        DataError: the data cannot be read as what they were said to be, or a split is missing or empty.
    """
    if config.name not in TASKS:
        raise UsageError(f"unknown task {config.name!r}", where="task.name", fix=did_you_mean(config.name, list(TASKS)))
    reader = TASKS[config.name]
    holds_out = config.eval_fraction is not None and split == "validation"
    needs_train = with_train or holds_out or split == "train"
    needed = [*(["train"] if needs_train else []), *([split] if split != "train" and not holds_out else [])]
    sources = locate(config.data, needed, reader.published)
    for name in needed:
        if name not in sources:
            raise _missing_split(name, config)
    reading = reader.read(sources, config)
    notices = list(reading.notices)
    train = reading.splits.get("train", [])
    held_out: list[Record] = []
    if config.eval_fraction is not None and needs_train:
        train, held_out = _hold_out(train, config.eval_fraction)
        message = (
            f"{len(held_out)} of {len(train) + len(held_out)} train records are held out for evaluation "
            f"(eval_fraction {config.eval_fraction:g}, by a hash of their text)."
        )
        notices.append(Notice("held_out", len(held_out), "train", message))
    evaluation = {"train": train, "validation": held_out}[split] if holds_out or split == "train" else reading.splits[split]
    train = train[: config.max_train] if with_train else []
    evaluation = evaluation[: config.max_eval]
    for name, records in (("train", train), (split, evaluation)):
        if not records and (with_train or name == split):
            raise DataError(f"the {name} split is empty", where=_place(config, name), fix="give one that holds records")
    return RawTask(
        name=config.name,
        task_type=reading.task_type,
        labels=reading.labels,
        train=train,
        eval=evaluation,
        eval_split=f"{split} (held out of train)" if holds_out else split,
        shape=reading.shape,
        checksum=checksum(reading.labels, train, evaluation),
        notices=notices,
        generates=reading.generates,
        metric_names=reading.metric_names,
        counts=reading.counts,
    )


def encode_task(raw: RawTask, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Task:
    """The task as token ids; adds notices about what was cut or dropped.

    Raises:
        DataError: nothing is left of a split, or an evaluation example cannot be encoded.
        ModelError: the tokenizer lacks what the task needs.
    """
    notices = list(raw.notices)
    splits: list[list[Example]] = []
    for records, split, training in ((raw.train, "train", True), (raw.eval, raw.eval_split, False)):
        if raw.task_type == "SEQ_CLS":
            examples, more = _encode_classification(records, tokenizer, max_length, split, training)
        else:
            examples, more = encode_records(records, tokenizer, max_length, split, training=training, generates=raw.generates)
        if records and not examples:
            reasons = " ".join(notice.message for notice in more)
            raise DataError(f"no {split} example is left: {reasons}", where="task.max_length", fix="raise it")
        splits.append(examples)
        notices += more
    kept: dict[str, Any] = {name: getattr(raw, name) for name in ("name", "task_type", "labels", "eval_split", "shape")}
    return Task(
        **kept,
        train=splits[0],
        eval=splits[1],
        checksum=raw.checksum,
        notices=notices,
        generates=raw.generates,
        metric_names=raw.metric_names,
    )


def _encode_classification(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int, split: str, training: bool
) -> tuple[list[Example], list[Notice]]:
    """Special tokens, and which of two texts is shortened, as the tokenizer has it (longest first)."""
    encoded = _tokenise_texts(records, tokenizer, None)
    long = [index for index, ids in enumerate(encoded["input_ids"]) if len(ids) > max_length]
    shortened = _tokenise_texts([records[index] for index in long], tokenizer, max_length)
    for name, column in encoded.items():
        for index, ids in zip(long, shortened[name], strict=True):
            column[index] = ids
    types = encoded.get("token_type_ids")
    examples: list[Example] = []
    blank: list[Record] = []
    for index, (record, ids) in enumerate(zip(records, encoded["input_ids"], strict=True)):
        if not ids:
            blank.append(record)
            continue
        pair_types = types[index] if types is not None and record.text_pair is not None else None
        examples.append(Example(record.id, ids, None, record.label, 0, token_type_ids=pair_types))
    if blank and not training:
        raise DataError("the text has no tokens", where=blank[0].where, fix="remove the record")
    notices = []
    if long:
        message = f"{len(long)} {split} examples were cut to max_length {max_length} (first: {records[long[0]].where})."
        notices.append(Notice("truncated", len(long), split, message, (records[long[0]].where,)))
    if blank:
        message = f"{len(blank)} {split} examples were dropped: their text has no tokens (first: {blank[0].where})."
        notices.append(Notice("dropped", len(blank), split, message))
    return examples, notices


def _tokenise_texts(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> dict[str, list[list[int]]]:
    """Columns of the tokenizer's output; uncut for ``max_length`` None."""
    if not records:
        return {"input_ids": [], "token_type_ids": []}
    pairs = [record.text_pair for record in records if record.text_pair is not None]
    assert len(pairs) in (0, len(records)), "some records have a second text and some have none"
    encoded: Any = tokenizer(
        [record.text for record in records],
        pairs or None,
        truncation=max_length is not None,
        max_length=max_length,
        return_attention_mask=False,
        verbose=False,
    )
    return {name: list(encoded[name]) for name in ("input_ids", "token_type_ids") if name in encoded}


def _hold_out(records: Sequence[Record], fraction: float) -> tuple[list[Record], list[Record]]:
    """Train and held-out records, each in the order read: the groups of lowest hash are held out, at least one."""
    keys = [_group(record) for record in records]
    groups = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode()).digest())
    num_held_out = min(max(1, round(fraction * len(groups))), len(groups) - 1)
    chosen = set(groups[:num_held_out])
    train = [record for record, key in zip(records, keys, strict=True) if key not in chosen]
    return train, [record for record, key in zip(records, keys, strict=True) if key in chosen]


def _group(record: Record) -> str:
    # Near copies count as one: SST-2 holds many phrases with and without their full stop.
    return record.group or "\0".join(letters(record))


def _missing_split(split: str, config: TaskConfig) -> DataError:
    if split == "train":
        return DataError("no train split", where=_place(config, split), fix="name one: data: {train: …}")
    carve = "set task.eval_fraction to hold one out of train, or " if split == "validation" else ""
    return DataError(
        f"no {split} split to evaluate on", where=_place(config, split), fix=f"{carve}name one: data: {{{split}: …}}"
    )


def _place(config: TaskConfig, split: str) -> str:
    if isinstance(config.data, str):
        return config.data
    return next((place for name, place in config.data.items() if name == split), "task.data")


def known_form(config: TaskConfig) -> tuple[TaskType, int] | None:
    """Task type and number of labels as far as the configuration tells them without the data; None where it does not."""
    if config.name in GLUE:
        return "SEQ_CLS", len(GLUE[config.name].labels)
    if config.name == "squad":
        return "CAUSAL_LM", 0
    return ("SEQ_CLS", len(config.labels)) if config.labels is not None else None
