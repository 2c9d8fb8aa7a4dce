"""A budget of wall-clock time: how much of a cohort still fits into it, by what the study has measured so far.

    seconds of a cohort = examples trained in its slots × seconds per example  +  trials × seconds beside training

Both rates are those of the cohorts so far; before there is one, the first configuration measured alone gives the first, and
an evaluation is taken to cost what training on its examples would. What is begun all the same and does not end in time is cut
off at the deadline. Knows time. Does not know who trains what. Floor: ``cohort``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field

from lorascope.cohort.events import Event, Events, ProbeDone
from lorascope.cohort.planner import Cohort
from lorascope.cohort.proposals import Pruner
from lorascope.data.task import Task
from lorascope.train import StepResult

# A cohort may take so much longer than forecast.
_MARGIN = 1.1


@dataclass
class Deadline:
    """So many seconds from when it is made.

    Attributes:
        slot_examples: trained so far, in ``training_seconds``.
        trials: ended so far, with ``other_seconds`` for all of theirs that was no training.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)
    slot_examples: int = 0
    training_seconds: float = 0.0
    trials: int = 0
    other_seconds: float = 0.0
    _alone: float = 0.0

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def left_seconds(self) -> float:
        """Until the deadline; negative after it."""
        return self.seconds - (self.clock() - self.started)

    @property
    def knows(self) -> bool:
        """Whether anything has been measured."""
        return self.slot_examples > 0 or self._alone > 0

    def note_alone(self, examples_per_second: float) -> None:
        """What one configuration reached alone; a stack is not slower than its slots one after the other."""
        self._alone = 1.0 / examples_per_second

    def note_cohort(self, slot_examples: int, training_seconds: float, trials: int, seconds: float) -> None:
        """What a cohort took: ``seconds`` in all, for its training and everything beside it."""
        self.slot_examples += slot_examples
        self.training_seconds += training_seconds
        self.trials += trials
        self.other_seconds += seconds - training_seconds

    def forecast_seconds(self, slot_examples: int, trials: int, num_evaluated: int) -> float:
        """How long a cohort takes, with a margin, that trains so many examples in its slots and evaluates its trials."""
        rate = self.training_seconds / self.slot_examples if self.slot_examples else self._alone
        other = self.other_seconds / self.trials if self.trials else rate * num_evaluated
        return _MARGIN * (slot_examples * rate + trials * other)


def within(
    deadline: Deadline, course: Events, cohort: Cohort, task: Task, pruner: Pruner | None
) -> Generator[Event, None, bool]:
    """Carry a cohort out if it is forecast to end in time; False where it is not begun, or is interrupted at the deadline.

    While nothing has been measured, a cohort begins in any case.
    """
    trials, evaluated = len(cohort.pending), len(task.eval)
    expected = _slot_examples(cohort, task, pruner)
    with closing(course) as events:
        if deadline.knows and deadline.forecast_seconds(expected, trials, evaluated) > deadline.left_seconds:
            return False
        begun, slot_examples, training = deadline.clock(), 0, 0.0
        for event in events:
            yield event
            if isinstance(event, ProbeDone) and not deadline.knows:
                deadline.note_alone(event.cost.examples_per_second)
            if isinstance(event, StepResult):
                slot_examples += event.num_examples * len(event.slots)
                training += event.seconds
            if deadline.left_seconds <= 0:
                return False
    deadline.note_cohort(slot_examples, training, trials, deadline.clock() - begun)
    return True


def _slot_examples(cohort: Cohort, task: Task, pruner: Pruner | None) -> int:
    """Examples that the cohort trains in all of its slots, as a pruner would leave them if all did equally well."""
    names = [trial.trial for trial in cohort.pending]
    num_steps = cohort.num_steps(len(task.train))
    total, before = 0, 0
    for step in [*([] if pruner is None else pruner.rungs(num_steps)), num_steps]:
        total += len(names) * (step - before)
        before = step
        if pruner is not None and step < num_steps:
            kept = pruner.keep(names, step, num_steps, dict.fromkeys(names, 0.0))
            names = [name for name in names if name in kept]
    return total * cohort.trials[0].train.batch_size
