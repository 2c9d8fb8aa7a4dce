"""A saved adapter on its base: it answers as it did, or it is refused and the base is as it was."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorascope import adapter as adapters_module
from lorascope.adapter import (
    adapter_directory,
    adapter_names,
    agreed_base,
    form_of_adapter,
    stack_beside_base,
    stack_saved,
    stack_several,
)
from lorascope.base_model import BaseModel, head_modules, load_base
from lorascope.config import BaseModelConfig
from lorascope.errors import AdapterError, UsageError
from lorascope.lora.peft_io import read_adapter, write_adapter
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve

IDS = torch.tensor([[2, 9, 33, 71, 12, 3], [2, 90, 14, 7, 8, 3]])


def base_of(model, new_parameters=()):
    return BaseModel(model, None, "SEQ_CLS", head_modules(model, "SEQ_CLS"), new_parameters, "", plain_head=True)


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def saved(tiny_model, tmp_path):
    """An adapter's directory, and the logits that it gave before it was written."""
    base = base_of(tiny_model("bert"))
    placements = tuple(Placement(target, 2, 1.5) for target in resolve(base.model, ["query", "up"], base.heads))
    slot = Slot("saved", 1, placements, bias="lora_only")
    stack = Stack(base.model, [slot], base.heads)
    weights = stack.read(0)
    generator = torch.Generator().manual_seed(1)
    for group in (weights.lora_B, weights.biases, weights.heads):
        for value in group.values():
            value += 0.2 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    stack.write(0, weights)
    logits = logits_of(base.model)
    write_adapter(tmp_path, weights, slot, base.model, heads=base.heads, base_model="", task_type="SEQ_CLS")
    stack.detach()
    return tmp_path, logits


def test_a_saved_adapter_answers_on_its_base_as_before_it_was_saved(saved, tiny_model):
    directory, logits = saved
    base = base_of(tiny_model("bert"), new_parameters=("classifier.weight", "classifier.bias"))
    untouched = logits_of(base.model)
    stack = stack_saved(base, read_adapter(directory), str(directory))
    torch.testing.assert_close(logits_of(base.model), logits, rtol=0, atol=1e-12)
    stack.detach()
    assert torch.equal(logits_of(base.model), untouched)
    assert (logits - untouched).abs().max() > 1e-2


def test_a_base_whose_new_head_the_adapter_does_not_bring_is_refused(saved, tiny_model):
    directory, _ = saved
    base = base_of(tiny_model("bert"), new_parameters=("bert.pooler.dense.weight",))
    with pytest.raises(AdapterError, match=r"holds no 'bert\.pooler.dense.weight', which the base model does not have either"):
        stack_saved(base, read_adapter(directory), "there")


def test_an_adapter_that_does_not_fit_is_refused_and_the_base_stays_as_it_was(saved, tiny_model):
    directory, _ = saved
    base = base_of(tiny_model("bert", num_labels=2))
    modules = {name: type(module) for name, module in base.model.named_modules()}
    with pytest.raises(AdapterError, match="check the base model and the number of labels"):
        stack_saved(base, read_adapter(directory), "there")
    assert {name: type(module) for name, module in base.model.named_modules()} == modules


def test_an_output_layer_of_its_own_on_a_base_that_ties_it_is_refused(peft_adapter, model_directory):
    directory = peft_adapter("gpt2", "CAUSAL_LM")[0]
    base = load_base(BaseModelConfig(model=str(model_directory("gpt2"))), "CAUSAL_LM")
    adapter, tied = read_adapter(directory), base.model.get_output_embeddings().weight.detach()

    def with_head(value):
        return replace(adapter, weights=replace(adapter.weights, heads={"lm_head.weight": value}))

    with pytest.raises(AdapterError, match=r"there: the adapter brings a layer of its own \('lm_head'\).*; merge it, and run"):
        stack_saved(base, with_head(tied + 0.5), "there")
    stack_saved(base, with_head(tied.clone()), "there").detach()


def test_adapters_beside_their_base_answer_as_each_does_alone(saved, tiny_model):
    directory, logits = saved
    base = base_of(tiny_model("bert"), new_parameters=("classifier.weight", "classifier.bias"))
    untouched = logits_of(base.model)
    adapter = read_adapter(directory)
    stack = stack_beside_base(base, {"one": adapter, "two": adapter})
    assert [slot.name for slot in stack.slots] == ["one", "two", "base"]
    with torch.no_grad():
        found = base.model(input_ids=IDS.repeat(3, 1)).logits.chunk(3)
    for values, expected in zip(found, (logits, logits, untouched), strict=True):
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)
    stack.detach()
    assert torch.equal(logits_of(base.model), untouched)


