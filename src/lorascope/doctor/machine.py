"""Checks of the machine: threads and kernels, four bits, memory, disk, GPU. Floor: doctor.

Legend: M rows, D in, O out.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorascope.cohort.probe import MemoryMeter
from lorascope.config import Study
from lorascope.doctor import models
from lorascope.doctor.finding import Finding, Setting, beyond
from lorascope.doctor.versions import version_of
from lorascope.errors import ModelError
from lorascope.lora import frozen
from lorascope.lora.quantised import NF4Linear, check_installed
from lorascope.memory import free_bytes, total_bytes
from lorascope.store import Store, atomic_directory, write_atomically

_GIB = 2**30
# A product in true float32 is as exact as this; one in TF32 or bfloat16 is not, by far.
_SINGLE = 1e-5
# Less than this is too little to load anything, or to train a small model in comfort.
_LEAST_BYTES, _FEW_BYTES = _GIB // 2, 2 * _GIB
_BLOCK_BYTES = 64 * 2**20
# The sixteen values of a NormalFloat: Dettmers et al. 2023 (QLoRA), appendix E.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def kernels(setting: Setting) -> Finding:
    """The path that the probe takes is exact and float32 is float32; how fast bfloat16 is; whether the threads fit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(768, 3072)
        model = nn.Sequential(layer).requires_grad_(False).to(setting.device)
    choice = frozen.choose(model)
    frozen.install(model, choice.path)
    x_MD = torch.randn(64, 768, generator=torch.Generator().manual_seed(1)).to(setting.device)
    exact = layer.weight.double()
    expected = F.linear(x_MD.double(), exact, layer.bias.double())
    errors = {
        "float32": _norm_error(layer(x_MD), expected),
        "plain": _norm_error(F.linear(x_MD, layer.weight, layer.bias), expected),
        "backward": _norm_error(frozen.product_of(layer).backward(expected.float()), expected @ exact),
    }
    wrong = beyond(errors, dict.fromkeys(errors, _SINGLE))
    slowness = _bfloat16_slowness(setting.device)
    own, fitting = torch.get_num_threads(), recommended_threads()
    warnings = [f"{fitting} would fit"] if own != fitting and setting.device == "cpu" else []
    fast = "is as fast as" if 0.8 < slowness < 1.25 else f"takes {slowness:.2g}× as long as"
    rates = ", ".join(f"{path} {rate:.0f}" for path, rate in choice.gflops.items())
    speed = f" ({rates} GFLOP/s)" if rates else ""
    showed = f"kernel {choice.path}{speed}, error {errors['float32']:.0e}; bfloat16 {fast} float32; threads: {own}"
    figures = {
        "threads": own, "recommended_threads": fitting, "path": choice.path, "gflops": dict(choice.gflops), **errors,
        "precision": torch.get_float32_matmul_precision(), "bfloat16_slowness": slowness,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip
    fix = None if wrong else f"OMP_NUM_THREADS={fitting} before the command, or no such variable"
    return Finding(showed, figures, wrong, tuple(warnings), fix=fix)


def recommended_threads() -> int:
    """Physical cores that this process may use: two threads of one core share what multiplies."""
    may = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # a container's share of the processors
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        may = may if quota == "max" else min(may, max(1, math.ceil(int(quota) / int(period))))
    return max(1, min(may, psutil.cpu_count(logical=False) or may))


def _norm_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def _bfloat16_slowness(device: str) -> float:
    """Time of a small product in bfloat16 in units of the same in float32."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x_MD, weight_DO = (torch.ones(shape, dtype=dtype, device=device) for shape in ((16, 256), (256, 256)))
        times = []
        for _ in range(5):
            started = time.perf_counter()
            (x_MD @ weight_DO).sum().item()
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times[1:])
    return seconds[torch.bfloat16] / seconds[torch.float32]


def quantisation(setting: Setting) -> Finding:
    """Weights made of NF4's own sixteen values are packed and come back as they were; products and gradients are theirs."""
    try:
        check_installed()
    except ModelError:
        what = "bitsandbytes is not installed, so there is no base in 4 bits"
        return Finding("", {"bitsandbytes": None}, warnings=(what,), fix="pip install 'lorascope[quant]', if you want it")
    scales = torch.arange(1, 17)[:, None] / 8.0
    weight_OD = scales * torch.tensor(_NF4 * 4)
    layer = nn.Linear(64, 16)
    layer.weight = nn.Parameter(weight_OD.clone(), requires_grad=False)
    packed = NF4Linear.pack(layer, setting.device)
    exact = weight_OD.to(setting.device)
    x_MD = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).to(setting.device).requires_grad_()
    y_MO = packed(x_MD)
    y_MO.sum().backward()
    assert x_MD.grad is not None
    bits = 8 * (packed.packed.numel() + packed.absmax_bytes.numel()) / weight_OD.numel()
    figures = {
        "weight": models.relative(packed.weight, exact),
        "product": models.relative(y_MO.detach(), F.linear(x_MD.detach(), exact, packed.bias).double()),
        "gradient": models.relative(x_MD.grad, exact.sum(dim=0).expand_as(x_MD)),
    }
    wrong = list(beyond(figures, dict.fromkeys(figures, _SINGLE)))
    if bits != 4.5:
        wrong.append(f"a packed weight takes {bits:.2f} bits, not 4.5")
    version = version_of("bitsandbytes") or "of an unknown version"
    exactly = "exactly" if figures["weight"] == 0.0 else f"to {figures['weight']:.0e}"
    showed = f"bitsandbytes {version}: the 16 values come back {exactly}, {bits} bits a weight"
    return Finding(showed, {**figures, "bits": bits, "bitsandbytes": version}, tuple(wrong))


