"""The study's directory: what is committed survives, one process writes, and a failure is one line."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lorascope
from lorascope.config import Study, TrialConfig, load_study
from lorascope.errors import StoreError, UsageError
from lorascope.store import (
    STATUSES,
    Store,
    atomic_directory,
    merge_results,
    results,
    results_document,
    write_atomically,
)
from lorascope.store import database as store_module

SQLITE_INTEGERS = st.integers(min_value=-(2**63), max_value=2**63 - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def make_study(**sections: Any) -> Study:
    values = {"name": "a-study", "base": {"model": "some/model"}, "task": {"name": "sst2", "data": "data"}}
    return Study.model_validate({**values, **sections})


def make_trials(study: Study, seeds: tuple[int, ...] = (42, 1337)) -> list[TrialConfig]:
    return [TrialConfig(base=study.base, adapter=study.adapter, train=study.train, seed=seed) for seed in seeds]


@pytest.fixture
def study() -> Study:
    return make_study()


@pytest.fixture
def store(tmp_path: Path, study: Study) -> Iterator[Store]:
    with Store.create(tmp_path / "run", study) as created:
        created.add_trials(make_trials(study))
        yield created


@pytest.fixture
def trial(study: Study) -> str:
    return make_trials(study)[0].trial


def run_python(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that can import the lorascope under test."""
    environment = {**os.environ, "PYTHONPATH": str(Path(lorascope.__file__).parent.parent)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


# Atomic writes


def test_a_written_file_holds_the_data_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.txt"
    write_atomically(path, "größe\n")
    assert path.read_bytes() == "größe\n".encode()
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    write_atomically(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_full_disk_keeps_the_old_file_and_names_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError) as caught:
        write_atomically(path, "new")
    assert str(path) in str(caught.value)
    assert "No space left" in str(caught.value)
    assert "free some space" in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_file_where_the_parent_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        write_atomically(tmp_path / "file" / "below", "x")
    with pytest.raises(StoreError, match="cannot write"), atomic_directory(tmp_path / "file" / "below"):
        pass
    with pytest.raises(StoreError, match="cannot write"):
        Store.create(tmp_path / "file", make_study())


def test_a_file_does_not_replace_a_directory(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(StoreError):
        write_atomically(tmp_path / "directory", "x")
    assert os.listdir(tmp_path) == ["directory"]


def test_a_directory_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "adapter"
    with atomic_directory(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "weights").write_bytes(b"1")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert (path / "inner" / "weights").read_bytes() == b"1"
    assert os.listdir(path.parent) == ["adapter"]


def test_a_directory_replaces_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    for name in ("old", "new"):
        with atomic_directory(path) as temporary:
            (temporary / name).write_text(name)
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["adapter"]


def test_an_error_inside_the_block_leaves_the_old_directory_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_directory(path) as temporary:
        (temporary / "new").write_text("new")
        raise ZeroDivisionError
    with pytest.raises(StoreError, match="No space left"), atomic_directory(path) as temporary:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(path) == ["old"]
    assert os.listdir(tmp_path) == ["adapter"]


def test_a_directory_that_cannot_be_renamed_gives_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "old").write_text("old")
    rename = Path.rename
    attempts = []

    def fail_the_second_time(self: Path, target: Path) -> Path:
        attempts.append(target)
        if len(attempts) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_the_second_time)
    with pytest.raises(StoreError), atomic_directory(path) as temporary:
        (temporary / "new").write_text("new")
    assert os.listdir(path) == ["old"]
    assert os.listdir(tmp_path) == ["adapter"]


def test_a_file_that_cannot_be_read_while_a_directory_is_filled_is_named_itself(tmp_path: Path) -> None:
    source = tmp_path / "base" / "absent.safetensors"
    with pytest.raises(StoreError) as caught, atomic_directory(tmp_path / "merged"):
        source.open("rb")
    assert str(caught.value).startswith(f"{source}: cannot be used (No such file or directory)")
    with pytest.raises(StoreError) as caught, atomic_directory(tmp_path / "merged") as temporary:
        (temporary / "inner" / "file").open("xb")
    assert str(caught.value).startswith(f"{tmp_path / 'merged'}: cannot write")
    assert os.listdir(tmp_path) == []