def test_an_adapter_that_does_not_fit_beside_its_base_is_named(saved, tiny_model):
    directory, _ = saved
    base = base_of(tiny_model("gpt2"))
    with pytest.raises(AdapterError, match=r"^theirs: the base model has no linear layer"):
        stack_beside_base(base, {"theirs": read_adapter(directory)})


def test_several_adapters_and_the_base_answer_as_each_alone(saved, tiny_model, tmp_path_factory):
    directory, logits = saved
    base = base_of(tiny_model("bert"))
    untouched = logits_of(base.model)
    other = tmp_path_factory.mktemp("other")
    placements = tuple(Placement(target, 5, 0.5) for target in resolve(base.model, ["value", "down"], base.heads))
    stack = Stack(base.model, [Slot("other", 3, placements)], base.heads)
    weights = stack.read(0)
    for value in weights.lora_B.values():
        value += 0.3
    stack.write(0, weights)
    others = logits_of(base.model)
    write_adapter(other, weights, stack.slots[0], base.model, heads=base.heads, base_model="", task_type="SEQ_CLS")
    stack.detach()
    adapters = {str(place): read_adapter(place) for place in (directory, other)}
    stack = stack_several(base, adapters, [Slot("base", 0, ())])
    with torch.no_grad():
        together = base.model(input_ids=IDS.repeat(3, 1)).logits.unflatten(0, (3, 2))
    torch.testing.assert_close(together, torch.stack([untouched, logits, others]), rtol=0, atol=1e-11)
    stack.detach()
    assert torch.equal(logits_of(base.model), untouched)


def test_adapters_are_called_by_what_tells_them_apart():
    def names(*paths):
        return list(adapter_names([Path(path) for path in paths]))

    assert names("/r/one", "/r/two/") == ["one", "two"]
    assert names("/r/s/trials/x-s1/adapter", "/r/s/trials/y-s1/adapter") == ["x-s1", "y-s1"]
    assert names("/r/s1/t/adapter", "/r/s2/t/adapter", "/r/u") == ["s1/t", "s2/t", "u"]
    assert names("/r/base") == ["r/base"]
    assert list(adapter_names([Path("one")]).values()) == [Path("one")]
    with pytest.raises(UsageError, match="the adapter is given twice"):
        names("/r/one", "/r/one/")


def test_a_trials_directory_stands_for_the_adapter_in_it(saved, tmp_path_factory):
    directory, _ = saved
    trial = tmp_path_factory.mktemp("x-s1")
    shutil.copytree(directory, trial / "adapter")
    assert adapter_directory(trial) == trial / "adapter"
    assert adapter_directory(directory) == directory
    assert adapter_names([trial, directory]) == {trial.name: trial / "adapter", directory.name: directory}
    with pytest.raises(UsageError, match="the adapter is given twice"):
        adapter_names([trial, trial / "adapter"])


def test_the_base_is_the_one_that_all_adapters_name_in_its_revision(saved, tmp_path):
    directory, _ = saved
    one = replace(read_adapter(directory), base_model="org/a", config={"revision": "v1"})
    two = replace(one, config={})
    config = agreed_base({"one": one, "again": one}, dtype="bfloat16", quantization="nf4")
    assert (config.model, config.revision, config.dtype, config.quantization) == ("org/a", "v1", "bfloat16", "nf4")
    with pytest.raises(UsageError, match=r"two: adapters of different bases: one is of org/a \(v1\), this one of org/a;"):
        agreed_base({"one": one, "two": two})
    assert agreed_base({"one": one, "two": two}, "org/b").revision is None
    with pytest.raises(UsageError, match="one: the adapter names no base model; give it with --base"):
        agreed_base({"one": replace(one, base_model=None)})
    with pytest.raises(AdapterError, match=r"one: its base model .*gone is not there"):
        agreed_base({"one": replace(one, base_model=str(tmp_path / "gone"))})
    with pytest.raises(UsageError, match="no whole model"):
        agreed_base({}, str(directory))


def test_the_base_s_name_given_again_keeps_its_revision(saved):
    one = replace(read_adapter(saved[0]), base_model="org/a", config={"revision": "v1"})
    assert agreed_base({"one": one}, "org/a").revision == "v1"
    assert agreed_base({"one": one, "other": replace(one, base_model="org/b", config={})}, "org/a").revision == "v1"
    assert agreed_base({"one": one}, "org/b").revision is None
    assert agreed_base({"one": one, "two": replace(one, config={"revision": "v2"})}, "org/a").revision is None


