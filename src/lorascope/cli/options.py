"""Options that several commands take, as records (``records``), and what they come to. Floor: cli."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli.console import Device, decoding_of
from lorascope.cli.planning import chosen_device
from lorascope.config import TaskConfig, validate

if TYPE_CHECKING:
    from lorascope.cohort.single import OnBase

_DTYPE = "float32"


@dataclass(frozen=True)
class Examples:
    """Which of a task's examples are taken, and how they are read."""

    split: Annotated[str | None, typer.Option(help="train, validation or test; validation.")] = None
    labels: Annotated[str | None, typer.Option(help="The classes in the adapter's order, for example negative,positive.")] = (
        None
    )
    max_eval: Annotated[int | None, typer.Option(min=1, help="Only the first so many examples.")] = None
    max_length: Annotated[int | None, typer.Option(min=8, help="Most tokens of an example; 512.")] = None
    speaker: Annotated[str | None, typer.Option(help="The side of a dialogue that is modelled.")] = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that were given; empty where none were."""
        return () if self.labels is None else tuple(name.strip() for name in self.labels.split(","))

    def task_config(self, task: str | None, data: str | None, where: str, classes: Sequence[str] = ()) -> TaskConfig:
        """A study file's ``task`` of these examples.

        Args:
            classes: where none were given, those that are known otherwise.

        Raises:
            UsageError: a value is none that a study file may have.
        """
        values: dict[str, Any] = {
            "name": task,
            "data": data,
            "labels": list(self.classes or classes) or None,
            "max_eval": self.max_eval,
            "speaker": self.speaker,
        }
        values |= {} if self.max_length is None else {"max_length": self.max_length}
        config: TaskConfig = validate(TaskConfig, values, where)
        return config

    def evaluation(self) -> dict[str, Any]:
        """What they say of a study file's ``evaluate``."""
        return {} if self.split is None else {"split": self.split}


@dataclass(frozen=True)
class Answers:
    """How answers are generated."""

    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer; 32.")] = None
    decode: Annotated[
        list[str] | None,
        typer.Option(metavar="STRATEGY[,K=V…]", help="How answers are decoded, e.g. nucleus,top_p=0.9,samples=4; greedy."),
    ] = None

    def decodings(self) -> list[dict[str, Any]]:
        """What they say of a study file's ``evaluate.decoding``.

        Raises:
            UsageError: a setting has no value.
        """
        bound = {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}
        return [{**bound, **decoding_of(text)} for text in self.decode or ["greedy"]]


@dataclass(frozen=True)
class Base:
    """The base that adapters run on."""

    base: Annotated[str | None, typer.Option(help="The base model, where the adapter does not name it.")] = None
    dtype: Annotated[str | None, typer.Option(help=f"The base model's dtype; {_DTYPE}.")] = None
    quantization: Annotated[str | None, typer.Option(help="nf4: the base in 4 bits, as it was trained.")] = None
    device: Device = None

    def on_base(self) -> OnBase:
        """The same, with the device chosen."""
        from lorascope.cohort.single import OnBase

        return OnBase(self.base, self.dtype or _DTYPE, self.quantization, chosen_device(self.device))
