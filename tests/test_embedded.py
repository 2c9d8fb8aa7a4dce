"""Models that come with Lorascope: found by name, refused clearly where a build ships none, never too large."""

import json
from pathlib import Path

import pytest
from peft import PeftConfig
from typer.testing import CliRunner

import lorascope.embedded as embedded
from lorascope.base_model import load_tokenizer, read_config
from lorascope.cli.app import app
from lorascope.config import BaseModelConfig
from lorascope.embedded import MAX_WEIGHTS_BYTES, MODELS, available, located
from lorascope.errors import ModelError
from lorascope.model_card.licence import stated_licence
from lorascope.model_card.privacy import is_local, public_name

STUDY = """\
name: embedded
base: {{model: "lorascope:small"}}
task: {{name: sst2, data: {data}, max_length: 32}}
train: {{max_steps: 2, batch_size: 4}}
design: {{kind: list, trials: [{{r: 2, targets: [query]}}]}}
seeds: [1]
"""


@pytest.fixture
def stand_in(model_directory, tmp_path, monkeypatch):
    """A tiny seeded model where the shipped one would lie."""
    monkeypatch.setattr(embedded, "HOME", tmp_path)
    (tmp_path / "small").symlink_to(model_directory("qwen2"), target_is_directory=True)
    return tmp_path / "small"


@pytest.fixture
def study(tmp_path):
    for name in ("train", "dev"):
        rows = "".join(f"the film is {name} {word}\t{number % 2}\n" for number, word in enumerate("abcdefgh"))
        (tmp_path / f"{name}.tsv").write_text(f"sentence\tlabel\n{rows}", encoding="utf-8")
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(data=tmp_path), encoding="utf-8")
    return path


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_a_study_on_the_embedded_model_trains_and_its_adapter_is_found_by_peft_and_merged(stand_in, study, tmp_path):
    result = call("run", study, "--out", tmp_path / "run", "--json")
    (trial,) = json.loads(result.stdout)["trials"]
    assert trial["status"] == "done"
    adapter = tmp_path / "run" / trial["adapter"]
    assert PeftConfig.from_pretrained(adapter).base_model_name_or_path == str(stand_in.resolve())
    card = (adapter / "README.md").read_text(encoding="utf-8")
    assert "lorascope:small" in card
    assert str(stand_in.resolve()) not in card
    merged = call("merge", adapter, "--base", "lorascope:small", "--out", tmp_path / "merged", "--json")
    assert merged.exit_code == 0, merged.output
    assert (tmp_path / "merged" / "config.json").is_file()


def test_its_plan_counts_the_parameters_of_its_files(stand_in, study):
    (trial,) = json.loads(call("plan", study, "--json").stdout)["trials"]
    assert trial["fits"]
    assert trial["total_params"] > trial["trainable_params"] > 0


def test_configuration_tokenizer_and_licence_come_from_its_directory(stand_in):
    base = BaseModelConfig(model="lorascope:small")
    assert base.place == str(stand_in)
    assert base.model == "lorascope:small"  # what the store and the study's hash keep is the name
    assert read_config(base).model_type == "qwen2"
    assert len(load_tokenizer(base)) > 100
    assert stated_licence("lorascope:small") is None
    assert is_local("lorascope:small")
    assert public_name("lorascope:small") == "lorascope:small"


def test_a_build_without_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "HOME", tmp_path)
    with pytest.raises(ModelError, match="lorascope:small: this build of Lorascope ships no weights") as caught:
        read_config(BaseModelConfig(model="lorascope:small"))
    assert caught.value.exit_code == 2
    assert available() == []


def test_an_unknown_name_is_not_asked_of_the_hub():
    with pytest.raises(ModelError, match="did you mean 'lorascope:small'"):
        read_config(BaseModelConfig(model="lorascope:smal"))


@pytest.mark.parametrize("model", ["gpt2", "./here", "owner/model"])
def test_other_names_stay_what_they_are(model):
    assert located(model) == model


@pytest.mark.parametrize("name", MODELS)
def test_what_is_shipped_is_small_and_has_a_card(name):
    if name not in available():
        pytest.skip(f"this build ships no weights of {name}")
    directory = Path(located(name))
    assert (directory / "model.safetensors").stat().st_size <= MAX_WEIGHTS_BYTES
    assert "perplexity per character" in (directory / "README.md").read_text(encoding="utf-8")
    tokenizer = load_tokenizer(BaseModelConfig(model=name))
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id
