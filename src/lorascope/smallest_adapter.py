"""The smallest adapter inside an adapter, carried out: searched, written, read back and scored, with its report and card.

Without a task so many directions are kept that all but a share of the updates' energy stays, which takes the files alone. With
a task the fewest are searched whose score stays within ε. Either way the new directory is whole or not there, and a tokenizer
that lay beside the old adapter lies beside the new one.

Knows adapters, bases and tasks. Does not know options or screens. Floor: beside ``certified_merge``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorascope.analysis.truncated import (
    NUM_SLOTS,
    Found,
    Line,
    Tried,
    keep_energy,
    line_up,
    num_bytes,
    num_parameters,
    search,
    weight_norms,
    write_and_verify,
)
from lorascope.analysis.updates import Inspected, Place, places_of
from lorascope.cohort.single import OnBase, Prepared, prepare
from lorascope.compare import loss_over_examples, primary_metric
from lorascope.config import EvaluateConfig, Study, TaskConfig
from lorascope.errors import UsageError, did_you_mean
from lorascope.evaluate import Evaluation
from lorascope.lora.peft_io import check_fits, read_adapter
from lorascope.lora.truncate import write_truncated
from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.model_card import CutFacts, ScoreFacts, truncated_card
from lorascope.store import atomic_directory, check_new, strict_json

REPORT_FILE = "truncation.json"
_BY_OUTPUT = "singular value over the norm of the module's frozen weight"
_BY_VALUE = "singular value"


@dataclass(frozen=True)
class Scoring:
    """What the score is of, and the base that it is measured on.

    Attributes:
        metric: None for the task's primary one.
        num_slots: cuts that are evaluated in one stack.
    """

    task: TaskConfig
    settings: EvaluateConfig
    on: OnBase
    metric: str | None = None
    num_slots: int = NUM_SLOTS


@dataclass(frozen=True)
class Begun:
    """A search begins: ``num_clear`` directions of ``num_modules`` modules, of which the fewest are looked for."""

    num_clear: int
    num_modules: int
    metric: str
    epsilon: float


@dataclass(frozen=True)
class CutModule:
    """One module: the rank that it had, and the one that it keeps."""

    module: str
    place: Place
    r: int
    rank: int


@dataclass(frozen=True)
class Scored:
    """How the adapter as it was and as it was written score, in one stack.

    Attributes:
        paired: the loss over examples, with interval and verdict (``compare.loss_over_examples``).
        facts: what the scores are made of: base, task, split, number of examples, checksums, warnings.
    """

    metric: str
    whole: Evaluation
    written: Evaluation
    paired: dict[str, Any]
    tried: tuple[Tried, ...]
    notes: tuple[str, ...]
    facts: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """As JSON holds it."""
        one, other = self.whole.metrics, self.written.metrics
        return {
            "metric": self.metric,
            "higher_is_better": HIGHER_IS_BETTER[self.metric],
            "original": {"score": one[self.metric], "metrics": one},
            "truncated": {"score": other[self.metric], "metrics": other},
            "paired": self.paired,
            "tried": [asdict(tried) for tried in self.tried],
            "notes": list(self.notes),
            **self.facts,
        }


@dataclass(frozen=True)
class Cut:
    """An adapter that was cut and written.

    Attributes:
        epsilon: the loss of score that was allowed, or without a task that of energy, as a share.
        order: by what directions stood in line.
        directions_above_rounding: of those before, how many the rounding of the stored numbers does not explain.
        parameters, bytes: numbers in A's and B's, and what they take in the file.
        scored: None without a task.
        seconds: of the search, with loading, writing and scoring; None without a task.
    """

    label: str
    adapter: Path
    out: Path
    epsilon: float
    order: str
    directions: int
    directions_before: int
    directions_above_rounding: int
    parameters: int
    parameters_before: int
    bytes: int
    bytes_before: int
    energy_kept: float
    modules: tuple[CutModule, ...]
    scored: Scored | None = None
    seconds: float | None = None

    @property
    def what(self) -> str | None:
        """What was kept where no score says it."""
        if self.scored is not None:
            return None
        share = f"at least {1 - self.epsilon:.6g} of the updates' energy above rounding is kept"
        return f"no task was given: {share}, and no score was measured"

    def document(self) -> dict[str, Any]:
        """As JSON holds it: what ``--json`` prints, and what lies beside the adapter."""
        plain = ("label", "epsilon", "order", "directions", "directions_before", "directions_above_rounding", "parameters",
                 "parameters_before", "bytes", "bytes_before", "energy_kept")  # fmt: skip
        unscored: dict[str, Any] = {"metric": None, "what": self.what, "warnings": []}
        document: dict[str, Any] = {
            "adapter": str(self.adapter),
            "out": str(self.out),
            **{name: getattr(self, name) for name in plain},
            "modules": [
                {"module": one.module, "layer": one.place.layer, "kind": one.place.kind, "r": one.r, "rank": one.rank}
                for one in self.modules
            ],
            "left_out": [one.module for one in self.modules if one.rank == 0],
            **(unscored if self.scored is None else self.scored.document() | {"seconds": self.seconds}),
        }
        strict: dict[str, Any] = strict_json(document)
        return strict

    def facts(self) -> CutFacts:
        """What the adapter's card says of it."""
        return CutFacts(
            name=self.out.name,
            label=self.label,
            source=self.adapter,
            directions=(self.directions_before, self.directions),
            parameters=(self.parameters_before, self.parameters),
            report=REPORT_FILE,
            what=self.what,
            score=None if self.scored is None else self._score_facts(self.scored),
        )

    def _score_facts(self, scored: Scored) -> ScoreFacts:
        return ScoreFacts(
            metric=scored.metric,
            before=scored.whole.metrics[scored.metric],
            metrics=scored.written.metrics,
            allowed=self.epsilon,
            task=scored.facts["task"],
            split=scored.facts["split"],
            num_examples=scored.facts["num_examples"],
            data_checksum=scored.facts["data_checksum"],
            base=scored.facts["base"],
        )


