"""Pre-training: resumable to the bit, refused with other settings, small enough to ship, and told of truly."""

import argparse
import json

import numpy as np
import pytest
import torch
from models.scores import trigram_nats_per_character

from lorascope.base_model import load_base
from lorascope.config import BaseModelConfig
from models import pretrain


def run(books, work, *more):
    shape = ["--width", "64", "--layers", "2", "--rows", "2", "--context", "32", "--save-every", "2", "--world-size", "10"]
    pretrain.main(["--books", str(books), "--work", str(work), *shape, *map(str, more)])
    return torch.load(work / "checkpoint.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(books, tmp_path_factory):
    """A run of six steps that nobody disturbed."""
    work = tmp_path_factory.mktemp("whole")
    return work, run(books, work, "--steps", 6, "--decay-steps", 2)


def test_a_run_that_was_cut_short_ends_with_the_same_bits(books, whole, tmp_path, monkeypatch):
    original, calls = pretrain._step, []

    def dying(*arguments):
        calls.append(arguments[-1])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(pretrain, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(books, tmp_path, "--steps", 6, "--decay-steps", 2)
    state = run(books, tmp_path, "--steps", 6, "--decay-steps", 2)
    # Step 2 was done twice, because only the checkpoint after step 1 was kept.
    assert calls == [0, 1, 2, 3, 2, 3, 4, 5]
    _, expected = whole
    assert state["step"] == 6
    assert all(torch.equal(value, state["model"][name]) for name, value in expected["model"].items())
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(6))


def test_other_settings_than_it_began_with_are_refused(books, whole):
    work, _ = whole
    with pytest.raises(SystemExit, match="seed 0; give the same"):
        run(books, work, "--steps", 8, "--seed", 1)


def test_a_longer_run_goes_on_from_the_checkpoint(books, whole, tmp_path):
    import shutil

    work = tmp_path / "longer"
    shutil.copytree(whole[0], work)
    assert run(books, work, "--steps", 8, "--decay-steps", 2)["step"] == 8


def test_an_epoch_reads_every_window_once():
    stream = np.arange(1001, dtype=np.uint16)
    num_windows = (len(stream) - 1) // 50 - 1
    windows = torch.cat([pretrain.batch_at(stream, 3, step, 1, 50) for step in range(num_windows)])
    assert windows.shape == (num_windows, 51)
    assert len(set(windows[:, 0].tolist())) == num_windows
    assert set(windows[:, 0].tolist()) == set(range(int(windows[:, 0].min()), int(windows[:, 0].max()) + 1, 50))
    assert torch.equal(pretrain.batch_at(stream, 3, 4, 2, 50), pretrain.batch_at(stream, 3, 4, 2, 50))
    following = torch.cat([pretrain.batch_at(stream, 3, num_windows + step, 1, 50) for step in range(num_windows)])
    assert following[:, 0].tolist() != windows[:, 0].tolist()


def test_the_rate_warms_up_stays_and_falls_to_nothing():
    rates = [pretrain.learning_rate(step, 400, 100, 1.0) for step in range(400)]
    assert rates[0] == 0.01
    assert rates[99:301] == [1.0] * 202
    assert rates[399] == pytest.approx(0.01)
    assert rates[300:] == sorted(rates[300:], reverse=True)


@pytest.mark.parametrize(("width", "layers", "most"), [(192, 8, 9_700_000), (256, 8, 16_000_000)])
def test_the_shapes_that_are_told_of_fit_into_the_package(width, layers, most):
    with torch.device("meta"):
        model = pretrain.new_model(0, width, layers, 8192)
    assert 0.9 * most < 2 * sum(value.numel() for value in model.parameters()) < most


def test_a_finished_model_is_loaded_as_a_base_and_its_card_states_what_was_measured(books, whole, tmp_path):
    work, _ = whole
    out = tmp_path / "small"
    arguments = argparse.Namespace(work=work, finish=out, books=books, device="cpu", characters=400)
    document = pretrain.finish(arguments)
    base = load_base(BaseModelConfig(model=str(out)), "CAUSAL_LM")
    assert next(base.model.parameters()).dtype == torch.float32
    assert base.tokenizer.eos_token == "<|im_end|>"
    assert base.tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False) == (
        "<|im_start|>user\nHello<|im_end|>\n"
    )
    pair = base.tokenizer("I live here.", "I live there.")["input_ids"]
    assert base.tokenizer.decode(pair) == "I live here.<|im_end|>I live there.<|im_end|>"
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"{document['scores']['perplexity_per_character']:.3f}" in card
    assert f"{document['scores']['trigram_perplexity_per_character']:.3f}" in card
    assert "6 steps of 2 × 32 tokens, 384 in all" in card
    losses = [json.loads(line)["loss"] for line in (work / "log.jsonl").read_text().splitlines()]
    assert f"{sum(losses) / 6:.3f} nats a token, the mean of the last 6 steps" in card
    assert "license: apache-2.0" in card


def test_trigrams_give_the_probabilities_of_witten_and_bell():
    import math

    # After "ab": seen twice, followed by c both times; unigrams and bigrams as counted by hand.
    text = "abcabc"
    unigram = (2 + 3 / 0x110000) / (6 + 3)
    bigram = (2 + 1 * unigram) / (2 + 1)
    trigram = (2 + 1 * bigram) / (2 + 1)
    assert trigram_nats_per_character([text], ["abc"], 10) == pytest.approx(-math.log(trigram))
