"""What a tokenizer says about texts: ids, the characters that each token covers, special tokens.

Does not know records or targets. Floor: data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from lorascope.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = list[tuple[int, int]]
BATCH_TEXTS = 256  # tokenised at a time: what a tokenizer says of a whole split would fill the memory


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer itself puts before a text (usually one BOS, or none)."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the end-of-sequence token."""
    if tokenizer.eos_token_id is None:
        place = tokenizer.name_or_path or "tokenizer"
        raise ModelError("the tokenizer has no end-of-sequence token", where=place, fix="set eos_token")
    return int(tokenizer.eos_token_id)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of every token that a tokenizer marks as special."""
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*tokenizer.all_special_ids, *added])


def special_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What those tokens are in a text."""
    return tuple(text for text in tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer))) if text)


def tokenise(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Each distinct text's ids, without special tokens around."""
    ids_of: dict[str, list[int]] = {}
    for batch in batches(dict.fromkeys(texts)):
        encoded: Any = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids_of.update((text, shared(ids, tokenizer)) for text, ids in zip(batch, encoded["input_ids"], strict=True))
    return ids_of


def shared(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The same ids, every occurrence of one the same object: a split's ids then take 8 bytes each, not 36."""
    try:
        return list(map(_numbers(len(tokenizer)).__getitem__, ids))
    except IndexError:  # a vocabulary with gaps
        return ids


@lru_cache(maxsize=2)
def _numbers(count: int) -> tuple[int, ...]:
    return tuple(range(count))


def with_offsets(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], Offsets]]:
    """Each text's ids and the characters that each covers, without special tokens around."""
    for batch in batches(texts):
        encoded: Any = tokenizer(
            batch, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
        )
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            yield shared(ids, tokenizer), [widened(start, stop) for start, stop in offsets]


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(islice(texts, BATCH_TEXTS)):
        yield batch


def widened(start: int, stop: int) -> tuple[int, int]:
    """A token that covers nothing stands for the space that its tokenizer left out of the offsets, just before."""
    return (start - 1, stop) if start == stop and start > 0 else (start, stop)


def first_at(offsets: Offsets, position: int) -> int | None:
    """The first token behind a place in the text; None where one covers both sides."""
    for index, (start, stop) in enumerate(offsets):
        if stop > position:
            return index if start >= position else None
    return len(offsets)
