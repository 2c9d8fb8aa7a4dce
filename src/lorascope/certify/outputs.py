"""What the models answer: base, base + adapter, merged in memory, merged and reloaded, merged and packed into four bits.

The reference is the adapter, unmerged, on its base in float32. One model is in memory at a time. Where a step fails, for want
of memory say, the comparison ends with what was found until then, and says at what it ended: hours of merging are not lost by
it. Where a score alone cannot be made, the logits go on.

Knows the order of the steps, and which model is compared with which. Does not know how one is run (``running``), nor what
differences are tolerable (``checks``). Floor: ``certify``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lorascope.adapter import own_part, stack_saved
from lorascope.base_model import BaseModel, load_tokenizer, num_positions
from lorascope.certify.claim import MergeClaim, trained_in, why_tensors_only
from lorascope.certify.inputs import Inputs, drawn_inputs, limited
from lorascope.certify.logits import Difference, difference
from lorascope.certify.running import Runner, load, load_untouched, placed, state_digests
from lorascope.config import BaseModelConfig, EvaluateConfig
from lorascope.errors import LorascopeError, ModelError, OutOfMemory
from lorascope.lora.peft_io import SavedAdapter, read_adapter
from lorascope.lora.stack import Stack
from lorascope.losses import is_out_of_memory

REFERENCE, UNMERGED = "adapter, float32", "adapter, unmerged"
BASE, IN_MEMORY, RELOADED = "base alone, float32", "merged in memory", "merged, reloaded"
UNMERGED_FLOAT64 = "adapter, unmerged, float64"
# Of two float32 models, relative to the logits: what few models exceed by rounding alone.
MOST_RELATIVE_FLOAT32 = 1e-5
QUANTISED, UNMERGED_QUANTISED = "merged and quantised (nf4)", "adapter on the nf4 base"
# What a machine may not be able to do: no memory, no kernel for it, no library. Anything else is a bug.
_FAILURES = (LorascopeError, MemoryError, RuntimeError, ImportError)
# What libraries raise besides for a directory that cannot be loaded or run.
_DAMAGE = (OSError, ValueError, KeyError, TypeError)


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
        inputs: on what; None where it ended before they were drawn.
        scores: of the reference.
        stopped: why the comparison ended early, and at what; None where it was carried through.
        unscored: why there are no scores, or none from a step on, and at which; None where there are all that were asked for.
        unloadable: why the merged model cannot be loaded or run; None where it can.
        new_parameters: what its files lack, so that loading them draws it anew.
        reloaded_otherwise: tensors that the disk gives back with other bits than they had in memory; None where the model
            never was in memory.
        packing_asked: whether four bits are a comparison that has to hold.
        not_packed: why four bits were not compared although they were asked for, or the adapter was trained so; else None.
        no_float64: why it was not measured what float32 itself costs; None where it was, or need not be.
    """

    inputs: Inputs | None = None
    rows: list[Compared] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None
    unscored: str | None = None
    unloadable: str | None = None
    new_parameters: tuple[str, ...] = ()
    reloaded_otherwise: tuple[str, ...] | None = None
    packing_asked: bool = False
    not_packed: str | None = None
    no_float64: str | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def incomplete(self) -> str | None:
        """Why not everything was compared and scored; None where it was."""
        return "; ".join(filter(None, (self.stopped, self.unscored))) or None

    @property
    def reached_the_disk(self) -> bool:
        """Whether it is known what the merged model in its directory answers, or that it answers nothing."""
        return self.unloadable is not None or self.find(RELOADED) is not None

    def find(self, name: str, against: str = REFERENCE) -> Compared | None:
        """The comparison of this name; None where it was not made."""
        return next((row for row in self.rows if row.name == name and row.against == against), None)


def compare_outputs(claim: MergeClaim, given: Inputs | None, settings: EvaluateConfig) -> Outputs:
    """Run every model on the same inputs.

    Args:
        given: a task's examples; None for drawn texts.

    Returns:
        What was found. Where a base or an adapter cannot be had on this machine, ``stopped`` says so, ``unscored`` where a
        score cannot; what is wrong with the merged model is a result too.
    """
    comparison = _Comparison(claim)
    try:
        comparison.carry_out(given, settings)
    except _FAILURES as error:
        comparison.outputs.stopped = f"{_reason(error)} (while {comparison.doing})"
    return comparison.outputs


