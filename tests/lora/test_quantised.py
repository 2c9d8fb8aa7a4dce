"""Packed layers: what they hold, what they compute, and that a stack on them is PEFT on the same numbers."""

import copy
import json

import peft
import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorascope.base_model import head_modules, weights_checksum
from lorascope.errors import ModelError
from lorascope.lora.linear import features, linear_modules
from lorascope.lora.peft_io import write_adapter
from lorascope.lora.quantised import NF4Linear, check_installed, quantise
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve

IDS = torch.tensor([[5, 9, 33, 71, 12, 4], [8, 90, 14, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
LABELS = torch.tensor([2, 0])
KINDS = [("none", ["query"]), ("lora_only", ["query", "value", "down"]), ("all", "all-linear")]
# A slice of a fused projection is no target of PEFT's.
WHOLE = [("none", ["c_attn"]), ("lora_only", ["c_attn", "mlp.c_proj"]), ("all", ["c_attn", "c_fc", "c_proj"])]
FORMS = [("gpt2", "CAUSAL_LM"), ("gpt2", "SEQ_CLS"), ("bert", "SEQ_CLS"), ("llama", "CAUSAL_LM")]


def linear(num_outputs, num_inputs, bias=True, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(num_outputs)
        return nn.Linear(num_inputs, num_outputs, bias=bias).to(dtype)


def conv1d(num_outputs, num_inputs):
    with torch.random.fork_rng():
        torch.manual_seed(num_outputs)
        layer = Conv1D(num_outputs, num_inputs)
        nn.init.normal_(layer.bias)
    return layer


def activations(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def by_hand(weight_OD):
    """The nearest of sixteen values for each weight, in units of the largest of its block of 64."""
    _, state = quantize_4bit(weight_OD, blocksize=64, quant_type="nf4")
    flat = F.pad(weight_OD.float().flatten(), (0, -weight_OD.numel() % 64)).reshape(-1, 64)
    absmax = flat.abs().amax(1, keepdim=True)
    nearest = (flat[..., None] / absmax[..., None] - state.code).abs().argmin(-1)
    return (state.code[nearest] * absmax).flatten()[: weight_OD.numel()].reshape(weight_OD.shape)


def quantised(model, task_type):
    """The model with packed layers, and a copy whose weights are replaced by the dequantised ones."""
    heads = head_modules(model, task_type)
    twin = copy.deepcopy(model)
    quantise(model, list(linear_modules(model, heads)))
    with torch.no_grad():
        for name, layer in linear_modules(model, heads).items():
            weight_OD = layer.weight
            own = twin.get_submodule(name)
            own.weight.copy_(weight_OD.T if isinstance(own, Conv1D) else weight_OD)
    for each in (model, twin):
        each.config.pad_token_id = 0
    return model, twin, heads


def stack_of(model, heads, kinds=KINDS, ranks=(2, 5, 1)):
    """Slots of several ranks, targets and biases, with random numbers everywhere."""
    slots = [
        Slot(f"s{index}", index, tuple(Placement(t, r, 3 / r) for t in resolve(model, targets, heads)), bias=bias)
        for index, (r, (bias, targets)) in enumerate(zip(ranks, kinds, strict=False))
    ]
    stack = Stack(model, slots, heads)
    generator = torch.Generator().manual_seed(4)
    for index in range(len(slots)):
        weights = stack.read(index)
        for value in weights.lora_B.values():
            value += 0.1 * torch.randn(value.shape, generator=generator)
        stack.write(index, weights)
    return stack


def losses_of(model, num_slots=1):
    """Each slot's loss on the same two rows."""
    logits = model(input_ids=IDS.repeat(num_slots, 1), attention_mask=MASK.repeat(num_slots, 1)).logits
    losses = []
    for own in logits.reshape(num_slots, len(IDS), *logits.shape[1:]):
        if own.dim() == 2:
            losses.append(F.cross_entropy(own, LABELS))
        else:
            labels = IDS.masked_fill(MASK == 0, -100)[:, 1:]
            losses.append(F.cross_entropy(own[:, :-1].flatten(0, 1), labels.flatten()))
    return torch.stack(losses)


@pytest.fixture
def dequantisations(monkeypatch):
    """The layers that were dequantised, in order."""
    seen = []
    original = NF4Linear.dequantised

    def counted(self, dtype):
        seen.append(self)
        return original(self, dtype)

    monkeypatch.setattr(NF4Linear, "dequantised", counted)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64), (48, 16), (10, 96), (7, 15), (3, 200), (3, 32)])
def test_the_weight_is_what_bitsandbytes_dequantises_from_its_own_packing(shape, dtype):
    layer = linear(*shape, dtype=dtype)
    packed = NF4Linear.pack(layer)
    # As one row: where a row ends inside a block, some processors' kernels take wrong scales.
    flat, state = quantize_4bit(layer.weight.detach().flatten(), blocksize=64, quant_type="nf4")
    expected = dequantize_4bit(flat, state).reshape(shape)
    assert packed.weight.dtype == dtype
    assert torch.equal(packed.weight, expected)
    torch.testing.assert_close(packed.dequantised(torch.float32), by_hand(layer.weight.detach()), rtol=1e-6, atol=0)
    error = (packed.weight - layer.weight).float().norm() / layer.weight.float().norm()
    assert 0.01 < error < 0.15


def test_a_weight_takes_four_and_a_half_bits():
    packed = NF4Linear.pack(linear(128, 256, bias=False))
    assert 8 * sum(buffer.nbytes for buffer in packed.buffers()) == 4.5 * 128 * 256
    assert list(packed.parameters()) == []


@pytest.mark.parametrize("make", [linear, conv1d])
def test_forward_and_input_gradient_are_those_of_the_dequantised_weight(make):
    layer = make(48, 32)
    packed = NF4Linear.pack(layer)
    assert (features(packed), packed.transposed) == ((32, 48), make is conv1d)
    weight_OD = layer.weight.detach().T.contiguous() if make is conv1d else layer.weight.detach()
    expected_OD = by_hand(weight_OD)
    x, reference = (activations(2, 5, 32).requires_grad_() for _ in range(2))
    y, expected = packed(x), F.linear(reference, expected_OD, layer.bias.detach())
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
    upstream = activations(2, 5, 48)
    y.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, reference.grad, rtol=1e-6, atol=1e-6)
    assert (packed.frozen_product.forward(x, None) + layer.bias - y).abs().max() < 1e-6


def test_the_backward_is_the_derivative_of_the_forward():
    for bias in (True, False):
        packed = NF4Linear.pack(linear(6, 10, bias=bias))
        x = activations(2, 3, 10, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(packed, (x,))


def test_a_product_dequantises_once_each_way_and_keeps_nothing(dequantisations):
    packed = NF4Linear.pack(linear(48, 32))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = packed(activations(2, 5, 32).requires_grad_())
    assert (len(dequantisations), kept) == (1, [])
    y.sum().backward()
    assert len(dequantisations) == 2
    assert not packed(activations(2, 5, 32)).requires_grad
    with torch.no_grad():
        packed(activations(2, 5, 32).requires_grad_())
    assert len(dequantisations) == 4


def test_bfloat16_activations_are_as_good_as_their_dtype():
    packed = NF4Linear.pack(linear(48, 64, dtype=torch.bfloat16))
    x = activations(3, 64, dtype=torch.bfloat16).requires_grad_()
    y = packed(x)
    exact = F.linear(x.double(), packed.dequantised(torch.float64), packed.bias.double())
    assert y.dtype == torch.bfloat16
    assert (y - exact).abs().max() < 2**-7 * exact.abs().max()
    y.sum().backward()
    exact_gradient = packed.dequantised(torch.float64).sum(0).expand(3, -1)
    assert x.grad.dtype == torch.bfloat16
    assert (x.grad - exact_gradient).abs().max() < 2**-6 * exact_gradient.abs().max()


def test_train_eval_train_gives_the_same_outputs_and_gradients():
    packed = NF4Linear.pack(linear(48, 32).train())
    assert packed.training
    seen = []
    for mode in (True, False, True):
        packed.train(mode)
        x = activations(4, 32).requires_grad_()
        y = packed(x)
        y.square().sum().backward()
        seen.append((y.detach(), x.grad))
    assert all(torch.equal(y, seen[0][0]) and torch.equal(gradient, seen[0][1]) for y, gradient in seen)
    assert seen[0][1].abs().max() > 0


def test_casts_and_copies_do_not_touch_the_packed_weight():
    packed = NF4Linear.pack(linear(48, 32))
    before = packed.dequantised(torch.float32)
    for change in (nn.Module.half, nn.Module.bfloat16, nn.Module.double, copy.deepcopy, lambda m: m.to("cpu", torch.float32)):
        packed = change(packed)
        assert torch.equal(packed.dequantised(torch.float32), before)
    other = NF4Linear.pack(linear(48, 32))
    other.packed.zero_()
    assert not torch.equal(other.dequantised(torch.float32), before)
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other.dequantised(torch.float32), before)


@pytest.mark.parametrize(("family", "task_type"), FORMS)
def test_a_stack_on_packed_layers_equals_peft_on_the_dequantised_weights(family, task_type, tiny_model):
    model, twin, heads = quantised(tiny_model(family, task_type, torch.float32), task_type)
    stack = stack_of(model, heads, WHOLE if family == "gpt2" else KINDS)
    losses_N = losses_of(model, stack.num_slots)
    leaves = {spec.name: stack.parameters[spec.name] for spec in stack.parameters.specs}
    gradients = dict(zip(leaves, torch.autograd.grad(losses_N.sum(), leaves.values()), strict=True))
    compared = 0
    for index, slot in enumerate(stack.slots):
        r = slot.placements[0].r
        config = peft.LoraConfig(
            task_type=task_type, r=r, lora_alpha=3, bias=slot.bias, modules_to_save=list(heads) or None,
            target_modules=sorted({placement.target.module for placement in slot.placements}),
            fan_in_fan_out=family == "gpt2",
        )  # fmt: skip
        wrapped = peft.get_peft_model(copy.deepcopy(twin), config, autocast_adapter_dtype=False).eval()
        named = dict(wrapped.named_parameters())
        weights = stack.read(index)
        own = {}
        for module in weights.lora_A:
            for kind, values in (("lora_A", weights.lora_A), ("lora_B", weights.lora_B)):
                name = f"base_model.model.{module}.{kind}.default.weight"
                with torch.no_grad():
                    named[name].copy_(values[module])
                own[name] = gradients[f"{module}.{kind}"][index]
                own[name] = own[name][:r] if kind == "lora_A" else own[name][:, :r]
        for name in weights.heads:
            head = next(head for head in heads if name.startswith(f"{head}."))
            inside = name.removeprefix(f"{head}.")
            own[f"base_model.model.{head}.modules_to_save.default.{inside}"] = gradients[name][index]
        loss = losses_of(wrapped)[0]
        torch.testing.assert_close(losses_N[index], loss, rtol=1e-5, atol=0)
        for name, theirs in zip(own, torch.autograd.grad(loss, [named[name] for name in own]), strict=True):
            torch.testing.assert_close(own[name], theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.abs().max())), msg=name)
            compared += float(theirs.abs().max()) > 1e-4
    stack.detach()
    assert compared > 10


