"""What a merged checkpoint will be made of: for every tensor its source in the base, and what the adapter does to it.

Tied parameters (a language model's head is its embedding) stay tied unless the adapter changes one name and not the other:
then each is written with its own numbers, and ``MergePlan.untied`` says so.

Knows names, shapes and factors. Does not write (``merge``). Floor: ``lora``.

Legend: D in, O out, R rank. A layer's own weight is ``[O, D]``, of a ``Conv1D`` ``[D, O]``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorascope.errors import AdapterError, ModelError
from lorascope.lora.checkpoint_names import NameMap, map_names, required_names, sources, tied_groups, written_name
from lorascope.lora.linear import is_transposed
from lorascope.lora.peft_io import SavedAdapter, check_fits
from lorascope.lora.stored_tensors import StoredTensor, shape_of_rows

MergeDtype = Literal["float32", "bfloat16", "float16", "as-base"]
MERGE_DTYPES: tuple[str, ...] = get_args(MergeDtype)
# Families that declare themselves tied whatever their file says, and read off the same key whether to scale their logits.
ALWAYS_TIED = ("t5", "mt5", "umt5")


@dataclass(frozen=True)
class Update:
    """One module's ``scaling · B A``, kept as its factors.

    Attributes:
        transposed: the layer's weight is ``[D, O]``.
    """

    module: str
    lora_A_RD: Tensor
    lora_B_OR: Tensor
    scaling: float
    transposed: bool

    def rows(self, start: int, stop: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Rows of the update in the layer's own orientation, computed and returned in ``dtype``."""
        left, right = (self.lora_A_RD.T, self.lora_B_OR.T) if self.transposed else (self.lora_B_OR, self.lora_A_RD)
        return self.scaling * (left[start:stop].to(dtype) @ right.to(dtype))

    def full(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The whole update in the layer's own orientation."""
        return self.rows(0, self.lora_A_RD.shape[1] if self.transposed else self.lora_B_OR.shape[0], dtype)


@dataclass(frozen=True)
class PlannedMerge:
    """One tensor of the merged checkpoint: what it is made of.

    Attributes:
        name: the model's name of it; of a tensor that the loader cuts or joins, the checkpoint's.
        written: its name in the merged files.
        source_key, source: the base's tensor; None where the adapter alone has it.
        replacement: the adapter's own numbers, which stand in for the base's.
        update: what is added.
        dtype: in which it is written.
        parameter: whether the model has it as a parameter, which must be finite.
    """

    name: str
    written: str
    source_key: str | None
    source: StoredTensor | None
    replacement: Tensor | None
    update: Update | None
    dtype: torch.dtype
    parameter: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the base's tensor and the merged one."""
        if self.replacement is not None:
            return tuple(self.replacement.shape)
        assert self.source is not None
        return self.source.shape

    def before(self, start: int, stop: int) -> Tensor:
        """Rows of the tensor that the update is added to."""
        if self.replacement is not None:
            return self.replacement.reshape(shape_of_rows(self.shape))[start:stop]
        assert self.source is not None
        return self.source.read(start, stop)

    def after(self, start: int, stop: int) -> Tensor:
        """Rows of the merged tensor in its dtype."""
        rows = self.before(start, stop)
        if self.update is not None:
            rows = rows.double() + self.update.rows(start, stop)
        return rows.to(self.dtype)


@dataclass(frozen=True)
class MergePlan:
    """Every tensor of the merged checkpoint, in the order of the base's.

    Attributes:
        dtype: that ``config.json`` must name: the one asked for, or that of most of the base's numbers.
        untied: names that shared one parameter in the base and no longer do; empty where ties stay as they were.
        tie_word_embeddings: what ``config.json`` must say; None where it may stay as it is.
        unused: tensors of the base's checkpoint that the model has no place for; they are not written.
    """

    tensors: tuple[PlannedMerge, ...]
    dtype: torch.dtype
    untied: tuple[str, ...]
    tie_word_embeddings: bool | None
    unused: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Of all tensors on disk."""
        return sum(math.prod(one.shape) * one.dtype.itemsize for one in self.tensors)


def module_updates(saved: SavedAdapter, model: nn.Module) -> dict[str, Update]:
    """The adapter's updates by module, as factors: rank, alpha, patterns and rsLoRA are in their scaling already.

    Args:
        model: the base, meta device or not; looked at for the kind of its layers.

    Raises:
        AdapterError: the adapter does not fit the model.
    """
    check_fits(saved, model, saved.slot.name)
    weights = saved.weights
    return {
        placement.target.module: Update(
            placement.target.module,
            weights.lora_A[placement.target.key].detach().cpu(),
            weights.lora_B[placement.target.key].detach().cpu(),
            placement.scaling,
            is_transposed(model.get_submodule(placement.target.module)),
        )
        for placement in saved.slot.placements
    }


def replacements(saved: SavedAdapter) -> dict[str, Tensor]:
    """Parameters that the adapter trained whole, heads and biases, by the model's names."""
    return {**saved.weights.biases, **saved.weights.heads}


def without_copies(replaced: Mapping[str, Tensor], is_base_s: Callable[[str, Tensor], bool]) -> dict[str, Tensor]:
    """The replacements less those that are the base's own numbers: PEFT saves embeddings along that nobody trained.

    Were they counted as trained, a tie with the output layer would seem broken.

    Args:
        is_base_s: whether the base has these numbers under the name, in their dtype.
    """
    return {name: value for name, value in replaced.items() if not is_base_s(name, value)}


def plan_merge(
    saved: SavedAdapter, checkpoint: Mapping[str, StoredTensor], model: PreTrainedModel, dtype: MergeDtype = "as-base"
) -> MergePlan:
    """What the merged checkpoint will hold, from names and shapes alone.

    Args:
        checkpoint: the base's tensors (``open_checkpoint``).
        model: of the class that the merged directory is for, on the meta device.
        dtype: of every floating-point tensor; ``as-base`` keeps each one's own.

    Raises:
        AdapterError: the adapter does not fit the model, or neither it nor the base has a parameter that the model needs.
        ModelError: the loader makes a tensor that the adapter changes out of others.
    """
    changes, replaced = module_updates(saved, model), replacements(saved)
    names = map_names(checkpoint, model)
    found = sources(names, model)
    replaced = without_copies(replaced, lambda name, value: name in found and _equal(checkpoint[found[name]], value))
    touched = {*replaced, *(f"{module}.weight" for module in changes)}
    _check_complete(names, model, found, touched, saved)
    _check_shapes(checkpoint, found, model, replaced)
    written, untied, tie = _written(model, names, changes, replaced)
    parameters = set(required_names(model))
    default = _main_dtype(checkpoint)
    planned = []
    for name in _in_order(checkpoint, names, written):
        key = found.get(name, name if name in names.converted else None)
        source = None if key is None else checkpoint[key]
        replacement = replaced.get(name)
        own = default if source is None else source.dtype
        planned.append(
            PlannedMerge(
                name=name,
                written=written_name(names.keys[name], name) if name in names.keys else name,
                source_key=key,
                source=source,
                replacement=None if replacement is None else replacement.detach().cpu(),
                update=changes.get(name.removesuffix(".weight")) if name.endswith(".weight") else None,
                dtype=own if dtype == "as-base" or not own.is_floating_point else getattr(torch, dtype),
                parameter=name in parameters,
            )
        )
    named = default if dtype == "as-base" else getattr(torch, dtype)
    return MergePlan(tuple(planned), named, untied, tie, names.unused)


def _equal(stored: StoredTensor, value: Tensor) -> bool:
    """Whether a checkpoint's tensor, in the dtype of ``value``, is ``value``."""
    if stored.shape != tuple(value.shape):
        return False
    held = value.detach().cpu()
    runs = ((stored.read(*rows), held[slice(*rows)] if held.dim() else held) for rows in stored.chunks())
    return all(torch.equal(own.to(held.dtype), part) for own, part in runs)


def _check_complete(
    names: NameMap, model: PreTrainedModel, found: Mapping[str, str], touched: set[str], saved: SavedAdapter
) -> None:
    """Raise unless every parameter has a source, or is the adapter's own."""
    replaced = replacements(saved)
    ignored = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    for name in required_names(model):
        if name in found:
            continue
        if name in names.made:
            if name in touched:
                what = "the checkpoint stores this tensor in another form than the model computes with"
                fix = "save the base with save_pretrained(…, save_original_format=False), then merge into that"
                raise ModelError(what, where=name, fix=fix)
        elif name not in replaced and not any(re.search(pattern, name) for pattern in ignored):
            raise AdapterError(
                f"the adapter holds no {name!r}, which the base's checkpoint does not have either",
                where=saved.slot.name,
                fix="use the base that it was trained on, or save the adapter with modules_to_save",
            )


def _written(
    model: PreTrainedModel, names: NameMap, changes: Mapping[str, Update], replaced: Mapping[str, Tensor]
) -> tuple[set[str], tuple[str, ...], bool | None]:
    """Which names get a tensor of their own, which were tied and are no longer, and what the configuration must say."""
    touched = {*replaced, *(f"{module}.weight" for module in changes)}
    written = {*names.keys, *names.converted, *touched}
    groups = tied_groups(model)
    broken = [group for group in groups if breaks_tie(group, changes, replaced)]
    for group in groups:
        if group not in broken and touched.intersection(group):
            written -= set(group[1:])
            written.add(group[0])
    if not broken:
        return written, (), None
    if model.config.model_type in ALWAYS_TIED:
        for group in broken:
            written |= set(group) if group[0] in touched else {group[0]}
        return written, tuple(name for group in broken for name in group if name in touched), None
    # The configuration knows one switch for all ties.
    written |= {name for group in groups for name in group}
    return written, tuple(name for group in broken for name in group), False


def breaks_tie(group: list[str], changes: Mapping[str, Update], replaced: Mapping[str, Tensor]) -> bool:
    """Whether names that share a parameter no longer hold the same numbers."""
    if any(name.removesuffix(".weight") in changes for name in group):
        return True
    own = [replaced[name] for name in group if name in replaced]
    return bool(own) and not (len(own) == len(group) and all(torch.equal(value, own[0]) for value in own))


def _check_shapes(
    checkpoint: Mapping[str, StoredTensor], found: Mapping[str, str], model: PreTrainedModel, replaced: Mapping[str, Tensor]
) -> None:
    for name, value in model.state_dict().items():
        stored = checkpoint[found[name]] if name in found else None
        if stored is not None and name not in replaced and stored.shape != tuple(value.shape):
            what = f"the tensor is {list(stored.shape)} in the checkpoint and {list(value.shape)} by config.json"
            fix = "check the base, the number of labels and the size of the vocabulary"
            raise ModelError(what, where=found[name], fix=fix)


def _in_order(checkpoint: Mapping[str, StoredTensor], names: NameMap, written: set[str]) -> list[str]:
    """Names in the order of the base's checkpoint; what it does not have comes last."""
    by_key = {key: name for name, key in names.keys.items()}
    order = [by_key.get(key, key) for key in checkpoint if key in by_key or key in names.converted]
    first = [name for name in order if name in written]
    return [*first, *sorted(written - set(first))]


def _main_dtype(checkpoint: Mapping[str, StoredTensor]) -> torch.dtype:
    """The floating dtype that most of the checkpoint's numbers have."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in checkpoint.values():
        if tensor.dtype.is_floating_point:
            counts[tensor.dtype] += math.prod(tensor.shape)
    return counts.most_common(1)[0][0] if counts else torch.float32
