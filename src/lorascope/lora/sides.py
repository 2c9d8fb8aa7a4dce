"""Which rows a module of an encoder–decoder is given: the encoder's, or the decoder's.

In the encoder all are the encoder's; in the decoder all are the decoder's, but for the keys and values of cross-attention,
which are made of the encoder's output. Names do not say so in the same way everywhere, so a model is asked: one short pass,
in which the two kinds of rows differ in width. A dropout mask belongs to a token, so a layer has to know whose it sees.

Knows how an encoder–decoder is called. Does not know slots or adapters. Floor: ``lora``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorascope.errors import ModelError

_ENCODER_WIDTH = 3
_DECODER_WIDTH = 2


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model has a decoder that is given other tokens than its encoder (a classifier gives both the same)."""
    declared = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    return declared and getattr(model, "get_output_embeddings", lambda: None)() is not None


@torch.no_grad()
def decoder_fed(model: nn.Module, modules: Iterable[str]) -> frozenset[str]:
    """Those of ``modules`` that are given the decoder's rows; none in a model that has only one kind.

    Raises:
        ModelError: a module is given no rows of tokens, so that it cannot be told.
    """
    if not is_encoder_decoder(model):
        return frozenset()
    device = next(model.parameters()).device
    widths: dict[str, int] = {}
    hooks = [module.register_forward_pre_hook(partial(_note_width, widths, name)) for name, module in model.named_modules()]
    try:
        model(
            input_ids=torch.zeros(1, _ENCODER_WIDTH, dtype=torch.long, device=device),
            decoder_input_ids=torch.zeros(1, _DECODER_WIDTH, dtype=torch.long, device=device),
            use_cache=False,
        )
    finally:
        for hook in hooks:
            hook.remove()
    names = frozenset(modules)
    strange = sorted(name for name in names if widths.get(name) not in (_ENCODER_WIDTH, _DECODER_WIDTH))
    if strange:
        what = f"{strange[0]!r} is given no rows of tokens, so its dropout cannot be drawn token by token"
        raise ModelError(what, where="base.model", fix="use lora_dropout: 0 and base_dropout: false, or other targets")
    return frozenset(name for name in names if widths[name] == _DECODER_WIDTH)


def _note_width(widths: dict[str, int], name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() == 3:
        widths[name] = inputs[0].shape[1]
