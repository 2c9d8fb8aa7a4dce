"""A study with trackers: nothing of it changes, whatever they do, and they are sent what the store holds."""

import errno
import importlib.util
import math

import pytest
import torch

from lorascope import tracking
from lorascope.cohort import tracked
from lorascope.cohort.events import CohortStarted, TrialEnded
from lorascope.cohort.run import run_study
from lorascope.cohort.tracked import follow
from lorascope.design import expand
from lorascope.errors import UsageError
from lorascope.lora.peft_io import read_adapter
from lorascope.store import Store
from lorascope.tracking import Tracking
from lorascope.train import SlotStep, StepResult

METHODS = ("begin", "log", "summary", "end")


class Recorder:
    """A tracker that remembers what it was sent, and raises where it is told to."""

    note = ""
    breaks = None

    def __init__(self, origin):
        self.origin = origin
        self.configs, self.rows, self.figures, self.statuses = {}, {}, {}, {}

    def _may_break(self, method):
        if method == self.breaks:
            raise OSError(errno.ENOSPC, "No space left on device")

    def begin(self, trial, config):
        self._may_break("begin")
        self.configs[trial] = config
        self.rows.setdefault(trial, [])
        return 0

    def log(self, trial, rows):
        self._may_break("log")
        self.rows[trial] += [(step, dict(metrics)) for step, metrics in rows]

    def summary(self, trial, metrics):
        self._may_break("summary")
        self.figures[trial] = dict(metrics)

    def end(self, trial, status):
        self._may_break("end")
        self.statuses[trial] = status


@pytest.fixture
def recorders(monkeypatch):
    """The recorders that studies with ``tracking: {to: [tensorboard]}`` get, in order."""
    made = []

    def make(origin):
        made.append(Recorder(origin))
        return made[-1]

    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", make)
    return made


def with_tracker(study, name="tensorboard"):
    return study.model_copy(update={"tracking": study.tracking.model_copy(update={"to": [name]})})


def tracking_warnings(directory):
    with Store.open(directory) as store:
        return [row["message"] for row in store.warnings() if row["kind"] == "tracking"]


