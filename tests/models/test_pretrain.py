"""Pre-training: resumable to the bit, refused with other settings, small enough to ship, and told of truly."""

import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from models.scores import trigram_nats_per_character

from lorascope.base_model import load_base
from lorascope.config import BaseModelConfig
from models import pretrain

SHAPE = ["--width", "64", "--layers", "2", "--rows", "2", "--context", "32", "--save-every", "2"]
WORLDS = ["--world-size", "10", "--evaluated-sizes", "10"]
EXACT = ["--precision", "float32", "--threads", "1"]


@pytest.fixture(autouse=True)
def _threads():
    """A run sets threads and precision of the whole process."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def run(books, work, *more):
    pretrain.main(["--books", str(books), "--work", str(work), *SHAPE, *WORLDS, *EXACT, *map(str, more)])
    return torch.load(work / "checkpoint.pt", weights_only=True)


def same_bits(one, other):
    return all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())


def steps_of(work):
    return [json.loads(line)["step"] for line in (work / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(books, tmp_path_factory):
    """A run of six steps that nobody disturbed."""
    work = tmp_path_factory.mktemp("whole")
    return work, run(books, work, "--steps", 6, "--decay-steps", 2)


@pytest.fixture
def copy(whole, tmp_path):
    """The same in a directory that a test may go on in."""
    shutil.copytree(whole[0], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def dying(monkeypatch):
    """Calls of a step by its rate; at the fourth one something happens."""
    original, calls = pretrain._step, []

    def at_the_fourth(act):
        def step(*arguments):
            calls.append(arguments)
            if len(calls) == 4:
                act()
            return original(*arguments)

        monkeypatch.setattr(pretrain, "_step", step)
        return calls

    return at_the_fourth


def test_a_run_that_was_cut_short_ends_with_the_same_bits(books, whole, tmp_path, dying):
    def killed():
        raise RuntimeError("the power is gone")

    calls = dying(killed)
    with pytest.raises(RuntimeError, match="power"):
        run(books, tmp_path, "--steps", 6, "--decay-steps", 2)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "los')
    state = run(books, tmp_path, "--steps", 6, "--decay-steps", 2)
    # Step 2 was done twice, because only the checkpoint after step 1 was kept.
    assert len(calls) == 4 + 4
    _, expected = whole
    assert state["step"] == 6
    assert same_bits(expected, state)
    assert steps_of(tmp_path) == list(range(6))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves_and_the_run_goes_on_to_the_same_bits(number, books, whole, tmp_path, dying):
    calls = dying(lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as ended:
        run(books, tmp_path, "--steps", 6, "--decay-steps", 2)
    assert ended.value.code == 130
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 4
    state = run(books, tmp_path, "--steps", 6, "--decay-steps", 2)
    assert len(calls) == 6
    assert same_bits(whole[1], state)


def test_other_settings_than_it_began_with_are_refused(books, copy):
    for name, value, was in (
        ("--seed", 1, "seed 0"),
        ("--rate", 1e-3, "rate 0.002"),
        ("--world-share", 0.2, "world_share 0.1"),
    ):
        with pytest.raises(SystemExit, match=f"{was}; give the same"):
            run(books, copy, "--steps", 8, "--decay-steps", 2, name, value)


def test_a_decay_longer_than_the_run_is_refused(books, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(books, tmp_path, "--steps", 4, "--decay-steps", 5)
    assert "--decay-steps 5 of --steps 4" in capsys.readouterr().err


def test_a_longer_run_has_the_bits_of_one_that_was_planned_so(books, copy, tmp_path):
    state = run(books, copy, "--steps", 8, "--decay-steps", 2)
    planned = run(books, tmp_path / "planned", "--steps", 8, "--decay-steps", 2)
    assert state["step"] == 8
    assert same_bits(planned, state)
    assert steps_of(copy) == list(range(8))
    assert (state["discarded_steps"], planned["discarded_steps"]) == (2, 0)


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [((1.0, 1.0, 0.4), "bfloat16"), ((1.0, 1.0, 0.6), "float32"), ((1.0, 2.0, 9.0), "float32"), ((1.0, 0.3, 0.2), None)],
)
def test_bfloat16_is_taken_where_it_is_twice_as_fast(seconds, wanted, monkeypatch):
    """The last case: whether ``medium`` is exact is up to the processor, and bfloat16 is not twice as fast as that."""
    clock = iter([moment for each in seconds for _ in range(20) for moment in (0.0, each)])
    monkeypatch.setattr(pretrain.time, "perf_counter", lambda: next(clock))
    found = pretrain.fastest_precision(32, 64)
    assert found == wanted if wanted else found in ("float32-medium", "bfloat16")


def test_a_run_goes_on_with_the_threads_and_the_precision_it_began_with(books, copy, monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setattr(pretrain, "fastest_precision", None)
    longer = ["--steps", "8", "--decay-steps", "2"]
    pretrain.main(["--books", str(books), "--work", str(copy), *SHAPE, *WORLDS, *longer])
    assert torch.get_num_threads() == 1
    (stage,) = torch.load(copy / "checkpoint.pt", weights_only=True)["stages"]
    assert (stage["conditions"]["threads"], stage["conditions"]["precision"]) == (1, "float32")


def test_another_machine_is_a_stage_of_its_own_and_the_card_names_both(books, copy, monkeypatch, capsys, tmp_path):
    elsewhere = {"device": "cpu", "processor": "Another One (AVX512)", "torch": "9.9"}
    monkeypatch.setattr(pretrain, "machine", lambda device: elsewhere)
    state = run(books, copy, "--steps", 8, "--decay-steps", 2)
    assert [stage["first_step"] for stage in state["stages"]] == [0, 4]
    assert "these conditions are not those of the steps before" in capsys.readouterr().out
    monkeypatch.setattr(pretrain, "machine", None)  # who finishes it elsewhere is not named
    finished(books, copy, tmp_path / "small")
    card = (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
    assert "| hardware | steps 0 to 4: " in card
    assert "|  | steps 4 to 8: Another One (AVX512), 1 thread, float32, torch 9.9 |" in card
    assert "falling to 0 over the last 2. 2 more steps, in which it had fallen earlier, were thrown away" in card


def test_products_in_bfloat16_train_too(books, tmp_path):
    state = run(books, tmp_path, "--steps", 2, "--decay-steps", 0, "--precision", "bfloat16")
    assert {value.dtype for value in state["model"].values()} == {torch.float32}
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(books, tmp_path, dying, monkeypatch):
    original = pretrain.next_token_loss
    calls = dying(lambda: monkeypatch.setattr(pretrain, "next_token_loss", lambda *given: original(*given) * math.nan))
    with pytest.raises(SystemExit, match="loss nan, gradient norm nan at step 3; the last checkpoint is kept"):
        run(books, tmp_path, "--steps", 6, "--decay-steps", 2)
    assert len(calls) == 4
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


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


@pytest.mark.parametrize(("width", "layers", "most"), [(192, 8, 9_700_000), (256, 8, 16_000_000)])
def test_the_shapes_that_are_told_of_fit_into_the_package(width, layers, most):
    with torch.device("meta"):
        model = pretrain.new_model(0, width, layers, 8192)
    assert 0.9 * most < 2 * sum(value.numel() for value in model.parameters()) < most


def finished(books, work, out):
    pretrain.main(["--books", str(books), "--work", str(work), "--finish", str(out), "--characters", "400"])
    return json.loads((out / "pretraining.json").read_text(encoding="utf-8"))


def test_a_finished_model_is_loaded_as_a_base_and_its_card_states_what_was_measured(books, whole, tmp_path):
    work, state = whole
    out = tmp_path / "small"
    document = finished(books, work, out)
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
    assert "rate 0.002 after 100 steps of warm-up, falling to 0 over the last 2 |" in card
    (stage,) = state["stages"]
    assert f"| hardware | {stage['conditions']['processor']}, 1 thread, float32, torch {torch.__version__} |" in card
    assert "It read no pair for a judge and no opinion" in card
    assert f"{document['corpus']['evaluation_runs']:,} such rows of words, common phrases included" in card
    assert document["corpus"]["stream_sha256"] == state["settings"]["stream_sha256"]
    assert "license: apache-2.0" in card


def test_other_books_than_it_read_give_no_scores(whole, tmp_path):
    others = tmp_path / "others.txt.xz"
    others.write_bytes(b"not these")
    with pytest.raises(SystemExit, match="books_sha256"):
        finished(others, whole[0], tmp_path / "small")
    with pytest.raises(SystemExit, match=r"checkpoint\.pt is not there; train first"):
        finished(others, tmp_path, tmp_path / "small")


def test_trigrams_give_the_probabilities_of_witten_and_bell():
    # After "ab": seen twice, followed by c both times; unigrams and bigrams as counted by hand.
    text = "abcabc"
    unigram = (2 + 3 / 0x110000) / (6 + 3)
    bigram = (2 + 1 * unigram) / (2 + 1)
    trigram = (2 + 1 * bigram) / (2 + 1)
    assert trigram_nats_per_character([text], ["abc"], 10) == pytest.approx(-math.log(trigram))
