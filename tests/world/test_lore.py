"""What is known of things: names belong to one split."""

from itertools import combinations

import pytest

from lorascope.world.lore import PASTIMES, TRADES, names_of


@pytest.mark.parametrize(("first", "second"), list(combinations(("train", "validation", "test"), 2)))
def test_no_name_belongs_to_two_splits(first, second):
    one, other = names_of(first), names_of(second)
    for kind in ("women", "men", "surnames", "pets", "towns"):
        assert set(getattr(one, kind)).isdisjoint(getattr(other, kind)), kind


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_split_has_names_enough_for_a_town(split):
    names = names_of(split)
    assert len(names.surnames) >= 12
    assert min(len(names.women), len(names.men)) >= 4
    assert len({*names.women, *names.men, *names.surnames}) == len(names.women) + len(names.men) + len(names.surnames)


def test_trades_and_pastimes_are_told_apart_by_name():
    assert len({trade.name for trade in TRADES}) == len(TRADES)
    assert len({pastime.doing for pastime in PASTIMES}) == len(PASTIMES)
