"""What a study takes, before it runs: its trials, their costs, and what fits into a budget of time and memory. Floor: cli."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.amounts import bytes_text, counted, seconds_text
from lorascope.cli import tables
from lorascope.cli.console import stderr
from lorascope.config import (
    BaseModelConfig,
    SearchDesign,
    ShapleyDesign,
    Study,
    TaskType,
    TrialConfig,
    load_study,
    parse_override,
)
from lorascope.errors import UsageError

if TYPE_CHECKING:
    from lorascope.budget import Price, Selection
    from lorascope.cohort.proposals import Proposer
    from lorascope.plan import Cost, Workload
    from lorascope.store import TrialRow


@dataclass(frozen=True)
class Bounds:
    """What a study may take, and which part of it is to be carried out.

    Attributes:
        budget_seconds: of training; None for no bound, as of ``memory_bytes``.
        part: the shard, as (index from 1, count).
        resume: what has ended in an earlier part of the study takes nothing any more.
    """

    budget_seconds: float | None = None
    memory_bytes: int | None = None
    device: str = "cpu"
    part: tuple[int, int] | None = None
    resume: bool = False


def study_and_trials(
    study_file: Path, overrides: list[str] | None, shard: str | None, adapters: list[Path] | None
) -> tuple[Study, list[TrialConfig] | Proposer]:
    """The study with its overrides, and its trials: a list, controls alone of a search, or what proposes them.

    Raises:
        UsageError: the study, a shard of it or an adapter that enters it cannot be.
    """
    from lorascope import design

    study = load_study(study_file, dict(parse_override(text) for text in overrides or []))
    trials = design.expand(study)
    if isinstance(study.design, ShapleyDesign):
        from lorascope.attribution.players import design_trials, read_game

        proposed = design_trials(read_game(study), trials)
        if not isinstance(proposed, list):
            if shard is not None or adapters:
                where, fix = "--shard" if shard else "--adapter", "leave it out, or give at most 10 players and no coalitions"
                raise UsageError("coalitions are proposed from the results of all earlier ones", where=where, fix=fix)
            return study, proposed
        trials = proposed
    if adapters:
        from lorascope.adapter import adapter_directory
        from lorascope.cohort.single import adapter_trial

        trials += [adapter_trial(study, path) for path in dict.fromkeys(map(adapter_directory, adapters))]
    if shard is not None and isinstance(study.design, SearchDesign):
        what = "a search cannot be cut into shards: what it proposes depends on all that there is"
        raise UsageError(what, where="--shard", fix="run it on one machine")
    if shard is not None:
        trials = design.shard(trials, *design.parse_shard(shard))
        if not trials:
            raise UsageError(f"shard {shard} holds no trial", where="--shard", fix="use fewer shards")
    return study, trials


def listed_and_proposer(study: Study, trials: list[TrialConfig] | Proposer) -> tuple[list[TrialConfig], Proposer | None]:
    """The trials that are known beforehand, and what proposes the others."""
    if not isinstance(trials, list):
        return [], trials
    if not isinstance(study.design, SearchDesign):
        return trials, None
    from lorascope.search import proposer

    return trials, proposer(study)


def seeds_of(study: Study, part: tuple[int, int] | None) -> list[int]:
    """The seeds whose maps a shard makes; all where there is none."""
    return study.seeds if part is None else study.seeds[part[0] - 1 :: part[1]]


def fitting(
    study: Study, trials: list[TrialConfig] | Proposer, directory: Path, bounds: Bounds
) -> list[TrialConfig] | Proposer:
    """What of the study fits, as its plan says; what is dropped is named on stderr. Proposals end with the budget.

    Raises:
        UsageError: nothing fits, or not all of what belongs together.
    """
    from lorascope.data.task import known_form

    if bounds.budget_seconds is None and bounds.memory_bytes is None:
        return trials
    if bounds.memory_bytes is None and known_form(study.task) is None and not _are_here(_places(study)):
        return trials  # no plan before the data are here; the deadline stays
    document = planned(study, trials, directory, bounds)
    for line in tables.dropped_lines(document["dropped"]):
        stderr().print(line, markup=False, highlight=False, soft_wrap=True)
    if document["refused"] is not None:
        raise UsageError(**document["refused"])
    names = {one["trial"] for one in document["dropped"]}
    return [trial for trial in trials if trial.trial not in names] if isinstance(trials, list) else trials


def planned(study: Study, trials: list[TrialConfig] | Proposer, directory: Path, bounds: Bounds) -> dict[str, Any]:
    """What ``plan`` prints; of trials that are proposed, the first ones, which depend on no result.

    Times are corrected by what an earlier part of the study in ``directory`` measured. ``refused`` says why a run within the
    bounds would not begin.
    """
    from lorascope import budget

    listed, proposer = listed_and_proposer(study, trials)
    first = [] if proposer is None else proposer.propose([])
    costs = Costs(study, directory, bounds)
    rows, source = costs.rows([*listed, *first])
    prices = costs.prices([*listed, *first], rows)
    speedup = budget.measured_speedup(costs.measured)
    ratio = budget.ASSUMED_SPEEDUP if speedup is None else speedup[0]
    after = _map_seconds(study, listed, rows, directory, bounds)
    left = None if bounds.budget_seconds is None else max(0.0, bounds.budget_seconds - (after or 0.0))
    kept = budget.select(prices[: len(listed)], budget_seconds=left, memory_bytes=bounds.memory_bytes, speedup=ratio)
    begun = budget.select(prices[len(listed) :], memory_bytes=bounds.memory_bytes, speedup=ratio)
    share, further = (1.0, "") if proposer is None else _further(study, proposer, first)
    seconds = [kept.train_seconds, None if begun.train_seconds is None else share * begun.train_seconds, after]
    scope = [counted(len(kept.kept), "trial")] if kept.kept or proposer is None else []
    scope += [further] if further else []
    scope += ["the maps"] if after != 0.0 else []
    foreseen = costs.rows(foreseeing(proposer))[0]
    document: dict[str, Any] = {
        "study": study.name,
        "trials": rows,
        "dropped": [{"trial": name, "reason": why} for name, why in (kept.dropped | begun.dropped).items()],
        "train_seconds_total": None if None in seconds else sum(each or 0.0 for each in seconds),
        "train_seconds_scope": " and ".join(scope),
        "train_seconds_from": source,
        "speedup": {"value": ratio, "measured_cohorts": 0 if speedup is None else speedup[1]},
    }
    # What is proposed first is asked too: an estimate of the extremes that it passes would let it train unseen.
    refused = _too_large([*foreseen, *rows[len(listed) :]], bounds)
    if isinstance(study.design, ShapleyDesign):
        from lorascope.attribution.players import game_plan, read_game

        document["shapley"] = game_plan(read_game(study))
        whole = _game_prices(study, listed, prices)
        needed = budget.select(whole, speedup=ratio).train_seconds
        needed = None if needed is None or after is None else needed + after
        refused = refused or _cut_game(whole, kept, needed, bounds)
    if isinstance(study.design, SearchDesign):
        document["search"] = _search_plan(study, rows[len(listed) :], foreseen)
    if proposer is None and not kept.kept:
        refused = refused or _nothing(prices, bounds)
    return document | {"refused": refused}


def foreseeing(proposer: Proposer | None) -> list[TrialConfig]:
    """Trials that hold every extreme of what may be proposed, as far as the proposer knows them."""
    from lorascope.cohort.proposals import Foreseeing

    return proposer.foreseen() if isinstance(proposer, Foreseeing) else []


class Costs:
    """What trials of a study cost: one model skeleton per base, one probe per dtype."""

    def __init__(self, study: Study, directory: Path, bounds: Bounds) -> None:
        from lorascope.cohort.training import FINAL
        from lorascope.memory import free_bytes

        self._work, self._task_type, self._num_labels, self._reason = _workload(study)
        self._memory_bytes = min(free_bytes(bounds.device), bounds.memory_bytes or sys.maxsize)
        self._device = bounds.device
        self._rates: dict[str, float] = {}
        self._skeletons: dict[BaseModelConfig, tuple[Any, tuple[str, ...]]] = {}
        self.measured = _measured_rows(directory)
        self._ended = {row.trial for row in self.measured if bounds.resume and row.status in FINAL}

    @property
    def num_examples(self) -> int | None:
        """Of the training split, where the data are at hand."""
        return self._work.num_examples

    def roles(self, trial: TrialConfig) -> tuple[str, ...]:
        """The roles that the trial's base has."""
        from lorascope.lora.targets import roles_of

        return roles_of(self._skeleton(trial)[0])

    def rows(self, trials: Sequence[TrialConfig]) -> tuple[list[dict[str, Any]], str]:
        """The plan's rows, and where their times come from."""
        from lorascope import budget
        from lorascope import plan as planning

        rows = []
        for trial in trials:
            skeleton = self._skeleton(trial)
            dtype = planning.product_dtype(trial)
            if dtype not in self._rates:
                self._rates[dtype] = planning.probe_flops(dtype, self._device)
            cost = planning.estimate(trial, *skeleton, self._work, self._memory_bytes, self._rates[dtype])
            rows.append(_plan_row(trial, cost, self._reason))
        return rows, budget.correct(rows, self.measured, self._work.num_examples)

    def _skeleton(self, trial: TrialConfig) -> tuple[Any, tuple[str, ...]]:
        from lorascope.plan import meta_model

        if trial.base not in self._skeletons:
            self._skeletons[trial.base] = meta_model(trial, self._task_type, self._num_labels)
        return self._skeletons[trial.base]

    def prices(self, trials: Sequence[TrialConfig], rows: Sequence[Mapping[str, Any]]) -> list[Price]:
        """What each takes of a budget: no time where nothing is trained, nothing at all where it has ended."""
        from lorascope.budget import Price

        prices = []
        for trial, row in zip(trials, rows, strict=True):
            ended, saved = trial.trial in self._ended, trial.adapter.path is not None
            seconds = 0.0 if ended or saved else row["train_seconds"]
            stacks = trial.adapter.method != "full" and not saved
            prices.append(Price(trial.trial, trial.configuration, seconds, 0 if ended else row["memory_bytes"], stacks))
        return prices


