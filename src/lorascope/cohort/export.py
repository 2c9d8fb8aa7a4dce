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
from lorascope.errors import StoreError
from lorascope.evaluate import Evaluation
from lorascope.lora.peft_io import HEAD_FILE, write_adapter, write_record
from lorascope.lora.stack import AdapterWeights, Slot
from lorascope.model_card import trial_card
from lorascope.store import Store, atomic_directory, write_atomically


def finish_trial(
    store: Store, base: BaseModel, trial: TrialConfig, weights: AdapterWeights, slot: Slot, evaluation: Evaluation
) -> TrialEnded:
    """Write what a trial leaves behind; its status comes last, so that ``done`` means that all of it is there."""
    if not evaluation.finite:
        message = "the evaluation's loss or logits are not finite"
        store.update(slot.name, status="diverged", error=message)
        return TrialEnded(slot.name, "diverged", {}, message)
    adapter = _write_adapter(store, base, trial, weights, slot, evaluation)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in evaluation.predictions)
    write_atomically(store.directory / "trials" / slot.name / "predictions.jsonl", lines)
    store.set_metrics(slot.name, evaluation.metrics)
    store.set_decodings(slot.name, [one.record() for one in evaluation.decoded])
    store.update(slot.name, adapter=adapter, status="done")
    return TrialEnded(slot.name, "done", evaluation.metrics)


def _write_adapter(
    store: Store, base: BaseModel, trial: TrialConfig, weights: AdapterWeights, slot: Slot, evaluation: Evaluation
) -> str | None:
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
            modules = {placement.target.module for placement in weights.placements}
            card = trial_card(store, trial, evaluation.metrics, base, len(modules))
            (directory / "README.md").write_text(card, encoding="utf-8")
    if weights.placements:
        return str(place.relative_to(store.directory))
    (place / HEAD_FILE).replace(home / HEAD_FILE)
    place.rmdir()
    return None
