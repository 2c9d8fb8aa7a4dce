"""How the certificate runs a model: loaded as its files say, in kernels that sum as others do, always on the same inputs.

A merged model that was written is loaded as any user loads it: by transformers, from its directory alone, with nothing set and
nothing repaired. What is compared with it runs on the same device and through the same kernels. Scores come from ``evaluate``,
which sets what it needs.

Knows how models are loaded and called. Does not know which are compared with which (``outputs``). Floor: ``certify``.

Legend: K compared positions, V classes or vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lorascope.base_model import BaseModel, head_modules, load_base
from lorascope.certify.claim import MergeClaim
from lorascope.certify.inputs import Inputs, compared_positions
from lorascope.config import EvaluateConfig, TaskType
from lorascope.evaluate import evaluate, run_to_end
from lorascope.lora.frozen import install, slow_bfloat16
from lorascope.lora.stack import Slot, Stack
from lorascope.losses import model_inputs

_AUTO_CLASSES: dict[TaskType, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
}


@dataclass(frozen=True)
class Runner:
    """What every model of a comparison is given.

    Attributes:
        num_logits: classes, or the vocabulary.
        start_id: the token that a decoder starts with; 0 where there is no decoder.
        settings: how a task is evaluated.
    """

    inputs: Inputs
    num_logits: int
    start_id: int
    settings: EvaluateConfig

    @torch.no_grad()
    def logits(self, model: nn.Module, pad_id: int) -> list[Tensor]:
        """Logits ``[K, V]`` of every batch, at least in float32, on the CPU; short rows are filled with ``pad_id``."""
        model.eval()
        device, task_type = next(model.parameters()).device, self.inputs.task_type
        found = []
        for batch in self.inputs.batches(pad_id, self.num_logits):
            inputs = model_inputs(batch, device)
            if task_type == "SEQ_2_SEQ_LM":
                assert batch.target_ids_BS is not None
                inputs["decoder_input_ids"] = F.pad(batch.target_ids_BS[:, :-1], (1, 0), value=self.start_id).to(device)
            extra = {} if task_type == "SEQ_CLS" else {"use_cache": False}
            logits = cast(Any, model)(**inputs, **extra).logits
            places = compared_positions(batch, task_type)
            chosen = logits if places is None else logits[places[0].to(device), places[1].to(device)]
            found.append(chosen.to(torch.promote_types(chosen.dtype, torch.float32)).cpu())
        return found

    def scores(self, base: BaseModel, stack: Stack | None = None) -> dict[str, float]:
        """The task's metrics; nothing where there is no task. Without a stack, of the model as it is.

        Raises:
            OutOfMemory: there is too little for the smallest batches.
        """
        if self.inputs.task is None:
            return {}
        own = stack or Stack(base.model, [Slot("merged", 0, ())], base.heads)
        try:
            evaluation = run_to_end(evaluate(own, base, self.inputs.task, self.settings))[0]
        finally:
            if stack is None:
                own.detach()
        return dict(evaluation.metrics) if evaluation.finite else {}


def load(claim: MergeClaim, model: str, dtype: str, revision: str | None = None, quantization: str | None = None) -> BaseModel:
    """A base, or a merged directory, as ``evaluate`` has it, on the claim's device.

    Raises:
        ModelError: it cannot be loaded.
    """
    # Copied, not validated: a merged model may be in float16, in which nothing is trained.
    values = {"model": model, "dtype": dtype, "revision": revision, "quantization": quantization}
    assert claim.task_type is not None
    config = claim.base.model_copy(update=values)
    if model == claim.base.model:  # a merged model has its own
        config = config.with_tokenizer(claim.tokenizer_beside)
    base = load_base(config, claim.task_type, claim.labels, claim.device)
    _hasten(base.model, base.heads)
    return base


def load_untouched(directory: Path, task_type: TaskType) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """A model as ``from_pretrained`` gives it to anyone, and what its files lack.

    Raises:
        OSError, ValueError, RuntimeError: whatever transformers raises.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, info = _AUTO_CLASSES[task_type].from_pretrained(directory, output_loading_info=True)
    finally:
        transformers_logging.set_verbosity(verbosity)
    # One of a tied pair is missing in the files and not in the model.
    return model, tuple(name for name, _ in model.named_parameters() if name in info["missing_keys"])


def placed(model: nn.Module, task_type: TaskType, device: str) -> nn.Module:
    """A model that was loaded or made in memory, where and through what the others run."""
    model = model.to(device)
    _hasten(model, head_modules(model, task_type))
    return model


def state_digests(model: nn.Module) -> dict[str, str]:
    """Of every parameter and persistent buffer a hash of shape and bits; floats of 16 bits as float32, which holds them."""
    digests = {}
    for name, value in model.state_dict().items():
        narrow = value.is_floating_point() and value.dtype.itemsize < 4
        bits = (value.float() if narrow else value).detach().cpu().contiguous().reshape(-1)
        digest = hashlib.sha256(str(tuple(value.shape)).encode())
        digest.update(bits.view(torch.uint8).numpy().data)
        digests[name] = digest.hexdigest()
    return digests


def _hasten(model: nn.Module, heads: Sequence[str]) -> None:
    """Products in 16 bits that the processor would emulate: summed in float32 and rounded once, as those that need not do."""
    weight = next(model.parameters())
    if weight.device.type == "cpu" and (weight.dtype == torch.float16 or slow_bfloat16(weight)):
        install(model, "float32", heads)
