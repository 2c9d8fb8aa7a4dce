"""What counts as a linear layer, whatever holds its weight, and how large it is.

Knows the kinds: ``nn.Linear``, GPT-2's ``Conv1D`` with its weight as ``[D, O]``, and the packed ``NF4Linear``. Does not know
which of them play which role (``targets``) or carry adapters (``stack``). Floor: ``lora``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from lorascope.lora.quantised import NF4Linear

LinearLayer = nn.Linear | Conv1D | NF4Linear


def features(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    if isinstance(layer, Conv1D):
        return int(layer.weight.shape[0]), int(layer.weight.shape[1])
    assert isinstance(layer, nn.Linear | NF4Linear)
    return layer.in_features, layer.out_features


def is_transposed(layer: nn.Module) -> bool:
    """Whether the layer of the checkpoint stores its weight as ``[D, O]``."""
    return isinstance(layer, Conv1D) or (isinstance(layer, NF4Linear) and layer.transposed)


def linear_modules(model: nn.Module, heads: Sequence[str]) -> dict[str, nn.Module]:
    """Linear layers outside heads and output embeddings, in the model's order: what can be adapted, or quantised."""
    embeddings = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LinearLayer)
        and module is not embeddings
        and not any(name == head or name.startswith(f"{head}.") for head in heads)
    }


def num_parameters(model: nn.Module) -> int:
    """Numbers in the model; a packed weight counts as many as it stands for."""
    packed = sum(layer.in_features * layer.out_features for layer in model.modules() if isinstance(layer, NF4Linear))
    return packed + sum(parameter.numel() for parameter in model.parameters())
