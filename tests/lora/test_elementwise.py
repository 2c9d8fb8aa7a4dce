"""Fused activations and norms against the modules that they take over, and those that they must leave alone."""

import copy

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from lorascope.base_model import weights_checksum
from lorascope.lora.elementwise import _RMSNorm, install

D = 32


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def norm_of(kind, dtype=torch.float32, epsilon=1e-6, offset=1.0):
    norm = kind(D, epsilon).to(dtype).requires_grad_(False)
    norm.weight.copy_(offset + 0.3 * random(D, seed=1))
    return norm


def value_and_gradient(module, x):
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(random(*x.shape, seed=9, dtype=x.dtype))
    return y.detach(), x.grad


def assert_close(found, wanted, dtype):
    tolerance = 8 * torch.finfo(dtype).eps
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert (one.double() - other.double()).norm() <= tolerance * other.double().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen2RMSNorm, T5LayerNorm, MT5LayerNorm])
def test_a_fused_norm_is_the_modules_own_in_value_and_gradient(kind, size, dtype):
    norm = norm_of(kind, dtype)
    x = size * random(2, 3, D, seed=2, dtype=dtype)
    own = value_and_gradient(norm, x)
    assert install(norm) == [kind.__name__]
    assert_close(value_and_gradient(norm, x), own, dtype)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh", "gelu_accurate", "gelu_fast"])
def test_a_fused_tanh_gelu_is_the_modules_own_in_value_and_gradient(name):
    module = copy.deepcopy(ACT2FN[name])
    x = torch.cat([random(200, dtype=torch.float32), torch.linspace(-20.0, 20.0, 101)])
    own = value_and_gradient(module, x)
    assert install(module) == [type(module).__name__]
    assert_close(value_and_gradient(module, x), own, torch.float32)


@pytest.mark.parametrize("name", ["gelu", "gelu_10", "gelu_python", "quick_gelu", "silu", "relu", "tanh", "mish"])
def test_another_activation_stays_as_it_is(name):
    module = copy.deepcopy(ACT2FN[name])
    assert install(module) == []
    assert "forward" not in module.__dict__


class EpsilonOutsideRMSNorm(nn.Module):
    """Adds its epsilon to the root, where the others add it to the mean of the squares."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)


class CentredRMSNorm(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("kind", [GemmaRMSNorm, EpsilonOutsideRMSNorm, CentredRMSNorm])
def test_a_norm_that_only_looks_alike_stays_as_it_is(kind, offset, dtype):
    """Gemma's multiplies with ``1 + weight``."""
    norm = norm_of(kind, dtype, offset=offset)
    assert install(norm) == []
    x = random(4, D, dtype=dtype)
    assert torch.equal(norm(x), kind.forward(norm, x))


def test_a_norm_that_rounds_in_another_order_is_equal_to_rounding():
    for dtype in (torch.float32, torch.bfloat16):
        norm = norm_of(Olmo2RMSNorm, dtype)
        own = value_and_gradient(norm, random(4, D, dtype=dtype))
        install(norm)
        assert_close(value_and_gradient(norm, random(4, D, dtype=dtype)), own, dtype)


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_the_norms_gradient_is_that_of_finite_differences(size):
    weight = 1.0 + 0.3 * random(D, seed=1)
    x = (size * random(3, D, seed=2)).requires_grad_()
    step = 1e-6 * size
    assert torch.autograd.gradcheck(lambda x: _RMSNorm.apply(x, weight, 1e-6), [x], eps=step, atol=1e-5 / size)
    y = _RMSNorm.apply(x, weight, 1e-6)
    torch.testing.assert_close(y, weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt(), rtol=1e-12, atol=0)


def test_a_norm_of_zeros_has_no_nan():
    norm = norm_of(LlamaRMSNorm)
    install(norm)
    y, gradient = value_and_gradient(norm, torch.zeros(2, D))
    assert not y.any()
    assert torch.isfinite(gradient).all()


def test_an_installed_norm_reads_its_weight_where_it_lies_and_so_does_a_copy():
    norm = norm_of(LlamaRMSNorm)
    install(norm)
    x = random(2, D, dtype=torch.float32)
    before = norm(x)
    other = copy.deepcopy(norm)
    other.weight.mul_(2.0)
    torch.testing.assert_close(other(x), 2.0 * before)
    assert torch.equal(norm(x), before)


@pytest.mark.parametrize(
    ("family", "taken"), [("gpt2", "NewGELUActivation"), ("llama", "LlamaRMSNorm"), ("qwen2", "Qwen2RMSNorm")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_models_logits_and_gradients_stay_what_they_were(family, taken, dtype, tiny_model):
    model = tiny_model(family, "CAUSAL_LM", dtype).requires_grad_(False)
    embedded = model.get_input_embeddings()(torch.tensor([[5, 9, 14, 60, 7], [8, 8, 31, 2, 90]])).detach()
    checksum = weights_checksum(model, ())
    names = set(model.state_dict())

    def run(inputs):
        return model(inputs_embeds=inputs).logits

    logits = run(embedded)
    inputs = embedded.clone().requires_grad_()
    (own,) = torch.autograd.grad(run(inputs).float().logsumexp(-1).sum(), inputs)
    assert install(model) == [taken]
    assert (weights_checksum(model, ()), set(model.state_dict())) == (checksum, names)
    tolerance = 40 * torch.finfo(dtype).eps
    fused = run(embedded)
    assert (fused - logits).norm() <= tolerance * logits.norm()
    (gradient,) = torch.autograd.grad(run(inputs).float().logsumexp(-1).sum(), inputs)
    assert (gradient - own).norm() <= tolerance * own.norm()
    assert own.norm() > 0.0


def test_float64_keeps_modules_that_compute_in_float32(tiny_model):
    """transformers' norms do; the fused one would not, and the difference would be more than rounding."""
    assert install(tiny_model("llama", "CAUSAL_LM")) == []
