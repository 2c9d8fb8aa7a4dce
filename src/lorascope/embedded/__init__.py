"""The base models that come with Lorascope: a study names one ``lorascope:small`` and needs no network.

Each lies in a directory of its own beside this file, as ``save_pretrained`` wrote it: configuration, weights, tokenizer and
card. ``models/pretrain.py`` makes them. Knows names and places. Does not know models. Floor: above ``errors``, below
``config``.
"""

from __future__ import annotations

from pathlib import Path

from lorascope.errors import ModelError, did_you_mean

PREFIX = "lorascope:"
MODELS = {"lorascope:small": "small"}
# Most bytes of a model's weights: they travel with every installation.
MAX_WEIGHTS_BYTES = 16_000_000
# They have read little worlds of these seeds and above (``lorascope data world --seed``), train splits only.
PRETRAINING_SEEDS = 1000
HOME = Path(__file__).parent
_WEIGHTS = "model.safetensors"


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
    if model not in MODELS:
        raise ModelError("Lorascope has no model of that name", where=model, fix=did_you_mean(model, list(MODELS)))
    directory = HOME / MODELS[model]
    if not (directory / _WEIGHTS).is_file():
        raise ModelError(
            "this build of Lorascope ships no weights of its own model",
            where=model,
            fix="install a released build, make them with models/pretrain.py, or name another base",
        )
    return str(directory)


def available() -> list[str]:
    """The names of the models whose weights are here."""
    return [name for name, folder in MODELS.items() if (HOME / folder / _WEIGHTS).is_file()]
