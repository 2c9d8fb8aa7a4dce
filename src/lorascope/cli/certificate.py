"""The merge certificate on one screen: what was compared, what it came to, and which checks hold. Floor: cli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorascope.amounts import bytes_text

# In the order of how much they matter, least first.
_STYLES = {"holds": "green", "not judged": "dim", "warning": "yellow", "fails": "bold red"}
_WORST_MODULES = 3


def print_certificate(console: Console, document: Mapping[str, Any]) -> None:
    """Everything of a certificate that decides, on one screen."""
    holds = document["holds"]
    console.print(Text("the merge holds" if holds else "THE MERGE DOES NOT HOLD", style="bold green" if holds else "bold red"))
    _print_facts(console, document)
    if document["comparisons"]:
        _print_comparisons(console, document["comparisons"], document["merged"]["dtype"])
    _print_modules(console, document["modules"])
    _print_checks(console, document["checks"])


def _print_facts(console: Console, document: Mapping[str, Any]) -> None:
    base, adapter, merged, inputs = (document[key] for key in ("base", "adapter", "merged", "inputs"))
    scalings = ", ".join(f"{value:g}" for value in adapter["scalings"])
    size = f", {bytes_text(merged['bytes'])} in {len(merged['files'])} file(s)" if "bytes" in merged else ""
    facts = {
        "base": base["merged_into"],
        "adapter": f"{adapter['directory']}: {adapter['modules']} modules, scaling {scalings or '–'}",
        "merged": f"{merged['directory']}: {merged['class']}, {merged['dtype']}{size}",
        "effect": _effect_text(document["effect"]),
    }
    if document["level"] != "outputs":
        looked_at = "adapter and base" if document["level"] == "beforehand" else "tensors alone"
        facts["compared"] = f"{looked_at}: {document['why_level']}"
    else:
        facts["compared"] = (
            f"tensors, and the outputs on {inputs['from']}: {inputs['rows']} rows, {inputs['positions']} positions"
        )
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, says in facts.items():
        table.add_row(name, Text(says))
    console.print(table)


def _effect_text(effect: Mapping[str, Any]) -> str:
    parts = []
    if effect.get("relative_difference") is not None:
        moved = 1.0 - effect["top1_agreement"]
        parts.append(
            f"logits move by {effect['relative_difference']:.1e} (relative), KL {effect['kl']:.1e}, "
            f"{moved:.1%} of the likeliest answers change"
        )
    if effect.get("largest_relative_update") is not None:
        smallest, largest = effect["smallest_relative_update"], effect["largest_relative_update"]
        parts.append(f"‖ΔW‖ is {smallest:.1e} to {largest:.1e} of ‖W‖")
    return "; ".join(parts) or "none was measured"


def _print_comparisons(console: Console, rows: Sequence[Mapping[str, Any]], dtype: str) -> None:
    """Every model against the reference; those whose name does not say so are in the merged model's dtype."""
    reference = next(row["name"] for row in rows if row["against"] is None)
    scores = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    table = Table(show_edge=False, pad_edge=False)
    table.add_column(f"against: {reference}")
    for name in ("max difference", "relative", "KL", "largest KL", "same top-1", *scores):
        table.add_column(name, justify="right")
    for row in rows:
        figures = [row.get(key) for key in ("max_difference", "relative_difference", "kl", "kl_max")]
        same = row.get("top1_agreement")
        other = "" if row["against"] in (None, reference) else f" (against: {row['against']})"
        other = other or ("" if "float32" in row["name"] else f", {dtype}")
        table.add_row(
            Text(row["name"] + other),
            *("–" if figure is None else f"{figure:.1e}" for figure in figures),
            "–" if same is None else f"{same:.2%}",
            *(f"{row['scores'][name]:.4f}" if name in row["scores"] else "–" for name in scores),
        )
    console.print(table)


def _print_modules(console: Console, modules: Sequence[Mapping[str, Any]]) -> None:
    """Those whose update arrived worst."""
    if not modules:
        return
    worst = sorted(modules, key=lambda one: -(float("inf") if one["ratio"] is None else one["ratio"]))[:_WORST_MODULES]
    table = Table(show_edge=False, pad_edge=False)
    table.add_column(f"module (worst {len(worst)} of {len(modules)})" if len(worst) < len(modules) else "module")
    for name in ("‖ΔW‖/‖W‖", "‖W′−W−ΔW‖/‖ΔW‖", "arrived"):
        table.add_column(name, justify="right")
    for one in worst:
        share = one["update_norm"] / one["weight_norm"] if one["weight_norm"] else None
        arrived = one["arrived"]
        table.add_row(
            Text(one["module"]),
            "–" if share is None else f"{share:.1e}",
            "–" if one["ratio"] is None else f"{one['ratio']:.1e}",
            "–" if arrived is None else f"{arrived:.1%}",
        )
    console.print(table)


def _print_checks(console: Console, checks: Sequence[Mapping[str, Any]]) -> None:
    """Whatever does not simply hold, and what holds by a figure; of the others the names."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("says", overflow="fold")
    plain = [check["name"] for check in checks if check["verdict"] == "holds" and check["value"] is None]
    for check in sorted(checks, key=lambda check: list(_STYLES).index(check["verdict"]), reverse=True):
        if check["name"] not in plain:
            table.add_row(check["name"], Text(check["verdict"], style=_STYLES[check["verdict"]]), Text(check["says"]))
    console.print(table)
    if plain:
        console.print(f"these hold too: {', '.join(plain)}", markup=False, highlight=False)
