"""Prefix trees against brute force: every example can be read back, nothing else is visible, nothing is lost by cutting."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.data import tree
from lorascope.data.record import Example
from lorascope.data.tree import cut, plant, shared_prefixes, sibling_groups
from lorascope.errors import DataError

# Three ids, so that most examples begin like another; pairs of (id, whether it is a target).
TOKENS = st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=10)
BATCHES = st.lists(TOKENS, min_size=1, max_size=9).map(lambda rows: [example(row, str(i)) for i, row in enumerate(rows)])
SHORTEST = st.integers(1, 6)


def example(tokens, name="x", prompt_length=1):
    return Example(name, [token for token, _ in tokens], [target for _, target in tokens], None, prompt_length)


def plain(*ids):
    return example([(token, True) for token in ids])


@contextmanager
def sharing_from(shortest: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "SHORTEST_SHARED", shortest)
        yield


def path_to(forest, last):
    """The tokens that the token at ``last`` sees, itself included, by the rule that attention goes by."""
    places = np.arange(forest.num_tokens)
    return np.flatnonzero((places <= last) & (last < forest.end_T)).tolist()


def paths_of(forest):
    """By row."""
    return {row: path_to(forest, last) for row, last in zip(forest.rows, forest.last_E.tolist(), strict=True)}


def tree_size(examples, shortest):
    """Stored tokens by brute force: distinct prefixes among examples that share enough."""
    families: dict[object, set[tuple[int, ...]]] = {}
    for index, one in enumerate(examples):
        ids = tuple(one.input_ids)
        family = ids[:shortest] if len(ids) >= shortest else index
        families.setdefault(family, set()).update(ids[:length] for length in range(1, len(ids) + 1))
    return sum(map(len, families.values()))


@given(BATCHES, SHORTEST)
@settings(deadline=None, max_examples=60)
def test_every_example_can_be_read_back_from_its_path(examples, shortest):
    with sharing_from(shortest):
        forest = plant(examples, range(len(examples)))
    assert sorted(forest.rows) == list(range(len(examples)))
    for place, (row, path) in enumerate(paths_of(forest).items()):
        one = examples[row]
        assert forest.input_ids_T[path].tolist() == one.input_ids
        assert forest.position_T[path].tolist() == list(range(len(path)))
        own = forest.example_K == place
        targets = [index for index in range(1, len(path)) if one.is_target[index]]
        assert forest.predictor_K[own].tolist() == [path[index - 1] for index in targets]
        assert forest.target_K[own].tolist() == [one.input_ids[index] for index in targets]
    assert forest.origin_T.tolist() == list(range(forest.num_tokens))


@given(BATCHES, SHORTEST)
@settings(deadline=None, max_examples=60)
def test_a_token_sees_what_comes_before_it_in_an_example_and_nothing_else(examples, shortest):
    with sharing_from(shortest):
        forest = plant(examples, range(len(examples)))
    num = forest.num_tokens
    places = np.arange(num)
    visible = (places[None, :] <= places[:, None]) & (places[:, None] < forest.end_T[None, :])
    expected = np.zeros((num, num), dtype=bool)
    for path in paths_of(forest).values():
        for index, query in enumerate(path):
            expected[query, path[: index + 1]] = True
    assert (visible == expected).all()
    assert [start for start, _ in forest.trees] == [0, *(stop for _, stop in forest.trees[:-1])]
    assert forest.trees[-1][1] == num
    for start, stop in forest.trees:
        assert not visible[start:stop, :start].any(), "a tree sees another"
        assert forest.end_T[start] == stop


@given(BATCHES, SHORTEST)
@settings(deadline=None, max_examples=60)
def test_a_prefix_is_stored_once_where_it_is_long_enough_and_never_shared_where_not(examples, shortest):
    with sharing_from(shortest):
        forest = plant(examples, range(len(examples)))
    assert forest.num_tokens == tree_size(examples, shortest)
    paths = list(paths_of(forest).values())
    shared = [len(set(one) & set(other)) for index, one in enumerate(paths) for other in paths[:index]]
    assert all(count == 0 or count >= shortest for count in shared)


def test_sharing_starts_at_sixteen_tokens():
    trunk = list(range(1, 16))
    assert plant([plain(*trunk, 90), plain(*trunk, 91)], [0, 1]).num_tokens == 32
    assert plant([plain(*trunk, 16, 90), plain(*trunk, 16, 91)], [0, 1]).num_tokens == 18


def test_the_picture_in_the_modules_docstring():
    rows = [example([(token, place > 2) for place, token in enumerate(ids)]) for ids in ([1, 2, 3, 4, 5], [1, 2, 3, 6, 7])]
    with sharing_from(3):
        forest = plant(rows, [1, 0])
    assert forest.rows == [0, 1]
    assert forest.input_ids_T.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert forest.position_T.tolist() == [0, 1, 2, 3, 4, 3, 4]
    assert forest.end_T.tolist() == [7, 7, 7, 5, 5, 7, 7]
    assert forest.predictor_K.tolist() == [2, 3, 2, 5], "the branching token predicts the first token of each branch"
    assert forest.target_K.tolist() == [4, 5, 6, 7]
    assert forest.example_K.tolist() == [0, 0, 1, 1]
    assert forest.trees == [(0, 7)]


@given(BATCHES, SHORTEST, st.integers(1, 40), st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_a_piece_leaves_room_for_the_tokens_to_come(examples, shortest, tokens, to_come):
    prompts = [Example(one.id, one.input_ids, None, None, 1) for one in examples]
    with sharing_from(shortest):
        pieces = cut(prompts, range(len(prompts)), None, tokens, to_come)
    assert sorted(row for piece in pieces for row in piece.rows) == list(range(len(prompts)))
    for piece in pieces:
        assert piece.num_tokens + to_come * len(piece.rows) <= tokens or len(piece.rows) == 1
        assert (len(piece.predictor_K), len(piece.target_K), len(piece.example_K)) == (0, 0, 0)


@given(BATCHES, SHORTEST, st.none() | st.integers(1, 10), st.none() | st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_cutting_keeps_limits_loses_nothing_and_knows_every_tokens_place(examples, shortest, rows, tokens):
    batch = list(range(len(examples)))
    with sharing_from(shortest):
        whole = plant(examples, batch)
        pieces = cut(examples, batch, rows, tokens)
    assert sorted(row for piece in pieces for row in piece.rows) == batch
    whole_paths = paths_of(whole)
    for piece in pieces:
        assert rows is None or len(piece.rows) <= rows
        assert tokens is None or piece.num_tokens <= tokens or len(piece.rows) == 1
        assert piece.input_ids_T.tolist() == whole.input_ids_T[piece.origin_T].tolist()
        assert piece.position_T.tolist() == whole.position_T[piece.origin_T].tolist()
        assert (np.diff(piece.origin_T) > 0).all()
        for row, path in paths_of(piece).items():
            assert piece.origin_T[path].tolist() == whole_paths[row]
    assert sum(len(piece.predictor_K) for piece in pieces) == len(whole.predictor_K)
    if rows is None and tokens is None:
        assert len(pieces) == 1


@given(BATCHES, SHORTEST, st.integers(1, 6), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_a_tree_that_fits_is_not_cut(examples, shortest, rows, tokens):
    batch = list(range(len(examples)))
    with sharing_from(shortest):
        whole = plant(examples, batch)
        pieces = cut(examples, batch, rows, tokens)
    piece_of = {row: index for index, piece in enumerate(pieces) for row in piece.rows}
    for start, stop in whole.trees:
        members = [row for row, last in zip(whole.rows, whole.last_E, strict=True) if start <= last < stop]
        if len(members) <= rows and stop - start <= tokens:
            assert len({piece_of[row] for row in members}) == 1


def test_a_tree_that_fits_is_not_begun_in_a_piece_that_cannot_hold_it():
    star = [plain(*range(1, 21), 30 + index) for index in range(3)]
    stranger = plain(0, 0)
    for limits in ((3, None), (None, 24)):
        assert [sorted(piece.rows) for piece in cut([*star, stranger], range(4), *limits)] == [[3], [0, 1, 2]]
    assert len(cut([*star, stranger], range(4), 4, 25)) == 1


def test_a_tree_that_does_not_fit_has_its_trunk_in_every_piece():
    trunk = list(range(1, 21))
    star = [plain(*trunk, 30 + index, 40 + index) for index in range(5)]
    pieces = cut(star, range(5), None, 24)
    assert [len(piece.rows) for piece in pieces] == [2, 2, 1]
    assert [piece.num_tokens for piece in pieces] == [24, 24, 22]
    assert pieces[1].origin_T.tolist() == [*range(20), 24, 25, 26, 27]
    long = cut([plain(*range(1, 31)), plain(7)], [0, 1], None, 10)
    assert [piece.num_tokens for piece in long] == [30, 1], "an example longer than the limit is a piece of its own"


@given(BATCHES, SHORTEST)
@settings(deadline=None, max_examples=60)
def test_sibling_groups_hold_every_example_once_with_those_that_it_shares_half_with(examples, shortest):
    with sharing_from(shortest):
        groups = sibling_groups(examples)
    assert sorted(index for group in groups for index in group) == list(range(len(examples)))
    assert [min(group) for group in groups] == sorted(min(group) for group in groups)
    for group in groups:
        sequences = [examples[index].input_ids for index in group]
        assert sequences == sorted(sequences)
        for one, other, shared in zip(sequences, sequences[1:], shared_prefixes(sequences)[1:], strict=False):
            assert shared >= shortest
            assert shared >= min(len(one), len(other)) / 2
    best = {
        (index, other)
        for index, one in enumerate(examples)
        for other, two in enumerate(examples[:index])
        if one.input_ids == two.input_ids and len(one.input_ids) >= shortest
    }
    group_of = {index: place for place, group in enumerate(groups) for index in group}
    assert all(group_of[index] == group_of[other] for index, other in best), "equal examples belong together"


def test_questions_of_a_paragraph_and_replies_of_a_dialogue_are_siblings():
    paragraph, dialogue = list(range(1, 41)), list(range(100, 160))
    examples = [
        plain(*paragraph, 90, 91),
        plain(*dialogue[:20]),
        plain(*paragraph, 92),
        plain(7, 8, 9),
        plain(*dialogue),
        plain(*dialogue[:35]),
        plain(*paragraph[:20], *range(200, 240)),
    ]
    # The last shares 20 tokens with a paragraph twice as long, which is less than half.
    assert sibling_groups(examples) == [[0, 2], [1, 5, 4], [3], [6]]


def test_examples_that_are_no_text_to_continue_have_no_siblings():
    labelled = [Example("x", [1] * 30, None, 0, 0)] * 3
    assert sibling_groups(labelled) == [[0], [1], [2]]
    assert sibling_groups([]) == []


@given(st.lists(st.lists(st.integers(1, 2), max_size=6), max_size=6))
def test_shared_prefixes_are_counted_token_by_token(sequences):
    expected = []
    for index, here in enumerate(sequences):
        before = sequences[index - 1] if index else []
        length = 0
        while length < min(len(before), len(here)) and before[length] == here[length]:
            length += 1
        expected.append(length)
    assert shared_prefixes(sequences) == expected


def test_what_every_example_begins_with_makes_no_siblings():
    generator = np.random.default_rng(0)
    preamble = generator.integers(0, 99, 40).tolist()
    contexts = [generator.integers(0, 99, 50).tolist() for _ in range(20)]
    tails = [generator.integers(0, 99, 6).tolist() for _ in range(100)]
    alone = [Example(str(i), preamble + tail, [False] * 40 + [True] * 6, None, 40) for i, tail in enumerate(tails)]
    assert sibling_groups(alone) == [[index] for index in range(100)]
    rows = [preamble + contexts[index // 5] + tail for index, tail in enumerate(tails)]
    asked = [Example(str(i), row, [False] * 90 + [True] * 6, None, 90) for i, row in enumerate(rows)]
    assert [sorted(group) for group in sibling_groups(asked)] == [list(range(start, start + 5)) for start in range(0, 100, 5)]


def test_an_example_without_tokens_is_named():
    with pytest.raises(DataError, match="example lost"):
        plant([Example("lost", [], [], None, 0)], [0])
