"""Tables: what gets a column, and what a narrow terminal still shows."""

from io import StringIO

import pytest
from rich.console import Console

from lorascope.cli import tables

CONFIG = {"r": 8, "lora_alpha": 16.0, "targets": ["query", "value"], "learning_rate": 2e-4, "model": "a/model"}


def row(number, **more):
    return {
        "trial": f"0123456{number}-s42",
        "seed": 42,
        "status": "done",
        "config": CONFIG,
        "trainable_params": 1_234_567,
        "total_params": 123_456_789,
        "trainable_percent": 1.0,
        "metrics": {"accuracy": 0.5},
        "solo_train_seconds_per_epoch": 12.3,
        "solo_examples_per_second": 456.7,
        "solo_peak_memory_bytes": 2**30,
        "memory_bytes": 2**30,
        "train_seconds": 60.0,
        "fits": True,
        "reason": None,
        "decoding": [],
    } | more


def printed(function, trials, width=200, judge=None):
    console = Console(file=StringIO(), width=width)
    function(console, {"study": "a [bold] study", "trials": trials, "judge": judge})
    return console.file.getvalue()


def test_only_what_varies_gets_a_column():
    other = {**CONFIG, "learning_rate": 1e-3, "model": "another/model"}
    assert tables.varying_keys([CONFIG]) == ["r", "lora_alpha", "targets"]
    assert tables.varying_keys([CONFIG, other]) == ["r", "lora_alpha", "targets", "learning_rate", "model"]


def test_results_show_every_trial_and_count_those_without_score():
    absent = {"metrics": {}, "trainable_params": None, "trainable_percent": None, "solo_train_seconds_per_epoch": None,
              "solo_examples_per_second": None, "solo_peak_memory_bytes": None}  # fmt: skip
    text = printed(tables.print_results, [row(1), row(2, status="failed", **absent), row(3, status="planned", **absent)])
    assert "a [bold] study: 3 trials" in text
    assert all(f"0123456{number}-s42" in text for number in (1, 2, 3))
    assert "0.5000" in text
    assert "2 of 3 trials have no score: 1 failed, 1 planned" in text


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_narrow_terminal_keeps_names_and_metrics_whole(width):
    text = printed(tables.print_results, [row(1), row(2, config={**CONFIG, "targets": "all-linear"})], width)
    assert max(map(len, text.splitlines())) <= width
    for whole in ("01234561-s42", "01234562-s42", "0.5000", "accuracy", "query"):
        assert whole in text
    assert ("no room for: ex/s" in text) == (width < 140)


def test_a_wide_place_shows_every_column():
    text = printed(tables.print_results, [row(1)], 2000)
    assert "no room for" not in text
    assert all(header in text for header in ("ex/s", "%", "memory", "alone: s/epoch", "trainable"))


def test_a_plan_says_a_reason_once():
    text = printed(tables.print_plan, [row(1, reason="no [time] estimate"), row(2, reason="no [time] estimate")])
    assert text.count("no [time] estimate") == 1
    text = printed(tables.print_plan, [row(1), row(2, reason="needs memory", fits=False)])
    assert "01234562-s42: needs memory" in text
    assert "no" in text


def test_values_are_written_for_people():
    assert [tables.text_of(value) for value in (None, [], ["a", "b"], 0.0002, True)] == [
        "–",
        "(none)",
        "a b",
        "0.0002",
        "True",
    ]


def compared(trials, verdicts, **changes):
    """The comparisons of some trials with the first; ``changes`` go into every row."""
    names = [trial["trial"].partition("-")[0] for trial in trials]
    unsure = {"difference": 0.0125, "low": -0.01, "high": 0.035, "p": 0.02, "p_holm": 0.04, "seeds": 3, "examples": 872,
              "failed": 0, "diverged": 1, "metric": "accuracy", "against": names[0], "note": None}  # fmt: skip
    rows = [{**unsure, "configuration": n, "verdict": v, **changes} for n, v in zip(names[1:], verdicts, strict=True)]
    counts = {name: {"done": 3, "diverged": 1} for name in names[1:]} | {names[0]: {"done": 3, "failed": 2}}
    return {"baseline": names[0], "baseline_chosen": "as asked for", "metrics": ["accuracy"], "level": 0.95,
            "fewest_seeds": 2, "rows": rows,
            "correction": f"Holm over {len(rows)} comparisons", "configurations": counts}  # fmt: skip


