"""Metrics of texts and labels against the packages the field uses, and against straightforward computations beside them."""

import math
import random
import string
from collections import Counter
from functools import cache

import pytest
import sacrebleu
import sklearn.metrics
from rouge_score import rouge_scorer

from lorascope.metrics import distinct_n, rouge_l, score_labels, score_texts, self_bleu, token_f1

WORDS = [
    "the",
    "a",
    "an",
    "I",
    "i",
    "'m",
    "don't",
    "cat",
    "cats",
    "Cat",
    "sat",
    "on",
    "mat,",
    ".",
    "!",
    "24-10",
    "$5",
    "é",
    "the_cat",
]
PLAIN = ["we", "like", "dogs", "and", "cats", "too"]


def phrases(generator, count, longest, words=WORDS, shortest=0):
    return [" ".join(generator.choices(words, k=generator.randint(shortest, longest))) for _ in range(count)]


def text_cases(count):
    """Random predictions with one to four gold texts each."""
    generator = random.Random(11)
    return [(phrases(generator, 1, 9)[0], phrases(generator, generator.randint(1, 4), 9)) for _ in range(count)]


def longest_common_subsequence(first, second):
    @cache
    def length(i, j):
        if i == len(first) or j == len(second):
            return 0
        if first[i] == second[j]:
            return 1 + length(i + 1, j + 1)
        return max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


def harmonic_mean(num_common, num_given, num_gold):
    return 2 * num_common / (num_given + num_gold) if num_common else 0.0


def test_rouge_l_equals_the_rouge_score_package():
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    cases = text_cases(1000)
    expected = [max(scorer.score(gold, given)["rougeL"].fmeasure for gold in golds) for given, golds in cases]
    scores = score_texts(("rouge_l",), [[given] for given, _ in cases], [golds for _, golds in cases])
    assert [row["rouge_l"] for row in scores.per_example] == expected
    assert scores.metrics["rouge_l"] == pytest.approx(sum(expected) / 1000, abs=1e-12)
    assert len(set(expected)) > 30, "the cases must differ"


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    def words(text):
        kept = [letter if letter in string.ascii_lowercase + string.digits else " " for letter in text.lower()]
        return "".join(kept).split()

    for given, golds in text_cases(1000):
        pairs = [(words(given), words(gold)) for gold in golds]
        expected = max(harmonic_mean(longest_common_subsequence(a, b), len(a), len(b)) for a, b in pairs)
        assert rouge_l(given, golds) == pytest.approx(expected, abs=1e-12)


def parlai_f1(given, golds):
    """ParlAI's F1: punctuation gives way to a space, then articles go, and words in common are struck off one by one."""

    def words(text):
        spaced = "".join(" " if letter in "!\"#$%&()*+,-./:;<=>?@[]\\^`{|}~_'" else letter for letter in text.lower())
        return [word for word in spaced.split() if word not in ("a", "an", "the")]

    def overlap(given, gold):
        rest, num_common = list(gold), 0
        for word in given:
            if word in rest:
                rest.remove(word)
                num_common += 1
        return harmonic_mean(num_common, len(given), len(gold))

    return max(overlap(words(given), words(gold)) for gold in golds)


def test_token_f1_equals_parlais():
    cases = text_cases(1000)
    expected = [parlai_f1(given, golds) for given, golds in cases]
    assert [token_f1(given, golds) for given, golds in cases] == pytest.approx(expected, abs=1e-12)
    assert sum(0 < value < 1 for value in expected) > 100, "the cases must overlap in part"


def test_accuracy_and_f1_equal_scikit_learns_and_the_counts_they_stand_for():
    generator = random.Random(5)
    num_cases = 0
    for _ in range(100):
        size, num_classes = generator.randint(1, 40), generator.randint(2, 3)
        labels = generator.choices(range(num_classes), k=size)
        predictions = [label if generator.random() < 0.5 else generator.randrange(num_classes) for label in labels]
        scores = score_labels(("accuracy", "f1"), predictions, labels)
        assert scores["accuracy"] == sklearn.metrics.accuracy_score(labels, predictions)
        # F1 of class 1, whatever the other classes are called.
        is_one, said_one = [label == 1 for label in labels], [guess == 1 for guess in predictions]
        assert scores["f1"] == pytest.approx(sklearn.metrics.f1_score(is_one, said_one, zero_division=0), abs=1e-12)
        both = sum(map(min, is_one, said_one))
        assert scores["f1"] == pytest.approx(harmonic_mean(both, sum(said_one), sum(is_one)), abs=1e-12)
        assert scores["accuracy"] == sum(map(int.__eq__, predictions, labels)) / size
        num_cases += size
    assert num_cases > 1000


