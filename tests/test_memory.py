"""How much is free is what the narrowest bound leaves: the machine's, a container's, the process's own."""

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import lorascope
from lorascope import memory

GIB = 2**30


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with 128 GiB, 64 of them free, no limit of the process; ``groups`` is where its control groups lie."""
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB, total=128 * GIB))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_GROUPS_OF_THIS_PROCESS", tmp_path / "of-this-process")

    def group(path, files):
        directory = tmp_path / "cgroup" / path
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(f"{text}\n")

    return SimpleNamespace(group=group, processes=tmp_path / "of-this-process")


def version_2(most, taken, cached=0):
    return {"memory.max": most, "memory.current": taken, "memory.stat": f"anon 1\ninactive_file {cached}\nactive_file 2"}


def test_without_a_container_the_machine_alone_counts(machine):
    assert (memory.free_bytes(), memory.total_bytes()) == (64 * GIB, 128 * GIB)
    machine.processes.write_text("0::/user.slice\n")
    machine.group("user.slice", version_2("max", 3 * GIB))
    assert (memory.free_bytes(), memory.total_bytes()) == (64 * GIB, 128 * GIB)


@pytest.mark.parametrize("path", ["/", "/pods/a", "/another/name/outside"])
def test_a_containers_limit_counts_and_its_page_cache_does_not(path, machine):
    machine.processes.write_text(f"0::{path}\n")
    place = "pods/a" if path == "/pods/a" else "."  # seen from inside, a container's group is often the root
    machine.group(place, version_2(8 * GIB, 5 * GIB, cached=2 * GIB))
    assert (memory.free_bytes(), memory.total_bytes()) == (5 * GIB, 8 * GIB)


def test_the_narrowest_of_nested_groups_counts(machine):
    machine.processes.write_text("0::/outer/inner\n")
    machine.group("outer", version_2(4 * GIB, 3 * GIB))
    machine.group("outer/inner", version_2(6 * GIB, GIB))
    assert (memory.free_bytes(), memory.total_bytes()) == (GIB, 4 * GIB)


def test_control_groups_of_the_first_version_count(machine):
    machine.processes.write_text("5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n1:name=systemd:/\n")
    files = {"memory.limit_in_bytes": 2 * GIB, "memory.usage_in_bytes": GIB, "memory.stat": f"total_inactive_file {GIB // 2}"}
    machine.group("memory", files)
    assert (memory.free_bytes(), memory.total_bytes()) == (2 * GIB - GIB // 2, 2 * GIB)


def test_a_limit_that_is_passed_leaves_nothing(machine):
    machine.processes.write_text("0::/\n")
    machine.group(".", version_2(GIB, 2 * GIB))
    assert memory.free_bytes() == 0


def test_a_limit_of_the_process_counts():
    program = (
        "import resource\n"
        "from lorascope import memory\n"
        "before = memory.free_bytes()\n"
        "limit = memory.psutil.Process().memory_info().vms + 2**24\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "assert memory.free_bytes() <= min(before, 2**24), memory.free_bytes()\n"
        "assert memory.total_bytes() <= limit\n"
    )
    environment = {"PYTHONPATH": str(Path(lorascope.__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_what_is_taken_is_what_the_process_has_in_memory():
    before = memory.taken_bytes()
    held = bytearray(64 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    assert before < memory.taken_bytes() - 32 * 2**20
