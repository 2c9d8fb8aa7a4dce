"""What the models answer: the reference is the adapter as PEFT runs it, and everything else is compared with it."""

import pytest
from peft import PeftModel

from lorascope.certify.outputs import BASE, REFERENCE, RELOADED, UNMERGED, compare_outputs
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


def test_a_merged_model_that_cannot_be_loaded_is_a_result_and_no_error(scene):
    made = scene("gpt2")
    (made.merged / "config.json").unlink()
    outputs = compare_outputs(made.claim(), None, EvaluateConfig())
    assert outputs.unloadable is not None
    assert outputs.find(RELOADED) is None
