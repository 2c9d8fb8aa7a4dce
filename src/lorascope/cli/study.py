"""A study carried out with its progress on stderr, and what its trials show together. Floor: cli."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.cli.console import stderr
from lorascope.cli.planning import chosen_device, listed_and_proposer, seeds_of
from lorascope.cli.report import report_beside
from lorascope.config import SearchDesign, ShapleyDesign, Study, TrialConfig

if TYPE_CHECKING:
    from lorascope.cohort.events import Events
    from lorascope.cohort.proposals import Proposer
    from lorascope.cohort.run import Limits
    from lorascope.store import Store


def run_and_report(
    study: Study,
    trials: list[TrialConfig] | Proposer,
    directory: Path,
    *,
    resume: bool = False,
    limits: Limits | None = None,
    part: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Run with progress on stderr; the results document. The study's page is written beside its store.

    Args:
        limits: by default none, on the GPU where there is one.
        part: the shard that this is, as (index from 1, count).

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the step in progress was finished, and the cohort's state saved.
    """
    from lorascope.cohort.run import Limits, run_study
    from lorascope.store import Store

    limits = limits or Limits(device=chosen_device())
    listed, proposer = listed_and_proposer(study, trials)
    first = [] if proposer is None else listed
    _show(run_study(study, proposer or listed, directory, first=first, resume=resume, limits=limits))
    with Store.open(directory) as store:
        left = {row.trial for row in store.trials() if row.status in ("planned", "interrupted")}
    is_whole = left.isdisjoint(trial.trial for trial in listed)
    if isinstance(study.design, ShapleyDesign) and is_whole:
        _attribute(study, directory, limits, part)
    with Store.open(directory) as store:
        results = results_of([store])
        report_beside([store], results, directory)
        return results


def _attribute(study: Study, directory: Path, limits: Limits, part: tuple[int, int] | None) -> None:
    """What a Shapley study has to do once its trials are done: read maps off adapters, and time the coalitions."""
    from lorascope.attribution.latency import measure_latency
    from lorascope.attribution.maps import draw_maps
    from lorascope.attribution.players import read_game

    game, seeds, deadline = read_game(study), seeds_of(study, part), limits.deadline
    if game.design.game != "usefulness":
        _show(draw_maps(game, directory, device=limits.device, seeds=seeds, most_bytes=limits.most_bytes, deadline=deadline))
    _show(measure_latency(game, directory, device=limits.device, deadline=deadline))


def _show(running: Events) -> None:
    """Carry something out with its progress on stderr; closed at once whatever ends it, so that its trials say so.

    Raises:
        KeyboardInterrupt: see `run_and_report`.
    """
    from lorascope.cli.progress import StudyProgress

    with StudyProgress(stderr()) as progress, closing(running) as events:
        for event in islice(events, 1):
            progress.show(event)  # until then there is nothing to save
        with deferred_signals(progress.alert) as interrupted:
            for event in events:
                progress.show(event)
                if interrupted():
                    raise KeyboardInterrupt


def results_of(
    stores: Sequence[Store], baseline: str | None = None, metrics: Sequence[str] | None = None, pairs: bool = False
) -> dict[str, Any]:
    """What a study's trials gave, and what they show together; recomputed from the stores, so that shards count as one."""
    from lorascope.attribution.document import shapley_document
    from lorascope.compare import comparisons
    from lorascope.effects import ablation_document, controls_document
    from lorascope.store import merge_results, results_document

    study, rows = stores[0].study, merge_results(stores)
    found = {
        "comparisons": comparisons(stores, baseline=baseline, metrics=metrics, pairs=pairs),
        "shapley": shapley_document(stores),
        "ablation": ablation_document(study, rows),
        "controls": controls_document(study, rows),
    }
    if isinstance(study.design, SearchDesign):
        from lorascope.search import search_document  # Optuna is slow to import

        found["search"] = search_document(study, rows)
    return results_document(stores) | {name: document for name, document in found.items() if document is not None}


def interrupt(*_: object) -> None:
    """What a signal does that nobody defers."""
    raise KeyboardInterrupt


@contextmanager
def deferred_signals(alert: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Within, the first SIGINT or SIGTERM is only noted, and told by ``alert``; a second one interrupts at once.

    Yields:
        Whether one came.
    """
    came: list[int] = []

    def note(number: int, _: object) -> None:
        for each in own:
            signal.signal(each, interrupt)
        came.append(number)
        alert("saving after the step in progress; interrupt again to end at once")

    # Ignored where a shell without job control started the command in the background; that is left alone.
    own = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    own = {each: handler for each, handler in own.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for each in own:
            signal.signal(each, note)
        yield lambda: bool(came)
    finally:
        for each, handler in own.items():
            signal.signal(each, handler)
