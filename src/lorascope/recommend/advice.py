"""The recommendation: rules of thumb, own evidence in their place wherever there is some, and what is left unknown.

Knows rules, studies' evidence and how near they are. Does not know files, models or costs. Floor: ``recommend``.

Two rules say how far evidence reaches. A study of the same task gives its whole configuration, for that is what was measured;
of another task of the same kind only the keys that it compared count. Studies are asked in the order of `closeness.ORDER`, and
within a place the surer, larger and nearer in size goes first; once a study of the same task has given the configuration, only
studies of the same place may fill in what it did not compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lorascope.config import ALL_LINEAR, AdapterConfig, BaseModelConfig, TrainConfig
from lorascope.recommend.closeness import (
    ORDER,
    OTHER_SIZE,
    SAME_MODEL,
    SAME_SHAPE,
    SAME_TASK,
    TOO_FAR,
    ModelFacts,
    TaskFacts,
    closeness,
    size_distance,
)
from lorascope.recommend.evidence import GROUPS, Chosen, Relation, StudyEvidence, about, against, choose, varied
from lorascope.recommend.rules import GOAL_GROUPS, OVERFITS, Choice, Goal, by_rule, other_targets, places, shown, stepped

NO_EVIDENCE = "a rule of thumb, no evidence of yours"
# How sure a study's choice is, the surest first, in words.
STRENGTHS = {
    "told apart": "it tells some of what it compared apart",
    "not distinguishable": "it tells nothing apart: its best may be luck",
    "map": "read by masking, not retrained",
    "one seed": "one seed: its best may be luck",
}
# Where nothing of one's own is known of these, the answer could be another one; in the order in which they are worth asking.
QUESTIONS = ("learning_rate", "rank", "targets", "lora_dropout", "bias")
# What no rule speaks of is the study file's own default.
_DEFAULTS: dict[str, Any] = {
    "use_rslora": AdapterConfig.model_fields["use_rslora"].default,
    **{name: TrainConfig.model_fields[name].default for name in TrainConfig.model_fields},
    **{name: BaseModelConfig.model_fields[name].default for name in ("dtype", "quantization")},
}


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        roles: of the model's projections; empty for a family without a table.
        memory_bytes: that there is, by the user or the machine; None where that does not matter.
    """

    task: TaskFacts
    model: ModelFacts
    goal: Goal = "default"
    memory_bytes: int | None = None
    roles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weighed:
    """A study, how near it is, what it chose, and what became of that."""

    study: StudyEvidence
    place: int | None
    chosen: Chosen | None
    use: str

    @property
    def nearness(self) -> str:
        """In words."""
        return "another kind of task" if self.place is None else ORDER[self.place]


@dataclass(frozen=True)
class Advice:
    """The answer.

    Attributes:
        choices: by key of ``adapter``, ``train`` and ``base``.
        basis: what it rests on, in a line.
        weighed: every study that was read, nearest first.
        recipe: the study that gave the whole configuration, or None.
        open_questions: groups of keys that no study of this task and model has compared, with values that would tell.
        notes: what else has to be known.
    """

    choices: Mapping[str, Choice]
    basis: str
    weighed: tuple[Weighed, ...] = ()
    recipe: Weighed | None = None
    open_questions: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def advise(request: Request, studies: Sequence[StudyEvidence]) -> Advice:
    """The configuration to begin with, a reason for every key, and what would change it."""
    choices = {
        key: Choice(value, "default", "the study file's default; no rule speaks of it, and no study of yours")
        for key, value in _DEFAULTS.items()
    }
    # Who asks for better is not held to less.
    plain = by_rule(request.task.kind, request.roles, request.memory_bytes if request.goal != "better" else None)
    weighed = [_weigh(request, study) for study in studies]
    weighed.sort(key=lambda one: _order(request, one))
    usable = [one for one in weighed if one.chosen is not None and one.place is not None and one.place != TOO_FAR]
    recipe = usable[0] if usable and usable[0].place in SAME_TASK else None
    asked = [one for one in usable if recipe is None or one.place == recipe.place]
    before = {**choices, **plain}
    taken, used = _taken(request, before, recipe, asked)
    current = {**before, **taken}
    held = _held(request, current, [one for one in asked if id(one.study) in used])
    told = _goal_notes(request, current, held)
    current |= stepped(current, request.roles, request.goal, held)
    weighed = [replace(one, use=used.get(id(one.study), one.use)) for one in weighed]
    notes = [*_model_notes(request), *told, *_transfer_notes(recipe)]
    if recipe is None:
        rates = {one.chosen.tried.config["learning_rate"] for one in asked if one.chosen is not None}
        if rates and current["learning_rate"].source == "default":
            listed = ", ".join(f"{rate:g}" for rate in sorted(rates))
            notes.append(f"your studies nearest to this trained with learning rate {listed} and compared no other")
    for one in asked:
        if id(one.study) in used and one.chosen is not None:
            notes += [f"{one.study.directory}: {note}" for note in one.chosen.notes]
    sources = {choice.study for choice in current.values() if choice.source == "evidence"} - {None}
    if recipe is not None and len(sources) > 1:
        notes.append("the values of several studies were not measured together; a run of this study measures that")
    elif recipe is not None and any(current[key] is not before.get(key) and current[key].source == "rule" for key in current):
        notes.append("the goal's steps away from the measured configuration were not measured")
    unknown = _open(request, current, usable)
    return Advice(current, _basis(usable, used), tuple(weighed), recipe, unknown, tuple(notes))


