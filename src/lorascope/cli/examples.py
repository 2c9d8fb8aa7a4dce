"""What people meet first: ``lorascope`` alone, and the examples under every command's help. Floor: cli."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

NAME = "lorascope"

# By command, as it follows the program's name; the empty one is the program itself.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "": ("lorascope demo", "lorascope run study.yaml"),
    "plan": ("lorascope plan study.yaml", "lorascope plan study.yaml --budget 2h --memory 8GB"),
    "run": (
        "lorascope run study.yaml",
        "lorascope run study.yaml --set train.learning_rate=1e-4 --out runs/slower",
        "lorascope run study.yaml --resume --budget 30m",
    ),
    "results": (
        "lorascope results runs/which-targets",
        "lorascope results runs/which-targets --pairs --metric accuracy",
        "lorascope results runs/part-1 runs/part-2 --json",
    ),
    "evaluate": (
        "lorascope evaluate my-adapter --task sst2 --data data/sst2",
        "lorascope evaluate my-adapter --task squad --data dev.json \\\n    --decode nucleus,top_p=0.9,samples=4",
    ),
    "generate": (
        'lorascope generate --adapter my-adapter --prompt "Where were you born?"',
        "lorascope generate --adapter one --adapter two --side-by-side --file ask.txt",
    ),
    "chat": (
        "lorascope chat --adapter my-adapter",
        "lorascope chat --base merged --decode nucleus,top_p=0.9 --seed 7",
    ),
    "inspect": (
        "lorascope inspect my-adapter",
        "lorascope inspect one two --plot overlap.svg",
        "lorascope inspect my-adapter --truncate 0.005 --task sst2 --data data/sst2 \\\n    --out smaller",
        "lorascope inspect my-adapter --speed",
    ),
    "merge": (
        "lorascope merge my-adapter --out merged",
        "lorascope merge my-adapter --out merged --task sst2 --data data/sst2",
    ),
    "export": (
        "lorascope export runs/which-targets --best --out my-adapter",
        "lorascope export my-adapter --merged --out my-model",
    ),
    "recommend": (
        "lorascope recommend --task sst2 --base gpt2 --out study.yaml",
        "lorascope recommend --task squad --base gpt2 --memory 8GB --goal faster",
    ),
    "report": (
        "lorascope report runs/which-targets",
        "lorascope report runs/part-1 runs/part-2 --out report.html",
    ),
    "doctor": ("lorascope doctor", "lorascope doctor --base gpt2"),
    "demo": ("lorascope demo", "lorascope demo --out runs/first"),
    "data": ("lorascope data preview study.yaml", "lorascope data audit study.yaml"),
    "data preview": (
        "lorascope data preview study.yaml",
        "lorascope data preview --task file --data reviews.jsonl --base gpt2 -n 5",
    ),
    "data audit": (
        "lorascope data audit study.yaml",
        "lorascope data audit --task squad --data data/squad --html audit.html",
    ),
    "data world": ("lorascope data world --out world", "lorascope data world --out small-world --size 50 --seed 3"),
}
_START = {
    "First time here": {
        "demo": "a whole study, offline, to its report",
        "doctor": "is everything right on this machine?",
    },
    "A study of your own": {
        "recommend --task T --base M": "where to begin, and why",
        "data audit study.yaml": "what is wrong with its data",
        "plan study.yaml": "what it takes, and what does not fit",
        "run study.yaml": "train, evaluate, store, report",
        "results runs/NAME": "what differs, and how sure that is",
    },
    "An adapter, ours or PEFT's": {
        "inspect ADAPTER": "what it has become",
        "chat --adapter ADAPTER": "talk to it, or to its base beside it",
        "merge ADAPTER --out DIR": "one model, certified to be the same",
    },
}


def examples_of(command: str) -> str:
    """The end of a command's help; each example stands as it is written, however wide the terminal."""
    title = "Example:" if len(EXAMPLES[command]) == 1 else "Examples:"
    return "\n".join(["\b", title, *(f"  {example}" for example in EXAMPLES[command])])


def print_start(console: Console) -> None:
    """Where to start: what ``lorascope`` alone shows."""
    console.print(Text.assemble((NAME, "bold"), ": which LoRA configuration, for this model and this task, and how sure?"))
    widest = max(len(command) for group in _START.values() for command in group) + len(NAME) + 3
    for title, group in _START.items():
        console.print(Text(f"\n{title}", "bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, min_width=widest if console.width >= 2 * widest else None)
        for command, what in group.items():
            line = Text(f"  {NAME} {command}", "cyan")
            if console.width >= 2 * widest:
                table.add_row(line, Text(what))
            else:
                table.add_row(line)
                table.add_row(Text(f"      {what}"))
        console.print(table)
    console.print(Text(f"\n{NAME} --help lists all commands; {NAME} COMMAND --help has examples."))
