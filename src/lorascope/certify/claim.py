"""What a merge says that it did: the matter that is checked. Floor: ``certify``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from lorascope.config import BaseModelConfig, TaskType


@dataclass(frozen=True)
class MergeClaim:
    """Base + adapter = merged.

    Attributes:
        base: the base that the adapter is said to have been merged into, unquantised; its dtype does not matter.
        base_directory: where that base's files are.
        model: of the merged model's class, on the meta device; looked at for names and kinds of layers.
        adapter: PEFT's directory.
        merged: the directory that was written, perhaps still under a temporary name.
        dtype: of the merged weights; ``as-base`` where each tensor keeps the base's.
        task_type: None where outputs cannot be compared, for want of a way to load and feed such a model.
        labels: class names in the order of the head's outputs; empty unless SEQ_CLS.
        in_memory: hands over the merged model as it was before it was written; None where there never was one.
        quantise: compare in four bits (NF4) too.
        tensors_only: why no model may be loaded; None to run them all.
    """

    base: BaseModelConfig
    base_directory: Path
    model: PreTrainedModel
    adapter: Path
    merged: Path
    dtype: str
    task_type: TaskType | None
    labels: tuple[str, ...] = ()
    in_memory: Callable[[], nn.Module] | None = None
    quantise: bool = False
    tensors_only: str | None = None
