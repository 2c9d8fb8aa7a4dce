"""Who plays, and which coalitions become trials.

A player is a named set of targets; a coalition trains the targets of its players. Knows designs of kind ``shapley`` and, to
cut players into layers, the base's shape on the meta device. Does not train. Floor: ``attribution``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import numpy as np

from lorascope.cohort.proposals import has_ended
from lorascope.config import ShapleyDesign, Study, TaskType, TrialConfig, in_layers, split_layers
from lorascope.errors import ModelError, RunError, UsageError, did_you_mean
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.shapley import Attribution, Coalition, attribute, coalitions_of, done, estimate
from lorascope.store import TrialRow

# Up to so many players every coalition is valued; so many coalitions at most are where they are sampled.
EXACT_PLAYERS = 10
MOST_COALITIONS = 2**EXACT_PLAYERS
# Coalitions proposed at a time: as many as a cohort holds trials of one seed.
_PROPOSED = 16
# The order of sampled coalitions, the same in every study.
SAMPLING_SEED = 0
# Where a study's store holds what coalitions add to latency.
LATENCY_KEY = "latency"

Players = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Game:
    """The players of a study and what a coalition of them is as a trial.

    Attributes:
        players: the targets of each, as ``adapter.targets`` takes them.
    """

    study: Study
    players: Players

    @property
    def design(self) -> ShapleyDesign:
        """The study's design."""
        assert isinstance(self.study.design, ShapleyDesign)
        return self.study.design

    @property
    def everyone(self) -> Coalition:
        """The coalition of all players."""
        return frozenset(self.players)

    @property
    def is_exact(self) -> bool:
        """Whether every coalition is valued."""
        num_players = len(self.players)
        return num_players <= EXACT_PLAYERS and 2**num_players <= (self.design.coalitions or 2**num_players)

    @property
    def most_coalitions(self) -> int:
        """How many coalitions are valued at most."""
        return min(1 << len(self.players), self.design.coalitions or MOST_COALITIONS)

    def targets(self, coalition: Iterable[str]) -> list[str]:
        """What a coalition trains, in the players' order."""
        members = set(coalition)
        return [target for player, targets in self.players.items() if player in members for target in targets]

    def trials(self, coalitions: Iterable[Coalition]) -> list[TrialConfig]:
        """Each coalition with every seed of the study."""
        study = self.study
        return [
            TrialConfig(
                base=study.base,
                adapter=study.adapter.model_copy(update={"targets": self.targets(coalition)}),
                train=study.train,
                seed=seed,
            )
            for coalition in coalitions
            for seed in study.seeds
        ]

    def coalitions(self) -> list[Coalition]:
        """Every coalition, the smaller ones first."""
        players = list(self.players)
        return [frozenset(members) for size in range(len(players) + 1) for members in combinations(players, size)]

    def coalition_of(self, config: Mapping[str, Any]) -> Coalition | None:
        """The coalition that a stored trial's configuration stands for; None for a trial that is none: a control, say."""
        baseline = self.trials([frozenset()])[0].flat()
        if not isinstance(config["targets"], list) or any(
            config.get(key) != value for key, value in baseline.items() if key != "targets"
        ):
            return None
        targets = set(config["targets"])
        coalition = frozenset(player for player, its in self.players.items() if targets.issuperset(its))
        return coalition if config["targets"] == self.targets(coalition) and "path" not in config else None

    def worths(self, rows: Iterable[TrialRow]) -> dict[str, dict[Coalition, dict[int, float]]]:
        """By metric, coalition and seed what the trials that are done were worth."""
        found: dict[str, dict[Coalition, dict[int, float]]] = {}
        for row in rows:
            coalition = self.coalition_of(row.config) if row.status == "done" else None
            if coalition is not None:
                for metric, value in row.metrics.items():
                    found.setdefault(metric, {}).setdefault(coalition, {})[row.seed] = value
        return found


def shared_players(design: ShapleyDesign, layers: Sequence[tuple[int, int]] | None) -> dict[str, tuple[str, ...]]:
    """The players by name with their targets, each cut into the runs of layers (first, last) where there are any."""
    groups = design.players if isinstance(design.players, dict) else {player: [player] for player in design.players}
    if layers is None:
        return {name: tuple(targets) for name, targets in groups.items()}
    return {
        in_layers(name, *run): tuple(in_layers(target, *run) for target in targets)
        for name, targets in groups.items()
        for run in layers
    }


