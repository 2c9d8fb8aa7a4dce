"""The card beside a pre-trained model: what it read, how long, on what, and how good it is. Every number was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
tags: [lorascope]
---

# lorascope:small

A causal language model of Qwen2's architecture with {parameters:,} parameters, made to be small: it travels with Lorascope, so
that a study can be run on a machine without a network. It writes short English sentences in the manner of old books. It
knows nothing, and is good for nothing but trying things out.

| | |
|---|---|
| shape | {layers} layers, width {width}, {heads} heads ({kv_heads} of keys and values), tied embeddings |
| tokenizer | byte-level BPE, {vocabulary:,} entries, chat tokens among them |
| weights | {weights_bytes:,} bytes, bfloat16 |
| data | {books} public-domain books ({book_characters:,} characters), one in twenty held out |
| | their conversations in the chat format ({conversation_characters:,} characters) |
| | {world_texts:,} texts of little worlds made by `lorascope data world` ({world_percent:.1f} % of the tokens) |
| training | {steps:,} steps of {rows} × {context} tokens, {tokens_read:,} in all or {epochs:.2f} times the data |
| time | {seconds_text} |
| optimiser | AdamW, rate {rate:g}, falling to 0 over the last {decay_steps:,} steps, seed {seed} |
| last loss | {loss:.3f} nats a token, the mean of the last {loss_steps} steps |
| hardware | {hardware} |
| held-out perplexity per character | **{perplexity_per_character:.3f}** |
| that of character trigrams | {trigram_perplexity_per_character:.3f} |

The held-out figures are of the first characters of {held_out_books} books that it never read ({held_out_characters:,} in all),
each window of {context} tokens on its own. The trigrams are interpolated (Witten and Bell 1991) and read the same books.

## What it has seen of Lorascope's own tasks

The little worlds that it read are those of seeds from {world_seeds} on, train splits only. The world of seed {demo_seed},
which the demo trains and evaluates on, is not among them. People, towns and pets of validation and test, and a quarter of the
wordings, occur in no world's train split. {world_texts_left_out:,} texts that shared thirteen words in a row with an
evaluation text of that world were left out. So it knows the *form* of these tasks: results on them say how configurations
compare, not how a model does that has never met such texts.

Chat tokens are `<|im_start|>` and `<|im_end|>`, which also ends answers and each text of a pair. `python -m models.pretrain`
made it; `pretraining.json` beside this page holds the figures.
"""


def card(
    settings: Mapping[str, Any], corpus: Mapping[str, int], training: Mapping[str, Any], scores: Mapping[str, float]
) -> str:
    """The card as Markdown with the Hub's metadata.

    Args:
        settings: shape and hyper-parameters, as the training stored them.
        corpus: what ``corpus.prepare`` counted.
        training: steps, seconds, last loss, hardware.
        scores: what ``scores.measured`` found.
    """
    tokens_read = training["steps"] * settings["rows"] * settings["context"]
    hours = training["seconds"] / 3600
    values = {
        **settings,
        **corpus,
        **training,
        **scores,
        "tokens_read": tokens_read,
        "epochs": tokens_read / corpus["tokens"],
        "world_percent": 100 * corpus["world_tokens"] / corpus["tokens"],
        "seconds_text": f"{hours:.1f} hours" if hours >= 1 else f"{training['seconds'] / 60:.0f} minutes",
    }
    return _CARD.format(**values)
