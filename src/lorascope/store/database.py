"""A study's directory: one SQLite database as the only source of truth, and atomic writes for the files beside it.

Knows the tables, who may write, and how a half-finished write is kept from a reader. Does not know what a trial means,
how it is trained or what its files hold. Floor: above ``config``.

One process writes (it holds ``study.lock``), any number read. Every call is one transaction, so a killed writer loses
at most the call it was in. A number that is none (NaN, infinite) is stored as null. POSIX only, for ``flock``.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lorascope.config import Study, TrialConfig, configuration_of
from lorascope.errors import StoreError, UsageError
from lorascope.store.files import file_errors, remove_unfinished, write_atomically

STATUSES = ("planned", "running", "done", "pruned", "diverged", "failed", "interrupted")

DATABASE = "study.sqlite"
LOCK = "study.lock"
STUDY_FILE = "study.yaml"
SCHEMA_VERSION = 1
BUSY_SECONDS = 30.0

# What `update` may set, besides the status.
_COLUMNS: dict[str, Callable[[Any], Any]] = {
    "trainable_params": int,
    "total_params": int,
    "peft_total_params": int,
    "train_seconds": float,
    "examples_per_second": float,
    "peak_memory_bytes": int,
    "solo_train_seconds_per_epoch": float,
    "solo_examples_per_second": float,
    "solo_peak_memory_bytes": int,
    "adapter": str,
    "data_checksum": str,
    "base_checksum": str,
    "cohort": str,
    "error": str,
}
_STEP_COLUMNS: dict[str, Callable[[Any], Any]] = {
    "step": int,
    "epoch": float,
    "loss": float,
    "grad_norm": float,
    "learning_rate": float,
    "seconds": float,
    "tokens": int,
}
_SQL_TYPES: dict[Callable[[Any], Any], str] = {int: "INTEGER", float: "REAL", str: "TEXT"}


def _column_definitions(columns: Mapping[str, Callable[[Any], Any]]) -> str:
    return ", ".join(f"{name} {_SQL_TYPES[kind]}" for name, kind in columns.items())


_COHORTS = "CREATE TABLE IF NOT EXISTS cohorts (cohort TEXT PRIMARY KEY, plan TEXT NOT NULL)"
_DECODINGS = (
    "CREATE TABLE IF NOT EXISTS decodings (trial TEXT NOT NULL REFERENCES trials (trial), position INTEGER NOT NULL,"
    " record TEXT NOT NULL, PRIMARY KEY (trial, position))"
)
_MAPS = (
    "CREATE TABLE IF NOT EXISTS maps (game TEXT NOT NULL, seed INTEGER NOT NULL, record TEXT NOT NULL,"
    " PRIMARY KEY (game, seed))"
)
_RUNGS = (
    "CREATE TABLE IF NOT EXISTS rungs (trial TEXT NOT NULL REFERENCES trials (trial), step INTEGER NOT NULL,"
    " metrics TEXT NOT NULL, PRIMARY KEY (trial, step))"
)
_TABLES = (
    "CREATE TABLE study (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), definition TEXT NOT NULL)",
    "CREATE TABLE info (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE trials (position INTEGER PRIMARY KEY, trial TEXT NOT NULL UNIQUE, seed INTEGER NOT NULL,"
    f" status TEXT NOT NULL, config TEXT NOT NULL, {_column_definitions(_COLUMNS)})",
    "CREATE TABLE metrics (trial TEXT NOT NULL REFERENCES trials (trial), name TEXT NOT NULL, value REAL,"
    " PRIMARY KEY (trial, name))",
    f"CREATE TABLE steps (trial TEXT NOT NULL REFERENCES trials (trial), {_column_definitions(_STEP_COLUMNS)},"
    " PRIMARY KEY (trial, step))",
    "CREATE TABLE warnings (position INTEGER PRIMARY KEY, trial TEXT REFERENCES trials (trial), kind TEXT NOT NULL,"
    " count INTEGER NOT NULL, place TEXT NOT NULL, message TEXT NOT NULL)",
    _COHORTS,
    _DECODINGS,
    _MAPS,
    _RUNGS,
)


@dataclass(frozen=True)
class TrialRow:
    """One trial as a report sees it: a figure that was not measured is None, a metric that was no number NaN.

    ``rungs`` holds what the trial scored while it trained, by the number of steps done, on the rungs' examples: such scores
    are not among ``metrics``.
    """

    trial: str
    seed: int
    status: str
    config: dict[str, Any]
    trainable_params: int | None
    total_params: int | None
    peft_total_params: int | None
    metrics: dict[str, float]
    train_seconds: float | None
    examples_per_second: float | None
    peak_memory_bytes: int | None
    solo_train_seconds_per_epoch: float | None
    solo_examples_per_second: float | None
    solo_peak_memory_bytes: int | None
    adapter: str | None
    data_checksum: str | None
    base_checksum: str | None
    cohort: str | None
    error: str | None
    rungs: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def configuration(self) -> str:
        """What the trials of all seeds have in common: ``0123abcd`` of ``0123abcd-s42``."""
        return configuration_of(self.trial)

    @property
    def trainable_percent(self) -> float | None:
        """Trainable parameters in percent of base + adapter."""
        if self.trainable_params is None or not self.total_params:
            return None
        return 100 * self.trainable_params / self.total_params


class Store:
    """A study's directory, opened by `create` for writing or by `open` for reading. A context manager."""

    directory: Path
    study: Study

    def __init__(self, directory: Path, connection: sqlite3.Connection, study: Study, lock: int | None) -> None:
        self.directory = directory
        self.study = study
        self._connection = connection
        self._lock = lock

    @classmethod
    def create(cls, directory: Path, study: Study, *, resume: bool = False) -> Store:
        """Become the one writer of a new study, or with ``resume`` of the same study begun earlier.

        On resuming, trials that a killed process left ``running`` become ``interrupted``.

        Raises:
            StoreError: another process writes here; the directory holds a study and ``resume`` was not asked for, or a
                different study, or something else; or it cannot be written.
        """
        with file_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            strangers = sorted(entry.name for entry in directory.iterdir() if entry.name != LOCK)
            if strangers and not (directory / DATABASE).is_file():
                raise StoreError(
                    f"holds files but no study, {strangers[0]!r} among them",
                    where=str(directory),
                    fix="choose another directory with --out",
                )
        lock = _lock(directory / LOCK)
        try:
            connection = _connect(directory / DATABASE, "rwc")
            try:
                store = cls(directory, connection, study, lock)
                store._begin_or_resume(resume)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            os.close(lock)
            raise
        return store

    @classmethod
    def refuse_existing(cls, directory: Path) -> None:
        """Raise a StoreError where ``directory`` holds a study already: before anything costly is done for a new one."""
        if (directory / DATABASE).is_file():
            raise _holds_a_study(directory)

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Read a study, finished or being written.

        Raises:
            UsageError: there is no study in ``directory``.
            StoreError: there is one that cannot be read.
        """
        absent = UsageError("no study in this directory", where=str(directory), fix="give the directory of a run")
        with file_errors(directory, "read"):
            if not (directory / DATABASE).is_file():
                raise absent
        # Not SQLite's read-only mode: after a writer was killed, the first reader has to roll its transaction back.
        connection = _connect(directory / DATABASE, "rw")
        try:
            with _database_errors(directory / DATABASE):
                connection.execute("PRAGMA query_only = ON")
            study = _stored_study(connection, directory / DATABASE)
            if study is None:
                raise absent
        except BaseException:
            connection.close()
            raise
        return cls(directory, connection, study, None)

    @property
    def study_hash(self) -> str:
        """The hash of everything that the study's result depends on."""
        return self.study.hash

    def close(self) -> None:
        """Let go of the database and of the writer's lock; a second call does nothing."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_trials(self, trials: Sequence[TrialConfig]) -> None:
        """Enter trials as planned, in this order; one that is there already keeps all it has.

        Raises:
            StoreError: a trial of that name has another configuration, which is a collision of two hashes.
        """
        with self._writing() as connection:
            for trial in trials:
                config = json.dumps(trial.flat(), sort_keys=True)
                found = connection.execute("SELECT config FROM trials WHERE trial = ?", (trial.trial,)).fetchone()
                if found is None:
                    row = (trial.trial, trial.seed, "planned", config)
                    connection.execute("INSERT INTO trials (trial, seed, status, config) VALUES (?, ?, ?, ?)", row)
                elif found["config"] != config:
                    raise StoreError(
                        "two configurations share this name",
                        where=f"{self.directory}, trial {trial.trial}",
                        fix="leave one of them out, or run it as a study of its own",
                    )

    def update(self, trial: str, **columns: Any) -> None:
        """Set ``status`` or figures of a trial; None makes a figure absent.

        Raises:
            TypeError: a trial has no such column.
            ValueError: the status is none of `STATUSES`.
            StoreError: there is no such trial.
        """
        values: dict[str, Any] = {}
        for name, value in columns.items():
            if name == "status":
                if value not in STATUSES:
                    raise ValueError(f"status {value!r} is none of {', '.join(STATUSES)}")
                values[name] = value
            elif name not in _COLUMNS:
                raise TypeError(f"a trial has no column {name!r}; it has status, {', '.join(_COLUMNS)}")
            else:
                values[name] = _plain(value, _COLUMNS[name])
        with self._writing(trial) as connection:
            if values:
                assignments = ", ".join(f"{name} = ?" for name in values)
                connection.execute(f"UPDATE trials SET {assignments} WHERE trial = ?", (*values.values(), trial))

    def add_steps(self, trial: str, rows: Sequence[Mapping[str, float | int]]) -> None:
        """Append to the curves of a trial; a step given again replaces the earlier one.

        Args:
            trial: the trial's name.
            rows: ``step`` and any of ``epoch``, ``loss``, ``grad_norm``, ``learning_rate``, ``seconds``, ``tokens``.

        Raises:
            TypeError: a row has another key, or no ``step``.
            StoreError: there is no such trial.
        """
        for row in rows:
            if "step" not in row or not row.keys() <= _STEP_COLUMNS.keys():
                raise TypeError(f"a step has {', '.join(_STEP_COLUMNS)}, not {', '.join(row)}")
        marks = ", ".join("?" * (1 + len(_STEP_COLUMNS)))
        values = [(trial, *(_plain(row.get(name), kind) for name, kind in _STEP_COLUMNS.items())) for row in rows]
        with self._writing(trial) as connection:
            connection.executemany(
                f"INSERT OR REPLACE INTO steps (trial, {', '.join(_STEP_COLUMNS)}) VALUES ({marks})", values
            )

    def clear_trial(self, trial: str, first_step: int = 0) -> None:
        """Forget metrics, decodings and warnings of a trial that starts again, steps from ``first_step`` on, later rungs."""
        with self._writing(trial) as connection:
            for table in ("metrics", "decodings", "warnings"):
                connection.execute(f"DELETE FROM {table} WHERE trial = ?", (trial,))
            connection.execute("DELETE FROM steps WHERE trial = ? AND step >= ?", (trial, first_step))
            connection.execute("DELETE FROM rungs WHERE trial = ? AND step > ?", (trial, first_step))

    def set_metrics(self, trial: str, metrics: Mapping[str, float]) -> None:
        """Set the named metrics of a trial and leave its other ones."""
        values = [(trial, name, _plain(value, float)) for name, value in metrics.items()]
        with self._writing(trial) as connection:
            connection.executemany("INSERT OR REPLACE INTO metrics (trial, name, value) VALUES (?, ?, ?)", values)

    def set_rung(self, trial: str, step: int, metrics: Mapping[str, float]) -> None:
        """Record what a trial scored after so many steps, while it trains; a number that is none becomes null."""
        with self._writing(trial) as connection:
            values = (trial, int(step), json.dumps(_finite(metrics)))
            connection.execute("INSERT OR REPLACE INTO rungs (trial, step, metrics) VALUES (?, ?, ?)", values)

    def set_decodings(self, trial: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Record what each way of decoding gave, in place of what was recorded; a number that is none becomes null."""
        with self._writing(trial) as connection:
            connection.execute("DELETE FROM decodings WHERE trial = ?", (trial,))
            values = [(trial, position, json.dumps(_finite(record))) for position, record in enumerate(records)]
            connection.executemany("INSERT INTO decodings (trial, position, record) VALUES (?, ?, ?)", values)

    def decodings(self, trial: str) -> list[dict[str, Any]]:
        """What `set_decodings` recorded of a trial, in order; nothing in a study of an earlier version."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'decodings'"):
            return []
        found = self._rows("SELECT record FROM decodings WHERE trial = ? ORDER BY position", trial)
        return [json.loads(row["record"]) for row in found]

    def add_warning(self, trial: str | None, kind: str, count: int, where: str, message: str) -> None:
        """Record what was not as asked: how often and where; ``trial`` None for the whole study."""
        with self._writing(trial) as connection:
            connection.execute(
                "INSERT INTO warnings (trial, kind, count, place, message) VALUES (?, ?, ?, ?, ?)",
                (trial, kind, int(count), where, message),
            )

    def set_info(self, key: str, value: Any) -> None:
        """Record something about the whole study that JSON can hold: versions, checksums, hardware."""
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO info (key, value) VALUES (?, ?)", (key, json.dumps(value)))
        self._write_study_file()

    def info(self, key: str) -> Any:
        """What `set_info` recorded, or None."""
        found = self._rows("SELECT value FROM info WHERE key = ?", key)
        return json.loads(found[0]["value"]) if found else None

    def set_cohort(self, cohort: str, plan: Mapping[str, Any]) -> None:
        """Record how a cohort's trials are trained together, as JSON can hold it; what was recorded before is replaced."""
        with self._writing() as connection:
            values = (cohort, json.dumps(plan))
            update = "ON CONFLICT (cohort) DO UPDATE SET plan = excluded.plan"
            connection.execute(f"INSERT INTO cohorts (cohort, plan) VALUES (?, ?) {update}", values)

    def cohorts(self) -> dict[str, dict[str, Any]]:
        """Every plan that `set_cohort` recorded, by the cohort's name; none in a study of an earlier version."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'cohorts'"):
            return {}
        return {
            row["cohort"]: json.loads(row["plan"]) for row in self._rows("SELECT cohort, plan FROM cohorts ORDER BY rowid")
        }

    def set_map(self, game: str, seed: int, record: Mapping[str, Any]) -> None:
        """Record what coalitions were worth when they were read off one adapter; a number that is none becomes null."""
        with self._writing() as connection:
            values = (game, seed, json.dumps(_finite(record)))
            connection.execute("INSERT OR REPLACE INTO maps (game, seed, record) VALUES (?, ?, ?)", values)

    def maps(self, game: str) -> dict[int, dict[str, Any]]:
        """What `set_map` recorded for a game, by seed; nothing in a study of an earlier version."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'maps'"):
            return {}
        found = self._rows("SELECT seed, record FROM maps WHERE game = ? ORDER BY seed", game)
        return {row["seed"]: json.loads(row["record"]) for row in found}

    def trials(self) -> list[TrialRow]:
        """Every trial, in the order in which they were added."""
        columns = ", ".join(("trial", "seed", "status", "config", *_COLUMNS))
        rungs = "(SELECT json_group_object(step, json(metrics)) FROM rungs WHERE rungs.trial = trials.trial)"
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'rungs'"):
            rungs = "'{}'"  # a study of an earlier version
        # One statement, so that no trial is shown with the metrics of a moment later.
        found = self._rows(
            f"SELECT {columns}, {rungs} AS rungs, name, value FROM trials LEFT JOIN metrics USING (trial)"
            " ORDER BY position, name"
        )
        rows: list[dict[str, Any]] = []
        for row in map(dict, found):
            name, value = row.pop("name"), row.pop("value")
            if not rows or rows[-1]["trial"] != row["trial"]:
                scored = {int(step): _numbers(metrics) for step, metrics in json.loads(row["rungs"]).items()}
                rows.append({**row, "config": json.loads(row["config"]), "metrics": {}, "rungs": scored})
            if name is not None:
                rows[-1]["metrics"][name] = math.nan if value is None else value
        return [TrialRow(**row) for row in rows]

    def steps(self, trial: str) -> list[dict[str, Any]]:
        """The curves of a trial by rising step; what was not given, or was no number, is None."""
        columns = ", ".join(_STEP_COLUMNS)
        return [dict(row) for row in self._rows(f"SELECT {columns} FROM steps WHERE trial = ? ORDER BY step", trial)]

    def warnings(self) -> list[dict[str, Any]]:
        """Every warning in the order it came: ``trial`` (or None), ``kind``, ``count``, ``where``, ``message``."""
        found = self._rows('SELECT trial, kind, count, place AS "where", message FROM warnings ORDER BY position')
        return [dict(row) for row in found]

    def _begin_or_resume(self, resume: bool) -> None:
        database = self.directory / DATABASE
        stored = _stored_study(self._connection, database)
        if stored is None:
            with self._writing() as connection:
                for table in _TABLES:
                    connection.execute(table)
                definition = json.dumps(self.study.model_dump(), default=str)
                connection.execute("INSERT INTO study (only_row, definition) VALUES (1, ?)", (definition,))
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif not resume:
            raise _holds_a_study(self.directory)
        elif stored.hash != self.study.hash:
            before, now = stored.model_dump(mode="json"), self.study.model_dump(mode="json")
            sections = ", ".join(name for name in before if name != "name" and before[name] != now[name])
            raise StoreError(
                f"holds another study; these sections differ: {sections}",
                where=str(self.directory),
                fix="undo the change to go on, or choose another directory with --out",
            )
        else:
            self.study = stored
            remove_unfinished(self.directory)
            with self._writing() as connection:
                connection.execute(_COHORTS)  # a study begun before there were plans
                connection.execute(_DECODINGS)
                connection.execute(_MAPS)
                connection.execute(_RUNGS)
                connection.execute("UPDATE trials SET status = 'interrupted' WHERE status = 'running'")
        self._write_study_file()

    def _write_study_file(self) -> None:
        """``study.yaml``: the study with every default spelt out, which `run` accepts, and the infos as comments."""
        infos = self._rows("SELECT key, value FROM info ORDER BY key")
        comments = [f"# {row['key']}: {row['value']}\n" for row in infos]
        document = yaml.safe_dump(self.study.model_dump(), sort_keys=False, allow_unicode=True)
        write_atomically(self.directory / STUDY_FILE, "".join(comments) + document)

    @contextmanager
    def _writing(self, trial: str | None = None) -> Iterator[sqlite3.Connection]:
        """One transaction; ``trial`` has to exist."""
        if self._lock is None:
            raise StoreError("opened for reading only", where=str(self.directory))
        with _database_errors(self.directory / DATABASE):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                if trial is not None:
                    known = self._connection.execute("SELECT 1 FROM trials WHERE trial = ?", (trial,)).fetchone()
                    if known is None:
                        raise StoreError(f"no trial {trial!r} in this study", where=str(self.directory))
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with _database_errors(self.directory / DATABASE):
            return self._connection.execute(query, values).fetchall()


