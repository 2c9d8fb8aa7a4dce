"""THE LOOP: one optimiser step after another for every slot of a stack, each step handed to the caller as it is done.

Knows batches, losses, gradients, AdamW, clipping and the schedule. Does not know why it trains, what is stored or how results
are judged: the caller reads the steps, and may drop slots between two of them with ``stack.keep``. Floor: above ``lora``,
``data`` and ``base_model``.

Legend: N slots, B rows, T tokens, D hidden, K supervised positions, P numbers of one slot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorascope.base_model import BaseModel
from lorascope.config import TrainConfig
from lorascope.data.packing import Batch, batch_order, collate, length_groups
from lorascope.data.task import Example
from lorascope.errors import RunError
from lorascope.lora.layer import DropoutPlan, StackedLinear
from lorascope.lora.parameters import SlotParameters
from lorascope.lora.stack import Stack

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
# Logits of so many positions exist at a time; more positions are computed again in the backward pass.
_LOGIT_CHUNK = 1024
# What one more forward and backward pass costs, in tokens of work: measured on two cores with a six-layer encoder.
_PASS_OVERHEAD_TOKENS = 128


@dataclass(frozen=True)
class SlotStep:
    """One slot's part of a step.

    ``loss`` and ``grad_norm`` are those before the update. ``finite`` is False where one of them is NaN or infinite, and then
    the slot was not updated.
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
        num_tokens: of one slot's batch, without padding.
        seconds: wall-clock time of the step.
    """

    step: int
    num_steps: int
    epoch: int
    slots: Mapping[str, SlotStep]
    num_examples: int
    num_tokens: int
    seconds: float


def train(
    stack: Stack,
    base: BaseModel,
    examples: Sequence[Example],
    settings: Mapping[str, TrainConfig],
) -> Iterator[StepResult]:
    """Train every slot of ``stack`` on ``examples``, in the order that its seed gives.

    Args:
        settings: by slot name. Learning rate, warm-up, schedule, decay and clipping may differ between slots; ``epochs``,
            ``batch_size``, ``micro_batch_size`` and ``max_steps`` must not.

    Yields:
        One result per step. A slot with a loss or gradient that is not finite is reported so, not updated, and must be
        dropped by the caller with ``stack.keep`` before the next step.
    """
    shared = next(iter(settings.values()))
    num_examples = len(examples)
    steps_per_epoch = shared.steps_per_epoch(num_examples)
    num_steps = shared.num_steps(num_examples)
    orders: dict[int, list[list[int]]] = {}
    for step in range(num_steps):
        if not stack.slots:
            return
        started = time.perf_counter()
        epoch, index = divmod(step, steps_per_epoch)
        if index == 0 or not orders:
            orders = {seed: batch_order(num_examples, shared.batch_size, seed, epoch) for seed in set(stack.context.seeds)}
        rows_by_seed = {seed: orders[seed][index] for seed in dict.fromkeys(stack.context.seeds)}
        losses_N = forward_backward(stack, base, examples, rows_by_seed, shared.micro_batch_size, step)
        rates = [learning_rate(settings[slot.name], step, num_steps) for slot in stack.slots]
        norms_N, finite_N = adamw_step(stack.parameters, losses_N, step, rates, [settings[slot.name] for slot in stack.slots])
        slots = {
            slot.name: SlotStep(loss, norm, rate, finite)
            for slot, loss, norm, rate, finite in zip(
                stack.slots, losses_N.tolist(), norms_N.tolist(), rates, finite_N.tolist(), strict=True
            )
        }
        rows = rows_by_seed[stack.context.seeds[0]]
        num_tokens = sum(len(examples[row].input_ids) for row in rows)
        seconds = time.perf_counter() - started
        yield StepResult(step, num_steps, epoch, slots, len(rows), num_tokens, seconds)


def forward_backward(
    stack: Stack,
    base: BaseModel,
    examples: Sequence[Example],
    rows_by_seed: Mapping[int, Sequence[int]],
    micro_batch_size: int | None,
    step: int,
) -> Tensor:
    """Gradients of one optimiser batch, accumulated over its micro-batches; the slots' losses ``[N]``.

    The loss of a slot is the mean over its own batch's supervised tokens (or examples), however the batch is cut; it is cut
    into micro-batches of nearly equal length, so that little is computed on padding.
    """
    stack.parameters.zero_gradients()
    seeds = stack.context.seeds
    totals = {seed: _num_supervised(examples, rows) for seed, rows in rows_by_seed.items()}
    total_N = torch.tensor([totals[seed] for seed in seeds], dtype=torch.float64, device=base.device)
    firsts = {seed: _first_tokens(examples, rows) for seed, rows in rows_by_seed.items()}
    pieces = _micro_batches(examples, rows_by_seed, micro_batch_size, len(seeds))
    losses_N = torch.zeros(len(seeds), dtype=torch.float64, device=base.device)
    for index in range(len(pieces[seeds[0]])):
        rows = {seed: pieces[seed][index] for seed in pieces}
        plan = {seed: [(firsts[seed][row], len(examples[row].input_ids)) for row in chosen] for seed, chosen in rows.items()}
        stack.context.dropout = DropoutPlan(step, [plan[seed] for seed in seeds])
        batch = stacked_batch(examples, rows, seeds, base.pad_id)
        sums_N = row_losses(base, batch).reshape(len(seeds), -1).sum(dim=1)
        stack.parameters.accumulate_gradients((sums_N / total_N.to(sums_N.dtype)).sum())
        losses_N += sums_N.detach().double() / total_N
    stack.context.dropout = None
    stack.parameters.mask_gradients()
    return losses_N


def _micro_batches(
    examples: Sequence[Example], rows_by_seed: Mapping[int, Sequence[int]], most_rows: int | None, num_slots: int
) -> dict[int, list[list[int]]]:
    """Each seed's batch cut into micro-batches of nearly equal length, cut at the same places for all seeds.

    The batch's members, and with them its gradient, stay what they were: losses are sums over rows, and dropout masks belong
    to tokens.
    """
    by_length = {
        seed: sorted(rows, key=lambda row: len(examples[row].input_ids), reverse=True) for seed, rows in rows_by_seed.items()
    }
    widths = [max(len(examples[row].input_ids) for row in rank) for rank in zip(*by_length.values(), strict=True)]
    sizes = length_groups(widths, most_rows, -(-_PASS_OVERHEAD_TOKENS // num_slots))
    pieces: dict[int, list[list[int]]] = {seed: [] for seed in by_length}
    start = 0
    for size in sizes:
        for seed, rows in by_length.items():
            pieces[seed].append(rows[start : start + size])
        start += size
    return pieces


def stacked_batch(
    examples: Sequence[Example], rows_by_seed: Mapping[int, Sequence[int]], seeds: Sequence[int], pad_id: int
) -> Batch:
    """The slots' batches one after the other, ``[N·B, T]``, padded to one width."""
    width = max(len(examples[row].input_ids) for rows in rows_by_seed.values() for row in rows)
    batches = {seed: collate(examples, rows, pad_id, pad_to=width) for seed, rows in rows_by_seed.items()}
    if len(seeds) == 1:
        return batches[seeds[0]]
    return concatenate([batches[seed] for seed in seeds])


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Batches of one width as one batch."""

    def joined(name: str) -> Tensor | None:
        values = [getattr(batch, name) for batch in batches]
        return None if values[0] is None else torch.cat(values)

    return Batch(
        input_ids_BT=torch.cat([batch.input_ids_BT for batch in batches]),
        attention_mask_BT=torch.cat([batch.attention_mask_BT for batch in batches]),
        is_target_BT=joined("is_target_BT"),
        labels_B=joined("labels_B"),
        token_type_ids_BT=joined("token_type_ids_BT"),
        rows=[row for batch in batches for row in batch.rows],
    )


def model_inputs(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """What the model's ``forward`` is given."""
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
    if batch.token_type_ids_BT is not None:
        inputs["token_type_ids"] = batch.token_type_ids_BT
    return {name: value.to(device) for name, value in inputs.items()}


