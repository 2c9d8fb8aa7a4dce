"""What the models answer: base, base + adapter, merged in memory, merged and reloaded, merged and packed into four bits.

The reference is the adapter, unmerged, on its base in float32. One model is in memory at a time. A merged model that was
written is loaded as any user loads it: by transformers, from its directory alone, with nothing set and nothing repaired.
Scores come from ``evaluate``, which sets what it needs.

Knows how models are loaded and called. Does not know what differences are tolerable (``checks``). Floor: ``certify``.

Legend: K compared positions, V classes or vocabulary.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lorascope.adapter import own_part, stack_saved
from lorascope.base_model import BaseModel, head_modules, load_base, load_tokenizer, num_positions
from lorascope.certify.claim import MergeClaim, trained_in, why_tensors_only
from lorascope.certify.inputs import Inputs, compared_positions, drawn_inputs, limited
from lorascope.certify.logits import Difference, difference
from lorascope.config import BaseModelConfig, EvaluateConfig, TaskType
from lorascope.errors import LorascopeError, ModelError
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
_AUTO_CLASSES: dict[TaskType, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
}


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
        new_parameters: what its files lack, so that loading them draws it anew.
        reloaded_otherwise: tensors that the disk gives back with other bits than they had in memory; None where the model
            never was in memory.
        packing_asked: whether four bits are a comparison that has to hold.
        not_packed: why four bits were not compared although the adapter was trained so; None where they were, or it was not.
        no_float64: why it was not measured what float32 itself costs; None where it was, or need not be.
    """

    inputs: Inputs
    rows: list[Compared] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    unloadable: str | None = None
    new_parameters: tuple[str, ...] = ()
    reloaded_otherwise: tuple[str, ...] | None = None
    packing_asked: bool = False
    not_packed: str | None = None
    no_float64: str | None = None
    warnings: list[str] = field(default_factory=list)

    def find(self, name: str, against: str = REFERENCE) -> Compared | None:
        """The comparison of this name; None where it was not made."""
        return next((row for row in self.rows if row.name == name and row.against == against), None)


