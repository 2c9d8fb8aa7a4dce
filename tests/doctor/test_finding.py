"""Results of checks: what raises has failed in one line, and every figure can be written as strict JSON."""

import json

import pytest

from lorascope.doctor.finding import Check, Finding, NotReached, Setting, beyond, carry_out, compared, examine
from lorascope.errors import ModelError


def ended(function, fix="do this"):
    return carry_out(Check("name", "claim", function, fix), Setting())


def raising(error):
    def function(setting):
        raise error

    return function


def test_a_check_that_raises_has_failed_with_one_line():
    result = ended(raising(RuntimeError("shapes\n  [1, 2]\nand " + "x" * 1000)))
    assert (result.status, result.fix) == ("failed", "do this")
    assert result.showed.startswith("RuntimeError: shapes [1, 2] and xxx")
    assert len(result.showed) < 320
    assert "\n" not in result.showed


def test_a_known_error_says_where_and_what_to_do():
    result = ended(raising(ModelError("no such directory", where="base.model", fix="give another")))
    assert (result.status, result.showed, result.fix) == ("failed", "base.model: no such directory", "give another")


def test_what_is_not_reached_is_skipped_and_asks_for_nothing():
    result = ended(raising(NotReached("the base was not loaded")))
    assert (result.status, result.showed, result.fix) == ("skipped", "the base was not loaded", "")
    with pytest.raises(NotReached):
        Setting().loaded()


def test_an_interruption_is_no_result():
    with pytest.raises(KeyboardInterrupt):
        ended(raising(KeyboardInterrupt()))


@pytest.mark.parametrize(
    ("finding", "status", "showed", "fix"),
    [
        (Finding("all equal"), "passed", "all equal", ""),
        (Finding("all equal", warnings=("slow",)), "warning", "all equal; slow", "do this"),
        (Finding("all equal", warnings=("slow",), fix="own"), "warning", "all equal; slow", "own"),
        (Finding("", warnings=("not installed",)), "warning", "not installed", "do this"),
        (Finding("nothing here", skipped=True), "skipped", "nothing here", ""),
        (Finding("all equal", wrong=("one", "two"), warnings=("slow",)), "failed", "one; two", "do this"),
    ],
)
def test_the_worst_that_a_check_found_is_its_status(finding, status, showed, fix):
    result = ended(lambda setting: finding)
    assert (result.status, result.showed, result.fix) == (status, showed, fix)


def test_nan_exceeds_every_limit():
    assert beyond({"loss": float("nan"), "logits": 1e-9}, {"loss": 1e300, "logits": 1e-8}) == ("loss nan, more than 1e+300",)
    assert beyond({"final_weights": 2e-3}, {"final_weights": 1e-3}) == ("final weights 2.0e-03, more than 1e-03",)


def test_what_is_equal_is_said_to_be_equal():
    assert compared("logits", 0.0) == "logits are equal to the bit"
    assert compared("logits", 2.4e-7) == "logits differ by 2e-07"


def test_a_record_is_strict_json():
    figures = {"error": float("nan"), "rows": [(1, float("inf"))], "paths": {"plain": 3.5}, "name": "x", "none": None}
    record = ended(lambda setting: Finding("", figures)).record()
    assert json.loads(json.dumps(record, allow_nan=False))["figures"] == {
        "error": None, "rows": [[1, None]], "paths": {"plain": 3.5}, "name": "x", "none": None,
    }  # fmt: skip
    assert record["fix"] is None


def test_checks_are_independent_and_told_as_they_end():
    seen = []

    def broken(setting):
        seen.append("broken")
        raise ZeroDivisionError

    def fine(setting):
        seen.append("fine")
        return Finding("fine")

    results = examine([Check("a", "", broken, "fix"), Check("b", "", fine, "fix")], Setting())
    assert next(results).status == "failed"
    assert seen == ["broken"]
    assert [result.status for result in results] == ["passed"]
