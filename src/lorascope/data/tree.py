"""Prefix trees: examples that begin alike are stored once.

Rows of token ids become a forest of radix trees. Its tokens lie in preorder, so a token's descendants are the tokens that
follow it, up to the end of its subtree, and a key is visible to a query exactly when ``k <= q < end[k]``.

    example 0   [A B C] [d e]            stored    A B C d e f g
    example 1   [A B C] [f g]            depth     0 1 2 3 4 3 4
                                         end       7 7 7 5 5 7 7

Knows token ids and which of them are to be predicted. Does not know models or attention. Floor: data.

Legend: T stored tokens, K supervised positions (of all examples), E examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lorascope.data.record import Example
from lorascope.errors import DataError

Ints = npt.NDArray[np.int64]
# Sharing less than this costs more, in attention to look at, than it saves.
SHORTEST_SHARED = 16
# Among so few examples nothing tells a preamble from a context.
_FEW = 40


@dataclass(frozen=True)
class Forest:
    """Examples of one batch, stored as prefix trees one after the other.

    Attributes:
        rows: the examples, in the order of their branches.
        input_ids_T: stored tokens in preorder.
        position_T: depth of each token in its tree, which is its position in every example that it belongs to.
        end_T: one past the last token of each token's subtree.
        origin_T: a number for the token that is the same however the batch is cut.
        predictor_K: where the token before a supervised token is stored: its hidden state predicts the target.
        target_K: token ids to be predicted.
        example_K: which of ``rows`` (by place) the supervised token belongs to.
        last_E: where each example's last token is stored.
        trees: start and stop of each tree.
    """

    rows: list[int]
    input_ids_T: Ints
    position_T: Ints
    end_T: Ints
    origin_T: Ints
    predictor_K: Ints
    target_K: Ints
    example_K: Ints
    last_E: Ints
    trees: list[tuple[int, int]]

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids_T)


def shared_prefixes(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Length of the common prefix of each sequence with the one before it; 0 for the first."""
    lengths = [0] * len(sequences)
    before: Ints = np.zeros(0, dtype=np.int64)
    for index, sequence in enumerate(sequences):
        here = np.asarray(sequence, dtype=np.int64)
        most = min(len(before), len(here))
        differs = np.flatnonzero(before[:most] != here[:most])
        lengths[index] = int(differs[0]) if len(differs) else most
        before = here
    return lengths


