"""Options as records: on the command line they are options like others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer

from lorascope.cli.records import given, with_records


@dataclass(frozen=True)
class OnTask:
    task: Annotated[str | None, typer.Option(help="The task's name.")] = None
    max_eval: Annotated[int | None, typer.Option(min=1)] = None
    quick: Annotated[bool, typer.Option("--quick")] = False
    label: Annotated[list[str] | None, typer.Option()] = None


@dataclass(frozen=True, kw_only=True)
class Needed(OnTask):
    data: Annotated[str, typer.Option(help="Its data.")]


@pytest.fixture
def run():
    """``run(*arguments)``: what the command was given."""
    app, seen = typer.Typer(rich_markup_mode=None), []

    @app.command()
    @with_records
    def look(places: Annotated[list[str], typer.Argument(metavar="PLACE…")], on: OnTask, loud: bool = False) -> None:
        """Look at places."""
        seen.append((places, on, loud))

    def called(*arguments):
        seen.clear()
        app(list(arguments), standalone_mode=False)
        return seen[0] if seen else None

    return called


def test_fields_of_a_record_are_options_of_the_command(run):
    assert run("here", "there", "--max-eval", "3", "--quick", "--label", "a", "--label", "b", "--loud") == (
        ["here", "there"], OnTask(None, 3, True, ["a", "b"]), True
    )  # fmt: skip
    assert run("here") == (["here"], OnTask(), False)


def test_a_field_without_a_default_has_to_be_given_wherever_its_record_stands():
    app, seen = typer.Typer(rich_markup_mode=None), []

    @app.command()
    @with_records
    def look(needed: Needed, place: str = "here") -> None:
        seen.append((place, needed))

    with pytest.raises(typer.BadParameter.__bases__[0], match="Missing parameter: data"):
        app([], standalone_mode=False)
    app(["--data", "x", "--task", "t"], standalone_mode=False)
    assert seen == [("here", Needed(task="t", data="x"))]


def test_what_typer_checks_of_options_it_checks_of_fields(run):
    with pytest.raises(typer.BadParameter.__bases__[0], match="1"):
        run("here", "--max-eval", "0")


def test_help_names_the_fields_and_the_commands_own_words(run, capsys):
    run("--help")
    shown = capsys.readouterr().out
    for text in ("Look at places.", "--max-eval", "The task's name.", "--loud"):
        assert text in shown


def test_given_are_the_options_that_somebody_wrote():
    assert given(OnTask(task="a", max_eval=2, quick=True)) == ["--task", "--max-eval", "--quick"]
    assert given(OnTask(task="a", max_eval=2), "task") == ["--max-eval"]
    assert given(OnTask()) == []
