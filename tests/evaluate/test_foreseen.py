"""The metrics that are foreseen are those that an evaluation gives, by task, judge and way of decoding."""

import pytest

from lorascope.config import DecodingConfig, EvaluateConfig, JudgeConfig, Study
from lorascope.data.record import RawTask, Record
from lorascope.errors import UsageError
from lorascope.evaluate import check_metrics, foreseen_metrics

PERSONA = {"persona": ("i like tea",), "answers": ("me too",)}


def task(names, *records, task_type="CAUSAL_LM", generates=True):
    rows = [Record(str(number), f"f:{number}", **record) for number, record in enumerate(records or [{}])]
    return RawTask("t", task_type, (), rows, rows, "validation", "", "", [], generates, tuple(names))


def study(judge=None, **design):
    sections = {"base": {"model": "m"}, "task": {"name": "personachat", "data": "x"}, "evaluate": {"judge": judge}}
    return Study.model_validate({"name": "s", **sections, "design": design})


@pytest.mark.parametrize(
    ("read", "more"),
    [
        (task(["exact_match", "f1"]), ["exact_match", "f1"]),
        (task(["rouge_l", "turn_end"], {"candidates": ("a", "b")}), ["hits_at_1", "rouge_l", "turn_end"]),
        (task(["perplexity"], generates=False), []),
        (task(["self_bleu", "distinct_1"]), ["distinct_1"]),
        (task(["rouge_l"], PERSONA), ["rouge_l"]),
        (task(["squad_v2"], {"answers": ("a",)}), ["exact_match", "f1", "has_ans_exact_match", "has_ans_f1"]),
        (
            task(["squad_v2"], {"candidates": ("none",)}),
            ["exact_match", "f1", "no_ans_exact_match", "no_ans_f1", "best_exact_match", "best_f1"],
        ),
    ],
)
def test_texts_have_the_tasks_metrics_and_what_their_records_allow(read, more):
    assert foreseen_metrics(read, EvaluateConfig()) == ["eval_loss", "perplexity", *more]


def test_classes_have_the_tasks_metrics_and_a_loss():
    assert foreseen_metrics(task(["accuracy"], task_type="SEQ_CLS"), EvaluateConfig()) == ["accuracy", "eval_loss"]


def test_a_judge_gives_a_c_score_and_several_samples_a_self_bleu():
    decoding = DecodingConfig(strategy="nucleus", samples=2)
    settings = EvaluateConfig(judge=JudgeConfig(model="j"), decoding=[decoding])
    assert foreseen_metrics(task(["self_bleu"], PERSONA), settings)[2:] == ["self_bleu", "c_score"]
    assert "c_score" not in foreseen_metrics(task(["rouge_l"]), settings)


def test_a_c_score_without_a_judge_is_refused_with_what_it_needs():
    read, asked = task(["rouge_l"], PERSONA), {"kind": "search", "objective": "c_score", "over": {"r": [1]}}
    with pytest.raises(UsageError, match=r"design\.objective.*evaluate\.judge, or use one of eval_loss, perplexity, rouge_l"):
        check_metrics(study(**asked), read)
    check_metrics(study(judge={"model": "j"}, **asked), read)


def test_every_value_of_a_game_is_checked():
    with pytest.raises(UsageError, match=r"design\.values.*gives no accuracy"):
        check_metrics(study(kind="shapley", players=["query"], values=["eval_loss", "accuracy"]), task(["rouge_l"]))
    check_metrics(study(kind="shapley", players=["query"]), task([]))
    check_metrics(study(kind="list"), task([]))
