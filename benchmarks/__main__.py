"""``python -m benchmarks``: measure workloads and write their tables."""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

from benchmarks import table
from benchmarks.prepare import ROOT
from benchmarks.runner import Options, run
from benchmarks.workloads import WORKLOADS


def main() -> int:
    """Exit code 0; 1 where a workload could not be prepared."""
    arguments = _parser().parse_args()
    if arguments.list:
        _list()
        return 0
    options = Options(
        data=arguments.data.resolve(),
        cache=arguments.cache.resolve(),
        device=arguments.device,
        seconds=arguments.seconds or (4.0 if arguments.quick else 60.0),
        repeats=arguments.repeats or (1 if arguments.quick else 3),
        timeout=arguments.timeout,
        limit=arguments.limit,
        sides=tuple(arguments.side or ()),
        parity=not arguments.no_parity,
        all_configurations=arguments.all_configurations,
    )
    names = arguments.workload or list(WORKLOADS)
    known = {side.name for name in names for side in WORKLOADS[name].sides}
    if unknown := set(options.sides) - known:
        print(f"no side {sorted(unknown)[0]!r} here; known: {', '.join(sorted(known))}", file=sys.stderr)
        return 2
    failed = False
    for name in names:
        try:
            outcome = run(WORKLOADS[name], options, lambda line: print(line, file=sys.stderr, flush=True))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        if not outcome.measurements:
            print(f"{name}: none of its sides is among --side", file=sys.stderr)
            continue
        path = table.write(outcome, options, datetime.datetime.now().date().isoformat(), arguments.out)
        print(path.read_text(encoding="utf-8"))
    return int(failed)


def _list() -> None:
    for workload in WORKLOADS.values():
        print(f"{workload.name}: {workload.about}")
        print(f"  aim: {workload.target}")
        for side in workload.sides:
            print(f"  {side.name:22} {side.about}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Lorascope against its peers, interleaved.")
    add = parser.add_argument
    add("--workload", action="append", choices=list(WORKLOADS), help="may be given several times; all by default")
    add("--side", action="append", help="only this side; may be given several times")
    add("--list", action="store_true", help="list workloads and sides")
    add("--quick", action="store_true", help="one repeat of a few seconds: does it run, not how fast")
    add("--seconds", type=float, help="timed steps of one measurement (60; at least two steps are timed)")
    add("--repeats", type=int, help="measurements of each side, in turn (3)")
    add("--limit", type=int, help="at most so many examples, questions or dialogues: tries the harness out")
    add("--timeout", type=float, default=5400.0, help="seconds after which a worker is ended")
    add("--all-configurations", action="store_true", help="sst2: peers train all 8 configurations, not one × 8")
    add("--no-parity", action="store_true", help="leave out the comparison on equal batches")
    add("--device", default="cpu", help="cpu or cuda")
    add(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="directory with squad/, sst2/, personachat/, tokenizers/",
    )
    add("--cache", type=Path, default=ROOT / "benchmarks" / ".cache", help="seeded models and encoded data")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results", help="where tables go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
