"""The sections of a study file, their keys, defaults and limits.

Knows what a study may say. Does not know designs (`designs`), whole studies (`study`) or files (`file`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from lorascope.embedded import located

TaskType = Literal["SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM"]
NLIClass = Literal["entailment", "neutral", "contradiction"]
ALL_LINEAR = "all-linear"


class Section(BaseModel):
    """A part of the study file: immutable, and refuses keys it does not know and numbers that are none."""

    # JSON has no infinity: two configurations that differ in one would hash as equal.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class BaseModelConfig(Section):
    """The frozen model: a local directory, a hub id or ``lorascope:small``, and how its weights are held.

    With ``quantization: nf4`` the linear layers of its blocks are packed into four bits; ``dtype`` holds for the rest.
    """

    model: str = Field(min_length=1)
    """A directory, a hub id, or ``lorascope:small``, which comes with Lorascope."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of the frozen weights; adapters are float32 (of a float64 base float64)."""
    quantization: Literal["nf4"] | None = None
    """``nf4`` packs the linear layers of the blocks into four bits (QLoRA)."""
    revision: str | None = None
    """A branch, tag or commit of a hub id."""
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
    """A known task (``sst2``, ``squad``, ``personachat``, …), or ``file`` for data of your own."""
    data: str | dict[Literal["train", "validation", "test"], str]
    """A file, a directory or a hub id; or a mapping from split to one of these."""
    max_train: int | None = Field(None, ge=1)
    """Train on the first so many examples."""
    max_eval: int | None = Field(None, ge=1)
    """Evaluate on the first so many examples."""
    max_length: int = Field(512, ge=8)
    """In tokens; what is longer is cut, and said."""
    eval_fraction: float | None = Field(None, gt=0.0, lt=1.0)
    """Share of the training split that is held out for evaluation; only where asked for."""
    labels: list[str] | None = None
    """The classes in order, where the data do not tell."""
    speaker: str | None = None
    """Whose turns of a dialogue are learned, where there is a choice (``teacher`` or ``student``)."""
    allow: list[str] = Field(default_factory=list)
    """Findings of the audit that do not stop the study."""


class AdapterConfig(Section):
    """One adapter, in PEFT's words. ``targets`` are roles (``query``), raw module names, suffixes, or ``all-linear``.

    ``method: full`` trains every weight of the base and ``head`` only a new head: what an adapter is held against.
    """

    method: Literal["lora", "full", "head"] = "lora"
    """``full`` trains every weight, ``head`` a new head alone: what an adapter is held against."""
    r: int = Field(8, ge=1)
    """Rank."""
    lora_alpha: float | str = "2r"
    """A number or a multiple of the rank, ``2r``; the update is scaled by ``alpha / r``."""
    lora_dropout: float = Field(0.0, ge=0.0, le=0.95)
    """Of the adapter's input."""
    targets: list[str] | Literal["all-linear"] = ["query", "value"]
    """Roles (``query``), module names or suffixes as in PEFT, each also in some layers (``query.L0-3``); ``all-linear``."""
    bias: Literal["none", "lora_only", "all"] = "none"
    """Which biases are trained, as in PEFT."""
    use_rslora: bool = False
    """Scale by ``alpha / sqrt(r)`` instead."""
    path: str | None = None
    """A trained adapter that training begins from."""

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
    """Passes over the training split."""
    batch_size: int = Field(8, ge=1)
    """Examples of one optimiser step."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Examples that are computed at a time; it changes memory, not the result."""
    learning_rate: float = Field(2e-4, gt=0.0)
    """Of AdamW, at its highest."""
    warmup_ratio: float = Field(0.06, ge=0.0, le=1.0)
    """Share of the steps in which the rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate goes on after warm-up."""
    weight_decay: float = Field(0.0, ge=0.0)
    """Of AdamW, decoupled."""
    max_grad_norm: float = Field(1.0, gt=0.0)
    """Gradients of a longer norm are scaled down to it."""
    max_steps: int | None = Field(None, ge=0)
    """Trains so many optimiser steps, whatever the epochs say."""
    base_dropout: bool = False
    """Whether the base's own dropout acts while adapters train."""

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
    """How a token is chosen."""
    max_new_tokens: int = Field(32, ge=1)
    """Most tokens of an answer."""
    temperature: float = Field(1.0, gt=0.0)
    """Divides the logits; not with ``greedy``."""
    top_k: int = Field(50, ge=1)
    """Tokens that ``top_k`` chooses among."""
    top_p: float = Field(0.9, gt=0.0, le=1.0)
    """Probability that the tokens of ``nucleus`` have together."""
    samples: int = Field(1, ge=1, le=64)
    """Answers to each prompt."""

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
    """A task of pairs in three classes."""
    data: str | dict[Literal["train", "validation", "test"], str]
    """As ``task.data``."""
    split: Literal["train", "validation", "test"] = "test"
    """Which of its splits."""
    max_eval: int | None = Field(1000, ge=1)
    """The first so many pairs."""


class JudgeConfig(Section):
    """The NLI model behind the C-score: a directory or hub id, with an adapter on it or none.

    ``model`` may be an adapter's directory too, where that names its base; ``lorascope:judge`` comes with Lorascope.
    ``labels`` are the classes in order, where the model's configuration or the adapter does not name them entailment, neutral
    and contradiction.
    """

    model: str = Field(min_length=1)
    """A directory or hub id, a trained adapter's directory, or ``lorascope:judge``."""
    adapter: str | None = None
    """An adapter on it."""
    revision: str | None = None
    """Of a hub id."""
    labels: list[NLIClass] | None = None
    """The classes in order, where the model does not name them."""
    check: JudgeCheck | None = None
    """Labelled pairs on which the judge's accuracy is measured."""

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
    """What is scored."""
    decoding: list[DecodingConfig] = Field([DecodingConfig()], min_length=1)
    """The first gives the trial's score; the others are compared with it."""
    judge: JudgeConfig | None = None
    """Gives replies their C-score."""
    batch_tokens: int = Field(8192, ge=1)
    """Most tokens of one forward pass."""

    @field_validator("decoding")
    @classmethod
    def _decodings_are_distinct(cls, value: list[DecodingConfig]) -> list[DecodingConfig]:
        if any(one in value[:index] for index, one in enumerate(value)):
            raise ValueError("names a decoding twice")
        return value


class TrackingConfig(Section):
    """Where curves and figures go besides the store; nothing of it changes a result."""

    to: list[Literal["wandb", "tensorboard", "mlflow"]] = Field(default_factory=list)
    """Any of these, at once."""
    project: str = "lorascope"
    """The project's or experiment's name there."""
