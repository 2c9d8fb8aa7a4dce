"""The tensors of a model directory, read from its files a run of rows at a time.

safetensors maps whole files into the address space, which is what a limit on memory counts; here bytes are read from their
places, so that a checkpoint of any size is looked at in a few megabytes. Nothing of the code that merges is used.

Knows safetensors' layout, indices of shards, and torch's older format. Does not know models or adapters. Floor: ``certify``.

Source: the safetensors format, https://huggingface.co/docs/safetensors (8 bytes of length, a JSON header, the data).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorascope.errors import ModelError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_TORCH_FILE, _TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# Numbers that are looked at together: 8 MB in float64, several times over.
CHUNK = 2**20
_LARGEST_HEADER = 10**8


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: a file and its first byte, or the tensor itself (torch's older format)."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0
    held: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def num_bytes(self) -> int:
        """Bytes on the disk."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, first: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``[first, stop)`` along the first dimension, in the stored dtype; a scalar is one row.

        Raises:
            ModelError: the file ends before the tensor does.
        """
        if self.held is not None:
            return self.held if not self.shape else self.held[first:stop]
        rows = self.shape[0] if self.shape else 1
        stop = rows if stop is None else min(stop, rows)
        row_bytes = self.num_bytes // rows if rows else 0
        with self.path.open("rb") as file:
            file.seek(self.start + first * row_bytes)
            content = bytearray(file.read((stop - first) * row_bytes))
        if len(content) != (stop - first) * row_bytes:
            raise ModelError("the file ends before its last tensor does", where=str(self.path), fix="write or fetch it again")
        shape = ((stop - first, *self.shape[1:])) if self.shape else ()
        if not content:
            return torch.empty(shape, dtype=self.dtype)
        return torch.frombuffer(content, dtype=self.dtype).reshape(shape)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Runs of rows of about ``CHUNK`` numbers."""
        rows = self.shape[0] if self.shape else 1
        step = max(1, CHUNK // max(1, math.prod(self.shape[1:])))
        for first in range(0, rows, step):
            yield first, min(rows, first + step)

    def update(self, digest: Any, name: str) -> None:
        """Feed name, dtype, shape and bytes to a hash."""
        digest.update(f"{name} {self.dtype} {self.shape}".encode())
        for first, stop in self.chunks():
            part = self.read(first, stop).contiguous()
            digest.update(part.reshape(-1).view(torch.uint8).numpy().data)


@dataclass(frozen=True)
class Checkpoint:
    """A model's tensors by their names in the files.

    Attributes:
        problems: what does not hold together among the files, each a sentence; loaders pass over much of it in silence.
        files: the files that hold the tensors, by name.
    """

    directory: Path
    tensors: dict[str, StoredTensor]
    files: tuple[str, ...]
    problems: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def main_dtype(self) -> str:
        """The floating dtype that most of the numbers have."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors.values():
            if tensor.dtype.is_floating_point:
                counts[dtype_name(tensor.dtype)] += math.prod(tensor.shape)
        return counts.most_common(1)[0][0] if counts else "float32"

    def checksum(self) -> str:
        """SHA-256 over name, dtype, shape and bytes of every tensor, by name; how they are cut into files does not matter."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            self.tensors[name].update(digest, name)
        return digest.hexdigest()


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` and so on."""
    return str(dtype).removeprefix("torch.")


def open_checkpoint(directory: Path) -> Checkpoint:
    """The tensors in a model directory: one file, or shards with an index; safetensors before torch's older format.

    Raises:
        ModelError: there are no weights, or a file cannot be read.
    """
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if single.is_file():
        problems = ["shards lie beside model.safetensors, and loaders differ in which they take"] if index.is_file() else []
        return Checkpoint(directory, read_header(single), (SINGLE_FILE,), tuple(problems))
    if index.is_file():
        return _sharded(directory, index, ".safetensors")
    if (directory / _TORCH_FILE).is_file():
        return Checkpoint(directory, _torch_tensors(directory / _TORCH_FILE), (_TORCH_FILE,))
    if (directory / _TORCH_INDEX).is_file():
        return _sharded(directory, directory / _TORCH_INDEX, ".bin")
    raise ModelError(
        "no weights here", where=str(directory), fix="give a directory that holds model.safetensors or its shards"
    )


def read_header(path: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds, and where.

    Raises:
        ModelError: it is no safetensors file, or shorter than its header says.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= _LARGEST_HEADER:
                raise ValueError("no header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {
            name: StoredTensor(path, _DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        end = max((8 + length + entry["data_offsets"][1] for entry in header.values()), default=0)
        if end > path.stat().st_size:
            raise ValueError("it is cut short")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ModelError(f"no valid safetensors file ({error})", where=str(path), fix="write or fetch it again") from None
    return found


def _sharded(directory: Path, index: Path, suffix: str) -> Checkpoint:
    """Every shard that the index names, what it names in vain, and what lies beside it."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot be read ({error})", where=str(index), fix="write or fetch it again") from None
    tensors: dict[str, StoredTensor] = {}
    problems = []
    for file in sorted(set(weight_map.values())):
        if not (directory / file).is_file():
            problems.append(f"{index.name} names {file}, which is not there")
            continue
        held = read_header(directory / file) if suffix == ".safetensors" else _torch_tensors(directory / file)
        named = {name for name, owner in weight_map.items() if owner == file}
        if named - set(held):
            problems.append(f"{index.name} has {min(named - set(held))!r} in {file}, which does not hold it")
        if set(held) - named:
            problems.append(f"{file} holds {min(set(held) - named)!r}, which {index.name} does not have there")
        tensors |= {name: held[name] for name in sorted(named & set(held))}
    files = tuple(sorted(set(weight_map.values())))
    beside = sorted(path.name for path in directory.glob(f"*{suffix}") if path.name not in files)
    if beside:
        problems.append(f"{beside[0]} lies beside the shards and is not in {index.name}")
    return Checkpoint(directory, tensors, files, tuple(problems))


def _torch_tensors(path: Path) -> dict[str, StoredTensor]:
    try:
        try:
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError:  # written before torch 1.6, not a zip archive
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch each raise their own kinds
        raise ModelError(f"cannot be read ({error})", where=str(path), fix="write it as safetensors") from None
    return {
        name: StoredTensor(path, value.dtype, tuple(value.shape), held=value)
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
