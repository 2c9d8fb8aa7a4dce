"""A trial as a standalone program of PEFT and Trainer: it runs without Lorascope and predicts what the trial predicted."""

import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lorascope.cohort.script import write_script
from lorascope.errors import UsageError


def test_the_programs_arrive_at_the_trials_predictions(bert_run, squad_run, rows_of, tmp_path):
    trials = {"classifier": rows_of(bert_run)[0], "answerer": rows_of(squad_run)[0]}
    runs = {"classifier": bert_run, "answerer": squad_run}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    processes = {}
    for kind, directory in runs.items():
        out = tmp_path / kind
        write_script(directory / "trials" / trials[kind].trial, out)
        source = (out / "train_peft.py").read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from)\s+lorascope", source, re.MULTILINE)
        command = [sys.executable, "train_peft.py"]
        processes[kind] = subprocess.Popen(
            command, cwd=out, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    for kind, process in processes.items():
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]
        assert "8 of 8 predictions equal the trial's (100.00 %)" in output
        if kind == "classifier":
            assert f"accuracy {trials[kind].metrics['accuracy']:.4f} over 8 examples" in output
        trained, own = (
            load_file(place / "adapter_model.safetensors")
            for place in (tmp_path / kind / "trained", runs[kind] / "trials" / trials[kind].trial / "adapter")
        )
        assert trained.keys() == own.keys()
        for name, value in own.items():
            torch.testing.assert_close(trained[name], value, rtol=1e-3, atol=1e-4)


def test_only_a_trial_with_an_adapter_becomes_a_program(bert_run, rows_of, make_study, carry_out, tmp_path):
    trial = bert_run / "trials" / rows_of(bert_run)[0].trial
    for place in (bert_run, bert_run / "trials", bert_run / "trials" / "nothing", tmp_path / "trials" / "x", tmp_path.root):
        with pytest.raises(UsageError, match=r"no such trial|no study"):
            write_script(tmp_path / place, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="something is there already"):
        write_script(trial, tmp_path / "full")
    carry_out(make_study("bert", [{"method": "head"}], train={"max_steps": 1}), tmp_path / "run")
    head = tmp_path / "run" / "trials" / rows_of(tmp_path / "run")[0].trial
    with pytest.raises(UsageError, match="done and has no adapter"):
        write_script(head, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_trial_without_predictions_is_refused(make_study, carry_out, rows_of, tmp_path):
    carry_out(make_study(train={"max_steps": 0}), tmp_path / "run")
    trial = tmp_path / "run" / "trials" / rows_of(tmp_path / "run")[0].trial
    (trial / "predictions.jsonl").unlink()
    with pytest.raises(UsageError, match=r"cannot read predictions.jsonl"):
        write_script(trial, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("reason", ["packed", "drawn"])
def test_a_trial_that_the_program_cannot_repeat_is_refused(reason, make_study, carry_out, rows_of, tmp_path):
    study = make_study("gpt2", task="squad", train={"max_steps": 1})
    if reason == "packed":
        pytest.importorskip("bitsandbytes")
        study = make_study("gpt2", task="squad", train={"max_steps": 1}, base={"quantization": "nf4"})
    else:
        decoding = [study.evaluate.decoding[0].model_copy(update={"strategy": "temperature"})]
        study = study.model_copy(update={"evaluate": study.evaluate.model_copy(update={"decoding": decoding})})
    carry_out(study, tmp_path / "run")
    with pytest.raises(UsageError, match=rf"{reason} \((nf4|temperature)\)"):
        write_script(tmp_path / "run" / "trials" / rows_of(tmp_path / "run")[0].trial, tmp_path / "out")
    assert not (tmp_path / "out").exists()
