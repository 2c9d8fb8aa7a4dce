"""Verdicts follow the figures: tolerances that scale with the adapter, and what is no fault is none."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from lorascope.certify import checks
from lorascope.certify.inputs import Inputs
from lorascope.certify.logits import Difference
from lorascope.certify.outputs import (
    BASE,
    IN_MEMORY,
    QUANTISED,
    REFERENCE,
    RELOADED,
    UNMERGED,
    UNMERGED_FLOAT64,
    UNMERGED_QUANTISED,
    Compared,
    Outputs,
)
from lorascope.certify.tensors import ModuleFigures, TensorFigures


def module(ratio=0.01, **values):
    figures = {"module": "h.0.q", "update_norm": 1e-6, "weight_norm": 1.0, "arrived": 1.0, "rounding": 0.4, "recast": 0.0}
    return ModuleFigures(**{**figures, "ratio": ratio, "nonfinite": 0, "overflows": 0, **values})


def row(name, kl=0.0, relative=0.0, against=REFERENCE, nonfinite=0, scores=None):
    if nonfinite:
        return Compared(name, against, Difference(9, None, None, None, None, None, nonfinite))
    return Compared(name, against, Difference(9, relative, relative, kl, kl, 1.0), scores or {})


def verdicts(found):
    return {check.name: check.verdict for check in found}


@pytest.mark.parametrize(("ratio", "verdict"), [(0.29, "holds"), (0.31, "warning"), (0.89, "warning"), (0.91, "fails")])
def test_an_update_is_measured_by_its_own_size(ratio, verdict):
    found = checks.tensor_checks(TensorFigures(modules=[module(), module(ratio, update_norm=1e-12)]), (), "float32")
    assert verdicts(found)["update-arrived"] == verdict


@pytest.mark.parametrize(("arrived", "verdict"), [(0.49, "fails"), (0.79, "warning"), (1.0, "holds"), (1.3, "warning")])
def test_where_the_base_itself_was_rounded_the_share_that_arrived_decides(arrived, verdict):
    # A ratio of 3 is what rounding W to another dtype comes to, for the unmerged adapter too.
    found = checks.tensor_checks(TensorFigures(modules=[module(3.0, arrived=arrived, recast=3.0)]), (), "bfloat16")
    assert verdicts(found)["update-arrived"] == verdict


@pytest.mark.parametrize(("arrived", "verdict"), [(0.81, "holds"), (1.19, "holds"), (1.21, "warning"), (0.79, "warning")])
def test_an_update_that_arrived_in_part_is_worth_a_warning(arrived, verdict):
    found = checks.tensor_checks(TensorFigures(modules=[module(0.2, arrived=arrived)]), (), "bfloat16")
    assert verdicts(found)["update-arrived"] == verdict


def test_an_update_that_rounding_takes_is_told_apart_from_one_that_was_forgotten():
    rounded = checks.tensor_checks(TensorFigures(modules=[module(0.95, rounding=0.9)]), (), "bfloat16")
    assert any("bfloat16 is too coarse" in check.says for check in rounded)
    forgotten = checks.tensor_checks(TensorFigures(modules=[module(1.0, rounding=40.0)]), (), "bfloat16")
    assert not any("too coarse" in check.says for check in forgotten)
    assert verdicts(forgotten)["only-rounding"] == "fails"


def test_more_than_rounding_fails_however_small():
    found = checks.tensor_checks(TensorFigures(modules=[module(0.02, rounding=1.5)]), (), "float32")
    assert verdicts(found)["only-rounding"] == "fails"


def test_an_adapter_that_adds_nothing_is_worth_a_warning():
    found = checks.tensor_checks(TensorFigures(modules=[module(None, update_norm=0.0, rounding=0.0)]), (), "float32")
    assert verdicts(found)["update-arrived"] == "warning"
    assert "fails" not in verdicts(found).values()


def test_every_kind_of_wrong_tensor_fails():
    assert not [
        one for one in checks.tensor_checks(TensorFigures(modules=[module()]), (), "float32") if one.verdict == "fails"
    ]
    for name, figures in {
        "tensors-present": TensorFigures(absent=["a"]),
        "tensors-finite": TensorFigures(nonfinite={"a": 1}),
        "dtype": TensorFigures(strays={"bfloat16": 5}),
        "base-unchanged": TensorFigures(differing=[("a", 1, "the base")]),
        "tied-embeddings": TensorFigures(tied=["a is tied to b"]),
    }.items():
        assert verdicts(checks.tensor_checks(figures, (), "float32"))[name] == "fails"
    assert verdicts(checks.tensor_checks(TensorFigures(misfits=["a is [1]"]), (), "float32"))["tensors-present"] == "fails"
    assert verdicts(checks.tensor_checks(TensorFigures(leftover=["a.lora_A"]), (), "float32"))["tensors-present"] == "fails"
    assert verdicts(checks.tensor_checks(TensorFigures(), ("a stale shard",), "float32"))["tensors-present"] == "fails"
    assert verdicts(checks.tensor_checks(TensorFigures(untied=["a, b"]), (), "float32"))["tied-embeddings"] == "warning"


def outputs(*rows, **values):
    return Outputs(Inputs([], "SEQ_CLS", "drawn", 0), rows=[row(BASE, 0.5, 0.1), *rows], **values)


@pytest.mark.parametrize(
    ("merged", "unmerged", "verdict"),
    [(1.9e-3, 1e-3, "holds"), (2.1e-3, 1e-3, "fails"), (0.9e-6, 0.0, "holds"), (1.1e-6, 0.0, "fails")],
)
def test_divergence_is_measured_by_that_of_the_unmerged_adapter(merged, unmerged, verdict):
    found = checks.output_checks(outputs(row(UNMERGED, unmerged), row(RELOADED, merged)), "bfloat16")
    assert verdicts(found)[f"kl ({RELOADED})"] == verdict
    rows = (row(RELOADED), row(QUANTISED, merged), row(UNMERGED_QUANTISED, unmerged))
    packed = outputs(*rows, packing_asked=True)
    assert verdicts(checks.output_checks(packed, "bfloat16"))[f"kl ({QUANTISED})"] == verdict
    by_itself = verdicts(checks.output_checks(outputs(*rows), "bfloat16"))[f"kl ({QUANTISED})"]
    assert by_itself == ("warning" if verdict == "fails" else verdict)


def test_four_bits_that_cannot_be_tried_fail_where_they_were_asked_for_and_are_not_judged_else():
    found = checks.output_checks(outputs(row(RELOADED), not_packed="bitsandbytes is not installed"), "float32")
    assert verdicts(found)[f"kl ({QUANTISED})"] == "not judged"
    asked = outputs(row(RELOADED), not_packed="no kernel image is available", packing_asked=True)
    assert verdicts(checks.output_checks(asked, "float32"))[f"kl ({QUANTISED})"] == "fails"
    broken = outputs(row(RELOADED), row(QUANTISED, nonfinite=3))
    assert "fails" not in verdicts(checks.output_checks(broken, "float32")).values()


def test_float32_logits_may_differ_by_a_hundred_thousandth():
    for relative, verdict in ((0.9e-5, "holds"), (1.1e-5, "fails")):
        found = checks.output_checks(outputs(row(RELOADED, 0.0, relative)), "float32")
        assert verdicts(found)[f"relative-difference ({RELOADED})"] == verdict
    assert not any("relative-difference" in check.name for check in checks.output_checks(outputs(row(RELOADED)), "bfloat16"))


def test_where_float32_itself_costs_more_the_unmerged_adapter_is_the_measure():
    for relative, exact, verdict in ((3e-5, 1e-5, "holds"), (5e-5, 1e-5, "fails"), (3e-5, 1e-7, "fails")):
        rows = (row(RELOADED, 0.0, relative), row(UNMERGED_FLOAT64, 0.0, exact))
        found = checks.output_checks(outputs(*rows), "float32")
        assert verdicts(found)[f"relative-difference ({RELOADED})"] == verdict


def test_that_there_was_no_room_to_measure_float32_is_said():
    found = checks.output_checks(outputs(row(RELOADED, 0.0, 3e-5), no_float64="1 GB is free"), "float32")
    (check,) = [one for one in found if one.name == f"relative-difference ({RELOADED})"]
    assert check.verdict == "fails"
    assert check.says.endswith("what float32 itself costs was not measured: 1 GB is free")


def test_that_the_comparison_ended_before_float32_was_measured_is_said():
    stopped = "memory ran out (while the merged model was run)"
    found = checks.output_checks(outputs(row(RELOADED, 0.0, 3e-5), stopped=stopped), "float32")
    (check,) = [one for one in found if one.name == f"relative-difference ({RELOADED})"]
    assert check.says.endswith(f"what float32 itself costs was not measured: {stopped}")


def test_the_disk_must_give_back_the_bits_that_were_in_memory():
    rows = (row(RELOADED), row(IN_MEMORY), row(RELOADED, 0.0, 1e-9, against=IN_MEMORY))
    for names, verdict in (((), "holds"), (("h.0.q.weight",), "fails")):
        found = checks.output_checks(outputs(*rows, reloaded_otherwise=names), "bfloat16")
        assert verdicts(found)["reloaded-equals-memory"] == verdict
    assert "reloaded-equals-memory" not in verdicts(checks.output_checks(outputs(row(RELOADED)), "bfloat16"))


def test_models_that_cannot_be_run_or_answer_nan_fail():
    assert verdicts(checks.output_checks(outputs(unloadable="no config.json"), "float32")) == {"loads": "fails"}
    assert verdicts(checks.output_checks(outputs(new_parameters=("a",)), "float32")) == {"loads": "fails"}
    assert verdicts(checks.output_checks(outputs(row(RELOADED, nonfinite=3)), "float32"))["logits-finite"] == "fails"


def test_inputs_that_do_not_see_the_adapter_are_told():
    assert checks.effect_check(outputs(), row(BASE, 1e-3, 1e-2)).verdict == "holds"
    assert checks.effect_check(outputs(), row(BASE, 0.0, 1e-8)).verdict == "warning"
    assert checks.effect_check(outputs(row(UNMERGED, 0.0, 2e-2)), row(BASE, 1e-3, 1e-2)).verdict == "warning"


def test_without_models_a_comparison_that_was_asked_for_fails_and_another_is_a_warning():
    assert checks.tensors_only_check("no room", "the task's score").verdict == "fails"
    assert checks.tensors_only_check("no room", None).verdict == "warning"


def test_an_adapter_has_to_be_whole_and_to_fit():
    assert verdicts(checks.adapter_checks([], [], [], 2)) == {"adapter-whole": "holds", "adapter-fits": "holds"}
    assert verdicts(checks.adapter_checks(["NaN"], [], [], 2))["adapter-whole"] == "fails"
    for nowhere in ((["a"], [], 2), ([], ["a is [1]"], 2), ([], [], 0)):
        assert verdicts(checks.adapter_checks([], *nowhere))["adapter-fits"] == "fails"


def test_a_copy_of_the_base_that_is_not_the_base_fails():
    assert checks.copies_check([], 0) is None
    assert checks.copies_check([], 1).verdict == "holds"
    assert checks.copies_check(["h.0.q.weight"], 1).verdict == "fails"


def test_another_revision_fails():
    adapter = {"revision": "abcdef1", "base_model_name_or_path": "lab/model"}
    assert checks.revision_check(adapter, "lab/model", None, False).verdict == "fails"
    assert checks.revision_check(adapter, "lab/model", "abcdef1", False).verdict == "holds"
    assert checks.revision_check(adapter, "lab/model", None, True).verdict == "not judged"
    assert checks.revision_check(adapter, "lab/mirror", None, False).verdict == "not judged"
    assert checks.revision_check({}, "lab/model", None, False).verdict == "not judged"


@pytest.mark.parametrize(
    ("trained", "revision", "commit", "verdict"),
    [
        ("abcdef1", "abcdef1", "abcdef1" + 33 * "0", "holds"),
        ("abcdef1", None, "abcdef2" + 33 * "0", "fails"),
        ("abcdef1", "main", "abcdef2" + 33 * "0", "fails"),
        ("main", "main", "abcdef1" + 33 * "0", "not judged"),
        ("v1.0", "v1.0", None, "not judged"),
        ("v1.0", None, "abcdef1" + 33 * "0", "fails"),
    ],
)
def test_a_commit_tells_the_base_and_a_branch_does_not(trained, revision, commit, verdict):
    adapter = {"revision": trained, "base_model_name_or_path": "lab/model"}
    assert checks.revision_check(adapter, "lab/model", revision, False, commit).verdict == verdict


def test_another_checksum_fails():
    assert checks.base_check("a", "b", "").verdict == "fails"
    assert checks.base_check("a", "a", "").verdict == "holds"
    assert checks.base_check(None, "a", "not told").verdict == "not judged"


def test_a_merged_model_without_a_score_has_not_the_same_one():
    task = SimpleNamespace(eval=[None] * 8, metric_names=("accuracy",))
    inputs = Inputs([], "SEQ_CLS", "task", 8, task=task)
    for scores, verdict in (({"accuracy": 0.75}, "holds"), ({"accuracy": 0.5}, "warning"), ({}, "warning")):
        found = Outputs(inputs, [row(BASE, 0.5, 0.1), row(RELOADED, scores=scores)], {"accuracy": 0.75})
        assert verdicts(checks.output_checks(found, "bfloat16"))["score"] == verdict
    for why in ("stopped", "unscored"):
        assert "score" not in verdicts(checks.output_checks(replace(found, **{why: "memory ran out"}), "bfloat16"))
