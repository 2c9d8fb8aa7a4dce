"""A running study on a terminal and in a log."""

import logging
import re
import sys
import warnings
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


CONFIGS = {name: {"r": r, "lora_alpha": 2.0 * r, "targets": ["query"]} for name, r in (("a-s1", 4), ("b-s1", 8))}
EVENTS = [
    StudyStarted(TASK, 4, 3, 12),
    Warned(Notice("truncated", 1, "train", "1 [odd] example was cut")),
    CohortStarted("c1", ("a-s1", "b-s1"), 4, 3 * 2**20, CONFIGS),
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


TERMINAL = {"force_terminal": True, "_environ": {"TERM": "xterm-256color"}}


def screen(text):
    """What a terminal that is wide enough shows of what was written: lines, with erased ones gone."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.", text, re.DOTALL):
        if piece == "\n":
            row, column = row + 1, 0
        elif piece == "\r":
            column = 0
        elif piece.endswith("A") and piece.startswith("\x1b["):
            row -= int(piece[2:-1])
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif not piece.startswith("\x1b"):
            lines[row] = lines[row].ljust(column)[:column] + piece + lines[row][column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]


def drawn(progress, width=100):
    """The display's lines as they would be drawn now."""
    console = Console(file=StringIO(), width=width, height=30)
    console.print(progress._display)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


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
        "step 1/4, 400 examples/s, 4,000 tokens/s, 0.0 s left in this cohort, 0.1 s in all, loss 0.5000 0.5000",
        "b-s1 diverged: loss is [nan] (1/3)",
        "step 4/4, 300 examples/s, 3,000 tokens/s, 0.0 s left in this cohort, 0.0 s in all, loss 3.5000",
        "classifying: 4 examples",
        "a-s1 done: accuracy 0.7500 (2/3)",
        "cohort c2: 1 trial, 4 steps",
        "c-s1 failed: RuntimeError: out of memory (3/3)",
        "3 of 3 trials ended in 0.0 s: 1 diverged, 1 done, 1 failed; 280 examples/s while training",
    ]


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_has_the_lines_of_a_log(term):
    text, _ = shown(EVENTS, force_terminal=True, _environ={"TERM": term}, no_color=True)
    moves = re.findall(r"\x1b\[[0-9;?]*[A-HJKhl]", text)
    assert moves == []
    assert "step 4/4, " in text


def test_a_display_shows_the_study_the_cohort_and_a_line_for_each_slot():
    text, progress = shown(EVENTS[:8], **TERMINAL)
    assert "\x1b[" in text
    lines = drawn(progress)
    assert "study" in lines[0]
    assert "1 of 3 trials · " in lines[0]
    assert "training c1" in lines[1]
    assert "step 3/4 · 0.0 s left" in lines[1]
    slots = {line.split()[0]: line for line in lines[2:4]}
    assert ("2.5000" in slots["a-s1"], "r 4" in slots["a-s1"]) == (True, True)
    assert slots["b-s1"].rstrip().endswith("diverged")
    assert re.search(r"[▁▂▃▄▅▆▇█]{3}·", slots["a-s1"])
    assert re.fullmatch(r"[\d,]+ examples/s · [\d,]+ tokens/s · .* \(3 MiB foreseen\)", lines[4])