def test_a_tracker_is_sent_what_the_store_holds(make_study, carry_out, rows_of, recorders, tmp_path):
    study = make_study("bert", [{}, {"r": 4, "targets": "all-linear"}])
    carry_out(with_tracker(study), tmp_path / "run")
    (recorder,) = recorders
    assert (recorder.origin.study, recorder.origin.directory) == ("tiny", tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert recorder.statuses == {row.trial: "done" for row in rows}
    with Store.open(tmp_path / "run") as store:
        for row in rows:
            assert recorder.configs[row.trial] == {**row.config, "seed": 1}
            steps = store.steps(row.trial)
            assert len(steps) == 10
            assert recorder.rows[row.trial] == [
                (
                    step["step"],
                    {
                        "training/loss": step["loss"],
                        "training/grad_norm": step["grad_norm"],
                        "training/learning_rate": step["learning_rate"],
                        "training/tokens_per_second": step["tokens"] / step["seconds"],
                    },
                )
                for step in steps
            ]
            figures = recorder.figures[row.trial]
            assert {name: figures[f"eval/{name}"] for name in row.metrics} == row.metrics
            for name in ("trainable_params", "peak_memory_bytes", "solo_train_seconds_per_epoch", "examples_per_second"):
                assert figures[f"efficiency/{name}"] == getattr(row, name)
            assert figures["efficiency/cohort_trials"] == 2
            assert figures["efficiency/cohort_measured_peak_bytes"] == store.cohorts()[row.cohort]["measured_peak_bytes"]
            assert {name: value for name, value in figures.items() if name.startswith("verification/")} == {
                "verification/base_frozen": 1.0,
                "verification/checksum_equal": 1.0,
                "verification/base_gradients": 0.0,
            }


def test_figures_of_the_adapter_are_those_of_the_dense_updates_as_exported(
    make_study, carry_out, rows_of, recorders, tmp_path
):
    carry_out(with_tracker(make_study("bert", [{"r": 4, "targets": ["query", "value"]}])), tmp_path / "run")
    (row,) = rows_of(tmp_path / "run")
    figures = recorders[0].figures[row.trial]
    weights = read_adapter(tmp_path / "run" / row.adapter).weights
    squares = 0.0
    for placement in weights.placements:
        key = placement.target.key
        dense = placement.scaling * (weights.lora_B[key].double() @ weights.lora_A[key].double())
        values = torch.linalg.svdvals(dense)[:4]
        shares = values / values.sum()
        rank = math.exp(-float((shares * shares.log()).sum()))
        assert figures[f"adapters/norm/{key}"] == pytest.approx(float(dense.norm()), rel=1e-6)
        assert figures[f"rank/effective_rank/{key}"] == pytest.approx(rank, rel=1e-6)
        assert figures[f"rank/utilisation/{key}"] == pytest.approx(rank / 4, rel=1e-6)
        squares += float(dense.square().sum())
    assert len(weights.placements) == 4
    assert figures["adapters/norm"] == pytest.approx(math.sqrt(squares), rel=1e-6)
    assert 1 <= figures["rank/stable_rank"] <= figures["rank/effective_rank"] <= 4


def test_a_head_alone_has_no_figures_of_an_adapter(make_study, carry_out, rows_of, recorders, tmp_path):
    carry_out(with_tracker(make_study("bert", [{"method": "head"}])), tmp_path / "run")
    (row,) = rows_of(tmp_path / "run")
    groups = {name.partition("/")[0] for name in recorders[0].figures[row.trial]}
    assert groups == {"eval", "efficiency", "verification"}


@pytest.fixture(scope="module")
def untracked(make_study, carry_out, tmp_path_factory):
    """A study without trackers, and its directory."""
    study, directory = make_study("bert", [{}, {"r": 4}]), tmp_path_factory.mktemp("untracked") / "run"
    carry_out(study, directory)
    return study, directory


@pytest.mark.parametrize("method", METHODS)
def test_a_tracker_that_raises_changes_nothing_and_leaves_one_warning(
    method, carry_out, rows_of, losses_of, untracked, recorders, monkeypatch, tmp_path
):
    monkeypatch.setattr(Recorder, "breaks", method)
    study, before = untracked
    carry_out(with_tracker(study), tmp_path / "run")
    assert [(row.trial, row.status, row.metrics) for row in rows_of(tmp_path / "run")] == [
        (row.trial, row.status, row.metrics) for row in rows_of(before)
    ]
    assert losses_of(tmp_path / "run") == losses_of(before)
    (message,) = tracking_warnings(tmp_path / "run")
    assert "tensorboard fails and is off for the rest of the study (OSError: " in message


def test_tensorboard_shows_the_stored_curve(make_study, carry_out, losses_of, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    carry_out(with_tracker(make_study("bert")), tmp_path / "run")
    ((trial, losses),) = losses_of(tmp_path / "run").items()
    accumulator = EventAccumulator(str(tmp_path / "run" / "tensorboard" / trial))
    accumulator.Reload()
    assert [event.value for event in accumulator.Scalars("training/loss")] == pytest.approx(losses, rel=1e-6)
    assert tracking_warnings(tmp_path / "run") == []


def test_an_interrupted_trial_is_told_so_and_goes_on_in_the_same_run(make_study, carry_out, losses_of, recorders, tmp_path):
    study = with_tracker(make_study("bert"))
    events = run_study(study, expand(study), tmp_path / "run")
    steps = 0
    while steps < 4:
        steps += isinstance(next(events), StepResult)
    events.close()
    first = recorders[0]
    assert list(first.statuses.values()) == ["interrupted"]
    ((trial, rows),) = first.rows.items()
    assert [step for step, _ in rows] == [0, 1, 2, 3]
    carry_out(study, tmp_path / "run", resume=True)
    again = recorders[1]
    assert again.origin.run_id(trial) == first.origin.run_id(trial)
    assert again.statuses == {trial: "done"}
    assert [metrics["training/loss"] for _, metrics in again.rows[trial]] == losses_of(tmp_path / "run")[trial]


def test_runs_of_another_directory_are_others(make_study, carry_out, recorders, tmp_path):
    study = with_tracker(make_study("bert", train={"max_steps": 1, "warmup_ratio": 0.0}))
    for name in ("one", "two"):
        carry_out(study, tmp_path / name)
    one, two = recorders
    assert one.origin.run_id("f00-s1") != two.origin.run_id("f00-s1")


def test_a_trial_that_diverged_keeps_its_curve_and_says_so(make_study, carry_out, rows_of, recorders, tmp_path):
    study = make_study("bert", [{}, {"learning_rate": 1e30}], train={"warmup_ratio": 0.0})
    carry_out(with_tracker(study), tmp_path / "run")
    (recorder,) = recorders
    rows = {row.trial: row for row in rows_of(tmp_path / "run")}
    assert recorder.statuses == {name: row.status for name, row in rows.items()}
    (diverged,) = [name for name, row in rows.items() if row.status == "diverged"]
    with Store.open(tmp_path / "run") as store:
        assert [step for step, _ in recorder.rows[diverged]] == [step["step"] for step in store.steps(diverged)]
    assert not any(name.startswith(("rank/", "verification/")) for name in recorder.figures[diverged])


def test_a_missing_package_is_said_before_anything_is_made(make_study, carry_out, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'mlflow is not installed; pip install "lorascope\[mlflow\]"'):
        carry_out(with_tracker(make_study("bert"), "mlflow"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def planned(make_study, tmp_path):
    """A store with one trial that nobody has begun, and its name."""
    study = make_study("bert")
    (trial,) = expand(study)
    with Store.create(tmp_path / "planned", study) as store:
        store.add_trials([trial])
        yield store, trial.trial


def step_of(name, step, num_steps):
    return StepResult(step, num_steps, 0, {name: SlotStep(1.0 / (step + 1), 1.0, 1e-3, True)}, 4, 40, 0.5)


def test_a_trial_that_goes_on_from_a_checkpoint_has_the_steps_before_it(planned):
    store, name = planned
    store.add_steps(name, [{"step": step, "loss": 1.0 / (step + 1), "seconds": 0.5, "tokens": 40} for step in range(3)])

    def events():
        yield CohortStarted("c1", (name,), 5)
        yield step_of(name, 2, 5)  # the checkpoint was older than the last stored step
        yield step_of(name, 3, 5)
        yield step_of(name, 4, 5)
        yield TrialEnded(name, "pruned", {})

    recorder = Recorder(None)
    assert len(list(follow(events(), store, Tracking({"recorder": recorder})))) == 5
    assert [(step, metrics["training/loss"]) for step, metrics in recorder.rows[name]] == [
        (step, 1.0 / (step + 1)) for step in range(5)
    ]
    assert all(metrics["training/tokens_per_second"] == 80 for _, metrics in recorder.rows[name])
    assert recorder.statuses == {name: "pruned"}


def test_trackers_take_at_most_a_fiftieth_of_the_time(planned, monkeypatch):
    store, name = planned
    clock = {"now": 100.0, "tracker": 0.0}
    monkeypatch.setattr(tracked.time, "perf_counter", lambda: clock["now"])

    class Slow(Recorder):
        def log(self, trial, rows):
            super().log(trial, rows)
            clock["now"] += 3.0
            clock["tracker"] += 3.0

    def events():
        yield CohortStarted("c1", (name,), 2000)
        for step in range(2000):
            clock["now"] += 0.5
            yield step_of(name, step, 2000)

    slow = Slow(None)
    started = clock["now"]
    for _ in follow(events(), store, Tracking({"slow": slow})):
        pass
    assert [step for step, _ in slow.rows[name]] == list(range(2000))
    # The first flush and the last are not bounded by those before.
    assert clock["tracker"] - 6.0 <= (clock["now"] - started) / 50
    assert clock["tracker"] > 12.0
