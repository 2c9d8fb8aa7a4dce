"""Exact match and F1 of SQuAD v1.1, as the official evaluator defines them (Rajpurkar et al. 2016).

Knows one prediction and its gold answers; means over a dataset are in ``metrics``. Floor: metrics.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

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


def _overlap(given: str, gold: str) -> float:
    given_words, gold_words = given.split(), gold.split()
    num_common = sum((Counter(given_words) & Counter(gold_words)).values())
    if num_common == 0:
        return 0.0
    precision, recall = num_common / len(given_words), num_common / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def _best(prediction: str, answers: Sequence[str], compare: Callable[[str, str], float]) -> float:
    if not answers:
        raise ValueError("a question without a gold answer cannot be scored")
    given = normalise_answer(prediction)
    return max(compare(given, normalise_answer(answer)) for answer in answers)