class _Comparison:
    """The comparison under way.

    Attributes:
        doing: at what it is, as ``while …`` goes on.
        outputs: what was found until now.
    """

    runner: Runner
    pad_id: int

    def __init__(self, claim: MergeClaim) -> None:
        self.claim = claim
        self.doing = "the adapter was run unmerged in float32"
        self.outputs = Outputs(packing_asked=claim.quantise)

    def carry_out(self, given: Inputs | None, settings: EvaluateConfig) -> None:
        """Model by model, in the order in which they can fail: those that need the most first."""
        claim, outputs = self.claim, self.outputs
        saved, reference = self.of_reference(given, settings)
        if claim.dtype != "float32":
            self.doing = f"the adapter was run unmerged in {claim.dtype}"
            self.unmerged(saved, reference, claim.dtype, UNMERGED)
        self.doing = "the merged model was run"
        try:
            reloaded = self.merged(reference)
        except (LorascopeError, RuntimeError, *_DAMAGE) as error:
            if is_out_of_memory(error):
                raise
            outputs.unloadable = (str(error).splitlines() or [type(error).__name__])[0][:300]
            return
        rows = (outputs.find(RELOADED), outputs.find(IN_MEMORY))
        apart = max((row.difference.relative_difference or 0.0 for row in rows if row is not None), default=0.0)
        if claim.dtype == "float32" and apart > MOST_RELATIVE_FLOAT32:
            # Is it the merge, or does float32 cost so much in this model?
            outputs.no_float64 = why_tensors_only(claim.model, claim.device, copies=2.0)
            if outputs.no_float64 is None:
                self.in_float64(saved, reference)
        row = outputs.find(RELOADED)
        assert row is not None
        self.score(row.scores, "the merged model was scored", None)
        if claim.quantise or trained_in(claim, saved.origin) == "nf4":
            self.packed(saved, reference, reloaded)

    def of_reference(self, given: Inputs | None, settings: EvaluateConfig) -> tuple[SavedAdapter, list[Tensor]]:
        """The adapter and its logits on the base in float32; what the inputs are, and what the base alone answers."""
        saved = read_adapter(self.claim.adapter)
        base = self.base("float32")
        saved = own_part(saved, base.model)  # of the base in full: in a narrower dtype a copy is no longer to be told
        num_parameters = sum(one.numel() for one in base.model.parameters())
        config: Any = base.model.config
        num_logits = int(config.num_labels if base.task_type == "SEQ_CLS" else config.vocab_size)
        inputs = drawn_inputs(base.tokenizer, base.task_type, num_parameters) if given is None else given
        inputs = limited(inputs, num_logits, num_positions(config))
        self.outputs.inputs = inputs
        self.outputs.warnings += inputs.warnings
        start_id = base.start_id if base.task_type == "SEQ_2_SEQ_LM" else 0
        self.runner, self.pad_id = Runner(inputs, num_logits, start_id, settings), base.pad_id
        with self.adapted(base, _without_update(saved)):
            alone = self.runner.logits(base.model, base.pad_id)
        with self.adapted(base, saved) as stack:
            reference = self.runner.logits(base.model, base.pad_id)
            self.row(BASE, reference, alone)
            self.score(self.outputs.scores, "the adapter was scored unmerged in float32", base, stack)
        del base
        gc.collect()
        return saved, reference

    def merged(self, reference: Sequence[Tensor]) -> list[Tensor]:
        """The merged model as it was in memory, and as it comes back from the disk; the latter's logits."""
        claim, task_type = self.claim, self.runner.inputs.task_type
        before, bits = None, None
        if claim.in_memory is not None:
            model = claim.in_memory()
            bits = state_digests(model)
            config: Any = model.config
            config.pad_token_id = self.pad_id  # a classifier looks for a row's last token by what fills it
            before = self.runner.logits(placed(model, task_type, claim.device), self.pad_id)
            del model
            gc.collect()
            self.row(IN_MEMORY, reference, before)
        loaded, self.outputs.new_parameters = load_untouched(claim.merged, task_type)
        if bits is not None:
            again = state_digests(loaded)
            differing = sorted(name for name in bits.keys() | again.keys() if bits.get(name) != again.get(name))
            self.outputs.reloaded_otherwise = tuple(differing)
        reloaded = self.runner.logits(placed(loaded, task_type, claim.device), self.merged_pad_id())
        del loaded
        gc.collect()
        self.row(RELOADED, reference, reloaded)
        if before is not None:
            self.outputs.rows.append(Compared(RELOADED, IN_MEMORY, difference(before, reloaded)))
        return reloaded

    def merged_pad_id(self) -> int:
        """What the merged directory's own tokenizer fills short rows with.

        Raises:
            ModelError: nothing, and a classifier's rows have to be filled.
        """
        pads = load_tokenizer(BaseModelConfig(model=str(self.claim.merged))).pad_token_id
        if pads is None and self.runner.inputs.task_type == "SEQ_CLS":
            what = "its tokenizer has no pad token, so that texts cannot be classified together"
            raise ModelError(what, fix="give the tokenizer a pad token, and config.json its id")
        return self.pad_id if pads is None else int(pads)

    def score(self, scores: dict[str, float], doing: str, base: BaseModel | None, stack: Stack | None = None) -> None:
        """The task's metrics, put beside the logits that were compared before; nothing where there is no task.

        Where that fails, nothing more is scored: scores say something beside each other alone.

        Args:
            scores: are filled.
            doing: as ``while …`` goes on.
            base: the model that is scored; None for the merged one, which is loaded for it.
        """
        outputs, claim = self.outputs, self.claim
        if self.runner.inputs.task is None or outputs.unscored is not None:
            return
        failures = (*_FAILURES, *_DAMAGE) if base is None else _FAILURES
        try:
            model = load(claim, str(claim.merged), claim.dtype) if base is None else base
            scores.update(self.runner.scores(model, stack))
        except failures as error:
            outputs.unscored = f"{_reason(error)} (while {doing})"

    def packed(self, saved: SavedAdapter, reference: Sequence[Tensor], reloaded: Sequence[Tensor]) -> None:
        """The adapter on the base in four bits, how far the merged model in full is from that, and the merged model packed.

        Where that cannot be done it is said; whether it has to be is not judged here.
        """
        claim, outputs = self.claim, self.outputs
        why = "four bits were asked for" if claim.quantise else "the adapter was trained in four bits"
        if find_spec("bitsandbytes") is None:
            outputs.not_packed = f"{why}, and bitsandbytes is not installed"
            return
        try:
            own = self.unmerged(saved, reference, "nf4", UNMERGED_QUANTISED)
            outputs.rows.append(Compared(RELOADED, UNMERGED_QUANTISED, difference(own, list(reloaded))))
            packed = load(claim, str(claim.merged), claim.dtype, None, "nf4")
            row = self.row(QUANTISED, reference, self.runner.logits(packed.model, self.pad_id))
            self.score(row.scores, "the merged model was scored in four bits", packed)
        except (*_FAILURES, ValueError) as error:
            outputs.not_packed = f"{why}, which cannot be run here: {_reason(error)}"

    def unmerged(self, saved: SavedAdapter, reference: Sequence[Tensor], kind: str, name: str) -> list[Tensor]:
        """The adapter on the base in this dtype, or in four bits: what merging has to be measured by; its logits."""
        dtype, quantization = (self.claim.dtype, "nf4") if kind == "nf4" else (kind, None)
        base = self.base(dtype, quantization)
        with self.adapted(base, saved) as stack:
            logits = self.runner.logits(base.model, base.pad_id)
            row = self.row(name, reference, logits)
            if kind != "float64":
                bits = "four bits" if kind == "nf4" else kind
                self.score(row.scores, f"the adapter was scored unmerged in {bits}", base, stack)
        return logits

    def in_float64(self, saved: SavedAdapter, reference: Sequence[Tensor]) -> None:
        """The adapter unmerged in float64; some models have no kernels for that (experts, multiplied in groups)."""
        try:
            self.unmerged(saved, reference, "float64", UNMERGED_FLOAT64)
        except _FAILURES as error:
            self.outputs.no_float64 = f"the model does not run in float64 ({_reason(error)})"

    def base(self, dtype: str, quantization: str | None = None) -> BaseModel:
        """The base that was merged into, by its commit where that is known: a branch may have moved meanwhile."""
        own = self.claim.base
        return load(self.claim, own.model, dtype, self.claim.commit or own.revision, quantization)

    @contextmanager
    def adapted(self, base: BaseModel, saved: SavedAdapter) -> Iterator[Stack]:
        """The adapter on this base, within the block."""
        stack = stack_saved(base, saved, str(self.claim.adapter))
        try:
            yield stack
        finally:
            stack.detach()

    def row(self, name: str, reference: Sequence[Tensor], logits: Sequence[Tensor]) -> Compared:
        """Take a comparison with the reference down."""
        row = Compared(name, REFERENCE, difference(list(reference), list(logits)))
        self.outputs.rows.append(row)
        return row


def _reason(error: BaseException) -> str:
    """Why something could not be done, in one line."""
    if isinstance(error, OutOfMemory) or is_out_of_memory(error):
        return "memory ran out"
    first = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return error.what if isinstance(error, LorascopeError) else first


def _without_update(saved: SavedAdapter) -> SavedAdapter:
    """The adapter's heads and no more: a head that the base lacks would otherwise be a random one."""
    zeros = {key: torch.zeros_like(value) for key, value in saved.weights.lora_B.items()}
    return replace(saved, weights=replace(saved.weights, lora_B=zeros, biases={}))
