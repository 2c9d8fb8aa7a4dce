"""Invariant 5: an exported adapter loaded by PEFT gives the same logits, and PEFT's own adapters load here."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file

from lorascope.base_model import head_modules
from lorascope.errors import AdapterError
from lorascope.lora.peft_io import check_fits, peft_parameters, read_adapter, write_adapter
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.plan import parameters

FAMILIES = [(f, "SEQ_CLS") for f in ("gpt2", "bert", "distilbert", "roberta", "llama", "qwen2")] + [
    (f, "CAUSAL_LM") for f in ("gpt2", "llama", "qwen2", "phi3")
]
FAMILIES += [(f, "SEQ_2_SEQ_LM") for f in ("t5", "gated-t5", "bart")]
CASES = {
    "query": (["query"], {}),
    "query and value": (["query", "value"], {}),
    "slices and whole layers": (["query", "key", "value", "down"], {}),
    "rslora": (["query", "value", "up"], {"use_rslora": True}),
    "lora_only": (["query", "value"], {"bias": "lora_only"}),
    "all biases": (["query", "output"], {"bias": "all"}),
    "all linear": ("all-linear", {"bias": "all", "dropout": 0.1}),
}
IDS = torch.tensor([[5, 9, 33, 71, 12, 4], [8, 90, 14, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])


def logits_of(model):
    model.config.pad_token_id = 0
    with torch.no_grad():
        output = model(**inputs_of(model)).logits
    return masked(output, model)


def masked(output, model):
    return output * MASK[..., None] if output.dim() == 3 and not model.config.is_encoder_decoder else output


def inputs_of(model, times=1):
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = IDS[:, 1:5]
    return {name: value.repeat(times, 1) for name, value in inputs.items()}


def random_stack(model, case, task_type):
    """Two slots with random numbers everywhere; the second is the one to export."""
    targets, more = CASES[case]
    heads = head_modules(model, task_type)
    scaling = 12 / (3**0.5 if more.get("use_rslora") else 3)
    placements = tuple(Placement(target, 3, scaling) for target in resolve(model, targets, heads))
    slots = [Slot("first", 1, placements[:1]), Slot("second", 2, placements, **more)]
    stack = Stack(model, slots, heads)
    weights = stack.read(1)
    generator = torch.Generator().manual_seed(1)
    for group in (weights.lora_B, weights.biases, weights.heads):
        for value in group.values():
            value += 0.2 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    stack.write(1, weights)
    return stack, slots[1], heads


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("family", "task_type"), FAMILIES)
def test_an_exported_adapter_gives_peft_the_same_logits(family, task_type, case, tiny_model, tmp_path):
    model = tiny_model(family, task_type)
    stack, slot, heads = random_stack(model, case, task_type)
    with torch.no_grad():
        both = model(**inputs_of(model, 2)).logits if pad(model) else None
    ours = masked(both[2:], model)
    write_adapter(tmp_path, stack.read(1), slot, model, heads=heads, base_model="", task_type=task_type)
    stack.detach()
    base_logits = logits_of(model)
    expected_total = parameters(model, slot, heads)[2]

    wrapped = peft.PeftModel.from_pretrained(tiny_model(family, task_type), str(tmp_path), autocast_adapter_dtype=False)
    theirs = logits_of(wrapped.eval())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert (ours - base_logits).abs().max() > 1e-3
    assert wrapped.get_nb_trainable_parameters()[1] == expected_total
    # PEFT writes back just the keys that were written here.
    wrapped.save_pretrained(tmp_path / "again")
    again = {k for k in load_file(tmp_path / "again" / "adapter_model.safetensors") if "original_module" not in k}
    assert again == set(load_file(tmp_path / "adapter_model.safetensors"))


def pad(model):
    model.config.pad_token_id = 0
    return True


@pytest.mark.parametrize(("family", "task_type"), FAMILIES)
@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_an_adapter_that_peft_wrote_gives_the_same_logits_here(family, task_type, bias, tiny_model, tmp_path):
    reference = tiny_model(family, task_type)
    names = {t.module for t in resolve(reference, ["query", "down"], head_modules(reference, task_type))}
    config = peft.LoraConfig(
        task_type=task_type, r=4, lora_alpha=7, target_modules=sorted(names), bias=bias, use_rslora=bias == "all",
        rank_pattern={min(names): 2}, alpha_pattern={max(names): 3}, init_lora_weights=False,
        fan_in_fan_out=family == "gpt2", modules_to_save=list(head_modules(reference, task_type)) or None,
    )  # fmt: skip
    wrapped = peft.get_peft_model(reference, config, autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    expected = logits_of(wrapped)
    wrapped.save_pretrained(tmp_path)

    model = tiny_model(family, task_type)
    saved = read_adapter(tmp_path)
    check_fits(saved, model, str(tmp_path))
    stack = Stack(model, [saved.slot], head_modules(model, task_type))
    stack.write(0, saved.weights)
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-10)
    stack.detach()
    assert saved.slot.bias == bias


def test_k_slices_of_a_fused_projection_export_with_rank_and_alpha_times_k(tiny_model, tmp_path):
    model = tiny_model("gpt2", "CAUSAL_LM")
    for roles, factor in ((["query"], 1), (["query", "value"], 2), (["query", "key", "value"], 3)):
        placements = tuple(Placement(target, 8, 2.0) for target in resolve(model, roles, ()))
        slot = Slot("s", 1, placements)
        stack = Stack(model, [slot])
        write_adapter(tmp_path, stack.read(0), slot, model, heads=(), base_model="", task_type="CAUSAL_LM")
        stack.detach()
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (8 * factor, 16 * factor)
        assert config["target_modules"] == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
        assert peft_parameters(model, slot) == 2 * 8 * factor * (16 + 48)


def damaged(tmp_path, tiny_model, change):
    model = tiny_model("gpt2", "CAUSAL_LM")
    slot = Slot("s", 1, tuple(Placement(target, 2, 1.0) for target in resolve(model, ["c_attn"], ())))
    stack = Stack(model, [slot])
    weights = stack.read(0)
    stack.detach()
    change(weights)
    write_adapter(tmp_path, weights, slot, model, heads=(), base_model="", task_type="CAUSAL_LM")
    return model


def test_a_nan_in_the_file_is_named(tiny_model, tmp_path):
    def change(weights):
        weights.lora_A["transformer.h.1.attn.c_attn"][0, 3] = float("nan")

    damaged(tmp_path, tiny_model, change)
    with pytest.raises(AdapterError, match=r"h\.1\.attn\.c_attn\.lora_A\.weight.*1 NaN"):
        read_adapter(tmp_path)


def test_a_truncated_file_and_a_missing_one_are_errors(tiny_model, tmp_path):
    damaged(tmp_path, tiny_model, lambda weights: None)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(AdapterError, match="safetensors"):
        read_adapter(tmp_path)
    path.unlink()
    with pytest.raises(AdapterError, match="missing"):
        read_adapter(tmp_path)
    with pytest.raises(AdapterError, match="no PEFT adapter"):
        read_adapter(tmp_path / "nowhere")


def test_kinds_of_lora_that_mean_something_else_are_refused(tiny_model, tmp_path):
    damaged(tmp_path, tiny_model, lambda weights: None)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    for key, value in (("use_dora", True), ("lora_bias", True), ("peft_type", "IA3")):
        path.write_text(json.dumps(config | {key: value}))
        with pytest.raises(AdapterError):
            read_adapter(tmp_path)


def test_an_adapter_of_another_model_does_not_fit(tiny_model, tmp_path):
    damaged(tmp_path, tiny_model, lambda weights: None)
    saved = read_adapter(tmp_path)
    with pytest.raises(AdapterError, match="no linear layer"):
        check_fits(saved, tiny_model("llama", "CAUSAL_LM"), "here")


def test_an_adapter_whose_initialisation_changed_the_base_is_refused(tiny_model, tmp_path):
    damaged(tmp_path, tiny_model, lambda weights: None)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    for value in ("pissa", "pissa_niter_4", "olora"):
        path.write_text(json.dumps(config | {"init_lora_weights": value}))
        with pytest.raises(AdapterError, match=f"{value}.*changes the base"):
            read_adapter(tmp_path)
    for value in (True, False, "gaussian", "orthogonal"):
        path.write_text(json.dumps(config | {"init_lora_weights": value}))
        assert read_adapter(tmp_path).slot.placements


@pytest.mark.parametrize("fault", ["rank of B", "transposed"])
def test_shapes_that_do_not_fit_are_refused(fault, tiny_model, tmp_path):
    def change(weights):
        name = "transformer.h.0.attn.c_attn"
        if fault == "transposed":
            weights.lora_A[name] = weights.lora_A[name].new_zeros(2, 48)
        weights.lora_B[name] = weights.lora_B[name].new_zeros(48, 2)

    model = damaged(tmp_path, tiny_model, change)
    saved = read_adapter(tmp_path)
    if fault == "rank of B":
        saved.weights.lora_B["transformer.h.0.attn.c_attn"] = torch.zeros(48, 1)
    with pytest.raises(AdapterError, match="c_attn"):
        check_fits(saved, model, "here")


def test_the_bases_revision_travels_with_the_adapter(tiny_model, tmp_path):
    model = tiny_model("gpt2", "CAUSAL_LM")
    slot = Slot("s", 1, tuple(Placement(target, 2, 1.0) for target in resolve(model, ["c_attn"], ())))
    stack = Stack(model, [slot])
    write_adapter(tmp_path, stack.read(0), slot, model, heads=(), base_model="gpt2", revision="abc", task_type="CAUSAL_LM")
    stack.detach()
    assert read_adapter(tmp_path).config["revision"] == "abc"


def test_a_classifiers_names_lie_beside_the_adapter_and_peft_does_not_mind(tiny_model, tmp_path):
    model = tiny_model("bert")
    stack, slot, heads = random_stack(model, "query", "SEQ_CLS")
    names = ["contradiction", "é", "neutral"]
    write_adapter(tmp_path, stack.read(1), slot, model, heads=heads, base_model="", task_type="SEQ_CLS", labels=names)
    stack.detach()
    assert read_adapter(tmp_path).labels == tuple(names)
    wrapped = peft.PeftModel.from_pretrained(tiny_model("bert"), str(tmp_path), autocast_adapter_dtype=False)
    assert wrapped.peft_config["default"].task_type == "SEQ_CLS"
    for text in ("{", "[]", '{"labels": "a"}', '{"labels": [1]}'):
        (tmp_path / "lorascope.json").write_text(text)
        with pytest.raises(AdapterError, match=r"lorascope\.json: .*; correct or remove"):
            read_adapter(tmp_path)
    (tmp_path / "lorascope.json").unlink()
    assert read_adapter(tmp_path).labels == ()
