"""Which trials of a plan fit into a budget of time and memory, and why the others do not.

Knows prices of trials, not what a trial is. Floor: beside ``plan``.

The order is the design's, controls last. A configuration is taken with all of its seeds or not at all, for a mean over fewer
seeds would be compared with means over more; one that does not fit is dropped, and later, cheaper ones are still tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from lorascope.config import TrainConfig, configuration_of
from lorascope.store import TrialRow

# Where nothing was measured, trials of one cohort are taken to cost together what they cost one after the other.
ASSUMED_SPEEDUP = 1.0


@dataclass(frozen=True)
class Price:
    """What a trial takes alone; ``stacks`` is False where it cannot share a cohort, as full fine-tuning cannot."""

    trial: str
    configuration: str
    train_seconds: float | None
    memory_bytes: int
    stacks: bool


@dataclass(frozen=True)
class Selection:
    """What is kept and what is dropped, with reasons by trial; ``train_seconds`` is of what is kept, None if unknown."""

    kept: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    train_seconds: float | None = None


def select(
    prices: Sequence[Price],
    *,
    budget_seconds: float | None = None,
    memory_bytes: int | None = None,
    speedup: float = ASSUMED_SPEEDUP,
) -> Selection:
    """Take configurations in order as long as they fit; one whose time is not known is no reason to drop it.

    Args:
        budget_seconds: of training; evaluation is not priced.
        memory_bytes: that a trial may take alone.
        speedup: how much less time trials of one cohort take together than one after the other.
    """
    kept: list[str] = []
    dropped: dict[str, str] = {}
    spent, known = 0.0, True
    for members in _configurations(prices):
        seconds = _seconds(members, speedup)
        largest = max(one.memory_bytes for one in members)
        reason = None
        if memory_bytes is not None and largest > memory_bytes:
            reason = f"needs about {_gigabytes(largest)} of {_gigabytes(memory_bytes)}"
        elif budget_seconds is not None and seconds is not None and spent + seconds > budget_seconds:
            left = max(0.0, budget_seconds - spent)
            seeds = f"{len(members)} seeds" if len(members) > 1 else "its seed"
            reason = f"takes about {seconds:,.0f} s with {seeds}; {left:,.0f} s of the budget are left"
        if reason is not None:
            dropped.update(dict.fromkeys((one.trial for one in members), reason))
            continue
        kept += [one.trial for one in members]
        known = known and seconds is not None
        spent += seconds or 0.0
    return Selection(kept, dropped, spent if known else None)


def correct(plan: Sequence[dict[str, Any]], measured: Iterable[TrialRow], num_examples: int | None) -> str:
    """Put measured training times in the place of a plan's estimates, and scale the others as the measured ones turned out.

    Args:
        plan: rows with ``trial``, ``config`` and ``train_seconds``, which are changed.
        measured: trials of an earlier part of the study; figures of a configuration alone serve all of its seeds.
        num_examples: of the training split.

    Returns:
        Where the times come from, in words.
    """
    alone = {configuration_of(row.trial): row.solo_examples_per_second for row in measured if row.solo_examples_per_second}
    ratios: list[float] = []
    exact: dict[str, float] = {}
    for row in plan:
        rate = alone.get(configuration_of(row["trial"]))
        if rate is None or num_examples is None or row["train_seconds"] is None:
            continue
        train = TrainConfig.model_validate({name: row["config"][name] for name in TrainConfig.model_fields})
        epochs = train.num_steps(num_examples) / train.steps_per_epoch(num_examples)
        exact[row["trial"]] = epochs * num_examples / rate
        if row["train_seconds"] > 0:
            ratios.append(exact[row["trial"]] / row["train_seconds"])
    if not exact:
        return "estimated from the model's size and this machine's rate of products"
    factor = median(ratios) if ratios else 1.0
    for row in plan:
        if row["trial"] in exact:
            row["train_seconds"] = exact[row["trial"]]
        elif row["train_seconds"] is not None:
            row["train_seconds"] *= factor
    rest = len(plan) - len(exact)
    others = f", {rest} estimated and multiplied by {factor:.2f}, as those turned out" if rest else ""
    return f"{len(exact)} measured in an earlier run{others}"


def measured_speedup(rows: Iterable[TrialRow]) -> tuple[float, int] | None:
    """How much less time cohorts of several took than their trials one after the other, as each was measured alone.

    A cohort takes as long as the member that trains longest; one that was pruned counts with the examples it trained.

    Returns:
        The ratio over all such cohorts, and how many there were; None where there was none.
    """
    cohorts: dict[str, list[TrialRow]] = {}
    for row in rows:
        if row.cohort is not None and row.train_seconds and row.examples_per_second and row.solo_examples_per_second:
            cohorts.setdefault(row.cohort, []).append(row)
    several = [members for members in cohorts.values() if len(members) > 1]
    together = sum(max(row.train_seconds or 0.0 for row in members) for members in several)
    alone = sum(
        (row.train_seconds or 0.0) * (row.examples_per_second or 0.0) / (row.solo_examples_per_second or 1.0)
        for members in several
        for row in members
    )
    return (alone / together, len(several)) if together else None


def _configurations(prices: Sequence[Price]) -> Iterable[list[Price]]:
    found: dict[str, list[Price]] = {}
    for price in prices:
        found.setdefault(price.configuration, []).append(price)
    return found.values()


def _seconds(members: Sequence[Price], speedup: float) -> float | None:
    total = 0.0
    for one in members:
        if one.train_seconds is None:
            return None
        total += one.train_seconds / (speedup if one.stacks else 1.0)
    return total


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
