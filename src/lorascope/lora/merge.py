"""An adapter added to its base's weights: in memory into a copy, or from file to file without ever holding the model.

Before: a checkpoint with ``W`` for every module, and an adapter with ``A``, ``B`` and trained heads and biases.
After: a checkpoint of the same form with ``W′ = W + scaling · B A`` where the adapter has an update, the adapter's own numbers
for heads and biases, and everything else as it was. Sums are made in float64 and rounded once, to the dtype of the file.

Every written number is read back from the disk and compared with what it should be; the figures are the ``MergeRecord``.

Knows adapters off the model, tensors and files. Does not know where bases come from, configurations or tokenizers
(``merged_model``), nor which differences are acceptable (``certify``). Floor: ``lora``.

Source: Hu et al. 2021 (LoRA), section 4.1.
"""

from __future__ import annotations

import copy
import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorascope.errors import CheckFailed, ModelError, StoreError
from lorascope.lora.checkpoint_files import (
    PlannedTensor,
    StoredTensor,
    open_checkpoint,
    raw_bytes,
    row_ranges,
    write_checkpoint,
)
from lorascope.lora.checkpoint_names import tied_groups
from lorascope.lora.merge_plan import (
    ALWAYS_TIED,
    Kind,
    MergeDtype,
    MergePlan,
    PlannedMerge,
    breaks_tie,
    module_updates,
    plan_merge,
    replacements,
)
from lorascope.lora.peft_io import SavedAdapter
from lorascope.lora.quantised import NF4Linear


@dataclass(frozen=True)
class TensorRecord:
    """What became of one tensor, read back from the disk.

    Attributes:
        name, written, kind: as in ``PlannedMerge``.
        module: whose update it holds; None unless ``merged``.
        base_dtype, dtype: of the base's tensor (None where it has none) and of the one on disk.
        update_norm: Frobenius norm of Δ; None unless ``merged``.
        error: ‖W′ − W − Δ‖ / ‖Δ‖; without an update, or where it is zero, ‖W′ − W‖ / ‖W‖. 1 is a merge that did nothing. None
            where a number is not finite.
        finite: whether all numbers on disk are.
        base_sha256, sha256: of the bytes in the base (None where it has none) and on disk.
    """

    name: str
    written: str
    kind: Kind
    module: str | None
    shape: tuple[int, ...]
    base_dtype: str | None
    dtype: str
    update_norm: float | None
    error: float | None
    finite: bool
    base_sha256: str | None
    sha256: str


