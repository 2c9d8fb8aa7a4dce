"""Which kernels a base computes with: chosen by measurement when it is loaded, recorded, and replayed on resume.

Knows the order of things: the path of frozen products first, then fused element-wise work. Does not know how either is done
(``lora.frozen``, ``lora.elementwise``). Floor: ``cohort``.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lorascope.base_model import BaseModel
from lorascope.data.task import Notice
from lorascope.lora import elementwise, frozen


@dataclass(frozen=True)
class Kernels:
    """What a base computes with, and where.

    Attributes:
        path: of frozen products; ``gflops`` and ``errors`` are what each path measured.
        fused: classes of modules whose element-wise work is one kernel.
        machine: processor, threads and torch: on another one the same path may round otherwise.
    """

    path: frozen.Path
    gflops: Mapping[str, float]
    errors: Mapping[str, float]
    fused: tuple[str, ...]
    machine: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**asdict(self), "fused": list(self.fused)}


def install_kernels(base: BaseModel, free_bytes: int, stored: Mapping[str, Any] | None = None) -> tuple[Kernels, list[Notice]]:
    """Give the base its kernels. They are taken from it with the base itself.

    Args:
        free_bytes: memory that packed weights may take.
        stored: what an earlier part of the study computed with; its path is taken again on the same machine.

    Returns:
        The kernels, and a notice where ``stored`` could not be replayed.
    """
    here = _machine(base.device)
    notices: list[Notice] = []
    if stored is not None and stored["machine"] == here:
        choice = frozen.Choice(stored["path"], stored["gflops"], stored["errors"])
    else:
        choice = frozen.choose(base.model, base.heads, free_bytes)
    if stored is not None and stored["machine"] != here:
        before = stored["machine"]
        changes = [f"{name} was {before[name]}, is {here.get(name)}" for name in before if before[name] != here.get(name)]
        message = f"kernels were chosen anew ({choice.path}, before: {stored['path']}): {'; '.join(changes)}"
        notices.append(Notice("replay", 1, "kernels", message))
    frozen.install(base.model, choice.path, base.heads)
    return Kernels(choice.path, choice.gflops, choice.errors, tuple(elementwise.install(base.model)), here), notices


@contextmanager
def recorded_threads(stored: Mapping[str, Any] | None, device: torch.device) -> Iterator[list[Notice]]:
    """Compute with as many threads as an earlier part of the study on this machine: sums in other pieces round otherwise.

    Args:
        stored: the kernels of that part. Where the machine is another, or has too few processors, nothing changes.

    Yields:
        A notice where the number is another than it would have been.
    """
    own = torch.get_num_threads()
    wanted = own if stored is None else stored["machine"].get("threads", own)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if stored is None or wanted == own or wanted > processors or {**_machine(device), "threads": wanted} != stored["machine"]:
        yield []
        return
    torch.set_num_threads(wanted)
    try:
        message = f"goes on with {wanted} threads as before, not {own}, so that it computes the same bits"
        yield [Notice("replay", 1, "threads", message)]
    finally:
        torch.set_num_threads(own)


def _machine(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
    processor = f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"device": processor, "threads": torch.get_num_threads(), "torch": torch.__version__}
