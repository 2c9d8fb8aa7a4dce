"""Pre-train the small causal model that comes with Lorascope: Qwen2's architecture, 4.8 M parameters, from old books.

    python -m models.pretrain --books public-domain-books.txt.xz --work runs/pretrain --steps 4800 --decay-steps 960
    python -m models.pretrain … --steps 6000 --decay-steps 1200    # longer: goes on from where the rate began to fall
    python -m models.pretrain … --finish src/lorascope/embedded/small   # weights, tokenizer, scores and card, to be shipped

Everything unfinished lies in ``--work``: the corpus, two checkpoints (``checkpoint``), ``log.jsonl`` with a line for every
step. Ctrl-C and SIGTERM end the step, save and exit with 130. A run that was ended or killed goes on from its last checkpoint
when the same command is given again, and ends with the weights of one that was not, on the same machine: threads and
precision are those it began with. On another machine it goes on, says so, and the card tells of both. Other settings, books or
worlds than it began with are refused. A step's windows are a pure function of (seed, step): each epoch reads every
window once, in its own order.

The learning rate warms up, stays, and falls to nothing over the last ``--decay-steps`` (``checkpoint.Schedule``), so that a
run can be made longer or shorter without having been planned so, as long as the rate has not begun to fall. Once it has, a
longer run goes on from the step where it began: what was cooled down is thrown away, and the card counts it.

The first command is the one that made the shipped weights, in an hour on two cores with AMX (bfloat16). In the same time a
larger model reads fewer tokens, and by the fit of Hoffmann et al. (2022) learns hardly more; every study on it costs more,
too. The minutes left are printed with every checkpoint. On a GPU take ``--device cuda --width 256 --rows 64 --steps 4000``:
7.9 M parameters, the most that 16 MB hold.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lorascope.embedded import MAX_WEIGHTS_BYTES, PRETRAINING_SEEDS
from lorascope.store.files import write_atomically
from models.card import card
from models.checkpoint import LEVEL, LOG, NEWEST, Schedule, beginning, entered, read, read_log, save, to_go_on_from
from models.corpus import DEMO_SEED, Corpus, Recipe, prepare, refuse_changes, sha256
from models.loss import next_token_loss
from models.scores import measured

HEAD_WIDTH = 32
WARM_UP_STEPS = 100
INTERRUPTED = 130
_LAST_STEPS = 50
# What must not change when a run goes on, beside the corpus.
_FIXED = ("width", "layers", "context", "rows", "rate", "seed")
# How products are computed, by what torch calls it; bfloat16 keeps weights and optimiser in float32.
_PRECISIONS = {"float32": "highest", "float32-medium": "medium", "bfloat16": "highest"}


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


def fastest_precision(width: int, rows: int) -> str:
    """The precision to train in: ``bfloat16`` where the processor multiplies it at twice the speed, as with AMX.

    Else ``float32-medium`` where that is faster and still as exact, as with oneDNN on some processors; else ``float32``.
    """
    x, weight = torch.randn(rows, width), torch.randn(width, 4 * width)
    exact = (x.double() @ weight.double()).float()
    seconds, error = {}, math.nan
    for precision, setting in _PRECISIONS.items():
        torch.set_float32_matmul_precision(setting)
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        times = []
        for _ in range(20):
            started = time.perf_counter()
            product = (x.to(dtype) @ weight.to(dtype)).float()
            times.append(time.perf_counter() - started)
        seconds[precision] = min(times)
        if precision == "float32-medium":
            error = float((product - exact).norm() / exact.norm())
    is_faster = seconds["float32-medium"] < 0.9 * seconds["float32"]
    best = "float32-medium" if is_faster and error < 1e-5 else "float32"
    return "bfloat16" if seconds["bfloat16"] < 0.5 * seconds[best] else best


def machine(device: str) -> dict[str, str]:
    """On what a step is computed: another processor, GPU or torch rounds otherwise."""
    version = str(torch.__version__)  # a type of torch's own, which no checkpoint may hold
    if device != "cpu":
        return {"device": device, "processor": torch.cuda.get_device_name(0), "torch": version}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    processor = f"{named or platform.processor() or platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
    return {"device": device, "processor": processor, "torch": version}


def conditions(arguments: argparse.Namespace, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Machine, threads and precision of this run, which torch is set to; where nothing is given, those that it began with."""
    here = machine(arguments.device)
    last = stages[-1]["conditions"] if stages else {}
    same = {name: last.get(name) for name in here} == here
    threads = arguments.threads or last.get("threads") or torch.get_num_threads()
    torch.set_num_threads(threads)
    precision = arguments.precision or (last["precision"] if same else None)
    if precision is None:
        on_gpu = arguments.device != "cpu"
        precision = "bfloat16" if on_gpu else fastest_precision(arguments.width, arguments.rows * arguments.context)
    torch.set_float32_matmul_precision(_PRECISIONS[precision])
    return here | {"threads": threads, "precision": precision}


