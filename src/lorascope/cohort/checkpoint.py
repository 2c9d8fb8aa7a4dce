"""What a killed cohort goes on from, so that it ends with the same bits as one never killed.

After a step the rest of a training depends on its trainable numbers and AdamW's moments, on which slots are left, on the
number of steps done and on the micro-batch that fitted. Nothing else has a state: a learning rate is a function of the step, a
batch of (seed, epoch, step), a dropout mask of (seed, step, module). So these are kept, with what they belong to (study, data,
base, judge, members, layout) and what computed them (machine, threads, kernels, versions). Where training has ended, the
trained numbers alone are kept: evaluation starts from them.

    checkpoints/<cohort>/step-00000120/     values.bin, first_moment.bin, second_moment.bin, cohort.json, manifest.json

A checkpoint appears whole (temporary name, fsync, manifest with the SHA-256 of every file, rename, fsync); the two latest are
kept. One that is torn or altered, or belongs to something else, is refused, and the one before it is taken. One that was
computed otherwise is taken, and a notice says that the bits will differ. Does not know when a cohort is interrupted
(``training``). Floor: ``cohort``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorascope import __version__
from lorascope.base_model import BaseModel
from lorascope.cohort.planner import Cohort
from lorascope.data.task import Notice, Task
from lorascope.errors import StoreError
from lorascope.judge import Judge
from lorascope.lora.stack import Stack
from lorascope.store import Store, atomic_directory
from lorascope.train import StepResult

DIRECTORY = "checkpoints"
FORMAT = 1
_MANIFEST, _COHORT = "manifest.json", "cohort.json"
_KEPT = 2
# Without another wish: so often at most, and at most this share of the time.
_EVERY_SECONDS = 60.0
_SHARE = 0.01
_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Progress:
    """How far a cohort's training has come.

    Attributes:
        step: optimiser steps done.
        micro_batch_size: what fitted into memory in the last of them; None for whole batches.
        seconds: that the steps took, without those that a kill lost.
        num_examples: of one slot.
        peak_bytes: of memory, so far.
    """

    step: int
    micro_batch_size: int | None
    seconds: float = 0.0
    num_examples: int = 0
    peak_bytes: int = 0

    def after(self, step: StepResult) -> Progress:
        """One step further."""
        return replace(
            self,
            step=step.step + 1,
            micro_batch_size=step.micro_batch_size,
            seconds=self.seconds + step.seconds,
            num_examples=self.num_examples + step.num_examples,
        )


class Checkpoints:
    """The checkpoints of one cohort.

    Args:
        every_seconds: how long to train between two of them, 0 for every step; by default a minute, or longer where writing
            one takes more than a hundredth of that.
    """

    def __init__(
        self,
        store: Store,
        cohort: Cohort,
        task: Task,
        base: BaseModel,
        judge: Judge | None,
        every_seconds: float | None = None,
    ) -> None:
        self._store = store
        self._cohort = cohort
        self._num_steps = cohort.num_steps(len(task.train))
        self._directory = store.directory / DIRECTORY / cohort.name
        self._every_seconds = every_seconds
        self._owners = {
            "study": store.study_hash,
            "data": task.checksum,
            "base model": base.checksum,
            "judge": None if judge is None else judge.facts["checksum"],
            "trials": [trial.trial for trial in cohort.trials],
        }
        kernels = cohort.kernels
        self._made_with = {
            **kernels.machine,
            "kernels": kernels.path,
            "fused": list(kernels.fused),
            "rows": "trees" if cohort.packs else "padded",
            "precision": torch.get_float32_matmul_precision(),
            "lorascope": __version__,
        }
        self._kept: list[Path] = []
        self._saved_at = time.monotonic()
        self._cost_seconds = 0.0
        self._told_failure = False

    def due(self) -> bool:
        """Whether the time for another one has come."""
        every = self._every_seconds
        if every is None:
            every = max(_EVERY_SECONDS, self._cost_seconds / _SHARE)
        return time.monotonic() - self._saved_at >= every

    def save(self, stack: Stack, progress: Progress) -> list[Notice]:
        """Write what ``stack`` goes on from. The curves so far must be in the store already.

        Returns:
            A notice, the first time that it cannot be written: training goes on without.
        """
        started = time.monotonic()
        place = self._directory / f"step-{progress.step:08d}"
        if self._kept and self._kept[-1] == place:
            return []
        tensors = stack.parameters.state(with_moments=progress.step < self._num_steps)
        document = {
            "format": FORMAT,
            "progress": asdict(progress),
            "slots": [slot.name for slot in stack.slots],
            "tensors": {
                name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in tensors.items()
            },
            "layout": _layout(stack),
            "owners": self._owners,
            "made_with": self._made_with,
        }
        try:
            with atomic_directory(place) as directory:
                files = {f"{name}.bin": _write_tensor(directory / f"{name}.bin", tensor) for name, tensor in tensors.items()}
                (directory / _COHORT).write_text(json.dumps(document, indent=1), encoding="utf-8")
                files[_COHORT] = _sha256(directory / _COHORT)
                manifest = {"format": FORMAT, "sha256": files}
                (directory / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            self._kept = [*self._kept, place][-_KEPT:]
            _remove_all(entry for entry in self._directory.iterdir() if entry not in self._kept)
            failure = None
        except (StoreError, OSError) as error:
            failure = str(error)
        self._saved_at = time.monotonic()
        self._cost_seconds = self._saved_at - started
        if failure is None or self._told_failure:
            return []
        self._told_failure = True
        message = f"the state of cohort {self._cohort.name} cannot be saved ({failure}); it trains on without"
        return [Notice("checkpoint", 1, f"cohort {self._cohort.name}", message)]

    def restore(self, stack: Stack, trials: Iterable[str]) -> tuple[Progress, list[Notice]]:
        """Put the latest sound checkpoint into ``stack``, a new one of all members; the slots that had left, leave.

        Args:
            trials: those that must be in it, with all of their curves in the store.

        Returns:
            How far it had come, the very beginning where there is none; and what must be told.
        """
        notices: list[Notice] = []
        wanted = list(trials)
        for place in sorted(self._directory.glob("step-*"), reverse=True):
            try:
                document = _read_checked(place)
                progress = self._checked(document, stack, wanted)
            except (_Refused, OSError, ValueError, TypeError, KeyError) as error:
                why = " ".join(str(error).split()) if isinstance(error, _Refused) else f"{type(error).__name__}: {error}"
                notices.append(self._notice(f"the state in {place.name} of cohort {self._cohort.name} is refused: {why}"))
                continue
            stack.keep(document["slots"])
            stack.parameters.load_state(_tensors(place, document["tensors"]))
            self._kept = [place]
            if notices:
                notices.append(
                    self._notice(f"cohort {self._cohort.name} goes on from the state before, after step {progress.step}")
                )
            before, here = document["made_with"], self._made_with
            changes = [f"{name} was {before.get(name)}, is {here[name]}" for name in here if before.get(name) != here[name]]
            if changes:
                message = (
                    f"cohort {self._cohort.name} goes on after step {progress.step} with other bits than without the break"
                )
                notices.append(self._notice(f"{message}: {'; '.join(changes)}"))
            return progress, notices
        if notices:
            notices.append(self._notice(f"cohort {self._cohort.name} has no other state and starts again"))
        return Progress(0, self._cohort.micro_batch_size), notices

    def discard(self) -> None:
        """Forget all of them: the cohort has ended, or has to start again."""
        discard(self._store, self._cohort.name)

    def _checked(self, document: Mapping[str, Any], stack: Stack, trials: Iterable[str]) -> Progress:
        """The progress that the checkpoint records, where it belongs to this cohort.

        Raises:
            _Refused: it does not, or the store lacks a part of the curves.
        """
        if document["format"] != FORMAT:
            raise _Refused(f"its format is {document['format']}, not {FORMAT}")
        changed = [name for name, value in self._owners.items() if document["owners"].get(name) != value]
        if changed:
            raise _Refused(f"it belongs to another {changed[0]}")
        if document["layout"] != _layout(stack):
            raise _Refused("its parameters are laid out otherwise")
        progress = Progress(**document["progress"])
        expected = {"values", "first_moment", "second_moment"} if progress.step < self._num_steps else {"values"}
        missing = expected - document["tensors"].keys()
        if missing:
            raise _Refused(f"{min(missing)} is missing")
        members = [slot.name for slot in stack.slots if slot.name in document["slots"]]
        if members != document["slots"]:
            raise _Refused("it holds trials that are not the cohort's")
        for trial in trials:
            if trial not in members:
                raise _Refused(f"it holds nothing of trial {trial}")
            steps = [row["step"] for row in self._store.steps(trial)[: progress.step]]
            if steps != list(range(progress.step)):
                raise _Refused(f"the curves of trial {trial} are not stored up to step {progress.step}")
        return progress

    def _notice(self, message: str) -> Notice:
        return Notice("checkpoint", 1, f"cohort {self._cohort.name}", message)


def discard(store: Store, cohort: str) -> None:
    """Remove every checkpoint of a cohort."""
    _remove_all([store.directory / DIRECTORY / cohort])
    with suppress(OSError):  # it holds another cohort's
        (store.directory / DIRECTORY).rmdir()


def discard_ended(store: Store, final: Iterable[str]) -> None:
    """Remove the checkpoints of cohorts whose trials all have ended: a kill may have come before that was done."""
    ended = {row.trial for row in store.trials() if row.status in set(final)}
    plans = store.cohorts()
    for place in (store.directory / DIRECTORY).glob("*"):
        if place.name not in plans or ended.issuperset(plans[place.name]["trials"]):
            discard(store, place.name)


class _Refused(Exception):
    """A checkpoint that must not be used, and why."""


def _read_checked(place: Path) -> dict[str, Any]:
    """What a checkpoint records of its cohort.

    Raises:
        _Refused: it is not whole, or a file is not as it was written.
    """
    if not (place / _MANIFEST).is_file():
        raise _Refused("it has no manifest")
    recorded = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))["sha256"]
    if _COHORT not in recorded:
        raise _Refused(f"{_COHORT} is missing")
    for name, checksum in recorded.items():
        if not (place / name).is_file():
            raise _Refused(f"{name} is missing")
        if _sha256(place / name) != checksum:
            raise _Refused(f"{name} is not as it was written (its SHA-256 differs)")
    document: dict[str, Any] = json.loads((place / _COHORT).read_text(encoding="utf-8"))
    absent = [name for name in document["tensors"] if f"{name}.bin" not in recorded]
    if absent:
        raise _Refused(f"{absent[0]}.bin is missing")
    return document


def _layout(stack: Stack) -> str:
    """Where each parameter lies in a slot's row, as a hash."""
    return hashlib.sha256(repr([(spec.name, spec.shape) for spec in stack.parameters.specs]).encode()).hexdigest()


def _write_tensor(path: Path, tensor: Tensor) -> str:
    """Write a tensor's bytes as they lie in memory; the SHA-256 of what is in the file then."""
    with path.open("wb") as file:
        file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return _sha256(path)


def _tensors(place: Path, shapes: Mapping[str, Any]) -> Iterable[tuple[str, Tensor]]:
    for name, (dtype, shape) in shapes.items():
        content = torch.from_numpy(np.fromfile(place / f"{name}.bin", dtype=np.uint8))
        yield name, content.view(getattr(torch, dtype)).reshape(shape)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _remove_all(places: Iterable[Path]) -> None:
    for place in list(places):
        # Renamed first: a kill must not leave half of one under its name.
        unnamed = place.with_name(f".{place.name}.part")
        with suppress(OSError):
            shutil.rmtree(unnamed, ignore_errors=True)
            place.rename(unnamed)
            shutil.rmtree(unnamed, ignore_errors=True)
