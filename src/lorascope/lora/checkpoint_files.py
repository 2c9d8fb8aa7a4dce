"""A model's weights as files: read a few rows at a time, written shard by shard, never held whole.

safetensors' own reader maps a file and its writer takes a whole shard at once; both need address space for all of it. Here a
tensor is read with plain reads, ``CHUNK_NUMBERS`` numbers at a time, and written so: the memory that merging takes does not
depend on the model. What is written is what ``save_pretrained`` writes: ``model.safetensors``, or shards with an index.

Knows safetensors' layout, shards, indices, and ``pytorch_model.bin`` (mapped by torch). Does not know models nor adapters.
Floor: ``lora``.

Source: the safetensors format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from lorascope.errors import ModelError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_FILE = "pytorch_model.bin"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"
# Numbers of a tensor in memory at a time; 8 MiB in the float64 that sums are made in.
CHUNK_NUMBERS = 1 << 20
# A header is a few hundred bytes a tensor; more than this is no header. The limit of safetensors' own reader.
_MOST_HEADER_BYTES = 100_000_000
_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "U16": torch.uint16,
    "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a checkpoint, not yet read.

    Attributes:
        offset: of its first byte in ``file``.
        mapped: the tensor itself where torch maps it from a ``.bin`` file.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int = 0
    mapped: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of the first dimension; a scalar is one row of one number.

        Raises:
            ModelError: the file ends before its tensors do.
        """
        if self.mapped is not None:
            return self.mapped.reshape(shape_of_rows(self.shape))[start:stop]
        wanted = (stop - start, *shape_of_rows(self.shape)[1:])
        row_bytes = math.prod(wanted[1:]) * self.dtype.itemsize
        buffer = bytearray((stop - start) * row_bytes)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset + start * row_bytes)
            read_fully(file, memoryview(buffer), self.file)
        if not buffer:
            return torch.empty(wanted, dtype=self.dtype)
        return torch.frombuffer(buffer, dtype=self.dtype).reshape(wanted)


def open_checkpoint(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by their names in it; one file or shards, safetensors before ``.bin``.

    Raises:
        ModelError: there is none, a shard is missing, or a file is damaged; names the file.
    """
    for single, index, read in ((WEIGHTS_FILE, INDEX_FILE, read_header), (TORCH_FILE, TORCH_INDEX_FILE, _map_torch_file)):
        # In the order in which transformers looks for them.
        if (directory / single).is_file():
            return read(directory / single)
        if (directory / index).is_file():
            return _open_shards(directory / index, read)
    what = f"the directory holds neither {WEIGHTS_FILE} nor {TORCH_FILE}, nor an index of either"
    raise ModelError(what, where=str(directory), fix="give a directory that save_pretrained wrote")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file.

    Raises:
        ModelError: it is cut short, damaged, or holds a dtype that torch does not have.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MOST_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
            size = file.seek(0, os.SEEK_END)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {
            name: StoredTensor(path, _DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in entries.items()
        }
        for name, entry in entries.items():
            start, stop = entry["data_offsets"]
            if stop - start != tensors[name].num_bytes or 8 + length + stop > size:
                raise ValueError(f"{name!r} does not lie within the file")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise _damaged(path, error) from None
    return tensors


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


def shape_of_rows(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that has rows: a scalar's is ``(1,)``."""
    return tuple(shape) or (1,)


def row_ranges(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of each chunk of a tensor of this shape."""
    num_rows, *rest = shape_of_rows(shape)
    step = max(1, CHUNK_NUMBERS // max(1, math.prod(rest)))
    for start in range(0, num_rows, step):
        yield start, min(num_rows, start + step)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes in order, without a copy where it is contiguous."""
    numbers: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(numbers)


def read_fully(file: Any, view: memoryview, path: Path) -> None:
    """Fill ``view``: an unbuffered read may return less than asked for.

    Raises:
        ModelError: the file ends before.
    """
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise _damaged(path, "it ends too early")
        done += count


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
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(index, error) from None
    found: dict[str, StoredTensor] = {}
    for name in names:
        if not (index.parent / name).is_file():
            raise ModelError(f"the shard {name!r} is missing", where=str(index), fix="download or copy the whole checkpoint")
        found |= read(index.parent / name)
    absent = sorted(weight_map.keys() - found.keys())
    if absent:
        fix = "download or copy the whole checkpoint"
        raise ModelError(f"{len(absent)} tensors of the index are in no shard ({absent[0]}, …)", where=str(index), fix=fix)
    # In the index's order, which is the model's for most writers.
    return {name: found[name] for name in weight_map}


def _map_torch_file(path: Path) -> dict[str, StoredTensor]:
    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # a file of before torch 1.6 cannot be mapped
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise _damaged(path, error) from None
    return {
        name: StoredTensor(path, value.dtype, tuple(value.shape), mapped=value.detach())
        for name, value in loaded.items()
        if isinstance(value, Tensor)
    }


def _damaged(path: Path, error: object) -> ModelError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ModelError(f"the checkpoint cannot be read ({reason})", where=str(path), fix="download or copy it again")