def pretrain(arguments: argparse.Namespace) -> bool:
    """Train from the last checkpoint, or from the start, to ``--steps``; every step leaves a line in the log.

    Returns:
        Whether the last step was reached; otherwise a signal ended it.
    """
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    corpus = prepare(_recipe(arguments), work)
    settings = _settings(arguments, corpus)
    schedule = Schedule(arguments.rate, WARM_UP_STEPS, arguments.steps, arguments.decay_steps)
    earlier = to_go_on_from(work, settings, schedule)
    state = earlier or beginning(settings, schedule)
    found = conditions(arguments, state["stages"])
    state["stages"] = entered(state["stages"], state["step"], found)
    model = new_model(arguments.seed, arguments.width, arguments.layers, settings["vocabulary"]).to(arguments.device)
    optimiser = new_optimiser(model, arguments.rate)
    if earlier is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    told = ", ".join(f"{name} {value}" for name, value in found.items())
    print(f"{len(corpus.stream):,} tokens; {told}; from step {state['step']}", flush=True)
    if len(state["stages"]) > 1 and state["stages"][-1]["first_step"] == state["step"]:
        print(
            "these conditions are not those of the steps before: other bits than on one machine, the card will say so",
            flush=True,
        )
    with _ended_gently() as signals:
        _train(arguments, schedule, state | {"model": model, "optimiser": optimiser}, corpus, signals)
    return not signals


