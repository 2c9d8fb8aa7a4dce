"""Pictures show every figure, names never cover each other, and the Pareto front is one."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.report import charts, svg


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
        charts.Point, st.text("abc +", min_size=1, max_size=30), st.floats(1, 1e7), st.floats(0, 1), st.none(), st.none()
    ),
    min_size=2,
    max_size=16,
)


@given(points, st.booleans())
def test_nothing_beats_the_front_and_something_beats_the_rest(found, higher):
    front = charts.front(found, higher)

    def beats(one, other):
        at_least = one.score >= other.score if higher else one.score <= other.score
        return one.cost <= other.cost and at_least and (one.cost, one.score) != (other.cost, other.score)

    for point in found:
        is_beaten = any(beats(other, point) for other in found)
        assert (any((p.cost, p.score) == (point.cost, point.score) for p in front)) != is_beaten


@given(points, st.booleans())
def test_names_in_a_scatter_never_cover_each_other(found, higher):
    picture = charts.against_cost(found, higher, "cost", "score", "words")
    names = {point.label for point in found} | {label for point in found if (label := point.label[:20])}
    drawn = [box for box in boxes(picture) if box[4].rstrip("…")[:20] in {name[:20] for name in names}]
    assert not [(one, other) for i, one in enumerate(drawn) for other in drawn[i + 1 :] if overlap(one, other)]
    assert len(list(parsed(picture).iter("circle"))) == len(found)


def test_bars_show_every_row_with_its_interval():
    rows = [
        charts.Bar("value", 0.2, 0.1, 0.3, "+0.20"),
        charts.Bar("a player of a long name, too long", -0.1, None, None, "−0.10"),
    ]
    picture = charts.bars(rows, "Shapley value", "words")
    drawn = [text for *_, text in texts(picture)]
    assert {"value", "+0.20", "−0.10", "Shapley value"} <= set(drawn)
    assert any(text.endswith("…") for text in drawn)
    assert len(re.findall('class="interval', picture)) == 3
    assert not overlapping(picture)


@pytest.mark.parametrize("values", [[-0.3, -0.2], [0.2, 0.3], [-0.1, 0.4], [0.0, 0.0]])
def test_differences_on_either_side_of_zero_are_drawn_inside(values):
    rows = [
        charts.Bar(f"r {index}", value, value - 0.1, value + 0.1, f"{value:+.2f}", "quiet")
        for index, value in enumerate(values)
    ]
    picture = charts.differences(rows, "difference", "words")
    across = [float(one.get("cx")) for one in parsed(picture).iter("circle")]
    assert all(0 < x < charts.WIDTH for x in across)
    assert not overlapping(picture)


def test_a_heat_map_writes_its_cells_where_there_is_room():
    small = charts.Heat(["0", "1"], ["query", "value"], [[0.5, None], [-0.25, 0.1]], 0.5, charts.signed(2))
    assert {text for *_, text in texts(charts.heat_map(small, "words"))} == {
        "0",
        "1",
        "query",
        "value",
        "+0.50",
        "−0.25",
        "+0.10",
    }
    large = charts.Heat([str(i) for i in range(40)], ["query", "value"], [[0.5, 0.1]] * 40, 0.5, charts.signed(2))
    picture = charts.heat_map(large, "words")
    assert len(list(parsed(picture).iter("rect"))) == 80
    assert "+0.50" in "".join(one.text for one in parsed(picture).iter("title"))
    assert not overlapping(picture)


def test_of_a_loss_what_is_below_zero_has_the_colour_of_help():
    cells = [[0.5, -0.25, 0.0]]
    for is_flipped, kinds in ((False, ["cell", "cell below", "cell"]), (True, ["cell below", "cell", "cell"])):
        heat = charts.Heat(["0"], ["a", "b", "c"], cells, 0.5, charts.signed(2), is_flipped=is_flipped)
        assert [one.get("class") for one in parsed(charts.heat_map(heat, "words")).iter("rect")] == kinds


def test_a_map_without_a_figure_has_an_empty_scale():
    heat = charts.Heat(["0"], ["query"], [[0.0]], 0.0, charts.signed(1))
    assert "0.0" in charts.heat_map(heat, charts.heat_says("map", heat))


def test_curves_of_one_step_and_of_falling_magnitudes_are_drawn():
    one = charts.Series("one", [(1.0, 0.5)], [(1.0, 0.6)], "best")
    assert charts.curves([one], "step", "loss", "words").count("<path") == 2
    steep = charts.Series("steep", [(1.0, 1000.0), (10.0, 0.1)], (), "baseline")
    picture = charts.curves([one, steep], "step", "loss", "words")
    assert not overlapping(picture)
    assert len(charts.small_curves([one, steep], "behind")) == 2
