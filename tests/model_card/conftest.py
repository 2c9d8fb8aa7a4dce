"""Facts of a whole card, to be varied."""

from dataclasses import replace

import pytest

from lorascope.model_card import AdapterFacts, BaseFacts, CardFacts, Cost, DataFacts, Licence, MetricFacts, SeedFacts

CHECKSUM = "0123456789abcdef" * 4


@pytest.fixture
def facts():
    """``facts(**changes)``: an adapter's card from a study, with some facts replaced."""
    whole = CardFacts(
        name="my-adapter",
        form="adapter",
        task_type="SEQ_CLS",
        base=BaseFacts(
            "org/base", revision="abc123", checksum=CHECKSUM, licence=Licence("mit", source="the base's README.md")
        ),
        adapter=AdapterFacts({"r": 8, "targets": ["query", "value"]}, 4, ("classifier",), 1234, 5678, ("no", "yes"), 2),
        version="0.0",
        study="which-targets",
        trial="0123abcd-s42",
        seed=42,
        data=DataFacts(
            "sst2", "validation", ("nyu-mll/glue",), ("nyu-mll/glue",), CHECKSUM, "jsonl", 800, 100, {"max_eval": 100}
        ),
        metrics=(
            MetricFacts("accuracy", 0.91, True, 0.84, 0.95, "Wilson, 100 examples", SeedFacts(3, 0.9, 0.88, 0.91, 0.86, 0.94)),
            MetricFacts("eval_loss", 0.3, False, method="none: 6 examples are too few"),
        ),
        training={"epochs": 3, "learning_rate": 1e-3},
        cost=Cost(1234, 100_000, 1.234, 61.0, 2**30, 20.0, 2**29, 4, "CPU, 2 cores"),
        limitations=("Scored on one split.",),
        warnings=("3 examples were cut",),
        study_file="study.yaml",
        versions={"torch": "2.9"},
        licence=Licence("mit", source="the base's README.md"),
    )
    return lambda **changes: replace(whole, **changes)
