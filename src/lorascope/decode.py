"""Greedy answers from every slot of a stack at once.

Knows prompts, padding and where an answer ends. Does not know gold answers or scores. transformers' ``generate`` does the
decoding; the stack's rows are just more rows to it. Floor: beside ``train``.

Legend: N slots, B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationConfig

from lorascope.base_model import BaseModel
from lorascope.config import DecodingConfig
from lorascope.data.packing import collate, evaluation_batches
from lorascope.data.task import Example
from lorascope.lora.stack import Stack


@dataclass(frozen=True)
class Answer:
    """The text before the end token; ``finished`` is False where ``max_new_tokens`` came first."""

    text: str
    finished: bool


@torch.no_grad()
def generate(
    stack: Stack, base: BaseModel, examples: Sequence[Example], decoding: DecodingConfig, batch_tokens: int
) -> Iterator[tuple[list[int], list[list[Answer]]]]:
    """Answer each example's prompt with every slot.

    Args:
        batch_tokens: most prompt tokens in one batch, all slots together.

    Yields:
        The examples of a batch, by index, and for each slot their answers.
    """
    prompts = [
        Example(example.id, example.input_ids[: example.prompt_length], None, None, example.prompt_length)
        for example in examples
    ]
    settings = _settings(base, decoding)
    lengths = [example.prompt_length + decoding.max_new_tokens for example in examples]
    for rows in evaluation_batches(lengths, max(1, batch_tokens // stack.num_slots)):
        batch = collate(prompts, rows, base.pad_id, side="left")
        with _only(settings, base.model):
            output_BT = cast(Any, base.model).generate(
                input_ids=batch.input_ids_BT.repeat(stack.num_slots, 1).to(base.device),
                attention_mask=batch.attention_mask_BT.repeat(stack.num_slots, 1).to(base.device),
                generation_config=settings,
            )
        new_BT = output_BT[:, batch.input_ids_BT.shape[1] :].tolist()
        texts = [_answer(base, tokens, settings.eos_token_id) for tokens in new_BT]
        yield rows, [texts[slot * len(rows) : (slot + 1) * len(rows)] for slot in range(stack.num_slots)]


def end_tokens(base: BaseModel) -> list[int]:
    """Ids that end an answer: the tokenizer's end token and those of the model's own generation config."""
    declared = getattr(base.model.generation_config, "eos_token_id", None)
    ends = {base.tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])}
    return sorted(int(end) for end in ends if end is not None)


def _settings(base: BaseModel, decoding: DecodingConfig) -> GenerationConfig:
    """Nothing is taken from the model's generation config but its end tokens: its sampling defaults are not asked for."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=decoding.max_new_tokens,
        pad_token_id=base.pad_id,
        eos_token_id=end_tokens(base) or None,
    )


@contextmanager
def _only(settings: GenerationConfig, model: Any) -> Iterator[None]:
    """What ``settings`` leave open, transformers fills in from the model's own (a repetition penalty, say): put it aside."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _answer(base: BaseModel, tokens: list[int], ends: list[int] | None) -> Answer:
    stop = next((index for index, token in enumerate(tokens) if token in (ends or ())), len(tokens))
    text = str(base.tokenizer.decode(tokens[:stop], skip_special_tokens=True)).strip()
    return Answer(text, finished=stop < len(tokens))
