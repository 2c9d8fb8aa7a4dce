"""What lies beside a merged model's weights: configuration, generation settings, class names, tokenizer.

They are read as they lie on the disk, and held against the base's own and the adapter's. Knows what a merge may change in
them. Does not load models (``outputs``). Floor: ``certify``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lorascope.base_model import load_tokenizer, tokenizer_difference
from lorascope.certify.checks import Check, none_of
from lorascope.certify.claim import MergeClaim
from lorascope.certify.update import AdapterFiles
from lorascope.config import BaseModelConfig
from lorascope.errors import ModelError

GENERATION_FILE = "generation_config.json"
# Keys of config.json that may differ from the base's, or that are judged by something else than the base's.
_MAY_DIFFER = {
    "_name_or_path", "_num_labels", "architectures", "auto_map", "dtype", "id2label", "label2id", "num_labels",
    "pad_token_id", "problem_type", "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
# What PEFT's own training leaves of a classifier's.
_PROBLEM_TYPES = (None, "single_label_classification")
# Who wrote the file, and when.
_NOT_SETTINGS = {"_from_model_config", "_commit_hash", "transformers_version"}


def directory_checks(claim: MergeClaim, adapter: AdapterFiles, merged: PretrainedConfig, dtype: str) -> list[Check]:
    """Every file beside the weights that decides what the model computes, or what its answers are called.

    Args:
        merged: the merged directory's configuration.
        dtype: of the merged weights.

    Raises:
        ModelError: the base's own cannot be read.
    """
    own, config = AutoConfig.from_pretrained(claim.base_directory), merged.to_dict()
    expected = own.to_dict() if claim.cleaned is None else claim.cleaned(own.to_dict())
    whose = "base" if claim.tokenizer_beside is None else "adapter"
    try:
        theirs, problem = load_tokenizer(claim.tokenizer_source), ""
    except ModelError as error:
        theirs, problem = None, f"the {whose} has none that can be used: {error.what}"
    labels = [str(label) for label in adapter.record.get("labels") or claim.labels]
    checks = [
        configuration_check(expected, config, dtype, type(claim.model).__name__, _pad_ids(claim, own, theirs)),
        labels_check(labels, config),
        generation_check(claim, own.to_dict()),
        Check("tokenizer", "not judged", problem) if theirs is None else tokenizer_check(claim, whose, theirs),
    ]
    return [check for check in checks if check is not None]


def configuration_check(
    base: Mapping[str, Any],
    merged: Mapping[str, Any],
    dtype: str,
    architecture: str,
    pad_ids: Sequence[int | None] | None = None,
) -> Check:
    """config.json, beyond what a merge may change; the class and the dtype that others will load it as.

    Args:
        architecture: the class that the merge is for.
        pad_ids: what ``pad_token_id`` may be; by default the base's.
    """
    keys = sorted((set(base) | set(merged)) - _MAY_DIFFER)
    differing = [
        f"{key} is {_short(merged.get(key))}, {_short(base.get(key))} in the base"
        for key in keys
        if _plain(base.get(key)) != _plain(merged.get(key))
    ]
    if merged.get("architectures") != [architecture]:
        differing.append(f"architectures is {_short(merged.get('architectures'))}, and the merge is a {architecture}")
    pads, allowed = merged.get("pad_token_id"), (base.get("pad_token_id"),) if pad_ids is None else pad_ids
    if pads not in allowed:
        differing.append(f"pad_token_id is {pads}, and should be {' or '.join(map(str, allowed))}")
    if merged.get("auto_map") not in (None, base.get("auto_map")):  # code of the base's own, which the merged class needs not
        differing.append(f"auto_map is {_short(merged.get('auto_map'))}, {_short(base.get('auto_map'))} in the base")
    if merged.get("problem_type") not in (base.get("problem_type"), *_PROBLEM_TYPES):
        differing.append(f"problem_type is {merged.get('problem_type')}, {base.get('problem_type')} in the base")
    declared = str(merged.get("dtype") or merged.get("torch_dtype") or "").removeprefix("torch.")
    if declared and declared != dtype:
        differing.append(f"dtype is {declared}, the weights are in {dtype}")
    return none_of("configuration", differing, "config.json is the base's, but for what the adapter changes")


def _pad_ids(claim: MergeClaim, own: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None) -> list[int | None]:
    """A classifier may pad as the tokenizer does that it was trained with; where that has no pad token, with its end."""
    allowed: list[int | None] = [getattr(own, "pad_token_id", None)]
    if claim.task_type == "SEQ_CLS" and tokenizer is not None:
        pads = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        allowed += [0 if pads is None else pads]
    return list(dict.fromkeys(allowed))


def labels_check(labels: Sequence[str], merged: Mapping[str, Any]) -> Check | None:
    """A classifier's class names in order, and back; None where the adapter does not tell them."""
    if not labels:
        return None
    named = [name for _, name in sorted((int(number), str(name)) for number, name in (merged.get("id2label") or {}).items())]
    if named != list(labels):
        return Check("labels", "fails", f"the classes are {', '.join(named)}; the adapter's are {', '.join(labels)}")
    back = {str(name): int(number) for name, number in (merged.get("label2id") or {}).items()}
    if back != {name: number for number, name in enumerate(labels)}:
        return Check("labels", "fails", f"label2id is {_short(back)}, which is not id2label the other way round")
    return Check("labels", "holds", f"classes in order: {', '.join(labels)}")


