"""What predictions are scored by, and how a table of scores is made of them.

Knows predictions and gold answers. Does not know models, tokenizers or datasets. Perplexity, hits@1 and the C-score come out
of models and are computed where those are; their directions are listed here all the same. Floor: metrics; imports ``errors``
at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lorascope.metrics.classification import accuracy, f1
from lorascope.metrics.diversity import distinct_n, self_bleu
from lorascope.metrics.overlap import rouge_l, token_f1
from lorascope.metrics.squad import (
    squad_exact_match,
    squad_f1,
    squad_v2_exact_match,
    squad_v2_f1,
    squad_v2_figures,
)

__all__ = [
    "HIGHER_IS_BETTER",
    "LABEL_METRICS",
    "TEXT_METRICS",
    "TextScores",
    "accuracy",
    "distinct_n",
    "f1",
    "rouge_l",
    "score_labels",
    "score_texts",
    "self_bleu",
    "squad_exact_match",
    "squad_f1",
    "squad_v2_exact_match",
    "squad_v2_f1",
    "token_f1",
]

_Value = TypeVar("_Value")

_CLASSIFIERS = {"accuracy": accuracy, "f1": f1}
# By metric, what is computed of one text and its gold texts.
_BY_GOLD: dict[str, dict[str, Callable[[str, Sequence[str]], float]]] = {
    "exact_match": {"exact_match": squad_exact_match},
    "f1": {"f1": squad_f1},
    "squad_v2": {"exact_match": squad_v2_exact_match, "f1": squad_v2_f1},
    "rouge_l": {"rouge_l": rouge_l},
    "token_f1": {"token_f1": token_f1},
}
_PERCENTAGES = ("exact_match", "f1")
_DISTINCT = {"distinct_1": 1, "distinct_2": 2}

LABEL_METRICS = tuple(_CLASSIFIERS)
TEXT_METRICS = (*_BY_GOLD, *_DISTINCT, "self_bleu")

# Every metric that a result may hold and that a direction can be said of: a threshold has none.
HIGHER_IS_BETTER: dict[str, bool] = {
    "accuracy": True,
    "f1": True,
    "exact_match": True,
    "has_ans_exact_match": True,
    "has_ans_f1": True,
    "no_ans_exact_match": True,
    "no_ans_f1": True,
    "best_exact_match": True,
    "best_f1": True,
    "rouge_l": True,
    "token_f1": True,
    "distinct_1": True,
    "distinct_2": True,
    "self_bleu": False,
    "eval_loss": False,
    "perplexity": False,
    "hits_at_1": True,
    "c_score": True,
    "turn_end": True,
}


@dataclass(frozen=True)
class TextScores:
    """What generated texts are worth.

    Attributes:
        metrics: over the dataset, in the units of ``score_texts``.
        per_example: for each prompt the mean over its samples, of metrics that one prompt can have; exact match and F1 as
            shares 0..1.
    """

    metrics: dict[str, float]
    per_example: list[dict[str, float]]


def score_labels(metric_names: Sequence[str], predictions: Sequence[int | None], labels: Sequence[int]) -> dict[str, float]:
    """Accuracy and F1 of class numbers, 0..1; a prediction of None (none was made) counts as wrong.

    Args:
        metric_names: of ``LABEL_METRICS``.

    Raises:
        ValueError: a metric is unknown, lengths differ, or there is nothing to score.
    """
    _check_names(metric_names, LABEL_METRICS)
    return {name: _CLASSIFIERS[name](predictions, labels) for name in metric_names}


def score_texts(
    metric_names: Sequence[str],
    samples: Sequence[Sequence[str]],
    answers: Sequence[Sequence[str]],
    no_answer_probabilities: Sequence[float] | None = None,
) -> TextScores:
    """Each metric over the texts generated for a dataset's prompts; with several samples, the mean over them.

    ============================  ================================================================================
    ``exact_match``, ``f1``       SQuAD v1.1, percentages; ``squad_exact_match``, ``squad_f1``
    ``squad_v2``                  SQuAD v2.0, percentages under several names; ``squad_v2_figures``
    ``rouge_l``, ``token_f1``     longest common subsequence, and words in common, with the best gold text, 0..1
    ``distinct_1``, ``_2``        different n-grams over all n-grams of one sample of each prompt, 0..1; ``distinct_n``
    ``self_bleu``                 likeness of a prompt's samples, 0..100; absent where each prompt has one sample
    ============================  ================================================================================

    Args:
        metric_names: of ``TEXT_METRICS``.
        samples: for each prompt the generated texts, as many for each.
        answers: for each prompt the gold texts; none for a question of SQuAD v2.0 without an answer.
        no_answer_probabilities: SQuAD v2.0: for each question how likely the model holds it to be without an answer. With
            several samples, the threshold is sought over all of them.

    Raises:
        ValueError: a metric is unknown, two would share a name, lengths differ, there is nothing to score, or a metric other
            than ``squad_v2`` lacks its gold texts.
    """
    _check_names(metric_names, TEXT_METRICS)
    if "squad_v2" in metric_names and {"exact_match", "f1"} & set(metric_names):
        raise ValueError("squad_v2 has an exact_match and an f1 of its own: name either it or those of version 1.1")
    num_samples = _num_samples(samples, answers, no_answer_probabilities)
    texts = [text for prompt in samples for text in prompt]
    gold = _repeated(answers, num_samples)
    metrics: dict[str, float] = {}
    per_text: dict[str, list[float]] = {}
    for metric in metric_names:
        if metric in _DISTINCT:
            # Sets of one size: three samples of every prompt repeat more than one does, whatever the model.
            sets = [[prompt[number] for prompt in samples] for number in range(num_samples)]
            metrics[metric] = sum(distinct_n(one, _DISTINCT[metric]) for one in sets) / num_samples
        elif metric == "self_bleu":
            if num_samples > 1:
                per_text[metric] = [value for prompt in samples for value in self_bleu(prompt)]
        else:
            for name, measure in _BY_GOLD[metric].items():
                per_text[name] = [measure(text, answer) for text, answer in zip(texts, gold, strict=True)]
    for name, values in per_text.items():
        metrics[name] = (100.0 if name in _PERCENTAGES else 1.0) * sum(values) / len(values)
    if "squad_v2" in metric_names:
        probabilities = None if no_answer_probabilities is None else _repeated(no_answer_probabilities, num_samples)
        metrics |= squad_v2_figures(per_text["exact_match"], per_text["f1"], texts, gold, probabilities)
    per_example = [
        {name: sum(values[start : start + num_samples]) / num_samples for name, values in per_text.items()}
        for start in range(0, len(texts), num_samples)
    ]
    return TextScores(metrics, per_example)


def _repeated(values: Sequence[_Value], times: int) -> list[_Value]:
    return [value for value in values for _ in range(times)]


def _check_names(metric_names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in metric_names if name not in known]
    if unknown:
        raise ValueError(f"cannot score {unknown[0]!r} here; known: {', '.join(known)}")


def _num_samples(
    samples: Sequence[Sequence[str]], answers: Sequence[Sequence[str]], no_answer_probabilities: Sequence[float] | None
) -> int:
    if len(samples) != len(answers):
        raise ValueError(f"{len(samples)} prompts have samples, but {len(answers)} have answers")
    if not samples or not samples[0]:
        raise ValueError("nothing to score")
    # A string is a sequence of texts too, of one letter each.
    if any(isinstance(one, str) for one in (*samples, *answers)):
        raise ValueError("give a list of texts for each prompt, not a text")
    if any(len(prompt) != len(samples[0]) for prompt in samples):
        raise ValueError("every prompt needs the same number of samples")
    if no_answer_probabilities is not None:
        if len(no_answer_probabilities) != len(samples):
            raise ValueError(f"{len(no_answer_probabilities)} no-answer probabilities for {len(samples)} prompts")
        if not all(math.isfinite(p) and 0.0 <= p <= 1.0 for p in no_answer_probabilities):
            raise ValueError("a no-answer probability is not in 0..1")
    return len(samples[0])
