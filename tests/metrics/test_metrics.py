"""The table of scores over a dataset."""

import pytest

from lorascope.metrics import HIGHER_IS_BETTER, score


def test_classification_scores_are_fractions():
    assert score(("accuracy", "f1"), [1, 1, 0, 0], labels=[1, 0, 1, 0]) == {"accuracy": 0.5, "f1": 0.5}


def test_squad_scores_are_percentages_and_a_missing_answer_counts_as_wrong():
    answers = [["cat"], ["the cat sat on"], ["dog"], ["mat"]]
    scores = score(("exact_match", "f1"), ["a cat", "cat sat", None, "rug"], answers=answers)
    assert scores == pytest.approx({"exact_match": 25.0, "f1": 45.0})


def test_every_metric_says_which_way_is_better():
    assert HIGHER_IS_BETTER == {"accuracy": True, "f1": True, "exact_match": True, "perplexity": False}


@pytest.mark.parametrize(
    ("names", "predictions", "gold"),
    [
        (("perplexity",), [1], {"labels": [1]}),
        (("bleu",), ["x"], {"answers": [["x"]]}),
        (("accuracy",), ["x"], {"labels": [1]}),
        (("f1",), [1], {"answers": [["x"]]}),
        (("f1",), [], {"answers": []}),
        (("f1",), ["x"], {"answers": []}),
        (("accuracy",), [1], {}),
        (("accuracy",), [1], {"labels": [1], "answers": [["x"]]}),
    ],
)
def test_gold_that_does_not_fit_is_refused(names, predictions, gold):
    with pytest.raises(ValueError, match=r"\w"):
        score(names, predictions, **gold)