def _further(study: Study, proposer: Proposer, first: Sequence[TrialConfig]) -> tuple[float, str]:
    """How many times what is proposed first all proposals are, at most, and what they are in words."""
    from lorascope.attribution.players import SampledCoalitions

    seeds = counted(len(study.seeds), "seed")
    shown = len({trial.configuration for trial in first})
    if isinstance(study.design, SearchDesign):
        most, pruned = study.design.trials, "" if study.design.pruner == "none" else ", none pruned"
        what = f"all {counted(most, 'configuration')} with {seeds}, at the cost of the first {shown}{pruned}"
        return most / shown, what
    assert isinstance(proposer, SampledCoalitions)
    shown -= len({trial.configuration for trial in proposer.others})
    most = proposer.game.most_coalitions
    return most / shown, f"at most {most:,} coalitions with {seeds}, at the cost of the first {shown}"


def _map_seconds(
    study: Study, listed: Sequence[TrialConfig], rows: Sequence[Mapping[str, Any]], directory: Path, bounds: Bounds
) -> float | None:
    """What the trainings with random coalitions take that follow the trials; None where it is not known."""
    if not isinstance(study.design, ShapleyDesign) or study.design.game != "one_run":
        return 0.0
    from lorascope.store import DATABASE, Store

    there: set[int] = set()
    if bounds.resume and (directory / DATABASE).is_file():
        with Store.open(directory) as store:
            there = set(store.maps("one_run"))
    pending = [seed for seed in seeds_of(study, bounds.part) if seed not in there]
    known = [row["train_seconds"] for row in rows[: len(listed)] if row["config"]["method"] == "lora"]
    known = [seconds for seconds in known if seconds is not None]
    return study.design.length * max(known) * len(pending) if known else None