def compare_outputs(claim: MergeClaim, given: Inputs | None, settings: EvaluateConfig) -> Outputs:
    """Run every model on the same inputs.

    Args:
        given: a task's examples; None for drawn texts.

    Raises:
        LorascopeError: the base, the adapter or the data cannot be used; what is wrong with the merged model is a result.
        MemoryError, RuntimeError: memory ran out.
    """
    saved = read_adapter(claim.adapter)
    base = _load(claim, claim.base.model, "float32", claim.base.revision)
    saved = own_part(saved, base.model)  # of the base in full: in a narrower dtype a copy is no longer to be told
    num_parameters = sum(one.numel() for one in base.model.parameters())
    inputs = drawn_inputs(base.tokenizer, base.task_type, num_parameters) if given is None else given
    inputs = limited(inputs, _num_logits(base), num_positions(base.model.config))
    outputs = Outputs(inputs, packing_asked=claim.quantise, warnings=list(inputs.warnings))
    run = _Run(claim, settings, inputs, outputs, base)
    alone, _ = run.with_adapter(base, _without_update(saved), scored=False)
    reference, outputs.scores = run.with_adapter(base, saved)
    outputs.rows.append(Compared(BASE, REFERENCE, difference(reference, alone)))
    del base, alone
    gc.collect()
    if claim.dtype != "float32":
        run.unmerged(saved, reference, claim.dtype, UNMERGED)
    try:
        reloaded = run.merged(reference)
    except (LorascopeError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        outputs.unloadable = (str(error).splitlines() or [type(error).__name__])[0][:300]
        return outputs
    if claim.quantise:
        run.packed(saved, reference, reloaded)
    elif trained_in(claim, saved.origin) == "nf4":
        run.packed_if_possible(saved, reference, reloaded)
    rows = (outputs.find(RELOADED), outputs.find(IN_MEMORY))
    apart = max((row.difference.relative_difference or 0.0 for row in rows if row is not None), default=0.0)
    if claim.dtype == "float32" and apart > MOST_RELATIVE_FLOAT32:
        # Is it the merge, or does float32 cost so much in this model?
        outputs.no_float64 = why_tensors_only(claim.model, copies=2.0)
        if outputs.no_float64 is None:
            run.in_float64(saved, reference)
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

    def merged(self, reference: Sequence[Tensor]) -> list[Tensor]:
        """The merged model as it was in memory, and as it comes back from the disk; the latter's logits."""
        claim = self.claim
        before, bits = None, None
        if claim.in_memory is not None:
            model = claim.in_memory()
            bits = state_digests(model)
            before = self.logits(_prepared(model, self.pad_id), self.pad_id)
            del model
            gc.collect()
            self.row(IN_MEMORY, reference, before, {})
        loaded, self.outputs.new_parameters = load_untouched(claim.merged, self.task_type)
        if bits is not None:
            again = state_digests(loaded)
            differing = sorted(name for name in bits.keys() | again.keys() if bits.get(name) != again.get(name))
            self.outputs.reloaded_otherwise = tuple(differing)
        _hasten(loaded, head_modules(loaded, self.task_type))
        reloaded = self.logits(loaded, self.merged_pad_id())
        del loaded
        gc.collect()
        self.row(RELOADED, reference, reloaded, self.score_of_merged())
        if before is not None:
            self.outputs.rows.append(Compared(RELOADED, IN_MEMORY, difference(before, reloaded)))
        return reloaded

    def merged_pad_id(self) -> int:
        """What the merged directory's own tokenizer fills short rows with.

        Raises:
            ModelError: nothing, and a classifier's rows have to be filled.
        """
        pads = load_tokenizer(BaseModelConfig(model=str(self.claim.merged))).pad_token_id
        if pads is None and self.task_type == "SEQ_CLS":
            what = "its tokenizer has no pad token, so that texts cannot be classified together"
            raise ModelError(what, fix="give the tokenizer a pad token, and config.json its id")
        return self.pad_id if pads is None else int(pads)

    def score_of_merged(self) -> dict[str, float]:
        """The task's metrics of the merged model; nothing where there is no task."""
        if self.inputs.task is None:
            return {}
        base = _load(self.claim, str(self.claim.merged), self.claim.dtype, None)
        return self.score(base, None)

    def packed(self, saved: SavedAdapter, reference: Sequence[Tensor], reloaded: Sequence[Tensor]) -> None:
        """The adapter on the base in four bits, how far the merged model in full is from that, and the merged model packed."""
        claim = self.claim
        own = self.unmerged(saved, reference, "nf4", UNMERGED_QUANTISED)
        self.outputs.rows.append(Compared(RELOADED, UNMERGED_QUANTISED, difference(own, list(reloaded))))
        packed = _load(claim, str(claim.merged), claim.dtype, None, "nf4")
        self.row(QUANTISED, reference, self.logits(packed.model, self.pad_id), self.score(packed, None))

    def packed_if_possible(self, saved: SavedAdapter, reference: Sequence[Tensor], reloaded: Sequence[Tensor]) -> None:
        """As ``packed``, which nobody asked for: where it cannot be done, that is said."""
        if find_spec("bitsandbytes") is None:
            self.outputs.not_packed = "the adapter was trained in four bits, and bitsandbytes is not installed"
            return
        try:
            self.packed(saved, reference, reloaded)
        except (LorascopeError, MemoryError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            self.outputs.not_packed = f"the adapter was trained in four bits, which cannot be run here: {reason}"

    def unmerged(self, saved: SavedAdapter, reference: Sequence[Tensor], kind: str, name: str) -> list[Tensor]:
        """The adapter on the base in this dtype, or in four bits: what merging has to be measured by; its logits."""
        claim = self.claim
        dtype, quantization = (claim.dtype, "nf4") if kind == "nf4" else (kind, None)
        base = _load(claim, claim.base.model, dtype, claim.base.revision, quantization)
        logits, scores = self.with_adapter(base, saved, scored=kind != "float64")
        self.row(name, reference, logits, scores)
        return logits

    def in_float64(self, saved: SavedAdapter, reference: Sequence[Tensor]) -> None:
        """The adapter unmerged in float64; some models have no kernels for that (experts, multiplied in groups)."""
        try:
            self.unmerged(saved, reference, "float64", UNMERGED_FLOAT64)
        except (LorascopeError, MemoryError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            self.outputs.no_float64 = f"the model does not run in float64 ({reason})"

    def with_adapter(
        self, base: BaseModel, saved: SavedAdapter, *, scored: bool = True
    ) -> tuple[list[Tensor], dict[str, float]]:
        """Logits and scores of the adapter on this base."""
        stack = stack_saved(base, saved, str(self.claim.adapter))
        try:
            return self.logits(base.model, base.pad_id), self.score(base, stack) if scored else {}
        finally:
            stack.detach()

    def row(self, name: str, reference: Sequence[Tensor], logits: Sequence[Tensor], scores: dict[str, float]) -> None:
        """Take a comparison with the reference down."""
        self.outputs.rows.append(Compared(name, REFERENCE, difference(list(reference), list(logits)), scores))

    @torch.no_grad()
    def logits(self, model: nn.Module, pad_id: int) -> list[Tensor]:
        """Logits ``[K, V]`` of every batch, at least in float32, on the CPU; short rows are filled with ``pad_id``."""
        model.eval()
        device = next(model.parameters()).device
        found = []
        for batch in self.inputs.batches(pad_id, self.num_logits):
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


def _num_logits(base: BaseModel) -> int:
    """Classes, or the vocabulary."""
    config: Any = base.model.config
    return int(config.num_labels if base.task_type == "SEQ_CLS" else config.vocab_size)


def _prepared(model: nn.Module, pad_id: int) -> nn.Module:
    """The model as ``_load`` would have it: told what fills short rows, for a classifier looks for a row's last token."""
    config: Any = model.config
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
    config = claim.base.model_copy(update=values)
    if model == claim.base.model:  # a merged model has its own
        config = config.with_tokenizer(claim.tokenizer_beside)
    base = load_base(config, claim.task_type, claim.labels)
    _hasten(base.model, base.heads)
    return base
