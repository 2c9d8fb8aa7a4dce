"""Results as a markdown page and a JSON document. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.runner import Options, Outcome
from benchmarks.workloads import Side


def write(outcome: Outcome, options: Options, date: str, directory: Path) -> Path:
    """Write ``<date>-<workload>.md`` and ``.json``; returns the markdown's path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{date}-{outcome.workload.name}.md"
    path.write_text(markdown(outcome, options, date), encoding="utf-8")
    text = json.dumps(document(outcome, options, date), indent=1, ensure_ascii=False, allow_nan=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return path


def document(outcome: Outcome, options: Options, date: str) -> dict[str, Any]:
    """Everything that was measured; numbers that are none become null."""
    workload = outcome.workload
    measured = [
        {key: value for key, value in asdict(one).items() if key not in ("answers", "batches", "machine")}
        | {"rate": one.rate, "rate_timed": one.rate_timed, "share_of_probe": one.share_of_probe}
        for one in outcome.measurements
    ]
    result = {
        "date": date,
        "workload": asdict(workload),
        "options": {"seconds": options.seconds, "repeats": options.repeats, "limit": options.limit, "device": options.device},
        "machine": _machine(outcome),
        "data_notes": outcome.facts.get("notes", []),
        "rates": {side.name: rate(outcome, side) for side in outcome.sides},
        "ratios": {side.name: ratio(outcome, side) for side in outcome.sides},
        "measurements": measured,
        "parity": parity(outcome),
        "answers_equal": {side.name: equal_answers(outcome, side) for side in outcome.sides},
    }
    return _finite(result)  # type: ignore[no-any-return]


def rate(outcome: Outcome, side: Side) -> float | None:
    """The median of a side's rates over the repeats."""
    rates = [value for value in _rates(outcome, side).values() if value is not None]
    return median(rates) if rates else None


def ratio(outcome: Outcome, side: Side) -> float | None:
    """How many times faster the subject was: the median of the ratios within each repeat."""
    ours = _rates(outcome, outcome.sides[0])
    theirs = _rates(outcome, side)
    ratios = [
        mine / their
        for repeat, mine in ours.items()
        if mine is not None and (their := theirs.get(repeat)) is not None and their
    ]
    if side is outcome.sides[0] or outcome.sides[0].role != "subject" or not ratios:
        return None
    return median(ratios)


def _rates(outcome: Outcome, side: Side) -> dict[int, float | None]:
    """By repeat; several configurations of one repeat, measured one after the other, add up their seconds."""
    rates: dict[int, float | None] = {}
    for repeat in sorted({one.repeat for one in outcome.of(side.name)}):
        several = [one.rate for one in outcome.of(side.name) if one.repeat == repeat]
        known = [value for value in several if value]
        # Each configuration has as many examples, so their joint rate is the harmonic mean.
        rates[repeat] = len(known) / sum(1.0 / value for value in known) if len(known) == len(several) and known else None
    return rates


def equal_answers(outcome: Outcome, side: Side) -> dict[str, float] | None:
    """Of the answers that both sides gave, the share that is equal: token for token where tokens are known, and as text."""
    first = outcome.sides[0]
    ours = next((one for one in outcome.of(first.name) if one.answers), None)
    theirs = next((one for one in outcome.of(side.name) if one.answers), None)
    if side is first or ours is None or theirs is None:
        return None
    pairs = [
        (answer, other[key])
        for mine, other in zip(ours.answers, theirs.answers, strict=False)
        for key, answer in mine.items()
        if key in other
    ]
    result: dict[str, float] = {"compared": len(pairs)}
    if pairs:
        result["equal_text"] = sum(a["text"] == b["text"] for a, b in pairs) / len(pairs)
    known = [(a["tokens"], b["tokens"]) for a, b in pairs if a["tokens"] is not None and b["tokens"] is not None]
    if known:
        result["equal_tokens"] = sum(list(a) == list(b) for a, b in known) / len(known)
    if len(theirs.answers) > 1 and theirs.answers[0]:
        one, other = theirs.answers[:2]
        result["adapters_differ"] = sum(one[key]["text"] != other[key]["text"] for key in one) / len(one)
    return result


def parity(outcome: Outcome) -> list[dict[str, Any]]:
    """Per peer and step: both losses, both gradient norms and their relative differences."""
    first = outcome.sides[0].name
    ours = outcome.parity.get(first)
    if ours is None:
        return []
    name = f"c{outcome.workload.peer_configuration}"
    rows: list[dict[str, Any]] = []
    for side, theirs in outcome.parity.items():
        if side == first or theirs.error is not None:
            continue
        columns = (ours.losses, theirs.losses, ours.grad_norms, theirs.grad_norms)
        for step, values in enumerate(zip(*(column.get(name, []) for column in columns), strict=False)):
            rows.append(
                {
                    "peer": side,
                    "step": step,
                    "rows": len(ours.batches[step]),
                    "loss": values[0],
                    "peer_loss": values[1],
                    "loss_difference": _relative(values[0], values[1]),
                    "grad_norm": values[2],
                    "peer_grad_norm": values[3],
                    "grad_norm_difference": _relative(values[2], values[3]),
                }
            )
    return rows


def markdown(outcome: Outcome, options: Options, date: str) -> str:
    """The page."""
    workload = outcome.workload
    parts = [
        f"# {workload.name}, {date}",
        f"{workload.about}. Aim: {workload.target}.",
        _machine_line(outcome, options),
        _rates_table(outcome),
        _verdict(outcome),
    ]
    if workload.kind == "train":
        parts += [_losses_table(outcome), _parity_table(outcome), _roofline(outcome)]
    else:
        parts.append(_answers_table(outcome))
    parts.append(_notes(outcome, options))
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(outcome: Outcome) -> dict[str, Any]:
    return next((one.machine for one in outcome.measurements if one.machine), {})


def _machine_line(outcome: Outcome, options: Options) -> str:
    found = _machine(outcome)
    if not found:
        return ""
    instructions = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in found.get("instructions", {}).items())
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    device = "" if found["device"] == "cpu" else f" {found['device']};"
    return (
        f"{device} {found['processor']}, {found['cores']} cores, {found['threads']} threads, {found['memory_gib']} GiB"
        f"{f' ({instructions})' if instructions else ''}. {versions}. "
        f"{options.repeats} repeat(s), {options.seconds:g} s of timed steps per measurement."
    ).strip()


