"""The study file: read, checked against the schema, and turned into typed values.

Knows YAML, the schema of a study and how one trial's configuration is hashed. Does not know how a design becomes trials
(``design``), which modules a model has (``lora.targets``) or how data look (``data``). Floor: just above ``errors``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PrivateAttr,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lorascope.embedded import located
from lorascope.errors import UsageError, did_you_mean

DEFAULT_SEEDS = (42, 1337, 2024)
ALL_LINEAR = "all-linear"
TaskType = Literal["SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM"]
NLIClass = Literal["entailment", "neutral", "contradiction"]

# Days, hours, minutes and seconds, each with or without decimals.
_DURATION = re.compile("".join(rf"(?:([0-9]+(?:\.[0-9]+)?){unit})?" for unit in "dhms"))
_MEMORY = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT])(i?)B?", re.IGNORECASE)
_UNITS = (86400.0, 3600.0, 60.0, 1.0)


class Section(BaseModel):
    """A part of the study file: immutable, and refuses keys it does not know and numbers that are none."""

    # JSON has no infinity: two configurations that differ in one would hash as equal.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BaseModelConfig(Section):
    """The frozen model: a local directory, a hub id or ``lorascope:small``, and how its weights are held.

    With ``quantization: nf4`` the linear layers of its blocks are packed into four bits; ``dtype`` holds for the rest.
    """

    model: str = Field(min_length=1)
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    quantization: Literal["nf4"] | None = None
    revision: str | None = None
    _tokenizer_beside: Path | None = PrivateAttr(default=None)

    @property
    def tokenizer_beside(self) -> Path | None:
        """The directory of an adapter whose tokenizer goes before the model's own; no part of a study file."""
        return self._tokenizer_beside

    def with_tokenizer(self, directory: Path | None) -> BaseModelConfig:
        """The same model, read with the tokenizer that lies in this directory; None for its own."""
        changed = self.model_copy()
        changed._tokenizer_beside = directory
        return changed

    @property
    def place(self) -> str:
        """What ``from_pretrained`` is given: the model's own directory for one that comes with Lorascope.

        Raises:
            ModelError: there is no such model, or it came without weights.
        """
        return located(self.model)

    @field_validator("quantization")
    @classmethod
    def _packed_from_a_dtype_that_can_be(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("dtype") == "float64":
            raise ValueError("needs dtype float32 or bfloat16, not float64")
        return value


class TaskConfig(Section):
    """What is learned and from which data.

    ``data`` is a file, a directory or a hub id; or a mapping from split (``train``, ``validation``, ``test``) to one of
    these. ``eval_fraction`` carves an evaluation split out of the training split, and only where asked for. ``speaker`` is the
    side of a dialogue whose turns are learned, where the task leaves a choice (``teacher`` or ``student``). ``allow`` names
    findings of the audit that do not stop a study.
    """

    name: str
    data: str | dict[Literal["train", "validation", "test"], str]
    max_train: int | None = Field(None, ge=1)
    max_eval: int | None = Field(None, ge=1)
    max_length: int = Field(512, ge=8)
    eval_fraction: float | None = Field(None, gt=0.0, lt=1.0)
    labels: list[str] | None = None
    speaker: str | None = None
    allow: list[str] = Field(default_factory=list)


class AdapterConfig(Section):
    """One adapter, in PEFT's words. ``targets`` are roles (``query``), raw module names, suffixes, or ``all-linear``.

    ``method: full`` trains every weight of the base and ``head`` only a new head: what an adapter is held against.
    """

    method: Literal["lora", "full", "head"] = "lora"
    r: int = Field(8, ge=1)
    lora_alpha: float | str = "2r"
    lora_dropout: float = Field(0.0, ge=0.0, le=0.95)
    targets: list[str] | Literal["all-linear"] = ["query", "value"]
    bias: Literal["none", "lora_only", "all"] = "none"
    use_rslora: bool = False
    path: str | None = None

    @field_validator("r", mode="before")
    @classmethod
    def _r_is_a_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("must be a number, not true or false")
        return value

    @field_validator("lora_alpha")
    @classmethod
    def _alpha_is_a_number_or_a_multiple_of_r(cls, value: float | str) -> float | str:
        if isinstance(value, str):
            is_multiple = re.fullmatch(r"[0-9]+(\.[0-9]+)?r", value) is not None
            try:
                number = float(value.removesuffix("r") if is_multiple else value)
            except ValueError:
                raise ValueError(f"{value!r} is neither a number nor a multiple of r such as 2r") from None
            value = value if is_multiple else number
        else:
            number = value
        if not 0 < number < float("inf"):
            raise ValueError("must be above zero and finite")
        return value

    @field_validator("targets")
    @classmethod
    def _targets_are_distinct(cls, value: list[str] | str) -> list[str] | str:
        if isinstance(value, list) and len(set(value)) != len(value):
            raise ValueError("names a target twice")
        return value

    @property
    def alpha(self) -> float:
        """``lora_alpha`` as a number: ``"2r"`` at ``r = 8`` is 16."""
        if isinstance(self.lora_alpha, str):
            return float(self.lora_alpha[:-1]) * self.r
        return self.lora_alpha

    @property
    def scaling(self) -> float:
        """``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA (Kalajdzievski 2023)."""
        return self.alpha / (self.r**0.5 if self.use_rslora else self.r)


class TrainConfig(Section):
    """How every configuration of a study is trained; optimiser AdamW with betas 0.9 and 0.999, eps 1e-8."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(8, ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    learning_rate: float = Field(2e-4, gt=0.0)
    warmup_ratio: float = Field(0.06, ge=0.0, le=1.0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = Field(0.0, ge=0.0)
    max_grad_norm: float = Field(1.0, gt=0.0)
    max_steps: int | None = Field(None, ge=0)
    base_dropout: bool = False

    def steps_per_epoch(self, num_examples: int) -> int:
        """Optimiser batches that an epoch has; the last may be short."""
        return -(-num_examples // self.batch_size)

    def num_steps(self, num_examples: int) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * self.steps_per_epoch(num_examples) if self.max_steps is None else self.max_steps


class DecodingConfig(Section):
    """How answers are generated.

    ``temperature`` divides the logits in every strategy but greedy; ``top_k`` keeps that many tokens, ``nucleus`` the fewest
    whose probabilities reach ``top_p``. ``samples`` answers are drawn for every prompt.
    """

    strategy: Literal["greedy", "temperature", "top_k", "nucleus"] = "greedy"
    max_new_tokens: int = Field(32, ge=1)
    temperature: float = Field(1.0, gt=0.0)
    top_k: int = Field(50, ge=1)
    top_p: float = Field(0.9, gt=0.0, le=1.0)
    samples: int = Field(1, ge=1, le=64)

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> DecodingConfig:
        acting = {"greedy": (), "temperature": ("temperature",), "top_k": ("temperature", "top_k")}
        for name in ("temperature", "top_k", "top_p"):
            idle = name not in acting.get(self.strategy, ("temperature", "top_p"))
            if idle and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with strategy {self.strategy}")
        if self.strategy == "greedy" and self.samples > 1:
            raise ValueError("samples has no effect with strategy greedy: all would be equal")
        return self

    @property
    def label(self) -> str:
        """Its settings in a word or two, for tables: ``nucleus p=0.9 T=0.7 ×4``."""
        parts: list[str] = [self.strategy]
        if self.strategy == "top_k":
            parts.append(f"k={self.top_k}")
        if self.strategy == "nucleus":
            parts.append(f"p={self.top_p:g}")
        if self.strategy != "greedy" and (self.temperature != 1.0 or self.strategy == "temperature"):
            parts.append(f"T={self.temperature:g}")
        if self.max_new_tokens != type(self).model_fields["max_new_tokens"].default:
            parts.append(f"max {self.max_new_tokens}")
        return " ".join([*parts, *([f"×{self.samples}"] if self.samples > 1 else [])])


class JudgeCheck(Section):
    """Labelled pairs that tell how good a judge is: ``sick``, ``dialogue_nli`` or the user's own, with the three classes."""

    task: str = "sick"
    data: str | dict[Literal["train", "validation", "test"], str]
    split: Literal["train", "validation", "test"] = "test"
    max_eval: int | None = Field(1000, ge=1)


class JudgeConfig(Section):
    """The NLI model behind the C-score: a directory or hub id, with an adapter on it or none.

    ``model`` may be an adapter's directory too, where that names its base. ``labels`` are the classes in order, where the
    model's configuration or the adapter does not name them entailment, neutral and contradiction.
    """

    model: str = Field(min_length=1)
    adapter: str | None = None
    revision: str | None = None
    labels: list[NLIClass] | None = None
    check: JudgeCheck | None = None

    @field_validator("labels")
    @classmethod
    def _labels_are_the_three_classes(cls, value: list[NLIClass] | None) -> list[NLIClass] | None:
        if value is not None and sorted(value) != sorted(get_args(NLIClass)):
            raise ValueError("names each of entailment, neutral and contradiction once")
        return value


class EvaluateConfig(Section):
    """Which split is scored, how answers are decoded, and how many tokens one forward pass may hold.

    The metrics of the first decoding are the trial's; further ones are compared with it. ``judge`` gives the C-score.
    """

    split: Literal["train", "validation", "test"] = "validation"
    decoding: list[DecodingConfig] = Field([DecodingConfig()], min_length=1)
    judge: JudgeConfig | None = None
    batch_tokens: int = Field(8192, ge=1)

    @field_validator("decoding")
    @classmethod
    def _decodings_are_distinct(cls, value: list[DecodingConfig]) -> list[DecodingConfig]:
        if any(one in value[:index] for index, one in enumerate(value)):
            raise ValueError("names a decoding twice")
        return value


class ListDesign(Section):
    """Explicit trials, each a set of overrides."""

    kind: Literal["list"] = "list"
    trials: list[dict[str, JsonValue]] = Field([{}], min_length=1)


class GridDesign(Section):
    """Every combination of the values."""

    kind: Literal["grid"]
    over: dict[str, Annotated[list[JsonValue], Field(min_length=1)]] = Field(min_length=1)


class AblationDesign(Section):
    """One factor at a time around the baseline given by ``adapter``, ``train`` and ``base``."""

    kind: Literal["ablation"]
    over: dict[str, Annotated[list[JsonValue], Field(min_length=1)]] = Field(min_length=1)


class ShapleyDesign(Section):
    """What each player adds, for every metric in ``values``: the players are the study's adapters, in coalitions.

    Attributes:
        players: targets (roles, module names or suffixes), or groups of them by name.
        layer_groups: each player falls into so many, one for each run of neighbouring layers; ``each`` for every layer.
        values: metrics of the evaluation; by default all that the task has, ``eval_loss`` among them.
        game: ``usefulness`` retrains each coalition, ``reliance`` masks players out of one trained adapter, ``one_run`` trains
            once with random coalitions and reads all of them off.
        coalitions: how many are valued at most where there are too many to enumerate; None for what ``width`` takes.
        width: sampling ends when no interval of a value is wider than this share of what all players together add.
        retrained: in ``one_run``, how many coalitions are retrained to say how far the map is to be believed; no map is shown
            without.
        length: in ``one_run``, how many times as many steps it trains as one retrained coalition.
    """

    kind: Literal["shapley"]
    players: Annotated[list[str], Field(min_length=1)] | Annotated[dict[str, list[str]], Field(min_length=1)]
    layer_groups: Annotated[int, Field(ge=1)] | Literal["each"] | None = None
    values: Annotated[list[str], Field(min_length=1)] | None = None
    game: Literal["usefulness", "reliance", "one_run"] = "usefulness"
    coalitions: int | None = Field(None, ge=2)
    width: float = Field(0.2, gt=0.0)
    retrained: int = Field(12, ge=4)
    length: float = Field(3.0, gt=0.0)

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
    """Configurations that a sampler proposes, some at a time, each time having seen what the earlier ones gave.

    Attributes:
        over: for each key a list of values, which the sampler takes for words without an order (numbers too), or a range.
        trials: configurations in all.
        objective: a metric of the evaluation; whether higher is better is the metric's own.
        sampler: of Optuna.
        pruner: ``successive_halving`` stops the worse part of a cohort at each rung, the rest goes on.
        reduction: one in so many survives a rung.
        batch: configurations proposed at a time. None: as many as a cohort of 16 holds with every seed, but a quarter of
            ``trials`` at most, so that a sampler has something to learn from.
        sampler_seed: of the proposals.
    """

    kind: Literal["search"]
    over: dict[str, ValuesOrRange] = Field(min_length=1)
    trials: int = Field(16, ge=1)
    objective: str
    sampler: Literal["tpe", "random", "gp", "cmaes", "qmc"] = "tpe"
    pruner: Literal["none", "successive_halving"] = "none"
    reduction: int = Field(3, ge=2)
    batch: int | None = Field(None, ge=1)
    sampler_seed: int = Field(0, ge=0, lt=2**32)


Design = Annotated[ListDesign | GridDesign | AblationDesign | ShapleyDesign | SearchDesign, Field(discriminator="kind")]


class TrackingConfig(Section):
    """Where curves and figures go besides the store; nothing of it changes a result."""

    to: list[Literal["wandb", "tensorboard", "mlflow"]] = Field(default_factory=list)
    project: str = "lorascope"


class Study(Section):
    """One base, one task, one design.

    ``controls`` are further trials that the design's are held against, each a set of overrides with the ``method`` ``full`` or
    ``head``, such as ``{method: full, learning_rate: [1.0e-5, 3.0e-5]}``; of a list every value makes a trial with each seed,
    and the best of a method's configurations is the control.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: BaseModelConfig
    task: TaskConfig
    adapter: AdapterConfig = AdapterConfig()
    train: TrainConfig = TrainConfig()
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(list(DEFAULT_SEEDS), min_length=1)
    design: Design = ListDesign()
    controls: list[dict[str, JsonValue]] = Field(default_factory=list)
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()

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


def validate(schema: type[Section], values: Mapping[str, Any], where: str) -> Any:
    """``values`` as an instance of ``schema``; a UsageError naming ``where`` and the key otherwise."""
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise _usage_error(error, schema, where, {}) from None


def load_study(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read and check a study file.

    Args:
        path: the YAML file.
        overrides: dotted keys to values that replace what the file says, for example ``{"train.epochs": 1}``.

    Raises:
        UsageError: the file cannot be read, is no YAML mapping, or breaks the schema; names file, line and key.
    """
    path = Path(path)
    document, lines = _read_yaml(path)
    for key, value in (overrides or {}).items():
        _override(document, key, value)
    try:
        study = Study.model_validate(document)
    except ValidationError as error:
        raise _usage_error(error, Study, str(path), lines) from None
    study._places.update({key: f"{path}, line {line}" for key, line in lines.items()})
    return study


def parse_override(text: str) -> tuple[str, Any]:
    """``"train.epochs=1"`` as ``("train.epochs", 1)``; the value is YAML.

    Raises:
        UsageError: there is no ``=``, no key, or the value is no YAML.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UsageError(f"{text!r} is no override", where="--set", fix="write KEY=VALUE, for example train.epochs=1")
    try:
        return key.strip(), yaml.safe_load(value)
    except Exception:  # a malformed scalar (2024-13-45) raises whatever PyYAML's constructor ran into
        raise UsageError(f"the value of {key!r} is no YAML: {value!r}", where="--set") from None


def parse_duration(text: str, where: str = "--budget") -> float:
    """``"90s"``, ``"30m"``, ``"2h"`` or ``"1h30m"`` in seconds.

    Raises:
        UsageError: it is none of these, or no time at all.
    """
    parts = _DURATION.fullmatch(text.strip())
    seconds = 0.0 if parts is None else sum(float(part or 0) * unit for part, unit in zip(parts.groups(), _UNITS, strict=True))
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{text!r} is no duration", where=where, fix="write it as 90s, 30m, 2h or 1h30m")
    return seconds


def parse_memory(text: str, where: str = "--memory") -> int:
    """``"8GB"``, ``"512MiB"`` or ``"1.5GiB"`` in bytes; of ``GB`` a thousand make a ``TB``, of ``GiB`` 1,024.

    Raises:
        UsageError: it is none of these, or no memory at all.
    """
    parts = _MEMORY.fullmatch(text.strip())
    size = 0.0 if parts is None else float(parts[1]) * (1024 if parts[3] else 1000) ** " KMGT".index(parts[2].upper())
    if size < 1:
        raise UsageError(f"{text!r} is no amount of memory", where=where, fix="write it as 8GB, 512MiB or 1.5GiB")
    return int(size)


def _override(document: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node: Any = document
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise UsageError(f"{dotted!r} does not lead to a key", where="--set", fix=f"{parent!r} holds no keys")
    node[last] = value


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The document and the line of each key, by the key's path."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError("no such study file", where=str(path), fix="give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise UsageError("the study file is not UTF-8", where=str(path), fix="save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"cannot read the study file ({error.strerror})", where=str(path)) from None
    lines: dict[tuple[str, ...], int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _collect_lines(node, (), lines, path)
        document = yaml.safe_load(text)
    except UsageError:
        raise
    except Exception as error:  # a malformed scalar (2024-13-45) raises whatever PyYAML's constructor ran into
        mark = getattr(error, "problem_mark", None)
        where = str(path) if mark is None else f"{path}, line {mark.line + 1}"
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(f"no valid YAML ({reason})", where=where, fix="correct it") from None
    if not isinstance(document, dict):
        raise UsageError("a study file is a mapping of keys to values", where=str(path), fix="start with name: …")
    return document, lines


def _collect_lines(node: yaml.Node | None, path: tuple[str, ...], lines: dict[tuple[str, ...], int], file: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = (*path, str(key.value))
            line = key.start_mark.line + 1
            if name in lines:
                raise UsageError(f"{'.'.join(name)!r} is given twice", where=f"{file}, lines {lines[name]} and {line}")
            lines[name] = line
            _collect_lines(key, name, lines, file)
            _collect_lines(value, name, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            place = (*path, str(index))
            lines[place] = item.start_mark.line + 1
            _collect_lines(item, place, lines, file)
    elif isinstance(node, yaml.ScalarNode):
        node.value.encode("utf-8")  # half a surrogate pair ("\ud83d") can be neither hashed nor written


def _usage_error(
    error: ValidationError, schema: type[Section], where: str, lines: Mapping[tuple[str, ...], int]
) -> UsageError:
    """The first complaint of pydantic in one line: file, line, key, and a near miss where there is one."""
    complaints = error.errors()
    parent = complaints[0]["loc"][:-1]
    # Of the members of a union of types, the one that was followed furthest is the one that was meant.
    first = max((each for each in complaints if each["loc"][: len(parent)] == parent), key=lambda each: len(each["loc"]))
    # A discriminated union puts the member's name into the location; it is no key of the file.
    location = tuple(str(part) for part in first["loc"])
    if location[:1] == ("design",) and location[1:2] and location[1] in _DESIGNS:
        location = ("design", *location[2:])
    # So it does with the members of a union of types.
    types = {"[key]", "float", "str", "list[str]", "literal['all-linear']"}
    if location[:1] == ("design",):
        types = {"[key]", "float", "dict", "list", "range"}
    location = tuple(part for part in location if part not in types and not part.startswith("dict["))
    key = ".".join(location)
    line = next((lines[location[:end]] for end in range(len(location), 0, -1) if location[:end] in lines), None)
    place = where if line is None else f"{where}, line {line}"
    if first["type"] == "extra_forbidden":
        known = _known_keys(schema, location[:-1])
        return UsageError(f"unknown key {key!r}", where=place, fix=did_you_mean(location[-1], known))
    if first["type"] == "missing":
        return UsageError(f"{key!r} is missing", where=place, fix=f"add {key}")
    if first["type"].startswith("union_tag"):
        given = first["input"].get("kind") if isinstance(first["input"], dict) else first["input"]
        return UsageError(f"design.kind is {given!r}", where=place, fix="use list, grid, ablation, shapley or search")
    reason = str(first["msg"]).removeprefix("Value error, ")
    given = _shown(first["input"])
    return UsageError(f"{key} = {given}: {reason}" if key else reason, where=place, fix="correct the value")


def _shown(value: Any) -> str:
    """A value as the file writes it, shortened."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= 60 else text[:57] + "…"


def _known_keys(schema: type[Section], path: tuple[str, ...]) -> list[str]:
    node: Any = schema
    for part in path:
        if part == "design":
            if path[1:2] == ("over",) and len(path) > 2:
                return [field.alias or name for name, field in Range.model_fields.items()]
            return list(dict.fromkeys(key for each in _DESIGNS.values() for key in each.model_fields))
        if part.isdigit():
            continue
        field = getattr(node, "model_fields", {}).get(part)
        node = field.annotation if field is not None else None
        # Of an optional section or a list of sections, the section.
        node = next((each for each in get_args(node) if hasattr(each, "model_fields")), node)
    return list(getattr(node, "model_fields", {}))


_DESIGNS: dict[str, type[Section]] = {
    "list": ListDesign,
    "grid": GridDesign,
    "ablation": AblationDesign,
    "shapley": ShapleyDesign,
    "search": SearchDesign,
}


def _sha256(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
