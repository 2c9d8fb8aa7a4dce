"""Each check of the machine passes or says what is missing here, and catches what it is there for."""

import errno
import os
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from lorascope.doctor import machine
from lorascope.doctor.finding import Setting
from lorascope.errors import ModelError
from lorascope.lora import frozen
from lorascope.lora.quantised import NF4Linear

GIB = 2**30


@pytest.fixture(autouse=True)
def own_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["4 bits", "memory", "disk", "kernels"])
def test_nothing_is_wrong_here(name, check):
    result = check(name)
    assert result.status in ("passed", "warning"), result.showed
    assert result.figures


def test_a_product_in_bfloat16_is_caught(check, monkeypatch):
    original = frozen.Product.forward

    def coarse(self, x, bias, out=None):
        return original(self, x.bfloat16().float(), bias)

    monkeypatch.setattr(frozen.Product, "forward", coarse)
    result = check("kernels")
    assert result.status == "failed"
    assert "float32" in result.showed
    assert "NVIDIA_TF32_OVERRIDE" in result.fix


def test_an_input_gradient_in_bfloat16_is_caught(check, monkeypatch):
    original = frozen.Product.backward
    monkeypatch.setattr(frozen.Product, "backward", lambda self, gradient: original(self, gradient.bfloat16().float()))
    assert check("kernels").showed.startswith("backward")


@pytest.mark.parametrize(("threads", "status"), [(3, "warning"), (4, "passed")])
def test_threads_that_do_not_fit_are_named(threads, status, check, monkeypatch):
    monkeypatch.setattr(machine, "recommended_threads", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    result = check("kernels")
    assert result.status == status
    assert ("threads: 3; 4 would fit" in result.showed) == (status == "warning")
    assert result.fix.startswith("OMP_NUM_THREADS=4") == (status == "warning")


def test_no_more_threads_are_recommended_than_processors_and_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda logical: 32)
    monkeypatch.setattr(machine, "Path", lambda path: SimpleNamespace(read_text=lambda encoding: "350000 100000"))
    assert machine.recommended_threads() == 4
    monkeypatch.setattr(machine, "Path", lambda path: SimpleNamespace(read_text=lambda encoding: "max 100000"))
    assert machine.recommended_threads() == 32


def test_weights_that_come_back_otherwise_are_caught(check, monkeypatch):
    original = NF4Linear.dequantised
    monkeypatch.setattr(NF4Linear, "dequantised", lambda self, dtype: 1.001 * original(self, dtype))
    result = check("4 bits")
    assert result.status == "failed"
    assert all(kind in result.showed for kind in ("weight", "product", "gradient"))


def test_a_gradient_that_does_not_pass_four_bits_is_caught(check, monkeypatch):
    monkeypatch.setattr(
        "lorascope.lora.quantised.NF4Product.backward", lambda self, gradient: gradient @ self.layer.weight * 2
    )
    assert check("4 bits").showed.startswith("gradient")


def test_without_bitsandbytes_there_is_a_warning_that_says_what_to_install(check, monkeypatch):
    def absent():
        raise ModelError("nf4 needs bitsandbytes")

    monkeypatch.setattr(machine, "check_installed", absent)
    result = check("4 bits")
    assert result.status == "warning"
    assert "pip install 'lorascope[quant]'" in result.fix


def test_a_broken_bitsandbytes_fails_in_one_line(check, monkeypatch):
    def broken(*_):
        raise OSError("libbitsandbytes_cpu.so:\n cannot open shared object file")

    monkeypatch.setattr(NF4Linear, "pack", broken)
    result = check("4 bits")
    assert (result.status, result.showed) == (
        "failed", "OSError: libbitsandbytes_cpu.so: cannot open shared object file",
    )  # fmt: skip


@pytest.mark.parametrize(("free", "status"), [(0.3, "failed"), (1.0, "warning"), (64.0, "passed")])
def test_little_memory_is_named(free, status, check, monkeypatch):
    monkeypatch.setattr(machine, "free_bytes", lambda device: int(free * GIB))
    result = check("memory")
    assert (result.status, "GiB" in result.showed) == (status, True)


def test_a_peak_that_does_not_rise_is_said(check, monkeypatch):
    monkeypatch.setattr(machine.MemoryMeter, "peak_bytes", lambda self: 10**9)
    result = check("memory")
    assert result.status == "warning"
    assert "a block of 64 MiB shows as 0" in result.showed


def test_the_disk_is_left_as_it_was(check, tmp_path):
    assert check("disk").status in ("passed", "warning")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_keeps_its_old_contents_is_caught(check, monkeypatch):
    original = machine.write_atomically
    monkeypatch.setattr(machine, "write_atomically", lambda path, text: None if path.exists() else original(path, text))
    assert "does not hold what was written" in check("disk").showed


def test_a_directory_that_is_seen_half_written_is_caught(check, monkeypatch):
    @contextmanager
    def in_place(path):
        path.mkdir(exist_ok=True)
        yield path

    monkeypatch.setattr(machine, "atomic_directory", in_place)
    result = check("disk")
    assert "seen before it is whole" in result.showed
    assert "holds something else" in result.showed


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_cannot_be_written_is_caught_and_left_clean(code, check, monkeypatch, tmp_path):
    def refusing(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refusing)
    result = check("disk")
    assert result.status == "failed"
    assert os.strerror(code) in result.showed
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_forgets_is_caught(check, monkeypatch):
    monkeypatch.setattr(machine.Store, "set_info", lambda *_: None)
    assert "the database does not hold what was written" in check("disk").showed


def test_without_a_gpu_there_is_nothing_to_check(check, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert check("GPU").status == "skipped"


def test_a_gpu_that_this_torch_cannot_use_is_named(check, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    result = check("GPU")
    assert result.status == "warning"
    assert "built without CUDA" in result.showed
    assert "pytorch.org" in result.fix


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A device of CUDA's name whose products are this processor's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    facts = {"name": "Pretended", "memory_bytes": 80 * GIB, "capability": "9.0", "bfloat16": True}
    monkeypatch.setattr(machine, "_gpu_facts", lambda device: facts)
    monkeypatch.setattr(machine, "_product_on", lambda device, x, weight: x @ weight)


def test_a_gpu_is_named_and_its_products_compared(check, pretended_gpu):
    result = check("GPU", Setting("cuda"))
    assert result.status == "passed"
    assert result.showed.startswith("Pretended, 80 GiB")


def test_a_gpu_that_rounds_to_tf32_is_caught(check, pretended_gpu, monkeypatch):
    monkeypatch.setattr(machine, "_product_on", lambda device, x, weight: x.bfloat16().to(x.dtype) @ weight)
    result = check("GPU", Setting("cuda"))
    assert result.status == "failed"
    assert "float32" in result.showed


def test_a_gpu_that_was_not_asked_for_is_not_tried(check, pretended_gpu, monkeypatch):
    monkeypatch.setattr(machine, "_product_on", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    result = check("GPU", Setting("cpu"))
    assert (result.status, result.showed) == ("skipped", "the processor was asked for, not the GPU")


@pytest.mark.parametrize(("slowness", "told"), [(1.3, "takes 1.3× as long"), (1.0, "is as fast as"), (16.3, "takes 16× as")])
def test_how_much_slower_bfloat16_is_is_a_factor_that_means_something(slowness, told, check, monkeypatch):
    monkeypatch.setattr(machine, "_bfloat16_slowness", lambda _: slowness)
    assert f"bfloat16 {told}" in check("kernels").showed
