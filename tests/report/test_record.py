"""Certificates, warnings and the facts that a study can be repeated by."""

import hashlib
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


def test_a_certificate_of_another_study_is_not_taken_for_a_trial_of_the_same_name(study_of, written, findings_of, tmp_path):
    directory = written(study_of())
    other = written(study_of(task={"name": "rte", "data": "org/rte"}, name="other"), "other")
    assert a_trial(directory) == a_trial(other)
    document = CERTIFICATE | {"adapter": {"directory": str(other / "trials" / a_trial(other) / "adapter")}}
    put(tmp_path / "merged", document)
    assert merge_section(findings_of(directory)) is None
    assert merge_section(findings_of(other)) is not None


def test_an_adapter_is_known_by_its_checksum(study_of, written, findings_of, tmp_path):
    directory = written(study_of())
    adapter = directory / "trials" / a_trial(directory) / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_bytes(b"{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    place = {"directory": f"/elsewhere/copied/trials/{a_trial(directory)}/adapter"}
    checksum = hashlib.sha256(b"{}weights").hexdigest()
    put(tmp_path / "merged", CERTIFICATE | {"adapter": place | {"checksum": checksum}})
    assert merge_section(findings_of(directory)) is not None
    (adapter / "adapter_model.safetensors").write_bytes(b"trained again")
    assert merge_section(findings_of(directory)) is None


def test_a_certificate_without_checks_holds_nothing(study_of, written, findings_of):
    directory = written(study_of())
    put(directory / "merged", CERTIFICATE | {"checks": []})
    section = merge_section(findings_of(directory))
    assert section is not None
    assert [block.items for block in section.blocks] == [
        ["The certificate in merged names no check, so it says nothing of the merge."]
    ]


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


def notes_of(section):
    return " ".join(item for block in section.blocks if block.form == "notes" for item in block.items)


def test_a_base_that_comes_along_is_not_asked_for(study_of, written, findings_of):
    embedded = study_of(base={"model": "lorascope:small"})
    assert "--set" not in notes_of(reproduce_section(findings_of(written(embedded, "one"))))
    data = study_of(base={"model": "lorascope:small"}, task={"name": "sst2", "data": "/home/somebody/sst2"})
    told = notes_of(reproduce_section(findings_of(written(data, "two"))))
    assert "(sst2): give yours, --set task.data=DIR." in told
    splits = study_of(task={"name": "sst2", "data": {"train": "/a/t.tsv", "validation": "org/data"}})
    told = notes_of(reproduce_section(findings_of(written(splits, "three"))))
    assert "(t.tsv): give yours, --set task.data.train=DIR." in told


def test_shards_that_differ_are_told_in_a_column_each(study_of, written, findings_of):
    study = study_of()
    shards = [
        written(study, name, ended={number: {"status": "planned"} for number in left})
        for name, left in (("one", range(3, 9)), ("two", [0, 1, 2, 6, 7, 8]), ("three", range(6)))
    ]
    for directory, cores in zip(shards, (2, 64, 2), strict=True):
        with Store.create(directory, study, resume=True) as store:
            store.set_info("hardware", {"processor": "x", "cores": cores})
    section = reproduce_section(findings_of(*shards))
    table = next(block for block in section.blocks if block.form == "table")
    assert [column.title for column in table.columns] == ["fact", "one, three", "two"]
    cores = next(row for row in table.rows if row[0][1].text == "cores")
    assert [cell.text for _, cell in cores] == ["cores", "2", "64"]
    assert "ran on 2 different machines" in notes_of(section)


def test_the_study_shown_keeps_classes_that_look_like_places_and_loses_places(study_of, written, findings_of):
    task = {"name": "file", "data": "/home/someone/posts", "labels": ["/r/books", "/r/film/new"]}
    study = study_of(task=task, base={"model": "/srv/models/tiny"})
    shown = reproduce_section(findings_of(written(study))).blocks[-1].text
    document = yaml.safe_load(shown)
    assert (document["task"]["data"], document["base"]["model"]) == ("posts", "tiny")
    assert document["task"]["labels"] == ["/r/books", "/r/film/new"]
