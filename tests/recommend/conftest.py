"""Results documents and studies' evidence, made by hand: what `lorascope results --json` would print."""

import itertools
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import pytest

from lorascope.metrics import HIGHER_IS_BETTER
from lorascope.recommend.closeness import ModelFacts, TaskFacts
from lorascope.recommend.evidence import StudyEvidence, read_evidence

CONFIG = {
    "method": "lora", "r": 8, "lora_alpha": 16.0, "lora_dropout": 0.0, "targets": ["query", "value"], "bias": "none",
    "use_rslora": False, "epochs": 1, "batch_size": 32, "micro_batch_size": None, "learning_rate": 1e-3, "warmup_ratio": 0.06,
    "schedule": "linear", "weight_decay": 0.0, "max_grad_norm": 1.0, "max_steps": None, "base_dropout": False, "model": "m",
    "dtype": "float32", "quantization": None, "revision": None,
}  # fmt: skip
SST2 = TaskFacts("sst2", "classification", ("data",))
BERT = ModelFacts("/models/bert", "bert", (64, 2), 1_000_000)


def document(
    configurations: dict[str, tuple[dict[str, Any], Any]], verdicts: dict[tuple[str, str], str], metric: str, half: float
) -> dict[str, Any]:
    """Of every configuration its overrides and its scores by seed, a status in the place of a score where there is none.

    ``verdicts[one, other]`` is what ``one`` is against ``other``; all other pairs are not distinguishable. Intervals reach
    ``half`` to either side.
    """
    trials = []
    for name, (overrides, scores) in configurations.items():
        for seed, score in enumerate(scores):
            done = not isinstance(score, str)
            trials.append(
                {
                    "trial": f"{name}-s{seed}", "seed": seed, "status": "done" if done else score,
                    "config": CONFIG | overrides, "metrics": {metric: score} if done else {},
                    "trainable_params": 100 * (CONFIG | overrides)["r"] * len((CONFIG | overrides)["targets"]),
                    "total_params": 1_000_000, "solo_train_seconds_per_epoch": 1.0 + len((CONFIG | overrides)["targets"]),
                }
            )  # fmt: skip
    rows = []
    for against, name in itertools.combinations(configurations, 2):
        scores = [[score for score in configurations[one][1] if not isinstance(score, str)] for one in (name, against)]
        seeds = min(map(len, scores))
        verdict = verdicts.get((name, against), "not distinguishable" if seeds > 1 else "too few seeds")
        if (against, name) in verdicts:
            verdict = {"better": "worse", "worse": "better"}[verdicts[against, name]]
        difference = mean(scores[0]) - mean(scores[1]) if seeds else None
        rows.append(
            {
                "configuration": name, "against": against, "metric": metric, "difference": difference,
                "low": difference - half if seeds > 1 else None, "high": difference + half if seeds > 1 else None,
                "verdict": verdict, "seeds": seeds,
            }
        )  # fmt: skip
    compared = {"metric": metric, "rows": rows, "correction": f"Holm over {len(rows)} comparisons"}
    assert metric in HIGHER_IS_BETTER
    return {"study": "mine", "trials": trials, "comparisons": compared, "shapley": {}}


@pytest.fixture
def results() -> Callable[..., dict[str, Any]]:
    """``results({"aaaa": ({"r": 4}, [0.8, 0.9])})``: a results document of accuracies."""
    return lambda configurations: document(configurations, {}, "accuracy", 0.005)


@pytest.fixture
def evidence() -> Callable[..., StudyEvidence]:
    """``evidence({"aaaa": ({"r": 4}, [0.8, 0.9])}, {("aaaa", "bbbb"): "worse"}, metric=…, model=…, more={…})``."""

    def make(
        configurations: dict,
        verdicts: dict | None = None,
        *,
        metric: str = "accuracy",
        task: TaskFacts = SST2,
        model: ModelFacts = BERT,
        directory: str = "runs/mine",
        more: dict | None = None,
        half: float = 0.005,
    ) -> StudyEvidence:
        made = document(configurations, verdicts or {}, metric, half) | (more or {})
        return read_evidence(made, directory=directory, design="list", task=task, model=model, section={"name": task.name})

    return make


class EvenCosts:
    """Ten seconds and 100 MiB for every trial; a hundred examples."""

    measured: tuple[Any, ...] = ()
    num_examples = 100

    def roles(self, _: Any) -> tuple[str, ...]:
        return ("query", "key", "value", "output", "up", "down")

    def rows(self, trials: Sequence[Any]) -> tuple[list[dict[str, Any]], str]:
        row = {
            "memory_bytes": 100 * 2**20, "train_seconds": 10.0, "reason": None, "trainable_params": 10, "total_params": 1000,
            "trainable_percent": 1.0,
        }  # fmt: skip
        return [row for _ in trials], "nowhere"


@pytest.fixture
def costs() -> EvenCosts:
    """What nobody had to plan."""
    return EvenCosts()
