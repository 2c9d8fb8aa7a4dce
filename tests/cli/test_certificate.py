"""A certificate on a screen: what decides is there, in words, and figures that are missing are not made up."""

import io

import pytest
from rich.console import Console

from lorascope.cli.certificate import print_certificate


@pytest.fixture
def document():
    row = {"max_difference": 2e-6, "relative_difference": 1e-7, "kl": 3e-12, "kl_max": 4e-11, "top1_agreement": 0.995}
    return {
        "holds": True,
        "level": "outputs",
        "why_level": None,
        "base": {"merged_into": "the weights of base as its files hold them (float32)"},
        "adapter": {"directory": "runs/[a]/adapter", "modules": 6, "scalings": [2.0]},
        "merged": {"directory": "merged", "class": "BertModel", "dtype": "float32", "bytes": 2**30, "files": ["a", "b"]},
        "inputs": {"from": "task sst2, validation", "rows": 8, "positions": 8},
        "effect": {**row, "smallest_relative_update": 1e-3, "largest_relative_update": 2e-2},
        "comparisons": [
            {"name": "adapter, float32", "against": None, "scores": {"accuracy": 0.875}},
            {"name": "merged, reloaded", "against": "adapter, float32", **row, "scores": {"accuracy": 0.75}},
            {"name": "merged and quantised (nf4)", "against": "adapter, float32", **dict.fromkeys(row), "scores": {}},
        ],
        "modules": [
            {"module": f"layer.{n}.query", "ratio": n / 10, "arrived": 1.0, "update_norm": 1.0, "weight_norm": 4.0}
            for n in range(9)
        ],
        "checks": [
            {"name": "update-arrived", "verdict": "warning", "says": "rounding blurs it", "value": 0.8, "tolerance": 0.9},
            {"name": "base-checksum", "verdict": "not judged", "says": "nobody told", "value": None, "tolerance": None},
            {"name": "dtype", "verdict": "holds", "says": "as asked for: float32", "value": None, "tolerance": None},
        ],
    }


def screen(document, width=120):
    console = Console(file=io.StringIO(), width=width)
    print_certificate(console, document)
    return console.file.getvalue()


def test_what_decides_is_on_the_screen(document):
    text = screen(document)
    for part in ("the merge holds", "runs/[a]/adapter: 6 modules, scaling 2", "1.00 GiB in 2 file(s)", "task sst2, validation",
                 "0.5% of the likeliest answers change", "merged, reloaded", "0.8750", "0.7500", "99.50%", "rounding blurs it",
                 "not judged", "module (worst 3 of 9)"):  # fmt: skip
        assert part in text
    assert "layer.8.query" in text
    assert "layer.5.query" not in text
    assert "these hold too: dtype" in text
    assert len(text.splitlines()) < 30


def test_a_failure_is_said_first(document):
    document["holds"] = False
    assert screen(document).startswith("THE MERGE DOES NOT HOLD")


def test_tensors_alone_say_so_and_missing_figures_are_dashes(document):
    document |= {"inputs": None, "comparisons": [], "level": "tensors", "why_level": "the base takes 90 GB", "effect": {}}
    document["modules"][0] |= {"ratio": None, "arrived": None, "weight_norm": 0.0}
    text = screen(document)
    assert "tensors alone: the base takes 90 GB" in text
    assert "none was measured" in text
    document |= {"level": "beforehand", "why_level": "nothing was merged"}
    assert "adapter and base: nothing was merged" in screen(document)
    assert next(line for line in text.splitlines() if "layer.0.query" in line).count("–") == 3
