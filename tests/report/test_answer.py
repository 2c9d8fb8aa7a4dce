"""The answer in one sentence says what the comparisons say, and no more."""

import pytest

from lorascope.cli.study import results_of
from lorascope.report.answer import answer_of
from lorascope.store import Store


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


def test_what_cannot_be_told_from_the_baseline_is_not_counted_as_worse(study_of, written, findings_of):
    def score(config, seed):
        return {4: 0.80, 8: 0.80, 16: 0.50}[config["r"]] + 0.02 * (seed * config["r"] % 3)

    said = answer_of(findings_of(written(study_of(), score=score)))
    assert said.headline == (
        "None is shown to be better than the baseline (r 4 · query + value) by accuracy: 1 of 2 others worse and "
        "1 not distinguishable (r 8 · query + value)."
    )
    assert not said.is_clear


def test_too_few_seeds_are_not_counted_as_worse(study_of, written, findings_of):
    trials = {"kind": "list", "trials": [{"r": 16}, {"r": 8}, {"r": 4}]}
    said = answer_of(findings_of(written(study_of(design=trials), ended={7: {"status": "failed"}, 8: {"status": "failed"}})))
    assert said.headline == (
        "None is shown to be better than the baseline (r 16) by accuracy: 1 of 2 others worse and 1 with too few seeds (r 4)."
    )
    assert not said.is_clear


@pytest.mark.parametrize(
    ("lost", "text"), [((0, 1, 2), "has no score"), ((0, 1), "has a score at 1 of 3 seeds")], ids=["none", "one"]
)
def test_a_baseline_without_scores_is_not_too_few_seeds_of_the_others(lost, text, study_of, written, findings_of):
    said = answer_of(findings_of(written(study_of(), ended={number: {"status": "pruned"} for number in lost})))
    assert said.headline.startswith(
        f"The baseline (r 4 · query + value) {text}, so nothing was compared; the highest accuracy is that of r 16"
    )
    assert not said.is_clear
    assert not any("No two configurations" in line for line in said.evidence)
    assert any("--pairs" in line for line in said.cautions)
    assert not any("Add seeds" in line for line in said.cautions)


def test_the_highest_score_is_said_of_what_it_is_the_highest_of(study_of, written, findings_of):
    def score(config, seed):
        return {4: 0.62, 8: 0.9, 16: 0.8}[config["r"]]

    ended = {number: {"status": "diverged"} for number in (0, 1, 4, 5)}
    said = answer_of(findings_of(written(study_of(), ended=ended, score=score)))
    assert "; the highest accuracy with every seed is that of r 16" in said.headline


def test_notes_name_configurations_by_their_labels(study_of, written, findings_of):
    found = findings_of(written(study_of(), ended={8: {"status": "diverged"}}, score=lambda config, seed: config["r"] / 20))
    notes = [row["note"] for row in found.results["comparisons"]["rows"] if row["note"]]
    assert any("did not end at 1 of the seeds" in note for note in notes)
    said = [text for text in answer_of(found).cautions if "did not end at 1 of the seeds" in text]
    sample = "those left are no fair sample"
    assert said == [f"r 16 · all-linear did not end at 1 of the seeds where r 4 · query + value did: {sample}."]


def test_shards_of_unlike_machines_are_no_fair_comparison_of_times(study_of, written, findings_of):
    study = study_of()
    one = written(study, "one", ended={number: {"status": "planned"} for number in range(5, 9)})
    two = written(study, "two", ended={number: {"status": "planned"} for number in range(5)})
    for directory, cores in ((one, 2), (two, 64)):
        with Store.create(directory, study, resume=True) as store:
            store.set_info("hardware", {"processor": "x", "cores": cores, "memory_bytes": 2**34 + cores})
    assert not any("different machines" in text for text in answer_of(findings_of(one)).cautions)
    assert any("ran on 2 different machines" in text for text in answer_of(findings_of(one, two)).cautions)


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


def test_adapters_are_held_against_full_fine_tuning(study_of, written, findings_of):
    study = study_of(design={"kind": "list", "trials": [{"r": 4}, {"r": 16}]}, controls=[{"method": "full"}])
    said = answer_of(findings_of(written(study)))
    assert any("falls short of full fine-tuning by" in text for text in said.evidence)