def row_losses(base: BaseModel, batch: Batch) -> Tensor:
    """Summed cross-entropy of each row's supervised tokens, or of its label, ``[N·B]``."""
    inputs = model_inputs(batch, base.device)
    if base.task_type == "SEQ_CLS":
        assert batch.labels_B is not None
        logits = base.model(**inputs).logits
        return F.cross_entropy(_at_least_fp32(logits), batch.labels_B.to(base.device), reduction="none")
    assert batch.is_target_BT is not None
    return _token_losses(base, inputs, batch.is_target_BT.to(base.device))


def _token_losses(base: BaseModel, inputs: dict[str, Tensor], is_target_BT: Tensor) -> Tensor:
    """Cross-entropy on target tokens; logits exist for the positions that predict one, and nowhere else."""
    predicts_BT = is_target_BT[:, 1:]
    targets_K = inputs["input_ids"][:, 1:][predicts_BT]
    row_K = predicts_BT.nonzero()[:, 0]
    output = base.model.get_output_embeddings()
    # A trained output head sees whole rows: it tells slots apart by their place in the batch.
    if base.plain_head and not isinstance(output, StackedLinear):
        hidden_BTD = base.model.base_model(**inputs, use_cache=False).last_hidden_state
        losses_K = _chunked_losses(output, hidden_BTD[:, :-1][predicts_BT], targets_K)
    else:
        logits_BTV = base.model(**inputs, use_cache=False).logits
        losses_K = F.cross_entropy(_at_least_fp32(logits_BTV[:, :-1][predicts_BT]), targets_K, reduction="none")
    return torch.zeros(len(predicts_BT), dtype=losses_K.dtype, device=base.device).index_add(0, row_K, losses_K)


