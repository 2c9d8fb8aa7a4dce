"""Finished studies: a real small one of a classifier, and ones of made-up scores that need no training."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorascope.cohort.run import run_study
from lorascope.config import Study
from lorascope.design import expand
from lorascope.store import Store

README = "---\nlicense: apache-2.0\n---\n# A base\n"


def sentences(count: int, seed: int) -> list[dict[str, str]]:
    draw = random.Random(seed)
    words = {"negative": ("wooden", "slow", "long"), "positive": ("charming", "bright", "warm")}
    labels = [draw.choice(list(words)) for _ in range(count)]
    return [{"text": f"the film is {' '.join(draw.choices(words[one], k=4))} {seed}", "label": one} for one in labels]


@pytest.fixture(scope="session")
def study(model_directory: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Study]:
    """``study(**sections)``: of the tiny BERT on a file of two classes; two configurations, two seeds."""
    directory = tmp_path_factory.mktemp("my data")
    for split, size, seed in (("train", 16, 1), ("validation", 12, 2)):
        lines = "".join(json.dumps(row) + "\n" for row in sentences(size, seed))
        (directory / f"{split}.jsonl").write_text(lines, encoding="utf-8")

    def make(**sections: Any) -> Study:
        values = {
            "name": "tiny",
            "base": {"model": str(model_directory("bert"))},
            "task": {"name": "file", "data": str(directory), "max_length": 32},
            "train": {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2},
            "seeds": [1, 2],
            "design": {"kind": "list", "trials": [{"r": 2, "targets": ["query"]}, {"r": 4, "targets": "all-linear"}]},
        }
        return Study.model_validate(values | sections)

    return make


@pytest.fixture(scope="session")
def finished(study: Callable[..., Study], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study carried out; not to be written to."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    wanted = study()
    list(run_study(wanted, expand(wanted), directory))
    return directory


@pytest.fixture
def scored(study: Callable[..., Study], tmp_path: Path) -> Callable[..., Path]:
    """``scored([{...}, ...], trials=None, seeds=None)``: a study's directory with these outcomes, in the order of its trials.

    An outcome has ``hits`` (of ten examples) or ``status``; further keys are columns of the store.
    """

    def make(outcomes: list[dict[str, Any]], trials: list[dict[str, Any]], seeds: list[int], **sections: Any) -> Path:
        wanted = study(design={"kind": "list", "trials": trials}, seeds=seeds, **sections)
        directory = tmp_path / "run"
        with Store.create(directory, wanted) as store:
            configs = expand(wanted)
            store.add_trials(configs)
            for config, outcome in zip(configs, outcomes, strict=True):
                enter(store, config.trial, **outcome)
        return directory

    return make


def enter(store: Store, trial: str, hits: list[int] | None = None, status: str = "done", **columns: Any) -> None:
    """One trial's outcome; with ``hits`` its accuracy and predictions."""
    if hits is not None:
        store.set_metrics(trial, {"accuracy": sum(hits) / len(hits)})
        rows = [
            {
                "id": f"e{i}",
                "correct": bool(hit),
                "label": "a",
                "prediction": "a" if hit else "b",
                "logits": [1.0, 0.0],
                "loss": 0.5,
            }
            for i, hit in enumerate(hits)
        ]
        home = store.directory / "trials" / trial
        home.mkdir(parents=True)
        (home / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns.setdefault("adapter", f"trials/{trial}/adapter" if status == "done" else None)
    store.update(trial, status=status, **columns)
