"""A checkpoint's names become the model's as transformers itself would have it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, MixtralConfig

from lorascope.lora.checkpoint_files import open_checkpoint
from lorascope.lora.checkpoint_names import map_names, required_names, sources, tied_groups, written_name

AUTOS = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
}
CASES = [(family, "SEQ_CLS") for family in ("gpt2", "bert", "distilbert", "roberta", "llama")]
CASES += [("gpt2", "CAUSAL_LM"), ("phi3", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM"), ("bart", "SEQ_2_SEQ_LM")]


@pytest.mark.parametrize(("family", "task_type"), CASES)
def test_the_names_are_those_that_from_pretrained_fills(family, task_type, model_directory, tiny_model):
    directory = model_directory(family)
    _, info = AUTOS[task_type].from_pretrained(directory, output_loading_info=True)
    with torch.device("meta"):
        model = AUTOS[task_type].from_config(tiny_model(family, task_type).config)
    names = map_names(open_checkpoint(directory), model)
    assert set(required_names(model)) - sources(names, model).keys() == set(info["missing_keys"])
    assert set(names.unused) == set(info["unexpected_keys"])
    assert not names.converted


def test_a_prefix_is_the_models_and_an_old_spelling_stays(tiny_model):
    keys = ["embeddings.LayerNorm.gamma", "encoder.layer.0.output.dense.weight", "cls.seq_relationship.weight"]
    names = map_names(keys, tiny_model("bert"))
    assert names.keys == {
        "bert.embeddings.LayerNorm.weight": "embeddings.LayerNorm.gamma",
        "bert.encoder.layer.0.output.dense.weight": "encoder.layer.0.output.dense.weight",
    }
    assert names.unused == ("cls.seq_relationship.weight",)
    assert written_name(keys[1], "bert.encoder.layer.0.output.dense.weight") == "bert.encoder.layer.0.output.dense.weight"
    assert written_name(keys[0], "bert.embeddings.LayerNorm.weight") == keys[0]
    assert written_name("transformer.wte.weight", "wte.weight") == "wte.weight"


def test_an_exact_name_goes_before_one_that_becomes_it(tiny_model):
    for keys in (["pooler.dense.weight", "bert.pooler.dense.weight"], ["bert.pooler.dense.weight", "pooler.dense.weight"]):
        names = map_names(keys, tiny_model("bert"))
        assert names.keys == {"bert.pooler.dense.weight": "bert.pooler.dense.weight"}
        assert names.unused == ("pooler.dense.weight",)


def test_tied_names_are_one_group_with_one_source(tiny_model):
    model = tiny_model("gpt2", "CAUSAL_LM")
    assert tied_groups(model) == [["transformer.wte.weight", "lm_head.weight"]]
    found = sources(map_names(["wte.weight"], model), model)
    assert found == {"transformer.wte.weight": "wte.weight", "lm_head.weight": "wte.weight"}
    both = sources(map_names(["wte.weight", "lm_head.weight"], model), model)
    assert both["lm_head.weight"] == "lm_head.weight"


def test_experts_that_are_joined_on_loading_are_told_from_what_is_not(tmp_path):
    rotary = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MixtralConfig(**rotary, intermediate_size=12, num_local_experts=3)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stored = open_checkpoint(tmp_path)
    names = map_names(stored, model)
    assert set(names.converted) == {key for key in stored if ".experts." in key}
    assert len(names.converted) == 9
    assert names.made == {f"model.layers.0.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")}
    assert names.made | names.keys.keys() == set(required_names(model))
    assert names.unused == ()
    router = next(key for key in stored if key.endswith("gate.weight"))
    assert "model.layers.0.mlp.gate.weight" not in map_names(stored.keys() - {router}, model).made