def _chunked_losses(output: nn.Module, hidden_KD: Tensor, targets_K: Tensor) -> Tensor:
    def losses(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(_at_least_fp32(output(hidden)), targets, reduction="none")

    if len(targets_K) <= _LOGIT_CHUNK:
        return losses(hidden_KD, targets_K)
    chunks = zip(hidden_KD.split(_LOGIT_CHUNK), targets_K.split(_LOGIT_CHUNK), strict=True)
    return torch.cat([checkpoint(losses, hidden, targets, use_reentrant=False) for hidden, targets in chunks])


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
        Gradient norms before clipping ``[N]``, and whether each slot is finite ``[N]``.

    Source: Loshchilov and Hutter 2019; bias correction as in ``torch.optim.AdamW``.
    """
    gradients_NP = parameters.gradients_NP
    values = parameters.values_NP
    norms_N = gradients_NP.norm(dim=1)
    finite_N = torch.isfinite(norms_N) & torch.isfinite(losses_N.to(norms_N.dtype))
    limits_N = torch.tensor([one.max_grad_norm for one in settings], dtype=values.dtype, device=values.device)
    rates_N = torch.tensor(rates, dtype=values.dtype, device=values.device)
    decay_N = torch.tensor([one.weight_decay for one in settings], dtype=values.dtype, device=values.device)
    gradients_NP *= (limits_N / (norms_N + 1e-6)).clamp(max=1.0)[:, None]
    if not bool(finite_N.all()):
        gradients_NP[~finite_N] = 0.0
        rates_N = torch.where(finite_N, rates_N, 0.0)
    beta1, beta2 = ADAM_BETAS
    if bool(decay_N.any()):
        values.sub_((rates_N * decay_N)[:, None] * values * parameters.decays_P)
    parameters.first_moment_NP.lerp_(gradients_NP, 1.0 - beta1)
    parameters.second_moment_NP.mul_(beta2).addcmul_(gradients_NP, gradients_NP, value=1.0 - beta2)
    denominator_NP = parameters.second_moment_NP.sqrt().div_(math.sqrt(1.0 - beta2 ** (step + 1))).add_(ADAM_EPSILON)
    update_NP = parameters.first_moment_NP / denominator_NP
    values.sub_(update_NP.mul_((rates_N / (1.0 - beta1 ** (step + 1)))[:, None]))
    return norms_N, finite_N


def _num_supervised(examples: Sequence[Example], rows: Sequence[int]) -> int:
    """Target tokens of causal examples, else the number of examples. The first token of a row is never predicted."""
    targets = [examples[row].is_target for row in rows]
    if targets[0] is None:
        return len(rows)
    count = sum(sum(target[1:]) for target in targets if target is not None)
    if count == 0:
        raise RunError("a batch has no target token", where=f"example {examples[rows[0]].id}", fix="check the data")
    return count


def _first_tokens(examples: Sequence[Example], rows: Sequence[int]) -> dict[int, int]:
    """Offset of each row's first token in its optimiser batch."""
    offsets: dict[int, int] = {}
    total = 0
    for row in rows:
        offsets[row] = total
        total += len(examples[row].input_ids)
    return offsets


def _at_least_fp32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
