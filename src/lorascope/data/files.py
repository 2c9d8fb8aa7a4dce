"""The user's own data in the known shapes: messages, prompt/completion, alpaca, sharegpt, text + label.

The shape is told from the columns and recorded for people to see; columns that fit no shape or two are refused rather
than guessed at. The last turn that is learned of a chat is what evaluation generates and scores; text that is merely
continued has a perplexity only. Does not know tokenizers: chat messages stay messages until ``prompt`` renders them.
Floor: data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorascope.config import TaskConfig
from lorascope.data.dialogue import DIALOGUE_METRICS
from lorascope.data.record import Notice, Reading, Record, Segment
from lorascope.data.source import Published, Source, published_names
from lorascope.data.table import Row, Table, checked_text
from lorascope.errors import DataError, UsageError, did_you_mean

FILE_PUBLISHED = Published(published_names("{}.jsonl", "{}.json", "{}.csv", "{}.tsv", "{}.parquet"))
SPEAKERS = ("assistant", "user")
ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
# The wording of Stanford Alpaca (Taori et al. 2023), which published adapters were trained on.
ALPACA_INTRODUCTION = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
)
ALPACA_INTRODUCTION_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
)


@dataclass(frozen=True)
class Shape:
    """Columns that together say what a table holds, how a row becomes segments (None: text + label), and what is measured.

    The sides of a chat, and only they, take turns: ``task.speaker`` chooses one, whose replies are generated.
    """

    columns: tuple[str, ...]
    segments: Callable[[Row], tuple[Segment, ...]] | None
    metric_names: tuple[str, ...]
    is_chat: bool = False


def read_file(sources: Mapping[str, Source], config: TaskConfig) -> Reading:
    """Records of the user's own files.

    ``task.speaker: user`` makes the user's turns of messages and sharegpt data the targets.

    Raises:
        UsageError: a speaker for data that have none.
        DataError: no known shape, two of them, different shapes in two splits, or a row that breaks its shape.
    """
    tables = {split: source.table() for split, source in sources.items()}
    shapes = {split: _shape(table) for split, table in tables.items()}
    name = next(iter(shapes.values()))
    for split, other in shapes.items():
        if other != name:
            first = next(iter(shapes))
            raise DataError(
                f"the {split} split is {other}, the {first} split {name}",
                where=tables[split].where,
                fix="use one shape",
            )
    if config.speaker is not None and not SHAPES[name].is_chat:
        raise UsageError(f"data of the shape {name} have no speakers", where="task.speaker", fix="remove the key")
    speaker = config.speaker or SPEAKERS[0]
    formats = "/".join(dict.fromkeys(table.format for table in tables.values()))
    segments = SHAPES[name].segments
    if segments is None:
        labels = _label_names(tables, config)
        read = {split: _labelled(table, labels, sources[split]) for split, table in tables.items()}
        splits = {split: records for split, (records, _) in read.items()}
        counts = {split: {"rows": num_rows} for split, (_, num_rows) in read.items()}
        metric_names = SHAPES[name].metric_names
        return Reading("SEQ_CLS", splits, f"{formats} {name}", labels, metric_names=metric_names, counts=counts)
    if config.labels is not None:
        raise DataError(f"data of the shape {name} have no labels", where="task.labels", fix="remove the key")
    splits, counts, notices = {}, {}, []
    for split, table in tables.items():
        splits[split], num_rows, blank = _generation(table, segments, speaker, sources[split])
        counts[split] = {"rows": num_rows}
        if blank:
            message = f"{len(blank)} {split} records have an empty target and were left out (first: {blank[0]})."
            notices.append(Notice("empty_target", len(blank), split, message, tuple(blank[:3])))
    shape = f"{formats} {name}" if speaker == SPEAKERS[0] else f"{formats} {name}, the {speaker}'s turns"
    return Reading(
        "CAUSAL_LM",
        splits,
        shape,
        notices=tuple(notices),
        generates=SHAPES[name].is_chat,
        metric_names=SHAPES[name].metric_names,
        counts=counts,
    )


def _shape(table: Table) -> str:
    matches = [name for name, shape in SHAPES.items() if set(shape.columns) <= set(table.columns)]
    if len(matches) == 1:
        return matches[0]
    there = ", ".join(repr(column) for column in table.columns)
    known = "; ".join(f"{name} ({', '.join(shape.columns)})" for name, shape in SHAPES.items())
    if matches:
        raise DataError(
            f"the columns {there} fit {' and '.join(matches)}",
            where=table.where,
            fix="remove the columns of all but one",
        )
    raise DataError(f"the columns {there} fit no known shape", where=table.where, fix=f"known: {known}")


def _generation(
    table: Table, segments: Callable[[Row], tuple[Segment, ...]], speaker: str, source: Source
) -> tuple[list[Record], int, list[str]]:
    """The records that are used, how many rows there are, and the places of those left out: all their targets are blank."""
    records: list[Record] = []
    num_rows, blank = 0, []
    for index, row in enumerate(table.rows):
        num_rows += 1
        pieces = segments(row)
        if speaker == "user":
            pieces = tuple(_exchanged(piece) for piece in pieces)
        targets = [piece.text for piece in pieces if piece.is_target]
        if not targets:
            raise DataError(f"nothing here is to be learned: no {speaker} turn", where=row.where, fix="remove the record")
        if not any(target.strip() for target in targets):
            blank.append(row.where)
            continue
        if source.wants(len(records)):
            records.append(Record(_identity(row, index), row.where, segments=pieces, answers=(targets[-1],)))
    return records, num_rows, blank


def _exchanged(message: Segment) -> Segment:
    """The user's message as the assistant's and the other way round: the modelled side is always the assistant."""
    role = {"user": "assistant", "assistant": "user"}.get(message.role or "", message.role)
    return replace(message, role=role, is_target=role == "assistant")


def _identity(row: Row, index: int) -> str:
    value = row.values.get("id")
    return str(value) if isinstance(value, (str, int)) and str(value).isprintable() and str(value) else str(index)


def _prompt_completion(row: Row) -> tuple[Segment, ...]:
    """Joined verbatim, as TRL does: the space between them, if any, is the data's."""
    return Segment(row.text("prompt"), cut="start"), Segment(row.text("completion"), is_target=True)


