import itertools
import re

import pytest

from lorascope.base_model import head_modules, skeleton
from lorascope.config import in_layers
from lorascope.errors import ModelError
from lorascope.lora.targets import FAMILIES, ROLES, layer_of, resolve, roles_of

CASES = {
    "gpt2": {"query": "attn.c_attn", "value": "attn.c_attn", "output": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
    "bert": {"query": "attention.self.query", "output": "attention.output.dense", "up": "intermediate.dense"},
    "roberta": {"key": "attention.self.key", "down": "output.dense"},
    "distilbert": {"query": "attention.q_lin", "output": "attention.out_lin", "down": "ffn.lin2"},
    "llama": {"query": "self_attn.q_proj", "gate": "mlp.gate_proj", "output": "self_attn.o_proj"},
    "qwen2": {"value": "self_attn.v_proj", "down": "mlp.down_proj"},
    "phi3": {"key": "self_attn.qkv_proj", "up": "mlp.gate_up_proj", "down": "mlp.down_proj"},
}
# Of an encoder-decoder with two encoder and three decoder layers: the module, and how many there are.
TWO_STACKS = {
    "t5": {
        "query": ("SelfAttention.q", 5), "output": ("SelfAttention.o", 5), "cross_key": ("EncDecAttention.k", 3),
        "cross_output": ("EncDecAttention.o", 3), "up": ("DenseReluDense.wi", 5), "down": ("DenseReluDense.wo", 5),
    },
    "gated-t5": {
        "value": ("SelfAttention.v", 5), "cross_query": ("EncDecAttention.q", 3), "cross_value": ("EncDecAttention.v", 3),
        "gate": ("DenseReluDense.wi_0", 5), "up": ("DenseReluDense.wi_1", 5),
    },
    "bart": {"key": ("self_attn.k_proj", 5), "cross_value": ("encoder_attn.v_proj", 3), "up": ("fc1", 5), "down": ("fc2", 5)},
}  # fmt: skip


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


@pytest.mark.parametrize("family", TWO_STACKS)
def test_roles_of_an_encoder_decoder_tell_cross_attention_from_self_attention(family, tiny_model):
    model = tiny_model(family, "SEQ_2_SEQ_LM")
    for role, (suffix, count) in TWO_STACKS[family].items():
        targets = resolve(model, [role], ())
        assert len(targets) == count
        assert all(target.module.endswith(f".{suffix}") and target.role == role for target in targets)
    every = resolve(model, "all-linear", ())
    cross = [role for role in roles_of(model) if role.startswith("cross_")]
    assert len(cross) == 4
    assert len(every) == 5 * (len(roles_of(model)) - 4) + 3 * 4
    assert not [target for target in every if "lm_head" in target.module]


def test_a_plain_t5_has_no_gate_and_its_up_projection_is_found_by_its_raw_name_too(tiny_model):
    plain, gated = tiny_model("t5", "SEQ_2_SEQ_LM"), tiny_model("gated-t5", "SEQ_2_SEQ_LM")
    with pytest.raises(ModelError, match=r"no target 'gate'; .*roles: query, .*, up, down;") as caught:
        resolve(plain, ["gate"], ())
    assert "DenseReluDense.wi," in str(caught.value)
    assert "gate" in roles_of(gated)
    assert [t.module for t in resolve(plain, ["wi"], ())] == [t.module for t in resolve(plain, ["up"], ())]
    assert len(resolve(plain, ["q"], ())) == 8


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


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_a_target_may_be_restricted_to_a_run_of_layers(family, tiny_model):
    task_type = {"bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}.get(family, "CAUSAL_LM")
    model = tiny_model(family, task_type)
    for name in ("query", resolve(model, ["down"], ())[0].module, "all-linear"):
        everywhere = resolve(model, [name], ())
        parts = [target for layer in range(3) for target in everywhere if layer_of(target.module) == layer]
        first, rest = [], []
        if any(layer_of(target.module) == 0 for target in everywhere):
            first = resolve(model, [in_layers(name, 0, 0)], ())
        if any((layer_of(target.module) or 0) > 0 for target in everywhere):
            rest = resolve(model, [in_layers(name, 1, 2)], ())
        assert {target.key for target in (*first, *rest)} == {target.key for target in parts}
        assert not {target.key for target in first} & {target.key for target in rest}


def test_layers_that_a_target_does_not_have_are_refused(tiny_model):
    with pytest.raises(ModelError, match=r"'query.L2-5'.*'query' has layers 0 to 1"):
        resolve(tiny_model("bert"), ["query.L2-5"], ())
    with pytest.raises(ModelError, match="no numbered layer"):
        resolve(tiny_model("bert"), ["pooler.dense.L0"], ())
