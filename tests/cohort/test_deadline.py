"""A budget of time: what is begun ends in time, what is left is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.cohort import run
from lorascope.cohort.deadline import Deadline
from lorascope.cohort.events import CohortStarted, StudyStarted, TrialEnded, Warned
from lorascope.cohort.run import Limits, run_study
from lorascope.design import expand
from lorascope.train import StepResult


class Clock:
    """A clock that the studies' own steps move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def carried_out(study, directory, carry_out, seconds, per_slot):
    """Every slot and step takes so many seconds of the clock; the rest takes none."""
    clock = Clock()
    events = []
    for event in run_study(study, expand(study), directory, limits=Limits(deadline=Deadline(seconds, clock), most_slots=2)):
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
        lambda self, examples, _, trials, seconds, method: real(self, examples, seconds, trials, seconds, method),
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


def budget_notices(events):
    return [event.notice.message for event in events if isinstance(event, Warned) and event.notice.kind == "budget"]


def until(study, directory, when, trials=None):
    """Run with a budget of ten seconds that is over with the first event of which ``when`` is true; its events."""
    clock, events = Clock(), []
    for event in run_study(study, trials or expand(study), directory, limits=Limits(deadline=Deadline(10.0, clock))):
        events.append(event)
        clock.now += 11.0 if when(event) else 0.0
    return events


def test_after_the_deadline_nothing_is_loaded_measured_or_begun(make_study, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "cut_group", lambda *_: pytest.fail("a group was measured"))
    events = until(make_study("bert"), tmp_path / "run", lambda event: isinstance(event, StudyStarted))
    assert not any(isinstance(event, CohortStarted) for event in events)
    assert budget_notices(events) == ["the budget of 10 s ends the study with 1 of 1 trials left; go on with --resume"]


def test_a_study_that_ends_with_its_budget_leaves_no_notice(make_study, rows_of, tmp_path):
    events = until(make_study("bert"), tmp_path / "run", lambda event: isinstance(event, TrialEnded))
    assert budget_notices(events) == []
    assert [row.status for row in rows_of(tmp_path / "run")] == ["done"]


class Twice:
    """Proposes one trial after the other."""

    def __init__(self, trials):
        self.trials = trials

    def propose(self, rows):
        return self.trials[len(rows) : len(rows) + 1] if all(row.status != "planned" for row in rows) else self.trials[:1]


@pytest.mark.parametrize(
    ("when", "left"),
    [(StudyStarted, "1 of 1 trials left and others still to be proposed"), (TrialEnded, "others still to be")],
)
def test_what_is_still_to_be_proposed_is_left_too(when, left, make_study, tmp_path):
    study = make_study("bert", [{}, {"r": 3}])
    events = until(study, tmp_path / "run", lambda event: isinstance(event, when), Twice(expand(study)))
    (told,) = budget_notices(events)
    assert told.startswith(f"the budget of 10 s ends the study with {left}")


def test_time_spent_before_counts_and_the_budget_stays_what_was_asked_for():
    deadline = Deadline(8.0, Clock(), spent_seconds=9.0)
    assert (deadline.seconds, deadline.left_seconds) == (8.0, -1.0)


def test_each_method_has_a_pace_of_its_own():
    deadline = Deadline(1.0, Clock())
    assert deadline.forecast_seconds(10, 1, 0) == 0.0
    deadline.note_cohort(100, 1.0, 1, 1.0, "head")
    assert deadline.forecast_seconds(100, 0, 0, "full") == pytest.approx(1.1)  # no faster than what was measured
    deadline.note_alone(10.0, "full")
    assert deadline.forecast_seconds(100, 0, 0, "full") == pytest.approx(11.0)
    assert deadline.forecast_seconds(100, 0, 0, "head") == pytest.approx(1.1)
    assert deadline.forecast_seconds(100, 0, 0, "lora") == pytest.approx(11.0)


@given(st.integers(1, 10**6), st.floats(0.1, 1e5), st.integers(1, 50), st.floats(0.0, 1e4))
def test_a_forecast_of_what_was_measured_is_that_with_a_margin(examples, training, trials, other):
    deadline = Deadline(1.0, Clock())
    deadline.note_cohort(examples, training, trials, training + other)
    assert deadline.forecast_seconds(examples, trials, 5) == pytest.approx(1.1 * (training + other))
