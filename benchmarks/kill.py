"""``python -m benchmarks.kill``: kill a small study at random moments, again and again, and look for a bit that differs.

A study is planned and broken off before its first step. One copy of that directory goes on undisturbed. Other copies are
killed with SIGKILL at random moments and resumed, until they end. Then every adapter file, prediction, metric and curve of
each must be what the undisturbed one left behind, and no trial or step may be missing or there twice. Exit code 1 where one is
not.

Training takes most of the time, so a share of the kills is aimed at what follows it: each kill waits for the line that says
where the study is, and then for a random part of what that took undisturbed. Where it fell is read off the directory it left.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Read once, here: a process that is forked has them, and does not take half a minute to begin.
import lorascope.cohort.run  # noqa: F401
from benchmarks.tiny_study import prepare_study
from lorascope.cli import main as command_line
from lorascope.store import Store

OVERRIDES = (
    "train.epochs=2",
    "train.batch_size=8",
    "adapter.lora_dropout=0.1",
    "task.max_train=200",
    # A sentence or two at a time: evaluating takes long enough to be hit.
    "evaluate.batch_tokens=16",
)
# The parts of a study, and how many kills are aimed at each; at the first there is little to break.
PARTS = ("reading", "training", "evaluation", "after a trial's end")
AIMS = (0.1, 0.5, 0.25, 0.15)
EARLY_SECONDS = 2.0
# Kills of training come within this share of the undisturbed study's time, so that one study takes several.
SPAN_SHARE = 0.4
# Lines that say where a study is.
TRAINING = r"cohort c\d+\w*:"
TRAINED = r"step (\d+)/\1,"
ENDED = r" done: "
_FORK = multiprocessing.get_context("fork")


class Running:
    """A command in a process of its own, forked with the libraries loaded but nothing computed yet."""

    def __init__(self, command: Callable[[], None]) -> None:
        read, write = os.pipe()
        self._process = _FORK.Process(target=self._child, args=(command, write))
        self._process.start()
        os.close(write)
        self._errors = os.fdopen(read, encoding="utf-8", errors="replace")
        self.said: list[str] = []

    @staticmethod
    def _child(command: Callable[[], None], write: int) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(write, 2)
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8")
        command()

    def wait_for(self, pattern: str) -> bool:
        """Read what it says until a line holds ``pattern``; False where it ended before."""
        for line in self._errors:
            self.said.append(line)
            if re.search(pattern, line):
                return True
        return False

    def ends_within(self, seconds: float) -> bool:
        """Wait so long for its end."""
        self._process.join(seconds)
        return not self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL: the process cannot do anything about it."""
        self._process.kill()
        self._process.join()
        self.said += self._errors
        self._errors.close()

    def end(self) -> None:
        """Wait for its end.

        Raises:
            RuntimeError: it failed.
        """
        self.said += self._errors
        self._process.join()
        self._errors.close()
        if self._process.exitcode:
            raise RuntimeError(f"exit code {self._process.exitcode}: {''.join(self.said)[-500:]}")


@dataclass(frozen=True)
class Command:
    """``lorascope run`` with ``arguments``."""

    arguments: Sequence[str]

    def start(self, directory: Path) -> Running:
        """Run or resume the study in ``directory``."""
        resume = ["--resume"] if (directory / "study.sqlite").is_file() else []

        def run() -> None:
            sys.argv = ["lorascope", "run", *self.arguments, "--out", str(directory), *resume]
            command_line()

        return Running(run)


@dataclass
class Tally:
    """What the kills met."""

    kills: int = 0
    finished: int = 0
    parts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    with_checkpoint: int = 0
    differences: list[str] = field(default_factory=list)
    notices: Counter[str] = field(default_factory=Counter)


def planned(command: Command, directory: Path) -> None:
    """Leave the study in ``directory`` with its plan stored and no step done."""
    process = command.start(directory)
    if not process.wait_for(TRAINING):
        process.end()
    process.kill()
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    for part in directory.rglob("*.part"):
        shutil.rmtree(part, ignore_errors=True)


