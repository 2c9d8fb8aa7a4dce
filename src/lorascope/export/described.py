"""What the card of an export says, gathered from the store, the predictions and the adapter's own file. Floor: ``export``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from lorascope import __version__
from lorascope.compare import read_ratios, score_interval, seeds_interval
from lorascope.config import AdapterConfig, TrainConfig
from lorascope.embedded import is_embedded
from lorascope.errors import UsageError
from lorascope.export.limits import limitations
from lorascope.export.source import Source
from lorascope.export.vllm import adapter_obstacles
from lorascope.lora.peft_io import SavedAdapter
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.model_card import (
    UNKNOWN_LICENCE,
    BaseFacts,
    CardFacts,
    Cost,
    Licence,
    MetricFacts,
    SeedFacts,
    adapter_facts,
    data_facts,
    is_local,
    public_name,
    readme_licence,
    settings_of,
    stated_licence,
    task_type_of_adapter,
)
from lorascope.store import Store, TrialRow

STUDY_FILE = "study.yaml"
_FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Wishes:
    """What the user asked for.

    Attributes:
        name: the export's own, as the card calls it.
        form: what is written.
        licence: to be stated; None to quote the base's.
        base: where the base lies, if not where the adapter says.
        base_name: what others know the base by, for example its hub id.
    """

    name: str
    form: Literal["adapter", "merged"] = "adapter"
    licence: Licence | None = None
    base: str | None = None
    base_name: str | None = None


def base_place(source: Source, saved: SavedAdapter, wishes: Wishes) -> str:
    """Where the base lies: as asked for, as the trial has it, or as the adapter names it.

    Raises:
        UsageError: nobody says.
    """
    configured = None if source.trial is None else source.trial.config.get("model")
    place = wishes.base or saved.base_model or configured
    if place is None:
        raise UsageError("the adapter names no base model", where=str(source.adapter), fix="give it with --base")
    return place


def described(source: Source, saved: SavedAdapter, wishes: Wishes) -> CardFacts:
    """The card's facts: all that is known of a trial, or what an adapter from elsewhere says of itself.

    Raises:
        UsageError: the base is not known.
    """
    place = base_place(source, saved, wishes)
    base = _base(source, saved, wishes, place)
    licence = wishes.licence or base.licence or UNKNOWN_LICENCE
    if source.study is None and wishes.licence is None:
        licence = readme_licence(source.adapter / "README.md", "the adapter's own README.md") or licence
    facts: dict[str, Any] = {
        "name": wishes.name,
        "form": wishes.form,
        "task_type": task_type_of_adapter(saved),
        "base": base,
        "adapter": adapter_facts(saved, source.adapter, _settings(source.trial)),
        "version": __version__,
        "licence": licence,
        "serving": tuple(adapter_obstacles(saved.config)) if wishes.form == "adapter" else (),
    }
    if source.study is not None and source.trial is not None:
        with Store.open(source.study) as store:
            facts |= _of_study(store, source, source.trial)
    unfinished = CardFacts(**facts)
    return replace(unfinished, limitations=tuple(limitations(unfinished, source)))


def _settings(row: TrialRow | None) -> dict[str, Any] | None:
    """The adapter's settings as the study gave them; None where it came from elsewhere."""
    if row is None or row.config.get("path") is not None:
        return None
    return settings_of(row.config, [name for name in AdapterConfig.model_fields if name != "path"])


def _base(source: Source, saved: SavedAdapter, wishes: Wishes, place: str) -> BaseFacts:
    config = {} if source.trial is None else source.trial.config
    _, revision = saved.base_at(wishes.base)
    if wishes.base in (None, saved.base_model):
        revision = revision or config.get("revision")
    name = wishes.base_name or public_name(place)
    return BaseFacts(
        name=name,
        is_local=is_embedded(name) or (wishes.base_name is None and is_local(place)),
        revision=revision,
        checksum=saved.origin.get("checksum") if source.trial is None else source.trial.base_checksum,
        dtype=config.get("dtype") or saved.origin.get("dtype") or "float32",
        quantization=config.get("quantization") or saved.origin.get("quantization"),
        licence=stated_licence(place, revision),
    )


def _of_study(store: Store, source: Source, row: TrialRow) -> dict[str, Any]:
    study, config = store.study, row.config
    data = data_facts(store, row.data_checksum)
    training = settings_of(config, TrainConfig.model_fields) | {"seed": row.seed}
    decodings = store.decodings(row.trial)
    if decodings:
        training["answers decoded by"] = decodings[0]["label"]
    from_disk = config.get("path") is not None
    return {
        "study": study.name,
        "trial": row.trial,
        "seed": row.seed,
        "data": data,
        "metrics": _metrics(store, row),
        "training": {} if from_disk else training,
        "cost": _cost(store, row),
        "selection": None if source.choice is None else source.choice.sentence,
        "warnings": tuple(dict.fromkeys(each["message"] for each in store.warnings() if each["trial"] in (None, row.trial))),
        "study_file": None if from_disk else STUDY_FILE,
        "versions": store.info("versions") or {},
    }


def _metrics(store: Store, row: TrialRow) -> tuple[MetricFacts, ...]:
    ratios = read_ratios(store.directory / "trials" / row.trial / "predictions.jsonl", row.metrics)
    others = [one for one in store.trials() if one.configuration == row.configuration and one.status == "done"]
    found = []
    for name in sorted(row.metrics, key=lambda name: list(HIGHER_IS_BETTER).index(name) if name in HIGHER_IS_BETTER else 99):
        interval = score_interval(ratios[name]) if name in ratios else None
        values = [one.metrics[name] for one in others if math.isfinite(one.metrics.get(name, math.nan))]
        found.append(
            MetricFacts(
                name,
                row.metrics[name],
                HIGHER_IS_BETTER.get(name),
                None if interval is None else interval.low,
                None if interval is None else interval.high,
                "none: the predictions do not give it example by example" if interval is None else interval.method,
                _over_seeds(values),
            )
        )
    return tuple(found)


def _over_seeds(values: list[float]) -> SeedFacts | None:
    if len(values) < 2:
        return None
    # Student's interval from two seeds is wider than most metrics' whole range.
    low, high = (seeds_interval(values) if len(values) >= _FEWEST_SEEDS else None) or (None, None)
    return SeedFacts(len(values), sum(values) / len(values), min(values), max(values), low, high)


def _cost(store: Store, row: TrialRow) -> Cost:
    plan = store.cohorts().get(row.cohort or "", {})
    hardware = store.info("hardware") or {}
    parts = [hardware.get("cuda") or hardware.get("processor")]
    parts += [f"{hardware['cores']} cores"] if hardware.get("cores") else []
    parts += [f"{hardware['memory_bytes'] / 2**30:.0f} GiB"] if hardware.get("memory_bytes") else []
    return Cost(
        trainable_params=row.trainable_params,
        total_params=row.total_params,
        trainable_percent=row.trainable_percent,
        train_seconds=row.train_seconds,
        peak_memory_bytes=row.peak_memory_bytes,
        solo_seconds_per_epoch=row.solo_train_seconds_per_epoch,
        solo_peak_memory_bytes=row.solo_peak_memory_bytes,
        num_together=len(plan["trials"]) if "trials" in plan else None,
        hardware=", ".join(str(part) for part in parts if part) or None,
    )
