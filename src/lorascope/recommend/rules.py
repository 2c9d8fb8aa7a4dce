"""The rules of thumb: what to begin with where nothing was measured, by kind of task, memory and what one is after.

Knows the tables below and roles of projections. Does not know studies, models on disk or costs. Floor: ``recommend``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lorascope.config import ALL_LINEAR

Kind = Literal["classification", "generation", "question answering"]
Goal = Literal["default", "faster", "better", "overfits"]
Source = Literal["rule", "evidence", "memory", "budget", "data", "model", "default"]

KINDS: dict[str, Kind] = {
    "sst2": "classification",
    "mrpc": "classification",
    "rte": "classification",
    "sick": "classification",
    "dialogue_nli": "classification",
    "squad": "question answering",
    "personachat": "generation",
    "teacher_student": "generation",
}
# From few targets to many: a step down is faster, a step up may be better. Roles, where the model's family has such.
LADDER: dict[str, tuple[str, ...]] = {
    "query only": ("query",),
    "query and value": ("query", "value"),
    "all attention projections": (
        "query", "key", "value", "output", "cross_query", "cross_key", "cross_value", "cross_output",
    ),
    "attention and MLP": (),
}  # fmt: skip
WHOLE = "attention and MLP"
LITTLE_MEMORY_BYTES = 8 * 10**9


@dataclass(frozen=True)
class Choice:
    """The value of a key, and why.

    Attributes:
        study: the directory of the study that it rests on, where it rests on one.
        trials: that study's configurations which say so, by name.
    """

    value: Any
    source: Source
    why: str
    study: str | None = None
    trials: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A rule of thumb: what it is called, and the values that it gives; ``targets`` as a step of `LADDER`."""

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)


START = Rule(
    "start here",
    {"r": 16, "lora_alpha": 32.0, "lora_dropout": 0.1, "targets": "all attention projections", "bias": "none"},
)
BY_KIND: dict[Kind, Rule] = {
    "classification": Rule("classification", START.values),
    "generation": Rule("generation", {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.05}),
    "question answering": Rule(
        "question answering",
        {"r": 32, "lora_alpha": 64.0, "lora_dropout": 0.1, "targets": WHOLE, "bias": "lora_only"},
    ),
}
LITTLE_MEMORY = Rule(
    "under 8 GB", {"r": 4, "lora_alpha": 8.0, "lora_dropout": 0.05, "targets": "query only", "quantization": "nf4"}
)
OVERFITS = Rule("against overfitting", {"lora_dropout": 0.3})
# Of rank and targets, both at once: down when good but slow, up when poor.
FASTER = Rule("good but slow: lower the rank and target less")
BETTER = Rule("poor: raise the rank and target more")
# What each goal would step, by group and the key that shows it.
GOAL_GROUPS: dict[Goal, dict[str, str]] = {
    "default": {},
    "faster": {"rank": "r", "targets": "targets"},
    "better": {"rank": "r", "targets": "targets"},
    "overfits": {"lora_dropout": "lora_dropout"},
}


def by_rule(kind: Kind, roles: Sequence[str], memory_bytes: int | None) -> dict[str, Choice]:
    """What the rules give for every key they speak of, before any goal.

    Args:
        roles: of the model; none of a family without a table, for which only ``all-linear`` can be said.
        memory_bytes: that there is; None leaves the rule for little memory out.
    """
    rules = [START, BY_KIND[kind]]
    if memory_bytes is not None and memory_bytes < LITTLE_MEMORY_BYTES:
        rules.append(LITTLE_MEMORY)
    chosen: dict[str, Choice] = {}
    for rule in rules:
        for key, value in rule.values.items():
            why = f"rule of thumb, {rule.name}: {said(rule)[key]}"
            if key == "targets":
                value, more = targets_of(value, roles)
                why += more
            chosen[key] = Choice(value, "rule", why)
    return chosen


