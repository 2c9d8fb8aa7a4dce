"""``lorascope inspect --truncate``: an adapter cut to the ranks that its score needs, written and verified. Floor: cli."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lorascope.cli.console import stderr
from lorascope.config import EvaluateConfig, Study, TaskConfig
from lorascope.errors import UsageError
from lorascope.metrics import HIGHER_IS_BETTER

if TYPE_CHECKING:
    from lorascope.analysis.truncated import Line, Tried
    from lorascope.cohort.single import Prepared
    from lorascope.lora.peft_io import SavedAdapter

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


def truncate_adapter(adapter: Path, epsilon: float, out: Path, scored: Scored | None, num_slots: int) -> dict[str, Any]:
    """Cut, write and verify; the document that is printed and that lies beside the adapter.

    Args:
        epsilon: the loss of score that is allowed, or without a task the share of energy.
        scored: None without a task.
        num_slots: cuts evaluated in one stack.
    """
    from lorascope.lora.peft_io import read_adapter

    if out.exists():
        raise UsageError("it exists already", where=str(out), fix="give --out a new directory")
    largest = None if scored else 1.0
    if epsilon < 0.0 or (largest is not None and epsilon >= largest):
        fix = "give a loss of 0 or more" if scored else "without a task it is the share of energy that may be lost: 0 to 1"
        raise UsageError(f"{epsilon:g} is no loss that can be kept to", where="--truncate", fix=fix)
    started = time.monotonic()
    saved = read_adapter(adapter, "whole")
    if scored is None:
        return _by_energy(adapter, saved, epsilon, out)
    return {**_by_score(adapter, saved, epsilon, out, scored, num_slots), "seconds": time.monotonic() - started}


def _by_energy(adapter: Path, saved: SavedAdapter, epsilon: float, out: Path) -> dict[str, Any]:
    from lorascope.analysis.truncated import keep_energy, line_up
    from lorascope.lora.peft_io import read_adapter
    from lorascope.lora.truncate import write_truncated
    from lorascope.store import atomic_directory

    line = line_up(saved, str(adapter))
    count = keep_energy(line, epsilon)
    document = {
        **_ranks(adapter, out, line, count),
        "order": _BY_VALUE,
        "epsilon": epsilon,
        "metric": None,
        "what": f"no task was given: at least {1 - epsilon:.6g} of the updates' energy is kept, and no score was measured",
    }
    with atomic_directory(out) as directory:
        write_truncated(adapter, directory, line.cut(count))
        read_adapter(directory)
        _write_beside(directory, document, saved)
    return document


def _by_score(adapter: Path, saved: SavedAdapter, epsilon: float, out: Path, scored: Scored, num_slots: int) -> dict[str, Any]:
    from lorascope.analysis.truncated import line_up, run_to_end, search, weight_norms, write_and_verify
    from lorascope.cohort.single import base_of_adapter, prepare
    from lorascope.store import atomic_directory

    base = base_of_adapter(saved, str(adapter), scored.base, scored.dtype, scored.quantization)
    prepared = prepare(base, scored.task, scored.settings)
    metric = _metric(prepared, scored.metric)
    line = line_up(saved, str(adapter), weight_norms(prepared.base, saved))
    _tell(f"{len(line.keys)} directions of {len(line.directions)} modules; {metric} may get worse by {epsilon:g}")
    found = run_to_end(
        search(prepared, line, str(adapter), epsilon=epsilon, metric=metric, num_slots=num_slots),
        lambda one: _tell(_tried_line(one, metric)),
    )
    with atomic_directory(out) as directory:
        whole, written = write_and_verify(prepared, line, found, adapter, directory)
        document = {
            **_ranks(adapter, out, line, found.smallest.directions),
            "order": _BY_OUTPUT,
            "epsilon": epsilon,
            "metric": metric,
            "higher_is_better": HIGHER_IS_BETTER[metric],
            "original": {"score": whole.metrics[metric], "metrics": whole.metrics},
            "truncated": {"score": written.metrics[metric], "metrics": written.metrics},
            "paired": _paired(metric, epsilon, whole, written),
            "tried": [asdict(one) for one in found.tried],
            "notes": list(found.notes),
            **prepared.facts,
        }
        document = _strict(document)
        _write_beside(directory, document, saved)
    return document


def _metric(prepared: Prepared, asked: str | None) -> str:
    """The metric that is kept: the one asked for, else the task's primary one."""
    from lorascope.compare import primary_metric
    from lorascope.errors import did_you_mean

    if asked is not None:
        if asked not in prepared.foreseen:
            fix = did_you_mean(asked, list(prepared.foreseen))
            raise UsageError(f"the evaluation of {prepared.task_config.name} here gives no {asked}", where="--metric", fix=fix)
        return asked
    study = Study(name="truncate", base=prepared.config, task=prepared.task_config)
    primary = primary_metric(study, prepared.foreseen)
    assert primary is not None, "every evaluation has a loss"
    return primary


def _ranks(adapter: Path, out: Path, line: Line, count: int) -> dict[str, Any]:
    """What was cut to what."""
    from lorascope.analysis.truncated import num_parameters

    ranks = line.ranks(count)
    return {
        "adapter": str(adapter),
        "out": str(out),
        "directions": count,
        "directions_before": sum(placement.r for placement in line.saved.slot.placements),
        "parameters": num_parameters(line.cut(count)),
        "parameters_before": num_parameters(line.saved),
        "energy_kept": line.energy_kept(count),
        "ranks": ranks,
        "ranks_before": {placement.target.key: placement.r for placement in line.saved.slot.placements},
        "left_out": [key for key, rank in ranks.items() if rank == 0],
    }


