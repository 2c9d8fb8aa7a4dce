"""What a merged checkpoint is planned to hold: whose numbers under which name, in which dtype, tied or not."""

from pathlib import Path

import pytest
import torch

from lorascope.errors import AdapterError, ModelError
from lorascope.lora.linear import features
from lorascope.lora.merge_plan import module_updates, plan_merge, replacements
from lorascope.lora.peft_io import SavedAdapter
from lorascope.lora.stack import AdapterWeights, Placement, Slot
from lorascope.lora.stored_tensors import StoredTensor
from lorascope.lora.targets import Target

HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def adapter(model, modules=(), **whole):
    """An adapter of random numbers on these modules, with these parameters trained whole (``__`` for a dot)."""
    generator = torch.Generator().manual_seed(4)
    placements = tuple(Placement(Target(module), 2, 1.5) for module in modules)
    lora_A, lora_B = {}, {}
    for module in modules:
        num_inputs, num_outputs = features(model.get_submodule(module))
        lora_A[module] = torch.randn(2, num_inputs, generator=generator)
        lora_B[module] = torch.randn(num_outputs, 2, generator=generator)
    heads = {name.replace("__", "."): value for name, value in whole.items()}
    weights = AdapterWeights(placements, lora_A, lora_B, {}, heads)
    return SavedAdapter(None, "CAUSAL_LM", Slot("adapter", 0, placements), weights, {})


def checkpoint(model, without=(), dtype=torch.float32):
    """The model's tensors as a checkpoint would list them."""
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in model.state_dict().items()}
    return {
        name: StoredTensor(Path("nowhere"), value.dtype, tuple(value.shape), mapped=value)
        for name, value in state.items()
        if name not in without
    }


@pytest.fixture
def gpt2(tiny_model):
    return tiny_model("gpt2", "CAUSAL_LM")


def test_updates_are_oriented_as_the_layer_is_and_rows_are_its_rows(tiny_model):
    for family, module in (("gpt2", "transformer.h.0.attn.c_attn"), ("llama", "model.layers.0.mlp.down_proj")):
        model = tiny_model(family, "CAUSAL_LM")
        saved = adapter(model, [module])
        update = module_updates(saved, model)[module]
        whole = 1.5 * saved.weights.lora_B[module].double() @ saved.weights.lora_A[module].double()
        expected = whole.T if family == "gpt2" else whole
        assert expected.shape == model.get_submodule(module).weight.shape
        torch.testing.assert_close(update.full(torch.float64), expected)
        torch.testing.assert_close(update.rows(3, 5), expected[3:5])


