"""From the names that users write to the modules that a model has.

Knows which module plays which role in each model family, where a fused projection is cut, PEFT's rule for raw names and
suffixes, and which layer a module belongs to. Does not know ranks, weights or training; a model on the meta device is enough.
Floor: ``lora``.

    >>> resolve(gpt2, ["query", "mlp.c_proj", "value.L0-3"], heads=())
    (Target('transformer.h.0.attn.c_attn', part=(0, 768), role='query'), …, Target('transformer.h.0.mlp.c_proj'), …)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorascope.config import ALL_LINEAR, split_layers
from lorascope.errors import ModelError, did_you_mean
from lorascope.lora.linear import linear_modules

ROLES = (
    "query", "key", "value", "output", "cross_query", "cross_key", "cross_value", "cross_output", "gate", "up", "down",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A place for an adapter: a module, or the outputs ``[start, stop)`` of a fused one.

    Attributes:
        module: the module's full name.
        part: the slice of its outputs; None for all of them.
        role: the role by which it was found; None for a raw name.
    """

    module: str
    part: tuple[int, int] | None = None
    role: str | None = None

    @property
    def key(self) -> str:
        """A name for the place, the same however it was found."""
        return self.module if self.part is None else f"{self.module}[{self.part[0]}:{self.part[1]}]"


@dataclass(frozen=True)
class Fused:
    """One role's share of a fused projection: the module's pattern and, from the model's config, where the slice lies."""

    pattern: str
    slice_of: Callable[[Any], tuple[int, int]]


def _third(index: int) -> Callable[[Any], tuple[int, int]]:
    return lambda config: (index * config.hidden_size, (index + 1) * config.hidden_size)


def _phi3_heads(config: Any) -> tuple[int, int]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim


def _phi3_query(config: Any) -> tuple[int, int]:
    return 0, _phi3_heads(config)[0]


def _phi3_key(config: Any) -> tuple[int, int]:
    query, key_value = _phi3_heads(config)
    return query, query + key_value


def _phi3_value(config: Any) -> tuple[int, int]:
    query, key_value = _phi3_heads(config)
    return query + key_value, query + 2 * key_value


_BERT: dict[str, str | Fused] = {
    "query": r"attention\.self\.query",
    "key": r"attention\.self\.key",
    "value": r"attention\.self\.value",
    "output": r"attention\.output\.dense",
    "up": r"layer\.\d+\.intermediate\.dense",
    "down": r"layer\.\d+\.output\.dense",
}
_LLAMA: dict[str, str | Fused] = {
    "query": r"self_attn\.q_proj",
    "key": r"self_attn\.k_proj",
    "value": r"self_attn\.v_proj",
    "output": r"self_attn\.o_proj",
    "gate": r"mlp\.gate_proj",
    "up": r"mlp\.up_proj",
    "down": r"mlp\.down_proj",
}
# In a decoder too, `query` … `output` are self-attention's. A plain feed-forward layer has `wi`, a gated one (v1.1) has two.
_T5: dict[str, str | Fused] = {
    "query": r"SelfAttention\.q",
    "key": r"SelfAttention\.k",
    "value": r"SelfAttention\.v",
    "output": r"SelfAttention\.o",
    "cross_query": r"EncDecAttention\.q",
    "cross_key": r"EncDecAttention\.k",
    "cross_value": r"EncDecAttention\.v",
    "cross_output": r"EncDecAttention\.o",
    "gate": r"DenseReluDense\.wi_0",
    "up": r"DenseReluDense\.wi(_1)?",
    "down": r"DenseReluDense\.wo",
}
_BART: dict[str, str | Fused] = {
    "query": r"self_attn\.q_proj",
    "key": r"self_attn\.k_proj",
    "value": r"self_attn\.v_proj",
    "output": r"self_attn\.out_proj",
    "cross_query": r"encoder_attn\.q_proj",
    "cross_key": r"encoder_attn\.k_proj",
    "cross_value": r"encoder_attn\.v_proj",
    "cross_output": r"encoder_attn\.out_proj",
    "up": r"fc1",
    "down": r"fc2",
}
# Regular expressions for the end of a module's full name, by `model_type` and role.
FAMILIES: dict[str, dict[str, str | Fused]] = {
    "gpt2": {
        "query": Fused(r"attn\.c_attn", _third(0)),
        "key": Fused(r"attn\.c_attn", _third(1)),
        "value": Fused(r"attn\.c_attn", _third(2)),
        "output": r"attn\.c_proj",
        "up": r"mlp\.c_fc",
        "down": r"mlp\.c_proj",
    },
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "distilbert": {
        "query": r"attention\.q_lin",
        "key": r"attention\.k_lin",
        "value": r"attention\.v_lin",
        "output": r"attention\.out_lin",
        "up": r"ffn\.lin1",
        "down": r"ffn\.lin2",
    },
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "t5": _T5,
    "mt5": _T5,
    "bart": _BART,
    "phi3": {
        "query": Fused(r"self_attn\.qkv_proj", _phi3_query),
        "key": Fused(r"self_attn\.qkv_proj", _phi3_key),
        "value": Fused(r"self_attn\.qkv_proj", _phi3_value),
        "output": r"self_attn\.o_proj",
        "gate": Fused(r"mlp\.gate_up_proj", lambda config: (0, config.intermediate_size)),
        "up": Fused(r"mlp\.gate_up_proj", lambda config: (config.intermediate_size, 2 * config.intermediate_size)),
        "down": r"mlp\.down_proj",
    },
}


