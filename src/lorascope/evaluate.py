"""What the slots of a stack are worth: metrics and one prediction per example.

Knows tasks, predictions and the field's metrics. Does not know training or storage. Floor: above ``train`` and ``decode``.

Legend: N slots, B rows, T tokens, C classes, K supervised positions.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lorascope.base_model import BaseModel
from lorascope.config import EvaluateConfig
from lorascope.data.packing import Batch, collate, concatenate, evaluation_batches
from lorascope.data.task import Example, Task
from lorascope.data.tree import cut
from lorascope.decode import generate
from lorascope.errors import DataError, RunError
from lorascope.lora.stack import Stack
from lorascope.losses import class_logits, follows_trees, is_out_of_memory, padded_losses, release_memory, tree_losses
from lorascope.metrics import score, squad_exact_match, squad_f1

# Batches are not made smaller than this when memory runs out.
_FEWEST_TOKENS = 64


@dataclass(frozen=True)
class EvaluationStep:
    """How far a pass over the evaluation examples has come."""

    stage: str
    done: int
    total: int


EvaluationRun = Generator[EvaluationStep, None, list["Evaluation"]]
# The examples of a forward pass, and their losses ``[N, E]``.
LossPasses = Iterator[tuple[list[int], torch.Tensor]]


@dataclass
class Evaluation:
    """One slot's result.

    ``finite`` is False where a loss or logit was no number; then there are no metrics to rank. ``unfinished`` counts generated
    answers that were cut before their end token. ``batch_tokens`` fitted into memory.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    finite: bool = True
    unfinished: int = 0
    batch_tokens: int = 0


