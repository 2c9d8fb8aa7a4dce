"""A whole study, and what one trial's configuration is: its form, its hash, its name.

Does not know files (`file`) or how a design becomes trials (``lorascope.design``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, JsonValue, PrivateAttr, field_validator, model_validator

from lorascope.config.designs import Design, ListDesign
from lorascope.config.schema import (
    AdapterConfig,
    BaseModelConfig,
    EvaluateConfig,
    Section,
    TaskConfig,
    TrackingConfig,
    TrainConfig,
)

DEFAULT_SEEDS = (42, 1337, 2024)


class Study(Section):
    """One base, one task, one design.

    ``controls`` are further trials that the design's are held against, each a set of overrides with the ``method`` ``full`` or
    ``head``, such as ``{method: full, learning_rate: [1.0e-5, 3.0e-5]}``; of a list every value makes a trial with each seed,
    and the best of a method's configurations is the control.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Letters, digits, ``.``, ``_`` and ``-``; results go to ``runs/<name>``."""
    base: BaseModelConfig
    """The frozen model."""
    task: TaskConfig
    """What is learned."""
    adapter: AdapterConfig = AdapterConfig()
    """What trials have in common; a design overrides it."""
    train: TrainConfig = TrainConfig()
    """How trials are trained; a design overrides it."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(list(DEFAULT_SEEDS), min_length=1)
    """Each configuration is trained once with each."""
    design: Design = ListDesign()
    """How configurations come about."""
    controls: list[dict[str, JsonValue]] = Field(default_factory=list)
    """What the design's configurations are held against."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How trials are scored."""
    tracking: TrackingConfig = TrackingConfig()
    """Where figures go besides the store."""

    _places: dict[tuple[str, ...], str] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Equal contents; where they were read from does not count."""
        return isinstance(other, Study) and self.model_dump() == other.model_dump()

    def place(self, *key: str) -> str:
        """Where the file says ``key``: file, line and key as far as they are known."""
        dotted = re.sub(r"\.(\d+)", r"[\1]", ".".join(key))
        known = next((self._places[key[:end]] for end in range(len(key), 0, -1) if key[:end] in self._places), None)
        return dotted if known is None else f"{known}: {dotted}"

    @field_validator("seeds")
    @classmethod
    def _seeds_are_distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError("names a seed twice")
        return value

    @property
    def hash(self) -> str:
        """SHA-256 over everything that the study's result depends on; its name, what it allows and trackers are not."""
        return _sha256(self.model_dump(mode="json", exclude={"name": True, "task": {"allow"}, "tracking": True}))


class TrialConfig(Section):
    """One configuration with one seed: what a trial is made of."""

    base: BaseModelConfig
    adapter: AdapterConfig
    train: TrainConfig
    seed: int

    @model_validator(mode="before")
    @classmethod
    def _one_form(cls, values: Any) -> Any:
        """Equal configurations look equal: ``2r`` becomes its number, and only ``lora`` has rank, alpha and targets."""
        if isinstance(values, dict) and isinstance(values.get("adapter"), AdapterConfig):
            adapter: AdapterConfig = values["adapter"]
            changes: dict[str, Any] = {"lora_alpha": adapter.alpha}
            if adapter.method != "lora":
                changes = {**AdapterConfig(lora_alpha=16.0, targets=[]).model_dump(), "method": adapter.method}
            values = {**values, "adapter": adapter.model_copy(update=changes)}
        return values

    @property
    def configuration(self) -> str:
        """First 8 hexadecimal digits of the hash of everything but the seed."""
        return _sha256(self.model_dump(mode="json", exclude={"seed"}))[:8]

    @property
    def trial(self) -> str:
        """The trial's name, ``<configuration>-s<seed>``."""
        return f"{self.configuration}-s{self.seed}"

    def flat(self) -> dict[str, Any]:
        """Keys of ``adapter``, ``train`` and ``base`` by their own name, as designs write them."""
        dump = self.model_dump(mode="json")
        flat = {**dump["adapter"], **dump["train"], **dump["base"]}
        if flat["path"] is None:
            del flat["path"]
        return flat

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any], seed: int) -> TrialConfig:
        """The trial that ``flat`` was made of."""
        sections = {
            name: schema.model_validate({key: flat[key] for key in schema.model_fields if key in flat})
            for name, schema in SECTIONS.items()
        }
        return cls(**sections, seed=seed)


def configuration_of(trial: str) -> str:
    """The configuration in a trial's name: ``0123abcd`` of ``0123abcd-s42``, and of ``0123abcd``."""
    return trial.partition("-s")[0]


# The sections that make a trial's configuration; no two have a key in common.
SECTIONS: dict[str, type[Section]] = {"adapter": AdapterConfig, "train": TrainConfig, "base": BaseModelConfig}


def in_layers(name: str, first: int, last: int) -> str:
    """A target's name restricted to a run of layers, as ``adapter.targets`` takes it."""
    return f"{name}.L{first}" if first == last else f"{name}.L{first}-{last}"


def split_layers(name: str) -> tuple[str, tuple[int, int] | None]:
    """What `in_layers` put together: the target's name, and its first and last layer where it is restricted."""
    match = re.fullmatch(r"(.+)\.L(\d+)(?:-(\d+))?", name)
    return (name, None) if match is None else (match[1], (int(match[2]), int(match[3] or match[2])))


def section_of(key: str) -> str | None:
    """The section of a trial's configuration that owns ``key``: ``adapter``, ``train``, ``base`` or None."""
    return next((name for name, schema in SECTIONS.items() if key in schema.model_fields), None)


def design_keys() -> list[str]:
    """Every key that a design may vary."""
    return [key for schema in SECTIONS.values() for key in schema.model_fields]


def _sha256(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
