"""An adapter's own files as facts, and the card of one that was cut: a valid card, that names no path of the machine."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from lorascope.lora.peft_io import read_adapter
from lorascope.model_card import CutFacts, ScoreFacts, adapter_facts, task_type_of_adapter, truncated_card


def cut(adapter, base, scored=False):
    """What the card of an adapter that was cut reads."""
    score = ScoreFacts("accuracy", 0.9, {"accuracy": 0.895}, 0.01, "sst2", "validation", 40, "c0ffee", str(base))
    what = None if scored else "at least 0.99 of the energy is kept, and no score was measured"
    return CutFacts("smaller", "adapter", adapter, (8, 4), (200, 100), "truncation.json", what, score if scored else None)


def test_an_adapters_facts_are_those_of_its_files(peft_adapter):
    adapter, _ = peft_adapter("bert", rank_pattern={"query": 2})
    saved = read_adapter(adapter)
    facts = adapter_facts(saved, adapter)
    assert facts.num_bytes == (adapter / "adapter_model.safetensors").stat().st_size
    assert facts.num_labels == 3
    assert facts.settings["rank_pattern"] == "differs in 1 modules"
    assert adapter_facts(saved, adapter, {"r": 99}).settings == {"r": 99}
    assert task_type_of_adapter(saved) == "SEQ_CLS"


@pytest.mark.parametrize("scored", [False, True])
def test_the_card_of_a_cut_adapter_is_the_hubs_and_names_no_path(scored, peft_adapter, model_directory, tmp_path):
    adapter, _ = peft_adapter("bert")
    (adapter / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    base = model_directory("bert")
    text = truncated_card(cut(adapter, base, scored), read_adapter(adapter), adapter)
    for place in (tmp_path, base.parent):
        assert str(place) not in text
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert (data.library_name, data.base_model, data.license) == ("peft", None, "mit")
    assert "# smaller" in text
    assert "It is the adapter `adapter`, cut from 8 to 4 directions (200 to 100 numbers)" in text
    assert "quoted from the card of the adapter that it was cut from" in text
    assert "`truncation.json`" in text
    if scored:
        assert "accuracy was 0.9 and is 0.895, where a loss of 0.01 was allowed" in text
        assert [(one.metric_type, one.metric_value) for one in data.eval_results] == [("accuracy", 0.895)]
        assert "chosen on the examples that it is scored on" in text
    else:
        assert "No score was measured" in text
        assert data.eval_results is None


def test_a_base_that_nobody_names_is_said_to_be_unknown(peft_adapter):
    adapter, _ = peft_adapter("gpt2", "CAUSAL_LM")
    text = truncated_card(cut(adapter, None), replace(read_adapter(adapter), base_model=None), adapter)
    assert "The adapter names no base model." in text
    assert "Unknown: ask the base's authors" in text
