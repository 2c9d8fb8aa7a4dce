"""Small studies on the tiny models: a sentiment file and official SQuAD JSON, both written here."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lorascope.cohort.run import Limits, run_study
from lorascope.config import Study
from lorascope.design import expand
from lorascope.lora import frozen
from lorascope.store import Store, TrialRow

POSITIVE = ("charming", "bright", "funny", "warm")
NEGATIVE = ("wooden", "slow", "long", "little")
CONTEXTS = (
    ("Ada Lovelace wrote about the engine of Charles Babbage", "Ada Lovelace", "who wrote about the engine"),
    ("the river Thames flows through the city of London", "London", "where does it flow"),
    ("the acting is wooden and the plot goes nowhere", "nowhere", "where does the plot go"),
    ("it is a bright funny film with a warm heart", "a warm heart", "what is it with"),
)


@pytest.fixture(scope="session", autouse=True)
def plain_kernels() -> Iterator[None]:
    """Which path is the fastest for models this small is chance, and paths round differently."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "choose", lambda *_: frozen.Choice("plain", {"plain": 1.0}, {"plain": 0.0}))
        yield


def sentences(count: int, seed: int, subject: str) -> list[dict[str, str]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.choice(("negative", "positive"))
        words = draw.choices(POSITIVE if label == "positive" else NEGATIVE, k=draw.randint(1, 6))
        rows.append({"text": f"{subject} is {' '.join(words)}", "label": label})
    return rows


def squad(count: int, subject: str) -> dict[str, Any]:
    paragraphs: dict[str, list[dict[str, Any]]] = {}
    for number in range(count):
        context, answer, question = CONTEXTS[number % len(CONTEXTS)]
        context = f"{context} {subject} {number // len(CONTEXTS)}"
        answers = [{"text": answer, "answer_start": context.index(answer)}]
        paragraphs.setdefault(context, []).append({"id": f"q{number}", "question": f"{question}?", "answers": answers})
    qas = [{"context": context, "qas": questions} for context, questions in paragraphs.items()]
    return {"version": "1.1", "data": [{"title": "a title", "paragraphs": qas}]}


@pytest.fixture(scope="session")
def data_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train.jsonl`` and ``validation.jsonl`` (text + label), ``squad/train-v1.1.json`` and ``squad/dev-v1.1.json``."""
    directory = tmp_path_factory.mktemp("data")
    (directory / "squad").mkdir()
    splits = (("train", "train-v1.1", 20, 1, "the film"), ("validation", "dev-v1.1", 8, 2, "the plot"))
    for split, published, size, seed, subject in splits:
        lines = [json.dumps(row) + "\n" for row in sentences(size, seed, subject)]
        (directory / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        (directory / "squad" / f"{published}.json").write_text(json.dumps(squad(size, subject)), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def make_study(data_directory: Path, model_directory: Callable[[str], Path]) -> Callable[..., Study]:
    """``make_study(family, trials=[{}], seeds=[1], **sections)``: five steps an epoch on the file, or on SQuAD."""

    def make(
        family: str = "bert",
        trials: list[dict[str, Any]] | None = None,
        seeds: list[int] | None = None,
        task: str = "file",
        **sections: dict[str, Any],
    ) -> Study:
        tasks: dict[str, dict[str, Any]] = {
            "file": {"name": "file", "data": str(data_directory), "max_length": 32},
            "squad": {"name": "squad", "data": str(data_directory / "squad"), "max_length": 96},
        }
        return Study.model_validate(
            {
                "name": "tiny",
                "base": {"model": str(model_directory(family)), **sections.get("base", {})},
                "task": tasks[task] | sections.get("data", {}),
                "adapter": {"r": 2, "targets": ["query"], **sections.get("adapter", {})},
                "train": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, **sections.get("train", {})},
                "seeds": seeds or [1],
                "design": {"kind": "list", "trials": trials or [{}]},
                "evaluate": {"decoding": [{"max_new_tokens": 4}]},
            }
        )

    return make


@pytest.fixture(scope="session")
def carry_out() -> Callable[..., list[Any]]:
    """``carry_out(study, directory, **options)``: run a study to its end; its events. Options may be those of ``Limits``."""

    def run(study: Study, directory: Path, **options: Any) -> list[Any]:
        trials = options.pop("trials", None) or expand(study)
        limits = Limits(**{each.name: options.pop(each.name) for each in fields(Limits) if each.name in options})
        return list(run_study(study, trials, directory, limits=limits, **options))

    return run


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], list[TrialRow]]:
    """``rows_of(directory)``: the trials of a study as stored."""

    def read(directory: Path) -> list[TrialRow]:
        with Store.open(directory) as store:
            return store.trials()

    return read


@pytest.fixture(scope="session")
def losses_of() -> Callable[[Path], dict[str, list[float]]]:
    """``losses_of(directory)``: the loss curve of every trial."""

    def read(directory: Path) -> dict[str, list[float]]:
        with Store.open(directory) as store:
            return {row.trial: [step["loss"] for step in store.steps(row.trial)] for row in store.trials()}

    return read


@pytest.fixture(scope="session")
def bert_run(
    make_study: Callable[..., Study], carry_out: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished study of two configurations and two seeds; not to be written to."""
    directory = tmp_path_factory.mktemp("bert") / "run"
    trials = [{}, {"r": 4, "targets": "all-linear", "bias": "all"}]
    carry_out(make_study("bert", trials, [1, 2], train={"epochs": 6}), directory)
    return directory


@pytest.fixture(scope="session")
def squad_run(
    make_study: Callable[..., Study], carry_out: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished SQuAD study of GPT-2 with two configurations; not to be written to."""
    directory = tmp_path_factory.mktemp("squad") / "run"
    trials = [{"targets": ["query", "value"]}, {"r": 3, "targets": "all-linear"}]
    carry_out(make_study("gpt2", trials, task="squad", train={"epochs": 4}), directory)
    return directory
