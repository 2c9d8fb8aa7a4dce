"""A budget of time: what is begun ends in time, what is left is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.cohort.deadline import Deadline
from lorascope.cohort.events import CohortStarted, Warned
from lorascope.train import StepResult


class Clock:
    """A clock that the studies' own steps move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def carried_out(study, directory, carry_out, seconds, per_slot):
    """Every slot and step takes so many seconds of the clock; the rest takes none."""
    from lorascope.cohort.run import run_study
    from lorascope.design import expand

    clock = Clock()
    deadline = Deadline(seconds, clock)
    events = []
    for event in run_study(study, expand(study), directory, deadline=deadline, most_slots=2):
        if isinstance(event, StepResult):
            clock.now += per_slot * len(event.slots)
        events.append(event)
    return clock.now, events


@pytest.mark.parametrize("cohorts", [1, 2, 3])
def test_only_cohorts_that_end_in_time_begin(cohorts, make_study, carry_out, rows_of, tmp_path, monkeypatch):
    real = Deadline.note_cohort
    # Measured by the same clock as the deadline.
    monkeypatch.setattr(
        Deadline,
        "note_cohort",
        lambda self, examples, _, trials, seconds: real(self, examples, seconds, trials, seconds),
    )
    study = make_study("bert", [{"r": rank} for rank in (1, 2, 3, 4, 5, 6)])
    taken, events = carried_out(study, tmp_path / "run", carry_out, 20.0 * cohorts * 1.12, 1.0)
    assert taken == 20.0 * cohorts
    assert sum(isinstance(event, CohortStarted) for event in events) == cohorts
    statuses = [row.status for row in rows_of(tmp_path / "run")]
    assert statuses == ["done"] * (2 * cohorts) + ["planned"] * (6 - 2 * cohorts)
    told = [event.notice for event in events if isinstance(event, Warned) and event.notice.kind == "budget"]
    assert [notice.count for notice in told] == ([6 - 2 * cohorts] if cohorts < 3 else [])


def test_a_cohort_that_is_slower_than_forecast_is_interrupted_at_the_deadline(make_study, carry_out, rows_of, tmp_path):
    study = make_study("bert", [{"r": rank} for rank in (1, 2, 3)])
    taken, _ = carried_out(study, tmp_path / "run", carry_out, 9.0, 1.0)
    assert 9.0 <= taken <= 10.0
    assert [row.status for row in rows_of(tmp_path / "run")] == ["interrupted", "interrupted", "planned"]
    carry_out(study, tmp_path / "run", resume=True)
    assert [row.status for row in rows_of(tmp_path / "run")] == ["done"] * 3


@given(st.integers(1, 10**6), st.floats(0.1, 1e5), st.integers(1, 50), st.floats(0.0, 1e4))
def test_a_forecast_of_what_was_measured_is_that_with_a_margin(examples, training, trials, other):
    deadline = Deadline(1.0, Clock())
    deadline.note_cohort(examples, training, trials, training + other)
    assert deadline.forecast_seconds(examples, trials, 5) == pytest.approx(1.1 * (training + other))
