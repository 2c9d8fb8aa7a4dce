"""Every trainable number of a stack, in one matrix with a row per slot.

The optimiser, clipping, checkpoints and the removal of a slot then are a few operations on whole rows, and no operation
mixes two slots. Knows shapes and who trains what; knows no model. Floor: ``lora``.

Legend: N slots, P numbers of one slot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of every slot.

    Attributes:
        name: unique in the stack.
        shape: without the slot axis.
        initial: one tensor per slot, or None for zeros.
        trained: per slot, whether it trains here; the others keep their initial values.
        decays: whether weight decay applies (as in transformers' Trainer: not to biases and norms).
    """

    name: str
    shape: tuple[int, ...]
    initial: Sequence[Tensor] | None
    trained: tuple[bool, ...]
    decays: bool


class SlotParameters:
    """Values, gradients and AdamW's two moments of all slots, each ``[N, P]``, and a leaf view per parameter."""

    def __init__(self, specs: Sequence[ParameterSpec], num_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.specs = tuple(specs)
        self._shapes = {spec.name: spec.shape for spec in self.specs}
        self._offsets: dict[str, tuple[int, int]] = {}
        end = 0
        for spec in self.specs:
            self._offsets[spec.name] = (end, end + math.prod(spec.shape))
            end += math.prod(spec.shape)
        self.values_NP = torch.zeros(num_slots, end, dtype=dtype, device=device)
        self.gradients_NP = torch.zeros_like(self.values_NP)
        self.first_moment_NP = torch.zeros_like(self.values_NP)
        self.second_moment_NP = torch.zeros_like(self.values_NP)
        self.decays_P = torch.zeros(end, dtype=torch.bool, device=device)
        self._trained = torch.tensor([spec.trained for spec in self.specs]).reshape(len(self.specs), num_slots).T
        for spec in self.specs:
            start, stop = self._offsets[spec.name]
            self.decays_P[start:stop] = spec.decays
            for slot, value in enumerate(spec.initial or ()):
                self.values_NP[slot, start:stop] = value.reshape(-1).to(dtype=dtype, device=device)
        self._make_leaves()

    def __getitem__(self, name: str) -> Tensor:
        """The parameter ``[N, *shape]``: a leaf of the autograd graph that shares memory with ``values_NP``."""
        return self._leaves[name]

    def value(self, name: str, slot: int) -> Tensor:
        """A copy of one slot's parameter, ``[*shape]``."""
        return self._view(name, slot).clone()

    @torch.no_grad()
    def set_value(self, name: str, slot: int, value: Tensor) -> None:
        """Overwrite one slot's parameter."""
        self._view(name, slot).copy_(value)

    def lend(self, name: str, parameter: nn.Parameter) -> None:
        """Have a model's own parameter be the leaf of a stack of one: it shows the row's numbers, and changes with them."""
        assert len(self.values_NP) == 1
        parameter.data = self._view(name, 0)
        self._leaves[name] = parameter.requires_grad_()

    def state(self, with_moments: bool) -> dict[str, Tensor]:
        """All that a training goes on from: the values themselves, and AdamW's moments."""
        moments = {"first_moment": self.first_moment_NP, "second_moment": self.second_moment_NP}
        return {"values": self.values_NP, **(moments if with_moments else {})}

    @torch.no_grad()
    def load_state(self, state: Iterable[tuple[str, Tensor]]) -> None:
        """Overwrite what ``state`` gave, in place, so that the leaves show it."""
        own = self.state(with_moments=True)
        for name, value in state:
            if value.shape != own[name].shape or value.dtype != own[name].dtype:
                raise ValueError(
                    f"{name} is {value.dtype} {tuple(value.shape)}, not {own[name].dtype} {tuple(own[name].shape)}"
                )
            own[name].copy_(value)

    def zero_gradients(self) -> None:
        """Clear every slot's gradient."""
        self.gradients_NP.zero_()

    def accumulate_gradients(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss, summed over slots; parameters that it does not depend on get none."""
        if not self.specs:
            return
        gradients = torch.autograd.grad(loss, list(self._leaves.values()), allow_unused=True)
        for spec, gradient in zip(self.specs, gradients, strict=True):
            if gradient is not None:
                start, stop = self._offsets[spec.name]
                self.gradients_NP[:, start:stop] += gradient.reshape(len(self.gradients_NP), -1)

    def mask_gradients(self) -> None:
        """Zero the gradient of what a slot does not train: a bias its neighbours train and it keeps, for example."""
        for index, spec in enumerate(self.specs):
            trained_N = self._trained[:, index]
            if not bool(trained_N.all()):
                start, stop = self._offsets[spec.name]
                self.gradients_NP[~trained_N.to(self.gradients_NP.device), start:stop] = 0.0

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these slots, in this order, with their values and moments; the rest is gone."""
        index = torch.tensor(list(slots), dtype=torch.long, device=self.values_NP.device)
        for name in ("values_NP", "gradients_NP", "first_moment_NP", "second_moment_NP"):
            setattr(self, name, getattr(self, name).index_select(0, index))
        self._trained = self._trained.index_select(0, index.cpu())
        self._make_leaves()

    def _view(self, name: str, slot: int) -> Tensor:
        """One slot's parameter in place, ``[*shape]``."""
        start, stop = self._offsets[name]
        return self.values_NP[slot, start:stop].view(self._shapes[name])

    def _make_leaves(self) -> None:
        num_slots = self.values_NP.shape[0]
        self._leaves: dict[str, Tensor] = {}
        for spec in self.specs:
            start, stop = self._offsets[spec.name]
            leaf = self.values_NP[:, start:stop].view(num_slots, *spec.shape).detach()
            self._leaves[spec.name] = leaf.requires_grad_()
