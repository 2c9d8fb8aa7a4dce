"""Pre-train the small causal model that Lorascope's own examples run on: Qwen2's architecture, 7.9 M parameters, from books.

    python models/pretrain.py --books public-domain-books.txt.xz --out DIR --steps 1200
    python models/pretrain.py … --steps 1500 --decay-steps 300        # goes on from the last checkpoint, and cools down
    python models/pretrain.py … --report                              # perplexity per character against character trigrams

The data are books as xz text, divided by ``<|book|>``. One book in twenty is held out. Besides running prose the model reads
the books' own conversations in its chat format, so that its chat tokens mean something: neighbouring paragraphs of direct
speech become the turns of a user and an assistant.

The learning rate warms up, stays, and falls to nothing over the last ``--decay-steps`` (Hu et al. 2024, "MiniCPM"), so that a
run can be stopped and lengthened without having been planned so. Batches are a pure function of (seed, step); a checkpoint
holds model and optimiser, and is written every ``--save-every`` steps.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 8192
CONTEXT = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPEECH = re.compile(r"[\"“]([^\"“”]{2,400})[\"”]")
# Conversations of fewer turns teach little about taking turns.
_FEWEST_TURNS = 4


def read_books(path: Path) -> tuple[list[str], list[str]]:
    """Books to train on, and those held out."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        books = [book.strip() for book in file.read().split("<|book|>") if book.strip()]
    return [book for index, book in enumerate(books) if index % 20 != 7], books[7::20]


def conversations(book: str) -> Iterator[str]:
    """Runs of paragraphs that hold direct speech, as conversations in the chat format."""
    turns: list[str] = []
    for paragraph in [*book.split("\n\n"), ""]:
        speech = " ".join(match.strip() for match in _SPEECH.findall(paragraph))
        if speech:
            turns.append(speech)
            continue
        if len(turns) >= _FEWEST_TURNS:
            roles = ("user", "assistant")
            yield "".join(f"{TURN_START}{roles[n % 2]}\n{turn}{TURN_END}\n" for n, turn in enumerate(turns))
        turns = []


