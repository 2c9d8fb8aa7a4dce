"""The first run: offline, on what comes with Lorascope; a second run shows the results of the first."""

import json

from lorascope.cli.demo import prepare_demo
from lorascope.config import load_study
from lorascope.data.task import read_task


def test_the_demo_ranks_the_projections_and_is_shown_again(cli, tmp_path):
    study = prepare_demo(tmp_path / "demo")
    smaller = study.read_text().replace("max_train: 320, max_eval: 60", "max_train: 16, max_eval: 6")
    study.write_text(smaller.replace("[42, 1337, 2024]", "[42, 1337]").replace("max_eval: 300", "max_eval: 60"))
    ended = cli("demo", "--out", tmp_path / "demo", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert [trial["status"] for trial in document["trials"]] == ["done"] * 16
    assert {"c_score", "rouge_l", "eval_loss"} <= set(document["trials"][0]["metrics"])
    assert document["judge"]["check"]["num_examples"] == 60
    assert document["shapley"] is not None
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
