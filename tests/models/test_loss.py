"""The pre-training loss is cross-entropy, and so are both its gradients."""

import torch
from models.loss import next_token_loss
from torch.nn.functional import cross_entropy


def sample(seed=0):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 401, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randint(11, (3, 401), generator=draw)


def test_loss_and_gradients_are_those_of_cross_entropy_over_all_logits():
    # 1,203 positions: two whole chunks and a part of one.
    hidden, weight, targets = sample()
    expected = cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
    wanted = torch.autograd.grad(3.0 * expected, (hidden, weight))
    loss = next_token_loss(hidden, weight, targets, torch.float64)
    found = torch.autograd.grad(3.0 * loss, (hidden, weight))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_products_in_bfloat16_leave_the_sums_in_float32():
    hidden, weight, targets = sample(1)
    hidden, weight = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    expected = cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
    loss = next_token_loss(hidden, weight, targets, torch.bfloat16)
    loss.backward()
    assert loss.dtype == torch.float32
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.float32, torch.float32)
    assert abs(loss - expected) < 2e-2
    (wanted,) = torch.autograd.grad(expected, weight)
    assert (weight.grad - wanted).norm() < 3e-2 * wanted.norm()
