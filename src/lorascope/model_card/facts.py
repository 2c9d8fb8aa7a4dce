"""What a model card may say; an absent fact is left out or called unknown, never guessed. Floor: ``model_card``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorascope.config import TaskType
from lorascope.embedded import is_embedded
from lorascope.model_card.licence import UNKNOWN_LICENCE, Licence


@dataclass(frozen=True)
class BaseFacts:
    """The base model.

    Attributes:
        name: its hub id, its name among what comes with Lorascope, or a local directory's name.
        is_local: it was a local directory; its name alone finds nothing on the Hub.
        revision: of the hub, where the study pinned one.
        checksum: SHA-256 of the weights outside the head.
        dtype: what it was held in while training.
        quantization: ``nf4`` where its blocks were packed.
        licence: as the base's own card or configuration states it; None where neither does.
    """

    name: str
    is_local: bool = False
    revision: str | None = None
    checksum: str | None = None
    dtype: str = "float32"
    quantization: str | None = None
    licence: Licence | None = None

    @property
    def comes_along(self) -> bool:
        """Whether it is one of Lorascope's own: its name finds it wherever Lorascope is installed."""
        return is_embedded(self.name)


@dataclass(frozen=True)
class AdapterFacts:
    """The adapter as its own file describes it.

    Attributes:
        settings: rank, alpha, targets and so on, for a table.
        modules: linear layers that it changes.
        heads: modules that are trained whole and lie in the adapter (PEFT's ``modules_to_save``).
        num_parameters: numbers in its file.
        num_bytes: size of its file.
        labels: class names in the order of the head's outputs.
        num_labels: outputs of the head; None where there is none.
    """

    settings: Mapping[str, Any]
    modules: int
    heads: tuple[str, ...] = ()
    num_parameters: int | None = None
    num_bytes: int | None = None
    labels: tuple[str, ...] = ()
    num_labels: int | None = None


@dataclass(frozen=True)
class DataFacts:
    """What was learned from and scored on.

    Attributes:
        task: the study's name for it.
        hub_ids: datasets of the Hub that were read; empty for local files.
        places: what the study file names, local files by their names.
        split: the split that was scored, in words.
        checksum: SHA-256 of the records in use, both splits.
        num_train, num_eval: examples; None where nobody counted them.
        limits: what of it was left out (``max_train``, ``max_eval``, ``max_length``).
    """

    task: str
    split: str
    places: tuple[str, ...] = ()
    hub_ids: tuple[str, ...] = ()
    checksum: str | None = None
    shape: str | None = None
    num_train: int | None = None
    num_eval: int | None = None
    limits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SeedFacts:
    """One metric over the seeds of the adapter's configuration; ``low`` and ``high`` None where nothing tells them."""

    num_seeds: int
    mean: float
    lowest: float
    highest: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class MetricFacts:
    """One score.

    Attributes:
        higher_is_better: None for figures without a direction.
        low, high: 95 % over examples; None where there is no interval.
        method: how the interval came about, or why there is none.
        seeds: the same metric over seeds; None where the study has one seed.
    """

    name: str
    value: float
    higher_is_better: bool | None = None
    low: float | None = None
    high: float | None = None
    method: str | None = None
    seeds: SeedFacts | None = None


@dataclass(frozen=True)
class Cost:
    """What training took; ``solo`` figures are of this configuration alone, the others of the cohort it was trained in."""

    trainable_params: int | None = None
    total_params: int | None = None
    trainable_percent: float | None = None
    train_seconds: float | None = None
    peak_memory_bytes: int | None = None
    solo_seconds_per_epoch: float | None = None
    solo_peak_memory_bytes: int | None = None
    num_together: int | None = None
    hardware: str | None = None


@dataclass(frozen=True)
class ScoreFacts:
    """How an adapter that was cut scores, beside the whole one.

    Attributes:
        metric: the one that was kept.
        before: of the whole adapter.
        metrics: of the one that was written.
        allowed: the loss.
        base: where the base lies that it was scored on.
    """

    metric: str
    before: float
    metrics: Mapping[str, float]
    allowed: float
    task: str
    split: str
    num_examples: int
    data_checksum: str | None
    base: str


@dataclass(frozen=True)
class CutFacts:
    """An adapter that was cut to lower ranks.

    Attributes:
        name: its directory's.
        label, source: of the adapter that it was cut from: its name, and where it lies.
        directions, parameters: before and after.
        report: the file's name beside the card that holds every cut that was tried.
        what: what was kept, in a sentence, where no score says it.
        score: None without a task.
    """

    name: str
    label: str
    source: Path
    directions: tuple[int, int]
    parameters: tuple[int, int]
    report: str
    what: str | None = None
    score: ScoreFacts | None = None


@dataclass(frozen=True)
class CardFacts:
    """All that a card says.

    Attributes:
        name: the card's title, and what the code in it calls the directory.
        form: an adapter for PEFT, or a merged model.
        trial, study: where it comes from; None for an adapter from elsewhere.
        training: the study's settings, for a table.
        made_from: how it came about where it was not trained as it is, in sentences.
        selection: how this trial was chosen among others, in a sentence.
        limitations: what is not known, in sentences.
        warnings: what the study counted on the way.
        serving: what keeps other software from loading it.
        certificate: what the merge certificate says, in a sentence.
        study_file: name of the file beside the card that repeats the training; None where there is none.
        licence: the exported weights', as given or as the base's is quoted; None where nobody has looked yet.
        is_whole: False for a card written while its study runs, before costs and intervals are known.
    """

    name: str
    form: Literal["adapter", "merged"]
    task_type: TaskType | None
    base: BaseFacts
    adapter: AdapterFacts
    version: str
    study: str | None = None
    trial: str | None = None
    seed: int | None = None
    data: DataFacts | None = None
    metrics: tuple[MetricFacts, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost = Cost()
    made_from: str | None = None
    selection: str | None = None
    limitations: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    serving: tuple[str, ...] = ()
    certificate: str | None = None
    study_file: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    licence: Licence | None = UNKNOWN_LICENCE
    is_whole: bool = True
