"""The page: what it holds in which order, as one HTML file of bounded size that fetches nothing.

Knows sections and the template beside it. Floor: ``report``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from lorascope import __version__
from lorascope.amounts import counted
from lorascope.embedded import is_embedded
from lorascope.errors import RunError
from lorascope.model_card.privacy import is_local, public_name
from lorascope.report.answer import answer_of
from lorascope.report.blocks import Block, Notes, Section, Table
from lorascope.report.examples import examples_section
from lorascope.report.findings import Findings, gather
from lorascope.report.games import players_section
from lorascope.report.record import merge_section, reproduce_section, trials_section, troubles_section
from lorascope.report.sections import (
    ablation_section,
    configurations_section,
    controls_section,
    decodings_section,
    search_section,
)
from lorascope.report.training import cost_section, curves_section
from lorascope.report.updates import layers_section
from lorascope.report.words import clean, metric_name
from lorascope.store import Store, write_atomically

# Beside a study's store.
REPORT_FILE = "report.html"
MOST_BYTES = 3_000_000


@dataclass(frozen=True)
class _Detail:
    """How much a page shows: examples, rows of every table, pictures with a sign for each configuration."""

    num_examples: int
    num_rows: int
    has_pictures: bool = True


# Names of directories that could be any model's.
_TELL_NOTHING = ("model", "base", "checkpoint", "weights")
# Sections that go first, and what has the same figures.
_IN_PLACE_OF = {
    "cost": "Scores and costs are in the table of configurations; “lorascope results DIR --json” has all.",
    "curves": "The store holds every step’s loss, in its table “steps”.",
    "layers": "“lorascope inspect ADAPTER…” shows these figures of any adapter.",
}
# From the whole to what fits; what is left out is said where it would have been.
_DETAILS = (
    _Detail(16, 100_000),
    _Detail(6, 4_000),
    _Detail(0, 1_500),
    _Detail(0, 500, has_pictures=False),
    _Detail(0, 50, has_pictures=False),
)


def write_report(stores: Sequence[Store], results: Mapping[str, Any], path: Path) -> None:
    """Write a study's page.

    Args:
        stores: the study, or its shards.
        results: their document, as ``lorascope results`` prints it.
        path: the file, which is replaced.

    Raises:
        UsageError: the directories hold different studies.
        RunError: the page would be larger than ``MOST_BYTES``.
        StoreError: it cannot be written.
    """
    write_atomically(path, report_page(stores, results))


def report_page(stores: Sequence[Store], results: Mapping[str, Any], most_bytes: int = MOST_BYTES) -> str:
    """The page as text; see ``write_report``."""
    found = gather(stores, results)
    fixed = _fixed_sections(found)
    for detail in _DETAILS:
        page = _render(found, list(_sections(found, fixed, detail)))
        if len(page.encode()) <= most_bytes:
            return page
    raise RunError(f"the page would be larger than {most_bytes:,} bytes", where="report", fix="report this; it is a bug")


def _fixed_sections(found: Findings) -> dict[str, Section | None]:
    """What is the same at every size."""
    return {
        "players": players_section(found),
        "configurations": configurations_section(found),
        "factors": ablation_section(found),
        "controls": controls_section(found),
        "search": search_section(found),
        "cost": cost_section(found),
        "curves": curves_section(found),
        "layers": layers_section(found),
        "decoding": decodings_section(found),
    }


def _sections(found: Findings, fixed: Mapping[str, Section | None], detail: _Detail) -> Iterator[Section]:
    """In the order of the page; the largest go where there is no room for them."""
    sections = [section if detail.has_pictures or section is None else _in_words(section) for section in fixed.values()]
    last = (merge_section(found), examples_section(found, detail.num_examples), troubles_section(found))
    for section in (*sections, trials_section(found), *last, reproduce_section(found)):
        if section is not None:
            yield replace(section, blocks=[_limited(block, detail.num_rows) for block in section.blocks])


def _in_words(section: Section) -> Section:
    """A section of pictures with a sign for each configuration, where the page has no room for them; others as they are."""
    if section.name not in _IN_PLACE_OF:
        return section
    note = f"The page has no room for these pictures. {_IN_PLACE_OF[section.name]}"
    return replace(section, lead="", blocks=[Notes([note])])


def _limited(block: Block, most: int) -> Block:
    """A table with no more rows than there is room for, which then says so."""
    if not isinstance(block, Table) or len(block.columns[0].cells) <= most:
        return block
    total = len(block.columns[0].cells)
    note = f"The page has room for {most:,} of {total:,} rows; “lorascope results DIR --json” has all."
    columns = [replace(column, cells=column.cells[:most]) for column in block.columns]
    return replace(block, columns=columns, note=f"{block.note} {note}".strip())


def _render(found: Findings, sections: Sequence[Section]) -> str:
    style, script = _template_file("style.css"), _template_file("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template("report.html").render(
        study=found.study.name,
        facts=_facts(found),
        answer=answer_of(found),
        sections=sections,
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        # Whatever slipped through escaping, a browser runs no script but this one and fetches nothing.
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )  # fmt: skip


def _facts(found: Findings) -> dict[str, str]:
    """What the study is, for the head of the page."""
    study = found.study
    # The first shard that has begun.
    info: dict[str, Any] = next((data for store in found.stores if (data := store.info("data"))), {})
    sizes = [f"{info[key]:,} {word}" for key, word in (("num_train", "train"), ("num_eval", "evaluation")) if info.get(key)]
    base = _base_name(study.base.model)
    held = study.base.quantization or study.base.dtype
    design = {"shapley": "Shapley game", "list": "list of configurations"}.get(study.design.kind, study.design.kind)
    counts = ", ".join(f"{count} {status}" for status, count in found.counts.items())
    facts = {
        "base": f"{base} ({held})",
        "task": f"{study.task.name}, scored on {study.evaluate.split}",
        "examples": ", ".join(sizes),
        "design": design,
        "trials": f"{counted(len(found.trials), 'trial')}: {counts}",
        "compared by": metric_name(found.metric) if found.metric else "",
        "judge": _judge(found),
    }
    return {name: clean(text) for name, text in facts.items() if text}


def _base_name(place: str) -> str:
    """A hub id, or a directory's name, with its parent's where that alone says nothing."""
    name = public_name(place)
    parent = Path(place).expanduser().parent.name
    return f"{parent}/{name}" if is_local(place) and name in _TELL_NOTHING and parent else name


def _judge(found: Findings) -> str:
    """Whose opinion a C-score is, and how often it is right."""
    judge = found.results["judge"]
    if judge is None:
        return ""
    check = judge["check"]
    model, adapter = public_name(judge["model"]), judge["adapter"]
    name = model
    if adapter is not None:
        name = adapter if is_embedded(adapter) else f"{model} with an adapter"
    if check is None:
        return f"{name}; its accuracy was not measured"
    return f"{name}; accuracy {check['accuracy']:.3f} on {check['num_examples']:,} examples of {check['task']}"


@cache
def _template_file(name: str) -> str:
    return (files("lorascope.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    # Autoescaped: whatever data and models say, it is text here.
    return Environment(
        loader=FunctionLoader(_template_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
