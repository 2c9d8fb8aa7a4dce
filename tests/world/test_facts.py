"""Labels by construction: what one fact says of another."""

import pytest

from lorascope.world.facts import NO_PET, POINTS, Fact, label

CASES = [
    ([Fact("trade", "baker")], Fact("trade", "baker"), "entailment"),
    ([Fact("trade", "miller")], Fact("trade", "baker"), "contradiction"),
    ([Fact("home", "in Mill Lane")], Fact("trade", "baker"), "neutral"),
    ([], Fact("trade", "baker"), "neutral"),
    ([Fact("home", "x"), Fact("trade", "baker")], Fact("trade", "baker"), "entailment"),
    ([Fact("pet", "goose")], Fact("pet", "goose", "Duchess"), "neutral"),
    ([Fact("pet", "goose", "Duchess")], Fact("pet", "goose"), "entailment"),
    ([Fact("pet", "goose", "Star")], Fact("pet", "goose", "Duchess"), "contradiction"),
    ([Fact("pet", NO_PET)], Fact("pet", "goose", "Duchess"), "contradiction"),
    ([Fact("hates", "cabbage")], Fact("hates", "onions"), "neutral"),
    ([Fact("loves", "mushrooms")], Fact("hates", "mushrooms"), "contradiction"),
    ([Fact("hates", "mushrooms")], Fact("loves", "mushrooms"), "contradiction"),
    ([Fact("hates", "mushrooms")], Fact("loves", "apple pie"), "neutral"),
]


@pytest.mark.parametrize(("claims", "fact", "expected"), CASES)
def test_a_claim_entails_excludes_or_leaves_open(claims, fact, expected):
    assert label(claims, fact) == expected


def test_points_are_those_of_the_c_score():
    from lorascope.judge import POINTS as JUDGED

    assert dict(POINTS) == JUDGED
