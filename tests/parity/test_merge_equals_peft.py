"""A merged directory is what PEFT's ``merge_and_unload`` gives, loaded by transformers as it is."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from lorascope.lora.merge import merged_copy, updates
from lorascope.lora.peft_io import read_adapter
from lorascope.merged_model import open_merge_base, write_merged

AUTOS = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
}
FAMILIES = [(family, "SEQ_CLS") for family in ("gpt2", "bert", "distilbert", "roberta", "llama", "qwen2")]
FAMILIES += [(family, "CAUSAL_LM") for family in ("gpt2", "llama", "qwen2", "phi3")]
FAMILIES += [(family, "SEQ_2_SEQ_LM") for family in ("t5", "gated-t5", "bart")]
IDS = torch.tensor([[5, 9, 33, 71, 12, 4], [8, 90, 14, 9, 7, 31]])


def logits_of(model):
    inputs = {"input_ids": IDS}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = IDS[:, 1:5]
    with torch.no_grad():
        return model(**inputs).logits


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def merged_directory(adapter, tmp_path, **options):
    out = tmp_path / "merged"
    out.mkdir()
    saved = read_adapter(adapter)
    return out, write_merged(saved, adapter, open_merge_base(saved, str(adapter)), out, **options)


def assert_merged_equals(adapter, wrapped, task_type, tmp_path):
    """The directory, loaded as it is, has PEFT's merged parameters and the unmerged model's logits."""
    wrapped.base_model.model.config.pad_token_id = 0
    unmerged = logits_of(copy.deepcopy(wrapped).double())
    expected = copy.deepcopy(wrapped).merge_and_unload()
    out, merged = merged_directory(adapter, tmp_path)
    loaded, info = AUTOS[task_type].from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    loaded.config.pad_token_id = 0
    theirs = expected.state_dict()
    assert theirs.keys() == loaded.state_dict().keys()
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-6, atol=1e-6, msg=name)
    assert relative(logits_of(loaded.double().eval()), unmerged) < 1e-5
    return out, merged, loaded


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
@pytest.mark.parametrize(("family", "task_type"), FAMILIES)
def test_a_merged_directory_holds_what_peft_merges(family, task_type, bias, peft_adapter, tmp_path):
    adapter, wrapped = peft_adapter(family, task_type, bias=bias, use_rslora=bias == "all")
    _, merged, _ = assert_merged_equals(adapter, wrapped, task_type, tmp_path)
    assert sum(one.update is not None for one in merged.plan.tensors) == len(read_adapter(adapter).slot.placements) > 0


@pytest.mark.parametrize(("family", "task_type"), [("gpt2", "CAUSAL_LM"), ("bert", "SEQ_CLS")])
def test_patterns_of_rank_and_alpha_are_merged_as_peft_merges_them(family, task_type, peft_adapter, tmp_path):
    _, wrapped = peft_adapter(family, task_type, name="plain")
    names = sorted(wrapped.peft_config["default"].target_modules)
    adapter, wrapped = peft_adapter(family, task_type, rank_pattern={names[0]: 2}, alpha_pattern={names[-1]: 3})
    assert_merged_equals(adapter, wrapped, task_type, tmp_path)


@pytest.mark.parametrize(("family", "task_type"), FAMILIES)
def test_a_copy_merged_in_memory_is_pefts_and_the_model_keeps_every_bit(family, task_type, peft_adapter, model_directory):
    adapter, wrapped = peft_adapter(family, task_type, bias="lora_only")
    more = {"num_labels": 3} if task_type == "SEQ_CLS" else {}
    model = AUTOS[task_type].from_pretrained(model_directory(family), **more).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copied = merged_copy(model, read_adapter(adapter))
    theirs = wrapped.merge_and_unload().state_dict()
    for name, value in copied.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-6, atol=1e-6, msg=name)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()
    assert any(not torch.equal(value, before[name]) for name, value in copied.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_updates_are_pefts_delta_weights(family, dtype, peft_adapter, model_directory):
    adapter, wrapped = peft_adapter(family, "CAUSAL_LM", use_rslora=True)
    model = AutoModelForCausalLM.from_pretrained(model_directory(family))
    found = dict(updates(read_adapter(adapter), model, dtype))
    layers = {name.removeprefix("base_model.model."): module for name, module in wrapped.named_modules()}
    assert found
    for module, delta in found.items():
        theirs = layers[module].get_delta_weight("default")
        assert delta.dtype == dtype
        assert delta.shape == model.get_submodule(module).weight.shape
        torch.testing.assert_close(delta, theirs.to(dtype), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning", "ignore:.*no longer tied:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_adapter_on_a_tied_head_is_merged_into_the_head_alone(family, peft_adapter, tmp_path, tied_base):
    base = tied_base(family)
    adapter, wrapped = peft_adapter(family, "CAUSAL_LM", base=base, target_modules=["lm_head"], fan_in_fan_out=False)
    unmerged = logits_of(wrapped)
    out, merged = merged_directory(adapter, tmp_path)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    loaded = AutoModelForCausalLM.from_pretrained(out).eval()
    head, embedding = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    untouched = AutoModelForCausalLM.from_pretrained(base)
    assert torch.equal(embedding, untouched.get_input_embeddings().weight)
    assert not torch.equal(embedding, head)
    assert relative(logits_of(loaded), unmerged) < 1e-5
    assert "lm_head.weight" in merged.plan.untied
    assert any("lm_head.weight" in warning for warning in merged.warnings)
    # PEFT itself adds the update to the matrix that both share.
    assert not torch.equal(wrapped.merge_and_unload().get_input_embeddings().weight, embedding)


@pytest.fixture
def tied_base(model_directory, tmp_path):
    """``tied_base(family)``: its directory with the head tied to the embedding, as a GPT-2's is anyway."""

    def make(family):
        if family == "gpt2":
            return model_directory(family)
        model = AutoModelForCausalLM.from_pretrained(model_directory(family))
        model.config.tie_word_embeddings = True
        model.tie_weights()
        model.save_pretrained(tmp_path / "tied")
        for path in model_directory(family).glob("*token*"):
            (tmp_path / "tied" / path.name).write_bytes(path.read_bytes())
        return tmp_path / "tied"

    return make