@pytest.mark.parametrize("width", [80, 120, 200])
def test_comparisons_show_verdicts_with_what_they_rest_on(width):
    trials = [row(1), row(2, config={**CONFIG, "r": 16}), row(3, config={**CONFIG, "r": 32})]
    console = Console(file=StringIO(), width=width)
    document = {
        "study": "a [bold] study",
        "trials": trials,
        "comparisons": compared(trials, ["better", "not distinguishable"]),
    }
    tables.print_comparisons(console, document)
    text = console.file.getvalue()
    assert "against 01234561" in text
    assert "as asked for" in " ".join(text.split())
    table = [line for line in text.splitlines() if line.startswith(("│", "┃"))]
    assert ["better" in line for line in table if "01234562" in line] == [True]
    assert ["not distinguishable" in line for line in table if "01234563" in line] == [True]
    assert "+0.0125" in text
    assert "-0.0100 … +0.0350" in text
    assert "Holm over 2 comparisons" in text
    assert "01234561: 2 failed of 5 seeds" in text
    assert "01234562: 1 diverged of 4 seeds" in text
    assert max(map(len, table)) <= width


def test_too_few_seeds_are_one_line_and_one_configuration_none():
    trials = [row(1), row(2), row(3)]
    absent = dict.fromkeys(("difference", "low", "high", "p", "p_holm", "examples"))
    for verdicts, expected in ((["too few seeds"] * 2, True), (["too few seeds", "worse"], False)):
        console = Console(file=StringIO(), width=200)
        changes = absent if expected else {}
        tables.print_comparisons(
            console, {"study": "s", "trials": trials, "comparisons": compared(trials, verdicts, **changes)}
        )
        assert ("no verdict on accuracy: no two configurations have 2 seeds in common" in console.file.getvalue()) == expected
        assert (len(console.file.getvalue().splitlines()) == 1) == expected
    console = Console(file=StringIO(), width=200)
    tables.print_comparisons(console, {"study": "s", "trials": trials[:1], "comparisons": compared(trials[:1], [])})
    assert console.file.getvalue() == ""


def decoded(label, **metrics):
    return {"label": label, "metrics": metrics, "tokens_per_answer": 7.25, "answers_per_second": 12.5, "unfinished": 3}


def test_several_decodings_get_a_table_of_their_own_and_one_does_not():
    both = [decoded("greedy", rouge_l=0.25), decoded("nucleus p=0.9", rouge_l=0.125, self_bleu=31.5)]
    text = printed(tables.print_results, [row(1, decoding=both), row(2, decoding=both)])
    assert "a [bold] study: 2 decodings" in text
    lines = [line for line in text.splitlines() if "nucleus p=0.9" in line]
    assert len(lines) == 2
    assert all(part in lines[0] for part in ("01234561-s42", "0.1250", "31.5000", "7.2", "12.5", "3"))
    assert "decoding" not in printed(tables.print_results, [row(1, decoding=both[:1])])


def test_a_c_score_names_its_judge_and_how_often_it_is_right():
    judge = {"model": "some/nli", "adapter": None, "revision": None, "check": None}
    scored = row(1, metrics={"c_score": 0.5})
    text = printed(tables.print_results, [scored], judge=judge)
    assert "c_score is judged by some/nli: its accuracy was not measured" in text
    assert "judged" not in printed(tables.print_results, [row(1)], judge=judge)
    check = {"accuracy": 0.8125, "num_examples": 4927, "task": "sick", "split": "test"}
    told = {**judge, "adapter": "an/adapter", "revision": "0123456789abcdef", "check": check}
    text = printed(tables.print_results, [scored], judge=told)
    assert "some/nli at 0123456789ab with an/adapter: accuracy 0.8125 on 4,927 examples of sick (test)" in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_number_is_shown_whole_or_its_column_is_named_as_left_out(width):
    names = ("rouge_l", "token_f1", "perplexity", "hits_at_1", "c_score")
    metrics = {name: 1000.0 + index / 7 for index, name in enumerate(names)}
    both = [decoded(label, **metrics) for label in ("greedy", "nucleus p=0.9 T=0.7 ×4")]
    text = printed(tables.print_results, [row(1, metrics=metrics, decoding=both)], width)
    assert max(map(len, text.splitlines())) <= width
    main, _, decodings = text.partition("2 decodings")
    for part in (main, decodings):
        left_out = part.partition("no room for: ")[2]
        for name, value in metrics.items():
            assert (f"{value:.4f}" in part) != (name in left_out)
    assert "01234561-s42" in main
    assert "query" in main


def test_what_is_dropped_is_said_once_for_each_reason():
    dropped = [
        {"trial": f"{name}-s{seed}", "reason": why} for name, why in (("a", "x"), ("b", "y"), ("c", "x")) for seed in (1, 2)
    ]
    assert tables.dropped_lines(dropped) == ["dropped: a, c: x", "dropped: b: y"]


