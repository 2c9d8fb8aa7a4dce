"""The study file read: YAML with the line of each key, overrides, and complaints that name file, line and key.

Does not know what the keys mean (`schema`, `designs`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from lorascope.config.designs import DESIGNS, Range
from lorascope.config.schema import Section
from lorascope.config.study import Study
from lorascope.errors import UsageError, did_you_mean

# Days, hours, minutes and seconds, each with or without decimals.
_DURATION = re.compile("".join(rf"(?:([0-9]+(?:\.[0-9]+)?){unit})?" for unit in "dhms"))
_MEMORY = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT])(i?)B?", re.IGNORECASE)
_UNITS = (86400.0, 3600.0, 60.0, 1.0)


def validate(schema: type[Section], values: Mapping[str, Any], where: str) -> Any:
    """``values`` as an instance of ``schema``; a UsageError naming ``where`` and the key otherwise."""
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise _usage_error(error, schema, where, {}) from None


def load_study(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read and check a study file.

    Args:
        path: the YAML file.
        overrides: dotted keys to values that replace what the file says, for example ``{"train.epochs": 1}``.

    Raises:
        UsageError: the file cannot be read, is no YAML mapping, or breaks the schema; names file, line and key.
    """
    path = Path(path)
    document, lines = _read_yaml(path)
    for key, value in (overrides or {}).items():
        _override(document, key, value)
    try:
        study = Study.model_validate(document)
    except ValidationError as error:
        raise _usage_error(error, Study, str(path), lines) from None
    study._places.update({key: f"{path}, line {line}" for key, line in lines.items()})
    return study


