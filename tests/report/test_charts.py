"""Pictures show every figure, and none of their texts covers another."""

import re
from importlib.resources import files
from xml.etree import ElementTree

import pytest

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


def channels(colour):
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def luminance(rgb):
    """Relative, as WCAG 2 has it."""
    linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("block", "mode"), [(0, "light"), (1, "dark")])
@pytest.mark.parametrize("colour", ["accent", "below"])
def test_the_figure_in_a_cell_is_readable_at_every_depth(block, mode, colour):
    style = (files("lorascope.report") / "templates" / "style.css").read_text(encoding="utf-8")
    variables = dict(re.findall(r"--([\w-]+): ([^;]+);", style.split(":root {")[block + 1].partition("}")[0]))
    heat = charts.Heat(["0"], [str(i) for i in range(11)], [[i / 10 for i in range(11)]], 1.0, charts.plain(".0f"))
    depths = [float(one.get("fill-opacity")) for one in parsed(charts.heat_map(heat, "words")).iter("rect")]
    assert depths == sorted(set(depths))
    paper, ink, deep = (channels(variables[name]) for name in ("paper", "ink", colour))
    for depth in depths:
        share = depth * float(variables["deepest"])
        cell = luminance([share * d + (1 - share) * p for d, p in zip(deep, paper, strict=True)])
        low, high = sorted([cell, luminance(ink)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, (mode, colour, depth)


def test_a_spectrum_has_a_line_for_each_layer_and_the_plots_one_scale():
    ones = [
        charts.Spectrum("query", [("layer 0", [0.5, 0.25]), ("layer 1", [1.0, 0.1])]),
        charts.Spectrum("value", [("layer 0", [0.5])]),
    ]
    first, second = (parsed(picture) for picture in charts.spectra(ones, ["one", "two"]))
    assert [len(list(one.iter("path"))) for one in (first, second)] == [2, 1]
    assert [one.text for one in first.iter("title")] == ["layer 0: 0.5, 0.25", "layer 1: 1, 0.1"]
    heights = [[float(dot.get("cy")) for dot in one.iter("circle")] for one in (first, second)]
    assert heights[0][0] == heights[1][0]
    assert heights[0][2] < heights[0][0] < heights[0][1] < heights[0][3]


def test_spectra_of_updates_that_are_zero_are_drawn():
    (picture,) = charts.spectra([charts.Spectrum("query", [("layer 0", [0.0, 0.0])])], ["zero"])
    assert len(list(parsed(picture).iter("circle"))) == 2
