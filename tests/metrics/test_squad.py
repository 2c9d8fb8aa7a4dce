"""Exact match and F1 on the edge cases of the official definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.metrics import squad_exact_match, squad_f1, squad_v2_exact_match, squad_v2_f1
from lorascope.metrics.squad import normalise_answer, squad_v2_figures


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


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "overlap"),
    [
        ("", [], 1.0, 1.0),
        ("the", [], 1.0, 1.0),
        ("cat", [], 0.0, 0.0),
        ("", ["cat"], 0.0, 0.0),
        ("cat sat", ["cat"], 0.0, 2 / 3),
        ("", ["?", "cat"], 0.0, 0.0),
        ("", ["?"], 1.0, 1.0),
    ],
)
def test_silence_is_the_answer_to_a_question_of_version_two_without_one(prediction, answers, exact, overlap):
    assert squad_v2_exact_match(prediction, answers) == exact
    assert squad_v2_f1(prediction, answers) == pytest.approx(overlap)


def test_the_best_threshold_is_the_probability_up_to_which_answering_pays():
    predictions, answers = ["cat", "dog", "mat", "rug"], [["cat"], [], ["mat"], []]
    figures = squad_v2_figures([1, 0, 1, 0], [1, 0, 1, 0], predictions, answers, [0.1, 0.9, 0.3, 0.5])
    assert (figures["best_exact_match"], figures["best_exact_match_threshold"]) == (100.0, 0.3)
    figures = squad_v2_figures([1, 0, 0, 0], [1, 0, 0.5, 0], predictions, answers, [0.1, 0.2, 0.3, 0.4])
    assert (figures["best_exact_match"], figures["best_exact_match_threshold"]) == (75.0, 0.1)
    assert (figures["best_f1"], figures["best_f1_threshold"]) == (75.0, 0.1)


def test_where_no_answer_pays_the_best_threshold_is_zero():
    figures = squad_v2_figures([0, 0], [0, 0], ["cat", "dog"], [[], ["mat"]], [0.1, 0.2])
    assert (figures["best_f1"], figures["best_f1_threshold"]) == (50.0, 0.0)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["", "cat", "dog"]), st.integers(0, 99)), min_size=1, max_size=8,
                unique_by=lambda question: question[2]))  # fmt: skip
def test_no_threshold_is_better_than_the_best(questions):
    answers = [["cat"] if has else [] for has, _, _ in questions]
    predictions = [prediction for _, prediction, _ in questions]
    probabilities = [number / 100 for _, _, number in questions]
    exact = [squad_v2_exact_match(*pair) for pair in zip(predictions, answers, strict=True)]
    figures = squad_v2_figures(exact, exact, predictions, answers, probabilities)

    def with_threshold(threshold):
        given = ["" if p > threshold else text for p, text in zip(probabilities, predictions, strict=True)]
        return 100 * sum(map(squad_v2_exact_match, given, answers)) / len(answers)

    everywhere = [with_threshold(threshold) for threshold in (-1.0, *probabilities)]
    assert figures["best_exact_match"] == pytest.approx(max(everywhere))
    if max(everywhere) > everywhere[0]:
        assert with_threshold(figures["best_exact_match_threshold"]) == pytest.approx(max(everywhere))
