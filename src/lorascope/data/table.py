"""File formats as rows with named columns: TSV, CSV, JSONL, JSON and Parquet.

Rows are read one at a time and anew in every iteration, so that a file may be larger than memory. Each row knows its
place, for error messages: every malformed input becomes a DataError that names file and line. Does not know what the
columns mean. Floor: data.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lorascope.errors import DataError, did_you_mean

MISSING = object()
# No document that anybody trains on is so long; a file without line ends or with an open quote is.
LONGEST_LINE_BYTES = 64 * 2**20
# Rows that Arrow turns into Python values at a time.
BATCH_ROWS = 64
_WINDOW_BYTES = 2**16
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
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
class Rows:
    """Rows that are read when iterated, each time anew; how many there are is known only afterwards."""

    read: Callable[[], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        return self.read()


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        format: the file format, in a word for people.
        rows: may be iterated any number of times; what is malformed in a row raises a DataError when the row is reached.
        class_names: names of integer classes by column, where the dataset declares them.
    """

    where: str
    format: str
    columns: tuple[str, ...]
    rows: Iterable[Row]
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
    """The whole file's text, without a byte order mark.

    Raises:
        DataError: the file cannot be read, is empty, or is not UTF-8 (names the line).
    """
    _refuse_empty(path)
    with _opened(path) as file:
        return _decoded(file.read().removeprefix(codecs.BOM_UTF8), path, 1)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The file's lines with their numbers and without their ends, read one at a time.

    Raises:
        DataError: the file cannot be read, is empty, is not UTF-8, or holds a line beyond ``LONGEST_LINE_BYTES``.
    """
    _refuse_empty(path)
    for number, line in _lines(path):
        yield number, _without_end(line)


def read_table(path: Path) -> Table:
    """Read a file by its suffix.

    TSV (``.tsv``, ``.txt``) is read with quoting off, one line a row, as GLUE publishes it; CSV has quotes.
    ``.json`` and ``.jsonl`` are a list of objects or an object a line: both are published under either name. The columns of
    JSON are the keys of all its objects, which takes one pass over the file.

    Raises:
        DataError: the file cannot be read, holds no rows, or is malformed as far as it was read here.
    """
    readers = {
        ".tsv": _read_tsv,
        ".txt": _read_tsv,
        ".csv": _read_csv,
        ".jsonl": _read_json,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"cannot read a {path.suffix or 'suffixless'} file", where=str(path), fix=f"use {', '.join(readers)}")
    table = reader(path)
    if next(iter(table.rows), None) is None:
        raise DataError("the file holds no rows", where=str(path), fix="give a file that holds data")
    return table


def parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    """``json.loads`` whose failures are DataErrors with file and line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _malformed_json(error.msg, path, first_line + error.lineno - 1) from None
    except (ValueError, RecursionError) as error:
        raise _unreadable_json(error, path, first_line) from None


def _malformed_json(message: str, path: Path, line: int) -> DataError:
    return DataError(f"malformed JSON ({message})", where=f"{path}:{line}", fix="correct the line")


def _unreadable_json(error: Exception, path: Path, line: int) -> DataError:
    return DataError(f"unreadable JSON ({error})", where=f"{path}:{line}", fix="correct the line")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The open file; what the system refuses, now or while it is read, is a DataError."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise DataError(f"cannot read the file ({error.strerror})", where=str(path)) from None


def _refuse_empty(path: Path) -> bytes:
    """A DataError where there is nothing but white space; else the first byte that is neither that nor a byte order mark."""
    with _opened(path) as file:
        raw = file.read(_WINDOW_BYTES).removeprefix(codecs.BOM_UTF8)
        while raw:
            if rest := raw.lstrip():
                return rest[:1]
            raw = file.read(_WINDOW_BYTES)
    raise DataError("the file is empty", where=str(path), fix="give a file that holds data")


