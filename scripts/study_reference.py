"""Write ``docs/study-file.md``, the reference of the study file, from the schema that reads it.

``python scripts/study_reference.py`` writes the page; with ``--check`` it writes nothing and its exit code is 1 if the page is
out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorascope.config import Study

PAGE = Path(__file__).resolve().parent.parent / "docs" / "study-file.md"
_HEAD = """\
# The study file

One YAML file is one study. Every key, what it takes, what it is if left out, and what it means; made from the schema that
reads the file (`python scripts/study_reference.py`). `lorascope plan STUDY` checks a file and shows what would be trained; any
key is overridden with `--set key.key=VALUE`, where the value is YAML. A key that is not known ends with its file, line and a
near miss.
"""
# Sections in the order in which they are told, with what their heading says besides the key.
_DESIGNS = ("ListDesign", "GridDesign", "AblationDesign", "ShapleyDesign", "SearchDesign")
Schema = Mapping[str, Any]


def page() -> str:
    """The page's Markdown."""
    schema = Study.model_json_schema()
    known: dict[str, Schema] = schema["$defs"]
    parts = [_HEAD, _section("The whole file", schema, known, "")]
    for key, of_key in schema["properties"].items():
        name = next(_names(of_key), None)
        if key == "design":
            for design in _DESIGNS:
                kind = known[design]["properties"]["kind"]["const"]
                parts.append(_section(f"`design`, `kind: {kind}`", known[design], known, "design."))
        elif name is not None:
            parts.append(_section(f"`{key}`", known[name], known, f"{key}."))
    for title, name in (
        ("One of `evaluate.decoding`", "DecodingConfig"),
        ("`evaluate.judge`", "JudgeConfig"),
        ("`evaluate.judge.check`", "JudgeCheck"),
        ("A range of `design.over` in a search", "Range"),
    ):
        parts.append(_section(title, known[name], known, ""))
    return "\n".join(parts)


def _section(title: str, schema: Schema, known: Mapping[str, Schema], prefix: str) -> str:
    """A heading, the section's own words and a table of its keys."""
    required = set(schema.get("required", ()))
    rows = []
    for key, of_key in schema["properties"].items():
        if key == "kind" and prefix == "design.":
            continue
        default = "**required**" if key in required else _default(of_key, known)
        meaning = _markdown(of_key.get("description", ""))
        rows.append(f"| `{prefix}{key}` | {_values(of_key, known)} | {default} | {meaning} |")
    table = ["| key | values | default | |", "|---|---|---|---|", *rows]
    words = _markdown(re.split(r"\n\s*Attributes:", schema.get("description", ""))[0])
    return "\n".join([f"## {title}", "", *([words, ""] if words else []), *table, ""])


def _values(schema: Schema, known: Mapping[str, Schema]) -> str:
    """What a key takes, in words."""
    if "$ref" in schema:
        return f"see *{_heading(schema['$ref'])}*"
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        if schema.get("discriminator") or all("$ref" in one for one in options):
            return "see below"
        return " or ".join(dict.fromkeys(_values(one, known) for one in options if one.get("type") != "null"))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return " ".join(["whole number" if kind == "integer" else "number", *_limits(schema)])
    if kind == "array":
        if "prefixItems" in schema:
            return "`[from, to]`"
        inner = schema.get("items", {})
        return f"list of {_plural(_values(inner, known))}" if inner and "$ref" not in inner else "list"
    if kind == "object":
        names = schema.get("propertyNames", {}).get("enum")
        return "mapping from " + ", ".join(f"`{one}`" for one in names) if names else "mapping"
    return {"string": "text", "boolean": "`true`, `false`"}.get(str(kind), "any value")


def _plural(values: str) -> str:
    words = {
        "text": "texts",
        "number": "numbers",
        "whole number": "whole numbers",
        "mapping": "mappings",
        "any value": "values",
    }
    kind = next((one for one in ("whole number", "number") if values.startswith(one)), values)
    return words.get(kind, kind) + values[len(kind) :]


def _limits(schema: Schema) -> Iterator[str]:
    """The limits of a number; those of what 64 bits hold go without saying."""
    for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")):
        if key in schema and abs(schema[key]) < 2**32:
            yield f"{sign} {schema[key]:g}"


def _default(schema: Schema, known: Mapping[str, Schema]) -> str:
    if "default" not in schema:
        return ""
    default = schema["default"]
    if default is None:
        return "none"
    if isinstance(default, dict) or (isinstance(default, list) and default and isinstance(default[0], dict)):
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _names(schema: Schema) -> Iterator[str]:
    """The section that a key holds, if it is one."""
    if "$ref" in schema:
        yield schema["$ref"].rpartition("/")[2]


def _heading(reference: str) -> str:
    name = reference.rpartition("/")[2]
    return {"JudgeConfig": "evaluate.judge", "JudgeCheck": "evaluate.judge.check", "Range": "a range"}.get(
        name, name.removesuffix("Config").removesuffix("Model").lower()
    )


def _markdown(text: str) -> str:
    """A docstring's text in one line of Markdown."""
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


def main() -> int:
    """Exit code 0, or 1 where the page is not what the schema says."""
    parser = argparse.ArgumentParser(description="Write docs/study-file.md from the schema.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    wanted = page()
    if not parser.parse_args().check:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{PAGE}: not what the schema says; run python scripts/study_reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
