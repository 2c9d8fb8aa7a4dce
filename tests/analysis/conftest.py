"""Adapters written as PEFT writes them, from factors alone; no model is needed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

LAYERS = 3
SIZES = {"self_attn.q_proj": (16, 12), "mlp.down_proj": (16, 24)}  # outputs, inputs


def factors(
    r: int = 4, seed: int = 0, layers: int = LAYERS, sizes: Mapping[str, tuple[int, int]] = SIZES
) -> dict[str, Tensor]:
    """PEFT's tensors of an adapter with random numbers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for kind, (outputs, inputs) in sizes.items():
            key = f"base_model.model.model.layers.{layer}.{kind}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(r, inputs, generator=generator)
            tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, r, generator=generator)
    return tensors


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """``adapter(name, tensors, **config)``: a directory with the two files of an adapter."""

    def write(name: str, tensors: Mapping[str, Tensor] | None = None, **config: Any) -> Path:
        directory = tmp_path / name
        directory.mkdir(parents=True)
        tensors = dict(factors() if tensors is None else tensors)
        r = next(len(value) for key, value in tensors.items() if "lora_A" in key)
        whole = {"peft_type": "LORA", "r": r, "lora_alpha": 8, "base_model_name_or_path": "some/base", **config}
        (directory / "adapter_config.json").write_text(json.dumps(whole), encoding="utf-8")
        save_file(tensors, directory / "adapter_model.safetensors")
        return directory

    return write


@pytest.fixture
def random_factors() -> Callable[..., dict[str, Tensor]]:
    """``random_factors(r=4, seed=0, layers=3, sizes=…)``: tensors for ``adapter``."""
    return factors