def test_an_adapter_on_a_layer_leaves_ties_and_everything_else_alone(gpt2):
    module = "transformer.h.1.mlp.c_fc"
    plan = plan_merge(adapter(gpt2, [module]), checkpoint(gpt2, without=[HEAD]), gpt2)
    assert [one.name for one in plan.tensors] == [name for name in gpt2.state_dict() if name != HEAD]
    assert [one.name for one in plan.tensors if one.update is not None] == [f"{module}.weight"]
    assert (plan.untied, plan.tie_word_embeddings, plan.unused) == ((), None, ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_embedding_that_was_saved_along_is_the_bases_and_breaks_no_tie(dtype, gpt2):
    saved_along = gpt2.get_parameter(EMBEDDING).detach().to(dtype).clone()
    saved = adapter(gpt2, ["transformer.h.0.attn.c_attn"], transformer__wte__weight=saved_along)
    plan = plan_merge(saved, checkpoint(gpt2, without=[HEAD]), gpt2)
    assert (plan.untied, plan.tie_word_embeddings) == ((), None)
    (embedding,) = [one for one in plan.tensors if one.name == EMBEDDING]
    assert embedding.replacement is None
    assert HEAD not in {one.name for one in plan.tensors}


@pytest.mark.parametrize("held", [HEAD, EMBEDDING])
def test_an_adapter_on_a_tied_head_writes_both_and_unties_them(held, gpt2):
    stored = checkpoint(gpt2, without=[EMBEDDING if held == HEAD else HEAD])
    plan = plan_merge(adapter(gpt2, ["lm_head"]), stored, gpt2)
    found = {one.name: one for one in plan.tensors}
    assert found[HEAD].update is not None
    assert found[EMBEDDING].update is None
    assert found[HEAD].source_key == found[EMBEDDING].source_key == held
    assert set(plan.untied) == {HEAD, EMBEDDING}
    assert plan.tie_word_embeddings is False


def test_a_trained_embedding_leaves_the_head_with_the_bases_numbers(gpt2):
    new = torch.randn(gpt2.get_parameter(EMBEDDING).shape)
    plan = plan_merge(adapter(gpt2, ["transformer.h.0.attn.c_attn"], transformer__wte__weight=new), checkpoint(gpt2), gpt2)
    found = {one.name: one for one in plan.tensors}
    assert torch.equal(found[EMBEDDING].replacement, new)
    assert found[HEAD].replacement is None
    assert plan.tie_word_embeddings is False


def test_the_same_numbers_for_both_names_keep_the_tie(gpt2):
    new = torch.randn(gpt2.get_parameter(EMBEDDING).shape)
    both = {"transformer__wte__weight": new, "lm_head__weight": new.clone()}
    plan = plan_merge(adapter(gpt2, ["transformer.h.0.attn.c_attn"], **both), checkpoint(gpt2), gpt2)
    assert EMBEDDING in {one.name for one in plan.tensors}
    assert HEAD not in {one.name for one in plan.tensors}
    assert (plan.untied, plan.tie_word_embeddings) == ((), None)


def test_a_t5_is_untied_by_its_tensors_for_its_configuration_means_something_else(tiny_model):
    model = tiny_model("t5", "SEQ_2_SEQ_LM")
    stored = checkpoint(model, without=[HEAD, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
    plan = plan_merge(adapter(model, ["lm_head"]), stored, model)
    assert plan.untied == (HEAD,)
    assert plan.tie_word_embeddings is None
    names = {one.name for one in plan.tensors}
    assert {HEAD, "shared.weight"} <= names
    assert "encoder.embed_tokens.weight" not in names


@pytest.mark.parametrize(("dtype", "expected"), [("as-base", torch.bfloat16), ("float16", torch.float16)])
def test_what_the_base_lacks_is_written_in_the_dtype_of_the_rest(dtype, expected, tiny_model):
    model = tiny_model("bert")
    stored = checkpoint(model, without=["classifier.weight", "classifier.bias"], dtype=torch.bfloat16)
    stored["bert.embeddings.position_ids"] = StoredTensor(Path("nowhere"), torch.int64, (1, 130))
    head = {"classifier__weight": torch.randn(3, 16), "classifier__bias": torch.randn(3)}
    plan = plan_merge(adapter(model, ["bert.encoder.layer.0.attention.self.query"], **head), stored, model, dtype)
    found = {one.name: one for one in plan.tensors}
    assert found["classifier.weight"].source is None
    assert {one.dtype for one in plan.tensors} == {expected}
    assert plan.dtype == expected
    assert plan.unused == ("bert.embeddings.position_ids",)


def test_a_parameter_that_nobody_has_and_one_of_another_shape_are_named(gpt2):
    saved = adapter(gpt2, ["transformer.h.0.attn.c_attn"])
    with pytest.raises(AdapterError, match=r"holds no 'transformer\.ln_f\.bias', which the base's checkpoint does not have"):
        plan_merge(saved, checkpoint(gpt2, without=["transformer.ln_f.bias"]), gpt2)
    stored = checkpoint(gpt2)
    stored[EMBEDDING] = StoredTensor(Path("nowhere"), torch.float32, (170, 16))
    with pytest.raises(ModelError, match=r"the tensor is \[170, 16\] in the checkpoint and \[160, 16\] by config\.json"):
        plan_merge(saved, stored, gpt2)


def test_an_adapter_on_a_tensor_that_the_loader_joins_is_refused(gpt2, monkeypatch):
    from lorascope.lora import merge_plan
    from lorascope.lora.checkpoint_names import NameMap

    module = "transformer.h.0.attn.c_attn"
    names = {name: name for name in gpt2.state_dict() if name != f"{module}.weight"}
    joined = NameMap(names, {"joined": f"{module}.weight"}, frozenset({f"{module}.weight"}))
    monkeypatch.setattr(merge_plan, "map_names", lambda *_: joined)
    stored = checkpoint(gpt2) | {"joined": StoredTensor(Path("nowhere"), torch.float32, (3,))}
    with pytest.raises(ModelError, match=r"c_attn\.weight: the checkpoint stores this tensor in another form"):
        plan_merge(adapter(gpt2, [module]), stored, gpt2)
    plan = plan_merge(adapter(gpt2, ["transformer.h.1.mlp.c_fc"]), stored, gpt2)
    copied = next(one for one in plan.tensors if one.name == "joined")
    assert (copied.source, copied.update, copied.parameter) == (stored["joined"], None, False)


def test_replacements_are_heads_and_biases(gpt2):
    saved = adapter(gpt2, ["lm_head"], score__weight=torch.ones(2))
    saved.weights.biases["transformer.ln_f.bias"] = torch.ones(16)
    assert replacements(saved).keys() == {"score.weight", "transformer.ln_f.bias"}
