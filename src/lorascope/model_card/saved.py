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
from lorascope.model_card.document import public_card
from lorascope.model_card.facts import AdapterFacts, BaseFacts, CardFacts, CutFacts, DataFacts, MetricFacts, ScoreFacts
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


def truncated_card(cut: CutFacts, saved: SavedAdapter, directory: Path) -> str:
    """The card of an adapter that was cut to lower ranks.

    Args:
        saved: the adapter as it was written.
        directory: where that lies, perhaps under a temporary name.
    """
    score = cut.score
    place = saved.base_model if score is None else score.base
    of_source = readme_licence(cut.source / "README.md", "the card of the adapter that it was cut from")
    of_base = stated_licence(place) if place is not None and is_local(place) else None
    origin = saved.origin
    facts = CardFacts(
        name=cut.name,
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
        made_from=_how_it_was_cut(cut),
        data=None
        if score is None
        else DataFacts(score.task, score.split, checksum=score.data_checksum, num_eval=score.num_examples),
        metrics=() if score is None else _metrics(score, cut.report),
        limitations=tuple(_limitations(cut, place)),
        licence=of_source or of_base or UNKNOWN_LICENCE,
    )
    return public_card(facts, Privacy([cut.source, *([] if place is None else [place])]))


def _how_it_was_cut(cut: CutFacts) -> str:
    (before, after), (numbers_before, numbers) = cut.directions, cut.parameters
    text = (
        f"It is the adapter `{cut.label}`, cut from {before} to {after} directions ({numbers_before:,} to {numbers:,} numbers)"
    )
    score = cut.score
    if score is None:
        text += f": {cut.what}"
    else:
        now = f"{score.before:.6g} and is {score.metrics[score.metric]:.6g}"
        text += f": {score.metric} was {now}, where a loss of {score.allowed:g} was allowed"
    return f"{text}. Each module's rank and every cut that was tried: `{cut.report}`."


def _metrics(score: ScoreFacts, report: str) -> tuple[MetricFacts, ...]:
    method = f"none; the loss against the whole adapter has one in {report}"
    return tuple(MetricFacts(name, value, HIGHER_IS_BETTER.get(name), method=method) for name, value in score.metrics.items())


def _limitations(cut: CutFacts, place: str | None) -> list[str]:
    found = [
        "What the whole adapter learned from, and what it may have memorised, is not known here; its own card may say it."
    ]
    if cut.score is None:
        found.append("No score was measured after the cut.")
    else:
        found.append("The cut was chosen on the examples that it is scored on, so its score is optimistic.")
    if place is None:
        found.append("The adapter names no base model.")
    return found
