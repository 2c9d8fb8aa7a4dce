"""Certificates, warnings and the facts that a study can be repeated by."""

import json

import yaml

from lorascope.report.record import merge_section, reproduce_section
from lorascope.store import Store

CERTIFICATE = {
    "certificate": 1,
    "holds": True,
    "adapter": {"directory": "runs/run/trials/TRIAL/adapter"},
    "comparisons": [
        {"name": "base", "against": "adapter", "max_difference": 1.0, "relative_difference": 0.1, "kl": 0.2, "kl_max": 0.3,
         "top1_agreement": 0.9, "scores": {"accuracy": 0.5}},
        {"name": "adapter", "against": None, "scores": {"accuracy": 0.75}},
        {"name": "merged, reloaded", "against": "adapter", "max_difference": 1e-6, "relative_difference": 1e-7, "kl": 0.0,
         "kl_max": 0.0, "top1_agreement": 1.0, "scores": {"accuracy": 0.75}},
    ],
    "checks": [{"name": "tensors", "verdict": "holds", "value": None, "says": "all there"},
               {"name": "tokenizer", "verdict": "warning", "value": None, "says": "<b>another</b>"}],
}  # fmt: skip


def a_trial(directory):
    with Store.open(directory) as store:
        return store.trials()[0].trial


def put(directory, document):
    directory.mkdir(parents=True)
    text = document if isinstance(document, str) else json.dumps(document)
    (directory / "merge-certificate.json").write_text(text, encoding="utf-8")


def test_a_certificate_that_lies_beside_the_study_is_shown(study_of, written, findings_of, tmp_path, page_of):
    directory = written(study_of())
    text = json.dumps(CERTIFICATE).replace("TRIAL", a_trial(directory))
    put(tmp_path / "merged", text)
    section = merge_section(findings_of(directory))
    assert section is not None
    told, table, checks = section.blocks
    assert told.items == [f"The merge of trial {a_trial(directory)} in merged holds: 1 of 2 checks hold, 1 with a warning."]
    assert [cell.value for cell in next(one for one in table.columns if one.title == "accuracy").cells] == [0.5, 0.75, 0.75]
    assert checks.columns[2].cells[0].text == "<b>another</b>"
    page = page_of(directory)
    assert "<b>" not in page.source
    assert "1.0e−06" in page.text


def test_certificates_of_other_models_are_left_alone(study_of, written, findings_of, tmp_path):
    directory = written(study_of())
    put(tmp_path / "merged", CERTIFICATE)
    put(tmp_path / "broken", "no json")
    assert merge_section(findings_of(directory)) is None


def test_one_inside_that_fails_or_cannot_be_read_is_told(study_of, written, findings_of):
    directory = written(study_of())
    failing = [{"name": "outputs", "verdict": "fails", "value": 1.0, "says": "far apart"}]
    put(directory / "merged", CERTIFICATE | {"holds": False, "checks": failing})
    put(directory / "other", "no json")
    section = merge_section(findings_of(directory))
    assert section is not None
    notes = [item for block in section.blocks if block.form == "notes" for item in block.items]
    assert notes == [
        "The merge in merged DOES NOT HOLD: 0 of 1 check hold, 1 fail.",
        "The certificate in other could not be read.",
    ]


def test_a_study_can_be_repeated_from_its_page(study_of, written, findings_of):
    study = study_of()
    section = reproduce_section(findings_of(written(study)))
    assert section.blocks[0].text.startswith("lorascope run study.yaml --out runs/by-hand\n")
    facts = {row[0][1].text: row[1][1].text for row in section.blocks[2].rows}
    assert facts["lorascope version"] == "0.1.0"
    assert facts["study hash"] == study.hash


def test_the_study_shown_keeps_classes_that_look_like_places_and_loses_places(study_of, written, findings_of):
    task = {"name": "file", "data": "/home/someone/posts", "labels": ["/r/books", "/r/film/new"]}
    study = study_of(task=task, base={"model": "/srv/models/tiny"})
    shown = reproduce_section(findings_of(written(study))).blocks[-1].text
    document = yaml.safe_load(shown)
    assert (document["task"]["data"], document["base"]["model"]) == ("posts", "tiny")
    assert document["task"]["labels"] == ["/r/books", "/r/film/new"]
