"""What a model directory holds: its tensors by their names in the files, and what does not hold together among the files.

Knows which files a loader takes, and what loaders pass over in silence. Bytes are read by ``lora.stored_tensors``, a few rows
at a time, so that a checkpoint of any size is looked at in a few megabytes; they are hashed as they are read, so that a
checksum costs no reading of its own. Does not know models or adapters. Floor: ``certify``.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lorascope.errors import ModelError
from lorascope.lora.stored_tensors import (
    INDEX_FILE,
    TORCH_FILE,
    TORCH_INDEX_FILE,
    WEIGHTS_FILE,
    StoredTensor,
    read_header,
    read_index,
    read_torch_file,
    shape_of_rows,
)


class _Digest:
    """A hash of rows that come in order; what is read again, or out of order, is passed over."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.hash = hashlib.sha256()

    def take(self, start: int, stop: int, rows: Tensor) -> None:
        if start == self.num_rows < stop:
            self.hash.update(rows.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self.num_rows = stop


@dataclass(frozen=True)
class HashedTensor(StoredTensor):
    """A tensor in a file, whose bytes are hashed when they are first read."""

    digest: _Digest = field(default_factory=_Digest, repr=False, compare=False)

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """As a ``StoredTensor``'s."""
        rows = super().read(start, stop)
        last = shape_of_rows(self.shape)[0]
        self.digest.take(start, last if stop is None else min(stop, last), rows)
        return rows

    def checksum(self) -> str:
        """SHA-256 of its bytes; reads what nobody has read yet."""
        for start, stop in self.chunks():
            if stop > self.digest.num_rows:
                self.read(max(start, self.digest.num_rows), stop)
        return self.digest.hash.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A model's tensors by their names in the files.

    Attributes:
        problems: what does not hold together among the files, each a sentence; loaders pass over much of it in silence.
        files: the files that hold the tensors, by name.
    """

    directory: Path
    tensors: Mapping[str, HashedTensor]
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
        """SHA-256 over name, dtype, shape and SHA-256 of the bytes of every tensor, by name.

        How they are cut into files does not matter. What was read in order before is not read again.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape} {tensor.checksum()}\n".encode())
        return digest.hexdigest()


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` and so on."""
    return str(dtype).removeprefix("torch.")


def open_checkpoint(directory: Path) -> Checkpoint:
    """The tensors in a model directory: one file, or shards with an index; safetensors before torch's older format.

    Raises:
        ModelError: there are no weights, or a file cannot be read.
    """
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    if single.is_file():
        problems = ["shards lie beside model.safetensors, and loaders differ in which they take"] if index.is_file() else []
        return Checkpoint(directory, _hashed(read_header(single)), (WEIGHTS_FILE,), tuple(problems))
    if index.is_file():
        return _sharded(directory, index, ".safetensors")
    if (directory / TORCH_FILE).is_file():
        return Checkpoint(directory, _hashed(read_torch_file(directory / TORCH_FILE)), (TORCH_FILE,))
    if (directory / TORCH_INDEX_FILE).is_file():
        return _sharded(directory, directory / TORCH_INDEX_FILE, ".bin")
    raise ModelError(
        "no weights here", where=str(directory), fix="give a directory that holds model.safetensors or its shards"
    )


def _sharded(directory: Path, index: Path, suffix: str) -> Checkpoint:
    """Every shard that the index names, what it names in vain, and what lies beside it."""
    weight_map = read_index(index)
    tensors: dict[str, StoredTensor] = {}
    problems = []
    for file in sorted(set(weight_map.values())):
        if not (directory / file).is_file():
            problems.append(f"{index.name} names {file}, which is not there")
            continue
        held = read_header(directory / file) if suffix == ".safetensors" else read_torch_file(directory / file)
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
    return Checkpoint(directory, _hashed(tensors), files, tuple(problems))


def _hashed(tensors: Mapping[str, StoredTensor]) -> dict[str, HashedTensor]:
    return {name: HashedTensor(one.file, one.dtype, one.shape, one.offset, one.mapped) for name, one in tensors.items()}
