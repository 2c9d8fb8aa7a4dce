"""``lorascope doctor`` as people and scripts meet it: table, document, progress, exit codes."""

import json
import sys

import pytest

from lorascope.doctor import own_base, table
from lorascope.doctor.finding import Check, Finding
from lorascope.lora.layer import StackedLinear


@pytest.fixture
def checks(monkeypatch):
    """``checks(Finding(…), …)``: the table holds checks that find this."""

    def put(*findings):
        rows = tuple(Check(f"check {n}", "a claim", lambda _, one=one: one, f"fix {n}") for n, one in enumerate(findings))
        monkeypatch.setattr(table, "CHECKS", rows)

    return put


@pytest.mark.slow
def test_every_check_is_carried_out_here(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = cli("doctor", "--device", "cpu", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["passed"]
    assert len(document["checks"]) == len(table.CHECKS)
    assert {one["status"] for one in document["checks"]} <= {"passed", "warning", "skipped"}
    assert sum(document["counts"].values()) == len(document["checks"])
    assert list(tmp_path.iterdir()) == []


def test_a_table_says_what_each_check_showed(cli, checks):
    checks(Finding("equal to 1e-12"), Finding("", skipped=True), Finding("slow", warnings=("3 threads",), fix="set them"))
    ended = cli("doctor", "--device", "cpu")
    assert ended.code == 0
    assert "✓ passed" in ended.out
    assert "equal to 1e-12" in ended.out
    assert "! check 2: set them" in ended.out
    assert "3 checks in" in ended.out
    assert ended.out.rstrip().endswith("1 passed, 1 warning, 1 skipped")
    assert "fix 0" not in ended.out
    # A line for each as it ends, where stderr is no terminal.
    assert [line.split(" (")[0] for line in ended.err.splitlines()] == ["✓ check 0", "– check 1", "! check 2"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_check_that_fails_is_exit_code_3_with_what_to_do(options, cli, checks):
    checks(Finding("fine"), Finding("", {"error": float("nan")}, wrong=("loss nan, more than 1e-10",)))
    ended = cli("doctor", "--device", "cpu", *options)
    assert ended.code == 3
    assert "lorascope: doctor: 1 of 2 checks failed (check 1)" in ended.err
    if options:
        document = json.loads(ended.out, parse_constant=pytest.fail)
        assert not document["passed"]
        assert document["checks"][1] | {"seconds": 0} == {
            "check": "check 1", "claim": "a claim", "status": "failed", "showed": "loss nan, more than 1e-10", "fix": "fix 1",
            "seconds": 0, "figures": {"error": None},
        }  # fmt: skip
    else:
        assert "✗ failed" in ended.out
        assert "✗ check 1: fix 1" in ended.out


def test_a_planted_fault_reaches_the_exit_code(cli, monkeypatch):
    rows = tuple(row for row in table.CHECKS if row.name in ("forward", "parameter counts"))
    monkeypatch.setattr(table, "CHECKS", rows)
    original = StackedLinear._factors
    monkeypatch.setattr(StackedLinear, "_factors", lambda self, active: tuple(2 * one for one in original(self, active)))
    ended = cli("doctor", "--device", "cpu", "--json")
    assert ended.code == 3
    statuses = {one["check"]: one["status"] for one in json.loads(ended.out)["checks"]}
    assert statuses == {"forward": "failed", "parameter counts": "passed"}


def test_the_users_own_base_is_tried_too(cli, checks, model_directory, monkeypatch):
    checks(Finding("fine"))
    monkeypatch.setattr(own_base, "_TEXT", "the acting is wooden")  # the tiny tokenizer knows few letters
    ended = cli("doctor", "--device", "cpu", "--base", model_directory("gpt2"), "--json")
    assert ended.code == 0, ended.err
    names = [one["check"] for one in json.loads(ended.out)["checks"]]
    assert names == ["check 0", *(row.name for row in table.OWN_BASE)]


def test_wrong_options_are_told_before_anything_is_checked(cli, checks, tmp_path):
    checks(Finding("fine"))
    ended = cli("doctor", "--device", "tpu")
    assert (ended.code, ended.out) == (2, "")
    assert "no device 'tpu' here" in ended.err
    ended = cli("doctor", "--base", tmp_path / "nowhere")
    assert (ended.code, ended.out) == (2, "")
    assert "no such model directory" in ended.err


def test_a_package_that_cannot_be_imported_is_a_failed_check_and_no_traceback(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "lorascope.doctor.table", None)
    ended = cli("doctor", "--device", "cpu", "--json")
    assert ended.code == 3
    statuses = {one["check"]: one["status"] for one in json.loads(ended.out)["checks"]}
    assert list(statuses) == ["versions", "imports"]
    assert statuses["imports"] == "failed"
    assert "Traceback" not in ended.err
