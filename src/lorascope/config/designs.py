"""How a study's trials come about: a list, a grid, an ablation, coalitions or a search.

Knows what a study file may say under ``design``. Does not know how it becomes trials (``lorascope.design``).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, JsonValue, Tag, field_validator, model_validator

from lorascope.config.schema import Section


class ListDesign(Section):
    """Explicit trials, each a set of overrides."""

    kind: Literal["list"] = "list"
    trials: list[dict[str, JsonValue]] = Field([{}], min_length=1)
    """Each a set of overrides of ``adapter``, ``train`` or ``base``."""


class GridDesign(Section):
    """Every combination of the values."""

    kind: Literal["grid"]
    over: dict[str, Annotated[list[JsonValue], Field(min_length=1)]] = Field(min_length=1)
    """Values of each key; every combination is a configuration."""


class AblationDesign(Section):
    """One factor at a time around the baseline given by ``adapter``, ``train`` and ``base``."""

    kind: Literal["ablation"]
    over: dict[str, Annotated[list[JsonValue], Field(min_length=1)]] = Field(min_length=1)
    """Values of each key; one key at a time differs from the baseline."""


class ShapleyDesign(Section):
    """What each player adds, for every metric in ``values``: the players are the study's adapters, in coalitions."""

    kind: Literal["shapley"]
    players: Annotated[list[str], Field(min_length=1)] | Annotated[dict[str, list[str]], Field(min_length=1)]
    """Targets (roles, module names or suffixes), or groups of them by name."""
    layer_groups: Annotated[int, Field(ge=1)] | Literal["each"] | None = None
    """Each player falls into so many, one for each run of neighbouring layers; ``each`` for every layer."""
    values: Annotated[list[str], Field(min_length=1)] | None = None
    """Metrics of the evaluation; by default all that the task has, ``eval_loss`` among them."""
    game: Literal["usefulness", "reliance", "one_run"] = "usefulness"
    """``usefulness`` retrains each coalition, ``reliance`` masks players out of one trained adapter, ``one_run`` trains once
    with random coalitions and reads all of them off."""
    coalitions: int | None = Field(None, ge=2)
    """How many are valued at most where there are too many to enumerate; None for what ``width`` takes."""
    width: float = Field(0.2, gt=0.0)
    """Sampling ends when no interval of a value is wider than this share of what all players together add."""
    retrained: int = Field(12, ge=4)
    """In ``one_run``, how many coalitions are retrained to say how far the map is to be believed; no map is shown without."""
    length: float = Field(3.0, gt=0.0)
    """In ``one_run``, how many times as many steps it trains as one retrained coalition."""

    @field_validator("players")
    @classmethod
    def _players_are_distinct(cls, value: list[str] | dict[str, list[str]]) -> list[str] | dict[str, list[str]]:
        if len(set(value)) != len(value):
            raise ValueError("names a player twice")
        if isinstance(value, dict) and not all(value.values()):
            raise ValueError("a group has no target")
        return value

    @field_validator("values")
    @classmethod
    def _values_are_distinct(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("names a metric twice")
        return value


class Range(Section):
    """A range of a search, ends included: ``{log: [1.0e-4, 1.0e-3]}``, ``{uniform: [0.0, 0.3]}`` or ``{int: [4, 64]}``."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    log: tuple[float, float] | None = None
    uniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = Field(None, alias="int")

    @model_validator(mode="after")
    def _one_range_that_goes_up(self) -> Range:
        given = {name: ends for name, ends in self.model_dump(by_alias=True).items() if ends is not None}
        if len(given) != 1:
            raise ValueError("give one of log, uniform and int")
        (name, (low, high)), *_ = given.items()
        if not low < high:
            raise ValueError(f"{name} goes from the lower end to the higher")
        if name == "log" and low <= 0:
            raise ValueError("log begins above zero")
        return self


def _is_range(given: Any) -> str:
    return "range" if isinstance(given, dict | Range) else "list"


# What is meant is told by the form, so that a complaint is about what was meant.
ValuesOrRange = Annotated[
    Annotated[list[JsonValue], Field(min_length=1), Tag("list")] | Annotated[Range, Tag("range")], Discriminator(_is_range)
]


class SearchDesign(Section):
    """Configurations that a sampler proposes, some at a time, each time having seen what the earlier ones gave."""

    kind: Literal["search"]
    over: dict[str, ValuesOrRange] = Field(min_length=1)
    """For each key a list of values, which the sampler takes for words without an order (numbers too), or a range."""
    trials: int = Field(16, ge=1)
    """Configurations in all."""
    objective: str
    """A metric of the evaluation; whether higher is better is the metric's own."""
    sampler: Literal["tpe", "random", "gp", "cmaes", "qmc"] = "tpe"
    """Of Optuna; ``cmaes`` needs ``pip install 'lorascope[cmaes]'`` and two ranges at least."""
    pruner: Literal["none", "successive_halving"] = "none"
    """``successive_halving`` stops the worse part of a cohort at each rung, the rest goes on."""
    reduction: int = Field(3, ge=2)
    """One in so many survives a rung."""
    batch: int | None = Field(None, ge=1)
    """Configurations proposed at a time. None: as many as a cohort of 16 holds with every seed, but a quarter of ``trials`` at
    most, so that a sampler has something to learn from."""
    sampler_seed: int = Field(0, ge=0, lt=2**32)
    """Of the proposals."""


Design = Annotated[ListDesign | GridDesign | AblationDesign | ShapleyDesign | SearchDesign, Field(discriminator="kind")]

DESIGNS: dict[str, type[Section]] = {
    "list": ListDesign,
    "grid": GridDesign,
    "ablation": AblationDesign,
    "shapley": ShapleyDesign,
    "search": SearchDesign,
}
