"""What a store records of a study, as facts; and the short card of a trial, the same bytes whenever it is written."""

from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from lorascope.config import Study
from lorascope.design import expand
from lorascope.model_card import data_facts, study_places, trial_card
from lorascope.store import Store


@pytest.fixture
def study(tmp_path):
    """``study(data)``: one trial on a base that is a directory."""
    base = tmp_path / "somewhere" / "tiny-base"
    base.mkdir(parents=True)
    return lambda data="nyu-mll/glue", **sections: Study.model_validate(
        {"name": "s", "base": {"model": str(base)}, "task": {"name": "sst2", "data": data, "max_eval": 5}} | sections
    )


def test_what_was_recorded_goes_before_what_can_be_guessed(study, tmp_path):
    with Store.create(tmp_path / "run", study()) as store:
        guessed = data_facts(store, None)
        assert (guessed.hub_ids, guessed.num_train, guessed.split) == (("nyu-mll/glue",), None, "validation")
        assert guessed.limits == {"max_eval": 5, "max_length": 512}
        store.set_info("data", {"checksum": "abc", "split": "test", "num_train": 3, "num_eval": 2, "hub_ids": []})
        told = data_facts(store, None)
    assert (told.hub_ids, told.num_train, told.num_eval, told.split, told.checksum) == ((), 3, 2, "test", "abc")


def test_local_data_appear_by_their_names(study, tmp_path):
    (tmp_path / "train.tsv").write_text("")
    wanted = study({"train": str(tmp_path / "train.tsv"), "validation": "nyu-mll/glue"})
    with Store.create(tmp_path / "run", wanted) as store:
        facts = data_facts(store, "abc")
    assert (facts.places, facts.hub_ids, facts.checksum) == (("train.tsv", "nyu-mll/glue"), ("nyu-mll/glue",), "abc")


def test_every_place_that_a_study_names_is_known(study):
    judge = {"model": "/a/judge", "adapter": "/a/adapter", "check": {"data": {"test": "/a/pairs.txt"}}}
    places = study({"train": "/a/x", "validation": "/a/y"}, evaluate={"judge": judge})
    assert set(study_places(places)) >= {"/a/x", "/a/y", "/a/judge", "/a/adapter", "/a/pairs.txt", places.base.model}


def test_a_trials_card_is_short_and_names_no_path(study, tmp_path):
    wanted = study()
    (trial,) = [one for one in expand(wanted) if one.seed == 42]
    base = SimpleNamespace(task_type="SEQ_CLS", labels=("no", "yes"), heads=("classifier",), checksum="c0ffee")
    with Store.create(tmp_path / "run", wanted) as store:
        text = trial_card(store, trial, {"accuracy": 0.5}, base, 2)
        store.add_warning(None, "x", 1, "x", "something")
        assert trial_card(store, trial, {"accuracy": 0.5}, base, 2) == text
    assert str(tmp_path) not in text
    assert "`tiny-base`" in text
    assert "c0ffee" in text
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert (data.base_model, data.library_name, data.eval_results[0].metric_value) == (None, "peft", 0.5)
