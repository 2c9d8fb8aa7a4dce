"""From a trial's predictions to what each example adds to a metric.

Knows what the rows of ``predictions.jsonl`` say and which of it a metric is made of. Does not know studies or statistics.
Floor: ``compare``.

A metric is a ratio of sums over examples, or the exponential of one: accuracy counts hits over examples, F1 of a class twice
its hits over what was predicted and what was there, perplexity tokens' losses over tokens. An example's score is then the
metric plus what the example moves it, to first order (the influence function), so that the scores' mean is the metric.
Thresholds that are fitted to the dataset (``best_f1``) and counts of different n-grams are no such ratios.

Legend: E examples.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]
Parts = list[tuple[float, float]]


@dataclass(frozen=True)
class Ratio:
    """A metric over the examples of one trial: ``scale · Σ numerators / Σ denominators``, or the exponential of the ratio.

    Attributes:
        keys: the examples, each with its number among those of the same id.
        groups: what belongs together: questions of one context, replies of one dialogue.
    """

    keys: tuple[tuple[str, int], ...]
    groups: tuple[str, ...]
    numerators_E: NDArray[np.float64]
    denominators_E: NDArray[np.float64]
    scale: float = 1.0
    exponential: bool = False

    def select(self, indices: Sequence[int]) -> Ratio:
        """The metric over some of the examples."""
        chosen = np.asarray(indices, dtype=int)
        keys, groups = tuple(self.keys[i] for i in indices), tuple(self.groups[i] for i in indices)
        return Ratio(keys, groups, self.numerators_E[chosen], self.denominators_E[chosen], self.scale, self.exponential)

    @property
    def counts_E(self) -> NDArray[np.bool_]:
        """Which examples count at all."""
        return np.asarray(self.denominators_E != 0)

    @property
    def is_share(self) -> bool:
        """Whether it is a share of examples: each that counts is right or wrong."""
        numerators_E, denominators_E = self.numerators_E[self.counts_E], self.denominators_E[self.counts_E]
        return not self.exponential and bool(np.isin(numerators_E, (0, 1)).all() and (denominators_E == 1).all())

    @property
    def value(self) -> float:
        """The metric; NaN where nothing counts, infinite where it overflows."""
        total = float(self.denominators_E.sum())
        ratio = float(self.numerators_E.sum()) / total if total else math.nan
        if not self.exponential:
            return self.scale * ratio
        return math.exp(ratio) if ratio < 700 else math.inf

    def scores(self) -> NDArray[np.float64]:
        """One score per example, whose mean is the metric."""
        ratio = self.numerators_E.sum() / self.denominators_E.sum()
        slope = self.value if self.exponential else self.scale
        moved_E = slope * (self.numerators_E - ratio * self.denominators_E) / self.denominators_E.mean()
        return np.asarray(self.value + moved_E)

    def group_numbers(self) -> NDArray[np.intp]:
        """Which group each example belongs to, numbered as they first appear."""
        numbers = {group: number for number, group in enumerate(dict.fromkeys(self.groups))}
        return np.array([numbers[group] for group in self.groups], dtype=np.intp)

    def group_scores(self) -> NDArray[np.float64]:
        """One score per group, the metric and what its members move it, so that their mean is the metric."""
        group_E = self.group_numbers()
        share = (group_E.max() + 1) / len(group_E)
        return np.asarray(self.value + share * np.bincount(group_E, self.scores() - self.value))


def read_ratios(path: Path, stored: Mapping[str, float]) -> dict[str, Ratio]:
    """Of the stored metrics of a trial, those that its predictions give again, to the digits that are written.

    Nothing where there are no predictions, or what is there cannot be read: then only the stored metrics are left.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return {}
    return ratios_of(rows, stored)


