"""Products with a frozen weight: every path against torch's own, alone and under adapters, and how a path is chosen.

Legend: N slots, M rows, D in, O out, R rank.
"""

import copy

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lorascope.base_model import weights_checksum
from lorascope.lora import frozen
from lorascope.lora.frozen import Choice, Product, apply, choose, install, product_of, remove
from lorascope.lora.layer import DropoutPlan, Part, SlotContext, StackedLinear

D, O = 24, 40  # noqa: E741
N, M, R = 3, 5, 2
PATHS = ("plain", "medium", "float32", "packed")


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layer_of(kind="linear", bias=True, dtype=torch.float32):
    layer = Conv1D(O, D) if kind == "conv1d" else nn.Linear(D, O)
    layer = layer.requires_grad_(False).to(dtype)
    layer.weight.copy_(random(*layer.weight.shape, seed=1))
    layer.bias.copy_(random(O, seed=2))
    if not bias:
        layer.bias = None
    return layer


def product_by(path, layer):
    product = frozen._try(layer, path)
    if product is None:
        pytest.skip(f"this processor has no path {path} for {layer.weight.dtype}")
    return product


def weight_OD(layer):
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def relative(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def medium_is_bfloat16():
    """Whether this processor multiplies bfloat16 so fast that torch takes ``medium`` for it."""
    one, other = random(64, 64, seed=3), random(64, 64, seed=4)
    own = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    product = one @ other
    torch.set_float32_matmul_precision(own)
    return relative(product, one.double() @ other.double()) > 1e-4


def tolerance(path):
    return 1e-2 if path == "medium" and medium_is_bfloat16() else 1e-6


@pytest.fixture
def exact_medium(monkeypatch):
    """``medium`` as it is on a processor without fast bfloat16: float32."""
    if medium_is_bfloat16():
        monkeypatch.setattr(frozen._precision, "__enter__", lambda self: None)
        monkeypatch.setattr(frozen._precision, "__exit__", lambda self, *_: None)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_the_linear_layer_forward_and_backward(path, kind, bias):
    layer = layer_of(kind, bias)
    product = product_by(path, layer)
    for shape in [(D,), (1, D), (7, D), (2, 3, D)]:
        x = random(*shape, seed=3).requires_grad_()
        y = apply(product, x, layer.bias)
        gradient = random(*y.shape, seed=4)
        y.backward(gradient)
        wide = x.detach().double().requires_grad_()
        wanted = F.linear(wide, weight_OD(layer).double(), None if layer.bias is None else layer.bias.double())
        wanted.backward(gradient.double())
        assert y.shape == wanted.shape
        assert relative(y.detach(), wanted.detach()) < tolerance(path)
        assert relative(x.grad, wide.grad) < tolerance(path)
    columns = random(D, 7, seed=3).T
    assert relative(product.forward(columns, None), columns.double() @ weight_OD(layer).double().T) < tolerance(path)
    assert apply(product, random(0, D), layer.bias).shape == (0, O), "an expert that no token goes to"


@pytest.mark.parametrize("path", PATHS)
def test_a_path_leaves_torchs_settings_as_they_were(path):
    layer = layer_of()
    product = product_by(path, layer)
    own = torch.get_float32_matmul_precision()
    product.backward(product.forward(random(2, D), layer.bias))
    with pytest.raises(RuntimeError):
        product.forward(random(2, D + 1), None)
    assert torch.get_float32_matmul_precision() == own == "highest"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_the_plain_paths_gradient_is_that_of_finite_differences(kind, bias):
    layer = layer_of(kind, bias, torch.float64)
    x = random(2, 3, D, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: apply(product_of(layer), x, layer.bias), [x])


def test_nothing_is_kept_for_the_backward_pass_and_none_runs_where_no_gradient_is_asked(monkeypatch):
    layer = layer_of()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor):
        y = apply(product_of(layer), random(7, D).requires_grad_(), layer.bias)
        assert kept == []
        F.linear(random(7, D).requires_grad_(), layer.weight.clone().requires_grad_())
        assert kept, "torch's own keeps input and weight"
    assert y.requires_grad
    assert not apply(product_of(layer), random(7, D), layer.bias).requires_grad
    calls = []
    monkeypatch.setattr(Product, "backward", lambda self, gradient: calls.append(1) or gradient[..., :D])
    later = random(7, O).requires_grad_()
    (apply(product_of(layer), random(7, D), layer.bias) * later).sum().backward()
    assert calls == []
    y.sum().backward()
    assert calls == [1]


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_bfloat16_product_in_float32_is_no_worse_than_the_processors_own(kind):
    layer = layer_of(kind, dtype=torch.bfloat16)
    x, gradient = random(64, D, seed=3).bfloat16(), random(64, O, seed=4).bfloat16()
    exact = x.double() @ weight_OD(layer).double().T + layer.bias.double()
    exact_back = gradient.double() @ weight_OD(layer).double()
    own, wide = Product(layer, "plain"), Product(layer, "float32")
    assert wide.forward(x, layer.bias).dtype == wide.backward(gradient).dtype == torch.bfloat16
    assert relative(wide.forward(x, layer.bias), exact) <= 1.05 * relative(own.forward(x, layer.bias), exact)
    assert relative(wide.backward(gradient), exact_back) <= 1.05 * relative(own.backward(gradient), exact_back)
    assert relative(wide.forward(x, layer.bias), exact) < 3e-3, "one rounding"


