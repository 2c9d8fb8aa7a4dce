"""Maps and tables of an inspection, as a terminal shows them."""

import io
import re

from rich.console import Console

from lorascope.analysis.figures import FIGURES, Grid
from lorascope.cli.inspection import print_inspection, print_map

GRID = Grid(["0", "1", "other"], ["attention.self.query", "up"], [[1.0, 2.0], [3.0, None], [None, 5.0]])


def shown(grid, span=(1.0, 5.0), width=80, colours=False):
    """The lines that a terminal of a width is sent."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colours, color_system="truecolor" if colours else None)
    print_map(console, "numbers", grid, FIGURES["effective_rank"], span)
    return file.getvalue().splitlines()


def test_a_map_has_its_span_its_names_and_a_row_for_each_layer():
    lines = [" ".join(line.split()) for line in shown(GRID)]
    assert lines[0] == "numbers, 1.0 to 5.0"
    assert lines[1:4] == ["attention.", "self.", "layer query up"]
    assert lines[-4:-1] == ["0 1.0 2.0", "1 3.0 –", "other – 5.0"]


def test_a_narrow_terminal_gets_the_modules_in_several_parts():
    wide = Grid(["0"], [f"module{index}" for index in range(9)], [[float(index) for index in range(9)]])
    lines = shown(wide, width=40)
    assert all(len(line) <= 40 for line in lines)
    assert sum(line.startswith("layer") for line in lines) == 3
    text = " ".join(lines)
    assert all(f"module{index}" in text and f"{index}.0" in text for index in range(9))


def backgrounds(lines):
    return re.findall(r"48;2;(\d+;\d+;\d+)m +(\d\.\d)", "\n".join(lines))


def test_the_lowest_value_is_dark_the_highest_light_and_one_value_of_two_maps_has_one_colour():
    colours = {number: colour for colour, number in backgrounds(shown(GRID, colours=True))}
    assert (colours["1.0"], colours["5.0"]) == ("68;1;84", "253;231;37")
    other = Grid(["0"], ["up"], [[3.0]])
    assert backgrounds(shown(other, colours=True)) == [(colours["3.0"], "3.0")]


def test_tables_stay_whole_on_a_narrow_terminal():
    module = {
        "layer": 0, "kind": "query", "r": 4, "scaling": 2.0, "dtype": "float32", "norm": 1.0, "spectral_norm": 0.5,
        "mean": 0.0, "std": 0.1, "effective_rank": 3.0, "stable_rank": 2.0, "utilisation": 0.75, "numerical_rank": 4,
        "rank_for_90": 2, "rank_for_99": 3, "slices": [],
    }  # fmt: skip
    overall = {"norm": 1.0, "effective_rank": 3.0, "stable_rank": 2.0, "utilisation": 0.75, "numerical_rank": 4}
    adapter = {
        "label": "0123abcd-s42", "base": "some/base", "modules": [module], "lora_params": 64, "overall": overall,
        "biases": [{}], "bias_params": 3, "heads": [], "head_params": 0,
    }  # fmt: skip
    document = {"adapters": [adapter, {**adapter, "label": "other"}], "overlap": None, "representations": None}
    file = io.StringIO()
    print_inspection(Console(file=file, width=80), document, ["effective_rank"])
    text = file.getvalue()
    assert "0123abcd-s42" in text
    assert "effective rank" in text
    assert "no room for: stored as, scaling, base" in text
    assert "0123abcd-s42 also holds 1 trained bias tensor (3 numbers)" in text
