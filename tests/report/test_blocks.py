"""Columns have one number of decimals, and keep all digits for sorting."""

from lorascope.report.blocks import Cell, Column, Table, numbers, scores, useful


def test_a_column_has_one_number_of_decimals():
    column = numbers("x", [0.5, None, 12.25])
    assert [cell.text for cell in column.cells] == ["0.50", "–", "12.25"]
    assert [cell.value for cell in column.cells] == [0.5, None, 12.25]


def test_an_interval_sets_the_decimals_of_its_column():
    column = scores("x", [(0.78325, 0.7512, 0.8153), (0.5, None, None)])
    assert [(cell.text, cell.more) for cell in column.cells] == [("0.783", "± 0.032"), ("0.500", "")]
    ends = scores("x", [(-0.01, -0.032, 0.012)], plus_minus=False, sign=True)
    assert (ends.cells[0].text, ends.cells[0].more) == ("−0.010", "[−0.032, +0.012]")


def test_columns_without_a_figure_go():
    full, empty = numbers("x", [1.0]), numbers("y", [None])
    assert useful([full, empty, Column("z", [Cell("")])]) == [full]


def test_rows_pair_cells_with_their_columns():
    one, other = numbers("x", [1.0, 2.0]), numbers("y", [3.0, 4.0])
    assert [[cell.value for _, cell in row] for row in Table([one, other], "all").rows] == [[1.0, 3.0], [2.0, 4.0]]
