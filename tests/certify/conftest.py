"""Scenes: a base, an adapter of PEFT's and their merge, as the benchmark of planted faults makes them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks").is_dir():
    collect_ignore_glob = ["*"]  # a source distribution has no benchmarks


@pytest.fixture(scope="session")
def merge_faults() -> Any:
    """The module ``benchmarks.merge_faults``."""
    import importlib

    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module("benchmarks.merge_faults")
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture
def scene(merge_faults: Any, tmp_path: Path) -> Callable[..., Any]:
    """``scene(family, size="large", dtype="float32", …)``, merged by PEFT."""

    def make(family: str, size: str = "large", dtype: str = "float32", **options: Any) -> Any:
        made = merge_faults.Scene(tmp_path, family, size, dtype, **options)
        merge_faults.merge_with_peft(made)
        return made

    return make
