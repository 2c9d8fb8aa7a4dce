"""Interleaved measurements: A B A B, each in a fresh process, then one parity run. Light: imports no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.job import Job, Parity
from benchmarks.measure import Measurement
from benchmarks.prepare import ROOT, load, prepare, with_limit
from benchmarks.rows import Row, read_rows
from benchmarks.workloads import WORKLOADS, Side, Workload

PARITY_STEPS = 6
# Where a whole batch of a peer takes too long, parity is shown on fewer steps of smaller batches.
_SLOW_PARITY_STEPS = 3


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        seconds: timed steps of one measurement.
        timeout: seconds after which a worker is ended and reported as failed.
        limit: at most so many examples; for trying the harness out.
        sides: only these, by name; empty for all.
        all_configurations: peers train every configuration, not one that stands for all.
    """

    data: Path
    cache: Path
    device: str
    seconds: float
    repeats: int
    timeout: float
    limit: int | None = None
    sides: tuple[str, ...] = ()
    parity: bool = True
    all_configurations: bool = False


@dataclass
class Outcome:
    """Everything measured for one workload; ``parity`` is by side."""

    workload: Workload
    sides: tuple[Side, ...]
    measurements: list[Measurement] = field(default_factory=list)
    parity: dict[str, Measurement] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)

    def of(self, side: str) -> list[Measurement]:
        """A side's measurements in order."""
        return [measurement for measurement in self.measurements if measurement.side == side]


def run(workload: Workload, options: Options, say: Callable[[str], None]) -> Outcome:
    """Measure every side of a workload ``repeats`` times, in turn."""
    _prepare(workload, options, say)
    workload = with_limit(workload, options.limit)
    sides = tuple(side for side in workload.sides if not options.sides or side.name in options.sides)
    outcome = Outcome(workload, sides, facts=load(workload, options.cache, options.limit).facts)
    broken: set[str] = set()
    for repeat in range(options.repeats):
        for side in sides:
            if side.name in broken:
                continue
            for configuration in _configurations(workload, side, options):
                result = _measure(workload, side, options, repeat, configuration, None)
                outcome.measurements.append(result)
                if result.error is not None:
                    # It would fail again; a failure is no reason to spend the time of the others.
                    broken.add(side.name)
                say(f"{workload.name} {side.name} {repeat + 1}/{options.repeats}: {_in_words(result, workload)}")
                if result.error is not None:
                    break
    if workload.kind == "train" and options.parity:
        _run_parity(outcome, options, broken, say)
    return outcome


def _configurations(workload: Workload, side: Side, options: Options) -> Sequence[int]:
    if side.role == "subject" or side.program == "lorascope" or workload.kind == "decode":
        return [0]
    return range(len(workload.configurations)) if options.all_configurations else [workload.peer_configuration]


def _run_parity(outcome: Outcome, options: Options, broken: set[str], say: Callable[[str], None]) -> None:
    """Lorascope trains a few steps, then each peer that is compared trains on exactly its batches."""
    workload = outcome.workload
    subject = next((side for side in outcome.sides if side.role == "subject" and side.name not in broken), None)
    peers = [side for side in outcome.sides if side.parity and side.name not in broken]
    if subject is None or not peers:
        return
    rows_per_step = min(one.rows_per_step for side in peers for one in outcome.of(side.name))
    parity = Parity(PARITY_STEPS, workload.batch_size)
    if rows_per_step < workload.batch_size:
        rows = read_rows(load(workload, options.cache, options.limit).rows)
        count = _SLOW_PARITY_STEPS * rows_per_step
        parity = Parity(_SLOW_PARITY_STEPS, rows_per_step, _shortest_window(rows, count))
    ours = _measure(workload, subject, options, 0, workload.peer_configuration, parity)
    outcome.parity[subject.name] = ours
    if ours.error is not None:
        say(f"{workload.name} parity: {ours.error}")
        return
    for side in peers:
        given = Parity(parity.steps, parity.batch_size, parity.rows, ours.batches)
        outcome.parity[side.name] = _measure(workload, side, options, 0, workload.peer_configuration, given)
        say(f"{workload.name} parity {side.name}: {outcome.parity[side.name].error or 'done'}")


def _shortest_window(rows: Sequence[Row], count: int) -> list[int]:
    """Neighbouring rows, so that contexts are shared, where they are shortest."""
    lengths = [len(row.input_ids) for row in rows]
    starts = range(max(1, len(rows) - count + 1))
    start = min(starts, key=lambda start: sum(lengths[start : start + count]))
    return list(range(start, min(len(rows), start + count)))


def _measure(
    workload: Workload, side: Side, options: Options, repeat: int, configuration: int, parity: Parity | None
) -> Measurement:
    job = Job(
        workload.name,
        side.name,
        str(options.cache),
        options.device,
        options.seconds,
        options.limit,
        repeat,
        configuration,
        parity,
    )
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "measurement.json"
        failure = _worker([job.dumps(), str(out)], "benchmarks.worker", options)
        if out.is_file():
            result = Measurement(**json.loads(out.read_text(encoding="utf-8")))
        else:
            result = Measurement(side.name, repeat, failure or "the worker ended without a word")
    if result.error is not None:
        result.error = _without_paths(result.error, options)
    return result


def _prepare(workload: Workload, options: Options, say: Callable[[str], None]) -> None:
    say(f"{workload.name}: preparing the data")
    limit = "" if options.limit is None else str(options.limit)
    failure = _worker([workload.name, str(options.data), str(options.cache), limit], "benchmarks.runner", options)
    if failure is not None:
        raise RuntimeError(f"cannot prepare {workload.name}: {_without_paths(failure, options)}")


def _worker(arguments: list[str], module: str, options: Options) -> str | None:
    """Run a module of this package in a fresh process; what went wrong, or None. Its output goes to the cache."""
    log = options.cache / "last-worker.log"
    options.cache.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=options.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"ended after {time.perf_counter() - started:.0f} s (--timeout)"
    if done.returncode == 0:
        return None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"exit code {done.returncode}: {lines[-1].strip() if lines else 'no output'}"[:400]


def _without_paths(text: str, options: Options) -> str:
    """No directory of this machine goes into a result."""
    for path in (options.cache, options.data, ROOT, Path(sys.prefix), Path.home()):
        text = text.replace(str(path.resolve()), "…").replace(str(path), "…")
    return text


def _in_words(result: Measurement, workload: Workload) -> str:
    if result.error is not None:
        return f"failed: {result.error}"
    rate = result.rate
    words = "nothing timed" if rate is None else f"{rate:.2f} {workload.unit}"
    return f"{words} ({result.items_timed} of {result.items_epoch} items in {result.seconds:.1f} s)"


if __name__ == "__main__":
    _name, _data, _cache, _limit = sys.argv[1:]
    prepare(
        with_limit(WORKLOADS[_name], int(_limit) if _limit else None),
        Path(_data),
        Path(_cache),
        int(_limit) if _limit else None,
    )
