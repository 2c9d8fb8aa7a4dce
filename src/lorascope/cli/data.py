"""``lorascope data``: what a study would learn from, shown and checked before anything is trained. Floor: cli."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorascope.cli.console import Allow, AsJson, Override, print_json, stderr, stdout, tell, visible
from lorascope.cli.examples import examples_of
from lorascope.config import BaseModelConfig, TaskConfig, load_study, parse_override, validate
from lorascope.data.audit import Audit, audit, check_kinds
from lorascope.data.record import RawTask, Task
from lorascope.embedded import PRETRAINING_SEEDS
from lorascope.errors import MissingSplit, ModelError, UsageError
from lorascope.world.files import DEFAULT_SIZE, world, write

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

app = typer.Typer(
    name="data",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at data before training on them.",
    epilog=examples_of("data"),
)

StudyFile = Annotated[Path | None, typer.Argument(metavar="[STUDY]", help="A study file; or use --task and --data.")]
TaskName = Annotated[str | None, typer.Option("--task", help="The task's name, as in a study file.")]
Data = Annotated[str | None, typer.Option("--data", help="A file, a directory or a hub id.")]
Base = Annotated[str | None, typer.Option("--base", help="The base model, for its tokenizer.")]
Tokenizer = Annotated[str | None, typer.Option("--tokenizer", help="A tokenizer's directory, in place of the base's.")]
Split = Annotated[str | None, typer.Option("--split", help="The split to evaluate on: train, validation or test.")]
Speaker = Annotated[
    str | None,
    typer.Option("--speaker", help="Whose turns are learned: teacher or student, user 1 or user 2, assistant or user."),
]
Labels = Annotated[str | None, typer.Option("--labels", help="The classes in order, for example negative,positive.")]
MaxLength = Annotated[int | None, typer.Option("--max-length", min=8, help="Most tokens of an example; 512 by default.")]
HtmlFile = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page that needs no network here too.")]

_BAR_WIDTH = 40
_COLUMNS = {
    "num_records": "records",
    "num_examples": "examples",
    "num_tokens": "tokens",
    "num_target_tokens": "targets",
    "num_repeated_targets": "repeated",
    "median_tokens": "median",
    "longest_tokens": "longest",
}
# Neighbouring tokens differ in shade, so that each one's bounds are seen.
_SHADES = {"prompt": ("grey70 on grey15", "grey70 on grey23"), "target": ("black on green3", "black on pale_green3")}
_SPECIAL = {"prompt": "bold black on khaki3", "target": "bold black on green_yellow"}


@dataclass(frozen=True)
class Inspected:
    """A task's data, with its examples where there is a tokenizer; ``reason`` says why there is none."""

    raw: RawTask
    task: Task | None
    tokenizer: PreTrainedTokenizerBase | None
    max_length: int
    reason: str | None
    allow: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """What both commands say of the data."""
        notices = self.raw.notices if self.task is None else self.task.notices
        return {
            "task": self.raw.name,
            "task_type": self.raw.task_type,
            "shape": self.raw.shape,
            "labels": list(self.raw.labels),
            "counts": {split: dict(counts) for split, counts in self.raw.counts.items()},
            "max_length": self.max_length,
            "tokens": "checked" if self.reason is None else f"not checked: {self.reason}",
            "notices": [{"kind": notice.kind, "count": notice.count, "message": notice.message} for notice in notices],
        }


