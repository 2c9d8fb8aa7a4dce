"""What comes with Lorascope: a study names a base ``lorascope:small`` and a judge ``lorascope:judge`` and needs no network.

Each lies in a directory of its own beside this file. A base is there as ``save_pretrained`` wrote it: configuration, weights,
tokenizer and card (``models/pretrain.py`` makes it). The judge is an adapter on that base in PEFT's format, which
``examples/judge-world.yaml`` trains and ``lorascope export`` writes; its configuration names its base as a study would. Knows
names and places. Does not know models. Floor: above ``errors``, below ``config``.
"""

from __future__ import annotations

from pathlib import Path

from lorascope.errors import AdapterError, ModelError, did_you_mean

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
    if model not in MODELS:
        raise ModelError("Lorascope has no model of that name", where=model, fix=did_you_mean(model, [*MODELS, *ADAPTERS]))
    directory = _shipped(MODELS[model], _MODEL_WEIGHTS)
    if directory is None:
        raise ModelError(
            "this build of Lorascope ships no weights of its own model",
            where=model,
            fix="install a released build, make them with models/pretrain.py, or name another base",
        )
    return str(directory)


def located_adapter(adapter: str) -> str:
    """Where an adapter's files are: an embedded one's directory; a path stays what it is.

    Raises:
        AdapterError: no adapter of that name is known, or this installation came without it.
    """
    if not is_embedded(adapter):
        return adapter
    if adapter not in ADAPTERS:
        raise AdapterError("Lorascope has no adapter of that name", where=adapter, fix=did_you_mean(adapter, list(ADAPTERS)))
    directory = _shipped(ADAPTERS[adapter], _ADAPTER_WEIGHTS)
    if directory is None:
        raise AdapterError(
            "this build of Lorascope ships no judge of its own",
            where=adapter,
            fix="install a released build, export what examples/judge-world.yaml trains, or name another",
        )
    return str(directory)


def embedded_name(place: str) -> str | None:
    """A name of Lorascope's own as it is, known or not; for the directory where such a thing lies, its name; else None."""
    if is_embedded(place):
        return place
    path = Path(place).expanduser().resolve()
    return next((name for name, folder in {**MODELS, **ADAPTERS}.items() if (HOME / folder).resolve() == path), None)


def available() -> list[str]:
    """The names of the models and adapters whose weights are here."""
    models = [name for name, folder in MODELS.items() if _shipped(folder, _MODEL_WEIGHTS)]
    return models + [name for name, folder in ADAPTERS.items() if _shipped(folder, _ADAPTER_WEIGHTS)]


def _shipped(folder: str, weights: str) -> Path | None:
    """The folder beside this file, where the weights are in it."""
    directory = HOME / folder
    return directory if (directory / weights).is_file() else None
