"""Sections for the record: every trial, what went wrong, merge certificates, how to reproduce it all. Floor: ``report``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lorascope.amounts import counted
from lorascope.config import Study, configuration_of
from lorascope.embedded import is_embedded
from lorascope.model_card.privacy import Privacy, is_local, public_name
from lorascope.model_card.recorded import public_study, study_places
from lorascope.report.blocks import (
    Block,
    Cell,
    Code,
    Column,
    Notes,
    Section,
    Table,
    finite,
    numbers,
    parameters,
    scores,
    useful,
    words,
)
from lorascope.report.findings import Findings
from lorascope.report.sections import arrow
from lorascope.report.words import NONE, brief, clean, decimals_of_measured, mebibytes, metric_name, shortened
from lorascope.store import CERTIFICATE_FILE, Store

_STATUS_KINDS = {"done": "quiet", "diverged": "bad", "failed": "bad", "pruned": "warn", "interrupted": "warn"}
# Of a few certificates.
_MOST_BLOCKS = 18
_MESSAGE_MOST = 600


def trials_section(found: Findings) -> Section:
    """One row per trial."""
    trials = found.trials
    metric = found.metric
    times, speeds = (_figures(trials, f"solo_{key}") for key in ("train_seconds_per_epoch", "examples_per_second"))
    columns = [
        words("trial", [trial["trial"] for trial in trials], kind="code"),
        words("configuration", [found.by_name[configuration_of(trial["trial"])].label for trial in trials]),
        Column("seed", [Cell(str(trial["seed"]), float(trial["seed"])) for trial in trials], is_number=True),
        words("status", [trial["status"] for trial in trials], kinds=[_STATUS_KINDS.get(t["status"], "") for t in trials]),
        *(_metric_column(found, name, trials) for name in found.metrics),
        parameters(_figures(trials, "trainable_params"), _figures(trials, "trainable_percent")),
        numbers("time alone", times, decimals=decimals_of_measured(times), unit="s / epoch"),
        numbers("speed alone", speeds, decimals=decimals_of_measured(speeds), unit="examples / s"),
        numbers("memory alone", _mebibytes(trials, "solo_peak_memory_bytes"), decimals=0, unit="MiB, peak"),
    ]
    notes = []
    if metric is not None and found.intervals:
        notes.append(f"The interval of {metric_name(metric)} is a 95 % one over the examples of that trial.")
    notes.append("Trials that diverged, failed or were pruned have no score and are never ranked.")
    lead = "Click a column’s title to sort by it."
    return Section("trials", "Every trial", lead, [Table(useful(columns), "Trials", " ".join(notes), is_sortable=True)])


def _metric_column(found: Findings, name: str, trials: Sequence[Mapping[str, Any]]) -> Column:
    values = [trial["metrics"].get(name) for trial in trials]
    title, unit = metric_name(name) + arrow(name), found.unit(name)
    if name != found.metric or not found.intervals:
        return numbers(title, values, unit=unit, hint=name)
    ends = [found.intervals.get(trial["trial"]) for trial in trials]
    triples = [
        (value, None, None) if end is None else (value, end.low, end.high) for value, end in zip(values, ends, strict=True)
    ]
    return scores(title, triples, unit=unit, hint=f"{name}, 95 % interval over examples", plus_minus=False)


def _figures(trials: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    return [trial[key] for trial in trials]


def _mebibytes(trials: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    return [mebibytes(value) for value in _figures(trials, key)]


# What went wrong


def troubles_section(found: Findings) -> Section:
    """Trials without a score, and everything that was counted on the way."""
    counts = found.counts
    total = len(found.trials)
    statuses = Table(
        [
            words("status", counts, kinds=[_STATUS_KINDS.get(status, "") for status in counts]),
            numbers("trials", list(counts.values()), decimals=0),
            Column("share", [Cell(f"{count / total:.0%}", count / total) for count in counts.values()], is_number=True),
        ],
        "Trials by status",
    )
    blocks: list[Block] = [statuses]
    unfinished = [trial for trial in found.trials if trial["status"] != "done"]
    said = [trial for trial in unfinished if trial["error"] or trial["rungs"] or trial["status"] in ("diverged", "failed")]
    privacy = privacy_of(found)
    if said:
        blocks.append(
            Table(
                [
                    words("trial", [trial["trial"] for trial in said], kind="code"),
                    words("configuration", [found.by_name[configuration_of(trial["trial"])].label for trial in said]),
                    words("status", [t["status"] for t in said], kinds=[_STATUS_KINDS.get(t["status"], "") for t in said]),
                    words("what happened", [_what_happened(found, trial, privacy) for trial in said]),
                ],
                caption="Trials without a score",
            )
        )
    warnings = _warnings(found, privacy)
    blocks.append(warnings if warnings is not None else Notes(["No warning is stored with this study."]))
    ended = counts.get("done", 0)
    which = f"{ended} of {counted(total, 'trial')}" if ended < total else "Every trial"
    lead = f"{which} came to a score."
    return Section("troubles", "Warnings and failures", lead, blocks)


def _what_happened(found: Findings, trial: Mapping[str, Any], privacy: Privacy) -> str:
    if trial["error"]:
        return shortened(privacy.clean(trial["error"]), _MESSAGE_MOST)
    if trial["rungs"]:
        rung = trial["rungs"][-1]
        value = rung["metrics"].get(found.metric or "")
        score = "" if value is None else f", {metric_name(found.metric or '')} {brief(value)}"
        return f"after step {rung['step']}{score}"
    return "–"


def _warnings(found: Findings, privacy: Privacy) -> Table | None:
    """Alike ones of several trials are one row."""
    rows: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for warning in found.results["warnings"]:
        rows.setdefault((warning["kind"], warning["where"], warning["message"]), []).append(warning)
    if not rows:
        return None
    of = [{warning["trial"] for warning in members} for members in rows.values()]
    names = ["the study" if trials == {None} else counted(len(trials - {None}), "trial") for trials in of]
    counts = [max(warning["count"] for warning in members) for members in rows.values()]
    columns = [
        words("warning", [shortened(privacy.clean(message), _MESSAGE_MOST) for _, _, message in rows]),
        words("kind", [kind for kind, _, _ in rows], kind="code"),
        words("where", [privacy.clean(where) for _, where, _ in rows]),
        numbers("count", counts, decimals=0, hint="the largest of those trials"),
        words("of", names),
    ]
    return Table(columns, caption=f"Warnings ({len(found.results['warnings']):,})", is_sortable=len(rows) > 1)


# Merge certificates


def merge_section(found: Findings) -> Section | None:
    """Certificates of merged models that lie in the study's directory, or beside it and name one of its trials."""
    privacy = privacy_of(found)
    blocks: list[Block] = []
    for path in _certificate_files(found):
        place, document = clean(path.parent.name), _read_certificate(path)
        is_inside = any(path.is_relative_to(store.directory.resolve()) for store in found.stores)
        if document is None or not document["checks"]:
            why = "could not be read" if document is None else "names no check, so it says nothing of the merge"
            blocks += [Notes([f"The certificate in {place} {why}."], kind="caution")] if is_inside else []
            continue
        trial = _merged_trial(found, document["adapter"])
        if (trial is not None or is_inside) and len(blocks) < _MOST_BLOCKS:
            blocks += _certificate_blocks(clean(document), place, trial, privacy)
    return Section("merge", "Merge certificate", "", blocks) if blocks else None


