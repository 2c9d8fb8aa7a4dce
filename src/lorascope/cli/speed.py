"""``lorascope inspect --speed``: latency and throughput of adapters, merged and not, one and several on a base. Floor: cli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lorascope.cli.console import tell

if TYPE_CHECKING:
    from lorascope.analysis.updates import Inspected
    from lorascope.cohort.single import OnBase
    from lorascope.speed import Agreement, Measured, Speed

_PHASES = {"prefill": "prefill", "per_token": "per token", "forward": "one pass"}


def speed_of(adapters: Sequence[Inspected], on: OnBase, workload: Mapping[str, int]) -> dict[str, Any]:
    """Measure, with progress on stderr; the document that ``--json`` prints.

    Args:
        workload: the fields of ``speed.Workload``.

    Raises:
        UsageError: the adapters name different bases, or rows are too long for the base.
        AdapterError: one cannot be read, does not fit, or is of a kind that cannot be run.
        RunError: memory ran out.
    """
    import torch

    from lorascope.adapter import form_of_adapter
    from lorascope.base_model import hardware, load_base
    from lorascope.evaluate import run_to_end
    from lorascope.speed import Workload, measure, phases_of

    names, saved = [one.label for one in adapters], [one.saved for one in adapters]
    config = on.config({str(one.directory): one.saved for one in adapters})
    task_type, labels = form_of_adapter(saved[0], str(adapters[0].directory))
    base = load_base(config, task_type, labels, on.device)
    running = measure(base, saved, names, Workload(**workload))
    speed = run_to_end(running, lambda at: tell(f"round {at[0]} of {at[1]}"))
    machine = hardware()
    device = machine["cuda"] if base.device.type == "cuda" else machine["processor"]
    return {
        "adapters": {one.label: str(one.directory) for one in adapters},
        "base": config.model,
        "revision": config.revision,
        "device": device,
        "device_type": base.device.type,
        "threads": torch.get_num_threads(),
        "dtype": on.dtype,
        "quantization": on.quantization,
        "torch": torch.__version__,
        "task_type": base.task_type,
        **asdict(speed.workload),
        "phases": list(phases_of(base)),
        "configurations": [_record(speed, row) for row in speed.rows],
        "agreement": [
            {"adapter": name, **asdict(one), "holds": one.holds} for name, one in zip(names, speed.agreements, strict=True)
        ],
        "warnings": [*base.warnings, *_disagreements(names, speed.agreements)],
    }


def _disagreements(names: Sequence[str], agreements: Sequence[Agreement]) -> list[str]:
    """What was not the same computation, merged and unmerged."""
    return [
        f"{name}: logits merged and unmerged differ by {one.difference:.2g}, and rounding explains {one.limit:.2g}: what was "
        "timed is not the same computation"
        for name, one in zip(names, agreements, strict=True)
        if not one.holds
    ]


def _record(speed: Speed, row: Measured) -> dict[str, Any]:
    phases = {phase: _phase(speed, row, phase) for phase in row.phases}
    return {
        "configuration": row.name,
        "kind": row.kind,
        "adapters": row.adapters,
        "modules": row.modules,
        "rows": row.rows,
        "phases": phases,
    }


def _phase(speed: Speed, row: Measured, phase: str) -> dict[str, Any]:
    """Seconds, what they come to, and how they compare with the base and with merged models one after another."""
    timing = row.phases[phase]
    low, high = timing.spread
    tokens = 1 if phase == "per_token" else speed.workload.prompt_tokens
    merged = next(one for one in speed.rows if one.kind == "merged" and one.against == (row.against or 0))
    base = next(one for one in speed.rows if one.kind == "base")
    against = speed.ratio(row, merged, phase)
    return {
        "seconds": timing.median,
        "low": low,
        "high": high,
        "all_seconds": list(timing.seconds),
        "tokens_per_second": row.rows * tokens / timing.median,
        "rows_per_second": row.rows / timing.median,
        "times_base": speed.ratio(row, base, phase),
        "times_merged": against,
        "times_merged_one_after_another": against / row.adapters if row.kind == "together" else None,
    }


def print_speed(console: Console, document: Mapping[str, Any]) -> None:
    """One row a configuration; latency as median [quartiles]."""
    phases = document["phases"]
    table = Table(title=_title(document), title_justify="left")
    table.add_column("configuration")
    table.add_column("rows", justify="right")
    table.add_column("modules", justify="right")
    for phase in phases:
        table.add_column(f"{_PHASES[phase]}, ms", justify="right")
        table.add_column("× merged", justify="right")
        table.add_column("rows/s" if phase == "forward" else "tokens/s", justify="right")
    kind = None
    for row in document["configurations"]:
        section = row["kind"] in ("modules", "together") and row["kind"] != kind
        if section:
            table.add_section()
        kind = row["kind"]
        cells = [cell for phase in phases for cell in _cells(row["phases"][phase], phase)]
        table.add_row(row["configuration"], str(row["rows"]), str(row["modules"]), *cells)
    console.print(table)
    for line in _notes(document):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cells(phase: Mapping[str, Any], name: str) -> list[str]:
    seconds, low, high = (_three_digits(1e3 * phase[key]) for key in ("seconds", "low", "high"))
    rate = phase["rows_per_second" if name == "forward" else "tokens_per_second"]
    return [f"{seconds} [{low}, {high}]", f"{phase['times_merged']:.2f}", _three_digits(rate)]


def _three_digits(value: float) -> str:
    """Three significant digits, and all that stand before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _title(document: Mapping[str, Any]) -> str:
    what = f"{document['prompt_tokens']} prompt tokens"
    if "per_token" in document["phases"]:
        what += f", {document['new_tokens']} new"
    held = document["dtype"] if document["quantization"] is None else f"{document['quantization']} / {document['dtype']}"
    return (
        f"{Path(document['base']).name}: {what}, batch {document['batch']} an adapter; {document['device']}, "
        f"{document['threads']} threads, {held}; {document['repeats']} rounds in turns"
    )


def _notes(document: Mapping[str, Any]) -> list[str]:
    lines = [
        "latency: median and quartiles over the rounds; × merged: median of the rounds' own ratios, to the merged adapter"
    ]
    together = [row for row in document["configurations"] if row["kind"] == "together"]
    for row in together:
        shares = [f"{_PHASES[phase]} {one['times_merged_one_after_another']:.2f}" for phase, one in row["phases"].items()]
        lines.append(
            f"{row['configuration']}, one model in memory, against {row['adapters']} merged models one after another: "
            f"× {', '.join(shares)}"
        )
    for one in document["agreement"]:
        lines.append(
            f"{one['adapter']}: logits merged and unmerged differ by {one['difference']:.2g} at most; "
            f"the adapter moves the base's by {one['effect']:.2g}"
        )
    return lines
