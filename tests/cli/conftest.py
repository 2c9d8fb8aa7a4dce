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
def small_adapter(model_directory: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """``small_adapter(name="adapter", family="bert")``: updates of rank 3 inside r = 8, and BERT a head."""

    def write(name: str = "adapter", family: str = "bert") -> Path:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        from lorascope.lora.peft_io import write_adapter
        from lorascope.lora.stack import Placement, Slot, Stack
        from lorascope.lora.targets import resolve

        path, classifies = str(model_directory(family)), family == "bert"
        model = (
            AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
            if classifies
            else AutoModelForCausalLM.from_pretrained(path)
        )
        heads = ("classifier",) if classifies else ()
        placements = tuple(Placement(target, 8, 2.0) for target in resolve(model, ["output", "down"], heads))
        slot = Slot(name, 1, placements)
        stack = Stack(model, [slot], heads)
        weights = stack.read(0)
        stack.detach()
        generator = torch.Generator().manual_seed(5)
        for key in weights.lora_A:
            num_inputs, num_outputs = weights.lora_A[key].shape[1], weights.lora_B[key].shape[0]
            inner, outer = torch.randn(8, 3, generator=generator), torch.randn(3, 8, generator=generator)
            weights.lora_A[key] = inner @ torch.randn(3, num_inputs, generator=generator) / 8
            weights.lora_B[key] = torch.randn(num_outputs, 3, generator=generator) @ outer / 8
        for value in weights.heads.values():
            value.copy_(torch.randn(value.shape, generator=generator))
        directory = tmp_path / name
        directory.mkdir()
        task_type, labels = ("SEQ_CLS", ["no", "yes"]) if classifies else ("CAUSAL_LM", [])
        write_adapter(directory, weights, slot, model, heads=heads, base_model=path, task_type=task_type, labels=labels)
        return directory

    return write


@pytest.fixture
def causal_adapter(tmp_path: Path, model_directory: Callable[[str], Path]) -> Callable[..., Path]:
    """``causal_adapter(name, seed)``: made by PEFT alone, on the GPT-2."""

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