def _merged_trial(found: Findings, adapter: Mapping[str, Any]) -> str | None:
    """The trial whose adapter was merged: by its files' checksum, or where there is none to compare, by its place.

    A trial's name alone does not tell: it is that of a configuration and a seed, whatever the task and the data.
    """
    parts = Path(str(adapter.get("directory", ""))).parts
    trial = next((part for part in parts if part in found.places), None)
    if trial is None:
        return None
    directory = found.places[trial].directory.resolve()
    checksum = _adapter_checksum(directory / "trials" / trial / "adapter")
    if checksum is not None and adapter.get("checksum") is not None:
        return trial if checksum == adapter["checksum"] else None
    return trial if parts[: parts.index(trial)][-2:] == (directory.name, "trials") else None


def _adapter_checksum(directory: Path) -> str | None:
    """As certificates have it: SHA-256 of PEFT's two files, one after the other."""
    digest = hashlib.sha256()
    try:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            digest.update((directory / name).read_bytes())
    except OSError:
        return None
    return digest.hexdigest()


def _certificate_files(found: Findings) -> list[Path]:
    places = ("", "*/", "trials/*/", "trials/*/*/", "../*/")
    directories = [store.directory.resolve() for store in found.stores]
    patterns = [f"{place}{CERTIFICATE_FILE}" for place in places]
    return sorted({path.resolve() for one in directories for pattern in patterns for path in one.glob(pattern)})


