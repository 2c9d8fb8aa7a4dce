"""``lorascope merge``: an adapter and its base become one model, which is certified before it appears. Floor: cli."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli.certificate import print_certificate
from lorascope.cli.console import AsJson, print_json, stderr, stdout
from lorascope.config import BaseModelConfig, EvaluateConfig, TaskConfig, parse_memory, validate
from lorascope.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from lorascope.certify import Certificate
    from lorascope.lora.merge_plan import MergeDtype
    from lorascope.lora.peft_io import SavedAdapter
    from lorascope.merged_model import MergedModel


def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A PEFT adapter's directory.")],
    out: Annotated[Path, typer.Option(help="A new directory for the merged model.")],
    base: Annotated[str | None, typer.Option(help="The base model, instead of the one that the adapter names.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or as-base: each tensor as it is.")] = "as-base",
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Where a file of weights ends.")] = "5GB",
    task: Annotated[str | None, typer.Option(help="Compare scores on a task too: its name, as in a study file.")] = None,
    data: Annotated[str | None, typer.Option(help="The task's file, directory or hub id.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    max_eval: Annotated[int | None, typer.Option(min=1, help="Only the task's first so many examples.")] = None,
    max_length: Annotated[int, typer.Option(min=8, help="Most tokens of an example.")] = 512,
    quantization: Annotated[str | None, typer.Option(help="nf4: compare the merged model in four bits too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base: a directory that transformers loads as it is, with a certificate."""
    max_shard_bytes = parse_memory(max_shard_size, "--max-shard-size")
    task_config, settings = _task(task, data, split, max_eval, max_length)
    if quantization not in (None, "nf4"):
        raise UsageError(f"there is no quantization {quantization!r}", where="--quantization", fix="nf4 is known")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("something is there already", where=str(out), fix="give a new directory")
    from lorascope.lora.merge_plan import MERGE_DTYPES
    from lorascope.lora.peft_io import read_adapter
    from lorascope.lora.quantised import check_installed
    from lorascope.merged_model import open_merge_base, write_merged
    from lorascope.store import atomic_directory

    if dtype not in MERGE_DTYPES:
        raise UsageError(f"there is no dtype {dtype!r}", where="--dtype", fix=did_you_mean(dtype, list(MERGE_DTYPES)))
    if quantization is not None:
        check_installed()
    chosen: MergeDtype = dtype  # type: ignore[assignment]
    saved = read_adapter(adapter)
    found = open_merge_base(saved, str(adapter), base)
    with atomic_directory(out) as directory:
        merged = write_merged(saved, adapter, found, directory, dtype=chosen, max_shard_bytes=max_shard_bytes)
        certificate = _certified(saved, adapter, merged, directory, (task_config, settings, quantization is not None))
        certificate = _placed(certificate, out)
        if not certificate.holds:  # what failed is worth more than that it did
            _show(certificate, adapter, out, merged, as_json)
        certificate.raise_unless_it_holds(out)
        _write_certificate(certificate, directory)
    _show(certificate, adapter, out, merged, as_json)


def _task(
    task: str | None, data: str | None, split: str, max_eval: int | None, max_length: int
) -> tuple[TaskConfig | None, EvaluateConfig]:
    settings = validate(EvaluateConfig, {"split": split}, "merge")
    if task is None and data is None:
        return None, settings
    if task is None or data is None:
        missing = "--task" if task is None else "--data"
        raise UsageError("a task needs a name and data", where=missing, fix="give --task and --data, or neither")
    values = {"name": task, "data": data, "max_eval": max_eval, "max_length": max_length}
    return validate(TaskConfig, values, "merge"), settings


def _certified(
    saved: SavedAdapter,
    adapter: Path,
    merged: MergedModel,
    directory: Path,
    how: tuple[TaskConfig | None, EvaluateConfig, bool],
) -> Certificate:
    from lorascope.certify import MergeClaim, certify, why_tensors_only
    from lorascope.merged_model import merged_in_memory

    task, settings, quantise = how
    base = merged.base
    labels = tuple(str(label) for _, label in sorted((base.model.config.id2label or {}).items()))
    claim = MergeClaim(
        base=BaseModelConfig(model=base.name, revision=base.commit or base.revision),
        base_directory=base.directory,
        model=base.model,
        adapter=adapter,
        merged=directory,
        dtype=merged.dtype,
        task_type=base.task_type,
        labels=labels if base.task_type == "SEQ_CLS" else (),
        in_memory=lambda: merged_in_memory(saved, base, merged.dtype),
        quantise=quantise,
        tensors_only=why_tensors_only(base.model),
    )
    return certify(claim, task, settings)


def _placed(certificate: Certificate, out: Path) -> Certificate:
    """The certificate with the place where the merged model will be, not the one where it was made."""
    place = {**certificate.document["merged"], "directory": str(out)}
    return dataclasses.replace(certificate, document={**certificate.document, "merged": place})


def _write_certificate(certificate: Certificate, directory: Path) -> None:
    from lorascope.certify import CERTIFICATE_FILE, certificate_text

    (directory / CERTIFICATE_FILE).write_text(certificate_text(certificate), encoding="utf-8")


def _show(certificate: Certificate, adapter: Path, out: Path, merged: MergedModel, as_json: bool) -> None:
    if as_json:
        document: dict[str, Any] = {
            "adapter": str(adapter),
            "out": str(out),
            "base": {"model": merged.base.name, "revision": merged.base.revision, "commit": merged.base.commit},
            "class": type(merged.base.model).__name__,
            "dtype": merged.dtype,
            "files": list(merged.files),
            "warnings": list(merged.warnings),
            "certificate": certificate.document,
        }
        print_json(document)
        return
    for warning in (*merged.warnings, *certificate.document["warnings"]):
        stderr().print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    print_certificate(stdout(), certificate.document)