def _paired(metric: str, epsilon: float, whole: Any, written: Any) -> dict[str, Any]:
    """The loss over the examples, and what it says of others."""
    from lorascope.compare import difference_over_examples

    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    found = difference_over_examples(metric, (whole.predictions, whole.metrics), (written.predictions, written.metrics))
    record = asdict(found)
    ends = None if found.low is None or found.high is None else sorted((sign * found.low, sign * found.high))
    record |= {"difference": sign * found.difference, "low": ends and ends[0], "high": ends and ends[1]}
    if found.changed == 0:
        verdict = "no example scores differently"
    elif ends is None:
        verdict = "it holds for these very examples; nothing tells how far others would differ"
    elif ends[1] <= epsilon:
        verdict = "it would hold for other examples of the same kind too (95 %)"
    else:
        verdict = "it holds for these examples; for others of the same kind the interval does not exclude a larger loss"
    return {"loss": record.pop("difference"), **record, "verdict": verdict}


def _write_beside(directory: Path, document: Mapping[str, Any], saved: SavedAdapter) -> None:
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    (directory / REPORT_FILE).write_text(text, encoding="utf-8")
    (directory / "README.md").write_text(_card(document, saved), encoding="utf-8")


def _card(document: Mapping[str, Any], saved: SavedAdapter) -> str:
    """A short model card in the hub's form."""
    base = f"base_model: {saved.base_model}\n" if saved.base_model else ""
    if document["metric"] is None:
        scores = document["what"]
    else:
        one, other = document["original"]["score"], document["truncated"]["score"]
        task = f"{document['task']} ({document['split']}, {document['num_examples']} examples)"
        scores = (
            f"{document['metric']} on {task}: {one:.6g} before, {other:.6g} now; at most {document['epsilon']:g} was allowed"
        )
    return (
        f"---\nlibrary_name: peft\n{base}tags: [lora, lorascope]\n---\n\n# {Path(document['adapter']).name}, truncated\n\n"
        f"The adapter `{document['adapter']}` cut from {document['directions_before']} to {document['directions']} "
        f"directions ({document['parameters_before']:,} to {document['parameters']:,} numbers). {scores}.\n"
        f"Each module's rank and every cut that was tried: `{REPORT_FILE}`.\n"
    )


def _strict(value: Any) -> Any:
    """As strict JSON can hold it."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and value - value != 0.0 else value


def _tell(line: str) -> None:
    stderr().print(line, markup=False, highlight=False, soft_wrap=True)


def _tried_line(one: Tried, metric: str) -> str:
    score = "not finite" if one.score is None else f"{metric} {one.score:.6g}"
    return f"{one.directions} directions: {score}, {'holds' if one.holds else 'does not hold'}"


def print_truncation(console: Console, document: Mapping[str, Any]) -> None:
    """What was kept of each layer and module, and what it cost."""
    before, after = document["ranks_before"], document["ranks"]
    console.print(_ranks_table(after, before))
    share = document["parameters"] / document["parameters_before"]
    lines = [
        f"{document['directions_before']} → {document['directions']} directions, {document['parameters_before']:,} → "
        f"{document['parameters']:,} numbers ({share:.1%}), {document['energy_kept']:.4%} of the energy"
    ]
    if document["left_out"]:
        lines.append(f"left out: {len(document['left_out'])} of {len(after)} modules")
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
    of = "" if paired["groups"] is None else f" over {paired['groups']} groups, {paired['changed']} of them changed"
    return [
        f"{metric}: {one:.6g} → {other:.6g} (read back from the written files), on {document['num_examples']} examples of "
        f"{document['task']}, {document['split']}",
        f"loss: {paired['loss']:.3g}{interval}{of}; allowed: {document['epsilon']:g}; {paired['verdict']}",
        *document["notes"],
    ]


def _ranks_table(after: Mapping[str, int], before: Mapping[str, int]) -> Table:
    """Layers by kinds of module: the rank that is kept, out of the one that was given."""
    places = {key: _place(key) for key in after}
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    layers = list(dict.fromkeys(layer for layer, _ in places.values()))
    found = {place: key for key, place in places.items()}
    # One run of layers needs no name.
    one_run = len({layer.rpartition(".")[0] for layer in layers}) == 1
    given = set(before.values())
    whole = f" of r = {given.pop()}" if len(given) == 1 else ""
    table = Table(title=f"rank kept{whole}", title_justify="left")
    table.add_column("layer")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for layer in layers:
        cells = []
        for kind in kinds:
            key = found.get((layer, kind))
            one = "" if key is None else str(after[key] or "–")
            cells.append(one if key is None or whole else f"{one}/{before[key]}")
        table.add_row(layer.rpartition(".")[2] if one_run else layer, *cells)
    return table


def _place(module: str) -> tuple[str, str]:
    """The layer, by what stands before its number (``encoder.block``) and the number, and the kind of module in it."""
    matched = re.match(r"(?P<before>(?:.*?\.)??)(?P<layer>\d+)\.(?P<kind>.+)", module)
    return ("", module) if matched is None else (matched["before"] + matched["layer"], matched["kind"])
