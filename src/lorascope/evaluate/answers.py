"""Generated texts and what they are worth: every way of decoding, every sample, every metric of texts.

Floor: ``evaluate``.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from lorascope.base_model import BaseModel
from lorascope.config import DecodingConfig, EvaluateConfig
from lorascope.data.squad import NO_ANSWER
from lorascope.data.task import Example, Task
from lorascope.decode import Answer, generate
from lorascope.errors import ModelError, RunError
from lorascope.evaluate.likelihood import candidate_losses, ranks_gold_first
from lorascope.evaluate.result import Decoded, Evaluation, EvaluationStep, group_of
from lorascope.judge import Judge, pairs_of
from lorascope.lora.stack import Stack
from lorascope.metrics import TextScores, score_texts
from lorascope.metrics.squad import normalise_answer

Steps = Generator[EvaluationStep, None, None]
# Compared in the table of decodings, whatever the task asks for.
_DIVERSITY = ("distinct_1", "distinct_2", "self_bleu")
# How prompts and dialogues name speakers: a reply with a line of another's has not stopped at the end of its turn.
_SPEAKER = re.compile(r"^(user|assistant|system|teacher|student)( \d)?:", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class _Texts:
    """One slot's answers under one decoding: by example, then sample."""

    decoding: DecodingConfig
    answers: list[list[Answer]]
    answers_per_second: float

    @property
    def samples(self) -> list[list[str]]:
        return [[answer.text for answer in of_example] for of_example in self.answers]


def rank(stack: Stack, base: BaseModel, task: Task, settings: EvaluateConfig, evaluations: Sequence[Evaluation]) -> Steps:
    """Add what candidates tell: ``hits_at_1`` where one of several is right, else how likely a lone one is.

    ``no_answer_probability`` enters the predictions' rows; SQuAD v2.0's thresholds are looked for among its values.
    """
    ranked = [number for number, example in enumerate(task.eval) if example.candidate_ids]
    examples = [task.eval[number] for number in ranked]
    if not examples:
        return
    table = yield from candidate_losses(stack, base, examples, settings)
    for evaluation, losses in zip(evaluations, table, strict=True):
        if not all(math.isfinite(loss) for of_example in losses for loss in of_example):
            evaluation.finite = False
        if not evaluation.finite:
            continue
        rows = _rows(evaluation, task)
        hits = []
        for number, example, of_example in zip(ranked, examples, losses, strict=True):
            row = rows[number]
            if len(of_example) == 1:
                row["no_answer_probability"] = math.exp(-of_example[0])
            else:
                hits.append(ranks_gold_first(of_example, example))
                row["hit"] = hits[-1]
        if hits:
            evaluation.metrics["hits_at_1"] = sum(hits) / len(hits)


def answer(
    stack: Stack,
    base: BaseModel,
    task: Task,
    settings: EvaluateConfig,
    evaluations: Sequence[Evaluation],
    judge: Judge | None,
) -> Steps:
    """Generate in every way asked for, and add metrics and texts to the evaluations."""
    losses = [_rows(evaluation, task) for evaluation in evaluations]
    for position, decoding in enumerate(settings.decoding):
        texts = yield from _generated(stack, base, task.eval, decoding, settings)
        for evaluation, of_slot, rows in zip(evaluations, texts, losses, strict=True):
            if not evaluation.finite:
                continue
            yield from _scored(evaluation, of_slot, task, rows, judge, is_first=position == 0)


def _rows(evaluation: Evaluation, task: Task) -> list[dict[str, Any]]:
    """What is known of each example so far; nothing of one without a target token. By position: ids may repeat."""
    rows = iter(evaluation.predictions)
    return [next(rows, {}) if example.num_targets else {} for example in task.eval]


def _generated(
    stack: Stack, base: BaseModel, examples: Sequence[Example], decoding: DecodingConfig, settings: EvaluateConfig
) -> Generator[EvaluationStep, None, list[_Texts]]:
    num_samples = decoding.samples
    total = len(examples) * num_samples
    table: list[dict[int, Answer]] = [{} for _ in range(stack.num_slots)]
    stage = "generating answers" if len(settings.decoding) == 1 else f"generating answers ({decoding.label})"
    started, done = time.perf_counter(), 0
    for rows, generated in generate(stack, base, examples, decoding, settings.batch_tokens):
        for slot, of_slot in enumerate(generated):
            table[slot].update(zip(rows, of_slot, strict=True))
        done += len(rows)
        yield EvaluationStep(stage, done, total)
    rate = total * stack.num_slots / max(time.perf_counter() - started, 1e-9)
    starts = range(0, total, num_samples)
    return [
        _Texts(decoding, [[of_slot[start + sample] for sample in range(num_samples)] for start in starts], rate)
        for of_slot in table
    ]


