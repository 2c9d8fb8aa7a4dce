"""What is known to keep vLLM from loading an export is said, and nothing else."""

import json

import pytest

from lorascope.export.vllm import adapter_obstacles, has_chat_template, merged_obstacles

PLAIN = {"r": 8, "lora_alpha": 16, "bias": "none", "modules_to_save": None, "task_type": "CAUSAL_LM", "rank_pattern": {}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"modules_to_save": ["score"]}, "modules trained whole (score)"),
        ({"rank_pattern": {"a": 4}}, "does not read rank_pattern and would"),
        ({"rank_pattern": {"a": 4}, "alpha_pattern": {"a": 4}}, "does not read rank_pattern and alpha_pattern"),
        ({"bias": "all"}, "trained biases"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "plugin"),
        ({"r": 64}, "--max-lora-rank 64"),
    ],
)
def test_an_adapters_obstacles_follow_from_its_file(changes, told):
    found = adapter_obstacles(PLAIN | changes)
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def test_a_merged_directorys_obstacles_are_what_it_lacks(tmp_path):
    assert len(merged_obstacles(tmp_path)) == 4
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert merged_obstacles(tmp_path) == [
        "The base has no chat template, so the chat endpoint will not work; completions will."
    ]
    (tmp_path / "chat_template.jinja").write_text("x")
    assert merged_obstacles(tmp_path) == []
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    assert merged_obstacles(tmp_path) == ["A classifier is served with --runner pooling."]


def test_a_chat_template_may_lie_in_the_tokenizers_settings(tmp_path):
    assert not has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    assert has_chat_template(tmp_path)
