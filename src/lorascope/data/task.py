"""Tasks from their configuration: ``read_task`` reads records, ``encode_task`` turns them into token ids.

Knows which tasks there are and how an evaluation split is held out. Does not know file formats (``table``), places
(``source``), prompts (``prompt``) or what is wrong with data (``audit``). Importing it loads neither torch nor
``datasets``. Floor: data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lorascope.config import TaskConfig, TaskType
from lorascope.data.dialogue import TUTORING_PUBLISHED, TUTORING_SPEAKERS, read_tutoring
from lorascope.data.files import FILE_PUBLISHED, SPEAKERS, read_file
from lorascope.data.glue import GLUE, read_glue
from lorascope.data.nli import DIALOGUE_NLI_PUBLISHED, NLI_LABELS, SICK_PUBLISHED, read_dialogue_nli, read_sick
from lorascope.data.overlap import letters
from lorascope.data.persona import PERSONA_PUBLISHED, PERSONA_SPEAKERS, read_persona
from lorascope.data.prompt import encode_pairs, encode_records
from lorascope.data.record import Example, Notice, RawTask, Reading, Record, Segment, Task, checksum
from lorascope.data.source import Published, Source, locate
from lorascope.data.squad import SQUAD_PUBLISHED, read_squad
from lorascope.errors import DataError, MissingSplit, UsageError, did_you_mean

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
    """How a task's data are published, and the function that turns them into records.

    Attributes:
        form: task type and number of labels; None where the data tell them.
        speakers: sides of a dialogue that ``task.speaker`` may name, the default first.
        takes_labels: ``task.labels`` may name classes.
        one_file_many_splits: a file may hold splits beside the one that it was given for.
    """

    read: Callable[[Mapping[str, Source], TaskConfig], Reading]
    published: Published
    form: tuple[TaskType, int] | None
    speakers: tuple[str, ...] = ()
    takes_labels: bool = False
    one_file_many_splits: bool = False


_GENERATION: tuple[TaskType, int] = ("CAUSAL_LM", 0)
_PAIRS: tuple[TaskType, int] = ("SEQ_CLS", len(NLI_LABELS))


def _glue(name: str) -> TaskReader:
    return TaskReader(read_glue, GLUE[name].published, ("SEQ_CLS", len(GLUE[name].labels)), takes_labels=True)


TASKS: dict[str, TaskReader] = {
    "sst2": _glue("sst2"),
    "mrpc": _glue("mrpc"),
    "rte": _glue("rte"),
    "sick": TaskReader(read_sick, SICK_PUBLISHED, _PAIRS, takes_labels=True, one_file_many_splits=True),
    "dialogue_nli": TaskReader(read_dialogue_nli, DIALOGUE_NLI_PUBLISHED, _PAIRS, takes_labels=True),
    "squad": TaskReader(read_squad, SQUAD_PUBLISHED, _GENERATION),
    "personachat": TaskReader(read_persona, PERSONA_PUBLISHED, _GENERATION, PERSONA_SPEAKERS, one_file_many_splits=True),
    "teacher_student": TaskReader(read_tutoring, TUTORING_PUBLISHED, _GENERATION, TUTORING_SPEAKERS),
    "file": TaskReader(read_file, FILE_PUBLISHED, None, SPEAKERS, takes_labels=True),
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
        UsageError: the task or the speaker is unknown.
        DataError: the data cannot be read as what they were said to be, or a split is missing or empty.
    """
    holds_out = config.eval_fraction is not None and split == "validation"
    needs_train = with_train or holds_out or split == "train"
    needed = [*(["train"] if needs_train else []), *([split] if split != "train" and not holds_out else [])]
    reading = _read(config, {name: _most(name, split, config, with_train) for name in needed})
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
    for name, records in ([("train", train)] if with_train else []) + [(split, evaluation)]:
        if not records:
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


def _read(config: TaskConfig, most: Mapping[str, int | None]) -> Reading:
    """What the task's reader finds of the splits that are needed, each with the number of its records in use."""
    if config.name not in TASKS:
        raise UsageError(f"unknown task {config.name!r}", where="task.name", fix=did_you_mean(config.name, list(TASKS)))
    reader = TASKS[config.name]
    _check_keys(config, reader)
    sources = locate(config.data, list(most), reader.published)
    for name in most:
        if name not in sources and not (sources and reader.one_file_many_splits):
            raise _missing_split(name, config)
    reading = reader.read({name: replace(source, most=most[name]) for name, source in sources.items()}, config)
    for name in most:
        if name not in reading.splits:
            raise _missing_split(name, config)
    return reading


def _check_keys(config: TaskConfig, reader: TaskReader) -> None:
    if config.labels is not None and not reader.takes_labels:
        raise DataError(f"{config.name} has no labels", where="task.labels", fix="remove the key")
    if config.speaker is None or config.speaker in reader.speakers:
        return
    if not reader.speakers:
        raise UsageError(f"{config.name} has no speakers", where="task.speaker", fix="remove the key")
    known = ", ".join(repr(speaker) for speaker in reader.speakers)
    raise UsageError(f"unknown speaker {config.speaker!r}", where="task.speaker", fix=f"known: {known}")


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
            encode = encode_pairs if raw.task_type == "SEQ_2_SEQ_LM" else encode_records
            examples, more = encode(records, tokenizer, max_length, split, training=training, generates=raw.generates)
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
        examples.append(Example(record.id, ids, None, record.label, 0, token_type_ids=pair_types, group=record.group_key))
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


def _most(name: str, split: str, config: TaskConfig, with_train: bool) -> int | None:
    """How many records of a needed split are used at most; None for all."""
    if name == "train" and config.eval_fraction is not None:
        return None
    uses = [config.max_train] if name == "train" and with_train else []
    uses += [config.max_eval] if name == split else []
    limits = [use for use in uses if use is not None]
    return max(limits) if len(limits) == len(uses) else None


def _hold_out(records: Sequence[Record], fraction: float) -> tuple[list[Record], list[Record]]:
    """Train and held-out records, each in the order read: the groups of lowest hash are held out, at least one."""
    keys = [hashlib.sha256(_group(record).encode()).digest() for record in records]
    groups = sorted(set(keys))
    num_held_out = min(max(1, round(fraction * len(groups))), len(groups) - 1)
    chosen = set(groups[:num_held_out])
    train = [record for record, key in zip(records, keys, strict=True) if key not in chosen]
    return train, [record for record, key in zip(records, keys, strict=True) if key in chosen]


def _group(record: Record) -> str:
    # Near copies count as one: SST-2 holds many phrases with and without their full stop.
    return record.group or "\0".join(letters(record))


def _missing_split(split: str, config: TaskConfig) -> MissingSplit:
    if split == "train":
        return MissingSplit("no train split", where=_place(config, split), fix="name one: data: {train: …}")
    carve = "set task.eval_fraction to hold one out of train, or " if split == "validation" else ""
    return MissingSplit(
        f"no {split} split to evaluate on", where=_place(config, split), fix=f"{carve}name one: data: {{{split}: …}}"
    )


def _place(config: TaskConfig, split: str) -> str:
    if isinstance(config.data, str):
        return config.data
    return next((place for name, place in config.data.items() if name == split), "task.data")


def known_form(config: TaskConfig) -> tuple[TaskType, int] | None:
    """Task type and number of labels as far as the configuration tells them without the data; None where it does not."""
    if config.name in TASKS and TASKS[config.name].form is not None:
        return TASKS[config.name].form
    return ("SEQ_CLS", len(config.labels)) if config.labels is not None else None