def test_a_copy_that_fills_the_disk_is_an_error_of_the_target(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught, atomic_directory(tmp_path / "merged"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "source"))
    assert str(caught.value).startswith(f"{tmp_path / 'merged'}: cannot write (No space left on device); free some space")


def test_what_came_to_be_at_the_place_meanwhile_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "merged"
    path.mkdir()
    with atomic_directory(path, replace=False) as temporary:  # an empty directory is none
        (temporary / "new").write_text("new")
    meanwhile = pytest.raises(StoreError, match="meanwhile, and is kept; give a new directory")
    with meanwhile, atomic_directory(path, replace=False) as temporary:
        (temporary / "newer").write_text("newer")
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["merged"]


def test_a_directory_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StoreError, match="Not a directory"), atomic_directory(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "kept"
    assert os.listdir(tmp_path) == ["file"]


# A study begins, goes on, and is refused


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"adapter": {"lora_alpha": 16, "targets": "all-linear"}},
        {"design": {"kind": "grid", "over": {"r": [4, 8], "learning_rate": [1e-4, 1e-5]}}},
        {"design": {"kind": "ablation", "over": {"bias": ["none", "all"]}}, "seeds": [0, 2**63 - 1]},
        {"train": {"max_grad_norm": 0.5}, "design": {"kind": "list", "trials": [{"max_grad_norm": 2.0}]}},
        {"task": {"name": "files", "data": {"train": "größe.jsonl", "test": "b"}, "labels": ["no", "null", "1"]}},
    ],
)
def test_a_study_comes_back_from_the_database_and_from_its_file(tmp_path: Path, sections: dict[str, Any]) -> None:
    study = make_study(**sections)
    with Store.create(tmp_path, study) as created:
        created.set_info("versions", {"torch": "2.13.0", "text": "two\nlines # and a mark"})
    with Store.open(tmp_path) as opened:
        assert opened.study == study
        assert opened.study_hash == study.hash
    assert load_study(tmp_path / "study.yaml") == study
    assert "2.13.0" in (tmp_path / "study.yaml").read_text(encoding="utf-8")


def test_a_second_run_without_resume_is_refused(store: Store, study: Study) -> None:
    store.close()
    with pytest.raises(StoreError, match="holds a study already; add --resume to go on, or --out"):
        Store.create(store.directory, study)
    assert len(reopened(store).trials()) == 2


def test_resuming_another_study_names_what_differs(store: Store) -> None:
    store.close()
    other = make_study(train={"epochs": 7}, seeds=[1], name="renamed")
    with pytest.raises(StoreError, match=r"these sections differ: train, seeds;"):
        Store.create(store.directory, other, resume=True)


def test_resuming_removes_what_a_killed_process_left_half_written(tmp_path: Path, study: Study) -> None:
    Store.create(tmp_path / "run", study).close()
    half = tmp_path / "run" / "trials" / "one" / ".0123456789abcdef.part"
    half.mkdir(parents=True)
    (half / "adapter_model.safetensors").write_text("half")
    (tmp_path / "run" / ".fedcba9876543210.part").write_text("half")
    (tmp_path / "run" / "trials" / "one" / "predictions.jsonl").write_text("whole")
    Store.create(tmp_path / "run", study, resume=True).close()
    assert not list((tmp_path / "run").rglob("*.part"))
    assert (tmp_path / "run" / "trials" / "one" / "predictions.jsonl").read_text() == "whole"


