"""SST-2, MRPC and RTE: the published files, hub rows, and what is refused."""

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.config import TaskConfig
from lorascope.data.task import read_task
from lorascope.errors import DataError

SENTENCE = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), max_size=20)


def read(name, data, **more):
    return read_task(TaskConfig(name=name, data=str(data), **more))


def write(directory, **files):
    for name, content in files.items():
        (directory / f"{name}.tsv").write_text(content, encoding="utf-8")
    return directory


@pytest.mark.shared_data
def test_published_row_counts(shared_data):
    sst2 = read("sst2", shared_data / "sst2")
    assert (len(sst2.train), len(sst2.eval)) == (67_349, 872)
    assert sst2.counts == {"train": {"rows": 67_349}, "validation": {"rows": 872}}
    rte = read("rte", shared_data / "rte")
    assert (len(rte.train), len(rte.eval)) == (2_490, 277)
    mrpc = read("mrpc", shared_data / "mrpc", eval_fraction=0.1)
    assert len(mrpc.train) + len(mrpc.eval) == 4_076


@pytest.mark.shared_data
def test_published_labels_are_read_in_glues_order(shared_data):
    rte = read("rte", shared_data / "rte")
    assert rte.labels == ("entailment", "not_entailment")
    first = rte.train[0]
    assert (first.text, first.text_pair, first.label) == (
        "No Weapons of Mass Destruction Found in Iraq Yet.",
        "Weapons of Mass Destruction Found in Iraq.",
        1,
    )
    sst2 = read("sst2", shared_data / "sst2", max_train=1, max_eval=1)
    assert (sst2.eval[0].text, sst2.eval[0].label) == ("it 's a charming and often affecting journey . ", 1)
    assert (len(sst2.train), len(sst2.eval)) == (1, 1)
    assert sst2.counts["train"] == {"rows": 67_349}


@pytest.mark.shared_data
def test_mrpc_keeps_quotation_marks_and_has_the_published_share_of_paraphrases(shared_data):
    task = read("mrpc", shared_data / "mrpc", eval_fraction=0.1)
    records = task.train + task.eval
    assert sum(record.label for record in records) == 2_753
    assert any('"the witness"' in record.text for record in records)
    assert not any(record.text_pair.endswith("\r") for record in records)
    assert task.metric_names == ("accuracy", "f1")


@pytest.mark.parametrize(("name", "pair"), [("sst2", False), ("mrpc", True), ("rte", True)])
def test_hub_rows_give_the_same_records_as_the_published_file(tmp_path, name, pair):
    texts = {"sentence1": ["a", "b"], "sentence2": ["c", "d"]} if pair else {"sentence": ["a", "b"]}
    rows = datasets.Dataset.from_dict({**texts, "label": [1, 0], "idx": [0, 1]})
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "hub")
    columns = "\t".join([*texts, "label"])
    lines = ["a\tc\t1", "b\td\t0"] if pair else ["a\t1", "b\t0"]
    (tmp_path / "files").mkdir()
    write(tmp_path / "files", train="\n".join([columns, *lines]), dev="\n".join([columns, *lines]))
    from_hub, from_files = read(name, tmp_path / "hub"), read(name, tmp_path / "files")
    assert from_hub.checksum == from_files.checksum
    assert (from_hub.shape, from_files.shape) == (f"{name} dataset rows", f"{name} TSV")
    assert [record.label for record in from_hub.train] == [1, 0]


def test_label_names_of_rte_become_their_numbers(tmp_path):
    text = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n1\ta\tc\tentailment\n"
    task = read("rte", write(tmp_path, train=text, dev=text))
    assert [record.label for record in task.train] == [1, 0]


def test_glues_mrpc_directory_is_not_read_from_the_file_that_holds_its_dev_set(tmp_path):
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    write(tmp_path, train=f"{header}1\t1\t2\ta\tb\n0\t3\t4\te\tf\n", dev=f"{header}0\t1\t2\tc\td\n")
    (tmp_path / "msr_paraphrase_train.txt").write_text(f"{header}1\t1\t2\ta\tb\n0\t1\t2\tc\td\n")
    task = read("mrpc", tmp_path)
    assert [record.text for record in task.train] == ["a", "e"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "sentence\tlabel\nx\t1\ny\t2\n",
            "train.tsv:3: label '2' is out of range; labels are 0 (negative), 1 (positive)",
        ),
        ("sentence\tlabel\nx\t-1\n", "train.tsv:2: label -1 marks a split without labels"),
        ("sentence\tlabel\nx\tpositiv\n", "train.tsv:2: label 'positiv' is out of range"),
        ("sentence\tlabel\nx\t\n", "train.tsv:2: label '' is out of range"),
        ("index\tsentence\n0\tx\n", "no column 'label'; the columns are 'index', 'sentence'"),
        ("sentense\tlabel\nx\t1\n", "did you mean 'sentense'"),
    ],
)
def test_wrong_labels_and_columns_are_data_errors_with_their_place(tmp_path, content, expected):
    with pytest.raises(DataError) as caught:
        read("sst2", write(tmp_path, train=content, dev="sentence\tlabel\nx\t1\n"))
    assert expected in str(caught.value)


def test_other_label_names_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"task\.labels: sst2 has the labels negative, positive"):
        read("sst2", write(tmp_path, train="sentence\tlabel\nx\t1\n", dev="sentence\tlabel\nx\t1\n"), labels=["a", "b"])


@given(st.lists(st.tuples(SENTENCE, st.sampled_from([0, 1])), min_size=1, max_size=10))
@settings(max_examples=40, deadline=None)
def test_sst2_round_trip(tmp_path_factory, rows):
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
    directory = write(tmp_path_factory.mktemp("sst2"), train="x\n", dev="x\n")
    (directory / "train.tsv").write_bytes("\n".join(lines).encode())
    (directory / "dev.tsv").write_bytes("\n".join(lines).encode())
    assert [(record.text, record.label) for record in read("sst2", directory).train] == rows


@given(st.binary(max_size=80))
@settings(max_examples=150, deadline=None)
def test_any_tail_of_a_file_is_read_or_refused_with_a_data_error(tmp_path_factory, tail):
    path = tmp_path_factory.mktemp("fuzz") / "a.tsv"
    path.write_bytes(b"sentence\tlabel\nx\t1\ny\t0\n" + tail)
    try:
        task = read("sst2", path, eval_fraction=0.5)
    except DataError:
        return
    assert all(record.label in (0, 1) for record in task.train + task.eval)