def _scored(
    evaluation: Evaluation, texts: _Texts, task: Task, rows: list[dict[str, Any]], judge: Judge | None, *, is_first: bool
) -> Steps:
    scores = _text_scores(texts, task, [row.get("no_answer_probability") for row in rows])
    if "turn_end" in task.metric_names:
        _add(scores, "turn_end", [[_ends_turn(one) for one in of_example] for of_example in texts.answers])
    if judge is not None and any(example.persona for example in task.eval):
        try:
            _add(scores, "c_score", (yield from _c_scores(judge, texts, task.eval)))
        except (ModelError, RunError) as error:  # the trained adapters and their other scores are not the judge's to lose
            evaluation.warnings.append(f"{texts.decoding.label}: no C-score, for the judge failed ({error})")
    metrics = {name: scores.metrics[name] for name in sorted(scores.metrics, key=lambda name: name in _DIVERSITY)}
    flat = [one for of_example in texts.answers for one in of_example]
    evaluation.decoded.append(
        Decoded(
            texts.decoding,
            metrics,
            sum(len(one.tokens) for one in flat) / len(flat),
            texts.answers_per_second,
            sum(not one.finished for one in flat),
        )
    )
    if is_first:
        unasked = set(_DIVERSITY) - set(task.metric_names)
        evaluation.metrics |= {name: value for name, value in metrics.items() if name not in unasked}
        evaluation.predictions = [
            _prediction(example, of_example, values, row)
            for example, of_example, values, row in zip(task.eval, texts.samples, scores.per_example, rows, strict=True)
        ]
    else:
        for row, of_example in zip(evaluation.predictions, texts.samples, strict=True):
            row.setdefault("further", {})[texts.decoding.label] = of_example


def _text_scores(texts: _Texts, task: Task, no_answer_probabilities: Sequence[float | None]) -> TextScores:
    """The task's metrics of texts, and how diverse these are."""
    samples = texts.samples
    if "squad_v2" in task.metric_names:
        # The official evaluator knows an empty answer where the model has learned to say that there is none.
        samples = [["" if normalise_answer(text) == NO_ANSWER else text for text in of_example] for of_example in samples]
    known = [value for value in no_answer_probabilities if value is not None]
    names = [name for name in task.metric_names if name != "turn_end"]
    return score_texts(
        [*names, *(name for name in _DIVERSITY if name not in names)],
        samples,
        [example.answers for example in task.eval],
        known if len(known) == len(task.eval) else None,
    )


def _prediction(example: Example, samples: list[str], scores: dict[str, float], row: dict[str, Any]) -> dict[str, Any]:
    prediction: dict[str, Any] = {"id": example.id, "prediction": samples[0], "answers": list(example.answers)}
    if len(samples) > 1:
        prediction["samples"] = samples
    prediction |= {name: round(value, 6) for name, value in scores.items()}
    prediction |= {name: row[name] for name in ("hit", "no_answer_probability") if name in row}
    return prediction | {"loss": row.get("loss"), "target_tokens": row.get("target_tokens"), **group_of(example)}


def _ends_turn(one: Answer) -> float:
    return float(one.finished and _SPEAKER.search(one.text) is None)


def _c_scores(judge: Judge, texts: _Texts, examples: Sequence[Example]) -> Generator[EvaluationStep, None, list[list[float]]]:
    """Of every sample; each reply is compared with the example's whole persona."""
    replies = [text for of_example in texts.samples for text in of_example]
    personas = [example.persona for example, of_example in zip(examples, texts.samples, strict=True) for _ in of_example]
    for done, total in judge.judging(pairs_of(replies, personas)):
        yield EvaluationStep("judging replies", done, total)
    scores = iter(judge.c_scores(replies, personas))
    return [[float(next(scores)) for _ in of_example] for of_example in texts.samples]


def _add(scores: TextScores, name: str, values: Sequence[Sequence[float]]) -> None:
    """A further metric: the mean over an example's samples, and over all of them."""
    means = [sum(of_example) / len(of_example) for of_example in values]
    scores.metrics[name] = sum(means) / len(means)
    for row, mean in zip(scores.per_example, means, strict=True):
        row[name] = mean
