"""What is saved along with an adapter's updates: a tokenizer beside the files, embeddings in them.

PEFT saves embeddings when they are targeted, asked for, or when the vocabulary grew; trainers save the tokenizer. Knows names
of files and which parameters have a row for every token. Does not load tokenizers (``base_model``). Floor: ``lora``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# A tokenizer is there when one of these is, as patterns of names; sentencepiece's, tiktoken's and Marian's among them.
VOCABULARY_FILES = ("tokenizer.json", "tekken.json", "vocab*.json", "vocab*.txt", "*.model", "*.spm", "*.tiktoken")
TOKENIZER_FILES = (
    *VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "bpe.codes",
    "vocab.bpe", "chat_template.jinja", "chat_template.json", "additional_chat_templates/*",
)  # fmt: skip


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds a vocabulary of any kind."""
    return any(path.is_file() for pattern in VOCABULARY_FILES for path in directory.glob(pattern))


def copy_files(source: Path, target: Path, patterns: tuple[str, ...]) -> int:
    """Copy the files of these names, what a hub's cache links to included; returns how many there were."""
    found = {path for pattern in patterns for path in source.glob(pattern) if path.is_file()}
    for path in found:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return len(found)


def is_copy(own: Tensor, value: Tensor) -> bool:
    """Whether an adapter's tensor is the base's, in whichever of the two dtypes holds less.

    A base in memory may be held in less than its files and the adapter's are. Against the files themselves (``merge_plan``,
    ``certify.tensors``) only the base's numbers are rounded, to the adapter's dtype: digits that the base's file has not were
    trained.
    """
    if own.shape != value.shape:
        return False
    own, value = own.detach().cpu(), value.detach().cpu()
    return torch.equal(own.to(value.dtype), value) or torch.equal(own, value.to(own.dtype))


def larger_vocabulary(num_tokens: int, num_embeddings: int) -> tuple[str, str]:
    """What is to be said of an adapter for more tokens than the base has embeddings, and what to do about it."""
    what = f"the adapter's vocabulary is larger than the base's: {num_tokens} tokens, {num_embeddings} embeddings"
    fix = (
        f"give the base with its vocabulary grown likewise: resize_token_embeddings({num_tokens}), saved with the adapter's "
        "tokenizer"
    )
    return what, fix


def grown_vocabulary(given: Mapping[str, Tensor], model: nn.Module) -> tuple[str, str] | None:
    """``larger_vocabulary`` of an adapter whose embeddings have more rows than the model's; None where they have not.

    Args:
        given: what the adapter holds whole, by the model's names.
        model: on any device, the meta device too.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, module in model.named_modules():
        value = given.get(f"{name}.weight")
        if value is None or not any(module is end for end in ends):
            continue
        own = module.weight
        assert isinstance(own, Tensor)
        if value.dim() == own.dim() == 2 and value.shape[1] == own.shape[1] and len(value) > len(own):
            return larger_vocabulary(len(value), len(own))
    return None