def test_another_revision_of_its_base_is_told(saved, tiny_model):
    directory, _ = saved
    one = replace(read_adapter(directory), base_model="org/a", config={"revision": "v1"})
    for revision, told in (
        ("v1", []),
        (None, ["there was trained on revision v1 of org/a, and runs on its default one here"]),
    ):
        base = replace(base_of(tiny_model("bert")), source=BaseModelConfig(model="org/a", revision=revision))
        stack_saved(base, one, "there").detach()
        assert base.warnings == told


def test_a_tokenizer_is_held_against_that_of_the_base_s_revision_and_only_once(saved, tiny_model, monkeypatch):
    directory, _ = saved
    (directory / "tokenizer.json").write_text("{}")
    asked = []
    monkeypatch.setattr(adapters_module, "load_tokenizer", asked.append)
    monkeypatch.setattr(adapters_module, "tokenizer_difference", lambda *_: "another chat template")
    source = BaseModelConfig(model="org/a", revision="v1")
    base = replace(base_of(tiny_model("bert")), source=source)
    stack_saved(base, read_adapter(directory), "there").detach()
    assert [(one.model, one.revision, one.tokenizer_beside) for one in asked] == [("org/a", "v1", directory)]
    assert base.warnings == ["there was saved with a tokenizer that is not used here: it has another chat template"]
    agreed = replace(base_of(tiny_model("bert")), source=source.with_tokenizer(directory))
    stack_saved(agreed, read_adapter(directory), "there").detach()
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("origin", "base_model", "refused"),
    [
        ({}, "base", False),
        ({}, "other", True),
        ({}, None, False),
        ({"checksum": "x", "dtype": "float64", "quantization": None}, "other", False),
        ({"checksum": "y", "dtype": "float64", "quantization": None}, "base", True),
    ],
)
def test_what_an_adapter_trained_whole_must_not_be_in_another_base(origin, base_model, refused, saved, tiny_model, tmp_path):
    model, place = tiny_model("bert"), tmp_path / "base"
    place.mkdir()
    (place / "merge-certificate.json").write_text("{}")
    base = replace(base_of(model), checksum="x", source=BaseModelConfig(model=str(place)))
    adapter = replace(read_adapter(saved[0]), origin=origin, base_model=base_model and str(tmp_path / base_model))
    name = "bert.embeddings.word_embeddings.weight"
    own = model.get_parameter(name).detach().clone()
    adapter = replace(adapter, weights=replace(adapter.weights, heads={**adapter.weights.heads, name: own}))
    if refused:
        with pytest.raises(AdapterError, match=f"there: the base is not the adapter's, and yet has its '{name}'"):
            stack_saved(base, adapter, "there")
    else:
        stack_saved(base, adapter, "there").detach()


def test_what_an_adapter_is_run_as_is_what_its_file_says_or_what_it_holds(saved):
    one = read_adapter(saved[0])
    assert form_of_adapter(one, "here") == ("SEQ_CLS", ("0", "1", "2"))
    assert form_of_adapter(replace(one, task_type=None, labels=("a", "b", "c")), "here") == ("SEQ_CLS", ("a", "b", "c"))
    headless = replace(one, task_type=None, weights=replace(one.weights, heads={}))
    assert form_of_adapter(headless, "here") == ("CAUSAL_LM", ())
    assert form_of_adapter(replace(one, task_type="SEQ_2_SEQ_LM"), "here") == ("CAUSAL_LM", ())
    with pytest.raises(AdapterError, match="here: an adapter for TOKEN_CLS cannot be run here"):
        form_of_adapter(replace(one, task_type="TOKEN_CLS"), "here")


@pytest.mark.parametrize(
    ("origin", "base_model", "told"),
    [
        ({"checksum": "x", "dtype": "float64", "quantization": None}, "elsewhere", None),
        (
            {"checksum": "y", "dtype": "float64", "quantization": None},
            None,
            "there was trained on other weights than",
        ),
        ({}, "elsewhere", "there was trained on elsewhere, and runs on"),
        ({}, None, None),
        ({"checksum": "y", "dtype": "bfloat16", "quantization": None}, None, "a base in bfloat16, and runs on one in float64"),
        (
            {"checksum": "y", "dtype": "float64", "quantization": "nf4"},
            "elsewhere",
            "elsewhere, and runs on  here; on a base in 4 bits (nf4) and float64, and runs on one in float64",
        ),
    ],
)
def test_an_adapter_of_another_base_is_told_once(origin, base_model, told, saved, tiny_model):
    directory, _ = saved
    base = replace(base_of(tiny_model("bert")), checksum="x")
    adapter = replace(read_adapter(directory), origin=origin, base_model=base_model)
    for _ in range(2):
        stack_saved(base, adapter, "there").detach()
    assert len(base.warnings) == (told is not None)
    assert told is None or told in base.warnings[0]