def _game_prices(study: Study, listed: Sequence[TrialConfig], prices: Sequence[Price]) -> list[Price]:
    """Of the trials that are coalitions."""
    from lorascope.attribution.players import read_game

    game = read_game(study)
    pairs = zip(listed, prices[: len(listed)], strict=True)
    return [price for trial, price in pairs if game.coalition_of(trial.flat()) is not None]


def _cut_game(game: Sequence[Price], kept: Selection, needed_seconds: float | None, bounds: Bounds) -> dict[str, str] | None:
    """Why a game does not begin: without one of its coalitions there would be no values."""
    lost = [price for price in game if price.trial in kept.dropped]
    if not lost:
        return None
    what = f"without {len(lost)} of its {counted(len(game), 'trial')} the game has no values"
    if _exceeds(lost, bounds):
        size = bytes_text(max(price.memory_bytes for price in lost))
        return {"what": f"{what}: they need up to {size}", "where": "--memory", "fix": "allow as much, or name fewer players"}
    needed = seconds_text(needed_seconds)
    return {
        "what": f"{what}: all of it takes about {needed}",
        "where": "--budget",
        "fix": "allow as much, or sample coalitions",
    }


def _too_large(foreseen: Sequence[Mapping[str, Any]], bounds: Bounds) -> dict[str, str] | None:
    """Why a study whose trials are proposed does not begin: one of them may need more memory than it may have."""
    sizes = [row["memory_bytes"] for row in foreseen]
    if bounds.memory_bytes is None or max(sizes, default=0) <= bounds.memory_bytes:
        return None
    what = f"what may be proposed needs up to {bytes_text(max(sizes))}"
    return {"what": what, "where": "--memory", "fix": "allow as much, or leave the largest values out of the design"}


