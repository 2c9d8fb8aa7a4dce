"""The card beside a pre-trained model: what it read, how long, on what, and how good it is. Every number was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorascope.amounts import counted
from models.checkpoint import Schedule

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
| | {world_texts:,} texts of {worlds} little worlds of `lorascope data world` ({world_percent:.1f} % of the tokens) |
| training | {step:,} steps of {rows} × {context} tokens, {tokens_read:,} in all or {epochs:.2f} times the data |
| time | {seconds_text} |
| optimiser | AdamW, seed {seed}; {rates} |
| last loss | {loss:.3f} nats a token, the mean of the last {loss_steps} steps |
{hardware}
| held-out perplexity per character | **{perplexity_per_character:.3f}** |
| that of character trigrams | {trigram_perplexity_per_character:.3f} |

The held-out figures are of the first characters of {held_out_books} books that it never read ({held_out_characters:,} in all),
each window of {context} tokens on its own. The trigrams are interpolated (Witten and Bell 1991) and read the same books.

## What it has seen of Lorascope's own tasks

Texts, but no task. Of little worlds with seeds from {world_seeds} on it read train splits: people's sentences about
themselves as a paragraph, without their talk; the talk of persona dialogues, without the persona; that of lessons, without the
sum; passages with questions that they answer, as a conversation. It read no pair for a judge and no opinion, and no label of
either. So it knows the words of these worlds and how to look something up in what stands before; an adapter must teach the
rest.

The world of seed {demo_seed}, which the demo trains and evaluates on, is not among them. People, towns and pets of validation
and test, and a quarter of the wordings, occur in no world's train split. {world_texts_left_out:,} texts were left out because
they have thirteen words in a row in common with some text of validation or test of the world of seed {demo_seed}, in size
{sizes} ({evaluation_runs:,} such rows of words, common phrases included).

Chat tokens are `<|im_start|>` and `<|im_end|>`, which also ends answers and each text of a pair. `python -m models.pretrain`
made it; `pretraining.json` beside this page holds the figures.
"""


def card(
    settings: Mapping[str, Any], corpus: Mapping[str, Any], training: Mapping[str, Any], scores: Mapping[str, float]
) -> str:
    """The card as Markdown with the Hub's metadata.

    Args:
        settings: shape and hyper-parameters, as the training stored them.
        corpus: what ``corpus.prepare`` counted.
        training: step, seconds, schedule, stages, discarded steps, last loss.
        scores: what ``scores.measured`` found.
    """
    tokens_read = training["step"] * settings["rows"] * settings["context"]
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
        "rates": _rates(Schedule(**training["schedule"]), training["step"], training["discarded_steps"]),
        "hardware": "\n".join(_hardware(training["stages"], training["step"])),
        "sizes": " and ".join(map(str, corpus["evaluated_sizes"])),
    }
    return _CARD.format(**values)


def _rates(schedule: Schedule, step: int, discarded_steps: int) -> str:
    told = f"rate {schedule.peak:g} after {schedule.warm_up_steps} steps of warm-up"
    if step <= schedule.level_end:
        told += ", which had not begun to fall"
    elif step < schedule.steps:
        told += f", falling since step {schedule.level_end:,}, {schedule.rate(step):.2g} at the end"
    else:
        told += f", falling to 0 over the last {schedule.decay_steps:,}"
    if discarded_steps:
        told += f". {discarded_steps:,} more steps, in which it had fallen earlier, were thrown away"
    return told


def _hardware(stages: Sequence[Mapping[str, Any]], step: int) -> Iterator[str]:
    """A row of the table for each machine, or for each change of threads or precision."""
    ends = [*(stage["first_step"] for stage in stages[1:]), step]
    for number, (stage, end) in enumerate(zip(stages, ends, strict=True)):
        on = stage["conditions"]
        threads = f", {counted(on['threads'], 'thread')}" if on["device"] == "cpu" else ""
        steps = f"steps {stage['first_step']:,} to {end:,}: " if len(stages) > 1 else ""
        yield f"| {'' if number else 'hardware'} | {steps}{on['processor']}{threads}, {on['precision']}, torch {on['torch']} |"