def evaluate(stack: Stack, base: BaseModel, task: Task, settings: EvaluateConfig) -> EvaluationRun:
    """Score every slot on the task's evaluation examples; where memory runs out, again in batches of half the tokens.

    Yields:
        Progress, in every pass over the examples.

    Returns:
        One evaluation per slot, predictions in the examples' order. ``eval_loss`` is the mean cross-entropy per example
        (SEQ_CLS) or per target token, and ``perplexity`` its exponential.
    """
    stack.context.dropout = None
    while True:
        try:
            evaluations = yield from _evaluate(stack, base, task, settings)
            for evaluation in evaluations:
                evaluation.batch_tokens = settings.batch_tokens
            return evaluations
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # The handler is left first: the error holds the frames of the failed pass, and with them its tensors.
        release_memory(base.device)
        if settings.batch_tokens <= _FEWEST_TOKENS:
            fix = "free some memory, or put fewer slots into a cohort (--slots)"
            raise RunError(f"memory ran out with batches of {settings.batch_tokens} tokens", where="evaluate", fix=fix)
        settings = settings.model_copy(update={"batch_tokens": max(_FEWEST_TOKENS, settings.batch_tokens // 2)})


def _evaluate(stack: Stack, base: BaseModel, task: Task, settings: EvaluateConfig) -> EvaluationRun:
    if task.task_type == "SEQ_CLS":
        return (yield from _classify(stack, base, task, settings))
    evaluations = yield from _token_losses(stack, base, task, settings)
    if task.generates:
        yield from _answer(stack, base, task, settings, evaluations)
    return evaluations


@torch.no_grad()
def _classify(stack: Stack, base: BaseModel, task: Task, settings: EvaluateConfig) -> EvaluationRun:
    logits_NEC = torch.zeros(stack.num_slots, len(task.eval), len(task.labels))
    done = 0
    for rows in _batches(stack, task.eval, settings):
        batch = _repeated(stack, task.eval, rows, base.pad_id)
        logits = class_logits(base, batch)
        logits_NEC[:, rows] = logits.float().cpu().reshape(stack.num_slots, len(rows), -1)
        done += len(rows)
        yield EvaluationStep("classifying", done, len(task.eval))
    labels = [example.label for example in task.eval if example.label is not None]
    return [_classification(logits_EC, labels, task) for logits_EC in logits_NEC]


def _classification(logits_EC: torch.Tensor, labels: list[int], task: Task) -> Evaluation:
    if not bool(torch.isfinite(logits_EC).all()):
        return Evaluation(finite=False)
    predicted = logits_EC.argmax(dim=1).tolist()
    loss = torch.nn.functional.cross_entropy(logits_EC.double(), torch.tensor(labels)).item()
    rows = [
        {
            "id": example.id,
            "prediction": task.labels[guess],
            "label": task.labels[label],
            "correct": guess == label,
            "logits": [round(value, 6) for value in logits],
        }
        for example, guess, label, logits in zip(task.eval, predicted, labels, logits_EC.tolist(), strict=True)
    ]
    return Evaluation({**score(task.metric_names, predicted, labels=labels), "eval_loss": loss}, rows)


@torch.no_grad()
def _token_losses(stack: Stack, base: BaseModel, task: Task, settings: EvaluateConfig) -> EvaluationRun:
    """Mean cross-entropy per target token, over the whole split and for each example."""
    scored = [example for example in task.eval if example.num_targets]
    if not scored:
        raise DataError("no evaluation example has a target token", where=task.eval_split, fix="check the data")
    losses_NE = torch.zeros(stack.num_slots, len(scored), dtype=torch.float64)
    counts = [example.num_targets for example in scored]
    done = 0
    passes = _tree_losses if follows_trees(base, scored, stack.num_slots) else _padded_losses
    for rows, losses in passes(stack, base, scored, settings):
        losses_NE[:, rows] = losses.double().cpu()
        done += len(rows)
        yield EvaluationStep("measuring the loss", done, len(scored))
    evaluations = []
    for losses_E in losses_NE:
        if not bool(torch.isfinite(losses_E).all()):
            evaluations.append(Evaluation(finite=False))
            continue
        loss = float(losses_E.sum()) / sum(counts)
        perplexity = math.exp(loss) if loss < 700 else math.inf
        rows_out = [
            {"id": example.id, "loss": round(value / count, 6), "target_tokens": count}
            for example, value, count in zip(scored, losses_E.tolist(), counts, strict=True)
        ]
        evaluations.append(Evaluation({"eval_loss": loss, "perplexity": perplexity}, rows_out))
    return evaluations


def _tree_losses(stack: Stack, base: BaseModel, examples: Sequence[Example], settings: EvaluateConfig) -> LossPasses:
    most_tokens = max(1, settings.batch_tokens // stack.num_slots)
    for forest in cut(examples, range(len(examples)), None, most_tokens):
        yield forest.rows, tree_losses(base, [forest] * stack.num_slots)


def _padded_losses(stack: Stack, base: BaseModel, examples: Sequence[Example], settings: EvaluateConfig) -> LossPasses:
    for rows in _batches(stack, examples, settings):
        losses = padded_losses(base, _repeated(stack, examples, rows, base.pad_id))
        yield rows, losses.reshape(stack.num_slots, len(rows))


def _answer(
    stack: Stack,
    base: BaseModel,
    task: Task,
    settings: EvaluateConfig,
    evaluations: list[Evaluation],
) -> Generator[EvaluationStep, None, None]:
    """Generate answers and add their metrics and texts to the evaluations."""
    answers: list[list[str]] = [[""] * len(task.eval) for _ in range(stack.num_slots)]
    unfinished = [0] * stack.num_slots
    done = 0
    for rows, generated in generate(stack, base, task.eval, settings.decoding[0], settings.batch_tokens):
        for slot, slot_answers in enumerate(generated):
            for row, answer in zip(rows, slot_answers, strict=True):
                answers[slot][row] = answer.text
                unfinished[slot] += not answer.finished
        done += len(rows)
        yield EvaluationStep("generating answers", done, len(task.eval))
    gold = [example.answers for example in task.eval]
    for evaluation, texts, num_unfinished in zip(evaluations, answers, unfinished, strict=True):
        if not evaluation.finite:
            continue
        evaluation.unfinished = num_unfinished
        losses = {row["id"]: row for row in evaluation.predictions}
        evaluation.metrics |= score(task.metric_names, texts, answers=gold)
        evaluation.predictions = [
            {
                "id": example.id,
                "prediction": text,
                "answers": list(example.answers),
                "exact_match": squad_exact_match(text, example.answers),
                "f1": round(squad_f1(text, example.answers), 6),
                "loss": losses.get(example.id, {}).get("loss"),
            }
            for example, text in zip(task.eval, texts, strict=True)
        ]


def _batches(stack: Stack, examples: Sequence[Example], settings: EvaluateConfig) -> list[list[int]]:
    lengths = [example.num_tokens for example in examples]
    return evaluation_batches(lengths, max(1, settings.batch_tokens // stack.num_slots))


def _repeated(stack: Stack, examples: Sequence[Example], rows: Sequence[int], pad_id: int) -> Batch:
    """The same rows for every slot."""
    return concatenate([collate(examples, rows, pad_id)] * stack.num_slots)
