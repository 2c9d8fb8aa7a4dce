"""What an evaluation hands out: its progress, and one result per slot. Floor: ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lorascope.config import DecodingConfig
from lorascope.data.task import Example

_Step = TypeVar("_Step")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class EvaluationStep:
    """How far a pass over the evaluation examples has come, or over what ``unit`` says."""

    stage: str
    done: int
    total: int
    unit: str = "examples"


@dataclass(frozen=True)
class Decoded:
    """What one way of decoding gave.

    Attributes:
        metrics: scores of the texts, how diverse they are among them.
        tokens_per_answer: mean length, the end token not counted.
        answers_per_second: of all slots together, which were decoded at once.
        unfinished: answers that were cut before their end token.
    """

    decoding: DecodingConfig
    metrics: dict[str, float]
    tokens_per_answer: float
    answers_per_second: float
    unfinished: int

    @property
    def unfinished_message(self) -> str:
        """What people are told where answers were cut."""
        limit = self.decoding.max_new_tokens
        return f"{self.unfinished} answers were cut at max_new_tokens {limit}, before their end token"

    def record(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "label": self.decoding.label,
            **self.decoding.model_dump(mode="json"),
            "metrics": self.metrics,
            "tokens_per_answer": self.tokens_per_answer,
            "answers_per_second": self.answers_per_second,
            "unfinished": self.unfinished,
        }


@dataclass
class Evaluation:
    """One slot's result.

    Attributes:
        finite: False where a loss or logit was no number; then there are no metrics to rank.
        decoded: one for each way of decoding; the scores of the first are among ``metrics``.
        batch_tokens: of the batches that fitted into memory.
        warnings: what else must be told.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    finite: bool = True
    decoded: list[Decoded] = field(default_factory=list)
    batch_tokens: int = 0
    warnings: list[str] = field(default_factory=list)


def group_of(example: Example) -> dict[str, str]:
    """What a prediction's row says of examples that belong together; nothing where the example is alone."""
    return {"group": example.group} if example.group else {}


EvaluationRun = Generator[EvaluationStep, None, list[Evaluation]]


def run_to_end(running: Generator[_Step, None, _Result], tell: Callable[[_Step], object] | None = None) -> _Result:
    """The result of an evaluation, or of what yields its progress likewise; each step is handed to ``tell`` on the way."""
    while True:
        try:
            step = next(running)
        except StopIteration as stop:
            result: _Result = stop.value
            return result
        if tell is not None:
            tell(step)
