"""What the models answer: the reference is the adapter as PEFT runs it, and everything else is compared with it."""

import json

import pytest
from peft import PeftModel

from lorascope.certify.outputs import (
    BASE,
    IN_MEMORY,
    QUANTISED,
    REFERENCE,
    RELOADED,
    UNMERGED,
    UNMERGED_FLOAT64,
    UNMERGED_QUANTISED,
    _Comparison,
    compare_outputs,
)
from lorascope.config import EvaluateConfig

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("family", "dtype"), [("bert", "bfloat16"), ("gpt2", "float32")])
def test_the_unmerged_dtype_is_a_row_of_its_own_unless_it_is_the_reference_s(scene, family, dtype):
    made = scene(family, "large", dtype)
    outputs = compare_outputs(made.claim(), None, EvaluateConfig())
    names = [row.name for row in outputs.rows]
    assert names == [BASE, *([] if dtype == "float32" else [UNMERGED]), RELOADED]
    assert all(row.against == REFERENCE for row in outputs.rows)
    assert outputs.find(BASE).difference.kl > 100 * outputs.find(RELOADED).difference.kl
    assert outputs.unloadable is None
    assert outputs.new_parameters == ()


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_a_model_that_is_the_adapter_in_peft_does_not_differ_from_the_reference(scene, family):
    made = scene(family)
    adapted = PeftModel.from_pretrained(made.load(), str(made.adapter)).eval()
    outputs = compare_outputs(made.claim(in_memory=lambda: adapted), None, EvaluateConfig())
    assert outputs.find("merged in memory").difference.relative_difference < 1e-6


def test_nothing_is_repaired_for_the_merged_model(scene):
    made = scene("gpt2-classifier")
    assert compare_outputs(made.claim(), None, EvaluateConfig()).unloadable is None
    made.configure(pad_token_id=None)
    assert "padding token" in compare_outputs(made.claim(), None, EvaluateConfig()).unloadable
    made.configure(pad_token_id=7)
    outputs = compare_outputs(made.claim(), None, EvaluateConfig())
    assert outputs.find(RELOADED).difference.relative_difference > 0.01


def test_a_classifier_whose_tokenizer_cannot_pad_is_no_use(scene):
    made = scene("gpt2-classifier")
    path = made.merged / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}))
    assert "has no pad token" in compare_outputs(made.claim(), None, EvaluateConfig()).unloadable


def test_a_tensor_that_loaders_make_up_is_told(scene):
    made = scene("llama")
    made.edit(lambda tensors: tensors.__delitem__("model.norm.weight"))
    assert compare_outputs(made.claim(), None, EvaluateConfig()).new_parameters == ("model.norm.weight",)


def test_an_adapter_trained_in_four_bits_is_compared_in_them_without_being_asked(scene):
    pytest.importorskip("bitsandbytes")
    made = scene("llama")
    outputs = compare_outputs(made.claim(trained_in="nf4"), None, EvaluateConfig())
    assert (outputs.packing_asked, outputs.not_packed) == (False, None)
    assert outputs.find(QUANTISED).difference.kl > 0
    in_full = outputs.find(RELOADED, UNMERGED_QUANTISED)
    assert 0 < in_full.difference.kl < outputs.find(BASE).difference.kl


def test_without_bitsandbytes_the_four_bits_that_nobody_asked_for_are_left_out_and_told(scene, monkeypatch):
    monkeypatch.setattr("lorascope.certify.outputs.find_spec", lambda name: None)
    outputs = compare_outputs(scene("llama").claim(trained_in="nf4"), None, EvaluateConfig())
    assert "bitsandbytes is not installed" in outputs.not_packed
    assert outputs.find(QUANTISED) is None


def test_what_float32_costs_is_measured_where_either_merge_is_far_off_or_it_is_said_why_not(scene, monkeypatch):
    made = scene("llama", "small")
    shifted = made.load()
    shifted.lm_head.weight.data += 1e-3
    claim = made.claim(in_memory=lambda: shifted)
    outputs = compare_outputs(claim, None, EvaluateConfig())
    assert (
        outputs.find(RELOADED).difference.relative_difference < 1e-5 < outputs.find(IN_MEMORY).difference.relative_difference
    )
    assert outputs.find(UNMERGED_FLOAT64) is not None
    monkeypatch.setattr("lorascope.certify.outputs.why_tensors_only", lambda model, device, copies: "1 GB is free")
    outputs = compare_outputs(claim, None, EvaluateConfig())
    assert (outputs.find(UNMERGED_FLOAT64), outputs.no_float64) == (None, "1 GB is free")


def test_a_model_that_does_not_run_in_float64_is_judged_without_and_that_is_told(scene, monkeypatch):
    made = scene("mixtral")  # whose experts have no such kernel in torch 2.13
    made.reweigh(lambda name: 1.01)
    unmerged = _Comparison.unmerged

    def runs_in_float32(self, saved, reference, kind, name):
        if kind == "float64":
            raise RuntimeError("Expected mat_a to be Float32, got Double")
        return unmerged(self, saved, reference, kind, name)

    monkeypatch.setattr(_Comparison, "unmerged", runs_in_float32)
    outputs = compare_outputs(made.claim(), None, EvaluateConfig())
    assert outputs.find(RELOADED).difference.relative_difference > 1e-5
    assert outputs.no_float64 == "the model does not run in float64 (Expected mat_a to be Float32, got Double)"


def test_a_merged_model_that_cannot_be_loaded_is_a_result_and_no_error(scene):
    made = scene("gpt2")
    (made.merged / "config.json").unlink()
    outputs = compare_outputs(made.claim(), None, EvaluateConfig())
    assert outputs.unloadable is not None
    assert outputs.find(RELOADED) is None


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(
    "error", [RuntimeError("no kernel image is available"), ImportError("no bitsandbytes"), MemoryError()]
)
def test_four_bits_that_cannot_be_run_leave_what_was_measured(asked, error, scene, monkeypatch):
    unmerged = _Comparison.unmerged

    def fails(self, saved, reference, kind, name):
        if kind == "nf4":
            raise error
        return unmerged(self, saved, reference, kind, name)

    monkeypatch.setattr(_Comparison, "unmerged", fails)
    monkeypatch.setattr("lorascope.certify.outputs.find_spec", lambda name: name)
    claim = scene("llama").claim(quantise=True) if asked else scene("llama").claim(trained_in="nf4")
    outputs = compare_outputs(claim, None, EvaluateConfig())
    assert (outputs.stopped, outputs.find(RELOADED) is not None) == (None, True)
    reason = "memory ran out" if isinstance(error, MemoryError) else str(error)
    assert outputs.not_packed.startswith("four bits were asked for" if asked else "the adapter was trained in four bits")
    assert outputs.not_packed.endswith(f"cannot be run here: {reason}")


def test_a_step_that_fails_is_named_and_what_came_before_it_is_kept(scene, monkeypatch):
    def fails(self, saved, reference, kind, name):
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(_Comparison, "unmerged", fails)
    outputs = compare_outputs(scene("bert", "large", "bfloat16").claim(), None, EvaluateConfig())
    assert outputs.stopped == "no such kernel (while the adapter was run unmerged in bfloat16)"
    assert [row.name for row in outputs.rows] == [BASE]
    assert not outputs.reached_the_disk
