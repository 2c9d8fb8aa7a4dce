"""Trackers: curves and figures of every trial, sent on to Weights & Biases, TensorBoard or MLflow while the study runs.

Each tracker has four methods, all by the trial's name: `Tracker.begin`, `log`, `summary` and `end`. `Tracking` stands before
all that a study asked for: one that raises is off for the rest of the study and says so once, and nothing of it reaches the
study. The packages are imported when a trial begins, not before.

Knows the three services, and where below the study's directory each writes by default. Does not know what the numbers mean,
how they came about, or that there is a store. Floor: above ``config``.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import netrc
import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast

from lorascope.config import configuration_of
from lorascope.errors import UsageError

# Statuses of a trial that did what it was to do.
_SUCCESSES = ("done", "pruned")
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 60.0
_MLFLOW_STATUS = {"done": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "diverged": "FAILED"}
# What an MLflow server takes in one request.
_MOST_METRICS = 1000
_MOST_PARAMS = 100
_MOST_CHARACTERS = 6000

Row = tuple[int, Mapping[str, float]]
"""A step, from 0, and what was measured at it, by ``group/name``."""


@dataclass(frozen=True)
class Origin:
    """What is the same for all runs of a study.

    Attributes:
        study: the study's name; runs are grouped by it.
        directory: the study's, where whatever stays on this machine is written.
        identity: tells this directory's runs from those of another with the same trials, also when the study goes on later.
        tags: of every run.
    """

    study: str
    project: str
    directory: Path
    identity: str
    tags: Mapping[str, str] = field(default_factory=dict)

    def run_id(self, trial: str) -> str:
        """The one run of a trial, however often the trial starts again."""
        return f"{trial}-{self.identity}"


class Tracker(Protocol):
    """One service. Any method may raise; `Tracking` then stops calling it, but for ``end``.

    ``note`` is what the user should be told before the first trial, or nothing.
    """

    note: str

    def begin(self, trial: str, config: Mapping[str, Any]) -> int:
        """Open the trial's run, the one of an earlier part of the study where there is one.

        Returns:
            The first step that the run does not hold yet: 0 for a new run, and for one that is written anew.
        """
        ...

    def log(self, trial: str, rows: Sequence[Row]) -> None:
        """Add steps, each later than those before."""
        ...

    def summary(self, trial: str, metrics: Mapping[str, float]) -> None:
        """Set figures of the trial as a whole."""
        ...

    def end(self, trial: str, status: str) -> None:
        """Close the trial's run. The last one closed leaves no thread and no process behind."""
        ...


