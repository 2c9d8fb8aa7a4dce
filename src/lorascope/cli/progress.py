"""What a running study looks like: bars on a terminal, plain lines elsewhere; always on stderr. Floor: cli."""

from __future__ import annotations

import time
from statistics import mean
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from lorascope.amounts import bytes_text, counted, seconds_text

if TYPE_CHECKING:
    from lorascope.cohort import events
    from lorascope.evaluate import EvaluationStep
    from lorascope.train import StepResult

_LINE_SECONDS = 5.0
# Steps whose mean time says how long the others of a cohort will take.
_STEPS_AVERAGED = 50


class StudyProgress:
    """Shows the events of a study as they come.

    On a terminal: one bar for the study in trial-steps with the time left, one for each trial of the cohort at hand with its
    loss, one for the evaluation. Elsewhere: a line for every event that matters and one every five seconds of training.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not self._live,
        )
        self._study: TaskID | None = None
        self._trials: dict[str, TaskID] = {}
        # Per trial what it adds to the study's bar: its steps so far, and one when it ends.
        self._done: dict[str, int] = {}
        self._num_steps = 0
        # Measured so far: the cohort's own steps, trial-steps of the study, and all the time since it began.
        self._cohort_seconds: list[float] = []
        self._trial_steps = 0
        self._training_seconds = 0.0
        self._left_steps = 0
        self._started_at = 0.0
        self._evaluation: TaskID | None = None
        self._ended = 0
        self._pending = 0
        self._total = 0
        self._line_at = 0.0

    def __enter__(self) -> StudyProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def show(self, event: events.Event) -> None:
        """Show one event."""
        from lorascope.cohort import events
        from lorascope.evaluate import EvaluationStep
        from lorascope.train import StepResult

        if isinstance(event, events.StudyStarted):
            self._start(event)
        elif isinstance(event, events.CohortStarted):
            self._start_cohort(event)
        elif isinstance(event, events.ProbeDone):
            cost = event.cost
            alone = f"{seconds_text(cost.seconds_per_epoch)} an epoch, {bytes_text(cost.peak_memory_bytes)}"
            self._say(f"{event.configuration} alone: {alone}")
        elif isinstance(event, events.Warned):
            self._say(f"warning ({event.notice.kind}): {event.notice.message}")
        elif isinstance(event, StepResult):
            self._step(event)
        elif isinstance(event, EvaluationStep):
            self._evaluate(event)
        elif isinstance(event, events.TrialEnded):
            self._end_trial(event)
        elif isinstance(event, events.MapEnded) and event.status == "done":
            self._say(f"{event.name}: {counted(event.num_coalitions, 'coalition')} read in {seconds_text(event.read_seconds)}")

    def _start(self, event: events.StudyStarted) -> None:
        task = event.task
        done = event.num_trials - event.pending
        if self._study is not None:  # a further batch of proposals
            self._pending += event.pending
            self._total += event.trial_steps + event.pending
            self._left_steps += event.trial_steps
            self._progress.update(self._study, total=self._total)
            self._say(f"{counted(event.pending, 'further trial')} proposed")
            return
        self._pending = event.pending
        self._total = event.trial_steps + event.pending
        self._say(f"data: {task.shape}; {len(task.train)} train, {len(task.eval)} {task.eval_split}")
        skipped = f", {done} finished earlier" if done else ""
        self._say(f"{counted(event.pending, 'trial')} to run{skipped}")
        self._left_steps = event.trial_steps
        self._started_at = time.monotonic()
        self._study = self._progress.add_task("study", total=event.trial_steps + event.pending, note="", left="")

    def _start_cohort(self, event: events.CohortStarted) -> None:
        for task in self._trials.values():
            self._progress.remove_task(task)
        self._trials = {
            name: self._progress.add_task(f"  {name}", total=event.num_steps, note="", left="") for name in event.trials
        }
        self._num_steps = event.num_steps
        self._cohort_seconds = []
        self._done |= dict.fromkeys(event.trials, 0)
        memory = "" if event.predicted_peak_bytes is None else f", about {bytes_text(event.predicted_peak_bytes)}"
        self._say(f"cohort {event.cohort}: {counted(len(event.trials), 'trial')}, {counted(event.num_steps, 'step')}{memory}")

    def _step(self, event: StepResult) -> None:
        rate = event.num_examples * len(event.slots) / event.seconds
        self._cohort_seconds.append(event.seconds)
        self._trial_steps += len(event.slots)
        self._training_seconds += event.seconds
        left = (event.num_steps - event.step - 1) * mean(self._cohort_seconds[-_STEPS_AVERAGED:])
        for name, step in event.slots.items():
            note = f"loss {step.loss:.4f}"
            self._progress.update(self._trials[name], completed=event.step + 1, note=note, left=seconds_text(left))
            self._done[name] = event.step + 1
        self._show_study(f"{rate:,.0f} examples/s over {counted(len(event.slots), 'trial')}")
        last = event.step + 1 == event.num_steps
        if not self._live and (last or time.monotonic() - self._line_at > _LINE_SECONDS):
            self._line_at = time.monotonic()
            losses = " ".join(f"{step.loss:.4f}" for step in event.slots.values())
            self._say(
                f"step {event.step + 1}/{event.num_steps}, {rate:,.0f} examples/s, "
                f"{seconds_text(left)} left in this cohort, {seconds_text(self._study_left())} in all, loss {losses}"
            )

    def _evaluate(self, event: EvaluationStep) -> None:
        if self._evaluation is None:
            self._evaluation = self._progress.add_task("", total=event.total, note="", left="")
        self._progress.update(
            self._evaluation, description=f"  {event.stage}", completed=event.done, total=event.total, note=event.unit
        )
        if event.done == event.total:
            self._progress.remove_task(self._evaluation)
            self._evaluation = None
            if not self._live:
                self._say(f"{event.stage}: {event.total} {event.unit}")

    def _end_trial(self, event: events.TrialEnded) -> None:
        self._ended += 1
        self._done[event.trial] = self._num_steps + 1
        self._show_study()
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
        self._say(f"{event.trial} {event.status}: {event.error or metrics} ({self._ended}/{self._pending})")

    def _show_study(self, note: str | None = None) -> None:
        if self._study is None:
            return
        self._progress.update(self._study, completed=sum(self._done.values()), left=seconds_text(self._study_left()))
        if note is not None:
            self._progress.update(self._study, note=note)

    def _study_left(self) -> float | None:
        """Seconds: what is left of training at the pace of all steps so far, and of the rest at that of the trials so far.

        The rest is evaluation, measuring alone and loading; it is counted as soon as one trial has ended.
        """
        if not self._trial_steps:
            return None
        steps = self._left_steps - sum(self._done.values()) + self._ended
        training = max(0, steps) * self._training_seconds / self._trial_steps
        if not self._ended:
            return training
        rest = max(0.0, time.monotonic() - self._started_at - self._training_seconds) / self._ended
        return training + rest * (self._pending - self._ended)

    def _say(self, text: str) -> None:
        self._progress.console.print(escape(text), highlight=False, soft_wrap=True)
