"""The rules of thumb, value by value, and the steps that a goal takes from them."""

import pytest

from lorascope.recommend.rules import KINDS, Choice, by_rule, other_targets, stepped

ENCODER = ("query", "key", "value", "output", "up", "down")
ATTENTION = ["query", "key", "value", "output"]


def values(kind, goal="default", memory=None, roles=ENCODER):
    chosen = by_rule(kind, roles, memory)
    return {key: choice.value for key, choice in {**chosen, **stepped(chosen, roles, goal)}.items()}


def test_every_task_but_the_users_own_files_has_a_kind():
    from lorascope.data.task import TASKS

    assert set(KINDS) == set(TASKS) - {"file"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("classification", {"r": 16, "lora_alpha": 32.0, "lora_dropout": 0.1, "targets": ATTENTION, "bias": "none"}),
        ("generation", {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.05, "targets": ATTENTION, "bias": "none"}),
        (
            "question answering",
            {"r": 32, "lora_alpha": 64.0, "lora_dropout": 0.1, "targets": "all-linear", "bias": "lora_only"},
        ),
    ],
)
def test_each_kind_of_task_begins_with_its_rule(kind, expected):
    assert values(kind) == expected
    assert all(choice.source == "rule" for choice in by_rule(kind, ENCODER, None).values())


def test_under_eight_gigabytes_the_rule_is_four_bits_and_the_query_alone():
    small = values("question answering", memory=6 * 10**9)
    assert small == {
        "r": 4, "lora_alpha": 8.0, "lora_dropout": 0.05, "targets": ["query"], "quantization": "nf4", "bias": "lora_only",
    }  # fmt: skip
    assert "quantization" not in values("classification", memory=8 * 10**9)


def test_against_overfitting_dropout_is_three_tenths():
    assert values("generation", "overfits") == values("generation") | {"lora_dropout": 0.3}
    held = stepped({"lora_dropout": Choice(0.1, "evidence", "")}, ENCODER, "overfits", ["lora_dropout"])
    assert held == {}


def test_faster_lowers_the_rank_and_targets_less_and_better_raises_both():
    faster, better = values("classification", "faster"), values("classification", "better")
    assert (faster["r"], faster["lora_alpha"], faster["targets"]) == (8, 16.0, ["query", "value"])
    assert (better["r"], better["lora_alpha"], better["targets"]) == (32, 64.0, "all-linear")
    assert values("question answering", "better")["targets"] == "all-linear"


def test_targets_are_the_models_own_roles():
    crossed = (*ATTENTION, "cross_query", "cross_key", "cross_value", "cross_output", "up", "down")
    assert values("classification", roles=crossed)["targets"] == list(crossed[:-2])
    unknown = by_rule("classification", (), None)["targets"]
    assert unknown.value == "all-linear"
    assert "not known" in unknown.why


@pytest.mark.parametrize(
    ("targets", "up", "expected"),
    [
        (["query"], True, ["query", "value"]),
        (["value"], True, ["query", "value"]),
        (["value", "output"], True, ATTENTION),
        (ATTENTION, True, "all-linear"),
        ("all-linear", True, None),
        ("all-linear", False, ATTENTION),
        (["query", "value"], False, ["query"]),
        (["query"], False, None),
        (["value", "output"], False, None),
        (["encoder.layer.0.odd"], True, "all-linear"),
        (["encoder.layer.0.odd"], False, None),
    ],
)
def test_a_step_of_the_ladder_holds_the_targets_or_is_a_part_of_them(targets, up, expected):
    assert other_targets(targets, ENCODER, up=up) == expected
