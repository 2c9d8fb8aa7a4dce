"""Where a split's data lie: a local file, a directory of published files, or rows that the ``datasets`` library reads.

Knows paths, published file names and the hub. Does not know what the rows mean. Floor: data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lorascope.data.table import BATCH_ROWS, Row, Rows, Table, read_table
from lorascope.errors import DataError

DATA_SUFFIXES = (".tsv", ".txt", ".csv", ".jsonl", ".json", ".parquet")
SPLIT_ALIASES = {"train": ("train",), "validation": ("validation", "dev", "valid", "val"), "test": ("test",)}


@dataclass(frozen=True)
class Source:
    """One split's data: a local file, or rows of a loaded dataset (``datasets.Dataset``).

    Attributes:
        most: how many of its records are used at most, the first ones; None for all. A reader checks and counts every row,
            but need not hold more records than these.
    """

    split: str
    where: str
    path: Path | None = None
    dataset: Any = None
    most: int | None = None

    def table(self) -> Table:
        """The rows under their columns."""
        if self.path is not None:
            return read_table(self.path)
        if len(self.dataset) == 0:
            raise DataError("the dataset holds no rows", where=self.where, fix="give one that holds data")
        names = {
            column: tuple(feature.names)
            for column, feature in self.dataset.features.items()
            if type(feature).__name__ == "ClassLabel" and feature.names
        }
        rows = Rows(partial(_dataset_rows, self.dataset, self.where))
        return Table(self.where, "dataset rows", tuple(self.dataset.column_names), rows, names)

    def wants(self, num_records: int) -> bool:
        """Whether a record is used that follows ``num_records`` others."""
        return self.most is None or num_records < self.most


@dataclass(frozen=True)
class Published:
    """How a task's data are published.

    Attributes:
        files: per split, file name patterns of a directory, the preferred first. A pattern without ``*`` wins over
            later ones; one with ``*`` must match a single file.
        config_name: the configuration's name inside collections such as GLUE.
        collections: last parts of hub ids that hold several configurations.
        folder: pattern of files that together are one split, for a directory without any of ``files``.
    """

    files: Mapping[str, tuple[str, ...]]
    config_name: str | None = None
    collections: tuple[str, ...] = ()
    folder: str | None = None


def published_names(*patterns: str) -> dict[str, tuple[str, ...]]:
    """File names by split: each name that the split goes by, in each pattern (``{}_original.txt``), the preferred first."""
    return {
        split: tuple(pattern.format(alias) for alias in aliases for pattern in patterns)
        for split, aliases in SPLIT_ALIASES.items()
    }


def locate(data: str | Mapping[Any, str], splits: Sequence[str], published: Published) -> dict[str, Source]:
    """The source of each of ``splits`` that ``data`` holds; splits that it lacks are left out.

    Args:
        data: as in ``TaskConfig.data``. A lone file, or a dataset without named splits, is the first of ``splits``.
        splits: ``train``, ``validation``, ``test``.
        published: the file names and configuration that the task is known by.

    Raises:
        DataError: a path that does not exist, a directory in which several files could be meant, or a dataset that
            cannot be loaded.
    """
    if isinstance(data, str):
        return _open(data, splits, published)
    found: dict[str, Source] = {}
    for split in splits:
        if split in data:
            found.update(_open(data[split], [split], published, explicit=True))
    return found


def _open(data: str, splits: Sequence[str], published: Published, explicit: bool = False) -> dict[str, Source]:
    path = Path(data).expanduser()
    if path.is_file():
        return {splits[0]: Source(splits[0], str(path), path)}
    if path.is_dir():
        files = {split: file for split in splits if (file := _published_file(path, split, published)) is not None}
        if files or _any_published(path, published):
            return {split: Source(split, str(file), file) for split, file in files.items()}
        if published.folder is not None and any(path.glob(published.folder)):
            return {splits[0]: Source(splits[0], str(path), path)}
        return _named_splits(_load_directory(path, published), data, splits, explicit)
    if data.startswith((".", "/", "~", "\\")) or path.suffix.lower() in DATA_SUFFIXES:
        raise DataError("no such file or directory", where=data, fix="correct the path under task.data")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data):
        raise DataError("neither an existing path nor a hub id", where=data, fix="correct task.data")
    return _named_splits(_load_hub(data, published), data, splits, explicit)


def _dataset_rows(dataset: Any, where: str) -> Iterator[Row]:
    number = 0
    for batch in dataset.with_format("arrow").iter(BATCH_ROWS):
        for values in batch.to_pylist():
            yield Row(f"{where} row {number}", values)
            number += 1


def _published_file(directory: Path, split: str, published: Published) -> Path | None:
    for pattern in published.files.get(split, ()):
        matches = sorted(match for match in directory.glob(pattern) if match.is_file())
        if len(matches) > 1:
            names = ", ".join(match.name for match in matches)
            raise DataError(
                f"several files could be the {split} split: {names}",
                where=str(directory),
                fix=f"name one: data: {{{split}: {matches[0]}, …}}",
            )
        if matches:
            return matches[0]
    return None


def _any_published(directory: Path, published: Published) -> bool:
    return any(_published_file(directory, split, published) is not None for split in published.files)


def _load_directory(path: Path, published: Published) -> Any:
    """A ``save_to_disk`` directory, or one of data files, as ``datasets`` sees it."""
    if not any(entry.is_file() for entry in path.rglob("*")):
        raise DataError("the directory holds no files", where=str(path), fix="correct the path under task.data")
    import datasets

    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return datasets.load_from_disk(str(path))
        names = datasets.get_dataset_config_names(str(path))
        return datasets.load_dataset(str(path), published.config_name if published.config_name in names else None)
    except Exception as error:  # the library's own errors share no base class
        expected = ", ".join(pattern for patterns in published.files.values() for pattern in patterns)
        raise DataError(
            f"the directory cannot be read as a dataset ({_first_line(error)})",
            where=str(path),
            fix=f"expected {expected}",
        ) from None


def _load_hub(data: str, published: Published) -> Any:
    import datasets

    config_name = published.config_name if data.split("/")[-1] in published.collections else None
    try:
        return datasets.load_dataset(data, config_name)
    except Exception as error:  # connection, missing, gated, malformed: the library's errors share no base class
        raise DataError(
            f"no local path, and not loadable from the hub ({_first_line(error)})",
            where=data,
            fix="give a local path, or check the id and the connection",
        ) from None


def _named_splits(loaded: Any, data: str, splits: Sequence[str], explicit: bool) -> dict[str, Source]:
    """Sources for those of ``splits`` that the loaded dataset has.

    A dataset without named splits is the first split asked for; so is a dataset's only split where a mapping said
    explicitly which split it is.
    """
    if not isinstance(loaded, dict):
        return {splits[0]: Source(splits[0], data, dataset=loaded)}
    found: dict[str, Source] = {}
    for split in splits:
        for name in SPLIT_ALIASES.get(split, (split,)):
            if name in loaded:
                found[split] = Source(split, f"{data} {name}", dataset=loaded[name])
                break
    if explicit and not found and len(loaded) == 1:
        name, dataset = next(iter(loaded.items()))
        found[splits[0]] = Source(splits[0], f"{data} {name}", dataset=dataset)
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
