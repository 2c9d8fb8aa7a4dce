"""Exact match and F1 against the official SQuAD evaluators: v1.1's functions, and v2.0's steps restated, both below."""

import json
import random
import re
import string
from collections import Counter

import pytest

from lorascope.metrics import score_texts, squad_exact_match, squad_f1

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


def random_cases(count, generator=None):
    generator = generator or random.Random(20)

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
    scores = score_texts(("exact_match", "f1"), [[given] for given, _ in cases], [gold for _, gold in cases])
    exact = sum(metric_max_over_ground_truths(exact_match_score, given, gold) for given, gold in cases)
    overlap = sum(metric_max_over_ground_truths(f1_score, given, gold) for given, gold in cases)
    assert scores.metrics == pytest.approx({"exact_match": 100.0 * exact / 1000, "f1": 100.0 * overlap / 1000}, abs=1e-9)


def perturbed(generator, gold, others):
    """A prediction as models make them: right, nearly right, another question's answer, or nothing."""
    text = generator.choice(gold or others)
    words = text.split()
    variants = [text, f"the {text}.", text.upper(), " ".join(words[1:]), f"{text} {generator.choice(others)}"]
    return generator.choice([*variants, generator.choice(others), "", "", "The"])


def real_cases(path, count):
    """Questions of a SQuAD file in random order, with their gold answers and a perturbed prediction."""
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    golds = [
        [answer["text"] for answer in question["answers"]]
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    generator = random.Random(7)
    others = [gold[0] for gold in golds if gold]
    golds = generator.sample(golds, count)
    return [(perturbed(generator, gold, others), gold) for gold in golds]


@pytest.mark.shared_data
def test_real_questions_score_as_the_official_evaluator_scores_them(shared_data):
    cases = real_cases(shared_data / "squad" / "dev-v1.1.json", 1000)
    scores = score_texts(("exact_match", "f1"), [[given] for given, _ in cases], [gold for _, gold in cases])
    for row, (given, gold) in zip(scores.per_example, cases, strict=True):
        assert row == {
            "exact_match": metric_max_over_ground_truths(exact_match_score, given, gold),
            "f1": metric_max_over_ground_truths(f1_score, given, gold),
        }
    assert 25 < scores.metrics["exact_match"] < scores.metrics["f1"] < 75, "the cases must hold both hits and misses"


def f1_score_v2(prediction, ground_truth):
    """Version 2.0 differs where one side has no token: then only the other's silence agrees with it."""
    if not normalize_answer(prediction) or not normalize_answer(ground_truth):
        return int(normalize_answer(prediction) == normalize_answer(ground_truth))
    return f1_score(prediction, ground_truth)


def official_v2(golds, predictions, no_answer_probabilities):
    """The figures of evaluate-v2.0.py, step by step, over dictionaries by question; its names are in the comments."""
    has_answer = {question: bool(gold) for question, gold in golds.items()}
    figures = {}
    for name, measure in (("exact_match", exact_match_score), ("f1", f1_score_v2)):
        # get_raw_scores
        scores = {}
        for question, gold in golds.items():
            wanted = [answer for answer in gold if normalize_answer(answer)] or [""]
            scores[question] = metric_max_over_ground_truths(measure, predictions[question], wanted)
        # make_eval_dict, merge_eval
        parts = {
            "": list(golds),
            "has_ans_": [q for q in golds if has_answer[q]],
            "no_ans_": [q for q in golds if not golds[q]],
        }
        for prefix, questions in parts.items():
            if questions:
                figures[prefix + name] = 100.0 * sum(scores[question] for question in questions) / len(questions)
        # find_best_thresh
        current = best = sum(not has for has in has_answer.values())
        best_threshold = 0.0
        for question in sorted(no_answer_probabilities, key=lambda question: no_answer_probabilities[question]):
            if has_answer[question]:
                current += scores[question]
            elif predictions[question]:
                current += -1
            if current > best:
                best, best_threshold = current, no_answer_probabilities[question]
        figures[f"best_{name}"] = 100.0 * best / len(scores)
        figures[f"best_{name}_threshold"] = best_threshold
    return figures


def assert_equals_official_v2(cases, probabilities):
    golds = {f"q{number}": gold for number, (_, gold) in enumerate(cases)}
    predictions = {f"q{number}": given for number, (given, _) in enumerate(cases)}
    expected = official_v2(golds, predictions, dict(zip(golds, probabilities, strict=True)))
    samples, answers = [[given] for given, _ in cases], [gold for _, gold in cases]
    metrics = score_texts(("squad_v2",), samples, answers, probabilities).metrics
    assert metrics == pytest.approx(expected, rel=1e-12)
    for threshold in ("best_exact_match_threshold", "best_f1_threshold"):
        assert metrics[threshold] == expected[threshold]
    without = score_texts(("squad_v2",), samples, answers).metrics
    assert without == {name: value for name, value in metrics.items() if not name.startswith("best_")}
    return metrics


@pytest.mark.parametrize("digits", [1, 16])
def test_random_questions_with_and_without_answers_score_as_the_official_evaluator_of_v2_scores_them(digits):
    generator = random.Random(digits)
    thresholds = set()
    for size in (1, 3, 10, 1000):
        for _ in range(20 if size < 1000 else 1):
            cases = [(given, gold if generator.random() < 0.6 else []) for given, gold in random_cases(size, generator)]
            probabilities = [round(generator.random(), digits) for _ in cases]
            thresholds.add(assert_equals_official_v2(cases, probabilities)["best_f1_threshold"])
    assert len(thresholds) > 5, "the thresholds must differ"


@pytest.mark.shared_data
def test_real_questions_with_and_without_answers_score_as_the_official_evaluator_of_v2_scores_them(shared_data):
    cases = real_cases(shared_data / "squad" / "dev-v2.0.rebuilt.json", 3000)
    generator = random.Random(3)
    # A model that tells the two kinds apart, though not well; three digits make many probabilities equal.
    probabilities = [round(generator.betavariate(2, 3) if gold else generator.betavariate(3, 2), 3) for _, gold in cases]
    metrics = assert_equals_official_v2(cases, probabilities)
    assert metrics["best_f1"] > metrics["f1"] + 5
    assert 0 < metrics["best_exact_match_threshold"] < 1