def test_a_trial_without_an_adapter_shows_none_of_its_defaults():
    other = {**CONFIG, "method": "full", "targets": [], "lora_dropout": 0.0}
    text = printed(
        tables.print_results, [row(1, config={**CONFIG, "method": "lora", "lora_dropout": 0.1}), row(2, config=other)]
    )
    cells = next(line for line in text.splitlines() if "01234562" in line).split("│")
    assert [cell.strip() for cell in cells[3:8]] == ["–", "–", "–", "full", "–"]


SHORT = {"num_seeds": 2, "num_trials": 3, "configuration": "cafe0123", "interval": (0.85, 0.95), "mean": 0.9}
CONTROLS = {
    "metric": "accuracy", "confidence": 0.95, "margin_percent": 3.0, "chosen_on": "the mean over seeds on validation",
    "methods": {
        "full": {"chosen": {**SHORT, "learning_rate": 1e-4}, "tried": [{}, {}], "at_edge": True},
        "head": {"chosen": None, "tried": [{}], "at_edge": False},
    },
    "shortfalls": [
        {**SHORT, "config": CONFIG, "against": "full", "shortfall": 0.01, "interval_of_shortfall": (0.0, 0.02), "percent": 1.1,
         "percent_interval": [0.0, 2.2], "within_margin": True, "num_seeds": 3, "paired_seeds": 3},
        {**SHORT, "config": {**CONFIG, "r": 4}, "against": "full", "shortfall": None, "interval_of_shortfall": None,
         "percent": None, "percent_interval": None, "within_margin": None, "paired_seeds": 0},
    ],
}  # fmt: skip


@pytest.mark.parametrize("width", [80, 200])
def test_controls_say_how_they_were_chosen_and_what_adapters_lack(width):
    console = Console(file=StringIO(), width=width)
    tables.print_controls(console, {"study": "s", "controls": CONTROLS})
    text = " ".join(console.file.getvalue().split())
    assert (
        "full: accuracy 0.9000 ± 0.0500 over 2 seeds at learning rate 0.0001, the best of 2 configurations; it is the" in text
    )
    assert "head: no configuration has a score with every seed" in text
    assert "│ +0.0100 ± 0.0100 │ +1.10 (+0.00 … +2.20) │ yes │" in text
    assert "│ – │ – │ not known │" in text
    assert ("│ 0 of 3 │" in text) == (width == 200)
    assert "yes and no: every seed has a score, and the 95% interval lies on one side of 3 %" in text
    assert "a control is the best by the mean over seeds on validation" in text
    tables.print_controls(console, {"study": "s"})
    assert " ".join(console.file.getvalue().split()) == text


def test_an_ablation_is_shown_with_its_intervals():
    rows = [
        {**SHORT, "factor": "baseline", "value": None, "delta": None, "delta_interval": None},
        {**SHORT, "factor": "r", "value": 4, "configuration": "other", "delta": -0.01, "delta_interval": (-0.03, 0.01)},
        {**SHORT, "factor": "targets", "value": ["query"], "delta": None, "delta_interval": None},
    ]
    console = Console(file=StringIO(), width=100)
    ablation = {"metric": "accuracy", "confidence": 0.95, "rows": rows}
    tables.print_ablation(console, {"study": "s", "ablation": ablation})
    text = " ".join(console.file.getvalue().split())
    assert "│ r │ 4 │ 0.9000 ± 0.0500 │ -0.0100 ± 0.0200 │ 2 of 3 │" in text
    assert text.count("│ baseline │") == 3  # the first row's name, and two values that are the baseline's own


def search_of(**more):
    one = {"configuration": "01234561", "number": 0, "values": {"r": 8}, "status": "done", "objective": 0.9, "last_rung": None}
    found = {
        "objective": "accuracy",
        "sampler": "tpe",
        "configurations": [one],
        "course": [{"proposed": 1, "objective": 0.9, "best": 0.9}],
        "best": "01234561",
        "chosen_on": "validation",
        "reason": None,
        "finished": 23,
        "importances": {"r": 1.0},
    }
    console = Console(file=StringIO(), width=200)
    tables.print_search(console, {"study": "a study", "search": found | more})
    return console.file.getvalue()


def test_a_search_says_on_what_its_best_was_chosen_and_over_how_many_its_shares_are():
    text = search_of()
    assert "best: 01234561; accuracy by configurations proposed: 0.9000 (1)" in text
    assert "chosen on validation, the split that it is scored on" in text
    assert "share of each key in accuracy (fANOVA, over 23 finished configurations): r 1.00" in text


