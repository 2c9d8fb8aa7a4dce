"""What ``lorascope inspect`` shows on a terminal: tables, and maps of layers and modules in colour. Floor: cli."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorascope.amounts import counted
from lorascope.analysis.figures import FIGURES, SIDE_TITLES, SIMILARITY, Figure, Grid, Span, grid_of, leading_of, span_of
from lorascope.cli.tables import number_text, print_table, text_of

# Viridis, from low to high: it reads in grey too.
_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
# A name above a map breaks at its dots into lines of so many characters.
_NAME_WIDTH = 9
_BAR = 20


def print_inspection(console: Console, document: Mapping[str, Any], figures: Sequence[str]) -> None:
    """The document of ``lorascope inspect``: each adapter, then how they overlap, then what they do to hidden states."""
    adapters = document["adapters"]
    _print_adapters(console, adapters)
    grids = {name: [grid_of(adapter["modules"], itemgetter(name)) for adapter in adapters] for name in figures}
    for index, adapter in enumerate(adapters):
        _print_kinds(console, adapter)
        for name in figures:
            title = f"{adapter['label']}: {FIGURES[name].title}"
            print_map(console, title, grids[name][index], FIGURES[name], span_of(grids[name]))
    if document["overlap"] is not None:
        _print_overlap(console, document["overlap"])
    if document["representations"] is not None:
        _print_drift(console, document["representations"])


def print_map(console: Console, title: str, grid: Grid, figure: Figure, span: Span | None = None) -> None:
    """Layers down, modules across, in as many parts as the width takes.

    Args:
        span: the values of the darkest and of the lightest colour; by default the map's own least and greatest.
    """
    low, high = span_of([grid])
    colours = (low, high) if span is None else span
    told = title if low == high else f"{title}, {figure.text(low)} to {figure.text(high)}"
    console.print(Text(told, style="bold"), soft_wrap=True)
    names = [_broken(kind) for kind in grid.columns]
    columns = [
        max(max(map(len, name)), *(len(figure.text(row[index])) for row in grid.values)) + 2
        for index, name in enumerate(names)
    ]
    first = max(len("layer"), *map(len, grid.rows)) + 1
    for part in _parts(columns, console.width - first):
        table = Table.grid(padding=0)
        for _ in range(len(part) + 1):
            table.add_column(vertical="bottom")
        heads = [Text("\n".join(line.center(columns[index]) for line in names[index])) for index in part]
        table.add_row(Text("layer"), *heads)
        for layer, row in zip(grid.rows, grid.values, strict=True):
            cells = [_cell(figure.text(row[index]).center(columns[index]), row[index], *colours) for index in part]
            table.add_row(Text(layer.rjust(first - 1) + " "), *cells)
        console.print(table)
    console.print()


def _cell(text: str, value: float | None, low: float, high: float) -> Text:
    if value is None:
        return Text(text, style="dim")
    red, green, blue = _colour(0.5 if high == low else (value - low) / (high - low))
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
    return Text(text, style=f"{'#ffffff' if dark else '#000000'} on #{red:02x}{green:02x}{blue:02x}")


def _colour(share: float) -> tuple[int, int, int]:
    """The colour of a share of the scale, between its two neighbours."""
    place = min(max(share, 0.0), 1.0) * (len(_COLOURS) - 1)
    index = min(int(place), len(_COLOURS) - 2)
    red, green, blue = (
        round(a + (b - a) * (place - index)) for a, b in zip(_COLOURS[index], _COLOURS[index + 1], strict=True)
    )
    return red, green, blue


def _broken(kind: str) -> list[str]:
    """A module's name in short lines, broken at its dots and spaces."""
    lines = [""]
    for part in re.findall(r"[^. ]+[. ]?", kind):
        if lines[-1] and len(lines[-1] + part) > _NAME_WIDTH:
            lines.append("")
        lines[-1] += part
    return lines


def _parts(columns: Sequence[int], width: int) -> list[list[int]]:
    """Columns cut into runs that fit the width, each with at least one."""
    parts: list[list[int]] = []
    left = 0
    for index, column in enumerate(columns):
        if not parts or column > left:
            parts.append([])
            left = width
        parts[-1].append(index)
        left -= column
    return parts