@dataclass(frozen=True)
class MergeRecord:
    """A merge, tensor by tensor.

    Attributes:
        files: names of the weight files, the index among them.
        num_bytes: of all tensors on disk.
        missing: planned tensors that are not on disk, or there with another shape.
        unexpected: tensors on disk that nobody planned.
        untied, unused: as in ``MergePlan``.
        base_sha256: over the names and checksums of all tensors of the base that went in.
    """

    files: tuple[str, ...]
    num_bytes: int
    tensors: tuple[TensorRecord, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    untied: tuple[str, ...]
    unused: tuple[str, ...]
    base_sha256: str

    @property
    def modules(self) -> dict[str, TensorRecord]:
        """The merged tensors, by the module whose update they hold."""
        return {one.module: one for one in self.tensors if one.module is not None}

    def document(self) -> dict[str, Any]:
        """The record as JSON holds it."""
        return asdict(self)


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

    Args:
        model: the base without any adapter on it, not packed in 4 bits.
        dtype: of the copy; by default each parameter keeps its own.

    Returns:
        The copy, in evaluation mode, frozen, on the model's device. A tie that the adapter breaks is broken in it and in its
        ``config``.

    Raises:
        AdapterError: the adapter does not fit the model.
        ModelError: the model is packed in 4 bits.
        CheckFailed: a number overflows ``dtype``.
    """
    packed = next((name for name, module in model.named_modules() if isinstance(module, NF4Linear)), None)
    if packed is not None:
        fix = "load it without quantization; an adapter trained on 4 bits merges into the base in full"
        raise ModelError("a layer in 4 bits cannot take an update", where=packed, fix=fix)
    changes, replaced = module_updates(saved, model), replacements(saved)
    copied: PreTrainedModel = copy.deepcopy(model).eval().requires_grad_(False)
    if dtype is not None:
        copied = copied.to(dtype)  # type: ignore[arg-type]
        for name, parameter in copied.named_parameters():
            _check_finite(name, model.get_parameter(name), parameter)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    merged: dict[str, Tensor] = {}
    for name in dict.fromkeys([*replaced, *(f"{module}.weight" for module in changes)]):
        before = replaced.get(name, parameters[name]).detach()
        update = changes.get(name.removesuffix(".weight"))
        after = before.cpu() if update is None else before.cpu().double() + update.full(torch.float64)
        after = after.to(dtype or parameters[name].dtype)
        _check_finite(name, before, after)
        merged[name] = after.to(parameters[name].device)
    for name, value in merged.items():
        owner, _, leaf = name.rpartition(".")
        setattr(copied.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    _untie(copied, merged)
    return copied


def merge_files(
    saved: SavedAdapter,
    base: Path,
    model: PreTrainedModel,
    directory: Path,
    *,
    dtype: MergeDtype = "as-base",
    max_shard_bytes: int = 5_000_000_000,
) -> tuple[MergePlan, MergeRecord]:
    """Write the merged weights, a few rows at a time, and read them back.

    Args:
        base: the directory of the base's weights: one file or shards.
        model: of the class that the merged directory is for, on the meta device.
        directory: exists and holds no weights; what fails leaves unfinished files in it, for its owner to remove.
        dtype: of every floating-point tensor.
        max_shard_bytes: where a file ends and the next begins.

    Returns:
        What was planned, and what is on the disk.

    Raises:
        AdapterError, ModelError: as ``plan_merge``; or the base holds NaN or is damaged.
        CheckFailed: a merged number is not finite: it overflows ``dtype``.
        StoreError: the disk has no room for it.
    """
    plan = plan_merge(saved, open_checkpoint(base), model, dtype)
    tensors = {one.written: PlannedTensor(one.dtype, one.shape, lambda one=one: _chunks(one)) for one in plan.tensors}
    assert len(tensors) == len(plan.tensors), "two tensors under one name"
    _check_space(directory, sum(tensor.num_bytes for tensor in tensors.values()))
    files = write_checkpoint(directory, tensors, max_shard_bytes)
    return plan, verify_files(plan, directory, files)


def verify_files(plan: MergePlan, directory: Path, files: tuple[str, ...] = ()) -> MergeRecord:
    """Read a merged checkpoint and its base, a few rows at a time, and compare them; judges nothing.

    Raises:
        ModelError: the files cannot be read.
    """
    found = open_checkpoint(directory)
    planned = {one.written: one for one in plan.tensors}
    missing = [key for key, one in planned.items() if key not in found or found[key].shape != one.shape]
    records = tuple(_record(one, found[key]) for key, one in planned.items() if key not in missing)
    by_key = {planned[record.written].source_key: record.base_sha256 for record in records}
    digest = hashlib.sha256()
    for key in sorted(key for key in by_key if key is not None):
        digest.update(f"{key} {by_key[key]}\n".encode())
    return MergeRecord(
        files=files or tuple(sorted({tensor.file.name for tensor in found.values()})),
        num_bytes=sum(tensor.num_bytes for tensor in found.values()),
        tensors=records,
        missing=tuple(missing),
        unexpected=tuple(key for key in found if key not in planned),
        untied=plan.untied,
        unused=plan.unused,
        base_sha256=digest.hexdigest(),
    )


def _check_space(directory: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if num_bytes > free:
        what = f"the merged model takes {num_bytes / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free"
        raise StoreError(what, where=str(directory.parent), fix="free some space, or choose another place")


def _record(planned: PlannedMerge, stored: StoredTensor) -> TensorRecord:
    """One tensor on disk against its base and its update, chunk by chunk."""
    digest, base_digest = hashlib.sha256(), hashlib.sha256()
    finite, replaced = True, planned.replacement is not None
    squares = {"error": 0.0, "update": 0.0, "before": 0.0}
    for start, stop in row_ranges(planned.shape):
        rows, before = stored.rows(start, stop), planned.before(start, stop)
        digest.update(raw_bytes(rows))
        if not replaced:
            base_digest.update(raw_bytes(before))
        if planned.kind == "kept" and torch.equal(_bytes(rows), _bytes(before)):
            finite &= _all_finite(rows)
            squares["before"] += float(before.float().square().sum()) if before.is_floating_point() else 0.0
            continue
        rows, before = rows.double(), before.double()
        finite &= _all_finite(rows)
        difference = rows - before
        squares["before"] += float(before.square().sum())
        if planned.update is not None:
            delta = planned.update.rows(start, stop)
            difference -= delta
            squares["update"] += float(delta.square().sum())
        squares["error"] += float(difference.square().sum())
    scale = squares["update"] or squares["before"]
    error = math.sqrt(squares["error"] / scale) if scale else math.sqrt(squares["error"])
    base_sha256 = base_digest.hexdigest()
    if replaced:  # by a tensor that may have another shape
        base_sha256 = None if planned.source is None else planned.source.sha256()
    return TensorRecord(
        name=planned.name,
        written=planned.written,
        kind=planned.kind,
        module=None if planned.update is None else planned.update.module,
        shape=planned.shape,
        base_dtype=None if planned.source is None else _dtype_name(planned.source.dtype),
        dtype=_dtype_name(stored.dtype),
        update_norm=None if planned.update is None else math.sqrt(squares["update"]),
        error=error if math.isfinite(error) else None,
        finite=finite,
        base_sha256=base_sha256,
        sha256=digest.hexdigest(),
    )


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's bytes: equal where all numbers are, NaN included."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


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
        raise ModelError("the base holds NaN or infinite numbers", where=name, fix="use another checkpoint")
    count = int((~torch.isfinite(after)).sum())
    dtype = _dtype_name(after.dtype)
    fix = "merge with --dtype bfloat16 or float32" if after.dtype == torch.float16 else "check the adapter's numbers"
    raise CheckFailed(f"{count} merged numbers overflow {dtype}", where=name, fix=fix)


def _all_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.dtype.itemsize == 1:
        return True
    return bool(torch.isfinite(tensor).all())


def _untie(model: PreTrainedModel, merged: Mapping[str, Tensor]) -> None:
    """Have a merged copy's configuration say which ties it has lost."""
    changed = [group for group in tied_groups(model) if breaks_tie(group, set(merged), merged)]
    if changed and model.config.model_type not in ALWAYS_TIED:
        model.config.tie_word_embeddings = False
    gone = {name for group in changed for name in group}
    model.all_tied_weights_keys = {
        target: source for target, source in model.all_tied_weights_keys.items() if target not in gone
    }


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
