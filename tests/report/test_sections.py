"""Tables of configurations hold the figures of ``lorascope results``."""

from lorascope.cli.study import results_of
from lorascope.report.sections import (
    ablation_section,
    configurations_table,
    controls_section,
    decodings_section,
    search_section,
)
from lorascope.store import Store

ABLATION = {"kind": "ablation", "over": {"r": [4, 16], "bias": ["lora_only"]}}


def column(table, title):
    return next(one for one in table.columns if one.title == title)


def results(directory):
    with Store.open(directory) as store:
        return results_of([store])


def test_differences_and_verdicts_are_those_of_the_comparisons(study_of, written, findings_of):
    directory = written(study_of())
    table = configurations_table(findings_of(directory))
    rows = {row["configuration"]: row for row in results(directory)["comparisons"]["rows"]}
    names = [cell.more.partition(",")[0] for cell in column(table, "configuration").cells]
    assert set(rows) < set(names)
    for name, delta, p, verdict in zip(
        names, column(table, "Δ accuracy").cells, column(table, "p").cells, column(table, "verdict").cells, strict=True
    ):
        row = rows.get(name)
        assert (delta.value, p.value, verdict.text) == (
            (None, None, "") if row is None else (row["difference"], row["p_holm"], row["verdict"])
        )
        assert ("[" in delta.more) == (row is not None and row["low"] is not None)


def test_what_is_asked_first_stands_first_and_other_metrics_last(study_of, written, findings_of):
    table = configurations_table(findings_of(written(study_of())))
    assert [column.title for column in table.columns] == [
        "configuration", "accuracy ↑", "verdict", "Δ accuracy", "p", "seeds", "trainable", "time alone", "memory alone",
        "validation loss ↓",
    ]  # fmt: skip
    assert [cell.more.partition(",")[2] for cell in table.columns[0].cells].count(" the baseline") == 1


def test_lost_seeds_are_shown_beside_the_score(study_of, written, findings_of):
    table = configurations_table(findings_of(written(study_of(), ended={8: {"status": "failed"}})))
    assert sorted(cell.text for cell in column(table, "seeds").cells) == ["2 of 3", "3", "3"]


def test_an_ablation_has_one_row_per_value(study_of, written, findings_of):
    directory = written(study_of(design=ABLATION))
    section = ablation_section(findings_of(directory))
    assert section is not None
    table = section.blocks[0]
    expected = results(directory)["ablation"]["rows"]
    assert [cell.text for cell in column(table, "factor").cells] == [row["factor"] for row in expected]
    assert [cell.text for cell in column(table, "value").cells] == ["the study’s own", "r 4", "r 16", "bias lora_only"]
    assert [cell.value for cell in column(table, "Δ to the baseline").cells] == [row["delta"] for row in expected]


def test_controls_have_their_shortfalls(study_of, written, findings_of):
    study = study_of(controls=[{"method": "full"}, {"method": "head"}])
    directory = written(study)
    section = controls_section(findings_of(directory))
    assert section is not None
    expected = results(directory)["controls"]["shortfalls"]
    table = section.blocks[1]
    assert [cell.value for cell in column(table, "shortfall").cells] == [row["shortfall"] for row in expected]
    assert {cell.text for cell in column(table, "against").cells} == {"full fine-tuning", "head only"}


def test_what_a_study_has_not_has_no_section(study_of, written, findings_of):
    found = findings_of(written(study_of()))
    assert [section(found) for section in (ablation_section, controls_section, search_section, decodings_section)] == [
        None
    ] * 4
