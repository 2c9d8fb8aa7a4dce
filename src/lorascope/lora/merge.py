"""An adapter added to its base's weights: in memory into a copy, or from file to file without ever holding the model.

Before: a checkpoint with ``W`` for every module, and an adapter with ``A``, ``B`` and trained heads and biases.
After: a checkpoint of the same form with ``W′ = W + scaling · B A`` where the adapter has an update, the adapter's own numbers
for heads and biases, and everything else as it was. Sums are made in float64 and rounded once, to the dtype of the file.

Knows adapters off the model, tensors and files. Does not know where bases come from, configurations or tokenizers
(``merged_model``), and does not judge what it wrote (``certify``). Floor: ``lora``.

Source: Hu et al. 2021 (LoRA), section 4.1.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorascope.amounts import bytes_text
from lorascope.errors import CheckFailed, ModelError, StoreError
from lorascope.lora.checkpoint_files import PlannedTensor, open_checkpoint, write_checkpoint
from lorascope.lora.checkpoint_names import tied_groups
from lorascope.lora.merge_plan import (
    ALWAYS_TIED,
    MergeDtype,
    MergePlan,
    PlannedMerge,
    Update,
    breaks_tie,
    module_updates,
    plan_merge,
    replacements,
    without_copies,
)
from lorascope.lora.peft_io import SavedAdapter
from lorascope.lora.quantised import NF4Linear
from lorascope.lora.stored_tensors import row_ranges


def updates(saved: SavedAdapter, model: nn.Module, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
    """Each module and its ``ΔW = scaling · B A``, one by one, oriented as the base's layer is: ``[D, O]`` of a ``Conv1D``.

    Args:
        model: the base, meta device or not.
        dtype: of the product and of the result; float32 or float64.

    Raises:
        AdapterError: the adapter does not fit the model.
    """
    for module, update in module_updates(saved, model).items():
        yield module, update.full(dtype)


def merged_copy(model: PreTrainedModel, saved: SavedAdapter, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A copy of the model with the adapter in its weights; the model itself keeps every bit.

    As ``merge_into``, which see.
    """
    return merge_into(copy.deepcopy(model), saved, dtype)


def merge_into(
    model: PreTrainedModel,
    saved: SavedAdapter,
    dtype: torch.dtype | None = None,
    rounded_to: Mapping[str, torch.dtype] | None = None,
) -> PreTrainedModel:
    """Add the adapter to a model that was loaded for it: no second model is made, and this one is a base no longer.

    Args:
        model: the base without any adapter on it, not packed in 4 bits.
        dtype: of the merged model; by default each parameter keeps its own.
        rounded_to: by a changed parameter's name the dtype that its sum is rounded to before, where that is not ``dtype``:
            what the files of a base in several dtypes hold.

    Returns:
        The model, in evaluation mode, frozen. A tie that the adapter breaks is broken in it and in its ``config``.

    Raises:
        AdapterError: the adapter does not fit the model.
        ModelError: the model is packed in 4 bits.
        CheckFailed: a number overflows ``dtype``, or the base holds NaN.
    """
    packed = next((name for name, module in model.named_modules() if isinstance(module, NF4Linear)), None)
    if packed is not None:
        fix = "load it without quantization; an adapter trained on 4 bits merges into the base in full"
        raise ModelError("a layer in 4 bits cannot take an update", where=packed, fix=fix)
    before = dict(model.named_parameters(remove_duplicate=False))
    changes, replaced = module_updates(saved, model), replacements(saved)
    replaced = without_copies(replaced, lambda name, value: torch.equal(before[name].to("cpu", value.dtype), value.cpu()))
    broken = [group for group in tied_groups(model) if breaks_tie(group, changes, replaced)]
    for name in dict.fromkeys([*replaced, *(f"{module}.weight" for module in changes)]):
        own = before.pop(name)
        old = replaced.get(name, own).detach().cpu()
        update = changes.get(name.removesuffix(".weight"))
        into = dtype or own.dtype
        new = _sum(old, update, (rounded_to or {}).get(name, into)).to(into)
        _check_finite(name, old, new)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(new.to(own.device), requires_grad=False))
    if dtype is not None:
        _cast(model, before, dtype)
    if broken and model.config.model_type not in ALWAYS_TIED:
        model.config.tie_word_embeddings = False
    gone = {name for group in broken for name in group}
    model.all_tied_weights_keys = {
        target: source for target, source in model.all_tied_weights_keys.items() if target not in gone
    }
    model.eval().requires_grad_(False)
    return model


