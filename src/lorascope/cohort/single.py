"""Adapters from disk: evaluated on their own, several at once, or entered into a study as a trial. Floor: ``cohort``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorascope.adapter import adapter_directory, agreed_base, stack_several
from lorascope.base_model import BaseModel, load_base
from lorascope.cohort.kernels import install_kernels
from lorascope.cohort.planner import packed_weights_budget
from lorascope.config import AdapterConfig, BaseModelConfig, EvaluateConfig, Study, TaskConfig, TrialConfig, validate
from lorascope.data.task import Task, encode_task, read_task
from lorascope.errors import AdapterError
from lorascope.evaluate import Evaluation, evaluate, foreseen_metrics, run_to_end
from lorascope.judge import Judge, load_judge
from lorascope.lora.peft_io import SavedAdapter, read_adapter
from lorascope.plan import fitting_lengths


@dataclass(frozen=True)
class OnBase:
    """The base that adapters from disk are put on, and how it is held.

    Attributes:
        model: a directory or hub id; None for the one that the adapters name.
        quantization: ``nf4`` for adapters that were trained on a packed base.
    """

    model: str | None = None
    dtype: str = "float32"
    quantization: str | None = None
    device: str = "cpu"

    def config(self, adapters: Mapping[str, SavedAdapter]) -> BaseModelConfig:
        """The base to load for these adapters, by the place that an error names; what ``agreed_base`` raises."""
        return agreed_base(adapters, self.model, dtype=self.dtype, quantization=self.quantization)


@dataclass(frozen=True)
class Prepared:
    """A base and a task's examples, ready to score adapters on.

    Attributes:
        task: encoded; only its evaluation split is read.
        foreseen: the metrics with a direction that an evaluation will have.
    """

    config: BaseModelConfig
    base: BaseModel
    task_config: TaskConfig
    task: Task
    settings: EvaluateConfig
    judge: Judge | None
    foreseen: tuple[str, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """What scores are made of: base, task, split, number of examples and checksums."""
        return {
            "base": self.config.model,
            "task": self.task_config.name,
            "split": self.task.eval_split,
            "num_examples": len(self.task.eval),
            "data_checksum": self.task.checksum,
            "base_checksum": self.base.checksum,
            "judge": None if self.judge is None else self.judge.facts,
            "warnings": [*(notice.message for notice in self.task.notices), *self.base.warnings],
        }


def prepare(config: BaseModelConfig, task: TaskConfig, settings: EvaluateConfig, device: str = "cpu") -> Prepared:
    """Load a base and what a task is scored on.

    Args:
        device: where the base and the judge go.
    """
    raw = read_task(task, settings.split, with_train=False)
    task, notices = fitting_lengths(task, settings, config, generates=raw.generates)
    base = load_base(config, raw.task_type, raw.labels, device)
    base.warnings += notices
    install_kernels(base, packed_weights_budget(device))
    encoded = encode_task(replace(raw, task_type=base.task_type), base.tokenizer, task.max_length)
    judge = None if settings.judge is None else load_judge(settings.judge, device)
    return Prepared(config, base, task, encoded, settings, judge, tuple(foreseen_metrics(raw, settings)))


def evaluate_together(prepared: Prepared, adapters: Mapping[str, SavedAdapter]) -> list[Evaluation]:
    """Score adapters in one stack, in their order; one whose outputs are not finite has no metrics.

    Args:
        adapters: by the place that an error names.

    Raises:
        AdapterError: one does not fit the base.
    """
    stack = stack_several(prepared.base, adapters)
    try:
        return run_to_end(evaluate(stack, prepared.base, prepared.task, prepared.settings, prepared.judge))
    finally:
        stack.detach()


def evaluate_adapter(
    directory: Path, task: TaskConfig, settings: EvaluateConfig, on: OnBase
) -> tuple[Evaluation, dict[str, Any]]:
    """Load an adapter's base, put the adapter on it, and score it.

    Args:
        directory: the adapter's, or a trial's that holds it.

    Returns:
        The evaluation, and what it was made of: base, task, split, number of examples and checksums.

    Raises:
        AdapterError: it cannot be read, does not fit the base, or gives numbers that are not finite.
    """
    adapters = {str(directory): read_adapter(adapter_directory(directory))}
    prepared = prepare(on.config(adapters), task, settings, on.device)
    evaluation = evaluate_together(prepared, adapters)[0]
    if not evaluation.finite:
        raise AdapterError("the adapter's outputs are not finite", where=str(directory), fix="train it again")
    facts = prepared.facts
    facts["decoding"] = [one.record() for one in evaluation.decoded]
    facts["warnings"] += [*evaluation.warnings, *(prepared.judge.warnings if prepared.judge is not None else [])]
    facts["warnings"] += [f"{one.decoding.label}: {one.unfinished_message}" for one in evaluation.decoded if one.unfinished]
    return evaluation, facts


def base_path(base: BaseModelConfig) -> str:
    """What an exported adapter names as its base: a directory's full path, or the hub id; PEFT must find it too."""
    model = Path(base.place)
    return str(model.resolve()) if model.is_dir() else base.model


def adapter_trial(study: Study, path: Path) -> TrialConfig:
    """An existing adapter as a trial of ``study``: evaluated, not trained; its configuration is what its own file says.

    Args:
        path: the adapter's directory, or a trial's that holds it.

    Raises:
        AdapterError: it cannot be read.
    """
    path = adapter_directory(path)
    saved = read_adapter(path)
    modules = [placement.target.module for placement in saved.slot.placements]
    values = {
        "path": str(path),
        "r": saved.config.get("r"),
        "lora_alpha": saved.config.get("lora_alpha"),
        "lora_dropout": saved.slot.dropout,
        # Without the layers' names and numbers: a table has to show it.
        "targets": sorted({re.sub(r"^.*\.\d+\.", "", module) for module in modules}),
        "bias": saved.slot.bias,
        "use_rslora": saved.slot.use_rslora,
    }
    adapter = validate(AdapterConfig, values, str(path))
    return TrialConfig(base=study.base, adapter=adapter, train=study.train, seed=study.seeds[0])