def _read_certificate(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        complete = isinstance(document["holds"], bool) and isinstance(document["adapter"], dict)
        return document if complete and isinstance(document["checks"], list) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _certificate_blocks(document: Mapping[str, Any], place: str, trial: str | None, privacy: Privacy) -> list[Block]:
    checks = document["checks"]
    of = "" if trial is None else f" of trial {trial}"
    counts = {verdict: sum(check["verdict"] == verdict for check in checks) for verdict in ("holds", "warning", "fails")}
    verdict = "holds" if document["holds"] else "DOES NOT HOLD"
    told = f"The merge{of} in {place} {verdict}: {counts['holds']} of {counted(len(checks), 'check')} hold"
    told += f", {counts['warning']} with a warning" if counts["warning"] else ""
    told += f", {counts['fails']} fail" if counts["fails"] else ""
    blocks: list[Block] = [Notes([f"{told}."], kind="" if document["holds"] else "caution")]
    rows = document.get("comparisons") or []
    if rows:
        reference = next((row["name"] for row in rows if row["against"] is None), "")
        metrics = list(dict.fromkeys(name for row in rows for name in row["scores"]))
        columns = [
            words("model", [row["name"] for row in rows]),
            *(_small_numbers(title, [row.get(key) for row in rows]) for title, key in _DIFFERENCES.items()),
            numbers("same top-1", [_percent(row.get("top1_agreement")) for row in rows], decimals=2, unit="%"),
            *(numbers(metric_name(name), [row["scores"].get(name) for row in rows]) for name in metrics),
        ]
        blocks.append(Table(useful(columns), caption=f"Against {reference}" if reference else "Models compared"))
    notable = [check for check in checks if check["verdict"] != "holds"]
    if notable:
        columns = [
            words("check", [check["name"] for check in notable]),
            words("verdict", [c["verdict"] for c in notable], kinds=[_CHECK_KINDS.get(c["verdict"], "") for c in notable]),
            words("says", [privacy.clean(check["says"]) for check in notable]),
        ]
        blocks.append(Table(columns, "Checks that do not simply hold"))
    return blocks


_CHECK_KINDS = {"fails": "bad", "warning": "warn", "not judged": "quiet"}
_DIFFERENCES = {
    "largest difference": "max_difference",
    "relative": "relative_difference",
    "KL": "kl",
    "largest KL": "kl_max",
}


def _small_numbers(title: str, values: Sequence[float | None]) -> Column:
    cells = [Cell("–" if value is None else f"{value:.1e}".replace("-", "−"), finite(value)) for value in values]
    return Column(title, cells, is_number=True)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


# How to reproduce


def privacy_of(found: Findings) -> Privacy:
    """What keeps the machine's paths and secrets off a page that will be passed on."""
    return Privacy([*study_places(found.study), *(str(store.directory.resolve()) for store in found.stores)])


def reproduce_section(found: Findings) -> Section:
    """Commands, versions, checksums and the study file."""
    study, privacy = found.study, privacy_of(found)
    blocks: list[Block] = [
        Code(
            f"lorascope run study.yaml --out runs/{study.name}\n"
            f"lorascope results runs/{study.name} --json\n"
            f"lorascope report runs/{study.name}",
            "The study again, the figures of this page, and the page",
        )
    ]
    notes = [
        "study.yaml lies in the study’s directory and below, with every default spelt out. The same seeds on the same machine "
        "and versions give the same figures; another processor may differ by rounding."
    ]
    local = _local_places(study)
    if local:
        names = ", ".join(dict.fromkeys(map(public_name, local.values())))
        flags = " ".join(f"--set {key}=DIR" for key in local)
        notes.append(f"Local places are shown by their last part alone ({names}): give yours, {flags}.")
    blocks.append(Notes(clean([privacy.clean(note) for note in notes])))
    blocks += _facts(found, privacy)
    document = public_study(study.model_dump(mode="json", by_alias=True), study, privacy)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    blocks.append(Code(clean(privacy.without_secrets(text)), "study.yaml", is_folded=True))
    return Section("reproduce", "How to reproduce it", "", blocks)


def _local_places(study: Study) -> dict[str, str]:
    """By the key of the study file, what lies on this machine and does not come with Lorascope."""
    judge = study.evaluate.judge
    given: dict[str, Any] = {"base.model": study.base.model, "task.data": study.task.data}
    if judge is not None:
        given |= {"evaluate.judge.model": judge.model, "evaluate.judge.adapter": judge.adapter}
        given["evaluate.judge.check.data"] = None if judge.check is None else judge.check.data
    places = {}
    for key, place in given.items():
        splits = place if isinstance(place, Mapping) else {"": place}
        places.update({f"{key}.{split}".rstrip("."): each for split, each in splits.items() if each is not None})
    return {key: place for key, place in places.items() if is_local(place) and not is_embedded(place)}


def _facts(found: Findings, privacy: Privacy) -> list[Block]:
    """Versions, machine and checksums: of all shards in one column, or of those that differ in one each."""
    columns: list[dict[str, str]] = []
    shards: list[list[str]] = []
    for store in [one for one in found.stores if one.info("versions")] or found.stores[:1]:
        facts = _facts_of(store)
        if facts not in columns:
            columns.append(facts)
            shards.append([])
        shards[columns.index(facts)].append(privacy.clean(store.directory.resolve().name))
    if len(columns) == 1:
        shards = [[""]]
    names = list(dict.fromkeys(name for facts in columns for name in facts))
    cells = [[privacy.clean(facts.get(name, NONE)) for name in names] for facts in columns]
    table = [words(", ".join(its), clean(values), kind="code") for its, values in zip(clean(shards), cells, strict=True)]
    blocks: list[Block] = []
    if found.num_machines > 1:
        text = f"The shards ran on {found.num_machines} different machines: their times and memory are no fair comparison."
        blocks.append(Notes([text], kind="caution"))
    return [*blocks, Table([words("fact", clean(names)), *table], "Versions, hardware and checksums")]


def _facts_of(store: Store) -> dict[str, str]:
    facts = {
        **{f"{name} version": version for name, version in (store.info("versions") or {}).items()},
        **{name.replace("_", " "): value for name, value in (store.info("hardware") or {}).items()},
        "base checksum": store.info("base_checksum"),
        "data checksum": (store.info("data") or {}).get("checksum"),
        "study hash": store.study.hash,
    }
    if isinstance(facts.get("memory bytes"), int):
        facts["memory"] = f"{facts.pop('memory bytes') / 2**30:.1f} GiB"
    return {name: str(value) for name, value in facts.items() if value is not None}
