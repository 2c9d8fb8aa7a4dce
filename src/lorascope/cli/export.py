"""``lorascope export``: a trained adapter for other tools, with its model card. Floor: cli."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli.certificate import print_certificate
from lorascope.cli.console import AsJson, Device, print_json, stdout, tell
from lorascope.cli.merge import merge_dtype
from lorascope.cli.planning import chosen_device
from lorascope.errors import UsageError
from lorascope.store import check_new

if TYPE_CHECKING:
    from lorascope.export import Source, Wishes
    from lorascope.model_card import CardFacts


def export(
    place: Annotated[
        Path,
        typer.Argument(metavar="TRIAL|ADAPTER|STUDY", help="runs/<study>/trials/<trial>, a PEFT adapter, or runs/<study>."),
    ],
    out: Annotated[Path, typer.Option(help="A new directory.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="A whole model for transformers and vLLM, with a merge certificate.")
    ] = False,
    script: Annotated[
        bool, typer.Option("--script", help="A standalone PEFT + Trainer script that reproduces the trial.")
    ] = False,
    licence: Annotated[
        str | None, typer.Option(metavar="SPDX", help="The licence that the card states; by default the base's is quoted.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="Of a study: the best trial by its results.")] = False,
    trial: Annotated[str | None, typer.Option(metavar="NAME", help="Of a study: this trial.")] = None,
    dtype: Annotated[
        str, typer.Option(help="With --merged: float32, bfloat16, float16, or as-base, each tensor as it is.")
    ] = "as-base",
    base: Annotated[str | None, typer.Option(help="The base model, where it does not lie where the adapter says.")] = None,
    base_name: Annotated[
        str | None, typer.Option(metavar="ID", help="What others know the base by, e.g. its hub id, where yours is a copy.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Hand a trained adapter to other tools: for PEFT with a model card, merged, or as a script."""
    if merged and script:
        raise UsageError("--merged and --script exclude each other", where="export", fix="give one of them")
    given = {"--licence": licence, "--base": base, "--base-name": base_name}
    idle = next((name for name, value in given.items() if script and value is not None), None)
    if idle is not None:
        raise UsageError(f"{idle} has no effect with --script", where="export", fix="leave it out")
    if dtype != "as-base" and not merged:
        raise UsageError("--dtype has no effect without --merged", where="export", fix="add --merged, or leave it out")
    if device is not None and not merged:
        what = "--device has no effect without --merged"
        raise UsageError(what, where="export", fix="add --merged, whose result is run, or leave it out")
    check_new(out)
    from lorascope.export import find_source

    source = find_source(place, best=best, trial=trial)
    if source.choice is not None:
        tell(source.choice.sentence)
    if script:
        document = _script(source, place, out)
    else:
        wishes = _wishes(out, merged, licence, base, base_name)
        document = _merged(source, out, wishes, dtype, device, as_json) if merged else _adapter(source, out, wishes)
    if as_json:
        print_json(document)
    else:
        typer.echo(str(out / "train_peft.py") if script else str(out))


def _script(source: Source, place: Path, out: Path) -> dict[str, Any]:
    from lorascope.cohort.script import write_script

    directory = source.trial_directory
    if directory is None:
        fix = "give runs/<study>/trials/<trial>"
        raise UsageError("no such trial: an adapter alone does not say how it was trained", where=str(place), fix=fix)
    write_script(directory, out)
    return _document(source, out, "script")


def _wishes(out: Path, merged: bool, licence: str | None, base: str | None, base_name: str | None) -> Wishes:
    from lorascope.export import Wishes
    from lorascope.model_card import chosen_licence

    chosen = None if licence is None else chosen_licence(licence)
    return Wishes(out.resolve().name, "merged" if merged else "adapter", chosen, base, base_name)


def _adapter(source: Source, out: Path, wishes: Wishes) -> dict[str, Any]:
    """Write the adapter; the command's document."""
    from lorascope.export import write_adapter_directory
    from lorascope.lora.peft_io import read_adapter

    facts = write_adapter_directory(source, read_adapter(source.adapter), out, wishes)
    return _described(source, out, facts, None, ())


def _merged(source: Source, out: Path, wishes: Wishes, dtype: str, device: str | None, as_json: bool) -> dict[str, Any]:
    """Write the merged model; the command's document. Where the certificate does not hold it is all that there is to show."""
    from lorascope.certified_merge import MergeRefused
    from lorascope.export.merged import write_merged_directory
    from lorascope.lora.peft_io import read_adapter

    chosen, place = merge_dtype(dtype), None if device is None else chosen_device(device)
    tell("merging, and comparing the result with base and adapter")
    try:
        saved = read_adapter(source.adapter, damaged=True)  # what does not hold together is the certificate's to tell
        written = write_merged_directory(source, saved, out, wishes, chosen, place)
    except MergeRefused as refused:
        certificate = refused.merge.certificate.document
        if as_json:
            print_json(_document(source, out, "merged") | {"certificate": certificate})
        else:
            print_certificate(stdout(), certificate)
        raise
    return _described(source, out, written.facts, written.certificate, written.warnings)


def _described(
    source: Source, out: Path, facts: CardFacts, certificate: dict[str, Any] | None, warnings: tuple[str, ...]
) -> dict[str, Any]:
    """Tell what the card cannot say for certain; the command's document."""
    notes = [*_notes(facts), *warnings, *(f"vLLM: {item}" for item in facts.serving)]
    for note in notes:
        tell(f"note: {note}")
    return _document(source, out, facts.form) | {
        "base": {"name": facts.base.name, "revision": facts.base.revision, "checksum": facts.base.checksum},
        "licence": None if facts.licence is None else {"name": facts.licence.shown, "source": facts.licence.source},
        "certificate": certificate,
        "notes": notes,
    }


def _notes(facts: CardFacts) -> list[str]:
    """What the card cannot say for certain, for who exports."""
    notes = []
    if facts.base.is_local and not facts.base.comes_along:
        notes.append(
            f"the base is a local directory: the export names it {facts.base.name!r} alone, its card no base of the Hub; "
            "--base-name gives the name that others know it by"
        )
    if facts.licence is not None and facts.licence.identifier == "unknown":
        notes.append("no licence is stated for the base; --licence sets the export's")
    return notes


def _document(source: Source, out: Path, form: str) -> dict[str, Any]:
    return {
        "out": str(out),
        "form": form,
        "adapter": str(source.adapter),
        "study": None if source.study is None else str(source.study),
        "trial": None if source.trial is None else source.trial.trial,
        "choice": None if source.choice is None else source.choice.document(),
        "files": sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()),
    }
