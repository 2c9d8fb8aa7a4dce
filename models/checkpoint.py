"""What a pre-training run keeps so that it goes on exactly: two checkpoints and a log.

``checkpoint.pt`` is the newest step. ``level.pt`` is the step at which the rate begins to fall: a longer run goes on from
there, not from weights that have been cooled down, which stay as ``cooled-STEP.pt``. All hold model and optimiser, the
schedule, the settings that must not change, and ``stages``: from which step on which machine, with how many threads and in
which precision it was computed.

Knows files and what may be continued. Does not know models or data.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lorascope.store.files import write_atomically
from models.corpus import refuse_changes

NEWEST, LEVEL, LOG = "checkpoint.pt", "level.pt", "log.jsonl"


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then level, then linearly to zero over the last ``decay_steps`` (Hu et al. 2024, "MiniCPM", section 4)."""

    peak: float
    warm_up_steps: int
    steps: int
    decay_steps: int

    @property
    def level_end(self) -> int:
        """The step at which the rate begins to fall."""
        return self.steps - self.decay_steps

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        falling = (self.steps - step) / self.decay_steps if self.decay_steps else 1.0
        return self.peak * min(1.0, (step + 1) / self.warm_up_steps, falling)


def beginning(settings: Mapping[str, Any], schedule: Schedule) -> dict[str, Any]:
    """The state before the first step, but for model and optimiser."""
    return {
        "step": 0,
        "seconds": 0.0,
        "settings": dict(settings),
        "schedule": asdict(schedule),
        "stages": [],
        "discarded_steps": 0,
    }


def to_go_on_from(work: Path, settings: Mapping[str, Any], schedule: Schedule) -> dict[str, Any] | None:
    """The state from which a run with this schedule goes on; None where there is none. The log then ends there, too.

    That is the newest checkpoint where all its steps had the rates of this schedule; else the one at the start of the decay.

    Raises:
        SystemExit: the settings are others, or the rate would have begun to fall before any checkpoint that is kept.
    """
    state = read(work / NEWEST)
    if state is None:
        (work / LOG).unlink(missing_ok=True)
        return None
    refuse_changes(work / NEWEST, state["settings"], settings)
    newest, before = state["step"], Schedule(**state["schedule"])
    if before != schedule and newest > min(before.level_end, schedule.level_end):
        state = _branch(work, newest, before, schedule)
    kept = [row for row in read_log(work) if row["step"] < state["step"]]
    write_atomically(work / LOG, "".join(json.dumps(row) + "\n" for row in kept))
    return state | {"schedule": asdict(schedule)}


def _branch(work: Path, newest: int, before: Schedule, schedule: Schedule) -> dict[str, Any]:
    """The state at the start of the decay that the newest checkpoint is in."""
    state = read(work / (LEVEL if newest > before.level_end else NEWEST))
    if state is None:
        raise SystemExit(
            f"{work / LEVEL} is not there, and {NEWEST} lies in a decay; give --steps {before.steps} and its decay"
        )
    first = state["step"]
    if first > schedule.level_end:
        raise SystemExit(
            f"the rate would fall from step {schedule.level_end} on, but the checkpoint of step {first} was made at the full "
            f"rate; give --steps {first + schedule.decay_steps} or more for --decay-steps {schedule.decay_steps}"
        )
    state |= {"schedule": asdict(schedule), "discarded_steps": state["discarded_steps"] + newest - first}
    cooled = work / f"cooled-{newest}.pt"
    shutil.copy(work / NEWEST, cooled)
    # The log is cut after this: a checkpoint never has fewer rows than steps.
    save(work / NEWEST, state)
    print(
        f"step {newest} lies in the decay of a run of {before.steps} steps and is kept as {cooled.name}; going on from step "
        f"{first}, before it",
        flush=True,
    )
    return state


def entered(stages: list[dict[str, Any]], step: int, conditions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages with one that begins at ``step``, unless the last one had the same conditions."""
    if stages and stages[-1]["conditions"] == conditions:
        return stages
    return [*(stage for stage in stages if stage["first_step"] < step), {"first_step": step, "conditions": dict(conditions)}]


def read(path: Path) -> dict[str, Any] | None:
    """A checkpoint; None where there is none."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint whole; the log is on the disk before it."""
    with (path.parent / LOG).open("ab") as log:
        os.fsync(log.fileno())
    with (temporary := path.with_suffix(".tmp")).open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_log(work: Path) -> list[dict[str, Any]]:
    """A row for every step; a last line that was cut off by a crash is none.

    Raises:
        SystemExit: another line cannot be read.
    """
    rows: list[dict[str, Any]] = []
    lines = (work / LOG).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise SystemExit(f"{work / LOG}, line {number}: not a step's; remove the line") from None
    return rows
