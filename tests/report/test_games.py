"""The players' section holds the values of ``lorascope results``."""

from lorascope.attribution.players import stored_game
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


def test_intervals_of_all_coalitions_speak_of_the_seeds(study_of, written, findings_of):
    for seeds, text in (([1, 2, 3], ", 95 % interval over 3 seeds"), ([1], "; one seed gives no interval")):
        section = players_section(findings_of(written(study_of(design=SHAPLEY, seeds=seeds), f"run{len(seeds)}")))
        assert section is not None
        assert f"A value to the right helps{text}" in section.blocks[0].figures[0].caption


def test_answers_to_questions_have_an_f1_in_percent_however_small(study_of, entered, tmp_path, findings_of):
    study = study_of(task={"name": "squad", "data": "org/squad"}, design=SHAPLEY | {"values": ["f1"]})
    with Store.create(tmp_path / "run", study) as store:
        game = stored_game(study, [])
        trials = game.trials(game.coalitions())
        store.add_trials(trials)
        for trial in trials:
            f1 = 0.1 * len(trial.adapter.targets) + 0.01 * trial.seed
            entered(store, trial, [], {"exact_match": 0.0, "f1": f1})
    section = players_section(findings_of(tmp_path / "run"))
    assert section is not None
    table = next(block for block in section.blocks if block.form == "table")
    assert next(one.unit for one in table.columns if one.title == "value for F1") == "%"
    assert "Shapley value for F1 (%)" in section.blocks[0].figures[0].picture


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
