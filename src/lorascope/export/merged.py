"""A merged directory, ready to be published: certified, with its card. What fails leaves nothing. Floor: ``export``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorascope.certified_merge import MergeOrder, certified_merge
from lorascope.export.adapter import privacy_for, write_papers
from lorascope.export.described import Wishes, base_place, described
from lorascope.export.source import Source
from lorascope.export.vllm import merged_obstacles
from lorascope.lora.merge_plan import MergeDtype
from lorascope.lora.peft_io import SavedAdapter
from lorascope.merged_model import open_merge_base
from lorascope.model_card import CardFacts
from lorascope.store import CERTIFICATE_FILE


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


def write_merged_directory(
    source: Source,
    saved: SavedAdapter,
    out: Path,
    wishes: Wishes,
    dtype: MergeDtype = "as-base",
    device: str | None = None,
) -> MergedExport:
    """Merge the adapter into its base, certify the result, and write both with a card.

    Args:
        saved: what lies in ``source.adapter``.
        out: is not there, or is an empty directory.
        dtype: of the merged weights; ``as-base`` keeps each tensor's own.
        device: where models are compared; as of a ``MergeOrder``.

    Raises:
        MergeRefused: the certificate does not hold.
        LorascopeError: base or adapter cannot be used, or the directory cannot be written.
    """
    if source.trial is not None:  # an adapter of an earlier version does not say what its base was packed as
        saved = replace(saved, origin={"quantization": source.trial.config.get("quantization"), **saved.origin})
    place = base_place(source, saved, wishes)
    base = open_merge_base(saved, str(source.adapter), place if place != saved.base_model else None)
    facts = described(source, saved, wishes)
    privacy = privacy_for(source, saved, wishes)
    order = MergeOrder(saved, source.adapter, base, dtype, privacy=privacy, device=device)
    with certified_merge(order, out) as done:
        document = done.certificate.document
        warnings = tuple(map(privacy.clean, done.warnings))
        facts = replace(
            facts,
            certificate=_sentence(document),
            serving=tuple(merged_obstacles(done.directory)),
            warnings=(*facts.warnings, *warnings),
        )
        write_papers(done.directory, source, facts, privacy)
    return MergedExport(facts, document, warnings)


def _sentence(document: dict[str, Any]) -> str:
    """What the certificate says, for the card."""
    verdicts = Counter(check["verdict"] for check in document["checks"])
    others = "".join(f", {count} {verdict}" for verdict, count in verdicts.items() if verdict != "holds")
    compared = "tensors and outputs were compared"
    if document["level"] != "outputs":
        missing = "the outputs of the merged model were not" if document["comparisons"] else "no model was run"
        compared = f"its tensors were compared, {missing} ({document['why_level']})"
    held = f"The weights are in {document['merged']['dtype']}."
    return f"`{CERTIFICATE_FILE}` certifies the merge: {verdicts['holds']} checks hold{others}; {compared}. {held}"
