"""A stack: N adapters installed on one frozen base, and the way back.

Before: a transformers model.
After ``Stack(model, slots, heads)``: the same model with every targeted layer wrapped by ``StackedLinear``, every head
trained once per slot, no base parameter requiring a gradient; it maps ``[N·B, …]`` inputs, slot-major, to outputs.
After ``stack.detach()``: the model as it was, to the bit.

Knows surgery and slots. Does not know the optimiser (``train``), files (``peft_io``) or which names mean which modules
(``targets``). Floor: ``lora``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lorascope.errors import ModelError
from lorascope.lora import streams
from lorascope.lora.layer import Part, SlotContext, StackedDropout, StackedLayerNorm, StackedLinear
from lorascope.lora.linear import LinearLayer, features, num_parameters
from lorascope.lora.parameters import ParameterSpec, SlotParameters
from lorascope.lora.sides import decoder_fed, is_encoder_decoder
from lorascope.lora.targets import Target

InitialHead = Callable[[str, int], Mapping[str, Tensor]]
Parameters = Mapping[str, nn.Parameter]


@dataclass(frozen=True)
class Placement:
    """An adapter's rank and scaling (``lora_alpha / r``, or over √r) at one target."""

    target: Target
    r: int
    scaling: float


@dataclass(frozen=True)
class Slot:
    """What one slot trains.

    Attributes:
        name: the trial's name.
        seed: of the initial weights and of dropout.
        use_rslora: how ``scaling`` came about; only exports care.
        bias: as in PEFT; ``lora_only`` trains the biases of targeted layers, ``all`` every bias of the model.
        trains_base: every parameter of the model, and no adapter: full fine-tuning (``lora.full``).
    """

    name: str
    seed: int
    placements: tuple[Placement, ...]
    dropout: float = 0.0
    bias: Literal["none", "lora_only", "all"] = "none"
    use_rslora: bool = False
    trains_base: bool = False


@dataclass
class AdapterWeights:
    """One slot's trained numbers, off the model: by target, by bias name and by head parameter name."""

    placements: tuple[Placement, ...]
    lora_A: dict[str, Tensor]
    lora_B: dict[str, Tensor]
    biases: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)


def trained_biases(parameters: Parameters, slot: Slot, heads: Iterable[str]) -> dict[str, nn.Parameter]:
    """Biases of the base that the slot trains, by full name, as PEFT's ``bias`` picks them; a head's are the head's."""
    if slot.bias == "none":
        return {}
    targeted = {placement.target.module for placement in slot.placements}
    heads = tuple(heads)
    return {
        name: parameter
        for name, parameter in parameters.items()
        if (name == "bias" or name.endswith(".bias"))
        and not _is_inside(name, heads)
        and (slot.bias == "all" or name.removesuffix(".bias") in targeted)
    }


def head_parameters(parameters: Parameters, heads: Iterable[str]) -> dict[str, nn.Parameter]:
    """Parameters of the modules that are trained whole, by full name."""
    heads = tuple(heads)
    return {name: parameter for name, parameter in parameters.items() if _is_inside(name, heads)}


def count_adapter(model: nn.Module, slot: Slot) -> int:
    """Numbers in the slot's A's and B's; exact, and computable on the meta device."""
    total = 0
    for placement in slot.placements:
        features_in, features_out = features(model.get_submodule(placement.target.module))
        total += placement.r * (features_in + _width(placement.target, features_out))
    return total


def count_trainable(model: nn.Module, slot: Slot, heads: Iterable[str]) -> int:
    """Numbers that train in a slot: adapter, biases and heads, or the whole model."""
    if slot.trains_base:
        return num_parameters(model)
    heads = tuple(heads)
    parameters = dict(model.named_parameters())
    others = [*trained_biases(parameters, slot, heads).values(), *head_parameters(parameters, heads).values()]
    return count_adapter(model, slot) + sum(parameter.numel() for parameter in others)


