"""How near a study is to the question: first the task, then the model; an explicit order without weights.

Knows facts of tasks and models. Does not know how they are read. Floor: ``recommend``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.recommend.rules import Kind

# From the nearest on. That the task comes before the model is a convention, not a finding.
ORDER = (
    "same task, same model",
    "same task, same architecture and size",
    "same task, same family in another size",
    "same task, another family",
    "same kind of task, same model",
    "same kind of task, same architecture and size",
    "same kind of task, same family in another size",
    "same kind of task, another family",
)
SAME_TASK = range(4)
SAME_MODEL = (0, 4)
SAME_SHAPE = (0, 1, 4, 5)
OTHER_SIZE = 2
# Another task and another family: shown, but nothing is taken from it.
TOO_FAR = 7

# Sizes by the names that families give them; equal ones make two models the same but for their weights.
_SIZES = (
    ("hidden_size", "n_embd", "d_model", "dim"),
    ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers"),
    ("num_decoder_layers", "decoder_layers"),
    ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads"),
    ("intermediate_size", "n_inner", "d_ff", "hidden_dim", "encoder_ffn_dim"),
    ("vocab_size",),
)


@dataclass(frozen=True)
class TaskFacts:
    """A task as far as closeness goes.

    Attributes:
        data: where its data are, as absolute paths or hub ids; what makes two tasks ``file`` the same.
    """

    name: str
    kind: Kind
    data: tuple[str, ...] = ()
    speaker: str | None = None

    def is_same(self, other: TaskFacts) -> bool:
        """Whether both learn the same; a user's own files only where they are the same files."""
        if (self.name, self.speaker) != (other.name, other.speaker):
            return False
        return self.name != "file" or self.data == other.data


@dataclass(frozen=True)
class ModelFacts:
    """A base model as far as closeness goes; None where its ``config.json`` is not at hand.

    Attributes:
        reference: absolute directory or hub id.
        num_params: of the base, roughly: a study knows it with its smallest adapter.
    """

    reference: str
    family: str | None = None
    sizes: tuple[int | None, ...] | None = None
    num_params: int | None = None


def sizes_of(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The sizes in a model's ``config.json``."""
    return tuple(next((config[name] for name in names if config.get(name) is not None), None) for names in _SIZES)


def closeness(task: TaskFacts, model: ModelFacts, of_task: TaskFacts, of_model: ModelFacts) -> int | None:
    """The place in `ORDER` of a study on ``of_task`` and ``of_model``; None for another kind of task."""
    if task.kind != of_task.kind:
        return None
    if model.reference == of_model.reference:
        place = 0
    elif model.family is None or model.family != of_model.family:
        place = 3
    else:
        place = 1 if model.sizes == of_model.sizes else 2
    return place if task.is_same(of_task) else 4 + place


def size_distance(one: ModelFacts, other: ModelFacts) -> float:
    """How many times one is doubled to be as large as the other; infinite where that is not known."""
    if not one.num_params or not other.num_params:
        return math.inf
    return abs(math.log2(one.num_params / other.num_params))
