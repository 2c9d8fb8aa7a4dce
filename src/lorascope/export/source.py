"""What an export is made from: an adapter's directory, one trial, or one of a study's trials. Floor: ``export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorascope.errors import UsageError, did_you_mean
from lorascope.export.best import Choice, best_trial
from lorascope.lora.peft_io import CONFIG_FILE
from lorascope.store import DATABASE, Store, TrialRow


@dataclass(frozen=True)
class Source:
    """Where the numbers lie, and what is known of them.

    Attributes:
        adapter: the directory of ``adapter_config.json``.
        study: the study's directory; None for an adapter from elsewhere.
        trial: the trial's row; None with ``study``.
        choice: how it was chosen, where it was.
    """

    adapter: Path
    study: Path | None = None
    trial: TrialRow | None = None
    choice: Choice | None = None

    @property
    def trial_directory(self) -> Path | None:
        """``runs/<study>/trials/<trial>``."""
        return None if self.study is None or self.trial is None else self.study / "trials" / self.trial.trial


def find_source(place: Path, *, best: bool = False, trial: str | None = None) -> Source:
    """The adapter that ``place`` means.

    Args:
        place: a study's directory, a trial's, or an adapter's.
        best: of a study, the best trial.
        trial: of a study, the trial of this name.

    Raises:
        UsageError: there is nothing of the kind; a study was given without saying which trial, or a trial with that.
        AdapterError: the study's file names an adapter that is not there.
    """
    if best and trial is not None:
        raise UsageError("--best and --trial exclude each other", where="export", fix="give one of them")
    if (place / DATABASE).is_file():
        return _of_study(place, best, trial)
    if best or trial is not None:
        option = "--best" if best else "--trial"
        what = f"{option} chooses among the trials of a study, and this is none"
        raise UsageError(what, where=str(place), fix="give runs/<study>")
    resolved = place.resolve()
    # An adapter inside a study is its trial's.
    home = resolved.parent if resolved.name == "adapter" and resolved.parent.parent.name == "trials" else resolved
    if home.parent.name == "trials" and (home.parents[1] / DATABASE).is_file():
        with Store.open(home.parents[1]) as store:
            return _of_trial(store, home.name, place)
    if (resolved / CONFIG_FILE).is_file():
        return Source(resolved)
    fix = "give runs/<study> with --best, runs/<study>/trials/<trial>, or the directory of adapter_config.json"
    what = "nothing to export here" if resolved.is_dir() else "no such directory"
    raise UsageError(what, where=str(place), fix=fix)


def _of_study(place: Path, best: bool, trial: str | None) -> Source:
    with Store.open(place) as store:
        if best:
            choice = best_trial(store)
            found = _of_trial(store, choice.trial, place)
            return Source(found.adapter, found.study, found.trial, choice)
        if trial is None:
            names = [row.trial for row in store.trials() if row.adapter is not None]
            what = f"a study of {len(names)} trials with an adapter" if names else "a study without a trained adapter"
            raise UsageError(what, where=str(place), fix="add --best, or --trial NAME; `lorascope results` lists them")
        return _of_trial(store, trial, place)


def _of_trial(store: Store, name: str, place: Path) -> Source:
    rows = {row.trial: row for row in store.trials()}
    if name not in rows:
        raise UsageError(f"no such trial as {name!r}", where=str(place), fix=did_you_mean(name, list(rows)))
    row = rows[name]
    path = row.config.get("path")
    if row.status == "done" and row.adapter is None and path is not None:
        # An adapter that entered the study from disk was scored there, and lies where it lay.
        return Source(Path(path), store.directory.resolve(), row)
    if row.adapter is None:
        fix = "give one that was trained with an adapter"
        raise UsageError(f"the trial is {row.status} and has no adapter", where=str(place), fix=fix)
    return Source((store.directory / row.adapter).resolve(), store.directory.resolve(), row)