def _alpaca(row: Row) -> tuple[Segment, ...]:
    instruction, response = row.text("instruction"), Segment("\n\n### Response:\n")
    target = Segment(row.text("output"), is_target=True)
    given = "" if row.values.get("input") is None else row.text("input")
    if not given.strip():
        return Segment(ALPACA_INTRODUCTION), Segment(instruction, cut="end"), response, target
    introduction = Segment(f"{ALPACA_INTRODUCTION_WITH_INPUT}{instruction}\n\n### Input:\n")
    return introduction, Segment(given, cut="end"), response, target


def _messages(row: Row) -> tuple[Segment, ...]:
    return _turns(row, "messages", "role", "content", {role: role for role in ROLES})


def _sharegpt(row: Row) -> tuple[Segment, ...]:
    return _turns(row, "conversations", "from", "value", SHAREGPT_ROLES)


def _turns(row: Row, column: str, role_key: str, text_key: str, roles: Mapping[str, str]) -> tuple[Segment, ...]:
    turns = row.values.get(column)
    if not isinstance(turns, list):
        kind = "missing" if turns is None else type(turns).__name__
        raise DataError(f"column {column!r} is {kind}, not a list of turns", where=row.where, fix="correct the record")
    segments = []
    for number, turn in enumerate(turns, 1):
        place = f"turn {number} of {column!r}"
        if not isinstance(turn, dict) or role_key not in turn or text_key not in turn:
            raise DataError(
                f"{place} lacks {role_key!r} or {text_key!r}", where=row.where, fix=f"write {{{role_key}, {text_key}}}"
            )
        speaker = checked_text(turn[role_key], f"{role_key!r} in {place}", row.where)
        if speaker not in roles:
            raise DataError(f"{place} is by {speaker!r}", where=row.where, fix=did_you_mean(speaker, list(roles)))
        text = checked_text(turn[text_key], f"{text_key!r} in {place}", row.where)
        segments.append(Segment(text, is_target=roles[speaker] == "assistant", role=roles[speaker]))
    return tuple(segments)


