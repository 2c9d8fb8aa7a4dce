"""Trackers: what the services' own readers find in what was written, and that none of them can disturb a study."""

import errno
import importlib.util
import json
import logging
import math
import os
import shutil
import sqlite3
import struct
import threading
import warnings
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.errors import UsageError
from lorascope.tracking import TRACKERS, Origin, Tracking, check_installed

CONFIG = {"r": 8, "learning_rate": 1e-3, "targets": ["query", "value"], "use_rslora": False, "seed": 1, "revision": None}
ROWS = [(step, {"training/loss": 1.0 / (step + 1), "training/learning_rate": 1e-3}) for step in range(5)]
METHODS = ("begin", "log", "summary", "end")


@pytest.fixture(scope="module", autouse=True)
def nobodys_services(tmp_path_factory):
    """No key, mode or server of whoever runs the tests."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("WANDB_", "MLFLOW_")):
                patch.delenv(name)
        patch.setenv("NETRC", str(home / "netrc"))
        # They look for settings of their own below the home directory.
        patch.setenv("HOME", str(home))
        # The trackers set these for the process; noted here so that they go with the tests.
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield


def origin_in(directory):
    directory.mkdir()
    return Origin("tiny", "lab", directory, "0a1b2c3d", {"task": "sst2", "base": "minilm"})


@pytest.fixture
def origin(tmp_path):
    return origin_in(tmp_path / "study")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The study of three trackers and two trials, the second of which diverged; only to be read."""
    origin = origin_in(tmp_path_factory.mktemp("finished") / "study")
    tracking = Tracking.to(list(TRACKERS), origin)
    carry_out(tracking)
    carry_out(tracking, "f00-s2", [*ROWS[:4], (4, {"training/loss": math.nan, "training/grad_norm": math.inf})], "diverged")
    assert tracking.take_failures() == []
    return origin


@pytest.fixture(scope="module")
def empty_database(finished, tmp_path_factory):
    """MLflow's tables with nothing of ours in them: making them takes seconds."""
    database = tmp_path_factory.mktemp("mlflow") / "empty.db"
    shutil.copy(finished.directory / "mlflow.db", database)
    with closing(sqlite3.connect(database)) as connection:
        tables = "latest_metrics", "metrics", "params", "tags", "runs", "experiment_tags"
        for table in tables:
            connection.execute(f"DELETE FROM {table}")
        connection.execute("DELETE FROM experiments WHERE name = 'lab/tiny'")
        connection.commit()
    return database


def carry_out(tracking, trial="f00-s1", rows=ROWS, status="done"):
    tracking.begin(trial, CONFIG)
    tracking.log(trial, rows[:3])
    tracking.log(trial, rows[3:])
    tracking.summary(trial, {"eval/accuracy": 0.875, "eval/perplexity": math.inf})
    tracking.end(trial, status)


def wandb_records(path):
    """The records of a ``.wandb`` file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    records, place, message = [], 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + 7 : place + 7 + length]
        place += 7 + length
        message = part if kind in (1, 2) else message + part
        if kind in (1, 4):
            records.append(Record.FromString(message))
    return records


def wandb_run(directory, trial="f00-s1"):
    """(the run's record, history by step, summary) of the one offline run of a trial."""
    (path,) = directory.glob(f"wandb/offline-run-*-{trial}-0a1b2c3d/run-*.wandb")
    history, summary, run, exit_code = {}, {}, None, None
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json.replace("NaN", "null"))
                for item in record.history.item
            }
            history[values["_step"]] = values
        elif kind == "summary":
            summary |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "run":
            run = record.run
        elif kind == "exit":
            exit_code = record.exit.exit_code
    return run, history, summary, exit_code


def tensorboard_run(directory, trial="f00-s1"):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory / "tensorboard" / trial))
    accumulator.Reload()
    scalars = {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}
    return accumulator, scalars


