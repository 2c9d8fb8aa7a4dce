"""Answers of two trials to the same examples, side by side, what differs marked; from their predictions alone.

Floor: ``report``.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from lorascope.amounts import counted
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.report.blocks import Block, Cell, Column, Notes, Pair, Pairs, Section, Side, Table, words
from lorascope.report.findings import Configuration, Findings
from lorascope.report.words import clean, metric_name, number, shortened

Row = Mapping[str, Any]
# By metric, the key of a prediction's row that holds the example's own score.
_ROW_KEYS = {"accuracy": "correct", "c_score": "c_score", "hits_at_1": "hit"}
_TEXT_MOST = 600
_NAME_MOST = 60
# Answers of so few characters fit into a cell.
_SHORT = 18
_GOLD_MOST = 3
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class _Compared:
    """Two trials of one seed and their rows, by example."""

    one: Configuration
    other: Configuration
    trials: tuple[str, str]
    rows: list[tuple[Row, Row]]
    num_unreadable: int


def examples_section(found: Findings, most: int) -> Section | None:
    """Where two configurations differ, and by how much; None where no two have predictions of the same examples.

    Args:
        most: examples that are shown.
    """
    compared = _compared(found)
    if compared is None or found.metric is None:
        return None
    key = _key_of(found.metric, compared.rows)
    if key is None:
        return None
    higher = HIGHER_IS_BETTER.get(key, key not in ("loss",))
    chosen = _chosen(compared.rows, key, higher, most)
    titles = (f"{compared.one.label} ({compared.trials[0]})", f"{compared.other.label} ({compared.trials[1]})")
    lead = (
        f"{titles[0]} and {titles[1]}, of one seed, on {counted(len(compared.rows), 'example')} that both answered. The store "
        "keeps answers, not questions: the name of an example finds its question in the data."
    )
    blocks: list[Block] = [_tally(compared, key, higher)]
    pairs = [_pair(one, other, key) for one, other in chosen]
    blocks += [_short(titles, pairs) if all(map(_is_short, pairs)) else Pairs(titles, pairs)] if pairs else []
    if not chosen:
        blocks.append(Notes(["Both answered every example alike." if most else "The page would be too large with examples."]))
    if compared.num_unreadable:
        lines = counted(compared.num_unreadable, "line")
        blocks.append(Notes([f"{lines} of the predictions could not be read and were left out."], kind="caution"))
    return Section("examples", "Examples side by side", lead, blocks)


def _compared(found: Findings) -> _Compared | None:
    """The best adapter against the baseline; where they are one, against the next; else any other with predictions."""
    best = found.best
    if best is None:
        return None
    others = [found.baseline, *found.ranked]
    for other in dict.fromkeys(one.name for one in others if one is not None and one is not best):
        against = found.by_name[other]
        for trial in best.trials:
            twin = next((each for each in against.trials if each["seed"] == trial["seed"]), None)
            if twin is None or trial["status"] != "done" or twin["status"] != "done":
                continue
            (one, bad), (two, worse) = (_read(_path(found, each["trial"])) for each in (trial, twin))
            rows = [(one[key], two[key]) for key in one if key in two]
            if rows:
                return _Compared(best, against, (trial["trial"], twin["trial"]), rows, bad + worse)
    return None


def _path(found: Findings, trial: str) -> Path:
    return found.places[trial].directory / "trials" / trial / "predictions.jsonl"


def _read(path: Path) -> tuple[dict[tuple[str, int], Row], int]:
    """By the example's name and its number among those of that name; and how many lines could not be read."""
    try:
        lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    except OSError:
        return {}, 0
    rows: dict[tuple[str, int], Row] = {}
    seen: Counter[str] = Counter()
    unreadable = 0
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
            name = str(row["id"])
            rows[name, seen[name]] = row
            seen[name] += 1
        except (ValueError, LookupError, TypeError):
            unreadable += 1
    return rows, unreadable


def _key_of(metric: str, rows: Sequence[tuple[Row, Row]]) -> str | None:
    """What single examples are compared by: right or wrong of classes, else the metric itself, else any score there is."""
    wanted = ["correct", _ROW_KEYS.get(metric, metric), "f1", "rouge_l", "token_f1", "loss"]
    first = rows[0][0]
    return next((key for key in wanted if isinstance(first.get(key), bool | int | float)), None)


def _score(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, bool | int | float) else math.nan


def _gain(pair: tuple[Row, Row], key: str, higher: bool) -> float:
    """How much better the first is; 0 where one has no score."""
    gain = _score(pair[0], key) - _score(pair[1], key)
    return 0.0 if math.isnan(gain) else gain if higher else -gain


