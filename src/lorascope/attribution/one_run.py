"""One training with a random coalition for every part of a batch, so that all coalitions can be read off the result.

K slots hold the same numbers (they are *tied*): each computes a share of the batch with the adapters of its own coalition
alone, their gradients are averaged, and one update moves them all. A step costs what an ordinary one does. Knows which
coalitions are drawn and how tied slots train; does not know what the result is worth (``maps``). Floor: ``attribution``.

Legend: K slots, P numbers of one slot.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from lorascope.base_model import BaseModel
from lorascope.config import TrainConfig
from lorascope.data.packing import batch_order
from lorascope.data.task import Example
from lorascope.data.tree import sibling_groups
from lorascope.lora.stack import Slot, Stack
from lorascope.lora.streams import generator
from lorascope.shapley import Coalition
from lorascope.train import SlotStep, StepResult, adamw_step, fitting_gradients, learning_rate

# Coalitions of a step: more of them average the choice of coalition out, fewer leave each a larger share of the batch.
NUM_SLOTS = 8


def tied_slots(slot: Slot, num_slots: int) -> list[Slot]:
    """So many slots for one adapter. Each has a seed of its own, and with it its own share of the batch and dropout."""
    return [replace(slot, name=f"{slot.name}#{index}", seed=slot.seed + index) for index in range(num_slots)]


def tie(stack: Stack) -> None:
    """Give every slot the first one's numbers."""
    stack.parameters.values_NP.copy_(stack.parameters.values_NP[:1].clone().expand_as(stack.parameters.values_NP))


def drawn_coalitions(players: Sequence[str], num_slots: int, seed: int, step: int) -> list[Coalition]:
    """The coalitions of one step, in twos: a coalition and its complement.

    So every player is in exactly half of them. Sizes are equally likely from none to all, and within a step as different as
    they can be.

    Args:
        num_slots: even.
    """
    draw = generator(seed, "coalitions", step)
    num_pairs = num_slots // 2
    # One size from each of as many equal parts of 0..P, so that a step has small and large ones.
    shares = (np.arange(num_pairs) + draw.uniform(size=num_pairs)) / num_pairs
    coalitions: list[Coalition] = []
    for size in np.minimum((shares * (len(players) + 1)).astype(int), len(players)):
        members = frozenset(players[index] for index in draw.permutation(len(players))[:size])
        coalitions += [members, frozenset(players) - members]
    return coalitions


def train_with_coalitions(
    stack: Stack,
    base: BaseModel,
    examples: Sequence[Example],
    settings: TrainConfig,
    num_steps: int,
    keys: Mapping[str, Sequence[str]],
) -> Iterator[StepResult]:
    """Train the tied slots of ``stack`` for so many steps, each slot with other adapters switched off.

    Args:
        stack: of `tied_slots`, tied; an even number of them.
        settings: of the trial; the schedule is stretched over ``num_steps``.
        keys: by player the places of its adapters (``Target.key``).

    Yields:
        One result per step, of all slots as one; after one that is not finite nothing follows.
    """
    name = stack.slots[0].name.partition("#")[0]
    seed = stack.slots[0].seed
    groups = sibling_groups(examples)
    steps_per_epoch = settings.steps_per_epoch(len(examples))
    size = settings.micro_batch_size
    order: list[list[int]] = []
    for step in range(num_steps):
        started = time.perf_counter()
        epoch, index = divmod(step, steps_per_epoch)
        if index == 0:
            order = batch_order(groups, settings.batch_size, seed, epoch)
        for slot, coalition in enumerate(drawn_coalitions(list(keys), stack.num_slots, seed, step)):
            stack.set_active(slot, [key for player in coalition for key in keys[player]])
        shares = shares_of(order[index], stack.num_slots)
        rows_by_seed = dict(zip(stack.context.seeds, shares, strict=True))
        losses_K, size = fitting_gradients(stack, base, examples, rows_by_seed, size, step)
        gradients_KP = stack.parameters.gradients_NP
        gradients_KP.copy_((_weights(examples, shares).to(gradients_KP) @ gradients_KP).expand_as(gradients_KP))
        rate = learning_rate(settings, step, num_steps)
        rates, alike = [rate] * stack.num_slots, [settings] * stack.num_slots
        norms_K, finite_K = adamw_step(stack.parameters, losses_K, step, rates, alike)
        with torch.no_grad():
            tie(stack)
        finite = bool(finite_K.all())
        result = SlotStep(float(losses_K.mean()), float(norms_K[0]), rate, finite)
        num_tokens = sum(examples[row].num_tokens for share in shares for row in share)
        num_rows = sum(map(len, shares))
        seconds = time.perf_counter() - started
        yield StepResult(step, num_steps, epoch, {name: result}, num_rows, num_tokens, seconds, size)
        if not finite:
            return


def _weights(examples: Sequence[Example], shares: Sequence[Sequence[int]]) -> torch.Tensor:
    """Each share's part of the batch's supervised tokens (or examples) ``[K]``: a batch's loss is the mean over these."""
    counts = [sum(1 if examples[row].label is not None else examples[row].num_targets for row in rows) for rows in shares]
    return torch.tensor(counts, dtype=torch.float64) / sum(counts)


def shares_of(rows: Sequence[int], num_shares: int) -> list[list[int]]:
    """A batch in parts of one size, neighbours together; where it cannot be divided, the first rows are taken twice."""
    size = -(-len(rows) // num_shares)
    repeated = list(rows) * (-(-size * num_shares // len(rows)))
    return [repeated[start : start + size] for start in range(0, size * num_shares, size)]