def _train(
    arguments: argparse.Namespace, schedule: Schedule, state: dict[str, Any], corpus: Corpus, signals: list[int]
) -> None:
    work, model, optimiser = arguments.work, state["model"], state["optimiser"]
    in_bfloat16 = state["stages"][-1]["conditions"]["precision"] == "bfloat16"
    model.train()
    recent: list[float] = []
    taken: list[float] = []
    while state["step"] < schedule.steps and not signals:
        step = state["step"]
        if step == schedule.level_end:
            save(work / LEVEL, _kept(state))
        started = time.perf_counter()
        windows = batch_at(corpus.stream, arguments.seed, step, arguments.rows, arguments.context).to(arguments.device)
        row = {"step": step, **_step(model, optimiser, windows, schedule.rate(step), in_bfloat16)}
        row["seconds"] = time.perf_counter() - started
        recent = [*recent[1 - _LAST_STEPS :], row["loss"]]
        taken = [*taken[1 - _LAST_STEPS :], row["seconds"]]
        state["seconds"] += row["seconds"]
        state["step"] += 1
        with (work / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
            raise SystemExit(
                f"loss {row['loss']}, gradient norm {row['grad_norm']} at step {step}; the last checkpoint is kept, give a "
                "smaller --rate and another --work"
            )
        if state["step"] % arguments.save_every == 0 or state["step"] == schedule.steps or signals:
            save(work / NEWEST, _kept(state))
            each = sum(taken) / len(taken)
            left = (schedule.steps - state["step"]) * each / 60
            mean = sum(recent) / len(recent)
            print(f"step {state['step']}: loss {mean:.3f}, {each:.2f} s a step, {left:.0f} minutes left", flush=True)


def _kept(state: dict[str, Any]) -> dict[str, Any]:
    return state | {name: state[name].state_dict() for name in ("model", "optimiser")}


@contextmanager
def _ended_gently() -> Iterator[list[int]]:
    """The signals that came: the first one only lets the step end, a second one ends the process as ever."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: object) -> None:
        came.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for each in before:
        signal.signal(each, note)
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _recipe(arguments: argparse.Namespace) -> Recipe:
    return Recipe(arguments.books, arguments.world_share, arguments.world_size, tuple(arguments.evaluated_sizes))


def _settings(arguments: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    """What must not change when a run goes on: shape, batches, rate, and what is read."""
    vocabulary = len(PreTrainedTokenizerFast.from_pretrained(arguments.work))
    largest = int(corpus.stream.max())
    assert largest < vocabulary, f"token {largest} of {vocabulary}"
    return {name: getattr(arguments, name) for name in _FIXED} | {"vocabulary": vocabulary} | corpus.identity


def new_optimiser(model: Qwen2ForCausalLM, rate: float) -> torch.optim.AdamW:
    """AdamW that takes weight from matrices alone."""
    groups = [
        {"params": [value for value in model.parameters() if value.ndim > 1], "weight_decay": 0.1},
        {"params": [value for value in model.parameters() if value.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))


def _step(
    model: Qwen2ForCausalLM, optimiser: torch.optim.Optimizer, windows: torch.Tensor, rate: float, in_bfloat16: bool
) -> dict[str, float]:
    for group in optimiser.param_groups:
        group["lr"] = rate
    with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=in_bfloat16):
        hidden = model.model(input_ids=windows[:, :-1], use_cache=False).last_hidden_state
    loss = next_token_loss(hidden, model.lm_head.weight, windows[:, 1:], torch.bfloat16 if in_bfloat16 else torch.float32)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate}


def finish(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the checkpoint's model in bfloat16 with its tokenizer, scores and card to ``--finish``.

    Raises:
        SystemExit: there is no checkpoint, the books are others, or the weights are too large to be shipped.
    """
    work, out = arguments.work, arguments.finish
    state = read(work / NEWEST)
    if state is None:
        raise SystemExit(f"{work / NEWEST} is not there; train first")
    corpus = json.loads((work / "corpus.json").read_text(encoding="utf-8"))
    refuse_changes(work / "corpus.json", corpus, {"books_sha256": sha256(arguments.books)})
    settings = state["settings"]
    model = new_model(settings["seed"], settings["width"], settings["layers"], settings["vocabulary"])
    model.load_state_dict(state["model"])
    model.to(torch.bfloat16).save_pretrained(out)
    PreTrainedTokenizerFast.from_pretrained(work).save_pretrained(out)
    size = (out / "model.safetensors").stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise SystemExit(f"the weights have {size:,} bytes, more than {MAX_WEIGHTS_BYTES:,}; take a smaller shape")
    losses = [row["loss"] for row in read_log(work) if row["step"] < state["step"]][-_LAST_STEPS:]
    training = {
        **{name: state[name] for name in ("step", "seconds", "schedule", "stages", "discarded_steps")},
        "loss": sum(losses) / len(losses),
        "loss_steps": len(losses),
    }
    shape = {
        "heads": model.config.num_attention_heads,
        "kv_heads": model.config.num_key_value_heads,
        "world_seeds": PRETRAINING_SEEDS,
        "demo_seed": DEMO_SEED,
    }
    scores = measured(out, arguments.books, arguments.characters, settings["context"])
    write_atomically(out / "README.md", card(settings | shape, corpus, training, scores))
    document = {"settings": settings, "corpus": corpus, "training": training, "scores": scores}
    write_atomically(out / "pretraining.json", json.dumps(document, indent=2) + "\n")
    return document


def main(given: list[str] | None = None) -> None:
    """Read the options and do what they say.

    Raises:
        SystemExit: of code 130 where a signal ended the training; with a line where it cannot begin or go on.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--books", type=Path, required=True, help="xz text, books divided by <|book|>")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="corpus, checkpoint and log")
    parser.add_argument("--finish", type=Path, metavar="DIR", help="only write the checkpoint's model, scores and card here")
    parser.add_argument("--steps", type=int, default=3000, help="steps in all, those of earlier runs included")
    parser.add_argument("--decay-steps", type=int, default=600, help="of these, the last ones with a falling rate")
    parser.add_argument("--rows", type=int, default=8, help="windows in a step")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--width", type=int, default=192, help=f"hidden size, a multiple of {2 * HEAD_WIDTH}")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--world-share", type=float, default=0.1, help="of the characters read, those of little worlds")
    parser.add_argument("--world-size", type=int, default=400, help="size of each of these worlds")
    parser.add_argument(
        "--evaluated-sizes",
        type=int,
        nargs="+",
        default=[400, 2000],
        metavar="N",
        help=f"worlds of seed {DEMO_SEED} and these sizes are evaluated on: nothing is shared with them",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="as many as torch takes, or as the run began with")
    parser.add_argument(
        "--precision",
        choices=list(_PRECISIONS),
        help="bfloat16 on a GPU, and on a CPU that multiplies it at twice the speed; else what is faster of float32's two",
    )
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--characters", type=int, default=100_000, help="of each held-out book, for the scores")
    arguments = parser.parse_args(given)
    if arguments.finish is not None:
        print(json.dumps(finish(arguments)["scores"], indent=2))
        return
    if not 0 <= arguments.decay_steps <= arguments.steps:
        parser.error(f"--decay-steps {arguments.decay_steps} of --steps {arguments.steps}")
    if not pretrain(arguments):
        raise SystemExit(INTERRUPTED)


if __name__ == "__main__":
    main()
