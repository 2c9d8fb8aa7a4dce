"""How far adapters move a base's hidden states, layer by layer, on the examples of a task.

Loads the base and the data, and hands them to ``evaluate.representations``. Floor: ``analysis``.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import Any

from lorascope.adapter import stack_beside_base
from lorascope.analysis.updates import Inspected
from lorascope.cohort.single import OnBase, prepare
from lorascope.config import EvaluateConfig, TaskConfig
from lorascope.errors import RunError
from lorascope.evaluate.representations import LayerDrift, representation_drift
from lorascope.evaluate.result import EvaluationStep
from lorascope.losses import is_out_of_memory

DriftDocument = Generator[EvaluationStep, None, dict[str, Any]]
# Below so many tokens for each dimension of a hidden state, CKA is too high to be read as it is.
_TOKENS_PER_DIMENSION = 10


def drift_document(adapters: Sequence[Inspected], task: TaskConfig, settings: EvaluateConfig, on: OnBase) -> DriftDocument:
    """Put all adapters on their base and compare its hidden states, with each and without any, on a split's examples.

    Yields:
        Progress.

    Returns:
        What was compared on what, and for each adapter the drift of every layer.

    Raises:
        UsageError: the adapters name different bases, and none is given.
        AdapterError: one does not fit the base, or makes hidden states that are not finite.
        RunError: memory ran out.
    """
    saved = {str(one.directory): one.saved for one in adapters}
    prepared = prepare(on.config(saved), task, settings, on.device)
    stack = stack_beside_base(prepared.base, {one.label: one.saved for one in adapters})
    try:
        found = yield from representation_drift(stack, prepared.base, prepared.task, settings)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fix = "free some, compare fewer adapters at once, or shorten examples with --max-length"
        raise RunError("memory ran out while hidden states were compared", where="inspect", fix=fix) from None
    finally:
        stack.detach()
    facts = {name: value for name, value in prepared.facts.items() if name != "judge"}
    return {
        **facts,
        "warnings": [*facts["warnings"], *_few_tokens(found[0])],
        "dtype": on.dtype,
        "adapters": [
            {"label": one.label, "layers": [asdict(drift) for drift in drifts]}
            for one, drifts in zip(adapters, found, strict=True)
        ],
    }


def _few_tokens(drifts: Sequence[LayerDrift]) -> list[str]:
    """Where CKA is too high; the layers of a side have as many tokens each, and all adapters the same."""
    counts: dict[tuple[int, int], int] = {}
    for drift in drifts:
        if drift.num_tokens < _TOKENS_PER_DIMENSION * drift.width:
            counts[drift.num_tokens, drift.width] = counts.get((drift.num_tokens, drift.width), 0) + 1
    return [
        f"{num_layers} of {len(drifts)} layers were compared on {num_tokens:,} tokens of width {width:,}: below "
        f"{_TOKENS_PER_DIMENSION * width:,} plain CKA (cka in --json) is too high, and the debiased one is uncertain"
        for (num_tokens, width), num_layers in counts.items()
    ]
