"""``lorascope inspect --truncate``: what is tried, told as it is found, and the screen. Floor: cli."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lorascope.analysis.figures import Figure, grid_of
from lorascope.cli.console import tell
from lorascope.cli.inspection import print_map

if TYPE_CHECKING:
    from lorascope.analysis.truncated import Tried
    from lorascope.smallest_adapter import Begun, Cut


def told(running: Generator[Begun | Tried, None, Cut]) -> Cut:
    """Carry a search out; what it tries is told on stderr."""
    from lorascope.evaluate import run_to_end
    from lorascope.smallest_adapter import Begun

    metric = ""

    def show(event: Begun | Tried) -> None:
        nonlocal metric
        if isinstance(event, Begun):
            metric = event.metric
            allowed = f"{metric} may get worse by {event.epsilon:g}"
            tell(f"{event.num_clear} directions of {event.num_modules} modules; {allowed}")
            return
        score = "not finite" if event.score is None else f"{metric} {event.score:.6g}"
        tell(f"{event.num_directions} directions: {score}, {'holds' if event.holds else 'does not hold'}")

    return run_to_end(running, show)


def print_truncation(console: Console, document: Mapping[str, Any]) -> None:
    """What was kept of each layer and module, and what it cost."""
    grid = grid_of(document["modules"], lambda row: row["rank"])
    given = sorted({row["r"] for row in document["modules"]})
    of = str(given[0]) if len(given) == 1 else f"{given[0]} to {given[-1]}"
    print_map(console, f"rank kept of r = {of}", grid, Figure("rank kept", "d"), (0.0, float(given[-1])))
    share = document["parameters"] / document["parameters_before"]
    lines = [
        f"{document['directions_before']} → {document['directions']} directions, {document['parameters_before']:,} → "
        f"{document['parameters']:,} numbers ({share:.1%}), {document['energy_kept']:.4%} of the energy"
    ]
    if document["bytes"] * document["parameters_before"] != document["bytes_before"] * document["parameters"]:
        taken = f"{document['bytes_before']:,} → {document['bytes']:,} bytes"
        lines.append(f"{taken}: the new factors are stored in float32, as rounding them once more would show")
    within = document["directions_before"] - document["directions_above_rounding"]
    if within:
        lines.append(
            f"{within} of the {document['directions_before']} directions are within the rounding of the stored numbers"
        )
    if document["left_out"]:
        lines.append(f"left out: {len(document['left_out'])} of {len(document['modules'])} modules")
    if document["metric"] is None:
        lines.append(document["what"])
    else:
        lines += _score_lines(document)
    for line in [*lines, f"written to {document['out']}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _score_lines(document: Mapping[str, Any]) -> list[str]:
    metric, paired = document["metric"], document["paired"]
    one, other = document["original"]["score"], document["truncated"]["score"]
    interval = "" if paired["low"] is None else f" [{paired['low']:.3g}, {paired['high']:.3g}]"
    kind = "examples" if paired["groups"] == document["num_examples"] else "groups of examples"
    of = "" if paired["groups"] is None else f" over {paired['groups']} {kind}, {paired['changed']} of which score differently"
    return [
        f"{metric}: {one:.6g} → {other:.6g} (read back from the written files), on {document['num_examples']} examples of "
        f"{document['task']}, {document['split']}",
        f"loss: {paired['loss']:.3g}{interval}{of}; allowed: {document['epsilon']:g}; {paired['verdict']}",
        *document["notes"],
    ]