def _stored_study(connection: sqlite3.Connection, database: Path) -> Study | None:
    """The study in the database; None where a process was killed before it had written one."""
    fix = "read it with the version that wrote it"
    what = "written by another version of Lorascope, or by something else"
    other_version = StoreError(what, where=str(database), fix=fix)
    with _database_errors(database):
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            return None
        if version != SCHEMA_VERSION:
            raise other_version
        definition = connection.execute("SELECT definition FROM study").fetchone()[0]
    try:
        return Study.model_validate(json.loads(definition))
    except ValidationError:
        raise other_version from None


def _connect(database: Path, mode: str) -> sqlite3.Connection:
    with _database_errors(database):
        # Transactions are opened by hand: the module's own begin too late to take the lock before reading.
        connection = sqlite3.connect(
            f"{database.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        return connection


def _lock(path: Path) -> int:
    """The writer's lock, as an open file descriptor; the system frees it when the process ends, however it ends."""
    with file_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            fix = "wait until the other process ends, or choose another directory with --out"
            raise StoreError("in use by another process", where=str(path.parent), fix=fix) from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _holds_a_study(directory: Path) -> StoreError:
    fix = "add --resume to go on, or --out for another directory"
    return StoreError("holds a study already", where=str(directory), fix=fix)


def _plain(value: Any, kind: Callable[[Any], Any]) -> Any:
    """``value`` as SQLite can hold it: a plain int, float or str; None for a number that is none."""
    if value is None or (kind is not str and not math.isfinite(value)):
        return None
    if kind is int and int(value) != value:
        raise TypeError(f"{value!r} is no whole number")
    return kind(value)


def _finite(value: Any) -> Any:
    """As strict JSON can hold it."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Metrics as they were before JSON: null was no number."""
    return {name: math.nan if value is None else value for name, value in sorted(metrics.items())}


@contextmanager
def _database_errors(database: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise  # a bug of ours, not the state of the disk
    except sqlite3.Error as error:
        text = str(error)
        if "full" in text:
            fix = "free some space, then go on with --resume"
        elif "locked" in text:
            fix = "let the process that holds it end"
        elif "not a database" in text or "malformed" in text:
            fix = "the file is damaged; restore a copy, or run the study in another directory"
        else:
            fix = "check that the directory exists and can be written"
        raise StoreError(f"the study's database fails ({text})", where=str(database), fix=fix) from error