def ratios_of(rows: Sequence[Row], stored: Mapping[str, float]) -> dict[str, Ratio]:
    """As ``read_ratios``, of predictions that are at hand."""
    try:
        keys, groups = _identities(rows)
        found: dict[str, Ratio] = {}
        for name, value in stored.items():
            parts = _PARTS[name](rows) if name in _PARTS else None
            if not parts:
                continue
            numerators, denominators = np.array(parts, dtype=float).T
            ratio = Ratio(keys, groups, numerators, denominators, _SCALES.get(name, 1.0), name == "perplexity")
            if name == "f1" and "label" in rows[0]:
                ratio = Ratio(keys, groups, numerators, denominators)
            if math.isclose(ratio.value, value, rel_tol=1e-4, abs_tol=1e-5):
                found[name] = ratio
        return found
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def _identities(rows: Sequence[Row]) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    """Each row's key and group; a row without a group is alone."""
    seen: Counter[str] = Counter()
    keys = []
    for row in rows:
        keys.append((row["id"], seen[row["id"]]))
        seen[row["id"]] += 1
    return tuple(keys), tuple(row.get("group") or f"{name} #{number}" for row, (name, number) in zip(rows, keys, strict=True))


def _mean_of(key: str) -> Callable[[Sequence[Row]], Parts]:
    """The mean of what the rows say under ``key``, over the rows that say it."""

    def parts(rows: Sequence[Row]) -> Parts:
        return [(float(row[key]), 1.0) if row.get(key) is not None else (0.0, 0.0) for row in rows]

    return parts


def _mean_where(key: str, answerable: bool) -> Callable[[Sequence[Row]], Parts]:
    """The mean over the questions with an answer, or over those without."""

    def parts(rows: Sequence[Row]) -> Parts:
        return [(float(row[key]), 1.0) if bool(row["answers"]) is answerable else (0.0, 0.0) for row in rows]

    return parts


def _f1_parts(rows: Sequence[Row]) -> Parts | None:
    """Of a text its own F1; of a class, ``2·hits / (predicted + present)`` for class 1, whose name the logits tell."""
    if "label" not in rows[0]:
        return _mean_of("f1")(rows)
    positive = _name_of_class_1(rows)
    if positive is None:
        return None
    predicted = [row["prediction"] == positive for row in rows]
    present = [row["label"] == positive for row in rows]
    return [(2.0 * (p and q), float(p) + float(q)) for p, q in zip(predicted, present, strict=True)]


def _name_of_class_1(rows: Sequence[Row]) -> str | None:
    names = {int(np.argmax(row["logits"])): str(row["prediction"]) for row in rows}
    if 1 in names:
        return names[1]
    # Never predicted: of two classes it is the other one.
    others = {str(row["label"]) for row in rows} - set(names.values())
    return others.pop() if len(rows[0]["logits"]) == 2 and len(others) == 1 else None


def _loss_parts(rows: Sequence[Row]) -> Parts | None:
    """Cross-entropy per example of a classifier, per target token of a language model."""
    if "logits" in rows[0]:
        return _mean_of("loss")(rows)
    if not all("target_tokens" in row for row in rows):
        return None
    return [
        (row["loss"] * row["target_tokens"], row["target_tokens"]) if row["loss"] is not None else (0.0, 0.0) for row in rows
    ]


_PARTS: dict[str, Callable[[Sequence[Row]], Parts | None]] = {
    "accuracy": _mean_of("correct"),
    "f1": _f1_parts,
    "exact_match": _mean_of("exact_match"),
    "has_ans_exact_match": _mean_where("exact_match", True),
    "has_ans_f1": _mean_where("f1", True),
    "no_ans_exact_match": _mean_where("exact_match", False),
    "no_ans_f1": _mean_where("f1", False),
    "rouge_l": _mean_of("rouge_l"),
    "token_f1": _mean_of("token_f1"),
    "self_bleu": _mean_of("self_bleu"),
    "hits_at_1": _mean_of("hit"),
    "c_score": _mean_of("c_score"),
    "turn_end": _mean_of("turn_end"),
    "eval_loss": _loss_parts,
    "perplexity": _loss_parts,
}
# Percentages, of rows that hold shares.
_SCALES = dict.fromkeys(("exact_match", "f1", "has_ans_exact_match", "has_ans_f1", "no_ans_exact_match", "no_ans_f1"), 100.0)
