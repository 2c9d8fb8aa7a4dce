"""The directory of a merged model: weights, configuration, tokenizer; ``from_pretrained`` loads it as it is.

The weights come from file to file (``lora.merge``). ``config.json`` is the base's own with what the merge changes: the class,
the dtype, a classifier's labels, ties that were broken. Tokenizer, chat template, generation configuration and licence are the
base's files; a tokenizer that was saved with the adapter goes before the base's.

Knows bases (local or of the hub) and what a directory must hold. Does not judge the merge (``certify``) and renames nothing
into place: the directory is given, and its owner makes it appear whole (``store.atomic_directory``). Floor: above
``base_model``, beside ``adapter``.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto
from transformers.utils import logging as transformers_logging

from lorascope.base_model import (
    label_names,
    load_tokenizer,
    read_config,
    skeleton,
    task_type_of,
)
from lorascope.config import BaseModelConfig, TaskType, validate
from lorascope.errors import AdapterError, ModelError, UsageError
from lorascope.lora.beside import TOKENIZER_FILES, copy_files, has_tokenizer, larger_vocabulary
from lorascope.lora.checkpoint_files import open_checkpoint
from lorascope.lora.merge import merge_files, merge_into
from lorascope.lora.merge_plan import MergeDtype, MergePlan, plan_merge, replacements
from lorascope.lora.peft_io import SavedAdapter
from lorascope.lora.stored_tensors import INDEX_FILE, TORCH_FILE, TORCH_INDEX_FILE, WEIGHTS_FILE

_SAFETENSORS = (WEIGHTS_FILE, INDEX_FILE, "model-*-of-*.safetensors")
_TORCH_FILES = (TORCH_FILE, TORCH_INDEX_FILE, "pytorch_model-*-of-*.bin")
_OTHER_FILES = ("generation_config.json", "LICENSE*", "NOTICE*")
# Class names by model type.
_CLASSES: dict[TaskType, Mapping[str, Any]] = {
    "SEQ_CLS": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "CAUSAL_LM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "SEQ_2_SEQ_LM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
# Adapters that Lorascope does not train, and yet merges.
_OTHER_CLASSES = {
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": AutoModel,
}


@dataclass(frozen=True)
class MergeBase:
    """What an adapter is merged into.

    Attributes:
        name: the directory or hub id, as the adapter or ``--base`` names it.
        directory: where its files are.
        revision: the one that was asked for; None for the default.
        commit: of the hub's snapshot that was found; None for a directory.
        model: the merged model's class on the meta device: every name and shape, no weights; its ``config`` has the labels
            that the adapter was trained with.
        task_type: what the class is for; None where Lorascope trains no such thing.
        warnings: what a user should know about the choice.
    """

    name: str
    directory: Path
    revision: str | None
    commit: str | None
    model: PreTrainedModel
    task_type: TaskType | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergedModel:
    """A directory that was written.

    Attributes:
        base: what it was merged into.
        plan: what was written, tensor by tensor.
        dtype: as asked for.
        files: every file of the directory.
        warnings: what a user should know, the base's among them.
    """

    base: MergeBase
    plan: MergePlan
    dtype: MergeDtype
    files: tuple[str, ...]
    warnings: tuple[str, ...]


def open_merge_base(saved: SavedAdapter, where: str, base: str | None = None) -> MergeBase:
    """Find the base's files and the merged model's class; loads no weights.

    Args:
        where: the adapter's directory, for messages.
        base: instead of the base that the adapter names; without the adapter's revision then, unless it is the same.

    Raises:
        UsageError: no base is named.
        ModelError: it is not there, damaged, quantised already, or of no class that the adapter can be for.
    """
    name, revision = saved.base_at(base)
    if not name:
        raise UsageError("the adapter names no base model", where=where, fix="give it with --base")
    settings = validate(BaseModelConfig, {"model": name, "revision": revision}, "merge")
    config = read_config(settings)
    directory, commit = _files_of(settings)
    model = _skeleton(saved, config)
    warnings = []
    if saved.origin.get("quantization"):
        kind = str(saved.origin["quantization"]).upper()
        warnings.append(f"the adapter was trained on the base in {kind}; it is merged into the base in full, {name}")
    if not any((directory / file).is_file() for file in (WEIGHTS_FILE, INDEX_FILE)):
        warnings.append(f"the base has no safetensors; its {TORCH_FILE} is read through torch")
    return MergeBase(name, directory, revision, commit, model, _task_type(model), tuple(warnings))


def write_merged(
    saved: SavedAdapter,
    adapter: Path,
    base: MergeBase,
    directory: Path,
    *,
    dtype: MergeDtype = "as-base",
    max_shard_bytes: int = 5_000_000_000,
) -> MergedModel:
    """Fill a directory with the merged model: weights, configuration, tokenizer, generation configuration, chat template.

    Args:
        adapter: the adapter's directory; a tokenizer saved there goes before the base's.
        directory: exists and is empty; what fails leaves unfinished files in it, for its owner to remove.
        dtype: of every floating-point tensor; ``as-base`` keeps each one's own, and ``config.json`` names that of most.
        max_shard_bytes: where a file ends and the next begins.

    Raises:
        AdapterError: the adapter does not fit the base, or its tokenizer has more tokens than the base has embeddings.
        ModelError: the base is damaged.
        CheckFailed: a merged number overflows ``dtype``, or the base holds NaN.
    """
    changes: dict[str, Any] = {"architectures": [type(base.model).__name__]}
    # First what is found out in seconds: a tokenizer that does not fit is no matter for after hours of writing.
    notes = _write_tokenizer(adapter, base, directory, changes)
    copy_files(base.directory, directory, _OTHER_FILES)
    plan = merge_files(saved, base.directory, base.model, directory, dtype=dtype, max_shard_bytes=max_shard_bytes)
    changes["dtype"] = str(plan.dtype).removeprefix("torch.")
    if plan.tie_word_embeddings is not None:
        changes["tie_word_embeddings"] = plan.tie_word_embeddings
    if saved.task_type == "TOKEN_CLS" or base.task_type == "SEQ_CLS":
        labels = label_names(base.model.config)
        changes["id2label"] = {str(number): label for number, label in enumerate(labels)}
        changes["label2id"] = {label: number for number, label in enumerate(labels)}
    _write_config(base.directory / "config.json", directory / "config.json", changes)
    files = tuple(sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()))
    return MergedModel(base, plan, dtype, files, (*base.warnings, *_notes(plan), *notes))


def merged_in_memory(saved: SavedAdapter, base: MergeBase, dtype: MergeDtype = "as-base") -> PreTrainedModel:
    """The merged model without a detour by the disk, on the CPU; what ``write_merged`` writes has to load as this.

    The base is loaded in a dtype that holds every number of its files, whatever its configuration says.

    Args:
        dtype: as given to ``write_merged``; with ``as-base`` the model is in the dtype of most of the base's numbers.

    Raises:
        AdapterError, CheckFailed: as ``lora.merge.merge_into``.
    """
    transformers_logging.disable_progress_bar()
    checkpoint = open_checkpoint(base.directory)
    plan = plan_merge(saved, checkpoint, base.model, dtype)
    # torch promotes no floats of 8 bits; they are what a quantised base holds, which is refused.
    held = {one.dtype for one in checkpoint.values() if one.dtype.is_floating_point and one.dtype.itemsize > 1}
    wide = functools.reduce(torch.promote_types, held or {plan.dtype})
    model = type(base.model).from_pretrained(base.directory, config=copy.deepcopy(base.model.config), dtype=wide)
    changed = {one.name: one.dtype for one in plan.tensors if one.update is not None or one.replacement is not None}
    return merge_into(model, saved, plan.dtype, changed)


def _files_of(base: BaseModelConfig) -> tuple[Path, str | None]:
    """Where the base's files are, and the commit of a hub's snapshot."""
    local = Path(base.place).expanduser()
    if local.is_dir():
        return local, None
    patterns = ["config.json", *_SAFETENSORS, *TOKENIZER_FILES, *_OTHER_FILES]
    try:
        folder = Path(snapshot_download(base.model, revision=base.revision, allow_patterns=patterns))
        if not any((folder / file).is_file() for file in (WEIGHTS_FILE, INDEX_FILE)):
            snapshot_download(base.model, revision=base.revision, allow_patterns=list(_TORCH_FILES))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        fix = "check the name, or that the hub can be reached"
        raise ModelError(f"cannot get the weights ({reason})", where=base.model, fix=fix) from None
    return folder, folder.name


def _skeleton(saved: SavedAdapter, config: PretrainedConfig) -> PreTrainedModel:
    """The merged model's class on the meta device, with as many labels as the adapter's head has."""
    model = _of_class(saved.task_type, config)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    given = {name: tuple(value.shape) for name, value in replacements(saved).items()}
    widths = {given[name][0] for name in given.keys() & shapes.keys() if given[name][1:] == shapes[name][1:] and given[name]}
    others = {given[name][0] for name in given.keys() & shapes.keys() if given[name] != shapes[name] and given[name]}
    labels = list(saved.labels)
    if not labels and len(others) == 1 and others <= widths:
        labels = [f"LABEL_{number}" for number in range(others.pop())]
    if not labels or saved.task_type not in ("SEQ_CLS", "TOKEN_CLS"):
        return model
    config = type(config).from_dict(config.to_dict())
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    return _of_class(saved.task_type, config)


def _of_class(task_type: str | None, config: PretrainedConfig) -> PreTrainedModel:
    """A model on the meta device: the class that the task type stands for, else the base's own.

    Raises:
        ModelError: transformers has no such class for this base.
    """
    if task_type in get_args(TaskType):
        kind: TaskType = task_type_of(config, task_type)  # type: ignore[arg-type]
        return skeleton(config, kind, config.num_labels or 2)
    try:
        with torch.device("meta"):
            if task_type in _OTHER_CLASSES:
                return _OTHER_CLASSES[task_type].from_config(config)  # type: ignore[no-any-return]
            architecture = getattr(transformers, (config.architectures or [""])[0], None)
            if architecture is not None:
                return architecture(config)  # type: ignore[no-any-return]
    except ValueError:
        pass
    what = f"there is no {task_type or ', '.join(config.architectures or ['class'])} form of a {config.model_type} model"
    raise ModelError(what, where=str(config.name_or_path), fix="write the adapter's task_type into adapter_config.json")


def _task_type(model: PreTrainedModel) -> TaskType | None:
    """What a class is for; adapters that PEFT wrote do not always say."""
    name, kind = type(model).__name__, model.config.model_type
    return next((task for task, classes in _CLASSES.items() if classes.get(kind) == name), None)


def _notes(plan: MergePlan) -> list[str]:
    """What is not as it was in the base, and not because the adapter says so by its updates."""
    notes = []
    if plan.untied:
        notes.append(f"the adapter changes one of {', '.join(plan.untied)}, which the base ties; each is written with its own")
    if plan.unused:
        many = "1 tensor" if len(plan.unused) == 1 else f"{len(plan.unused)} tensors"
        notes.append(f"{many} of the base without a place in the model, left out ({', '.join(plan.unused[:2])})")
    return notes


def _write_tokenizer(adapter: Path, base: MergeBase, directory: Path, changes: dict[str, Any]) -> list[str]:
    """Copy the tokenizer; a classifier that knows no pad token gets the one that it was trained with."""
    notes = []
    source = base.directory
    if has_tokenizer(adapter):
        source = adapter
        notes.append("the tokenizer is the one that was saved with the adapter")
    if not copy_files(source, directory, TOKENIZER_FILES):
        return ["the base has no tokenizer; none is written"]
    tokenizer = load_tokenizer(BaseModelConfig(model=str(_with_config(base, directory))))
    rows = len(cast(Tensor, base.model.get_input_embeddings().weight))
    largest = max(tokenizer.get_vocab().values())
    if rows <= largest and source == adapter:
        what, fix = larger_vocabulary(largest + 1, rows)
        raise AdapterError(what, where=str(adapter), fix=fix)
    if rows <= largest:
        fix = "use the tokenizer that belongs to the model"
        raise ModelError(f"the tokenizer has id {largest}, the model {rows} embeddings", where=base.name, fix=fix)
    own = base.model.config.pad_token_id
    # A causal model's classifier finds a row's last word by the pad token, which was the tokenizer's when it was trained.
    if base.task_type == "SEQ_CLS" and (own is None or hasattr(base.model, "score")):
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
            tokenizer.save_pretrained(directory)
        if tokenizer.pad_token_id != own:
            changes["pad_token_id"] = tokenizer.pad_token_id
            has = "has no pad token" if own is None else f"pads with {own} by config.json, its tokenizer otherwise"
            notes.append(f"the base {has}; the classifier pads with {tokenizer.pad_token!r}")
    return notes


def _with_config(base: MergeBase, directory: Path) -> Path:
    """The directory, with the base's configuration until its own is written: a tokenizer's class is found by it."""
    shutil.copyfile(base.directory / "config.json", directory / "config.json")
    return directory


def _write_config(source: Path, target: Path, changes: dict[str, Any]) -> None:
    config: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    for stale in ("_name_or_path", "auto_map", *(("num_labels", "_num_labels") if "id2label" in changes else ())):
        config.pop(stale, None)
    if "dtype" in changes and "torch_dtype" in config:  # the key of before transformers 5
        config["torch_dtype"] = changes["dtype"]
    target.write_text(json.dumps(config | changes, indent=2, sort_keys=True) + "\n", encoding="utf-8")