def mlflow_runs(uri, experiment="lab/tiny"):
    from mlflow.tracking import MlflowClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        runs = client.search_runs([found.experiment_id])
        curves = {
            run.info.run_name: [
                (metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "training/loss")
            ]
            for run in runs
        }
    return {run.info.run_name: run for run in runs}, curves


def store_uri(origin):
    return f"sqlite:///{origin.directory.resolve() / 'mlflow.db'}"


def test_wandb_offline_writes_a_run_that_holds_every_value(finished):
    run, history, summary, exit_code = wandb_run(finished.directory)
    assert (run.project, run.run_group, run.display_name, run.run_id) == ("lab", "tiny", "f00-s1", "f00-s1-0a1b2c3d")
    assert sorted(run.tags) == ["base:minilm", "task:sst2"]
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert {step: values["training/loss"] for step, values in history.items()} == {
        step: values["training/loss"] for step, values in ROWS
    }
    assert (summary["eval/accuracy"], summary["status"], exit_code) == (0.875, "done", 0)
    assert "eval/perplexity" not in summary


def test_tensorboard_reads_every_value_and_the_hyper_parameters(finished):
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    accumulator, scalars = tensorboard_run(finished.directory)
    assert scalars["training/loss"] == [(step, pytest.approx(values["training/loss"], rel=1e-6)) for step, values in ROWS]
    assert scalars["eval/accuracy"] == [(4, 0.875)]
    assert set(scalars) == {"training/loss", "training/learning_rate", "eval/accuracy"}
    contents = accumulator.PluginTagToContent("hparams")
    parse = plugin_data_pb2.HParamsPluginData.FromString
    started = parse(contents[metadata.SESSION_START_INFO_TAG]).session_start_info
    assert started.group_name == "f00"
    assert set(started.hparams) == {"r", "learning_rate", "targets", "use_rslora"}
    assert started.hparams["r"].number_value == 8
    assert started.hparams["targets"].string_value == '["query", "value"]'
    ended = parse(contents[metadata.SESSION_END_INFO_TAG]).session_end_info
    assert ended.end_time_secs >= started.start_time_secs > 0


def test_mlflow_reads_every_value_from_the_studys_own_database(finished):
    runs, curves = mlflow_runs(store_uri(finished))
    assert curves["f00-s1"] == [(step, values["training/loss"]) for step, values in ROWS]
    run = runs["f00-s1"]
    assert (run.info.status, runs["f00-s2"].info.status) == ("FINISHED", "FAILED")
    assert run.data.metrics["eval/accuracy"] == 0.875
    assert run.data.params == {
        "r": "8", "learning_rate": "0.001", "targets": '["query", "value"]', "use_rslora": "false", "seed": "1",
        "revision": "null",
    }  # fmt: skip
    assert {key: run.data.tags[f"lorascope.{key}"] for key in ("task", "base", "status", "run")} == {
        "task": "sst2", "base": "minilm", "status": "done", "run": "f00-s1-0a1b2c3d",
    }  # fmt: skip
    assert run.info.artifact_uri.startswith((finished.directory / "mlflow-artifacts").as_uri())


def test_a_tracking_server_of_the_environment_is_used(origin, empty_database, monkeypatch, tmp_path):
    shutil.copy(empty_database, tmp_path / "server.db")
    uri = f"sqlite:///{tmp_path / 'server.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    carry_out(Tracking.to(["mlflow"], origin))
    assert list(mlflow_runs(uri)[0]) == ["f00-s1"]
    assert not (origin.directory / "mlflow.db").exists()


