"""What ``lorascope results`` prints: one row per trial, over the shards of a study. Floor: store."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lorascope.config import BaseModelConfig
from lorascope.errors import UsageError
from lorascope.store.database import Store, TrialRow

# Where shards disagree about a trial, the one that got further knows more.
_ADVANCE = {"planned": 0, "running": 1, "interrupted": 2, "failed": 3, "diverged": 3, "pruned": 3, "done": 4}


def merge_results(stores: Sequence[Store]) -> list[TrialRow]:
    """One row per trial over the shards of one study; where several know a trial, the one that got furthest.

    Raises:
        UsageError: the directories hold different studies.
    """
    return [row for _, row in merged_rows(stores)]


def by_configuration(rows: Iterable[TrialRow]) -> dict[str, list[TrialRow]]:
    """Rows by configuration, in order of first appearance."""
    found: dict[str, list[TrialRow]] = {}
    for row in rows:
        found.setdefault(row.configuration, []).append(row)
    return found


def results_document(stores: Sequence[Store]) -> dict[str, Any]:
    """The JSON document of ``lorascope results``: strict JSON, absent figures null.

    ``adapter`` is relative to the study's directory; with several directories it starts with the one that holds it.

    Raises:
        UsageError: the directories hold different studies.
    """
    trials = []
    for store, row in merged_rows(stores):
        adapter = row.adapter
        if adapter is not None and len(stores) > 1:
            adapter = (store.directory / adapter).as_posix()
        trials.append(
            {
                "trial": row.trial,
                "seed": row.seed,
                "status": row.status,
                "config": row.config,
                "trainable_params": row.trainable_params,
                "total_params": row.total_params,
                "peft_total_params": row.peft_total_params,
                "trainable_percent": row.trainable_percent,
                "metrics": _strict(row.metrics),
                "rungs": [{"step": step, "metrics": _strict(metrics)} for step, metrics in sorted(row.rungs.items())],
                "decoding": store.decodings(row.trial),
                "train_seconds": row.train_seconds,
                "examples_per_second": row.examples_per_second,
                "peak_memory_bytes": row.peak_memory_bytes,
                "solo_train_seconds_per_epoch": row.solo_train_seconds_per_epoch,
                "solo_examples_per_second": row.solo_examples_per_second,
                "solo_peak_memory_bytes": row.solo_peak_memory_bytes,
                "adapter": adapter,
                "error": row.error,
            }
        )
    cohorts = [{"cohort": name, **plan} for store in stores for name, plan in store.cohorts().items()]
    return {
        "study": stores[0].study.name,
        "trials": trials,
        "shapley": {},
        "judge": next((judge for store in stores if (judge := store.info("judge")) is not None), None),
        "cohorts": cohorts,
        "warnings": _warnings(stores),
    }


def _strict(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _warnings(stores: Sequence[Store]) -> list[dict[str, Any]]:
    """Everything that was counted on the way, once however many shards counted it; ``trial`` null for the whole study."""
    rows = [row for store in stores for row in store.warnings()]
    return [dict(items) for items in dict.fromkeys(tuple(sorted(row.items())) for row in rows)]


def merged_rows(stores: Sequence[Store]) -> list[tuple[Store, TrialRow]]:
    """The chosen row of each trial with its store, in the order of first appearance."""
    if not stores:
        raise UsageError("no study given", fix="give the directory of a run")
    chosen: dict[str, tuple[Store, TrialRow]] = {}
    for store in stores:
        if store.study_hash != stores[0].study_hash:
            raise UsageError(
                f"another study than in {stores[0].directory}",
                where=str(store.directory),
                fix="give only the shards of one study",
            )
        _check_same_inputs(stores[0], store)
        for row in store.trials():
            if row.trial not in chosen or _ADVANCE[row.status] > _ADVANCE[chosen[row.trial][1].status]:
                chosen[row.trial] = (store, row)
    return list(chosen.values())


def _check_same_inputs(one: Store, other: Store) -> None:
    """Shards that were trained on different data, or on different weights under one name, are no one study."""
    data = {row.data_checksum for store in (one, other) for row in store.trials()} - {None}
    bases = {(_base_of(row), row.base_checksum) for s in (one, other) for row in s.trials() if row.base_checksum is not None}
    judges = {judge["checksum"] for store in (one, other) if (judge := store.info("judge")) is not None}
    differing = {
        "trained on different data": len(data) > 1,
        "trained on different base weights": len(bases) > len({base for base, _ in bases}),
        "judged by different models": len(judges) > 1,
    }
    for what, differs in differing.items():
        if differs:
            where = f"{one.directory} and {other.directory}"
            raise UsageError(what, where=where, fix="give shards that ran on the same ones")


def _base_of(row: TrialRow) -> tuple[Any, ...]:
    """What the trial's configuration says of its base."""
    return tuple(row.config.get(key) for key in BaseModelConfig.model_fields)


def strict_json(value: Any) -> Any:
    """The value as strict JSON can hold it: null for NaN and infinities, names as text, lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
