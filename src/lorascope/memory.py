"""How much memory there is, and how much of it is free, by whatever bounds it first.

On the CPU that is the machine, a container (control groups, both versions) or a limit of the process (``ulimit -v``); on a GPU
the device. A container's page cache counts as free: it gives way, and reading a checkpoint fills it.

Does not know models nor what they take. Floor: beside ``base_model``.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory and, of the first version, cgroup-v1/memory.html.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_GROUPS_OF_THIS_PROCESS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
# Of a control group: its limit, what it takes, and what of that is page cache not in use.
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_bytes(device: str = "cpu") -> int:
    """What a process may still take on this device; zero where a limit is passed already.

    Args:
        device: ``cpu``, or a GPU as torch names it.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    return max(0, min([free, *(limit - used for limit, used in _limits())]))


def total_bytes(device: str = "cpu") -> int:
    """All that a process could take on this device, were nothing in use."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[1])
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _limits())])


def taken_bytes() -> int:
    """What this process takes now: of the GPU where torch has begun to use one, else of the machine's memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


def _limits() -> Iterator[tuple[int, int]]:
    """Every bound below the machine's own, with what is taken of it."""
    yield from _of_groups()
    try:
        import resource
    except ImportError:  # not on Windows
        return
    for kind, counted in ((resource.RLIMIT_AS, "vms"), (resource.RLIMIT_DATA, "data")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            yield limit, int(getattr(psutil.Process().memory_info(), counted, 0))


def _of_groups() -> Iterator[tuple[int, int]]:
    """Of the control groups that this process is in, and of those that they are in, as far as they are seen from here."""
    try:
        lines = _GROUPS_OF_THIS_PROCESS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, files = _GROUPS, _VERSION_2
        elif "memory" in controllers.split(","):
            root, files = _GROUPS / "memory", _VERSION_1
        else:
            continue
        # A container may see its own group as the root, whatever it is called outside.
        inner = root / path.lstrip("/")
        for group in dict.fromkeys([inner, *inner.parents]):
            if group.is_relative_to(root):
                with suppress(OSError, ValueError, KeyError):
                    yield _of_group(group, *files)


def _of_group(group: Path, limit: str, used: str, cached: str) -> tuple[int, int]:
    most = int((group / limit).read_text(encoding="ascii"))  # "max" where there is none
    taken = int((group / used).read_text(encoding="ascii"))
    counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    return most, taken - int(counts[cached])
