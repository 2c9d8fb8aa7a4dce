"""``lorascope doctor``: does it compute rightly here? A table of checks, and what to do about each. Floor: cli."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lorascope import __version__
from lorascope.cli.console import AsJson, Device, print_json, stderr, stdout
from lorascope.cli.planning import chosen_device
from lorascope.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from lorascope.doctor.finding import Check, CheckResult

_STYLES = {"passed": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
_MARKS = {"passed": "✓", "warning": "!", "failed": "✗", "skipped": "–"}


def doctor(
    device: Device = None,
    base: Annotated[
        str | None, typer.Option(metavar="M", help="Your own base: a directory or hub id that is tried too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Known-answer checks on this machine: a table, exit code 3 if one fails, and what to do about it."""
    started = time.perf_counter()
    if base is not None and not Path(base).expanduser().exists() and base.startswith((".", "/", "~")):
        raise UsageError("no such model directory", where="--base", fix="give a directory or a hub id such as gpt2")
    results = _carried_out(device, base)
    document = _document(results, _device(device), base, time.perf_counter() - started)
    if as_json:
        print_json(document)
    else:
        _print(results, document)
    failed = [result.check for result in results if result.status == "failed"]
    if failed:
        what = f"{len(failed)} of {len(results)} checks failed ({', '.join(failed)})"
        raise CheckFailed(what, where="doctor", fix="see what to do above")


def _carried_out(device: str | None, model: str | None) -> list[CheckResult]:
    """All results, with the progress on stderr: one line that changes on a terminal, a line for each check elsewhere."""
    console = stderr()
    with console.status("loading torch, transformers and PEFT") if console.is_interactive else nullcontext() as status:
        from lorascope.doctor.finding import Setting, examine

        checks = _checks(model)
        setting = Setting(_device(device), model)
        results: list[CheckResult] = []
        _tell(status, checks, 0)
        for result in examine(checks, setting):
            results.append(result)
            _tell(status, checks, len(results))
            if status is None:
                line = f"{_MARKS[result.status]} {result.check} ({result.seconds:.1f} s)"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    return results


def _checks(model: str | None) -> tuple[Check, ...]:
    """The table, or what is left of it on a machine where something cannot be imported."""
    try:
        from lorascope.doctor.table import checks_for
    except Exception as error:  # a library that is missing, or breaks while it is loaded
        from lorascope.doctor.versions import unimportable

        return unimportable(error)
    return checks_for(model)


def _device(name: str | None) -> str:
    try:
        return chosen_device(name)
    except ImportError:  # without torch, of which a check tells
        return name or "cpu"


def _tell(status: Any, checks: Sequence[Check], done: int) -> None:
    if status is not None and done < len(checks):
        status.update(f"{done + 1} of {len(checks)}: {checks[done].name}")


def _document(results: Sequence[CheckResult], device: str, model: str | None, seconds: float) -> dict[str, Any]:
    counts = {status: sum(result.status == status for result in results) for status in _MARKS}
    return {
        "lorascope": __version__,
        "device": device,
        "model": model,
        "hardware": _hardware(),
        "passed": not counts["failed"],
        "counts": counts,
        "seconds": round(seconds, 3),
        "checks": [result.record() for result in results],
    }


def _hardware() -> dict[str, Any] | None:
    try:
        from lorascope.base_model import hardware
    except Exception:  # something cannot be imported, of which a check tells
        return None
    return hardware()


def _print(results: Sequence[CheckResult], document: dict[str, Any]) -> None:
    """The table, then what to do about each failure and warning, then one line that counts."""
    console = stdout()
    table = Table(title=f"Lorascope {__version__} on {document['device']}", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("what it showed")
    table.add_column("seconds", justify="right", no_wrap=True)
    for result in results:
        style = _STYLES[result.status]
        table.add_row(
            Text(result.check),
            Text(f"{_MARKS[result.status]} {result.status}", style),
            Text(result.showed, "" if result.status in ("passed", "skipped") else style),
            f"{result.seconds:.1f}",
        )
    console.print(table)
    for status in ("failed", "warning"):
        for result in results:
            if result.status == status:
                line = Text.assemble((f"{_MARKS[status]} {result.check}: ", _STYLES[status]), result.fix)
                console.print(line, soft_wrap=True)
    counts = ", ".join(f"{count} {status}" for status, count in document["counts"].items() if count)
    console.print(f"{len(results)} checks in {document['seconds']:.0f} s: {counts}", highlight=False)
