"""Figures from the factors equal those of PEFT's whole update in float64, over everything that PEFT's files may hold."""

import math

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from lorascope.analysis.updates import adapter_document, places_of, read_adapters
from lorascope.errors import AdapterError
from lorascope.lora.targets import resolve

FAMILIES = {"bert": "SEQ_CLS", "gpt2": "CAUSAL_LM", "phi3": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}  # gpt2, phi3: fused
CASES = ("random", "ill-conditioned", "low-rank", "zero", "bf16")
R = 6


def fill(wrapped, case, seed=1):
    """Numbers for the factors of every module."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" not in name:
                continue
            value = normal(parameter.shape)
            if case == "ill-conditioned":  # singular values over eight orders of magnitude
                sizes = 10.0 ** -torch.linspace(0.0, 4.0, max(len(value), 2), dtype=torch.float64)[: min(parameter.shape)]
                value = sizes[:, None] * value if "lora_A" in name else value * sizes
            if case == "low-rank" and "lora_A" in name:
                value[2:] = normal((len(value) - 2, 2)) @ value[:2]
            if case == "zero" and "lora_B" in name:
                value.zero_()
            parameter.copy_(value.bfloat16().double() if case == "bf16" else value)


def dense_figures(update):
    """By their definitions, from the whole matrix."""
    values = torch.linalg.svdvals(update)
    if float(values.max()) == 0.0:
        return values, 0.0, 0.0, []
    shares = values / values.sum()
    effective_rank = math.exp(-float(torch.xlogy(shares, shares).sum()))
    energy = (values.square().cumsum(0) / values.square().sum()).tolist()
    return values, effective_rank, float(values.square().sum() / values.max() ** 2), energy


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_figures_of_an_adapter_that_peft_wrote_are_those_of_its_dense_updates(family, case, use_rslora, tiny_model, tmp_path):
    model = tiny_model(family, FAMILIES[family])
    names = sorted({target.module for target in resolve(model, ["query", "output", "down"], ("classifier",))})
    config = peft.LoraConfig(
        task_type=FAMILIES[family], r=R, lora_alpha=7, target_modules=names, use_rslora=use_rslora,
        rank_pattern={names[0]: 2}, alpha_pattern={names[1]: 3}, init_lora_weights=False, fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    fill(wrapped, case)
    wrapped.save_pretrained(tmp_path)
    if case == "bf16":
        path = tmp_path / "adapter_model.safetensors"
        save_file({key: value.bfloat16() for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
    (one,) = read_adapters([tmp_path])
    rows = {row["module"]: row for row in adapter_document(one, places_of(one.modules))["modules"]}
    assert sorted(rows) == names
    for name in names:
        update = wrapped.get_submodule(f"base_model.model.{name}").get_delta_weight("default").detach()
        row = rows[name]
        values, effective_rank, stable_rank, energy = dense_figures(update)
        kept = len(row["singular_values"])
        # Both lose what lies fifteen digits below the largest, and agree to a millionth of every value that they keep.
        torch.testing.assert_close(
            torch.tensor(row["singular_values"], dtype=torch.float64),
            values[:kept],
            rtol=1e-6,
            atol=1e-15 * float(values.max()),
        )
        assert row["effective_rank"] == pytest.approx(effective_rank, rel=1e-6)
        assert row["stable_rank"] == pytest.approx(stable_rank, rel=1e-6)
        assert row["energy"] == pytest.approx(energy[:kept], rel=1e-6)
        assert row["norm"] == pytest.approx(float(update.norm()), rel=1e-6)
        assert row["mean"] == pytest.approx(float(update.mean()), rel=1e-6, abs=1e-14 * float(values.max()))
        assert row["std"] == pytest.approx(float(update.std(correction=0)), rel=1e-6)
        assert row["r"] == (2 if name == names[0] else R)
        # In bfloat16 the weakest of six directions of sixteen may lie within its rounding.
        if case == "bf16":
            assert int((values > row["rounding"]).sum()) <= row["numerical_rank"] <= row["r"]
        else:
            assert row["numerical_rank"] == {"zero": 0, "low-rank": 2}.get(case, row["r"])
        assert row["dtype"] == ("bfloat16" if case == "bf16" else "float64")


def test_rank_three_inside_sixteen_is_three_in_every_dtype_that_peft_saves(tiny_model, tmp_path):
    model = tiny_model("bert")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=16, target_modules=["query", "value"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_A" in name:
                mixing, rows = (torch.randn(shape, generator=generator) for shape in ((16, 3), (3, parameter.shape[1])))
                parameter.copy_(mixing @ rows)
    for dtype in (torch.float32, torch.bfloat16):
        wrapped.to(dtype).save_pretrained(tmp_path / str(dtype))
        (one,) = read_adapters([tmp_path / str(dtype)])
        rows = adapter_document(one, places_of(one.modules))["modules"]
        assert [(row["r"], row["numerical_rank"], row["dtype"]) for row in rows] == [(16, 3, str(dtype)[6:])] * 4


OTHERS = {
    "dora": ({"use_dora": True}, "of B·A, to which the adapter adds a trained magnitude"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "lora bias": ({"lora_bias": True}, "left out: 4 × lora_B.bias"),
    "embeddings": ({"target_modules": ["query", "word_embeddings"]}, None),
}


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT takes a bias of lora_B for a factor of an odd shape
@pytest.mark.parametrize("kind", OTHERS)
def test_factors_of_kinds_that_cannot_be_run_here_are_read_and_what_they_do_not_tell_is_said(kind, tiny_model, tmp_path):
    options, told = OTHERS[kind]
    values = {
        "task_type": "SEQ_CLS",
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["query", "value"],
        "init_lora_weights": False,
    }
    model = tiny_model("bert", dtype=torch.float32)  # PEFT initialises PiSSA in no wider dtype
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**(values | options)), autocast_adapter_dtype=False)
    if kind != "pissa":
        fill(wrapped, "random")
    wrapped.save_pretrained(tmp_path)
    (one,) = read_adapters([tmp_path])
    document = adapter_document(one, places_of(one.modules))
    assert told is None or any(told in warning for warning in document["warnings"])
    assert told is not None or document["warnings"] == []
    for row in document["modules"]:
        update = wrapped.get_submodule(f"base_model.model.{row['module']}").get_delta_weight("default").detach()
        assert row["norm"] == pytest.approx(float(update.double().norm()), rel=1e-5)
        assert row["mean"] == pytest.approx(float(update.double().mean()), rel=1e-5, abs=1e-6 * row["norm"])
    with pytest.raises(AdapterError):
        read_adapters([tmp_path], factors_only=False)
