"""Natural language inference in three classes: SICK (Marelli et al. 2014) and Dialogue NLI (Welleck et al. 2019).

Labels are matched by name, and numbers through the names that the data declare for them (or ``task.labels`` does): the order
of the classes differs from one publication to the next. Here it is always entailment, neutral, contradiction.

SICK's splits are told by its column ``SemEval_set``. A ``SICK.txt`` without it that concatenates the three files of SemEval
(9,927 pairs; ``pair_ID`` rises within each and starts again: 4,500, 500 and 4,927 pairs) is divided where they meet.

Dialogue NLI's train, dev and test files are pairs with labels. Its evaluation files rank replies to one persona sentence;
the premise is the reply and the hypothesis the sentence:

- ``label``, the true reply, rests on the sentence by a shared triple: entailment. ``neg``: contradiction.
- ``rand`` is a reply to something else, neutral only by assumption: one per item, so that what is assumed does not outweigh
  what was annotated.
- ``similar`` shares words or a triple with the true reply, but now entails the sentence, now contradicts it: not used.

Does not know tokenizers. Floor: data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lorascope.config import TaskConfig
from lorascope.data.record import Notice, Reading, Record
from lorascope.data.source import DATA_SUFFIXES, SPLIT_ALIASES, Published, Source
from lorascope.data.table import Row, Table, checked_text, parse_json, read_text
from lorascope.errors import DataError, did_you_mean

NLI_LABELS = ("entailment", "neutral", "contradiction")


def _plain(alias: str) -> tuple[str, ...]:
    return tuple(f"{alias}{suffix}" for suffix in DATA_SUFFIXES)


def _published(names: Mapping[str, tuple[str, ...]], folder: str | None = None) -> Published:
    plain = {split: tuple(name for alias in aliases for name in _plain(alias)) for split, aliases in SPLIT_ALIASES.items()}
    return Published({split: (*names[split], *plain[split]) for split in plain}, folder=folder)


SICK_PUBLISHED = _published(
    {
        "train": ("SICK_train.txt", "SICK.txt"),
        "validation": ("SICK_trial.txt", "SICK.txt"),
        "test": ("SICK_test_annotated.txt", "SICK.txt"),
    }
)
DIALOGUE_NLI_PUBLISHED = _published(
    {
        "train": ("dialogue_nli_train.jsonl",),
        "validation": ("dialogue_nli_dev.jsonl",),
        "test": ("dialogue_nli_test.jsonl", "dialogue_nli_verified_test.jsonl"),
    },
    folder="*_*.jsonl",
)
_TEXTS = (("sentence_A", "sentence_B"), ("premise", "hypothesis"), ("sentence1", "sentence2"))
_LABELS = ("entailment_judgment", "entailment_label", "label")
_DIALOGUE_NAMES = {"positive": "entailment", "negative": "contradiction"}
_SEMEVAL_SETS = {"TRAIN": "train", "TRIAL": "validation", "TEST": "test"}
_SEMEVAL_SIZES = {4_500: "train", 500: "validation", 4_927: "test"}


@dataclass(frozen=True)
class _Columns:
    """Where a table keeps premise, hypothesis and label, and which names its numbers and words stand for."""

    premise: str
    hypothesis: str
    label: str
    by_number: tuple[str, ...] | None
    aliases: Mapping[str, str]

    def record(self, row: Row, identity: str) -> Record:
        texts = row.text(self.premise), row.text(self.hypothesis)
        return Record(identity, row.where, *texts, self._label(row))

    def _label(self, row: Row) -> int:
        value: Any = row.values.get(self.label)
        if isinstance(value, str) and value.strip().lstrip("-").isdecimal() and len(value) < 9:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            if self.by_number is None:
                raise DataError(
                    f"label {value} is a number, and the data do not say what it stands for",
                    where=row.where,
                    fix="write names, or give those of 0, 1 and 2 under task.labels",
                )
            if not 0 <= value < len(self.by_number):
                raise DataError(f"label {value} marks a pair without label", where=row.where, fix="use another split")
            value = self.by_number[value]
        return _number(value, self.aliases, row.where)


def _number(name: Any, aliases: Mapping[str, str], where: str) -> int:
    text = checked_text(name, "the label", where).strip().casefold()
    label = aliases.get(text, text)
    if label not in NLI_LABELS:
        raise DataError(f"label {name!r} is none of the three", where=where, fix=did_you_mean(text, [*NLI_LABELS, *aliases]))
    return NLI_LABELS.index(label)


def read_sick(sources: Mapping[str, Source], config: TaskConfig) -> Reading:
    """Records of SICK.

    Raises:
        DataError: a column is missing, a label is none of the three, or a split is not in the file.
    """
    splits: dict[str, list[Record]] = {}
    notices: list[Notice] = []
    shapes: dict[str, None] = {}
    for asked, source in sources.items():
        table = source.table()
        parts, told_by = _sick_parts(table, _columns(table, config, {}), asked)
        if told_by == "pair_ID":
            sizes = ", ".join(f"{len(part)} {split}" for split, part in parts.items())
            message = f"the file has no column SemEval_set; its pair_ID starts again twice, which tells {sizes} pairs apart."
            notices.append(Notice("split_by_order", sum(map(len, parts.values())), source.where, message))
        if asked not in parts:
            raise DataError(f"the file holds no {asked} pairs", where=source.where, fix="name another file")
        splits.update({split: part for split, part in parts.items() if split == asked or split not in (*sources, *splits)})
        shapes[f"sick {table.format}{f', splits by {told_by}' if told_by else ''}"] = None
    # A file that is every split is read once for each, and says so once.
    return _reading(splits, " and ".join(shapes), list(dict.fromkeys(notices)), _rows(splits))


def _sick_parts(table: Table, columns: _Columns, asked: str) -> tuple[dict[str, list[Record]], str | None]:
    """The pairs by split, and the column that told the splits; None where all are the split asked for."""
    records, sets, numbers = [], [], []
    has_sets = "SemEval_set" in table.columns
    for index, row in enumerate(table.rows):
        records.append(columns.record(row, str(index)))
        numbers.append(row.values.get("pair_ID"))
        if has_sets:
            sets.append(row.text("SemEval_set"))
    if has_sets:
        return _by_set(records, sets), "SemEval_set"
    divided = _by_runs(records, numbers)
    return ({asked: records}, None) if divided is None else (divided, "pair_ID")


def _by_set(records: Sequence[Record], marks: Sequence[str]) -> dict[str, list[Record]]:
    parts: dict[str, list[Record]] = {}
    for record, mark in zip(records, marks, strict=True):
        if mark.strip() not in _SEMEVAL_SETS:
            raise DataError(f"SemEval_set is {mark!r}", where=record.where, fix=f"known: {', '.join(_SEMEVAL_SETS)}")
        parts.setdefault(_SEMEVAL_SETS[mark.strip()], []).append(record)
    return parts


def _by_runs(records: Sequence[Record], marks: Sequence[Any]) -> dict[str, list[Record]] | None:
    """The three files of SemEval, told by rising numbers and their sizes; None for anything else."""
    if len(records) != sum(_SEMEVAL_SIZES) or not all(str(mark).isdecimal() for mark in marks):
        return None
    numbers = [int(mark) for mark in marks]
    starts = [0, *(index for index in range(1, len(numbers)) if numbers[index] <= numbers[index - 1]), len(numbers)]
    parts = [records[start:end] for start, end in pairwise(starts)]
    if sorted(map(len, parts)) != sorted(_SEMEVAL_SIZES):
        return None
    return {_SEMEVAL_SIZES[len(part)]: list(part) for part in parts}


def read_dialogue_nli(sources: Mapping[str, Source], config: TaskConfig) -> Reading:
    """Records of Dialogue NLI: pairs with labels, or its evaluation files (one, or a directory of them).

    Raises:
        DataError: a column is missing, a label is none of the three, or an item lacks a list of candidates.
    """
    splits: dict[str, list[Record]] = {}
    counts: dict[str, dict[str, int]] = {}
    notices: list[Notice] = []
    shapes: dict[str, None] = {}
    for split, source in sources.items():
        tables = list(_tables(source))
        evaluation = [{"candidates", "relevant_persona_sentence"} <= set(table.columns) for table in tables]
        if all(evaluation):
            items = [row for table in tables for row in table.rows]
            splits[split], more = _ranked_pairs(items, split)
            notices += more
            counts[split] = {"items": len(items), "rows": len(splits[split])}
            shapes[f"dialogue_nli evaluation {tables[0].format}"] = None
            continue
        [table] = tables if len(tables) == 1 else [tables[evaluation.index(False)]]
        if len(tables) > 1:
            raise DataError("not an evaluation file", where=table.where, fix="name the split's file instead of its directory")
        columns = _columns(table, config, _DIALOGUE_NAMES)
        splits[split] = [columns.record(row, str(index)) for index, row in enumerate(table.rows)]
        counts[split] = {"rows": len(splits[split])}
        shapes[f"dialogue_nli {table.format}"] = None
    return _reading(splits, " and ".join(shapes), notices, counts)


def _tables(source: Source) -> Iterator[Table]:
    if source.path is None or not (source.path.is_dir() or source.path.suffix.lower() == ".jsonl"):
        yield source.table()
        return
    files = sorted(source.path.glob("*.jsonl")) if source.path.is_dir() else [source.path]
    kinds = sorted({file.stem.split("_")[0] for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"the files begin with {' and '.join(kinds)}, so they are no single split",
            where=source.where,
            fix="name one file, or a directory that holds the files of one split",
        )
    for file in files:
        yield _list_table(file) or Source(source.split, str(file), file).table()


def _list_table(path: Path) -> Table | None:
    """The published ``.jsonl`` files are one JSON list; None for one object a line."""
    text = read_text(path)
    if not text.lstrip().startswith("["):
        return None
    rows = [Row(f"{path}, item {number}", item) for number, item in enumerate(parse_json(text, path), 1)]
    for row in rows:
        if not isinstance(row.values, dict):
            raise DataError("no JSON object", where=row.where, fix="write one object a pair")
    if not rows:
        raise DataError("the file holds no rows", where=str(path), fix="give a file that holds data")
    return Table(str(path), "JSON", tuple(dict.fromkeys(name for row in rows for name in row.values)), rows)


def _ranked_pairs(items: Iterable[Row], split: str) -> tuple[list[Record], list[Notice]]:
    pairs: list[tuple[Row, str, str, int]] = []
    unused: Counter[str] = Counter()
    for row in items:
        sentence = row.text("relevant_persona_sentence")
        candidates = {kind: _replies(row, kind) for kind in ("label", "neg", "rand", "similar")}
        num_true = len(candidates["label"])
        unused.update(rand=len(candidates["rand"][num_true:]), similar=len(candidates["similar"]))
        for name, replies in (
            ("entailment", candidates["label"]),
            ("neutral", candidates["rand"][:num_true]),
            ("contradiction", candidates["neg"]),
        ):
            pairs += [(row, reply, sentence, NLI_LABELS.index(name)) for reply in replies]
    labels_of: dict[tuple[str, str], set[int]] = {}
    for _, reply, sentence, label in pairs:
        labels_of.setdefault((reply, sentence), set()).add(label)
    records: list[Record] = []
    seen: set[tuple[str, str]] = set()
    num_contested = num_repeated = num_neutral = 0
    for row, reply, sentence, label in pairs:
        if len(labels_of[reply, sentence]) > 1:
            num_contested += 1
        elif (reply, sentence) in seen:
            num_repeated += 1
        else:
            seen.add((reply, sentence))
            num_neutral += label == NLI_LABELS.index("neutral")
            records.append(Record(str(len(records)), row.where, reply, sentence, label, group=sentence))
    notices = [
        Notice(kind, count, split, f"{count} {split} {message}.")
        for kind, count, message in (
            (
                "assumed_neutral",
                num_neutral,
                "pairs are neutral by assumption only: a reply drawn at random, one per item; "
                f"{unused['rand']} more of these and {unused['similar']} similar replies are not used",
            ),
            ("repeated", num_repeated, "pairs repeat an earlier one and were left out"),
            ("contested", num_contested, "pairs occur under two labels and were left out"),
        )
        if count
    ]
    return records, notices


def _replies(row: Row, kind: str) -> list[str]:
    candidates = row.values.get("candidates")
    replies = candidates.get(kind) if isinstance(candidates, dict) else None
    if not isinstance(replies, list):
        raise DataError(f"candidates hold no list {kind!r}", where=row.where, fix="correct or remove the item")
    return [checked_text(reply, f"a reply under {kind!r}", row.where) for reply in replies]


def _columns(table: Table, config: TaskConfig, aliases: Mapping[str, str]) -> _Columns:
    if config.labels is not None and sorted(config.labels) != sorted(NLI_LABELS):
        known = ", ".join(NLI_LABELS)
        raise DataError(f"{config.name} has the labels {known}", where="task.labels", fix="name these in the order of 0, 1, 2")
    texts = max(_TEXTS, key=lambda pair: sum(name in table.columns for name in pair))
    label = next((name for name in _LABELS if name in table.columns), _LABELS[0] if texts == _TEXTS[0] else "label")
    table.require(*texts, label)
    numbered = table.class_names.get(label) or config.labels
    return _Columns(*texts, label, tuple(numbered) if numbered else None, aliases)


def _rows(splits: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, int]]:
    return {split: {"rows": len(records)} for split, records in splits.items()}


def _reading(
    splits: dict[str, list[Record]], shape: str, notices: Sequence[Notice], counts: Mapping[str, Mapping[str, int]]
) -> Reading:
    return Reading("SEQ_CLS", splits, shape, NLI_LABELS, notices=tuple(notices), metric_names=("accuracy",), counts=counts)
