"""What the models answer: base, base + adapter, merged in memory, merged and reloaded, merged and packed into four bits.

The reference is the adapter, unmerged, on its base in float32. One model is in memory at a time. A merged model that was
written is loaded as any model is, from its directory alone. Scores come from ``evaluate``.

Knows how models are loaded and called. Does not know what differences are tolerable (``checks``). Floor: ``certify``.

Legend: K compared positions, V classes or vocabulary.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorascope.adapter import stack_saved
from lorascope.base_model import BaseModel, load_base, num_positions
from lorascope.certify.claim import MergeClaim, why_tensors_only
from lorascope.certify.inputs import Inputs, compared_positions, drawn_inputs, limited, task_inputs
from lorascope.certify.logits import Difference, difference
from lorascope.config import EvaluateConfig, TaskConfig
from lorascope.errors import LorascopeError, UsageError
from lorascope.evaluate import evaluate, run_to_end
from lorascope.lora.frozen import install, slow_bfloat16
from lorascope.lora.peft_io import SavedAdapter, read_adapter
from lorascope.lora.stack import Slot, Stack
from lorascope.losses import is_out_of_memory, model_inputs

REFERENCE, UNMERGED = "adapter, float32", "adapter, unmerged"
BASE, IN_MEMORY, RELOADED = "base alone, float32", "merged in memory", "merged, reloaded"
UNMERGED_FLOAT64 = "adapter, unmerged, float64"
# Of two float32 models, relative to the logits: what few models exceed by rounding alone.
MOST_RELATIVE_FLOAT32 = 1e-5
QUANTISED, UNMERGED_QUANTISED = "merged and quantised (nf4)", "adapter on the nf4 base"


@dataclass(frozen=True)
class Compared:
    """One model against a reference: figures, and its score where there is a task."""

    name: str
    against: str
    difference: Difference
    scores: dict[str, float] = field(default_factory=dict)


@dataclass
class Outputs:
    """What came of the comparison.

    Attributes:
        scores: of the reference.
        unloadable: why the merged model cannot be loaded or run; None where it can.
    """

    inputs: Inputs
    rows: list[Compared] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    unloadable: str | None = None
    new_parameters: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)

    def find(self, name: str, against: str = REFERENCE) -> Compared | None:
        """The comparison of this name; None where it was not made."""
        return next((row for row in self.rows if row.name == name and row.against == against), None)


def compare_outputs(claim: MergeClaim, task: TaskConfig | None, settings: EvaluateConfig) -> Outputs:
    """Run every model on the same inputs.

    Raises:
        LorascopeError: the base, the adapter or the data cannot be used; what is wrong with the merged model is a result.
    """
    saved = read_adapter(claim.adapter)
    base = _load(claim, claim.base.model, "float32", claim.base.revision)
    inputs = (
        drawn_inputs(base.tokenizer, base.task_type, sum(one.numel() for one in base.model.parameters()))
        if task is None
        else task_inputs(task, settings.split, base.task_type, base.tokenizer)
    )
    if inputs.task is not None and len(inputs.task.labels) != len(claim.labels):
        counts = f"{len(inputs.task.labels)} classes in the data, {len(claim.labels)} in the adapter"
        raise UsageError(counts, where="--labels", fix="name the adapter's classes, in its order")
    inputs = limited(inputs, _num_logits(base), num_positions(base.model.config))
    outputs = Outputs(inputs, warnings=list(inputs.warnings))
    run = _Run(claim, settings, inputs, outputs, base)
    alone, _ = run.with_adapter(base, _without_update(saved), scored=False)
    reference, outputs.scores = run.with_adapter(base, saved)
    outputs.rows.append(Compared(BASE, REFERENCE, difference(reference, alone)))
    del base, alone
    gc.collect()
    if claim.dtype != "float32":
        run.unmerged(saved, reference, claim.dtype, UNMERGED)
    if claim.quantise:
        run.unmerged(saved, reference, "nf4", UNMERGED_QUANTISED)
    try:
        run.merged(reference)
    except (LorascopeError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        outputs.unloadable = str(error).splitlines()[0][:300]
    found = outputs.find(RELOADED)
    apart = 0.0 if found is None else found.difference.relative_difference or 0.0
    if claim.dtype == "float32" and apart > MOST_RELATIVE_FLOAT32 and why_tensors_only(claim.model, copies=2.0) is None:
        # Is it the merge, or does float32 cost so much in this model?
        run.unmerged(saved, reference, "float64", UNMERGED_FLOAT64)
    return outputs


class _Run:
    """The comparison under way."""

    def __init__(self, claim: MergeClaim, settings: EvaluateConfig, inputs: Inputs, outputs: Outputs, base: BaseModel) -> None:
        self.claim = claim
        self.settings = settings
        self.inputs = inputs
        self.outputs = outputs
        self.num_logits = _num_logits(base)
        self.task_type = base.task_type
        self.pad_id = base.pad_id
        self.start_id = base.start_id if base.task_type == "SEQ_2_SEQ_LM" else 0

    def merged(self, reference: Sequence[Tensor]) -> None:
        """The merged model as it was in memory, and as it comes back from the disk."""
        claim = self.claim
        before = None
        if claim.in_memory is not None:
            before = self.logits(_prepared(claim.in_memory(), self.pad_id))
            gc.collect()
            self.row(IN_MEMORY, reference, before, {})
        like = _load(claim, str(claim.merged), claim.dtype, None)
        self.outputs.new_parameters = like.new_parameters
        reloaded = self.logits(like.model)
        self.row(RELOADED, reference, reloaded, self.score(like, None))
        if before is not None:
            self.outputs.rows.append(Compared(RELOADED, IN_MEMORY, difference(before, reloaded)))
        del like, before, reloaded
        gc.collect()
        if claim.quantise:
            packed = _load(claim, str(claim.merged), claim.dtype, None, "nf4")
            self.row(QUANTISED, reference, self.logits(packed.model), self.score(packed, None))

    def unmerged(self, saved: SavedAdapter, reference: Sequence[Tensor], kind: str, name: str) -> None:
        """The adapter on the base in this dtype, or in four bits: what merging has to be measured by."""
        claim = self.claim
        dtype, quantization = (claim.dtype, "nf4") if kind == "nf4" else (kind, None)
        base = _load(claim, claim.base.model, dtype, claim.base.revision, quantization)
        logits, scores = self.with_adapter(base, saved, scored=kind != "float64")
        self.row(name, reference, logits, scores)

    def with_adapter(
        self, base: BaseModel, saved: SavedAdapter, *, scored: bool = True
    ) -> tuple[list[Tensor], dict[str, float]]:
        """Logits and scores of the adapter on this base."""
        stack = stack_saved(base, saved, str(self.claim.adapter))
        try:
            return self.logits(base.model), self.score(base, stack) if scored else {}
        finally:
            stack.detach()

    def row(self, name: str, reference: Sequence[Tensor], logits: Sequence[Tensor], scores: dict[str, float]) -> None:
        """Take a comparison with the reference down."""
        self.outputs.rows.append(Compared(name, REFERENCE, difference(list(reference), list(logits)), scores))

    @torch.no_grad()
    def logits(self, model: nn.Module) -> list[Tensor]:
        """Logits ``[K, V]`` of every batch, at least in float32, on the CPU."""
        model.eval()
        device = next(model.parameters()).device
        found = []
        for batch in self.inputs.batches(self.pad_id, self.num_logits):
            inputs = model_inputs(batch, device)
            if self.task_type == "SEQ_2_SEQ_LM":
                assert batch.target_ids_BS is not None
                inputs["decoder_input_ids"] = F.pad(batch.target_ids_BS[:, :-1], (1, 0), value=self.start_id).to(device)
            extra = {} if self.task_type == "SEQ_CLS" else {"use_cache": False}
            logits = cast(Any, model)(**inputs, **extra).logits
            places = compared_positions(batch, self.task_type)
            chosen = logits if places is None else logits[places[0].to(device), places[1].to(device)]
            found.append(chosen.to(torch.promote_types(chosen.dtype, torch.float32)).cpu())
        return found

    def score(self, base: BaseModel, stack: Stack | None) -> dict[str, float]:
        """The task's metrics; nothing where there is no task. Without a stack, of the model as it is."""
        if self.inputs.task is None:
            return {}
        own = stack or Stack(base.model, [Slot("merged", 0, ())], base.heads)
        try:
            evaluation = run_to_end(evaluate(own, base, self.inputs.task, self.settings))[0]
        finally:
            if stack is None:
                own.detach()
        return dict(evaluation.metrics) if evaluation.finite else {}


