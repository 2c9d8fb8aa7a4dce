"""SICK and Dialogue NLI: labels by name, splits within a file, and the evaluation sets."""

import json
from collections import Counter

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.config import TaskConfig
from lorascope.data.nli import NLI_LABELS
from lorascope.data.task import read_task
from lorascope.errors import DataError

HEADER = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
JUDGMENTS = ("ENTAILMENT", "NEUTRAL", "CONTRADICTION")
ITEM = {
    "persona": ["i swim ."],
    "prefix": ["hi"],
    "relevant_persona_sentence": "i swim .",
    "candidates": {
        "label": ["i love to swim ."],
        "neg": ["i never swim .", "i hate water ."],
        "similar": ["swim !"],
        "rand": ["i have a dog .", "what ?"],
    },
}


def sick(path, rows, header=HEADER):
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]), encoding="utf-8")
    return path


def pairs(numbers, *more):
    return [(str(n), f"a {n}", f"b {n}", "3.2", JUDGMENTS[n % 3], *more) for n in numbers]


def lines(path, *objects):
    path.write_text("".join(json.dumps(value) + "\n" for value in objects), encoding="utf-8")
    return path


def read(name, path, **more):
    return read_task(TaskConfig(name=name, data={"train": str(path), "validation": str(path)}, **more))


def saved(path, label, rows):
    features = datasets.Features({"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"), "label": label})
    values = {"premise": ["p"] * len(rows), "hypothesis": [f"h{n}" for n in range(len(rows))], "label": rows}
    split = datasets.Dataset.from_dict(values, features=features)
    datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(path)
    return TaskConfig(name="sick", data=str(path))


@pytest.mark.shared_data
def test_published_sick_is_divided_where_its_pair_ids_start_again(shared_data):
    for data in (shared_data / "sick", shared_data / "sick" / "SICK.txt"):
        task = read_task(TaskConfig(name="sick", data=str(data)))
        assert (len(task.train), len(task.eval)) == (4_500, 500)
        test = read_task(TaskConfig(name="sick", data=str(data)), "test", with_train=False)
        assert test.counts["test"] == {"rows": 4_927}
        assert test.eval[0].text == "There is no boy playing outdoors and there is no man smiling"
    [notice] = [notice for notice in task.notices if notice.kind == "split_by_order"]
    assert "4500 train, 500 validation, 4927 test pairs" in notice.message
    assert task.eval[0].where.endswith("SICK.txt:4502")
    everything = Counter(record.label for record in task.train + task.eval + test.eval)
    assert everything == {0: 2_857, 1: 5_611, 2: 1_459}
    assert (task.labels, task.task_type, task.metric_names) == (NLI_LABELS, "SEQ_CLS", ("accuracy",))


@pytest.mark.shared_data
def test_published_dialogue_nli_evaluation_sets(shared_data):
    config = TaskConfig(name="dialogue_nli", data=str(shared_data / "dialogue_nli"))
    task = read_task(config, "test", with_train=False)
    assert task.counts["test"] == {"items": 88 + 268 + 186, "rows": len(task.eval)}
    notices = {notice.kind: notice for notice in task.notices}
    by_label = Counter(record.label for record in task.eval)
    assert notices["assumed_neutral"].count == by_label[1] <= 542
    assert 538 <= by_label[0] <= 542
    # Every item names ten contradictions; what recurs, or is listed under two labels, is told.
    left_out = notices["repeated"].count + notices["contested"].count
    assert sum(by_label.values()) + left_out == 542 * 12
    assert len({(record.text, record.text_pair) for record in task.eval}) == len(task.eval)


def test_sick_is_read_by_its_columns_in_the_labels_order(tmp_path):
    task = read("sick", sick(tmp_path / "a.txt", pairs(range(3))))
    assert [(record.text, record.text_pair, record.label) for record in task.train] == [
        ("a 0", "b 0", 0),
        ("a 1", "b 1", 1),
        ("a 2", "b 2", 2),
    ]
    assert (task.labels, task.shape) == (("entailment", "neutral", "contradiction"), "sick TSV")


def test_a_column_of_splits_decides_them(tmp_path):
    rows = pairs(range(4), "TRAIN") + pairs(range(4, 6), "TRIAL") + pairs([6], "TEST")
    path = sick(tmp_path / "SICK.txt", rows, HEADER.replace("judgment", "label") + "\tSemEval_set")
    for data in (tmp_path, path):
        task = read_task(TaskConfig(name="sick", data=str(data)))
        assert (len(task.train), len(task.eval)) == (4, 2)
        assert task.counts["train"] == {"rows": 4}
        assert len(read_task(TaskConfig(name="sick", data=str(data)), "test").eval) == 1
    assert task.shape == "sick TSV, splits by SemEval_set"
    assert not [notice for notice in task.notices if notice.kind == "split_by_order"]


