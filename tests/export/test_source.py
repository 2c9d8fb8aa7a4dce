"""A study, a trial or an adapter: what is meant is found, and what is not meant is refused in one line."""

import shutil

import pytest

from lorascope.errors import UsageError
from lorascope.export import find_source
from lorascope.store import Store


@pytest.fixture
def rows(finished):
    with Store.open(finished) as store:
        return store.trials()


def test_a_trial_is_found_by_its_directory_its_adapter_or_its_name(finished, rows):
    name = rows[2].trial
    places = [finished / "trials" / name, finished / "trials" / name / "adapter"]
    found = [*(find_source(place) for place in places), find_source(finished, trial=name)]
    for source in found:
        assert source.adapter == (finished / "trials" / name / "adapter").resolve()
        assert (source.study, source.trial.trial, source.choice) == (finished.resolve(), name, None)
        assert source.trial_directory == finished.resolve() / "trials" / name


def test_the_best_trial_is_found_with_its_choice(finished, rows):
    source = find_source(finished, best=True)
    best = max(row.metrics["accuracy"] for row in rows)
    assert source.trial.metrics["accuracy"] == best == source.choice.value


def test_an_adapter_that_was_copied_out_of_its_study_is_one_from_elsewhere(finished, rows, tmp_path):
    copied = shutil.copytree(finished / rows[0].adapter, tmp_path / "copied")
    source = find_source(copied)
    assert (source.adapter, source.study, source.trial, source.trial_directory) == (copied.resolve(), None, None, None)


def test_what_is_not_meant_is_refused(finished, rows, tmp_path):
    trial = finished / "trials" / rows[0].trial
    for place, options, what in (
        (finished, {}, "a study of 4 trials with an adapter; add --best, or --trial NAME"),
        (finished, {"best": True, "trial": "x"}, "--best and --trial exclude each other"),
        (finished, {"trial": rows[0].trial[:-1] + "7"}, "no such trial as .*did you mean"),
        (trial, {"best": True}, "--best chooses among the trials of a study, and this is none"),
        (trial, {"trial": "x"}, "--trial chooses among the trials"),
        (finished / "trials" / "nothing", {}, "no such trial as 'nothing'"),
        (finished / "trials", {}, "nothing to export here"),
        (tmp_path, {}, "nothing to export here; give runs/<study> with --best"),
        (tmp_path / "absent", {}, "no such directory"),
    ):
        with pytest.raises(UsageError, match=what):
            find_source(place, **options)


def test_a_trial_without_an_adapter_says_what_became_of_it(scored):
    directory = scored([{"status": "diverged"}, {"status": "failed"}], [{"r": 2}, {"r": 4}], [1])
    with Store.open(directory) as store:
        names = [row.trial for row in store.trials()]
    for name, status in zip(names, ("diverged", "failed"), strict=True):
        with pytest.raises(UsageError, match=f"the trial is {status} and has no adapter"):
            find_source(directory, trial=name)


def test_an_adapter_that_entered_the_study_from_disk_is_exported_from_there(scored, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    directory = scored([{"adapter": None}], [{"path": str(there)}], [1])
    with Store.open(directory) as store:
        name = store.trials()[0].trial
    assert find_source(directory, trial=name).adapter == there
