"""``lorascope report``: a study as one HTML page. Floor: cli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli.console import AsJson, print_json, stderr
from lorascope.errors import LorascopeError, UsageError

if TYPE_CHECKING:
    from lorascope.store import Store


def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR…", help="A study, or the shards of one.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; report.html in the first directory by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A study as one HTML page: the answer first, its evidence, every trial. It fetches nothing and opens from the disk."""
    from lorascope.cli.study import results_of
    from lorascope.report import REPORT_FILE, write_report
    from lorascope.store import Store

    path = out or directories[0] / REPORT_FILE
    if path.is_dir():
        raise UsageError("is a directory", where=str(path), fix="give a file with --out")
    with ExitStack() as opened:
        stores = [opened.enter_context(Store.open(directory)) for directory in directories]
        write_report(stores, results_of(stores), path)
    if as_json:
        print_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        typer.echo(path)


def report_beside(stores: Sequence[Store], results: Mapping[str, Any], directory: Path) -> None:
    """Write a study's page into its directory; where that fails it is told on stderr, for the study itself is safe."""
    from lorascope.report import REPORT_FILE, write_report

    try:
        write_report(stores, results, directory / REPORT_FILE)
    except LorascopeError as error:
        stderr().print(f"no report: {error}", markup=False, highlight=False, soft_wrap=True)
    except Exception as error:  # a bug in a picture must not cost the results of a long study
        what = f"no report: {type(error).__name__}: {error} (unexpected; lorascope report {directory} --debug shows where)"
        stderr().print(what, markup=False, highlight=False, soft_wrap=True)
