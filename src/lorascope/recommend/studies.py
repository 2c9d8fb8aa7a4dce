"""The user's own studies as evidence: found, read, and compared as their number of configurations allows.

A study that cannot be read, because it is damaged, of another version or empty, is named and left out. What trials show
together is handed in (``ResultsOf``), for it takes floors that do not know this one. Floor: ``recommend``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from lorascope.config import Study, configuration_of
from lorascope.errors import LorascopeError, UsageError
from lorascope.recommend.answer import OwnStudies
from lorascope.recommend.closeness import ModelFacts, TaskFacts
from lorascope.recommend.evidence import StudyEvidence, leader_of, read_evidence
from lorascope.recommend.facts import model_facts, task_facts
from lorascope.recommend.rules import KINDS, Kind
from lorascope.store import DATABASE, Store, results_document

# Up to so many configurations every two are compared, so that whichever is best, the correction has counted it. Of more, the
# best is compared with each of the others.
MOST_FOR_PAIRS = 25
# What damage to a database's or a file's contents can raise, besides the store's own errors.
_DAMAGE = (ValueError, KeyError, TypeError, IndexError, OSError)


class ResultsOf(Protocol):
    """What ``lorascope results --json`` prints of a study's stores."""

    def __call__(self, stores: Sequence[Store], baseline: str | None = None, *, pairs: bool = False) -> dict[str, Any]:
        """The document; every two configurations compared, or each with the baseline."""


def read_studies(places: Sequence[Path], results_of: ResultsOf) -> OwnStudies:
    """Every study in these directories, or one or two levels below them; shards of one study count as one.

    Raises:
        UsageError: a place does not exist.
    """
    evidence: list[StudyEvidence] = []
    studies: dict[str, Study] = {}
    left_out: list[dict[str, str]] = []
    with ExitStack() as opened:
        shards: dict[str, list[Store]] = {}
        for directory in _directories(places):
            try:
                store = opened.enter_context(Store.open(directory))
            except LorascopeError as error:
                left_out.append({"directory": str(directory), "reason": _reason(error)})
                continue
            shards.setdefault(store.study_hash, []).append(store)
        for stores in shards.values():
            where = " + ".join(str(store.directory) for store in stores)
            try:
                found = _evidence(stores, where, results_of)
            except (LorascopeError, *_DAMAGE) as error:
                left_out.append({"directory": where, "reason": _reason(error)})
                continue
            evidence += found
            studies[where] = stores[0].study
    return OwnStudies(tuple(evidence), studies, tuple(left_out))


def _directories(places: Iterable[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise UsageError("no such directory", where=f"--runs {place}", fix="give a study's directory, or one of studies")
        for pattern in (DATABASE, f"*/{DATABASE}", f"*/*/{DATABASE}"):
            for database in sorted(place.glob(pattern)):
                found.setdefault(database.parent.resolve(), database.parent)
    return list(found.values())


def _reason(error: Exception) -> str:
    if not isinstance(error, LorascopeError):
        return f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    return error.what if error.fix is None else f"{error.what}; {error.fix}"


def _evidence(stores: Sequence[Store], where: str, results_of: ResultsOf) -> list[StudyEvidence]:
    """A study's evidence; where its design varied the base model, one for each."""
    study = stores[0].study
    document = compared(stores, where, results_of)
    found = []
    for model in dict.fromkeys(trial["config"]["model"] for trial in document["trials"]):
        trials = [trial for trial in document["trials"] if trial["config"]["model"] == model]
        sizes = [trial["total_params"] for trial in trials if trial["total_params"] is not None]
        found.append(
            read_evidence(
                document | {"trials": trials},
                directory=where,
                design=study.design.kind,
                task=_task_facts(study, trials),
                model=model_facts(model, min(sizes, default=None)),
                section=study.task.model_dump(mode="json"),
            )
        )
    return found


def compared(stores: Sequence[Store], where: str, results_of: ResultsOf) -> dict[str, Any]:
    """The results, with every two configurations compared, or where these are many, each with the best."""
    names = {configuration_of(trial["trial"]) for trial in results_document(stores)["trials"]}
    if len(names) <= MOST_FOR_PAIRS:
        return results_of(stores, pairs=True)
    document = results_of(stores)
    facts = TaskFacts("", "generation"), ModelFacts("")
    study = read_evidence(document, directory=where, design="", task=facts[0], model=facts[1], section={})
    leader = leader_of(study)
    if leader is None:
        return document
    document = results_of(stores, baseline=leader)
    note = f"{document['comparisons']['correction']}, all with the best of {len(names)}, picked by the same scores"
    return document | {"comparisons": document["comparisons"] | {"correction": note}}


def _task_facts(study: Study, trials: Sequence[dict[str, Any]]) -> TaskFacts:
    kind: Kind | None = KINDS.get(study.task.name)
    if kind is None:
        classifies = any("accuracy" in trial["metrics"] for trial in trials) or study.task.labels is not None
        kind = "classification" if classifies else "generation"
    return task_facts(study.task, kind)
