"""What training left in the adapters: norms of their updates by layer and module, and singular values of the best's.

Floor: ``report``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorascope.amounts import counted
from lorascope.analysis.figures import FIGURES, grid_of, span_of
from lorascope.errors import LorascopeError
from lorascope.report import charts
from lorascope.report.blocks import Block, Figure, Figures, Notes, Section
from lorascope.report.findings import Findings
from lorascope.report.record import privacy_of
from lorascope.report.words import clean, decimals_for

# Maps of adapters, and plots of spectra.
_MOST_ADAPTERS = 4
_MOST_SPECTRA = 24


def layers_section(found: Findings) -> Section | None:
    """How large the updates are that adapters make, by layer and module; of the best, the baseline and the next ones."""
    chosen = _adapters(found)
    if not chosen:
        return None
    documents, told = _documents(found, chosen)
    blocks: list[Block] = []
    if documents:
        blocks += [Figures([*_norms(documents), _use(documents)]), _spectra(*next(iter(documents.items())))]
        told += [warning for document in documents.values() for warning in document["warnings"]]
    blocks += [Notes(clean([privacy_of(found).clean(text) for text in told]), kind="caution")] if told else []
    lead = (
        "Frobenius norms of the updates ΔW = scaling · B A, on one scale: where an adapter moved the base, not what that was "
        "worth. “lorascope inspect” shows every figure of every adapter."
    )
    return Section("layers", "Updates by layer and module", lead if documents else "", blocks)


def _norms(documents: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """A map for each adapter, all in the colours of one scale."""
    grids = {label: grid_of(document["modules"], lambda row: row["norm"]) for label, document in documents.items()}
    span = span_of(grids.values())[1]
    write = charts.plain(f".{max(decimals_for([span]) - 1, 1)}f")
    figures = []
    for label, grid in grids.items():
        heat = charts.Heat(grid.rows, grid.columns, grid.values, span, write, row_title="layer")
        title = f"‖ΔW‖, {label}"
        whole = f"Norm of all updates together: {FIGURES['norm'].text(documents[label]['overall']['norm'])}."
        figures.append(Figure(charts.heat_map(heat, charts.heat_says(title, heat)), title, whole))
    return figures


def _use(documents: Mapping[str, Mapping[str, Any]]) -> Figure:
    """How much of its rank the first adapter makes use of."""
    label, document = next(iter(documents.items()))
    grid = grid_of(document["modules"], lambda row: row["utilisation"])
    heat = charts.Heat(grid.rows, grid.columns, grid.values, 1.0, FIGURES["utilisation"].text, row_title="layer")
    title = f"Effective rank / r, {label}"
    caption = "The share of its rank that an update makes use of; 1 is all of it."
    return Figure(charts.heat_map(heat, charts.heat_says(title, heat)), title, caption)


def _spectra(label: str, document: Mapping[str, Any]) -> Figures:
    """Singular values of every update of an adapter: a small plot for each kind of module, a line for each layer."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for row in document["modules"]:
        kinds.setdefault(row["kind"], []).append(row)
    shown = dict(list(kinds.items())[:_MOST_SPECTRA])
    ones = [
        charts.Spectrum(kind, [(_layer_text(row), row["singular_values"]) for row in _by_layer(rows)])
        for kind, rows in shown.items()
    ]
    told = [_told(rows) for rows in shown.values()]
    drawn = charts.spectra(ones, [f"Singular values of {kind}: {text}" for kind, text in zip(shown, told, strict=True)])
    has_layers = max(len(one.lines) for one in ones) > 1
    figures = [Figure(plot, one.label, text) for plot, one, text in zip(drawn, ones, told, strict=True)]
    left_out = f" The first {len(shown)} of {len(kinds)} kinds are shown." if len(shown) < len(kinds) else ""
    lines = " A line is a layer, stronger the deeper it lies." if has_layers else ""
    note = (
        f"Singular values of the updates of {label}, largest first, all on one scale.{lines} One that falls fast "
        f"makes use of little of its rank.{left_out}"
    )
    return Figures(figures, note, title="Spectra", is_small=True)


def _by_layer(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: (row["layer"] is None, row["layer"] or 0))


def _layer_text(row: Mapping[str, Any]) -> str:
    return str(row["module"]) if row["layer"] is None else f"layer {row['layer']}"


def _told(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where the largest value is, and how many of the ranks hold most of the energy."""
    most = max(rows, key=lambda row: row["spectral_norm"])
    if not most["spectral_norm"]:
        return "every update is zero"
    where = "" if most["layer"] is None else f" in {_layer_text(most)}"
    needed, given = _span([row["rank_for_90"] for row in rows]), max(row["r"] for row in rows)
    return f"at most {most['spectral_norm']:.3g}{where}; 90\u00a0% of ‖ΔW‖² in {needed} of {counted(given, 'rank')}"


def _span(counts: Sequence[int | None]) -> str:
    known = sorted(count for count in counts if count is not None)
    return str(known[0]) if known[0] == known[-1] else f"{known[0]}–{known[-1]}"


def _adapters(found: Findings) -> dict[str, Path]:
    """One adapter a configuration, by its label: of its first seed that is done."""
    order = [one for one in (found.best, found.baseline, *found.ranked) if one is not None]
    chosen: dict[str, Path] = {}
    for one in {one.name: one for one in order}.values():
        for trial in one.trials:
            path = _adapter_path(found, trial)
            if trial["status"] == "done" and path is not None and len(chosen) < _MOST_ADAPTERS:
                chosen[f"{one.label} (seed {trial['seed']})"] = path
                break
    return chosen


def _adapter_path(found: Findings, trial: Mapping[str, Any]) -> Path | None:
    path = found.places[trial["trial"]].directory / "trials" / str(trial["trial"]) / "adapter"
    return path if trial["adapter"] is not None and (path / "adapter_config.json").is_file() else None


def _documents(found: Findings, chosen: Mapping[str, Path]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What the adapters' files say, and what keeps others from being read."""
    from lorascope.analysis.updates import adapter_document, places_of, read_adapters  # these need torch

    read, told = {}, []
    for label, path in chosen.items():
        try:
            (one,) = read_adapters([path])
            read[label] = replace(one, label=label)
        except (LorascopeError, OSError) as error:
            told.append(f"The adapter of {label} could not be read: {error}")
    places = places_of(module for one in read.values() for module in one.modules)
    return {label: adapter_document(one, places) for label, one in read.items()}, told
