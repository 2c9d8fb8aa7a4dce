"""ROUGE-L and the dialogue field's F1 on cases worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.metrics import rouge_l, token_f1

TEXTS = st.lists(st.sampled_from(["a", "the", "i", "like", "dogs", "Dogs!", "don't", "é"]), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the cat sat", ["the cat sat"], 1.0),
        ("police killed the gunman", ["police kill the gunman"], 0.75),
        ("the gunman kill police", ["police kill the gunman"], 0.5),
        ("The CAT!", ["the-cat"], 1.0),
        ("running", ["run"], 0.0),
        ("", [""], 0.0),
        ("é", ["é"], 0.0),
        ("b c", ["x", "a b c d", "b"], 2 / 3),
    ],
)
def test_rouge_l_of_known_cases(prediction, answers, expected):
    assert rouge_l(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("i like the dogs .", ["dogs like I"], 1.0),
        ("i like cats", ["i like dogs"], 2 / 3),
        ("don't", ["don t"], 1.0),
        ("dogs dogs", ["dogs"], 2 / 3),
        ("the", ["a"], 0.0),
        ("", ["dogs"], 0.0),
        ("i like dogs", ["no", "i", "like dogs"], 0.8),
    ],
)
def test_token_f1_of_known_cases(prediction, answers, expected):
    assert token_f1(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [rouge_l, token_f1])
def test_a_text_without_gold_cannot_be_scored(metric):
    with pytest.raises(ValueError, match="without a gold text"):
        metric("cat", [])


@pytest.mark.parametrize("metric", [rouge_l, token_f1])
@given(prediction=TEXTS, answers=st.lists(TEXTS, min_size=1, max_size=3), more=TEXTS)
def test_a_further_gold_text_never_lowers_a_score_and_one_pair_scores_alike_both_ways(metric, prediction, answers, more):
    score = metric(prediction, answers)
    assert 0.0 <= score <= metric(prediction, [*answers, more]) <= 1.0
    assert metric(prediction, [more]) == pytest.approx(metric(more, [prediction]))
