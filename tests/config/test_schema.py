"""What a section of the study file takes."""

import pytest

from lorascope.config import (
    AdapterConfig,
    BaseModelConfig,
)

MINIMAL = "name: a\nbase: {model: gpt2}\ntask: {name: sst2, data: x}\n"


def test_a_minimal_study_has_the_documented_defaults(load):
    study = load(MINIMAL)
    assert study.seeds == [42, 1337, 2024]
    assert (study.adapter.r, study.adapter.alpha, study.adapter.targets) == (8, 16, ["query", "value"])
    assert (study.train.warmup_ratio, study.train.schedule, study.train.base_dropout) == (0.06, "linear", False)
    assert study.design.kind == "list"


@pytest.mark.parametrize(
    ("given", "alpha"), [("2r", 16.0), ("1r", 8.0), ("0.5r", 4.0), (32, 32.0), ("32", 32.0), ("1.6e1", 16.0)]
)
def test_lora_alpha_is_a_number_or_a_multiple_of_r(given, alpha):
    adapter = AdapterConfig(r=8, lora_alpha=given)
    assert adapter.alpha == alpha
    assert adapter.scaling == alpha / 8
    assert AdapterConfig(r=16, lora_alpha=given, use_rslora=True).scaling == AdapterConfig(r=16, lora_alpha=given).alpha / 4


def test_a_multiple_of_r_follows_the_rank():
    assert [AdapterConfig(r=r).alpha for r in (4, 8, 16)] == [8, 16, 32]


def test_quantization_is_nf4_or_nothing_and_not_from_float64(refusal):
    base = BaseModelConfig(model="gpt2", quantization="nf4")
    assert (base.quantization, BaseModelConfig(model="gpt2").quantization) == ("nf4", None)
    text = MINIMAL.replace("base: {", "base: {dtype: float64, quantization: nf4, ")
    assert text != MINIMAL
    assert 'base.quantization = "nf4": needs dtype float32 or bfloat16, not float64' in refusal(text)
    assert "base.quantization" in refusal(text.replace("nf4", "int3"))
