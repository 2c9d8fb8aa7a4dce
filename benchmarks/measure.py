"""What a worker takes down: the measurement itself, the clock's verdict, peak memory, the machine and its matmul rate."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.rows import NO_WORK, Row, Work, work_of

if TYPE_CHECKING:
    import torch

# Share of a measurement's seconds that one step may take before batches are cut to fewer rows.
_PROBE_SECONDS = 0.3


@dataclass
class Measurement:
    """One side, once, in a process of its own.

    Attributes:
        items_timed, items_epoch: the workload's units (examples, replies, answers), one configuration.
        num_configurations: how many configurations the seconds were spent on together.
        work_timed, work_epoch: tokens that this side stores: prefix-tree tokens for Lorascope, padded ones for peers.
        tokens_timed: the rows' own tokens.
        seconds: of the timed steps, the first step left out.
        first_step_seconds: the warm-up step, with whatever is set up then.
        losses, grad_norms: per configuration, per step, the warm-up step included.
        batches: the batches that were trained, by row (parity runs only).
        answers: per adapter and question, what was generated.
    """

    side: str = ""
    repeat: int = 0
    error: str | None = None
    items_timed: int = 0
    items_epoch: int = 0
    num_configurations: int = 1
    steps_timed: int = 0
    rows_per_step: int = 0
    tokens_timed: int = 0
    work_timed: int = 0
    work_epoch: int = 0
    seconds: float = 0.0
    first_step_seconds: float = 0.0
    load_seconds: float = 0.0
    losses: dict[str, list[float]] = field(default_factory=dict)
    grad_norms: dict[str, list[float]] = field(default_factory=dict)
    batches: list[list[int]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    peak_memory_bytes: int = 0
    achieved_gflops: float | None = None
    probed_gflops: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def rate_timed(self) -> float | None:
        """Items per second of the timed sample as it is, times the configurations."""
        return self.num_configurations * self.items_timed / self.seconds if self.seconds else None

    @property
    def rate(self) -> float | None:
        """Items per second over the whole epoch: the sample's seconds per stored token times the epoch's tokens."""
        if not self.seconds or not self.work_timed:
            return None
        return self.num_configurations * self.items_epoch / (self.seconds * self.work_epoch / self.work_timed)

    @property
    def share_of_probe(self) -> float | None:
        """Achieved GFLOP/s over the best probed rate."""
        best = max(self.probed_gflops.values(), default=0.0)
        return self.achieved_gflops / best if self.achieved_gflops and best else None


def count_timed(
    measurement: Measurement,
    rows: Sequence[Row],
    timed: Sequence[Sequence[int]],
    epoch: Sequence[Sequence[int]],
    stored: Callable[[Work], int],
    shared: bool,
) -> Work:
    """Fill in what was timed out of the epoch, and return the timed batches' work."""
    work = total(rows, timed, shared)
    measurement.steps_timed = len(timed)
    measurement.items_timed = sum(rows[index].weight for batch in timed for index in batch)
    measurement.items_epoch = sum(rows[index].weight for batch in epoch for index in batch)
    measurement.tokens_timed = work.tokens
    measurement.work_timed = stored(work)
    measurement.work_epoch = stored(total(rows, epoch, shared))
    return work


def total(rows: Sequence[Row], batches: Sequence[Sequence[int]], shared: bool) -> Work:
    """The work of several batches."""
    return sum((work_of([rows[index] for index in batch], shared) for batch in batches), NO_WORK)


def step_flops(shape: Mapping[str, int], work: Work, num_slots: int) -> float:
    """Floating-point operations of training steps that do no more than they must, low-rank products left out.

    Linear layers forward, their input gradients where one flows, logits and their gradients on supervised positions, and
    attention (two products forward, four backward) on visible pairs.

    Args:
        shape: ``linear``, ``linear_backward`` (parameters), ``head`` (hidden × vocabulary), ``attention`` (layers × width).
    """
    linears = 2.0 * (shape["linear"] + shape["linear_backward"]) * work.stored_tokens
    logits = 4.0 * shape["head"] * work.supervised
    attention = 12.0 * shape["attention"] * work.attended_pairs
    return num_slots * (linears + logits + attention)


def matmul_rates(dtype: str, device: str, width: int) -> dict[str, float]:
    """GFLOP/s of ``[1024, width] @ [width, 4·width]`` by setting: default, medium, and for bf16 upcast to fp32 and back."""
    import torch

    left = torch.randn(1024, width, device=device).to(getattr(torch, dtype))
    right = torch.randn(width, 4 * width, device=device).to(getattr(torch, dtype))
    rates: dict[str, float] = {}
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            name = "default" if precision == "highest" else precision
            if dtype == "float32" or precision == "highest":
                rates[name] = _rate(lambda rows: left[:rows] @ right, 8.0 * width * width, device)
            if dtype == "bfloat16":
                upcast = "upcast" if precision == "highest" else "upcast, medium"
                rates[upcast] = _rate(
                    lambda rows: (left[:rows].float() @ right.float()).to(left.dtype), 8.0 * width * width, device
                )
    finally:
        torch.set_float32_matmul_precision(before)
    return {name: round(rate, 1) for name, rate in rates.items()}


def _rate(product: Callable[[int], torch.Tensor], flops_per_row: float, device: str) -> float:
    """GFLOP/s of the best of several products; a product that is too slow for that is taken on fewer rows."""
    rows = 1024
    product(8)
    started = time.perf_counter()
    product(8)
    synchronise(device)
    if (time.perf_counter() - started) * rows / 8 > _PROBE_SECONDS:
        rows = 32
    product(rows)
    synchronise(device)
    best, spent = float("inf"), 0.0
    while spent < _PROBE_SECONDS:
        started = time.perf_counter()
        product(rows)
        synchronise(device)
        seconds = time.perf_counter() - started
        best, spent = min(best, seconds), spent + seconds
    return rows * flops_per_row / best / 1e9


def synchronise(device: str) -> None:
    """Wait for the accelerator; nothing to wait for on the CPU."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def peak_memory_bytes(device: str) -> int:
    """Peak of the process, loading included; of the device's allocator on CUDA."""
    if device != "cpu":
        import torch

        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "linux":
        # getrusage would count the parent's size before this process became another program.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine(device: str) -> dict[str, Any]:
    """Processor, its instructions that matter to matrix products, torch, threads and the libraries' versions."""
    from importlib.metadata import PackageNotFoundError, version

    import psutil
    import torch

    versions = {}
    for package in ("lorascope", "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "from its source tree" if package == "lorascope" else "not installed"
    found: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(0) if device != "cpu" else "cpu",
        "versions": versions,
    }
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                found["processor"] = line.partition(":")[2].strip()
            if line.startswith("flags"):
                flags = set(line.partition(":")[2].split())
                names = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
                found["instructions"] = {name: name in flags for name in names}
                break
    return found
