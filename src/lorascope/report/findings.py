"""What a report is made of: a study's configurations with their scores, costs and curves, read from its stores.

Knows stores and the document of ``lorascope results``. Does not judge (``answer``) or draw. Floor: ``report``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from statistics import mean
from typing import Any

from lorascope.compare import Interval, read_ratios, score_interval, seeds_interval
from lorascope.config import Study, configuration_of
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.report.words import clean, configuration_labels, metric_unit
from lorascope.store import Store
from lorascope.store.results import merged_rows

# Intervals over examples are computed for so many trials; each takes a bootstrap.
MOST_INTERVALS = 200
CURVE_POINTS = 50
# What times depend on, of a machine's description.
_MACHINE = ("processor", "cores", "torch_threads", "cuda")


@dataclass(frozen=True)
class Score:
    """A metric of a configuration: the mean over its seeds, and Student's interval where there is one."""

    mean: float
    low: float | None
    high: float | None
    by_seed: Mapping[int, float]


@dataclass(frozen=True)
class Curve:
    """A loss against the steps done; each point is the mean over a run of steps.

    Attributes:
        num_steps: at which it ends; its last point lies before, in the middle of the last run.
    """

    steps: list[float]
    losses: list[float]
    num_steps: int


@dataclass(frozen=True)
class Configuration:
    """One configuration with all its seeds.

    Attributes:
        name: the first eight digits of its hash.
        label: what tells it from the others, in a few words.
        trials: its rows of ``lorascope results``.
        scores: by metric, of the trials that are done.
        parameters, percent: what it trains; None where not known, as the costs.
        seconds: of an epoch, alone.
        memory_bytes: at the peak of training, alone.
        curve: training loss, mean over the seeds that are done, or that of the one that came furthest.
        validation: (step, loss), where it was measured: at rungs, and at the end; of the same trials as ``curve``.
    """

    name: str
    label: str
    config: Mapping[str, Any]
    trials: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Score]
    parameters: float | None
    percent: float | None
    seconds: float | None
    memory_bytes: float | None
    curve: Curve | None = None
    validation: Sequence[tuple[float, float]] = ()

    @property
    def num_done(self) -> int:
        """Seeds that finished."""
        return sum(trial["status"] == "done" for trial in self.trials)

    @property
    def is_adapter(self) -> bool:
        """Whether it trains adapters: controls and adapters from disk do not."""
        return self.config.get("method", "lora") == "lora" and self.config.get("path") is None


@dataclass(frozen=True)
class Findings:
    """A study as the report sees it.

    Attributes:
        results: the document of ``lorascope results``, cleaned of what a browser would obey.
        intervals: by trial, of its score by ``metric`` over the examples.
        places: by trial, the store that holds it.
    """

    study: Study
    stores: Sequence[Store]
    results: Mapping[str, Any]
    configurations: Sequence[Configuration]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    places: Mapping[str, Store] = field(default_factory=dict)

    @property
    def trials(self) -> Sequence[Mapping[str, Any]]:
        """One row per trial."""
        return list(self.results["trials"])

    @property
    def metric(self) -> str | None:
        """What configurations are held against each other by; None before anything was scored."""
        return self.results["comparisons"]["metric"]  # type: ignore[no-any-return]

    @property
    def higher(self) -> bool:
        """The direction of the metric."""
        return HIGHER_IS_BETTER[self.metric] if self.metric else True

    def unit(self, metric: str) -> str:
        """Of a metric, as this study's task measures it."""
        return metric_unit(metric, self.study.task.name)

    @property
    def num_machines(self) -> int:
        """Kinds of machines that the shards ran on, as far as they are recorded."""
        found = [store.info("hardware") for store in self.stores]
        return len({tuple(str(one.get(key)) for key in _MACHINE) for one in found if one})

    @cached_property
    def metrics(self) -> list[str]:
        """Every metric, the one compared by first, then in the usual order."""
        names = {name for trial in self.trials for name in trial["metrics"]}
        known = [name for name in (self.metric, *HIGHER_IS_BETTER) if name in names and name is not None]
        return list(dict.fromkeys([*known, *sorted(names)]))

    @cached_property
    def by_name(self) -> dict[str, Configuration]:
        """Configurations by their names."""
        return {one.name: one for one in self.configurations}

    @property
    def baseline(self) -> Configuration | None:
        """What others are compared with."""
        return self.by_name.get(self.results["comparisons"]["baseline"] or "")

    @cached_property
    def ranked(self) -> list[Configuration]:
        """Configurations with a score: those whose every seed finished before others, each best first."""
        if self.metric is None:
            return []
        sign = -1.0 if self.higher else 1.0
        scored = [one for one in self.configurations if self.metric in one.scores]
        return sorted(
            scored,
            key=lambda one: (one.num_done < len(one.trials), sign * one.scores[self.metric or ""].mean, one.parameters or 0),
        )

    @property
    def best(self) -> Configuration | None:
        """The adapter with the best mean; a control where there is nothing else."""
        return next((one for one in self.ranked if one.is_adapter), next(iter(self.ranked), None))

    @property
    def counts(self) -> dict[str, int]:
        """Trials by status, in order of appearance."""
        found: dict[str, int] = {}
        for trial in self.trials:
            found[trial["status"]] = found.get(trial["status"], 0) + 1
        return found