def test_resuming_keeps_everything_and_interrupts_what_was_running(store: Store, study: Study, trial: str) -> None:
    other = make_trials(study)[1].trial
    store.update(trial, status="running", train_seconds=1.5)
    store.update(other, status="done")
    store.close()
    with Store.create(store.directory, make_study(name="renamed"), resume=True) as resumed:
        resumed.add_trials(make_trials(study, (42, 1337, 2024)))
        rows = resumed.trials()
        assert resumed.study == study
    assert [row.status for row in rows] == ["interrupted", "done", "planned"]
    assert [row.seed for row in rows] == [42, 1337, 2024]
    assert rows[0].train_seconds == 1.5


def test_resuming_where_nothing_was_begun_begins(tmp_path: Path, study: Study) -> None:
    with Store.create(tmp_path / "run", study, resume=True) as created:
        assert created.trials() == []


def test_a_directory_with_other_files_is_refused(tmp_path: Path, study: Study) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match=r"'thesis\.tex'"):
        Store.create(tmp_path, study, resume=True)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_process_killed_before_the_first_row_does_not_block_a_new_start(tmp_path: Path, study: Study) -> None:
    (tmp_path / "study.lock").touch()
    (tmp_path / "study.sqlite").touch()
    with pytest.raises(UsageError, match="no study"):
        Store.open(tmp_path)
    with Store.create(tmp_path, study) as created:
        assert created.study == study


def test_two_writers_are_refused(store: Store, study: Study) -> None:
    with pytest.raises(StoreError, match="in use by another process"):
        Store.create(store.directory, study, resume=True)
    store.close()
    Store.create(store.directory, study, resume=True).close()


def test_a_writer_in_another_process_is_refused_and_a_reader_is_not(store: Store, study: Study) -> None:
    program = """
import sys
from pathlib import Path
from lorascope.config import Study
from lorascope.errors import StoreError
from lorascope.store import Store
directory, study = Path(sys.argv[1]), Study.model_validate_json(sys.argv[2])
print(len(Store.open(directory).trials()))
try:
    Store.create(directory, study, resume=True)
except StoreError as error:
    print(error)
"""
    output, _ = run_python(program, store.directory, study.model_dump_json()).communicate(timeout=60)
    count, refusal = output.splitlines()
    assert count == "2"
    assert "in use by another process" in refusal


def test_opening_where_no_study_is_names_the_directory(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match="no study") as caught:
            Store.open(directory)
        assert str(directory) in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_damaged_database_is_one_line(store: Store, study: Study) -> None:
    store.close()
    (store.directory / "study.sqlite").write_bytes(b"no database at all " * 500)
    with pytest.raises(StoreError, match="not a database") as caught:
        Store.open(store.directory)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="not a database"):
        Store.create(store.directory, study, resume=True)


