"""A saved adapter on its base: it answers as it did, or it is refused and the base is as it was."""

import pytest
import torch

from lorascope.adapter import stack_saved, stack_several
from lorascope.base_model import BaseModel, head_modules
from lorascope.errors import AdapterError
from lorascope.lora.peft_io import read_adapter, write_adapter
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve

IDS = torch.tensor([[2, 9, 33, 71, 12, 3], [2, 90, 14, 7, 8, 3]])


def base_of(model, new_parameters=()):
    return BaseModel(model, None, "SEQ_CLS", head_modules(model, "SEQ_CLS"), new_parameters, "", plain_head=True)


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def saved(tiny_model, tmp_path):
    """An adapter's directory, and the logits that it gave before it was written."""
    base = base_of(tiny_model("bert"))
    placements = tuple(Placement(target, 2, 1.5) for target in resolve(base.model, ["query", "up"], base.heads))
    slot = Slot("saved", 1, placements, bias="lora_only")
    stack = Stack(base.model, [slot], base.heads)
    weights = stack.read(0)
    generator = torch.Generator().manual_seed(1)
    for group in (weights.lora_B, weights.biases, weights.heads):
        for value in group.values():
            value += 0.2 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    stack.write(0, weights)
    logits = logits_of(base.model)
    write_adapter(tmp_path, weights, slot, base.model, heads=base.heads, base_model="", task_type="SEQ_CLS")
    stack.detach()
    return tmp_path, logits


def test_a_saved_adapter_answers_on_its_base_as_before_it_was_saved(saved, tiny_model):
    directory, logits = saved
    base = base_of(tiny_model("bert"), new_parameters=("classifier.weight", "classifier.bias"))
    untouched = logits_of(base.model)
    stack = stack_saved(base, read_adapter(directory), str(directory))
    torch.testing.assert_close(logits_of(base.model), logits, rtol=0, atol=1e-12)
    stack.detach()
    assert torch.equal(logits_of(base.model), untouched)
    assert (logits - untouched).abs().max() > 1e-2


def test_a_base_whose_new_head_the_adapter_does_not_bring_is_refused(saved, tiny_model):
    directory, _ = saved
    base = base_of(tiny_model("bert"), new_parameters=("bert.pooler.dense.weight",))
    with pytest.raises(AdapterError, match=r"holds no 'bert\.pooler.dense.weight', which the base model does not have either"):
        stack_saved(base, read_adapter(directory), "there")


def test_an_adapter_that_does_not_fit_is_refused_and_the_base_stays_as_it_was(saved, tiny_model):
    directory, _ = saved
    base = base_of(tiny_model("bert", num_labels=2))
    modules = {name: type(module) for name, module in base.model.named_modules()}
    with pytest.raises(AdapterError, match="check the base model and the number of labels"):
        stack_saved(base, read_adapter(directory), "there")
    assert {name: type(module) for name, module in base.model.named_modules()} == modules


def test_several_adapters_and_the_base_answer_as_each_alone(saved, tiny_model, tmp_path_factory):
    directory, logits = saved
    base = base_of(tiny_model("bert"))
    untouched = logits_of(base.model)
    other = tmp_path_factory.mktemp("other")
    placements = tuple(Placement(target, 5, 0.5) for target in resolve(base.model, ["value", "down"], base.heads))
    stack = Stack(base.model, [Slot("other", 3, placements)], base.heads)
    weights = stack.read(0)
    for value in weights.lora_B.values():
        value += 0.3
    stack.write(0, weights)
    others = logits_of(base.model)
    write_adapter(other, weights, stack.slots[0], base.model, heads=base.heads, base_model="", task_type="SEQ_CLS")
    stack.detach()
    adapters = {str(place): read_adapter(place) for place in (directory, other)}
    stack = stack_several(base, adapters, [Slot("base", 0, ())])
    with torch.no_grad():
        together = base.model(input_ids=IDS.repeat(3, 1)).logits.unflatten(0, (3, 2))
    torch.testing.assert_close(together, torch.stack([untouched, logits, others]), rtol=0, atol=1e-11)
    stack.detach()
    assert torch.equal(logits_of(base.model), untouched)
