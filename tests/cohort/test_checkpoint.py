"""Checkpoints of a cohort: what goes on from one ends with the same bits, and what is left out of one shows."""

import errno
import json
import math
import shutil
import time
from dataclasses import replace

import pytest
import torch

from lorascope import train as train_module
from lorascope.cohort import checkpoint, training
from lorascope.cohort import kernels as kernels_module
from lorascope.cohort.checkpoint import Checkpoints
from lorascope.cohort.events import CohortStarted, ProbeDone, TrialEnded, Warned
from lorascope.cohort.run import Limits, run_study
from lorascope.design import expand
from lorascope.evaluate import EvaluationStep
from lorascope.lora.parameters import SlotParameters
from lorascope.store import Store
from lorascope.train import StepResult

TRIALS = [{"lora_dropout": 0.2}, {"r": 3, "targets": ["query", "value"], "bias": "all"}, {"r": 4, "learning_rate": 3e-3}]


class Killed(BaseException):
    """Ends a study within a step, as a kill does: nothing of ours catches it."""


def left_behind(directory):
    """Everything of a study that must not depend on where it was broken off."""
    found = {
        str(path.relative_to(directory)): path.read_bytes() for path in (directory / "trials").rglob("*") if path.is_file()
    }
    with Store.open(directory) as store:
        for row in store.trials():
            curves = [{key: value for key, value in step.items() if key != "seconds"} for step in store.steps(row.trial)]
            found[row.trial] = (row.status, row.metrics, row.error, row.cohort, curves)
    return found


def notices(events, kind="checkpoint"):
    return [event.notice.message for event in events if isinstance(event, Warned) and event.notice.kind == kind]


def steps_in(events):
    return [event.step for event in events if isinstance(event, StepResult)]


def broken_off(study, directory, when, checkpoint_seconds=None):
    """Run until ``when(event)``, then close the study, as an interruption does."""
    events = run_study(study, expand(study), directory, limits=Limits(checkpoint_seconds=checkpoint_seconds))
    for event in events:
        if when(event):
            break
    events.close()


def killed(study, directory, number, resume=False, checkpoint_seconds=None):
    """Run until a step has been computed, and no further: what follows from it is not done."""
    original = training.train

    def dying(*arguments):
        for step in original(*arguments):
            if step.step == number:
                raise Killed
            yield step

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "train", dying)
        limits = Limits(checkpoint_seconds=checkpoint_seconds)
        list(run_study(study, expand(study), directory, resume=resume, limits=limits))


def at_step(number):
    return lambda event: isinstance(event, StepResult) and event.step == number


def states(directory):
    return sorted(path.name for path in (directory / "checkpoints" / "c1").glob("*"))


@pytest.fixture(scope="session")
def study(make_study):
    """Three trials with dropout, biases, heads and rates of their own; two epochs of five steps, in micro-batches."""
    return make_study("bert", TRIALS, train={"micro_batch_size": 2})


