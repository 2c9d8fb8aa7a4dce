"""``lorascope export`` from the command line: what it prints, what it writes, and what it refuses."""

import json

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file


@pytest.fixture
def finished(cli, study_file, tmp_path):
    assert cli("run", study_file(train={"max_steps": 2, "batch_size": 4}), "--out", tmp_path / "run").code == 0
    return tmp_path / "run"


def test_the_best_trial_is_exported_with_its_card(cli, finished, tmp_path):
    ended = cli("export", finished, "--best", "--out", tmp_path / "best", "--licence", "MIT", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["form"] == "adapter"
    assert document["choice"]["metric"] == "accuracy"
    assert document["trial"] == document["choice"]["trial"]
    assert document["licence"] == {"name": "mit", "source": "--licence"}
    assert document["files"] == sorted(path.name for path in (tmp_path / "best").iterdir())
    assert f"It is the best of 2 trials by accuracy ({document['choice']['value']:.4f}" in ended.err
    assert "note: the base is a local directory" in ended.err
    assert ModelCard.load(tmp_path / "best" / "README.md").data.license == "mit"
    # A trial, by its directory and in words.
    trial = finished / "trials" / document["trial"]
    plain = cli("export", trial, "--out", tmp_path / "one")
    assert (plain.code, plain.out.strip()) == (0, str(tmp_path / "one"))
    assert "note: no licence is stated for the base; --licence sets the export's" in plain.err
    # What was exported is an adapter like any other.
    base = json.loads((trial / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    again = cli("export", tmp_path / "one", "--base", base, "--out", tmp_path / "again", "--json")
    assert json.loads(again.out)["trial"] is None


def test_a_merged_model_comes_with_a_certificate_that_holds(cli, finished, tmp_path):
    ended = cli("export", finished, "--best", "--merged", "--out", tmp_path / "merged", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert (document["form"], document["certificate"]["holds"]) == ("merged", True)
    assert {"config.json", "model.safetensors", "merge-certificate.json", "README.md", "study.yaml"} <= set(document["files"])


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_merge_that_does_not_hold_shows_its_certificate_and_leaves_nothing(options, cli, finished, tmp_path, monkeypatch):
    from lorascope.lora import merge_plan

    monkeypatch.setattr(merge_plan.PlannedMerge, "after", lambda self, start, stop: self.before(start, stop).to(self.dtype))
    ended = cli("export", finished, "--best", "--merged", "--out", tmp_path / "merged", *options)
    assert ended.code == 3
    assert "the merge does not hold" in ended.err
    assert not (tmp_path / "merged").exists()
    if options:
        document = json.loads(ended.out)
        assert (document["certificate"]["holds"], document["files"]) == (False, [])
    else:
        assert "THE MERGE DOES NOT HOLD" in ended.out


def test_an_adapter_that_holds_nan_ends_with_three(cli, peft_adapter, tmp_path):
    adapter, _ = peft_adapter("bert")
    path = adapter / "adapter_model.safetensors"
    save_file({name: value * float("nan") for name, value in load_file(path).items()}, path)
    ended = cli("export", adapter, "--merged", "--out", tmp_path / "merged")
    assert ended.code == 3
    assert ended.out.startswith("THE MERGE DOES NOT HOLD")
    assert "NaN" in ended.err
    assert not (tmp_path / "merged").exists()


def test_a_merged_model_is_written_in_the_dtype_that_is_asked_for(cli, finished, tmp_path):
    ended = cli("export", finished, "--best", "--merged", "--dtype", "float16", "--out", tmp_path / "merged", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["certificate"]["merged"]["dtype"] == "float16"
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float16"


def test_a_trial_becomes_a_program(cli, finished, tmp_path):
    trial = next((finished / "trials").iterdir())
    ended = cli("export", trial, "--script", "--out", tmp_path / "script")
    assert (ended.code, ended.out.strip()) == (0, str(tmp_path / "script" / "train_peft.py"))
    document = json.loads(cli("export", finished, "--best", "--script", "--out", tmp_path / "other", "--json").out)
    assert document["form"] == "script"
    assert "train_peft.py" in document["files"]


def test_what_makes_no_sense_is_refused_in_one_line(cli, finished, tmp_path):
    trial = next((finished / "trials").iterdir())
    for arguments, what in {
        (finished, "--out", tmp_path / "x"): "a study of 2 trials with an adapter; add --best, or --trial NAME",
        (finished, "--script", "--out", tmp_path / "x"): "add --best",
        (trial, "--out", tmp_path): "something is there already; give a new directory",
        (trial, "--merged", "--script", "--out", tmp_path / "x"): "--merged and --script exclude each other",
        (trial, "--script", "--licence", "MIT", "--out", tmp_path / "x"): "--licence has no effect with --script",
        (trial, "--dtype", "float16", "--out", tmp_path / "x"): "--dtype has no effect without --merged; add --merged",
        (trial, "--device", "cpu", "--out", tmp_path / "x"): "--device has no effect without --merged; add --merged",
        (trial, "--merged", "--dtype", "half", "--out", tmp_path / "x"): "--dtype: there is no dtype 'half'",
        (trial, "--licence", "apache2.0", "--out", tmp_path / "x"): "did you mean 'apache-2.0'",
        (trial / "adapter", "--trial", "y", "--out", tmp_path / "x"): "--trial chooses among the trials",
        (tmp_path / "nothing", "--out", tmp_path / "x"): "no such directory",
    }.items():
        ended = cli("export", *arguments)
        assert (ended.code, ended.out) == (2, ""), ended.err
        assert what in ended.err
        assert len(ended.err.strip().splitlines()) == 1
        assert not (tmp_path / "x").exists()