def _sum(old: Tensor, update: Update | None, dtype: torch.dtype) -> Tensor:
    """``W + ΔW``, rounded once; in the runs of rows in which files are written, so that both give the same bits."""
    if update is None:
        return old.to(dtype)
    runs = [(old[start:stop].double() + update.rows(start, stop)).to(dtype) for start, stop in row_ranges(old.shape)]
    return torch.cat(runs)


def _cast(model: nn.Module, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
    """What a checkpoint in ``dtype`` would give; buffers that are not in it (rotary frequencies) stay in float32."""
    saved = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved and buffer.is_floating_point()}
    for name, tensor in {**parameters, **buffers}.items():
        cast = tensor.detach().to(dtype)
        _check_finite(name, tensor, cast)
        tensor.data = cast


def merge_files(
    saved: SavedAdapter,
    base: Path,
    model: PreTrainedModel,
    directory: Path,
    *,
    dtype: MergeDtype = "as-base",
    max_shard_bytes: int = 5_000_000_000,
) -> MergePlan:
    """Write the merged weights, a few rows at a time.

    Args:
        base: the directory of the base's weights: one file or shards.
        model: of the class that the merged directory is for, on the meta device.
        directory: exists and holds no weights; what fails leaves unfinished files in it, for its owner to remove.
        dtype: of every floating-point tensor; ``as-base`` keeps each one's own.
        max_shard_bytes: where a file ends and the next begins.

    Returns:
        What was written.

    Raises:
        AdapterError, ModelError: as ``plan_merge``; or the base is damaged.
        CheckFailed: a merged number is not finite: it overflows ``dtype``, or the base holds NaN.
        StoreError: the disk has no room for it.
    """
    plan = plan_merge(saved, open_checkpoint(base), model, dtype)
    tensors = {one.written: PlannedTensor(one.dtype, one.shape, partial(_chunks, one)) for one in plan.tensors}
    assert len(tensors) == len(plan.tensors), "two tensors under one name"
    _check_space(directory, plan.num_bytes)
    write_checkpoint(directory, tensors, max_shard_bytes)
    return plan


def _check_space(directory: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if num_bytes > free:
        what = f"the merged model takes {bytes_text(num_bytes)}, and {bytes_text(free)} are free"
        raise StoreError(what, where=str(directory.parent), fix="free some space, or choose another place")


def _chunks(planned: PlannedMerge) -> Iterator[Tensor]:
    for start, stop in row_ranges(planned.shape):
        rows = planned.after(start, stop)
        if planned.parameter and not _all_finite(rows):
            _check_finite(planned.name, planned.before(start, stop), rows)
        yield rows


def _check_finite(name: str, before: Tensor, after: Tensor) -> None:
    """Raise unless ``after`` is finite; says whose fault it is."""
    if _all_finite(after):
        return
    if not _all_finite(before):
        raise CheckFailed("the base holds NaN or infinite numbers", where=name, fix="use another checkpoint")
    count, dtype = int((~torch.isfinite(after)).sum()), str(after.dtype).removeprefix("torch.")
    fix = "merge with --dtype bfloat16 or float32" if after.dtype == torch.float16 else "check the adapter's numbers"
    raise CheckFailed(f"{count} merged numbers overflow {dtype}", where=name, fix=fix)


def _all_finite(tensor: Tensor) -> bool:
    # torch has no isfinite for floats of 8 bits.
    return not tensor.is_floating_point() or tensor.dtype.itemsize == 1 or bool(torch.isfinite(tensor).all())