@pytest.fixture(scope="session")
def whole(study, carry_out, tmp_path_factory):
    """What the study leaves behind when nothing disturbs it."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    carry_out(study, directory)
    return left_behind(directory)


@pytest.fixture(scope="session")
def broken_at_6(study, tmp_path_factory):
    """The study, interrupted after its seventh step, with the state after the sixth too."""
    directory = tmp_path_factory.mktemp("broken") / "run"
    broken_off(study, directory, at_step(6), checkpoint_seconds=0)
    return directory


@pytest.fixture
def broken(broken_at_6, tmp_path):
    """A copy of it."""
    return shutil.copytree(broken_at_6, tmp_path / "run")


@pytest.mark.parametrize("step", [0, 9])
def test_an_interrupted_cohort_goes_on_after_the_step_in_progress_and_ends_with_the_same_bits(
    step, study, whole, carry_out, tmp_path
):
    broken_off(study, tmp_path / "run", at_step(step))
    assert states(tmp_path / "run") == [f"step-{step + 1:08d}"]
    events = carry_out(study, tmp_path / "run", resume=True)
    assert steps_in(events) == list(range(step + 1, 10))
    assert not [event for event in events if isinstance(event, ProbeDone)], "it was measured alone before"
    assert notices(events) == []
    assert left_behind(tmp_path / "run") == whole
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("family", "task", "sections"),
    [
        ("gpt2", "squad", {"adapter": {"targets": "all-linear", "lora_dropout": 0.1}}),
        ("t5", "squad", {"train": {"base_dropout": True}}),
        ("bert", "file", {"base": {"dtype": "bfloat16"}, "train": {"weight_decay": 0.1}}),
    ],
)
def test_every_kind_of_training_goes_on_with_the_same_bits(family, task, sections, make_study, carry_out, tmp_path):
    study = make_study(
        family, [{}, {"r": 5}], [1, 2], task=task, **sections | {"train": {"epochs": 1, **sections.get("train", {})}}
    )
    carry_out(study, tmp_path / "whole")
    killed(study, tmp_path / "run", 3, checkpoint_seconds=0)
    events = carry_out(study, tmp_path / "run", resume=True)
    assert steps_in(events) == [3, 4]
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "whole")


def test_a_study_that_is_killed_again_and_again_ends_all_the_same(study, whole, carry_out, tmp_path):
    for step in (0, 1, 5, 9):
        killed(study, tmp_path / "run", step, resume=step > 0, checkpoint_seconds=0)
        assert states(tmp_path / "run") == [f"step-{done:08d}" for done in (step - 1, step) if done > 0]
    carry_out(study, tmp_path / "run", resume=True)
    assert left_behind(tmp_path / "run") == whole


def test_a_cohort_that_is_killed_while_it_is_evaluated_does_not_train_again(study, whole, carry_out, tmp_path):
    broken_off(study, tmp_path / "run", lambda event: isinstance(event, EvaluationStep))
    (place,) = (tmp_path / "run" / "checkpoints" / "c1").iterdir()
    assert sorted(path.name for path in place.iterdir()) == ["cohort.json", "manifest.json", "values.bin"]
    events = carry_out(study, tmp_path / "run", resume=True)
    assert steps_in(events) == []
    assert left_behind(tmp_path / "run") == whole


@pytest.mark.parametrize("state", ["kept", "lost"])
def test_trials_that_had_ended_run_along_and_are_not_written_again(state, study, whole, carry_out, tmp_path):
    broken_off(study, tmp_path / "run", lambda event: isinstance(event, TrialEnded))
    first = expand(study)[0].trial
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "trials" / first).rglob("*")}
    if state == "lost":
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    events = carry_out(study, tmp_path / "run", resume=True)
    assert [event.trials for event in events if isinstance(event, CohortStarted)] == [
        tuple(trial.trial for trial in expand(study)[1:])
    ]
    assert [event.trial for event in events if isinstance(event, TrialEnded)] == [trial.trial for trial in expand(study)[1:]]
    assert len(steps_in(events)) == (0 if state == "kept" else 10)
    assert left_behind(tmp_path / "run") == whole
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("every", [0.0, None])
def test_a_trial_that_diverged_before_leaves_the_others_their_bits(every, make_study, carry_out, tmp_path):
    study = make_study("bert", [{}, {"learning_rate": 1e30, "max_grad_norm": 1e30}, {"r": 3}], train={"epochs": 1})
    carry_out(study, tmp_path / "whole")
    expected = left_behind(tmp_path / "whole")
    assert sorted(expected[trial.trial][0] for trial in expand(study)) == ["diverged", "done", "done"]
    killed(study, tmp_path / "run", 4, checkpoint_seconds=every)
    events = carry_out(study, tmp_path / "run", resume=True)
    assert [event.status for event in events if isinstance(event, TrialEnded)] == ["done", "done"]
    assert left_behind(tmp_path / "run") == expected


def spoil(place, how):
    file = place / "values.bin"
    if how == "a bit flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "cut short":
        file.write_bytes(file.read_bytes()[:-8])
    elif how == "a file gone":
        file.unlink()
    elif how == "no manifest":
        (place / "manifest.json").unlink()
    elif how == "manifest cut short":
        (place / "manifest.json").write_bytes((place / "manifest.json").read_bytes()[:40])
    else:
        document = json.loads((place / "cohort.json").read_text())
        document["progress"]["step"] -= 1
        (place / "cohort.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("a bit flipped", "values.bin is not as it was written"),
        ("cut short", "values.bin is not as it was written"),
        ("a file gone", "values.bin is missing"),
        ("no manifest", "no manifest"),
        ("manifest cut short", "Unterminated string"),
        ("another step", "cohort.json is not as it was written"),
    ],
)
def test_a_torn_or_altered_checkpoint_is_not_read(how, why, broken):
    place = broken / "checkpoints" / "c1" / "step-00000007"
    assert checkpoint._read_checked(place)["progress"]["step"] == 7
    spoil(place, how)
    with pytest.raises((checkpoint._Refused, ValueError), match=why):
        checkpoint._read_checked(place)


@pytest.mark.parametrize("how", ["a bit flipped", "manifest cut short"])
def test_a_refused_checkpoint_is_told_and_the_one_before_is_taken(how, study, whole, carry_out, broken, tmp_path):
    assert states(tmp_path / "run") == ["step-00000006", "step-00000007"]
    spoil(broken / "checkpoints" / "c1" / "step-00000007", how)
    events = carry_out(study, tmp_path / "run", resume=True)
    refused, taken = notices(events)
    assert refused.startswith("the state in step-00000007 of cohort c1 is refused: ")
    assert taken == "cohort c1 goes on from the state before, after step 6"
    assert steps_in(events) == [6, 7, 8, 9]
    assert left_behind(tmp_path / "run") == whole
    with Store.open(tmp_path / "run") as store:
        assert {refused, taken} <= {row["message"] for row in store.warnings()}


def test_where_no_checkpoint_is_sound_the_cohort_starts_again_aloud(study, whole, carry_out, broken, tmp_path):
    for place in (tmp_path / "run" / "checkpoints" / "c1").iterdir():
        spoil(place, "a bit flipped")
    events = carry_out(study, tmp_path / "run", resume=True)
    assert notices(events)[-1] == "cohort c1 has no other state and starts again"
    assert steps_in(events) == list(range(10))
    assert left_behind(tmp_path / "run") == whole


def test_a_checkpoint_whose_curves_the_store_lacks_is_refused(study, whole, carry_out, broken, tmp_path):
    trial = expand(study)[1].trial
    with Store.create(tmp_path / "run", study, resume=True) as store:
        store.clear_trial(trial, 5)
    events = carry_out(study, tmp_path / "run", resume=True)
    assert f"the curves of trial {trial} are not stored up to step 7" in notices(events)[0]
    assert left_behind(tmp_path / "run") == whole


def test_a_checkpoint_of_other_data_is_refused(make_study, carry_out, data_directory, tmp_path):
    shutil.copytree(data_directory, tmp_path / "data")
    study = make_study("bert", data={"data": str(tmp_path / "data")}, train={"epochs": 1})
    broken_off(study, tmp_path / "run", at_step(2))
    train = tmp_path / "data" / "train.jsonl"
    train.write_text(train.read_text(encoding="utf-8").replace("the film", "the movie", 1), encoding="utf-8")
    events = carry_out(study, tmp_path / "run", resume=True)
    assert "it belongs to another data" in notices(events)[0]
    assert steps_in(events) == list(range(5))
    carry_out(study, tmp_path / "whole")
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "whole")


def skip_tensor(name):
    def change(patch):
        original = SlotParameters.load_state
        patch.setattr(
            SlotParameters, "load_state", lambda self, state: original(self, [one for one in state if one[0] != name])
        )

    return change


def other_progress(**changes):
    def change(patch):
        original = Checkpoints.restore

        def restore(self, stack, trials):
            progress, told = original(self, stack, trials)
            wanted = {name: value(progress) for name, value in changes.items()}
            return replace(progress, **wanted), told

        patch.setattr(Checkpoints, "restore", restore)

    return change


def data_of_another_epoch(patch):
    original = train_module.batch_order
    patch.setattr(train_module, "batch_order", lambda groups, size, seed, epoch: original(groups, size, seed, epoch + 1))


def streams_from_the_start(patch):
    original = train_module.forward_backward
    patch.setattr(train_module, "forward_backward", lambda *arguments: original(*arguments[:-1], arguments[-1] - 7))


def schedule_from_the_start(patch):
    original = train_module.learning_rate
    patch.setattr(train_module, "learning_rate", lambda settings, step, num_steps: original(settings, step - 7, num_steps))


LEFT_OUT = {
    "nothing": lambda patch: None,
    "trained values": skip_tensor("values"),
    "first moments": skip_tensor("first_moment"),
    "second moments": skip_tensor("second_moment"),
    "step": other_progress(step=lambda progress: progress.step - 1),
    "micro-batch": other_progress(micro_batch_size=lambda _: None),
    "data position": data_of_another_epoch,
    "place in the dropout streams": streams_from_the_start,
    "place in the schedule": schedule_from_the_start,
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_state_that_is_left_out_shows(what, study, whole, carry_out, broken, tmp_path, monkeypatch):
    """The comparison of the tests above finds each part of the state, and finds nothing where all of it is there."""
    with monkeypatch.context() as patch:
        LEFT_OUT[what](patch)
        carry_out(study, tmp_path / "run", resume=True)
    assert (left_behind(tmp_path / "run") == whole) == (what == "nothing")


def test_a_disk_that_is_full_for_checkpoints_is_told_once_and_training_goes_on(study, whole, carry_out, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_tensor", full)
    events = carry_out(study, tmp_path / "run", checkpoint_seconds=0)
    (message,) = notices(events)
    assert "No space left" in message
    assert message.endswith("it trains on without")
    assert left_behind(tmp_path / "run") == whole
    assert not list((tmp_path / "run").rglob("*.part"))


def test_another_machine_goes_on_and_says_that_the_bits_differ(study, carry_out, broken, tmp_path, monkeypatch):
    here = kernels_module._machine
    monkeypatch.setattr(kernels_module, "_machine", lambda base: {**here(base), "torch": "99.0"})
    events = carry_out(study, tmp_path / "run", resume=True)
    assert steps_in(events) == [7, 8, 9]
    assert notices(events) == [
        f"cohort c1 goes on after step 7 with other bits than without the break: torch was {torch.__version__}, is 99.0"
    ]


def test_a_study_goes_on_with_as_many_threads_as_before(study, carry_out, tmp_path, monkeypatch):
    own = torch.get_num_threads()
    other = own + 1
    monkeypatch.setattr(kernels_module.os, "sched_getaffinity", lambda _: range(other), raising=False)
    torch.set_num_threads(other)
    try:
        carry_out(study, tmp_path / "whole")
        broken_off(study, tmp_path / "run", at_step(6))
    finally:
        torch.set_num_threads(own)
    events = carry_out(study, tmp_path / "run", resume=True)
    assert notices(events, "replay") == [
        f"goes on with {other} threads as before, not {own}, so that it computes the same bits"
    ]
    assert notices(events) == []
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "whole")
    assert torch.get_num_threads() == own


def test_a_micro_batch_that_had_to_shrink_is_saved_at_once(study, tmp_path, monkeypatch):
    original = training.train

    def scarce(*arguments):
        for step in original(*arguments):
            yield replace(step, micro_batch_size=2 if step.step < 3 else 1)

    monkeypatch.setattr(training, "train", scarce)
    killed(study, tmp_path / "run", 5)
    (place,) = (tmp_path / "run" / "checkpoints" / "c1").iterdir()
    assert place.name == "step-00000004"
    assert json.loads((place / "cohort.json").read_text())["progress"]["micro_batch_size"] == 1


def test_checkpoints_take_a_hundredth_of_the_time_at_most_unless_asked_for(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def due_after(every, cost):
        checkpoints = Checkpoints.__new__(Checkpoints)
        checkpoints._every_seconds, checkpoints._cost_seconds, checkpoints._saved_at = every, cost, 0.0
        for seconds in range(1000):
            now[0] = float(seconds)
            if checkpoints.due():
                return seconds
        return math.inf

    assert [due_after(None, 0.1), due_after(None, 3.0), due_after(7.0, 3.0), due_after(0.0, 3.0)] == [60, 300, 7, 0]


def test_time_and_peak_memory_add_up_over_a_break(study, carry_out, rows_of, broken, tmp_path):
    place = broken / "checkpoints" / "c1" / "step-00000007"
    document = json.loads((place / "cohort.json").read_text())
    document["progress"] |= {"seconds": 1000.0, "peak_bytes": 10**15}
    (place / "cohort.json").write_text(json.dumps(document))
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["sha256"]["cohort.json"] = checkpoint._sha256(place / "cohort.json")
    (place / "manifest.json").write_text(json.dumps(manifest))
    carry_out(study, tmp_path / "run", resume=True)
    for row in rows_of(tmp_path / "run"):
        assert 1000 < row.train_seconds < 1100
        assert row.examples_per_second == pytest.approx(40 / row.train_seconds)
        assert row.peak_memory_bytes == 10**15
