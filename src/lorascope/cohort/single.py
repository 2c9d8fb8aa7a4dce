"""One adapter from disk: evaluated on its own, or entered into a study as a trial. Floor: ``cohort``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from lorascope.adapter import stack_saved
from lorascope.base_model import load_base
from lorascope.cohort.kernels import install_kernels
from lorascope.cohort.planner import packed_weights_budget
from lorascope.config import AdapterConfig, BaseModelConfig, EvaluateConfig, Study, TaskConfig, TrialConfig, validate
from lorascope.data.task import encode_task, read_task
from lorascope.errors import AdapterError, UsageError
from lorascope.evaluate import Evaluation, EvaluationRun, evaluate
from lorascope.judge import load_judge
from lorascope.lora.peft_io import SavedAdapter, read_adapter
from lorascope.plan import check_lengths


def evaluate_adapter(
    directory: Path,
    task: TaskConfig,
    settings: EvaluateConfig,
    *,
    base_model: str | None,
    dtype: str,
    quantization: str | None = None,
) -> tuple[Evaluation, dict[str, Any]]:
    """Load an adapter's base, put the adapter on it, and score it.

    Args:
        base_model: the base to use; by default the one that the adapter names.
        quantization: ``nf4`` for an adapter that was trained on a packed base; its own file does not say.

    Returns:
        The evaluation, and what it was made of: base, task, split, number of examples and checksums.

    Raises:
        AdapterError: it cannot be read, does not fit the base, or gives numbers that are not finite.
    """
    saved = read_adapter(directory)
    base_config = base_of_adapter(saved, str(directory), base_model, dtype, quantization)
    raw = read_task(task, settings.split, with_train=False)
    check_lengths(task, settings, base_config, generates=raw.generates)
    base = load_base(base_config, raw.task_type, raw.labels)
    install_kernels(base, packed_weights_budget("cpu"))
    encoded = encode_task(replace(raw, task_type=base.task_type), base.tokenizer, task.max_length)
    judge = None if settings.judge is None else load_judge(settings.judge, "cpu")
    stack = stack_saved(base, saved, str(directory))
    try:
        evaluation = _finished(evaluate(stack, base, encoded, settings, judge))[0]
    finally:
        stack.detach()
    if not evaluation.finite:
        raise AdapterError("the adapter's outputs are not finite", where=str(directory), fix="train it again")
    facts: dict[str, Any] = {
        "base": base_config.model,
        "task": task.name,
        "split": encoded.eval_split,
        "num_examples": len(encoded.eval),
        "data_checksum": encoded.checksum,
        "base_checksum": base.checksum,
        "judge": None if judge is None else judge.facts,
        "warnings": [*(notice.message for notice in encoded.notices), *base.warnings],
    }
    facts["decoding"] = [one.record() for one in evaluation.decoded]
    facts["warnings"] += [*evaluation.warnings, *(judge.warnings if judge is not None else [])]
    facts["warnings"] += [f"{one.decoding.label}: {one.unfinished_message}" for one in evaluation.decoded if one.unfinished]
    return evaluation, facts


def base_of_adapter(
    saved: SavedAdapter, where: str, base_model: str | None, dtype: str, quantization: str | None
) -> BaseModelConfig:
    """The base to load for an adapter: ``base_model``, or by default the one that the adapter names.

    Raises:
        UsageError: neither names one, or the dtype or quantisation is unknown.
    """
    model = base_model or saved.base_model
    if model is None:
        raise UsageError("the adapter names no base model", where=where, fix="give it with --base")
    revision = None if base_model else saved.config.get("revision")
    values = {"model": model, "dtype": dtype, "quantization": quantization, "revision": revision}
    config: BaseModelConfig = validate(BaseModelConfig, values, "base")
    return config


def base_path(base: BaseModelConfig) -> str:
    """What an exported adapter names as its base: a directory's full path, or the hub id."""
    model = Path(base.model)
    return str(model.resolve()) if model.is_dir() else base.model


def adapter_trial(study: Study, path: Path) -> TrialConfig:
    """An existing adapter as a trial of ``study``: evaluated, not trained; its configuration is what its own file says.

    Raises:
        AdapterError: it cannot be read.
    """
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


def _finished(run: EvaluationRun) -> list[Evaluation]:
    """Run an evaluation to its end."""
    while True:
        try:
            next(run)
        except StopIteration as stop:
            return cast("list[Evaluation]", stop.value)