def test_a_split_that_the_column_does_not_hold_is_missing(tmp_path):
    path = sick(tmp_path / "SICK.txt", pairs(range(4), "TRAIN"), HEADER + "\tSemEval_set")
    with pytest.raises(DataError, match="no validation split to evaluate on"):
        read_task(TaskConfig(name="sick", data=str(path)))
    with pytest.raises(DataError, match="the file holds no validation pairs"):
        read_task(TaskConfig(name="sick", data={"train": str(path), "validation": str(path)}))
    path = sick(tmp_path / "b.txt", pairs([1], "DEV"), HEADER + "\tSemEval_set")
    with pytest.raises(DataError, match=r"b\.txt:2: SemEval_set is 'DEV'; known: TRAIN, TRIAL, TEST"):
        read_task(TaskConfig(name="sick", data=str(path)))


def test_a_file_named_for_a_split_overrides_the_one_that_holds_all(tmp_path):
    rows = pairs(range(4), "TRAIN") + pairs(range(4, 6), "TRIAL")
    whole = sick(tmp_path / "SICK.txt", rows, HEADER + "\tSemEval_set")
    own = sick(tmp_path / "own.txt", pairs([7]))
    task = read_task(TaskConfig(name="sick", data={"train": str(whole), "validation": str(own)}))
    assert [record.text for record in task.eval] == ["a 7"]


def test_a_lone_file_in_no_known_order_is_the_train_split(tmp_path):
    path = sick(tmp_path / "SICK.txt", pairs(range(9)))
    with pytest.raises(DataError, match=r"no validation split to evaluate on; set task\.eval_fraction"):
        read_task(TaskConfig(name="sick", data=str(path)))
    task = read_task(TaskConfig(name="sick", data=str(path), eval_fraction=0.34))
    assert (len(task.train), len(task.eval)) == (6, 3)


def test_declared_classes_are_matched_by_name_whatever_their_number(tmp_path):
    for position, names in enumerate((["contradiction", "entailment", "neutral"], list(NLI_LABELS))):
        task = read_task(saved(tmp_path / f"hub{position}", datasets.ClassLabel(names=names), [0, 1, 2]))
        assert [task.labels[record.label] for record in task.train] == names


def test_numbers_without_names_are_refused_until_the_study_names_them(tmp_path):
    config = saved(tmp_path / "hub", datasets.Value("int64"), [0, 1, 2])
    with pytest.raises(DataError, match=r"train row 0: label 0 is a number, and the data do not say .* under task\.labels"):
        read_task(config)
    names = ["contradiction", "neutral", "entailment"]
    task = read_task(config.model_copy(update={"labels": names}))
    assert ([task.labels[record.label] for record in task.train], task.labels) == (names, NLI_LABELS)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("ENTAILED", "a.txt:2: label 'ENTAILED' is none of the three; did you mean 'entailment'?"),
        ("positive", "a.txt:2: label 'positive' is none of the three"),
        ("-1", "a.txt:2: label -1 is a number"),
        ("", "a.txt:2: label '' is none of the three"),
    ],
)
def test_other_labels_are_data_errors_with_their_line(tmp_path, label, expected):
    with pytest.raises(DataError) as caught:
        read("sick", sick(tmp_path / "a.txt", [("1", "a", "b", "3", label)]))
    assert expected in str(caught.value)


def test_a_pair_without_label_and_foreign_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match="label -1 marks a pair without label"):
        read_task(saved(tmp_path / "hub", datasets.ClassLabel(names=list(NLI_LABELS)), [0, -1]))
    path = sick(tmp_path / "a.txt", pairs(range(3)))
    with pytest.raises(DataError, match=r"task\.labels: sick has the labels entailment, neutral, contradiction"):
        read("sick", path, labels=["yes", "no"])


def test_a_missing_column_is_named(tmp_path):
    path = sick(tmp_path / "a.txt", [("1", "a", "NEUTRAL")], "pair_ID\tsentence_A\tentailment_judgment")
    with pytest.raises(DataError, match="no column 'sentence_B'; the columns are 'pair_ID', 'sentence_A'"):
        read("sick", path)


