"""The best trial of a study by its results, and how far that is to be believed. Floor: ``export``.

What ships is one trial's weights, so trials are ranked, not configurations; that the best of many looks better than it is, the
choice says. Only trials that are done, have an adapter and a finite score take part.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorascope.compare import comparisons, difference_over_examples, primary_metric
from lorascope.errors import UsageError
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.shapley import CONFIDENCE
from lorascope.store import Store, TrialRow


@dataclass(frozen=True)
class Choice:
    """How a trial was chosen.

    Attributes:
        trial: its name.
        metric, value: what the trials were ranked by.
        higher_is_better: the metric's direction.
        num_trials: how many took part.
        left_out: trials without a usable score, by status.
        next_trial, next_value: the second best; None where there is none.
        difference: the best's score less the next's.
        low, high, p: of the difference, over examples; None where nothing tells them.
        verdict: ``distinguishable``, ``not distinguishable``, ``equal``, ``not known`` or ``the only one``.
        configurations: what the study's seeds say of the two configurations, where the next has another one.
        note: what else has to be told: ties, better trials that have no adapter.
    """

    trial: str
    metric: str
    value: float
    higher_is_better: bool
    num_trials: int
    left_out: dict[str, int]
    next_trial: str | None = None
    next_value: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    verdict: str = "the only one"
    configurations: str | None = None
    note: str | None = None

    def document(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """For people: by what, how far the next is, and how sure that is."""
        end = "highest" if self.higher_is_better else "lowest"
        text = f"It is the best of {self.num_trials} trials by {self.metric} ({self.value:.4f}, the {end})"
        if self.next_trial is None:
            article = "an" if self.metric[0] in "aeiou" else "a"
            text = f"It is the only trial with an adapter and {article} {self.metric} ({self.value:.4f})"
        elif self.next_value is not None:
            interval = "" if self.low is None or self.high is None else f", 95 % interval {self.low:+.4f} to {self.high:+.4f}"
            verdicts = {
                "distinguishable": f"the difference is distinguishable over the examples{interval}",
                "not distinguishable": f"the difference is not distinguishable over the examples{interval}",
                "equal": "the two are equal on every example",
                "not known": "whether that is more than chance cannot be told: there are no predictions to pair",
            }
            text += f"; the next is {self.next_trial} ({self.next_value:.4f}): {verdicts[self.verdict]}"
        more = [text, *filter(None, (self.configurations, self.note))]
        if self.left_out:
            more.append("Not considered: " + ", ".join(f"{count} {status}" for status, count in self.left_out.items()))
        if self.num_trials > 1:
            more.append("It was chosen on the examples that it is scored on, so its score is optimistic")
        return ". ".join(more) + "."


def best_trial(store: Store) -> Choice:
    """Choose by the study's own metric: a search's objective, a Shapley design's first value, else the task's first.

    Trials that tie are ordered by trained parameters, fewest first, then as the study has them.

    Raises:
        UsageError: no trial is done with an adapter and a score.
    """
    rows = store.trials()
    done = [row for row in rows if row.status == "done"]
    names = {name for row in done if _has_adapter(row) for name, value in row.metrics.items() if math.isfinite(value)}
    metric = primary_metric(store.study, names)
    if metric is None:
        states = ", ".join(sorted({row.status for row in rows})) or "none yet"
        what = f"no trial is done with an adapter and a score (they are: {states})"
        raise UsageError(what, where=str(store.directory), fix="wait until a trial is done, or name one with --trial")
    higher = HIGHER_IS_BETTER[metric]
    scored = [row for row in done if math.isfinite(row.metrics.get(metric, math.nan))]
    ranked = sorted(
        (row for row in scored if _has_adapter(row)),
        key=lambda row: (-row.metrics[metric] if higher else row.metrics[metric], row.trainable_params or 0),
    )
    chosen = ranked[0]
    left_out: dict[str, int] = {}
    taking_part = {row.trial for row in ranked}
    for row in rows:
        if row.trial not in taking_part:
            lacks = "without a score" if _has_adapter(row) else "without an adapter"
            reason = lacks if row.status == "done" else row.status
            left_out[reason] = left_out.get(reason, 0) + 1
    choice: dict[str, Any] = {
        "trial": chosen.trial,
        "metric": metric,
        "value": chosen.metrics[metric],
        "higher_is_better": higher,
        "num_trials": len(ranked),
        "left_out": left_out,
        "note": _note(chosen, ranked, scored, metric, higher),
    }
    return Choice(**choice, **(_against_next(store, ranked, metric) if len(ranked) > 1 else {}))


def _has_adapter(row: TrialRow) -> bool:
    return row.adapter is not None


def _against_next(store: Store, ranked: Sequence[TrialRow], metric: str) -> dict[str, Any]:
    chosen, following = ranked[:2]
    found: dict[str, Any] = {
        "next_trial": following.trial,
        "next_value": following.metrics[metric],
        "difference": chosen.metrics[metric] - following.metrics[metric],
        "verdict": "not known",
        "configurations": _of_configurations(store, ranked, metric),
    }
    predictions = [_predictions(store, row) for row in (chosen, following)]
    if predictions[0] is None or predictions[1] is None:
        return found
    over = difference_over_examples(metric, (predictions[0], chosen.metrics), (predictions[1], following.metrics))
    if over.p is None:
        return found
    differs = over.p < 1 - CONFIDENCE
    found["verdict"] = "equal" if over.changed == 0 else "distinguishable" if differs else "not distinguishable"
    return found | {"low": over.low, "high": over.high, "p": over.p}


def _predictions(store: Store, row: TrialRow) -> list[dict[str, Any]] | None:
    path = store.directory / "trials" / row.trial / "predictions.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return None


def _of_configurations(store: Store, ranked: Sequence[TrialRow], metric: str) -> str | None:
    """What seeds say of the chosen configuration and the next other one; None where there is no other, or too few seeds."""
    chosen = ranked[0]
    other = next((row for row in ranked if row.configuration != chosen.configuration), None)
    if other is None:
        return None
    document = comparisons([store], baseline=chosen.configuration, metrics=[metric])
    row = next(row for row in document["rows"] if row["configuration"] == other.configuration)
    # The row tells how the other stands against the chosen one.
    if row["verdict"] == "too few seeds":
        return None
    verdicts = {"better": "worse", "worse": "better"}
    verdict = verdicts.get(row["verdict"], row["verdict"])
    return (
        f"As a configuration, over {row['seeds']} seeds and against that of {other.trial}, it is: {verdict} "
        f"({document['correction']})"
    )


def _note(chosen: TrialRow, ranked: Sequence[TrialRow], scored: Sequence[TrialRow], metric: str, higher: bool) -> str | None:
    value = chosen.metrics[metric]
    notes = []
    ties = sum(row.metrics[metric] == value for row in ranked) - 1
    if ties:
        others = "Another trial has" if ties == 1 else f"{ties} other trials have"
        notes.append(f"{others} the same score; this one trains the fewest parameters, or comes first")
    better = [row for row in scored if (row.metrics[metric] > value) == higher and row.metrics[metric] != value]
    if better:
        methods = ", ".join(f"{row.trial} ({row.config.get('method')})" for row in better)
        notes.append(f"Better, but with no adapter to export: {methods}")
    return ". ".join(notes) or None