def resolve(model: nn.Module, targets: Sequence[str] | str, heads: Iterable[str]) -> tuple[Target, ...]:
    """The places that ``targets`` name, in the order in which the model holds them.

    Args:
        model: a transformers model; the meta device will do.
        targets: roles, full module names, PEFT-style suffixes, or ``"all-linear"``: every role projection of the attention
            and MLP blocks, never a pooler or a head. Each may end in a run of layers, counted from 0: ``query.L0-3`` are the
            queries of the first four, ``value.L5`` is the value projection of the sixth.
        heads: names of modules that are trained whole; nothing inside them can be a target.

    Raises:
        ModelError: a name that matches nothing (the message lists what the model has), an output head, or two names that
            put two adapters on the same outputs.
    """
    linear = linear_modules(model, tuple(heads))
    found: dict[str, Target] = {}
    for name in [targets] if isinstance(targets, str) else targets:
        for target in _resolve_one(model, name, linear):
            found.setdefault(target.key, target)
    order = {module: index for index, module in enumerate(linear)}
    resolved = sorted(found.values(), key=lambda target: (order[target.module], target.part or (-1, -1)))
    whole = {target.module for target in resolved if target.part is None}
    for target in resolved:
        if target.part is not None and target.module in whole:
            raise ModelError(
                f"{target.module!r} is targeted whole and as its {target.role} slice",
                where="adapter.targets",
                fix="keep one of the two",
            )
    return tuple(resolved)


def layer_of(module: str) -> int | None:
    """The number of the layer that a module belongs to, the first number in its name; None outside the layers."""
    number = re.search(r"(?:^|\.)(\d+)\.", module)
    return None if number is None else int(number[1])


def roles_of(model: nn.Module) -> tuple[str, ...]:
    """The roles that the model has; empty for a family that is not in the table."""
    return tuple(_family(model, linear_modules(model, ())))


def _family(model: nn.Module, linear: dict[str, nn.Module]) -> dict[str, str | Fused]:
    """The family's roles, less those of another variant: only a gated T5 has a gate, only a decoder cross-attention."""
    family = FAMILIES.get(_model_type(model), {})
    return {role: place for role, place in family.items() if _modules_of(place, linear)}


def _modules_of(place: str | Fused, linear: dict[str, nn.Module]) -> list[str]:
    pattern = place if isinstance(place, str) else place.pattern
    return [module for module in linear if re.search(rf"(^|\.){pattern}$", module)]


def _resolve_one(model: nn.Module, name: str, linear: dict[str, nn.Module]) -> list[Target]:
    whole, layers = split_layers(name)
    if layers is not None:
        found = [(target, layer_of(target.module)) for target in _resolve_one(model, whole, linear)]
        inside = [target for target, layer in found if layer is not None and layers[0] <= layer <= layers[1]]
        if not inside:
            there = sorted({layer for _, layer in found if layer is not None})
            fix = f"{whole!r} has layers {there[0]} to {there[-1]}" if there else f"{whole!r} is in no numbered layer"
            raise ModelError(f"no layer matches the target {name!r}", where="adapter.targets", fix=fix)
        return inside
    family = _family(model, linear)
    if name == ALL_LINEAR:
        if family:
            return [target for role in family for target in _resolve_role(model, role, family[role], linear)]
        return [Target(module) for module in linear if re.search(r"\.\d+\.", module)]
    if name in family:
        return _resolve_role(model, name, family[name], linear)
    matches = [module for module in linear if module == name or module.endswith(f".{name}")]
    if matches:
        return [Target(module) for module in matches]
    raise _unknown_target(model, name, linear)


def _resolve_role(model: nn.Module, role: str, place: str | Fused, linear: dict[str, nn.Module]) -> list[Target]:
    part = None if isinstance(place, str) else place.slice_of(model.config)
    return [Target(module, part, role) for module in _modules_of(place, linear)]


def _unknown_target(model: nn.Module, name: str, linear: dict[str, nn.Module]) -> ModelError:
    roles = list(roles_of(model))
    suffixes = sorted({re.sub(r"^.*\.\d+\.", "", module) for module in linear})
    close = did_you_mean(name, [*roles, *suffixes])
    hint = f"{close}; " if close.startswith("did") else ""
    role_list = f"roles: {', '.join(roles)}" if roles else f"model type {_model_type(model)!r} has no roles"
    return ModelError(
        f"the model has no target {name!r}",
        where="adapter.targets",
        fix=f"{hint}{role_list}; modules: {', '.join(suffixes)}; or all-linear",
    )


def _model_type(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", ""))
