"""Training with random coalitions: who is drawn, and that tied slots are one adapter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.attribution.one_run import drawn_coalitions, shares_of, tie, tied_slots, train_with_coalitions
from lorascope.base_model import BaseModel, head_modules, weights_checksum
from lorascope.config import TrainConfig
from lorascope.data.task import Example
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.train import train

SETTINGS = TrainConfig(batch_size=8, epochs=2, learning_rate=1e-2)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.sampled_from([2, 4, 8, 16]), st.integers(0, 5), st.integers(0, 1000))
def test_every_player_is_in_half_of_a_steps_coalitions(num_players, num_slots, seed, step):
    players = [f"p{index}" for index in range(num_players)]
    coalitions = drawn_coalitions(players, num_slots, seed, step)
    assert len(coalitions) == num_slots
    assert all(sum(player in one for one in coalitions) == num_slots // 2 for player in players)
    assert all(one == frozenset(players) - other for one, other in zip(coalitions[::2], coalitions[1::2], strict=True))
    assert coalitions == drawn_coalitions(players, num_slots, seed, step)


def test_all_sizes_are_equally_likely():
    players = [f"p{index}" for index in range(5)]
    sizes = [len(one) for step in range(3000) for one in drawn_coalitions(players, 4, 1, step)]
    shares = [sizes.count(size) / len(sizes) for size in range(6)]
    assert shares == pytest.approx([1 / 6] * 6, abs=0.02)


@given(st.lists(st.integers(), min_size=1, max_size=40, unique=True), st.integers(1, 16))
def test_shares_are_of_one_size_and_leave_no_row_out(rows, num_shares):
    shares = shares_of(rows, num_shares)
    assert len(shares) == num_shares
    assert len({len(share) for share in shares}) == 1
    assert {row for share in shares for row in share} == set(rows)
    assert all(len(set(share)) == len(share) for share in shares)


def base_of(model, task_type):
    model.config.pad_token_id = 0
    heads = head_modules(model, task_type)
    return BaseModel(model, None, task_type, heads, (), weights_checksum(model, heads), plain_head=True)


def examples_for(task_type, count=20):
    generator = torch.Generator().manual_seed(5)
    examples = []
    for index in range(count):
        length = int(torch.randint(4, 11, (1,), generator=generator))
        ids = torch.randint(4, 150, (length,), generator=generator).tolist()
        causal = task_type == "CAUSAL_LM"
        target = [position >= length - 2 for position in range(length)] if causal else None
        examples.append(Example(str(index), ids, target, index % 3 if not causal else None, length - 2))
    return examples


def keys_of(base, players):
    return {player: [target.key for target in resolve(base.model, [player], base.heads)] for player in players}


def slot_for(base, players, dropout=0.0):
    return Slot("m", 3, tuple(Placement(target, 2, 2.0) for target in resolve(base.model, players, base.heads)), dropout)


@pytest.mark.parametrize(("family", "task_type"), [("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM")])
def test_tied_slots_stay_one_adapter_and_the_base_as_it_was(family, task_type, tiny_model):
    base = base_of(tiny_model(family, task_type), task_type)
    players = ["query", "value", "output"]
    keys, slot = keys_of(base, players), slot_for(base, players, dropout=0.2)
    stack = Stack(base.model, tied_slots(slot, 4), base.heads)
    try:
        tie(stack)
        before = stack.parameters.values_NP[0].clone()
        steps = list(train_with_coalitions(stack, base, examples_for(task_type), SETTINGS, 7, keys))
        values_KP = stack.parameters.values_NP
        assert [step.step for step in steps] == list(range(7))
        assert all(step.slots["m"].finite for step in steps)
        assert [step.num_examples for step in steps] == [8, 8, 4, 8, 8, 4, 8]
        assert torch.equal(values_KP, values_KP[:1].expand_as(values_KP))
        assert not torch.equal(values_KP[0], before)
        assert weights_checksum(base.model, base.heads) == base.checksum
    finally:
        stack.detach()


@pytest.mark.parametrize(("family", "task_type"), [("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM")])
def test_with_all_players_in_every_slot_it_is_ordinary_training(family, task_type, tiny_model, monkeypatch):
    monkeypatch.setattr(
        "lorascope.attribution.one_run.drawn_coalitions", lambda players, count, *_: [frozenset(players)] * count
    )
    base = base_of(tiny_model(family, task_type), task_type)
    examples, players = examples_for(task_type, 16), ["query", "value"]
    keys, slot = keys_of(base, players), slot_for(base, players)
    plain = Stack(base.model, [slot], base.heads)
    try:
        expected = [step.slots["m"].loss for step in train(plain, base, examples, {"m": SETTINGS})]
        weights = plain.parameters.values_NP[0].clone()
    finally:
        plain.detach()
    stack = Stack(base.model, tied_slots(slot, 4), base.heads)
    try:
        tie(stack)
        steps = list(train_with_coalitions(stack, base, examples, SETTINGS, 4, keys))
        if task_type == "SEQ_CLS":  # a share's mean loss over tokens is not the batch's
            assert [step.slots["m"].loss for step in steps] == pytest.approx(expected, abs=1e-9)
        torch.testing.assert_close(stack.parameters.values_NP[0], weights, rtol=0, atol=1e-8)
    finally:
        stack.detach()


def test_training_that_is_no_longer_finite_stops_there(tiny_model):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    players = ["query", "value"]
    keys, slot = keys_of(base, players), slot_for(base, players)
    stack = Stack(base.model, tied_slots(slot, 2), base.heads)
    try:
        tie(stack)
        stack.parameters.values_NP[:, 0] = float("nan")
        steps = list(train_with_coalitions(stack, base, examples_for("SEQ_CLS"), SETTINGS, 5, keys))
        assert len(steps) <= 2
        assert not steps[-1].slots["m"].finite
    finally:
        stack.detach()
