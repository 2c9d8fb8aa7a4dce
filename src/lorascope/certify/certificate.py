"""The merge certificate: everything that was compared, what had to hold, and whether it does.

Before: a directory that is said to hold base + adapter.
After: a ``Certificate``, whose document is ``merge-certificate.json``.
The certificate looks at the result alone: the files' tensors are compared here, ΔW comes from the adapter's own files, and
models are loaded from their directories. Nothing that merges is called; rows of bytes come from ``lora.stored_tensors``.

A model that does not fit into memory gets a certificate of its tensors, which says so. Floor: ``certify``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from lorascope import __version__
from lorascope.certify import checks as judged
from lorascope.certify.beforehand import SCORE, Beforehand, examine, why_no_outputs
from lorascope.certify.checkpoint import Checkpoint, dtype_name, open_checkpoint
from lorascope.certify.checks import Check
from lorascope.certify.claim import MergeClaim, trained_in
from lorascope.certify.directory import directory_checks
from lorascope.certify.layout import Layout
from lorascope.certify.outputs import BASE, Outputs, compare_outputs
from lorascope.certify.tensors import TensorFigures, compare_tensors
from lorascope.certify.update import AdapterFiles
from lorascope.config import EvaluateConfig, TaskConfig
from lorascope.errors import CheckFailed, ModelError
from lorascope.store import strict_json

_VERSION = 1
# A model whose tensors are no numbers, or not there, need not be run.
_NOT_WORTH_RUNNING = ("tensors-present", "tensors-finite", "adapter-fits", "adapter-whole")


@dataclass(frozen=True)
class Certificate:
    """What was found of a merge.

    Attributes:
        document: as JSON can hold it, strictly: no NaN and no infinite number.
    """

    document: dict[str, Any]

    @property
    def holds(self) -> bool:
        """Whether every check that could be made holds."""
        return bool(self.document["holds"])

    @property
    def failures(self) -> list[str]:
        """What does not hold, each a sentence."""
        return [f"{check['name']}: {check['says']}" for check in self.document["checks"] if check["verdict"] == "fails"]

    def raise_unless_it_holds(self, where: Path) -> None:
        """Raise a CheckFailed that names what does not hold."""
        if not self.holds:
            more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
            fix = "nothing was written; the certificate says what was compared"
            raise CheckFailed(f"the merge does not hold: {self.failures[0]}{more}", where=str(where), fix=fix)


def certify(
    claim: MergeClaim,
    task: TaskConfig | None = None,
    settings: EvaluateConfig | None = None,
    *,
    before: Beforehand | None = None,
) -> Certificate:
    """Check a merge.

    Args:
        task: whose examples are the inputs, and whose score is compared; None for drawn texts.
        settings: how it is evaluated.
        before: what ``examine`` found of the same claim, task and settings; by default it is found now.

    Raises:
        LorascopeError: the base's or the adapter's files, or the task, cannot be read. What is wrong with the merged model is
            in the certificate instead.
    """
    before = before or examine(claim, task, settings)
    dtype = claim.stored_dtype
    try:
        merged, merged_config = open_checkpoint(claim.merged), AutoConfig.from_pretrained(claim.merged)
        with torch.device("meta"):
            ties = Layout.of(type(claim.model)(merged_config)).tied
    except (ModelError, OSError, ValueError, KeyError) as error:
        says = f"the merged directory cannot be read: {' '.join(str(error).split())}"
        found = [*before.checks, Check("tensors-present", "fails", says)]
        return Certificate(_document(claim, before, found, why="there is nothing that could be run"))
    figures = compare_tensors(before.layout, ties, before.base, merged, before.adapter, claim.dtype)
    found = [
        *before.checks,
        *judged.tensor_checks(figures, merged.problems, dtype),
        *directory_checks(claim, before.adapter, merged_config, dtype),
    ]
    outputs, why = _outputs(replace(claim, dtype=dtype), found, before)
    if outputs is not None:
        effect = outputs.find(BASE)
        found += [] if effect is None else [judged.effect_check(outputs, effect)]
        found += judged.output_checks(outputs, dtype) if outputs.reached_the_disk else []
    if why is not None and claim.tensors_only is None and not _fails(found):
        asked = before.asked if outputs is None or outputs.stopped is not None else SCORE
        found.append(judged.tensors_only_check(why, asked))
    return Certificate(_document(claim, before, found, merged=merged, figures=figures, outputs=outputs, why=why))


def refused(claim: MergeClaim, before: Beforehand, unwritten: CheckFailed | None = None) -> Certificate:
    """The certificate of a merge that was not made, for what speaks against it beforehand.

    Args:
        unwritten: what ended the writing: a sum that the dtype cannot hold, or NaN in the base.
    """
    if unwritten is None:
        return Certificate(_document(claim, before, before.checks, why="nothing was merged"))
    found = [*before.checks, Check("tensors-finite", "fails", str(unwritten))]
    return Certificate(_document(claim, before, found, why="the merge ended at a number that cannot be written"))


def _outputs(claim: MergeClaim, found: Sequence[Check], before: Beforehand) -> tuple[Outputs | None, str | None]:
    """What the models answer, and why they were not asked, or not all of them; None for none that were, or for no reason."""
    why = why_no_outputs(claim)
    if why is not None:
        return None, why
    if any(check.verdict == "fails" and check.name in _NOT_WORTH_RUNNING for check in found):
        return None, "the tensors do not hold, and no model was run"
    if any(check.name == "tokenizer" and check.verdict == "not judged" for check in found):
        return None, "there is no tokenizer"
    outputs = compare_outputs(claim, before.inputs, before.settings)
    return outputs, outputs.incomplete


def _fails(found: Sequence[Check]) -> bool:
    return any(check.verdict == "fails" for check in found)


def _document(
    claim: MergeClaim,
    before: Beforehand,
    found: Sequence[Check],
    *,
    merged: Checkpoint | None = None,
    figures: TensorFigures | None = None,
    outputs: Outputs | None = None,
    why: str | None = None,
) -> dict[str, Any]:
    document = {
        "certificate": _VERSION,
        "holds": not _fails(found),
        "level": _level(figures, outputs),
        "why_level": why,
        "base": _base_record(claim, before.adapter, before.base, compared=figures is not None),
        "adapter": _adapter_record(before.adapter),
        "merged": _merged_record(claim, merged, figures),
        "inputs": None if outputs is None or outputs.inputs is None else outputs.inputs.record(),
        "effect": _effect(figures, outputs),
        "comparisons": [] if outputs is None else _comparisons(outputs),
        "modules": [] if figures is None else [asdict(one) for one in figures.modules],
        "checks": [asdict(check) for check in found],
        "warnings": [
            *([] if outputs is None else outputs.warnings),
            *(f"{check.name}: {check.says}" for check in found if check.verdict == "warning"),
        ],
        "made_with": {
            "lorascope": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": None if outputs is None else claim.device,
        },
    }
    return dict(strict_json(document))


def _level(figures: TensorFigures | None, outputs: Outputs | None) -> str:
    """How far the merged model was compared."""
    if outputs is not None and outputs.reached_the_disk:
        return "outputs"
    return "beforehand" if figures is None else "tensors"


def _base_record(claim: MergeClaim, adapter: AdapterFiles, base: Checkpoint, *, compared: bool) -> dict[str, Any]:
    """The base, with its checksum where its tensors were ``compared``: for that alone it is not read."""
    held = sorted({dtype_name(tensor.dtype) for tensor in base.tensors.values()})
    packed = trained_in(claim, adapter.record.get("base") or {}) or ("nf4" if claim.quantise else None)
    into = f"the weights of {claim.base.model} as its files hold them ({', '.join(held)})"
    if packed is not None:
        into += f"; not the {packed} base that the adapter was trained on or will be run on"
    return {
        "model": claim.base.model,
        "named_by_adapter": adapter.config.get("base_model_name_or_path"),
        "revision": claim.base.revision,
        "commit": claim.commit,
        "dtypes": held,
        "checksum": base.checksum() if compared else None,
        "merged_into": into,
    }


def _adapter_record(adapter: AdapterFiles) -> dict[str, Any]:
    return {
        "directory": str(adapter.directory),
        "checksum": adapter.checksum,
        "modules": len(adapter.updates),
        "replaced": sorted(adapter.replaced),
        "scalings": sorted({update.scaling for update in adapter.updates.values()}),
    }


def _merged_record(claim: MergeClaim, merged: Checkpoint | None, figures: TensorFigures | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "directory": str(claim.shown_as or claim.merged),
        "class": type(claim.model).__name__,
        "dtype": claim.stored_dtype,
    }
    if merged is not None and figures is not None:
        record |= {
            "checksum": merged.checksum(),
            "files": list(merged.files),
            "tensors": len(merged.tensors),
            "bytes": merged.num_bytes,
            "equal_to_base": figures.num_equal,
        }
    return record


def _effect(figures: TensorFigures | None, outputs: Outputs | None) -> dict[str, Any]:
    """How large the adapter is: what the tolerances have to be seen against."""
    effect: dict[str, Any] = {}
    if figures is not None and figures.modules:
        relative = [one.update_norm / one.weight_norm for one in figures.modules if one.weight_norm]
        effect |= {
            "largest_relative_update": max(relative, default=None),
            "smallest_relative_update": min(relative, default=None),
        }
    row = None if outputs is None else outputs.find(BASE)
    if row is not None:
        effect |= asdict(row.difference)
    return effect


def _comparisons(outputs: Outputs) -> list[dict[str, Any]]:
    rows = [{"name": row.name, "against": row.against, **asdict(row.difference), "scores": row.scores} for row in outputs.rows]
    return [*rows[:1], {"name": rows[0]["against"], "against": None, "scores": outputs.scores}, *rows[1:]] if rows else []


def certificate_text(certificate: Certificate) -> str:
    """The document as the file holds it."""
    return json.dumps(certificate.document, indent=2, allow_nan=False) + "\n"
