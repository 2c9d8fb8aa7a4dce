"""``python -m benchmarks.study_time DIR``: a whole study against PEFT + Trainer, one trial after another.

``lorascope export --script`` writes a trial as a program of PEFT and Trainer; that program is timed here, its training and the
whole of it, with as many threads as the study had. Times the number of trials that is what the study would take without
Lorascope. The study's own time is given by ``--seconds`` (as ``time lorascope run`` shows it), or measured by carrying it out
(``--study FILE``), or taken from its files: from the directory's making, after data and base were read, to the last write.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from lorascope.store import DATABASE, Store, TrialRow
from lorascope.store.database import LOCK

# Runs a program and tells how long its Trainer trained.
_TIMED = """
import runpy, sys, time
from transformers import Trainer

plain = Trainer.train

def timed(self, *arguments, **options):
    started = time.perf_counter()
    output = plain(self, *arguments, **options)
    print("trained for", time.perf_counter() - started, "seconds", flush=True)
    return output

Trainer.train = timed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Measured:
    """What one trial took as a program of PEFT and Trainer.

    Attributes:
        agreement: what the program says of its predictions and the trial's.
    """

    trial: str
    train_seconds: float
    seconds: float
    agreement: str


def trained_rows(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """The trials that were trained to their end."""
    return [row for row in rows if row.status == "done" and row.train_seconds is not None]


def stacked_seconds(rows: Sequence[TrialRow]) -> float:
    """Training alone: the trials of a cohort share its time."""
    cohorts: dict[str | None, float] = {}
    for row in trained_rows(rows):
        cohorts[row.cohort] = max(cohorts.get(row.cohort, 0.0), row.train_seconds or 0.0)
    return sum(cohorts.values())


def middle_trial(rows: Sequence[TrialRow]) -> TrialRow:
    """Of the adapters that the program can repeat the one of the middle size.

    Raises:
        ValueError: there is none.
    """
    known = [row for row in trained_rows(rows) if row.adapter is not None and row.config["method"] == "lora"]
    if not known:
        raise ValueError("no trial is done that trained an adapter")
    return sorted(known, key=lambda row: row.trainable_params or 0)[len(known) // 2]


def time_program(directory: Path, trial: str, threads: int | None) -> Measured:
    """Export the trial, and run its program in a process of its own.

    Raises:
        CalledProcessError: the program failed.
    """
    with tempfile.TemporaryDirectory(prefix="lorascope-time-") as name:
        out = Path(name) / "program"
        export = [
            sys.executable,
            "-m",
            "lorascope",
            "export",
            str(directory / "trials" / trial),
            "--script",
            "--out",
            str(out),
        ]
        subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
        environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
        started = time.perf_counter()
        command = [sys.executable, "-c", _TIMED, str(out / "train_peft.py")]
        said = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
        seconds = time.perf_counter() - started
    found = re.search(r"trained for ([\d.e+-]+) seconds", said)
    assert found is not None, said[-500:]
    agreement = next((line for line in said.splitlines() if "predictions equal" in line), "not compared")
    return Measured(trial, float(found[1]), seconds, agreement)


def carry_out(study: Path, directory: Path, settings: Sequence[str]) -> float:
    """Carry the study out in a process of its own; its seconds."""
    overrides = [part for setting in settings for part in ("--set", setting)]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lorascope", "run", str(study), "--out", str(directory), *overrides], check=True)
    return time.perf_counter() - started


def seconds_of_files(directory: Path) -> float:
    """From the making of the directory's lock to the last write; only right where the study was not interrupted or copied."""
    return (directory / DATABASE).stat().st_mtime - (directory / LOCK).stat().st_mtime


def table(
    rows: Sequence[TrialRow], measured: Sequence[Measured], seconds: float, source: str, map_seconds: float = 0.0
) -> str:
    """The comparison in Markdown."""
    count = len(trained_rows(rows))
    training = stacked_seconds(rows) + map_seconds
    one_training, one = mean(each.train_seconds for each in measured), mean(each.seconds for each in measured)
    trained = f"{count} trials trained{' and maps' if map_seconds else ''}"
    names = ", ".join(f"`{each.trial}`" for each in measured)
    lines = [
        "| | training, s | whole, s |",
        "|---|---|---|",
        f"| the study: {trained} ({source}) | {training:.1f} | {seconds:.1f} |",
        f"| PEFT + Trainer, one trial ({names}) | {one_training:.1f} | {one:.1f} |",
        f"| the same × {count} | {count * one_training:.1f} | {count * one:.1f} |",
        f"| **the study is × faster** | {count * one_training / training:.2f} | {count * one / seconds:.2f} |",
        "",
        *(f"`{each.trial}`: {each.agreement}" for each in measured),
    ]
    return "\n".join(lines)


def main() -> None:
    """Time the programs and print the table."""
    arguments = _parser().parse_args()
    seconds, source = arguments.seconds, "time as given"
    if arguments.study is not None:
        seconds, source = carry_out(arguments.study, arguments.directory, arguments.set), "time of the command"
    elif seconds is None:
        seconds, source = seconds_of_files(arguments.directory), "time by its files, loading left out"
    with Store.open(arguments.directory) as store:
        rows = store.trials()
        threads = next((plan["kernels"]["machine"].get("threads") for plan in store.cohorts().values()), None)
        map_seconds = sum(record["train_seconds"] for record in store.maps("one_run").values())
    trials = arguments.trial or [middle_trial(rows).trial]
    measured = [time_program(arguments.directory, trial, threads) for _ in range(arguments.repeats) for trial in trials]
    print(table(rows, measured, seconds, source, map_seconds))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study_time", description="A whole study against PEFT + Trainer."
    )
    add = parser.add_argument
    add("directory", type=Path, help="the study's directory")
    add("--seconds", type=float, help="the study's wall-clock time, where it was measured")
    add("--study", type=Path, help="carry this study file out in the directory first")
    add("--set", action="append", default=[], help="overrides of the study file")
    add("--trial", action="append", help="time this one, or several: their mean; by default one of the middle size")
    add("--repeats", type=int, default=1, help="times that each program runs (1)")
    return parser


if __name__ == "__main__":
    main()
