"""``lorascope merge``: an adapter and its base become one model, which is certified before it appears. Floor: cli."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli.certificate import print_certificate
from lorascope.cli.console import AsJson, Device, print_json, stdout, tell
from lorascope.cli.options import Answers, Examples
from lorascope.cli.planning import chosen_device
from lorascope.cli.records import given, with_records
from lorascope.config import EvaluateConfig, parse_memory, validate
from lorascope.errors import UsageError, did_you_mean
from lorascope.store import CERTIFICATE_FILE, check_new

if TYPE_CHECKING:
    from lorascope.certified_merge import CertifiedMerge, MergeOrder
    from lorascope.lora.merge_plan import MergeDtype
    from lorascope.lora.peft_io import SavedAdapter
    from lorascope.merged_model import MergeBase


@dataclass(frozen=True)
class OnTask(Examples, Answers):
    """A task on whose examples outputs are compared and scored."""

    task: Annotated[str | None, typer.Option(help="Compare outputs and score on this task's examples.")] = None
    data: Annotated[str | None, typer.Option(help="The task's data: a file, a directory or a hub id.")] = None


@dataclass(frozen=True)
class Comparing:
    """How far the merged model is compared."""

    quantization: Annotated[str | None, typer.Option(help="nf4: compare the merged model in 4 bits too.")] = None
    tensors_only: Annotated[bool, typer.Option("--tensors-only", help="Certify the tensors; run no model.")] = False
    device: Device = None


@with_records
def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A PEFT adapter's directory, or a trial's.")],
    out: Annotated[Path, typer.Option(help="A new directory for the merged model.")],
    on_task: OnTask,
    comparing: Comparing,
    base: Annotated[str | None, typer.Option(help="The base model, instead of the one that the adapter names.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or as-base: each tensor as it is.")] = "as-base",
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Where a file of weights ends.")] = "5GB",
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base: a directory that transformers loads as it is, with a certificate that it is the same."""
    max_shard_bytes = parse_memory(max_shard_size, "--max-shard-size")
    _check(on_task, comparing)
    settings = _settings(on_task)
    check_new(out)
    from lorascope.adapter import adapter_directory
    from lorascope.certified_merge import MergeOrder, MergeRefused, certified_merge
    from lorascope.lora.peft_io import read_adapter
    from lorascope.lora.quantised import check_installed
    from lorascope.merged_model import open_merge_base

    chosen, adapter = merge_dtype(dtype), adapter_directory(adapter)
    if comparing.quantization == "nf4":
        check_installed()
    # What does not hold together is the certificate's to tell.
    saved = _labelled(read_adapter(adapter, str(adapter), damaged=True), on_task.classes)
    found = open_merge_base(saved, str(adapter), base)
    order = MergeOrder(
        saved,
        adapter,
        found,
        chosen,
        max_shard_bytes,
        comparing.quantization,
        comparing.tensors_only,
        task=None if on_task.task is None else on_task.task_config(on_task.task, on_task.data, "merge", saved.labels),
        settings=settings,
        device=None if comparing.device is None else chosen_device(comparing.device),
    )
    _announce(order)
    try:
        with certified_merge(order, out) as done:
            pass  # nothing is added to the directory
    except MergeRefused as refused:  # what failed is worth more than that it did
        _show(adapter, out, found, refused.merge, as_json)
        raise
    _show(adapter, out, found, done, as_json)


def _check(on_task: OnTask, comparing: Comparing) -> None:
    """What belongs to a task means nothing without, nor what belongs to models where none is run."""
    if (on_task.task is None) != (on_task.data is None):
        raise UsageError("a task needs data, and data a task", where="merge", fix="give both --task and --data, or neither")
    # Classes are the merged model's names too.
    for option in given(on_task, "labels") if on_task.task is None else ():
        fix = "leave it out, or give --task and --data"
        raise UsageError("it says on what to compare and how to score, which needs a task", where=option, fix=fix)
    if len(on_task.decode or ()) > 1:
        raise UsageError("a merge is scored with one way to decode", where="--decode", fix="give it once")
    if comparing.quantization not in (None, "nf4"):
        raise UsageError(f"there is no quantization {comparing.quantization!r}", where="--quantization", fix="give nf4")
    if comparing.tensors_only and (on_task.task is not None or comparing.quantization is not None):
        what = "outputs cannot be compared where no model may be run"
        raise UsageError(what, where="--tensors-only", fix="leave it out, or leave out --task and --quantization")
    if comparing.tensors_only and comparing.device is not None:
        raise UsageError("no model is run with --tensors-only", where="--device", fix="leave one of them out")


def _settings(on_task: OnTask) -> EvaluateConfig:
    """How the task is evaluated: what is not given is as ``evaluate`` has it."""
    settings: EvaluateConfig = validate(EvaluateConfig, {**on_task.evaluation(), "decoding": on_task.decodings()}, "merge")
    return settings


def merge_dtype(text: str) -> MergeDtype:
    """The dtype that ``--dtype`` names.

    Raises:
        UsageError: there is none of that name.
    """
    from lorascope.lora.merge_plan import MERGE_DTYPES

    if text not in MERGE_DTYPES:
        raise UsageError(f"there is no dtype {text!r}", where="--dtype", fix=did_you_mean(text, list(MERGE_DTYPES)))
    return text  # type: ignore[return-value]


def _announce(order: MergeOrder) -> None:
    """What will be done, on stderr: it takes minutes on a large base."""
    compared = "with base and adapter" if order.why_tensors_only is None else "by its tensors alone"
    line = f"merging into {order.base.name}, and comparing the result {compared}"
    tell(line)


def _labelled(saved: SavedAdapter, names: tuple[str, ...]) -> SavedAdapter:
    """The adapter, with these class names where it has none of its own."""
    if not names:
        return saved
    if saved.labels not in ((), names):
        has = ", ".join(saved.labels)
        raise UsageError("the adapter names its classes otherwise", where="--labels", fix=f"leave it out: {has}")
    return replace(saved, labels=names)


def _show(adapter: Path, out: Path, found: MergeBase, done: CertifiedMerge, as_json: bool) -> None:
    document = _document(adapter, out, found, done)
    if as_json:
        print_json({**document, "certificate": done.certificate.document})
        return
    for warning in done.warnings:
        tell(f"warning: {warning}")
    print_certificate(stdout(), done.certificate.document)


def _document(adapter: Path, out: Path, found: MergeBase, done: CertifiedMerge) -> dict[str, Any]:
    merged = done.merged
    return {
        "adapter": str(adapter),
        "out": str(out),
        "base": {
            "name": found.name,
            "directory": str(found.directory),
            "revision": found.revision,
            "commit": found.commit,
        },
        "class": type(found.model).__name__,
        "dtype": done.certificate.document["merged"]["dtype"] if merged is None else merged.dtype,
        "files": sorted([*merged.files, CERTIFICATE_FILE]) if merged is not None and done.certificate.holds else [],
        "warnings": list(found.warnings if merged is None else merged.warnings),
    }
