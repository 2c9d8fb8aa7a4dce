"""Score against cost: the Pareto front is one, names never cover each other, and what is cut or moved says so."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.report import scatter, svg


def parsed(picture):
    """As XML, which is stricter than HTML."""
    return ElementTree.fromstring(str(picture))


def texts(picture):
    return [(float(one.get("x")), float(one.get("y")), one.get("text-anchor"), float(one.get("font-size")), one.text)
            for one in parsed(picture).iter("text")]  # fmt: skip


def boxes(picture):
    """Where each text lies."""
    found = []
    for x, y, anchor, size, text in texts(picture):
        wide = svg.width_of(text, size)
        start = x - {"start": 0, "middle": wide / 2, "end": wide}[anchor or "start"]
        found.append((start, y - 0.75 * size, start + wide, y + 0.2 * size, text))
    return found


def overlapping(picture):
    found = boxes(picture)
    return [(one[4], other[4]) for i, one in enumerate(found) for other in found[i + 1 :] if overlap(one, other)]


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


points = st.lists(
    st.builds(
        scatter.Point, st.text("abc +", min_size=1, max_size=30), st.floats(1, 1e7), st.floats(0, 1), st.none(), st.none()
    ),
    min_size=2,
    max_size=16,
)


@given(points, st.booleans())
def test_nothing_beats_the_front_and_something_beats_the_rest(found, higher):
    front = scatter.front(found, higher)

    def beats(one, other):
        at_least = one.score >= other.score if higher else one.score <= other.score
        return one.cost <= other.cost and at_least and (one.cost, one.score) != (other.cost, other.score)

    for point in found:
        is_beaten = any(beats(other, point) for other in found)
        assert (any((p.cost, p.score) == (point.cost, point.score) for p in front)) != is_beaten


@given(points, st.booleans())
def test_names_in_a_scatter_never_cover_each_other(found, higher):
    picture = scatter.against_cost(found, scatter.front(found, higher), "cost", "score", "words")
    names = {point.label for point in found} | {label for point in found if (label := point.label[:20])}
    drawn = [box for box in boxes(picture) if box[4].rstrip("…")[:20] in {name[:20] for name in names}]
    assert not [(one, other) for i, one in enumerate(drawn) for other in drawn[i + 1 :] if overlap(one, other)]
    assert len(list(parsed(picture).iter("circle"))) == len(found)


@given(points, st.integers(0, 15), st.booleans())
def test_a_configuration_that_lost_seeds_is_never_on_the_front(found, number, higher):
    lucky = replace(found[number % len(found)], score=2.0 if higher else -1.0, is_short=True)
    front = scatter.front([*found, lucky], higher)
    assert lucky not in front
    assert front == scatter.front(found, higher)


def test_costs_that_a_measurement_does_not_tell_apart_count_as_equal():
    one, two, three = (
        scatter.Point(f"r {cost}", cost, score, None, None) for cost, score in ((100, 0.5), (103, 0.6), (120, 0.7))
    )
    assert scatter.front([one, two, three], True) == [one, two, three]
    assert scatter.front([one, two, three], True, equal=0.05) == [two, three]
    near, nearer = (scatter.Point(f"r {cost}", cost, score, None, None) for cost, score in ((116, 0.65), (112, 0.55)))
    assert scatter.front([one, near, nearer, three], True, equal=0.05) == [one, nearer, three]


def test_an_interval_that_goes_on_beyond_the_frame_ends_in_an_arrow():
    inside = scatter.Point("inside", 1.0, 0.80, 0.79, 0.81)
    beyond = scatter.Point("beyond", 2.0, 0.82, 0.10, 1.50)
    assert [scatter.num_cut(found) for found in ([inside, beyond], [inside])] == [1, 0]
    drawn = [list(parsed(scatter.against_cost(found, [], "cost", "score", "words")).iter("path")) for found in
             ([inside, beyond], [inside])]  # fmt: skip
    assert [[one.get("class") for one in paths] for paths in drawn] == [["interval quiet"] * 2, []]


def test_a_baseline_far_from_all_others_does_not_squeeze_them():
    near = [scatter.Point(f"{cost}", cost, 0.5 + cost / 1e4, None, None) for cost in range(760, 768)]
    far = scatter.Point("none", 680, 0.5, None, None, is_baseline=True)
    assert scatter.is_broken([*near, far])
    assert not scatter.is_broken(near)
    picture = scatter.against_cost([*near, far], [], "MiB", "score", "words")
    across = sorted(float(one.get("cx")) for one in parsed(picture).iter("circle") if one.get("class") != "ring")
    assert across[-1] - across[1] > 0.7 * (across[-1] - across[0])
    assert [text for *_, text in texts(picture)].count("680") == 1
    assert not [pair for pair in overlapping(picture) if "680" in pair]


def test_a_control_that_costs_far_more_stands_beyond_a_break_too():
    near = [scatter.Point(f"{cost}", cost, 0.5, None, None) for cost in range(760, 768)]
    picture = scatter.against_cost([*near, scatter.Point("full", 2000, 0.9, None, None)], [], "MiB", "score", "words")
    across = [float(one.get("cx")) for one in parsed(picture).iter("circle")]
    assert max(across) == pytest.approx(across[-1])
    assert "2k" in [text for *_, text in texts(picture)]


def test_costs_that_are_not_alike_never_share_a_place_beyond_a_break():
    costs = [15.3, 29.4, 30.0, *(31.0 + step / 2 for step in range(12))]
    assert not scatter.is_broken([scatter.Point(f"{cost}", cost, 0.5, None, None) for cost in costs])
