"""A budget of wall-clock time: how much of a cohort still fits into it, by what the study has measured so far.

    seconds of a cohort = examples trained in its slots × seconds per example  +  trials × seconds beside training

Both rates are those of the cohorts so far; before there is one, the first configuration measured alone gives the first, and
an evaluation is taken to cost what training on its examples would. What is begun all the same and does not end in time is cut
off at the deadline. Knows time. Does not know who trains what. Floor: ``cohort``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# A cohort may take so much longer than forecast.
_MARGIN = 1.1


class BudgetSpent(Exception):
    """The deadline came while a cohort was running; not an error of anyone's."""


@dataclass
class Budget:
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

    def check(self) -> None:
        """Raise ``BudgetSpent`` after the deadline."""
        if self.left_seconds <= 0:
            raise BudgetSpent

    def forecast_seconds(self, slot_examples: int, trials: int, num_evaluated: int) -> float:
        """How long a cohort takes, with a margin, that trains so many examples in its slots and evaluates its trials."""
        rate = self.training_seconds / self.slot_examples if self.slot_examples else self._alone
        other = self.other_seconds / self.trials if self.trials else rate * num_evaluated
        return _MARGIN * (slot_examples * rate + trials * other)

    def fitting(self, slot_examples: Sequence[int], num_evaluated: int) -> int:
        """How many trials fit: ``slot_examples[n]`` is what a cohort of the first ``n + 1`` trains in its slots."""
        left = self.left_seconds
        fits = [self.forecast_seconds(examples, n, num_evaluated) <= left for n, examples in enumerate(slot_examples, 1)]
        return max((n for n, fit in enumerate(fits, 1) if fit), default=0)