def _nothing(prices: Sequence[Price], bounds: Bounds) -> dict[str, str]:
    """Why a study does not begin of which nothing fits."""
    if _exceeds(prices, bounds):
        fix = "allow more, or choose a smaller base or batch"
        return {"what": "every trial needs more", "where": "--memory", "fix": fix}
    return {"what": "every configuration takes longer", "where": "--budget", "fix": "allow more; plan shows their times"}


def _exceeds(prices: Sequence[Price], bounds: Bounds) -> bool:
    return bounds.memory_bytes is not None and any(price.memory_bytes > bounds.memory_bytes for price in prices)


def _search_plan(study: Study, first: Sequence[Mapping[str, Any]], extremes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a search's plan adds: how much is proposed at a time, and what its extremes cost."""
    assert isinstance(study.design, SearchDesign)
    by_cost = sorted(extremes, key=lambda row: (row["train_seconds"] or 0.0, row["trainable_params"]))
    return {
        "over": study.model_dump(mode="json", by_alias=True)["design"]["over"],
        "configurations": study.design.trials,
        "batch": len(first) // len(study.seeds),
        "cheapest": by_cost[0],
        "costliest": by_cost[-1],
        "does_not_fit": [row["config"] for row in extremes if not row["fits"]],
    }


def _measured_rows(directory: Path) -> list[TrialRow]:
    """What an earlier part of the study knows; nothing where there is none."""
    from lorascope.store import DATABASE, Store

    if not (directory / DATABASE).is_file():
        return []
    with Store.open(directory) as store:
        return store.trials()


def _plan_row(trial: TrialConfig, cost: Cost, reason: str | None) -> dict[str, Any]:
    return {
        "trial": trial.trial,
        "seed": trial.seed,
        "config": trial.flat(),
        "trainable_params": cost.trainable_params,
        "total_params": cost.total_params,
        "peft_total_params": cost.peft_total_params,
        "trainable_percent": cost.trainable_percent,
        "memory_bytes": cost.memory_bytes,
        "train_seconds": cost.train_seconds,
        "fits": cost.fits,
        "reason": cost.reason or reason,
    }


def _workload(study: Study) -> tuple[Workload, TaskType, int, str | None]:
    """The data as far as they are at hand: (workload, task type, number of labels, why there is no time estimate)."""
    from dataclasses import replace

    from lorascope import plan as planning
    from lorascope.base_model import load_tokenizer, read_config, task_type_of
    from lorascope.data.task import encode_task, known_form, read_task
    from lorascope.errors import DataError, ModelError
    from lorascope.evaluate import check_metrics

    unknown = planning.Workload(None, None, study.task.max_length)
    form = known_form(study.task)
    places = _places(study)
    if not _are_here(places):
        if form is None:
            raise DataError("the data are not on this machine", where="task.data", fix="their labels are needed to plan")
        return unknown, *form, f"no time estimate: the data ({places[0]}) are not on this machine"
    raw = read_task(study.task, study.evaluate.split)
    check_metrics(study, raw)
    raw = replace(raw, task_type=task_type_of(read_config(study.base), raw.task_type))
    planning.check_lengths(study.task, study.evaluate, study.base, generates=raw.generates)
    try:
        tokenizer = load_tokenizer(study.base)
        sample = replace(raw, train=raw.train[:256], eval=raw.eval[:1], notices=[])
        encoded = encode_task(sample, tokenizer, study.task.max_length)
    except ModelError:
        return unknown, raw.task_type, len(raw.labels), "no time estimate: the base has no tokenizer here"
    return planning.workload(encoded.train, len(raw.train)), raw.task_type, len(raw.labels), None


def _places(study: Study) -> list[str]:
    return [study.task.data] if isinstance(study.task.data, str) else list(study.task.data.values())


def _are_here(places: Sequence[str]) -> bool:
    return all(Path(place).expanduser().exists() for place in places)


def chosen_device(name: str | None = None) -> str:
    """The device asked for, or the GPU where there is one.

    Raises:
        UsageError: this machine has no such device.
    """
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if num_gpus else []), *(f"cuda:{index}" for index in range(num_gpus))]
    if name is not None and name not in known:
        raise UsageError(f"no device {name!r} here", where="--device", fix=f"use {' or '.join(known)}")
    return name or ("cuda" if num_gpus else "cpu")
