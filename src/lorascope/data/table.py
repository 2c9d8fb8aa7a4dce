"""File formats as rows with named columns: TSV, CSV, JSONL, JSON and Parquet.

Each row knows its place, for error messages: every malformed input becomes a DataError that names file and line. Does
not know what the columns mean. Floor: data.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorascope.errors import DataError, did_you_mean

MISSING = object()


@dataclass(frozen=True)
class Row:
    """One row: its values by column, and where it stands."""

    where: str
    values: Mapping[str, Any]

    def text(self, column: str) -> str:
        """The column's value, which must be text.

        Raises:
            DataError: the value is missing, no string, or cannot be encoded (half a surrogate pair).
        """
        value = self.values.get(column, MISSING)
        if value is MISSING or value is None:
            raise DataError(f"column {column!r} has no value in this row", where=self.where, fix="fill or remove the row")
        return checked_text(value, f"column {column!r}", self.where)


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        format: the file format, in a word for people.
        class_names: names of integer classes by column, where the dataset declares them.
    """

    where: str
    format: str
    columns: tuple[str, ...]
    rows: list[Row]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def require(self, *columns: str) -> None:
        """Raise a DataError for the first of ``columns`` that the table lacks."""
        for column in columns:
            if column not in self.columns:
                there = ", ".join(repr(name) for name in self.columns)
                raise DataError(
                    f"no column {column!r}; the columns are {there}",
                    where=self.where,
                    fix=did_you_mean(column, list(self.columns)),
                )


def checked_text(value: Any, name: str, where: str) -> str:
    """``value`` if it is text that can be encoded, else a DataError naming ``name``."""
    if not isinstance(value, str):
        raise DataError(f"{name} is {type(value).__name__}, not text", where=where, fix="write it as a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name} holds half a surrogate pair", where=where, fix="correct the escape") from None
    return value


def read_text(path: Path) -> str:
    """The file's text, without a byte order mark.

    Raises:
        DataError: the file cannot be read, is empty, or is not UTF-8 (names the line).
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the file ({error.strerror})", where=str(path)) from None
    if not raw.strip():
        raise DataError("the file is empty", where=str(path), fix="give a file that holds data")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError("the file is not UTF-8", where=f"{path}:{line}", fix="save it as UTF-8") from None


def read_table(path: Path) -> Table:
    """Read a file by its suffix.

    TSV (``.tsv``, ``.txt``) is read with quoting off, one line a row, as GLUE publishes it; CSV has quotes.
    ``.json`` is a list of objects, or an object a line.
    """
    readers = {
        ".tsv": _read_tsv,
        ".txt": _read_tsv,
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"cannot read a {path.suffix or 'suffixless'} file", where=str(path), fix=f"use {', '.join(readers)}")
    table = reader(path)
    if not table.rows:
        raise DataError("the file holds no rows", where=str(path), fix="give a file that holds data")
    return table


def parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    """``json.loads`` whose failures are DataErrors with file and line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"malformed JSON ({error.msg})", where=f"{path}:{line}", fix="correct the line") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"unreadable JSON ({error})", where=f"{path}:{first_line}", fix="correct the line") from None


def _read_tsv(path: Path) -> Table:
    # Not str.splitlines: sentences may hold U+0085 or U+2028, which are no ends of line here.
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    while not lines[-1]:
        lines.pop()
    columns = _header(lines[0].split("\t"), path)
    rows = [_row(columns, line.split("\t"), path, number) for number, line in enumerate(lines[1:], 2)]
    return Table(str(path), "TSV", columns, rows)


def _read_csv(path: Path) -> Table:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[Row] = []
    line = 1
    try:
        with _unlimited_csv_fields():
            columns = _header(next(reader, []), path)
            line = reader.line_num + 1
            for fields in reader:
                if fields:
                    rows.append(_row(columns, fields, path, line))
                line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"malformed CSV ({error})", where=f"{path}:{line}", fix="correct the quoting") from None
    return Table(str(path), "CSV", columns, rows)


@contextmanager
def _unlimited_csv_fields() -> Iterator[None]:
    """The csv module's limit of 131,072 characters a field is global; long documents are legal here."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_jsonl(path: Path) -> Table:
    return _read_json_lines(read_text(path), path)


def _read_json_lines(text: str, path: Path) -> Table:
    objects = [
        (f"{path}:{number}", parse_json(line, path, number)) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    return _json_table(objects, path, "JSONL")


def _read_json(path: Path) -> Table:
    text = read_text(path)
    if text.lstrip().startswith("["):
        items = parse_json(text, path)
        return _json_table([(f"{path}, item {number}", item) for number, item in enumerate(items, 1)], path, "JSON")
    return _read_json_lines(text, path)


def _json_table(objects: list[tuple[str, Any]], path: Path, format: str) -> Table:
    columns: dict[str, None] = {}
    for where, value in objects:
        if not isinstance(value, dict):
            raise DataError(f"{type(value).__name__} instead of a JSON object", where=where, fix="write one object a line")
        columns.update(dict.fromkeys(value))
    return Table(str(path), format, tuple(columns), [Row(where, value) for where, value in objects])


def _read_parquet(path: Path) -> Table:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        contents = pyarrow.parquet.ParquetFile(path).read()
        values = contents.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"no readable Parquet file ({reason})", where=str(path), fix="write it again") from None
    rows = [Row(f"{path}, row {number}", value) for number, value in enumerate(values, 1)]
    return Table(str(path), "Parquet", tuple(contents.column_names), rows)


def _header(names: list[str], path: Path) -> tuple[str, ...]:
    columns = tuple(name.strip() for name in names)
    if not any(columns):
        raise DataError("the first line names no columns", where=f"{path}:1", fix="add a header")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"column {twice[0]!r} is named twice", where=f"{path}:1", fix="rename one")
    return columns


def _row(columns: tuple[str, ...], fields: list[str], path: Path, line: int) -> Row:
    if len(fields) != len(columns):
        raise DataError(
            f"{len(fields)} columns where the header has {len(columns)}", where=f"{path}:{line}", fix="correct the line"
        )
    return Row(f"{path}:{line}", dict(zip(columns, fields, strict=True)))
