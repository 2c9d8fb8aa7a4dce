"""How likely the slots find the targets, and which of several candidates they find likeliest.

Floor: ``evaluate``.

Legend: N slots, E examples.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lorascope.base_model import BaseModel
from lorascope.config import EvaluateConfig
from lorascope.data.packing import Batch, collate, concatenate, evaluation_batches
from lorascope.data.task import Example, Task
from lorascope.data.tree import cut
from lorascope.errors import DataError
from lorascope.evaluate.result import Evaluation, EvaluationRun, EvaluationStep, group_of
from lorascope.lora.stack import Stack
from lorascope.losses import follows_trees, padded_losses, tree_losses

# Candidates of so many examples are laid out at a time: each has twenty, and every one is a row of its own.
_EXAMPLES_AT_A_TIME = 64

# The examples of a forward pass, and their losses ``[N, E]``.
LossPasses = Iterator[tuple[list[int], Tensor]]
Losses = Generator[EvaluationStep, None, Tensor]


def token_losses(stack: Stack, base: BaseModel, task: Task, settings: EvaluateConfig) -> EvaluationRun:
    """Mean cross-entropy per target token, over the whole split and for each example."""
    scored = [example for example in task.eval if example.num_targets]
    if not scored:
        raise DataError("no evaluation example has a target token", where=task.eval_split, fix="check the data")
    losses_NE = torch.zeros(stack.num_slots, len(scored), dtype=torch.float64)
    done = 0
    for rows, losses in loss_passes(stack, base, scored, settings):
        losses_NE[:, rows] = losses.double().cpu()
        done += len(rows)
        yield EvaluationStep("measuring the loss", done, len(scored))
    return [_mean_loss(scored, losses_E) for losses_E in losses_NE]


def _mean_loss(scored: Sequence[Example], losses_E: Tensor) -> Evaluation:
    if not bool(torch.isfinite(losses_E).all()):
        return Evaluation(finite=False)
    loss = float(losses_E.sum()) / sum(example.num_targets for example in scored)
    perplexity = math.exp(loss) if loss < 700 else math.inf
    rows = [
        {
            "id": example.id,
            "loss": round(value / example.num_targets, 6),
            "target_tokens": example.num_targets,
            **group_of(example),
        }
        for example, value in zip(scored, losses_E.tolist(), strict=True)
    ]
    return Evaluation({"eval_loss": loss, "perplexity": perplexity}, rows)


@torch.no_grad()
def candidate_losses(
    stack: Stack, base: BaseModel, examples: Sequence[Example], settings: EvaluateConfig
) -> Generator[EvaluationStep, None, list[list[list[float]]]]:
    """Summed cross-entropy of every candidate in the place of the example's last target, by slot, example and candidate."""
    table: list[list[list[float]]] = [[] for _ in range(stack.num_slots)]
    for start in range(0, len(examples), _EXAMPLES_AT_A_TIME):
        chosen = examples[start : start + _EXAMPLES_AT_A_TIME]
        written = [_with_candidate(example, ids) for example in chosen for ids in example.candidate_ids]
        losses_NC = torch.zeros(stack.num_slots, len(written), dtype=torch.float64)
        for rows, losses in loss_passes(stack, base, written, settings) if written else ():
            losses_NC[:, rows] = losses.double().cpu()
        sizes = [len(example.candidate_ids) for example in chosen]
        for slot, losses_C in enumerate(losses_NC):
            table[slot] += [part.tolist() for part in losses_C.split(sizes)]
        yield EvaluationStep("ranking candidates", start + len(chosen), len(examples))
    return table


def _with_candidate(example: Example, ids: Sequence[int]) -> Example:
    if example.target_ids is not None:
        return replace(example, target_ids=list(ids))
    prompt = example.input_ids[: example.prompt_length]
    is_target = [False] * len(prompt) + [True] * len(ids)
    return replace(example, input_ids=[*prompt, *ids], is_target=is_target)


def ranks_gold_first(losses: Sequence[float], example: Example) -> bool:
    """Whether the last candidate, which is the gold reply, has the smallest loss per token; a tie is no hit.

    A candidate of the very same tokens is the gold reply too.
    """
    gold = example.candidate_ids[-1]
    means = [loss / len(ids) for loss, ids in zip(losses, example.candidate_ids, strict=True)]
    others = [mean for mean, ids in zip(means, example.candidate_ids, strict=True) if ids != gold]
    return means[-1] < min(others, default=math.inf)


def loss_passes(stack: Stack, base: BaseModel, examples: Sequence[Example], settings: EvaluateConfig) -> LossPasses:
    """Summed cross-entropy of every example's targets, as prefix trees where the base follows them."""
    passes = _in_trees if follows_trees(base, examples, stack.num_slots) else _padded
    return passes(stack, base, examples, settings)


def _in_trees(stack: Stack, base: BaseModel, examples: Sequence[Example], settings: EvaluateConfig) -> LossPasses:
    most_tokens = max(1, settings.batch_tokens // stack.num_slots)
    for forest in cut(examples, range(len(examples)), None, most_tokens):
        yield forest.rows, tree_losses(base, [forest] * stack.num_slots)


def _padded(stack: Stack, base: BaseModel, examples: Sequence[Example], settings: EvaluateConfig) -> LossPasses:
    for rows in batches(stack, examples, settings):
        losses = padded_losses(base, repeated(stack, examples, rows, base.pad_id))
        yield rows, losses.reshape(stack.num_slots, len(rows))


def batches(stack: Stack, examples: Sequence[Example], settings: EvaluateConfig) -> list[list[int]]:
    """Rows of similar length, within the tokens that a pass may hold."""
    lengths = [example.num_tokens for example in examples]
    return evaluation_batches(lengths, max(1, settings.batch_tokens // stack.num_slots))


def repeated(stack: Stack, examples: Sequence[Example], rows: Sequence[int], pad_id: int) -> Batch:
    """The same rows for every slot."""
    return concatenate([collate(examples, rows, pad_id)] * stack.num_slots)
