"""A cohort's events, sent on to the study's trackers as they come.

Reads the steps and the ends of trials, and from the store what is known of a trial when it has ended: evaluation, costs and
checks, and the figures of its adapter as it was written. Does not know the services (``tracking``). Floor: ``cohort``.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from lorascope.cohort.events import CohortStarted, Events, MapEnded, TrialEnded
from lorascope.cohort.training import warn
from lorascope.config import Study
from lorascope.data.task import Notice
from lorascope.errors import AdapterError, StoreError
from lorascope.lora.diagnostics import diagnose, overall
from lorascope.lora.peft_io import read_adapter
from lorascope.store import Store, TrialRow
from lorascope.tracking import Origin, Row, Tracking
from lorascope.train import StepResult

_FLUSH_SECONDS = 2.0
# After a flush so many times as long as it took passes without one: at most 2 % of the time goes into trackers.
_REST = 50.0
_EFFICIENCY = (
    "trainable_params", "total_params", "peft_total_params", "trainable_percent", "train_seconds", "examples_per_second",
    "peak_memory_bytes", "solo_train_seconds_per_epoch", "solo_examples_per_second", "solo_peak_memory_bytes",
)  # fmt: skip


def open_tracking(store: Store, study: Study) -> Tracking:
    """The trackers that the study asks for, which know the runs of the study's earlier parts."""
    names = study.tracking.to
    if not names:
        return Tracking({})
    identity = store.info("tracking")
    if identity is None:
        identity = secrets.token_hex(4)
        store.set_info("tracking", identity)
    tags = {"task": study.task.name, "design": study.design.kind, "base": Path(study.base.model).name}
    return Tracking.to(names, Origin(study.name, study.tracking.project, store.directory, identity, tags))


def follow(events: Events, store: Store, tracking: Tracking, others: Mapping[str, Mapping[str, Any]] | None = None) -> Events:
    """The events of a cohort as they come, each sent on before it is handed over; a tracker that fails becomes a warning.

    Args:
        others: configurations of runs that are no trials of the store, by name.
    """
    if not tracking:
        yield from events
        return
    buffers: dict[str, list[Row]] = {}
    due = 0.0
    try:
        with closing(events):
            for event in events:
                if isinstance(event, CohortStarted):
                    _begin(store, tracking, event.trials, others or {})
                elif isinstance(event, StepResult):
                    for name, slot_step in event.slots.items():
                        values = [
                            slot_step.loss,
                            slot_step.grad_norm,
                            slot_step.learning_rate,
                            event.seconds,
                            event.num_tokens,
                        ]
                        buffers.setdefault(name, []).append((event.step, _curves(values)))
                    if time.perf_counter() >= due or event.step + 1 == event.num_steps:
                        due = _flush(tracking, buffers)
                elif isinstance(event, TrialEnded):
                    _flush(tracking, {event.trial: buffers.pop(event.trial, [])})
                    yield from _finish(store, tracking, event)
                elif isinstance(event, MapEnded):
                    _flush(tracking, {event.name: buffers.pop(event.name, [])})
                    costs = {"train_seconds": event.train_seconds, "read_seconds": event.read_seconds}
                    tracking.summary(event.name, {f"efficiency/{name}": value for name, value in costs.items()})
                    tracking.end(event.name, event.status)
                yield event
                yield from warn(store, failures(tracking))
    finally:
        _flush(tracking, buffers)
        _end_all(store, tracking)


def failures(tracking: Tracking) -> list[Notice]:
    """What failed since it was last asked."""
    return [Notice("tracking", 1, "tracking", message) for message in tracking.take_failures()]


def _begin(store: Store, tracking: Tracking, trials: Iterable[str], others: Mapping[str, Mapping[str, Any]]) -> None:
    """Open the trials' runs, with the steps that the store keeps of an earlier part of the study."""
    rows = {row.trial: row for row in store.trials()}
    for name in trials:
        tracking.begin(name, {**rows[name].config, "seed": rows[name].seed} if name in rows else others[name])
        keys = ("loss", "grad_norm", "learning_rate", "seconds", "tokens")
        tracking.log(name, [(step["step"], _curves([step[key] for key in keys])) for step in store.steps(name)])