def test_dialogue_nli_is_read_as_a_list_or_a_line_each(tmp_path):
    rows = [
        {"sentence1": "i run .", "sentence2": "i jog .", "label": label, "dtype": "x"}
        for label in ("positive", "neutral", "negative")
    ]
    (tmp_path / "dialogue_nli_train.jsonl").write_text(json.dumps(rows))
    lines(tmp_path / "dialogue_nli_dev.jsonl", *rows)
    task = read_task(TaskConfig(name="dialogue_nli", data=str(tmp_path)))
    assert [record.label for record in task.train] == [record.label for record in task.eval] == [0, 1, 2]
    assert (task.train[0].text, task.train[0].text_pair) == ("i run .", "i jog .")
    assert (task.shape, task.train[1].where) == (
        "dialogue_nli JSON and dialogue_nli JSONL",
        f"{tmp_path}/dialogue_nli_train.jsonl, item 2",
    )


def test_an_evaluation_item_is_pairs_of_a_reply_and_the_persona_sentence(tmp_path):
    task = read("dialogue_nli", lines(tmp_path / "valid_x.jsonl", ITEM))
    assert [(record.text, record.label) for record in task.train] == [
        ("i love to swim .", 0),
        ("i have a dog .", 1),
        ("i never swim .", 2),
        ("i hate water .", 2),
    ]
    assert {record.text_pair for record in task.train} == {"i swim ."}
    [notice] = [notice for notice in task.notices if (notice.kind, notice.where) == ("assumed_neutral", "train")]
    assert notice.count == 1
    assert "neutral by assumption only" in notice.message
    assert "1 more of these and 1 similar replies are not used" in notice.message


def test_pairs_that_recur_or_contradict_themselves_are_left_out_and_counted(tmp_path):
    candidates = {**ITEM["candidates"], "neg": ["i never swim .", "i have a dog ."]}
    task = read("dialogue_nli", lines(tmp_path / "valid_x.jsonl", ITEM, {**ITEM, "candidates": candidates}))
    assert [record.text for record in task.train] == ["i love to swim .", "i never swim .", "i hate water ."]
    counts = {notice.kind: notice.count for notice in task.notices if notice.where == "train"}
    assert counts == {"repeated": 2, "contested": 3}


def test_a_directory_of_evaluation_files_is_one_split(tmp_path):
    lines(tmp_path / "valid_a.jsonl", ITEM)
    lines(tmp_path / "valid_b.jsonl", {**ITEM, "relevant_persona_sentence": "i dive ."})
    task = read_task(TaskConfig(name="dialogue_nli", data=str(tmp_path)), with_train=False)
    assert task.counts == {"validation": {"items": 2, "rows": 8}}
    lines(tmp_path / "test_a.jsonl", ITEM)
    with pytest.raises(DataError, match="the files begin with test and valid, so they are no single split; name one"):
        read_task(TaskConfig(name="dialogue_nli", data=str(tmp_path)), with_train=False)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({**ITEM, "candidates": {"label": ["x"]}}, "x.jsonl:1: candidates hold no list 'neg'"),
        ({**ITEM, "candidates": None}, "x.jsonl:1: candidates hold no list 'label'"),
        ({**ITEM, "relevant_persona_sentence": None}, "x.jsonl:1: column 'relevant_persona_sentence' has no value"),
        ({**ITEM, "candidates": {**ITEM["candidates"], "rand": [3]}}, "x.jsonl:1: a reply under 'rand' is int, not text"),
        ({"sentence1": "a", "label": "positive"}, "no column 'sentence2'"),
        ({"sentence1": "a", "sentence2": "b", "label": "maybe"}, "x.jsonl:1: label 'maybe' is none of the three"),
    ],
)
def test_broken_items_are_data_errors_with_their_line(tmp_path, item, expected):
    with pytest.raises(DataError) as caught:
        read("dialogue_nli", lines(tmp_path / "valid_x.jsonl", item))
    assert expected in str(caught.value)


@given(st.lists(st.sampled_from([*JUDGMENTS, "neutral", " Entailment ", "Contradiction"]), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_a_label_is_its_name_in_any_case(tmp_path_factory, judgments):
    path = tmp_path_factory.mktemp("sick") / "a.txt"
    task = read("sick", sick(path, [(str(n), "a", "b", "3", name) for n, name in enumerate(judgments)]))
    assert [task.labels[record.label] for record in task.train] == [name.strip().lower() for name in judgments]


def test_pairs_of_one_wording_are_one_group(tmp_path):
    rows = [{"sentence1": f"a {n}", "sentence2": "b", "label": "neutral", "group": f"wording {n % 2}"} for n in range(4)]
    path = lines(tmp_path / "dialogue_nli_dev.jsonl", *rows)
    assert [record.group for record in read("dialogue_nli", path).eval] == ["wording 0", "wording 1"] * 2
    path = lines(tmp_path / "dialogue_nli_test.jsonl", *({**row, "group": 3} for row in rows))
    with pytest.raises(DataError, match="the group is int, not text"):
        read("dialogue_nli", path)
