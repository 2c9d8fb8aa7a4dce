"""Stores written by hand, and pages read back: no model is trained for a report."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lorascope.attribution.players import stored_game
from lorascope.cli.study import results_of
from lorascope.config import ShapleyDesign, Study
from lorascope.design import expand
from lorascope.report import report_page
from lorascope.report.findings import Findings, gather
from lorascope.store import Store

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
LIST = {"kind": "list", "trials": [{"r": 4}, {"r": 8}, {"r": 16, "targets": "all-linear"}]}
# How far each of three configurations is from the first.
STEPS = (0.0, 0.002, 0.16)


@dataclass
class Page(HTMLParser):
    """A page that was read strictly: every element is closed where it was opened."""

    source: str
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        self._section = ""
        self.feed(self.source)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        assert len(attributes) == len(attrs), (tag, attrs)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append(f"{tag} {attributes.get('class', '')}".strip() if tag == "span" else tag)
        if tag == "section":
            self._section = attributes["id"]
        if tag == "table":
            self.tables.append({"section": self._section, "caption": "", "head": [], "rows": []})
        if tag == "tr" and "thead" not in self._open:
            self.tables[-1]["rows"].append([])
        if tag == "th" and "thead" in self._open:
            self.tables[-1]["head"].append("")
        elif tag in ("th", "td"):
            assert (tag == "th") == (attributes.get("scope") == "row") == (not self.tables[-1]["rows"][-1])
            self.tables[-1]["rows"][-1].append({"text": "", "value": attributes.get("data-value")})

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        assert self._open.pop().partition(" ")[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["script"], ["style"]):
            self.texts.append(data)
        if "caption" in self._open:
            self.tables[-1]["caption"] += data
        if "thead" in self._open and "th" in self._open and "span unit" not in self._open:
            self.tables[-1]["head"][-1] += data
        if "tbody" in self._open and {"th", "td"} & {*self._open} and "span more" not in self._open:
            self.tables[-1]["rows"][-1][-1]["text"] += data

    @property
    def text(self) -> str:
        """All that is shown."""
        return " ".join(" ".join(self.texts).split())

    def table(self, section: str, index: int = 0) -> list[dict[str, dict[str, str]]]:
        """The rows of a section's table, each by the title of its column."""
        found = [table for table in self.tables if table["section"] == section][index]
        return [dict(zip(found["head"], row, strict=True)) for row in found["rows"]]


def make_study(**sections: Any) -> Study:
    values = {
        "name": "by-hand",
        "base": {"model": "org/model"},
        "task": {"name": "sst2", "data": "org/data"},
        "seeds": [1, 2, 3],
        "design": LIST,
    }
    return Study.model_validate(values | sections)


def trials_of(study: Study) -> list[Any]:
    """What the study trains."""
    if isinstance(study.design, ShapleyDesign):
        game = stored_game(study, [])
        return game.trials(game.coalitions())
    return expand(study)


def classes(accuracy: float, seed: int, count: int = 60) -> list[dict[str, Any]]:
    """Predictions of a classifier that is right so often, not always on the same examples."""
    rows = []
    for index in range(count):
        right = (index * 7 + seed) % count < round(accuracy * count)
        label = ("negative", "positive")[index % 2]
        guess = label if right else ("positive", "negative")[index % 2]
        logits = [1.5, -1.5] if guess == "negative" else [-1.5, 1.5]
        rows.append({"id": f"e{index}", "prediction": guess, "label": label, "correct": right, "logits": logits, "loss": 0.4})
    return rows


