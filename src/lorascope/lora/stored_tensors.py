"""The tensors of a model's files, read a few rows at a time: the one reader of safetensors' layout.

safetensors' own reader maps whole files into the address space, which is what a limit on memory counts. Here bytes are read
from their places with plain reads, so that a checkpoint of any size is looked at in a few megabytes. torch's older format is
mapped by torch itself.

Knows one file, and the index of shards. Does not know what a directory has to hold (``checkpoint_files``,
``certify.checkpoint``), models, or adapters. Floor: ``lora``.

Source: the safetensors format, https://github.com/huggingface/safetensors#format (8 bytes of length, a JSON header, the data).
"""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
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
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "U16": torch.uint16,
    "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not yet read.

    Attributes:
        offset: of its first byte in ``file``.
        mapped: the tensor itself where torch maps it from a ``.bin`` file.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int = 0
    mapped: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``[start, stop)`` along the first dimension, in the stored dtype; a scalar is one row, and stays a scalar.

        Raises:
            ModelError: the file cannot be read, or ends before the tensor does.
        """
        num_rows, *rest = shape_of_rows(self.shape)
        stop = num_rows if stop is None else min(stop, num_rows)
        shape = (max(0, stop - start), *rest) if self.shape else ()
        if self.mapped is not None:
            return self.mapped[start:stop] if self.shape else self.mapped
        row_bytes = math.prod(rest) * self.dtype.itemsize
        content = bytearray((stop - start) * row_bytes)
        if not content:
            return torch.empty(shape, dtype=self.dtype)
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.offset + start * row_bytes)
                view, done = memoryview(content), 0
                while done < len(view):  # an unbuffered read may return less than asked for
                    count = file.readinto(view[done:])
                    if not count:
                        raise ValueError("it ends too early")
                    done += count
        except (OSError, ValueError) as error:
            raise damaged(self.file, error) from None
        return torch.frombuffer(content, dtype=self.dtype).reshape(shape)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """First and last row (exclusive) of runs of about ``CHUNK_NUMBERS`` numbers."""
        return row_ranges(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file.

    Raises:
        ModelError: it is cut short, damaged, or holds a dtype that torch does not have.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 0 < length <= _MOST_HEADER_BYTES:
                raise ValueError("no header")
            header = json.loads(file.read(length))
            size = file.seek(0, os.SEEK_END)
        header.pop("__metadata__", None)
        first = 8 + length
        found = {
            name: StoredTensor(path, DTYPES[entry["dtype"]], tuple(entry["shape"]), first + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            if start < 0 or stop - start != found[name].num_bytes or first + stop > size:
                raise ValueError(f"it is cut short: {name!r} does not lie within the file")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise damaged(path, error) from None
    return found


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file of torch's older format, mapped where torch can.

    Raises:
        ModelError: it cannot be read, or holds more than numbers.
    """
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # a file of before torch 1.6 cannot be mapped
            state = torch.load(path, map_location="cpu", weights_only=True)
        return {
            name: StoredTensor(path, value.dtype, tuple(value.shape), mapped=value.detach())
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
    except (OSError, RuntimeError, EOFError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        raise damaged(path, error) from None


def read_index(path: Path) -> dict[str, str]:
    """The names of an index of shards, in its order, each with the shard's file.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from None


def shape_of_rows(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that has rows: a scalar's is ``(1,)``."""
    return tuple(shape) or (1,)


def row_ranges(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of each chunk of a tensor of this shape."""
    num_rows, *rest = shape_of_rows(shape)
    step = max(1, CHUNK_NUMBERS // max(1, math.prod(rest)))
    for start in range(0, num_rows, step):
        yield start, min(num_rows, start + step)


def damaged(path: Path, error: object) -> ModelError:
    """The error of a file that cannot be read as what its name says."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ModelError(f"the checkpoint cannot be read ({reason})", where=str(path), fix="download or copy it again")
