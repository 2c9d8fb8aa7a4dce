"""What can be known of a merge before anything is written: the adapter's files, its base's identity, the task's data.

That the adapter belongs to another base is known by one reading of the base, where the adapter tells a checksum, and at once
where it does not.

Knows the adapter's and the base's files. Does not look at the merged directory (``certificate``). Floor: ``certify``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lorascope.base_model import head_modules, load_tokenizer, task_type_of
from lorascope.certify import checks as judged
from lorascope.certify.checkpoint import Checkpoint, open_checkpoint
from lorascope.certify.checks import Check
from lorascope.certify.claim import MergeClaim
from lorascope.certify.inputs import Inputs, task_inputs
from lorascope.certify.layout import Layout, base_weights_checksum, place
from lorascope.certify.tensors import is_base_s
from lorascope.certify.update import AdapterFiles, absent_modules, read_updates
from lorascope.config import EvaluateConfig, TaskConfig
from lorascope.errors import ModelError, UsageError
from lorascope.lora.beside import grown_vocabulary, larger_vocabulary
from lorascope.plan import fitting_lengths

SCORE = "the task's score"


@dataclass(frozen=True)
class Beforehand:
    """What was found before the merge.

    Attributes:
        layout: of the merged model's class, which is the base's with the adapter's head.
        checks: of the adapter and of the base's identity.
        asked: what was asked for that needs models to be run; None where nothing was.
        settings: how a task is evaluated.
        inputs: a task's examples; None where none was given.
    """

    adapter: AdapterFiles
    base: Checkpoint
    layout: Layout
    checks: tuple[Check, ...]
    asked: str | None = None
    settings: EvaluateConfig = field(default_factory=EvaluateConfig)
    inputs: Inputs | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the merge yet."""
        return not any(check.verdict == "fails" for check in self.checks)


def examine(claim: MergeClaim, task: TaskConfig | None = None, settings: EvaluateConfig | None = None) -> Beforehand:
    """Look at what a merge is made of; the merged directory may be empty still.

    Args:
        task: whose examples are the inputs, and whose score is compared; None for drawn texts.
        settings: how it is evaluated.

    Raises:
        LorascopeError: the base's or the adapter's files, or the task, cannot be read.
    """
    settings = settings or EvaluateConfig()
    adapter, base = read_updates(claim.adapter), open_checkpoint(claim.base_directory)
    layout = Layout.of(claim.model)
    wanted = [SCORE if task is not None else "", "the comparison in four bits" if claim.quantise else ""]
    asked = " and ".join(filter(None, wanted)) or None
    found = [*_adapter_checks(claim, adapter, layout, base), *_identity_checks(claim, adapter, layout, base)]
    why = why_no_outputs(claim)
    if why is None and asked is not None:
        why = _why_not_beside(adapter, layout, base, claim)
    if why is not None and asked is not None:
        found.append(judged.tensors_only_check(why, asked))
    inputs = _inputs(claim, task, settings) if task is not None and why is None else None
    return Beforehand(adapter, base, layout, tuple(found), asked, settings, inputs)


def why_no_outputs(claim: MergeClaim) -> str | None:
    """Why no model can be run, whatever the merge turns out to be; None where all can."""
    if claim.tensors_only is not None:
        return claim.tensors_only
    if claim.task_type is None:
        return f"the outputs of a {type(claim.model).__name__} cannot be compared here"
    return None


def _why_not_beside(adapter: AdapterFiles, layout: Layout, base: Checkpoint, claim: MergeClaim) -> str | None:
    """Why the adapter cannot be run unmerged beside its base (``adapter.stack_several``); None where it can."""
    embeddings = {f"{name}.weight" for name, module in claim.model.named_modules() if isinstance(module, nn.Embedding)}
    tied = {name for name in layout.tied if name.endswith(".weight")}
    placed = place(layout, base)
    for name, value in adapter.replaced.items():
        if name in embeddings | tied and not is_base_s(value, placed.get(name)):
            kind = "embeddings of its own" if name in embeddings else "an output layer of its own, which the base ties"
            way_out = "merge without it, then use the merged model with generate --base"
            return f"the adapter brings {kind} ({name}), and cannot be run unmerged; {way_out}"
    return None


