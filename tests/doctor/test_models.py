"""What the checks are made of: models that are the same every time, and updates by plain products."""

import pytest
import torch

from lorascope.doctor import models
from lorascope.lora.stack import AdapterWeights


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_a_model_is_the_same_every_time_and_draws_nothing_from_the_global_generator(family):
    state = torch.get_rng_state()
    one, other = models.make(family), models.make(family, torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, value), again in zip(one.named_parameters(), other.parameters(), strict=True):
        assert value.dtype == torch.float64
        assert torch.equal(value.float(), again), name
        assert value.abs().max() > 0
        assert not value.requires_grad


def test_updates_lie_where_the_slices_of_a_fused_projection_do():
    model = models.make("gpt2")
    slot = models.slot(model, "a", 1, ("value",), r=2, scaling=3.0)
    keys = [placement.target.key for placement in slot.placements]
    lora_A = {key: torch.arange(64.0).reshape(2, 32) for key in keys}
    lora_B = {key: torch.arange(64.0).reshape(32, 2) for key in keys}
    adapted = models.adapted_weights(model, AdapterWeights(slot.placements, lora_A, lora_B))
    assert set(adapted) == {f"transformer.h.{layer}.attn.c_attn.weight" for layer in (0, 1)}
    for name, value in adapted.items():
        difference = value - model.get_parameter(name)
        assert torch.equal(difference[:, :64], torch.zeros(32, 64, dtype=torch.float64))
        expected = 3.0 * (lora_B[keys[0]] @ lora_A[keys[0]]).double().T
        torch.testing.assert_close(difference[:, 64:], expected, rtol=1e-12, atol=1e-9)


def test_words_are_their_ids():
    tokenizer = models.tokenizer()
    assert tokenizer("w4 w63 nonsense")["input_ids"] == [2, 4, 63, 1, 3]
    assert len(tokenizer) == models.VOCABULARY


def test_examples_hold_what_they_are_for():
    assert all(sum(example.is_target) == 3 for example in models.rows())
    assert all((5 in example.input_ids) == bool(example.label) for example in models.classified())
    first, second, *_ = models.branching()
    assert second.input_ids[: len(first.input_ids)] == first.input_ids


def test_a_change_of_one_bit_is_seen():
    model = models.make("bert", torch.float32)
    before = models.copied(model)
    assert models.changed(before, model) == []
    next(model.parameters()).data.view(-1)[0] += 1e-6
    assert len(models.changed(before, model)) == 1


def test_a_stack_is_gone_when_it_breaks():
    base = models.as_base(models.make("gpt2"))
    names = [name for name, _ in base.model.named_modules()]
    with pytest.raises(ZeroDivisionError), models.installed(base, [models.slot(base.model, "a", 1)]):
        assert [name for name, _ in base.model.named_modules()] != names
        raise ZeroDivisionError
    assert [name for name, _ in base.model.named_modules()] == names