def _print_adapters(console: Console, adapters: Sequence[Mapping[str, Any]]) -> None:
    overall = [adapter["overall"] for adapter in adapters]
    columns = {
        "adapter": [adapter["label"] for adapter in adapters],
        "base": [text_of(adapter["base"]) for adapter in adapters],
        "r": [_range_text([row["r"] for row in adapter["modules"]]) for adapter in adapters],
        "scaling": [_range_text([row["scaling"] for row in adapter["modules"]]) for adapter in adapters],
        "modules": [f"{len(adapter['modules']):,}" for adapter in adapters],
        "parameters": [f"{adapter['lora_params']:,}" for adapter in adapters],
        "stored as": [" ".join(dict.fromkeys(row["dtype"] for row in adapter["modules"])) for adapter in adapters],
        "‖ΔW‖": [FIGURES["norm"].text(one["norm"]) for one in overall],
        "effective rank": [number_text(one["effective_rank"], 2) for one in overall],
        "of r": [f"{one['utilisation']:.0%}" for one in overall],
        "stable rank": [number_text(one["stable_rank"], 2) for one in overall],
        "numerical rank": [_range_text([row["numerical_rank"] for row in adapter["modules"]]) for adapter in adapters],
    }
    title = f"{counted(len(adapters), 'adapter')}; ranks are means over modules, or ranges"
    dispensable = ("stored as", "scaling", "base", "stable rank", "parameters", "modules")
    print_table(console, title, columns, {"adapter", "base"}, dispensable)
    for adapter in adapters:
        others = [
            f"{counted(len(adapter[kind]), noun)} ({adapter[size]:,} numbers)"
            for kind, noun, size in (("biases", "trained bias tensor", "bias_params"), ("heads", "head tensor", "head_params"))
            if adapter[kind]
        ]
        if others:
            line = f"{adapter['label']} also holds {' and '.join(others)}; their moments are in --json"
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_kinds(console: Console, adapter: Mapping[str, Any]) -> None:
    """One row a module, over its layers; slices of a fused projection below it."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for module in adapter["modules"]:
        rows.setdefault(module["kind"], []).append(module)
        for part in module["slices"]:
            rows.setdefault(f"{module['kind']}[{part['start']}:{part['stop']}]", []).append(part)
    columns = {
        "module": list(rows),
        "layers": [str(len(members)) for members in rows.values()],
        "r": [_range_text([one["r"] for one in members]) for members in rows.values()],
        "‖ΔW‖": [_mean_text(members, "norm", ".3g") for members in rows.values()],
        "‖ΔW‖₂": [_mean_text(members, "spectral_norm", ".3g") for members in rows.values()],
        "mean": [_mean_text(members, "mean", ".1e") for members in rows.values()],
        "std": [_mean_text(members, "std", ".1e") for members in rows.values()],
        "effective": [_mean_text(members, "effective_rank", ".2f") for members in rows.values()],
        "of r": [_mean_text(members, "utilisation", ".0%") for members in rows.values()],
        "stable": [_mean_text(members, "stable_rank", ".2f") for members in rows.values()],
        "numerical": [_range_text([one["numerical_rank"] for one in members]) for members in rows.values()],
        "90 %": [_range_text([one["rank_for_90"] for one in members]) for members in rows.values()],
        "99 %": [_range_text([one["rank_for_99"] for one in members]) for members in rows.values()],
    }
    title = f"{adapter['label']}: means over layers, or ranges; 90 %, 99 %: ranks that keep so much of ‖ΔW‖²"
    print_table(console, title, columns, {"module"}, ("mean", "‖ΔW‖₂", "std", "stable", "90 %"))


def _mean_text(rows: Sequence[Mapping[str, Any]], name: str, form: str) -> str:
    return format(sum(row[name] for row in rows) / len(rows), form)


def _range_text(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _print_overlap(console: Console, overlap: Mapping[str, Any]) -> None:
    pairs = overlap["pairs"]
    means = [pair["mean"] for pair in pairs]
    columns = {
        "pair": [f"{pair['first']} · {pair['second']}" for pair in pairs],
        "modules": [str(pair["num_shared"]) for pair in pairs],
        "cosine": [number_text(mean["cosine"], 3) for mean in means],
    }
    for side, short in (("left", "out"), ("right", "in")):
        columns[f"{short}: top"] = [number_text(mean[side]["top"], 3) for mean in means]
        for which in ("leading", "all"):
            columns[f"{short}: {which}"] = [
                f"{number_text(mean[side][which], 3)} ({number_text(mean[side][f'{which}_by_chance'], 3)})" for mean in means
            ]
    share = f"{overlap['leading_share']:.0%}"
    title = "overlap of directions, 0 to 1, means over modules (in brackets: of random directions)"
    print_table(console, title, columns, {"pair"}, ("in: top", "out: top", "modules"))
    told = (
        f"out: what an update writes, in: what it reads; top: the first direction, leading: those with {share} of the energy"
    )
    console.print(told, markup=False, highlight=False, soft_wrap=True)
    for pair in pairs if len(pairs) == 1 else ():
        for side, name in SIDE_TITLES.items():
            grid = grid_of(pair["modules"], leading_of(side))
            if grid.rows:
                print_map(console, f"overlap of leading directions, {name}", grid, SIMILARITY, (0.0, 1.0))


def _print_drift(console: Console, found: Mapping[str, Any]) -> None:
    adapters = found["adapters"]
    layers = [drift["layer"] for drift in adapters[0]["layers"]]
    columns: dict[str, list[str]] = {"layer": layers}
    for adapter in adapters:
        drifts = adapter["layers"]
        suffix = "" if len(adapters) == 1 else f" {adapter['label']}"
        columns[f"CKA{suffix}"] = [number_text(drift["cka_debiased"]) for drift in drifts]
        columns[f"moved{suffix}"] = [number_text(drift["relative_norm"]) for drift in drifts]
        if len(adapters) == 1:
            most = max(drift["relative_norm"] for drift in drifts) or 1.0
            columns[" "] = ["█" * round(_BAR * drift["relative_norm"] / most) for drift in drifts]
    tokens = max(drift["num_tokens"] for drift in adapters[0]["layers"])
    examples = counted(found["num_examples"], "example")
    dispensable = [name for name in columns if name.startswith("CKA ")] if len(adapters) > 1 else []
    print_table(console, "hidden states against the base's", columns, {"layer", " "}, dispensable)
    for told in (
        f"of {examples} of {found['task']} ({found['split']}), {counted(tokens, 'token')}",
        "CKA: linear, debiased, 1 where only rotated and scaled; moved: ‖h_a − h_b‖ / ‖h_b‖, mean over tokens",
    ):
        console.print(told, markup=False, highlight=False, soft_wrap=True)