def outcome(directory: Path) -> dict[str, Any]:
    """Everything of a study that must not depend on kills: files, metrics, curves, statuses."""
    found: dict[str, Any] = {}
    for path in sorted((directory / "trials").rglob("*")):
        if path.is_file():
            found[f"file {path.relative_to(directory)}"] = path.read_bytes()
    with Store.open(directory) as store:
        rows = store.trials()
        found["trials"] = [(row.trial, row.status, row.error) for row in rows]
        for row in rows:
            found[f"metrics of {row.trial}"] = row.metrics
            curves = [{key: value for key, value in step.items() if key != "seconds"} for step in store.steps(row.trial)]
            found[f"curves of {row.trial}"] = curves
        cohorts = {name: (plan["trials"], plan["kernels"]["path"]) for name, plan in store.cohorts().items()}
        found["cohorts"] = cohorts
    found["left behind"] = sorted(str(path.relative_to(directory)) for path in directory.rglob("*.part"))
    found["checkpoints"] = sorted(path.name for path in directory.glob("checkpoints/*"))
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What is not equal in two outcomes."""
    return [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]


@dataclass(frozen=True)
class Undisturbed:
    """The study without kills: what it leaves behind, and how many seconds and steps its parts take."""

    outcome: dict[str, Any]
    seconds: dict[str, float]
    num_steps: int

    @classmethod
    def carried_out(cls, command: Command, directory: Path) -> Undisturbed:
        """Carry the study out."""
        process = command.start(directory)
        moments = []
        for mark in (TRAINING, TRAINED, ENDED):
            process.wait_for(mark)
            moments.append(time.monotonic())
        process.end()
        moments.append(time.monotonic())
        seconds = {part: end - start for part, start, end in zip(PARTS[1:], moments[:-1], moments[1:], strict=True)}
        found = outcome(directory)
        num_steps = max(len(found[f"curves of {trial}"]) for trial, *_ in found["trials"])
        return cls(found, {PARTS[0]: EARLY_SECONDS, **seconds}, num_steps)


def kill_until_done(
    command: Command, directory: Path, draw: random.Random, most: int, whole: Undisturbed, tally: Tally
) -> None:
    """Kill the study at most so many times, each time within the part that the kill is aimed at, by the time that it took."""
    trained = False
    for kills in range(most + 1):
        process = command.start(directory)
        (aim,) = draw.choices(PARTS, AIMS)
        share = SPAN_SHARE if aim == "training" else 1.0
        moment = draw.uniform(0.0, share * whole.seconds[aim])
        # Once training has ended, the cohort evaluates as soon as it begins.
        marks = dict(zip(PARTS, (None, TRAINING, TRAINING if trained else TRAINED, ENDED), strict=True))
        mark = marks[aim]
        if kills == most or (mark is not None and not process.wait_for(mark)) or process.ends_within(moment):
            process.end()
            break
        process.kill()
        trained = whole.num_steps in _saved_steps(directory)
        tally.kills += 1
        tally.parts[_part(directory, process.said, trained)] += 1
        with Store.open(directory) as store:
            tally.statuses.update(row.status for row in store.trials())
        tally.with_checkpoint += bool(_saved_steps(directory))
    tally.finished += 1
    with Store.open(directory) as store:
        tally.notices.update(row["kind"] for row in store.warnings() if row["kind"] in ("checkpoint", "replay"))


def _part(directory: Path, said: Sequence[str], trained: bool) -> str:
    """Where a study of one cohort was when it was killed, by what it had said and left behind."""
    if not any(re.search(TRAINING, line) for line in said):
        return "reading"
    with Store.open(directory) as store:
        if any(row.status == "done" for row in store.trials()):
            return "after a trial's end"
    return "evaluation" if trained else "training"


def _saved_steps(directory: Path) -> list[int]:
    """The steps of the checkpoints on disk; one at a training's end is there before evaluation begins."""
    return [int(path.name.removeprefix("step-")) for path in directory.glob("checkpoints/*/step-????????")]


def main() -> int:
    """Exit code 0 where nothing differs."""
    arguments = _parser().parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="lorascope-kill-") as name:
        home = Path(arguments.out or name)
        study = str(arguments.study or home / "tiny" / "study.yaml")
        if not arguments.study:
            Running(lambda: print(prepare_study(home / "tiny"))).end()
        settings = [part for override in (*OVERRIDES, *arguments.set) for part in ("--set", override)]
        every = ["--checkpoint-seconds", str(arguments.checkpoint_seconds)]
        command = Command([study, *([] if arguments.study else settings), *every])
        template, reference = home / "planned", home / "reference"
        planned(command, template)
        shutil.copytree(template, reference)
        whole = Undisturbed.carried_out(command, reference)
        if arguments.span:
            whole.seconds["training"] = arguments.span / SPAN_SHARE
        took = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in list(whole.seconds.items())[1:])
        print(f"undisturbed: {len(whole.outcome['trials'])} trials, {whole.num_steps} steps; {took}", flush=True)
        tally = Tally()
        while tally.kills < arguments.kills:
            directory = home / f"killed-{tally.finished}"
            shutil.copytree(template, directory)
            most = min(arguments.per_study, arguments.kills - tally.kills)
            kill_until_done(command, directory, draw, most, whole, tally)
            found = differences(whole.outcome, outcome(directory))
            tally.differences += [f"{directory.name}: {each}" for each in found]
            print(f"{tally.kills} kills, {tally.finished} studies, differing: {found or 'nothing'}", flush=True)
            if not found:
                shutil.rmtree(directory)
    document = {
        "kills": tally.kills,
        "studies": tally.finished,
        "kills_by_part": {part: tally.parts[part] for part in PARTS},
        "kills_with_a_checkpoint_on_disk": tally.with_checkpoint,
        "trial_statuses_at_the_kills": dict(tally.statuses),
        "notices": dict(tally.notices),
        "differences": tally.differences,
    }
    print(json.dumps(document, indent=1))
    return int(bool(tally.differences))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill", description="Kill a study at random moments.")
    add = parser.add_argument
    add("--kills", type=int, default=100)
    add("--per-study", type=int, default=8, help="kills of one study before it may end (8)")
    add("--study", type=Path, help="a study file of your own; by default a small one is made")
    add("--set", action="append", default=[], help="overrides of the small study")
    add("--checkpoint-seconds", type=float, default=0.0, help="see lorascope run; every step by default")
    add("--span", type=float, help="seconds within which a kill of training comes; by default 0.4 of its time")
    add("--seed", type=int, default=0, help="of the moments")
    add("--out", type=Path, help="keep the studies here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
