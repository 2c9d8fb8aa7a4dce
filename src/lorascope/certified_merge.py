"""A merge that is certified before it appears: the one way from an adapter to a merged directory.

Order: what is to be merged, and how far it is to be compared. What can be known beforehand is looked at first: an adapter of
another base is refused before a weight is written. The directory is filled under a temporary name, what would tell paths of
this machine is taken out of its files, the result is held against base and adapter, and only what holds takes its place; the
certificate of what does not hold comes with the error.

Knows the steps. Does not know how merging is done (``merged_model``), what is compared (``certify``), nor what is printed.
Floor: above ``certify``, below ``export``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from lorascope.base_model import label_names
from lorascope.certify import (
    Certificate,
    MergeClaim,
    certificate_text,
    certify,
    examine,
    refused,
    why_tensors_only,
)
from lorascope.config import BaseModelConfig, EvaluateConfig, TaskConfig
from lorascope.errors import CheckFailed
from lorascope.lora.merge_plan import MergeDtype
from lorascope.lora.peft_io import SavedAdapter
from lorascope.merged_model import MergeBase, MergedModel, merged_in_memory, write_merged
from lorascope.model_card import Privacy
from lorascope.store import CERTIFICATE_FILE, atomic_directory

# Where transformers writes down from where a file was loaded.
_CONFIGURATIONS = ("config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class MergeOrder:
    """What is to be merged, and how far the result is to be compared.

    Attributes:
        saved: what lies in ``adapter``.
        base: what it is merged into.
        dtype, max_shard_bytes: as of ``write_merged``.
        quantization: ``nf4`` where four bits have to hold too; an adapter that was trained on them is compared in them anyway,
            if that can be tried here, and is not refused by it.
        tensors_only: no model is to be run; where none can be, for want of memory, none is.
        task: whose examples are the inputs and whose score is compared; None for drawn texts.
        settings: how the task is evaluated.
        privacy: what takes paths of this machine out of the files and of the certificate; None for what stays here.
        device: where models are run; None for a GPU that has room for the base in float32, else the processor.
    """

    saved: SavedAdapter
    adapter: Path
    base: MergeBase
    dtype: MergeDtype = "as-base"
    max_shard_bytes: int = 5_000_000_000
    quantization: str | None = None
    tensors_only: bool = False
    task: TaskConfig | None = None
    settings: EvaluateConfig = field(default_factory=EvaluateConfig)
    privacy: Privacy | None = None
    device: str | None = None

    @cached_property
    def runs_on(self) -> str:
        """The device that models are run on."""
        if self.device is not None:
            return self.device
        return "cuda" if torch.cuda.is_available() and why_tensors_only(self.base.model, "cuda") is None else "cpu"

    @cached_property
    def why_tensors_only(self) -> str | None:
        """Why no model will be run, as far as the memory that was free when this was first asked; None where all will be."""
        return "only the tensors were asked for" if self.tensors_only else why_tensors_only(self.base.model, self.runs_on)

    def claim(self, directory: Path, shown_as: Path) -> MergeClaim:
        """What the merge says of the directory that it wrote.

        Args:
            shown_as: where it will be.
        """
        base = self.base
        return MergeClaim(
            base=BaseModelConfig(model=base.name, revision=base.revision),
            base_directory=base.directory,
            model=base.model,
            adapter=self.adapter,
            merged=directory,
            dtype=self.dtype,
            task_type=base.task_type,
            labels=label_names(base.model.config) if base.task_type == "SEQ_CLS" else (),
            in_memory=lambda: merged_in_memory(self.saved, base, self.dtype),
            quantise=self.quantization == "nf4",
            trained_in=self.saved.origin.get("quantization"),
            commit=base.commit,
            device=self.runs_on,
            cleaned=None if self.privacy is None else self.privacy.clean_places,
            tensors_only=self.why_tensors_only,
            shown_as=shown_as,
        )


@dataclass(frozen=True)
class CertifiedMerge:
    """What came of an order.

    Attributes:
        directory: where it lies, under a temporary name while the order's block runs.
        merged: what was written; None where something spoke against it beforehand, or while it was written.
        certificate: what was found of it.
    """

    directory: Path
    merged: MergedModel | None
    certificate: Certificate

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know: of the merge, then of the certificate."""
        return (*(() if self.merged is None else self.merged.warnings), *self.certificate.document["warnings"])


class MergeRefused(CheckFailed):
    """The certificate does not hold, and no directory remains.

    Attributes:
        merge: what was written and what was found of it.
    """

    merge: CertifiedMerge


@contextmanager
def certified_merge(order: MergeOrder, out: Path) -> Iterator[CertifiedMerge]:
    """Merge and certify; what the block adds to the yielded directory appears with it at ``out``, whole or not at all.

    Args:
        out: is not there, or is an empty directory.

    Raises:
        MergeRefused: the certificate does not hold.
        LorascopeError: base, adapter or task cannot be used, or the directory cannot be written.
    """
    with atomic_directory(out, replace=False) as directory:
        done = _made(order, directory, out)
        try:
            done.certificate.raise_unless_it_holds(out)
        except CheckFailed as error:
            refusal = MergeRefused(error.what, where=error.where, fix=error.fix)
            refusal.merge = done
            raise refusal from None
        (directory / CERTIFICATE_FILE).write_text(certificate_text(done.certificate), encoding="utf-8")
        yield done


def _made(order: MergeOrder, directory: Path, out: Path) -> CertifiedMerge:
    """Look, write unless something speaks against it, clean what was written, look again."""
    privacy, merged = order.privacy, None
    claim = order.claim(directory, out if privacy is None else Path(out.name))
    before, unwritten = examine(claim, order.task, order.settings), None
    if before.holds:
        try:
            merged = write_merged(
                order.saved, order.adapter, order.base, directory, dtype=order.dtype, max_shard_bytes=order.max_shard_bytes
            )
        except CheckFailed as error:
            unwritten = error
    if merged is not None and privacy is not None:  # before it is certified: what ships is what was looked at
        for path in (directory / name for name in _CONFIGURATIONS if (directory / name).is_file()):
            privacy.clean_json(path)
    certificate = refused(claim, before, unwritten) if merged is None else certify(claim, before=before)
    if privacy is not None:
        certificate = replace(certificate, document=privacy.clean_values(certificate.document))
    return CertifiedMerge(directory, merged, certificate)