def _rates_table(outcome: Outcome) -> str:
    unit = outcome.workload.unit
    header = ["side", unit, "as timed", "Lorascope is × faster", "timed", "rows a step", "tokens/s", "peak MiB"]
    rows = []
    for side in outcome.sides:
        measured = outcome.of(side.name)
        last = measured[-1]
        good = [one for one in measured if one.error is None]
        if last.error is not None or not good:
            rows.append([side.name, f"failed: {last.error}", *[""] * 6])
            continue
        tokens = median(one.num_configurations * one.tokens_timed / one.seconds for one in good)
        timed = median(one.items_timed for one in good)
        rows.append(
            [
                side.name,
                _number(rate(outcome, side)),
                _number(median(one.rate_timed or 0.0 for one in good)),
                _number(ratio(outcome, side)),
                f"{timed:.0f} of {good[0].items_epoch}, {median(one.steps_timed for one in good):.0f} steps",
                str(good[0].rows_per_step),
                f"{tokens:.0f}",
                f"{max(one.peak_memory_bytes for one in good) / 2**20:.0f}",
            ]
        )
    legend = "\n".join(f"- **{side.name}**: {side.about}" for side in outcome.sides)
    return f"{_table(header, rows)}\n\n{legend}"


def _verdict(outcome: Outcome) -> str:
    """The ratio to the best peer, to the best at defaults, and for two Lorascope sides the time relative to each other."""
    lines = []
    found: set[str] = set()
    peers = [side for side in outcome.sides if side.role != "subject"]
    for group, chosen in _groups(outcome, peers):
        ratios = {side.name: value for side in chosen if (value := ratio(outcome, side)) is not None}
        if ratios and min(ratios, key=lambda name: ratios[name]) not in found:
            name = min(ratios, key=lambda name: ratios[name])
            found.add(name)
            lines.append(f"**{_number(ratios[name])}×** {group} ({name})")
    for side in peers:
        value = ratio(outcome, side)
        if side.program == "lorascope" and value is not None:
            lines = [f"time per adapter relative to {side.name}: **{_number(1.0 / value)}×**"]
    return "Result: " + "; ".join(lines) + "." if lines else "Result: none, a side that it needs failed."


def _groups(outcome: Outcome, peers: Sequence[Side]) -> list[tuple[str, list[Side]]]:
    dtype = outcome.workload.dtype
    same = [side for side in peers if side.dtype in (None, dtype)]
    unit = "one row per reply" if any(side.dialogues for side in peers) else ""
    per_row = [side for side in same if not side.dialogues]
    groups = [
        (f"the best peer{f' with {unit}' if unit else ''}", per_row),
        ("PEFT + Trainer at its defaults", [side for side in per_row if side.role == "default" and side.program == "trainer"]),
        ("the best peer with one row per dialogue", [side for side in same if side.dialogues]),
        ("fp32 defaults", [side for side in peers if side.dtype not in (None, dtype)]),
    ]
    return [(name, chosen) for name, chosen in groups if chosen]


def _losses_table(outcome: Outcome) -> str:
    """First and last losses and gradient norms of each side's own run: different batches, so they show only that it trains."""
    rows = []
    for side in outcome.sides:
        for one in outcome.of(side.name)[:1]:
            for name, losses in one.losses.items():
                norms = one.grad_norms[name]
                if losses and (len(one.losses) == 1 or name == f"c{outcome.workload.peer_configuration}"):
                    pairs = (f"{losses[0]:.4f} → {losses[-1]:.4f}", f"{norms[0]:.4g} → {norms[-1]:.4g}")
                    rows.append([side.name, name, str(len(losses)), *pairs])
    header = ["side", "configuration", "steps", "loss, first → last", "gradient norm, first → last"]
    return "## Losses of the timed runs\n\nEach side on its own batches.\n\n" + _table(header, rows) if rows else ""


