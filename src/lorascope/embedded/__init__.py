"""What comes with Lorascope: a study names a base ``lorascope:small`` and a judge ``lorascope:judge`` and needs no network.

Each lies in a directory of its own beside this file. A base is there as ``save_pretrained`` wrote it: configuration, weights,
tokenizer and card (``models/pretrain.py`` makes it). The judge is an adapter on that base in PEFT's format, which
``examples/judge-world.yaml`` trains and ``lorascope export`` writes; its configuration names its base as a study would. Knows
names and places. Does not know models. Floor: above ``errors``, below ``config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lorascope.errors import AdapterError, LorascopeError, ModelError, did_you_mean

PREFIX = "lorascope:"
MODELS = {"lorascope:small": "small"}
ADAPTERS = {"lorascope:judge": "judge"}
# Most bytes of a model's weights: they travel with every installation.
MAX_WEIGHTS_BYTES = 16_000_000
# They have read little worlds of these seeds and above (``lorascope data world --seed``), train splits only.
PRETRAINING_SEEDS = 1000
HOME = Path(__file__).parent
_MODEL_WEIGHTS, _ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"


def is_embedded(model: str) -> bool:
    """Whether the name is one of Lorascope's own, known or not."""
    return model.startswith(PREFIX)


def located(model: str) -> str:
    """Where a model's files are: an embedded one's directory; a path or a hub id stays what it is.

    Raises:
        ModelError: no model of that name is known, or this installation came without its weights.
    """
    if not is_embedded(model):
        return model
    if model in ADAPTERS:
        raise ModelError("this is an adapter, no model", where=model, fix=f"name a model such as {next(iter(MODELS))}")
    advice = "install a released build, make them with models/pretrain.py, or name another base"
    missing = ModelError("this build of Lorascope ships no weights of its own model", where=model, fix=advice)
    unknown = ModelError("Lorascope has no model of that name", where=model, fix=did_you_mean(model, [*MODELS, *ADAPTERS]))
    return _directory(model, MODELS, _MODEL_WEIGHTS, unknown, missing)


def located_adapter(adapter: str) -> str:
    """Where an adapter's files are: an embedded one's directory; a path stays what it is.

    Raises:
        AdapterError: no adapter of that name is known, or this installation came without it.
    """
    if not is_embedded(adapter):
        return adapter
    advice = "install a released build, export what examples/judge-world.yaml trains, or name another"
    missing = AdapterError("this build of Lorascope ships no judge of its own", where=adapter, fix=advice)
    unknown = AdapterError("Lorascope has no adapter of that name", where=adapter, fix=did_you_mean(adapter, list(ADAPTERS)))
    return _directory(adapter, ADAPTERS, _ADAPTER_WEIGHTS, unknown, missing)


def embedded_name(place: str) -> str | None:
    """The name of what comes with Lorascope, from that name or from the directory where it lies; None for all else."""
    if is_embedded(place):
        return place
    path = Path(place).expanduser().resolve()
    names = {(HOME / folder).resolve(): name for name, folder in {**MODELS, **ADAPTERS}.items()}
    return names.get(path)


def available() -> list[str]:
    """The names of the models and adapters whose weights are here."""
    shipped = [(MODELS, _MODEL_WEIGHTS), (ADAPTERS, _ADAPTER_WEIGHTS)]
    return [name for names, weights in shipped for name, folder in names.items() if (HOME / folder / weights).is_file()]


def _directory(name: str, known: Mapping[str, str], weights: str, unknown: LorascopeError, missing: LorascopeError) -> str:
    """The directory of what is known by the name and whose weights are here; raises ``unknown`` or ``missing``."""
    if name not in known:
        raise unknown
    directory = HOME / known[name]
    if not (directory / weights).is_file():
        raise missing
    return str(directory)
