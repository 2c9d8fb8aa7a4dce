"""Drift of hidden states, against the formulas on every token's states at once."""

import math

import peft
import pytest
import torch

from lorascope.adapter import stack_beside_base
from lorascope.base_model import BaseModel, head_modules
from lorascope.config import EvaluateConfig
from lorascope.data.task import Example, Task
from lorascope.errors import AdapterError
from lorascope.evaluate import representations
from lorascope.evaluate.representations import representation_drift
from lorascope.lora.peft_io import read_adapter
from lorascope.lora.targets import resolve

FAMILIES = {"bert": "SEQ_CLS", "gpt2": "CAUSAL_LM", "llama": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM", "bart": "SEQ_2_SEQ_LM"}
ROWS = [[5, 9, 33, 71, 12, 4], [8, 90, 14], [7, 7, 21, 60, 61, 62, 63, 64, 65], [3, 2, 99, 101]]
TARGETS = [[9, 8, 7, 1], [40, 1], [12, 13, 14, 15, 16, 1], [77, 78, 1]]


def base_of(model, task_type):
    model.config.pad_token_id = 0
    return BaseModel(model, None, task_type, head_modules(model, task_type), (), "", plain_head=True)


def task_of(task_type):
    examples = []
    for index, (ids, target) in enumerate(zip(ROWS, TARGETS, strict=True)):
        is_target = [True] * len(ids) if task_type == "CAUSAL_LM" else None
        label = 0 if task_type == "SEQ_CLS" else None
        target_ids = target if task_type == "SEQ_2_SEQ_LM" else None
        examples.append(Example(str(index), ids, is_target, label, 1, target_ids=target_ids))
    return Task("made", task_type, (), [], examples, "validation", "", "", [], False, ())


def write_peft(directory, model, task_type, seed=1, scale=0.3, bias="none", targets=("query", "down")):
    """An adapter with random numbers by PEFT alone; the model stays wrapped."""
    names = sorted({target.module for target in resolve(model, list(targets), head_modules(model, task_type))})
    config = peft.LoraConfig(
        task_type=task_type, r=3, target_modules=names, init_lora_weights=False, bias=bias,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )  # fmt: skip
    wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.copy_(scale * noise + (parameter if name.endswith("bias") else 0.0))
    wrapped.save_pretrained(directory)
    return wrapped


def drifts_of(base, adapters, task, **settings):
    stack = stack_beside_base(base, adapters)
    run = representation_drift(stack, base, task, EvaluateConfig(**settings))
    steps = []
    while True:
        try:
            steps.append(next(run))
        except StopIteration as stop:
            stack.detach()
            return stop.value, steps


@torch.no_grad()
def states_of(model, task_type):
    """Every layer's states ``[tokens, D]``, one unpadded row at a time, by transformers alone."""
    layers = {}
    for ids, target in zip(ROWS, TARGETS, strict=True):
        inputs = {"input_ids": torch.tensor([ids])}
        if task_type == "SEQ_2_SEQ_LM":
            inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id, *target[:-1]]])
        output = model(**inputs, output_hidden_states=True)
        if task_type == "SEQ_2_SEQ_LM":
            sides = {"encoder ": output.encoder_hidden_states, "decoder ": output.decoder_hidden_states}
        else:
            sides = {"": output.hidden_states}
        for prefix, hidden in sides.items():
            for number, states in enumerate(hidden):
                name = f"{prefix}{'embeddings' if number == 0 else f'layer {number - 1}'}"
                layers.setdefault(name, []).append(states[0])
    return {name: torch.cat(states) for name, states in layers.items()}


def linear_cka(x, y):
    """Kornblith et al. 2019, by its definition from n × n Gram matrices."""
    centring = torch.eye(len(x), dtype=x.dtype) - 1.0 / len(x)
    gram_x, gram_y = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    return float((gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm()))


def debiased_cka(x, y):
    """Song et al. 2012, equation 5, from n × n Gram matrices without their diagonals."""

    def estimate(one, other):
        n = len(one)
        grams = (one @ one.T, other @ other.T)
        k, m = (gram - torch.diag(gram.diag()) for gram in grams)
        whole = k.sum() * m.sum() / ((n - 1) * (n - 2))
        return float((k * m).sum() + whole - 2 * k.sum(0) @ m.sum(1) / (n - 2)) / (n * (n - 3))

    return estimate(x, y) / math.sqrt(estimate(x, x) * estimate(y, y))


@pytest.mark.parametrize("bias", ["none", "lora_only"])
@pytest.mark.parametrize("family", FAMILIES)
def test_drift_is_that_of_the_states_that_peft_and_transformers_give(family, bias, tiny_model, tmp_path):
    task_type = FAMILIES[family]
    plain = states_of(tiny_model(family, task_type), task_type)
    adapted = states_of(write_peft(tmp_path, tiny_model(family, task_type), task_type, bias=bias).eval(), task_type)
    base = base_of(tiny_model(family, task_type), task_type)
    (found,), _ = drifts_of(base, {"one": read_adapter(tmp_path)}, task_of(task_type))
    assert [drift.layer for drift in found] == list(plain)
    for drift in found:
        before, after = plain[drift.layer], adapted[drift.layer]
        distance = (after - before).norm(dim=1)
        assert drift.num_tokens == len(before)
        assert drift.cka == pytest.approx(linear_cka(after, before), rel=1e-9)
        assert drift.cka_debiased == pytest.approx(debiased_cka(after, before), rel=1e-6)
        assert drift.width == before.shape[1]
        assert drift.relative_norm == pytest.approx(float((distance / before.norm(dim=1)).mean()), rel=1e-9)
        assert drift.relative_norm_overall == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-9)
    assert found[-1].relative_norm > 1e-3
    assert found[-1].cka < 1.0


