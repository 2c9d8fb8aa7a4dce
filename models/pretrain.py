"""Pre-train the small causal model that comes with Lorascope: Qwen2's architecture, 4.8 M parameters, from old books.

    python -m models.pretrain --books public-domain-books.txt.xz --work runs/pretrain --steps 3800 --decay-steps 760
    python -m models.pretrain … --steps 4800 --decay-steps 960     # goes on from the last checkpoint, and cools down again
    python -m models.pretrain … --finish src/lorascope/embedded/small   # weights, tokenizer, scores and card, to be shipped

Everything unfinished lies in ``--work``: the corpus, ``checkpoint.pt`` with model and optimiser, ``log.jsonl`` with a line for
every step. A run that was killed goes on from its last checkpoint and ends with the weights of one that was not, on
the same machine; other settings than it began with are refused. A step's windows are a pure function of (seed, step): each
epoch reads every window once, in its own order.

The learning rate warms up, stays, and falls to nothing over the last ``--decay-steps`` (Hu et al. 2024, "MiniCPM"), so that a
run can be lengthened without having been planned so.

The shape is meant for 90 minutes on two cores: in the same time a larger model reads fewer tokens, and by the fit of Hoffmann
et al. (2022) learns less; every study on it costs more, too. The minutes left are printed with every checkpoint; lengthen or
shorten the run with ``--steps``. On a GPU take ``--device cuda --width 256 --rows 64 --steps 4000``:
7.9 M parameters, the most that 16 MB hold.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lorascope.base_model import hardware
from lorascope.embedded import MAX_WEIGHTS_BYTES
from models.card import card
from models.corpus import DEMO_SEED, WORLD_SEEDS, Corpus, prepare, write
from models.scores import measured

HEAD_WIDTH = 32
WARM_UP_STEPS = 100
_LAST_STEPS = 50
# What must not change when a run goes on.
_FIXED = ("width", "layers", "vocabulary", "context", "rows", "rate", "seed", "world_share")


def new_model(seed: int, width: int, layers: int, vocabulary: int) -> Qwen2ForCausalLM:
    """Qwen2's architecture; width 192 and 8 layers have 4.8 M parameters, width 256 has 7.9 M."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_WIDTH,
        num_key_value_heads=width // HEAD_WIDTH // 2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_windows)


def batch_at(stream: np.ndarray, seed: int, step: int, rows: int, context: int) -> torch.Tensor:
    """Windows of ``context + 1`` tokens, a function of (seed, step); the windows of an epoch cover the stream once.

    Every epoch begins at another place, so that no token always stands at the beginning of a window.
    """
    num_windows = (len(stream) - 1) // context - 1
    starts = []
    for place in range(step * rows, (step + 1) * rows):
        epoch, number = divmod(place, num_windows)
        offset = int(np.random.default_rng([seed, epoch, 1]).integers(context))
        starts.append(int(_order(seed, epoch, num_windows)[number]) * context + offset)
    return torch.from_numpy(np.stack([stream[start : start + context + 1] for start in starts]).astype(np.int64))


def learning_rate(step: int, steps: int, decay_steps: int, peak: float) -> float:
    """Warm-up, then level, then linearly to zero over the last ``decay_steps``."""
    return peak * min(1.0, (step + 1) / WARM_UP_STEPS, (steps - step) / decay_steps if decay_steps else 1.0)


def fastest_precision(width: int, rows: int) -> str:
    """``medium`` where that is faster and still as exact as float32, as with oneDNN on some processors; else ``highest``."""
    x, weight = torch.randn(rows, width), torch.randn(width, 4 * width)
    exact = (x.double() @ weight.double()).float()
    seconds, errors = {}, {}
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        times = []
        for _ in range(20):
            started = time.perf_counter()
            product = x @ weight
            times.append(time.perf_counter() - started)
        seconds[precision] = min(times)
        errors[precision] = float((product - exact).norm() / exact.norm())
    chosen = "medium" if seconds["medium"] < 0.9 * seconds["highest"] and errors["medium"] < 1e-5 else "highest"
    torch.set_float32_matmul_precision(chosen)
    return chosen


