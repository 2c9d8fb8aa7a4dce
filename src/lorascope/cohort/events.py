"""What a running study tells whoever shows it. Floor: ``cohort``."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorascope.cohort.probe import SoloCost
from lorascope.data.task import Notice, Task
from lorascope.evaluate import EvaluationStep
from lorascope.train import StepResult


@dataclass(frozen=True)
class StudyStarted:
    """Data are read and every trial is known to be possible; ``pending`` trials, ``trial_steps`` in all, remain to be run."""

    task: Task
    num_trials: int
    pending: int
    trial_steps: int


@dataclass(frozen=True)
class CohortStarted:
    """A cohort begins: these trials on one copy of the base, with memory for them by forecast (None: nothing trains).

    ``configs`` holds the trials' flat settings, where they are trials.
    """

    cohort: str
    trials: tuple[str, ...]
    num_steps: int
    predicted_peak_bytes: int | None = None
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeDone:
    """One configuration was measured alone."""

    configuration: str
    cost: SoloCost


@dataclass(frozen=True)
class TrialEnded:
    """A trial reached a final state."""

    trial: str
    status: str
    metrics: Mapping[str, float]
    error: str | None = None


@dataclass(frozen=True)
class MapEnded:
    """Coalitions were read off one adapter and are stored (``done``), or its training diverged; named as its cohort."""

    name: str
    status: str
    num_coalitions: int = 0
    train_seconds: float = 0.0
    read_seconds: float = 0.0


@dataclass(frozen=True)
class Warned:
    """Something was truncated, dropped, replaced or clipped; it is stored too."""

    notice: Notice


Event = StudyStarted | CohortStarted | ProbeDone | TrialEnded | MapEnded | Warned | StepResult | EvaluationStep
Events = Generator[Event, None, None]
