"""Search: configurations that Optuna's samplers propose in batches, halving while they train, and what came of it.

Knows the space (``design.over``), how rows of a store become a sampler's history, and which trials a rung keeps. Does not
know training. Floor: above ``design``.

A batch is a pure function of the rows before it: the sampler is made anew each time, with a seed of its own for each batch,
and told what the rows say. So a resumed search goes on with the proposals that it would have made, whatever was asked in
between, and nothing about a sampler has to be stored.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
from numpy.random import SeedSequence
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from lorascope.cohort.proposals import has_ended
from lorascope.config import Range, SearchDesign, Study, TrialConfig, configuration_of
from lorascope.design import apply, expand
from lorascope.errors import UsageError, did_you_mean
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.store import TrialRow

# Trials that a cohort holds at most, where memory allows.
_COHORT = 16
# A sampler may propose what there was already so many times for every configuration that is wanted.
_TRIES = 16
# Keys on which cost depends most; their extremes are tried together, those of others one by one.
_COSTLY = (
    "model", "dtype", "quantization", "method", "r", "targets", "bias", "lora_dropout", "batch_size", "epochs", "max_steps"
)  # fmt: skip
# Over fewer finished configurations the shares are chance's. Of four keys, one of which alone moved a noisy score, fANOVA put
# that one first in 43 % of 30 simulated searches over 4 configurations, 53 % over 12, 75 % over 24 and 94 % over 40 (16 each).
_FEWEST_FOR_IMPORTANCES = 24


def _tpe(seed: int, startup: int) -> BaseSampler:
    # constant_liar: those of a batch that are asked for but not told yet count as bad, so that a batch spreads.
    return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True)


def _gp(seed: int, startup: int) -> BaseSampler:
    return GPSampler(seed=seed, n_startup_trials=startup)


def _random(seed: int, startup: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _qmc(seed: int, startup: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # Optuna calls it so since 2022
        return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


def _cmaes(seed: int, startup: int) -> BaseSampler:
    return CmaEsSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)


_SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {
    "tpe": _tpe,
    "random": _random,
    "gp": _gp,
    "cmaes": _cmaes,
    "qmc": _qmc,
}
# These keep their place in what Optuna stores with each trial: history is asked for again, not added, and the seed stays.
_SEQUENTIAL = ("cmaes", "qmc")


class Search:
    """The proposer of a study whose design is a search; see ``cohort.proposals.Proposer``.

    Raises:
        UsageError: a key or a value that no configuration can have, an objective without a direction, or a sampler that is
            not installed or cannot deal with this space.
    """

    def __init__(self, study: Study) -> None:
        assert isinstance(study.design, SearchDesign)
        self._study = study
        self.design = study.design
        self.objective = study.design.objective
        if self.objective not in HIGHER_IS_BETTER:
            fix = did_you_mean(self.objective, list(HIGHER_IS_BETTER))
            raise UsageError(f"no metric {self.objective!r}", where=study.place("design", "objective"), fix=fix)
        self._distributions = {key: _distribution(values) for key, values in self.design.over.items()}
        for key, values in self.design.over.items():
            place = study.place("design", "over", key)
            for value in _ends(values) if isinstance(values, Range) else values:
                apply(study, {key: value}, place)
            if isinstance(values, Range) and values.integer is None:
                _check_real(study, key, values, place)
        self._check_sampler()
        self._controls = {trial.trial: trial.configuration for trial in expand(study)}
        cohort = max(1, _COHORT // len(study.seeds))
        self.batch = min(self.design.batch or min(cohort, math.ceil(self.design.trials / 4)), self.design.trials)

    def propose(self, rows: Sequence[TrialRow]) -> list[TrialConfig]:
        """The next batch, every configuration with every seed; the last one again while it has not ended.

        None where trials are done and none of them has the objective: there is nothing to go by.
        """
        own = self.own(rows)
        known = configurations(own)
        names = list(known)
        last = [row for name in names[(len(names) - 1) // self.batch * self.batch :] for row in known[name]] if names else []
        if not all(map(has_ended, last)):
            return [TrialConfig.from_flat(row.config, row.seed) for row in last]
        count = min(self.batch, self.design.trials - len(names))
        if count <= 0 or lacks(own, self.objective):
            return []
        asked = [apply(self._study, overrides, "design.over") for overrides in self._ask(known, count)]
        proposed = [TrialConfig(**sections, seed=seed) for sections in asked for seed in self._study.seeds]
        assert all(self._is_own(trial.trial, trial.seed, trial.flat()) for trial in proposed), "would be proposed for ever"
        return proposed

    def own(self, rows: Sequence[TrialRow]) -> list[TrialRow]:
        """The rows of configurations that this search may have proposed: no control, adapter from disk or further seed."""
        return [row for row in rows if self._is_own(row.trial, row.seed, row.config)]

    def _is_own(self, trial: str, seed: int, config: Mapping[str, Any]) -> bool:
        if seed not in self._study.seeds or trial in self._controls:
            return False
        sections = apply(self._study, self.overrides(config), "design.over")
        return TrialConfig(**sections, seed=seed).flat() == config

    def foreseen(self) -> list[TrialConfig]:
        """Trials that between them hold every value of a list and both ends of every range, the costly keys' together."""
        ends = {key: _ends(values) for key, values in self.design.over.items()}
        costly = [key for key in ends if key in _COSTLY]
        chosen = [dict(zip(costly, values, strict=True)) for values in itertools.product(*(ends[key] for key in costly))]
        chosen += [{**chosen[0], key: value} for key, values in ends.items() if key not in costly for value in values]
        seed = self._study.seeds[0]
        return [TrialConfig(**apply(self._study, overrides, "design.over"), seed=seed) for overrides in chosen]

    def overrides(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What the design varies, as a row's configuration has it; where a key has no effect there, its first value."""
        ranges = {key: config[key] for key, values in self.design.over.items() if isinstance(values, Range)}
        lists = {key: values for key, values in self.design.over.items() if not isinstance(values, Range)}
        plain = {key: config[key] for key in lists if key in config}
        found: dict[str, Any] = {}
        for key in self.design.over:
            if key in ranges:
                found[key] = ranges[key]
                continue
            # As the configuration has it: alpha as a number, "2r" at its rank.
            written = (self._written({**ranges, **plain, key: value}, key) for value in lists[key])
            found[key] = next(
                (value for value, flat in zip(lists[key], written, strict=True) if flat == config.get(key)), lists[key][0]
            )
        return found

    def history(self, rows: Sequence[TrialRow]) -> optuna.Study:
        """Every configuration of the search's own rows as Optuna sees it: means over seeds, pruned ones with their rungs."""
        study = self._optuna_study(_random(0, 0))
        for of_configuration in configurations(self.own(rows)).values():
            study.add_trial(self._told(of_configuration))
        return study

    def _check_sampler(self) -> None:
        name, place = self.design.sampler, self._study.place("design", "sampler")
        if name != "cmaes":
            return
        if sum(isinstance(values, Range) for values in self.design.over.values()) < 2:
            raise UsageError("cmaes needs two ranges at least", where=place, fix="use tpe")
        if importlib.util.find_spec("cmaes") is None:
            raise UsageError(
                "the sampler cmaes is not installed", where=place, fix="pip install 'lorascope[cmaes]', or use tpe"
            )

    def _written(self, overrides: Mapping[str, Any], key: str) -> Any:
        return TrialConfig(**apply(self._study, overrides, "design.over"), seed=0).flat().get(key)

    def _optuna_study(self, sampler: BaseSampler) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        direction = StudyDirection.MAXIMIZE if HIGHER_IS_BETTER[self.objective] else StudyDirection.MINIMIZE
        return optuna.create_study(sampler=sampler, direction=direction)

    def _ask(self, known: Mapping[str, Sequence[TrialRow]], count: int) -> list[dict[str, Any]]:
        """Configurations that there were not yet, as overrides; fewer where the space has no more."""
        sequential = self.design.sampler in _SEQUENTIAL
        seed = self.design.sampler_seed
        if not sequential:
            seed = int(SeedSequence([seed, len(known)]).generate_state(1)[0])
        startup = min(10, max(self.batch, math.ceil(self.design.trials / 4)))
        study = self._optuna_study(_SAMPLERS[self.design.sampler](seed, startup))
        for rows in known.values():
            told = self._told(rows)
            if sequential:
                _replay(study, told, self._distributions)
            else:
                study.add_trial(told)
        seen = {*known, *self._controls.values()}
        chosen: list[dict[str, Any]] = []
        for overrides in itertools.chain(self._sampled(study, count * _TRIES), self._rest()):
            if len(chosen) == count:
                break
            name = TrialConfig(**apply(self._study, overrides, "design.over"), seed=0).configuration
            if name not in seen:
                seen.add(name)
                chosen.append(overrides)
        return chosen

    def _sampled(self, study: optuna.Study, most: int) -> Iterator[dict[str, Any]]:
        for _ in range(most):
            yield _overrides_of(study.ask(self._distributions).params, self.design)

    def _rest(self) -> Iterator[dict[str, Any]]:
        """Where a sampler repeats itself, the configurations of a finite space one after the other."""
        values = [_all_values(values) for values in self.design.over.values()]
        if all(each is not None for each in values):
            for combination in itertools.product(*(each for each in values if each is not None)):
                yield dict(zip(self.design.over, combination, strict=True))

    def _told(self, rows: Sequence[TrialRow]) -> optuna.trial.FrozenTrial:
        """One configuration's trials as one of Optuna's.

        A diverged one is told as pruned without a score, which ranks below all others: Optuna's samplers forget what failed,
        and would go there again.
        """
        params = _params_of(self.overrides(rows[0].config), self._distributions)
        statuses = {row.status for row in rows}
        value = mean_objective(rows, self.objective)
        rungs = {} if "diverged" in statuses else _mean_rungs(rows, self.objective)
        state = TrialState.COMPLETE if value is not None else TrialState.PRUNED
        unscored = any(row.status == "done" and self.objective not in row.metrics for row in rows)
        if unscored or not statuses <= {"done", "pruned", "diverged"}:
            state = TrialState.FAIL
        return create_trial(
            state=state,
            value=value if state == TrialState.COMPLETE else None,
            params=params,
            distributions=self._distributions,
            intermediate_values=rungs,
        )


class HalvingSearch(Search):
    """A search that stops the worse of a cohort at every rung; see ``cohort.proposals.Pruner``.

    Source: synchronous successive halving, Jamieson and Talwalkar 2016; Optuna's own pruners decide trial by trial as they
    report, and prune nothing or the wrong ones where all of a cohort report the same step at once.
    """

    def rungs(self, num_steps: int) -> list[int]:
        """``num_steps / reduction^k`` for every ``k`` with which ``reduction^k`` is no more than a batch.

        Of a whole batch in one cohort ``reduction`` at most come through the last; none are pruned of a batch below it.
        """
        reduction, count, steps = self.design.reduction, 0, set()
        while reduction ** (count + 1) <= self.batch:
            count += 1
            steps.add(num_steps // reduction**count)
        return sorted(step for step in steps if 0 < step < num_steps)

    def keep(self, trials: Sequence[str], step: int, num_steps: int, scores: Mapping[str, float]) -> set[str]:
        """The best ``1 / reduction`` of the configurations, rounded up, with all of their seeds.

        A configuration is worth the mean over its seeds; one with a seed that diverged or has no finite score is the worst.
        Equals go by their order. Of those that can go on at all, one always does.
        """
        sign = -1.0 if HIGHER_IS_BETTER[self.objective] else 1.0
        members: dict[str, list[str]] = {}
        for name in trials:
            members.setdefault(configuration_of(name), []).append(name)
        cost = {}
        for configuration, names in members.items():
            each = [scores.get(name, math.nan) for name in names]
            cost[configuration] = sign * sum(each) / len(each) if all(map(math.isfinite, each)) else math.inf
        ranked = sorted(members, key=lambda configuration: cost[configuration])
        kept = ranked[: math.ceil(len(ranked) / self.design.reduction)]
        if not any(name in scores for configuration in kept for name in members[configuration]):
            kept = [next((one for one in ranked if any(name in scores for name in members[one])), ranked[0])]
        return {name for configuration in kept for name in members[configuration]}


def proposer(study: Study) -> Search:
    """What proposes the trials of this study, whose design is a search."""
    assert isinstance(study.design, SearchDesign)
    return HalvingSearch(study) if study.design.pruner == "successive_halving" else Search(study)


def configurations(rows: Sequence[TrialRow]) -> dict[str, list[TrialRow]]:
    """Rows by configuration, in order of first appearance."""
    found: dict[str, list[TrialRow]] = {}
    for row in rows:
        found.setdefault(row.configuration, []).append(row)
    return found


def mean_objective(rows: Sequence[TrialRow], objective: str) -> float | None:
    """Of one configuration over its seeds; None unless all of them are done with a finite score."""
    if any(row.status != "done" or objective not in row.metrics for row in rows):
        return None
    mean = sum(row.metrics[objective] for row in rows) / len(rows)
    return mean if math.isfinite(mean) else None


def lacks(rows: Sequence[TrialRow], metric: str) -> bool:
    """Whether trials are done and none of them has the metric."""
    done = [row for row in rows if row.status == "done"]
    return bool(done) and not any(metric in row.metrics for row in done)


def search_document(study: Study, rows: Sequence[TrialRow]) -> dict[str, Any]:
    """What a search found, from the rows of its store alone.

    ``configurations`` come best first, those without a score last, by how far they came; ``course`` says how the best score
    grew with the configurations proposed; ``importances`` are fANOVA's (Hutter et al. 2014), over the finished ones, of which
    there are ``finished``. Controls and adapters from disk are no part of it. ``reason`` says why nothing could be chosen, or
    is None.
    """
    search = proposer(study)
    own = search.own(rows)
    found: list[dict[str, Any]] = []
    for number, (name, members) in enumerate(configurations(own).items()):
        mean = mean_objective(members, search.objective)
        rungs = _mean_rungs(members, search.objective)
        statuses = {row.status for row in members}
        found.append(
            {
                "configuration": name,
                "number": number,
                "values": search.overrides(members[0].config),
                "status": next(iter(statuses)) if len(statuses) == 1 else "mixed",
                "objective": mean,
                "by_seed": {str(row.seed): row.metrics.get(search.objective) for row in members if row.status == "done"},
                "last_rung": {"step": max(rungs), "objective": rungs[max(rungs)]} if rungs else None,
            }
        )
    higher = HIGHER_IS_BETTER[search.objective]
    ranked = sorted(found, key=lambda one: _place(one, higher))
    best: float | None = None
    course = []
    for one in found:
        score = one["objective"]
        if score is not None and (best is None or (score > best if higher else score < best)):
            best = score
        course.append({"proposed": one["number"] + 1, "objective": score, "best": best})
    return {
        "objective": search.objective,
        "higher_is_better": higher,
        "sampler": search.design.sampler,
        "pruner": search.design.pruner,
        "proposed": len(found),
        "trials": search.design.trials,
        "best": ranked[0]["configuration"] if best is not None else None,
        "chosen_on": study.evaluate.split,
        "reason": _reason(own, search.objective),
        "configurations": ranked,
        "course": course,
        "finished": sum(one["objective"] is not None for one in found),
        "importances": _importances(search.history(own)),
    }


def _reason(rows: Sequence[TrialRow], objective: str) -> str | None:
    """Why no configuration can be chosen, where that is not for want of finished ones."""
    if not lacks(rows, objective):
        return None
    there = dict.fromkeys(name for row in rows for name in row.metrics if name in HIGHER_IS_BETTER)
    return f"no trial has a {objective}; there is {', '.join(there) or 'no score'}"


def _place(one: Mapping[str, Any], higher: bool) -> tuple[float, float, float, int]:
    sign = -1.0 if higher else 1.0
    if one["objective"] is not None:
        return 0.0, 0.0, sign * one["objective"], one["number"]
    if one["last_rung"] is not None:
        return 1.0, -float(one["last_rung"]["step"]), sign * one["last_rung"]["objective"], one["number"]
    return 2.0, 0.0, 0.0, one["number"]


def _importances(history: optuna.Study) -> dict[str, float] | None:
    """How much each key matters, in shares of one; None where too few configurations, or equal ones, cannot say."""
    scores = [trial.value for trial in history.trials if trial.state == TrialState.COMPLETE]
    if len(scores) < _FEWEST_FOR_IMPORTANCES or len(set(scores)) == 1:
        return None
    # Not Optuna's default: PED-ANOVA looks at the best tenth, which of some dozens of configurations is a handful.
    shares = get_param_importances(history, evaluator=FanovaImportanceEvaluator(seed=0))
    return {key: float(share) for key, share in shares.items()}


def _mean_rungs(rows: Sequence[TrialRow], objective: str) -> dict[int, float]:
    """The objective at every rung that all seeds reached."""
    shared = set.intersection(*(set(row.rungs) for row in rows))
    means = {step: sum(row.rungs[step].get(objective, math.nan) for row in rows) / len(rows) for step in sorted(shared)}
    return {step: mean for step, mean in means.items() if math.isfinite(mean)}


def _distribution(values: Sequence[Any] | Range) -> BaseDistribution:
    if not isinstance(values, Range):
        # Optuna's choices are scalars; a list of targets is none.
        return CategoricalDistribution(list(dict.fromkeys(map(json.dumps, values))))
    if values.integer is not None:
        return IntDistribution(*values.integer)
    return FloatDistribution(*values.log, log=True) if values.log is not None else FloatDistribution(*(values.uniform or ()))


def _params_of(overrides: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Overrides as Optuna's parameters; a number that another key made meaningless is put into its range."""
    params = {}
    for key, distribution in distributions.items():
        value = overrides[key]
        if isinstance(distribution, CategoricalDistribution):
            params[key] = json.dumps(value)
        elif isinstance(distribution, FloatDistribution | IntDistribution):
            params[key] = min(max(value, distribution.low), distribution.high)
    return params


def _overrides_of(params: Mapping[str, Any], design: SearchDesign) -> dict[str, Any]:
    return {key: params[key] if isinstance(values, Range) else json.loads(params[key]) for key, values in design.over.items()}


def _replay(study: optuna.Study, told: optuna.trial.FrozenTrial, distributions: Mapping[str, BaseDistribution]) -> None:
    """Ask for what was proposed and tell what it gave, so that the sampler stands where it stood."""
    study.enqueue_trial(told.params)
    trial = study.ask(dict(distributions))
    for step, value in told.intermediate_values.items():
        trial.report(value, step)
    study.tell(trial, told.value, state=told.state)


def _ends(values: Sequence[Any] | Range) -> list[Any]:
    """Every value of a list, of numbers only the smallest and the largest; both ends of a range."""
    if isinstance(values, Range):
        return list(next(ends for ends in (values.log, values.uniform, values.integer) if ends is not None))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return list(dict.fromkeys([min(values), max(values)]))
    return list(values)


def _check_real(study: Study, key: str, values: Range, place: str) -> None:
    """A value inside the range is one of the key's too."""
    low, high = _ends(values)
    try:
        apply(study, {key: low + (high - low) / math.pi}, place)
    except UsageError:
        raise UsageError(f"{key} is a whole number", where=place, fix="give its range as int, or a list") from None


def _all_values(values: Sequence[Any] | Range) -> Sequence[Any] | None:
    """Every value there is; None for a range of real numbers."""
    if not isinstance(values, Range):
        return values
    return None if values.integer is None else range(values.integer[0], values.integer[1] + 1)
