"""What a trial leaves behind: its adapter in PEFT's format with a model card, its predictions and its metrics.

Floor: ``cohort``.
"""

from __future__ import annotations

import json

from safetensors import SafetensorError

from lorascope.base_model import BaseModel
from lorascope.cohort.events import TrialEnded
from lorascope.cohort.single import base_path
from lorascope.config import TrialConfig
from lorascope.data.task import Notice
from lorascope.errors import StoreError
from lorascope.evaluate import Evaluation
from lorascope.lora.peft_io import HEAD_FILE, write_adapter, write_record
from lorascope.lora.stack import AdapterWeights, Slot
from lorascope.model_card import trial_card
from lorascope.store import Store, atomic_directory, write_atomically
from lorascope.store.files import fsync


def finish_trial(
    store: Store, base: BaseModel, trial: TrialConfig, weights: AdapterWeights, slot: Slot, evaluation: Evaluation
) -> tuple[TrialEnded, list[Notice]]:
    """Write what a trial leaves behind; its status comes last, so that ``done`` means that all of it is there.

    Returns:
        How the trial ended, and what could not be written of what it does not need.
    """
    if not evaluation.finite:
        message = "the evaluation's loss or logits are not finite"
        store.update(slot.name, status="diverged", error=message)
        return TrialEnded(slot.name, "diverged", {}, message), []
    adapter, notices = _write_adapter(store, base, trial, weights, slot), []
    if adapter is not None:
        notices = _write_card(store, base, trial, weights, adapter, evaluation)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in evaluation.predictions)
    write_atomically(store.directory / "trials" / slot.name / "predictions.jsonl", lines)
    store.set_metrics(slot.name, evaluation.metrics)
    store.set_decodings(slot.name, [one.record() for one in evaluation.decoded])
    store.update(slot.name, adapter=adapter, status="done")
    return TrialEnded(slot.name, "done", evaluation.metrics), notices


def _write_adapter(store: Store, base: BaseModel, trial: TrialConfig, weights: AdapterWeights, slot: Slot) -> str | None:
    """The trial's adapter in PEFT's format, by its path within the study; None where there is nothing but a head."""
    if trial.adapter.path is not None or not (weights.placements or weights.biases or weights.heads):
        return None
    model = base_path(trial.base)
    home = store.directory / "trials" / slot.name
    place = home / ("adapter" if weights.placements else "head")
    with atomic_directory(place) as directory:
        try:
            write_adapter(
                directory,
                weights,
                slot,
                base.model,
                heads=base.heads,
                base_model=model,
                revision=trial.base.revision,
                task_type=base.task_type,
            )
        except SafetensorError as error:  # it wraps the system's error, a full disk among them
            raise StoreError(f"cannot write ({error})", where=str(place), fix="free some space, then use --resume") from error
        if weights.placements:
            origin = {"checksum": base.checksum, "dtype": trial.base.dtype, "quantization": trial.base.quantization}
            if base.unpacked_checksum is not None:
                origin["unpacked_checksum"] = base.unpacked_checksum
            write_record(directory, base.labels, origin)
    if weights.placements:
        return str(place.relative_to(store.directory))
    (place / HEAD_FILE).replace(home / HEAD_FILE)
    place.rmdir()
    fsync(home)
    return None


def _write_card(
    store: Store, base: BaseModel, trial: TrialConfig, weights: AdapterWeights, adapter: str, evaluation: Evaluation
) -> list[Notice]:
    """The short card beside the adapter, which is on the disk by then: one that cannot be made costs a warning and no more."""
    modules = {placement.target.module for placement in weights.placements}
    try:
        card = trial_card(store, trial, evaluation.metrics, base, len(modules))
    except ValueError as error:
        message = f"the adapter has no model card ({' '.join(str(error).split())}); `lorascope export` writes one"
        return [Notice("model_card", 1, adapter, message)]
    write_atomically(store.directory / adapter / "README.md", card)
    return []
