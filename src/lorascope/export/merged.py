"""A merged directory, ready to be published: certified, with its card. What fails leaves nothing. Floor: ``export``."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorascope.base_model import label_names
from lorascope.certify import CERTIFICATE_FILE, MergeClaim, certify, why_tensors_only
from lorascope.config import BaseModelConfig
from lorascope.export.adapter import privacy_for, write_papers
from lorascope.export.described import Wishes, base_place, described
from lorascope.export.source import Source
from lorascope.export.vllm import merged_obstacles
from lorascope.lora.peft_io import SavedAdapter
from lorascope.merged_model import MergedModel, merged_in_memory, open_merge_base, write_merged
from lorascope.model_card import CardFacts
from lorascope.store import atomic_directory


@dataclass(frozen=True)
class MergedExport:
    """What was written.

    Attributes:
        facts: what the card says.
        certificate: the certificate's document.
        warnings: what the merge has to tell.
    """

    facts: CardFacts
    certificate: dict[str, Any]
    warnings: tuple[str, ...]


def write_merged_directory(source: Source, saved: SavedAdapter, out: Path, wishes: Wishes) -> MergedExport:
    """Merge the adapter into its base, certify the result, and write both with a card.

    Args:
        saved: what lies in ``source.adapter``.
        out: does not exist yet.

    Raises:
        CheckFailed: the certificate does not hold.
        LorascopeError: base or adapter cannot be used, or the directory cannot be written.
    """
    if source.trial is not None:  # an adapter of an earlier version does not say what its base was packed as
        saved = replace(saved, origin={"quantization": source.trial.config.get("quantization"), **saved.origin})
    place = base_place(source, saved, wishes)
    base = open_merge_base(saved, str(source.adapter), place if place != saved.base_model else None)
    facts = described(source, saved, wishes)
    privacy = privacy_for(source, saved, wishes)
    with atomic_directory(out) as directory:
        merged = write_merged(saved, source.adapter, base, directory)
        certificate = certify(_claim(source, saved, merged, directory, out))
        certificate.raise_unless_it_holds(out)
        document = privacy.clean_values(certificate.document)
        text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        (directory / CERTIFICATE_FILE).write_text(text, encoding="utf-8")
        for path in directory.glob("*config.json"):
            privacy.clean_json(path)
        warnings = (*map(privacy.clean, merged.warnings), *document.get("warnings", ()))
        facts = replace(
            facts,
            certificate=_sentence(document),
            serving=tuple(merged_obstacles(directory)),
            warnings=(*facts.warnings, *warnings),
        )
        write_papers(directory, source, facts, privacy)
    return MergedExport(facts, document, warnings)


def _claim(source: Source, saved: SavedAdapter, merged: MergedModel, directory: Path, out: Path) -> MergeClaim:
    """What the merge says that it did, with what can be compared within the memory that there is.

    What ships is the merged model in full; how it does packed in four bits again, `lorascope merge --quantization nf4` tells.
    """
    base = merged.base
    return MergeClaim(
        base=BaseModelConfig(model=base.name, revision=base.revision),
        base_directory=base.directory,
        model=base.model,
        adapter=source.adapter,
        merged=directory,
        dtype=merged.dtype,
        task_type=base.task_type,
        labels=label_names(base.model.config) if base.task_type == "SEQ_CLS" else (),
        in_memory=lambda: merged_in_memory(saved, base, merged.dtype),
        tensors_only=why_tensors_only(base.model),
        shown_as=Path(out.name),
    )


def _sentence(document: dict[str, Any]) -> str:
    """What the certificate says, for the card."""
    verdicts = Counter(check["verdict"] for check in document["checks"])
    others = "".join(f", {count} {verdict}" for verdict, count in verdicts.items() if verdict != "holds")
    ran = document["level"] == "outputs"
    compared = "tensors and outputs were compared" if ran else "its tensors were compared, no model was run"
    return f"`{CERTIFICATE_FILE}` certifies the merge: {verdicts['holds']} checks hold{others}; {compared}."
