"""Full fine-tuning as a stack of one slot: what an adapter is held against, trained by the same loop.

Before: a transformers model with frozen weights.
After ``FullStack(model, slot, heads)``: the same modules, whose parameters are views of the slot's one row of numbers and
require a gradient. What assumes frozen weights (prepacked products, fused norms) is off; tied parameters stay tied.
After ``stack.detach()``: the model as it was, to the bit. The base's own tensors are put aside meanwhile, never written to.

The row is float32 (float64 for a float64 base), and the model computes in it: a bfloat16 base is trained and scored with
float32 weights, for an update of a bfloat16 weight would mostly round to nothing. Knows surgery. Does not know the optimiser.
Floor: ``lora``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_pt_utils import get_parameter_names

from lorascope.lora.layer import SlotContext, StackedDropout
from lorascope.lora.parameters import ParameterSpec, SlotParameters
from lorascope.lora.quantised import NF4Linear
from lorascope.lora.sides import decoder_fed
from lorascope.lora.stack import AdapterWeights, InitialHead, Slot, Stack, base_dropouts, head_parameters

# What takes no weight decay, by parts of names besides nn.LayerNorm: transformers' ``Trainer.get_decay_parameter_names``.
_NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
# What kernels for frozen weights leave with a module.
_KERNEL = ("forward", "frozen_product")


def installed(
    model: nn.Module,
    slots: Sequence[Slot],
    heads: Sequence[str] = (),
    initial_head: InitialHead | None = None,
    base_dropout: bool = False,
) -> Stack:
    """The slots on the model: adapters as a ``Stack``, one that trains the base itself as a ``FullStack``."""
    if any(slot.trains_base for slot in slots):
        (slot,) = slots
        return FullStack(model, slot, heads, initial_head, base_dropout)
    return Stack(model, slots, heads, initial_head, base_dropout)


class FullStack(Stack):
    """One slot whose numbers are the model's own parameters. Arguments as of ``Stack``."""

    def __init__(
        self,
        model: nn.Module,
        slot: Slot,
        heads: Sequence[str] = (),
        initial_head: InitialHead | None = None,
        base_dropout: bool = False,
    ) -> None:
        assert not any(isinstance(module, NF4Linear) for module in model.modules()), "packed weights cannot be trained"
        self.model = model
        self.slots = [slot]
        self.heads = tuple(heads)
        self.context = SlotContext([slot.seed])
        self._wrapped: dict[str, nn.Module] = {}
        self._base_parameters = dict(model.named_parameters())
        self._required_grad = {name: p.requires_grad for name, p in self._base_parameters.items()}
        self._own = {name: p.data for name, p in self._base_parameters.items()}
        self._kernels: list[tuple[nn.Module, dict[str, Any]]] = []
        first = next(iter(self._own.values()))
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        decaying = set(get_parameter_names(model, [nn.LayerNorm], _NO_DECAY))
        initial = {**self._own, **self._initial_heads(initial_head)}
        specs = [
            ParameterSpec(name, tuple(value.shape), [initial[name]], (True,), name in decaying)
            for name, value in self._own.items()
        ]
        try:
            dropouts = base_dropouts(model) if base_dropout else {}
            if dropouts:
                self.context.decoder_fed = decoder_fed(model, list(dropouts))
            for name, module in dropouts.items():
                self._wrapped[name] = module
                model.set_submodule(name, StackedDropout(module, name, self.context))
            self._take_kernels()
            self.parameters = SlotParameters(specs, 1, dtype, first.device)
            for name, parameter in self._base_parameters.items():
                self.parameters.lend(name, parameter)
        except BaseException:
            self.detach()
            raise

    def keep(self, names: Iterable[str]) -> None:
        """Drop the slot unless it is among ``names``; the base is then its own again."""
        if self.slots and self.slots[0].name not in set(names):
            self.detach()
            self.slots, self.context.seeds = [], []

    def detach(self) -> None:
        """Put the base's own numbers, its kernels and its ``requires_grad`` back."""
        super().detach()
        for name, parameter in self._base_parameters.items():
            parameter.data = self._own[name]
        for module, kernel in self._kernels:
            module.__dict__.update(kernel)
        self._kernels.clear()

    def base_gradients(self) -> int:
        """Parameters that hold a gradient of their own: the loop keeps them in the slot's row."""
        return sum(parameter.grad is not None for parameter in self._base_parameters.values())

    def read(self, index: int) -> AdapterWeights:
        """Nothing that could be an adapter: there is none, and the weights of a whole model are not kept."""
        return AdapterWeights((), {}, {})

    def _initial_heads(self, initial_head: InitialHead | None) -> Mapping[str, Tensor]:
        """The heads' first values, by full name: those of an adapter with the same seed."""
        if initial_head is None:
            return {}
        owners = dict.fromkeys(name.rpartition(".")[0] for name in head_parameters(self._base_parameters, self.heads))
        return {
            f"{owner}.{name}": value for owner in owners for name, value in initial_head(owner, self.slots[0].seed).items()
        }

    def _take_kernels(self) -> None:
        """Take modules with weights of their own back to the code that gives those a gradient."""
        for module in self.model.modules():
            kernel = {name: module.__dict__[name] for name in _KERNEL if name in module.__dict__}
            if kernel and module._parameters:
                self._kernels.append((module, kernel))
                for name in kernel:
                    del module.__dict__[name]