@pytest.mark.parametrize("n", [1, 2])
def test_distinct_n_counts_each_ngram_once(n):
    generator = random.Random(n)
    for _ in range(200):
        texts = phrases(generator, generator.randint(1, 12), 9)
        counts = Counter()
        for text in texts:
            words = text.lower().split()
            for start in range(len(words) - n + 1):
                counts[" ".join(words[start : start + n])] += 1
        expected = len(counts) / counts.total() if counts else 0.0
        assert distinct_n(texts, n) == pytest.approx(expected, abs=1e-12)
        assert score_texts((f"distinct_{n}",), [[text] for text in texts], [[]] * len(texts)).metrics == {
            f"distinct_{n}": distinct_n(texts, n)
        }


def plain_bleu(given, others):
    """Sentence BLEU of lower-case words, from its definition: clipped precisions, brevity against the nearest length."""
    given, others = given.split(), [other.split() for other in others]

    def ngrams(words, n):
        return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))

    precisions, missed = [], 0
    for n in range(1, min(4, len(given)) + 1):
        counts = ngrams(given, n)
        right = sum(min(count, max(ngrams(other, n)[ngram] for other in others)) for ngram, count in counts.items())
        if n == 1 and not right:
            return 0.0
        missed += right == 0
        # Exponential smoothing: the k-th order without a match counts as 2^-k matches.
        precisions.append((right or 0.5**missed) / counts.total())
    nearest = min((abs(len(other) - len(given)), len(other)) for other in others)[1]
    brevity = min(1.0, math.exp(1 - nearest / len(given)))
    return 100 * brevity * math.prod(precisions) ** (1 / len(precisions))


def test_self_bleu_is_bleu_against_the_other_samples():
    generator = random.Random(2)
    prompts = [phrases(generator, 4, 9, PLAIN, shortest=1) for _ in range(250)]
    expected = [
        [plain_bleu(sample, samples[:place] + samples[place + 1 :]) for place, sample in enumerate(samples)]
        for samples in prompts
    ]
    scores = score_texts(("self_bleu",), prompts, [[]] * len(prompts))
    means = [sum(values) / 4 for values in expected]
    assert [row["self_bleu"] for row in scores.per_example] == pytest.approx(means, abs=1e-9)
    assert scores.metrics["self_bleu"] == pytest.approx(sum(means) / 250, abs=1e-9)
    assert len({round(mean) for mean in means}) > 30, "the cases must differ"


def sacrebleus(samples):
    others = [samples[:place] + samples[place + 1 :] for place in range(len(samples))]
    return [sacrebleu.sentence_bleu(*pair).score for pair in zip(samples, others, strict=True)]


def test_self_bleu_equals_sacrebleus_sentence_bleu():
    generator = random.Random(4)
    for _ in range(250):
        samples = phrases(generator, generator.randint(2, 5), 12)
        assert self_bleu(samples) == sacrebleus(samples)


@pytest.mark.shared_data
def test_real_replies_score_as_the_packages_score_them(shared_data):
    text = (shared_data / "personachat" / "valid_self_original.txt").read_text(encoding="utf-8")
    turns = [line.split("\t") for line in text.splitlines() if "\t" in line][:300]
    generator = random.Random(9)
    golds = [[turn[1]] for turn in turns]
    # Another reply, the right one, and the right one cut short and repeating itself.
    samples = [[generator.choice(turn[3].split("|")), turn[1], " ".join((turn[1].split()[:5]) * 2)] for turn in turns]
    scores = score_texts(("rouge_l", "token_f1", "self_bleu"), samples, golds)
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    for row, replies, (gold,) in zip(scores.per_example, samples, golds, strict=True):
        assert row["rouge_l"] == pytest.approx(sum(scorer.score(gold, reply)["rougeL"].fmeasure for reply in replies) / 3)
        assert row["token_f1"] == pytest.approx(sum(parlai_f1(reply, [gold]) for reply in replies) / 3)
        assert row["self_bleu"] == pytest.approx(sum(sacrebleus(replies)) / 3)
    assert 0.3 < scores.metrics["rouge_l"] < 0.9
    assert 0.3 < scores.metrics["token_f1"] < 0.9
    assert 10 < scores.metrics["self_bleu"] < 90
