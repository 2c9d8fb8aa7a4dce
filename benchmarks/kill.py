"""``python -m benchmarks.kill``: kill a small study at random moments, again and again, and look for a bit that differs.

A study is planned and broken off before its first step. One copy of that directory goes on undisturbed. Other copies are
killed with SIGKILL at random moments and resumed, until they end. Then every adapter file, prediction, metric and curve of
each must be what the undisturbed one left behind, and no trial or step may be missing or there twice. Exit code 1 where one is
not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
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
from lorascope.cli import main as command_line
from lorascope.cli.demo import prepare_demo
from lorascope.store import Store

OVERRIDES = (
    "train.epochs=2",
    "train.batch_size=8",
    "adapter.lora_dropout=0.1",
    "evaluate.batch_tokens=64",
    "task.max_train=200",
)
# Of the kills so many come while data and base are read, where there is little to break.
EARLY_SHARE = 0.1
EARLY_SECONDS = 2.0
# Kills come within this share of the undisturbed study's time, so that one study takes several.
SPAN_SHARE = 0.4
STARTED = "to run"
TRAINING = "cohort c"
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

    def wait_for(self, text: str) -> bool:
        """Read what it says until a line holds ``text``; False where it ended before."""
        for line in self._errors:
            self.said.append(line)
            if text in line:
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
    statuses: Counter[str] = field(default_factory=Counter)
    with_checkpoint: int = 0
    differences: list[str] = field(default_factory=list)
    notices: Counter[str] = field(default_factory=Counter)


def planned(command: Command, directory: Path) -> None:
    """Leave the study in ``directory`` with its plan stored and no step done."""
    process = command.start(directory)
    if not process.wait_for("cohort c1:"):
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


def kill_until_done(
    command: Command, directory: Path, draw: random.Random, most: int, span_seconds: float, tally: Tally
) -> None:
    """Kill the study at most so many times, at moments of the span that follows its first cohort or its start."""
    for kills in range(most + 1):
        process = command.start(directory)
        early = draw.random() < EARLY_SHARE
        moment = draw.uniform(0.0, EARLY_SECONDS if early else span_seconds)
        mark = None if early else TRAINING if draw.random() < 0.8 else STARTED
        if kills == most or (mark is not None and not process.wait_for(mark)) or process.ends_within(moment):
            process.end()
            break
        process.kill()
        tally.kills += 1
        tally.statuses.update(_statuses(directory))
        tally.with_checkpoint += any(directory.glob("checkpoints/*/step-*"))
    tally.finished += 1
    with Store.open(directory) as store:
        tally.notices.update(row["kind"] for row in store.warnings() if row["kind"] in ("checkpoint", "replay"))


def _statuses(directory: Path) -> list[str]:
    with Store.open(directory) as store:
        return [row.status for row in store.trials()]


def main() -> int:
    """Exit code 0 where nothing differs."""
    arguments = _parser().parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="lorascope-kill-") as name:
        home = Path(arguments.out or name)
        study = str(arguments.study or home / "demo" / "study.yaml")
        if not arguments.study:
            Running(lambda: print(prepare_demo(home / "demo"))).end()
        settings = [part for override in (*OVERRIDES, *arguments.set) for part in ("--set", override)]
        every = ["--checkpoint-seconds", str(arguments.checkpoint_seconds)]
        command = Command([study, *([] if arguments.study else settings), *every])
        template, reference = home / "planned", home / "reference"
        planned(command, template)
        shutil.copytree(template, reference)
        process = command.start(reference)
        process.wait_for(TRAINING)
        started = time.monotonic()
        process.end()
        work_seconds = time.monotonic() - started
        expected = outcome(reference)
        steps = sum(len(expected[f"curves of {trial}"]) for trial, *_ in expected["trials"])
        print(
            f"undisturbed: {len(expected['trials'])} trials, {steps} steps, {work_seconds:.1f} s from the first cohort on",
            flush=True,
        )
        tally = Tally()
        while tally.kills < arguments.kills:
            directory = home / f"killed-{tally.finished}"
            shutil.copytree(template, directory)
            most = min(arguments.per_study, arguments.kills - tally.kills)
            kill_until_done(command, directory, draw, most, arguments.span or SPAN_SHARE * work_seconds, tally)
            found = differences(expected, outcome(directory))
            tally.differences += [f"{directory.name}: {each}" for each in found]
            print(f"{tally.kills} kills, {tally.finished} studies, differing: {found or 'nothing'}", flush=True)
            if not found:
                shutil.rmtree(directory)
    document = {
        "kills": tally.kills,
        "studies": tally.finished,
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
    add("--span", type=float, help="seconds within which a kill comes; by default 0.4 of the study's")
    add("--seed", type=int, default=0, help="of the moments")
    add("--out", type=Path, help="keep the studies here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
