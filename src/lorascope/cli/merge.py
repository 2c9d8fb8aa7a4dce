"""``lorascope merge``: an adapter and its base become one model, which is checked before it appears. Floor: cli."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lorascope.cli.console import AsJson, print_json, stderr, stdout
from lorascope.config import parse_memory
from lorascope.errors import CheckFailed, UsageError, did_you_mean

if TYPE_CHECKING:
    from lorascope.merged_model import MergedModel


def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A PEFT adapter's directory.")],
    out: Annotated[Path, typer.Option(help="A new directory for the merged model.")],
    base: Annotated[str | None, typer.Option(help="The base model, instead of the one that the adapter names.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or as-base: each tensor as it is.")] = "as-base",
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Where a file of weights ends.")] = "5GB",
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base: a directory that transformers loads as it is."""
    max_shard_bytes = parse_memory(max_shard_size, "--max-shard-size")
    _refuse_existing(out)
    from lorascope.lora.merge_plan import MERGE_DTYPES
    from lorascope.lora.peft_io import read_adapter
    from lorascope.merged_model import open_merge_base, write_merged
    from lorascope.store import atomic_directory

    if dtype not in MERGE_DTYPES:
        raise UsageError(f"there is no dtype {dtype!r}", where="--dtype", fix=did_you_mean(dtype, list(MERGE_DTYPES)))
    saved = read_adapter(adapter)
    found = open_merge_base(saved, str(adapter), base)
    with atomic_directory(out) as directory:
        merged = write_merged(
            saved,
            adapter,
            found,
            directory,
            dtype=dtype,  # type: ignore[arg-type]
            max_shard_bytes=max_shard_bytes,
        )
        _check(merged)
    document = _document(adapter, out, merged)
    if as_json:
        print_json(document)
        return
    for warning in merged.warnings:
        stderr().print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    _print(document)


def _refuse_existing(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("something is there already", where=str(out), fix="give a new directory")


def _check(merged: MergedModel) -> None:
    """Raise a CheckFailed unless every tensor on the disk is what it should be."""
    record = merged.record
    if record.missing:
        raise CheckFailed(f"{len(record.missing)} tensors are missing in the merged files", where=record.missing[0])
    wrong = next((one for one in record.tensors if not one.finite or one.error is None), None)
    if wrong is not None:
        raise CheckFailed("the merged tensor holds NaN or infinite numbers", where=wrong.name)


def _document(adapter: Path, out: Path, merged: MergedModel) -> dict[str, Any]:
    return {
        "adapter": str(adapter),
        "out": str(out),
        "base": {
            "name": merged.base.name,
            "directory": str(merged.base.directory),
            "revision": merged.base.revision,
            "commit": merged.base.commit,
        },
        "class": type(merged.base.model).__name__,
        "dtype": merged.dtype,
        "files": list(merged.files),
        "warnings": list(merged.warnings),
        "tensors": merged.record.document(),
    }


def _print(document: dict[str, Any]) -> None:
    record = document["tensors"]
    merged = [one for one in record["tensors"] if one["kind"] == "merged"]
    table = Table(show_header=False, box=None, pad_edge=False)
    worst = max(merged, key=lambda one: one["error"], default=None)
    rows = {
        "merged": document["out"],
        "base": document["base"]["name"],
        "class": document["class"],
        "weights": f"{record['num_bytes'] / 1e9:.3g} GB in {len(record['files'])} file(s), {document['dtype']}",
        "updates": f"{len(merged)} modules",
        "replaced": f"{sum(one['kind'] == 'replaced' for one in record['tensors'])} tensors (heads and biases)",
    }
    if worst is not None:
        rows["largest error"] = f"{worst['error']:.2g} of the update, {worst['module']}"
    for name, value in rows.items():
        table.add_row(name, value)
    stdout().print(table)
