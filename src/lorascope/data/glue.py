"""SST-2, MRPC and RTE as GLUE and their authors publish them (Wang et al. 2018).

Knows file names, columns and label order of each. Does not know tokenizers. Floor: data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.config import TaskConfig
from lorascope.data.record import Reading, Record
from lorascope.data.source import Published, Source
from lorascope.data.table import Row, Table
from lorascope.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Layout:
    """Columns of one published form: one text or two, and the label."""

    texts: tuple[str, ...]
    label: str = "label"


@dataclass(frozen=True)
class GlueTask:
    """One GLUE task: its label names by number, the forms it is published in, and what is scored."""

    labels: tuple[str, str]
    layouts: tuple[Layout, ...]
    metric_names: tuple[str, ...]
    published: Published


def _published(name: str, **more: tuple[str, ...]) -> Published:
    files = {"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",), **more}
    return Published(files, config_name=name, collections=("glue",))


GLUE = {
    "sst2": GlueTask(("negative", "positive"), (Layout(("sentence",)),), ("accuracy",), _published("sst2")),
    "mrpc": GlueTask(
        ("not_equivalent", "equivalent"),
        (Layout(("sentence1", "sentence2")), Layout(("#1 String", "#2 String"), "Quality")),
        ("accuracy", "f1"),
        # GLUE carved dev.tsv out of msr_paraphrase_train.txt, so train.tsv comes first where both lie side by side; its
        # test.tsv has no labels, so there the authors' file comes first.
        _published(
            "mrpc",
            train=("train.tsv", "msr_paraphrase_train.txt"),
            test=("msr_paraphrase_test.txt", "test.tsv"),
        ),
    ),
    "rte": GlueTask(("entailment", "not_entailment"), (Layout(("sentence1", "sentence2")),), ("accuracy",), _published("rte")),
}


def read_glue(sources: Mapping[str, Source], config: TaskConfig) -> Reading:
    """Records of a GLUE task.

    Raises:
        DataError: a column is missing or a label is not one of the task's.
    """
    task = GLUE[config.name]
    if config.labels is not None and tuple(config.labels) != task.labels:
        raise DataError(f"{config.name} has the labels {', '.join(task.labels)}", where="task.labels", fix="remove the key")
    tables = {split: source.table() for split, source in sources.items()}
    splits = {split: _records(table, task) for split, table in tables.items()}
    formats = "/".join(dict.fromkeys(table.format for table in tables.values()))
    counts = {split: {"rows": len(records)} for split, records in splits.items()}
    return Reading("SEQ_CLS", splits, f"{config.name} {formats}", task.labels, metric_names=task.metric_names, counts=counts)


def _records(table: Table, task: GlueTask) -> list[Record]:
    def present(layout: Layout) -> int:
        return sum(column in table.columns for column in (*layout.texts, layout.label))

    layout = max(task.layouts, key=present)
    table.require(*layout.texts, layout.label)
    records = []
    for index, row in enumerate(table.rows):
        texts = [row.text(column) for column in layout.texts]
        label = _label(row, layout.label, task.labels)
        records.append(Record(str(index), row.where, texts[0], texts[1] if len(texts) > 1 else None, label))
    return records


def _label(row: Row, column: str, labels: tuple[str, str]) -> int:
    value: Any = row.values.get(column)
    if isinstance(value, str) and value in labels:
        return labels.index(value)
    known = ", ".join(f"{number} ({name})" for number, name in enumerate(labels))
    if str(value) in ("0", "1"):
        return int(value)
    if str(value) == "-1":
        raise DataError("label -1 marks a split without labels", where=row.where, fix="evaluate on another split")
    near = did_you_mean(value, list(labels)) if isinstance(value, str) else "correct the label"
    raise DataError(f"label {value!r} is out of range; labels are {known}", where=row.where, fix=near)