def memory(setting: Setting) -> Finding:
    """Enough is free to begin with, and what a step takes is measured."""
    free, total = free_bytes(setting.device), total_bytes(setting.device)
    meter = MemoryMeter(torch.device(setting.device))
    before = meter.peak_bytes()
    block = torch.ones(_BLOCK_BYTES, dtype=torch.uint8, device=setting.device)
    risen = meter.peak_bytes() - before
    del block
    wrong = [f"only {free / _GIB:.2f} of {total / _GIB:.1f} GiB are free"] if free < _LEAST_BYTES else []
    warnings = [f"only {free / _GIB:.1f} GiB are free"] if _LEAST_BYTES <= free < _FEW_BYTES else []
    measurable = sys.platform == "linux" or setting.device != "cpu"
    if measurable and not 0.9 * _BLOCK_BYTES <= risen <= 4 * _BLOCK_BYTES:
        what = f"a block of 64 MiB shows as {risen / 2**20:.0f}: peak memory in results is not that of each cohort"
        warnings.append(what)
    billions = free / 4 / 2 / 1e9
    showed = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free: a float32 base of {billions:.1f} billion fits in half of it"
    figures = {"free_bytes": free, "total_bytes": total, "block_bytes": _BLOCK_BYTES, "measured_bytes": risen}
    return Finding(showed, figures, tuple(wrong), tuple(warnings))


def disk(setting: Setting) -> Finding:
    """In the directory at hand, files and directories appear whole or not at all, and a study's database can be kept."""
    here = Path.cwd()
    with TemporaryDirectory(prefix=".lorascope-doctor-", dir=here) as name:
        place = Path(name)
        wrong = list(_faults_of_writing(place))
        study = {"name": "doctor", "base": {"model": "none"}, "task": {"name": "sst2", "data": "none"}}
        with Store.create(place / "study", Study.model_validate(study)) as store:
            store.set_info("doctor", 1)
        with Store.open(place / "study") as store:
            if store.info("doctor") != 1:
                wrong.append("the database does not hold what was written")
        left = [path.name for path in place.rglob(".*.part")]
        if left:
            wrong.append(f"{len(left)} temporary files are left")
    free = shutil.disk_usage(here).free
    warnings = (f"only {free / _GIB:.1f} GiB are free",) if free < _GIB else ()
    showed = f"whole files and directories, a lock, a database; {free / _GIB:.0f} GiB free"
    return Finding(showed, {"directory": str(here), "free_bytes": free}, tuple(wrong), warnings)


def _faults_of_writing(place: Path) -> Iterator[str]:
    path, directory = place / "file", place / "directory"
    for text in ("first", "second"):
        write_atomically(path, text)
        if path.read_text(encoding="utf-8") != text:
            yield "a file that was replaced does not hold what was written"
    for number in (1, 2):
        with atomic_directory(directory) as unfinished:
            (unfinished / f"{number}").write_text("whole", encoding="utf-8")
            if number == 1 and directory.exists():
                yield "a directory is seen before it is whole"
    if [entry.name for entry in directory.iterdir()] != ["2"]:
        yield "a directory that was replaced holds something else"


def cuda(setting: Setting) -> Finding:
    """Where there is a GPU and it is to be used, its products are the processor's, in float64 and in true float32."""
    if not torch.cuda.is_available():
        without = torch.version.cuda is None and shutil.which("nvidia-smi") is not None
        what = "an NVIDIA driver is here, but this torch was built without CUDA"
        fix = "install the CUDA build: https://pytorch.org/get-started/locally"
        return Finding("no GPU", {"devices": 0}, warnings=(what,) if without else (), skipped=not without, fix=fix)
    device = setting.device
    if device == "cpu":
        return Finding("the processor was asked for, not the GPU", {"devices": torch.cuda.device_count()}, skipped=True)
    facts = _gpu_facts(device)
    generator = torch.Generator().manual_seed(1)
    x_MD, weight_DO = (torch.randn(256, 256, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = x_MD @ weight_DO
    errors = {
        name: _norm_error(_product_on(device, x_MD.to(dtype), weight_DO.to(dtype)), expected)
        for name, dtype in (("float64", torch.float64), ("float32", torch.float32))
    }
    wrong = beyond(errors, {"float64": 1e-12, "float32": _SINGLE})
    showed = f"{facts['name']}, {facts['memory_bytes'] / _GIB:.0f} GiB: products differ by {errors['float32']:.0e} (float32)"
    return Finding(showed, {**facts, **errors}, wrong)


def _gpu_facts(device: str) -> Mapping[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "bfloat16": torch.cuda.is_bf16_supported(),
    }


def _product_on(device: str, x_MD: Tensor, weight_DO: Tensor) -> Tensor:
    return (x_MD.to(device) @ weight_DO.to(device)).cpu()
