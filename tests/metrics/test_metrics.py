"""The tables of scores over a dataset."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.metrics import HIGHER_IS_BETTER, LABEL_METRICS, TEXT_METRICS, score_labels, score_texts

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "Mat.", "don't"]), max_size=5).map(" ".join)


def each_once(texts):
    return [[text] for text in texts]


@st.composite
def datasets(draw):
    num_samples = draw(st.integers(1, 3))
    size = draw(st.integers(1, 5))
    samples = [[draw(WORDS) for _ in range(num_samples)] for _ in range(size)]
    answers = [[draw(WORDS) for _ in range(draw(st.integers(1, 3)))] for _ in range(size)]
    return samples, answers


def test_classification_scores_are_fractions():
    assert score_labels(("accuracy", "f1"), [1, 1, 0, 0], [1, 0, 1, 0]) == {"accuracy": 0.5, "f1": 0.5}


def test_squad_scores_are_percentages_and_those_of_one_question_are_shares():
    answers = [["cat"], ["the cat sat on"], ["dog"], ["mat"]]
    scores = score_texts(("exact_match", "f1"), each_once(["a cat", "cat sat", "", "rug"]), answers)
    assert scores.metrics == pytest.approx({"exact_match": 25.0, "f1": 45.0})
    assert [row["exact_match"] for row in scores.per_example] == [1.0, 0.0, 0.0, 0.0]
    assert [row["f1"] for row in scores.per_example] == pytest.approx([1.0, 0.8, 0.0, 0.0])


def test_squad_v2_divides_the_questions_into_those_with_and_without_an_answer():
    scores = score_texts(("squad_v2",), each_once(["cat", "", "mat", "the"]), [["cat"], ["dog"], [], []])
    assert scores.metrics == {
        "exact_match": 50.0, "f1": 50.0, "has_ans_exact_match": 50.0, "has_ans_f1": 50.0,
        "no_ans_exact_match": 50.0, "no_ans_f1": 50.0,
    }  # fmt: skip
    assert scores.per_example == [{"exact_match": value, "f1": value} for value in (1.0, 0.0, 0.0, 1.0)]


@pytest.mark.parametrize(("answers", "absent"), [([["cat"], ["dog"]], "no_ans"), ([[], []], "has_ans")])
def test_a_kind_of_question_that_does_not_occur_has_no_figures(answers, absent):
    metrics = score_texts(("squad_v2",), each_once(["cat", ""]), answers).metrics
    present = "has_ans" if absent == "no_ans" else "no_ans"
    assert set(metrics) == {"exact_match", "f1", f"{present}_exact_match", f"{present}_f1"}


def test_several_samples_count_by_their_mean():
    scores = score_texts(("rouge_l", "exact_match"), [["cat sat", "dog"], ["mat", "mat"]], [["cat sat"], ["mat"]])
    assert scores.metrics == {"rouge_l": 0.75, "exact_match": 75.0}
    assert scores.per_example == [{"rouge_l": 0.5, "exact_match": 0.5}, {"rouge_l": 1.0, "exact_match": 1.0}]


def test_self_bleu_is_there_only_where_a_prompt_has_several_samples():
    names = ("distinct_1", "self_bleu")
    alone = score_texts(names, [["a b"], ["a c"]], [[], []])
    assert (alone.metrics, alone.per_example) == ({"distinct_1": 0.75}, [{}, {}])
    pairs = score_texts(names, [["a b c d", "a b c d"], ["a", "b"]], [[], []])
    assert pairs.metrics == pytest.approx({"distinct_1": 0.8, "self_bleu": 50.0})
    assert [row["self_bleu"] for row in pairs.per_example] == pytest.approx([100.0, 0.0])


def test_more_samples_of_the_same_kind_do_not_make_texts_less_distinct():
    once, thrice = [["a b"], ["c d"]], [["a b"] * 3, ["c d"] * 3]
    names = ("distinct_1", "distinct_2")
    assert score_texts(names, thrice, [[], []]).metrics == score_texts(names, once, [[], []]).metrics


@given(datasets())
def test_a_metric_of_single_examples_is_the_mean_over_them(dataset):
    samples, answers = dataset
    scores = score_texts(("exact_match", "f1", "rouge_l", "token_f1", "self_bleu"), samples, answers)
    assert set(scores.metrics) == set(scores.per_example[0])
    for name, value in scores.metrics.items():
        mean = sum(row[name] for row in scores.per_example) / len(samples)
        assert value == pytest.approx(mean * (100.0 if name in ("exact_match", "f1") else 1.0), abs=1e-9)


@given(datasets())
def test_equal_samples_score_as_one(dataset):
    samples, answers = dataset
    names = ("squad_v2", "rouge_l", "token_f1")
    probabilities = [index / len(samples) for index in range(len(samples))]
    firsts = [prompt[:1] for prompt in samples]
    one = score_texts(names, firsts, answers, probabilities)
    three = score_texts(names, [prompt * 3 for prompt in firsts], answers, probabilities)
    assert three.metrics == pytest.approx(one.metrics)
    for row, same in zip(three.per_example, one.per_example, strict=True):
        assert row == pytest.approx(same)


def test_every_metric_says_which_way_is_better():
    samples = [["cat sat on it", "dog"], ["", "mat"]]
    names = [name for name in TEXT_METRICS if name not in ("exact_match", "f1")]
    scored = set(score_texts([name for name in names if name in ("squad_v2", "distinct_1", "distinct_2", "self_bleu")],
                             samples, [["cat"], []], [0.2, 0.9]).metrics)  # fmt: skip
    scored |= set(score_texts(("rouge_l", "token_f1"), samples, [["cat"], ["mat"]]).metrics)
    thresholds = {"best_exact_match_threshold", "best_f1_threshold"}
    assert thresholds < scored
    assert scored | set(LABEL_METRICS) <= set(HIGHER_IS_BETTER) | thresholds
    assert not thresholds & set(HIGHER_IS_BETTER)
    assert {name for name, higher in HIGHER_IS_BETTER.items() if not higher} == {"eval_loss", "perplexity", "self_bleu"}


@pytest.mark.parametrize("name", ["perplexity", "exact_match", "bleu"])
def test_a_metric_that_class_numbers_do_not_have_is_refused(name):
    with pytest.raises(ValueError, match=f"cannot score '{name}' here; known: accuracy, f1"):
        score_labels((name,), [1], [1])


@pytest.mark.parametrize(
    ("names", "samples", "answers", "probabilities", "message"),
    [
        (("accuracy",), [["x"]], [["x"]], None, "cannot score 'accuracy' here; known: exact_match"),
        (("f1",), [], [], None, "nothing to score"),
        (("f1",), [[]], [["x"]], None, "nothing to score"),
        (("f1",), [["x"]], [], None, "1 prompts have samples, but 0 have answers"),
        (("f1",), [["x"], ["x", "y"]], [["x"], ["x"]], None, "same number of samples"),
        (("f1",), ["x"], [["x"]], None, "a list of texts"),
        (("f1",), [["x"]], ["x"], None, "a list of texts"),
        (("f1",), [["x"]], [[]], None, "without a gold answer"),
        (("rouge_l",), [["x"]], [[]], None, "without a gold text"),
        (("squad_v2", "f1"), [["x"]], [["x"]], None, "squad_v2 has an exact_match and an f1 of its own"),
        (("squad_v2",), [["x"]], [["x"]], [0.1, 0.2], "2 no-answer probabilities for 1 prompts"),
        (("squad_v2",), [["x"]], [["x"]], [1.5], r"not in 0\.\.1"),
        (("squad_v2",), [["x"]], [["x"]], [float("nan")], r"not in 0\.\.1"),
    ],
)
def test_texts_and_gold_that_do_not_fit_are_refused(names, samples, answers, probabilities, message):
    with pytest.raises(ValueError, match=message):
        score_texts(names, samples, answers, probabilities)
