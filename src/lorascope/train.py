"""THE LOOP: one optimiser step after another for every slot of a stack, each step handed to the caller as it is done.

Knows batches, losses, gradients, AdamW, clipping and the schedule. Does not know why it trains, what is stored or how results
are judged: the caller reads the steps, and may drop slots between two of them with ``stack.keep``. Floor: above ``lora``,
``data`` and ``base_model``.

Legend: N slots, B rows, T tokens, D hidden, K supervised positions, P numbers of one slot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lorascope.base_model import BaseModel
from lorascope.config import TrainConfig
from lorascope.data.packing import Batch, batch_order, collate, concatenate, micro_batches, token_spans
from lorascope.data.task import Example
from lorascope.data.tree import cut, sibling_groups
from lorascope.errors import RunError
from lorascope.lora.layer import DropoutPlan, Spans
from lorascope.lora.parameters import SlotParameters
from lorascope.lora.stack import Stack
from lorascope.losses import follows_trees, is_out_of_memory, padded_losses, release_memory, tree_losses

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
# So many numbers of a slot are cast to float64, or updated, at a time.
_MOST_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class MicroBatch:
    """For every slot and row the tokens that it holds, its decoder's too, and what runs the model: losses ``[N, E]``."""

    rows: list[list[Spans]]
    losses: Callable[[], Tensor]
    decoder_rows: list[list[Spans]] | None = None


@dataclass(frozen=True)
class SlotStep:
    """One slot's part of a step.

    ``loss`` and ``grad_norm`` are those before the update. ``finite`` is False where one of them is NaN or infinite, and then
    the slot was not updated; and where the updated values are so large that their squares overflow.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    finite: bool


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did.

    Attributes:
        step: from 0.
        epoch: from 0, the epoch that the step's batch belongs to.
        slots: by the slot's name.
        num_examples: of one slot's batch.
        num_tokens: of one slot's batch, a decoder's included, without padding.
        seconds: wall-clock time of the step.
        micro_batch_size: rows that a micro-batch may hold; None for all. Smaller than before where memory ran out.
    """

    step: int
    num_steps: int
    epoch: int
    slots: Mapping[str, SlotStep]
    num_examples: int
    num_tokens: int
    seconds: float
    micro_batch_size: int | None = None


def train(
    stack: Stack,
    base: BaseModel,
    examples: Sequence[Example],
    settings: Mapping[str, TrainConfig],
    first_step: int = 0,
) -> Iterator[StepResult]:
    """Train every slot of ``stack`` on ``examples``, in the order that its seed gives.

    Batches, learning rates and dropout masks are functions of the step and the seeds: with the parameters of a training that
    was broken off after n steps, ``first_step=n`` goes on as it would have.

    Args:
        settings: by slot name. Learning rate, warm-up, schedule, decay and clipping may differ between slots; ``epochs``,
            ``batch_size``, ``micro_batch_size`` and ``max_steps`` must not.
        first_step: how many steps are done already.

    Yields:
        One result per step. A slot whose loss or gradient is not finite is reported so and not updated; it, and one whose
        values overflow, must be dropped by the caller with ``stack.keep`` before the next step.
    """
    shared = next(iter(settings.values()))
    num_examples = len(examples)
    steps_per_epoch = shared.steps_per_epoch(num_examples)
    num_steps = shared.num_steps(num_examples)
    micro_batch_size = shared.micro_batch_size
    groups = sibling_groups(examples)
    orders: dict[int, list[list[int]]] = {}
    for step in range(first_step, num_steps):
        if not stack.slots:
            return
        started = time.perf_counter()
        epoch, index = divmod(step, steps_per_epoch)
        if index == 0 or not orders:
            orders = {seed: batch_order(groups, shared.batch_size, seed, epoch) for seed in set(stack.context.seeds)}
        rows_by_seed = {seed: orders[seed][index] for seed in dict.fromkeys(stack.context.seeds)}
        losses_N, micro_batch_size = fitting_gradients(stack, base, examples, rows_by_seed, micro_batch_size, step)
        rates = [learning_rate(settings[slot.name], step, num_steps) for slot in stack.slots]
        norms_N, finite_N = adamw_step(stack.parameters, losses_N, step, rates, [settings[slot.name] for slot in stack.slots])
        slots = {
            slot.name: SlotStep(loss, norm, rate, finite)
            for slot, loss, norm, rate, finite in zip(
                stack.slots, losses_N.tolist(), norms_N.tolist(), rates, finite_N.tolist(), strict=True
            )
        }
        rows = rows_by_seed[stack.context.seeds[0]]
        num_tokens = sum(examples[row].num_tokens for row in rows)
        seconds = time.perf_counter() - started
        yield StepResult(step, num_steps, epoch, slots, len(rows), num_tokens, seconds, micro_batch_size)


