"""What comes with Lorascope: found by name, refused clearly where a build ships none, never too large."""

import json
from pathlib import Path

import pytest
from peft import PeftConfig
from typer.testing import CliRunner

import lorascope.embedded as embedded
from lorascope.base_model import load_tokenizer, read_config
from lorascope.cli.app import app
from lorascope.config import BaseModelConfig, JudgeCheck, JudgeConfig
from lorascope.embedded import ADAPTERS, MAX_WEIGHTS_BYTES, MODELS, available, located, located_adapter
from lorascope.errors import AdapterError, ModelError
from lorascope.judge import CLASSES, load_judge
from lorascope.lora.peft_io import CONFIG_FILE
from lorascope.model_card.licence import stated_licence
from lorascope.model_card.privacy import is_local, public_name
from lorascope.world.files import world, write

STUDY = """\
name: embedded
base: {{model: "lorascope:small"}}
task: {{name: sst2, data: {data}, max_length: 32}}
train: {{max_steps: 2, batch_size: 4}}
design: {{kind: list, trials: [{{r: 2, targets: [query]}}]}}
seeds: [1]
"""
# Of the world whose train split it learned from and whose test split it is measured on: examples/judge-world.yaml.
JUDGE_SIZE = 2000
JUDGE_STUDY = """\
name: judged
base: {{model: "lorascope:small"}}
task: {{name: file, data: {data}, labels: [entailment, neutral, contradiction], max_length: 32, allow: [duplicate, overlap]}}
train: {{max_steps: 1, batch_size: 4}}
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
def stand_in_judge(stand_in, tmp_path):
    """An untrained judge on it, exported as the shipped one is, where that would lie."""
    path = tmp_path / "judge.yaml"
    rows = "".join(
        json.dumps({"text": f"i keep a {word}", "text_pair": "my pet is a dog", "label": name}) + "\n"
        for word in ("dog", "cat", "stall", "book")
        for name in CLASSES
    )
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(rows, encoding="utf-8")
    data = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    path.write_text(JUDGE_STUDY.format(data=json.dumps(data)), encoding="utf-8")
    assert call("run", path, "--out", tmp_path / "judged").exit_code == 0
    exported = call("export", tmp_path / "judged", "--best", "--out", tmp_path / "judge")
    assert exported.exit_code == 0, exported.output
    return tmp_path / "judge"


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


def test_an_exported_judge_is_found_by_name_with_its_base_and_holds_no_place_of_this_machine(stand_in_judge):
    config = json.loads((stand_in_judge / CONFIG_FILE).read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "lorascope:small"
    card = (stand_in_judge / "README.md").read_text(encoding="utf-8")
    assert "`lorascope:small` (it comes with Lorascope)" in card
    assert 'base = located("lorascope:small")\n' in card
    assert "lorascope export judge --merged --base lorascope:small " in card
    assert "base_model:" not in card, "the Hub knows no such model"
    assert available() == ["lorascope:small", "lorascope:judge"]
    by_name = load_judge(JudgeConfig(model="lorascope:judge"))
    assert (by_name.facts["model"], by_name.facts["adapter"]) == ("lorascope:small", "lorascope:judge")
    by_place = load_judge(JudgeConfig(model=str(stand_in_judge)))
    assert by_name.facts["checksum"] == by_place.facts["checksum"]
    pair = ("i keep a dog", "my pet is a dog")
    assert by_name.probabilities([pair]) == by_place.probabilities([pair])
    named = load_judge(JudgeConfig(model="lorascope:small", adapter="lorascope:judge"))
    assert named.facts["checksum"] == by_name.facts["checksum"]


def test_a_build_without_a_judge_and_names_of_the_wrong_kind_are_one_line(stand_in):
    with pytest.raises(AdapterError, match="lorascope:judge: this build of Lorascope ships no judge"):
        load_judge(JudgeConfig(model="lorascope:judge"))
    with pytest.raises(ModelError, match="this is an adapter, no model; name a model such as lorascope:small"):
        read_config(BaseModelConfig(model="lorascope:judge"))
    with pytest.raises(AdapterError, match="lorascope:small: Lorascope has no adapter of that name"):
        located_adapter("lorascope:small")
    with pytest.raises(ModelError, match="did you mean 'lorascope:judge'"):
        load_judge(JudgeConfig(model="lorascope:jugde"))
    assert located_adapter("./here") == "./here"


def test_an_unknown_name_is_not_asked_of_the_hub():
    with pytest.raises(ModelError, match="did you mean 'lorascope:small'"):
        read_config(BaseModelConfig(model="lorascope:smal"))


@pytest.mark.parametrize("model", ["gpt2", "./here", "owner/model"])
def test_other_names_stay_what_they_are(model):
    assert located(model) == model


@pytest.mark.parametrize("name", MODELS)
def test_what_is_shipped_is_small_and_has_a_card(name):
    assert name in available()
    directory = Path(located(name))
    assert (directory / "model.safetensors").stat().st_size <= MAX_WEIGHTS_BYTES
    assert "perplexity per character" in (directory / "README.md").read_text(encoding="utf-8")
    tokenizer = load_tokenizer(BaseModelConfig(model=name))
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_shipped_judge_is_small_names_its_base_and_is_as_good_as_its_card_says(name, tmp_path):
    assert name in available()
    directory = Path(located_adapter(name))
    assert sum(path.stat().st_size for path in directory.iterdir()) < 4_000_000
    assert json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"] in MODELS
    write(world(0, JUDGE_SIZE), 0, JUDGE_SIZE, tmp_path)
    check = JudgeCheck(task="dialogue_nli", data=str(tmp_path / "dialogue_nli"), max_eval=None)
    accuracy = load_judge(JudgeConfig(model=name, check=check)).facts["check"]["accuracy"]
    assert accuracy == pytest.approx(0.8184, abs=0.003)
    assert "an accuracy (0.8184)" in (directory / "README.md").read_text(encoding="utf-8")