class WandbTracker:
    """Weights & Biases: one run per trial, grouped by study; offline runs under the study's directory.

    An online run that begins again goes on where the service has it. An offline one is written anew in the place of the old,
    so that what is uploaded later holds every step once. Curves of the machine are left out: the runs of a cohort share it.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._runs: dict[str, Any] = {}
        mode = os.environ.get("WANDB_MODE", "").lower()
        self._mode = None if mode or _has_wandb_key() else "offline"
        self._offline = (self._mode or mode) in ("offline", "dryrun")
        self.note = ""
        if self._mode == "offline":
            self.note = (
                f"no key for Weights & Biases here, so its runs are written to {origin.directory / 'wandb'}; "
                "wandb sync uploads them"
            )

    def begin(self, trial: str, config: Mapping[str, Any]) -> int:
        """See `Tracker.begin`."""
        if self._offline:  # before the import: the package reports its own errors to its makers unless told not to
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        run_id = self._origin.run_id(trial)
        if self._offline:
            for earlier in (self._origin.directory / "wandb").glob(f"offline-run-*-{run_id}"):
                shutil.rmtree(earlier)
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        run = wandb.init(
            project=self._origin.project,
            group=self._origin.study,
            name=trial,
            id=run_id,
            config=dict(config),
            tags=[f"{key}:{value}"[:64] for key, value in self._origin.tags.items()],
            dir=self._origin.directory,
            mode=cast(Any, self._mode),
            resume=None if self._offline else "allow",
            reinit="create_new",  # the trials of a cohort run side by side
            settings=settings,
        )
        self._runs[trial] = run
        return run.starting_step

    def log(self, trial: str, rows: Sequence[Row]) -> None:
        """See `Tracker.log`."""
        for step, metrics in rows:
            self._runs[trial].log(dict(metrics), step=step)

    def summary(self, trial: str, metrics: Mapping[str, float]) -> None:
        """See `Tracker.summary`."""
        self._runs[trial].summary.update(dict(metrics))

    def end(self, trial: str, status: str) -> None:
        """See `Tracker.end`."""
        import wandb

        run = self._runs.pop(trial, None)  # None where the service did not let it begin
        try:
            if run is not None:
                run.summary["status"] = status
                run.finish(exit_code=0 if status in _SUCCESSES else 1)
        finally:
            # Its service is a process of its own; a run that the caller began elsewhere still needs it.
            if not self._runs and wandb.setup().most_recent_active_run is None:
                wandb.teardown()


class TensorBoardTracker:
    """TensorBoard: an event file per trial under ``<study>/tensorboard/<trial>``, written anew when the trial begins again.

    Records are written by this thread and flushed at every call: the package's own writer has a thread for each run, in which
    a full disk would be an error that nobody sees.
    """

    note = ""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._files: dict[str, IO[bytes]] = {}
        self._next: dict[str, int] = {}

    def begin(self, trial: str, config: Mapping[str, Any]) -> int:
        """See `Tracker.begin`."""
        from tensorboard.plugins.hparams import summary_v2

        directory = self._origin.directory / "tensorboard" / trial
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._files[trial] = (directory / name).open("xb")
        self._next[trial] = 0
        # The seeds of a configuration are one group of the table of hyper-parameters.
        values = {key: _scalar(value) for key, value in config.items() if value is not None and key != "seed"}
        configuration = configuration_of(trial)
        self._write(trial, {"file_version": "brain.Event:2"})
        self._write(trial, {"summary": summary_v2.hparams_pb(values, trial_id=configuration)})
        return 0

    def log(self, trial: str, rows: Sequence[Row]) -> None:
        """See `Tracker.log`."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for step, metrics in rows:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
            self._write(trial, {"step": step, "summary": Summary(value=values)})
            self._next[trial] = step + 1
        self._files[trial].flush()

    def summary(self, trial: str, metrics: Mapping[str, float]) -> None:
        """See `Tracker.summary`; they stand at the last step."""
        self.log(trial, [(max(self._next[trial] - 1, 0), metrics)])

    def end(self, trial: str, status: str) -> None:
        """See `Tracker.end`."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        outcome = api_pb2.STATUS_SUCCESS if status in _SUCCESSES else api_pb2.STATUS_FAILURE
        ended = plugin_data_pb2.SessionEndInfo(status=outcome, end_time_secs=time.time())
        value = Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            tensor=metadata.NULL_TENSOR,
            metadata=metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=ended)),
        )
        try:
            self._write(trial, {"summary": Summary(value=[value])})
        finally:
            self._files.pop(trial).close()

    def _write(self, trial: str, fields: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        event = Event(wall_time=time.time(), **fields)
        RecordWriter(self._files[trial]).write(event.SerializeToString())


class MlflowTracker:
    """MLflow: an experiment per study, a run per trial, in ``<study>/mlflow.db`` unless ``MLFLOW_TRACKING_URI`` says where.

    A run that begins again is opened again and goes on behind the steps that it holds. Nothing is reported to MLflow's makers,
    whose client otherwise does so from a thread of its own.
    """

    note = ""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._client: Any = None
        self._experiment = ""
        self._runs: dict[str, str] = {}
        self._next: dict[str, int] = {}

    def begin(self, trial: str, config: Mapping[str, Any]) -> int:
        """See `Tracker.begin`."""
        if self._client is None:
            self._connect()
        from mlflow.entities import Param

        run_id = self._origin.run_id(trial)
        found = self._client.search_runs([self._experiment], f"tags.`lorascope.run` = '{run_id}'", max_results=1)
        if found:
            run = found[0].info.run_id
            self._client.update_run(run, status="RUNNING")
        else:
            tags = {f"lorascope.{key}": value for key, value in self._origin.tags.items()}
            tags["lorascope.run"] = run_id
            run = self._client.create_run(self._experiment, tags=tags, run_name=trial).info.run_id
            texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}
            params = [Param(key, text[:_MOST_CHARACTERS]) for key, text in texts.items()]
            for chunk in _chunks(params, _MOST_PARAMS):
                self._client.log_batch(run, params=chunk)
        self._runs[trial] = run
        steps = [metric.step for metric in self._client.get_metric_history(run, "training/loss")] if found else []
        self._next[trial] = 1 + max(steps, default=-1)
        return self._next[trial]

    def log(self, trial: str, rows: Sequence[Row]) -> None:
        """See `Tracker.log`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for step, values in rows for name, value in values.items()]
        for chunk in _chunks(metrics, _MOST_METRICS):
            self._client.log_batch(self._runs[trial], metrics=chunk)
        self._next[trial] = max([self._next[trial], *(step + 1 for step, _ in rows)])

    def summary(self, trial: str, metrics: Mapping[str, float]) -> None:
        """See `Tracker.summary`; they stand at the last step."""
        self.log(trial, [(max(self._next[trial] - 1, 0), metrics)])

    def end(self, trial: str, status: str) -> None:
        """See `Tracker.end`."""
        run = self._runs.pop(trial)
        self._client.set_tag(run, "lorascope.status", status)
        self._client.set_terminated(run, _MLFLOW_STATUS.get(status, "KILLED"))

    def _connect(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        asked = os.environ.get("MLFLOW_TRACKING_URI")
        directory = self._origin.directory.resolve()
        client = MlflowClient(tracking_uri=asked or f"sqlite:///{directory / 'mlflow.db'}")
        name = f"{self._origin.project}/{self._origin.study}"
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            artifacts = None if asked else (directory / "mlflow-artifacts").as_uri()
            self._experiment = client.create_experiment(name, artifact_location=artifacts)
        else:
            self._experiment = experiment.experiment_id
        self._client = client


TRACKERS: dict[str, Callable[[Origin], Tracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorBoardTracker,
    "mlflow": MlflowTracker,
}


def check_installed(names: Sequence[str]) -> None:
    """A tracker that was asked for and cannot be had at all is said before anything is trained.

    Raises:
        UsageError: its package is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            fix = f'pip install "lorascope[{name}]", or leave it out'
            raise UsageError(f"{name} is not installed", where="tracking", fix=fix)


class Tracking:
    """The trackers of a study, as one that never raises.

    A tracker that raises is switched off and its open runs closed as well as can be; `take_failures` says why. Steps that a
    run holds already are not sent again.
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)
        # By tracker and trial, the first step that is still to be sent.
        self._next: dict[str, dict[str, int]] = {name: {} for name in trackers}
        self._failures: list[str] = []

    @classmethod
    def to(cls, names: Sequence[str], origin: Origin) -> Tracking:
        """The trackers of these names."""
        return cls({name: TRACKERS[name](origin) for name in dict.fromkeys(names)})

    def __bool__(self) -> bool:
        return bool(self._trackers)

    @property
    def notes(self) -> list[str]:
        """What the user should know beforehand."""
        return [tracker.note for tracker in self._trackers.values() if tracker.note]

    def begin(self, trial: str, config: Mapping[str, Any]) -> None:
        """Open the trial's run in each tracker; one that is open already stays so."""

        def each(name: str, tracker: Tracker) -> None:
            if trial not in self._next[name]:
                self._next[name][trial] = 0
                self._next[name][trial] = tracker.begin(trial, config)

        self._each(each)

    def log(self, trial: str, rows: Sequence[Row]) -> None:
        """Send steps that no run holds yet."""

        def each(name: str, tracker: Tracker) -> None:
            fresh = [row for row in rows if row[0] >= self._next[name].get(trial, math.inf)]
            if fresh:
                tracker.log(trial, fresh)
                self._next[name][trial] = fresh[-1][0] + 1

        self._each(each)

    def summary(self, trial: str, metrics: Mapping[str, float]) -> None:
        """Send figures of the trial as a whole; those that are no number are left out."""
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}

        def each(name: str, tracker: Tracker) -> None:
            if trial in self._next[name]:
                tracker.summary(trial, finite)

        self._each(each)

    def end(self, trial: str, status: str) -> None:
        """Close the trial's runs."""

        def each(name: str, tracker: Tracker) -> None:
            if self._next[name].pop(trial, None) is not None:
                tracker.end(trial, status)

        self._each(each)

    @property
    def open_trials(self) -> list[str]:
        """Trials whose runs are open in one tracker at least."""
        return list(dict.fromkeys(trial for trials in self._next.values() for trial in trials))

    def take_failures(self) -> list[str]:
        """What failed since the last call, a sentence for each tracker that is off from now on."""
        failures, self._failures = self._failures, []
        return failures

    def _each(self, call: Callable[[str, Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                with _quiet():
                    call(name, tracker)
            except Exception as error:
                what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self._failures.append(f"{name} fails and is off for the rest of the study ({what})")
                self._switch_off(name)

    def _switch_off(self, name: str) -> None:
        tracker = self._trackers.pop(name)
        for trial in self._next.pop(name):
            with suppress(Exception), _quiet():
                tracker.end(trial, "interrupted")


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines of the services' packages over the progress display; what fails is told once."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _has_wandb_key() -> bool:
    """Whether W&B has the user's key: in the environment, or where ``wandb login`` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = server.partition("://")[2].partition("/")[0].partition(":")[0]
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for place in places:
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(Path(place).expanduser()).authenticators(host) is not None:
                return True
    return False


def _scalar(value: Any) -> bool | int | float | str:
    """As the table of hyper-parameters can hold it."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
