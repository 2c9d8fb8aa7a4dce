"""The studies whose results could change a recommendation, and what trials cost.

Knows advice and designs; costs come from whoever can plan. Does not know how they are estimated. Floor: ``recommend``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lorascope.config import DEFAULT_SEEDS, TrialConfig
from lorascope.errors import ModelError
from lorascope.recommend.advice import Advice
from lorascope.recommend.evidence import GROUPS
from lorascope.recommend.rules import Choice
from lorascope.recommend.study_file import as_study

if TYPE_CHECKING:
    from lorascope.store import TrialRow

_MORE_SEEDS = (*DEFAULT_SEEDS, 7, 99)
_MOST_RIVALS = 3
# Configurations of a measured study that say how far the estimates are off.
_MOST_MEASURED = 5


class Costs(Protocol):
    """What trials of a study take, by its data and base as far as they are here.

    Attributes:
        measured: trials of an earlier study, whose times correct the estimates.
    """

    measured: list[TrialRow]

    @property
    def num_examples(self) -> int | None:
        """Of the training split, where the data are at hand."""

    def roles(self, trial: TrialConfig) -> tuple[str, ...]:
        """The roles that the trial's base has."""

    def rows(self, trials: Sequence[TrialConfig]) -> tuple[list[dict[str, Any]], str]:
        """The plan's rows, and where their times come from."""


def priced_rows(costs: Costs, trials: Sequence[TrialConfig]) -> list[dict[str, Any]]:
    """The plan's rows of these trials; measured ones are planned along, so that what they took corrects the others."""
    from lorascope.compare import is_adapter

    measured = [row for row in costs.measured if row.solo_examples_per_second and is_adapter(row.config)]
    known = {row.configuration: TrialConfig.from_flat(row.config, row.seed) for row in measured}
    return costs.rows([*trials, *list(known.values())[:_MOST_MEASURED]])[0][: len(trials)]


def further_studies(
    advice: Advice, choices: Mapping[str, Choice], document: Mapping[str, Any], costs: Costs, budget_seconds: float | None
) -> list[dict[str, Any]]:
    """The studies whose results could change the answer: an ablation over what is not known, and more seeds for the rivals."""
    seeds = document["seeds"] if len(document["seeds"]) > 1 else list(DEFAULT_SEEDS)
    most_seconds = budget_seconds or float("inf")
    found = []
    over = _unknown(advice, choices)
    while over:
        priced = _priced(document, {"kind": "ablation", "over": over}, seeds, costs)
        too_long = priced["train_seconds"] is not None and priced["train_seconds"] > most_seconds
        if not too_long or len(over) == 1:
            what = f"no study of this task and a model of this shape compared {', '.join(over)}"
            found.append({"what": what, "over_budget": too_long, **priced})
            break
        over.popitem()
    others = _rivals(advice, choices)
    if others or not found:
        where = "" if advice.recipe is None else advice.recipe.study.directory
        told = f"not told apart from it in your study {where}: {', '.join(others)}"
        trials = [{}, *others.values()]
        priced = _priced(document, {"kind": "list", "trials": trials}, _MORE_SEEDS, costs)
        too_long = priced["train_seconds"] is not None and priced["train_seconds"] > most_seconds
        found.append({"what": told if others else "does it hold with fresh seeds?", "over_budget": too_long, **priced})
    return found


def _unknown(advice: Advice, choices: Mapping[str, Choice]) -> dict[str, list[Any]]:
    """By key, the other values of what no study compared."""
    asked = {_QUESTION_KEYS[group]: values for group, values in advice.open_questions.items()}
    others = {key: [value for value in values if value != choices[key].value] for key, values in asked.items()}
    return {key: values for key, values in others.items() if values}


def _rivals(advice: Advice, choices: Mapping[str, Choice]) -> dict[str, dict[str, Any]]:
    """Of configurations that could be as good, the best few, each as what it has other than the recommendation."""
    if advice.recipe is None or advice.recipe.chosen is None:
        return {}
    chosen, higher = advice.recipe.chosen, advice.recipe.study.higher_is_better
    ranked = sorted(chosen.rivals, key=lambda one: one.mean, reverse=higher)[:_MOST_RIVALS]
    keys = [key for group in GROUPS.values() for key in group if key in choices]
    others = {}
    for one in (chosen.tried, *ranked):
        overrides = {key: one.config[key] for key in keys if one.config.get(key, choices[key].value) != choices[key].value}
        if overrides:
            others[one.name] = overrides
    return others


_QUESTION_KEYS = {
    "learning_rate": "learning_rate",
    "rank": "r",
    "targets": "targets",
    "lora_dropout": "lora_dropout",
    "bias": "bias",
}


def _priced(document: Mapping[str, Any], design: dict[str, Any], seeds: Sequence[int], costs: Costs) -> dict[str, Any]:
    """A study with this design: its trials and their training time, one after the other."""
    from lorascope.design import expand

    study = as_study({**document, "design": design, "seeds": list(seeds)})
    try:
        rows = priced_rows(costs, expand(study))
    except ModelError:  # targets of a study on another model, among the rivals
        rows = []
    times = [row["train_seconds"] for row in rows]
    total = None if None in times or not times else sum(times)
    return {"design": design, "seeds": list(seeds), "trials": len(expand(study)), "train_seconds": total}
