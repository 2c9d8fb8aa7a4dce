"""A running study as it goes: a display that is redrawn on a terminal, plain lines elsewhere; always on stderr. Floor: cli.

Reads the study's events; ``display`` says what the screen looks like. Lines that stay (what ended, what is wrong) are printed
above the display, which disappears at the end.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live

from lorascope.amounts import bytes_text, counted, seconds_text
from lorascope.cli.display import Bar, Display, Row
from lorascope.config import configuration_of
from lorascope.memory import taken_bytes

if TYPE_CHECKING:
    from lorascope.cohort import events
    from lorascope.evaluate import EvaluationStep
    from lorascope.train import StepResult

_LINE_SECONDS = 5.0
# Steps whose mean is the pace, and says how long the others of a cohort will take.
_STEPS_AVERAGED = 50


class StudyProgress:
    """Shows the events of a study as they come.

    On a terminal: how far the study is, the cohort at hand with a line and a loss curve for each trial, throughput, memory and
    the time left. Elsewhere, and on terminals that cannot move the cursor: a line for every event that matters and one every
    five seconds of training. Both end with what became of the trials.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_live = console.is_interactive
        self._display = Display()
        self._live = Live(
            self._display, console=console, transient=True, redirect_stdout=sys.stdout.isatty(), vertical_overflow="crop"
        )
        self._moved_handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._rows: dict[str, Row] = {}
        self._configs: dict[str, Mapping[str, Any]] = {}
        # Per trial what it adds to the study's bar: its steps so far, and one when it ends.
        self._done: dict[str, int] = {}
        self._cohort, self._num_steps, self._foreseen_bytes = "", 0, ""
        # Of the cohort's last steps: seconds, examples and tokens over all slots.
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=_STEPS_AVERAGED)
        # Measured so far: trial-steps and examples of the study, their time, and all the time since it began.
        self._trial_steps = self._examples = 0
        self._training_seconds = 0.0
        self._left_steps = 0
        self._started_at: float | None = None
        self._ended: Counter[str] = Counter()
        self._pending = 0
        self._line_at = 0.0

    def __enter__(self) -> StudyProgress:
        if self._is_live:
            stream = sys.stderr
            self._live.start(refresh=True)
            for handler in _handlers_on(stream):
                self._moved_handlers.append((handler, handler.setStream(sys.stderr)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()
        for handler, stream in self._moved_handlers:
            handler.setStream(stream)
        self._moved_handlers.clear()
        if self._ended:
            self._say(self._summary())

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
            self._say(f"warning ({event.notice.kind}): {event.notice.message}", "yellow")
        elif isinstance(event, StepResult):
            self._step(event)
        elif isinstance(event, EvaluationStep):
            self._evaluate(event)
        elif isinstance(event, events.TrialEnded):
            self._end_trial(event)
        elif isinstance(event, events.MapEnded) and event.status == "done":
            self._say(f"{event.name}: {counted(event.num_coalitions, 'coalition')} read in {seconds_text(event.read_seconds)}")

    def alert(self, text: str) -> None:
        """Show something at once; safe in a signal's handler. A log is left alone."""
        if self._is_live:
            self._display.message = text
        elif self._console.file.isatty():
            os.write(self._console.file.fileno(), f"\n{text}\n".encode())

    def _start(self, event: events.StudyStarted) -> None:
        task = event.task
        done = event.num_trials - event.pending
        self._pending += event.pending
        self._left_steps += event.trial_steps
        if self._started_at is not None:  # a further batch of proposals
            self._say(f"{counted(event.pending, 'further trial')} proposed")
        else:
            self._started_at = time.monotonic()
            self._say(f"data: {task.shape}; {len(task.train)} train, {len(task.eval)} {task.eval_split}")
            skipped = f", {done} finished earlier" if done else ""
            self._say(f"{counted(event.pending, 'trial')} to run{skipped}")
        self._show_study()

    def _start_cohort(self, event: events.CohortStarted) -> None:
        from lorascope.report.words import configuration_labels

        self._configs |= {configuration_of(trial): config for trial, config in event.configs.items()}
        labels = configuration_labels(self._configs)
        self._rows = {
            name: Row(name, labels.get(configuration_of(name), ""), event.num_steps, "waiting") for name in event.trials
        }
        self._display.rows = list(self._rows.values())
        self._display.preparing, self._display.activity = f"preparing {event.cohort}", None
        self._cohort, self._num_steps = event.cohort, event.num_steps
        self._recent.clear()
        self._done |= dict.fromkeys(event.trials, 0)
        memory = "" if event.predicted_peak_bytes is None else f", about {bytes_text(event.predicted_peak_bytes)}"
        self._foreseen_bytes = "" if not memory else f" ({bytes_text(event.predicted_peak_bytes)} foreseen)"
        self._say(f"cohort {event.cohort}: {counted(len(event.trials), 'trial')}, {counted(event.num_steps, 'step')}{memory}")

    def _step(self, event: StepResult) -> None:
        slots = len(event.slots)
        self._recent.append((event.seconds, event.num_examples * slots, event.num_tokens * slots))
        self._trial_steps += slots
        self._examples += event.num_examples * slots
        self._training_seconds += event.seconds
        for name, step in event.slots.items():
            self._done[name] = event.step + 1
            if name in self._rows:
                self._rows[name].status = ""
                self._rows[name].add(event.step, step.loss)
        seconds, examples, tokens = (sum(column) for column in zip(*self._recent, strict=True))
        left = (event.num_steps - event.step - 1) * seconds / len(self._recent)
        rate = f"{examples / seconds:,.0f} examples/s"
        tokens_rate = f"{tokens / seconds:,.0f} tokens/s"
        if self._is_live:
            told = f"step {event.step + 1}/{event.num_steps} · {seconds_text(left)} left"
            self._display.activity = Bar(f"training {self._cohort}", event.step + 1, event.num_steps, told)
            if time.monotonic() - self._line_at > 1:  # the kernel is asked, so not at every step
                self._line_at = time.monotonic()
                self._display.pace = f"{rate} · {tokens_rate} · {bytes_text(taken_bytes())}{self._foreseen_bytes}"
            self._show_study()
        elif event.step + 1 == event.num_steps or time.monotonic() - self._line_at > _LINE_SECONDS:
            self._line_at = time.monotonic()
            losses = " ".join(f"{step.loss:.4f}" for step in event.slots.values())
            self._say(
                f"step {event.step + 1}/{event.num_steps}, {rate}, {tokens_rate}, {seconds_text(left)} left in this cohort, "
                f"{seconds_text(self._study_left())} in all, loss {losses}"
            )

    def _evaluate(self, event: EvaluationStep) -> None:
        for row in list(self._rows.values()):
            row.status = "evaluating" if row.status in ("", "waiting") else row.status
        self._display.activity = Bar(event.stage, event.done, event.total, f"{event.done:,}/{event.total:,} {event.unit}")
        if event.done == event.total:
            self._display.activity, self._display.preparing = None, "going on"
            if not self._is_live:
                self._say(f"{event.stage}: {event.total} {event.unit}")

    def _end_trial(self, event: events.TrialEnded) -> None:
        self._ended[event.status] += 1
        self._done[event.trial] = self._num_steps + 1
        if event.trial in self._rows:
            self._rows[event.trial].status = event.status
        self._show_study()
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
        told = f"{event.trial} {event.status}: {event.error or metrics} ({self._ended.total()}/{self._pending})"
        self._say(told, "red" if event.status in ("diverged", "failed") else "")

    def _show_study(self) -> None:
        total = self._left_steps + self._pending
        left = self._study_left()
        ended = f"{self._ended.total()} of {counted(self._pending, 'trial')}"
        told = ended if left is None else f"{ended} · {seconds_text(left)} left"
        self._display.study = Bar("study", sum(self._done.values()), total, told)

    def _study_left(self) -> float | None:
        """Seconds: what is left of training at the pace of all steps so far, and of the rest at that of the trials so far.

        The rest is evaluation, measuring alone and loading; it is counted as soon as one trial has ended.
        """
        if not self._trial_steps or self._started_at is None:
            return None
        ended = self._ended.total()
        steps = self._left_steps - sum(self._done.values()) + ended
        training = max(0, steps) * self._training_seconds / self._trial_steps
        if not ended:
            return training
        rest = max(0.0, time.monotonic() - self._started_at - self._training_seconds) / ended
        return training + rest * (self._pending - ended)

    def _summary(self) -> str:
        """What became of the trials, in how long."""
        seconds = time.monotonic() - (self._started_at or 0.0)
        became = ", ".join(f"{number} {status}" for status, number in self._ended.items())
        pace = ""
        if self._training_seconds:
            pace = f"; {self._examples / self._training_seconds:,.0f} examples/s while training"
        trials = f"{self._ended.total()} of {counted(self._pending, 'trial')}"
        return f"{trials} ended in {seconds_text(seconds)}: {became}{pace}"

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)


def _handlers_on(stream: Any) -> Iterator[logging.StreamHandler[Any]]:
    """The handlers of all loggers that write to a stream: they hold it themselves, and would write into the display."""
    loggers = [logging.root, *list(logging.root.manager.loggerDict.values())]
    for logger in loggers:
        for handler in logger.handlers if isinstance(logger, logging.Logger) else ():
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                yield handler
