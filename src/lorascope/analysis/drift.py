"""How far adapters move a base's hidden states, layer by layer, on the examples of a task.

Loads the base and the data, and hands them to ``evaluate.representations``. Floor: ``analysis``.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, replace
from typing import Any

from lorascope.adapter import stack_beside_base
from lorascope.analysis.updates import Inspected
from lorascope.base_model import load_base
from lorascope.cohort.kernels import install_kernels
from lorascope.cohort.planner import packed_weights_budget
from lorascope.cohort.single import base_of_adapter
from lorascope.config import EvaluateConfig, TaskConfig
from lorascope.data.task import encode_task, read_task
from lorascope.errors import RunError, UsageError
from lorascope.evaluate.representations import representation_drift
from lorascope.evaluate.result import EvaluationStep
from lorascope.losses import is_out_of_memory
from lorascope.plan import check_lengths

DriftDocument = Generator[EvaluationStep, None, dict[str, Any]]


def drift_document(
    adapters: Sequence[Inspected],
    task: TaskConfig,
    settings: EvaluateConfig,
    *,
    base_model: str | None,
    dtype: str,
    quantization: str | None = None,
) -> DriftDocument:
    """Put all adapters on their base and compare its hidden states, with each and without any, on a split's examples.

    Args:
        base_model: the base to use; by default the one that the adapters name.

    Yields:
        Progress.

    Returns:
        What was compared on what, and for each adapter the drift of every layer.

    Raises:
        UsageError: the adapters name different bases, and none is given.
        AdapterError: one does not fit the base, or makes hidden states that are not finite.
        RunError: memory ran out.
    """
    configs = [base_of_adapter(one.saved, str(one.directory), base_model, dtype, quantization) for one in adapters]
    named = dict.fromkeys((config.model, config.revision) for config in configs)
    if len(named) > 1:
        told = ", ".join(model if revision is None else f"{model} at {revision}" for model, revision in named)
        raise UsageError(f"the adapters name different bases ({told})", where="inspect", fix="give the base with --base")
    raw = read_task(task, settings.split, with_train=False)
    check_lengths(task, settings, configs[0], generates=raw.generates)
    base = load_base(configs[0], raw.task_type, raw.labels)
    install_kernels(base, packed_weights_budget("cpu"))
    encoded = encode_task(replace(raw, task_type=base.task_type), base.tokenizer, task.max_length)
    stack = stack_beside_base(base, {one.label: one.saved for one in adapters})
    try:
        found = yield from representation_drift(stack, base, encoded, settings)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fix = "free some, compare fewer adapters at once, or shorten examples with --max-length"
        raise RunError("memory ran out while hidden states were compared", where="inspect", fix=fix) from None
    finally:
        stack.detach()
    return {
        "base": configs[0].model,
        "dtype": dtype,
        "task": task.name,
        "split": encoded.eval_split,
        "num_examples": len(encoded.eval),
        "data_checksum": encoded.checksum,
        "base_checksum": base.checksum,
        "adapters": [
            {"label": one.label, "layers": [asdict(drift) for drift in drifts]}
            for one, drifts in zip(adapters, found, strict=True)
        ],
        "warnings": [*(notice.message for notice in encoded.notices), *base.warnings],
    }