def test_an_adapter_that_changes_nothing_moves_nothing(tiny_model, tmp_path):
    write_peft(tmp_path, tiny_model("gpt2", "CAUSAL_LM"), "CAUSAL_LM", scale=0.0)
    base = base_of(tiny_model("gpt2", "CAUSAL_LM"), "CAUSAL_LM")
    (found,), _ = drifts_of(base, {"a": read_adapter(tmp_path)}, task_of("CAUSAL_LM"))
    for drift in found:
        assert (drift.relative_norm, drift.relative_norm_overall) == (0.0, 0.0)
        assert drift.cka == pytest.approx(1.0, rel=1e-12)
        assert drift.cka_debiased == pytest.approx(1.0, rel=1e-9)


def test_neither_padding_nor_passes_nor_neighbours_change_the_drift(tiny_model, tmp_path, monkeypatch):
    for index in range(2):
        write_peft(tmp_path / str(index), tiny_model("bert"), "SEQ_CLS", seed=index)
    adapters = {name: read_adapter(tmp_path / name) for name in ("0", "1")}
    base, task = base_of(tiny_model("bert"), "SEQ_CLS"), task_of("SEQ_CLS")
    together, steps = drifts_of(base, adapters, task)
    assert (len(steps), steps[-1].done, steps[-1].total) == (1, 4, 4)
    alone, steps = drifts_of(base, {"1": adapters["1"]}, task, batch_tokens=1)
    assert len(steps) == 4
    monkeypatch.setattr(representations, "_PRODUCT_SHARE", 0.0)
    by_layer, steps = drifts_of(base, adapters, task)
    assert (len(steps), steps[-1].done, steps[-1].total) == (3, 12, 12)
    assert len(together) == len(by_layer) == 2
    for expected, *others in zip(together[1], alone[0], by_layer[1], strict=True):
        for other in others:
            assert (other.layer, other.num_tokens) == (expected.layer, expected.num_tokens)
            assert (other.cka, other.relative_norm) == pytest.approx((expected.cka, expected.relative_norm), rel=1e-9)
            assert other.cka_debiased == pytest.approx(expected.cka_debiased, rel=1e-7)
    assert together[0][-1].cka != together[1][-1].cka


def test_states_that_do_not_vary_have_no_alignment():
    states_NMD = torch.ones(2, 5, 3)
    products = representations._Products(states_NMD)
    products.add(states_NMD)
    drift = products.drift(0, "embeddings")
    assert (drift.cka, drift.cka_debiased, drift.relative_norm, drift.num_tokens) == (None, None, 0.0, 5)


def test_centring_does_not_cancel_where_states_are_far_from_zero():
    generator = torch.Generator().manual_seed(1)
    before = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    after = before + 0.5 * torch.randn(60, 4, generator=generator, dtype=torch.float64)
    products = representations._Products(torch.stack([after, before])[:, :20] + 1e6)
    for part in torch.stack([after, before]).split(20, dim=1):
        products.add(part + 1e6)
    drift = products.drift(0, "x")
    assert drift.cka == pytest.approx(linear_cka(after, before), rel=1e-7)
    assert drift.cka_debiased == pytest.approx(debiased_cka(after, before), rel=1e-7)


def test_debiased_alignment_of_unrelated_states_is_nothing_where_the_plain_one_is_not():
    """Few tokens of many dimensions: any two states look alike to the plain figure."""
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(30):
        states_NMD = torch.randn(2, 24, 64, generator=generator, dtype=torch.float64)
        products = representations._Products(states_NMD)
        products.add(states_NMD)
        found.append(products.drift(0, "x"))
    assert sum(drift.cka for drift in found) / 30 > 0.5
    assert abs(sum(drift.cka_debiased for drift in found) / 30) < 0.05
    few = representations._Products(states_NMD[:, :3])
    few.add(states_NMD[:, :3])
    assert few.drift(0, "x").cka_debiased is None


def test_states_that_are_not_finite_are_an_error_that_names_the_adapter(tiny_model, tmp_path):
    write_peft(tmp_path, tiny_model("bert"), "SEQ_CLS", scale=1e200)
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    with pytest.raises(AdapterError, match="broken: hidden states of layer 0 are not finite"):
        drifts_of(base, {"broken": read_adapter(tmp_path)}, task_of("SEQ_CLS"))


def test_the_base_is_left_as_it_was(tiny_model, tmp_path):
    write_peft(tmp_path, tiny_model("bert"), "SEQ_CLS")
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    drifts_of(base, {"one": read_adapter(tmp_path)}, task_of("SEQ_CLS"))
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert math.isfinite(float(sum(value.double().sum() for value in after.values())))