def sibling_groups(examples: Sequence[Example]) -> list[list[int]]:
    """Examples that share most of their tokens, together: the questions of a paragraph, the replies of a dialogue.

    Neighbours in lexicographic order are siblings when they share at least half of the shorter, and 16 tokens. What almost
    every example begins with (instructions, a system prompt) makes no siblings: it is left out of both counts. Only causal
    examples have siblings. Groups are ordered by their first example, members by their tokens, shorter first.
    """
    if not examples or examples[0].is_target is None:
        return [[index] for index in range(len(examples))]
    order = sorted(range(len(examples)), key=lambda index: examples[index].input_ids)
    shared = shared_prefixes([examples[index].input_ids for index in order])
    # The least that neighbours share, one in a hundred aside.
    preamble = sorted(shared[1:])[len(shared) // 100] if len(shared) > _FEW else 0
    groups: list[list[int]] = []
    for place, index in enumerate(order):
        shorter = min(len(examples[index].input_ids), len(examples[order[place - 1]].input_ids)) - preamble
        if place and shared[place] - preamble >= max(SHORTEST_SHARED, shorter / 2):
            groups[-1].append(index)
        else:
            groups.append([index])
    return sorted(groups, key=min)


def plant(examples: Sequence[Example], rows: Sequence[int]) -> Forest:
    """The forest of the examples at ``rows``.

    Raises:
        DataError: an example has no token.
    """
    order, shared = _in_order(examples, rows)
    return _planted(examples, order, shared, _paths(examples, order, shared))


def cut(
    examples: Sequence[Example],
    batch: Sequence[int],
    most_rows: int | None,
    most_tokens: int | None,
    tokens_to_come: int = 0,
) -> list[Forest]:
    """A batch as forests of at most so many examples and stored tokens.

    A tree is cut only where it does not fit as a whole; its trunk is then stored once in every piece. An example that is
    longer than ``most_tokens`` is a piece of its own.

    Args:
        tokens_to_come: room that each example takes beyond its own tokens, for an answer.

    Returns:
        The pieces; ``origin_T`` of a token is its place in the forest of the whole batch.

    Raises:
        DataError: an example has no token.
    """
    order, shared = _in_order(examples, batch)
    whole_paths = _paths(examples, order, shared)
    lengths = [len(examples[row].input_ids) + tokens_to_come for row in order]
    bounds = _bounds(lengths, shared, most_rows or len(order), most_tokens or sum(lengths))
    if len(bounds) == 1:
        return [_planted(examples, order, shared, whole_paths)]
    pieces = []
    for start, end in zip(bounds, [*bounds[1:], len(order)], strict=True):
        own_order, own_shared = order[start:end], [0, *shared[start + 1 : end]]
        own_paths = _paths(examples, own_order, own_shared)
        piece = _planted(examples, own_order, own_shared, own_paths)
        origin_T = np.zeros(piece.num_tokens, dtype=np.int64)
        for own, whole in zip(own_paths, whole_paths[start:end], strict=True):
            origin_T[own] = whole
        pieces.append(replace(piece, origin_T=origin_T))
    return pieces


def _in_order(examples: Sequence[Example], rows: Sequence[int]) -> tuple[list[int], list[int]]:
    """The rows so that branches follow one another, and how much each shares with the one before it."""
    order = sorted(rows, key=lambda row: (examples[row].input_ids, row))
    empty = next((row for row in order if not examples[row].input_ids), None)
    if empty is not None:
        raise DataError("there is no token to begin with", where=f"example {examples[empty].id}", fix="remove the example")
    prefixes = shared_prefixes([examples[row].input_ids for row in order])
    return order, [length if length >= SHORTEST_SHARED else 0 for length in prefixes]


def _planted(examples: Sequence[Example], order: list[int], shared: Sequence[int], paths: Sequence[Sequence[int]]) -> Forest:
    num_tokens = paths[-1][-1] + 1
    ids_T, position_T, end_T = (np.zeros(num_tokens, dtype=np.int64) for _ in range(3))
    supervised: list[tuple[Ints, Ints, Ints]] = []
    for place, (row, path) in enumerate(zip(order, paths, strict=True)):
        ids_T[path] = examples[row].input_ids
        position_T[path] = np.arange(len(path))
        # Paths come in preorder, so the last one through a token ends its subtree.
        end_T[path] = path[-1] + 1
        is_target = examples[row].is_target
        if is_target is not None:
            targets = np.flatnonzero(is_target[1:]) + 1
            stored = np.asarray(path)
            supervised.append((stored[targets - 1], ids_T[stored[targets]], np.full(len(targets), place)))
    starts = [path[0] for path, length in zip(paths, shared, strict=True) if length == 0]
    predictor_K, target_K, example_K = (_joined([parts[index] for parts in supervised]) for index in range(3))
    return Forest(
        rows=order,
        input_ids_T=ids_T,
        position_T=position_T,
        end_T=end_T,
        origin_T=np.arange(num_tokens),
        predictor_K=predictor_K,
        target_K=target_K,
        example_K=example_K,
        last_E=np.array([path[-1] for path in paths]),
        trees=list(zip(starts, [*starts[1:], num_tokens], strict=True)),
    )


def _bounds(lengths: Sequence[int], shared: Sequence[int], most_rows: int, most_tokens: int) -> list[int]:
    """Where pieces start: a tree that fits into a piece of its own is not begun in one that cannot hold it."""
    roots = [place for place, length in enumerate(shared) if length == 0]
    bounds, stored = [0], 0
    for root, end in zip(roots, [*roots[1:], len(lengths)], strict=True):
        tree_tokens = sum(lengths[place] - shared[place] for place in range(root, end))
        whole = end - root <= most_rows and tree_tokens <= most_tokens
        for place in range(root, end):
            own = lengths[place] - shared[place]
            rows_next, tokens_next = (end - root, tree_tokens) if whole and place == root else (1, own)
            if place > bounds[-1] and (place - bounds[-1] + rows_next > most_rows or stored + tokens_next > most_tokens):
                bounds.append(place)
                stored = 0
            stored += lengths[place] if place == bounds[-1] else own
    return bounds


def _paths(examples: Sequence[Example], order: Sequence[int], shared: Sequence[int]) -> list[list[int]]:
    """For each example, in order, where its tokens are stored."""
    paths: list[list[int]] = []
    stored = 0
    for row, length in zip(order, shared, strict=True):
        new = len(examples[row].input_ids) - length
        paths.append([*(paths[-1][:length] if paths else []), *range(stored, stored + new)])
        stored += new
    return paths


def _joined(parts: Sequence[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
