"""The recommendation as a study file that people read: every value under the reason for it.

Knows the study file's sections and YAML. Does not know how values were chosen. Floor: ``recommend``.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lorascope.config import AdapterConfig, BaseModelConfig, Study, TaskConfig, TrainConfig
from lorascope.recommend.rules import Choice

_WIDTH = 110
# Left out where they hold nothing, as their defaults do; a study without `design` trains its one configuration.
_IDLE: tuple[Any, ...] = (None, [], {})


def study_document(
    name: str, choices: Mapping[str, Choice], task: Mapping[str, Any], seeds: Sequence[int], evaluate: Mapping[str, Any]
) -> dict[str, Any]:
    """The study file's content, as plain values, without what holds nothing.

    Args:
        choices: by key of ``base``, ``adapter`` and ``train``, the model among them.
        task: the section ``task``.
        evaluate: the section ``evaluate``; empty for its defaults.
    """

    def section(schema: type[BaseModelConfig] | type[AdapterConfig] | type[TrainConfig]) -> dict[str, Any]:
        return {key: choices[key].value for key in schema.model_fields if key in choices and choices[key].value not in _IDLE}

    sections = {
        "name": name,
        "base": section(BaseModelConfig),
        "task": {key: task[key] for key in TaskConfig.model_fields if task.get(key) not in _IDLE},
        "adapter": {"targets": choices["targets"].value} | section(AdapterConfig),
        "train": section(TrainConfig),
        "seeds": list(seeds),
    }
    return sections | ({"evaluate": dict(evaluate)} if evaluate else {})


def study_text(document: Mapping[str, Any], reasons: Mapping[str, str], opening: Sequence[str], closing: Sequence[str]) -> str:
    """The file's text; a reason that holds for several keys on end stands above the first.

    Args:
        document: of `study_document`.
        reasons: by dotted key, such as ``adapter.r`` or ``seeds``.
        opening, closing: paragraphs of comments before and after.
    """
    lines = [line for paragraph in opening for line in (*_comment(paragraph, ""), "#")][:-1]
    said = ""
    for key, value in document.items():
        if not isinstance(value, Mapping):
            lines += _comment(reasons[key], "") if key in reasons else []
            lines.append(f"{key}: {_inline(value)}")
            continue
        lines.append(f"{key}:")
        for inner, its in value.items():
            why = reasons.get(f"{key}.{inner}", "")
            lines += _comment(why, "  ") if why != said else []
            lines.append(f"  {inner}: {_inline(its)}")
            said = why
    if closing:
        lines.append("")
        lines += [line for paragraph in closing for line in (*_comment(paragraph, ""), "#")][:-1]
    return "\n".join(lines) + "\n"


def as_study(document: Mapping[str, Any]) -> Study:
    """The document as the typed study that its file will be."""
    return Study.model_validate(dict(document))


def inline_yaml(value: Any) -> str:
    """A value on one line, as YAML reads it back."""
    return _inline(value)


def _inline(value: Any) -> str:
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _comment(text: str, indent: str) -> list[str]:
    """Lines of a comment. What is not printable could end a comment, and so is written out; a command is never broken."""
    safe = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    if safe.startswith("lorascope "):
        return [f"{indent}#   {safe}"]
    lines = textwrap.wrap(safe, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)
    return [f"{indent}# {line}" for line in lines]
