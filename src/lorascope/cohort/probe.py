"""What one configuration costs alone: a few real steps in a stack of one, with their time and peak memory.

Inside a padded stack a small adapter costs what its neighbours cost, so reports compare these figures. The planner takes a
``Footprint`` from here, what one forward and backward pass adds to the memory. Floor: ``cohort``.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
import torch

from lorascope.base_model import BaseModel
from lorascope.config import TrainConfig
from lorascope.data.packing import batch_order
from lorascope.data.task import Example
from lorascope.data.tree import sibling_groups
from lorascope.lora.full import installed
from lorascope.lora.stack import Slot
from lorascope.train import fitting_gradients, train

_STEPS = 4
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_MMAP_BYTES = 2**24
# How far a heap may grow above what was in use when it was last given back.
_ROOM = 1.25


@dataclass(frozen=True)
class SoloCost:
    """Measured alone: seconds per epoch and examples per second (extrapolated by tokens), peak memory of the process."""

    seconds_per_epoch: float
    examples_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Footprint:
    """Memory before forward and backward passes, at their peak, and the micro-batch that they took."""

    before_bytes: int
    peak_bytes: int
    micro_batch_size: int | None


def measure_alone(base: BaseModel, slot: Slot, settings: TrainConfig, examples: Sequence[Example]) -> SoloCost:
    """Train ``slot`` alone for a few batches of its own first epoch, the first of them uncounted, and throw the result away.

    The batch with the longest row is among them, so that the peak is that of the epoch.
    """
    batches = batch_order(sibling_groups(examples), settings.batch_size, slot.seed, 0)
    longest = max(batches, key=lambda rows: max(examples[row].num_tokens for row in rows))
    meter = MemoryMeter(base.device)
    seconds_per_token: list[float] = []
    for rows in [longest, *batches[: _STEPS - 1]]:
        stack = installed(base.model, [slot], base.heads, base.initial_head, settings.base_dropout)
        one_step = settings.model_copy(update={"max_steps": 1, "batch_size": len(rows)})
        try:
            for step in train(stack, base, [examples[row] for row in rows], {slot.name: one_step}):
                seconds_per_token.append(step.seconds / step.num_tokens)
        finally:
            stack.detach()
            del stack  # one that trains a whole base must not lie beside the next
    peak = meter.peak_bytes()
    epoch = median(seconds_per_token[1:]) * sum(example.num_tokens for example in examples)
    return SoloCost(epoch, len(examples) / epoch, peak)


def measure_footprint(
    base: BaseModel,
    slots: Sequence[Slot],
    settings: TrainConfig,
    examples: Sequence[Example],
    steps: Sequence[Mapping[int, Sequence[int]]],
) -> Footprint:
    """Gradients of the steps' batches (rows by seed) in one stack: of the first to make what later ones find, then of all."""
    stack = installed(base.model, slots, base.heads, base.initial_head, settings.base_dropout)
    size = settings.micro_batch_size
    try:
        _, size = fitting_gradients(stack, base, examples, steps[0], size, 0)
        meter = MemoryMeter(base.device)
        before = meter.peak_bytes()
        for rows_by_seed in steps:
            _, size = fitting_gradients(stack, base, examples, rows_by_seed, size, 0)
        return Footprint(before, meter.peak_bytes(), size)
    finally:
        stack.detach()


def steady_allocator() -> None:
    """Have the C library give every very large block pages of its own, for the whole process. Only for Linux.

    Left alone, glibc moves its threshold as blocks are freed, and keeps freed tensors in a heap that falls into pieces: the
    same steps peaked at 1344 MiB and at 1717. Smaller blocks are left to the heap, because the system clears pages each time:
    with a threshold of 1 MiB, SST-2 took a quarter longer (docs/experiments.md).
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)


class Heap:
    """The C library's heap, given back to the system between steps when it has fallen into too many pieces.

    torch asks for aligned blocks, and glibc before 2.38 hardly ever takes a freed block for another one of the same size
    (glibc's bug 14581): batches of many shapes let the heap grow by the step, though nothing is kept. Measured in
    docs/experiments.md. Does something on Linux only.

    Args:
        limit_bytes: of the process, up to which the heap is left alone. What is in use raises it: a heap without holes is not
            searched for them after every step.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._process = psutil.Process()

    def settle(self) -> None:
        """Give free pages back if the process is above the limit."""
        if sys.platform != "linux" or self._process.memory_info().rss <= self._limit_bytes:
            return
        _trim()
        self._limit_bytes = max(self._limit_bytes, round(_ROOM * self._process.memory_info().rss))


class MemoryMeter:
    """Peak memory since the meter was made: of the device's allocator on CUDA, of the process elsewhere.

    On Linux the kernel's high-water mark is reset first, after the C library gave back what it no longer uses. Where it
    cannot be reset, the peak is that of the process so far. No garbage is collected first, which would take longer than a
    small cohort's training: an earlier stack is in no reference cycle and so is gone when its last user is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        if sys.platform == "linux":
            _trim()
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak_bytes(self) -> int:
        """The peak so far."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        if sys.platform == "linux":
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _trim() -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