def read_game(study: Study) -> Game:
    """The study's game, checked against the shape of its base; no weights are loaded.

    Raises:
        UsageError: an unknown metric, more groups than the base has layers, or a target that two players share.
        ModelError: a target that the base does not have.
    """
    from lorascope.lora.targets import layer_of, resolve

    design = study.design
    assert isinstance(design, ShapleyDesign)
    for metric in design.values or ():
        if metric not in HIGHER_IS_BETTER:
            fix = did_you_mean(metric, list(HIGHER_IS_BETTER))
            raise UsageError(f"no metric {metric!r}", where=study.place("design", "values"), fix=fix)
    if design.game != "usefulness" and study.adapter.bias != "none":
        fix = "set adapter.bias to none: a bias is no part of any player, and cannot be masked"
        raise UsageError(f"bias {study.adapter.bias!r} in a game of masks", where=study.place("adapter", "bias"), fix=fix)
    if study.adapter.method != "lora" or study.adapter.path is not None:
        raise UsageError("the players are LoRA adapters to be trained", where=study.place("adapter"), fix="use method: lora")
    model, heads = _skeleton(study)
    runs = None
    if design.layer_groups is not None:
        whole = shared_players(design, None)
        targets = resolve(model, [target for its in whole.values() for target in its], heads)
        layers = sorted({layer for target in targets if (layer := layer_of(target.module)) is not None})
        runs = _runs(layers, design.layer_groups, study.place("design", "layer_groups"))
    game = Game(study, shared_players(design, runs))
    owners: dict[str, str] = {}
    for player, names in game.players.items():
        for target in resolve(model, list(names), heads):
            other = owners.setdefault(target.key, player)
            if other != player:
                where = study.place("design", "players")
                raise UsageError(f"players {other!r} and {player!r} share {target.key}", where=where, fix="keep them apart")
    return game


def stored_game(study: Study, rows: Sequence[TrialRow]) -> Game:
    """The game of a stored study, from its trials alone: their targets say into which layers the players were cut."""
    design = study.design
    assert isinstance(design, ShapleyDesign)
    if design.layer_groups is None:
        return Game(study, shared_players(design, None))
    listed = [row.config["targets"] for row in rows if isinstance(row.config["targets"], list)]
    own = {target for targets in listed for target in targets}
    names = design.players if isinstance(design.players, list) else [each for its in design.players.values() for each in its]
    runs = {run for name, run in map(split_layers, own) if run is not None and name in names}
    return Game(study, shared_players(design, sorted(runs)))


def _runs(layers: Sequence[int], groups: int | str, where: str) -> list[tuple[int, int]]:
    """Neighbouring layers in so many parts of nearly equal size, as (first, last)."""
    if groups == "each":
        return [(layer, layer) for layer in layers]
    if int(groups) > len(layers):
        raise UsageError(f"{groups} groups of {len(layers)} layers", where=where, fix="use fewer, or each")
    return [(int(part[0]), int(part[-1])) for part in np.array_split(np.array(layers), int(groups))]


def _skeleton(study: Study) -> tuple[Any, tuple[str, ...]]:
    """The base on the meta device and its heads, in a form that the task may take on it: names and shapes are the same."""
    from lorascope.data.task import known_form
    from lorascope.plan import meta_model

    trial = TrialConfig(base=study.base, adapter=study.adapter, train=study.train, seed=0)
    forms: tuple[TaskType, ...] = ("SEQ_CLS", "CAUSAL_LM")
    form = known_form(study.task)
    if form is not None:
        return meta_model(trial, *form)
    for task_type in forms[:-1]:
        try:
            return meta_model(trial, task_type, 2)
        except ModelError:
            continue
    return meta_model(trial, forms[-1], 2)


def design_trials(game: Game, others: Sequence[TrialConfig] = ()) -> list[TrialConfig] | SampledCoalitions:
    """What a study of this game trains: a fixed list, or coalitions that are proposed until they are enough.

    Args:
        others: trials of the study that are no coalitions, such as controls.
    """
    design = game.design
    if design.game == "reliance":
        return [*game.trials([game.everyone]), *others]
    if design.game == "one_run":
        return [*game.trials(retrained_coalitions(game)), *others]
    return [*game.trials(game.coalitions()), *others] if game.is_exact else SampledCoalitions(game, others)


