"""What counts as a linear layer, in full and packed."""

import pytest
import torch

from lorascope.base_model import head_modules
from lorascope.lora.linear import features, is_transposed, linear_modules, num_parameters
from lorascope.lora.quantised import NF4Linear, quantise
from lorascope.lora.targets import resolve

FORMS = [(family, "SEQ_CLS") for family in ("gpt2", "bert", "distilbert", "roberta", "llama", "qwen2")] + [
    (family, "CAUSAL_LM") for family in ("gpt2", "llama", "qwen2", "phi3")
]


@pytest.mark.parametrize(("family", "task_type"), FORMS)
def test_packing_changes_no_count_no_shape_and_no_target(family, task_type, tiny_model):
    model = tiny_model(family, task_type, torch.float32)
    heads = head_modules(model, task_type)
    embeddings = model.get_output_embeddings()
    before = {name: (features(layer), is_transposed(layer)) for name, layer in linear_modules(model, heads).items()}
    names = {name for name, _ in model.named_parameters()}
    total = num_parameters(model)
    targets = [resolve(model, which, heads) for which in ("all-linear", ["query", "value"])]
    assert total == sum(parameter.numel() for parameter in model.parameters())

    quantise(model, list(before))
    packed = {name for name, module in model.named_modules() if isinstance(module, NF4Linear)}
    assert packed == set(before) == set(linear_modules(model, heads))
    assert {name: (features(layer), is_transposed(layer)) for name, layer in linear_modules(model, heads).items()} == before
    assert num_parameters(model) == total
    assert [resolve(model, which, heads) for which in ("all-linear", ["query", "value"])] == targets
    assert names - {name for name, _ in model.named_parameters()} == {f"{name}.weight" for name in before}
    assert model.get_output_embeddings() is embeddings
    assert {target.module for target in targets[0]} <= packed
    assert not any(name.startswith(heads) for name in packed if heads)


def test_only_conv1d_is_transposed(tiny_model):
    for family in ("gpt2", "bert"):
        model = tiny_model(family)
        layers = linear_modules(model, head_modules(model, "SEQ_CLS")).values()
        assert {is_transposed(layer) for layer in layers} == {family == "gpt2"}
