"""Orders, micro-batches, evaluation batches and padding."""

import itertools
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.data.packing import batch_order, collate, concatenate, evaluation_batches, length_groups, token_spans
from lorascope.data.task import Example

SEEDS = st.integers(0, 2**63 - 1)


def singles(count):
    """Examples without siblings."""
    return [[index] for index in range(count)]


def joined(batches):
    return list(chain.from_iterable(batches))


def causal(*ids, target=1):
    return Example("x", list(ids), [False] * (len(ids) - target) + [True] * target, None, len(ids) - target)


def labelled(*ids, label=0, types=None):
    return Example("x", list(ids), None, label, 0, token_type_ids=types)


@given(st.integers(0, 200), st.integers(1, 20), SEEDS, st.integers(0, 50))
@settings(deadline=None)
def test_an_order_is_a_permutation_in_batches_of_which_only_the_last_is_short(count, size, seed, epoch):
    batches = batch_order(singles(count), size, seed, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(count))
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(batches)


@given(SEEDS, st.integers(0, 50), st.integers())
def test_an_order_depends_on_seed_and_epoch_alone(seed, epoch, noise):
    first = batch_order(singles(50), 8, seed, epoch)
    np.random.seed(noise % 2**32)
    torch.manual_seed(noise % 2**32)
    assert batch_order(singles(50), 8, seed, epoch) == first
    assert joined(batch_order(singles(50), 5, seed, epoch)) == joined(first)
    assert batch_order(singles(50), 8, seed, epoch + 1) != first
    assert batch_order(singles(50), 8, seed + 1, epoch) != first


def test_the_order_of_a_seed_stays_the_same_from_release_to_release():
    assert batch_order(singles(8), 3, seed=42, epoch=0) == [[6, 3, 7], [0, 5, 4], [2, 1]]


def cost(lengths, sizes, overhead):
    """What ``length_groups`` says that a cut costs: rows times the longest, and the overhead of each group."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return sum(size * lengths[start] + overhead for size, start in zip(sizes, starts, strict=True))


def compositions(total):
    """Every way to write ``total`` as a sum of sizes."""
    if total == 0:
        yield []
    for first in range(1, total + 1):
        for rest in compositions(total - first):
            yield [first, *rest]


DESCENDING = st.lists(st.integers(1, 300), min_size=1, max_size=40).map(lambda lengths: sorted(lengths, reverse=True))


@given(DESCENDING, st.none() | st.integers(1, 12), st.integers(0, 400))
@settings(deadline=None)
def test_length_groups_hold_every_row_and_cost_no_more_than_one_batch_or_single_rows(lengths, most_rows, overhead):
    sizes = length_groups(lengths, most_rows, overhead)
    assert sum(sizes) == len(lengths)
    assert all(1 <= size <= (most_rows or len(lengths)) for size in sizes)
    least = cost(lengths, sizes, overhead)
    assert least <= cost(lengths, [1] * len(lengths), overhead)
    if most_rows is None or most_rows >= len(lengths):
        assert least <= cost(lengths, [len(lengths)], overhead)


@given(DESCENDING.filter(lambda lengths: len(lengths) <= 8), st.none() | st.integers(1, 8), st.integers(0, 400))
@settings(deadline=None)
def test_length_groups_are_the_best_of_all_cuts(lengths, most_rows, overhead):
    allowed = [sizes for sizes in compositions(len(lengths)) if max(sizes) <= (most_rows or len(lengths))]
    best = min(cost(lengths, sizes, overhead) for sizes in allowed)
    assert cost(lengths, length_groups(lengths, most_rows, overhead), overhead) == best


def test_length_groups_part_long_rows_from_short_ones_where_a_pass_is_cheap():
    lengths = [100, 98, 12, 11, 10]
    assert length_groups(lengths, None, overhead_tokens=20) == [2, 3]
    assert length_groups(lengths, None, overhead_tokens=1000) == [5]
    assert length_groups(lengths, 2, overhead_tokens=1000) in ([2, 2, 1], [2, 1, 2], [1, 2, 2])
    assert length_groups([], None, 5) == []


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_evaluation_batches_hold_every_row_once_and_at_most_the_tokens_allowed(lengths, batch_tokens):
    batches = evaluation_batches(lengths, batch_tokens)
    rows = joined(batches)
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths)
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= batch_tokens for batch in batches)


def test_evaluation_batches_are_as_full_as_the_tokens_allow():
    assert evaluation_batches([3, 1, 2, 9], 4) == [[1, 2], [0], [3]]


def test_right_padding_is_masked_and_no_target():
    batch = collate([causal(5, 6, 7), causal(8), causal(1, 2)], [2, 0], pad_id=9)
    assert batch.input_ids_BT.tolist() == [[1, 2, 9], [5, 6, 7]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.is_target_BT.tolist() == [[False, True, False], [False, False, True]]
    assert batch.rows == [2, 0]
    assert batch.labels_B is None
    assert batch.token_type_ids_BT is None


def test_left_padding_ends_every_row_at_its_last_token():
    batch = collate([causal(5, 6, 7), causal(8)], [0, 1], pad_id=9, side="left", pad_to=4)
    assert batch.input_ids_BT.tolist() == [[9, 5, 6, 7], [9, 9, 9, 8]]
    assert batch.attention_mask_BT.tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    assert batch.is_target_BT.tolist() == [[False, False, False, True], [False, False, False, True]]


def test_labels_and_token_types_are_collated():
    examples = [labelled(1, 2, 3, label=1, types=[0, 1, 1]), labelled(4, 5, label=0, types=[0, 1])]
    batch = collate(examples, [0, 1], pad_id=0)
    assert batch.labels_B.tolist() == [1, 0]
    assert batch.token_type_ids_BT.tolist() == [[0, 1, 1], [0, 1, 0]]
    assert batch.is_target_BT is None


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=6), st.booleans())
@settings(deadline=None)
def test_collated_rows_can_be_read_back_through_the_mask(rows, left):
    examples = [causal(*ids) for ids in rows]
    batch = collate(examples, range(len(rows)), pad_id=0, side="left" if left else "right")
    masks = batch.attention_mask_BT.bool()
    assert [ids[mask].tolist() for ids, mask in zip(batch.input_ids_BT, masks, strict=True)] == rows
    assert batch.is_target_BT.sum(dim=1).tolist() == [1] * len(rows)


def test_no_rows_and_too_short_a_width_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        collate([causal(1)], [], 0)
    with pytest.raises(ValueError, match="shorter than the longest"):
        collate([causal(1, 2)], [0], 0, pad_to=1)
    with pytest.raises(ValueError, match="most_rows"):
        length_groups([1], 0, 0)
    with pytest.raises(ValueError, match="batch_size"):
        batch_order(singles(3), 0, 0, 0)


def split_groups(sizes):
    """Examples numbered through, in groups of these sizes."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


