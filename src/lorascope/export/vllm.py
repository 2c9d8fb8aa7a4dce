"""What keeps vLLM from loading an export, by its documentation and sources; it is not run here. Floor: ``export``.

An adapter: ``vllm/lora/peft_helper.py`` takes one scaling, ``lora_alpha / r``, for every module (patterns are not read) and
refuses ``modules_to_save``, DoRA and biases; ranks are at most ``--max-lora-rank``. A merged directory:
``config.json`` names the class under ``architectures``; weights are safetensors; a chat needs a template in the tokenizer's
files; ``generation_config.json`` gives defaults (docs/models/supported_models.md, docs/serving/openai_compatible_server.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What a server takes where --max-lora-rank is not given.
_DEFAULT_RANK = 16


def adapter_obstacles(config: Mapping[str, Any]) -> list[str]:
    """Why vLLM would refuse an adapter, or load it wrongly, in sentences; empty where nothing is known against it.

    Args:
        config: ``adapter_config.json``.
    """
    found = []
    if config.get("modules_to_save"):
        heads = ", ".join(config["modules_to_save"])
        found.append(f"It refuses adapters with modules trained whole ({heads}): export with --merged.")
    patterns = [name for name in ("rank_pattern", "alpha_pattern") if config.get(name)]
    if patterns:
        what = f"It does not read {' and '.join(patterns)} and would scale some modules wrongly, without a word"
        found.append(f"{what}: export with --merged.")
    if config.get("bias", "none") != "none":
        found.append("It refuses adapters with trained biases: export with --merged.")
    if config.get("task_type") == "SEQ_2_SEQ_LM":
        found.append("Encoder–decoders need a plugin of their own.")
    largest = max([config.get("r") or 0, *(config.get("rank_pattern") or {}).values()])
    if largest > _DEFAULT_RANK and not found:
        found.append(f"Start the server with --max-lora-rank {largest} or more.")
    return found


def merged_obstacles(directory: Path) -> list[str]:
    """The same for a merged directory: what its files lack."""
    found = []
    config = _read(directory / "config.json")
    if not config.get("architectures"):
        found.append("config.json names no architecture.")
    if config.get("is_encoder_decoder"):
        found.append("Encoder–decoders need a plugin of their own.")
    if not any(directory.glob("*.safetensors")):
        found.append("There are no safetensors.")
    if not (directory / "tokenizer_config.json").is_file():
        found.append("The tokenizer's files are missing.")
    classifies = any("SequenceClassification" in name for name in config.get("architectures") or ())
    if classifies:
        found.append("A classifier is served with --runner pooling.")
    elif not has_chat_template(directory):
        found.append("The base has no chat template, so the chat endpoint will not work; completions will.")
    return found


def has_chat_template(directory: Path) -> bool:
    """Whether the tokenizer's files hold one."""
    has_file = (directory / "chat_template.jinja").is_file()
    return has_file or bool(_read(directory / "tokenizer_config.json").get("chat_template"))


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