def parse_override(text: str) -> tuple[str, Any]:
    """``"train.epochs=1"`` as ``("train.epochs", 1)``; the value is YAML.

    Raises:
        UsageError: there is no ``=``, no key, or the value is no YAML.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UsageError(f"{text!r} is no override", where="--set", fix="write KEY=VALUE, for example train.epochs=1")
    try:
        return key.strip(), yaml.safe_load(value)
    except Exception:  # a malformed scalar (2024-13-45) raises whatever PyYAML's constructor ran into
        raise UsageError(f"the value of {key!r} is no YAML: {value!r}", where="--set") from None


def parse_duration(text: str, where: str = "--budget") -> float:
    """``"90s"``, ``"30m"``, ``"2h"`` or ``"1h30m"`` in seconds.

    Raises:
        UsageError: it is none of these, or no time at all.
    """
    parts = _DURATION.fullmatch(text.strip())
    seconds = 0.0 if parts is None else sum(float(part or 0) * unit for part, unit in zip(parts.groups(), _UNITS, strict=True))
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{text!r} is no duration", where=where, fix="write it as 90s, 30m, 2h or 1h30m")
    return seconds


def parse_memory(text: str, where: str = "--memory") -> int:
    """``"8GB"``, ``"512MiB"`` or ``"1.5GiB"`` in bytes; of ``GB`` a thousand make a ``TB``, of ``GiB`` 1,024.

    Raises:
        UsageError: it is none of these, or no memory at all.
    """
    parts = _MEMORY.fullmatch(text.strip())
    size = 0.0 if parts is None else float(parts[1]) * (1024 if parts[3] else 1000) ** " KMGT".index(parts[2].upper())
    if size < 1:
        raise UsageError(f"{text!r} is no amount of memory", where=where, fix="write it as 8GB, 512MiB or 1.5GiB")
    return int(size)


def _override(document: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node: Any = document
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise UsageError(f"{dotted!r} does not lead to a key", where="--set", fix=f"{parent!r} holds no keys")
    node[last] = value


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The document and the line of each key, by the key's path."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError("no such study file", where=str(path), fix="give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise UsageError("the study file is not UTF-8", where=str(path), fix="save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"cannot read the study file ({error.strerror})", where=str(path)) from None
    lines: dict[tuple[str, ...], int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _collect_lines(node, (), lines, path)
        document = yaml.safe_load(text)
    except UsageError:
        raise
    except Exception as error:  # a malformed scalar (2024-13-45) raises whatever PyYAML's constructor ran into
        mark = getattr(error, "problem_mark", None)
        where = str(path) if mark is None else f"{path}, line {mark.line + 1}"
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(f"no valid YAML ({reason})", where=where, fix="correct it") from None
    if not isinstance(document, dict):
        raise UsageError("a study file is a mapping of keys to values", where=str(path), fix="start with name: …")
    return document, lines


def _collect_lines(node: yaml.Node | None, path: tuple[str, ...], lines: dict[tuple[str, ...], int], file: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = (*path, str(key.value))
            line = key.start_mark.line + 1
            if name in lines:
                raise UsageError(f"{'.'.join(name)!r} is given twice", where=f"{file}, lines {lines[name]} and {line}")
            lines[name] = line
            _collect_lines(key, name, lines, file)
            _collect_lines(value, name, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            place = (*path, str(index))
            lines[place] = item.start_mark.line + 1
            _collect_lines(item, place, lines, file)
    elif isinstance(node, yaml.ScalarNode):
        node.value.encode("utf-8")  # half a surrogate pair ("\ud83d") can be neither hashed nor written


def _usage_error(
    error: ValidationError, schema: type[Section], where: str, lines: Mapping[tuple[str, ...], int]
) -> UsageError:
    """The first complaint of pydantic in one line: file, line, key, and a near miss where there is one."""
    complaints = error.errors()
    parent = complaints[0]["loc"][:-1]
    # Of the members of a union of types, the one that was followed furthest is the one that was meant.
    first = max((each for each in complaints if each["loc"][: len(parent)] == parent), key=lambda each: len(each["loc"]))
    # A discriminated union puts the member's name into the location; it is no key of the file.
    location = tuple(str(part) for part in first["loc"])
    if location[:1] == ("design",) and location[1:2] and location[1] in DESIGNS:
        location = ("design", *location[2:])
    # So it does with the members of a union of types.
    types = {"[key]", "float", "str", "list[str]", "literal['all-linear']"}
    if location[:1] == ("design",):
        types = {"[key]", "float", "dict", "list", "range"}
    location = tuple(part for part in location if part not in types and not part.startswith("dict["))
    key = ".".join(location)
    line = next((lines[location[:end]] for end in range(len(location), 0, -1) if location[:end] in lines), None)
    place = where if line is None else f"{where}, line {line}"
    if first["type"] == "extra_forbidden":
        known = _known_keys(schema, location[:-1])
        return UsageError(f"unknown key {key!r}", where=place, fix=did_you_mean(location[-1], known))
    if first["type"] == "missing":
        return UsageError(f"{key!r} is missing", where=place, fix=f"add {key}")
    if first["type"].startswith("union_tag"):
        given = first["input"].get("kind") if isinstance(first["input"], dict) else first["input"]
        return UsageError(f"design.kind is {given!r}", where=place, fix="use list, grid, ablation, shapley or search")
    reason = str(first["msg"]).removeprefix("Value error, ")
    given = _shown(first["input"])
    return UsageError(f"{key} = {given}: {reason}" if key else reason, where=place, fix="correct the value")


def _shown(value: Any) -> str:
    """A value as the file writes it, shortened."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= 60 else text[:57] + "…"


def _known_keys(schema: type[Section], path: tuple[str, ...]) -> list[str]:
    node: Any = schema
    for part in path:
        if part == "design":
            if path[1:2] == ("over",) and len(path) > 2:
                return [field.alias or name for name, field in Range.model_fields.items()]
            return list(dict.fromkeys(key for each in DESIGNS.values() for key in each.model_fields))
        if part.isdigit():
            continue
        field = getattr(node, "model_fields", {}).get(part)
        node = field.annotation if field is not None else None
        # Of an optional section or a list of sections, the section.
        node = next((each for each in get_args(node) if hasattr(each, "model_fields")), node)
    return list(getattr(node, "model_fields", {}))
