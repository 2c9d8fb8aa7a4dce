"""A rung: the trials of a cohort that are still in the race are scored while they train, and the worse ones leave the stack.

What is decided depends on what the store holds and on the stack's state at that step alone, so a cohort that goes on from a
checkpoint, or starts again, decides as it did before. A configuration is judged with all of its seeds: a cohort that lacks one
of them is not judged. Does not know which trials are worse (``proposals.Pruner``). Floor: ``cohort``.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from lorascope.base_model import BaseModel
from lorascope.cohort.events import Event, TrialEnded
from lorascope.cohort.planner import Cohort
from lorascope.cohort.proposals import Pruner
from lorascope.config import Study
from lorascope.data.task import Notice, Task
from lorascope.evaluate import evaluate
from lorascope.judge import Judge
from lorascope.lora.stack import Stack
from lorascope.store import Store, TrialRow

# Evaluation examples that a rung looks at, spread evenly over the split.
_EXAMPLES = 512


@dataclass(frozen=True)
class Rungs:
    """Where a cohort is judged, and on what."""

    store: Store
    study: Study
    base: BaseModel
    cohort: Cohort
    task: Task
    judge: Judge | None
    pruner: Pruner

    @property
    def num_steps(self) -> int:
        """Of the whole training."""
        return self.cohort.num_steps(len(self.task.train))

    def at(self, step: int) -> bool:
        """Whether the cohort is judged after so many steps."""
        return step in self.pruner.rungs(self.num_steps)

    def judged(self, stack: Stack, step: int, seconds: float, num_examples: int) -> Generator[Event, None, None]:
        """Score the stack's slots and drop those that the pruner does not keep; their trials become ``pruned``.

        Nothing is scored where too few are left to drop one.
        """
        racing = self._racing(step)
        if not _may_drop(self.pruner, [row.trial for row in racing], step, self.num_steps):
            return
        settings = self.study.evaluate.model_copy(update={"decoding": self.study.evaluate.decoding[:1]})
        stride = max(1, -(-len(self.task.eval) // _EXAMPLES))
        chosen = replace(self.task, eval=self.task.eval[::stride])
        evaluations = yield from evaluate(stack, self.base, chosen, settings, self.judge)
        pending = {trial.trial for trial in self.cohort.pending}
        scores: dict[str, float] = {}
        for slot, evaluation in zip(stack.slots, evaluations, strict=True):
            score = evaluation.metrics.get(self.pruner.objective)
            if evaluation.finite and score is not None:
                scores[slot.name] = score
            if slot.name in pending:
                self.store.set_rung(slot.name, step, evaluation.metrics)
        for row in racing:
            if row.trial not in scores and step in row.rungs and self.pruner.objective in row.rungs[step]:
                scores[row.trial] = row.rungs[step][self.pruner.objective]
        kept = self.pruner.keep([row.trial for row in racing], step, self.num_steps, scores)
        dropped = [slot.name for slot in stack.slots if slot.name not in kept]
        stack.keep([slot.name for slot in stack.slots if slot.name in kept])
        for name in dropped:
            if name in pending:
                yield self._pruned(name, step, scores.get(name), f"{len(kept)} of {len(racing)}", seconds, num_examples)

    def _racing(self, step: int) -> Sequence[TrialRow]:
        """The cohort's trials that passed the rung before, diverged ones among them, whether or not this was run before."""
        earlier = max((rung for rung in self.pruner.rungs(self.num_steps) if rung < step), default=None)
        names = {trial.trial for trial in self.cohort.trials}
        rows = [row for row in self.store.trials() if row.trial in names]
        if earlier is None:
            return rows
        return [row for row in rows if earlier in row.rungs and not (row.status == "pruned" and max(row.rungs) <= earlier)]

    def _pruned(self, name: str, step: int, score: float | None, kept: str, seconds: float, num_examples: int) -> TrialEnded:
        scored = "no finite score" if score is None else f"{self.pruner.objective} {score:.4f}"
        message = f"pruned after step {step} of {self.num_steps} with {scored}; {kept} trials went on"
        self.store.update(name, status="pruned", error=message, train_seconds=seconds)
        self.store.update(name, examples_per_second=num_examples / seconds if seconds else None)
        return TrialEnded(name, "pruned", {}, message)


def judging(pruner: Pruner | None, study: Study, cohort: Cohort, task: Task) -> tuple[Pruner | None, list[Notice]]:
    """The pruner where it may drop a trial of this cohort; where it cannot, None and why."""
    num_steps = cohort.num_steps(len(task.train))
    if pruner is None or num_steps == 0:
        return None, []
    names = [trial.trial for trial in cohort.trials]
    seeds: dict[str, set[int]] = {}
    for trial in cohort.trials:
        seeds.setdefault(trial.configuration, set()).add(trial.seed)
    if any(not its.issuperset(study.seeds) for its in seeds.values()):
        reason = "it does not hold all seeds of its configurations, which are judged by the mean over them (allow more slots)"
    elif not any(_may_drop(pruner, names, step, num_steps) for step in pruner.rungs(num_steps)):
        many = "1 configuration is" if len(seeds) == 1 else f"{len(seeds)} configurations are"
        reason = f"{many} too few to drop one (raise design.batch or allow more slots)"
    else:
        return pruner, []
    message = f"no trial of cohort {cohort.name} is pruned: {reason}"
    return None, [Notice("not_pruned", len(names), f"cohort {cohort.name}", message)]


def _may_drop(pruner: Pruner, trials: Sequence[str], step: int, num_steps: int) -> bool:
    """Whether not all would go on, if all did equally well."""
    return bool(trials) and pruner.keep(trials, step, num_steps, dict.fromkeys(trials, 0.0)) != set(trials)
