"""Hidden states of adapters on their base, from directories and a data file."""

import json

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorascope.analysis import drift
from lorascope.analysis.drift import drift_document
from lorascope.analysis.updates import read_adapters
from lorascope.cohort.single import OnBase
from lorascope.config import EvaluateConfig, TaskConfig
from lorascope.errors import RunError, UsageError

TEXTS = ["a charming journey", "the plot goes nowhere", "too slow and far too long", "bright"]


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "validation.jsonl"
    rows = [{"text": text, "label": ("no", "yes")[index % 2]} for index, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return TaskConfig(name="file", data=str(path), labels=["no", "yes"], max_length=32)


@pytest.fixture
def by_peft(model_directory, tmp_path):
    """``by_peft(name, seed)``: an adapter that PEFT made and wrote, and its model."""

    def make(name, seed=1):
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(model_directory("bert"), num_labels=2)
        config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], init_lora_weights=False)
        model = peft.get_peft_model(base, config).eval()
        model.save_pretrained(tmp_path / name)
        return tmp_path / name, model

    return make


def finished(run):
    while True:
        try:
            next(run)
        except StopIteration as stop:
            return stop.value


def compare(directories, task, base=None, **options):
    settings = EvaluateConfig(split="validation")
    return finished(drift_document(read_adapters(directories), task, settings, OnBase(base, **options)))


@torch.no_grad()
def test_an_adapter_that_peft_made_drifts_as_in_peft(by_peft, task, model_directory):
    directory, model = by_peft("theirs")
    found = compare([directory], task)
    tokenizer = AutoTokenizer.from_pretrained(model_directory("bert"))
    moved = []
    for text in TEXTS:
        inputs = tokenizer(text, return_tensors="pt")
        after = model(**inputs, output_hidden_states=True).hidden_states[-1][0]
        with model.disable_adapter():
            before = model(**inputs, output_hidden_states=True).hidden_states[-1][0]
        moved.append((after - before).norm(dim=1) / before.norm(dim=1))
    layers = found["adapters"][0]["layers"]
    assert [layer["layer"] for layer in layers] == ["embeddings", "layer 0", "layer 1"]
    assert layers[0]["relative_norm"] == 0.0
    assert layers[-1]["relative_norm"] == pytest.approx(float(torch.cat(moved).mean()), rel=1e-4)
    assert layers[-1]["num_tokens"] == len(torch.cat(moved))
    assert (found["base"], found["num_examples"], found["split"]) == (str(model_directory("bert")), 4, "validation")


def test_few_tokens_for_the_width_are_warned_of_with_the_number_that_is_needed(by_peft, task):
    found = compare([by_peft("theirs")[0]], task)
    num_tokens = found["adapters"][0]["layers"][0]["num_tokens"]
    assert num_tokens < 160
    (told,) = [warning for warning in found["warnings"] if "CKA" in warning]
    assert told.startswith(f"3 of 3 layers were compared on {num_tokens} tokens of width 16: below 160 plain CKA")


def test_enough_tokens_for_the_width_are_not_warned_of(by_peft, task, monkeypatch):
    monkeypatch.setattr(drift, "_TOKENS_PER_DIMENSION", 1)
    assert not [warning for warning in compare([by_peft("theirs")[0]], task)["warnings"] if "CKA" in warning]


def test_several_adapters_are_read_in_one_pass(by_peft, task):
    directories = [by_peft(name, seed)[0] for seed, name in enumerate(("one", "two"))]
    together = compare(directories, task)
    assert [one["label"] for one in together["adapters"]] == ["one", "two"]
    alone = compare(directories[1:], task)
    for layer, other in zip(together["adapters"][1]["layers"], alone["adapters"][0]["layers"], strict=True):
        assert layer["relative_norm"] == pytest.approx(other["relative_norm"], rel=1e-4)


def test_adapters_of_different_bases_need_to_be_told_which(by_peft, task, model_directory):
    directories = [by_peft(name)[0] for name in ("one", "two")]
    path = directories[1] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "elsewhere"}))
    with pytest.raises(UsageError, match=r"adapters of different bases: .*elsewhere.*name the base of both with --base"):
        compare(directories, task)
    assert len(compare(directories, task, base=str(model_directory("bert")))["adapters"]) == 2


def test_memory_that_runs_out_is_one_line_and_other_errors_are_not_hidden(by_peft, task, monkeypatch):
    directory, _ = by_peft("theirs")
    for error, kind, what in (
        (MemoryError(), RunError, "memory ran out .*--max-length"),
        (RuntimeError("shapes differ"), RuntimeError, "shapes differ"),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(drift, "representation_drift", fail)
        with pytest.raises(kind, match=what):
            compare([directory], task)