def test_a_search_without_a_best_says_why():
    text = search_of(best=None, course=[], importances=None, reason="no trial has a [f1]; there is eval_loss")
    assert "no best configuration: no trial has a [f1]; there is eval_loss" in text
    assert "chosen on" not in text


def test_the_bars_of_all_players_stand_on_one_scale():
    def value(estimate, low, high):
        per = dict.fromkeys(("per_million_parameters", "per_second", "per_ms_latency"))
        return {"estimate": estimate, "low": low, "high": high, **per}

    values = {"first": value(0.1, 0.07, 0.13), "second": value(0.06, 0.05, 0.08), "third": value(0.04, 0.01, 0.06)}
    metric = {
        "values": values, "ranking": [["first"], ["second"], ["third"]], "higher_is_better": True, "num_coalitions": 8,
        "exact": True, "full": {"estimate": 0.2, "low": 0.1, "high": 0.3}, "verdict": "first > second > third",
        "interactions": [], "notes": [], "recommended": None,
    }  # fmt: skip
    console = Console(file=StringIO(), width=200)
    latency = {"reason": "not measured: no time"}
    game = {"what": "usefulness", "seeds": [1, 2], "metrics": {"accuracy": metric}, "latency": latency}
    tables.print_shapley(console, {"study": "a study", "shapley": game})
    lines = [line for line in console.file.getvalue().splitlines() if "●" in line]
    marks = [line.index("●") for line in lines]
    # Zero is marked where the column begins: the estimates fall, and so do their places on the scale.
    assert [line[line.index("]") :].index("│ │") for line in lines] == [2, 2, 2]
    assert marks == sorted(marks, reverse=True)
    assert len(set(marks)) == 3


def game(**missing):
    value = {"estimate": -0.1, "low": -0.2, "high": -0.05, "per_million_parameters": -1.0, "per_second": -0.5}
    value |= {"per_ms_latency": -0.1} | missing
    metric = {
        "values": {"query": value, "value": value}, "ranking": [["query", "value"]], "higher_is_better": False,
        "num_coalitions": 4, "exact": True, "full": value, "verdict": "v", "interactions": [], "notes": [],
        "recommended": None,
    }  # fmt: skip
    shapley = {"seeds": [1, 2], "what": "usefulness", "latency": {"reason": "not timed"}, "metrics": {"eval_loss": metric}}
    return {"study": "a", "shapley": shapley}


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("missing", [{}, {"per_ms_latency": None}, {"per_ms_latency": None, "per_second": None}])
def test_a_game_is_shown_on_a_narrow_terminal_whatever_was_not_measured(width, missing):
    console = Console(file=StringIO(), width=width)
    tables.print_shapley(console, game(**missing))
    text = console.file.getvalue()
    assert "-0.1000" in text
    assert "query" in text


WIDE = {"learning_rate": 0.000156627, "lora_dropout": 0.1234, "bias": "lora_only", "quantization": "nf4"}


@pytest.mark.parametrize("width", [50, 80, 140])
def test_a_narrow_table_gives_up_settings_before_scores_and_breaks_no_number(width):
    trials = [
        row(number, metrics={"eval_loss": 0.6931, "accuracy": 0.5 + number / 100},
            config=CONFIG | {key: (value if number else None) for key, value in WIDE.items()})
        for number in range(2)
    ]  # fmt: skip
    text = printed(tables.print_results, trials, width)
    assert "01234560-s42" in text
    assert text.count("0.6931") == 2
    assert ("0.000156627" in text) == ("learning_rate" in text.split("no room for")[0])


def test_every_row_of_the_shortfalls_can_be_told_from_the_others_on_a_narrow_terminal():
    shortfall = {
        "mean": 0.8, "interval": [0.7, 0.9], "against": "full", "shortfall": 0.01, "interval_of_shortfall": [0.0, 0.02],
        "percent": 1.2, "percent_interval": [0.1, 2.0], "within_margin": None, "num_seeds": 3, "num_trials": 3,
        "paired_seeds": 3,
    }  # fmt: skip
    rows = [shortfall | {"configuration": f"0123456{n}", "config": CONFIG | {"lora_alpha": 8.0 * n}} for n in range(1, 4)]
    controls = {
        "metric": "accuracy", "margin_percent": 3.0, "methods": {}, "shortfalls": rows, "confidence": 0.95,
        "chosen_on": "eval_loss",
    }  # fmt: skip
    console = Console(file=StringIO(), width=70)
    tables.print_controls(console, {"study": "a", "controls": controls})
    text = console.file.getvalue()
    assert all(f"0123456{n}" in text for n in range(1, 4))
