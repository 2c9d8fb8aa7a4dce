"""Each check of the arithmetic passes here, and catches what it is there for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lorascope import train as train_module
from lorascope.data import tree
from lorascope.doctor import arithmetic
from lorascope.lora import layer
from lorascope.lora.layer import SlotContext, StackedLinear
from lorascope.lora.parameters import SlotParameters


@pytest.mark.parametrize(
    "name",
    ["frozen base", "gradients", "forward", "backward", "loss falls", "parameter counts", "prefix trees", "neighbours"],
)
def test_the_check_passes_here(name, check):
    result = check(name)
    assert result.status == "passed", result.showed
    assert result.showed
    assert result.figures


def test_the_global_generator_and_the_threads_are_left_as_they_were(check):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    check("loss falls")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_base_weight_that_moves_by_a_millionth_is_caught(check, monkeypatch, touched_base):
    monkeypatch.setattr(arithmetic, "train", touched_base(arithmetic.train))
    result = check("frozen base")
    assert result.status == "failed"
    assert "1 base tensors changed" in result.showed
    assert "checksum changed" in result.showed


def test_a_base_parameter_that_takes_a_gradient_is_caught(check, leak):
    assert "1 base parameters take a gradient" in check("frozen base").showed
    assert "1 base parameters take a gradient" in check("gradients").showed


def test_a_checksum_that_does_not_repeat_is_caught(check, monkeypatch):
    monkeypatch.setattr(arithmetic, "weights_checksum", lambda *_: "another")
    assert check("frozen base").showed == "the base's checksum changed"


def test_a_training_that_trains_nothing_is_caught(check, monkeypatch):
    monkeypatch.setattr(train_module, "learning_rate", lambda *_: 0.0)
    assert check("frozen base").showed == "nothing was trained"
    assert check("loss falls").status == "failed"


def test_a_gradient_in_a_neighbours_numbers_is_caught(check, monkeypatch):
    original = SlotParameters.accumulate_gradients

    def leaking(self, loss):
        original(self, loss)
        self.gradients_NP += 1e-9

    monkeypatch.setattr(SlotParameters, "accumulate_gradients", leaking)
    assert "numbers outside a slot's own adapters have one" in check("gradients").showed


def test_an_adapter_without_a_gradient_is_caught(check, monkeypatch):
    def nothing_of_the_second(self):
        self.gradients_NP[1] = 0.0

    monkeypatch.setattr(SlotParameters, "mask_gradients", nothing_of_the_second)
    assert "[256, 0] numbers" in check("gradients").showed


@pytest.mark.parametrize("factor", [1.001, 0.0])
def test_a_wrong_scaling_is_caught_by_the_forward_pass(factor, check, monkeypatch):
    original = StackedLinear._factors

    def scaled(self, active):
        lora_A, lora_B = original(self, active)
        return lora_A, factor * lora_B

    monkeypatch.setattr(StackedLinear, "_factors", scaled)
    assert "float64" in check("forward").showed
    assert check("forward").status == "failed"


def test_a_wrong_gradient_is_caught_by_the_backward_pass_alone(check, monkeypatch):
    original = layer._StackedProduct.backward

    def doubled(ctx, *gradients):
        x, none, grad_A, grad_B, *others = original(ctx, *gradients)
        return x, none, grad_A, 1.001 * grad_B, *others

    monkeypatch.setattr(layer._StackedProduct, "backward", staticmethod(doubled))
    result = check("backward")
    assert result.status == "failed"
    assert "float64 gradient" in result.showed
    assert "loss" not in result.showed
    assert check("forward").status == "passed"


def test_a_training_uphill_is_caught(check, monkeypatch):
    original = train_module.learning_rate
    monkeypatch.setattr(train_module, "learning_rate", lambda *arguments: -original(*arguments))
    result = check("loss falls")
    assert result.status == "failed"
    assert "next word" in result.showed


def test_a_miscounted_parameter_is_caught(check, monkeypatch):
    original = arithmetic.count_trainable
    monkeypatch.setattr(arithmetic, "count_trainable", lambda *arguments: original(*arguments) + 1)
    assert "r=4 on c_attn: [147457" in check("parameter counts").showed
    monkeypatch.setattr(arithmetic, "num_parameters", lambda model: 124_439_809)
    assert "GPT-2 has 124,439,809 parameters" in check("parameter counts").showed


def test_a_token_that_sees_its_neighbours_branch_is_caught(check, monkeypatch):
    original = train_module.tree_losses

    def leaking(base, forests):
        blurred = [replace(one, end_T=np.full_like(one.end_T, one.num_tokens), trees=[(0, one.num_tokens)]) for one in forests]
        return original(base, blurred)

    monkeypatch.setattr(train_module, "tree_losses", leaking)
    result = check("prefix trees")
    assert result.status == "failed"
    assert "float64 loss" in result.showed


def test_prefixes_that_nobody_shares_are_caught(check, monkeypatch):
    monkeypatch.setattr(tree, "SHORTEST_SHARED", 10**6)
    assert "what is shared is not found" in check("prefix trees").showed


def test_a_dropout_mask_that_depends_on_the_company_is_caught(check, monkeypatch):
    original = SlotContext.dropout_mask

    def counted(self, probabilities, module, *arguments):
        return original(self, probabilities, f"{module} of {self.num_slots}", *arguments)

    monkeypatch.setattr(SlotContext, "dropout_mask", counted)
    assert check("neighbours").status == "failed"


def test_a_gradient_clipped_by_its_neighbours_norm_is_caught(check, monkeypatch):
    original = train_module._norms

    def shared(gradients_NP):
        norms_N = original(gradients_NP)
        return norms_N.norm().expand_as(norms_N)

    monkeypatch.setattr(train_module, "_norms", shared)
    assert check("neighbours").status == "failed"


def test_a_neighbour_that_takes_moments_along_is_caught(check, monkeypatch):
    original = SlotParameters.keep

    def forgetting(self, slots):
        original(self, slots)
        self.second_moment_NP *= 1.01

    monkeypatch.setattr(SlotParameters, "keep", forgetting)
    assert check("neighbours").status == "failed"