def _curves(values: Sequence[float | None]) -> dict[str, float]:
    """The curves of one step: loss, gradient norm, learning rate, and the slot's tokens in the whole stack's seconds."""
    *measured, seconds, tokens = values
    rate = tokens / seconds if seconds and tokens is not None else None
    names = ("loss", "grad_norm", "learning_rate", "tokens_per_second")
    return {f"training/{name}": value for name, value in zip(names, [*measured, rate], strict=True) if value is not None}


def _flush(tracking: Tracking, buffers: Mapping[str, list[Row]]) -> float:
    """Send what has gathered; returns when the next flush is due."""
    started = time.perf_counter()
    for name, rows in buffers.items():
        tracking.log(name, rows)
        rows.clear()
    ended = time.perf_counter()
    return ended + max(_FLUSH_SECONDS, _REST * (ended - started))


def _finish(store: Store, tracking: Tracking, event: TrialEnded) -> Events:
    """Send the figures of a trial that has ended, and close its runs."""
    row = next(row for row in store.trials() if row.trial == event.trial)
    figures = {f"eval/{name}": value for name, value in event.metrics.items()} | _efficiency(store, row)
    if event.status == "done":
        figures |= _verification(row)
        try:
            figures |= _adapter(store, row)
        except (AdapterError, RuntimeError) as error:
            message = f"no figures of the adapter of {row.trial} for the trackers ({' '.join(str(error).split())[:300]})"
            yield from warn(store, [Notice("tracking", 1, "tracking", message)], row.trial)
    tracking.summary(event.trial, figures)
    tracking.end(event.trial, event.status)


def _efficiency(store: Store, row: TrialRow) -> dict[str, float]:
    """What the trial cost, measured alone and with the cohort."""
    figures = {name: getattr(row, name) for name in _EFFICIENCY}
    cohort: dict[str, Any] = store.cohorts().get(row.cohort or "", {})
    figures["cohort_trials"] = len(cohort["trials"]) if cohort else None
    figures |= {f"cohort_{name}": cohort.get(name) for name in ("predicted_peak_bytes", "measured_peak_bytes")}
    return {f"efficiency/{name}": value for name, value in figures.items() if value is not None}


def _verification(row: TrialRow) -> dict[str, float]:
    """What was checked of a base that is to stay as it is: a trial is only ``done`` where all of it held."""
    if row.config["method"] == "full":
        return {}
    return {"verification/base_frozen": 1.0, "verification/checksum_equal": 1.0, "verification/base_gradients": 0.0}


def _adapter(store: Store, row: TrialRow) -> dict[str, float]:
    """Size and rank of every update and of all, from the adapter as it was written or as it was brought along."""
    path = row.config.get("path") if row.adapter is None else store.directory / row.adapter
    if path is None:
        return {}
    updates = diagnose(read_adapter(path).weights)
    whole = overall(updates.values())
    figures: dict[str, float] = {}
    for suffix, one in [("", whole), *((f"/{key}", update) for key, update in updates.items())]:
        if one is not None:
            figures |= {f"adapters/{name}{suffix}": getattr(one, name) for name in ("norm", "norm_A", "norm_B")}
            figures |= {
                f"rank/{name}{suffix}": getattr(one, name) for name in ("effective_rank", "stable_rank", "utilisation")
            }
    return figures


def _end_all(store: Store, tracking: Tracking) -> None:
    """Close what is still open, with what the store says of the trial, also where nobody listens any more."""
    statuses: dict[str, str] = {}
    with suppress(StoreError):
        statuses = {row.trial: row.status for row in store.trials()}
    for name in tracking.open_trials:
        status = statuses.get(name, "interrupted")
        tracking.end(name, "interrupted" if status in ("planned", "running") else status)
    with suppress(StoreError):
        for notice in failures(tracking):
            store.add_warning(None, notice.kind, notice.count, notice.where, notice.message)
