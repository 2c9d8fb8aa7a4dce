"""What is given up until it fits: nothing that changes a result while something else is left."""

import pytest

from lorascope.recommend.memory import fit
from lorascope.recommend.rules import Choice

ROLES = ("query", "key", "value", "output")
START = {
    "batch_size": 8, "micro_batch_size": None, "quantization": None, "dtype": "float32", "r": 16, "lora_alpha": 32.0,
    "lora_dropout": 0.1, "targets": list(ROLES),
}  # fmt: skip


SMALLEST = {"dtype": "bfloat16", "r": 4, "lora_alpha": 8.0, "targets": ["query"]}


def forecast(choices):
    """1000 of base in full, 16 for each row, 1 for each rank and target."""
    value = {key: choice.value for key, choice in choices.items()}
    base = 1000 // ((8 if value["quantization"] else 1) * (2 if value["dtype"] == "bfloat16" else 1))
    return base + 16 * (value["micro_batch_size"] or value["batch_size"]) + value["r"] * len(value["targets"])


def fitted(most, can_quantise=True, **begun):
    choices, needed = fit(
        {k: Choice(v, "rule", "") for k, v in {**START, **begun}.items()}, forecast, most, ROLES, can_quantise=can_quantise
    )
    assert needed == forecast(choices)
    return {key: choice.value for key, choice in choices.items() if choice.source == "memory"}, needed


@pytest.mark.parametrize(
    ("most", "given_up"),
    [
        (1200, {}),
        (1150, {"micro_batch_size": 4}),
        (1100, {"micro_batch_size": 2}),
        (1000, {"quantization": "nf4"}),
        (200, {"micro_batch_size": 4, "quantization": "nf4", "dtype": "bfloat16"}),
        (145, {"micro_batch_size": 1, "quantization": "nf4", "dtype": "bfloat16"}),
        (100, {"micro_batch_size": 2, "quantization": "nf4", **SMALLEST}),
    ],
)
def test_as_little_is_given_up_as_fits(most, given_up):
    assert fitted(most)[0] == given_up


def test_without_packed_weights_sixteen_bits_are_left():
    assert fitted(1000, can_quantise=False)[0] == {"dtype": "bfloat16"}


def test_where_nothing_is_enough_the_smallest_says_what_it_needs():
    assert fitted(10)[1] > 10


@pytest.mark.parametrize(
    ("begun", "given_up"),
    [
        ({"r": 2, "lora_alpha": 2.0}, {"targets": ["query"]}),
        ({"r": 16, "lora_alpha": 16.0, "targets": ["value"]}, {"r": 4, "lora_alpha": 4.0}),
        ({"r": 2, "targets": ["query"]}, {}),
    ],
)
def test_nothing_is_raised_to_fit(begun, given_up):
    found = fitted(10, **begun)[0]
    assert {key: found[key] for key in found if key in ("r", "lora_alpha", "lora_dropout", "targets")} == given_up