def _weigh(request: Request, study: StudyEvidence) -> Weighed:
    place = closeness(request.task, request.model, study.task, study.model)
    if place is None:
        return Weighed(study, None, None, "not used: another kind of task")
    chosen = choose(study, request.goal)
    if isinstance(chosen, str):
        return Weighed(study, place, None, f"not used: {chosen}")
    if place == TOO_FAR:
        return Weighed(study, place, chosen, "not used: too far, another task and another family")
    return Weighed(study, place, chosen, "not used: a nearer study says it")


def _order(request: Request, one: Weighed) -> tuple[float, ...]:
    place = len(ORDER) if one.place is None else one.place
    if one.chosen is None:
        return (place, len(STRENGTHS), 0.0, 0.0, 0.0)
    seeds = len(one.chosen.tried.scores)
    # Sizes are known with the studies' own adapters, so that equal models differ a little.
    distance = 0.0 if one.place in SAME_SHAPE else round(size_distance(request.model, one.study.model), 1)
    return (place, list(STRENGTHS).index(one.chosen.strength), distance, -seeds, -len(one.study.tried))


def _taken(
    request: Request, before: Mapping[str, Choice], recipe: Weighed | None, asked: Sequence[Weighed]
) -> tuple[dict[str, Choice], dict[int, str]]:
    """What evidence puts in the place of the rules, and by study what was used of it."""
    taken: dict[str, Choice] = {}
    used: dict[int, str] = {}
    decided: set[str] = set()
    if recipe is not None:
        for group, keys in GROUPS.items():
            if group == "precision" and recipe.place not in SAME_MODEL:
                continue
            taken |= _of_group(request, before, recipe, group, keys, compared=group in varied(recipe.study))
        decided |= set(varied(recipe.study))
        used[id(recipe.study)] = "used: its whole configuration"
    for one in asked:
        if one is recipe:
            continue
        filled, agreed = [], []
        for group in varied(one.study):
            if group in decided or (group == "precision" and one.place not in SAME_MODEL):
                continue
            now = {**before, **taken}
            if recipe is not None and not _outdone(one, group, now):
                taken |= _confirmed(one, group, now)
                agreed.append(group)
            elif values := _of_group(request, now, one, group, GROUPS[group], compared=True):
                taken |= values
                filled.append(group)
            decided.update((*filled, *agreed))
        kinds = {"used": filled, "changes nothing": agreed}
        said = [f"{what}: {', '.join(name.replace('_', ' ') for name in names)}" for what, names in kinds.items() if names]
        if said:
            used[id(one.study)] = "; ".join(said)
    return taken, used


def _outdone(one: Weighed, group: str, now: Mapping[str, Choice]) -> bool:
    """Whether a study says by a verdict that what was measured elsewhere is worse than what it chose."""
    relation = _relation(one, group, now)
    return relation is not None and relation.verdict == "worse"


def _relation(one: Weighed, group: str, now: Mapping[str, Choice]) -> Relation | None:
    assert one.chosen is not None
    return against(one.study, one.chosen.tried, group, {key: now[key].value for key in GROUPS[group]})


def _confirmed(one: Weighed, group: str, now: Mapping[str, Choice]) -> dict[str, Choice]:
    """A measured group that another study does not change, with what that study says of it."""
    assert one.chosen is not None
    text, trials = about(one.study, one.chosen.tried, group)
    key, config = GROUPS[group][0], one.chosen.tried.config
    if all(_same(config.get(each), now[each].value) for each in GROUPS[group]):
        also = f"your study {one.study.directory} has it too: {text}"
    elif _relation(one, group, now) is not None:
        also = f"kept: your study {one.study.directory} has {key} {shown(config[key])} and does not tell it apart: {text}"
    else:
        also = f"kept: your study {one.study.directory} has {key} {shown(config[key])}, but did not try this beside it: {text}"
    return {
        each: replace(now[each], why=f"{now[each].why}; {also}", trials=(*now[each].trials, *trials)) for each in GROUPS[group]
    }


def _of_group(
    request: Request, before: Mapping[str, Choice], one: Weighed, group: str, keys: Sequence[str], *, compared: bool
) -> dict[str, Choice]:
    """One group's keys as a study has them, with the reason."""
    assert one.chosen is not None
    assert one.place is not None
    config = one.chosen.tried.config
    if group == "targets" and not _transfers(request, one):
        return {}
    place = f"{one.study.directory} ({ORDER[one.place]})"
    if compared:
        text, trials = about(one.study, one.chosen.tried, group)
        if group == "targets" and one.study.shapley:
            text, trials = one.chosen.why, (one.chosen.tried.name,)
        why = f"your study {place}, configuration {one.chosen.tried.name}: {text}"
    else:
        trials = (one.chosen.tried.name,)
        first = keys[0]
        other = before[first]
        differs = other.source == "rule" and not _same(other.value, config.get(first, other.value))
        why = f"as in your study {place}, where nothing else was tried"
        why += f"; not compared with the rule of thumb, {shown(other.value)}" if differs else ""
    return {key: Choice(config[key], "evidence", why, one.study.directory, trials) for key in keys if key in config}


