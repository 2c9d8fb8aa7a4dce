"""The first run: offline, quick, learnable; a second run shows the results of the first."""

import json
import time

from lorascope.cli.demo import prepare_demo
from lorascope.config import load_study
from lorascope.data.task import read_task
from lorascope.design import expand


def test_the_demo_learns_within_a_minute(cli, tmp_path):
    started = time.monotonic()
    ended = cli("demo", "--out", tmp_path / "demo", "--json")
    assert time.monotonic() - started < 60
    assert ended.code == 0
    trials = json.loads(ended.out)["trials"]
    assert [trial["status"] for trial in trials] == ["done"] * 6
    assert max(trial["metrics"]["accuracy"] for trial in trials) > 0.9
    assert all((tmp_path / "demo" / "study" / trial["adapter"]).is_dir() for trial in trials)

    again = cli("demo", "--out", tmp_path / "demo", "--json")
    assert again.code == 0
    assert json.loads(again.out) == json.loads(ended.out)


def test_the_demo_is_the_same_every_time(tmp_path):
    first, second = (prepare_demo(tmp_path / name) for name in ("first", "second"))
    for name in ("train.jsonl", "validation.jsonl", "model/model.safetensors", "model/tokenizer.json"):
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()
    study = load_study(first)
    assert len(expand(study)) == 6
    raw = read_task(study.task)
    assert (raw.labels, len(raw.train), len(raw.eval)) == (("negative", "positive"), 800, 200)


def test_a_demo_that_cannot_be_written_is_one_line(cli, tmp_path):
    (tmp_path / "file").write_text("")
    ended = cli("demo", "--out", tmp_path / "file")
    assert ended.code == 1
    assert len(ended.err.splitlines()) == 1
    assert "cannot write" in ended.err


def test_a_demo_in_a_place_with_an_odd_name_runs(tmp_path):
    study = load_study(prepare_demo(tmp_path / 'a "quoted": {name} é'))
    assert read_task(study.task).labels == ("negative", "positive")
