"""An evaluation from end to end: classes, losses, candidates, answers; and again in smaller batches where memory runs out.

Knows which passes a task needs. Does not know training or storage. Floor: ``evaluate``.

Legend: N slots, E examples, C classes.
"""

from __future__ import annotations

import torch

from lorascope.base_model import BaseModel
from lorascope.config import EvaluateConfig
from lorascope.data.task import Task
from lorascope.errors import OutOfMemory
from lorascope.evaluate.answers import answer, rank
from lorascope.evaluate.likelihood import batches, repeated, token_losses
from lorascope.evaluate.result import Evaluation, EvaluationRun, EvaluationStep, group_of
from lorascope.judge import Judge
from lorascope.lora.stack import Stack
from lorascope.losses import class_logits, is_out_of_memory, release_memory
from lorascope.metrics import score_labels

# Batches are not made smaller than this when memory runs out.
_FEWEST_TOKENS = 64


def evaluate(stack: Stack, base: BaseModel, task: Task, settings: EvaluateConfig, judge: Judge | None = None) -> EvaluationRun:
    """Score every slot on the task's evaluation examples; where memory runs out, again in batches of half the tokens.

    Args:
        judge: gives replies to a persona their C-score; None for none.

    Yields:
        Progress, in every pass over the examples.

    Returns:
        One evaluation per slot, predictions in the examples' order. ``eval_loss`` is the mean cross-entropy per example
        (SEQ_CLS) or per target token (the other types), and ``perplexity`` its exponential.

    Raises:
        OutOfMemory: there is too little for the smallest batches too.
    """
    stack.context.dropout = None
    while True:
        try:
            evaluations = yield from _evaluate(stack, base, task, settings, judge)
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
            raise OutOfMemory(f"memory ran out with batches of {settings.batch_tokens} tokens", where="evaluate", fix=fix)
        settings = settings.model_copy(update={"batch_tokens": max(_FEWEST_TOKENS, settings.batch_tokens // 2)})


@torch.no_grad()
def _evaluate(stack: Stack, base: BaseModel, task: Task, settings: EvaluateConfig, judge: Judge | None) -> EvaluationRun:
    if task.task_type == "SEQ_CLS":
        return (yield from _classify(stack, base, task, settings))
    evaluations = yield from token_losses(stack, base, task, settings)
    yield from rank(stack, base, task, settings, evaluations)
    if task.generates:
        yield from answer(stack, base, task, settings, evaluations, judge)
    return evaluations


def _classify(stack: Stack, base: BaseModel, task: Task, settings: EvaluateConfig) -> EvaluationRun:
    logits_NEC = torch.zeros(stack.num_slots, len(task.eval), len(task.labels))
    done = 0
    for rows in batches(stack, task.eval, settings):
        logits = class_logits(base, repeated(stack, task.eval, rows, base.pad_id))
        logits_NEC[:, rows] = logits.float().cpu().reshape(stack.num_slots, len(rows), -1)
        done += len(rows)
        yield EvaluationStep("classifying", done, len(task.eval))
    labels = [example.label for example in task.eval if example.label is not None]
    return [_classification(logits_EC, labels, task) for logits_EC in logits_NEC]


def _classification(logits_EC: torch.Tensor, labels: list[int], task: Task) -> Evaluation:
    if not bool(torch.isfinite(logits_EC).all()):
        return Evaluation(finite=False)
    predicted = logits_EC.argmax(dim=1).tolist()
    losses_E = torch.nn.functional.cross_entropy(logits_EC.double(), torch.tensor(labels), reduction="none")
    rows = [
        {
            "id": example.id,
            "prediction": task.labels[guess],
            "label": task.labels[label],
            "correct": guess == label,
            "logits": [round(value, 6) for value in logits],
            "loss": round(loss, 6),
            **group_of(example),
        }
        for example, guess, label, logits, loss in zip(
            task.eval, predicted, labels, logits_EC.tolist(), losses_E.tolist(), strict=True
        )
    ]
    return Evaluation({**score_labels(task.metric_names, predicted, labels), "eval_loss": losses_E.mean().item()}, rows)
