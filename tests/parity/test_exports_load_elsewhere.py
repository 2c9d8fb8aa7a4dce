"""What ``export`` writes, PEFT and transformers load without Lorascope and answer as the trained adapter does."""

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from lorascope.adapter import stack_saved
from lorascope.base_model import load_base
from lorascope.config import BaseModelConfig
from lorascope.export import Wishes, find_source, write_adapter_directory
from lorascope.export.merged import write_merged_directory
from lorascope.lora.peft_io import read_adapter, write_adapter
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve

AUTOS = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
}
IDS = torch.tensor([[5, 9, 33, 71, 12, 4]])
# Fused projections make ranks differ between modules (GPT-2, Phi-3), and a classifier brings its head.
CASES = {
    "a head": ("bert", "SEQ_CLS", ["query", "value"]),
    "two heads": ("distilbert", "SEQ_CLS", ["query"]),
    "fused, rank pattern": ("gpt2", "CAUSAL_LM", "all-linear"),
    "fused, rank pattern, a head": ("gpt2", "SEQ_CLS", ["query", "value", "down"]),
    "fused in rows": ("phi3", "CAUSAL_LM", ["query", "value", "gate", "down"]),
    "encoder-decoder": ("t5", "SEQ_2_SEQ_LM", ["query", "cross_value"]),
}


def inputs_of(task_type):
    return {"input_ids": IDS} | ({"decoder_input_ids": IDS[:, :3]} if task_type == "SEQ_2_SEQ_LM" else {})


@pytest.fixture(params=list(CASES))
def trained(request, model_directory, tmp_path):
    """An adapter of random numbers as a study leaves it, and its logits on its own base."""
    family, task_type, targets = CASES[request.param]
    place = str(model_directory(family))
    base = load_base(BaseModelConfig(model=place), task_type, ("a", "b", "c") if task_type == "SEQ_CLS" else ())
    placements = tuple(Placement(target, 3, 2.0) for target in resolve(base.model, targets, base.heads))
    slot = Slot("slot", 1, placements)
    stack = Stack(base.model, [slot], base.heads, base.initial_head)
    weights = stack.read(0)
    generator = torch.Generator().manual_seed(4)
    for group in (weights.lora_B, weights.heads):
        for value in group.values():
            value += 0.2 * torch.randn(value.shape, generator=generator)
    stack.detach()
    adapter = tmp_path / "trained"
    adapter.mkdir()
    write_adapter(
        adapter, weights, slot, base.model, heads=base.heads, base_model=place, task_type=task_type, labels=base.labels
    )
    stack = stack_saved(base, read_adapter(adapter), "x")
    with torch.no_grad():
        logits = base.model(**inputs_of(task_type)).logits
    stack.detach()
    return adapter, place, task_type, logits


def test_peft_loads_an_exported_adapter(trained, tmp_path):
    adapter, place, task_type, expected = trained
    write_adapter_directory(find_source(adapter), read_adapter(adapter), tmp_path / "out", Wishes("out"))
    labels = {"num_labels": 3} if task_type == "SEQ_CLS" else {}
    base = AUTOS[task_type].from_pretrained(place, **labels)
    with torch.no_grad():
        before = base(**inputs_of(task_type)).logits
        logits = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()(**inputs_of(task_type)).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert (logits - before).abs().max() > 1e-3
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert not config["base_model_name_or_path"].startswith("/")


def test_transformers_loads_a_merged_export(trained, tmp_path):
    adapter, _, task_type, expected = trained
    write_merged_directory(find_source(adapter), read_adapter(adapter), tmp_path / "out", Wishes("out", "merged"))
    model = AUTOS[task_type].from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        logits = model(**inputs_of(task_type)).logits
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    if task_type == "SEQ_CLS":
        assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