def _transfers(request: Request, one: Weighed) -> bool:
    """Whether the targets mean something on this model: roles that it has, or any names where it has the same shape."""
    assert one.chosen is not None
    targets = one.chosen.tried.config["targets"]
    return one.place in SAME_SHAPE or targets == ALL_LINEAR or set(targets) <= set(request.roles)


def _held(request: Request, current: Mapping[str, Choice], asked: Sequence[Weighed]) -> dict[str, str]:
    """Groups in which a study saw what becomes of what the goal would step to, and where: then what it found stands."""
    up = request.goal == "better"
    held: dict[str, str] = {}
    rank, targets = current["r"].value, places(current["targets"].value, request.roles)
    for one in asked:
        if not up and one.chosen is not None and one.chosen.moved:
            held |= dict.fromkeys(("rank", "targets"), f"your study {one.study.directory} has a cheaper one, which is taken")
        for tried in one.study.tried:
            if not tried.is_adapter or not tried.has_answered:
                continue
            other = places(tried.config["targets"], request.roles)
            beyond = {
                "rank": tried.config["r"] > rank if up else tried.config["r"] < rank,
                "targets": other > targets if up else other < targets,
                "lora_dropout": tried.config["lora_dropout"] >= OVERFITS.values["lora_dropout"],
            }
            for group in (group for group, holds in beyond.items() if holds):
                value = shown(tried.config[GROUPS[group][0]])
                held.setdefault(group, f"your study {one.study.directory} tried {value}, and what it found stands")
    return held


def _goal_notes(request: Request, current: Mapping[str, Choice], held: Mapping[str, str]) -> list[str]:
    """What the goal does not change, and why."""
    steps = stepped(current, request.roles, request.goal)
    notes = []
    for group, key in GOAL_GROUPS[request.goal].items():
        if key not in steps:
            notes.append(f"goal {request.goal} leaves {key} {shown(current[key].value)}: there is no step further")
        elif group in held:
            notes.append(f"goal {request.goal} leaves {key} {shown(current[key].value)}: {held[group]}")
    return notes


def _transfer_notes(recipe: Weighed | None) -> list[str]:
    """What a whole configuration of another model leaves open."""
    if recipe is None or recipe.place in SAME_SHAPE or recipe.chosen is None:
        return []
    other = "another size of the model's family" if recipe.place == OTHER_SIZE else "another family of models"
    rate = f"{recipe.chosen.tried.config['learning_rate']:g}"
    return [
        f"{recipe.study.directory} was measured on {other} ({recipe.study.model.reference}): its values, learning rate {rate} "
        "before all, were not tried on one of this shape"
    ]


def _basis(usable: Sequence[Weighed], used: Mapping[int, str]) -> str:
    parts = []
    for one in usable:
        if not used.get(id(one.study), "").startswith("used"):
            continue
        assert one.chosen is not None
        parts.append(f"{one.study.directory} ({one.nearness}; {STRENGTHS[one.chosen.strength]})")
    return f"own evidence: {', '.join(parts)}" if parts else NO_EVIDENCE


def _open(request: Request, choices: Mapping[str, Choice], usable: Sequence[Weighed]) -> dict[str, tuple[Any, ...]]:
    """What no study of this task and a model of this shape compared: the value now, and those that could be better."""
    known = {group for one in usable if one.place in SAME_TASK and one.place in SAME_SHAPE for group in varied(one.study)}
    found: dict[str, tuple[Any, ...]] = {}
    for group in QUESTIONS:
        if group in known:
            continue
        values = _alternatives(request, choices, group)
        if len(values) > 1:
            found[group] = values
    return found


def _alternatives(request: Request, choices: Mapping[str, Choice], group: str) -> tuple[Any, ...]:
    if group == "learning_rate":
        rate = choices["learning_rate"].value
        return tuple(float(f"{value:.1e}") for value in (rate / 3, rate, rate * 3))
    if group == "rank":
        rank = choices["r"].value
        return tuple(dict.fromkeys((max(1, rank // 2), rank, 2 * rank)))
    if group == "targets":
        now = choices["targets"].value
        around = [other_targets(now, request.roles, up=False), now, other_targets(now, request.roles, up=True)]
        return tuple(value for value in around if value is not None)
    now = choices[group].value
    plain = by_rule(request.task.kind, request.roles, None)[group].value
    others = (0.0, 0.1) if group == "lora_dropout" else ("none", "lora_only")
    return tuple(dict.fromkeys((now, plain, *others)))


def _model_notes(request: Request) -> list[str]:
    if request.roles:
        return []
    return ["the roles of this model's family are not known: targets are all of its linear layers, or raw names of yours"]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return sorted(one) == sorted(other)
    return bool(one == other)
