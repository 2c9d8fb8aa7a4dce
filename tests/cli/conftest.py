"""The command line called in-process, and a small study file to give it."""

import json
import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorascope.cli import app, main


@dataclass
class Ended:
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    """``cli("run", path, "--json")``: what the process would have done. Warnings stay errors."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(app, "_quieten_libraries", lambda: None)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lorascope", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ended(ended.value.code, captured.out, captured.err)

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory of ``train.jsonl`` and ``validation.jsonl`` (text + label)."""
    directory = tmp_path / "data"
    directory.mkdir()
    lengths = random.Random(1).sample(range(1, 19), 18)
    for split, chosen in (("train", lengths[:12]), ("validation", lengths[12:])):
        rows = [{"text": "the film is " + "warm " * count, "label": ("no", "yes")[i % 2]} for i, count in enumerate(chosen)]
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return directory


@pytest.fixture
def study_file(tmp_path: Path, data: Path, model_directory: Callable[[str], Path]) -> Callable[..., Path]:
    """``study_file(**sections)``: a YAML file of two BERT trials and six steps, with some sections replaced."""

    def write(**sections: Any) -> Path:
        study = {
            "name": "tiny",
            "base": {"model": str(model_directory("bert"))},
            "task": {"name": "file", "data": str(data), "max_length": 32},
            "train": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2},
            "seeds": [1],
            "design": {"kind": "list", "trials": [{"r": 2, "targets": ["query"]}, {"r": 4, "targets": "all-linear"}]},
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study | sections, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def peft_adapter(tmp_path: Path, model_directory: Callable[[str], Path]) -> Callable[..., Path]:
    """``peft_adapter(name, seed)``: made by PEFT alone, on the GPT-2."""

    import peft
    import torch
    from transformers import AutoModelForCausalLM

    def make(name: str, seed: int, family: str = "gpt2", target: str = "c_attn") -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            transposed = family == "gpt2"
            config = peft.LoraConfig(r=2, target_modules=[target], task_type="CAUSAL_LM", fan_in_fan_out=transposed)
            model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_directory(family)), config)
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.data += torch.randn_like(parameter)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make