def fitting_gradients(
    stack: Stack,
    base: BaseModel,
    examples: Sequence[Example],
    rows_by_seed: Mapping[int, Sequence[int]],
    micro_batch_size: int | None,
    step: int,
) -> tuple[Tensor, int | None]:
    """As ``forward_backward``; where memory runs out, the micro-batch is halved and the whole batch done again.

    Returns:
        The losses ``[N]``, and the size of the micro-batches that fitted, for later batches.

    Raises:
        MemoryError, RuntimeError: a single example does not fit.
    """
    most = max(len(rows) for rows in rows_by_seed.values())
    while True:
        try:
            return forward_backward(stack, base, examples, rows_by_seed, micro_batch_size, step), micro_batch_size
        except (MemoryError, RuntimeError) as error:
            size = min(micro_batch_size or most, most)
            if size == 1 or not is_out_of_memory(error):
                raise
        # The handler is left first: the error holds the frames of the failed pass, and with them its tensors.
        micro_batch_size = size // 2
        release_memory(base.device)


def forward_backward(
    stack: Stack,
    base: BaseModel,
    examples: Sequence[Example],
    rows_by_seed: Mapping[int, Sequence[int]],
    micro_batch_size: int | None,
    step: int,
) -> Tensor:
    """Gradients of one optimiser batch, accumulated over its micro-batches; the slots' losses ``[N]``.

    The loss of a slot is the mean over its own batch's supervised tokens (or examples), however the batch is cut: as prefix
    trees where the base can follow them, else as padded rows of nearly equal length.
    """
    stack.parameters.zero_gradients()
    seeds = stack.context.seeds
    totals = {seed: _num_supervised(examples, rows) for seed, rows in rows_by_seed.items()}
    total_N = torch.tensor([totals[seed] for seed in seeds], dtype=torch.float64, device=base.device)
    losses_N = torch.zeros(len(seeds), dtype=torch.float64, device=base.device)
    cut_up = _trees if follows_trees(base, examples, len(seeds)) else _padded_rows
    for micro_batch in cut_up(base, examples, rows_by_seed, micro_batch_size, seeds):
        stack.context.dropout = DropoutPlan(step, micro_batch.rows, micro_batch.decoder_rows)
        sums_N = micro_batch.losses().sum(dim=1)
        stack.parameters.accumulate_gradients((sums_N / total_N.to(sums_N.dtype)).sum())
        losses_N += sums_N.detach().double() / total_N
    stack.context.dropout = None
    stack.parameters.mask_gradients()
    return losses_N


def _trees(
    base: BaseModel,
    examples: Sequence[Example],
    rows_by_seed: Mapping[int, Sequence[int]],
    micro_batch_size: int | None,
    seeds: Sequence[int],
) -> Iterator[MicroBatch]:
    """The batch as prefix trees, in one forward pass unless ``micro_batch_size`` says otherwise."""
    pieces = {seed: cut(examples, rows, micro_batch_size, None) for seed, rows in rows_by_seed.items()}
    for index in range(max(len(forests) for forests in pieces.values())):
        chosen = {seed: forests[index] if index < len(forests) else None for seed, forests in pieces.items()}
        spans = {seed: [[] if forest is None else token_spans(forest.origin_T)] for seed, forest in chosen.items()}
        yield MicroBatch([spans[seed] for seed in seeds], partial(tree_losses, base, [chosen[seed] for seed in seeds]))


def _padded_rows(
    base: BaseModel,
    examples: Sequence[Example],
    rows_by_seed: Mapping[int, Sequence[int]],
    micro_batch_size: int | None,
    seeds: Sequence[int],
) -> Iterator[MicroBatch]:
    """The batch cut into micro-batches of nearly equal length, at the same places for all seeds.

    The batch's members, and with them its gradient, stay what they were: losses are sums over rows, and dropout masks belong
    to tokens. An encoder–decoder's rows are as long as their two parts together.
    """
    chosen = {row for rows in rows_by_seed.values() for row in rows}
    lengths = {row: len(examples[row].input_ids) for row in chosen}
    decoder_lengths = {row: len(examples[row].target_ids or ()) for row in chosen}
    first = {seed: _first_tokens(lengths, rows) for seed, rows in rows_by_seed.items()}
    decoder_first = {seed: _first_tokens(decoder_lengths, rows) for seed, rows in rows_by_seed.items()}
    batches = list(rows_by_seed.values())
    for _, pieces in micro_batches(batches, lambda row: examples[row].num_tokens, micro_batch_size, len(seeds)):
        rows = dict(zip(rows_by_seed, pieces, strict=True))
        width, decoder_width = (max(of[row] for piece in pieces for row in piece) for of in (lengths, decoder_lengths))
        padded = partial(collate, examples, pad_id=base.pad_id, pad_to=width, targets_to=decoder_width)
        batch = concatenate([padded(rows[seed]) for seed in seeds])
        yield MicroBatch(
            [[[(first[seed][row], lengths[row])] for row in rows[seed]] for seed in seeds],
            partial(_padded_losses, base, batch, len(seeds)),
            [[[(decoder_first[seed][row], decoder_lengths[row])] for row in rows[seed]] for seed in seeds],
        )