def _decoded(raw: bytes, path: Path, first_line: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(error, path, first_line) from None


def _not_utf8(error: UnicodeDecodeError, path: Path, first_line: int) -> DataError:
    line = first_line + error.object.count(b"\n", 0, error.start)
    return DataError("the file is not UTF-8", where=f"{path}:{line}", fix="save it as UTF-8")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers and their ends.

    Only a line feed ends a line: sentences may hold U+0085 or U+2028. No character of UTF-8 holds its byte, so that each
    line can be decoded by itself.
    """
    number = 0
    with _opened(path) as file:
        while raw := file.readline(LONGEST_LINE_BYTES + 1):
            number += 1
            if len(raw) > LONGEST_LINE_BYTES:
                raise DataError(
                    f"the line is longer than {LONGEST_LINE_BYTES} bytes",
                    where=f"{path}:{number}",
                    fix="write one record a line, and divide longer ones",
                )
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            yield number, _decoded(raw, path, number)


def _read_tsv(path: Path) -> Table:
    _refuse_empty(path)
    _, first = next(_lines(path))
    columns = _header(_without_end(first).split("\t"), path)
    return Table(str(path), "TSV", columns, Rows(partial(_tsv_rows, path, columns)))


def _tsv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    num_blank = 0  # blank lines are rows, unless nothing follows them
    for number, line in _lines(path):
        text = _without_end(line)
        if number == 1:
            continue
        if not text:
            num_blank += 1
            continue
        for blank in range(number - num_blank, number):
            yield _row(columns, [""], path, blank)
        num_blank = 0
        yield _row(columns, text.split("\t"), path, number)


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _read_csv(path: Path) -> Table:
    _refuse_empty(path)
    _, names = next(_csv_records(path))
    columns = _header(names, path)
    return Table(str(path), "CSV", columns, Rows(partial(_csv_rows, path, columns)))


def _csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    records = _csv_records(path)
    next(records)
    for line, fields in records:
        if fields:
            yield _row(columns, fields, path, line)


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Fields of each record, with the line on which it starts."""
    reader = csv.reader(_csv_lines(path), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            with _long_csv_fields():
                fields = next(reader, None)
        except csv.Error as error:
            raise DataError(f"malformed CSV ({error})", where=f"{path}:{line}", fix="correct the quoting") from None
        if fields is None:
            return
        yield line, fields


def _csv_lines(path: Path) -> Iterator[str]:
    for _, line in _lines(path):
        if "\r" in line:
            yield from io.StringIO(line, newline="")  # in CSV a lone carriage return ends a line too
        else:
            yield line


@contextmanager
def _long_csv_fields() -> Iterator[None]:
    """The csv module's limit of 131,072 characters a field is global; long documents are legal here."""
    limit = csv.field_size_limit(LONGEST_LINE_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_json(path: Path) -> Table:
    if _refuse_empty(path) == b"[":
        return _json_table(path, "JSON", _json_list_rows)
    return _json_table(path, "JSONL", _json_line_rows)


def _json_table(path: Path, format: str, read: Callable[[Path], Iterator[Row]]) -> Table:
    columns: dict[str, None] = {}
    for row in read(path):
        columns.update(dict.fromkeys(row.values))
    return Table(str(path), format, tuple(columns), Rows(partial(read, path)))


def _json_line_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            yield _object(parse_json(_without_end(line), path, number), f"{path}:{number}")


def _json_list_rows(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        for number, value in enumerate(_JsonList(file, path), 1):
            yield _object(value, f"{path}, item {number}")


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{type(value).__name__} instead of a JSON object", where=where, fix="write one object a line")
    return Row(where, value)


class _JsonList:
    """The items of a JSON list, decoded from a window on the text that moves on and grows to the longest item."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._decoder = json.JSONDecoder()
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._num_lines_read = 0
        self._window = ""
        self._line = 1  # of the window's first character
        self._at = 0  # in the window, of what comes next

    def __iter__(self) -> Iterator[Any]:
        self._expect("[")
        if self._next() != "]":
            yield self._value()
            while self._next() != "]":
                self._expect(",")
                yield self._value()
        self._expect("]")
        if self._next():
            raise self._malformed("Extra data", self._at)

    def _next(self) -> str:
        """The next character after white space, which is passed over; empty at the end."""
        while True:
            space = _JSON_SPACE.match(self._window, self._at)
            assert space is not None, "the pattern matches nothing, too"
            self._at = space.end()
            if self._at < len(self._window) or not self._grow():
                return self._window[self._at : self._at + 1]

    def _expect(self, character: str) -> None:
        if self._next() != character:
            raise self._malformed(f"Expecting {character!r} delimiter", self._at)
        self._at += 1

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, self._at)
            except json.JSONDecodeError as error:
                if self._grow():  # it may only have been cut off by the window's end
                    continue
                too_long = len(self._window) - self._at > LONGEST_LINE_BYTES
                more = f", or an item of more than {LONGEST_LINE_BYTES} characters" if too_long else ""
                raise self._malformed(error.msg + more, error.pos) from None
            except (ValueError, RecursionError) as error:
                raise _unreadable_json(error, self._path, self._line_of(self._at)) from None
            if end < len(self._window) or not self._grow():  # a number may go on behind the window's end
                self._at = end
                return value

    def _grow(self) -> bool:
        """Move the window up to what comes next and make it longer; False at the file's end, or where it is long enough."""
        num_left = len(self._window) - self._at
        raw = self._file.read(max(_WINDOW_BYTES, num_left)) if num_left <= LONGEST_LINE_BYTES else b""
        if not raw:
            return False
        try:
            text = self._bytes.decode(raw)
        except UnicodeDecodeError as error:
            raise _not_utf8(error, self._path, self._num_lines_read + 1) from None
        self._num_lines_read += raw.count(b"\n")
        self._line = self._line_of(self._at)
        self._window, self._at = self._window[self._at :] + text, 0
        return True

    def _line_of(self, position: int) -> int:
        return self._line + self._window.count("\n", 0, position)

    def _malformed(self, message: str, position: int) -> DataError:
        return _malformed_json(message, self._path, self._line_of(position))


def _read_parquet(path: Path) -> Table:
    with _parquet(path) as file:
        columns = _distinct(tuple(file.schema_arrow.names), str(path))
    return Table(str(path), "Parquet", columns, Rows(partial(_parquet_rows, path)))


def _parquet_rows(path: Path) -> Iterator[Row]:
    number = 0
    with _parquet(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}, row {number}", values)


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """The open ``ParquetFile``, which reads its pages as they are asked for; whatever fails in it is a DataError."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_WINDOW_BYTES, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"no readable Parquet file ({reason})", where=str(path), fix="write it again") from None


def _header(names: list[str], path: Path) -> tuple[str, ...]:
    columns = tuple(name.strip() for name in names)
    if not any(columns):
        raise DataError("the first line names no columns", where=f"{path}:1", fix="add a header")
    return _distinct(columns, f"{path}:1")


def _distinct(columns: tuple[str, ...], where: str) -> tuple[str, ...]:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"column {twice[0]!r} is named twice", where=where, fix="rename one")
    return columns


def _row(columns: tuple[str, ...], fields: list[str], path: Path, line: int) -> Row:
    if len(fields) != len(columns):
        raise DataError(
            f"{len(fields)} columns where the header has {len(columns)}", where=f"{path}:{line}", fix="correct the line"
        )
    return Row(f"{path}:{line}", dict(zip(columns, fields, strict=True)))