def _labelled(table: Table, labels: tuple[str, ...], source: Source) -> tuple[list[Record], int]:
    """The records that are used, with their labels' numbers, and how many rows there are."""
    pair_columns = [column for column in ("text_pair", "text2") if column in table.columns]
    if len(pair_columns) > 1:
        raise DataError("two second texts, 'text_pair' and 'text2'", where=table.where, fix="remove one")
    numbers = {label: number for number, label in enumerate(labels)}
    if not any(re.fullmatch(r"\d+", label) for label in labels):
        # Names were given for integer classes.
        numbers.update({str(number): number for number in range(len(labels))})
    records: list[Record] = []
    num_rows = 0
    for index, row in enumerate(table.rows):
        num_rows += 1
        label = _label_text(row, table)
        if label not in numbers:
            raise DataError(
                f"label {label!r} is out of range; labels are {', '.join(labels)}",
                where=row.where,
                fix=did_you_mean(label, list(labels)),
            )
        pair = row.text(pair_columns[0]) if pair_columns else None
        record = Record(_identity(row, index), row.where, row.text("text"), pair, numbers[label])
        if source.wants(len(records)):
            records.append(record)
    return records, num_rows


def _label_text(row: Row, table: Table) -> str:
    """The label as text: ``1``, ``1.0`` and ``"1"`` are one label; a declared integer class is its name."""
    value: Any = row.values.get("label")
    classes = table.class_names.get("label")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if classes is not None and isinstance(value, int):
        if not 0 <= value < len(classes):
            raise DataError(f"label {value} marks a row without label", where=row.where, fix="use another split")
        return classes[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value.strip():
        return checked_text(value, "the label", row.where)
    raise DataError(f"label {value!r} names no class", where=row.where, fix="labels are text or integers")


def _label_names(tables: Mapping[str, Table], config: TaskConfig) -> tuple[str, ...]:
    """The user's order, else the dataset's declared one, else integers 0..K-1, else the sorted labels of train."""
    source = next(iter(tables.values()))
    if config.labels is not None:
        if len(set(config.labels)) != len(config.labels) or len(config.labels) < 2:
            raise DataError("labels are two or more different names", where="task.labels", fix="correct the list")
        return tuple(config.labels)
    if "label" in source.class_names:
        return source.class_names["label"]
    if "train" not in tables:
        raise DataError("which labels there are is told by the train split", where=source.where, fix="give task.labels")
    labels = {_label_text(row, tables["train"]) for row in tables["train"].rows}
    if len(labels) < 2:
        raise DataError(f"every label of train is {next(iter(labels))!r}", where=source.where, fix="two classes are needed")
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        integers = sorted(int(label) for label in labels)
        if integers != list(range(len(integers))):
            shown = ", ".join(map(str, integers[:10])) + (", …" if len(integers) > 10 else "")
            raise DataError(
                f"integer labels must run from 0 to K-1, but are {shown}",
                where=source.where,
                fix="give their order under task.labels, as strings",
            )
        return tuple(map(str, integers))
    return tuple(sorted(labels))


SHAPES: dict[str, Shape] = {
    "messages": Shape(("messages",), _messages, DIALOGUE_METRICS, is_chat=True),
    "prompt/completion": Shape(("prompt", "completion"), _prompt_completion, ("perplexity",)),
    "alpaca": Shape(("instruction", "output"), _alpaca, ("perplexity",)),
    "sharegpt": Shape(("conversations",), _sharegpt, DIALOGUE_METRICS, is_chat=True),
    "text + label": Shape(("text", "label"), None, ("accuracy",)),
}