@pytest.mark.parametrize(("family", "task_type"), FORMS)
def test_a_stack_on_packed_layers_equals_one_on_the_dequantised_weights(family, task_type, tiny_model):
    model, twin, heads = quantised(tiny_model(family, task_type, torch.float32), task_type)
    stacks = [stack_of(each, heads) for each in (model, twin)]
    losses = [losses_of(each, 3) for each in (model, twin)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    names = [spec.name for spec in stacks[0].parameters.specs]
    assert names == [spec.name for spec in stacks[1].parameters.specs]
    ours, theirs = (
        torch.autograd.grad(loss.sum(), [stack.parameters[name] for name in names])
        for stack, loss in zip(stacks, losses, strict=True)
    )
    for name, own, reference in zip(names, ours, theirs, strict=True):
        atol = 1e-5 * max(1.0, float(reference.abs().max()))
        torch.testing.assert_close(own, reference, rtol=0, atol=atol, msg=name)
    assert max(float(gradient.abs().max()) for gradient in ours) > 1e-2


def test_one_dequantisation_serves_all_slots(tiny_model, dequantisations):
    counts = []
    for num_slots in (1, 3):
        model, _, heads = quantised(tiny_model("bert", "SEQ_CLS", torch.float32), "SEQ_CLS")
        stack = stack_of(model, heads, ranks=(2, 2, 2)[:num_slots])
        dequantisations.clear()
        losses = losses_of(model, num_slots)
        num_forward = len(dequantisations)
        losses.sum().backward()
        assert num_forward == len(set(map(id, dequantisations))) == 13  # six layers in each of two blocks, and the pooler
        counts.append(len(dequantisations))
        stack.detach()
    # The query's adapter in the first block is the lowest: no gradient goes through its frozen layer, the key or the value.
    assert counts[0] == 2 * 13 - 3
    assert counts[1] <= 2 * 13


@pytest.mark.parametrize(("family", "task_type"), FORMS)
def test_the_base_is_the_same_to_the_bit_after_training_on_it(family, task_type, tiny_model):
    plain = weights_checksum(tiny_model(family, task_type, torch.float32), ())
    model, _, heads = quantised(tiny_model(family, task_type, torch.float32), task_type)
    before = weights_checksum(model, heads)
    stack = stack_of(model, heads)
    stack.parameters.accumulate_gradients(losses_of(model, 3).sum())
    assert weights_checksum(model, heads) == before != plain
    assert stack.base_gradients() == 0
    stack.detach()
    assert weights_checksum(model, heads) == before
    layer = next(module for module in model.modules() if isinstance(module, NF4Linear))
    layer.absmax_bytes[0] ^= 1
    assert weights_checksum(model, heads) != before


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama", "phi3"])
def test_an_exported_adapter_loads_in_peft_on_the_unquantised_base(family, tiny_model, tmp_path):
    task_type = "SEQ_CLS" if family == "bert" else "CAUSAL_LM"
    plain = tiny_model(family, task_type, torch.float32)
    model, twin, heads = quantised(copy.deepcopy(plain), task_type)
    configs = {}
    for name, base in (("nf4", model), ("plain", copy.deepcopy(plain))):
        stack = stack_of(base, heads)
        (tmp_path / name).mkdir()
        write_adapter(
            tmp_path / name, stack.read(1), stack.slots[1], base, heads=heads, base_model="", task_type=task_type
        )  # fmt: skip
        configs[name] = json.loads((tmp_path / name / "adapter_config.json").read_text())
        if name == "nf4":
            with torch.no_grad():
                ours = base(input_ids=IDS[:1].repeat(3, 1), attention_mask=MASK[:1].repeat(3, 1)).logits[1:2]
        stack.detach()
    assert configs["nf4"] == configs["plain"]
    assert configs["nf4"]["fan_in_fan_out"] == (family == "gpt2")
    outputs = []
    for base in (twin, plain):
        wrapped = peft.PeftModel.from_pretrained(base, str(tmp_path / "nf4"), autocast_adapter_dtype=False).eval()
        with torch.no_grad():
            outputs.append(wrapped(input_ids=IDS[:1], attention_mask=MASK[:1]).logits)
    torch.testing.assert_close(ours, outputs[0], rtol=1e-4, atol=1e-5)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4  # the base in full is another one


def test_a_missing_bitsandbytes_is_one_line_with_a_remedy(monkeypatch):
    check_installed()
    monkeypatch.setattr("lorascope.lora.quantised.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"base\.quantization: .*not installed; pip install 'lorascope\[quant\]'"):
        check_installed()
