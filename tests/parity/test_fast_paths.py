"""Invariants 1 and 3 on every path of frozen products, fused element-wise work included: the float64 losses and gradients."""

import copy

import pytest
import torch

from lorascope.base_model import BaseModel, head_modules
from lorascope.data.record import Example
from lorascope.lora import elementwise, frozen
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.train import forward_backward

# Largest difference of a slot's loss, and of its gradient as a whole, relative to the float64 ones.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 1e-1)}
PATHS = {torch.float32: ("plain", "medium", "packed"), torch.bfloat16: ("plain", "float32")}
CASES = [(dtype, path) for dtype, paths in PATHS.items() for path in paths]


def examples_of(task_type):
    generator = torch.Generator().manual_seed(5)

    def drawn(length):
        return torch.randint(4, 150, (length,), generator=generator).tolist()

    context = drawn(20)
    rows = [context + drawn(length) for length in (3, 6, 2)] + [drawn(9)]
    if task_type == "SEQ_CLS":
        return [Example(str(index), ids, None, index % 3, 0) for index, ids in enumerate(rows)]
    targets = [[place >= len(ids) - 2 for place in range(len(ids))] for ids in rows]
    return [Example(str(index), ids, targets[index], None, len(ids) - 2) for index, ids in enumerate(rows)]


def losses_and_gradients(model, task_type, dropout):
    model.config.pad_token_id = 0
    heads = head_modules(model, task_type)
    base = BaseModel(model, None, task_type, heads, (), "", plain_head=True)
    targets = resolve(model, "all-linear", heads)
    few = resolve(model, ["query", "value"], heads)
    slots = [
        Slot("all", 1, tuple(Placement(target, 3, 2.0) for target in targets), dropout),
        Slot("few", 1, tuple(Placement(target, 2, 1.0) for target in few)),
        Slot("other seed", 2, tuple(Placement(target, 1, 1.0) for target in few), dropout),
    ]
    stack = Stack(model, slots, heads)
    for index in range(len(slots)):
        weights = stack.read(index)
        generator = torch.Generator().manual_seed(index)
        for value in weights.lora_B.values():
            value += 0.1 * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
        stack.write(index, weights)
    rows = {1: [0, 1, 2, 3], 2: [3, 1]}
    rows = {seed: chosen if task_type == "CAUSAL_LM" else [0, 1, 3, seed] for seed, chosen in rows.items()}
    losses_N = forward_backward(stack, base, examples_of(task_type), rows, None, 4)
    gradients_NP = stack.parameters.gradients_NP.double().clone()
    stack.detach()
    assert base.packs is (True if task_type == "CAUSAL_LM" else None)
    return losses_N, gradients_NP


def torchs_medium_error():
    """Of torch's own product, whatever this project's paths make of it."""
    one, other = torch.randn(64, 64), torch.randn(64, 64)
    own = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    product = one @ other
    torch.set_float32_matmul_precision(own)
    exact = one.double() @ other.double()
    return float((product - exact).norm() / exact.norm())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("dtype", "path"), CASES, ids=lambda value: str(value).removeprefix("torch."))
@pytest.mark.parametrize(
    ("family", "task_type"), [("gpt2", "CAUSAL_LM"), ("qwen2", "CAUSAL_LM"), ("llama", "CAUSAL_LM"), ("bert", "SEQ_CLS")]
)
def test_a_stack_on_a_fast_path_has_the_float64_losses_and_gradients(family, task_type, dtype, path, dropout, tiny_model):
    model = tiny_model(family, task_type, dtype)
    exact = copy.deepcopy(model).double()
    wanted = losses_and_gradients(exact, task_type, dropout)
    if frozen._try(next(iter(frozen._linears(model, ()).values())), path) is None:
        pytest.skip(f"this processor or build has no {path} product in {dtype}")
    if path == "medium" and torchs_medium_error() > 1e-4:
        pytest.skip("this processor takes bfloat16 for medium, which is never chosen then")
    frozen.install(model, path, head_modules(model, task_type))
    fused = elementwise.install(model)
    assert bool(fused) == (family != "bert")
    losses_N, gradients_NP = losses_and_gradients(model, task_type, dropout)
    of_loss, of_gradient = TOLERANCE[dtype]
    torch.testing.assert_close(losses_N, wanted[0], rtol=of_loss, atol=0)
    differences_N = (gradients_NP - wanted[1]).norm(dim=1) / wanted[1].norm(dim=1)
    assert float(differences_N.max()) < of_gradient
