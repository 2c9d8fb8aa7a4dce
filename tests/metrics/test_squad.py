"""Exact match and F1 on the edge cases of the official definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.metrics import squad_exact_match, squad_f1
from lorascope.metrics.squad import normalise_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Denver Broncos!", "denver broncos"),
        ("an  apple,\ta day", "apple day"),
        ("theatre and another", "theatre and another"),
        ("the-end", "theend"),
        ("U.S.A.", "usa"),
        ("24\u201310", "24\u201310"),
        ("Économie « verte »", "économie « verte »"),
        ("A", ""),
        ("?!", ""),
    ],
)
def test_normalisation_removes_case_ascii_punctuation_articles_and_extra_space(text, normal):
    assert normalise_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "overlap"),
    [
        ("Saint Bernadette Soubirous", ["saint bernadette soubirous."], 1.0, 1.0),
        ("the cat", ["a cat"], 1.0, 1.0),
        ("cat sat", ["cat", "the cat sat on"], 0.0, 0.8),
        ("dog", ["cat", "mat"], 0.0, 0.0),
        ("cat cat", ["cat"], 0.0, 2 / 3),
        ("", ["cat"], 0.0, 0.0),
        ("the", ["an"], 1.0, 0.0),
        ("Denver Broncos won", ["Denver Broncos", "Broncos"], 0.0, 0.8),
    ],
)
def test_scores_of_known_cases(prediction, answers, exact, overlap):
    assert squad_exact_match(prediction, answers) == exact
    assert squad_f1(prediction, answers) == pytest.approx(overlap)


def test_a_question_without_gold_answers_cannot_be_scored():
    with pytest.raises(ValueError, match="without a gold answer"):
        squad_f1("cat", [])


@given(st.text(max_size=20), st.lists(st.text(max_size=20), min_size=1, max_size=3), st.text(max_size=20))
def test_a_further_gold_answer_never_lowers_a_score(prediction, answers, more):
    assert squad_f1(prediction, [*answers, more]) >= squad_f1(prediction, answers)
    assert squad_exact_match(prediction, [*answers, more]) >= squad_exact_match(prediction, answers)
    assert squad_exact_match(prediction, [prediction]) == 1.0