def test_a_trial_that_begins_again_has_one_run_with_every_step_once(origin, empty_database):
    shutil.copy(empty_database, origin.directory / "mlflow.db")
    for last, status in ((3, "interrupted"), (5, "done")):
        # As after a kill: another process, other trackers, the steps from the first on.
        tracking = Tracking.to(list(TRACKERS), origin)
        tracking.begin("f00-s1", CONFIG)
        tracking.log("f00-s1", ROWS[:last])
        tracking.end("f00-s1", status)
        assert tracking.take_failures() == []
    expected = [(step, values["training/loss"]) for step, values in ROWS]
    _, history, summary, exit_code = wandb_run(origin.directory)
    assert [(step, values["training/loss"]) for step, values in history.items()] == expected
    assert (summary["status"], exit_code) == ("done", 0)
    assert tensorboard_run(origin.directory)[1]["training/loss"] == [(s, pytest.approx(v, rel=1e-6)) for s, v in expected]
    runs, curves = mlflow_runs(store_uri(origin))
    assert curves == {"f00-s1": expected}
    assert runs["f00-s1"].info.status == "FINISHED"


def test_a_loss_that_is_no_number_does_not_stop_a_tracker(finished):
    assert math.isnan(tensorboard_run(finished.directory, "f00-s2")[1]["training/loss"][-1][1])
    _, history, summary, exit_code = wandb_run(finished.directory, "f00-s2")
    assert (len(history), summary["status"], exit_code) == (5, "diverged", 1)
    assert math.isnan(mlflow_runs(store_uri(finished))[1]["f00-s2"][-1][1])


def test_trackers_leave_no_thread_no_process_and_no_word_behind(origin, empty_database, capfd):
    shutil.copy(empty_database, origin.directory / "mlflow.db")
    threads, children = set(threading.enumerate()), set(psutil.Process().children(recursive=True))
    tracking = Tracking.to(list(TRACKERS), origin)
    for trial in ("f00-s1", "f00-s2"):
        tracking.begin(trial, CONFIG)
    for trial in ("f00-s1", "f00-s2"):
        tracking.log(trial, ROWS)
        tracking.end(trial, "done")
    assert tracking.take_failures() == []
    assert set(threading.enumerate()) == threads
    assert set(psutil.Process().children(recursive=True)) == children
    assert capfd.readouterr() == ("", "")


def test_without_a_key_wandb_goes_offline_and_says_so(origin, monkeypatch, tmp_path):
    (note,) = Tracking.to(["wandb"], origin).notes
    assert str(origin.directory / "wandb") in note
    assert "wandb sync" in note
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    netrc.write_text("machine api.wandb.ai login user password 0123456789\n")
    netrc.chmod(0o600)
    assert Tracking.to(["wandb"], origin).notes == []
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8443/")
    assert len(Tracking.to(["wandb"], origin).notes) == 1
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert Tracking.to(["wandb"], origin).notes == []


