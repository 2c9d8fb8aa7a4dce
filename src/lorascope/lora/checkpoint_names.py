"""Which tensor of a checkpoint is which of the model: transformers' own renaming, without loading a weight.

A checkpoint's names differ from the model's by a prefix (``encoder.layer.0…`` of a ``BertModel`` is ``bert.encoder.layer.0…``
of a classifier), by spellings of old (``LayerNorm.gamma``), and for a few families by tensors that are cut or joined when they
are loaded. Tied parameters are one tensor in the checkpoint and several names in the model.

Knows transformers' conversion tables. Does not know files' contents nor adapters. Floor: ``lora``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import transformers
from torch import nn
from transformers import PreTrainedModel

from lorascope.errors import ModelError


@dataclass(frozen=True)
class NameMap:
    """A checkpoint's names against a model's.

    Attributes:
        keys: by the model's name of a parameter or buffer, the checkpoint's.
        converted: by the checkpoint's name of a tensor that is cut or joined when it is loaded, the first of the model's that
            come of it.
        made: the model's names of all that come of converted tensors.
        unused: tensors of the checkpoint that the model has no place for.
    """

    keys: dict[str, str] = field(default_factory=dict)
    converted: dict[str, str] = field(default_factory=dict)
    made: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()


def loader_names(model: PreTrainedModel) -> Callable[[str], tuple[str, tuple[str, ...]]]:
    """What transformers' loader calls a checkpoint's tensor in this model, and what it makes of it by cutting or joining.

    The second is empty where a tensor is taken as it is, else every name that gets a part of it. A name that the model does
    not have is returned all the same. This is the one place that calls functions which transformers does not document.

    Args:
        model: looked at for its names; the meta device will do.

    Raises:
        ModelError: this version of transformers has no such functions.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError as error:
        what = f"transformers {transformers.__version__} loads checkpoints in a way that is not known here ({error})"
        raise ModelError(what, fix="install transformers 5.23") from None
    state = model.state_dict()
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]

    targets = {source: entry.target_patterns for entry in converters for source in entry.source_patterns}

    def name_of(key: str) -> tuple[str, tuple[str, ...]]:
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if name not in state and key in state:  # what only looks like a name of old
            return key, ()
        if pattern is None:
            return name, ()
        first = targets[pattern][0]
        return name, tuple(dict.fromkeys(name.replace(first, target, 1) for target in targets[pattern]))

    return name_of


def map_names(keys: Iterable[str], model: PreTrainedModel) -> NameMap:
    """What ``from_pretrained`` of the model's class would load where.

    Args:
        keys: the checkpoint's names.
        model: looked at for its names; the meta device will do.
    """
    state, name_of = model.state_dict(), loader_names(model)
    found: dict[str, str] = {}
    converted: dict[str, str] = {}
    made: set[str] = set()
    unused = []
    for key in keys:
        name, parts = name_of(key)
        if parts:
            converted[key] = name
            made.update(parts)
        elif name in state:
            # An exact name wins over one that only becomes it.
            if key == name and name in found:
                unused.append(found[name])
            elif name in found:
                unused.append(key)
                continue
            found[name] = key
        else:
            unused.append(key)
    return NameMap(found, converted, frozenset(made), tuple(unused))


def written_name(key: str, name: str) -> str:
    """Under which name a merged checkpoint holds what the base's calls ``key`` and the model ``name``.

    Where the two differ by a prefix, the model's, so that the file is that of the class that ``config.json`` names; where the
    loader renames more than that, the base's, which the loader and other programs know.
    """
    return name if key == name or name.endswith(f".{key}") or key.endswith(f".{name}") else key


def tied_groups(model: PreTrainedModel) -> list[list[str]]:
    """Names that share one parameter, each group with the one that ``save_pretrained`` keeps in front."""
    groups: dict[str, list[str]] = {}
    for target, source in model.all_tied_weights_keys.items():
        groups.setdefault(source, [source]).append(target)
    return list(groups.values())


def required_names(model: nn.Module) -> list[str]:
    """Names of every parameter, tied ones each by its own, in the model's order; buffers are not among them."""
    return [name for name, _ in model.named_parameters(remove_duplicate=False)]


def sources(names: NameMap, model: PreTrainedModel) -> dict[str, str]:
    """For the model's names the checkpoint's: a name's own, or that of one that it is tied to; others are absent."""
    found = dict(names.keys)
    for group in tied_groups(model):
        key = next((names.keys[name] for name in group if name in names.keys), None)
        if key is not None:
            found |= {name: found.get(name, key) for name in group}
    return found
