"""What may go on from which checkpoint, and what a log says that a crash cut off."""

import json
from dataclasses import asdict

import pytest
from models.checkpoint import LEVEL, LOG, NEWEST, Schedule, beginning, entered, read, read_log, save, to_go_on_from

SETTINGS = {"seed": 0, "stream_sha256": "abc"}


def schedule(steps, decay_steps):
    return Schedule(1.0, 100, steps, decay_steps)


@pytest.fixture
def work(tmp_path):
    """A directory in which a run of 400 steps, of which 100 decay, was saved at steps that the test says."""

    def saved(newest, level=None):
        state = beginning(SETTINGS, schedule(400, 100))
        for name, step in ((NEWEST, newest), (LEVEL, level)):
            if step is not None:
                save(tmp_path / name, state | {"step": step})
        (tmp_path / LOG).write_text("".join(json.dumps({"step": step}) + "\n" for step in range(newest + 3)))
        return tmp_path

    return saved


def test_the_rate_warms_up_stays_and_falls_to_nothing():
    rates = [schedule(400, 100).rate(step) for step in range(400)]
    assert rates[0] == 0.01
    assert rates[99:301] == [1.0] * 202
    assert rates[399] == pytest.approx(0.01)
    assert rates[300:] == sorted(rates[300:], reverse=True)
    assert [schedule(400, 0).rate(step) for step in (200, 399)] == [1.0, 1.0]


@pytest.mark.parametrize(("newest", "level"), [(50, None), (300, 300), (350, 300), (400, 300)])
def test_the_same_schedule_goes_on_from_the_newest_step_and_the_log_ends_there(newest, level, work):
    directory = work(newest, level)
    state = to_go_on_from(directory, SETTINGS, schedule(400, 100))
    assert state["step"] == newest
    assert [row["step"] for row in read_log(directory)] == list(range(newest))


@pytest.mark.parametrize(("steps", "decay_steps"), [(900, 200), (350, 100), (250, 0)])
def test_before_the_decay_a_run_is_made_longer_or_shorter_from_where_it_is(steps, decay_steps, work):
    state = to_go_on_from(work(250), SETTINGS, schedule(steps, decay_steps))
    assert (state["step"], state["discarded_steps"]) == (250, 0)
    assert state["schedule"] == asdict(schedule(steps, decay_steps))


@pytest.mark.parametrize("newest", [350, 400])
def test_a_longer_run_goes_on_from_the_start_of_the_decay_and_counts_what_it_throws_away(newest, work, capsys):
    directory = work(newest, 300)
    state = to_go_on_from(directory, SETTINGS, schedule(900, 200))
    assert (state["step"], state["discarded_steps"]) == (300, newest - 300)
    assert [row["step"] for row in read_log(directory)] == list(range(300))
    told = f"step {newest} lies in the decay of a run of 400 steps and is kept as cooled-{newest}.pt; going on from step 300"
    assert told in capsys.readouterr().out
    assert read(directory / f"cooled-{newest}.pt")["step"] == newest
    # Killed before the next checkpoint, it goes on from the same step, and the log fits the checkpoint at every moment.
    assert to_go_on_from(directory, SETTINGS, schedule(900, 200)) == state
    assert read(directory / NEWEST)["step"] == 300


@pytest.mark.parametrize("newest", [280, 400])
def test_a_decay_that_ought_to_have_begun_before_any_checkpoint_is_refused(newest, work):
    directory = work(newest, 300 if newest > 300 else None)
    first = min(newest, 300)
    with pytest.raises(SystemExit, match=f"of step {first} was made at the full rate; give --steps {first + 150} or more"):
        to_go_on_from(directory, SETTINGS, schedule(400, 150))


def test_a_longer_run_is_refused_where_the_start_of_the_decay_is_gone(work):
    with pytest.raises(SystemExit, match=r"level\.pt is not there"):
        to_go_on_from(work(350), SETTINGS, schedule(900, 200))


def test_other_data_are_refused(work):
    with pytest.raises(SystemExit, match="was made with stream_sha256 abc; give the same, or another --work"):
        to_go_on_from(work(50), SETTINGS | {"stream_sha256": "abd"}, schedule(400, 100))


def test_a_new_run_begins_with_an_empty_log(tmp_path):
    (tmp_path / LOG).write_text('{"step": 0}\n')
    assert to_go_on_from(tmp_path, SETTINGS, schedule(400, 100)) is None
    assert not (tmp_path / LOG).exists()


def test_a_last_line_that_a_crash_cut_off_is_passed_over_and_no_other(work):
    directory = work(3)
    with (directory / LOG).open("a") as log:
        log.write('{"step": 6, "lo')
    assert [row["step"] for row in read_log(directory)] == [0, 1, 2, 3, 4, 5]
    assert to_go_on_from(directory, SETTINGS, schedule(400, 100))["step"] == 3
    (directory / LOG).write_text('{"step": 0\n{"step": 1}\n')
    with pytest.raises(SystemExit, match=r"log\.jsonl, line 1: not a step's"):
        read_log(directory)


def test_a_stage_begins_where_the_conditions_change():
    one, other = {"threads": 2}, {"threads": 1}
    stages = entered([], 0, one)
    assert entered(stages, 5, one) == stages
    more = entered(stages, 5, other)
    assert [(stage["first_step"], stage["conditions"]) for stage in more] == [(0, one), (5, other)]
    # Nothing was computed between two starts at one step.
    assert entered(more, 5, one | {"precision": "float32"})[1:] == [
        {"first_step": 5, "conditions": one | {"precision": "float32"}}
    ]