def test_an_explicit_mode_of_wandb_is_obeyed_without_a_note(origin, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracking = Tracking.to(["wandb"], origin)
    assert tracking.notes == []
    carry_out(tracking)
    assert tracking.take_failures() == []
    assert not (origin.directory / "wandb").exists()


class Recorder:
    """A tracker that remembers, and raises where it is told to."""

    note = ""

    def __init__(self, origin=None, *, breaks=None, error=None, held=0):
        self.breaks, self.error, self.held = breaks, error or OSError(errno.ENOSPC, "No space left on device"), held
        self.calls, self.steps = [], []

    def _call(self, method, trial):
        self.calls.append((method, trial))
        if method == self.breaks:
            raise self.error

    def begin(self, trial, config):
        self._call("begin", trial)
        return self.held

    def log(self, trial, rows):
        self._call("log", trial)
        self.steps += [step for step, _ in rows]

    def summary(self, trial, metrics):
        self._call("summary", trial)

    def end(self, trial, status):
        self._call("end", trial)


@pytest.mark.parametrize("method", METHODS)
def test_a_tracker_that_raises_is_off_and_the_others_go_on(method):
    broken, whole = Recorder(breaks=method), Recorder()
    tracking = Tracking({"broken": broken, "whole": whole})
    for trial in ("f00-s1", "f00-s2"):
        carry_out(tracking, trial)
    (failure,) = tracking.take_failures()
    assert failure.startswith("broken fails and is off for the rest of the study (OSError: ")
    assert "No space left on device" in failure
    assert tracking.take_failures() == []
    assert [call for call in broken.calls if call[1] == "f00-s2"] == []
    assert [call for call, _ in whole.calls] == ["begin", "log", "log", "summary", "end"] * 2
    assert tracking.open_trials == []


def test_a_tracker_that_is_switched_off_has_its_open_runs_closed():
    broken = Recorder(breaks="log")
    tracking = Tracking({"broken": broken})
    tracking.begin("f00-s1", CONFIG)
    tracking.begin("f00-s2", CONFIG)
    tracking.log("f00-s1", ROWS)
    assert broken.calls[-2:] == [("end", "f00-s1"), ("end", "f00-s2")]
    assert not tracking


def test_ctrl_c_inside_a_tracker_is_the_users_not_the_trackers():
    tracking = Tracking({"slow": Recorder(breaks="begin", error=KeyboardInterrupt())})
    with pytest.raises(KeyboardInterrupt):
        tracking.begin("f00-s1", CONFIG)
    assert tracking


def test_a_full_disk_switches_tensorboard_off(origin, monkeypatch):
    tracking = Tracking.to(["tensorboard"], origin)
    full = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: full(Path("/dev/full"), "wb"))
    carry_out(tracking)
    (failure,) = tracking.take_failures()
    assert "tensorboard fails" in failure
    assert "No space left on device" in failure


def test_a_place_that_cannot_be_written_switches_every_tracker_off(origin):
    for name in ("wandb", "tensorboard", "mlflow.db"):
        (origin.directory / name).write_text("no directory, and no database")
    tracking = Tracking.to(["tensorboard", "mlflow"], origin)
    carry_out(tracking)
    assert sorted(failure.partition(" ")[0] for failure in tracking.take_failures()) == ["mlflow", "tensorboard"]


def test_warnings_and_log_lines_of_a_tracker_are_not_shown(capfd):
    class Loud(Recorder):
        def begin(self, trial, config):
            warnings.warn("an old way of saying it", DeprecationWarning, stacklevel=1)
            logging.getLogger("loud").error("something is said")
            return 0

    loud = Loud()
    tracking = Tracking({"loud": loud})
    carry_out(tracking)
    assert tracking.take_failures() == []
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == 0
    with pytest.raises(DeprecationWarning):
        warnings.warn("an old way of saying it", DeprecationWarning, stacklevel=1)


@given(held=st.integers(0, 12), chunks=st.lists(st.tuples(st.integers(0, 10), st.integers(0, 6)), max_size=8))
def test_no_step_is_sent_twice_nor_one_that_the_run_holds(held, chunks):
    recorder = Recorder(held=held)
    tracking = Tracking({"recorder": recorder})
    tracking.begin("f00-s1", CONFIG)
    wanted = []
    for start, length in chunks:
        steps = range(start, start + length)
        wanted += [step for step in steps if step >= held and step > max(wanted, default=-1)]
        tracking.log("f00-s1", [(step, {"training/loss": 1.0}) for step in steps])
    assert recorder.steps == wanted


def test_a_trial_that_nobody_began_is_left_alone():
    recorder = Recorder()
    tracking = Tracking({"recorder": recorder})
    tracking.log("f00-s1", ROWS)
    tracking.summary("f00-s1", {"eval/accuracy": 1.0})
    tracking.end("f00-s1", "done")
    assert recorder.calls == []
    assert tracking.take_failures() == []


@pytest.mark.parametrize("name", list(TRACKERS))
def test_a_package_that_is_missing_is_named_with_how_to_get_it(name, monkeypatch):
    check_installed([name])
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UsageError, match=rf'{name} is not installed; pip install "lorascope\[{name}\]"'):
        check_installed([name])
