"""How varied generated texts are: distinct-n and self-BLEU, which need no gold texts.

Floor: metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Number of different n-grams over the number of all n-grams in all texts, 0..1; 0 where there is none.

    Words are what white space divides, lower-cased; an n-gram lies within one text. Li et al. divide by the number of words
    for n = 2 also; the field has since divided by the number of n-grams, which makes 1 the most for every n. The more texts,
    the lower the value: compare only sets of the same size.

    Source: Li et al. 2016.
    """
    ngrams = []
    for text in texts:
        words = text.lower().split()
        ngrams += list(zip(*(words[start:] for start in range(n)), strict=False))
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def self_bleu(samples: Sequence[str]) -> list[float]:
    """BLEU of each sample of one prompt against the prompt's other samples, 0..100: high where they repeat each other.

    Computed by sacrebleu as sentence BLEU: up to 4-grams, or as long as the sample allows, 13a tokens, case kept, exponential
    smoothing. An empty sample scores 0.

    Source: Zhu et al. 2018 (Texygen); there over the samples of a whole corpus, here over those of a prompt.

    Raises:
        ValueError: there are fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError("self-BLEU needs at least two samples")
    bleu = _sentence_bleu()
    return [
        float(bleu.sentence_score(sample, [*samples[:place], *samples[place + 1 :]]).score)
        for place, sample in enumerate(samples)
    ]


@cache
def _sentence_bleu() -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)
