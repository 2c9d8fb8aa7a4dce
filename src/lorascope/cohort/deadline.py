"""A budget of wall-clock time: how much of a cohort still fits into it, by what the study has measured so far.

    seconds of a cohort = examples trained in its slots × seconds per example  +  trials × seconds beside training

Both rates are those of the cohorts of the same method so far; before there is one, a configuration measured alone gives the
first, and an evaluation is taken to cost what training on its examples would. A method that was not measured at all goes by
the slowest that was. What is begun all the same and does not end in time is cut off at the deadline. Knows time. Does not know
who trains what. Floor: ``cohort``.
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
class Pace:
    """What cohorts of one method took so far.

    Attributes:
        slot_examples: trained, in ``training_seconds``.
        trials: ended, with ``other_seconds`` for all of theirs that was no training.
        alone_seconds: an example of the configuration that was measured alone first; 0 while there was none.
    """

    slot_examples: int = 0
    training_seconds: float = 0.0
    trials: int = 0
    other_seconds: float = 0.0
    alone_seconds: float = 0.0

    @property
    def example_seconds(self) -> float:
        """Of training one example in one slot; 0 while it is not known."""
        return self.training_seconds / self.slot_examples if self.slot_examples else self.alone_seconds

    def seconds(self, slot_examples: int, trials: int, num_evaluated: int) -> float:
        """Of a cohort that trains so many examples in its slots and evaluates its trials."""
        other = self.other_seconds / self.trials if self.trials else self.example_seconds * num_evaluated
        return slot_examples * self.example_seconds + trials * other


@dataclass
class Deadline:
    """So many seconds from when it is made.

    Attributes:
        seconds: that were asked for.
        spent_seconds: of them, before it was made.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    spent_seconds: float = 0.0
    _paces: dict[str, Pace] = field(init=False, default_factory=dict)
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        self._started = self.clock() - self.spent_seconds

    @property
    def left_seconds(self) -> float:
        """Until the deadline; negative after it."""
        return self.seconds - (self.clock() - self._started)

    @property
    def knows(self) -> bool:
        """Whether any training was measured."""
        return any(pace.example_seconds for pace in self._paces.values())

    def note_alone(self, examples_per_second: float, method: str = "lora") -> None:
        """What a configuration reached alone; a stack is not slower than its slots one after the other."""
        pace = self._paces.setdefault(method, Pace())
        pace.alone_seconds = pace.alone_seconds or 1.0 / examples_per_second

    def note_cohort(
        self, slot_examples: int, training_seconds: float, trials: int, seconds: float, method: str = "lora"
    ) -> None:
        """What a cohort took: ``seconds`` in all, for its training and everything beside it."""
        pace = self._paces.setdefault(method, Pace())
        pace.slot_examples += slot_examples
        pace.training_seconds += training_seconds
        pace.trials += trials
        pace.other_seconds += seconds - training_seconds

    def forecast_seconds(self, slot_examples: int, trials: int, num_evaluated: int, method: str = "lora") -> float:
        """How long a cohort takes, with a margin; 0 while no training was measured."""
        known = {name: pace for name, pace in self._paces.items() if pace.example_seconds}
        paces = [known[method]] if method in known else list(known.values())
        return _MARGIN * max((pace.seconds(slot_examples, trials, num_evaluated) for pace in paces), default=0.0)


def within(
    deadline: Deadline | None, course: Events, cohort: Cohort, task: Task, pruner: Pruner | None
) -> Generator[Event, None, bool]:
    """Carry a cohort out if it is forecast to end in time; False where it is not begun, or is interrupted at the deadline.

    While nothing has been measured, a cohort begins in any case before the deadline.
    """
    if deadline is None:
        yield from course
        return True
    method, trials, evaluated = _method(cohort), len(cohort.pending), len(task.eval)
    expected = _slot_examples(cohort, task, pruner)
    with closing(course) as events:
        if deadline.left_seconds <= deadline.forecast_seconds(expected, trials, evaluated, method):
            return False
        begun, slot_examples, training = deadline.clock(), 0, 0.0
        for event in events:
            yield event
            if isinstance(event, ProbeDone):
                deadline.note_alone(event.cost.examples_per_second, method)
            if isinstance(event, StepResult):
                slot_examples += event.num_examples * len(event.slots)
                training += event.seconds
            if deadline.left_seconds <= 0:
                return False
    deadline.note_cohort(slot_examples, training, trials, deadline.clock() - begun, method)
    return True


def _method(cohort: Cohort) -> str:
    """Heads that train beside adapters take what these do."""
    methods = {trial.adapter.method for trial in cohort.trials}
    return "lora" if len(methods) > 1 else methods.pop()


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
