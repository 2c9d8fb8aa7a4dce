"""A running study on a terminal and in a log."""

from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from lorascope.cli.progress import StudyProgress
from lorascope.cohort.events import CohortStarted, MapEnded, ProbeDone, StudyStarted, TrialEnded, Warned
from lorascope.cohort.probe import SoloCost
from lorascope.data.task import Notice
from lorascope.evaluate import EvaluationStep
from lorascope.train import SlotStep, StepResult

TASK = SimpleNamespace(shape="JSONL text [label]", train=[1] * 8, eval=[1] * 4, eval_split="validation")


def step(number, names, num_steps=4):
    slots = {name: SlotStep(0.5 + number, 1.0, 1e-3, True) for name in names}
    return StepResult(number, num_steps, 0, slots, 2, 20, 0.01)


EVENTS = [
    StudyStarted(TASK, 4, 3, 12),
    Warned(Notice("truncated", 1, "train", "1 [odd] example was cut")),
    CohortStarted("c1", ("a-s1", "b-s1"), 4, 3 * 2**20),
    ProbeDone("a", SoloCost(1.0, 2.0, 2**20)),
    step(0, ["a-s1", "b-s1"]),
    step(1, ["a-s1", "b-s1"]),
    TrialEnded("b-s1", "diverged", {}, "loss is [nan]"),
    step(2, ["a-s1"]),
    step(3, ["a-s1"]),
    EvaluationStep("classifying", 2, 4),
    EvaluationStep("classifying", 4, 4),
    TrialEnded("a-s1", "done", {"accuracy": 0.75}),
    CohortStarted("c2", ("c-s1",), 4),
    step(0, ["c-s1"]),
    TrialEnded("c-s1", "failed", {}, "RuntimeError: out of memory"),
]


def shown(events, **options):
    console = Console(file=StringIO(), width=120, **options)
    with StudyProgress(console) as progress:
        for event in events:
            progress.show(event)
    return console.file.getvalue(), progress


@pytest.fixture
def _no_time_passes(monkeypatch):
    monkeypatch.setattr("lorascope.cli.progress.time.monotonic", lambda: 100.0)


@pytest.mark.usefixtures("_no_time_passes")
def test_a_log_has_plain_lines():
    text, _ = shown(EVENTS)
    assert text.isascii()
    assert text.splitlines() == [
        "data: JSONL text [label]; 8 train, 4 validation",
        "3 trials to run, 1 finished earlier",
        "warning (truncated): 1 [odd] example was cut",
        "cohort c1: 2 trials, 4 steps, about 3 MiB",
        "a alone: 1.0 s an epoch, 1 MiB",
        "step 1/4, 400 examples/s, 0.0 s left in this cohort, 0.1 s in all, loss 0.5000 0.5000",
        "b-s1 diverged: loss is [nan] (1/3)",
        "step 4/4, 200 examples/s, 0.0 s left in this cohort, 0.0 s in all, loss 3.5000",
        "classifying: 4 examples",
        "a-s1 done: accuracy 0.7500 (2/3)",
        "cohort c2: 1 trial, 4 steps",
        "c-s1 failed: RuntimeError: out of memory (3/3)",
    ]


def test_a_terminal_has_a_bar_for_the_study_and_each_trial():
    text, progress = shown(EVENTS, force_terminal=True)
    assert "\x1b[" in text
    for part in ("study", "a-s1", "c-s1", "loss 0.5000", "[nan]"):
        assert part in text
    tasks = {task.description.strip(): task for task in progress._progress.tasks}
    assert set(tasks) == {"study", "c-s1"}
    assert tasks["study"].completed == tasks["study"].total == 12 + 3


def test_a_cohort_that_starts_again_is_not_counted_twice():
    again = [StudyStarted(TASK, 2, 2, 8), CohortStarted("c1", ("a-s1", "b-s1"), 4), step(0, ["a-s1", "b-s1"])]
    for name in ("a-s1", "b-s1"):
        again += [CohortStarted("c1" + name[0], (name,), 4), *(step(number, [name]) for number in range(4))]
        again.append(TrialEnded(name, "done", {}))
    _, progress = shown(again, force_terminal=True)
    study = progress._progress.tasks[0]
    assert (study.completed, study.total) == (10, 10)


def test_the_time_left_is_that_of_measured_steps_and_of_what_trials_took_besides(monkeypatch):
    now = [50.0]
    monkeypatch.setattr("lorascope.cli.progress.time.monotonic", lambda: now[0])

    def slow(number, names, seconds):
        return replace(step(number, names), seconds=seconds)

    _, progress = shown([StudyStarted(TASK, 3, 3, 12), CohortStarted("c1", ("a-s1", "b-s1"), 4)])
    assert progress._study_left() is None
    progress.show(slow(0, ["a-s1", "b-s1"], 3.0))
    assert progress._study_left() == pytest.approx((12 - 2) * 1.5)
    for number in (1, 2, 3):
        progress.show(slow(number, ["a-s1", "b-s1"], 1.0))
    now[0] += 6.0 + 8.0  # 8 seconds of it for other things than steps
    progress.show(TrialEnded("a-s1", "done", {}))
    progress.show(TrialEnded("b-s1", "done", {}))
    assert progress._study_left() == pytest.approx(4 * 6.0 / 8 + 8.0 / 2)


def test_further_proposals_add_to_the_time_left(monkeypatch):
    monkeypatch.setattr("lorascope.cli.progress.time.monotonic", lambda: 50.0)
    begun = [StudyStarted(TASK, 1, 1, 4), CohortStarted("c1", ("a-s1",), 4), *(step(number, ["a-s1"]) for number in range(4))]
    _, progress = shown([*begun, TrialEnded("a-s1", "done", {}), StudyStarted(TASK, 2, 2, 8)])
    assert progress._study_left() == pytest.approx(8 * 0.01)


def test_the_display_ends_with_an_error():
    with pytest.raises(KeyboardInterrupt):
        shown([*EVENTS[:6], *(raise_interrupt() for _ in range(1))], force_terminal=True)
    console = Console(file=StringIO(), force_terminal=True)
    with pytest.raises(ValueError, match="stop"), StudyProgress(console) as progress:
        progress.show(EVENTS[0])
        raise ValueError("stop")
    assert console.file.getvalue().endswith("\x1b[?25h")  # the cursor is back
    assert console._live_stack == []


def raise_interrupt():
    raise KeyboardInterrupt


def test_a_map_says_what_was_read_and_one_that_diverged_leaves_that_to_the_warning():
    assert shown([MapEnded("one-run-s1", "done", 160, 80.0, 31.0)])[0] == "one-run-s1: 160 coalitions read in 31.0 s\n"
    assert shown([MapEnded("one-run-s1", "diverged")])[0] == ""
