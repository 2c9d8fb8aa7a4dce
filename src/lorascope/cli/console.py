"""What the commands share: their streams, JSON on stdout, and options that several take. Floor: cli."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

# Results that nobody's terminal bounds may be as wide as they are.
_PIPE_WIDTH = 2000

Override = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V", help="Override a key, e.g. train.learning_rate=1e-4.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Allow = Annotated[
    list[str] | None, typer.Option("--allow", metavar="KIND", help="Findings of this kind do not stop; may be repeated.")
]


def stdout() -> Console:
    """The console for results; whole tables where nobody's terminal sets the width."""
    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)


def stderr() -> Console:
    """The console for logs, warnings and progress."""
    return Console(stderr=True)


def print_json(document: dict[str, Any]) -> None:
    """Print the document; ASCII, so that it is the same in every locale."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def visible(text: str) -> str:
    """Text whose line ends, tabs and control characters are seen rather than obeyed."""
    shown = text.replace("\n", "↵\n").replace("\t", "⇥")
    return "".join(char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in shown)
