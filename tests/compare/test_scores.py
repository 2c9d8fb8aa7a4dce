"""Predictions taken apart: they give the stored metric again, and an example's score is what the metric owes to it."""

import json
import math

import numpy as np
import pytest

from lorascope.compare.scores import read_ratios
from lorascope.metrics import score_labels, score_texts

NAMES = ("no", "yes")


def classified(num_examples=60, **changes):
    """Rows as a classifier's evaluation writes them, and its metrics."""
    draw = np.random.default_rng(num_examples)
    logits, labels = draw.normal(0, 1, (num_examples, 2)).round(6), draw.integers(0, 2, num_examples)
    if "guess" in changes:
        logits[:, 1 - changes["guess"]] = -9.0
    guesses = logits.argmax(axis=1)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(num_examples), labels]
    rows = [
        {"id": str(i), "prediction": NAMES[guess], "label": NAMES[label], "correct": bool(guess == label),
         "logits": logits[i].tolist(), "loss": round(float(losses[i]), 6)}
        for i, (guess, label) in enumerate(zip(guesses, labels, strict=True))
    ]  # fmt: skip
    metrics = score_labels(["accuracy", "f1"], guesses.tolist(), labels.tolist())
    return rows, {**metrics, "eval_loss": float(losses.mean())}


def answered():
    """Rows of SQuAD v2.0, two questions a context, and their metrics."""
    gold = [("a cat", "cat"), (), ("the river Thames",), (), ("seven",), ("a warm heart",)]
    texts = ["cat", "", "Thames", "a dog", "eight", "warm"]
    scores = score_texts(["squad_v2"], [[text] for text in texts], gold, [0.1, 0.9, 0.2, 0.4, 0.3, 0.2])
    losses = [(1.5, 3), (0.2, 1), (2.0, 4), (0.1, 1), (3.0, 2), (1.0, 3)]
    rows = [
        {"id": f"q{i}", "prediction": texts[i], "answers": list(gold[i]), **scores.per_example[i], "loss": losses[i][0],
         "target_tokens": losses[i][1], "group": f"context {i // 2}"}
        for i in range(6)
    ]  # fmt: skip
    loss = sum(value * tokens for value, tokens in losses) / sum(tokens for _, tokens in losses)
    return rows, {**scores.metrics, "eval_loss": loss, "perplexity": math.exp(loss)}


@pytest.fixture
def written(tmp_path):
    def write(rows):
        path = tmp_path / "predictions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def test_a_classifiers_metrics_come_out_of_its_predictions(written):
    rows, metrics = classified()
    ratios = read_ratios(written(rows), metrics)
    assert {name: ratio.value for name, ratio in ratios.items()} == pytest.approx(metrics, rel=1e-6)


@pytest.mark.parametrize("guess", [0, 1])
def test_class_one_is_known_even_where_one_class_alone_is_predicted(guess, written):
    rows, metrics = classified(guess=guess)
    assert read_ratios(written(rows), metrics)["f1"].value == pytest.approx(metrics["f1"], abs=1e-9)
    assert (metrics["f1"] > 0) == (guess == 1)


def test_squads_metrics_come_out_of_the_answers_but_for_fitted_thresholds(written):
    rows, metrics = answered()
    ratios = read_ratios(written(rows), metrics)
    assert {name: ratio.value for name, ratio in ratios.items()} == pytest.approx(
        {name: value for name, value in metrics.items() if not name.startswith("best_")}, rel=1e-6
    )
    assert len(ratios) == 8
    assert ratios["f1"].groups == ("context 0", "context 0", "context 1", "context 1", "context 2", "context 2")


@pytest.mark.parametrize("name", ["accuracy", "f1", "eval_loss"])
def test_a_classifiers_scores_tell_what_each_metric_owes_to_an_example(name, written):
    check_scores(*classified(), name, written)


@pytest.mark.parametrize("name", ["has_ans_f1", "eval_loss", "perplexity"])
def test_an_answers_scores_tell_what_each_metric_owes_to_it(name, written):
    check_scores(*answered(), name, written)


def check_scores(rows, metrics, name, written):
    """They average to the metric, and say to first order what it would be without the example."""
    ratio = read_ratios(written(rows), metrics)[name]
    scores = ratio.scores()
    assert scores.mean() == pytest.approx(ratio.value, rel=1e-9)
    for left_out in range(len(rows)):
        kept = [index for index in range(len(rows)) if index != left_out]
        share = ratio.denominators_E[left_out] / ratio.denominators_E.sum()
        expected = (scores[left_out] - ratio.value) / (len(rows) * (1 - share))
        # Exact for a ratio, and for the exponential of one up to the square of the change.
        change = ratio.value - ratio.select(kept).value
        assert change == pytest.approx(expected, abs=1e-9 if name != "perplexity" else change**2 / ratio.value + 1e-9)


def test_equal_ids_are_examples_of_their_own(written):
    rows, metrics = classified(4)
    ratio = read_ratios(written([{**row, "id": "same"} for row in rows]), metrics)["accuracy"]
    assert ratio.keys == (("same", 0), ("same", 1), ("same", 2), ("same", 3))
    assert len(set(ratio.groups)) == 4


def test_rows_without_a_value_do_not_count(written):
    rows = [{"id": "a", "hit": True}, {"id": "b"}, {"id": "c", "hit": False}]
    assert read_ratios(written(rows), {"hits_at_1": 0.5})["hits_at_1"].value == 0.5


def test_predictions_that_do_not_give_the_stored_metric_are_not_used(written):
    rows, metrics = classified()
    assert set(read_ratios(written(rows), {**metrics, "accuracy": metrics["accuracy"] + 0.01})) == {"f1", "eval_loss"}


@pytest.mark.parametrize("text", ["", "no JSON\n", "[]\n", '{"id": "a"}\n', '{"prediction": "yes", "correct": true}\n'])
def test_predictions_that_cannot_be_read_are_not_used(text, tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(text, encoding="utf-8")
    assert read_ratios(path, {"accuracy": 1.0, "f1": 1.0}) == {}
    assert read_ratios(tmp_path / "absent", {"accuracy": 1.0}) == {}


def test_losses_without_their_tokens_are_not_taken_apart(written):
    rows, metrics = answered()
    old = [{key: value for key, value in row.items() if key != "target_tokens"} for row in rows]
    assert not {"eval_loss", "perplexity"} & read_ratios(written(old), metrics).keys()
