"""The arithmetic of one stacked layer, against the formula, in float64.

Legend: N slots, B rows, T tokens, D in, O out, R rank.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lorascope.lora import streams
from lorascope.lora.layer import DropoutPlan, Part, SlotContext, StackedDropout, StackedLayerNorm, StackedLinear

N, B, T, D, O, R = 3, 2, 4, 5, 6, 2  # noqa: E741
SCALING = torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64)
# The first row has four tokens and the second three; the second row's tokens follow the first's.
ROWS = [[[(0, 4)], [(4, 3)]]] * N


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frozen_layer(kind):
    layer = nn.Linear(D, O) if kind == "linear" else Conv1D(O, D)
    layer = layer.double().requires_grad_(False)
    layer.weight.copy_(random(*layer.weight.shape, seed=1))
    layer.bias.copy_(random(O, seed=2))
    return layer


def stacked(kind="linear", dropouts=(0.0,) * N, step=None):
    """A layer of three slots with random A's and B's everywhere."""
    context = SlotContext([1, 1, 2], None if step is None else DropoutPlan(step, ROWS))
    layer = StackedLinear(frozen_layer(kind), "h.0.attn", context)
    layer.dropouts = list(dropouts)
    layer.parts["whole"] = Part(0, O, SCALING, random(N, R, D, seed=3), random(N, O, R, seed=4))
    return layer


def weight_OD(layer):
    return layer.frozen.weight.T if isinstance(layer.frozen, Conv1D) else layer.frozen.weight


def expected(layer, x_NBTD, masks=(1.0,) * N):
    """The formula, slot by slot and part by part."""
    outputs = []
    for slot in range(N):
        y = x_NBTD[slot] @ weight_OD(layer).T + layer.frozen.bias
        for part in layer.parts.values():
            update = ((x_NBTD[slot] * masks[slot]) @ part.lora_A_NRD[slot].T) @ part.lora_B_NOR[slot].T
            y[..., part.start : part.stop] += part.scaling_N[slot] * update
        outputs.append(y)
    return torch.stack(outputs)


def assert_equal(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_every_slot_adds_its_own_low_rank_update_to_the_frozen_product(kind):
    layer = stacked(kind)
    x_NBTD = random(N, B, T, D)
    assert_equal(layer(x_NBTD.reshape(N * B, T, D)).reshape(N, B, T, O), expected(layer, x_NBTD))
    assert_equal(layer(x_NBTD[:, :, 0].reshape(N * B, D)).reshape(N, B, O), expected(layer, x_NBTD[:, :, 0]))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_slices_of_a_fused_layer_are_updated_apart(kind):
    layer = stacked(kind)
    layer.parts = {
        "query": Part(0, 2, SCALING, random(N, R, D, seed=5), random(N, 2, R, seed=6)),
        "value": Part(4, 6, SCALING.flip(0), random(N, 1, D, seed=7), random(N, 2, 1, seed=8)),
    }
    x_NBTD = random(N, B, T, D)
    y_NBTO = layer(x_NBTD.reshape(N * B, T, D)).reshape(N, B, T, O)
    assert_equal(y_NBTO, expected(layer, x_NBTD))
    assert_equal(y_NBTO[..., 2:4], (x_NBTD @ weight_OD(layer).T + layer.frozen.bias)[..., 2:4])


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_trained_weight_and_bias_take_the_place_of_the_frozen_ones(kind):
    layer = StackedLinear(frozen_layer(kind), "head", SlotContext([1, 1, 2]))
    x_NBTD = random(N, B, T, D)
    x = x_NBTD.reshape(N * B, T, D)
    bias_NO = random(N, O, seed=5)
    layer.trained_bias = bias_NO
    assert_equal(layer(x).reshape(N, B, T, O), x_NBTD @ weight_OD(layer).T + bias_NO[:, None, None])
    weight_NOD = random(N, O, D, seed=6)
    layer.trained_weight = weight_NOD if kind == "linear" else weight_NOD.transpose(1, 2)
    product_NBTO = torch.einsum("nbtd,nod->nbto", x_NBTD, weight_NOD)
    assert_equal(layer(x).reshape(N, B, T, O), product_NBTO + bias_NO[:, None, None])
    layer.trained_bias = None
    assert_equal(layer(x).reshape(N, B, T, O), product_NBTO + layer.frozen.bias)


def test_dropout_acts_on_the_adapters_input_alone_and_with_each_slots_own_mask():
    probabilities = (0.5, 0.0, 0.3)
    layer = stacked(dropouts=probabilities, step=7)
    x_NBTD = random(N, B, T, D)
    masks = [
        streams.keep_mask(p, D, ROWS[slot], T, 7, "h.0.attn", seed=layer.context.seeds[slot]).double() if p else 1.0
        for slot, p in enumerate(probabilities)
    ]
    assert set(masks[0].unique().tolist()) == {0.0, 2.0}
    y = layer(x_NBTD.reshape(N * B, T, D)).reshape(N, B, T, O)
    assert_equal(y, expected(layer, x_NBTD, masks))
    layer.context.dropout = DropoutPlan(8, ROWS)
    assert not torch.equal(layer(x_NBTD.reshape(N * B, T, D)).reshape(N, B, T, O), y)
    layer.context.dropout = None
    assert_equal(layer(x_NBTD.reshape(N * B, T, D)).reshape(N, B, T, O), expected(layer, x_NBTD))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_gradients_of_adapters_and_input_are_those_of_finite_differences(kind, probability):
    layer = stacked(kind, [probability] * N, step=3)
    layer.parts["slice"] = Part(1, 3, SCALING, random(N, 1, D, seed=5), random(N, 2, 1, seed=6))

    def forward(x, bias, *leaves):
        layer.trained_bias = bias
        for part, lora_A, lora_B in zip(layer.parts.values(), leaves[::2], leaves[1::2], strict=True):
            part.lora_A_NRD, part.lora_B_NOR = lora_A, lora_B
        return layer(x)

    leaves = [leaf for part in layer.parts.values() for leaf in (part.lora_A_NRD, part.lora_B_NOR)]
    inputs = [random(N * B, T, D), random(N, O, seed=9), *leaves]
    assert torch.autograd.gradcheck(forward, [value.requires_grad_() for value in inputs], fast_mode=False)


def test_a_smaller_ranks_padding_contributes_nothing_and_gets_no_gradient():
    layer = stacked()
    part = layer.parts["whole"]
    x = random(N * B, T, D)
    narrow = layer(x)
    lora_A = F.pad(part.lora_A_NRD, (0, 0, 0, 3)).requires_grad_()
    lora_B = F.pad(part.lora_B_NOR, (0, 3)).requires_grad_()
    part.lora_A_NRD, part.lora_B_NOR = lora_A, lora_B
    wide = layer(x)
    assert_equal(wide.detach(), narrow)
    (wide**2).sum().backward()
    assert not lora_A.grad[:, R:].any()
    assert not lora_B.grad[:, :, R:].any()
    assert lora_A.grad[:2, :R].abs().min() > 0
    assert lora_B.grad[:2, :, :R].abs().min() > 0


def test_a_scaling_of_zero_leaves_the_place_alone():
    layer = stacked()
    part = layer.parts["whole"]
    part.lora_A_NRD.requires_grad_()
    part.lora_B_NOR.requires_grad_()
    x = random(N * B, T, D)
    y = layer(x).reshape(N, B, T, O)
    assert_equal(y[2].detach(), layer.frozen(x).reshape(N, B, T, O)[2])
    assert not torch.equal(y[1].detach(), layer.frozen(x).reshape(N, B, T, O)[1])
    (y**2).sum().backward()
    assert not part.lora_A_NRD.grad[2].any()
    assert not part.lora_B_NOR.grad[2].any()


def test_an_update_is_computed_in_the_adapters_precision_and_returned_in_the_layers():
    layer = stacked()
    wanted = expected(layer, random(N, B, T, D).bfloat16().double()).reshape(N * B, T, O)
    layer.frozen.to(torch.bfloat16)
    part = layer.parts["whole"]
    part.lora_A_NRD, part.lora_B_NOR, part.scaling_N = (
        value.float() for value in (part.lora_A_NRD, part.lora_B_NOR, part.scaling_N)
    )
    y = layer(random(N, B, T, D).reshape(N * B, T, D).bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), wanted, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("trained", [["bias"], ["weight"], ["weight", "bias"], []])
def test_a_layer_norm_trains_its_bias_and_weight_once_per_slot(trained):
    frozen = nn.LayerNorm(D, eps=1e-3).double().requires_grad_(False)
    frozen.weight.copy_(random(D, seed=1))
    frozen.bias.copy_(random(D, seed=2))
    layer = StackedLayerNorm(frozen, "norm", SlotContext([1, 1, 2]))
    own = {name: random(N, D, seed=seed) for seed, name in enumerate(trained, start=3)}
    for name, value in own.items():
        setattr(layer, f"trained_{name}", value)
    x_NBTD = random(N, B, T, D)
    y_NBTD = layer(x_NBTD.reshape(N * B, T, D)).reshape(N, B, T, D)
    for slot in range(N):
        weight = own["weight"][slot] if "weight" in own else frozen.weight
        bias = own["bias"][slot] if "bias" in own else frozen.bias
        assert_equal(y_NBTD[slot], F.layer_norm(x_NBTD[slot], (D,), weight, bias, 1e-3))


def test_the_bases_dropout_is_drawn_per_slot_and_off_while_evaluating():
    context = SlotContext([1, 1, 2], DropoutPlan(0, ROWS))
    layer = StackedDropout(nn.Dropout(0.5), "drop", context)
    x = torch.ones(N * B, T, D, dtype=torch.float64)
    y_NBTD = layer(x).reshape(N, B, T, D)
    assert set(y_NBTD[:, 0].unique().tolist()) == {0.0, 2.0}
    assert torch.equal(y_NBTD[0], y_NBTD[1]), "equal seeds draw equal masks"
    assert not torch.equal(y_NBTD[0], y_NBTD[2])
    context.dropout = None
    assert layer(x) is x


def test_the_wrapper_shows_the_frozen_weight_and_bias():
    layer = stacked()
    assert layer.weight is layer.frozen.weight
    assert layer.bias is layer.frozen.bias
