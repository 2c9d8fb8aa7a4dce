"""File formats: what is read, and that every malformed file is a DataError with its place."""

import csv
import io
import itertools
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.data import table as table_module
from lorascope.data.table import parse_json, read_table, read_text
from lorascope.errors import DataError

CELL = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), min_size=1, max_size=12)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(path):
    with pytest.raises(DataError) as caught:
        list(read_table(path).rows)
    return str(caught.value)


def test_tsv_keeps_quotes_and_unusual_line_separators(tmp_path):
    path = written(tmp_path, "a.tsv", '\ufefftext\tlabel\r\nhe said "no\u2028\x85\t1\r\n')
    table = read_table(path)
    assert table.columns == ("text", "label")
    [row] = table.rows
    assert row.values == {"text": 'he said "no\u2028\x85', "label": "1"}
    assert row.where == f"{path}:2"


def test_csv_reads_quotes_and_names_the_first_line_of_a_row(tmp_path):
    path = written(tmp_path, "a.csv", 'text,label\n"two\nlines, ""quoted""",1\n\nlast,0\n')
    table = read_table(path)
    assert [row.values["text"] for row in table.rows] == ['two\nlines, "quoted"', "last"]
    assert [row.where for row in table.rows] == [f"{path}:2", f"{path}:5"]


def test_csv_fields_may_be_long_and_the_module_limit_is_restored(tmp_path):
    limit = csv.field_size_limit()
    [row] = read_table(written(tmp_path, "a.csv", f"text,label\n{'x' * 300_000},1\n")).rows
    assert len(row.values["text"]) == 300_000
    assert csv.field_size_limit() == limit


def test_json_may_be_a_list_or_an_object_a_line(tmp_path):
    listed = read_table(written(tmp_path, "a.json", '[{"a": 1},\n {"b": 2}]'))
    lined = read_table(written(tmp_path, "b.json", '{"a": 1}\n\n{"b": 2}\n'))
    assert listed.columns == lined.columns == ("a", "b")
    assert [row.values for row in listed.rows] == [row.values for row in lined.rows]
    assert [row.where for row in listed.rows][1].endswith("a.json, item 2")
    assert [row.where for row in lined.rows][1].endswith("b.json:3")


