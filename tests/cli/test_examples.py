"""What people meet first: examples that can be typed, and where to start."""

import shlex
from io import StringIO

import pytest
import typer
from rich.console import Console

from lorascope.cli.app import app
from lorascope.cli.examples import EXAMPLES, NAME, print_start


def commands_of(command, path=()):
    """By its words every command of the program, the program itself and its groups included."""
    found = {" ".join(path): command}
    for name, one in getattr(command, "commands", {}).items():
        found |= commands_of(one, (*path, name))
    return found


ROOT = typer.main.get_command(app)
COMMANDS = commands_of(ROOT)


def parsed(words, command=ROOT, parent=None, path=NAME):
    """Parse as the program would, down to the last subcommand, and run nothing; the words of the command that was meant."""
    context = command.make_context(path, list(words), parent=parent)
    rest = [*context._protected_args, *context.args] if hasattr(command, "commands") else []
    if not rest:
        return path
    name, found, others = command.resolve_command(context, rest)
    return parsed(others, found, context, f"{path} {name}")


def test_every_command_has_examples():
    assert set(EXAMPLES) == set(COMMANDS)
    assert all(EXAMPLES.values())


@pytest.mark.parametrize("command", EXAMPLES, ids=lambda command: command or NAME)
def test_help_ends_with_examples_that_parse(command, cli):
    ended = cli(*command.split(), "--help")
    assert (ended.code, ended.err) == (0, "")
    title, *lines = ended.out[ended.out.rindex("Example") :].splitlines()
    assert title == ("Examples:" if len(EXAMPLES[command]) > 1 else "Example:")
    examples = "\n".join(lines).replace("\\\n", " ").splitlines()
    assert [shlex.split(one) for one in examples] == [shlex.split(one.replace("\\\n", " ")) for one in EXAMPLES[command]]
    for example in examples:
        program, *words = shlex.split(example)
        assert program == NAME
        meant = parsed(words).split()[1:]
        assert meant[: len(command.split())] == command.split()
    assert max(map(len, lines)) <= 80


def test_an_example_that_does_not_parse_is_found():
    with pytest.raises(Exception, match="--bass"):
        parsed(["merge", "my-adapter", "--bass", "gpt2"])
    with pytest.raises(Exception, match=r"study_file|STUDY"):
        parsed(["run"])


def test_the_program_alone_shows_where_to_start(cli):
    ended = cli()
    assert (ended.code, ended.err) == (0, "")
    commands = [line.split(NAME)[1].split()[0] for line in ended.out.splitlines() if line.startswith(f"  {NAME} ")]
    assert {"demo", "doctor", "recommend", "plan", "run", "results", "merge"} <= set(commands) <= set(COMMANDS) | {"data"}
    assert ended.out.splitlines()[-1].startswith("lorascope --help lists all commands")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_where_to_start_fits_narrow_terminals(width):
    console = Console(file=StringIO(), width=width)
    print_start(console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.rstrip().endswith("demo") or "demo  " in line for line in lines)
