"""Exact match and F1 against the functions of the official SQuAD v1.1 evaluator, transcribed below."""

import random
import re
import string
from collections import Counter

import pytest

from lorascope.metrics import score, squad_exact_match, squad_f1

WORDS = [
    *(
        "the",
        "a",
        "an",
        "The",
        "A",
        "a.",
        "'an'",
        "theory",
        "the-cat",
        "cat",
        "cats",
        "Cat",
        "sat",
        "on",
        "mat,",
        "don't",
    ),
    *("U.S.", "24\u201310", "$5", "1,000", "...", "—", "é", "É", "Ünï", "ß", "İ", "五", "\u00a0", "\u2028"),
]


# From here to the line below: evaluate-v1.1.py by the SQuAD authors, unchanged but for layout.
def normalize_answer(s):
    def remove_articles(text):
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    def lower(text):
        return text.lower()

    return white_space_fix(remove_articles(remove_punc(lower(s))))


def f1_score(prediction, ground_truth):
    prediction_tokens = normalize_answer(prediction).split()
    ground_truth_tokens = normalize_answer(ground_truth).split()
    common = Counter(prediction_tokens) & Counter(ground_truth_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


def exact_match_score(prediction, ground_truth):
    return normalize_answer(prediction) == normalize_answer(ground_truth)


def metric_max_over_ground_truths(metric_fn, prediction, ground_truths):
    scores_for_ground_truths = []
    for ground_truth in ground_truths:
        score = metric_fn(prediction, ground_truth)
        scores_for_ground_truths.append(score)
    return max(scores_for_ground_truths)


# ----------------------------------------------------------------------------------------------


def random_cases(count):
    generator = random.Random(20)

    def phrase():
        return " ".join(generator.choices(WORDS, k=generator.randint(0, 5)))

    return [(phrase(), [phrase() for _ in range(generator.randint(1, 4))]) for _ in range(count)]


def test_random_cases_score_as_the_official_evaluator_scores_them():
    cases = random_cases(5000)
    scores = [(squad_exact_match(given, gold), squad_f1(given, gold)) for given, gold in cases]
    expected = [
        (
            float(metric_max_over_ground_truths(exact_match_score, given, gold)),
            metric_max_over_ground_truths(f1_score, given, gold),
        )
        for given, gold in cases
    ]
    assert scores == expected
    assert 100 < sum(exact for exact, _ in scores) < 4900, "the cases must hold both hits and misses"


def test_a_dataset_scores_as_the_official_evaluator_prints_it():
    cases = random_cases(1000)
    scores = score(("exact_match", "f1"), [given for given, _ in cases], answers=[gold for _, gold in cases])
    exact = sum(metric_max_over_ground_truths(exact_match_score, given, gold) for given, gold in cases)
    overlap = sum(metric_max_over_ground_truths(f1_score, given, gold) for given, gold in cases)
    assert scores == pytest.approx({"exact_match": 100.0 * exact / 1000, "f1": 100.0 * overlap / 1000}, abs=1e-9)