def gather(stores: Sequence[Store], results: Mapping[str, Any]) -> Findings:
    """Everything that the report shows.

    Args:
        stores: the study, or its shards.
        results: their document, as ``lorascope results`` prints it.

    Raises:
        UsageError: the directories hold different studies.
    """
    places = {row.trial: store for store, row in merged_rows(stores)}
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for trial in results["trials"]:
        rows.setdefault(configuration_of(trial["trial"]), []).append(trial)
    labels = configuration_labels({name: members[0]["config"] for name, members in rows.items()})
    configurations = [_configuration(name, clean(labels[name]), members, places) for name, members in rows.items()]
    shown = clean(results)
    found = Findings(stores[0].study, stores, shown, configurations, {}, places)
    return Findings(stores[0].study, stores, shown, configurations, _intervals(found), places)


def _configuration(name: str, label: str, members: Sequence[Mapping[str, Any]], places: Mapping[str, Store]) -> Configuration:
    done = [trial for trial in members if trial["status"] == "done"]
    scores = {}
    for metric in dict.fromkeys(metric for trial in done for metric in trial["metrics"]):
        by_seed = {trial["seed"]: trial["metrics"].get(metric) for trial in done}
        finite = {seed: value for seed, value in by_seed.items() if value is not None}
        if finite:
            low, high = seeds_interval(list(finite.values())) or (None, None)
            scores[metric] = Score(mean(finite.values()), low, high, finite)
    losses = {trial["trial"]: known for trial in members if (known := _losses(places[trial["trial"]], trial["trial"]))}
    furthest = sorted((trial for trial in members if trial["trial"] in losses), key=lambda one: losses[one["trial"]][-1][0])
    drawn = [trial for trial in done if trial["trial"] in losses] or furthest[-1:]
    curve = _curve([losses[trial["trial"]] for trial in drawn])
    return Configuration(
        name,
        label,
        members[0]["config"],
        members,
        scores,
        _mean(trial["trainable_params"] for trial in members),
        _mean(trial["trainable_percent"] for trial in members),
        _mean(trial["solo_train_seconds_per_epoch"] for trial in members),
        _mean(trial["solo_peak_memory_bytes"] for trial in members),
        curve,
        _validation(drawn, scores, curve),
    )


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _losses(store: Store, trial: str) -> list[tuple[int, float]]:
    """(step, loss): steps are counted from 1; one whose loss was no number is left out."""
    known = [(step["step"] + 1, step["loss"]) for step in store.steps(trial) if step["loss"] is not None]
    return [(step, loss) for step, loss in known if math.isfinite(loss)]


def _curve(trials: Sequence[Sequence[tuple[int, float]]]) -> Curve | None:
    """The mean over trials, each of which counts alike in a run of steps, of as many of them as it has."""
    steps = sorted({step for its in trials for step, _ in its})
    if not steps:
        return None
    num_points = min(len(steps), CURVE_POINTS)
    runs = [steps[len(steps) * i // num_points : len(steps) * (i + 1) // num_points] for i in range(num_points)]
    place = {step: index for index, run in enumerate(runs) for step in run}
    means: list[list[float]] = [[] for _ in runs]
    for its in trials:
        for index, part in groupby(its, key=lambda one: place[one[0]]):
            means[index].append(mean(loss for _, loss in part))
    return Curve([mean(run) for run in runs], [mean(each) for each in means], steps[-1])


def _validation(
    drawn: Sequence[Mapping[str, Any]], scores: Mapping[str, Score], curve: Curve | None
) -> list[tuple[float, float]]:
    """Means over the seeds that the curve is of; at the last step what counts is the score on the whole split."""
    by_step: dict[float, list[float]] = {}
    for trial in drawn:
        for rung in trial["rungs"]:
            loss = rung["metrics"].get("eval_loss")
            if loss is not None:
                by_step.setdefault(rung["step"], []).append(loss)
    if "eval_loss" in scores and curve is not None:
        by_step[curve.num_steps] = [scores["eval_loss"].mean]
    return [(step, mean(losses)) for step, losses in sorted(by_step.items())]


def _intervals(found: Findings) -> dict[str, Interval]:
    """By trial; of those whose predictions give the metric again."""
    metric = found.metric
    done = [trial for trial in found.trials if trial["status"] == "done"]
    intervals = {}
    for trial in done[:MOST_INTERVALS]:
        value = None if metric is None else trial["metrics"].get(metric)
        if metric is None or value is None:
            continue
        path = found.places[trial["trial"]].directory / "trials" / trial["trial"] / "predictions.jsonl"
        ratio = read_ratios(path, {metric: value}).get(metric)
        if ratio is not None:
            intervals[trial["trial"]] = score_interval(ratio)
    return intervals