def _num_logits(base: BaseModel) -> int:
    """Classes, or the vocabulary."""
    config: Any = base.model.config
    return int(config.num_labels if base.task_type == "SEQ_CLS" else config.vocab_size)


def _prepared(model: nn.Module, pad_id: int) -> nn.Module:
    """The model as ``_load`` would have it: told what fills short rows, for a classifier looks for a row's last token."""
    config: Any = model.config
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = pad_id
    _hasten(model, ())
    return model


def _hasten(model: nn.Module, heads: Sequence[str]) -> None:
    """Products in 16 bits that the processor would emulate: summed in float32 and rounded once, as those that need not do."""
    weight = next(model.parameters())
    if weight.device.type == "cpu" and (weight.dtype == torch.float16 or slow_bfloat16(weight)):
        install(model, "float32", heads)


def _without_update(saved: SavedAdapter) -> SavedAdapter:
    """The adapter's heads and no more: a head that the base lacks would otherwise be a random one."""
    zeros = {key: torch.zeros_like(value) for key, value in saved.weights.lora_B.items()}
    return replace(saved, weights=replace(saved.weights, lora_B=zeros, biases={}))


def _load(claim: MergeClaim, model: str, dtype: str, revision: str | None, quantization: str | None = None) -> BaseModel:
    # Copied, not validated: a merged model may be in float16, in which nothing is trained.
    values = {"model": model, "dtype": dtype, "revision": revision, "quantization": quantization}
    assert claim.task_type is not None
    base = load_base(claim.base.model_copy(update=values), claim.task_type, claim.labels)
    _hasten(base.model, base.heads)
    return base
