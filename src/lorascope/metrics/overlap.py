"""How much of a gold text's words a generated text shares: ROUGE-L and the dialogue field's F1, 0..1.

Knows one text and its gold texts; means over a dataset are in ``metrics``. Floor: metrics.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

_PUNCTUATION_TO_SPACE = str.maketrans(dict.fromkeys(string.punctuation, " "))


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words, for the gold text that suits best.

    Computed by the ``rouge-score`` package with its own defaults: words are lower-cased runs of ASCII letters and digits,
    and no stemmer is used. A text without such a word scores 0.

    Source: Lin 2004, section 3.1.

    Raises:
        ValueError: there is no gold text.
    """
    if not answers:
        raise ValueError("a text without a gold text has no ROUGE-L")
    return float(_rouge_scorer().score_multi(answers, prediction)["rougeL"].fmeasure)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words, however ordered, as ParlAI computes it and ConvAI2 reported it, for the gold text that suits best.

    Words are lower-cased, and punctuation (which becomes a space: "don't" is two words) and articles are left out. Texts
    without any word in common score 0.

    Source: Miller et al. 2017 (ParlAI); Dinan et al. 2019 (ConvAI2).

    Raises:
        ValueError: there is no gold text.
    """
    if not answers:
        raise ValueError("a text without a gold text has no F1")
    words = _dialogue_words(prediction)
    return max(word_f1(words, _dialogue_words(answer)) for answer in answers)


def word_f1(given: Sequence[str], gold: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of two bags of words; 0 where they share none, so for two empty ones too."""
    num_common = sum((Counter(given) & Counter(gold)).values())
    if num_common == 0:
        return 0.0
    precision, recall = num_common / len(given), num_common / len(gold)
    return 2 * precision * recall / (precision + recall)


def _dialogue_words(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION_TO_SPACE)).split()


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])
