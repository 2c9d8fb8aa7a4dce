"""What is known of a task and a model before anything is loaded: names, files, and a model's ``config.json``.

Knows paths and the hub's local cache; downloads nothing. Does not know studies. Floor: ``recommend``.
"""

from __future__ import annotations

import json
from pathlib import Path

from lorascope.config import TaskConfig
from lorascope.recommend.closeness import ModelFacts, TaskFacts, sizes_of
from lorascope.recommend.rules import Kind

# What damage to a file's contents can raise.
_DAMAGE = (ValueError, KeyError, TypeError, OSError)


def task_facts(task: TaskConfig, kind: Kind) -> TaskFacts:
    """A task as far as closeness goes; a directory of the user's own files is the files in it."""
    places = [task.data] if isinstance(task.data, str) else list(task.data.values())
    found = [file for place in places for file in (_files(place) if task.name == "file" else [absolute(place)])]
    return TaskFacts(task.name, kind, tuple(sorted(found)), task.speaker)


def _files(place: str) -> list[str]:
    """The training and validation files of a directory, or the place itself."""
    from lorascope.data.files import FILE_PUBLISHED

    path = Path(place).expanduser()
    files = []
    for split in ("train", "validation"):
        files += [str((path / name).resolve()) for name in FILE_PUBLISHED.files[split] if (path / name).is_file()][:1]
    return files or [absolute(place)]


def absolute(reference: str) -> str:
    """A path that exists as an absolute one; anything else, such as a hub id, as it is."""
    path = Path(reference).expanduser()
    return str(path.resolve()) if path.exists() else reference


def model_facts(reference: str, num_params: int | None = None) -> ModelFacts:
    """What ``config.json`` tells, of a directory or of the hub's local cache; nothing is downloaded."""
    try:
        path = Path(reference).expanduser() / "config.json"
        if not path.is_file():
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(reference, "config.json")
            path = Path(cached) if isinstance(cached, str) else path
        config = json.loads(path.read_text(encoding="utf-8"))
        return ModelFacts(absolute(reference), str(config["model_type"]), sizes_of(config), num_params)
    except _DAMAGE:
        return ModelFacts(absolute(reference), num_params=num_params)
