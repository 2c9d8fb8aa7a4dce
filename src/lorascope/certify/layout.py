"""Where a checkpoint's tensors go in a model: under which name, tied to what, cut or joined on the way, or nowhere.

Names are those that transformers' own loader gives them. Knows names, shapes of models and the tensors that checkpoints list.
Does not know what should be in them (``tensors``). Floor: ``certify``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorascope.certify.checkpoint import Checkpoint
from lorascope.lora.checkpoint_names import loader_names
from lorascope.lora.stored_tensors import StoredTensor


@dataclass(frozen=True)
class Layout:
    """What a model calls its tensors.

    Attributes:
        shapes: of parameters and persistent buffers by name, both of a tied pair included.
        loaded_as: a file's name to the model's, and what is made of it where the loader cuts or joins tensors.
        prefix: of the body within a model with a head; files may or may not carry it.
        tied: by name, the name whose tensor it shares.
        transposed: modules whose weight is stored as ``[D, O]``.
        optional: expressions for names that transformers computes where a file lacks them.
        ignored: expressions for names in files that loaders pass over: buffers that earlier versions saved.
        in_float32: expressions for modules that transformers keeps in float32 whatever is asked for (a T5's ``wo``).
    """

    shapes: Mapping[str, tuple[int, ...]]
    loaded_as: Callable[[str], tuple[str, tuple[str, ...]]]
    prefix: str
    tied: Mapping[str, str]
    transposed: frozenset[str]
    optional: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    in_float32: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: PreTrainedModel) -> Layout:
        """The layout of a model, which may be on the meta device."""
        kinds = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        # Once buffers that were saved: a loader of today passes over them where the model still has them.
        former = ("rotary_emb.inv_freq", "position_ids")
        buffers = [name for name, _ in model.named_buffers()]
        ignored = [rf"(^|\.){re.escape(end)}$" for end in former if any(name.endswith(end) for name in buffers)]
        return cls(
            shapes={name: tuple(value.shape) for name, value in model.state_dict().items()},
            loaded_as=loader_names(model),
            prefix=model.base_model_prefix,
            tied=dict(getattr(model, "all_tied_weights_keys", None) or {}),
            transposed=frozenset(name for name, module in model.named_modules() if isinstance(module, Conv1D)),
            optional=tuple(getattr(model, "_keys_to_ignore_on_load_missing", None) or ()),
            ignored=(*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), *ignored),
            in_float32=tuple(pattern for kind in kinds for pattern in getattr(model, kind, None) or ()),
        )

    def name_of(self, key: str) -> str | None:
        """The model's name for a tensor of a file; None where it has none, or others are made of it."""
        name, made = self.loaded_as(key)
        return name if not made and name in self.shapes else None

    def partners(self, name: str) -> list[str]:
        """The other names of what may be the same tensor."""
        source = self.tied.get(name, name)
        return [other for other in (source, *self.tied) if other != name and self.tied.get(other, other) == source]

    def ignores(self, key: str) -> bool:
        """Whether loaders pass over a tensor of this name without a word."""
        return any(re.search(pattern, key) for pattern in self.ignored)

    def keeps_float32(self, name: str) -> bool:
        """Whether transformers keeps this tensor in float32."""
        return any(re.search(rf"(^|\.){pattern}(\.|$)", name) for pattern in self.in_float32)


@dataclass(frozen=True)
class Placed:
    """A checkpoint's tensors under the model's names.

    Attributes:
        held: what the files hold.
        converted: what the loader cuts or joins, by the file's name without the body's prefix.
        shared: what they do not, and another name has for it.
        absent: what neither has: a loader initialises it anew, in silence.
        unused: keys that have no place in the model.
    """

    held: dict[str, StoredTensor]
    converted: dict[str, StoredTensor]
    shared: dict[str, str]
    absent: tuple[str, ...]
    unused: tuple[str, ...]

    def get(self, name: str) -> StoredTensor | None:
        """The tensor that a loader puts in this place."""
        return self.held.get(self.shared.get(name, name))


def place(layout: Layout, checkpoint: Checkpoint) -> Placed:
    """Sort a checkpoint's tensors by the model's names, tied ones as transformers ties them."""
    held: dict[str, StoredTensor] = {}
    converted: dict[str, StoredTensor] = {}
    keys: dict[str, str] = {}
    made: set[str] = set()
    unused = []
    for key, tensor in checkpoint.tensors.items():
        name, parts = layout.loaded_as(key)
        if parts and name in layout.shapes:
            converted[key.removeprefix(f"{layout.prefix}.")] = tensor
            made.update(parts)
        elif parts or name not in layout.shapes or (name in held and name != key):
            unused.append(key)
        else:
            if name in held:
                unused.append(keys[name])
            held[name], keys[name] = tensor, key
    shared, absent = {}, []
    for name in sorted(layout.shapes.keys() - held.keys()):
        partner = next((other for other in layout.partners(name) if other in held), None)
        if partner is not None:
            shared[name] = partner
        elif name not in made and not any(re.search(pattern, name) for pattern in layout.optional):
            absent.append(name)
    return Placed(held, converted, shared, tuple(absent), tuple(sorted(unused)))


def base_weights_checksum(layout: Layout, base: Checkpoint, heads: Sequence[str], dtype: torch.dtype) -> str | None:
    """What ``base_model.weights_checksum`` gives for this base once it is loaded in ``dtype``, without loading it.

    Returns:
        None where the loader cuts or joins tensors, whose bytes the files do not hold as the model does.
    """
    placed = place(layout, base)
    if placed.converted:
        return None
    outside = tuple(f"{head}." for head in (*heads, *(name.rpartition(".")[0] for name in placed.absent)))
    digest = hashlib.sha256()
    for name in sorted(layout.shapes):
        tensor = placed.get(name)
        if tensor is None or name.startswith(outside):
            continue
        held = dtype if tensor.dtype.is_floating_point else tensor.dtype
        digest.update(f"{name} {held} {tensor.shape}".encode())
        for rows in tensor.chunks():
            value = tensor.read(*rows).to(held).contiguous()
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