def base_dropouts(model: nn.Module) -> dict[str, nn.Dropout]:
    """The base model's own dropout modules that drop anything, by name.

    Raises:
        ModelError: its dropout is no module (BART and its relatives), so that it cannot be drawn per slot.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    if not modules and is_encoder_decoder(model):
        what = "the model's own dropout is no module of its own, so it cannot be drawn per slot"
        raise ModelError(what, where="train.base_dropout", fix="set it to false")
    return {name: module for name, module in modules.items() if module.p > 0.0}


class Stack:
    """N slots on one model. ``model`` runs them; ``parameters`` holds what they train.

    Args:
        model: a transformers model in evaluation mode; modified in place until ``detach``.
        slots: at least one.
        heads: modules trained whole, one copy per slot.
        initial_head: initial values of a head for a seed, by parameter name relative to the head; the default copies the
            model's own.
        base_dropout: whether the base model's dropout acts while training, drawn per slot.

    Raises:
        ModelError: something that must be trained is of a kind that cannot be stacked.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: Sequence[Slot],
        heads: Sequence[str] = (),
        initial_head: InitialHead | None = None,
        base_dropout: bool = False,
    ) -> None:
        self.model = model
        self.slots = list(slots)
        self.heads = tuple(heads)
        self.context = SlotContext([slot.seed for slot in slots])
        self._inactive: list[frozenset[str]] = [frozenset()] * len(slots)
        self._rows: list[int] | None = None
        self._wrapped: dict[str, nn.Module] = {}
        self._base_parameters = dict(model.named_parameters())
        self._required_grad = {name: p.requires_grad for name, p in self._base_parameters.items()}
        for parameter in self._base_parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        try:
            dropouts = base_dropouts(model) if base_dropout else {}
            dropping = [placement.target.module for slot in slots if slot.dropout for placement in slot.placements]
            if dropouts or dropping:
                self.context.decoder_fed = decoder_fed(model, [*dropouts, *dropping])
            self._wrap_targets()
            bias_specs = self._wrap_biases()
            head_specs = self._wrap_heads(initial_head)
            for name, module in dropouts.items():
                self._wrapped[name] = module
                self.model.set_submodule(name, StackedDropout(module, name, self.context))
            first = next(iter(self._base_parameters.values()))
            dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
            specs = [*self._adapter_specs(), *bias_specs, *head_specs]
            self.parameters = SlotParameters(specs, self.num_slots, dtype, first.device)
            self._bind()
        except BaseException:
            self.detach()
            raise

    @property
    def num_slots(self) -> int:
        """N."""
        return len(self.slots)

    def keep(self, names: Iterable[str]) -> None:
        """Drop every slot whose name is not among ``names``; the others go on as if it had never been there."""
        wanted = set(names)
        indices = [index for index, slot in enumerate(self.slots) if slot.name in wanted]
        self.slots = [self.slots[index] for index in indices]
        self._inactive = [self._inactive[index] for index in indices]
        self.context.seeds = [slot.seed for slot in self.slots]
        self.context.dropout = None
        self.parameters.keep(indices)
        self._bind()

    def set_active(self, index: int, keys: Iterable[str]) -> None:
        """Let a slot compute with its adapters at these targets alone (``Target.key``), as if it had no others.

        Nothing is rebuilt, so that it may change between any two passes. What is switched off has no gradient and keeps its
        values, but for what the optimiser's momentum and weight decay do to them. Biases and heads are not touched.
        """
        wanted = set(keys)
        slot = self.slots[index]
        self._inactive[index] = frozenset(one.target.key for one in slot.placements if one.target.key not in wanted)
        for placement in slot.placements:
            key = placement.target.key
            self._layer(placement.target.module).set_scaling(key, index, placement.scaling if key in wanted else 0.0)

    @contextmanager
    def running(self, indices: Sequence[int]) -> Iterator[None]:
        """While it lasts, the model runs these slots alone, in this order; nothing trains, and nothing is read or written.

        The others cost nothing meanwhile, and hold what they held.
        """
        assert self._rows is None, "one selection at a time"
        slots, inactive, seeds = self.slots, self._inactive, self.context.seeds
        self.slots = [slots[index] for index in indices]
        self._inactive = [inactive[index] for index in indices]
        self.context.seeds = [seeds[index] for index in indices]
        self._rows = list(indices)
        self._bind()
        try:
            yield
        finally:
            self.slots, self._inactive, self.context.seeds, self._rows = slots, inactive, seeds, None
            self._bind()

    def detach(self) -> None:
        """Put the original modules and their ``requires_grad`` back."""
        for name, original in self._wrapped.items():
            self.model.set_submodule(name, original)
        self._wrapped.clear()
        for name, parameter in self._base_parameters.items():
            parameter.requires_grad_(self._required_grad[name])

    def base_gradients(self) -> int:
        """Base parameters (heads' originals included) that take or hold a gradient; 0 unless something is wrong."""
        return sum(p.requires_grad or p.grad is not None for p in self._base_parameters.values())

    def read(self, index: int) -> AdapterWeights:
        """A copy of a slot's trained numbers, ``lora_A`` as ``[r, D]`` and ``lora_B`` as ``[O, r]``."""
        slot = self.slots[index]
        lora_A, lora_B = {}, {}
        for placement in slot.placements:
            key = placement.target.key
            lora_A[key] = self.parameters.value(f"{key}.lora_A", index)[: placement.r].contiguous()
            lora_B[key] = self.parameters.value(f"{key}.lora_B", index)[:, : placement.r].contiguous()
        trained = trained_biases(self._base_parameters, slot, self.heads)
        biases = {name: self.parameters.value(name, index) for name in trained}
        heads = {name: self.parameters.value(name, index) for name in self._head_names}
        return AdapterWeights(slot.placements, lora_A, lora_B, biases, heads)

    def write(self, index: int, weights: AdapterWeights) -> None:
        """Overwrite a slot's numbers; ``weights`` must have the slot's placements."""
        for placement in weights.placements:
            key = placement.target.key
            for kind, value in (("lora_A", weights.lora_A[key]), ("lora_B", weights.lora_B[key])):
                padded = torch.zeros_like(self.parameters.value(f"{key}.{kind}", index))
                padded[: value.shape[0], : value.shape[1]] = value
                self.parameters.set_value(f"{key}.{kind}", index, padded)
        for name, value in {**weights.biases, **weights.heads}.items():
            self.parameters.set_value(name, index, value)

    def _wrap(self, name: str) -> StackedLinear | StackedLayerNorm:
        module = self.model.get_submodule(name)
        if isinstance(module, StackedLinear | StackedLayerNorm):
            return module
        if isinstance(module, LinearLayer):
            wrapped: StackedLinear | StackedLayerNorm = StackedLinear(module, name, self.context)
        elif isinstance(module, nn.LayerNorm):
            wrapped = StackedLayerNorm(module, name, self.context)
        else:
            raise ModelError(
                f"{name!r} ({type(module).__name__}) would have to be trained, and only linear layers and layer norms can be",
                where="base.model",
                fix="use bias: none, or a checkpoint that holds its weights",
            )
        wrapped.train(module.training)
        self._wrapped[name] = module
        self.model.set_submodule(name, wrapped)
        return wrapped

    def _wrap_targets(self) -> None:
        targets: dict[str, Target] = {}
        for slot in self.slots:
            for placement in slot.placements:
                targets.setdefault(placement.target.key, placement.target)
        self._targets = targets
        for target in targets.values():
            if not isinstance(self._wrap(target.module), StackedLinear):
                raise ModelError(f"{target.module!r} is no linear layer", where="adapter.targets")

    def _wrap_biases(self) -> list[ParameterSpec]:
        wanted = [trained_biases(self._base_parameters, slot, self.heads) for slot in self.slots]
        names = dict.fromkeys(name for biases in wanted for name in biases)
        self._bias_names = list(names)
        for name in names:
            self._wrap(name.removesuffix(".bias"))
        return [
            ParameterSpec(
                name,
                tuple(self._base_parameters[name].shape),
                [self._base_parameters[name].detach()] * self.num_slots,
                tuple(name in biases for biases in wanted),
                decays=False,
            )
            for name in names
        ]

    def _wrap_heads(self, initial_head: InitialHead | None) -> list[ParameterSpec]:
        self._head_names = list(head_parameters(self._base_parameters, self.heads))
        owners = dict.fromkeys(name.rpartition(".")[0] for name in self._head_names)
        specs = []
        for owner in owners:
            wrapped = self._wrap(owner)
            own = {name.rpartition(".")[2] for name in self._head_names if name.rpartition(".")[0] == owner}
            initial = [
                {name: self._base_parameters[f"{owner}.{name}"].detach() for name in own}
                if initial_head is None
                else initial_head(owner, slot.seed)
                for slot in self.slots
            ]
            for name in sorted(own, reverse=True):
                specs.append(
                    ParameterSpec(
                        f"{owner}.{name}",
                        tuple(self._base_parameters[f"{owner}.{name}"].shape),
                        [values[name] for values in initial],
                        (True,) * self.num_slots,
                        decays=name == "weight" and isinstance(wrapped, StackedLinear),
                    )
                )
        return specs

    def _adapter_specs(self) -> list[ParameterSpec]:
        specs = []
        for key, target in self._targets.items():
            features_in, features_out = features(self._wrapped[target.module])
            placements = [_placement(slot, key) for slot in self.slots]
            rank = max(placement.r for placement in placements if placement is not None)
            initial = [
                _padded_lora_A(placement, slot.seed, rank, features_in)
                for slot, placement in zip(self.slots, placements, strict=True)
            ]
            trained = tuple(placement is not None for placement in placements)
            width = _width(target, features_out)
            specs.append(ParameterSpec(f"{key}.lora_A", (rank, features_in), initial, trained, decays=True))
            specs.append(ParameterSpec(f"{key}.lora_B", (width, rank), None, trained, decays=True))
        return specs

    def _bind(self) -> None:
        """Hand the layers the leaves that they compute with, and each slot's scaling and dropout."""
        values = self.parameters.values_NP
        for key, target in self._targets.items():
            layer = self._layer(target.module)
            placements = [_placement(slot, key) for slot in self.slots]
            scaling = [
                0.0 if placement is None or key in inactive else placement.scaling
                for placement, inactive in zip(placements, self._inactive, strict=True)
            ]
            start, stop = target.part or (0, features(layer.frozen)[1])
            part = Part(
                start,
                stop,
                torch.tensor(scaling, dtype=values.dtype, device=values.device),
                self._leaf(f"{key}.lora_A"),
                self._leaf(f"{key}.lora_B"),
            )
            layer.set_part(key, part)
            layer.dropouts = [slot.dropout for slot in self.slots]
        for name in [*self._bias_names, *self._head_names]:
            owner, _, kind = name.rpartition(".")
            setattr(self.model.get_submodule(owner), f"trained_{kind}", self._leaf(name))

    def _leaf(self, name: str) -> Tensor:
        leaf = self.parameters[name]
        return leaf if self._rows is None else leaf.detach()[self._rows]

    def _layer(self, module: str) -> StackedLinear:
        layer = self.model.get_submodule(module)
        assert isinstance(layer, StackedLinear)
        return layer


def _is_inside(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _placement(slot: Slot, key: str) -> Placement | None:
    return next((placement for placement in slot.placements if placement.target.key == key), None)


def _width(target: Target, features_out: int) -> int:
    return features_out if target.part is None else target.part[1] - target.part[0]


def _padded_lora_A(placement: Placement | None, seed: int, rank: int, features_in: int) -> Tensor:
    lora_A_RD = torch.zeros(rank, features_in, dtype=torch.float64)
    if placement is not None:
        lora_A_RD[: placement.r] = streams.kaiming_uniform((placement.r, features_in), seed, placement.target.key)
    return lora_A_RD
