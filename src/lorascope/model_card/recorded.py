"""What a study's store records of a trial, as facts of a card; and the short card that is written while the study runs.

The short card holds nothing that another run of the same study would have otherwise (times, memory, warnings), so that a
resumed study leaves the same bytes. Floor: ``model_card``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lorascope import __version__
from lorascope.config import AdapterConfig, Study, TrainConfig, TrialConfig
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.model_card.document import public_card
from lorascope.model_card.facts import AdapterFacts, BaseFacts, CardFacts, DataFacts, MetricFacts
from lorascope.model_card.privacy import Privacy, is_local, public_name
from lorascope.store import Store

if TYPE_CHECKING:
    from lorascope.base_model import BaseModel

_LIMITS = ("max_train", "max_eval", "max_length")


def study_places(study: Study) -> list[str]:
    """Every file, directory or hub id that a study names: of the base, the data and the judge."""
    data = study.task.data
    places = [study.base.model, *([data] if isinstance(data, str) else data.values())]
    judge = study.evaluate.judge
    if judge is not None:
        places += [judge.model, *([judge.adapter] if judge.adapter else [])]
        checked = None if judge.check is None else judge.check.data
        places += [] if checked is None else [checked] if isinstance(checked, str) else list(checked.values())
    return places


def public_study(document: Mapping[str, Any], study: Study, privacy: Privacy) -> dict[str, Any]:
    """A study's document with places by their public names and without secrets; its classes are what the data call them."""
    names = {place: public_name(place) for place in study_places(study)}

    def public(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: public(item) for key, item in value.items()}
        if isinstance(value, list):
            return [public(item) for item in value]
        return names.get(value, value) if isinstance(value, str) else value

    cleaned: dict[str, Any] = privacy.clean_values(public(document))
    # A class may be called /r/books.
    return cleaned | {"task": cleaned["task"] | {"labels": document["task"].get("labels")}}


def privacy_of(store: Store, *more: str) -> Privacy:
    """What knows this study's places, and others."""
    return Privacy([*study_places(store.study), str(store.directory.resolve()), *more])


def data_facts(store: Store, checksum: str | None) -> DataFacts:
    """What the store knows of the study's data."""
    study, recorded = store.study, store.info("data") or {}
    places = [study.task.data] if isinstance(study.task.data, str) else list(study.task.data.values())
    # A study of an earlier version did not record which were local.
    hub_ids = recorded.get("hub_ids", [place for place in places if not is_local(place)])
    limits = {name: value for name in _LIMITS if (value := getattr(study.task, name)) is not None}
    return DataFacts(
        task=study.task.name,
        split=recorded.get("split", study.evaluate.split),
        places=tuple(dict.fromkeys(public_name(place) for place in places)),
        hub_ids=tuple(dict.fromkeys(hub_ids)),
        checksum=checksum or recorded.get("checksum"),
        shape=recorded.get("shape"),
        num_train=recorded.get("num_train"),
        num_eval=recorded.get("num_eval"),
        limits=limits,
    )


def settings_of(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Of a trial's flat configuration what a table shows: what is unset or off is left out."""
    return {name: config[name] for name in names if config.get(name) not in (None, False, [])}


def trial_card(store: Store, trial: TrialConfig, metrics: Mapping[str, float], base: BaseModel, num_modules: int) -> str:
    """The short card of a trial whose study is still running.

    Args:
        num_modules: linear layers that the adapter changes.
    """
    config = trial.flat()
    facts = CardFacts(
        name="adapter",
        form="adapter",
        task_type=base.task_type,
        base=BaseFacts(
            name=public_name(trial.base.model),
            is_local=is_local(trial.base.model),
            revision=trial.base.revision,
            checksum=base.checksum,
            dtype=trial.base.dtype,
            quantization=trial.base.quantization,
        ),
        adapter=AdapterFacts(
            settings=settings_of(config, [name for name in AdapterConfig.model_fields if name != "path"]),
            modules=num_modules,
            heads=base.heads,
            labels=base.labels,
        ),
        version=__version__,
        study=store.study.name,
        trial=trial.trial,
        seed=trial.seed,
        data=data_facts(store, None),
        metrics=tuple(MetricFacts(name, value, HIGHER_IS_BETTER.get(name)) for name, value in metrics.items()),
        training=settings_of(config, TrainConfig.model_fields) | {"seed": trial.seed},
        licence=None,
        is_whole=False,
    )
    return public_card(facts, privacy_of(store, trial.base.model))
