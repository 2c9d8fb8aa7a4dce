"""The user's own studies as evidence: which of their configurations are compared, and what cannot be read."""

import pytest

from lorascope.errors import UsageError
from lorascope.recommend import studies
from lorascope.recommend.studies import compared, read_studies


@pytest.fixture
def asked_for(results, monkeypatch):
    """``asked_for(scores)``: what is compared of configurations with these scores by name, and how it was asked for."""

    def make(scores):
        made, calls = results({name: ({"r": number + 1}, values) for number, (name, values) in enumerate(scores.items())}), []
        monkeypatch.setattr(studies, "results_document", lambda _: made)

        def results_of(stores, baseline=None, *, pairs=False):
            calls.append((baseline, pairs))
            return made

        return compared([], "here", results_of), calls

    return make


def test_few_configurations_are_all_compared_with_one_another(asked_for):
    document, calls = asked_for({"aaaa": [0.8, 0.9], "bbbb": [0.7, 0.8]})
    assert calls == [(None, True)]
    assert document["comparisons"]["correction"] == "Holm over 1 comparisons"


def test_of_many_the_best_is_compared_with_each_and_the_correction_says_who_picked_it(asked_for, monkeypatch):
    monkeypatch.setattr(studies, "MOST_FOR_PAIRS", 2)
    document, calls = asked_for({"aaaa": [0.8, 0.9], "bbbb": [0.9, 0.95], "cccc": [0.1, 0.2]})
    assert calls == [(None, False), ("bbbb", False)]
    assert document["comparisons"]["correction"].endswith("all with the best of 3, picked by the same scores")


def test_of_many_that_have_no_finished_one_none_is_the_best(asked_for, monkeypatch):
    monkeypatch.setattr(studies, "MOST_FOR_PAIRS", 1)
    _, calls = asked_for({"aaaa": ["failed"], "bbbb": ["diverged"]})
    assert calls == [(None, False)]


def test_what_is_no_study_is_named_and_left_out_and_a_place_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "study.sqlite").write_bytes(b"no database at all" * 100)
    found = read_studies([tmp_path], lambda *_, **__: {})
    assert (found.evidence, found.studies) == ((), {})
    assert [one["directory"] for one in found.left_out] == [str(tmp_path / "mine")]
    with pytest.raises(UsageError, match="no such directory"):
        read_studies([tmp_path / "gone"], lambda *_, **__: {})
