"""What one of the user's studies says: which of its configurations to take, and how sure that is.

Reads the document that ``lorascope results --json`` prints. Verdicts, coalitions and searches' best are taken from it as they
are; nothing is tested anew. Does not know rules of thumb, nor other studies. Floor: ``recommend``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from lorascope.config import configuration_of
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.recommend.closeness import ModelFacts, TaskFacts
from lorascope.recommend.rules import Goal, shown

# Keys that make sense only together; the evidence about one is evidence about all of its group.
GROUPS: dict[str, tuple[str, ...]] = {
    "rank": ("r", "lora_alpha", "use_rslora"),
    "targets": ("targets",),
    "lora_dropout": ("lora_dropout",),
    "bias": ("bias",),
    "learning_rate": ("learning_rate", "schedule", "warmup_ratio"),
    "length": ("epochs", "max_steps"),
    "batch_size": ("batch_size",),
    "regularisation": ("weight_decay", "max_grad_norm", "base_dropout"),
    "precision": ("dtype", "quantization"),
}
# A smaller configuration takes the best one's place where it is surely no farther below: not distinguishable is not equal.
MARGIN_PERCENT = 3.0
_NEIGHBOURS_SHOWN = 3


@dataclass(frozen=True)
class Tried:
    """One configuration of a study: what became of its trials."""

    name: str
    config: Mapping[str, Any]
    counts: Mapping[str, int]
    scores: Mapping[int, float]
    trainable_params: int | None = None
    epoch_seconds: float | None = None

    @property
    def mean(self) -> float:
        """Over the seeds that have a score."""
        return mean(self.scores.values())

    @property
    def is_whole(self) -> bool:
        """Every seed is done and has a score."""
        return 0 < len(self.scores) == sum(self.counts.values())

    @property
    def has_answered(self) -> bool:
        """It was seen what becomes of it: a score with every seed, or that it diverges or is not worth going on with."""
        return self.is_whole or any(self.counts.get(status) for status in ("diverged", "pruned"))

    @property
    def is_adapter(self) -> bool:
        """It trains an adapter: no control, no adapter from disk, and not the empty coalition."""
        return self.config.get("method", "lora") == "lora" and self.config.get("path") is None and bool(self.config["targets"])


@dataclass(frozen=True)
class StudyEvidence:
    """One study, as far as it was run on one model.

    Attributes:
        task_section: the study file's, as plain values.
        rows: the comparisons, with ``compare``'s verdicts.
        correction: over how many of them p-values are corrected.
    """

    name: str
    directory: str
    task: TaskFacts
    model: ModelFacts
    task_section: Mapping[str, Any]
    design: str
    metric: str | None
    tried: tuple[Tried, ...]
    rows: tuple[Mapping[str, Any], ...] = ()
    correction: str = ""
    shapley: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)

    @property
    def higher_is_better(self) -> bool:
        """Of its metric."""
        return self.metric is None or HIGHER_IS_BETTER[self.metric]

    @property
    def num_trials(self) -> int:
        """All there are, whatever became of them."""
        return sum(self.counts().values())

    def counts(self) -> dict[str, int]:
        """Trials by what became of them."""
        return dict(sum((Counter(one.counts) for one in self.tried), Counter()))

    def relation(self, one: Tried, other: Tried) -> Relation | None:
        """What the comparisons say of ``other`` against ``one``; None where they were not compared."""
        for row in self.rows:
            if row["metric"] != self.metric:
                continue
            if (row["configuration"], row["against"]) == (other.name, one.name):
                return Relation(row["verdict"], row["difference"], row["low"], row["high"], row["seeds"])
            if (row["configuration"], row["against"]) == (one.name, other.name):
                flipped = {"better": "worse", "worse": "better"}.get(row["verdict"], row["verdict"])
                low, high = _minus(row["high"]), _minus(row["low"])
                return Relation(flipped, _minus(row["difference"]), low, high, row["seeds"])
        return None


@dataclass(frozen=True)
class Relation:
    """One configuration against another, as ``compare`` has it."""

    verdict: str
    difference: float | None
    low: float | None
    high: float | None
    seeds: int

    def text(self) -> str:
        """``worse (-0.012, -0.020 … -0.004, 3 seeds)``."""
        if self.difference is None:
            return self.verdict
        ends = "" if self.low is None or self.high is None else f", {self.low:+.4f} … {self.high:+.4f}"
        return f"{self.verdict} ({self.difference:+.4f}{ends}, {self.seeds} seed{'' if self.seeds == 1 else 's'})"


@dataclass(frozen=True)
class Chosen:
    """The configuration that a study speaks for.

    Attributes:
        why: in a sentence, with scores and what they rest on.
        strength: ``told apart`` (a verdict says that others are worse, or a game's ranking that players differ), ``not
            distinguishable`` (all others could be as good), ``one seed`` (luck is not told), ``map`` (read by masking, not
            retrained).
        moved: it is another one than the best, for what it costs.
        rivals: finished configurations that are not worse by any verdict.
        notes: what else has to be said: that a head alone is as good, what diverged.
    """

    tried: Tried
    why: str
    strength: str
    moved: bool = False
    rivals: tuple[Tried, ...] = ()
    notes: tuple[str, ...] = ()


def read_evidence(
    document: Mapping[str, Any],
    *,
    directory: str,
    design: str,
    task: TaskFacts,
    model: ModelFacts,
    section: Mapping[str, Any],
) -> StudyEvidence:
    """What a results document holds, all of whose trials are on one model.

    Args:
        document: of ``lorascope results --json``.
        section: the study file's ``task``.
    """
    compared = document.get("comparisons") or {}
    metric = compared.get("metric")
    members: dict[str, list[Mapping[str, Any]]] = {}
    for trial in document["trials"]:
        members.setdefault(configuration_of(trial["trial"]), []).append(trial)
    return StudyEvidence(
        name=document["study"],
        directory=directory,
        task=task,
        model=model,
        task_section=section,
        design=design,
        metric=metric,
        tried=tuple(_tried(name, trials, metric) for name, trials in members.items()),
        rows=tuple(compared.get("rows", ())),
        correction=compared.get("correction", ""),
        shapley=document.get("shapley") or {},
        search=document.get("search") or {},
    )


def _tried(name: str, trials: Sequence[Mapping[str, Any]], metric: str | None) -> Tried:
    scores = {trial["seed"]: trial["metrics"].get(metric) for trial in trials if trial["status"] == "done"}
    params = [trial["trainable_params"] for trial in trials if trial["trainable_params"] is not None]
    seconds = [trial[_SECONDS] for trial in trials if trial.get(_SECONDS) is not None]
    return Tried(
        name,
        trials[0]["config"],
        dict(Counter(trial["status"] for trial in trials)),
        {seed: score for seed, score in scores.items() if score is not None and math.isfinite(score)},
        params[0] if params else None,
        mean(seconds) if seconds else None,
    )


_SECONDS = "solo_train_seconds_per_epoch"


def choose(study: StudyEvidence, goal: Goal) -> Chosen | str:
    """The configuration to take from a study, or why there is none.

    Of a search its best one; of a Shapley study its recommended coalition, for ``better`` its best. Of other designs the one
    with the best mean, and unless ``better`` is asked for, of those that are not distinguishable from it and whose
    whole interval lies within `MARGIN_PERCENT` of it the one with the fewest parameters; for ``faster`` the one with the
    shortest epoch of those whose mean does.
    """
    candidates = [one for one in study.tried if one.is_adapter and one.is_whole]
    by_map = _coalition(study, goal) if study.shapley.get("game") == "one_run" else None
    if by_map is not None:
        return by_map
    if study.metric is None or not any(one.scores for one in study.tried):
        return "nothing in it has a score"
    if len(candidates) < 2:
        there = "one configuration" if candidates else "no configuration"
        return f"{there} of an adapter finished with every seed: nothing to choose from"
    leader = _leader(study, candidates)
    rivals = tuple(one for one in candidates if one is not leader and not _is_worse(study, leader, one))
    worse = len(candidates) - 1 - len(rivals)
    strength = "told apart" if worse else "not distinguishable"
    if len(leader.scores) < 2:
        strength = "one seed"
    notes = tuple(_notes(study, leader))
    coalition = _coalition(study, goal)
    if coalition is not None and coalition.tried.is_adapter:
        left = tuple(one for one in (leader, *rivals) if one.name != coalition.tried.name)
        ranked = "told apart" if len(leader.scores) > 1 and coalition.strength == "told apart" else strength
        return Chosen(coalition.tried, coalition.why, ranked, coalition.moved, left, notes)
    text = f"{_score_text(study, leader)}, the best of {len(candidates)} configurations"
    if study.search:
        text += f" that {study.search['sampler']} proposed"
    text += f"; {_standing(study, leader, worse, len(rivals))}"
    stays = goal == "better" or (goal != "faster" and (strength == "one seed" or bool(study.search)))
    smaller = leader if stays else _smaller(study, leader, rivals, goal)
    if smaller is leader:
        return Chosen(leader, text, strength, False, rivals, notes)
    relation = study.relation(leader, smaller)
    assert relation is not None
    what = "the shortest epoch" if goal == "faster" and smaller.epoch_seconds is not None else "the fewest parameters"
    within = "whose mean is" if goal == "faster" else "whose whole interval is"
    why = (
        f"{what} of those not told apart from the best {within} within {MARGIN_PERCENT:g} % of it: "
        f"{_score_text(study, smaller)}; against {leader.name}, {_score_text(study, leader)}: {relation.text()}"
    )
    return Chosen(smaller, why, strength, True, tuple(one for one in (leader, *rivals) if one is not smaller), notes)


def leader_of(study: StudyEvidence) -> str | None:
    """The configuration with the best mean, which others are to be compared with; None where none is finished."""
    candidates = [one for one in study.tried if one.is_adapter and one.is_whole and one.scores]
    return _leader(study, candidates).name if candidates else None


def _leader(study: StudyEvidence, candidates: Sequence[Tried]) -> Tried:
    best = study.search.get("best")
    of_search = next((one for one in candidates if one.name == best), None)
    if of_search is not None:
        return of_search
    sign = 1.0 if study.higher_is_better else -1.0
    return max(candidates, key=lambda one: (sign * one.mean, -(one.trainable_params or 0)))


def _is_worse(study: StudyEvidence, leader: Tried, other: Tried) -> bool:
    relation = study.relation(leader, other)
    return relation is not None and relation.verdict == "worse"


def _smaller(study: StudyEvidence, leader: Tried, rivals: Sequence[Tried], goal: Goal) -> Tried:
    margin = abs(leader.mean) * MARGIN_PERCENT / 100

    def takes_its_place(one: Tried) -> bool:
        relation = study.relation(leader, one)
        if relation is None:
            return False
        if goal == "faster":
            return relation.verdict in ("not distinguishable", "too few seeds") and abs(one.mean - leader.mean) <= margin
        worst = relation.low if study.higher_is_better else relation.high
        return relation.verdict == "not distinguishable" and worst is not None and abs(worst) <= margin

    def cost(one: Tried) -> tuple[float, float]:
        params = float(one.trainable_params or math.inf)
        if goal == "faster":
            return (math.inf if one.epoch_seconds is None else one.epoch_seconds), params
        return params, abs(one.mean - leader.mean)

    return min([leader, *(one for one in rivals if takes_its_place(one))], key=cost)


def _coalition(study: StudyEvidence, goal: Goal) -> Chosen | None:
    """What the study's game recommends: a coalition that was trained, or in one run a row of its map."""
    games = study.shapley.get("metrics", {})
    name = study.metric if study.metric in games else next(iter(games), None)
    recommended = games.get(name, {}).get("recommended") if name is not None else None
    if recommended is None:
        return None
    members = recommended["best"]["players"] if goal == "better" else recommended["players"]
    players = study.shapley["players"]
    targets = [target for player in members for target in players[player]]
    score = recommended["best"]["mean"] if goal == "better" else recommended["mean"]
    ranking = games[name]["verdict"]
    best = recommended["best"]
    text = f"the best coalition, {name} {score:.4f}" if goal == "better" else f"recommended coalition, {name} {score:.4f} ("
    if goal != "better":
        text += f"{' '.join(best['players'])} has the best, {best['mean']:.4f}): {recommended['why']}"
    text += f"; ranking of the players: {ranking}"
    trained = [one for one in study.tried if set(one.config["targets"]) == set(targets) and one.config.get("method") == "lora"]
    if study.shapley["game"] != "one_run":
        told = len(games[name].get("ranking", ())) > 1
        moved = members != best["players"]
        return Chosen(trained[0], text, "told apart" if told else "not distinguishable", moved) if trained else None
    like = next((one for one in study.tried if one.is_adapter), None)
    if like is None or not targets:
        return None
    by_map = Tried("map", {**like.config, "targets": targets}, {"done": 1}, {0: score})
    return Chosen(trained[0] if trained else by_map, text, "map")


def _score_text(study: StudyEvidence, one: Tried) -> str:
    seeds = len(one.scores)
    return f"{study.metric} {one.mean:.4f} over {seeds} seed{'' if seeds == 1 else 's'}"


def _standing(study: StudyEvidence, leader: Tried, worse: int, rivals: int) -> str:
    if len(leader.scores) < 2:
        return "one seed: the next could come out otherwise"
    return f"{worse} of the others are worse, {rivals} not distinguishable ({study.correction})"


def _notes(study: StudyEvidence, leader: Tried) -> list[str]:
    """What does not decide, and has to be known."""
    notes = []
    for one in study.tried:
        name = "a head alone" if one.config.get("method") == "head" else "no adapter at all"
        if one.is_adapter or one.config.get("method") == "full" or one.config.get("path") is not None or not one.scores:
            continue
        relation = study.relation(leader, one)
        if relation is not None and relation.verdict in ("better", "not distinguishable"):
            notes.append(f"{name} ({one.name}) is {relation.text()} from the best adapter: the adapter may not pay at all")
    for status in ("diverged", "failed", "pruned"):
        names = [one for one in study.tried if one.counts.get(status)]
        if names:
            listed = ", ".join(
                f"{one.name} ({_difference(leader, one)}) at {one.counts[status]} of {sum(one.counts.values())} seeds"
                for one in names[:_NEIGHBOURS_SHOWN]
            )
            more = f" and {len(names) - _NEIGHBOURS_SHOWN} more" if len(names) > _NEIGHBOURS_SHOWN else ""
            notes.append(f"{status}: {listed}{more}; never chosen")
    return notes


def varied(study: StudyEvidence) -> list[str]:
    """The groups of keys in which the study's adapters differ that finished: what did not compares nothing."""
    ours = [one for one in study.tried if one.config.get("method", "lora") == "lora" and one.config.get("path") is None]
    adapters = [one for one in ours if one.is_whole]
    if study.shapley.get("game") == "one_run":
        return ["targets"]
    return [name for name in GROUPS if len({_values(one, name) for one in adapters}) > 1]


def neighbours(study: StudyEvidence, chosen: Tried, group: str) -> list[Tried]:
    """Configurations that differ from the chosen one in this group alone."""
    others = [name for name in GROUPS if name != group]
    return [
        one
        for one in study.tried
        if one.config.get("method", "lora") == "lora"
        and one.config.get("path") is None
        and _values(one, group) != _values(chosen, group)
        and all(_values(one, name) == _values(chosen, name) for name in others)
    ]


def about(study: StudyEvidence, chosen: Tried, group: str) -> tuple[str, tuple[str, ...]]:
    """What the study says of one group's values, against its neighbours where it has such; and the configurations named."""
    near = neighbours(study, chosen, group)
    told = [(one, study.relation(chosen, one)) for one in near]
    order = {"worse": 0, "better": 1, "not distinguishable": 2}
    known = sorted(
        ((one, relation) for one, relation in told if relation is not None), key=lambda pair: order.get(pair[1].verdict, 3)
    )
    if not known:
        alone = "what differs in this alone was compared with the best only" if near else "no other one differs in this alone"
        return f"chosen with the whole configuration; {alone}", (chosen.name,)
    parts = [f"{_value_text(one, group, chosen)} is {relation.text()}" for one, relation in known[:_NEIGHBOURS_SHOWN]]
    left = len(known) - _NEIGHBOURS_SHOWN
    more = f"; {left} more" if left > 0 else ""
    names = tuple(one.name for one, _ in known[:_NEIGHBOURS_SHOWN])
    return f"{'; '.join(parts)}{more}", (chosen.name, *names)


def _values(one: Tried, group: str) -> str:
    values = [one.config.get(key) for key in GROUPS[group]]
    return repr([sorted(value) if isinstance(value, list) else value for value in values])


def against(study: StudyEvidence, chosen: Tried, group: str, values: Mapping[str, Any]) -> Relation | None:
    """What a study says of these values of a group against its chosen one's; None where it did not try just that."""
    wanted = Tried("", {**chosen.config, **{key: values[key] for key in GROUPS[group] if key in values}}, {}, {})
    like = next((one for one in neighbours(study, chosen, group) if _values(one, group) == _values(wanted, group)), None)
    return None if like is None else study.relation(chosen, like)


def _value_text(one: Tried, group: str, other: Tried) -> str:
    """A configuration's values of a group, as far as another one has others."""
    if group == "targets":
        return shown(one.config["targets"])
    differing = [key for key in GROUPS[group] if one.config.get(key) != other.config.get(key)]
    if "r" in differing and one.config["lora_alpha"] * other.config["r"] == other.config["lora_alpha"] * one.config["r"]:
        differing.remove("lora_alpha")  # in proportion
    return ", ".join(f"{key} {shown(one.config.get(key))}" for key in differing)


def _difference(one: Tried, other: Tried) -> str:
    """In what ``other`` differs, in its own values."""
    groups = [name for name in GROUPS if _values(one, name) != _values(other, name)]
    return ", ".join(_value_text(other, name, one) for name in groups) or "the same but for its base"


def _minus(value: float | None) -> float | None:
    return None if value is None else -value
