"""``lorascope inspect``: from adapters' files to tables, JSON and pictures."""

import json

import peft
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification


@pytest.fixture
def adapter(tmp_path):
    """``adapter(name, seed)``: the two files of an adapter; there is no base."""

    def write(name, seed=0):
        directory = tmp_path / name
        directory.mkdir()
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer in range(2):
            for kind in ("attention.self.query", "output.dense"):
                key = f"base_model.model.bert.encoder.layer.{layer}.{kind}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(16, 3, generator=generator) @ torch.randn(
                    3, 48, generator=generator
                )
                tensors[f"{key}.lora_B.weight"] = torch.randn(64, 16, generator=generator)
        config = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "base_model_name_or_path": "nowhere/at-all"}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, directory / "adapter_model.safetensors")
        return directory

    return write


@pytest.fixture
def by_peft(model_directory, tmp_path):
    """An adapter of the tiny BERT that PEFT made and wrote."""
    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained(model_directory("bert"), num_labels=2)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_an_adapter_is_inspected_without_its_base(cli, adapter):
    ended = cli("inspect", adapter("one"), "--json")
    assert (ended.code, ended.err) == (0, "")
    document = json.loads(ended.out)
    (found,) = document["adapters"]
    assert (document["overlap"], document["representations"], document["warnings"]) == (None, None, [])
    assert [(row["layer"], row["kind"], row["r"], row["numerical_rank"]) for row in found["modules"]] == [
        (0, "query", 16, 3), (0, "dense", 16, 3), (1, "query", 16, 3), (1, "dense", 16, 3)
    ]  # fmt: skip


def test_people_see_tables_and_maps(cli, adapter):
    ended = cli("inspect", adapter("one"), "--figure", "numerical_rank", "--figure", "std")
    assert (ended.code, ended.err) == (0, "")
    for text in ("1 adapter", "one: numerical rank", "one: standard deviation of ΔW", "query", "nowhere/at-all", "layer"):
        assert text in ended.out
    assert "one: effective rank," not in ended.out
    rows = [line.split() for line in ended.out.splitlines()]
    assert ["0", "3", "3"] in rows
    assert ["1", "3", "3"] in rows


def test_several_adapters_are_compared(cli, adapter):
    ended = cli("inspect", adapter("one"), adapter("two", 1))
    assert ended.code == 0
    assert "one · two" in ended.out
    assert "overlap of leading directions, inputs read" in ended.out
    document = json.loads(cli("inspect", *(adapter(name, seed) for seed, name in enumerate("abc")), "--json").out)
    assert len(document["overlap"]["pairs"]) == 3


@pytest.mark.parametrize(("name", "start"), [("picture.svg", b"<?xml"), ("picture.PNG", b"\x89PNG")])
def test_a_picture_is_written_beside_the_document(name, start, cli, adapter, tmp_path):
    ended = cli("inspect", adapter("one"), "--plot", tmp_path / "new" / name, "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["adapters"]
    assert (tmp_path / "new" / name).read_bytes().startswith(start)
    assert ended.err.startswith("picture: ")


def test_hidden_states_of_an_adapter_that_peft_made_are_compared(cli, by_peft, data):
    options = ["--task", "file", "--data", data, "--labels", "no,yes", "--max-eval", "4", "--max-length", "32"]
    ended = cli("inspect", by_peft, *options, "--json")
    assert ended.code == 0
    found = json.loads(ended.out)["representations"]
    assert (found["num_examples"], found["split"]) == (4, "validation")
    assert [layer["layer"] for layer in found["adapters"][0]["layers"]] == ["embeddings", "layer 0", "layer 1"]
    assert found["adapters"][0]["layers"][-1]["relative_norm"] > 0.0
    ended = cli("inspect", by_peft, *options)
    assert "hidden states against the base's" in ended.out
    assert "of 4 examples of file (validation)" in ended.out
    assert "comparing hidden states: 4 examples" in ended.err


WRONG = {
    "an unknown figure": (["--figure", "efective_rank"], "did you mean 'effective_rank'?"),
    "another kind of picture": (["--plot", "picture.jpg"], "give FILE.svg or FILE.png"),
    "a task without data": (["--task", "sst2"], "with --data"),
    "a figure that JSON holds anyway": (["--figure", "std", "--json"], "--figure: it says what maps show, and --json holds"),
    "data without a task": (["--data", "somewhere"], "--data: it says on what to compare or to score"),
    "a split without a task": (["--split", "test"], "--split: it says on what to compare or to score"),
    "a limit without a task": (["--max-eval", "3"], "give one with --task"),
    "a length without a task": (["--max-length", "64"], "give one with --task"),
    "a base without a use": (["--base", "m"], "--base: the adapter's files are read alone, without a base"),
    "a dtype without a use": (["--dtype", "bfloat16"], "--dtype: the adapter's files are read alone"),
    "a device without a use": (["--device", "cpu"], "or give --task and --data, or --speed"),
    "a device that is not here": (["--task", "sst2", "--data", "x", "--device", "abacus"], "no device 'abacus' here"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_refused_in_one_line(case, cli, adapter):
    options, message = WRONG[case]
    ended = cli("inspect", adapter("one"), *options)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert message in ended.err


def test_kinds_of_lora_that_cannot_be_run_here_are_looked_at_and_refused_where_they_would_be_run(cli, adapter, data):
    directory = adapter("one")
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    ended = cli("inspect", directory)
    assert ended.code == 0
    assert "warning: one: DoRA: the figures are of B·A" in ended.err
    for options in (["--task", "file", "--data", data], ["--speed"]):
        ended = cli("inspect", directory, *options)
        assert (ended.code, ended.out) == (2, "")
        assert "the adapter uses use_dora" in ended.err


def test_what_is_no_adapter_is_refused_in_one_line(cli, tmp_path):
    ended = cli("inspect", tmp_path / "nothing")
    assert (ended.code, ended.out) == (2, "")
    assert "no PEFT adapter here" in ended.err
