"""The players' section holds the values of ``lorascope results``."""

from lorascope.cli.study import results_of
from lorascope.report.games import players_section
from lorascope.store import Store

SHAPLEY = {"kind": "shapley", "players": ["query", "key", "value"], "values": ["accuracy", "eval_loss"]}


def test_values_ranks_and_intervals_are_the_documents(study_of, written, findings_of):
    directory = written(study_of(design=SHAPLEY))
    section = players_section(findings_of(directory))
    assert section is not None
    with Store.open(directory) as store:
        metrics = results_of([store])["shapley"]["metrics"]
    tables = [block for block in section.blocks if block.form == "table"]
    assert len(tables) == 2
    for table, metric in zip(tables, metrics.values(), strict=True):
        columns = {one.title: one.cells for one in table.columns}
        players = [cell.text for cell in columns["player"]]
        assert players == [player for group in metric["ranking"] for player in group]
        title = next(title for title in columns if title.startswith("value for"))
        assert [cell.value for cell in columns[title]] == [metric["values"][player]["estimate"] for player in players]
        per_million = [metric["values"][player]["per_million_parameters"] for player in players]
        assert [cell.value for cell in columns["per million"]] == per_million


def test_interactions_of_every_pair_are_on_the_map(study_of, written, findings_of):
    section = players_section(findings_of(written(study_of(design=SHAPLEY))))
    assert section is not None
    figures = section.blocks[0].figures
    assert [figure.title for figure in figures] == ["Values for accuracy", "Accuracy: interactions"]
    assert figures[1].picture.count('class="cell') >= 3


def test_a_loss_says_that_left_is_better(study_of, written, findings_of):
    section = players_section(findings_of(written(study_of(design=SHAPLEY))))
    assert section is not None
    captions = [figure.caption for block in section.blocks if block.form == "figures" for figure in block.figures]
    assert any("to the right helps" in caption for caption in captions)
    assert any("to the left helps: it lowers the loss" in caption for caption in captions)


def test_a_missing_coalition_is_told_instead_of_values(study_of, written, findings_of):
    ended = {number: {"status": "failed"} for number in range(3)}
    section = players_section(findings_of(written(study_of(design=SHAPLEY), ended=ended)))
    assert section is not None
    assert section.blocks[0].items == ["No values for accuracy: 7 of 8 coalitions are valued; all are needed."]
