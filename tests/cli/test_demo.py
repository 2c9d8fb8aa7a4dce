"""The first run: offline, on what comes with Lorascope; a second run shows the results of the first."""

import json
from pathlib import Path

import yaml

from lorascope.cli.demo import prepare_demo
from lorascope.config import load_study
from lorascope.data.task import read_task


def test_the_demo_ranks_the_projections_and_is_shown_again(cli, tmp_path):
    study = prepare_demo(tmp_path / "demo")
    smaller = yaml.safe_load(study.read_text())
    smaller["task"] |= {"max_train": 96, "max_eval": 6}
    smaller["evaluate"]["judge"]["check"]["max_eval"] = 60
    study.write_text(yaml.safe_dump(smaller | {"seeds": [42, 1337]}))
    ended = cli("demo", "--out", tmp_path / "demo", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert [trial["status"] for trial in document["trials"]] == ["done"] * 16
    assert document["judge"]["check"]["num_examples"] == 60
    metrics = document["shapley"]["metrics"]
    assert list(metrics) == ["eval_loss", "c_score", "rouge_l"]
    assert all(set(metric["values"]) == {"query", "key", "value"} for metric in metrics.values())
    assert all(value["estimate"] < 0 for value in metrics["eval_loss"]["values"].values()), "each of them learns"
    assert (tmp_path / "demo" / "study" / "report.html").is_file()

    again = cli("demo", "--out", tmp_path / "demo", "--json")
    assert again.code == 0
    assert json.loads(again.out) == document


def test_the_demos_data_are_the_same_every_time(tmp_path):
    first, second = (prepare_demo(tmp_path / name) for name in ("first", "second"))
    for name in ("personachat/train_self_original.txt", "dialogue_nli/dialogue_nli_test.jsonl"):
        assert (first.parent / "world" / name).read_bytes() == (second.parent / "world" / name).read_bytes()
    raw = read_task(load_study(first).task)
    assert (len(raw.train), len(raw.eval)) == (320, 60)


def test_a_demo_that_cannot_be_written_is_one_line(cli, tmp_path):
    (tmp_path / "file").write_text("")
    ended = cli("demo", "--out", tmp_path / "file")
    assert ended.code == 1
    assert len(ended.err.splitlines()) == 1
    assert "cannot write" in ended.err


def test_a_demo_in_a_place_with_an_odd_name_can_be_read(tmp_path):
    study = load_study(prepare_demo(tmp_path / 'a "quoted": {name} é'))
    assert len(read_task(study.task).eval) == 60


def test_the_demos_study_runs_again_from_anywhere_and_by_default_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load_study(prepare_demo(Path("runs/demo")))
    assert not (tmp_path / "runs" / study.name).exists(), "where `lorascope run` puts it"
    monkeypatch.chdir("/")
    assert len(read_task(study.task).eval) == 60
