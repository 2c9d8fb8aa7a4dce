"""``lorascope report`` and the page that a run leaves behind."""

import json

import pytest

from lorascope.errors import StoreError


def test_a_run_leaves_its_report(cli, study_file, tmp_path):
    ended = cli("run", study_file(), "--out", tmp_path / "run")
    assert (ended.code, "report.html" in ended.err) == (0, True)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    document = json.loads(cli("results", tmp_path / "run", "--json").out)
    assert all(trial["trial"] in page for trial in document["trials"])
    assert "Updates by layer and module" in page
    again = cli("report", tmp_path / "run", "--out", tmp_path / "again.html")
    assert (again.code, again.out.strip()) == (0, str(tmp_path / "again.html"))
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_a_report_goes_beside_the_store_unless_told_otherwise(cli, study_file, tmp_path):
    assert cli("run", study_file(), "--out", tmp_path / "run").code == 0
    (tmp_path / "run" / "report.html").unlink()
    ended = cli("report", tmp_path / "run", "--json")
    path = tmp_path / "run" / "report.html"
    assert json.loads(ended.out) == {"report": str(path), "bytes": path.stat().st_size}


def test_shards_become_one_report(cli, study_file, tmp_path):
    file = study_file(seeds=[1, 2])
    shards = [tmp_path / f"shard{index}" for index in (1, 2)]
    for index, shard in enumerate(shards, 1):
        assert cli("run", file, "--out", shard, "--shard", f"{index}/2").code == 0
    assert cli("report", *shards, "--out", tmp_path / "both.html").code == 0
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    document = json.loads(cli("results", *shards, "--json").out)
    assert len(document["trials"]) == 4
    assert all(trial["trial"] in page for trial in document["trials"])


def test_what_cannot_be_reported_is_one_line(cli, study_file, tmp_path):
    absent = cli("report", tmp_path / "nothing")
    assert (absent.code, absent.out, absent.err.count("\n")) == (2, "", 1)
    assert "no study in this directory" in absent.err
    assert cli("run", study_file(), "--out", tmp_path / "run").code == 0
    taken = cli("report", tmp_path / "run", "--out", tmp_path)
    assert (taken.code, "is a directory" in taken.err) == (2, True)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StoreError("cannot write (disk full)", where="report.html"), "no report: report.html: cannot write (disk full)"),
        (ValueError("math domain error"), "no report: ValueError: math domain error (unexpected"),
    ],
)
def test_a_report_that_fails_does_not_lose_the_study(error, told, cli, study_file, tmp_path, monkeypatch):
    from lorascope import report

    def refuse(*_):
        raise error

    monkeypatch.setattr(report, "write_report", refuse)
    ended = cli("run", study_file(), "--out", tmp_path / "run", "--json")
    assert ended.code == 0
    assert [trial["status"] for trial in json.loads(ended.out)["trials"]] == ["done", "done"]
    assert told in ended.err
