"""Players and coalitions: what is a trial, what is refused, and what is proposed."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.attribution.players import (
    Game,
    SampledCoalitions,
    design_trials,
    game_plan,
    read_game,
    retrained_coalitions,
    shared_players,
    stored_game,
)
from lorascope.config import ShapleyDesign, Study
from lorascope.errors import ModelError, UsageError
from lorascope.store import TrialRow

ROW = TrialRow(*[None] * len(TrialRow.__dataclass_fields__))


def study_of(model, players=("query", "key", "value"), seeds=(1, 2), sections=None, **design):
    return Study.model_validate(
        {
            "name": "a",
            "base": {"model": str(model)},
            "task": {"name": "sst2", "data": "nowhere"},
            "seeds": list(seeds),
            "design": {"kind": "shapley", "players": players if isinstance(players, dict) else list(players), **design},
            **(sections or {}),
        }
    )


def rows_of(trials, status="done", worth=None):
    return [
        replace(
            ROW, trial=one.trial, seed=one.seed, status=status, config=one.flat(),
            metrics={} if worth is None else {"eval_loss": worth(one)},
        )
        for one in trials
    ]  # fmt: skip


def test_every_coalition_is_a_trial_of_its_targets_with_every_seed():
    game = Game(study_of("m"), shared_players(study_of("m").design, None))
    trials = design_trials(game)
    subsets = [list(one) for size in range(4) for one in itertools.combinations(("query", "key", "value"), size)]
    assert [trial.adapter.targets for trial in trials] == [one for one in subsets for _ in (1, 2)]
    assert [trial.seed for trial in trials] == [1, 2] * 8


def test_a_coalition_is_known_again_from_its_stored_trial_and_a_control_is_none():
    groups = {"attention": ["query", "key"], "rest": ["value"]}
    game = Game(study_of("m", groups), shared_players(study_of("m", groups).design, None))
    for trial in design_trials(game):
        coalition = game.coalition_of(trial.flat())
        assert game.targets(coalition) == trial.adapter.targets
        for other in ({"r": 99}, {"method": "head"}, {"path": "somewhere"}, {"targets": "all-linear"}, {"targets": ["key"]}):
            assert game.coalition_of({**trial.flat(), **other}) is None


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize(("groups", "runs"), [(1, ["L0-1"]), (2, ["L0", "L1"]), ("each", ["L0", "L1"])])
def test_players_fall_into_runs_of_layers(family, groups, runs, model_directory):
    # The decoder of this T5 has three layers.
    if family == "t5":
        runs = {1: ["L0-2"], 2: ["L0-1", "L2"], "each": ["L0", "L1", "L2"]}[groups]
    sections = {"task": {"name": "squad", "data": "nowhere"}} if family == "t5" else None
    players = {"attention": ["query", "value"], "out": ["output"]}
    study = study_of(model_directory(family), players, sections=sections, layer_groups=groups)
    game = read_game(study)
    assert list(game.players) == [f"{name}.{run}" for name in players for run in runs]
    assert game.players[f"attention.{runs[0]}"] == (f"query.{runs[0]}", f"value.{runs[0]}")
    # The same players come out of the stored trials, without the model.
    rows = rows_of(game.trials([frozenset(), game.everyone]))
    assert stored_game(study, rows).players == game.players


@pytest.mark.parametrize(
    ("players", "more", "message"),
    [
        (["query", "attention.self.query"], {}, "share bert.encoder.layer.0.attention.self.query"),
        ({"a": ["query", "key"], "b": ["key"]}, {}, "players 'a' and 'b' share"),
        (["query"], {"layer_groups": 3}, "3 groups of 2 layers"),
        (["query"], {"values": ["acuracy"]}, "did you mean 'accuracy'"),
    ],
)
def test_what_is_no_game_is_refused_before_anything_is_trained(players, more, message, model_directory):
    with pytest.raises(UsageError, match=message):
        read_game(study_of(model_directory("bert"), players, **more))


def test_an_unknown_player_is_refused_with_the_names_there_are(model_directory):
    with pytest.raises(ModelError, match=r"no target 'querry'; did you mean 'query'"):
        read_game(study_of(model_directory("bert"), ["querry"]))


@pytest.mark.parametrize("game", ["reliance", "one_run"])
def test_a_game_of_masks_takes_no_biases(game, model_directory):
    sections = {"adapter": {"bias": "lora_only"}}
    with pytest.raises(UsageError, match="bias 'lora_only' in a game of masks"):
        read_game(study_of(model_directory("bert"), sections=sections, game=game))


def test_a_group_without_targets_and_a_player_named_twice_are_refused():
    for players, message in (({"a": []}, "a group has no target"), (["query", "query"], "names a player twice")):
        with pytest.raises(ValueError, match=message):
            ShapleyDesign(kind="shapley", players=players)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 14), st.integers(4, 40))
def test_retrained_coalitions_are_distinct_with_none_all_and_complements(num_players, retrained):
    players = {f"p{index}": (f"p{index}",) for index in range(num_players)}
    game = Game(study_of("m", list(players), game="one_run", retrained=retrained), players)
    chosen = retrained_coalitions(game)
    assert len(chosen) == len(set(chosen)) == min(retrained, 2**num_players)
    assert chosen[:2] == [frozenset(), game.everyone]
    pairs = zip(chosen[::2], chosen[1::2], strict=False)
    assert all(one | other == game.everyone and not one & other for one, other in pairs)


def additive(trial):
    """Of twelve players each removes a little more than the one before, and nothing disturbs it."""
    return 1.0 - sum(0.01 * (1 + int(target[1:])) for target in trial.adapter.targets) + 1e-4 * trial.seed


def played(proposer, worth, most=100):
    """Propose and carry out in turn; the rows, and how many proposals there were."""
    rows = []
    for number in range(most):
        trials = proposer.propose(rows)
        if not trials:
            return rows, number
        known = {trial.trial for trial in trials}
        rows = [row for row in rows if row.trial not in known] + rows_of(trials, worth=worth)
    raise AssertionError("it never ends")


def sampled(**design):
    players = {f"p{index}": (f"p{index}",) for index in range(12)}
    return SampledCoalitions(Game(study_of("m", list(players), **design), players))


def test_sampled_coalitions_end_when_the_intervals_are_narrow():
    proposer = sampled(width=0.1)
    rows, _ = played(proposer, additive)
    coalitions = {proposer.game.coalition_of(row.config) for row in rows}
    assert len(rows) == 2 * len(coalitions)
    assert len(coalitions) < 200
    assert {frozenset(), proposer.game.everyone} <= coalitions


def test_sampled_coalitions_end_where_the_design_says():
    rows, _ = played(sampled(width=1e-9, coalitions=20), lambda trial: hash(trial.trial) % 1000 / 1000)
    assert len(rows) == 2 * 20


def test_a_game_that_goes_by_a_metric_its_trials_lack_ends_after_the_first_of_them():
    rows, number = played(sampled(values=["eval_loss", "c_score"]), additive)
    assert (len(rows), number) == (2 * 16, 1)


def test_few_players_are_sampled_where_the_design_allows_fewer_coalitions():
    game = Game(study_of("m", coalitions=5), shared_players(study_of("m").design, None))
    assert isinstance(design_trials(game), SampledCoalitions)
    assert not game_plan(game)["exact"]
    assert game_plan(Game(study_of("m"), game.players))["exact"]


def test_an_interrupted_proposal_is_made_again_and_nothing_else():
    proposer = sampled()
    first = proposer.propose([])
    ended = rows_of(first[:5], worth=additive)
    again = proposer.propose([*ended, *rows_of(first[5:], status="interrupted")])
    assert {trial.trial for trial in first[5:]} <= {trial.trial for trial in again} <= {trial.trial for trial in first}
    whole = rows_of(first, worth=additive)
    second = proposer.propose(whole)
    assert not {trial.trial for trial in second} & {trial.trial for trial in first}
    assert second == sampled().propose(whole)


def test_a_game_whose_full_coalition_fails_ends_at_the_most_coalitions():
    proposer = sampled(coalitions=40)
    rows = []
    while trials := proposer.propose(rows):
        rows += [
            replace(row, status="failed", metrics={}) if len(row.config["targets"]) == 12 else row
            for row in rows_of(trials, worth=additive)
        ]
    assert len(rows) == 2 * 40


def test_trials_that_are_no_coalitions_come_with_the_first():
    proposer = sampled()
    control = proposer.game.trials([frozenset()])[0].model_copy(update={"seed": 77})
    with_control = SampledCoalitions(proposer.game, [control])
    first = with_control.propose([])
    assert first == [*proposer.propose([]), control]
    assert control not in with_control.propose(rows_of(first, worth=additive))
