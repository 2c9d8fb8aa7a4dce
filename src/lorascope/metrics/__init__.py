"""What predictions are scored by, and how a table of scores is made of them.

Knows predictions and gold answers. Does not know models, tokenizers or datasets. Perplexity comes out of the model's
loss and is computed where that is. Floor: metrics; imports ``errors`` at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorascope.metrics.classification import accuracy, f1
from lorascope.metrics.squad import squad_exact_match, squad_f1

__all__ = ["HIGHER_IS_BETTER", "accuracy", "f1", "score", "squad_exact_match", "squad_f1"]

HIGHER_IS_BETTER: dict[str, bool] = {"accuracy": True, "f1": True, "exact_match": True, "perplexity": False}


def score(
    metric_names: Sequence[str],
    predictions: Sequence[int | str | None],
    labels: Sequence[int] | None = None,
    answers: Sequence[Sequence[str]] | None = None,
) -> dict[str, float]:
    """Each metric over a dataset.

    Args:
        metric_names: ``accuracy``, ``f1``, ``exact_match``.
        predictions: class numbers or generated texts; None where none was made, which counts as wrong.
        labels: gold class numbers: accuracy and F1 are in 0..1.
        answers: gold answers per item, for generated texts: exact match and F1 are percentages, as SQuAD's evaluator
            prints them.

    Raises:
        ValueError: a metric is unknown or needs other gold, lengths differ, or there is nothing to score.
    """
    if (labels is None) == (answers is None):
        raise ValueError("give either labels or answers")
    if labels is not None:
        numbers = [prediction for prediction in predictions if not isinstance(prediction, str)]
        if len(numbers) != len(predictions):
            raise ValueError("class numbers are needed for labels, not texts")
        classifiers = {"accuracy": accuracy, "f1": f1}
        return {name: classifiers[_known(name, classifiers)](numbers, labels) for name in metric_names}
    assert answers is not None
    if len(predictions) != len(answers):
        raise ValueError(f"{len(predictions)} predictions for {len(answers)} answers")
    if not predictions:
        raise ValueError("nothing to score")
    texts = [prediction for prediction in predictions if not isinstance(prediction, int)]
    if len(texts) != len(predictions):
        raise ValueError("texts are needed for answers, not class numbers")
    generators: dict[str, Callable[[str, Sequence[str]], float]] = {"exact_match": squad_exact_match, "f1": squad_f1}
    return {name: _percentage(generators[_known(name, generators)], texts, answers) for name in metric_names}


def _percentage(
    metric: Callable[[str, Sequence[str]], float], texts: Sequence[str | None], answers: Sequence[Sequence[str]]
) -> float:
    scores = [0.0 if text is None else metric(text, gold) for text, gold in zip(texts, answers, strict=True)]
    return 100.0 * sum(scores) / len(scores)


def _known(name: str, metrics: dict[str, Callable[..., float]]) -> str:
    if name not in metrics:
        raise ValueError(f"cannot score {name!r} here; known: {', '.join(metrics)}")
    return name
