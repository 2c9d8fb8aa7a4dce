"""Accuracy and binary F1, computed by scikit-learn.

A prediction of None (none was made) counts as wrong. Floor: metrics.
"""

from __future__ import annotations

from collections.abc import Sequence


def accuracy(predictions: Sequence[int | None], labels: Sequence[int]) -> float:
    """Share of predictions that equal their label, 0..1.

    Raises:
        ValueError: the lengths differ, or there is nothing to score.
    """
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(list(labels), _numbers(predictions, labels)))


def f1(predictions: Sequence[int | None], labels: Sequence[int]) -> float:
    """F1 of class 1, as GLUE reports for MRPC, 0..1; 0 where class 1 is neither predicted nor present.

    Raises:
        ValueError: the lengths differ, or there is nothing to score.
    """
    from sklearn.metrics import f1_score

    # One label of a macro average is the binary score, and does not mind the number that stands for None.
    score = f1_score(list(labels), _numbers(predictions, labels), labels=[1], average="macro", zero_division=0)
    return float(score)


def _numbers(predictions: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    if len(predictions) != len(labels):
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels")
    if not labels:
        raise ValueError("nothing to score")
    return [-1 if prediction is None else prediction for prediction in predictions]
