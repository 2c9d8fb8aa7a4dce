"""Where data are looked for: files, directories, datasets on disk, the hub."""

import json
import tracemalloc

import datasets
import pytest

from lorascope.data.source import Published, locate, published_names
from lorascope.errors import DataError

PUBLISHED = Published({"train": ("train*.json",), "validation": ("dev*.json",)}, "rte", ("glue",))
ROWS = {"text": ["x", "y", "z"], "label": [0, 1, 0]}


@pytest.fixture(autouse=True)
def caches_in_tmp(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def labelled():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    return datasets.Dataset.from_dict(ROWS, features=features)


def test_a_lone_file_is_the_first_split_asked_for(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text("a\nx\n")
    assert set(locate(str(path), ["train", "validation"], PUBLISHED)) == {"train"}
    assert set(locate(str(path), ["validation"], PUBLISHED)) == {"validation"}


def test_a_directory_is_searched_for_published_names(tmp_path):
    for name in ("train-v1.1.json", "dev-v1.1.json", "notes.txt"):
        (tmp_path / name).write_text("{}")
    found = locate(str(tmp_path), ["train", "validation", "test"], PUBLISHED)
    assert {split: source.path.name for split, source in found.items()} == {
        "train": "train-v1.1.json",
        "validation": "dev-v1.1.json",
    }


def test_several_matches_are_listed_and_a_mapping_is_proposed(tmp_path):
    for name in ("dev-v1.1.json", "dev-v2.0.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"validation split: dev-v1.1.json, dev-v2.0.json; name one: data: \{validation"):
        locate(str(tmp_path), ["validation"], PUBLISHED)


def test_save_to_disk_directories_are_read_with_their_splits_and_class_names(tmp_path):
    datasets.DatasetDict({"train": labelled(), "dev": labelled()}).save_to_disk(tmp_path / "saved")
    found = locate(str(tmp_path / "saved"), ["train", "validation", "test"], PUBLISHED)
    assert set(found) == {"train", "validation"}
    table = found["validation"].table()
    assert table.class_names == {"label": ("bad", "good")}
    second = list(table.rows)[1]
    assert second.values == {"text": "y", "label": 1}
    assert second.where.endswith("saved dev row 1")


def test_rows_of_a_dataset_are_python_values_whatever_its_format_and_order(tmp_path):
    rows = labelled().with_format("numpy").select([2, 0, 1])
    rows.save_to_disk(tmp_path / "saved")
    table = locate(str(tmp_path / "saved"), ["train"], PUBLISHED)["train"].table()
    expected = [{"text": "z", "label": 0}, {"text": "x", "label": 0}, {"text": "y", "label": 1}]
    assert [row.values for row in table.rows] == [row.values for row in table.rows] == expected
    assert {type(row.values["label"]) for row in table.rows} == {int}


def test_a_dataset_is_read_in_memory_that_does_not_grow_with_it(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["lorem ipsum " * 340] * 7_500})
    rows.save_to_disk(tmp_path / "saved")
    source = locate(str(tmp_path / "saved"), ["train"], PUBLISHED)["train"]
    tracemalloc.start()
    try:
        num_rows = sum(len(row.values["text"]) > 4000 for row in source.table().rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_rows == 7_500
    assert peak < 5e6


def test_a_saved_dataset_without_splits_is_what_the_mapping_says(tmp_path):
    labelled().save_to_disk(tmp_path / "one")
    found = locate({"validation": str(tmp_path / "one")}, ["train", "validation"], PUBLISHED)
    assert set(found) == {"validation"}
    assert len(list(found["validation"].table().rows)) == 3


def test_a_lone_split_is_another_only_where_a_mapping_says_so(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict({"train": labelled()}))
    assert locate("someone/rows", ["validation"], PUBLISHED) == {}
    assert set(locate({"validation": "someone/rows"}, ["validation"], PUBLISHED)) == {"validation"}


def test_a_directory_of_parquet_goes_through_datasets(tmp_path):
    for split in ("train", "validation"):
        labelled().to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    found = locate(str(tmp_path), ["train", "validation"], PUBLISHED)
    assert [row.values["text"] for row in found["train"].table().rows] == ["x", "y", "z"]
    assert found["train"].table().class_names == {"label": ("bad", "good")}


def test_a_directory_with_configurations_gives_the_tasks_own(tmp_path):
    for name, text in (("rte", "mine"), ("mrpc", "not mine")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(json.dumps({"text": text}))
    entries = "".join(f"- config_name: {name}\n  data_files: {name}/train.jsonl\n" for name in ("rte", "mrpc"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    found = locate(str(tmp_path), ["train"], PUBLISHED)
    assert [row.values["text"] for row in found["train"].table().rows] == ["mine"]


@pytest.mark.parametrize("data", ["./no/such", "/no/such", "~/no-such-thing-here", "no/such/train.tsv", "train.jsonl"])
def test_a_path_that_does_not_exist_is_not_sent_to_the_hub(data, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match="no such file or directory"):
        locate(data, ["train"], PUBLISHED)


@pytest.mark.parametrize("data", ["a/b/c", "", "what is this"])
def test_what_is_neither_path_nor_hub_id_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        locate(data, ["train"], PUBLISHED)


@pytest.mark.parametrize(("data", "config"), [("glue", "rte"), ("nyu-mll/glue", "rte"), ("stanfordnlp/sst2", None)])
def test_collections_on_the_hub_are_asked_for_the_tasks_configuration(data, config, monkeypatch):
    asked = []

    def load(*arguments):
        asked.append(arguments)
        return datasets.DatasetDict({"train": labelled(), "validation": labelled()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert set(locate(data, ["train", "validation"], PUBLISHED)) == {"train", "validation"}
    assert asked == [(data, config)]


def test_a_hub_failure_is_one_line(monkeypatch):
    def fail(*_):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError) as caught:
        locate("someone/something", ["train"], PUBLISHED)
    assert str(caught.value).startswith("someone/something: no local path, and not loadable from the hub (ConnectionError")
    assert "\n" not in str(caught.value)


def test_the_hub_library_itself_fails_in_one_line_when_offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="not loadable from the hub") as caught:
        locate("someone/something-that-is-not-cached", ["train"], PUBLISHED)
    assert "\n" not in str(caught.value)


def test_an_empty_directory_and_a_directory_of_anything_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="holds no files"):
        locate(str(tmp_path), ["train"], PUBLISHED)
    (tmp_path / "program.exe").write_bytes(b"\0")
    with pytest.raises(DataError, match=r"cannot be read as a dataset .*expected train\*.json, dev\*.json"):
        locate(str(tmp_path), ["train"], PUBLISHED)


def test_an_empty_dataset_is_a_data_error(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict({"train": labelled().select([])}))
    with pytest.raises(DataError, match="someone/empty train: the dataset holds no rows"):
        locate("someone/empty", ["train"], PUBLISHED)["train"].table()


def test_published_names_are_each_alias_in_each_pattern_the_preferred_first():
    names = published_names("{}_original.txt", "Chat_{}.csv")
    assert names["train"] == ("train_original.txt", "Chat_train.csv")
    assert names["validation"][:4] == ("validation_original.txt", "Chat_validation.csv", "dev_original.txt", "Chat_dev.csv")
    assert list(names) == ["train", "validation", "test"]
