"""Create ``.venv`` with the locked versions; ``make`` calls it first, and it returns at once if nothing changed.

Knows which build of torch a machine needs: the CUDA build with an NVIDIA GPU, the much smaller CPU build without one.
torch goes in first and everything else without its dependencies, so that no later step can replace it. Needs Python
3.10 or later and nothing beyond its standard library.

    python3 scripts/setup.py                     create or update .venv
    python3.12 scripts/setup.py --this-python    the same, and replace a .venv of another Python
    python3 scripts/setup.py --lock              resolve requirements.lock anew (with the uv of .venv)
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / "lorascope-setup"
TORCH = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST_PYTHON = (3, 10)
NEWEST_LOCKED_PYTHON = (3, 13)
# torch and what it pins itself: these differ between the CPU and the CUDA build, so no one lock can hold them.
NOT_LOCKED = re.compile(r"(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")


class SetupError(Exception):
    """The set-up cannot go on; its text is one line saying what to do."""


def main() -> int:
    """Exit code 0, or 1 after one line on stderr."""
    parser = argparse.ArgumentParser(description="Create .venv with the locked versions.")
    parser.add_argument("--this-python", action="store_true", help="replace a .venv of another Python")
    parser.add_argument("--lock", action="store_true", help="resolve requirements.lock anew instead")
    arguments = parser.parse_args()
    try:
        use_a_recent_python()
        write_lock() if arguments.lock else set_up(arguments.this_python)
    except SetupError as error:
        print("setup: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def set_up(this_python: bool) -> None:
    """Bring ``.venv`` to the locked state, unless its stamp says that it is."""
    wanted = fingerprint()
    finished = STAMP.is_file() and venv_python().exists()
    of_this_python = venv_version() == sys.version_info[:2]
    if finished and STAMP.read_text() == wanted and (of_this_python or not this_python):
        return
    # Gone until all is well again: an interrupted update must not pass for a finished one.
    STAMP.unlink(missing_ok=True)
    # One that was finished with another Python was wanted so; one that was not may have failed because of it.
    keep = of_this_python or (finished and not this_python)
    if not (keep and works(str(venv_python()), "-m", "pip", "--version")):
        create_venv()
    install_torch()
    say(f"{LOCK.name}: the locked versions")
    pip("install", "--no-deps", "--requirement", str(LOCK), failure=f"cannot install {LOCK.name}")
    say("lorascope itself, editable")
    project = ("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    pip(*project, failure="cannot install the project")
    STAMP.write_text(wanted)
    say("done")


def fingerprint() -> str:
    """A hash over everything that decides what ``.venv`` should hold."""
    digest = hashlib.sha256()
    for path in (LOCK, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def use_a_recent_python() -> None:
    """Start again with the newest suitable Python on PATH if this one is too old."""
    if sys.version_info >= OLDEST_PYTHON:
        return
    for minor in range(NEWEST_LOCKED_PYTHON[1], OLDEST_PYTHON[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and works(found, "-c", ""):
            os.execv(found, [found, *sys.argv])
    raise SetupError(f"Python {platform.python_version()} is too old; install Python 3.10 or later, or make PYTHON=…")


def venv_version() -> tuple[int, int] | None:
    """Major and minor version of the Python in ``.venv``."""
    configuration = VENV / "pyvenv.cfg"
    found = configuration.is_file() and re.search(r"^version\s*=\s*(\d+)\.(\d+)", configuration.read_text(), re.M)
    return (int(found[1]), int(found[2])) if found else None


def create_venv() -> None:
    """An empty ``.venv`` of this Python."""
    say(f".venv with Python {platform.python_version()} ({sys.executable})")
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        hint = "on Debian and Ubuntu install python3-venv"
        raise SetupError(f"cannot create {VENV} ({last_line(made.stdout + made.stderr)}); {hint}")


def install_torch() -> None:
    """The first of the known sources that has torch for this machine."""
    # "===" compares text: "==" would take a CPU build that some index offers, whose version sorts above the plain one.
    cuda = ["torch===" + TORCH]
    cpu = [f"torch=={TORCH}+cpu"]
    cpu_elsewhere = [*cpu, "--extra-index-url", TORCH_CPU_INDEX, "--retries", "2", "--timeout", "30"]
    if has_nvidia_gpu():
        sources = [cuda]
    elif sys.platform != "linux":
        sources = [["torch==" + TORCH]]  # the only build there is one for the CPU
    elif platform.machine() == "x86_64":
        sources = [cpu, cpu_elsewhere]
    else:
        sources = [cpu, cpu_elsewhere, ["torch==" + TORCH]]
    for source in sources:
        say(f"{source[0]}" + (f" from {TORCH_CPU_INDEX}" if "--extra-index-url" in source else ""))
        # Its own dependencies come in their locked versions.
        command = [*pip_command(), "install", "--only-binary", "torch", "--constraint", str(LOCK), *source]
        if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return
    version = ".".join(map(str, venv_version() or ()))
    raise SetupError(
        f"pip finds no torch {TORCH} for Python {version} on {platform.machine()}; connect to {TORCH_CPU_INDEX}, point "
        f"PIP_FIND_LINKS to a directory with the wheel, or choose another Python with make PYTHON=…"
    )


def has_nvidia_gpu() -> bool:
    """True if ``nvidia-smi`` runs and lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU " in listed.stdout


def write_lock() -> None:
    """Resolve the newest versions for Python 3.10 and later on every platform."""
    with tempfile.TemporaryDirectory() as scratch:
        constraint = Path(scratch) / "torch.txt"
        constraint.write_text(f"torch=={TORCH}\n")
        command = [str(venv_python()), "-m", "uv", "pip", "compile", "pyproject.toml", "--extra", "dev", "--universal"]
        command += ["--python-version", ".".join(map(str, OLDEST_PYTHON)), "--constraint", str(constraint)]
        command += ["--no-header", "--no-annotate", "--no-emit-package", "lorascope", "--quiet"]
        resolved = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if resolved.returncode != 0:
        raise SetupError(f"uv cannot resolve the dependencies: {resolved.stderr}")
    pins = [line for line in resolved.stdout.splitlines() if "==" in line and not line.startswith("#")]
    pins = [line for line in pins if not NOT_LOCKED.match(line) and "sys_platform == 'emscripten'" not in line]
    pins = [line.replace(" ; sys_platform != 'emscripten'", "") for line in pins]
    pins = [line.replace(" and sys_platform != 'emscripten'", "") for line in pins]
    header = "# Written by `make lock`. torch and what it brings (CUDA) are left to scripts/setup.py.\n"
    LOCK.write_text(header + "\n".join(pins) + "\n")
    say(f"{LOCK.name}: {len(pins)} pins")


def venv_python() -> Path:
    """The interpreter inside ``.venv``."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip_command() -> list[str]:
    return [str(venv_python()), "-m", "pip", "--disable-pip-version-check", "--quiet"]


def pip(*arguments: str, failure: str) -> None:
    """Run pip inside ``.venv``; its own complaint goes into the error's line."""
    done = subprocess.run([*pip_command(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(f"{failure} ({last_line(done.stdout + done.stderr)}); see what pip {' '.join(arguments)} says")


def works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def say(what: str) -> None:
    print(f"setup: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
