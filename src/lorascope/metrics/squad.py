"""Exact match and F1 of SQuAD, as the official evaluators of versions 1.1 and 2.0 define them.

Knows one prediction and its gold answers, and for version 2.0 the figures of a whole dataset too; v1.1's means are in
``metrics``. Floor: metrics.

Sources: Rajpurkar et al. 2016 (v1.1), Rajpurkar et al. 2018 (v2.0).
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from lorascope.metrics.overlap import word_f1

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, without the articles a, an, the, and with single spaces."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def squad_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals one of the gold answers after normalisation, else 0.0.

    Raises:
        ValueError: there is no gold answer.
    """
    return _best(prediction, answers, lambda given, gold: float(given == gold))


def squad_f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall after normalisation, 0..1, for the gold answer that suits best.

    Two texts without any word in common score 0, and so do two empty ones, as in version 1.1 of the official evaluator.

    Raises:
        ValueError: there is no gold answer.
    """
    return _best(prediction, answers, _overlap)


def squad_v2_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """As ``squad_exact_match``, but without gold answers 1.0 for a prediction that normalises to nothing, else 0.0."""
    return squad_exact_match(prediction, _v2_gold(answers))


def squad_v2_f1(prediction: str, answers: Sequence[str]) -> float:
    """As ``squad_f1``, but where prediction or gold normalises to nothing, 1.0 if both do and 0.0 if one does.

    A question without gold answers has the empty string for one.
    """
    return _best(prediction, _v2_gold(answers), _overlap_or_silence)


def squad_v2_figures(
    exact_match: Sequence[float],
    f1: Sequence[float],
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    no_answer_probabilities: Sequence[float] | None = None,
) -> dict[str, float]:
    """The percentages that the official evaluator of version 2.0 prints, beside the means over all questions.

    Args:
        exact_match, f1: score of each prediction, 0..1.
        answers: gold answers of each prediction's question; empty where it has none.
        no_answer_probabilities: how likely each question was held to be unanswerable, 0..1.

    Returns:
        For both scores, ``has_ans_`` and ``no_ans_``, the mean over the questions with and without an answer (absent where
        there are none), and with probabilities ``best_``, the mean if the empty string were predicted wherever the
        probability exceeds ``best_…_threshold``: the value that suits these very questions best.
    """
    figures = {}
    has_answer = [bool(gold) for gold in answers]
    for name, values in (("exact_match", exact_match), ("f1", f1)):
        for prefix, wanted in (("has_ans", True), ("no_ans", False)):
            part = [value for value, has in zip(values, has_answer, strict=True) if has is wanted]
            if part:
                figures[f"{prefix}_{name}"] = 100.0 * sum(part) / len(part)
        if no_answer_probabilities is not None:
            # What answering gains over silence, which is right where there is no answer. As in the official evaluator, any
            # text but the empty one is an answer here, even one that normalises to nothing.
            gains = [
                value if has else -float(prediction != "")
                for value, has, prediction in zip(values, has_answer, predictions, strict=True)
            ]
            most, threshold = _best_threshold(has_answer.count(False), gains, no_answer_probabilities)
            figures[f"best_{name}"] = 100.0 * most / len(gains)
            figures[f"best_{name}_threshold"] = threshold
    return figures


def _best_threshold(silence: int, gains: Sequence[float], probabilities: Sequence[float]) -> tuple[float, float]:
    """The most that silence and the gains of the questions likeliest to have an answer add up to, and where these end.

    They may end between questions of equal probability, which no threshold can part: the official evaluator allows it too.
    """
    total = most = float(silence)
    threshold = 0.0
    for place in sorted(range(len(gains)), key=probabilities.__getitem__):
        total += gains[place]
        if total > most:
            most, threshold = total, probabilities[place]
    return most, float(threshold)


def _v2_gold(answers: Sequence[str]) -> Sequence[str]:
    return [answer for answer in answers if normalise_answer(answer)] or [""]


def _overlap(given: str, gold: str) -> float:
    return word_f1(given.split(), gold.split())


def _overlap_or_silence(given: str, gold: str) -> float:
    return _overlap(given, gold) if given and gold else float(given == gold)


def _best(prediction: str, answers: Sequence[str], compare: Callable[[str, str], float]) -> float:
    if not answers:
        raise ValueError("a question without a gold answer cannot be scored")
    given = normalise_answer(prediction)
    return max(compare(given, normalise_answer(answer)) for answer in answers)