def _padded_losses(base: BaseModel, batch: Batch, num_slots: int) -> Tensor:
    return padded_losses(base, batch).reshape(num_slots, -1)


def learning_rate(settings: TrainConfig, step: int, num_steps: int) -> float:
    """The rate of a step, from 0: transformers' linear, cosine and constant schedules with linear warm-up."""
    warmup_steps = math.ceil(num_steps * settings.warmup_ratio)
    if step < warmup_steps:
        return settings.learning_rate * step / max(1, warmup_steps)
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    return settings.learning_rate * max(0.0, 1.0 - progress)


@torch.no_grad()
def adamw_step(
    parameters: SlotParameters,
    losses_N: Tensor,
    step: int,
    rates: Sequence[float],
    settings: Sequence[TrainConfig],
) -> tuple[Tensor, Tensor]:
    """Clip each slot's gradient by its own norm and update it; a slot with a loss or norm that is not finite is left alone.

    Returns:
        Gradient norms before clipping ``[N]``, and whether each slot is finite, its updated values included ``[N]``.

    Source: Loshchilov and Hutter 2019; bias correction as in ``torch.optim.AdamW``.
    """
    gradients_NP, values_NP = parameters.gradients_NP, parameters.values_NP
    norms_N = _norms(gradients_NP).to(gradients_NP.dtype)
    finite_N = torch.isfinite(norms_N) & torch.isfinite(losses_N.to(norms_N.dtype))
    per_slot = partial(torch.tensor, dtype=values_NP.dtype, device=values_NP.device)
    clipping_N = (per_slot([one.max_grad_norm for one in settings]) / (norms_N + 1e-6)).clamp(max=1.0)
    rates_N = torch.where(finite_N, per_slot(rates), 0.0)
    decay_N = rates_N * per_slot([one.weight_decay for one in settings])
    beta1, beta2 = ADAM_BETAS
    rates_N = rates_N / (1.0 - beta1 ** (step + 1))
    lost_N = ~finite_N
    # Where a whole base trains, each temporary of all numbers at once would be as large as the base.
    for start in range(0, values_NP.shape[1], _MOST_NUMBERS_AT_ONCE):
        part = slice(start, start + _MOST_NUMBERS_AT_ONCE)
        gradients, values = gradients_NP[:, part], values_NP[:, part]
        first_moment, second_moment = parameters.first_moment_NP[:, part], parameters.second_moment_NP[:, part]
        gradients *= clipping_N[:, None]
        if bool(lost_N.any()):
            gradients[lost_N] = 0.0
        if bool(decay_N.any()):
            values.addcmul_(values, decay_N[:, None] * parameters.decays_P[part], value=-1.0)
        first_moment.lerp_(gradients, 1.0 - beta1)
        second_moment.mul_(beta2).addcmul_(gradients, gradients, value=1.0 - beta2)
        denominator = second_moment.sqrt().div_(math.sqrt(1.0 - beta2 ** (step + 1))).add_(ADAM_EPSILON)
        values.sub_(torch.div(first_moment, denominator, out=denominator).mul_(rates_N[:, None]))
        # Values whose squares overflow are lost, though a norm inside the model may hide it from loss and gradient.
        finite_N = finite_N & torch.isfinite(torch.linalg.vecdot(values, values))
    return norms_N, finite_N


def _norms(gradients_NP: Tensor) -> Tensor:
    """``[N]``, in float64: summing some 100,000 squares in float32 one after the other is off by parts in 10,000.

    Part by part, because torch makes a float64 copy of what it is given.
    """
    parts: list[Tensor] = [
        torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in gradients_NP.split(_MOST_NUMBERS_AT_ONCE, dim=1)
    ]
    return parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts), dim=0)


def _num_supervised(examples: Sequence[Example], rows: Sequence[int]) -> int:
    """Target tokens of examples that produce text, else the number of examples."""
    if examples[rows[0]].label is not None:
        return len(rows)
    count = sum(examples[row].num_targets for row in rows)
    if count == 0:
        raise RunError("a batch has no target token", where=f"example {examples[rows[0]].id}", fix="check the data")
    return count


def _first_tokens(lengths: Mapping[int, int], rows: Sequence[int]) -> dict[int, int]:
    """Offset of each row's first token in its optimiser batch."""
    offsets: dict[int, int] = {}
    total = 0
    for row in rows:
        offsets[row] = total
        total += lengths[row]
    return offsets