def _chosen(rows: Sequence[tuple[Row, Row]], key: str, higher: bool, most: int) -> list[tuple[Row, Row]]:
    """As many of which the first is better as of which the second is, the largest differences first."""
    differing = [pair for pair in rows if _shown(pair[0]) != _shown(pair[1])]
    ordered = sorted(differing, key=lambda pair: -_gain(pair, key, higher))
    better = [pair for pair in ordered if _gain(pair, key, higher) > 0]
    worse = [pair for pair in reversed(ordered) if _gain(pair, key, higher) < 0]
    half = max(most // 2, most - len(worse))
    chosen = better[:half]
    chosen += worse[: most - len(chosen)]
    return chosen or [pair for pair in ordered if _gain(pair, key, higher) == 0][:most]


def _tally(compared: _Compared, key: str, higher: bool) -> Table:
    """How many examples each wins."""
    if key in ("correct", "hit"):
        outcomes = Counter((bool(one.get(key)), bool(other.get(key))) for one, other in compared.rows)
        counts = {
            "both right": outcomes[True, True],
            f"only {compared.one.label} right": outcomes[True, False],
            f"only {compared.other.label} right": outcomes[False, True],
            "both wrong": outcomes[False, False],
        }
    else:
        gains = [_gain(pair, key, higher) for pair in compared.rows]
        counts = {
            f"{compared.one.label} better": sum(gain > 0 for gain in gains),
            "equal": sum(gain == 0 for gain in gains),
            f"{compared.other.label} better": sum(gain < 0 for gain in gains),
        }
    total = len(compared.rows)
    numbers = Column("examples", [Cell(f"{count:,}", float(count)) for count in counts.values()], is_number=True)
    shares = Column("share", [Cell(f"{count / total:.1%}", count / total) for count in counts.values()], is_number=True)
    return Table([words("outcome", counts), numbers, shares], "Examples by outcome", f"Compared by {_key_name(key)}.")


def _key_name(key: str) -> str:
    return {"correct": "right or wrong", "hit": "right or wrong", "loss": "loss"}.get(key, metric_name(key))


def _pair(one: Row, other: Row, key: str) -> Pair:
    texts = [_text(_shown(row)) for row in (one, other)]
    left, right = _marked(*texts)
    gold = [str(one["label"])] if "label" in one else [str(answer) for answer in one.get("answers") or ()]
    shown = [_text(text) for text in gold[:_GOLD_MOST]]
    shown += [f"… and {len(gold) - _GOLD_MOST} more"] if len(gold) > _GOLD_MOST else []
    return Pair(_text(str(one["id"]), _NAME_MOST), shown, Side(left, *_verdict(one, key)), Side(right, *_verdict(other, key)))


def _text(text: str, most: int = _TEXT_MOST) -> str:
    """At most so many characters, safe to show; what is left out is not looked at, so that megabytes take no time."""
    return shortened(clean(text[: most + 1]), most)


def _is_short(pair: Pair) -> bool:
    return all(len("".join(text for text, _ in side.pieces)) <= _SHORT for side in (pair.one, pair.other))


def _short(titles: tuple[str, str], pairs: Sequence[Pair]) -> Table:
    """Classes and other short answers need no more than a row."""
    columns = [words("example", [pair.name for pair in pairs], kind="code")]
    columns.append(words("wanted", [" / ".join(pair.gold) for pair in pairs]))
    for title, sides in zip(titles, ([pair.one for pair in pairs], [pair.other for pair in pairs]), strict=True):
        cells = [Cell("".join(text for text, _ in side.pieces), more=side.verdict, kind=side.kind) for side in sides]
        columns.append(Column(title, cells))
    return Table(columns, f"{counted(len(pairs), 'example')} on which they differ")


def _shown(row: Row) -> str:
    return str(row.get("prediction", ""))


def _verdict(row: Row, key: str) -> tuple[str, str]:
    if key in ("correct", "hit"):
        right = bool(row.get(key))
        sure = _probability(row)
        return f"{'right' if right else 'wrong'}{sure}", "good" if right else "bad"
    return f"{_key_name(key)} {number(_score(row, key), 3)}", ""


def _probability(row: Row) -> str:
    """How sure a classifier was of its answer."""
    logits = row.get("logits")
    if not isinstance(logits, list) or not logits or not all(isinstance(value, int | float) for value in logits):
        return ""
    top = max(logits)
    return f", p = {1.0 / sum(math.exp(max(value - top, -700.0)) for value in logits):.2f}"


def _marked(one: str, other: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Both texts in pieces; the ones that the other lacks are marked."""
    left, right = _WORDS.findall(one), _WORDS.findall(other)
    pieces: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    for what, i, j, k, m in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for side, text in zip(pieces, ("".join(left[i:j]), "".join(right[k:m])), strict=True):
            if text:
                side.append((text, what != "equal" and bool(text.strip())))
    return pieces
