"""Natural language inference in three classes: SICK (Marelli et al. 2014) and Dialogue NLI (Welleck et al. 2019).

Labels are matched by name, and numbers through the names that the data declare for them (or ``task.labels`` does): the order
of the classes differs from one publication to the next. Here it is always entailment, neutral, contradiction.

SICK's splits are told by its column ``SemEval_set``. A ``SICK.txt`` without it that concatenates the three files of SemEval
(9,927 pairs; ``pair_ID`` rises within each and starts again: 4,500, 500 and 4,927 pairs) is divided where they meet.

A column ``group`` names what several pairs have in common, for instance the wording of which they were made: such pairs are no
independent examples, and comparisons draw whole groups.

Dialogue NLI's train, dev and test files are pairs with labels. Its evaluation files rank replies to one persona sentence;
the premise is the reply and the hypothesis the sentence:

- ``label``, the true reply, rests on the sentence by a shared triple: entailment. ``neg``: contradiction.
- ``rand`` is a reply to something else, neutral only by assumption: one per item, so that what is assumed does not outweigh
  what was annotated.
- ``similar`` shares words or a triple with the true reply, but now entails the sentence, now contradicts it: not used.

Does not know tokenizers. Floor: data.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, get_args

from lorascope.config import NLIClass, TaskConfig
from lorascope.data.record import Notice, Reading, Record
from lorascope.data.source import DATA_SUFFIXES, Published, Source, published_names
from lorascope.data.table import Row, Table, checked_text
from lorascope.errors import DataError, did_you_mean

NLI_LABELS: tuple[NLIClass, ...] = get_args(NLIClass)


def _published(names: Mapping[str, tuple[str, ...]], folder: str | None = None) -> Published:
    plain = published_names(*(f"{{}}{suffix}" for suffix in DATA_SUFFIXES))
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
    """Where a table keeps premise, hypothesis, label and perhaps a group, and what its numbers and words stand for."""

    premise: str
    hypothesis: str
    label: str
    group: str | None
    by_number: tuple[str, ...] | None
    aliases: Mapping[str, str]

    def record(self, row: Row, identity: str) -> Record:
        texts = row.text(self.premise), row.text(self.hypothesis)
        group = "" if self.group is None else checked_text(row.values.get(self.group) or "", "the group", row.where)
        return Record(identity, row.where, *texts, self._label(row), group=group)

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
    counts: dict[str, dict[str, int]] = {}
    notices: list[Notice] = []
    shapes: dict[str, None] = {}
    for asked, source in sources.items():
        table = source.table()
        told_by, split_of = _told_splits(table, asked)
        parts, num_rows = _used_pairs(table, _columns(table, config, {}), split_of, source)
        if told_by == "pair_ID":
            sizes = ", ".join(f"{count} {split}" for split, count in num_rows.items())
            message = f"the file has no column SemEval_set; its pair_ID starts again twice, which tells {sizes} pairs apart."
            notices.append(Notice("split_by_order", num_rows.total(), source.where, message))
        if asked not in parts:
            raise DataError(f"the file holds no {asked} pairs", where=source.where, fix="name another file")
        taken = [split for split in parts if split == asked or split not in (*sources, *splits)]
        splits.update({split: parts[split] for split in taken})
        counts.update({split: {"rows": num_rows[split]} for split in taken})
        shapes[f"sick {table.format}{f', splits by {told_by}' if told_by else ''}"] = None
    # A file that is every split is read once for each, and says so once.
    return _reading(splits, " and ".join(shapes), list(dict.fromkeys(notices)), counts)


def _told_splits(table: Table, asked: str) -> tuple[str | None, Callable[[int, Row], str]]:
    """The column that tells the splits, None where all are the one asked for; and the split of a row by number and row."""
    if "SemEval_set" in table.columns:
        return "SemEval_set", lambda _, row: _by_set(row)
    runs = _runs([row.values.get("pair_ID") for row in islice(table.rows, sum(_SEMEVAL_SIZES) + 1)])
    if runs is None:
        return None, _always(asked)
    starts, names = [start for start, _ in runs], [name for _, name in runs]
    return "pair_ID", lambda index, _: names[bisect_right(starts, index) - 1]


def _always(split: str) -> Callable[[int, Row], str]:
    return lambda _, __: split


def _used_pairs(
    table: Table, columns: _Columns, split_of: Callable[[int, Row], str], source: Source
) -> tuple[dict[str, list[Record]], Counter[str]]:
    """The pairs that are used, and how many there are, by split; the limit is that of the split asked for."""
    parts: dict[str, list[Record]] = {}
    num_rows: Counter[str] = Counter()
    for index, row in enumerate(table.rows):
        split, record = split_of(index, row), columns.record(row, str(index))
        num_rows[split] += 1
        part = parts.setdefault(split, [])
        if split != source.split or source.wants(len(part)):
            part.append(record)
    return parts, num_rows


def _by_set(row: Row) -> str:
    mark = row.text("SemEval_set")
    if mark.strip() not in _SEMEVAL_SETS:
        raise DataError(f"SemEval_set is {mark!r}", where=row.where, fix=f"known: {', '.join(_SEMEVAL_SETS)}")
    return _SEMEVAL_SETS[mark.strip()]


def _runs(marks: Sequence[Any]) -> list[tuple[int, str]] | None:
    """Where each of the three files of SemEval starts, told by rising numbers and their sizes; None for anything else."""
    if len(marks) != sum(_SEMEVAL_SIZES) or not all(str(mark).isdecimal() for mark in marks):
        return None
    numbers = [int(mark) for mark in marks]
    starts = [0, *(index for index in range(1, len(numbers)) if numbers[index] <= numbers[index - 1])]
    sizes = [end - start for start, end in pairwise([*starts, len(numbers)])]
    if sorted(sizes) != sorted(_SEMEVAL_SIZES):
        return None
    return [(start, _SEMEVAL_SIZES[size]) for start, size in zip(starts, sizes, strict=True)]


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
            splits[split], counts[split], more = _ranked_pairs((row for table in tables for row in table.rows), source)
            notices += more
            shapes[f"dialogue_nli evaluation {tables[0].format}"] = None
            continue
        [table] = tables if len(tables) == 1 else [tables[evaluation.index(False)]]
        if len(tables) > 1:
            raise DataError("not an evaluation file", where=table.where, fix="name the split's file instead of its directory")
        columns = _columns(table, config, _DIALOGUE_NAMES)
        parts, num_rows = _used_pairs(table, columns, _always(split), source)
        splits[split], counts[split] = parts[split], {"rows": num_rows[split]}
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
        yield Source(source.split, str(file), file).table()


def _ranked_pairs(items: Iterable[Row], source: Source) -> tuple[list[Record], dict[str, int], list[Notice]]:
    """The pairs that are used, how many items and pairs there are, and what was left out of all of them."""
    pairs: list[tuple[str, str, str, int]] = []
    unused: Counter[str] = Counter()
    num_items = 0
    for row in items:
        num_items += 1
        sentence = row.text("relevant_persona_sentence")
        candidates = {kind: _replies(row, kind) for kind in ("label", "neg", "rand", "similar")}
        num_true = len(candidates["label"])
        unused.update(rand=len(candidates["rand"][num_true:]), similar=len(candidates["similar"]))
        for name, replies in (
            ("entailment", candidates["label"]),
            ("neutral", candidates["rand"][:num_true]),
            ("contradiction", candidates["neg"]),
        ):
            pairs += [(row.where, reply, sentence, NLI_LABELS.index(name)) for reply in replies]
    labels_of: dict[tuple[str, str], set[int]] = {}
    for _, reply, sentence, label in pairs:
        labels_of.setdefault((reply, sentence), set()).add(label)
    records: list[Record] = []
    seen: set[tuple[str, str]] = set()
    num_contested = num_repeated = num_neutral = 0
    for where, reply, sentence, label in pairs:
        if len(labels_of[reply, sentence]) > 1:
            num_contested += 1
        elif (reply, sentence) in seen:
            num_repeated += 1
        else:
            seen.add((reply, sentence))
            num_neutral += label == NLI_LABELS.index("neutral")
            if source.wants(len(records)):
                records.append(Record(str(len(records)), where, reply, sentence, label, group=sentence))
    notices = [
        Notice(kind, count, source.split, f"{count} {source.split} {message}.")
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
    return records, {"items": num_items, "rows": len(seen)}, notices


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
    group = "group" if "group" in table.columns else None
    return _Columns(*texts, label, group, tuple(numbered) if numbered else None, aliases)


def _reading(
    splits: dict[str, list[Record]], shape: str, notices: Sequence[Notice], counts: Mapping[str, Mapping[str, int]]
) -> Reading:
    return Reading("SEQ_CLS", splits, shape, NLI_LABELS, notices=tuple(notices), metric_names=("accuracy",), counts=counts)