class Model(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.first = layer_of("linear", dtype=dtype)
        self.norm = nn.LayerNorm(O).requires_grad_(False).to(dtype)
        self.second = nn.Linear(O, D).requires_grad_(False).to(dtype)
        self.head = nn.Linear(D, 4).to(dtype)

    def forward(self, x):
        return self.head(self.second(self.norm(self.first(x))))


@pytest.mark.parametrize("path", PATHS)
def test_installing_changes_no_class_no_name_no_number_and_can_be_undone(path):
    model = Model()
    product_by(path, model.first)
    x = random(5, D).requires_grad_()
    before = model(x)
    (own,) = torch.autograd.grad(before.sum(), x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    names, classes = [name for name, _ in model.named_parameters()], [type(module) for module in model.modules()]
    checksum = weights_checksum(model, ("head",))

    for _ in range(2):
        install(model, path, ("head",))
    assert [type(module) for module in model.modules()] == classes
    assert [name for name, _ in model.named_parameters()] == names
    assert set(model.state_dict()) == set(state)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert weights_checksum(model, ("head",)) == checksum
    assert model.first.frozen_product.path == path
    assert "frozen_product" not in model.head.__dict__
    after = model(x)
    (gradient,) = torch.autograd.grad(after.sum(), x)
    assert relative(after.detach(), before.detach()) < tolerance(path)
    assert relative(gradient, own) < max(1e-5, tolerance(path))

    remove(model)
    assert torch.equal(model(x), before)
    assert not any("forward" in module.__dict__ or "frozen_product" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("path", PATHS)
def test_a_copy_of_the_model_computes_with_its_own_weights_or_is_refused(path):
    model = Model()
    product_by(path, model.first)
    install(model, path, ("head",))
    x = random(5, D)
    if path == "packed":
        with pytest.raises(NotImplementedError):
            copy.deepcopy(model)
        return
    other = copy.deepcopy(model)
    assert torch.equal(other(x), model(x))
    before = model(x)
    with torch.no_grad():
        other.first.weight.mul_(2.0)
    assert torch.equal(model(x), before)
    assert relative(other.first(x), F.linear(x, other.first.weight, other.first.bias)) < tolerance(path)
    assert other.first.frozen_product.weight_OD.data_ptr() == other.first.weight.data_ptr(), "no second copy of the weight"
    wide = copy.deepcopy(model).to(torch.bfloat16)
    assert wide(x.bfloat16()).dtype == torch.bfloat16


def test_a_weight_is_read_in_place():
    layer = layer_of()
    install(layer, "plain")
    assert product_of(layer).weight_OD.data_ptr() == layer.weight.data_ptr()


def with_rates(monkeypatch, rates, errors=None):
    """``choose`` measures as ever, then reads these GFLOP/s and errors."""
    measure = frozen._measure

    def measured(products):
        own_rates, own_errors = measure(products)
        return {path: rates.get(path, rate) for path, rate in own_rates.items()}, own_errors | (errors or {})

    monkeypatch.setattr(frozen, "_measure", measured)


@pytest.mark.parametrize(("best", "rest"), [("medium", "packed"), ("packed", "medium")])
def test_the_fastest_right_path_is_taken(best, rest, exact_medium, monkeypatch):
    product_by("packed", Model().first)
    with_rates(monkeypatch, {"plain": 10.0, rest: 20.0, best: 30.0})
    choice = choose(Model())
    assert (choice.path, choice.gflops[best]) == (best, 30.0)
    assert set(choice.gflops) == set(choice.errors) == {"plain", "medium", "packed"}
    assert max(choice.errors.values()) < 1e-6
    with_rates(monkeypatch, {"plain": 10.0, rest: 10.5, best: 10.9})
    assert choose(Model()).path == "plain", "a tenth is the least that pays"


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_a_path_with_too_large_an_error_is_not_taken_however_fast(error, exact_medium, monkeypatch):
    with_rates(monkeypatch, {"plain": 10.0, "medium": 1e6, "packed": 5.0})
    assert choose(Model()).path == "medium"
    forward = Product.forward

    def wrong(self, x, bias):
        return forward(self, x, bias) * (1.0 + error) if self.path == "medium" else forward(self, x, bias)

    monkeypatch.setattr(Product, "forward", wrong)
    choice = choose(Model())
    assert choice.path == "plain"
    assert not choice.errors["medium"] < 1e-4


def test_medium_is_not_taken_where_it_means_bfloat16(monkeypatch):
    if not medium_is_bfloat16():
        pytest.skip("on this processor medium is float32")
    with_rates(monkeypatch, {"plain": 10.0, "medium": 1e6, "packed": 5.0})
    assert choose(Model()).path == "plain"


def test_float64_and_a_model_without_linear_layers_stay_plain():
    assert choose(Model(torch.float64)) == Choice("plain")
    assert choose(nn.LayerNorm(4)) == Choice("plain")
    assert choose(Model(), skip=("first", "second", "head")) == Choice("plain")


def test_packing_needs_room_for_twice_the_weights(exact_medium, monkeypatch):
    model = Model()
    product_by("packed", model.first)
    with_rates(monkeypatch, {"plain": 10.0, "medium": 20.0, "packed": 30.0})
    needed = 2 * (model.first.weight.nbytes + model.second.weight.nbytes)
    assert choose(model, ("head",), free_bytes=needed).path == "packed"
    tight = choose(model, ("head",), free_bytes=needed - 1)
    assert tight.path == "medium"
    assert "packed" not in tight.gflops


def test_a_path_that_this_machine_lacks_is_left_out(monkeypatch):
    def missing(*_):
        raise RuntimeError("not compiled with oneDNN")

    monkeypatch.setattr(frozen, "_pack", missing)
    assert "packed" not in choose(Model()).gflops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choosing_changes_nothing_and_gives_a_path_that_can_be_installed(dtype):
    model = Model(dtype)
    state = torch.get_rng_state()
    checksum = weights_checksum(model, ())
    choice = choose(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_checksum(model, ()) == checksum
    assert all(rate > 0.0 for rate in choice.gflops.values())
    before = model(random(3, D).to(dtype))
    install(model, choice.path)
    assert relative(model(random(3, D).to(dtype)).detach(), before.detach()) < 4 * torch.finfo(dtype).eps


def test_a_weight_of_zeros_can_be_measured_too():
    """Blocks of some checkpoints start at zero."""
    model = nn.Sequential(nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)).requires_grad_(False)
    for layer in model:
        layer.weight.zero_()
    assert choose(model).errors["plain"] == 0.0


# A stacked layer over these products.


def stacked(layer, dtype, probability):
    context = SlotContext([1, 1, 2], DropoutPlan(3, [[[(0, M)]]] * N) if probability else None)
    wrapped = StackedLinear(layer, "h.0", context)
    wrapped.dropouts = [probability] * N
    scaling_N = torch.tensor([2.0, 0.5, 1.0], dtype=dtype)
    part = Part(0, O, scaling_N, random(N, R, D, seed=5, dtype=dtype), random(N, O, R, seed=6, dtype=dtype))
    part.lora_A_NRD.requires_grad_()
    part.lora_B_NOR.requires_grad_()
    wrapped.parts["whole"] = part
    return wrapped, part


@pytest.mark.parametrize("probability", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("path", PATHS)
def test_a_stacked_layer_is_the_composition_of_plain_operations_on_every_path(path, kind, probability):
    layer = layer_of(kind)
    product_by(path, layer)
    install(layer, path)
    wrapped, part = stacked(layer, torch.float32, probability)
    x = random(N, M, D, seed=3).requires_grad_()
    y = wrapped(x)
    gradient = random(N, M, O, seed=4)
    y.backward(gradient)
    mask_NMD = torch.ones(N, M, D)
    if probability:
        mask_NMD = wrapped.context.dropout_mask([probability] * N, "h.0", x.detach()[:, None])[:, 0]
        assert set(mask_NMD.unique().tolist()) == {0.0, 2.0}
    leaves = [value.detach().double().requires_grad_() for value in (x, part.lora_A_NRD, part.lora_B_NOR)]
    wide_x, lora_A, lora_B = leaves
    low = torch.bmm(wide_x * mask_NMD.double(), lora_A.transpose(1, 2))
    update = torch.bmm(low, lora_B.transpose(1, 2)) * part.scaling_N.double()[:, None, None]
    wanted = F.linear(wide_x, weight_OD(layer).double(), layer.bias.double()) + update
    wanted.backward(gradient.double())
    assert relative(y.detach(), wanted.detach()) < tolerance(path)
    for found, leaf in zip((x, part.lora_A_NRD, part.lora_B_NOR), leaves, strict=True):
        assert relative(found.grad, leaf.grad) < tolerance(path)


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_a_stacked_layers_gradients_are_those_of_finite_differences(probability):
    wrapped, part = stacked(layer_of(dtype=torch.float64), torch.float64, probability)

    def forward(x, lora_A, lora_B):
        part.lora_A_NRD, part.lora_B_NOR = lora_A, lora_B
        return wrapped(x)

    inputs = [random(N, M, D, seed=3, dtype=torch.float64).requires_grad_(), part.lora_A_NRD, part.lora_B_NOR]
    assert torch.autograd.gradcheck(forward, inputs)


def test_nothing_but_the_adapters_gets_a_gradient_where_the_input_needs_none(monkeypatch):
    wrapped, part = stacked(layer_of(), torch.float32, 0.0)
    monkeypatch.setattr(Product, "backward", lambda *_: pytest.fail("no gradient was asked for"))
    wrapped(random(N, M, D)).sum().backward()
    assert part.lora_A_NRD.grad.abs().min() > 0.0
    assert part.lora_B_NOR.grad.abs().min() > 0.0
    assert wrapped.weight.grad is None


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_in_low_precision_under_adapters_in_float32_is_pefts(dtype, kind):
    wrapped, part = stacked(layer_of(kind, dtype=dtype), torch.float32, 0.0)
    x, gradient = random(N, M, D, seed=3).to(dtype).requires_grad_(), random(N, M, O, seed=4).to(dtype)
    y = wrapped(x)
    y.backward(gradient)
    tolerance = 2 * torch.finfo(dtype).eps
    for slot in range(N):
        reference = peft.tuners.lora.Linear(
            layer_of(kind, dtype=dtype), "default", peft.LoraConfig(r=R, lora_alpha=float(R * part.scaling_N[slot])), R,
            lora_alpha=float(R * part.scaling_N[slot]), fan_in_fan_out=kind == "conv1d",
        )  # fmt: skip
        lora_A, lora_B = reference.lora_A["default"].weight, reference.lora_B["default"].weight
        lora_A.data, lora_B.data = part.lora_A_NRD[slot].detach().clone(), part.lora_B_NOR[slot].detach().clone()
        own = x[slot].detach().clone().requires_grad_()
        theirs = reference(own)
        theirs.backward(gradient[slot])
        assert (y.dtype, x.grad.dtype, lora_A.grad.dtype) == (theirs.dtype, own.grad.dtype, torch.float32)
        assert relative(y[slot].detach(), theirs.detach()) < tolerance
        assert relative(x.grad[slot], own.grad) < tolerance
        assert relative(part.lora_A_NRD.grad[slot], lora_A.grad) < 1e-6
        assert relative(part.lora_B_NOR.grad[slot], lora_B.grad) < 1e-6