def test_a_display_goes_and_the_lines_stay():
    text, _ = shown(EVENTS, **TERMINAL)
    lines = [line for line in screen(text) if line]
    assert len([line for line in lines if line.startswith("cohort c")]) == 2
    assert lines[-1].startswith("3 of 3 trials ended in ")
    assert [line for line in lines if "training" in line and "while training" not in line] == []
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize("write", ["warnings", "print", "logging"])
def test_what_libraries_write_stands_above_the_display(write, monkeypatch):
    stream = StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    console = Console(stderr=True, width=100, height=30, **TERMINAL)
    handler = logging.StreamHandler()
    logger = logging.getLogger("test_progress.library")
    logger.addHandler(handler)
    try:
        with StudyProgress(console) as progress:
            for event in EVENTS[:8]:
                progress.show(event)
            if write == "warnings":
                sys.stderr.write(warnings.formatwarning("a library warns", UserWarning, "file.py", 1, ""))
            elif write == "print":
                print("a library warns", file=sys.stderr)
            else:
                logger.error("a library warns")
            progress._live.refresh()
            lines = screen(stream.getvalue())
            (place,) = [number for number, line in enumerate(lines) if "a library warns" in line]
            studies = [number for number, line in enumerate(lines) if line.lstrip().startswith("study")]
            assert len(studies) == 1
            assert place < studies[0]
    finally:
        logger.removeHandler(handler)
    assert handler.stream is stream


def test_a_signals_word_is_in_the_display_and_not_across_it():
    console = Console(file=StringIO(), width=100, height=30, **TERMINAL)
    with StudyProgress(console) as progress:
        for event in EVENTS[:8]:
            progress.show(event)
        before = console.file.getvalue()
        progress.alert("saving after the step in progress")
        assert drawn(progress)[-1] == "saving after the step in progress"
        progress._live.refresh()
        assert "saving after" in console.file.getvalue()[len(before) :]
    log = Console(file=StringIO(), width=100)
    with StudyProgress(log) as progress:
        progress.alert("saving after the step in progress")
    assert log.file.getvalue() == ""


def test_trials_pruned_or_at_evaluation_say_so():
    names = ("a-s1", "b-s1")
    begun = [StudyStarted(TASK, 2, 2, 8), CohortStarted("c1", names, 4)]
    _, progress = shown(begun, **TERMINAL)
    assert [row.status for row in progress._rows.values()] == ["waiting", "waiting"]
    for event in (step(0, names), step(1, names), EvaluationStep("classifying", 1, 4)):
        progress.show(event)
    assert [row.status for row in progress._rows.values()] == ["evaluating", "evaluating"]
    assert "1/4 examples" in drawn(progress)[1]
    progress.show(TrialEnded("b-s1", "pruned", {}, "accuracy 0.1: not among the 1 of 2"))
    progress.show(step(2, ["a-s1"]))
    assert [row.status for row in progress._rows.values()] == ["", "pruned"]


def test_evaluation_without_a_study_has_a_display_too():
    _, progress = shown([], **TERMINAL)
    assert "getting ready" in drawn(progress)[0]
    progress.show(EvaluationStep("hidden states", 2, 4, "batches"))
    (line,) = drawn(progress)
    assert "hidden states" in line
    assert "2/4 batches" in line


def test_a_cohort_that_starts_again_is_not_counted_twice():
    again = [StudyStarted(TASK, 2, 2, 8), CohortStarted("c1", ("a-s1", "b-s1"), 4), step(0, ["a-s1", "b-s1"])]
    for name in ("a-s1", "b-s1"):
        again += [CohortStarted("c1" + name[0], (name,), 4), *(step(number, [name]) for number in range(4))]
        again.append(TrialEnded(name, "done", {}))
    _, progress = shown(again, **TERMINAL)
    study = progress._display.study
    assert (study.done, study.total) == (10, 10)


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
        shown([*EVENTS[:6], *(raise_interrupt() for _ in range(1))], **TERMINAL)
    console = Console(file=StringIO(), **TERMINAL)
    with pytest.raises(ValueError, match="stop"), StudyProgress(console) as progress:
        progress.show(EVENTS[0])
        raise ValueError("stop")
    text = console.file.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
    assert console._live_stack == []


def raise_interrupt():
    raise KeyboardInterrupt


def test_a_map_says_what_was_read_and_one_that_diverged_leaves_that_to_the_warning():
    assert shown([MapEnded("one-run-s1", "done", 160, 80.0, 31.0)])[0] == "one-run-s1: 160 coalitions read in 31.0 s\n"
    assert shown([MapEnded("one-run-s1", "diverged")])[0] == ""