@app.command(epilog=examples_of("data preview"))
def preview(
    study_file: StudyFile = None,
    overrides: Override = None,
    task: TaskName = None,
    data: Data = None,
    base: Base = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    split: Split = None,
    speaker: Speaker = None,
    labels: Labels = None,
    num_examples: Annotated[int, typer.Option("-n", min=0, help="Examples of each split to show.")] = 3,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """The data's shape and counts, and a few examples token by token, with what is learned marked."""
    flags = {"task": task, "data": data, "base": base, "max_length": max_length, "split": split}
    inspected = _inspect(study_file, overrides, flags | {"speaker": speaker, "labels": labels}, tokenizer)
    document = inspected.document() | _audit_document(inspected, _audit(inspected))
    document = {key: document[key] for key in document if key not in ("findings", "allowed", "passed")}
    document["examples"] = _examples(inspected, num_examples)
    if as_json:
        print_json(document)
    else:
        _print_head(stdout(), document)
        _print_notices(stdout(), document)
        _print_examples(stdout(), document)
    if html is not None:
        _write_page(html, document)


@app.command("audit", epilog=examples_of("data audit"))
def audit_command(
    study_file: StudyFile = None,
    overrides: Override = None,
    task: TaskName = None,
    data: Data = None,
    base: Base = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    split: Split = None,
    speaker: Speaker = None,
    labels: Labels = None,
    allow: Allow = None,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Everything that is wrong with the data, with its place; exit code 3 for an error that is not allowed."""
    check_kinds(allow or [])
    flags = {"task": task, "data": data, "base": base, "max_length": max_length, "split": split}
    inspected = _inspect(study_file, overrides, flags | {"speaker": speaker, "labels": labels}, tokenizer, allow)
    found = _audit(inspected)
    document = inspected.document() | _audit_document(inspected, found)
    if as_json:
        print_json(document)
    else:
        _print_head(stdout(), document)
        _print_findings(stdout(), document)
        _print_lengths(stdout(), document)
    if html is not None:
        _write_page(html, document | {"examples": _examples(inspected, 3)})
    found.check(inspected.allow)


@app.command("world", epilog=examples_of("data world"))
def world_command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new directory for the files.")],
    size: Annotated[int, typer.Option(metavar="N", help="Training dialogues; everything else goes with them.")] = DEFAULT_SIZE,
    seed: Annotated[int, typer.Option(min=0, help="Which world; equal seeds and sizes give equal files.")] = 0,
    dialect: Annotated[
        bool, typer.Option("--dialect", help="Who replies speaks a dialect, in which lorascope:small has read no talk.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """A small world made up here: persona dialogues with entailment labels, questions, lessons, opinions about its towns."""
    from lorascope.store import atomic_directory, check_new

    check_new(out)
    with _stage("making a world"):
        sets = world(seed, size, dialect=dialect)
    with atomic_directory(out, replace=False) as unfinished:
        files = write(sets, seed, size, unfinished, dialect=dialect)
    if seed >= PRETRAINING_SEEDS:
        tell(
            f"--seed {seed}: lorascope:small may have read this world's train split, as of seeds from {PRETRAINING_SEEDS} on; "
            "take a smaller one for studies on it"
        )
    counts = {split: of.counts for split, of in sets.items()}
    if as_json:
        print_json({"out": str(out), "seed": seed, "size": size, "dialect": dialect, "counts": counts, "files": files})
        return
    table = Table()
    table.add_column("split", no_wrap=True)
    for name in counts["train"]:
        table.add_column(name, justify="right")
    for split, row in counts.items():
        table.add_row(split, *(f"{number:,}" for number in row.values()))
    stdout().print(table)
    stdout().print(f"{out / 'README.md'} says what is where", markup=False, highlight=False, soft_wrap=True)


def _inspect(
    study_file: Path | None,
    overrides: Sequence[str] | None,
    flags: Mapping[str, Any],
    tokenizer: str | None,
    allow: Sequence[str] | None = None,
) -> Inspected:
    """Read the data of a study file, or those that the flags name."""
    from lorascope.data.task import encode_task

    config, base, split = (
        _from_study(study_file, overrides, flags) if study_file is not None else _from_flags(overrides, flags)
    )
    with _stage(f"reading {config.name}"):
        raw = _read(config, split)
    place = tokenizer or (base.model if base is not None else None)
    allowed = tuple(dict.fromkeys([*config.allow, *(allow or [])]))
    if place is None:
        reason = "the checks of tokens need --base or --tokenizer"
        return Inspected(raw, None, None, config.max_length, reason, allowed)
    from lorascope.base_model import load_tokenizer, read_config, task_type_of

    wanted = base if base is not None and tokenizer is None else validate(BaseModelConfig, {"model": place}, "--tokenizer")
    try:
        loaded = load_tokenizer(wanted)
    except ModelError as error:
        if tokenizer is not None or study_file is None:
            raise
        return Inspected(raw, None, None, config.max_length, str(error), allowed)
    if base is not None:
        raw = replace(raw, task_type=task_type_of(read_config(base), raw.task_type))
    # Where train is all that is looked at, it is encoded once.
    alone = raw.eval_split == "train"
    with _stage(f"encoding {len(raw.train) + (0 if alone else len(raw.eval)):,} records"):
        encoded = encode_task(replace(raw, eval=[]) if alone else raw, loaded, config.max_length)
    return Inspected(raw, encoded, loaded, config.max_length, None, allowed)


def _from_study(
    study_file: Path, overrides: Sequence[str] | None, flags: Mapping[str, Any]
) -> tuple[TaskConfig, BaseModelConfig, str]:
    given = [name for name, value in flags.items() if value is not None]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise UsageError(f"{option} and a study file exclude each other", where=option, fix="override with --set")
    study = load_study(study_file, dict(parse_override(text) for text in overrides or []))
    return study.task, study.base, study.evaluate.split


def _read(config: TaskConfig, split: str | None) -> RawTask:
    """The train split and ``split``; for None, whichever splits there are."""
    from lorascope.data.task import read_task

    if split is not None:
        return read_task(config, split)
    missing: MissingSplit | None = None
    for wanted, with_train in (("validation", True), ("train", True), ("validation", False), ("test", False)):
        try:
            return read_task(config, wanted, with_train=with_train)
        except MissingSplit as error:
            missing = missing or error
    assert missing is not None
    raise missing


def _from_flags(
    overrides: Sequence[str] | None, flags: Mapping[str, Any]
) -> tuple[TaskConfig, BaseModelConfig | None, str | None]:
    if flags["task"] is None or flags["data"] is None:
        raise UsageError("no data to look at", where="data", fix="give a study file, or --task and --data")
    if overrides:
        raise UsageError("there is no study file to override", where="--set", fix="use the options instead")
    labels = None if flags["labels"] is None else [name.strip() for name in flags["labels"].split(",")]
    values = {"name": flags["task"], "data": flags["data"], "labels": labels, "speaker": flags["speaker"]}
    if flags["max_length"] is not None:
        values["max_length"] = flags["max_length"]
    config = validate(TaskConfig, values, "lorascope data")
    base = None if flags["base"] is None else validate(BaseModelConfig, {"model": flags["base"]}, "--base")
    # A lone file is a training split, and there is nothing else to look at.
    split = flags["split"] or ("train" if Path(flags["data"]).expanduser().is_file() else None)
    if split not in ("train", "validation", "test", None):
        raise UsageError(f"no split {split!r}", where="--split", fix="use train, validation or test")
    return config, base, split


@contextmanager
def _stage(text: str) -> Iterator[None]:
    """Says on a terminal what takes its time."""
    console = stderr()
    with console.status(f"{text} …") if console.is_interactive else nullcontext():
        yield


def _audit(inspected: Inspected) -> Audit:
    with _stage("auditing"):
        return audit(inspected.raw, inspected.task, inspected.tokenizer, inspected.max_length)


def _audit_document(inspected: Inspected, found: Audit) -> dict[str, Any]:
    findings = [
        asdict(finding) | {"summary": finding.summary, "allowed": finding.kind in inspected.allow}
        for finding in found.findings
    ]
    return {
        "splits": [asdict(figures) for figures in found.figures],
        "findings": [{key: value for key, value in finding.items() if key != "told"} for finding in findings],
        "allowed": list(inspected.allow),
        "passed": not found.refused(inspected.allow),
    }


def _examples(inspected: Inspected, count: int) -> list[dict[str, Any]]:
    """The first examples of each split, token by token; without a tokenizer, their records."""
    if inspected.task is not None and inspected.tokenizer is not None:
        from lorascope.data.marking import mark_examples

        return [asdict(marked) for marked in mark_examples(inspected.raw, inspected.task, inspected.tokenizer, count)]
    from lorascope.data.marking import mark_records

    return [asdict(marked) for marked in mark_records(inspected.raw, count)]


def _write_page(path: Path, document: Mapping[str, Any]) -> None:
    from lorascope.cli.page import data_page
    from lorascope.store import write_atomically

    write_atomically(path, data_page(document))


def _print_head(console: Console, document: Mapping[str, Any]) -> None:
    title = Text.assemble((document["task"], "bold"), f"  {document['shape']}, {document['task_type']}")
    if document["labels"]:
        title.append(f", labels {' '.join(document['labels'])}")
    console.print(title, soft_wrap=True)
    for split, counts in document["counts"].items():
        told = ", ".join(f"{count:,} {unit.removesuffix('s') if count == 1 else unit}" for unit, count in counts.items())
        console.print(f"{split} holds {told}", markup=False, highlight=False, soft_wrap=True)
    table = Table()
    table.add_column("split", no_wrap=True)
    known = [name for name in _COLUMNS if any(figures[name] is not None for figures in document["splits"])]
    for name in known:
        table.add_column(_COLUMNS[name], justify="right")
    for figures in document["splits"]:
        table.add_row(figures["split"], *("–" if figures[name] is None else f"{figures[name]:,}" for name in known))
    console.print(table)
    if document["tokens"] != "checked":
        console.print(f"tokens are {document['tokens']}", markup=False, highlight=False, soft_wrap=True)


def _print_notices(console: Console, document: Mapping[str, Any]) -> None:
    for notice in document["notices"]:
        console.print(f"{notice['kind']}: {notice['message']}", markup=False, highlight=False, soft_wrap=True)


def _print_findings(console: Console, document: Mapping[str, Any]) -> None:
    if not document["findings"]:
        console.print("nothing found", highlight=False)
        return
    table = Table(title_justify="left")
    for header in ("", "kind", "split", "finding"):
        table.add_column(header, no_wrap=header in ("", "kind"), overflow="fold")
    styles = {"error": "bold red", "warning": "yellow", "allowed": "dim"}
    for finding in document["findings"]:
        word = "allowed" if finding["allowed"] and finding["severity"] == "error" else finding["severity"]
        told = Text(finding["summary"])
        for place in finding["places"]:
            told.append(f"\n{place}", "dim")
        if finding["places"] and finding["count"] > len(finding["places"]):
            told.append("\n…", "dim")
        table.add_row(Text(word, styles[word]), Text(finding["kind"]), Text(finding["split"]), told)
    console.print(table)


def _print_lengths(console: Console, document: Mapping[str, Any]) -> None:
    for figures in document["splits"]:
        most = max((count for _, _, count in figures["lengths"]), default=0)
        if most:
            console.print(Text(f"tokens an example, {figures['split']}", "bold"))
        for low, high, count in figures["lengths"]:
            bar = "█" * round(_BAR_WIDTH * count / most) or ("▏" if count else "")
            console.print(Text.assemble(f"{low:>6}–{high:<6}", (f"{bar:<{_BAR_WIDTH}}", "cyan"), f" {count:,}"))


def _print_examples(console: Console, document: Mapping[str, Any]) -> None:
    if not document["examples"]:
        return
    colours = console.color_system is not None
    legend = Text("tokens: ")
    if colours:
        samples = ((" given ", _SHADES["prompt"][0]), (" learned ", _SHADES["target"][0]), (" special ", _SPECIAL["prompt"]))
        for sample, style in samples:
            legend.append(sample, style).append(" ")
        legend.append("✂ cut", "bold red")
    else:
        legend.append("given|given[+learned|learned+]; {N tokens cut}")
    console.print(legend, soft_wrap=True)
    for example in document["examples"]:
        head = Text.assemble("\n", (example["split"], "bold"), f" {example['id']}  {example['where']}")
        if example["label"] is not None:
            head.append(f"  label {example['label']}")
        console.print(head, soft_wrap=True)
        console.print(_coloured(example) if colours else Text(_plain(example)), soft_wrap=not colours)


def _coloured(example: Mapping[str, Any]) -> Text:
    text = Text()
    for number, token in enumerate(example["tokens"]):
        if token["num_cut"]:
            text.append(f" ✂ {token['num_cut']:,} cut ", "bold red")
        if number == example["num_input"]:
            text.append("\n→ ", "bold")
        side = "target" if token["is_target"] else "prompt"
        text.append(visible(token["text"]), _SPECIAL[side] if token["is_special"] else _SHADES[side][number % 2])
    if example["num_cut_after"]:
        text.append(f" ✂ {example['num_cut_after']:,} cut ", "bold red")
    return text


def _plain(example: Mapping[str, Any]) -> str:
    """The tokens without colours: ``a|b[+c|d+]``."""
    pieces = []
    for is_target, members in groupby(example["tokens"], key=lambda token: token["is_target"]):
        texts = []
        for token in members:
            cut = f"{{{token['num_cut']:,} tokens cut}}" if token["num_cut"] else ""
            texts.append(cut + visible(token["text"]))
        pieces.append(f"[+{'|'.join(texts)}+]" if is_target else "|".join(texts))
    after = f"{{{example['num_cut_after']:,} tokens cut}}" if example["num_cut_after"] else ""
    return "".join(pieces) + after
