import itertools
import re

import pytest

from lorascope.base_model import head_modules, skeleton
from lorascope.errors import ModelError
from lorascope.lora.targets import FAMILIES, ROLES, resolve, roles_of

CASES = {
    "gpt2": {"query": "attn.c_attn", "value": "attn.c_attn", "output": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
    "bert": {"query": "attention.self.query", "output": "attention.output.dense", "up": "intermediate.dense"},
    "roberta": {"key": "attention.self.key", "down": "output.dense"},
    "distilbert": {"query": "attention.q_lin", "output": "attention.out_lin", "down": "ffn.lin2"},
    "llama": {"query": "self_attn.q_proj", "gate": "mlp.gate_proj", "output": "self_attn.o_proj"},
    "qwen2": {"value": "self_attn.v_proj", "down": "mlp.down_proj"},
    "phi3": {"key": "self_attn.qkv_proj", "up": "mlp.gate_up_proj", "down": "mlp.down_proj"},
}


@pytest.mark.parametrize("family", CASES)
def test_each_role_names_one_module_in_every_layer(family, tiny_model):
    task_type = "CAUSAL_LM" if family == "phi3" else "SEQ_CLS"
    model = tiny_model(family, task_type)
    heads = head_modules(model, task_type)
    for role, suffix in CASES[family].items():
        targets = resolve(model, [role], heads)
        assert len(targets) == 2
        assert all(target.module.endswith(suffix) and target.role == role for target in targets)
        assert "attention.output" not in targets[0].module or role == "output"


@pytest.mark.parametrize("family", CASES)
def test_all_linear_is_every_role_once_and_never_a_head_or_pooler(family, tiny_model):
    task_type = "CAUSAL_LM" if family == "phi3" else "SEQ_CLS"
    model = tiny_model(family, task_type)
    targets = resolve(model, "all-linear", head_modules(model, task_type))
    assert len(targets) == 2 * len(roles_of(model))
    assert not [t for t in targets if re.search("pooler|classifier|score|lm_head", t.module)]
    assert set(roles_of(model)) <= set(ROLES)


def test_fused_slices_cover_the_projection_without_overlap(tiny_model):
    for family, width in (("gpt2", 48), ("phi3", 16 + 2 * 8)):
        model = tiny_model(family, "CAUSAL_LM")
        parts = [target.part for target in resolve(model, ["query", "key", "value"], ())[:3]]
        assert parts[0][0] == 0
        assert parts[-1][1] == width
        assert all(left[1] == right[0] for left, right in itertools.pairwise(parts))


def test_phi3_slices_are_those_that_the_model_itself_cuts(tiny_model):
    import torch

    model = tiny_model("phi3", "CAUSAL_LM")
    attention = model.model.layers[0].self_attn
    (key,) = [t for t in resolve(model, ["key"], ()) if ".0." in t.module]
    assert key.part == (
        attention.config.num_attention_heads * attention.head_dim,
        attention.config.num_attention_heads * attention.head_dim + attention.num_key_value_heads * attention.head_dim,
    )
    assert torch.is_tensor(attention.qkv_proj.weight)


def test_raw_names_suffixes_and_full_names_work(tiny_model):
    model = tiny_model("gpt2", "CAUSAL_LM")
    assert len(resolve(model, ["c_proj"], ())) == 4
    assert [t.module for t in resolve(model, ["mlp.c_proj"], ())] == [
        "transformer.h.0.mlp.c_proj",
        "transformer.h.1.mlp.c_proj",
    ]
    (one,) = resolve(model, ["transformer.h.1.attn.c_attn"], ())
    assert one.part is None


def test_a_place_named_twice_is_one_target(tiny_model):
    model = tiny_model("llama")
    assert resolve(model, ["query", "q_proj"], ()) == resolve(model, ["query"], ())


def test_an_unknown_name_fails_with_the_list_of_what_the_model_has(tiny_model):
    model = tiny_model("bert")
    with pytest.raises(ModelError) as caught:
        resolve(model, ["qeury"], ())
    text = str(caught.value)
    assert "did you mean 'query'" in text
    assert "attention.output.dense" in text
    assert "\n" not in text


def test_a_role_that_the_family_lacks_fails(tiny_model):
    with pytest.raises(ModelError, match="gate"):
        resolve(tiny_model("bert"), ["gate"], ())


def test_a_head_is_no_target(tiny_model):
    model = tiny_model("roberta")
    with pytest.raises(ModelError, match="classifier"):
        resolve(model, ["classifier.dense"], head_modules(model, "SEQ_CLS"))


def test_a_module_whole_and_in_slices_is_refused(tiny_model):
    with pytest.raises(ModelError, match="whole"):
        resolve(tiny_model("gpt2", "CAUSAL_LM"), ["c_attn", "query"], ())


def test_the_meta_device_is_enough(tiny_model):
    model = skeleton(tiny_model("gpt2", "CAUSAL_LM").config, "CAUSAL_LM")
    assert next(model.parameters()).is_meta
    assert len(resolve(model, "all-linear", ())) == 12


def test_every_family_of_the_table_has_query_and_value():
    assert all({"query", "value"} <= set(family) for family in FAMILIES.values())
