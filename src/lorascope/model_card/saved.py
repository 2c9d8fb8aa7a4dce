"""What an adapter's own files say, as facts of a card; and the card of an adapter that was cut to lower ranks.

Floor: ``model_card``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from lorascope import __version__
from lorascope.config import TaskType
from lorascope.lora.peft_io import WEIGHTS_FILE, SavedAdapter
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.model_card.document import model_card
from lorascope.model_card.facts import AdapterFacts, BaseFacts, CardFacts, DataFacts, MetricFacts
from lorascope.model_card.licence import UNKNOWN_LICENCE, readme_licence, stated_licence
from lorascope.model_card.privacy import Privacy, is_local, public_name
from lorascope.model_card.recorded import settings_of

_HEAD_OUTPUTS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
_PEFT_SETTINGS = ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "rank_pattern", "alpha_pattern")


def task_type_of_adapter(saved: SavedAdapter) -> TaskType | None:
    """What it is for; None where it does not say, or says what Lorascope trains nothing for."""
    return cast(TaskType, saved.task_type) if saved.task_type in get_args(TaskType) else None


def adapter_facts(saved: SavedAdapter, directory: Path, settings: Mapping[str, Any] | None = None) -> AdapterFacts:
    """The adapter by its own files.

    Args:
        directory: where they lie.
        settings: as the study gave them; by default PEFT's.
    """
    weights = saved.weights
    tensors = [*weights.lora_A.values(), *weights.lora_B.values(), *weights.biases.values(), *weights.heads.values()]
    outputs = next((value.shape[0] for name in _HEAD_OUTPUTS if (value := weights.heads.get(name)) is not None), None)
    return AdapterFacts(
        settings=_peft_settings(saved.config) if settings is None else settings,
        modules=len(weights.lora_A),
        heads=tuple(saved.config.get("modules_to_save") or ()),
        num_parameters=sum(tensor.numel() for tensor in tensors),
        num_bytes=(directory / WEIGHTS_FILE).stat().st_size,
        labels=saved.labels,
        num_labels=outputs if saved.task_type == "SEQ_CLS" else None,
    )


def _peft_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's configuration as a table shows it; what is off is left out."""
    values = {name: config.get(name) for name in _PEFT_SETTINGS}
    for name in ("rank_pattern", "alpha_pattern"):
        count = len(values[name] or {})
        values[name] = f"differs in {count} modules" if count else None
    return settings_of(values, values)


def truncated_card(document: Mapping[str, Any], saved: SavedAdapter, directory: Path, report: str) -> str:
    """The card of an adapter that was cut to lower ranks.

    Args:
        document: what was cut and how it scored, as ``inspect --truncate`` writes it down.
        saved: the adapter as it was written.
        directory: where that lies, perhaps under a temporary name.
        report: the file's name beside the card that holds the document.
    """
    source, place = Path(document["adapter"]), document.get("base") or saved.base_model
    of_source = readme_licence(source / "README.md", "the card of the adapter that it was cut from")
    of_base = stated_licence(place) if place is not None and is_local(place) else None
    origin = saved.origin
    facts = CardFacts(
        name=Path(document["out"]).name,
        form="adapter",
        task_type=task_type_of_adapter(saved),
        base=BaseFacts(
            name="unnamed" if place is None else public_name(place),
            is_local=place is None or is_local(place),
            revision=saved.config.get("revision"),
            checksum=origin.get("checksum"),
            dtype=origin.get("dtype") or "float32",
            quantization=origin.get("quantization"),
            licence=of_base,
        ),
        adapter=adapter_facts(saved, directory),
        version=__version__,
        made_from=_how_it_was_cut(document, report),
        data=None if document["metric"] is None else _data(document),
        metrics=() if document["metric"] is None else _metrics(document, report),
        limitations=tuple(_limitations(document, place)),
        licence=of_source or of_base or UNKNOWN_LICENCE,
    )
    return Privacy([str(source), document["out"], *([] if place is None else [place])]).clean(model_card(facts))


def _how_it_was_cut(document: Mapping[str, Any], report: str) -> str:
    numbers = f"{document['parameters_before']:,} to {document['parameters']:,} numbers"
    directions = f"{document['directions_before']} to {document['directions']} directions"
    text = f"It is the adapter `{document['label']}`, cut from {directions} ({numbers})"
    if document["metric"] is None:
        text += f": {document['what']}"
    else:
        one, other = document["original"]["score"], document["truncated"]["score"]
        text += f": {document['metric']} was {one:.6g} and is {other:.6g}, where a loss of {document['epsilon']:g} was allowed"
    return f"{text}. Each module's rank and every cut that was tried: `{report}`."


def _data(document: Mapping[str, Any]) -> DataFacts:
    return DataFacts(
        task=document["task"],
        split=document["split"],
        checksum=document["data_checksum"],
        num_eval=document["num_examples"],
    )


def _metrics(document: Mapping[str, Any], report: str) -> tuple[MetricFacts, ...]:
    method = f"none; the loss against the whole adapter has one in {report}"
    scores = document["truncated"]["metrics"]
    return tuple(MetricFacts(name, value, HIGHER_IS_BETTER.get(name), method=method) for name, value in scores.items())


def _limitations(document: Mapping[str, Any], place: str | None) -> list[str]:
    found = [
        "What the whole adapter learned from, and what it may have memorised, is not known here; its own card may say it."
    ]
    if document["metric"] is None:
        found.append("No score was measured after the cut.")
    else:
        found.append("The cut was chosen on the examples that it is scored on, so its score is optimistic.")
    if place is None:
        found.append("The adapter names no base model.")
    return found
