"""The fewest directions that keep a score: found by bisection, written, read back and scored again."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorascope.analysis import truncated
from lorascope.analysis.truncated import (
    Line,
    keep_energy,
    line_up,
    num_parameters,
    search,
    weight_norms,
    write_and_verify,
)
from lorascope.base_model import BaseModel
from lorascope.cohort.single import evaluate_together, prepare
from lorascope.config import BaseModelConfig, EvaluateConfig, TaskConfig
from lorascope.errors import AdapterError, CheckFailed, UsageError
from lorascope.evaluate import Evaluation, run_to_end
from lorascope.lora.peft_io import read_adapter, write_adapter
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.lora.truncate import directions_of, write_truncated

WORDS = ("charming", "wooden", "bright", "funny", "slow", "warm", "long", "little", "film", "plot", "heart", "journey")


@pytest.fixture
def make_adapter(model_directory, tmp_path):
    """``make_adapter(bias="none", true_rank=3)``: r = 16 at query and down of the tiny BERT, with a head; its directory."""

    def make(bias="none", true_rank=3, zero=False):
        from transformers import AutoModelForSequenceClassification

        path = str(model_directory("bert"))
        generator = torch.Generator().manual_seed(4)
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
        placements = tuple(Placement(one, 16, 2.0) for one in resolve(model, ["query", "down"], ("classifier",)))
        slot = Slot("a", 1, placements, bias=bias)
        stack = Stack(model, [slot], ("classifier",))
        weights = stack.read(0)
        stack.detach()
        for number, key in enumerate(weights.lora_A):
            shape = weights.lora_A[key].shape[1], weights.lora_B[key].shape[0]
            inner, outer = torch.randn(16, true_rank, generator=generator), torch.randn(true_rank, 16, generator=generator)
            weights.lora_A[key] = inner @ torch.randn(true_rank, shape[0], generator=generator) / 8
            size = 0.0 if zero else 0.3 / (1 + number)
            # The last directions do next to nothing, whatever ids the tokenizer's training happens to give to words.
            falling = 0.1 ** torch.arange(true_rank, dtype=torch.float32)
            weights.lora_B[key] = size * torch.randn(shape[1], true_rank, generator=generator) * falling @ outer
        for value in weights.biases.values():
            value += torch.randn(value.shape, generator=generator)
        for value in weights.heads.values():  # the base's own head is drawn anew each time that it is loaded
            value.copy_(torch.randn(value.shape, generator=generator))
        directory = tmp_path / "adapter"
        directory.mkdir()
        write_adapter(
            directory, weights, slot, model, heads=("classifier",), base_model=path, task_type="SEQ_CLS", labels=["no", "yes"]
        )
        return directory

    return make


@pytest.fixture
def prepared(make_adapter, model_directory, tmp_path):
    """The tiny BERT and forty sentences, labelled as the adapter labels them."""
    draw = torch.Generator().manual_seed(9)
    texts = [
        " ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=draw).tolist())
        for n in torch.randint(2, 9, (40,), generator=draw).tolist()
    ]
    path = tmp_path / "validation.jsonl"

    def write(labels):
        rows = [json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(texts, labels, strict=True)]
        path.write_text("".join(rows))
        task = TaskConfig(name="file", data=str(path), labels=["no", "yes"], max_length=32)
        return prepare(BaseModelConfig(model=str(model_directory("bert"))), task, EvaluateConfig())

    first, source = write(["no", "yes"] * 20), make_adapter()
    (evaluation,) = evaluate_together(first, {"a": read_adapter(source)})
    margins = torch.tensor([row["logits"][1] - row["logits"][0] for row in evaluation.predictions])
    tensors = load_file(source / "adapter_model.safetensors")
    # Half of the sentences on either side.
    tensors["base_model.model.classifier.bias"][1] -= margins.median() + 1e-3
    save_file(tensors, source / "adapter_model.safetensors")
    (evaluation,) = evaluate_together(first, {"a": read_adapter(source)})
    labels = [row["prediction"] for row in evaluation.predictions]
    assert 15 < labels.count("yes") < 25
    return write(labels)


def fake_line(monkeypatch, count, score_of, clear=None):
    """A line of ``count`` directions whose cuts score ``score_of(directions)``; how many were scored in each stack."""
    stacks = []

    def evaluations(_, adapters):
        stacks.append(len(adapters))
        return [
            Evaluation(finite=False) if score_of(one) is None else Evaluation({"accuracy": score_of(one)})
            for one in adapters.values()
        ]

    monkeypatch.setattr(truncated, "evaluate_together", evaluations)
    monkeypatch.setattr(truncated, "num_parameters", lambda count: count)
    monkeypatch.setattr(Line, "cut", lambda _, count: count)
    line = Line(count, {"m": None}, ("m",) * count, {"m": 0}, (1.0,) * count, count if clear is None else clear)
    return line, stacks


@pytest.mark.parametrize("num_slots", [1, 2, 4, 7])
@pytest.mark.parametrize("count", [1, 2, 3, 17, 100])
def test_the_search_finds_the_fewest_directions_in_few_stacks(count, num_slots, monkeypatch):
    for needed in {1, 2, count // 2 + 1, count}:
        if needed > count:
            continue
        line, stacks = fake_line(monkeypatch, count, lambda one, needed=needed: 0.9 if one >= needed else 0.8)
        found = run_to_end(search(None, line, "a", epsilon=0.05, metric="accuracy", num_slots=num_slots))
        assert found.smallest.num_directions == needed
        assert needed == 1 or any(one.num_directions == needed - 1 and not one.holds for one in found.tried)
        assert len(stacks) <= 2 + math.log(max(count, 2), max(2, num_slots + 1)) * 1.6
        assert max(stacks) <= max(2, num_slots)


@pytest.mark.parametrize(("needed", "expected"), [(3, 3), (9, 9), (12, 12)])
def test_directions_within_rounding_are_tried_only_where_all_others_do_not_do(needed, expected, monkeypatch):
    line, _ = fake_line(monkeypatch, 20, lambda one: 0.9 if one >= needed else 0.8, clear=10)
    found = run_to_end(search(None, line, "a", epsilon=0.05, metric="accuracy"))
    assert found.smallest.num_directions == expected
    assert any(one.num_directions > 10 for one in found.tried) == (needed > 10)
    assert any("2 that may be rounding are kept too" in note for note in found.notes) == (needed > 10)


def test_a_loss_of_a_metric_that_should_be_low_is_how_much_it_rises(monkeypatch):
    line, _ = fake_line(monkeypatch, 20, lambda one: 0.0)
    scores = {20: 1.0, "whole": 1.0}
    monkeypatch.setattr(
        truncated,
        "evaluate_together",
        lambda _, adapters: [Evaluation({"eval_loss": scores.get(one, 1.0 + (20 - one) / 10)}) for one in adapters.values()],
    )
    found = run_to_end(search(None, line, "a", epsilon=0.55, metric="eval_loss"))
    assert found.smallest.num_directions == 15
    assert found.smallest.loss == pytest.approx(0.5)


def test_what_is_not_finite_does_not_hold_and_what_falls_unevenly_is_told(monkeypatch):
    line, _ = fake_line(monkeypatch, 60, lambda one: None if 30 < one < 55 else 0.9 if one >= 8 else 0.1)
    told = []
    found = run_to_end(search(None, line, "a", epsilon=0.0, metric="accuracy"), told.append)
    assert found.smallest.num_directions == 8
    assert {one.num_directions for one in told} == {one.num_directions for one in found.tried}
    broken = [one for one in found.tried if one.score is None]
    assert broken
    assert all(one.loss == math.inf and not one.holds for one in broken)
    assert any("does not fall evenly" in note for note in found.notes)


def test_where_no_cut_holds_the_search_says_so(monkeypatch):
    line, _ = fake_line(monkeypatch, 8, lambda one: 0.9 if isinstance(one, int) and one == 99 else 0.5)
    monkeypatch.setattr(
        truncated,
        "evaluate_together",
        lambda _, adapters: [Evaluation({"accuracy": 0.9 if key == "a" else 0.5}) for key in adapters],
    )
    with pytest.raises(CheckFailed, match=r"no cut keeps accuracy within 0.1: .* lose 0.4; allow a larger loss"):
        run_to_end(search(None, line, "a", epsilon=0.1, metric="accuracy"))
    with pytest.raises(UsageError, match="the evaluation has no 'acuracy'; did you mean 'accuracy'"):
        run_to_end(search(None, line, "a", epsilon=0.1, metric="acuracy"))


def test_directions_stand_in_line_by_what_they_add_to_their_module(prepared, tmp_path):
    saved = read_adapter(tmp_path / "adapter")
    norms = weight_norms(prepared.base, saved)
    line = line_up(saved, "a", norms)
    assert len(line.keys) == 3 * len(saved.slot.placements)
    strengths = []
    counted = dict.fromkeys(line.directions, 0)
    for key in line.keys:
        weight = prepared.base.model.get_submodule(key).weight
        strengths.append(float(line.directions[key].values_S[counted[key]]) / float(weight.norm()))
        counted[key] += 1
    assert strengths == sorted(strengths, reverse=True)
    assert norms.keys() == counted.keys()
    for count in (1, 4, len(line.keys)):
        ranks = line.ranks(count)
        assert sum(ranks.values()) == count
        assert {one.target.key: one.r for one in line.cut(count).slot.placements} == {k: r for k, r in ranks.items() if r}
    assert line.ranks(len(line.keys)) == dict.fromkeys(counted, 3)


def test_an_adapter_stored_in_bfloat16_has_the_directions_that_rounding_does_not_explain_first(make_adapter):
    source = make_adapter()
    path = source / "adapter_model.safetensors"
    save_file({key: value.bfloat16() for key, value in load_file(path).items()}, path)
    line = line_up(read_adapter(source), "a")
    assert line.num_clear < len(line.keys)
    assert keep_energy(line, 0.0) == line.num_clear
    assert line.ranks(line.num_clear) == {key: update.numerical_rank for key, update in line.directions.items()}
    clear, blurred = line.energies[: line.num_clear], line.energies[line.num_clear :]
    assert list(clear) == sorted(clear, reverse=True)
    assert list(blurred) == sorted(blurred, reverse=True)
    assert 0.99 < line.energy_kept(line.num_clear) < 1.0


def test_energy_is_kept_to_the_share_asked_for_with_the_fewest_directions(make_adapter):
    line = line_up(read_adapter(make_adapter()), "a")
    energies = sorted((float(v) ** 2 for one in line.directions.values() for v in one.values_S), reverse=True)
    for epsilon in (1e-9, 0.01, 0.2, 0.7):
        count = keep_energy(line, epsilon)
        assert sum(energies[:count]) >= (1 - epsilon - 1e-12) * sum(energies)
        assert sum(energies[: count - 1]) < (1 - epsilon) * sum(energies)
        assert line.energy_kept(count) == pytest.approx(sum(energies[:count]) / sum(energies), rel=1e-9)
    assert keep_energy(line, 1e-9) == len(line.keys) == 12


def test_a_module_whose_bias_was_trained_with_it_keeps_a_direction(make_adapter):
    line = line_up(read_adapter(make_adapter(bias="lora_only")), "a")
    assert sorted(line.ranks(1).values()) == [1, 1, 1, 1]
    assert len(line.cut(1).slot.placements) == 4


def test_an_adapter_that_changes_nothing_is_refused(make_adapter):
    with pytest.raises(AdapterError, match="a: the adapter changes nothing: every update is zero; use the base model alone"):
        line_up(read_adapter(make_adapter(zero=True)), "a")


def test_an_adapter_of_which_rounding_explains_all_is_not_said_to_be_zero(make_adapter):
    saved = read_adapter(make_adapter())
    found = {key: replace(update, numerical_rank=0) for key, update in directions_of(saved.weights).items()}
    with pytest.raises(AdapterError, match="12 directions are all within the rounding of its stored numbers"):
        line_up(saved, "a", directions=found)


def test_a_tokenizer_and_a_template_of_its_own_come_along(make_adapter, tmp_path):
    source, out = make_adapter(), tmp_path / "cut"
    (source / "tokenizer_config.json").write_text('{"chat_template": "mine"}')
    (source / "source.spm").write_bytes(b"words")
    (source / "optimizer.pt").write_bytes(b"x")
    out.mkdir()
    line = line_up(read_adapter(source), "a")
    write_truncated(source, out, line.cut(4))
    assert (out / "tokenizer_config.json").read_text() == '{"chat_template": "mine"}'
    assert (out / "source.spm").read_bytes() == b"words"
    assert not (out / "optimizer.pt").exists()


def test_the_cut_that_is_found_classifies_all_but_the_allowed_as_the_whole_adapter_does(prepared, tmp_path):
    source = tmp_path / "adapter"
    line = line_up(read_adapter(source), str(source), weight_norms(prepared.base, read_adapter(source)))
    running = search(prepared, line, str(source), epsilon=0.1, metric="accuracy", num_slots=3)
    found = run_to_end(running)
    assert found.whole.metrics["accuracy"] == 1.0
    assert 1 < found.smallest.num_directions < len(line.keys)
    (tmp_path / "cut").mkdir()
    whole, written = write_and_verify(prepared, line, found, source, tmp_path / "cut")
    pairs = zip(written.predictions, whole.predictions, strict=True)
    assert sum(one["prediction"] != other["prediction"] for one, other in pairs) <= 4  # of forty
    again = read_adapter(tmp_path / "cut")
    assert num_parameters(again) == found.smallest.num_parameters < num_parameters(line.saved)
    assert sum(one.r for one in again.slot.placements) == found.smallest.num_directions
    # One direction fewer was tried, and does not do.
    fewer = next(one for one in found.tried if one.num_directions == found.smallest.num_directions - 1)
    (evaluation,) = evaluate_together(prepared, {"fewer": line.cut(fewer.num_directions)})
    assert evaluation.metrics["accuracy"] == fewer.score < 0.9


def test_a_written_adapter_that_lost_its_score_is_not_passed(prepared, tmp_path, monkeypatch):
    source = tmp_path / "adapter"
    line = line_up(read_adapter(source), str(source))
    found = run_to_end(search(prepared, line, str(source), epsilon=0.0, metric="accuracy"))
    own = truncated.read_adapter

    def damaged(directory, name):
        saved = own(directory, name)
        for value in saved.weights.heads.values():
            value *= -1
        return saved

    monkeypatch.setattr(truncated, "read_adapter", damaged)
    (tmp_path / "cut").mkdir()
    with pytest.raises(CheckFailed, match="the adapter that was written loses 1 of accuracy, more than 0"):
        write_and_verify(prepared, line, found, source, tmp_path / "cut")


def test_a_weight_of_zeros_does_not_divide_by_zero(make_adapter):
    saved = read_adapter(make_adapter())
    weights = {one.target.key: SimpleNamespace(weight=torch.zeros(2, 2)) for one in saved.slot.placements}
    model = SimpleNamespace(get_submodule=weights.__getitem__)
    base = BaseModel(model, None, "SEQ_CLS", (), (), "", plain_head=True)
    assert len(line_up(saved, "a", weight_norms(base, saved)).keys) == 12
