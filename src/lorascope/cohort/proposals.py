"""Trials that are not all known when a study begins: who proposes them, and who stops hopeless ones.

``design`` and ``attribution`` implement these protocols, one floor up; a study only calls them. Floor: ``cohort``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from lorascope.config import TrialConfig
from lorascope.store import TrialRow


@runtime_checkable
class Proposer(Protocol):
    """Proposes a study's trials, some at a time, and learns from what the earlier ones gave."""

    def propose(self, rows: Sequence[TrialRow]) -> list[TrialConfig]:
        """The trials to carry out next; none ends the study.

        A pure function of the rows, which are all that the store holds, in order, so that a resumed study goes on as one that
        was never interrupted. While trials of the last proposal have not ended (a budget or a kill left them ``planned`` or
        ``interrupted``), it is that proposal again: what is done in it is not done twice. ``propose([])`` is what a new study
        begins with; it is checked, as is everything in ``foreseen`` where there is such a method, before anything is written.
        """
        ...


@runtime_checkable
class Foreseeing(Protocol):
    """A proposer that knows what it may propose: trials that between them hold every extreme."""

    def foreseen(self) -> list[TrialConfig]:
        """Trials to be found possible before anything is written; they are not carried out."""
        ...


@runtime_checkable
class Pruner(Protocol):
    """Stops the worse trials of a cohort while it trains. A proposer may be one."""

    @property
    def objective(self) -> str:
        """The metric that ``keep`` is told."""
        ...

    def rungs(self, num_steps: int) -> list[int]:
        """The numbers of steps done at which the cohort is judged, rising, all below ``num_steps``."""
        ...

    def keep(self, trials: Sequence[str], step: int, num_steps: int, scores: Mapping[str, float]) -> set[str]:
        """Those of ``trials`` that go on.

        Args:
            trials: that passed the rung before, in order, with those that have diverged since.
            scores: the objective on the rung's examples; a trial that diverged has none.
        """
        ...


def has_ended(row: TrialRow) -> bool:
    """Whether nothing more is to be learned from the trial in this run; a failed one is tried again only by a later run."""
    return row.status in ("done", "pruned", "diverged", "failed")
