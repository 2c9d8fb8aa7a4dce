"""What a pre-trained model has learned: perplexity per character of held-out books, beside character trigrams."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from models.corpus import read_books


@torch.no_grad()
def nats_per_character(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, books: Sequence[str], most: int, context: int
) -> float:
    """Cross-entropy over the first ``most`` characters of every book, in windows that see nothing before them."""
    nats, characters = 0.0, 0
    for book in books:
        text = book[:most]
        ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        start = torch.tensor([tokenizer.pad_token_id])
        for window in ids.split(context):
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
    contexts: list[Counter[str]] = [Counter() for _ in grams]
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
        characters += max(0, len(sample) - 2)
    return nats / characters


def measured(directory: Path, books: Path, most: int, context: int) -> dict[str, float]:
    """Both, of the model as it will be shipped (its weights in bfloat16), and how large it is."""
    train_books, held_out = read_books(books)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ours = nats_per_character(model, tokenizer, held_out, most, context)
    trigrams = trigram_nats_per_character(train_books, held_out, most)
    return {
        "parameters": sum(value.numel() for value in model.parameters()),
        "weights_bytes": (directory / "model.safetensors").stat().st_size,
        "held_out_books": len(held_out),
        "held_out_characters": sum(min(most, len(book)) for book in held_out),
        "perplexity_per_character": math.exp(ours),
        "trigram_perplexity_per_character": math.exp(trigrams),
    }
