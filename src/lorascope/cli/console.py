"""What the commands share: their streams, JSON on stdout, and options that several take. Floor: cli."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from lorascope.config import parse_override
from lorascope.errors import UsageError

# Results that nobody's terminal bounds may be as wide as they are.
_PIPE_WIDTH = 2000
# Taken off the command line before it is read, so that it may stand anywhere.
DEBUG = "--debug"


def offered(*values: str) -> Callable[[str], list[str]]:
    """What a shell completes an option's value to."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


Override = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V", help="Override a key, e.g. train.learning_rate=1e-4.")
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu or cuda; a GPU by default where there is one.", autocompletion=offered("cpu", "cuda")),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Allow = Annotated[
    list[str] | None, typer.Option("--allow", metavar="KIND", help="Findings of this kind do not stop; may be repeated.")
]


def stdout() -> Console:
    """The console for results; whole tables where nobody's terminal sets the width."""
    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)


def stderr() -> Console:
    """The console for logs, warnings and progress; interactive where something may be drawn over.

    That takes a terminal that says which one it is, whatever asks for colours; and with ``--debug`` libraries write whenever
    they like.
    """
    redrawn = sys.stderr.isatty() and (os.name == "nt" or bool(os.environ.get("TERM"))) and DEBUG not in sys.argv[1:]
    return Console(stderr=True, force_interactive=None if redrawn else False)


def tell(text: str) -> None:
    """A line on stderr, as it is: progress, a note or a warning."""
    stderr().print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(document: dict[str, Any]) -> None:
    """Print the document; ASCII, so that it is the same in every locale."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def visible(text: str) -> str:
    """Text whose line ends, tabs and control characters are seen rather than obeyed."""
    shown = text.replace("\n", "↵\n").replace("\t", "⇥")
    return "".join(char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in shown)


def decoding_of(text: str, where: str = "--decode") -> dict[str, Any]:
    """``"nucleus,top_p=0.9"`` as a study file writes it.

    Raises:
        UsageError: a setting has no value.
    """
    strategy, *settings = text.split(",")
    bare = next((setting for setting in settings if "=" not in setting), None)
    if bare is not None:
        raise UsageError(f"{bare.strip()!r} has no value", where=where, fix=f"write {bare.strip()}=VALUE")
    return {"strategy": strategy.strip(), **dict(parse_override(setting) for setting in settings)}


def printable(text: str) -> str:
    """Text without the control characters that a terminal obeys; line ends and tabs stay."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")
