"""A card tells each machine and what became of the rate."""

import pytest
from models.card import _hardware, _rates
from models.checkpoint import Schedule

HERE = {"device": "cpu", "processor": "AMD EPYC (AVX2)", "torch": "2.9", "threads": 2, "precision": "float32"}


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (250, "rate 0.002 after 100 steps of warm-up, which had not begun to fall"),
        (350, "rate 0.002 after 100 steps of warm-up, falling since step 300, 0.001 at the end"),
        (400, "rate 0.002 after 100 steps of warm-up, falling to 0 over the last 100"),
    ],
)
def test_it_says_how_far_the_rate_had_fallen(step, told):
    assert _rates(Schedule(2e-3, 100, 400, 100), step, 0) == told


def test_it_counts_the_steps_that_were_thrown_away():
    told = _rates(Schedule(2e-3, 100, 400, 100), 400, 1760)
    assert told.endswith("over the last 100. 1,760 more steps, in which it had fallen earlier, were thrown away")


def test_one_machine_has_one_row_without_steps():
    (row,) = _hardware([{"first_step": 0, "conditions": HERE}], 400)
    assert row == "| hardware | AMD EPYC (AVX2), 2 threads, float32, torch 2.9 |"


def test_every_machine_has_a_row_with_its_steps():
    gpu = {"device": "cuda", "processor": "H100", "torch": "2.9", "threads": 16, "precision": "bfloat16"}
    rows = list(_hardware([{"first_step": 0, "conditions": HERE}, {"first_step": 1200, "conditions": gpu}], 4000))
    assert rows == [
        "| hardware | steps 0 to 1,200: AMD EPYC (AVX2), 2 threads, float32, torch 2.9 |",
        "|  | steps 1,200 to 4,000: H100, bfloat16, torch 2.9 |",
    ]
