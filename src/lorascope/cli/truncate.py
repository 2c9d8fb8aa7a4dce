"""``lorascope inspect --truncate``: an adapter cut to the ranks that its score needs, written and verified. Floor: cli."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lorascope.analysis.figures import Figure, grid_of
from lorascope.cli.console import tell
from lorascope.cli.inspection import print_map
from lorascope.config import EvaluateConfig, Study, TaskConfig
from lorascope.errors import UsageError, did_you_mean
from lorascope.store import check_new, strict_json

if TYPE_CHECKING:
    from lorascope.analysis.truncated import Line, Tried
    from lorascope.analysis.updates import Inspected
    from lorascope.cohort.single import Prepared

REPORT_FILE = "truncation.json"
_BY_OUTPUT = "singular value over the norm of the module's frozen weight"
_BY_VALUE = "singular value"


@dataclass(frozen=True)
class Scored:
    """What the score is of, and the base that it is measured on."""

    task: TaskConfig
    settings: EvaluateConfig
    metric: str | None = None
    base: str | None = None
    dtype: str = "float32"
    quantization: str | None = None
    device: str = "cpu"


def truncate_adapter(
    one: Inspected, epsilon: float, out: Path, scored: Scored | None, num_slots: int | None
) -> dict[str, Any]:
    """Cut, write and verify; the document that is printed and that lies beside the adapter.

    Args:
        epsilon: the loss of score that is allowed, or without a task that of energy, as a share.
        scored: None without a task.
        num_slots: cuts evaluated in one stack; None for the usual number.
    """
    check_new(out)
    if scored is None and epsilon >= 1.0:
        fix = "give less than 1, or a task with --task and --data for a loss of its score"
        raise UsageError("without a task it is the share of energy that may be lost", where="--truncate", fix=fix)
    started = time.monotonic()
    if scored is None:
        return _by_energy(one, epsilon, out)
    return {**_by_score(one, epsilon, out, scored, num_slots), "seconds": time.monotonic() - started}


def _by_energy(one: Inspected, epsilon: float, out: Path) -> dict[str, Any]:
    from lorascope.analysis.truncated import keep_energy, line_up
    from lorascope.lora.truncate import write_truncated
    from lorascope.store import atomic_directory

    line = line_up(one.saved, str(one.directory))
    count = keep_energy(line, epsilon)
    document = {
        **_ranks(one, out, line, count),
        "order": _BY_VALUE,
        "epsilon": epsilon,
        "metric": None,
        "warnings": [],
        "what": f"no task was given: at least {1 - epsilon:.6g} of the updates' energy above rounding is kept, "
        "and no score was measured",
    }
    with atomic_directory(out, replace=False) as directory:
        write_truncated(one.directory, directory, line.cut(count))
        _write_beside(directory, document)
    return document


def _by_score(one: Inspected, epsilon: float, out: Path, scored: Scored, num_slots: int | None) -> dict[str, Any]:
    from lorascope.adapter import agreed_base
    from lorascope.analysis.truncated import NUM_SLOTS, line_up, search, weight_norms, write_and_verify
    from lorascope.cohort.single import prepare
    from lorascope.compare import loss_over_examples
    from lorascope.evaluate import run_to_end
    from lorascope.lora.peft_io import check_fits
    from lorascope.metrics import HIGHER_IS_BETTER
    from lorascope.store import atomic_directory

    where = str(one.directory)
    base = agreed_base({where: one.saved}, scored.base, dtype=scored.dtype, quantization=scored.quantization)
    prepared = prepare(base, scored.task, scored.settings, scored.device)
    check_fits(one.saved, prepared.base.model, where)
    metric = _metric(prepared, scored.metric)
    line = line_up(one.saved, where, weight_norms(prepared.base, one.saved))
    tell(f"{line.num_clear} directions of {len(line.directions)} modules; {metric} may get worse by {epsilon:g}")
    found = run_to_end(
        search(prepared, line, where, epsilon=epsilon, metric=metric, num_slots=num_slots or NUM_SLOTS),
        lambda tried: tell(_tried_line(tried, metric)),
    )
    with atomic_directory(out, replace=False) as directory:
        whole, written = write_and_verify(prepared, line, found, one.directory, directory)
        document: dict[str, Any] = {
            **_ranks(one, out, line, found.smallest.num_directions),
            "order": _BY_OUTPUT,
            "epsilon": epsilon,
            "metric": metric,
            "higher_is_better": HIGHER_IS_BETTER[metric],
            "original": {"score": whole.metrics[metric], "metrics": whole.metrics},
            "truncated": {"score": written.metrics[metric], "metrics": written.metrics},
            "paired": loss_over_examples(
                metric, epsilon, (whole.predictions, whole.metrics), (written.predictions, written.metrics)
            ),
            "tried": [asdict(tried) for tried in found.tried],
            "notes": list(found.notes),
            **prepared.facts,
        }
        strict: dict[str, Any] = strict_json(document)
        _write_beside(directory, strict)
    return strict


def _metric(prepared: Prepared, asked: str | None) -> str:
    """The metric that is kept: the one asked for, else the task's primary one."""
    from lorascope.compare import primary_metric

    if asked is not None:
        if asked not in prepared.foreseen:
            fix = did_you_mean(asked, list(prepared.foreseen))
            raise UsageError(f"the evaluation of {prepared.task_config.name} here gives no {asked}", where="--metric", fix=fix)
        return asked
    study = Study(name="truncate", base=prepared.config, task=prepared.task_config)
    primary = primary_metric(study, prepared.foreseen)
    assert primary is not None, "every evaluation has a loss"
    return primary


def _ranks(one: Inspected, out: Path, line: Line, count: int) -> dict[str, Any]:
    """What was cut to what."""
    from lorascope.analysis.truncated import num_parameters
    from lorascope.analysis.updates import places_of

    ranks, places = line.ranks(count), places_of(one.modules)
    given = {placement.target.module: placement.r for placement in one.saved.slot.placements}
    modules = [
        {
            "module": module,
            "layer": places[module].layer,
            "kind": places[module].kind,
            "r": given[module],
            "rank": ranks[module],
        }
        for module in one.modules
    ]
    return {
        "label": one.label,
        "adapter": str(one.directory),
        "out": str(out),
        "directions": sum(ranks.values()),
        "directions_before": sum(given.values()),
        "directions_above_rounding": line.num_clear,
        "parameters": num_parameters(line.cut(count)),
        "parameters_before": num_parameters(line.saved),
        "energy_kept": line.energy_kept(count),
        "modules": modules,
        "left_out": [module for module, rank in ranks.items() if rank == 0],
    }


def _write_beside(directory: Path, document: Mapping[str, Any]) -> None:
    """The report and the card, beside the adapter that was written."""
    from lorascope.lora.peft_io import read_adapter
    from lorascope.model_card import truncated_card

    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    (directory / REPORT_FILE).write_text(text, encoding="utf-8")
    card = truncated_card(document, read_adapter(directory), directory, REPORT_FILE)
    (directory / "README.md").write_text(card, encoding="utf-8")


def _tried_line(one: Tried, metric: str) -> str:
    score = "not finite" if one.score is None else f"{metric} {one.score:.6g}"
    return f"{one.num_directions} directions: {score}, {'holds' if one.holds else 'does not hold'}"


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
