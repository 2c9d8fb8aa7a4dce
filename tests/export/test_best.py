"""The best trial is the best by the study's own metric, never one that did not end well; how sure that is, is said."""

import pytest

from lorascope.errors import UsageError
from lorascope.export import best_trial
from lorascope.store import Store


def hits(count, of=40):
    return [1] * count + [0] * (of - count)


def choose(directory):
    with Store.open(directory) as store:
        return best_trial(store), [row.trial for row in store.trials()]


def test_the_trial_with_the_best_score_is_chosen_and_the_next_is_named(scored):
    outcomes = [{"hits": hits(30)}, {"hits": hits(34)}, {"hits": hits(33)}]
    choice, names = choose(scored(outcomes, [{"r": 2}, {"r": 4}, {"r": 8}], [1]))
    assert (choice.trial, choice.metric, choice.value) == (names[1], "accuracy", 0.85)
    assert (choice.next_trial, choice.next_value, choice.num_trials) == (names[2], 0.825, 3)
    assert choice.difference == pytest.approx(0.025)
    assert choice.verdict == "not distinguishable"
    assert "best of 3 trials by accuracy (0.8500, the highest)" in choice.sentence
    assert f"the next is {names[2]} (0.8250): the difference is not distinguishable over the examples" in choice.sentence
    assert "its score is optimistic" in choice.sentence


def test_a_difference_that_the_examples_show_is_called_so(scored):
    choice, _ = choose(scored([{"hits": hits(36)}, {"hits": hits(12)}], [{"r": 2}, {"r": 4}], [1]))
    assert choice.verdict == "distinguishable"
    assert choice.low > 0
    assert choice.p < 0.05


def test_a_handful_of_examples_distinguishes_nothing(scored):
    # Student's p of five examples of 200 that favour one side is 0.025; that of their signs, 0.0625.
    choice, _ = choose(scored([{"hits": hits(105, 200)}, {"hits": hits(100, 200)}], [{"r": 2}, {"r": 4}], [1]))
    assert (choice.verdict, choice.p) == ("not distinguishable", 0.0625)


def test_what_did_not_end_well_is_never_chosen_and_is_counted(scored):
    statuses = ["failed", "diverged", "pruned", "interrupted"]
    outcomes = [{"hits": hits(39), "status": status, "adapter": "trials/x/adapter"} for status in statuses]
    trials = [{"r": r} for r in (1, 2, 3, 4, 5)]
    choice, names = choose(scored([*outcomes, {"hits": hits(5)}], trials, [1]))
    assert (choice.trial, choice.num_trials, choice.verdict) == (names[4], 1, "the only one")
    assert choice.left_out == dict.fromkeys(statuses, 1)
    assert "Not considered: 1 failed, 1 diverged, 1 pruned, 1 interrupted" in choice.sentence


def test_without_a_trial_that_ended_well_there_is_none(scored):
    with pytest.raises(UsageError, match=r"no trial is done with an adapter and a score \(they are: diverged, failed\)"):
        choose(scored([{"status": "failed"}, {"status": "diverged"}], [{"r": 2}, {"r": 4}], [1]))


def test_a_metric_that_is_better_when_lower_is_ranked_so(scored):
    directory = scored([{}, {}], [{"r": 2}, {"r": 4}], [1])
    with Store.open(directory) as opened:
        study, names = opened.study, [row.trial for row in opened.trials()]
    with Store.create(directory, study, resume=True) as store:
        for name, loss in zip(names, (0.7, 0.4), strict=True):
            store.set_metrics(name, {"eval_loss": loss})
    choice, _ = choose(directory)
    assert (choice.trial, choice.metric, choice.higher_is_better) == (names[1], "eval_loss", False)
    assert "the lowest" in choice.sentence
    assert choice.verdict == "not known"  # there are no predictions


def test_of_equal_trials_the_one_with_fewest_parameters_is_taken_and_that_is_said(scored):
    outcomes = [{"hits": hits(20), "trainable_params": 900}, {"hits": hits(20), "trainable_params": 300}]
    choice, names = choose(scored(outcomes, [{"r": 4}, {"r": 2}], [1]))
    assert (choice.trial, choice.verdict, choice.difference) == (names[1], "equal", 0.0)
    assert "Another trial has the same score; this one trains the fewest parameters" in choice.sentence


def test_a_control_that_is_better_is_named_though_it_cannot_be_exported(scored):
    outcomes = [{"hits": hits(38), "adapter": None}, {"hits": hits(20)}]
    choice, names = choose(scored(outcomes, [{"method": "full"}, {"r": 2}], [1]))
    assert choice.trial == names[1]
    assert f"Better, but with no adapter to export: {names[0]} (full)" in choice.sentence
    assert choice.left_out == {"without an adapter": 1}


def test_configurations_are_judged_over_seeds_beside_the_trials(scored):
    outcomes = [{"hits": hits(count)} for count in (36, 37, 35, 10, 11, 12)]
    directory = scored(outcomes, [{"r": 2}, {"r": 4}], [1, 2, 3])
    choice, names = choose(directory)
    assert choice.trial == names[1]
    assert choice.next_trial == names[0]
    assert f"over 3 seeds and against that of {names[5]}, it is: better" in choice.sentence


def test_the_document_is_plain(scored):
    choice, _ = choose(scored([{"hits": hits(30)}, {"hits": hits(20)}], [{"r": 2}, {"r": 4}], [1]))
    document = choice.document()
    assert {"trial", "metric", "value", "next_trial", "difference", "low", "high", "p", "verdict"} <= document.keys()