def _adapter_checks(claim: MergeClaim, adapter: AdapterFiles, layout: Layout, base: Checkpoint) -> list[Check]:
    """That the adapter is whole, that all of it has a place, and that its copies of the base's weights are the base's."""
    shapes = layout.shapes
    homeless = [module for module in adapter.updates if f"{module}.weight" not in shapes]
    homeless += [name for name in adapter.replaced if name not in shapes]
    misfits = []
    for module, update in adapter.updates.items():
        shape = (update.lora_B_OR.shape[0], update.lora_A_RD.shape[1])
        shape = shape[::-1] if module in layout.transposed else shape
        if shapes.get(f"{module}.weight", shape) != shape:
            misfits.append(f"{module} is {list(shapes[f'{module}.weight'])} in the base, {list(shape)} in the adapter")
    for name, value in adapter.replaced.items():
        if shapes.get(name, tuple(value.shape)) != tuple(value.shape):
            misfits.append(f"{name} is {list(shapes[name])} in the base, {list(value.shape)} in the adapter")
    grown = grown_vocabulary(adapter.replaced, claim.model) or _larger_tokenizer(claim)
    misfits = misfits if grown is None else ["; ".join(grown)]
    num_placed = sum(f"{module}.weight" in shapes for module in adapter.updates)
    problems = list(adapter.problems)
    heads = () if claim.task_type is None else head_modules(claim.model, claim.task_type)
    # Where the files do not hold together, or are of another base, a module may be absent for that alone.
    absent = [] if problems or homeless else absent_modules(adapter, claim.model, heads)
    if absent:
        problems.append(f"its configuration names modules of which the weights hold nothing: {judged.few(absent)}")
    found = judged.adapter_checks(problems, sorted(homeless), misfits, num_placed)
    placed = place(layout, base) if adapter.copies else None
    foreign = [name for name, value in adapter.copies.items() if placed is not None and not is_base_s(value, placed.get(name))]
    copies = judged.copies_check(foreign, len(adapter.copies))
    return [*found, *([] if copies is None else [copies])]


def _larger_tokenizer(claim: MergeClaim) -> tuple[str, str] | None:
    """``larger_vocabulary`` of the adapter's own tokenizer; None where it has none that is larger, or that can be loaded."""
    if claim.tokenizer_beside is None:
        return None
    try:
        num_tokens = 1 + max(load_tokenizer(claim.tokenizer_source).get_vocab().values())
    except ModelError:  # told by what comes to need it
        return None
    num_embeddings = len(cast(Tensor, claim.model.get_input_embeddings().weight))
    return larger_vocabulary(num_tokens, num_embeddings) if num_tokens > num_embeddings else None


def _identity_checks(claim: MergeClaim, adapter: AdapterFiles, layout: Layout, base: Checkpoint) -> Sequence[Check]:
    """Whether the base is the one that the adapter was trained on."""
    heads = () if claim.task_type is None else head_modules(claim.model, claim.task_type)
    local = Path(claim.base.place).is_dir()
    recorded = adapter.record.get("base") or {}
    packed, dtype = recorded.get("quantization"), recorded.get("dtype")
    trained = recorded.get("checksum") if packed is None else recorded.get("unpacked_checksum")
    found, why_not = None, "the adapter does not tell the checksum of its base"
    if trained is None and packed is not None:
        why_not = f"the adapter was trained on packed weights ({packed}) and does not tell the checksum of what was packed"
    elif trained is not None and dtype in ("float32", "bfloat16", "float64"):
        found = base_weights_checksum(layout, base, heads, getattr(torch, dtype))
        why_not = "transformers joins tensors of this base when it loads them, which changes the checksum"
    named = adapter.config.get("base_model_name_or_path")
    other = named if named and _same_place(named) != _same_place(claim.base.model) else None
    return [
        judged.base_check(trained, found, why_not, None if other is None else (other, claim.base.model)),
        judged.revision_check(adapter.config, claim.base.model, claim.base.revision, local, claim.commit),
    ]


def _same_place(model: str) -> str:
    """A directory's one name, or the hub id."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() else model


def _inputs(claim: MergeClaim, task: TaskConfig, settings: EvaluateConfig) -> Inputs:
    """The task's examples, read before hours are spent on weights."""
    assert claim.task_type is not None
    task_type = task_type_of(claim.model.config, claim.task_type)
    tokenizer = load_tokenizer(claim.base.with_tokenizer(claim.tokenizer_beside))
    inputs = task_inputs(task, settings.split, task_type, tokenizer)
    assert inputs.task is not None
    fitted, notices = fitting_lengths(task, settings, claim.base, generates=inputs.task.generates)
    if fitted is not task:
        inputs = task_inputs(fitted, settings.split, task_type, tokenizer)
        inputs = replace(inputs, warnings=[*notices, *inputs.warnings])
    assert inputs.task is not None
    if len(inputs.task.labels) != len(claim.labels):
        counts = f"{len(inputs.task.labels)} classes in the data, {len(claim.labels)} in the adapter"
        raise UsageError(counts, where="--labels", fix="name the adapter's classes, in its order")
    return inputs