def test_a_damaged_page_is_one_line(store: Store, trial: str) -> None:
    store.add_steps(trial, [{"step": step, "loss": 0.5} for step in range(2000)])
    store.close()
    database = store.directory / "study.sqlite"
    content = bytearray(database.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    database.write_bytes(content)
    with pytest.raises(StoreError, match="database"), Store.open(store.directory) as opened:
        opened.steps(trial)


def test_a_database_of_another_version_is_refused(store: Store) -> None:
    store.close()
    change_database(store, "PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="another version"):
        Store.open(store.directory)
    change_database(store, "PRAGMA user_version = 1")
    change_database(store, 'UPDATE study SET definition = \'{"name": "x"}\'')
    with pytest.raises(StoreError, match="another version"):
        Store.open(store.directory)


# Killed, full, busy


def test_kill_minus_nine_loses_nothing_that_was_committed(tmp_path: Path, study: Study) -> None:
    program = """
import sys
from pathlib import Path
from lorascope.config import Study, TrialConfig
from lorascope.store import Store
study = Study.model_validate_json(sys.argv[2])
trial = TrialConfig(base=study.base, adapter=study.adapter, train=study.train, seed=42)
store = Store.create(Path(sys.argv[1]), study)
store.add_trials([trial])
store.update(trial.trial, status="running")
step = 0
while True:
    store.add_steps(trial.trial, [{"step": step, "loss": step / 7}])
    print(step, flush=True)
    step += 1
"""
    directory = tmp_path / "run"
    process = run_python(program, directory, study.model_dump_json())
    assert process.stdout is not None
    printed = [int(process.stdout.readline()) for _ in range(25)]
    process.send_signal(signal.SIGKILL)
    printed += [int(line) for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    assert process.wait(timeout=60) == -signal.SIGKILL

    name = make_trials(study)[0].trial
    with Store.open(directory) as opened:
        steps = opened.steps(name)
        assert opened.trials()[0].status == "running"
    assert [row["step"] for row in steps] == list(range(len(steps)))
    assert len(steps) >= len(printed)
    assert all(row["loss"] == row["step"] / 7 for row in steps)
    with Store.create(directory, study, resume=True) as resumed:
        assert resumed.trials()[0].status == "interrupted"


def test_a_reader_undoes_the_transaction_that_a_killed_writer_left_half_written(store: Store, trial: str) -> None:
    store.add_steps(trial, [{"step": 0, "loss": 1.0}])
    store.close()
    # A cache of one page makes SQLite write to the file before the commit.
    program = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
rows = [(sys.argv[2], step, 2.0) for step in range(20_000)]
connection.executemany("INSERT OR REPLACE INTO steps (trial, step, loss) VALUES (?, ?, ?)", rows)
os.kill(os.getpid(), signal.SIGKILL)
"""
    database = store.directory / "study.sqlite"
    size = database.stat().st_size
    process = run_python(program, database, trial)
    process.communicate(timeout=60)
    assert database.stat().st_size > size
    assert (store.directory / "study.sqlite-journal").stat().st_size > 0
    assert [(row["step"], row["loss"]) for row in reopened(store).steps(trial)] == [(0, 1.0)]


def test_a_full_disk_is_one_line_and_keeps_what_was_committed(store: Store, trial: str) -> None:
    store.add_steps(trial, [{"step": 0, "loss": 1.0}])
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"full\); free some space") as caught:
        store.add_steps(trial, [{"step": step, "loss": 2.0} for step in range(20_000)])
    assert str(store.directory) in str(caught.value)
    assert [row["loss"] for row in store.steps(trial)] == [1.0]
    store._connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
    store.update(trial, status="done")
    assert reopened(store).trials()[0].status == "done"


def test_a_busy_database_is_one_line(store: Store, trial: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    store.close()
    other = sqlite3.connect(store.directory / "study.sqlite", isolation_level=None)
    try:
        with Store.create(store.directory, store.study, resume=True) as writer:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match=r"locked\); let the process"):
                writer.update(trial, status="done")
            other.execute("ROLLBACK")
            writer.update(trial, status="done")
            assert writer.trials()[0].status == "done"
    finally:
        other.close()


def test_a_store_opened_for_reading_refuses_to_write(store: Store, trial: str) -> None:
    with Store.open(store.directory) as opened, pytest.raises(StoreError, match="reading only"):
        opened.update(trial, status="done")
    assert store.trials()[0].status == "planned"


def test_a_reader_sees_a_commit_at_once(store: Store, trial: str) -> None:
    with Store.open(store.directory) as reader:
        assert reader.trials()[0].metrics == {}
        store.set_metrics(trial, {"accuracy": 0.5})
        assert reader.trials()[0].metrics == {"accuracy": 0.5}


def test_closing_twice_is_harmless(store: Store) -> None:
    store.close()
    store.close()
    assert reopened(store).trials()


# What a trial holds


def test_a_planned_trial_has_no_figures(store: Store, study: Study) -> None:
    row = store.trials()[0]
    assert (row.trial, row.seed, row.status) == (make_trials(study)[0].trial, 42, "planned")
    assert row.config == make_trials(study)[0].flat()
    assert row.metrics == row.rungs == {}
    figures = set(vars(row)) - {"trial", "seed", "status", "config", "metrics", "rungs"}
    assert {name: getattr(row, name) for name in figures} == dict.fromkeys(figures)
    assert row.trainable_percent is None


def test_every_figure_comes_back(store: Store, trial: str) -> None:
    figures: dict[str, Any] = {
        "trainable_params": 294_912,
        "total_params": 124_734_720,
        "peft_total_params": 124_734_721,
        "train_seconds": 1.25,
        "examples_per_second": 0.1,
        "peak_memory_bytes": 2**40,
        "solo_train_seconds_per_epoch": 3.5,
        "solo_examples_per_second": 1e-300,
        "solo_peak_memory_bytes": 7,
        "adapter": "trials/x/adapter",
        "data_checksum": "d",
        "base_checksum": "b",
        "cohort": "0",
        "error": "diverged at step 3",
    }
    store.update(trial, status="done", **figures)
    row = reopened(store).trials()[0]
    assert row.status == "done"
    assert {name: getattr(row, name) for name in figures} == figures
    assert row.trainable_percent == pytest.approx(0.2364, abs=5e-5)
    store.update(trial, error=None, train_seconds=math.inf)
    row = store.trials()[0]
    assert (row.error, row.train_seconds, row.cohort) == (None, None, "0")


def test_numbers_of_numpy_are_numbers(store: Store, trial: str) -> None:
    numpy = pytest.importorskip("numpy")
    store.update(trial, trainable_params=numpy.int64(3), train_seconds=numpy.float32(0.5))
    store.set_metrics(trial, {"accuracy": numpy.float64(0.1), "f1": numpy.float32("nan")})
    row = store.trials()[0]
    assert (row.trainable_params, row.train_seconds, row.metrics["accuracy"]) == (3, 0.5, 0.1)
    assert math.isnan(row.metrics["f1"])


def test_a_column_or_status_that_is_none_is_refused(store: Store, trial: str) -> None:
    with pytest.raises(TypeError, match="no column 'seed'"):
        store.update(trial, seed=3)
    with pytest.raises(TypeError, match="whole number"):
        store.update(trial, trainable_params=3.5)
    with pytest.raises(ValueError, match="'finished' is none of planned, running"):
        store.update(trial, status="finished")
    with pytest.raises(TypeError, match="step has"):
        store.add_steps(trial, [{"step": 1, "lost": 0.5}])
    with pytest.raises(TypeError, match="step has"):
        store.add_steps(trial, [{"loss": 0.5}])


def test_a_trial_that_is_not_there_is_refused(store: Store) -> None:
    for write in (
        lambda: store.update("absent", status="done"),
        lambda: store.add_steps("absent", [{"step": 1}]),
        lambda: store.set_metrics("absent", {"accuracy": 1.0}),
        lambda: store.add_warning("absent", "nan", 1, "x", "y"),
        lambda: store.clear_trial("absent"),
    ):
        with pytest.raises(StoreError, match="no trial 'absent'"):
            write()


def test_adding_a_trial_again_leaves_it_untouched(store: Store, study: Study, trial: str) -> None:
    store.update(trial, status="done")
    store.add_trials(make_trials(study))
    assert [row.status for row in store.trials()] == ["done", "planned"]


def test_two_configurations_of_one_name_are_refused(store: Store, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrialConfig, "configuration", make_trials(study)[0].configuration)
    other = make_study(adapter={"r": 4})
    with pytest.raises(StoreError, match="share this name"):
        store.add_trials(make_trials(other, (2024, 42)))
    assert [row.seed for row in store.trials()] == [42, 1337]


def test_a_step_given_again_replaces_the_earlier_one(store: Store, trial: str) -> None:
    store.add_steps(trial, [{"step": 2, "loss": 2.0, "tokens": 5}, {"step": 1, "loss": 3.0}])
    store.add_steps(trial, [{"step": 2, "loss": 1.0}])
    assert [(row["step"], row["loss"], row["tokens"]) for row in store.steps(trial)] == [(1, 3.0, None), (2, 1.0, None)]


def test_a_trial_that_starts_again_forgets_its_curves_and_no_other_trials(store: Store, study: Study, trial: str) -> None:
    other = make_trials(study)[1].trial
    for name in (trial, other):
        store.add_steps(name, [{"step": 1, "loss": 3.0}])
        store.set_metrics(name, {"accuracy": 0.5})
        store.add_warning(name, "truncated", 3, "train", "cut")
    store.add_warning(None, "fallback", 1, "cpu", "slow path")
    store.clear_trial(trial)
    assert (store.steps(trial), len(store.steps(other))) == ([], 1)
    assert [row.metrics for row in store.trials()] == [{}, {"accuracy": 0.5}]
    assert [warning["trial"] for warning in store.warnings()] == [other, None]


def test_a_trial_that_goes_on_keeps_its_curves_up_to_there(store: Store, trial: str) -> None:
    store.add_steps(trial, [{"step": step, "loss": 3.0} for step in range(5)])
    store.set_metrics(trial, {"accuracy": 0.5})
    store.clear_trial(trial, first_step=3)
    assert [row["step"] for row in store.steps(trial)] == [0, 1, 2]
    assert store.trials()[0].metrics == {}


def test_a_warning_keeps_its_count_and_place(store: Store, trial: str) -> None:
    store.add_warning(trial, "truncated", 3, "train, example 7", "the target was cut")
    assert store.warnings() == [
        {
            "trial": trial,
            "kind": "truncated",
            "count": 3,
            "where": "train, example 7",
            "message": "the target was cut",
        }
    ]


def test_an_info_is_replaced_and_an_absent_one_is_none(store: Store) -> None:
    store.set_info("versions", {"torch": "1"})
    store.set_info("versions", {"torch": "2", "cores": [1, None]})
    assert store.info("versions") == {"torch": "2", "cores": [1, None]}
    assert store.info("absent") is None


@given(metrics=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.floats()))
def test_metrics_come_back_bit_for_bit_and_no_number_as_nan(metrics: dict[str, float]) -> None:
    study = make_study()
    name = make_trials(study)[0].trial
    with scratch_store(study) as store:
        store.set_metrics(name, metrics)
        back = store.trials()[0].metrics
        document = json.dumps(results_document([store]), allow_nan=False)
    assert back.keys() == metrics.keys()
    for key, value in metrics.items():
        assert back[key] == value if math.isfinite(value) else math.isnan(back[key])
    in_json = json.loads(document)["trials"][0]["metrics"]
    assert in_json == {key: value if math.isfinite(value) else None for key, value in metrics.items()}


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"step": SQLITE_INTEGERS},
            optional={"loss": st.floats(), "grad_norm": FINITE, "seconds": FINITE, "tokens": SQLITE_INTEGERS},
        ),
        max_size=8,
    )
)
def test_steps_come_back_bit_for_bit_in_order(rows: list[dict[str, float | int]]) -> None:
    study = make_study()
    name = make_trials(study)[0].trial
    with scratch_store(study) as store:
        store.add_steps(name, rows)
        back = store.steps(name)
    expected = {row["step"]: row for row in rows}
    assert [row["step"] for row in back] == sorted(expected)
    for row in back:
        for key in ("loss", "grad_norm", "seconds", "tokens", "epoch", "learning_rate"):
            value = expected[row["step"]].get(key)
            assert row[key] == (value if value is not None and math.isfinite(value) else None)


# Shards and the results document


def test_of_several_shards_the_most_advanced_row_counts(tmp_path: Path, study: Study, trial: str) -> None:
    order = ("planned", "running", "interrupted", "failed", "done")
    for lower, higher in pairwise(order):
        for first, second in ((lower, higher), (higher, lower)):
            directory = tmp_path / f"{first}-{second}"
            with shard(directory / "a", study, first) as a, shard(directory / "b", study, second) as b:
                rows = merge_results([a, b])
            assert [row.status for row in rows] == [higher, "planned"]


def test_every_status_can_be_merged() -> None:
    assert results._ADVANCE.keys() == set(STATUSES)


def test_shards_of_different_studies_are_refused(store: Store, tmp_path: Path) -> None:
    other = make_study(seeds=[1])
    with shard(tmp_path / "other", other, "done") as second, pytest.raises(UsageError, match="another study than in"):
        merge_results([store, second])
    with pytest.raises(UsageError, match="no study given"):
        results_document([])


def test_the_results_document_has_the_published_keys(store: Store, study: Study, trial: str) -> None:
    store.update(trial, status="done", trainable_params=1, total_params=4, adapter="trials/x/adapter", cohort="0")
    store.set_metrics(trial, {"accuracy": 0.5, "f1": math.nan})
    document = results_document([store])
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert list(document) == ["study", "trials", "shapley", "judge", "cohorts", "warnings"]
    assert (document["study"], document["shapley"]) == ("a-study", {})
    assert document["trials"][0] == {
        "trial": trial,
        "seed": 42,
        "status": "done",
        "config": make_trials(study)[0].flat(),
        "trainable_params": 1,
        "total_params": 4,
        "peft_total_params": None,
        "trainable_percent": 25.0,
        "metrics": {"accuracy": 0.5, "f1": None},
        "rungs": [],
        "decoding": [],
        "train_seconds": None,
        "examples_per_second": None,
        "peak_memory_bytes": None,
        "solo_train_seconds_per_epoch": None,
        "solo_examples_per_second": None,
        "solo_peak_memory_bytes": None,
        "adapter": "trials/x/adapter",
        "error": None,
    }


def test_shards_that_were_trained_on_other_data_or_weights_are_not_merged(tmp_path: Path, study: Study) -> None:
    with shard(tmp_path / "a", study, "done") as a, shard(tmp_path / "b", study, "done") as b:
        name = a.trials()[0].trial
        for column, what in (("data_checksum", "data"), ("base_checksum", "base weights")):
            a.update(name, **{column: "one"})
            b.update(name, **{column: "other"})
            with pytest.raises(UsageError, match=f"different {what}"):
                results_document([a, b])
            b.update(name, **{column: "one"})
        assert len(results_document([a, b])["trials"]) == len(a.trials())


def test_with_several_directories_an_adapter_says_in_which_it_lies(tmp_path: Path, study: Study) -> None:
    with shard(tmp_path / "a", study, "planned") as a, shard(tmp_path / "b", study, "done") as b:
        b.update(b.trials()[0].trial, adapter="trials/x/adapter")
        assert results_document([b])["trials"][0]["adapter"] == "trials/x/adapter"
        adapters = [entry["adapter"] for entry in results_document([a, b])["trials"]]
    assert adapters == [(tmp_path / "b" / "trials/x/adapter").as_posix(), None]


def shard(directory: Path, study: Study, status: str) -> Store:
    created = Store.create(directory, study)
    created.add_trials(make_trials(study))
    created.update(make_trials(study)[0].trial, status=status)
    return created


@contextmanager
def scratch_store(study: Study) -> Iterator[Store]:
    """A store in a directory of its own: a hypothesis test cannot take function-scoped fixtures."""
    with tempfile.TemporaryDirectory() as directory, Store.create(Path(directory), study) as created:
        created.add_trials(make_trials(study))
        yield created


def reopened(store: Store) -> Store:
    """What is on disk now, as another process would find it."""
    copy = Store.open(store.directory)
    _opened.append(copy)
    return copy


_opened: list[Store] = []


@pytest.fixture(autouse=True)
def _close_what_was_reopened() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def change_database(store: Store, statement: str) -> None:
    connection = sqlite3.connect(store.directory / "study.sqlite", isolation_level=None)
    connection.execute(statement)
    connection.close()


def test_the_plan_of_a_cohort_is_kept_and_replaced_where_it_stands(store: Store) -> None:
    store.set_cohort("c1", {"trials": ["a"], "measured_peak_bytes": None})
    store.set_cohort("c2", {"trials": ["b"]})
    store.set_cohort("c1", {"trials": ["a"], "measured_peak_bytes": 7})
    assert list(store.cohorts().items()) == [("c1", {"trials": ["a"], "measured_peak_bytes": 7}), ("c2", {"trials": ["b"]})]
    assert results_document([store])["cohorts"][0] == {"cohort": "c1", "trials": ["a"], "measured_peak_bytes": 7}


def test_a_study_begun_before_there_were_plans_has_none_and_can_be_resumed(tmp_path: Path, study: Study) -> None:
    with Store.create(tmp_path / "old", study):
        pass
    with sqlite3.connect(tmp_path / "old" / store_module.DATABASE) as connection:
        connection.execute("DROP TABLE cohorts")
    connection.close()
    with Store.open(tmp_path / "old") as old:
        assert old.cohorts() == {}
    with Store.create(tmp_path / "old", study, resume=True) as resumed:
        resumed.set_cohort("c1", {})
        assert resumed.cohorts() == {"c1": {}}


def test_what_each_decoding_gave_is_kept_in_order_and_replaced_as_a_whole(store: Store, trial: str) -> None:
    store.set_decodings(trial, [{"label": "old", "metrics": {}}] * 3)
    store.set_decodings(trial, [{"label": "b", "metrics": {"rouge_l": math.nan}}, {"label": "a", "metrics": {"rouge_l": 0.5}}])
    expected = [{"label": "b", "metrics": {"rouge_l": None}}, {"label": "a", "metrics": {"rouge_l": 0.5}}]
    assert store.decodings(trial) == expected
    assert results_document([store])["trials"][0]["decoding"] == expected
    store.clear_trial(trial)
    assert store.decodings(trial) == []


def test_rungs_come_back_by_step_and_those_after_a_restart_are_forgotten(store: Store, trial: str) -> None:
    for step in (16, 4):
        store.set_rung(trial, step, {"eval_loss": step / 2, "accuracy": math.nan})
    rungs = store.trials()[0].rungs
    assert {step: metrics["eval_loss"] for step, metrics in rungs.items()} == {4: 2.0, 16: 8.0}
    assert math.isnan(rungs[4]["accuracy"])
    store.clear_trial(trial, 4)
    assert list(store.trials()[0].rungs) == [4]


def test_a_study_begun_before_decodings_were_kept_has_none_and_can_be_resumed(tmp_path: Path, study: Study) -> None:
    with Store.create(tmp_path / "old", study) as store:
        store.add_trials(make_trials(study))
    with sqlite3.connect(tmp_path / "old" / store_module.DATABASE) as connection:
        connection.execute("DROP TABLE decodings")
    connection.close()
    name = make_trials(study)[0].trial
    with Store.open(tmp_path / "old") as old:
        assert old.decodings(name) == []
    with Store.create(tmp_path / "old", study, resume=True) as resumed:
        resumed.set_decodings(name, [{"label": "greedy"}])
        assert resumed.decodings(name) == [{"label": "greedy"}]


def test_the_judge_of_a_study_stands_in_its_results(store: Store) -> None:
    assert results_document([store])["judge"] is None
    store.set_info("judge", {"model": "some/nli", "checksum": "a", "check": None})
    assert results_document([store])["judge"] == {"model": "some/nli", "checksum": "a", "check": None}


def test_shards_that_different_judges_scored_are_refused(study: Study, tmp_path: Path) -> None:
    with shard(tmp_path / "a", study, "done") as one, shard(tmp_path / "b", study, "done") as other:
        one.set_info("judge", {"checksum": "a"})
        assert results_document([one, other])["judge"] == {"checksum": "a"}
        other.set_info("judge", {"checksum": "b"})
        with pytest.raises(UsageError, match="judged by different models"):
            results_document([one, other])
