"""The checks of a user's own base pass on the tiny models of every form, and catch what they are there for."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, GPT2Config, T5Config

from lorascope.doctor import own_base
from lorascope.doctor.finding import Setting
from lorascope.doctor.own_base import form_of
from lorascope.doctor.table import OWN_BASE
from lorascope.lora import peft_io
from lorascope.lora.targets import FAMILIES

ALL = [row.name for row in OWN_BASE]


@pytest.fixture(autouse=True)
def known_text(monkeypatch):
    """The tiny tokenizers know few letters."""
    monkeypatch.setattr(own_base, "_TEXT", "the acting is wooden and the plot goes nowhere")


@pytest.fixture
def tried(check, model_directory):
    """``tried("gpt2")`` or ``tried(directory)``: every check of a base, by name; some only with ``names``."""

    def run(base, *names):
        setting = Setting(model=str(model_directory(base) if isinstance(base, str) else base))
        results = {name: check(name, setting) for name in ALL if name in (ALL[0], *(names or ALL))}
        return results if len(names) != 1 else results[names[0]]

    return run


@pytest.fixture
def copy_of(model_directory, tmp_path):
    """``copy_of("gpt2")``: a copy of its directory, to be spoiled."""
    return lambda family: shutil.copytree(model_directory(family), tmp_path / family)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "bert", "roberta", "distilbert", "t5", "bart"])
def test_nothing_is_wrong_with_a_tiny_base(family, tried):
    results = tried(family)
    assert {name: result.showed for name, result in results.items() if result.status == "failed"} == {}
    # Heads and poolers are new.
    assert {name for name, result in results.items() if result.status == "warning"} <= {"base: loads"}
    causal = family in ("gpt2", "llama", "qwen2")
    assert results["base: prefix trees"].status == ("passed" if causal else "skipped")
    assert results["base: targets"].figures["roles"]["query"] >= 2


def test_a_checkpoint_is_tried_as_what_it_was_saved_as():
    saved = {"architectures": ["BertForSequenceClassification"], "id2label": {0: "no", 1: "yes", 2: "maybe"}}
    assert form_of(BertConfig(**saved)) == ("SEQ_CLS", ("no", "yes", "maybe"))
    assert form_of(BertConfig(architectures=["BertForMaskedLM"])) == ("SEQ_CLS", ("first", "second"))
    assert form_of(GPT2Config(architectures=["GPT2LMHeadModel"])) == ("CAUSAL_LM", ())
    assert form_of(T5Config(architectures=["T5ForConditionalGeneration"])) == ("SEQ_2_SEQ_LM", ())


def test_where_nothing_loads_the_others_are_skipped(tried, tmp_path):
    results = tried(tmp_path)
    assert results["base: loads"].status == "failed"
    assert "no config.json" in results["base: loads"].showed
    assert {result.status for name, result in results.items() if name != "base: loads"} == {"skipped"}


def test_a_weight_that_is_not_finite_is_caught(tried, copy_of):
    directory = copy_of("gpt2")
    weights = load_file(directory / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    assert "holds NaN" in tried(directory, "base: loads").showed


def test_a_base_that_memory_does_not_hold_is_refused_before_it_is_loaded(tried, monkeypatch):
    monkeypatch.setattr(own_base, "load_base", None)
    monkeypatch.setattr(own_base, "free_bytes", lambda device: 1000)
    result = tried("gpt2", "base: loads")
    assert result.status == "failed"
    assert "GiB are free" in result.showed
    assert "smaller base" in result.fix


def test_a_base_that_fits_in_bfloat16_alone_is_loaded_so(tried, monkeypatch):
    monkeypatch.setattr(own_base, "free_bytes", lambda device: 80_000)
    results = tried("gpt2")
    assert results["base: loads"].figures["dtype"] == "bfloat16"
    assert {name for name, result in results.items() if result.status == "failed"} == set()


def test_a_tokenizer_that_loses_letters_is_caught(tried, monkeypatch):
    monkeypatch.setattr(own_base, "_TEXT", "the quick fox")
    result = tried("gpt2", "base: tokenizer")
    assert (result.status, result.showed) == ("failed", "what it encoded comes back as 'the uic fo'")


def test_words_that_a_tokenizer_does_not_know_are_a_warning(tried, monkeypatch):
    monkeypatch.setattr(own_base, "_TEXT", "the quick fox")
    result = tried("bert", "base: tokenizer")
    assert result.status == "warning"
    assert "2 of 5 tokens of plain English are unknown to it" in result.showed


def test_a_tokenizer_of_another_model_is_caught(tried, monkeypatch):
    monkeypatch.setattr(own_base, "_ids", lambda base: [5, 10**6])
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.decode", lambda *_, **__: own_base._TEXT)
    assert "ids up to 1000000 for 160 embeddings" in tried("gpt2", "base: tokenizer").showed


def test_a_family_without_role_names_is_named(tried, monkeypatch):
    monkeypatch.delitem(FAMILIES, "gpt2")
    result = tried("gpt2", "base: targets")
    assert result.status == "warning"
    assert "a gpt2 model has no role names here" in result.showed


def test_a_model_in_which_nothing_can_be_adapted_is_caught(tried, monkeypatch):
    monkeypatch.setattr(own_base, "resolve", lambda *_: ())
    assert "no linear layer can be adapted" in tried("gpt2", "base: targets").showed


def test_outputs_that_are_not_finite_are_caught(tried, monkeypatch):
    original = own_base.load_base

    def overflowing(*arguments):
        base = original(*arguments)
        base.model.get_output_embeddings().weight.data.fill_(float("inf"))
        return base

    monkeypatch.setattr(own_base, "load_base", overflowing)
    result = tried("gpt2", "base: outputs")
    assert result.status == "failed"
    assert "logits are not finite" in result.showed


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_padding_that_changes_an_output_is_caught(family, tried, monkeypatch):
    original = own_base._inputs

    def unmasked(base, rows):
        inputs = original(base, rows)
        return {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}

    monkeypatch.setattr(own_base, "_inputs", unmasked)
    result = tried(family, "base: outputs")
    assert result.status == "failed"
    assert result.showed.startswith("padding")


def test_a_base_weight_that_moves_is_caught(tried, monkeypatch, touched_base):
    monkeypatch.setattr(own_base, "train", touched_base(own_base.train))
    assert "1 base tensors changed" in tried("bert", "base: frozen").showed


def test_a_base_parameter_that_takes_a_gradient_is_caught(tried, leak):
    assert "1 base parameters take a gradient" in tried("bert", "base: frozen").showed


def test_prefixes_that_cannot_be_shared_are_a_warning_with_the_reason(tried, monkeypatch):
    monkeypatch.setattr("lorascope.losses.why_unsteerable", lambda model: "its attention has a window")
    result = tried("gpt2", "base: prefix trees")
    assert result.status == "warning"
    assert "its attention has a window" in result.showed
    assert "slower" in result.fix


def test_an_alpha_written_wrongly_is_caught_by_peft(tried, monkeypatch):
    original = peft_io._ranks_and_alphas

    def other(modules, use_rslora):
        ranks, alphas = original(modules, use_rslora)
        return ranks, {name: 2 * value for name, value in alphas.items()}

    monkeypatch.setattr(peft_io, "_ranks_and_alphas", other)
    assert tried("gpt2", "base: PEFT").status == "failed"