def train_tokenizer(books: Sequence[str], out: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE; an answer's end token is the chat format's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(books, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)
    return fast


def token_stream(books: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """All books and their conversations as one row of token ids."""
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    pieces = []
    for book in books:
        for text in (book, "".join(conversations(book))):
            if text:
                ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                pieces.append(np.array([*ids, end], dtype=np.uint16))
    return np.concatenate(pieces)


def new_model(seed: int) -> Qwen2ForCausalLM:
    """Qwen2's architecture at 7.9 M parameters: 15.8 MB in bfloat16."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config)


def batch_at(stream: np.ndarray, seed: int, step: int, rows: int) -> torch.Tensor:
    """Windows of the stream, a function of (seed, step)."""
    generator = np.random.default_rng([seed, step])
    starts = generator.integers(0, len(stream) - CONTEXT - 1, size=rows)
    return torch.from_numpy(np.stack([stream[start : start + CONTEXT + 1] for start in starts]).astype(np.int64))


def learning_rate(step: int, steps: int, decay_steps: int, peak: float) -> float:
    """Warm-up over 50 steps, then level, then linearly to zero over the last ``decay_steps``."""
    return peak * min(1.0, (step + 1) / 50, (steps - step) / decay_steps if decay_steps else 1.0)


def pretrain(arguments: argparse.Namespace) -> None:
    """Train from the last checkpoint, or from the start, to ``--steps``; every step leaves a line in ``log.jsonl``."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    train_books, _ = read_books(arguments.books)
    if not (out / "stream.npy").is_file():
        tokenizer = train_tokenizer(train_books, out)
        np.save(out / "stream.npy", token_stream(train_books, tokenizer))
    stream = np.load(out / "stream.npy")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    print(f"{len(train_books)} books, {len(stream):,} tokens, {torch.get_num_threads()} threads", flush=True)
    model = new_model(arguments.seed)
    groups = [
        {"params": [value for value in model.parameters() if value.ndim > 1], "weight_decay": 0.1},
        {"params": [value for value in model.parameters() if value.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.95))
    first = 0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
        print(f"going on from step {first}", flush=True)
    model.train()
    for step in range(first, arguments.steps):
        started = time.perf_counter()
        rate = learning_rate(step, arguments.steps, arguments.decay_steps, arguments.rate)
        for group in optimiser.param_groups:
            group["lr"] = rate
        windows = batch_at(stream, arguments.seed, step, arguments.rows)
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        row = {"step": step, "loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate}
        row["seconds"] = time.perf_counter() - started
        with (out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        if not math.isfinite(row["loss"]):
            raise SystemExit(f"the loss is {row['loss']} at step {step}; the last checkpoint is kept")
        if (step + 1) % arguments.save_every == 0 or step + 1 == arguments.steps:
            _save(checkpoint, {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1})
            print(f"step {step + 1}: loss {row['loss']:.3f}, {row['seconds']:.1f} s a step", flush=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _save(path: Path, state: dict[str, object]) -> None:
    with (temporary := path.with_suffix(".tmp")).open("wb") as file:
        torch.save(state, file)
        os.fsync(file.fileno())
    temporary.replace(path)


@torch.no_grad()
def nats_per_character(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, books: Sequence[str], most: int) -> float:
    """Cross-entropy over the first ``most`` characters of every book, in windows that see nothing before them."""
    nats, characters = 0.0, 0
    for book in books:
        text = book[:most]
        ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        start = torch.tensor([tokenizer.pad_token_id])
        for window in ids.split(CONTEXT):
            row = torch.cat([start, window])[None]
            logits = model(input_ids=row[:, :-1]).logits.float()
            nats += torch.nn.functional.cross_entropy(logits[0], row[0, 1:], reduction="sum").item()
        characters += len(text)
    return nats / characters


def trigram_nats_per_character(train: Sequence[str], books: Sequence[str], most: int) -> float:
    """The same of character trigrams, interpolated after Witten and Bell (1991), trained on all training books."""
    text = "\n".join(train)
    grams = [Counter(text[start : start + size] for start in range(len(text) - size + 1)) for size in (1, 2, 3)]
    followers = [Counter(gram[:-1] for gram in counts) for counts in grams]
    contexts = [Counter() for _ in grams]
    for size, counts in enumerate(grams):
        for gram, count in counts.items():
            contexts[size][gram[:-1]] += count
    nats, characters = 0.0, 0
    for book in books:
        sample = book[:most]
        for place in range(2, len(sample)):
            probability = 1 / 0x110000
            for size in (0, 1, 2):
                before = sample[place - size : place]
                total, kinds = contexts[size][before], followers[size][before]
                if total:
                    probability = (grams[size][before + sample[place]] + kinds * probability) / (total + kinds)
            nats -= math.log(probability)
        characters += len(sample) - 2
    return nats / characters


def report(arguments: argparse.Namespace) -> None:
    """Print held-out perplexity per character, the model's and the trigrams'."""
    train_books, held_out = read_books(arguments.books)
    model = Qwen2ForCausalLM.from_pretrained(arguments.out, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.out)
    ours = nats_per_character(model, tokenizer, held_out, arguments.characters)
    trigrams = trigram_nats_per_character(train_books, held_out, arguments.characters)
    figures = {
        "parameters": sum(value.numel() for value in model.parameters()),
        "held_out_books": len(held_out),
        "characters_of_each": arguments.characters,
        "perplexity_per_character": math.exp(ours),
        "trigram_perplexity_per_character": math.exp(trigrams),
    }
    print(json.dumps(figures, indent=2))


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--books", type=Path, required=True, help="xz text, books divided by <|book|>")
    parser.add_argument("--out", type=Path, required=True, help="the model's directory, checkpoints included")
    parser.add_argument("--steps", type=int, default=1200, help="steps in all, those of earlier runs included")
    parser.add_argument("--decay-steps", type=int, default=0, help="of these, the last ones with a falling rate")
    parser.add_argument("--rows", type=int, default=16, help=f"windows of {CONTEXT} tokens in a step")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--report", action="store_true", help="only measure the model in --out")
    parser.add_argument("--characters", type=int, default=100_000, help="of each held-out book, for --report")
    arguments = parser.parse_args()
    report(arguments) if arguments.report else pretrain(arguments)


if __name__ == "__main__":
    main()
