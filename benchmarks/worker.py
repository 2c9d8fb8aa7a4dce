"""A worker process: one job in, one measurement out. ``python -m benchmarks.worker JOB OUT`` (the runner starts it)."""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

from benchmarks.job import Job
from benchmarks.measure import Measurement, machine, peak_memory_bytes


def measure(job: Job) -> Measurement:
    """Run the side that the job names."""
    if job.side.program == "lorascope":
        from benchmarks import lorascope_side

        decodes = job.workload.kind == "decode"
        return lorascope_side.measure_decoding(job) if decodes else lorascope_side.measure_training(job)
    if job.side.program == "generate":
        from benchmarks import peer_decode

        return peer_decode.measure_decoding(job)
    from benchmarks import peers

    return peers.measure_training(job)


def main() -> None:
    """Write the measurement; an error becomes a measurement that says so."""
    job = Job.loads(sys.argv[1])
    try:
        result = measure(job)
    except Exception as error:
        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        result = Measurement(error=f"{type(error).__name__}: {lines[0] if lines else ''}"[:400])
    result.side, result.repeat = job.side.name, job.repeat
    result.machine = machine(job.device)
    result.peak_memory_bytes = peak_memory_bytes(job.device)
    Path(sys.argv[2]).write_text(json.dumps(asdict(result)), encoding="utf-8")


if __name__ == "__main__":
    main()