def accuracy_of(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(row["correct"] for row in rows) / len(rows)


def worth_of(coalition: Sequence[str], seed: int) -> float:
    """Of players that add up: value more than query, query more than key, a little otherwise with each seed."""
    worth = {"query": 0.05 + 0.005 * ((seed + 1) % 3), "key": 0.005 * (2 * seed % 3), "value": 0.2 + 0.005 * (seed % 3)}
    return 0.6 + sum(worth[player] for player in coalition)


def score_of(config: Mapping[str, Any], seed: int) -> float:
    """About how often a trial of a list is right."""
    return 0.62 + {4: STEPS[0], 8: STEPS[1], 16: STEPS[2]}.get(config["r"], 0.0) + 0.01 * (seed % 2)


def enter(store: Store, trial: Any, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, float], **columns: Any) -> None:
    """One trial that is done, with its curve and predictions."""
    config = trial.flat()
    figures = {
        "status": "done",
        "trainable_params": 500 * config["r"] * (len(config["targets"]) if isinstance(config["targets"], list) else 6),
        "total_params": 10_000_000,
        "solo_train_seconds_per_epoch": 2.0 + config["r"] / 10,
        "solo_examples_per_second": 100.0,
        "solo_peak_memory_bytes": (500 + config["r"]) * 2**20,
        "data_checksum": "d",
        "base_checksum": "b",
    }
    store.update(trial.trial, **(figures | columns))
    store.set_metrics(trial.trial, metrics)
    store.add_steps(trial.trial, [{"step": step, "loss": math.exp(-step / 40) + 0.1 / config["r"]} for step in range(50)])
    path = store.directory / "trials" / trial.trial / "predictions.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def study_of() -> Callable[..., Study]:
    """``study_of(**sections)``: three configurations and three seeds, with some sections replaced."""
    return make_study


@pytest.fixture
def entered() -> Callable[..., None]:
    """``entered(store, trial, rows, metrics, **columns)``: a trial becomes done, with its curve and predictions."""
    return enter


@pytest.fixture
def read_page() -> Callable[[str], Page]:
    """``read_page(source)``: strictly."""
    return Page


@pytest.fixture
def findings_of() -> Iterator[Callable[..., Findings]]:
    """``findings_of(directory, ...)``: what the report shows of a study."""
    with ExitStack() as opened:

        def make(*directories: Path) -> Findings:
            stores = [opened.enter_context(Store.open(directory)) for directory in directories]
            return gather(stores, results_of(stores))

        yield make


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """``written(study, name="run", ended={...})``: its directory; every trial is done, or as ``ended`` says by number.

    ``score(config, seed)`` is how often a trial is right, ``worth(coalition, seed)`` one of a game; by default as above.
    """

    def write(
        study: Study,
        name: str = "run",
        ended: Mapping[int, Mapping[str, Any]] | None = None,
        score: Callable[[Mapping[str, Any], int], float] = score_of,
        worth: Callable[[Sequence[str], int], float] = worth_of,
    ) -> Path:
        directory = tmp_path / name
        with Store.create(directory, study) as store:
            trials = trials_of(study)
            store.add_trials(trials)
            store.set_info("versions", {"lorascope": "0.1.0"})
            store.set_info("data", {"checksum": "d", "num_train": 100, "num_eval": 60})
            for number, trial in enumerate(trials):
                other = (ended or {}).get(number)
                if other is not None:
                    store.update(trial.trial, **other)
                    continue
                is_game = isinstance(study.design, ShapleyDesign)
                right = worth(trial.adapter.targets, trial.seed) if is_game else score(trial.flat(), trial.seed)
                rows = classes(right, trial.seed, 200 if is_game else 60)
                enter(store, trial, rows, {"accuracy": accuracy_of(rows), "eval_loss": 1.2 - accuracy_of(rows)})
        return directory

    return write


@pytest.fixture
def page_of() -> Callable[..., Page]:
    """``page_of(directory, ...)``: the page of a study or its shards, read strictly."""

    def make(*directories: Path, **options: Any) -> Page:
        stores = [Store.open(directory) for directory in directories]
        try:
            return Page(report_page(stores, results_of(stores), **options))
        finally:
            for store in stores:
                store.close()

    return make
