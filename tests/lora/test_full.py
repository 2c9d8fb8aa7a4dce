"""A stack of one that trains the base itself: views, master weights, kernels taken off and put back, ties that hold."""

import pytest
import torch

from lorascope.lora import elementwise, frozen
from lorascope.lora.full import FullStack, installed
from lorascope.lora.linear import num_parameters
from lorascope.lora.quantised import quantise
from lorascope.lora.stack import AdapterWeights, Placement, Slot, Stack, count_trainable
from lorascope.lora.targets import resolve

SLOT = Slot("full", 1, (), trains_base=True)
IDS = torch.tensor([[3, 5, 7, 9, 11]])


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_models_numbers_are_the_slots_and_come_back_to_the_bit(dtype, tiny_model):
    model = tiny_model("qwen2", "CAUSAL_LM", dtype)
    before = state_of(model)
    stack = FullStack(model, SLOT)
    assert stack.parameters.values_NP.shape == (1, num_parameters(model)) == (1, count_trainable(model, SLOT, ()))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert all(torch.equal(value.to(dtype), before[name]) for name, value in model.state_dict().items())
    own = model(IDS).logits
    stack.parameters.values_NP += 0.01
    assert (model(IDS).logits - own).abs().max() > 1e-3
    stack.detach()
    stack.detach()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_tied_embeddings_stay_tied_and_count_once(tiny_model):
    model = tiny_model("gpt2", "CAUSAL_LM")
    stack = FullStack(model, SLOT)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert [spec.name for spec in stack.parameters.specs if "wte" in spec.name or "lm_head" in spec.name] == [
        "transformer.wte.weight"
    ]
    stack.parameters.accumulate_gradients(model(IDS).logits.square().sum())
    stack.detach()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert float(stack.parameters.gradients_NP.abs().sum()) > 0


def test_kernels_for_frozen_weights_are_off_while_they_train_and_on_again_afterwards(tiny_model):
    model = tiny_model("qwen2", "CAUSAL_LM", torch.float32)
    frozen.install(model, "plain")
    elementwise.install(model)
    layer, norm = model.model.layers[0].self_attn.q_proj, model.model.layers[0].input_layernorm
    kernels = layer.__dict__["forward"], layer.__dict__["frozen_product"], norm.__dict__["forward"]
    stack = FullStack(model, SLOT)
    stack.parameters.accumulate_gradients(model(IDS).logits.square().sum())
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight"):
        start, stop = stack.parameters._offsets[name]
        assert float(stack.parameters.gradients_NP[0, start:stop].abs().max()) > 0
    assert stack.base_gradients() == 0
    stack.detach()
    assert (layer.__dict__["forward"], layer.__dict__["frozen_product"], norm.__dict__["forward"]) == kernels


def test_a_head_starts_as_an_adapters_of_the_same_seed_does(tiny_model):
    model = tiny_model("bert")
    drawn = {"weight": torch.full((3, 16), 0.25), "bias": torch.full((3,), 0.5)}
    stack = FullStack(model, SLOT, ("classifier",), lambda module, seed: drawn)
    assert torch.equal(model.classifier.weight, drawn["weight"].double())
    assert torch.equal(stack.parameters.value("classifier.bias", 0), drawn["bias"].double())
    stack.detach()
    assert not torch.equal(model.classifier.weight, drawn["weight"].double())


def test_a_slot_that_is_dropped_gives_the_base_back(tiny_model):
    model = tiny_model("bert")
    before = state_of(model)
    stack = FullStack(model, SLOT, ("classifier",))
    stack.parameters.values_NP.fill_(float("nan"))
    stack.keep(["full"])
    assert (stack.num_slots, stack.context.seeds) == (1, [1])
    stack.keep([])
    assert (stack.num_slots, stack.context.seeds) == (0, [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_base_dropout_acts_as_on_a_stack_of_adapters_and_leaves_with_it(tiny_model):
    model = tiny_model("bert")
    modules = [name for name, _ in model.named_modules()]
    stack = FullStack(model, SLOT, ("classifier",), base_dropout=True)
    assert [name for name, _ in model.named_modules()] != modules
    stack.detach()
    assert [name for name, _ in model.named_modules()] == modules


def test_packed_weights_are_not_trained(tiny_model):
    pytest.importorskip("bitsandbytes")
    model = tiny_model("bert", dtype=torch.float32)
    quantise(model, ["bert.encoder.layer.0.attention.self.query"])
    with pytest.raises(AssertionError, match="packed weights cannot be trained"):
        FullStack(model, SLOT)


def test_the_right_stack_is_installed_and_a_full_one_hands_out_no_adapter(tiny_model):
    model = tiny_model("bert")
    placements = tuple(Placement(target, 2, 2.0) for target in resolve(model, ["query"], ("classifier",)))
    stack = installed(model, [Slot("a", 1, placements), Slot("b", 1, placements)], ("classifier",))
    assert type(stack) is Stack
    stack.detach()
    stack = installed(model, [SLOT], ("classifier",))
    assert type(stack) is FullStack
    assert stack.read(0) == AdapterWeights((), {}, {})
    stack.detach()