def _parity_table(outcome: Outcome) -> str:
    compared = parity(outcome)
    failed = [f"{name}: {one.error}" for name, one in outcome.parity.items() if one.error is not None]
    if not compared:
        return "## Parity\n\n" + ("; ".join(failed) if failed else "not run") + "."
    rows = [
        [
            row["peer"],
            str(row["step"]),
            str(row["rows"]),
            f"{row['loss']:.6f}",
            f"{row['peer_loss']:.6f}",
            f"{row['loss_difference']:.1e}",
            f"{row['grad_norm']:.6g}",
            f"{row['peer_grad_norm']:.6g}",
            f"{row['grad_norm_difference']:.1e}",
        ]
        for row in compared
    ]
    header = ["peer", "step", "rows", "loss", "peer's", "relative", "gradient norm", "peer's", "relative"]
    return (
        "## Parity\n\nThe peer was fed Lorascope's batches, from the same initial adapter; no dropout, constant learning "
        f"rate.\n\n{_table(header, rows)}"
    )


def _roofline(outcome: Outcome) -> str:
    rows = []
    for side in outcome.sides:
        good = [one for one in outcome.of(side.name) if one.achieved_gflops is not None]
        if not good:
            continue
        one = sorted(good, key=lambda one: one.share_of_probe or 0.0)[len(good) // 2]
        probed = ", ".join(f"{name} {value:.0f}" for name, value in one.probed_gflops.items())
        rows.append([side.name, f"{one.achieved_gflops:.1f}", probed, f"{100 * (one.share_of_probe or 0.0):.0f} %"])
    if not rows:
        return ""
    header = ["side", "achieved GFLOP/s", "probed matmul GFLOP/s", "share of the best"]
    return (
        "## Roofline\n\nAchieved: linear layers forward and input gradients where they flow, logits of supervised positions, "
        "attention on visible pairs, on tokens without padding (Lorascope's: each shared prefix once); low-rank products not "
        f"counted. Probed in the same process before and after.\n\n{_table(header, rows)}"
    )


def _answers_table(outcome: Outcome) -> str:
    rows = []
    keys = ("equal_tokens", "equal_text", "adapters_differ")
    for side in outcome.sides[1:]:
        found = equal_answers(outcome, side)
        if found is not None:
            shares = [f"{100 * found[key]:.1f} %" if key in found else "—" for key in keys]
            rows.append([side.name, f"{found['compared']:.0f}", *shares])
    header = ["side", "answers compared", "equal token for token", "equal as text", "the adapters' differ"]
    return "## Answers\n\n" + _table(header, rows) if rows else ""


def _notes(outcome: Outcome, options: Options) -> str:
    workload = outcome.workload
    notes = [str(note) for note in _as_list(outcome.facts.get("notes"))]
    for side in outcome.sides:
        notes += dict.fromkeys(f"{side.name}: {note}" for one in outcome.of(side.name) for note in one.notes)
    latest = [outcome.of(side.name)[-1] for side in outcome.sides]
    partly = [one.side for one in latest if one.work_timed < one.work_epoch]
    if partly:
        notes.append(
            f"timed on a part of the data: {', '.join(partly)}; the first column is an extrapolation: seconds "
            "per token that the side stores or computes on, times the tokens of all of the data"
        )
    has_peers = any(side.program != "lorascope" for side in outcome.sides)
    if len(workload.configurations) > 1 and workload.kind == "train" and has_peers:
        one_of = f"configuration {workload.peer_configuration} ({workload.configurations[workload.peer_configuration]})"
        notes.append(
            f"peers trained all {len(workload.configurations)} configurations, each measured alone"
            if options.all_configurations
            else f"peers trained {one_of} only; their time for all {len(workload.configurations)} is taken as that run's time "
            f"× {len(workload.configurations)}, so their rate per configuration is the rate shown"
        )
    if any(side.dialogues for side in outcome.sides):
        notes.append("a dialogue row counts as its number of replies; a step of such rows takes 8 dialogues, not 8 replies")
    if options.limit is not None:
        notes.append(f"a tiny sample (limit {options.limit}, batch {workload.batch_size}): these figures measure nothing")
    setup = [
        f"{side.name} {one.load_seconds:.1f} + {one.first_step_seconds:.1f} s"
        for side in outcome.sides
        for one in outcome.of(side.name)[:1]
        if one.error is None
    ]
    if setup:
        notes.append(f"not timed: loading + first step: {', '.join(setup)}")
    return "## Notes\n\n" + "\n".join(f"- {note.rstrip('.')}." for note in notes)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _number(value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _relative(one: float, other: float) -> float:
    return abs(one - other) / max(abs(other), 1e-12)


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
