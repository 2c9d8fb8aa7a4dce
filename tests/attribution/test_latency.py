"""What players add to a pass: their share of the times of coalitions, with whatever clock."""

import itertools
import math
import shutil
from types import SimpleNamespace

import pytest

from lorascope.attribution import latency
from lorascope.attribution.document import shapley_document
from lorascope.attribution.latency import measure_latency
from lorascope.attribution.players import read_game
from lorascope.base_model import load_base
from lorascope.cohort.deadline import Deadline
from lorascope.cohort.events import Warned
from lorascope.data.task import encode_task, read_task
from lorascope.evaluate import EvaluationStep
from lorascope.store import Store

TOOK_MS = {"query": 1.0, "key": 2.0, "value": 4.0}


@pytest.fixture(params=["usefulness", "one_run"])
def finished(request, games, tmp_path):
    """A study whose trials are done, and its game."""
    shutil.copytree(games[request.param], tmp_path / "run")
    with Store.open(tmp_path / "run") as store:
        return tmp_path / "run", read_game(store.study)


@pytest.fixture
def clock(monkeypatch):
    """Passes that take what their players take, a little more or less each time."""
    turns = itertools.count()

    def turn(game, base, coalition, inputs):
        both = 0.5 * ({"query", "key"} <= coalition)
        return 1e-3 * (50.0 + sum(TOOK_MS[player] for player in coalition) + both + 0.01 * math.sin(next(turns)))

    monkeypatch.setattr(latency, "_turn", turn)
    return turns


def stored(directory):
    with Store.open(directory) as store:
        return store.info("latency"), shapley_document([store])


def test_players_share_what_coalitions_take_and_values_are_shown_per_millisecond(finished, clock):
    directory, game = finished
    events = list(measure_latency(game, directory))
    assert events == [EvaluationStep("timing coalitions", number, 5, "rounds") for number in (1, 2, 3, 4, 5)]
    assert next(clock) == 2 + 5 * 8
    record, document = stored(directory)
    for player, expected in {"query": 1.25, "key": 2.25, "value": 4.0}.items():
        measured = record["players"][player]
        assert measured["ms"] == pytest.approx(expected, abs=0.02)
        assert measured["low"] < measured["ms"] < measured["high"]
        value = document["metrics"]["eval_loss"]["values"][player]
        assert value["per_ms_latency"] == pytest.approx(value["estimate"] / measured["ms"])
    assert (record["without_ms"], record["with_all_ms"]) == pytest.approx((50.0, 57.5), abs=0.02)
    assert "; mean of 5 rounds; a merged adapter adds none" in document["latency"]["what"]
    # Once is enough.
    assert list(measure_latency(game, directory)) == []
    assert stored(directory)[0] == record


def test_many_players_are_timed_in_some_of_their_coalitions(known_study, monkeypatch, clock):
    game = read_game(known_study("usefulness"))
    monkeypatch.setattr(latency, "_EXACT_COALITIONS", 6)
    monkeypatch.setattr(latency, "_SAMPLED_PER_PLAYER", 2)
    coalitions = latency._coalitions(game)
    assert len(coalitions) == len(set(coalitions)) == 6
    assert {frozenset(), game.everyone} <= set(coalitions)


def test_where_there_is_no_time_the_reason_is_stored_and_tried_again_later(finished, clock, monkeypatch):
    directory, game = finished
    (event,) = measure_latency(game, directory, deadline=Deadline(0.0))
    assert isinstance(event, Warned)
    assert event.notice.message == "latency was not measured: the budget left no time for it; go on with --resume"
    slow = itertools.count(0.0, 10.0)
    with monkeypatch.context() as patch:
        patch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: next(slow)))
        list(measure_latency(game, directory))
    record, document = stored(directory)
    assert record == {"reason": "3 rounds over 8 coalitions take about 240 s, and 60 s are allowed"}
    assert document["latency"]["reason"].startswith("not measured: 3 rounds over 8 coalitions")
    assert document["metrics"]["eval_loss"]["values"]["value"]["per_ms_latency"] is None
    list(measure_latency(game, directory))
    assert stored(directory)[0]["rounds"] == 5


def test_where_memory_runs_out_the_study_keeps_its_results(finished, monkeypatch):
    directory, game = finished

    def turn(*_):
        raise MemoryError

    monkeypatch.setattr(latency, "_turn", turn)
    (event,) = measure_latency(game, directory)
    assert "memory ran out" in event.notice.message
    monkeypatch.setattr(latency, "_turn", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        list(measure_latency(game, directory))


def test_a_coalition_is_timed_with_its_own_modules_on_an_example_of_middling_length(known_study, monkeypatch):
    study = known_study("usefulness")
    game = read_game(study)
    raw = read_task(study.task, study.evaluate.split)
    base = load_base(study.base, raw.task_type, raw.labels)
    task = encode_task(raw, base.tokenizer, study.task.max_length)
    inputs, num_tokens = latency._inputs(base, task)
    lengths = sorted(example.num_tokens for example in task.eval)
    middle = lengths[len(lengths) // 2]
    assert (tuple(inputs["input_ids"].shape), num_tokens) == ((1, middle), middle)
    built, passes = [], []
    own, forward = latency.Stack, base.model.forward

    def stack(model, slots, *rest):
        built.append({one.target.role for one in slots[0].placements})
        return own(model, slots, *rest)

    def counted(*arguments, **options):
        passes.append(len(arguments))
        return forward(*arguments, **options)

    monkeypatch.setattr(latency, "Stack", stack)
    monkeypatch.setattr(base.model, "forward", counted)
    before = {name: type(module) for name, module in base.model.named_modules()}
    for coalition in (frozenset(), frozenset(["query"]), game.everyone):
        assert latency._turn(game, base, coalition, inputs) > 0.0
    assert built == [set(), {"query"}, {"query", "key", "value"}]
    assert len(passes) == 3 * 4
    assert {name: type(module) for name, module in base.model.named_modules()} == before
