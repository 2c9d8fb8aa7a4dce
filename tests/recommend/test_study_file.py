"""The file that is written: what was chosen, the reason above it, and nothing that breaks it."""

import pytest

from lorascope.config import Study, load_study
from lorascope.recommend.rules import Choice
from lorascope.recommend.study_file import as_study, inline_yaml, study_document, study_text

CHOICES = {
    "model": "some/model", "dtype": "float32", "quantization": None, "r": 8, "lora_alpha": 16.0, "lora_dropout": 0.05,
    "targets": ["query", "value"], "bias": "none", "use_rslora": False, "learning_rate": 1e-5, "epochs": 1, "max_steps": None,
    "batch_size": 4,
}  # fmt: skip


def document(task=None, **choices):
    chosen = {key: Choice(value, "rule", "") for key, value in (CHOICES | choices).items()}
    return study_document("recommended", chosen, {"name": "sst2", "data": "d", "allow": [], **(task or {})}, [1, 2], {})


def loaded(tmp_path, made, reasons=None, opening=(), closing=()):
    path = tmp_path / "study.yaml"
    path.write_text(study_text(made, reasons or {}, opening, closing), encoding="utf-8")
    return load_study(path), path.read_text(encoding="utf-8")


def test_the_file_says_what_was_chosen(tmp_path):
    study, text = loaded(tmp_path, document())
    assert study == as_study(document())
    assert study.train.learning_rate == 1e-5
    assert study.adapter.targets == ["query", "value"]
    assert "quantization" not in text
    assert "allow" not in text


def test_every_reason_stands_above_its_value_and_a_shared_one_once(tmp_path):
    reasons = {
        "adapter.r": "rule: one",
        "adapter.lora_alpha": "rule: one",
        "adapter.targets": "evidence: two",
        "seeds": "three",
    }
    _, text = loaded(tmp_path, document(), reasons)
    lines = text.splitlines()
    assert lines[lines.index("  r: 8") - 1] == "  # rule: one"
    assert text.count("rule: one") == 1
    assert lines[lines.index("  targets: [query, value]") - 1] == "  # evidence: two"
    assert lines[lines.index("seeds: [1, 2]") - 1] == "# three"


@pytest.mark.parametrize("odd", ["a\nname: other", "tab\there", "quo'te\"s: {x}", "é ✓", "#hash", "- dash", "\x1b[31m"])
def test_no_text_ends_a_comment_or_changes_a_value(odd, tmp_path):
    made = document(task={"data": odd}, model=odd or "m")
    study, text = loaded(tmp_path, made, {"adapter.r": odd, "seeds": odd}, [odd, odd], [odd])
    assert study == Study.model_validate(made)
    assert (study.task.data, study.base.model) == (odd, odd)
    assert "\x1b" not in text


def test_a_command_in_a_comment_is_never_broken(tmp_path):
    command = "lorascope run STUDY.yaml --set " + "x" * 300
    _, text = loaded(tmp_path, document(), closing=["What would change this:", command])
    assert f"#   {command}\n" in text


@pytest.mark.parametrize(
    "value", [1e-5, 3, "2r", ["a", "b"], {"kind": "list", "trials": [{"r": 4}]}, None, True, "no", "1e-5"]
)
def test_a_value_on_one_line_reads_back(value):
    import yaml

    text = inline_yaml(value)
    assert "\n" not in text
    assert yaml.safe_load(text) == value
