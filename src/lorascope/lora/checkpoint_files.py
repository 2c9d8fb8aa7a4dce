"""A model's weights as one checkpoint: opened whole, written shard by shard, never held.

safetensors' own writer takes a whole shard at once, which needs address space for all of it. Here tensors are written as they
are read (``stored_tensors``), ``CHUNK_NUMBERS`` numbers at a time: the memory that merging takes does not depend on the model.
What is written is what ``save_pretrained`` writes: ``model.safetensors``, or shards with an index.

Knows which files make a checkpoint. Does not know models nor adapters. Floor: ``lora``.

Source: the safetensors format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from lorascope.errors import ModelError
from lorascope.lora.stored_tensors import (
    DTYPES,
    INDEX_FILE,
    TORCH_FILE,
    TORCH_INDEX_FILE,
    WEIGHTS_FILE,
    StoredTensor,
    read_header,
    read_index,
    read_torch_file,
)

_CODES = {dtype: code for code, dtype in DTYPES.items()}


def open_checkpoint(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by their names in it; one file or shards, safetensors before ``.bin``.

    Raises:
        ModelError: there is none, a shard is missing, or a file is damaged; names the file.
    """
    for single, index, read in ((WEIGHTS_FILE, INDEX_FILE, read_header), (TORCH_FILE, TORCH_INDEX_FILE, read_torch_file)):
        # In the order in which transformers looks for them.
        if (directory / single).is_file():
            return read(directory / single)
        if (directory / index).is_file():
            return _open_shards(directory / index, read)
    what = f"the directory holds neither {WEIGHTS_FILE} nor {TORCH_FILE}, nor an index of either"
    raise ModelError(what, where=str(directory), fix="give a directory that save_pretrained wrote")


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written.

    Attributes:
        chunks: its rows in order, in ``dtype``; called once.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Tensor]]

    @property
    def num_bytes(self) -> int:
        """Bytes that it will take."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_checkpoint(directory: Path, tensors: Mapping[str, PlannedTensor], max_shard_bytes: int) -> None:
    """Write ``model.safetensors``, or shards and their index, as ``save_pretrained`` cuts and names them.

    Args:
        directory: exists; what fails leaves unfinished files in it, for its owner to remove.
        max_shard_bytes: a tensor that is larger has a shard of its own.
    """
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for name, members in split.filename_to_tensors.items():
        _write_file(directory / name, {member: tensors[member] for member in members})
    if not split.is_sharded:
        return
    total = sum(math.prod(tensor.shape) for tensor in tensors.values())
    index = {"metadata": {"total_parameters": total, **split.metadata}, "weight_map": split.tensor_to_filename}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def raw_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes in order, without a copy where it is contiguous."""
    numbers: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(numbers)


def _write_file(path: Path, tensors: Mapping[str, PlannedTensor]) -> None:
    # The widest first, as safetensors does: every tensor then begins where its numbers are aligned.
    ordered = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        tensor = tensors[name]
        start, end = end, end + tensor.num_bytes
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in ordered:
            expected = file.tell() + tensors[name].num_bytes
            for chunk in tensors[name].chunks():
                assert chunk.dtype == tensors[name].dtype, name
                file.write(raw_bytes(chunk))
            assert file.tell() == expected, f"{name} was planned with another size"
        file.flush()
        os.fsync(file.fileno())


def _open_shards(index: Path, read: Callable[[Path], dict[str, StoredTensor]]) -> dict[str, StoredTensor]:
    weight_map = read_index(index)
    found: dict[str, StoredTensor] = {}
    for name in sorted(set(weight_map.values())):
        if not (index.parent / name).is_file():
            raise ModelError(f"the shard {name!r} is missing", where=str(index), fix="download or copy the whole checkpoint")
        found |= read(index.parent / name)
    absent = sorted(weight_map.keys() - found.keys())
    if absent:
        fix = "download or copy the whole checkpoint"
        raise ModelError(f"{len(absent)} tensors of the index are in no shard ({absent[0]}, …)", where=str(index), fix=fix)
    # In the index's order, which is the model's for most writers.
    return {name: found[name] for name in weight_map}
