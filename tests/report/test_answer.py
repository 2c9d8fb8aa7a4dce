"""The answer in one sentence says what the comparisons say, and no more."""

import pytest

from lorascope.cli.study import results_of
from lorascope.report.answer import answer_of
from lorascope.store import Store

SHAPLEY = {"kind": "shapley", "players": ["query", "key", "value"], "values": ["accuracy"]}


def test_a_better_configuration_is_named_with_its_difference(study_of, written, findings_of):
    directory = written(study_of())
    found = findings_of(directory)
    said = answer_of(found)
    with Store.open(directory) as store:
        rows = results_of([store])["comparisons"]["rows"]
    better = next(row for row in rows if row["verdict"] == "better")
    assert said.is_clear
    assert said.headline.startswith("r 16 · all-linear is better than the baseline (r 4 · query + value), by +0.1")
    assert f"{better['difference']:+.3f}"[:5] in said.headline
    assert any("60 examples" in text and "Holm" in text for text in said.evidence)
    assert any("1 not distinguishable" in text for text in said.evidence)


def test_nothing_is_better_where_nothing_can_be_told_apart(study_of, written, findings_of):
    trials = {"kind": "list", "trials": [{"r": 8}, {"r": 4}]}
    said = answer_of(findings_of(written(study_of(design=trials))))
    assert not said.is_clear
    assert said.headline == "r 4 and r 8 are not distinguishable by accuracy."
    assert any("Not distinguishable is not the same as equal" in text for text in said.evidence)
    assert any("trains 4,000 parameters, 50% of the baseline’s" in text for text in said.evidence)


def test_worse_configurations_leave_the_baseline_unbeaten(study_of, written, findings_of):
    trials = {"kind": "list", "trials": [{"r": 16}, {"r": 8}, {"r": 4}]}
    said = answer_of(findings_of(written(study_of(design=trials))))
    assert said.headline == "Nothing is better than the baseline (r 16) by accuracy: 2 of 2 others worse."
    assert said.is_clear


def test_one_seed_is_no_evidence(study_of, written, findings_of):
    said = answer_of(findings_of(written(study_of(seeds=[1]))))
    assert not said.is_clear
    assert said.headline.startswith("Too few seeds to tell: the highest accuracy is that of r 16")
    assert said.headline.endswith("and may be luck.")


def test_one_configuration_has_nothing_to_be_compared_with(study_of, written, findings_of):
    said = answer_of(findings_of(written(study_of(design={"kind": "list", "trials": [{}]}))))
    assert "nothing to compare it with" in said.headline
    assert not said.is_clear


@pytest.mark.parametrize(
    ("status", "text"),
    [("planned", "No trial has finished yet (9 planned)."), ("failed", "no trial came to a score (9 failed)")],
)
def test_a_study_without_a_score_has_no_answer(status, text, study_of, written, findings_of):
    said = answer_of(findings_of(written(study_of(), ended={number: {"status": status} for number in range(9)})))
    assert text in said.headline
    assert not said.is_clear


def test_what_is_lost_is_counted(study_of, written, findings_of):
    ended = {3: {"status": "diverged"}, 4: {"status": "diverged"}, 8: {"status": "failed"}}
    said = answer_of(findings_of(written(study_of(), ended=ended)))
    assert "2 diverged and 1 failed of 9 trials have no score; they are counted, and never ranked." in said.cautions


def test_a_game_is_answered_by_its_ranking(study_of, written, findings_of):
    directory = written(study_of(design=SHAPLEY))
    said = answer_of(findings_of(directory))
    with Store.open(directory) as store:
        metric = results_of([store])["shapley"]["metrics"]["accuracy"]
    assert metric["ranking"][0] == ["value"]
    assert said.is_clear
    assert said.headline.startswith("Value adds more to accuracy than ")
    assert any(f"{metric['values']['value']['estimate']:+.2f}" in text for text in said.evidence)
    assert any(text.startswith("Recommended: ") and metric["recommended"]["why"] in text for text in said.evidence)


def test_a_game_of_one_seed_claims_no_order(study_of, written, findings_of):
    said = answer_of(findings_of(written(study_of(design=SHAPLEY, seeds=[1]))))
    assert said.headline == "One seed puts the players in the order value > query > key for accuracy; another seed may not."
    assert not said.is_clear


def test_a_game_with_a_missing_coalition_says_why_it_has_no_values(study_of, written, findings_of):
    said = answer_of(findings_of(written(study_of(design=SHAPLEY, seeds=[1]), ended={7: {"status": "diverged"}})))
    assert said.headline == "No Shapley values yet: 7 of 8 coalitions are valued; all are needed."
    assert not said.is_clear


def test_adapters_are_held_against_full_fine_tuning(study_of, written, findings_of):
    study = study_of(design={"kind": "list", "trials": [{"r": 4}, {"r": 16}]}, controls=[{"method": "full"}])
    said = answer_of(findings_of(written(study)))
    assert any("falls short of full fine-tuning by" in text for text in said.evidence)