GROUPS = st.lists(st.integers(1, 7), max_size=40).map(split_groups)


@given(GROUPS, st.integers(1, 10), SEEDS, st.integers(0, 50))
@settings(deadline=None)
def test_groups_come_in_batches_of_which_only_the_last_is_short_and_every_example_once(groups, size, seed, epoch):
    batches = batch_order(groups, size, seed, epoch)
    assert sorted(joined(batches)) == joined(groups)
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(0 < len(batch) <= size for batch in batches)
    before = [list(group) for group in groups]
    assert batch_order(groups, size, seed, epoch) == batches, "a function of its arguments alone"
    assert groups == before, "and the groups are the caller's"


@given(GROUPS, st.integers(1, 10), SEEDS)
@settings(deadline=None)
def test_a_group_is_split_only_where_none_that_waits_fits(groups, size, seed):
    """Fewer groups than are looked through, so all that wait are looked at; none is larger than a batch."""
    groups = [group for group in groups if len(group) <= size]
    batches = batch_order(groups, size, seed, 0)
    batch_of = {row: index for index, batch in enumerate(batches) for row in batch}
    for group in groups:
        places = [batch_of[row] for row in group]
        assert places == sorted(places), "members keep their order"
        for index in sorted(set(places))[:-1]:
            room = places.count(index)
            waiting = [other for other in groups if all(batch_of[row] > index for row in other)]
            assert all(len(other) > room for other in waiting)
        # What is left comes next, so a group that is split at all lies in neighbouring batches.
        assert places[-1] - places[0] <= 1


def test_groups_are_kept_whole_where_they_fill_batches():
    groups = split_groups([4, 2, 4, 2, 2, 2, 8])
    for seed in range(20):
        batches = batch_order(groups, 4, seed, 0)
        batch_of = {row: index for index, batch in enumerate(batches) for row in batch}
        assert all(len({batch_of[row] for row in group}) == max(1, len(group) // 4) for group in groups)
    assert batch_order(groups, 4, 0, 0) != batch_order(groups, 4, 1, 0)
    assert batch_order(groups, 4, 0, 0) != batch_order(groups, 4, 0, 1)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30, unique=True).map(sorted))
def test_token_spans_are_runs_of_consecutive_numbers(numbers):
    spans = token_spans(numbers)
    assert joined(list(range(first, first + length)) for first, length in spans) == numbers
    assert all(first + length < following for (first, length), (following, _) in pairwise(spans))


def test_batches_of_one_width_become_one():
    examples = [causal(5, 6, 7), causal(8, 9), causal(1, 2, 3)]
    one = concatenate([collate(examples, [1], 0, pad_to=3), collate(examples, [0, 2], 0)])
    assert one.input_ids_BT.tolist() == [[8, 9, 0], [5, 6, 7], [1, 2, 3]]
    assert one.attention_mask_BT.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert one.is_target_BT.sum().item() == 3
    assert one.rows == [1, 0, 2]
    assert one.labels_B is None


def test_a_group_larger_than_a_batch_is_cut_at_random_and_keeps_no_place_of_its_own():
    groups = [list(range(20)), *([20 + 3 * index, 21 + 3 * index, 22 + 3 * index] for index in range(30))]
    orders = [batch_order(groups, 8, seed, 0) for seed in range(60)]
    for batches in orders:
        assert sorted(itertools.chain.from_iterable(batches)) == list(range(110))
        assert [len(batch) for batch in batches[:-1]] == [8] * (len(batches) - 1)
    members = {frozenset(batch) & frozenset(range(20)) for batches in orders for batch in batches}
    assert len(members) > 100, "other seeds put other members of the large group together"
    places = [place / len(batches) for batches in orders for place, batch in enumerate(batches) for row in batch if row < 20]
    assert sum(places) / len(places) == pytest.approx(0.46, abs=0.06), "in the middle on average"