def said(rule: Rule) -> dict[str, str]:
    """A rule's values in words."""
    words = {"lora_alpha": lambda value: f"alpha {value:g}", "lora_dropout": lambda value: f"dropout {value:g}"}
    plain = {"r": "r {}", "targets": "{}", "bias": "bias {}", "quantization": "4 bits ({})"}
    return {key: words[key](value) if key in words else plain[key].format(value) for key, value in rule.values.items()}


def targets_of(step: str, roles: Sequence[str]) -> tuple[list[str] | str, str]:
    """A step of the ladder in this model's roles, and what has to be said of it."""
    if step == WHOLE:
        return ALL_LINEAR, ""
    found = [role for role in roles if role in LADDER[step]]
    if not found:
        return ALL_LINEAR, "; but the roles of this model's family are not known, so all of its linear layers"
    return found, ""


def stepped(chosen: Mapping[str, Choice], roles: Sequence[str], goal: Goal, held: Collection[str] = ()) -> dict[str, Choice]:
    """The keys that a goal moves, from where they are.

    Args:
        held: what stays as it is (``rank``, ``targets``, ``lora_dropout``), for what the goal would try was tried.
    """
    moved: dict[str, Choice] = {}
    if goal == "overfits":
        if "lora_dropout" not in held and chosen["lora_dropout"].value < OVERFITS.values["lora_dropout"]:
            moved["lora_dropout"] = Choice(
                OVERFITS.values["lora_dropout"], "rule",
                f"rule of thumb, {OVERFITS.name}: dropout 0.3, in the place of {chosen['lora_dropout'].value:g}",
            )  # fmt: skip
        return moved
    if goal == "default":
        return moved
    rule = FASTER if goal == "faster" else BETTER
    if "rank" not in held:
        moved |= _other_rank(chosen, rule)
    if "targets" not in held:
        targets = other_targets(chosen["targets"].value, roles, up=goal == "better")
        if targets is not None:
            text = f"rule of thumb, {rule.name}; from {shown(chosen['targets'].value)}"
            moved["targets"] = Choice(targets, "rule", text)
    return moved


def _other_rank(chosen: Mapping[str, Choice], rule: Rule) -> dict[str, Choice]:
    """Half or twice the rank, with alpha in proportion."""
    rank, alpha = chosen["r"].value, chosen["lora_alpha"].value
    other = max(1, rank // 2) if rule is FASTER else 2 * rank
    if other == rank:
        return {}
    text = f"rule of thumb, {rule.name}; from r {rank}, alpha in proportion"
    moved = {"r": Choice(other, "rule", text), "lora_alpha": Choice(alpha * other / rank, "rule", text)}
    return moved | ({"use_rslora": replace(chosen["use_rslora"], why=text)} if "use_rslora" in chosen else {})


def other_targets(targets: list[str] | str, roles: Sequence[str], *, up: bool) -> list[str] | str | None:
    """The next step of the ladder that holds these targets (up), or is a part of them (down); None where there is none."""
    whole = set(roles)
    current = whole if targets == ALL_LINEAR else set(targets)
    steps: list[list[str] | str] = []
    for name in LADDER:
        step, _ = targets_of(name, roles)
        if step not in steps:
            steps.append(step)
    sets = [(step, whole if step == ALL_LINEAR else set(step)) for step in steps]
    if not roles or not current <= whole:  # raw names and parts of layers: only all of it is known to hold them
        return ALL_LINEAR if up and targets != ALL_LINEAR else None
    if up:
        return next((step for step, its in sets if its > current), None)
    return next((step for step, its in reversed(sets) if its < current), None)


def places(targets: Sequence[str] | str, roles: Sequence[str]) -> set[str]:
    """Targets as a set; ``all-linear`` holds every other one."""
    return {*roles, ALL_LINEAR} if targets == ALL_LINEAR else set(targets)


def shown(value: Any) -> str:
    """A value in a sentence."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "no targets"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