def test_parquet_rows_keep_their_types(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x", "y"], "label": [0, 1]}), path)
    table = read_table(path)
    assert table.format == "Parquet"
    second = list(table.rows)[1]
    assert second.values == {"text": "y", "label": 1}
    assert second.where == f"{path}, row 2"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", "text\tlabel\nx\t1\nno label\n", "a.tsv:3: 1 columns where the header has 2"),
        ("a.tsv", b"text\tlabel\nx\t1\n\xff\t0\n", "a.tsv:3: the file is not UTF-8"),
        ("a.tsv", b"\xef\xbb\xbftext\tlabel\nx\t1\n\xff\t0\n", "a.tsv:3: the file is not UTF-8"),
        ("a.tsv", "text\ttext\nx\t1\n", "a.tsv:1: column 'text' is named twice"),
        ("a.tsv", "\t\nx\t1\n", "a.tsv:1: the first line names no columns"),
        ("a.tsv", "", "a.tsv: the file is empty"),
        ("a.tsv", "text\tlabel\n", "a.tsv: the file holds no rows"),
        ("a.tsv", "text\tlabel\nx\t1\n\ny\t0\n", "a.tsv:3: 1 columns"),
        ("a.csv", 'text,label\nx,1\n"open,0\n', "a.csv:3: malformed CSV"),
        ("a.csv", "text,label\nx,1,2\n", "a.csv:2: 3 columns where the header has 2"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl:2: malformed JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "a.jsonl:2: list instead of a JSON object"),
        ("a.json", '[{"a": 1},\n{"a" 2}]', "a.json:2: malformed JSON"),
        ("a.jsonl", "[" * 200_000, "a.jsonl:1: "),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "a.jsonl:1: unreadable JSON"),
        ("a.tsv", b"\xef\xbb\xbf", "a.tsv: the file is empty"),
        ("a.csv", b"\xef\xbb\xbf\r\n \n", "a.csv: the file is empty"),
        ("a.json", " \n\t", "a.json: the file is empty"),
        ("a.csv", b"text,label\r\nx,1\r\n\xff,0\r\n", "a.csv:3: the file is not UTF-8"),
        ("a.csv", 'text,label\n"x\ny",1\nz\n', "a.csv:4: 1 columns where the header has 2"),
        ("a.csv", 'text,label\n"x"y,1\n', "a.csv:2: malformed CSV"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": "\xc3\n"}', "a.jsonl:3: the file is not UTF-8"),
        ("a.jsonl", '{"a": "x\0y"}', "a.jsonl:1: malformed JSON (Invalid control character at)"),
        ("a.json", b'[{"a": 1},\n{"a": "\xc3"}]', "a.json:2: the file is not UTF-8"),
        ("a.json", '[{"a": 1},\n\n7]', "a.json, item 2: int instead of a JSON object"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', "a.json:2: malformed JSON (Expecting ',' delimiter)"),
        ("a.json", '[{"a": 1},\n{"a": 2}', "a.json:2: malformed JSON (Expecting ',' delimiter)"),
        ("a.json", '[{"a": 1}]\n[', "a.json:2: malformed JSON (Extra data)"),
        ("a.json", "[" + '{"a":' * 200_000, "a.json:1: "),
        ("a.json", "[\n]", "a.json: the file holds no rows"),
        ("a.parquet", "PAR1 or not", "a.parquet: no readable Parquet file"),
        ("a.parquet", "", "a.parquet: no readable Parquet file"),
        ("a.xlsx", "x", "a.xlsx: cannot read a .xlsx file"),
    ],
)
def test_malformed_files_are_data_errors_that_name_file_and_line(tmp_path, name, content, expected):
    message = refused(written(tmp_path, name, content))
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl", "json"])
def test_a_directory_in_a_files_place_is_a_data_error(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.mkdir()
    assert refused(path) == f"{path}: cannot read the file (Is a directory)"
    with pytest.raises(DataError, match="cannot read the file"):
        read_text(path)


def test_a_parquet_column_named_twice_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    assert "a.parquet: column 'a' is named twice" in refused(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_mistake_far_into_a_file_is_reported_with_its_line(tmp_path, suffix):
    lines = ['{"text": "some text"}'] * 30_000
    lines[27_654] = '{"text": "some text}'
    content = "\n".join(lines) if suffix == "jsonl" else "[" + ",\n".join(lines) + "]"
    assert f"a.{suffix}:27655: malformed JSON" in refused(written(tmp_path, f"a.{suffix}", content))


def test_blank_lines_are_rows_of_tsv_only_where_rows_follow(tmp_path):
    table = read_table(written(tmp_path, "a.tsv", "text\nx\n\r\n\ny\n\n\r\n"))
    assert [(row.where.rsplit(":")[-1], row.values["text"]) for row in table.rows] == [
        ("2", "x"),
        ("3", ""),
        ("4", ""),
        ("5", "y"),
    ]


def test_csv_lines_may_end_in_lone_carriage_returns(tmp_path):
    table = read_table(written(tmp_path, "a.csv", 'text,label\rx,1\r"y\rz",0\ru,1'))
    assert [(row.where.rsplit(":")[-1], row.values["text"]) for row in table.rows] == [("2", "x"), ("3", "y\rz"), ("5", "u")]


def test_a_byte_order_mark_belongs_to_no_format(tmp_path):
    contents = {"a.csv": "text,label\nx,1\n", "a.jsonl": '{"text": "x"}', "a.json": '[{"text": "x"}]'}
    for name, content in contents.items():
        [row] = read_table(written(tmp_path, name, "\ufeff" + content)).rows
        assert row.text("text") == "x"
    assert read_text(tmp_path / "a.json") == contents["a.json"]


def large(path, num_rows=7_500):
    """A file of 30 MB."""
    texts = (f"{number} {'lorem ipsum ' * 340}" for number in range(num_rows))
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": list(texts), "label": ["1"] * num_rows}), path, use_dictionary=False)
        return path
    with path.open("w", encoding="utf-8") as file:
        if path.suffix in (".tsv", ".csv"):
            separator = "\t" if path.suffix == ".tsv" else ","
            file.write(f"text{separator}label\n")
            file.writelines(f"{text}{separator}1\n" for text in texts)
        else:
            objects = (json.dumps({"text": text, "label": "1"}) for text in texts)
            start, between, end = ("[", ",", "]") if path.suffix == ".json" else ("", "\n", "\n")
            file.write(start + next(objects))
            file.writelines(between + line for line in objects)
            file.write(end)
    return path


FORMATS = ["tsv", "csv", "jsonl", "json", "parquet"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_is_read_in_memory_that_does_not_grow_with_it(tmp_path, suffix):
    path = large(tmp_path / f"a.{suffix}")
    assert suffix == "parquet" or path.stat().st_size > 30e6
    arrow_before = pa.total_allocated_bytes()
    arrow_bytes = num_rows = 0
    tracemalloc.start()
    try:
        for row in read_table(path).rows:
            num_rows += len(row.values["text"]) > 4000
            arrow_bytes = max(arrow_bytes, pa.total_allocated_bytes() - arrow_before)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_rows == 7_500
    assert peak + arrow_bytes < 5e6


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_are_the_same_in_every_iteration_and_beside_each_other(tmp_path, suffix):
    table = read_table(large(tmp_path / f"a.{suffix}", 600))
    first = list(table.rows)
    assert len(first) == 600
    assert len({row.where for row in first}) == 600
    assert list(table.rows) == first
    assert list(itertools.islice(table.rows, 3)) == first[:3]
    assert list(zip(table.rows, table.rows, strict=True)) == [(row, row) for row in first]


def test_long_csv_fields_may_be_read_from_two_files_by_turns(tmp_path):
    content = f"text,label\n{'x' * 200_000},1\n{'y' * 200_000},0\n"
    one, other = (iter(read_table(written(tmp_path, name, content)).rows) for name in ("a.csv", "b.csv"))
    assert next(one).values == next(other).values
    one.close()
    assert len(next(other).values["text"]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", f"text\nx\n{'y' * 120}\n", "a.tsv:3: the line is longer than 100 bytes; write one record a line"),
        ("a.csv", f"text\nx\n{'y' * 120}\n", "a.csv:3: the line is longer than 100 bytes"),
        ("a.csv", 'text\nx\n"' + "long\n" * 30 + '"\n', "a.csv:3: malformed CSV (field larger than field limit (100))"),
        ("a.jsonl", '{"a": 1}\n{"a": "' + "y" * 120 + '"}', "a.jsonl:2: the line is longer than 100 bytes"),
        (
            "a.json",
            '[{"a": 1},\n{"a": "' + "y" * 400 + '"}]',
            "a.json:2: malformed JSON (Unterminated string starting at, or an ",
        ),
        ("a.json", '[{"a": 1},\n' + "0." + "0" * 400 + "]", "a.json, item 2: float instead"),
    ],
)
def test_a_line_or_field_or_item_without_end_is_refused(tmp_path, monkeypatch, name, content, expected):
    monkeypatch.setattr(table_module, "LONGEST_LINE_BYTES", 100)
    monkeypatch.setattr(table_module, "_WINDOW_BYTES", 16)
    assert expected in refused(written(tmp_path, name, content))


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl"])
def test_a_line_of_gigabytes_is_refused_before_it_fills_memory(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    with path.open("wb") as file:
        file.write(b"x")
        file.truncate(5 * 2**30)  # zeros that take no room on disk
    tracemalloc.start()
    try:
        message = refused(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert f"a.{suffix}:1: the line is longer" in message
    assert peak < 3 * table_module.LONGEST_LINE_BYTES


def test_missing_column_names_the_columns_there_are_and_a_near_miss(tmp_path):
    table = read_table(written(tmp_path, "a.tsv", "sentense\tlabel\nx\t1\n"))
    with pytest.raises(DataError, match=r"no column 'sentence'; the columns are 'sentense', 'label'; did you mean 'sentense'"):
        table.require("sentence", "label")


@pytest.mark.parametrize("value", ["null", "3", '["x"]', '"\\ud800"'])
def test_a_value_that_is_no_text_is_a_data_error_with_its_line(tmp_path, value):
    table = read_table(written(tmp_path, "a.jsonl", f'{{"text": "x"}}\n{{"text": {value}}}\n'))
    second = list(table.rows)[1]
    with pytest.raises(DataError, match=r"a\.jsonl:2: "):
        second.text("text")


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_tsv_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("tsv") / "a.tsv"
    path.write_bytes("\n".join("\t".join(row) for row in [("a", "b"), *rows]).encode() + b"\n")
    assert [(row.values["a"], row.values["b"]) for row in read_table(path).rows] == rows


@given(st.lists(st.tuples(CELL, st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"]))), min_size=1))
@settings(max_examples=60, deadline=None)
def test_csv_round_trip(tmp_path_factory, rows):
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(buffer.getvalue().encode())
    if any("\0" in cell for row in rows for cell in row):
        return  # Python 3.10's csv module refuses NUL; either answer is a DataError or the cell
    assert [(row.values["a"], row.values["b"]) for row in read_table(path).rows] == rows


@given(st.lists(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON_VALUES), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_jsonl_round_trip(tmp_path_factory, objects):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text("\n".join(json.dumps(value) for value in objects), encoding="utf-8")
    assert [row.values for row in read_table(path).rows] == objects


NUMBER_OR_WORSE = st.text("0123456789.eE+-", max_size=4)
JSON_LIKE = JSON_VALUES.map(lambda value: json.dumps(value, ensure_ascii=False)) | NUMBER_OR_WORSE | st.text(max_size=4)


@given(
    st.lists(JSON_LIKE.map(lambda text: f'{{"a": {text}}}') | NUMBER_OR_WORSE, max_size=5),
    st.sampled_from([",", " ,\n", "\r\n,  ", "\n"]),
    st.sampled_from(["]", "\n] ", "", "] x"]),
    st.integers(1, 24),
)
@settings(max_examples=150, deadline=None)
def test_a_json_list_is_read_item_by_item_as_json_reads_it_whole(tmp_path_factory, items, between, end, window_bytes):
    text = "[" + between.join(items) + end
    path = tmp_path_factory.mktemp("list") / "a.json"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "_WINDOW_BYTES", window_bytes)
        try:
            expected = parse_json(text, path)
        except DataError:
            expected = None
        if expected and all(isinstance(item, dict) for item in expected):
            assert repr([row.values for row in read_table(path).rows]) == repr(expected)
        else:
            refused(path)


@given(st.sampled_from(["a.tsv", "a.csv", "a.jsonl", "a.json", "a.parquet"]), st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused_with_a_data_error(tmp_path_factory, name, content):
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(content)
    try:
        rows = list(read_table(path).rows)
    except DataError:
        return
    assert rows