def generation_check(claim: MergeClaim, config: Mapping[str, Any]) -> Check | None:
    """The settings that ``generate`` starts from, as the base's file has them; None for a model that writes nothing.

    Args:
        config: the base's configuration, which says them where there is no file.
    """
    if not claim.model.can_generate():
        return None
    try:
        own, found = (_settings(directory) for directory in (claim.base_directory, claim.merged))
    except (OSError, ValueError) as error:
        return Check("generation", "fails", f"{GENERATION_FILE} cannot be read ({' '.join(str(error).split())[:100]})")
    if own is None and found is None:
        return Check("generation", "holds", f"neither the base nor the merged model has a {GENERATION_FILE}")
    if found is None:
        return Check("generation", "fails", f"the base's {GENERATION_FILE} is missing")
    if own is None:  # a file that says what config.json says
        own = {key: config.get(key) for key in found}
    keys = sorted(key for key in own.keys() | found.keys() if _plain(own.get(key)) != _plain(found.get(key)))
    differing = [f"{key} is {_short(found.get(key))}, {_short(own.get(key))} in the base" for key in keys]
    return none_of("generation", differing, f"{GENERATION_FILE} says what the base's says")


def _settings(directory: Path) -> dict[str, Any] | None:
    path = directory / GENERATION_FILE
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    return {key: value for key, value in content.items() if key not in _NOT_SETTINGS and value is not None}


def tokenizer_check(claim: MergeClaim, whose: str, own: PreTrainedTokenizerBase) -> Check:
    """That the merged model's tokenizer says the same as the one it should be, with every special token."""
    try:
        found = load_tokenizer(BaseModelConfig(model=str(claim.merged)))
    except ModelError as error:
        return Check("tokenizer", "fails", error.what)
    difference = tokenizer_difference(own, found)
    differing = [] if difference is None else [f"it has {difference}"]
    special, here = dict(own.special_tokens_map), dict(found.special_tokens_map)
    if own.pad_token is None:  # which a classifier needs, and is given
        here.pop("pad_token", None)
    for name in sorted(name for name in special.keys() | here.keys() if str(special.get(name)) != str(here.get(name))):
        differing.append(f"{name} is {here.get(name)!r}, {special.get(name)!r} in the {whose}")
    if max(found.get_vocab().values()) >= _num_embeddings(claim.model):
        differing.append(f"it has ids beyond the model's {_num_embeddings(claim.model)} embeddings")
    return none_of("tokenizer", differing, f"it encodes as the {whose}'s does, with the same chat template")


def _num_embeddings(model: PreTrainedModel) -> int:
    return len(cast(Tensor, model.get_input_embeddings().weight))


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
