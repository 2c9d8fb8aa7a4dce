"""File formats: what is read, and that every malformed file is a DataError with its place."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.data.table import read_table
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
        read_table(path)
    return str(caught.value)


def test_tsv_keeps_quotes_and_unusual_line_separators(tmp_path):
    path = written(tmp_path, "a.tsv", '\ufefftext\tlabel\r\nhe said "no\u2028\x85\t1\r\n')
    table = read_table(path)
    assert table.columns == ("text", "label")
    assert table.rows[0].values == {"text": 'he said "no\u2028\x85', "label": "1"}
    assert table.rows[0].where == f"{path}:2"


def test_csv_reads_quotes_and_names_the_first_line_of_a_row(tmp_path):
    path = written(tmp_path, "a.csv", 'text,label\n"two\nlines, ""quoted""",1\n\nlast,0\n')
    table = read_table(path)
    assert [row.values["text"] for row in table.rows] == ['two\nlines, "quoted"', "last"]
    assert [row.where for row in table.rows] == [f"{path}:2", f"{path}:5"]


def test_csv_fields_may_be_long_and_the_module_limit_is_restored(tmp_path):
    limit = csv.field_size_limit()
    table = read_table(written(tmp_path, "a.csv", f"text,label\n{'x' * 300_000},1\n"))
    assert len(table.rows[0].values["text"]) == 300_000
    assert csv.field_size_limit() == limit


def test_json_may_be_a_list_or_an_object_a_line(tmp_path):
    listed = read_table(written(tmp_path, "a.json", '[{"a": 1},\n {"b": 2}]'))
    lined = read_table(written(tmp_path, "b.json", '{"a": 1}\n\n{"b": 2}\n'))
    assert listed.columns == lined.columns == ("a", "b")
    assert [row.values for row in listed.rows] == [row.values for row in lined.rows]
    assert listed.rows[1].where.endswith("a.json, item 2")
    assert lined.rows[1].where.endswith("b.json:3")


def test_parquet_rows_keep_their_types(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x", "y"], "label": [0, 1]}), path)
    table = read_table(path)
    assert table.format == "Parquet"
    assert table.rows[1].values == {"text": "y", "label": 1}
    assert table.rows[1].where == f"{path}, row 2"


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
        ("a.parquet", "PAR1 or not", "a.parquet: no readable Parquet file"),
        ("a.xlsx", "x", "a.xlsx: cannot read a .xlsx file"),
    ],
)
def test_malformed_files_are_data_errors_that_name_file_and_line(tmp_path, name, content, expected):
    message = refused(written(tmp_path, name, content))
    assert expected in message
    assert "\n" not in message


def test_missing_column_names_the_columns_there_are_and_a_near_miss(tmp_path):
    table = read_table(written(tmp_path, "a.tsv", "sentense\tlabel\nx\t1\n"))
    with pytest.raises(DataError, match=r"no column 'sentence'; the columns are 'sentense', 'label'; did you mean 'sentense'"):
        table.require("sentence", "label")


@pytest.mark.parametrize("value", ["null", "3", '["x"]', '"\\ud800"'])
def test_a_value_that_is_no_text_is_a_data_error_with_its_line(tmp_path, value):
    table = read_table(written(tmp_path, "a.jsonl", f'{{"text": "x"}}\n{{"text": {value}}}\n'))
    with pytest.raises(DataError, match=r"a\.jsonl:2: "):
        table.rows[1].text("text")


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


@given(st.sampled_from(["a.tsv", "a.csv", "a.jsonl", "a.json", "a.parquet"]), st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused_with_a_data_error(tmp_path_factory, name, content):
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(content)
    try:
        table = read_table(path)
    except DataError:
        return
    assert table.rows
