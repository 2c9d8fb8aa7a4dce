"""Conversations as text: exchanges, the plain format, an encoder's input."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.data.conversation import encoder_text, exchanges, plain_chat, taught, without_oldest
from lorascope.data.record import Segment

NAMES = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}


def turns(roles):
    return tuple(Segment(f"{role}{index}", index == len(roles) - 1, role=NAMES[role]) for index, role in enumerate(roles))


@pytest.mark.parametrize(
    ("roles", "starts"),
    [("ua", [0]), ("sua", [1]), ("uaua", [0, 2]), ("sauaua", [1, 2, 4]), ("sduuaatua", [2, 6]), ("a", [0])],
)
def test_an_exchange_ends_with_the_assistants_last_turn_of_it(roles, starts):
    assert exchanges(turns(roles)) == starts


@given(st.from_regex("s?a?(ua){1,6}", fullmatch=True))
@settings(max_examples=30, deadline=None)
def test_without_old_exchanges_system_and_target_stay_and_roles_alternate(roles):
    segments = turns(roles)
    for num_dropped in range(len(exchanges(segments))):
        kept = without_oldest(segments, num_dropped)
        assert kept[-1] == segments[-1]
        assert kept[0].role == segments[0].role or segments[0].role != "system"
        spoken = [segment.role for segment in kept if segment.role != "system"]
        assert all(first != second for first, second in pairwise(spoken))
        assert len(exchanges(kept)) == len(exchanges(segments)) - num_dropped


def test_the_plain_format_closes_every_turn_of_the_assistant_alike():
    history = plain_chat((*turns("sua"), *turns("ua")))
    assert [segment.text for segment in history] == [
        *("s0\n", "User: u1\n", "Assistant:", " a2"),
        *("User: u0\n", "Assistant:", " a1"),
    ]
    assert [segment.role for segment in history] == [None, None, None, "assistant", None, None, "assistant"]
    assert [segment.cut for segment in history] == [None, "start", None, None, None, None, None]


def test_an_encoder_reads_turns_as_lines_and_other_segments_as_they_are():
    assert encoder_text(turns("suat")) == "s0\nUser: u1\nAssistant: a2\nTool: t3\n"
    assert encoder_text((Segment("a "), Segment("b"))) == "a b"


def test_what_follows_the_last_target_is_not_taught():
    segments = (*turns("ua"), Segment("thanks", role="user"))
    assert taught(segments) == segments[:2]
