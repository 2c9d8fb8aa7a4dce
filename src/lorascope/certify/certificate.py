"""The merge certificate: everything that was compared, what had to hold, and whether it does.

Before: a directory that is said to hold base + adapter.
After: a ``Certificate``, whose document is ``merge-certificate.json``.
The certificate looks at the result alone: the files' tensors are compared here, ΔW comes from the adapter's own files, and
models are loaded from their directories. Nothing that merges is called; rows of bytes come from ``lora.stored_tensors``.

A model that does not fit into memory gets a certificate of its tensors, which says so. Floor: ``certify``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig

from lorascope import __version__
from lorascope.base_model import has_tokenizer, head_modules, load_tokenizer
from lorascope.certify import checks as judged
from lorascope.certify.checkpoint import Checkpoint, dtype_name, open_checkpoint
from lorascope.certify.checks import Check
from lorascope.certify.claim import MergeClaim
from lorascope.certify.outputs import BASE, Outputs, compare_outputs
from lorascope.certify.tensors import Layout, TensorFigures, base_weights_checksum, compare_tensors
from lorascope.certify.update import AdapterFiles, read_updates
from lorascope.config import BaseModelConfig, EvaluateConfig, TaskConfig
from lorascope.errors import AdapterError, CheckFailed, ModelError
from lorascope.losses import is_out_of_memory

CERTIFICATE_FILE = "merge-certificate.json"
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


def certify(claim: MergeClaim, task: TaskConfig | None = None, settings: EvaluateConfig | None = None) -> Certificate:
    """Check a merge.

    Args:
        task: whose examples are the inputs, and whose score is compared; None for drawn texts.
        settings: how it is evaluated.

    Raises:
        LorascopeError: the base's or the adapter's files, or the task, cannot be read. What is wrong with the merged model is
            in the certificate instead.
    """
    adapter, base = read_updates(claim.adapter), open_checkpoint(claim.base_directory)
    dtype = claim.stored_dtype
    try:
        merged, merged_config = open_checkpoint(claim.merged), AutoConfig.from_pretrained(claim.merged)
        with torch.device("meta"):
            ties = Layout.of(type(claim.model)(merged_config)).tied
    except (ModelError, OSError, ValueError, KeyError) as error:
        says = f"the merged directory cannot be read: {' '.join(str(error).split())}"
        found = [Check("tensors-present", "fails", says)]
        return Certificate(_document(claim, adapter, base, found, why="there is nothing that could be run"))
    layout = Layout.of(claim.model)
    figures = compare_tensors(layout, ties, base, merged, adapter, claim.dtype)
    found = [
        *judged.adapter_checks(adapter.problems, figures),
        *_identity_checks(claim, adapter, layout, base),
        *judged.tensor_checks(figures, merged.problems, dtype),
        *_directory_checks(claim, adapter, merged_config, dtype),
    ]
    outputs, why = _outputs(replace(claim, dtype=dtype), found, task, settings or EvaluateConfig())
    if outputs is not None:
        effect = outputs.find(BASE)
        assert effect is not None
        found += [judged.effect_check(outputs, effect), *judged.output_checks(outputs, dtype)]
    elif claim.tensors_only is None and not _fails(found):
        found.append(Check("outputs", "warning", f"tensors alone were compared: {why}"))
    return Certificate(_document(claim, adapter, base, found, merged=merged, figures=figures, outputs=outputs, why=why))


def _outputs(
    claim: MergeClaim, found: Sequence[Check], task: TaskConfig | None, settings: EvaluateConfig
) -> tuple[Outputs | None, str | None]:
    """What the models answer; or why they were not asked."""
    if claim.tensors_only is not None:
        return None, claim.tensors_only
    if claim.task_type is None:
        return None, f"the outputs of a {type(claim.model).__name__} cannot be compared here"
    if any(check.verdict == "fails" and check.name in _NOT_WORTH_RUNNING for check in found):
        return None, "the tensors do not hold, and no model was run"
    if any(check.name == "tokenizer" and check.verdict == "not judged" for check in found):
        return None, "there is no tokenizer"
    try:
        return compare_outputs(claim, task, settings), None
    except (AdapterError, ModelError) as error:
        return None, f"the adapter cannot be run unmerged ({error.what})"
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None, "memory ran out while the models were run"


def _fails(found: Sequence[Check]) -> bool:
    return any(check.verdict == "fails" for check in found)


def _identity_checks(claim: MergeClaim, adapter: AdapterFiles, layout: Layout, base: Checkpoint) -> list[Check]:
    """Whether the base is the one that the adapter was trained on."""
    heads = () if claim.task_type is None else head_modules(claim.model, claim.task_type)
    local = Path(claim.base.model).is_dir()
    recorded = adapter.record.get("base") or {}
    trained, dtype = recorded.get("checksum"), recorded.get("dtype")
    found, why_not = None, "the adapter does not tell the checksum of its base"
    if trained is not None and recorded.get("quantization") is not None:
        why_not = f"the adapter was trained on packed weights ({recorded['quantization']}), whose checksum is another"
    elif trained is not None and dtype in ("float32", "bfloat16", "float64"):
        found = base_weights_checksum(layout, base, heads, getattr(torch, dtype))
    return [
        judged.base_check(trained, found, why_not),
        judged.revision_check(adapter.config, claim.base.model, claim.base.revision, local),
    ]


def _directory_checks(claim: MergeClaim, adapter: AdapterFiles, merged: PretrainedConfig, dtype: str) -> list[Check]:
    """What lies beside the weights: configuration, class names, tokenizer."""
    own, config = AutoConfig.from_pretrained(claim.base_directory).to_dict(), merged.to_dict()
    labels = judged.labels_check([str(label) for label in adapter.record.get("labels") or claim.labels], config)
    return [
        judged.configuration_check(own, config, dtype),
        *([labels] if labels is not None else []),
        _tokenizer_check(claim),
    ]


def _tokenizer_check(claim: MergeClaim) -> Check:
    """That the merged model's tokenizer says the same as the adapter's, if that has one, or else the base's."""
    source, whose = (claim.adapter, "adapter") if has_tokenizer(claim.adapter) else (claim.base_directory, "base")
    try:
        own = load_tokenizer(BaseModelConfig(model=str(source)))
    except ModelError as error:
        return Check("tokenizer", "not judged", f"the {whose} has none that can be used: {error.what}")
    try:
        found = load_tokenizer(BaseModelConfig(model=str(claim.merged)))
    except ModelError as error:
        return Check("tokenizer", "fails", error.what)
    differing = []
    if own.get_vocab() != found.get_vocab():
        differing.append("the vocabulary is another")
    if own.chat_template != found.chat_template:
        differing.append("the chat template is another")
    ids = sorted(own.get_vocab().values())
    for text in ("The quick brown fox, 12.5 % of it.", own.decode(ids[:: max(1, len(ids) // 64)])):
        if not differing and own(text)["input_ids"] != found(text)["input_ids"]:
            differing.append(f"{text[:40]!r} becomes other tokens")
    says = "; ".join(differing) or f"it encodes as the {whose}'s does, with the same chat template"
    return Check("tokenizer", "fails" if differing else "holds", says)


def _document(
    claim: MergeClaim,
    adapter: AdapterFiles,
    base: Checkpoint,
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
        "level": "tensors" if outputs is None else "outputs",
        "why_level": why,
        "base": _base_record(claim, adapter, base),
        "adapter": _adapter_record(adapter),
        "merged": _merged_record(claim, merged, figures),
        "inputs": None if outputs is None else outputs.inputs.record(),
        "effect": _effect(figures, outputs),
        "comparisons": [] if outputs is None else _comparisons(outputs),
        "modules": [] if figures is None else [asdict(one) for one in figures.modules],
        "checks": [asdict(check) for check in found],
        "warnings": [
            *([] if outputs is None else outputs.warnings),
            *(f"{check.name}: {check.says}" for check in found if check.verdict == "warning"),
        ],
        "made_with": {"lorascope": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
    return dict(_strict(document))


def _base_record(claim: MergeClaim, adapter: AdapterFiles, base: Checkpoint) -> dict[str, Any]:
    held = sorted({dtype_name(tensor.dtype) for tensor in base.tensors.values()})
    packed = (adapter.record.get("base") or {}).get("quantization") or ("nf4" if claim.quantise else None)
    into = f"the weights of {claim.base.model} as its files hold them ({', '.join(held)})"
    if packed is not None:
        into += f"; not the {packed} base that the adapter was trained on or will be run on"
    return {
        "model": claim.base.model,
        "named_by_adapter": adapter.config.get("base_model_name_or_path"),
        "revision": claim.base.revision,
        "dtypes": held,
        "checksum": base.checksum(),
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


def _strict(value: Any) -> Any:
    """The value with None in the place of numbers that JSON has no form for."""
    if isinstance(value, dict):
        return {key: _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def certificate_text(certificate: Certificate) -> str:
    """The document as the file holds it."""
    return json.dumps(certificate.document, indent=2, allow_nan=False) + "\n"
