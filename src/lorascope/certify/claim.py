"""What a merge says that it did: the matter that is checked, and whether there is room to run it. Floor: ``certify``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lorascope.amounts import bytes_text
from lorascope.certify.checkpoint import open_checkpoint
from lorascope.config import BaseModelConfig, TaskType
from lorascope.lora.beside import has_tokenizer
from lorascope.memory import free_bytes


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
        quantise: compare in four bits (NF4) too, and have that hold. An adapter that was trained on a base in four bits is
            compared so without being asked, as far as that can be done here, and never fails by it.
        trained_in: ``nf4`` where the adapter was trained so and its own files do not say it.
        commit: of the hub's snapshot that was merged into; None for a directory.
        device: where models are run.
        cleaned: what was done to the configuration files before they were certified, given their content; None for nothing.
        tensors_only: why no model may be loaded; None to run them all.
        shown_as: where the merged directory will be; None where it is there already.
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
    trained_in: str | None = None
    commit: str | None = None
    device: str = "cpu"
    cleaned: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    tensors_only: str | None = None
    shown_as: Path | None = None

    @property
    def tokenizer_beside(self) -> Path | None:
        """The adapter's directory where its tokenizer goes before the base's."""
        return self.adapter if has_tokenizer(self.adapter) else None

    @property
    def tokenizer_source(self) -> BaseModelConfig:
        """Where the merged model's tokenizer comes from, with the base's configuration, which may alone tell its class."""
        # By the directory, which is of the commit that was merged into: a branch may have moved meanwhile.
        return BaseModelConfig(model=str(self.base_directory)).with_tokenizer(self.tokenizer_beside)

    @cached_property
    def stored_dtype(self) -> str:
        """The dtype in which the merged model is loaded: the base's own for ``as-base``."""
        return open_checkpoint(self.base_directory).main_dtype if self.dtype == "as-base" else self.dtype


def trained_in(claim: MergeClaim, origin: Mapping[str, Any]) -> str | None:
    """What the base was packed as when the adapter was trained: by its own record, or else by the claim."""
    return origin.get("quantization") or claim.trained_in


# Of a model in float32: itself, activations and logits, and an adapter's small change.
_ROOM = 1.3


def why_tensors_only(
    model: PreTrainedModel, device: str = "cpu", *, limit_bytes: int | None = None, copies: float = 1.0
) -> str | None:
    """Why outputs should not be compared: the model in float32, as the adapter's reference needs it, has no room.

    Args:
        model: on the meta device.
        device: where it would be run; on its way to a GPU it passes through the machine's memory, which needs the room too.
        copies: of the model that are in memory at once.
        limit_bytes: what there is; by default the memory that is free.
    """
    needed = int(copies * _ROOM * 4 * sum(parameter.numel() for parameter in model.parameters()))
    for place in dict.fromkeys([device, "cpu"]):
        free = free_bytes(place) if limit_bytes is None else limit_bytes
        if needed > free:
            where = "" if device == "cpu" else f" on {place}"
            return f"the base takes about {bytes_text(needed)} in float32, and {bytes_text(free)} are free{where}"
    return None
