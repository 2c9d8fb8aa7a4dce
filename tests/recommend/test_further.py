"""What would change the answer: what nobody compared, as far as the budget goes, and rivals with more seeds."""

import pytest

from lorascope.recommend.advice import Request, advise
from lorascope.recommend.closeness import ModelFacts, TaskFacts
from lorascope.recommend.further import further_studies
from lorascope.recommend.rules import Choice
from lorascope.recommend.study_file import study_document

TASK = TaskFacts("sst2", "classification", ("data",))
MODEL = ModelFacts("/models/bert", "bert", (64, 2), 1_000_000)


@pytest.fixture
def asked(costs):
    """``asked(studies, budget)``: the studies that would change the answer; every trial takes ten seconds."""

    def ask(studies, budget=None):
        advice = advise(Request(TASK, MODEL, roles=costs.roles(None)), studies)
        choices = {**advice.choices, "model": Choice("m", "model", "")}
        document = study_document("a", choices, {"name": "sst2", "data": "d"}, [1, 2], {})
        return further_studies(advice, choices, document, costs, budget)

    return ask


def test_what_no_study_compared_is_asked_for_as_far_as_the_budget_goes(asked):
    (further,) = asked([])
    assert list(further["design"]["over"]) == ["learning_rate", "r", "targets", "lora_dropout", "bias"]
    assert (further["seeds"], further["over_budget"]) == ([1, 2], False)
    assert further["train_seconds"] == 10.0 * further["trials"]
    assert list(asked([], 100.0)[0]["design"]["over"]) == ["learning_rate", "r"]
    (least,) = asked([], 5.0)
    assert (list(least["design"]["over"]), least["over_budget"]) == (["learning_rate"], True)


def test_what_is_not_told_apart_is_asked_for_with_more_seeds(asked, evidence):
    study = evidence({"r4": ({"r": 4}, (0.80, 0.81)), "r8": ({"r": 8}, (0.82, 0.86))})
    rivals = asked([study])[-1]
    assert rivals["design"]["trials"] == [{}, {"r": 4}]
    assert rivals["seeds"] == [42, 1337, 2024, 7, 99]
    assert "not told apart from it in your study runs/mine: r4" in rivals["what"]