def pretrain(arguments: argparse.Namespace) -> None:
    """Train from the last checkpoint, or from the start, to ``--steps``; every step leaves a line in ``log.jsonl``."""
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    corpus = prepare(arguments.books, work, arguments.world_share, arguments.world_size)
    settings = _settings(arguments, corpus)
    model = new_model(arguments.seed, arguments.width, arguments.layers, settings["vocabulary"]).to(arguments.device)
    groups = [
        {"params": [value for value in model.parameters() if value.ndim > 1], "weight_decay": 0.1},
        {"params": [value for value in model.parameters() if value.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.95))
    first, seconds = _resumed(work, settings, model, optimiser)
    precision = fastest_precision(arguments.width, arguments.rows * arguments.context) if arguments.device == "cpu" else "bf16"
    threads = torch.get_num_threads()
    print(f"{len(corpus.stream):,} tokens, {threads} threads, products in {precision}, from step {first}", flush=True)
    model.train()
    recent: list[float] = []
    for step in range(first, arguments.steps):
        started = time.perf_counter()
        row = _step(model, optimiser, corpus.stream, arguments, step)
        row["seconds"] = time.perf_counter() - started
        seconds += row["seconds"]
        recent = [*recent[1 - _LAST_STEPS :], row["loss"]]
        with (work / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        if not math.isfinite(row["loss"]):
            raise SystemExit(f"the loss is {row['loss']} at step {step}; the last checkpoint is kept")
        if (step + 1) % arguments.save_every == 0 or step + 1 == arguments.steps:
            _save(work, model, optimiser, {"step": step + 1, "seconds": seconds, "settings": settings})
            left = (arguments.steps - step - 1) * seconds / (step + 1) / 60
            mean = sum(recent) / len(recent)
            print(f"step {step + 1}: loss {mean:.3f}, {row['seconds']:.2f} s a step, {left:.0f} minutes left", flush=True)


def _settings(arguments: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    """What a run is made of, as its checkpoint and its card keep it."""
    vocabulary = len(PreTrainedTokenizerFast.from_pretrained(arguments.work))
    largest = int(corpus.stream.max())
    assert largest < vocabulary, f"token {largest} of {vocabulary}"
    given = {name: getattr(arguments, name) for name in _FIXED if hasattr(arguments, name)}
    return given | {"vocabulary": vocabulary}


def _step(
    model: Qwen2ForCausalLM, optimiser: torch.optim.Optimizer, stream: np.ndarray, arguments: argparse.Namespace, step: int
) -> dict[str, float]:
    rate = learning_rate(step, arguments.steps, arguments.decay_steps, arguments.rate)
    for group in optimiser.param_groups:
        group["lr"] = rate
    windows = batch_at(stream, arguments.seed, step, arguments.rows, arguments.context).to(arguments.device)
    with torch.autocast(arguments.device, dtype=torch.bfloat16, enabled=arguments.device != "cpu"):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return {"step": step, "loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate}


def _resumed(
    work: Path, settings: Mapping[str, Any], model: Qwen2ForCausalLM, optimiser: torch.optim.Optimizer
) -> tuple[int, float]:
    """The step to go on from and the seconds so far; log lines of steps after the checkpoint are taken away."""
    checkpoint, log = work / "checkpoint.pt", work / "log.jsonl"
    if not checkpoint.is_file():
        log.unlink(missing_ok=True)
        return 0, 0.0
    state = torch.load(checkpoint, weights_only=True, map_location=model.device)
    changed = [name for name, value in settings.items() if state["settings"][name] != value]
    if changed:
        was = ", ".join(f"{name} {state['settings'][name]}" for name in changed)
        raise SystemExit(f"{checkpoint} was made with {was}; give the same, or another --work")
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    kept = [line for line in log.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] < state["step"]]
    write(log, "".join(f"{line}\n" for line in kept))
    return state["step"], state["seconds"]


def _save(work: Path, model: Qwen2ForCausalLM, optimiser: torch.optim.Optimizer, facts: Mapping[str, Any]) -> None:
    path = work / "checkpoint.pt"
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), **facts}
    with (temporary := path.with_suffix(".tmp")).open("wb") as file:
        torch.save(state, file)
        os.fsync(file.fileno())
    temporary.replace(path)


def finish(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the checkpoint's model in bfloat16 with its tokenizer, scores and card to ``--finish``."""
    work, out = arguments.work, arguments.finish
    state = torch.load(work / "checkpoint.pt", weights_only=True, map_location="cpu")
    settings = state["settings"]
    model = new_model(settings["seed"], settings["width"], settings["layers"], settings["vocabulary"])
    model.load_state_dict(state["model"])
    model.to(torch.bfloat16).save_pretrained(out)
    PreTrainedTokenizerFast.from_pretrained(work).save_pretrained(out)
    size = (out / "model.safetensors").stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise SystemExit(f"the weights have {size:,} bytes, more than {MAX_WEIGHTS_BYTES:,}; take a smaller shape")
    rows = [json.loads(line) for line in (work / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [row["loss"] for row in rows][-_LAST_STEPS:]
    machine = hardware()
    place = machine["cuda"] if arguments.device != "cpu" else f"{machine['processor']}, {torch.get_num_threads()} threads"
    training = {
        "steps": state["step"],
        "seconds": state["seconds"],
        "loss": sum(losses) / len(losses),
        "loss_steps": len(losses),
        "decay_steps": sum(row["learning_rate"] < settings["rate"] for row in rows[WARM_UP_STEPS:]),
        "hardware": f"{place}, torch {machine['torch']}",
    }
    shape = {
        "heads": model.config.num_attention_heads,
        "kv_heads": model.config.num_key_value_heads,
        "world_seeds": WORLD_SEEDS,
        "demo_seed": DEMO_SEED,
    }
    scores = measured(out, arguments.books, arguments.characters, settings["context"])
    corpus = json.loads((work / "corpus.json").read_text(encoding="utf-8"))
    write(out / "README.md", card(settings | shape, corpus, training, scores))
    document = {"settings": settings, "corpus": corpus, "training": training, "scores": scores}
    write(out / "pretraining.json", json.dumps(document, indent=2) + "\n")
    return document


def main(given: list[str] | None = None) -> None:
    """Read the options; 0 where all went well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--books", type=Path, required=True, help="xz text, books divided by <|book|>")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="corpus, checkpoint and log")
    parser.add_argument("--finish", type=Path, metavar="DIR", help="only write the checkpoint's model, scores and card here")
    parser.add_argument("--steps", type=int, default=3800, help="steps in all, those of earlier runs included")
    parser.add_argument("--decay-steps", type=int, default=760, help="of these, the last ones with a falling rate")
    parser.add_argument("--rows", type=int, default=8, help="windows in a step")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--width", type=int, default=192, help=f"hidden size, a multiple of {2 * HEAD_WIDTH}")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--world-share", type=float, default=0.1, help="of the characters read, those of little worlds")
    parser.add_argument("--world-size", type=int, default=400, help="size of each of these worlds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; a GPU computes in bfloat16")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--characters", type=int, default=100_000, help="of each held-out book, for the scores")
    arguments = parser.parse_args(given)
    if arguments.finish is not None:
        print(json.dumps(finish(arguments)["scores"], indent=2))
    else:
        pretrain(arguments)


if __name__ == "__main__":
    main()
