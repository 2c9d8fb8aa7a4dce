"""Figures by layer and module."""

from lorascope.analysis.figures import FIGURES, Grid, grid_of, leading_of, span_of
from lorascope.analysis.updates import update_record
from lorascope.lora.diagnostics import diagnose_update

ROWS = [
    {"layer": 1, "kind": "query", "norm": 3.0},
    {"layer": 0, "kind": "query", "norm": 1.0},
    {"layer": None, "kind": "lm_head", "norm": 2.0},
    {"layer": 1, "kind": "value", "norm": None},
]


def test_a_map_has_layers_down_and_modules_across():
    grid = grid_of(ROWS, lambda row: row["norm"])
    assert (grid.rows, grid.columns) == (["0", "1", "other"], ["query", "lm_head", "value"])
    assert grid.values == [[1.0, None, None], [3.0, None, None], [None, 2.0, None]]
    assert span_of([grid, Grid(["0"], ["query"], [[5.0]])]) == (1.0, 5.0)
    assert span_of([Grid([], [], [])]) == (0.0, 0.0)


def test_every_figure_is_in_the_record_of_an_update_and_can_be_written():
    import torch

    factors = (torch.eye(2, 5), torch.eye(4, 2), 1.0)
    record = update_record(diagnose_update(*factors), *factors)
    for name, figure in FIGURES.items():
        assert figure.text(record[name]), name
    assert FIGURES["numerical_rank"].text(record["numerical_rank"]) == "2"
    assert FIGURES["norm"].text(None) == "–"


def test_a_map_of_overlap_leaves_out_what_has_no_direction():
    leading = leading_of("left")
    assert leading({"left": {"leading": 0.5}}) == 0.5
    assert leading({"left": None}) is None
