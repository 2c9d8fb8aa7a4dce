"""Random numbers as pure functions of (seed, purpose, step, module): never the global generator.

Two trials with one seed draw the same numbers wherever they ask for the same thing, a trial draws the same numbers with or
without neighbours, and a resumed trial goes on where it was. Floor: ``lora``.

Legend: B rows, T tokens, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_BYTES_PER_WORD = 8
_LEVELS = 1 << 16


def generator(seed: int, purpose: str, *key: int | str) -> np.random.Generator:
    """A generator for one purpose; equal arguments give equal streams, different ones independent streams."""
    return np.random.Generator(_bit_generator(seed, purpose, *key))


def kaiming_uniform(shape: tuple[int, int], seed: int, module: str) -> Tensor:
    """PEFT's initial ``lora_A``: uniform in ±1/√D (``nn.init.kaiming_uniform_`` with a = √5).

    Args:
        shape: ``(r, D)``. The first rows do not depend on r: rank 4 starts from the first four rows of rank 8.

    Returns:
        float64 ``[r, D]``.
    """
    bound = 1.0 / shape[1] ** 0.5
    return torch.from_numpy(generator(seed, "lora_A", module).uniform(-bound, bound, size=shape))


def keep_mask(
    probability: float, num_features: int, rows: Sequence[Sequence[tuple[int, int]]], width: int, *key: int | str, seed: int
) -> Tensor:
    """Inverted dropout for one slot and module: 0 where dropped, 1/(1 − p) where kept.

    The mask belongs to the token's place in its optimiser batch, so neither padding nor micro-batches nor neighbours change
    it. Words of 16 random bits are compared with p, so p is met to 1/65536, and the scale is exact for the p that is met.

    Args:
        probability: the share to drop, in [0, 1).
        num_features: D.
        rows: the tokens of each of the B rows: spans of (offset of the first in the optimiser batch, number of tokens).
        width: T; what a row holds beyond is left out (a pooled activation has one "token", which takes the first's place).
        key: step and module.

    Returns:
        float32 ``[B, T, D]``, zero on padding.

    Source: Srivastava et al. 2014.
    """
    threshold = round(probability * _LEVELS)
    scale = _LEVELS / (_LEVELS - threshold)
    words_per_token = -(-num_features * 2 // _BYTES_PER_WORD)
    bits = _bit_generator(seed, "dropout", *key)
    mask_BTD = np.zeros((len(rows), width, num_features), dtype=np.float32)
    position = 0
    for row, spans in enumerate(rows):
        start = 0
        for first, tokens in spans:
            length = min(tokens, width - start)
            bits.advance(first * words_per_token - position)
            words = bits.random_raw(length * words_per_token)
            position = (first + length) * words_per_token
            levels = words.view(np.uint16).reshape(length, -1)[:, :num_features]
            np.multiply(levels >= threshold, np.float32(scale), out=mask_BTD[row, start : start + length])
            start += length
    return torch.from_numpy(mask_BTD)


def _bit_generator(seed: int, purpose: str, *key: int | str) -> np.random.PCG64:
    digest = hashlib.blake2b(repr((seed, purpose, *key)).encode(), digest_size=32).digest()
    return np.random.PCG64(np.random.SeedSequence(np.frombuffer(digest, dtype=np.uint32).tolist()))