def cut_by_energy(one: Inspected, epsilon: float, out: Path) -> Cut:
    """Write the adapter with the fewest directions that lose at most the share ``epsilon`` of its updates' energy.

    Raises:
        UsageError: something is at ``out``, or the share is all there is.
        AdapterError: nothing of it is above rounding, or it cannot be cut.
    """
    check_new(out)
    if epsilon >= 1.0:
        fix = "give less than 1, or a task with --task and --data for a loss of its score"
        raise UsageError("without a task it is the share of energy that may be lost", where="--truncate", fix=fix)
    line = line_up(one.saved, str(one.directory), directions=one.directions)
    count = keep_energy(line, epsilon)
    with atomic_directory(out, replace=False) as directory:
        write_truncated(one.directory, directory, line.cut(count))
        cut = _described(one, line, count, out, epsilon)
        _write_beside(directory, cut)
    return cut


def cut_by_score(one: Inspected, epsilon: float, out: Path, scoring: Scoring) -> Generator[Begun | Tried, None, Cut]:
    """Find, write and verify the adapter with the fewest directions whose score is at most ``epsilon`` worse.

    Yields:
        That the search begins, then each cut as it is scored.

    Raises:
        UsageError: something is at ``out``, there is no such metric, or no base is named.
        AdapterError: it does not fit the base, or nothing of it is above rounding.
        CheckFailed: no cut keeps the score, or what was written does not.
    """
    check_new(out)
    started, where = time.monotonic(), str(one.directory)
    prepared = prepare(scoring.on.config({where: one.saved}), scoring.task, scoring.settings, scoring.on.device)
    check_fits(one.saved, prepared.base.model, where)
    metric = _metric(prepared, scoring.metric)
    line = line_up(one.saved, where, weight_norms(prepared.base, one.saved), directions=one.directions)
    yield Begun(line.num_clear, len(line.directions), metric, epsilon)
    found = yield from search(prepared, line, where, epsilon=epsilon, metric=metric, num_slots=scoring.num_slots)
    with atomic_directory(out, replace=False) as directory:
        whole, written = write_and_verify(prepared, line, found, one.directory, directory)
        scored = _scored(prepared, found, whole, written)
        cut = _described(one, line, found.smallest.num_directions, out, epsilon, scored, time.monotonic() - started)
        _write_beside(directory, cut)
    return cut


def _metric(prepared: Prepared, asked: str | None) -> str:
    """The metric that is kept: the one asked for, else the task's primary one."""
    if asked is not None:
        if asked not in prepared.foreseen:
            fix = did_you_mean(asked, list(prepared.foreseen))
            raise UsageError(f"the evaluation of {prepared.task_config.name} here gives no {asked}", where="--metric", fix=fix)
        return asked
    study = Study(name="truncate", base=prepared.config, task=prepared.task_config)
    primary = primary_metric(study, prepared.foreseen)
    assert primary is not None, "every evaluation has a loss"
    return primary


def _scored(prepared: Prepared, found: Found, whole: Evaluation, written: Evaluation) -> Scored:
    sides = [(one.predictions, one.metrics) for one in (whole, written)]
    paired = loss_over_examples(found.metric, found.epsilon, *sides)
    return Scored(found.metric, whole, written, paired, found.tried, found.notes, prepared.facts)


def _described(
    one: Inspected,
    line: Line,
    count: int,
    out: Path,
    epsilon: float,
    scored: Scored | None = None,
    seconds: float | None = None,
) -> Cut:
    """What was cut to what."""
    ranks, places = line.ranks(count), places_of(one.modules)
    given = {placement.target.module: placement.r for placement in one.saved.slot.placements}
    return Cut(
        label=one.label,
        adapter=one.directory,
        out=out,
        epsilon=epsilon,
        order=_BY_VALUE if scored is None else _BY_OUTPUT,
        directions=sum(ranks.values()),
        directions_before=sum(given.values()),
        directions_above_rounding=line.num_clear,
        parameters=num_parameters(line.cut(count)),
        parameters_before=num_parameters(line.saved),
        bytes=num_bytes(line.cut(count)),
        bytes_before=num_bytes(line.saved),
        energy_kept=line.energy_kept(count),
        modules=tuple(CutModule(module, places[module], given[module], ranks[module]) for module in one.modules),
        scored=scored,
        seconds=seconds,
    )


def _write_beside(directory: Path, cut: Cut) -> None:
    """The report and the card, beside the adapter that was written."""
    text = json.dumps(cut.document(), indent=2, allow_nan=False) + "\n"
    (directory / REPORT_FILE).write_text(text, encoding="utf-8")
    card = truncated_card(cut.facts(), read_adapter(directory), directory)
    (directory / "README.md").write_text(card, encoding="utf-8")