def game_plan(game: Game) -> dict[str, Any]:
    """What ``plan`` says of the game beside its trials; strict JSON."""
    design, num_players = game.design, len(game.players)
    many = f"{1 << num_players:,} coalitions of {num_players} players"
    sampled = f"of {many} at most {game.most_coalitions:,}, until no interval is wider than {design.width:g} of the whole"
    valued = f"all {many}" if game.is_exact else sampled
    how = {
        "usefulness": f"each coalition is trained: {valued}",
        "reliance": f"one adapter a seed is trained, and coalitions are read off by masking: {valued}",
        "one_run": f"one training of {design.length:g} times the steps a seed, and coalitions are read off by masking: "
        f"{valued}; the trials are the coalitions that it is held against",
    }
    return {
        "game": design.game,
        "players": {player: list(targets) for player, targets in game.players.items()},
        "num_coalitions": game.most_coalitions,
        "exact": game.is_exact,
        "how": how[design.game],
    }


def retrained_coalitions(game: Game) -> list[Coalition]:
    """What a one-run map is held against: none, all, then others and their complements, all sizes equally likely."""
    players = list(game.players)
    most = min(game.design.retrained, 2 ** len(players))
    generator = np.random.default_rng([SAMPLING_SEED, len(players)])
    chosen: dict[Coalition, None] = dict.fromkeys([frozenset(), game.everyone])
    while len(chosen) < most:
        size = int(generator.integers(1, max(2, len(players))))
        members = frozenset(players[index] for index in generator.permutation(len(players))[:size])
        chosen |= dict.fromkeys([members, game.everyone - members])
    return list(chosen)[:most]


def attribution_of(game: Game, metric: str, worths: Mapping[Coalition, Sequence[float]]) -> Attribution:
    """Shapley values from the coalitions that were valued, one worth for each seed."""
    value = attribute if len(worths) == 2 ** len(game.players) else estimate
    return value(list(game.players), worths, higher_is_better=HIGHER_IS_BETTER[metric])


def is_settled(game: Game, worths: Mapping[str, Mapping[Coalition, Sequence[float]]]) -> bool:
    """Whether the intervals are narrow enough: of every metric that the design names, or else of ``eval_loss``."""
    for metric in _deciding(game):
        valued = worths.get(metric, {})
        if frozenset() not in valued or game.everyone not in valued:
            return False
        try:
            attribution = attribution_of(game, metric, valued)
        except RunError:
            return False
        if not done(attribution, game.design.width):
            return False
    return True


def _deciding(game: Game) -> list[str]:
    return game.design.values or ["eval_loss"]


class SampledCoalitions:
    """Proposes coalitions to retrain, a cohort at a time, until the intervals are narrow or there are enough.

    A function of the trials in the store, so that a study that goes on proposes what it would have proposed.

    Args:
        others: trials of the study that are no coalitions; they are run along with the first.
    """

    def __init__(self, game: Game, others: Sequence[TrialConfig] = ()) -> None:
        self.game = game
        self.others = tuple(others)

    def foreseen(self) -> list[TrialConfig]:
        """The smallest and the largest of what may be proposed."""
        return [*self.game.trials([frozenset(), self.game.everyone]), *self.others]

    def propose(self, rows: Sequence[TrialRow]) -> list[TrialConfig]:
        """The trials to run next; none where the study is complete, or lacks a metric that its end depends on."""
        game = self.game
        states: dict[Coalition, list[str]] = {}
        ended = {row.trial for row in rows if has_ended(row)}
        for row in rows:
            coalition = game.coalition_of(row.config)
            if coalition is not None:
                states.setdefault(coalition, []).append(row.trial)
        open_ones = [coalition for coalition, trials in states.items() if not ended.issuperset(trials)]
        if open_ones:
            return [*game.trials(open_ones), *(trial for trial in self.others if trial.trial not in ended)]
        worths = self._worths(rows)
        if worths and any(metric not in worths for metric in _deciding(game)):
            return []  # no interval of it will ever be narrow
        if len(states) >= game.most_coalitions or is_settled(game, worths):
            return []
        fresh = (coalition for coalition in coalitions_of(list(game.players), SAMPLING_SEED) if coalition not in states)
        proposed = game.trials(islice(fresh, min(_PROPOSED, game.most_coalitions - len(states))))
        return proposed if states else [*proposed, *self.others]

    def _worths(self, rows: Sequence[TrialRow]) -> dict[str, dict[Coalition, list[float]]]:
        return {
            metric: {coalition: in_order(by_seed, self.game.study.seeds) for coalition, by_seed in by_coalition.items()}
            for metric, by_coalition in self.game.worths(rows).items()
        }


def in_order(by_seed: Mapping[int, float], seeds: Sequence[int]) -> list[float]:
    """One worth for each seed, NaN where there is none."""
    return [by_seed.get(seed, float("nan")) for seed in seeds]
