"""Likings, dislikings, wishes and fears have wordings enough for a test of their own."""

import pytest

from lorascope.world import tastes
from lorascope.world.wording import wordings

KINDS = [
    tastes.LOVES,
    tastes.HATES,
    tastes.DRINK,
    tastes.PASTIME,
    tastes.INSTRUMENT,
    tastes.SEASON,
    tastes.WISH,
    tastes.FEAR,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.states[0])
def test_of_twelve_wordings_three_are_kept_for_tests(kind):
    for options in (kind.states, kind.answers):
        assert len(set(options)) == len(options) >= 12
        assert len(wordings(options, "test")) >= 3
        assert set(wordings(options, "test")).isdisjoint(wordings(options, "train"))
    assert len(wordings(kind.asks, "test")) >= 2
    assert set(kind.states).isdisjoint(kind.answers)
