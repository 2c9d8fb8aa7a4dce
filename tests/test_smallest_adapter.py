"""The smallest adapter inside an adapter: what is written is whole, says what it is, and scores what it says."""

import json

import pytest

from lorascope.analysis.truncated import Tried
from lorascope.analysis.updates import read_adapters
from lorascope.cohort.single import OnBase, evaluate_adapter
from lorascope.config import EvaluateConfig, TaskConfig
from lorascope.errors import UsageError
from lorascope.evaluate import run_to_end
from lorascope.lora.peft_io import read_adapter
from lorascope.smallest_adapter import REPORT_FILE, Begun, Scoring, cut_by_energy, cut_by_score

TEXTS = ("a charming journey", "the plot goes nowhere", "too slow and far too long", "a bright funny film")


@pytest.fixture
def one(peft_adapter):
    """An adapter that PEFT made."""
    directory, _ = peft_adapter("bert")
    (read,) = read_adapters([directory], factors_only=False)
    return read


@pytest.fixture
def scoring(tmp_path):
    """The loss on four texts of three classes."""
    path = tmp_path / "validation.jsonl"
    rows = [{"text": text, "label": "abc"[number % 3]} for number, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskConfig(name="file", data=str(path), labels=["a", "b", "c"], max_length=32)
    return Scoring(task, EvaluateConfig(), OnBase(), "eval_loss")


def test_without_a_task_the_files_alone_are_cut_and_say_what_was_kept(one, tmp_path):
    out = tmp_path / "smaller"
    out.mkdir()  # an empty directory is as good as none
    (one.directory / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    cut = cut_by_energy(one, 0.2, out)
    assert cut.energy_kept >= 0.8
    assert cut.directions < cut.directions_before
    assert [module.rank for module in cut.modules] == [cut.document()["modules"][i]["rank"] for i in range(len(cut.modules))]
    saved = read_adapter(out)
    assert {placement.target.module: placement.r for placement in saved.slot.placements} == {
        module.module: module.rank for module in cut.modules if module.rank
    }
    assert json.loads((out / REPORT_FILE).read_text()) == cut.document()
    assert "No score was measured after the cut." in (out / "README.md").read_text()
    assert (out / "tokenizer_config.json").read_text() == '{"model_max_length": 64}'
    assert (cut.scored, cut.seconds, cut.document()["metric"]) == (None, None, None)


def test_with_a_task_the_search_is_told_and_what_was_written_scores_what_it_says(one, scoring, tmp_path):
    told, out = [], tmp_path / "smaller"
    cut = run_to_end(cut_by_score(one, 0.05, out, scoring), told.append)
    assert isinstance(told[0], Begun)
    assert told[0].metric == "eval_loss"
    assert len(told) > 1
    assert all(isinstance(event, Tried) for event in told[1:])
    assert {event.num_directions for event in told[1:]} == {tried.num_directions for tried in cut.scored.tried}
    again, _ = evaluate_adapter(out, scoring.task, scoring.settings, OnBase())
    document = cut.document()
    assert again.metrics["eval_loss"] == pytest.approx(document["truncated"]["score"], rel=1e-5)
    assert json.loads((out / REPORT_FILE).read_text()) == document
    assert "The cut was chosen on the examples that it is scored on" in (out / "README.md").read_text()


def test_what_is_in_the_way_and_a_share_that_is_everything_are_refused_before_anything_is_done(one, scoring, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(UsageError, match="something is there already"):
        cut_by_energy(one, 0.1, tmp_path / "full")
    with pytest.raises(UsageError, match="something is there already"):
        run_to_end(cut_by_score(one, 0.1, tmp_path / "full", scoring))
    with pytest.raises(UsageError, match="without a task it is the share of energy"):
        cut_by_energy(one, 1.0, tmp_path / "new")
    assert not (tmp_path / "new").exists()
