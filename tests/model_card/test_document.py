"""A card's metadata are the Hub's, checked by its own library; its text says what is known and calls the rest unknown."""

import math
import re
from dataclasses import replace

import pytest
from huggingface_hub import EvalResult, ModelCard

from lorascope.model_card import (
    UNKNOWN_LICENCE,
    BaseFacts,
    Licence,
    MetricFacts,
    Privacy,
    SeedFacts,
    model_card,
    public_card,
)

CHECKSUM = "0123456789abcdef" * 4


def read(text):
    """The card as the Hub's library reads it."""
    return ModelCard(text, ignore_metadata_errors=False)


def test_the_hubs_library_reads_the_metadata_that_were_written(facts):
    data = read(model_card(facts())).data
    assert (data.base_model, data["base_model_relation"], data.library_name) == ("org/base", "adapter", "peft")
    assert (data.license, data.pipeline_tag, data.datasets) == ("mit", "text-classification", ["nyu-mll/glue"])
    assert (data.metrics, data.tags, data.model_name) == (["accuracy"], ["lora", "lorascope"], "my-adapter")
    first = data.eval_results[0]
    assert isinstance(first, EvalResult)
    assert (first.dataset_type, first.dataset_name, first.dataset_config) == ("nyu-mll/glue", "sst2", "sst2")
    assert (first.dataset_split, first.metric_type, first.metric_value) == ("validation", "accuracy", 0.91)
    assert first.metric_args == {"interval": [0.84, 0.95], "level": 0.95, "over": "examples"}
    assert first.dataset_args == {"checksum": CHECKSUM, "examples": 100}
    assert [each.metric_name for each in data.eval_results] == ["accuracy", "eval_loss"]


def test_local_data_claim_no_dataset_of_the_hub(facts):
    local = replace(facts().data, hub_ids=(), places=("train.jsonl",))
    data = read(model_card(facts(data=local))).data
    assert data.datasets is None
    assert {each.dataset_type for each in data.eval_results} == {"not-on-the-hub"}
    assert {each.dataset_config for each in data.eval_results} == {None}


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_local_base_claims_no_model_of_the_hub(form, facts):
    text = model_card(facts(form=form, base=BaseFacts("bert-base-uncased", is_local=True)))
    data = read(text).data.to_dict()
    assert "base_model" not in data
    assert "base_model_relation" not in data
    assert "| name | `bert-base-uncased` (a local directory" in text


def test_a_licence_without_an_identifier_of_the_hub_has_its_name(facts):
    data = read(model_card(facts(licence=Licence("other", "GPL-3.0-or-later", source="--licence")))).data
    assert (data.license, data.license_name) == ("other", "GPL-3.0-or-later")


def test_who_said_what_about_the_licence_is_told(facts):
    assert "mit, quoted from the base's README.md" in model_card(facts())
    unknown = facts(licence=UNKNOWN_LICENCE, base=BaseFacts("org/base"))
    assert "Unknown: ask the base's authors" in model_card(unknown)
    assert read(model_card(unknown)).data.license == "unknown"
    set_by_user = model_card(facts(licence=Licence("apache-2.0", source="--licence")))
    assert "apache-2.0, set by who exported this" in set_by_user
    assert "The base's is mit" in set_by_user
    of_unknown_base = facts(licence=Licence("mit", source="--licence"), base=BaseFacts("org/base"))
    assert "What the base's own licence allows is not known" in model_card(of_unknown_base)


def test_the_text_holds_every_fact(facts):
    text = model_card(facts(selection="It is the best of 4 trials.", serving=("It refuses heads.",), certificate="It holds."))
    for told in (
        "# my-adapter", "`org/base`", "`abc123`", CHECKSUM, "800 examples", "validation, 100 examples", "max_eval 100",
        "| accuracy ↑ | 0.9100 | 0.8400 to 0.9500 | Wilson, 100 examples | 0.9000 (0.8600 to 0.9400); 0.8800 to 0.9100, 3 s",
        "| eval_loss ↓ | 0.3000 | — | none: 6 examples are too few | — |", "query, value", "no, yes", "`classifier`",
        "1,234 (1.234 % of all)", "1.00 GiB, together with 3 other trials", "61.0 s", "Scored on one split.",
        "3 examples were cut",
        "lorascope run study.yaml\n", "It is the best of 4 trials.", "It refuses heads.", "It holds.", "torch 2.9",
        "CPU, 2 cores",
    ):  # fmt: skip
        assert told in text, told


def test_who_lacks_base_or_data_is_told_to_give_their_own(facts):
    local = facts(base=BaseFacts("tiny", is_local=True), data=replace(facts().data, hub_ids=()))
    assert "lorascope run study.yaml --set base.model=DIRECTORY --set task.data=PATH" in model_card(local)
    assert "a local directory of that name" in model_card(local)


def test_an_adapter_from_elsewhere_says_that_nothing_is_known(facts):
    text = model_card(facts(study=None, trial=None, seed=None, data=None, metrics=(), training={}, study_file=None))
    assert "is not known here" in text
    assert "## Results" not in text
    assert "## Repeat the training" not in text
    assert read(text).data.eval_results is None


def test_two_seeds_have_a_mean_and_a_range_but_no_interval(facts):
    metric = MetricFacts("accuracy", 0.9, True, seeds=SeedFacts(2, 0.85, 0.8, 0.9))
    assert "0.8500 (no interval from 2 seeds); 0.8000 to 0.9000, 2 seeds" in model_card(facts(metrics=(metric,)))


def test_a_merged_model_is_one_of_transformers(facts):
    data = read(model_card(facts(form="merged"))).data
    assert (data.library_name, data["base_model_relation"], "merged" in data.tags) == ("transformers", "finetune", True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_no_number_is_no_entry_of_the_index(value, facts):
    text = model_card(facts(metrics=(MetricFacts("perplexity", value, False), MetricFacts("accuracy", 0.5, True))))
    assert [each.metric_name for each in read(text).data.eval_results] == ["accuracy"]
    assert "| perplexity ↓ | no number |" in text


def test_text_cannot_break_out_of_its_cell_or_line(facts):
    text = model_card(facts(adapter=replace(facts().adapter, labels=("a|b", "c\nd")), warnings=("one\n# two",)))
    assert "a¦b, c d" in text
    assert "- one # two" in text
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1


def test_a_card_of_a_running_study_leaves_out_what_is_not_known_yet(facts):
    text = model_card(facts(is_whole=False, licence=None, limitations=(), warnings=(), study_file=None))
    assert "Written while the study ran" in text
    for later in ("## Licence", "## Parameters", "Wilson", "## Limitations"):
        assert later not in text
    assert read(text).data.license is None


def test_a_public_card_keeps_classes_that_look_like_places_and_loses_places_and_secrets(facts):
    labels = ("/r/books", "/r/film/new")
    told = facts(
        adapter=replace(facts().adapter, labels=labels),
        warnings=("read /home/someone/data/train.jsonl twice",),
        limitations=("the key 0123456789abcdef was in the data",),
    )
    privacy = Privacy(environment={"MY_API_KEY": "0123456789abcdef"})
    text = public_card(told, privacy)
    assert "id2label={0: '/r/books', 1: '/r/film/new'}" in text
    assert "| classes, in order | /r/books, /r/film/new |" in text
    assert "- read train.jsonl twice" in text
    assert "- the key [removed] was in the data" in text
    assert read(text).data.license == "mit"
