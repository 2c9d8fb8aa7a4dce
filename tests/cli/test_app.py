"""The commands as people and scripts meet them: documents, exit codes, one-line errors, interruptions."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lorascope import __version__
from lorascope.cli import app
from lorascope.cohort import training
from lorascope.store import Store

ROOT = Path(__file__).parents[2]
COMMANDS = ("plan", "run", "results", "evaluate", "generate", "chat", "export", "demo")
ROW_KEYS = {
    "trial", "seed", "status", "config", "trainable_params", "total_params", "peft_total_params", "trainable_percent",
    "metrics", "train_seconds", "examples_per_second", "peak_memory_bytes", "solo_train_seconds_per_epoch",
    "solo_examples_per_second", "solo_peak_memory_bytes", "adapter",
}  # fmt: skip


def tree(directory):
    return {path: path.stat().st_mtime_ns for path in sorted(directory.rglob("*"))}


@pytest.fixture
def process():
    """``process("run", path)``: the command line as a process of its own, killed at the end of the test if need be."""
    started = []

    def start(*arguments, **options):
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | options.pop("environment", {})
        command = [sys.executable, "-m", "lorascope", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **{**pipes, **options}))
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.wait()
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def finished(cli, study_file, tmp_path):
    """A finished study's directory."""
    ended = cli("run", study_file(), "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    return tmp_path / "run"


def test_a_run_prints_one_document_and_nothing_else(cli, study_file, tmp_path):
    ended = cli("run", study_file(), "--out", tmp_path / "run", "--json")
    assert ended.code == 0
    document = json.loads(ended.out)
    assert set(document) >= {"study", "trials", "shapley"}
    assert [trial["status"] for trial in document["trials"]] == ["done", "done"]
    assert all(set(trial) >= ROW_KEYS for trial in document["trials"])
    assert all(re.fullmatch(r"[0-9a-f]{8}-s1", trial["trial"]) for trial in document["trials"])
    assert "cohort c1: 2 trials" in ended.err
    assert json.loads(cli("results", tmp_path / "run", "--json").out) == document


def test_results_are_a_table_or_csv_too(cli, finished):
    document = json.loads(cli("results", finished, "--json").out)
    table = cli("results", finished)
    assert table.code == 0
    assert all(trial["trial"] in table.out for trial in document["trials"])
    rows = list(csv.DictReader(io.StringIO(cli("results", finished, "--csv").out)))
    for row, trial in zip(rows, document["trials"], strict=True):
        assert float(row["metrics.accuracy"]) == trial["metrics"]["accuracy"]
        assert float(row["solo_train_seconds_per_epoch"]) == trial["solo_train_seconds_per_epoch"]
        assert row["config.max_steps"] == ""  # no dash: a program reads this
        assert row["config.learning_rate"] == "0.01"
    assert [row["config.targets"] for row in rows] == ["query", "all-linear"]
    both = cli("results", finished, "--csv", "--json")
    assert (both.code, both.out) == (2, "")


def test_a_run_and_its_results_compare_the_configurations(cli, study_file, tmp_path):
    trials = [{"r": 2, "targets": ["query"]}, {"r": 4, "targets": "all-linear"}, {"r": 2, "targets": ["value"]}]
    file = study_file(seeds=[1, 2], design={"kind": "list", "trials": trials}, train={"max_steps": 2, "batch_size": 4})
    ran = json.loads(cli("run", file, "--out", tmp_path / "run", "--json").out)["comparisons"]
    first = ran["baseline"]
    assert (ran["metric"], [row["against"] for row in ran["rows"]]) == ("accuracy", [first, first])
    assert {"configuration", "metric", "difference", "low", "high", "p", "p_holm", "verdict", "seeds", "examples", "failed",
            "diverged"} <= ran["rows"][0].keys()  # fmt: skip
    assert [(row["seeds"], row["examples"]) for row in ran["rows"]] == [(2, 6), (2, 6)]
    loss = ["--metric", "eval_loss", "--metric", "accuracy"]
    again = json.loads(cli("results", tmp_path / "run", "--pairs", *loss, "--json").out)["comparisons"]
    assert (again["baseline"], len(again["rows"]), again["metrics"]) == (None, 6, ["eval_loss", "accuracy"])
    assert all(row["examples"] == 6 for row in again["rows"])
    other = ran["rows"][1]["configuration"]
    table = cli("results", tmp_path / "run", "--baseline", f"{other}-s2")
    assert (table.code, f"accuracy against {other}" in table.out) == (0, True)
    for wrong, message in ((["--baseline", "x"], "no configuration 'x'"), (["--metric", "f2"], "no trial has a metric 'f2'"),
                           (["--pairs", "--baseline", other], "exclude each other")):  # fmt: skip
        ended = cli("results", tmp_path / "run", *wrong)
        assert (ended.code, ended.out, message in ended.err) == (2, "", True)


def test_a_study_is_not_run_twice_by_accident(cli, finished, study_file):
    before = tree(finished)
    again = cli("run", study_file(), "--out", finished)
    assert (again.code, again.out) == (1, "")
    assert "holds a study already; add --resume" in again.err
    assert tree(finished) == before
    adapters = {path: stamp for path, stamp in before.items() if "trials" in path.parts}
    resumed = cli("run", study_file(), "--out", finished, "--resume")
    assert resumed.code == 0
    assert "0 trials to run, 2 finished earlier" in resumed.err
    assert {path: stamp for path, stamp in tree(finished).items() if "trials" in path.parts} == adapters
    other = cli("run", study_file(seeds=[2]), "--out", finished, "--resume")
    assert (other.code, "holds another study; these sections differ: seeds" in other.err) == (1, True)


def test_an_exported_adapter_scores_the_same_from_the_command_line(cli, finished, data, tmp_path):
    for trial in json.loads(cli("results", finished, "--json").out)["trials"]:
        command = ["evaluate", finished / trial["adapter"], "--task", "file", "--data", data, "--labels", "no, yes"]
        ended = cli(*command, "--max-length", 32, "--json", "--predictions", tmp_path / "predictions.jsonl")
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["metrics"]["accuracy"] == trial["metrics"]["accuracy"]
        assert json.loads(ended.out)["metrics"] == pytest.approx(trial["metrics"], rel=1e-6)
        assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 6
    command[1] = command[1].parent  # a trial's directory stands for its adapter
    assert re.match(r"accuracy 0\.\d{4}\n", cli(*command, "--max-length", 32, "--device", "cpu").out)


def test_an_adapter_enters_a_study_once(cli, finished, study_file, tmp_path):
    adapter = finished / json.loads(cli("results", finished, "--json").out)["trials"][0]["adapter"]
    options = ["--adapter", adapter, "--adapter", f"{adapter}/", "--adapter", adapter.parent, "--json"]
    ended = cli("run", study_file(train={"max_steps": 0}), "--out", tmp_path / "more", *options)
    trials = json.loads(ended.out)["trials"]
    assert [trial["config"].get("path") for trial in trials] == [None, None, str(adapter)]
    assert (trials[2]["status"], trials[2]["train_seconds"], trials[2]["config"]["r"]) == ("done", None, 2)
    planned = cli("run", study_file(), "--out", tmp_path / "never", "--adapter", adapter, "--dry-run", "--json")
    assert len(json.loads(planned.out)["trials"]) == 3
    assert not (tmp_path / "never").exists()


def test_shards_run_apart_and_report_together(cli, finished, study_file, tmp_path):
    for part in ("1/2", "2/2"):
        assert cli("run", study_file(), "--out", tmp_path / part[0], "--shard", part).code == 0
    merged = json.loads(cli("results", tmp_path / "1", tmp_path / "2", "--json").out)["trials"]
    whole = json.loads(cli("results", finished, "--json").out)["trials"]
    assert [(trial["trial"], trial["status"]) for trial in merged] == [(trial["trial"], "done") for trial in whole]
    for trial, other in zip(merged, whole, strict=True):
        assert trial["metrics"] == pytest.approx(other["metrics"], rel=1e-3)
        assert Path(trial["adapter"], "adapter_config.json").is_file()


def test_a_failed_trial_is_an_exit_code_and_a_row(cli, study_file, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no luck")

    monkeypatch.setattr(training, "measure_alone", fail)
    ended = cli("run", study_file(), "--out", tmp_path / "run", "--json")
    assert ended.code == 1
    assert [trial["status"] for trial in json.loads(ended.out)["trials"]] == ["failed", "failed"]
    assert ended.err.splitlines()[-1] == f"lorascope: {tmp_path / 'run'}: 2 of 2 trials failed"
    assert "RuntimeError: no luck" in ended.err
    assert "2 of 2 trials have no score: 2 failed" in cli("results", tmp_path / "run").out


def test_a_diverged_trial_is_counted_and_no_failure(cli, study_file, tmp_path):
    design = {"kind": "list", "trials": [{"r": 2}, {"learning_rate": 1e30}]}
    ended = cli("run", study_file(design=design), "--out", tmp_path / "run")
    assert ended.code == 0
    assert "1 of 2 trials have no score: 1 diverged" in ended.out


def test_a_plan_writes_nothing(cli, study_file, tmp_path, monkeypatch):
    path = study_file()
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    document = json.loads(cli("plan", path, "--json").out)
    assert cli("plan", path).code == 0
    assert cli("run", path, "--dry-run").code == 0
    assert tree(tmp_path) == before
    assert [trial["fits"] for trial in document["trials"]] == [True, True]
    assert all(trial["train_seconds"] > 0 and trial["memory_bytes"] > 0 for trial in document["trials"])


def test_a_plan_counts_what_a_run_counts(cli, finished, study_file):
    planned = json.loads(cli("plan", study_file(), "--json").out)["trials"]
    ran = json.loads(cli("results", finished, "--json").out)["trials"]
    for key in ("trial", "seed", "config", "trainable_params", "total_params", "peft_total_params", "trainable_percent"):
        assert [trial[key] for trial in planned] == [trial[key] for trial in ran]


@pytest.mark.parametrize("task", ["squad", "sst2"])
def test_a_plan_needs_no_weights_and_no_data(task, cli, study_file, model_directory, tmp_path):
    (tmp_path / "config").mkdir()
    shutil.copy(model_directory("gpt2") / "config.json", tmp_path / "config")
    path = study_file(
        base={"model": str(tmp_path / "config")}, task={"name": task, "data": "nobody/has-this", "max_length": 64}
    )
    document = json.loads(cli("plan", path, "--json").out)
    assert [trial["train_seconds"] for trial in document["trials"]] == [None, None]
    assert all("not on this machine" in trial["reason"] for trial in document["trials"])
    assert all(trial["trainable_params"] > 0 and trial["fits"] for trial in document["trials"])
    assert "no time estimate" in cli("plan", path).out


def spoilt_data(kind, data):
    """Data with something wrong, at the place of ``task.data``."""
    row = '{"text": "the film", "label": "yes"}\n'
    contents = {
        "wrong column": b'{"sentence": "the film", "label": 1}\n',
        "label out of range": row.encode() + b'{"text": "the plot", "label": "maybe"}\n',
        "empty": b"",
        "invalid UTF-8": row.encode() + b'{"text": "\xff\xfe", "label": "no"}\n',
        "no JSON": row.encode() + b"{text\n",
    }
    (data / "train.jsonl").write_bytes(contents[kind])
    return str(data)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("wrong column", "'sentence'"),
        ("label out of range", "'maybe'"),
        ("empty", "train.jsonl"),
        ("invalid UTF-8", "train.jsonl:2: the file is not UTF-8"),
        ("no JSON", "train.jsonl:2: malformed JSON"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_bad_data_are_one_line(command, kind, what, cli, study_file, data, tmp_path):
    task = {"name": "file", "data": spoilt_data(kind, data), "max_length": 32, "labels": ["no", "yes"]}
    where = ["--out", tmp_path / "run"] if command == "run" else []
    check_refused(cli(command, study_file(task=task), *where), what)
    assert not (tmp_path / "run").exists()


def check_refused(ended, what, code=2):
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert len(ended.err.splitlines()) == 1, ended.err
    assert ended.err.startswith("lorascope: ")
    assert what in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("nonsense", "'nonsense' is no override; write KEY=VALUE"),
        ("=1", "is no override"),
        ("train.epochs=[", "is no YAML"),
        ("train.epochs.more=1", "does not lead to a key"),
        ("trian.epochs=1", "unknown key 'trian'; did you mean 'train'?"),
        ("adapter.rank=1", "unknown key 'adapter.rank'"),
        ("adapter.r=0", "adapter.r = 0"),
        ("train.learning_rate=.nan", "train.learning_rate"),
        ("name=../up", "name = "),
        ("task.name=sst", "unknown task 'sst'; did you mean 'sst2'?"),
        ("task.max_length=131", "max_length 131 exceeds the model's 130 positions; set it to 130 or less"),
        ("task.data=/nowhere/train.jsonl", "/nowhere/train.jsonl: no such file or directory"),
        ("base.model=/nowhere", "/nowhere: no such model directory"),
        ("base.model=.", "no config.json"),
        ("design={kind: list, trials: [{targets: [gate]}]}", "no target 'gate'"),
        ("design={kind: list, trials: [{rr: 3}]}", "no section has a key 'rr'; did you mean 'r'?"),
        ("design={kind: shapely}", "design.kind is 'shapely'"),
    ],
)
def test_a_bad_override_is_one_line(override, what, cli, study_file, tmp_path):
    check_refused(cli("run", study_file(), "--out", tmp_path / "run", "--set", override), what)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "what", "code"),
    [
        (["--shard", "3/2"], "'3/2' is no shard; write I/N", 2),
        (["--shard", "0/2"], "is no shard", 2),
        (["--shard", "4/4"], "shard 4/4 holds no trial", 2),
        (["--slots", "0"], "Invalid value for '--slots'", 2),
        (["--slots", "many"], "Invalid value for '--slots'", 2),
        (["--device", "abacus"], "no device 'abacus' here; use cpu", 2),
        (["--epochs", "3"], "No such option: --epochs; see", 2),
        (["--adapter", "nowhere"], "nowhere: no PEFT adapter here", 2),
        (["--out"], "--out", 2),
        (["more"], "unexpected extra argument", 2),
    ],
)
def test_a_bad_option_is_one_line(options, what, code, cli, study_file, tmp_path):
    check_refused(cli("run", study_file(), "--out", tmp_path / "run", *options), what, code)
    assert not (tmp_path / "run").exists()


def test_wrong_usage_is_one_line(cli, finished, study_file, data, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "list.yaml").write_text("- 1\n")
    for arguments, what in {
        ("foo",): "No such command 'foo'",
        ("run",): "Missing argument 'STUDY'",
        ("run", tmp_path / "nothing.yaml"): "no such study file; give the path",
        ("run", tmp_path): "cannot read the study file",
        ("run", tmp_path / "list.yaml"): "a study file is a mapping",
        ("results", tmp_path): "no study in this directory",
        ("results", tmp_path / "file"): "no study in this directory",
        ("results", finished, tmp_path): "no study in this directory",
        ("export", finished, "--out", tmp_path / "x", "--script"): "add --best, or --trial NAME",
        ("export", finished / "trials" / "x", "--out", tmp_path / "x"): "no such trial as 'x'",
        ("evaluate", tmp_path, "--task", "file", "--data", data): "no PEFT adapter here",
        ("evaluate", tmp_path, "--task", "file"): "Missing option '--data'",
        (
            "evaluate",
            tmp_path,
            "--task",
            "file",
            "--data",
            data,
            "--decode",
            "nucleus,top_p",
        ): "--decode: 'top_p' has no value",
        ("evaluate", tmp_path, "--task", "file", "--data", data, "--decode", "greedy,samples=2"): "samples has no effect",
        ("evaluate", tmp_path, "--task", "file", "--data", data, "--judge-data", data): "there is no judge to measure",
    }.items():
        check_refused(cli(*arguments), what)
    check_refused(cli("run", study_file(), "--out", tmp_path / "file"), "cannot write", code=1)
    check_refused(cli("run", study_file(), "--out", data), "holds files but no study", code=1)


def test_an_adapter_with_a_nan_is_refused(cli, finished, study_file, data, tmp_path):
    trial = json.loads(cli("results", finished, "--json").out)["trials"][0]
    bad = tmp_path / "bad"
    shutil.copytree(finished / trial["adapter"], bad)
    tensors = load_file(bad / "adapter_model.safetensors")
    next(value for key, value in tensors.items() if "lora_A" in key)[0, 0] = float("inf")
    save_file(tensors, bad / "adapter_model.safetensors")
    what = "lora_A.weight' holds 1 NaN or infinite numbers"
    check_refused(cli("evaluate", bad, "--task", "file", "--data", data, "--labels", "no,yes"), what)
    check_refused(cli("run", study_file(), "--out", tmp_path / "more", "--adapter", bad), what)
    assert not (tmp_path / "more").exists()


def test_help_works_for_every_command(cli):
    overview = cli("--help")
    assert overview.code == 0
    for command in COMMANDS:
        ended = cli(command, "--help")
        assert (ended.code, ended.err) == (0, "")
        assert command in overview.out
        assert "--help" in ended.out
    assert {command.name for command in app.app.registered_commands} | {
        command.callback.__name__ for command in app.app.registered_commands
    } >= set(COMMANDS)
    assert cli("--version").out == f"lorascope {__version__}\n"


@pytest.fixture
def bash(tmp_path):
    """``bash(script)``: its lines, run by a bash that finds ``lorascope`` on the path and a home of its own."""
    program = tmp_path / "bin" / "lorascope"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lorascope "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}

    def run(script):
        done = subprocess.run(["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.splitlines()

    return run


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_is_installed_for_the_shell_at_hand(bash, tmp_path):
    told = bash("lorascope --install-completion; true")  # bash stays, to be found as the parent
    assert told[0].startswith("bash completion installed in ")
    assert "source" in (tmp_path / ".bashrc").read_text(encoding="utf-8")
    completed = bash("""
        source ~/.bashrc
        complete -p lorascope
        try() { COMP_WORDS=(lorascope "$@"); COMP_CWORD=$#; _lorascope_completion lorascope; echo "${COMPREPLY[*]}"; }
        try me
        try data ""
        try run study.yaml --check
        try run study.yaml --device ""
        try run stu
    """)
    assert completed == [
        "complete -o default -F _lorascope_completion lorascope",
        "merge",
        "preview audit world",
        "--checkpoint-seconds",
        "cpu cuda",
        "",  # bash completes files then
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_can_be_had_for_every_shell(shell, process):
    told = process(environment={"_LORASCOPE_COMPLETE": f"source_{shell}"})
    output, errors = told.communicate()
    assert (told.returncode, errors) == (0, "")
    assert "lorascope" in output
    assert f"complete_{shell}" in output


def test_a_file_gets_plain_lines_and_no_colour_whatever_asks_for_colour(study_file, process, tmp_path):
    colours = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    running = process("run", study_file(), "--out", tmp_path / "run", environment=colours | {"NO_COLOR": "1"})
    output, errors = running.communicate()
    assert running.returncode == 0
    assert "\x1b[?25l" not in errors  # nothing is drawn over
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", errors + output)
    assert "2 of 2 trials ended in " in errors


def test_a_traceback_is_shown_only_when_asked_for(cli, study_file, tmp_path, monkeypatch):
    plain = cli("plan", tmp_path / "nothing.yaml")
    debug = cli("plan", tmp_path / "nothing.yaml", "--debug")
    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err
    assert debug.err.splitlines()[-1] == plain.err.splitlines()[-1]
    assert (plain.code, debug.code) == (2, 2)

    def bug(*_):
        raise KeyError("what\never")

    monkeypatch.setattr("lorascope.cli.planning.load_study", bug)
    check_refused(cli("plan", study_file()), "(unexpected; --debug shows where)", code=1)


def test_a_reader_that_goes_away_is_no_traceback(finished, process):
    reading, writing = os.pipe()
    os.close(reading)
    for option in ("--json", "--csv"):
        listing = process("results", finished, option, stdout=writing)
        assert listing.communicate()[1] == ""
        assert listing.returncode == 1
    os.close(writing)


def test_results_can_be_read_in_any_locale(finished, process):
    for option in ("--json", "--csv", None):
        arguments = ["results", finished] if option is None else ["results", finished, option]
        listing = process(*arguments, environment={"PYTHONIOENCODING": "ascii"})
        output, errors = listing.communicate()
        assert (listing.returncode, errors) == (0, "")
        assert output.isascii()
        assert "query" in output


def test_importing_the_command_line_loads_no_torch():
    code = "import sys, lorascope.cli; print([m for m in ('torch', 'transformers', 'datasets', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def wait_for(child, text):
    """Read the child's stderr until a line holds ``text``."""
    for line in child.stderr:
        if text in line:
            return
    raise AssertionError(f"the process ended with {child.wait()} before it said {text!r}")


def check_interrupted(code, output, errors, directory):
    assert (code, output) == (130, "")
    assert errors.splitlines()[-1] == "lorascope: interrupted; what was saved is kept, go on with --resume"
    assert "Traceback" not in errors
    with Store.open(directory) as store:
        assert [row.status for row in store.trials()] == ["interrupted", "interrupted"]


def test_ctrl_c_interrupts_a_study(study_file, process, tmp_path):
    path = study_file(train={"max_steps": 1_000_000, "batch_size": 4})
    # A shell that starts jobs in the background has them ignore SIGINT, and children inherit it.
    child = process(
        "run", path, "--out", tmp_path / "run", "--json", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    wait_for(child, "step 1/1000000")
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=60)
    check_interrupted(child.returncode, output, errors, tmp_path / "run")
    assert len(list((tmp_path / "run" / "checkpoints" / "c1").glob("step-*/manifest.json"))) == 1


def test_sigterm_interrupts_a_study(cli, study_file, tmp_path, monkeypatch):
    def terminate(self, event):
        if type(event).__name__ == "StepResult":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("lorascope.cli.progress.StudyProgress.show", terminate)
    ended = cli("run", study_file(), "--out", tmp_path / "run", "--json")
    check_interrupted(ended.code, ended.out, ended.err, tmp_path / "run")


def test_a_second_signal_ends_at_once(cli, study_file, tmp_path, monkeypatch):
    reached = []

    def terminate(self, event):
        if type(event).__name__ == "StepResult":
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("the first is noted")
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("the second is too")

    monkeypatch.setattr("lorascope.cli.progress.StudyProgress.show", terminate)
    ended = cli("run", study_file(), "--out", tmp_path / "run", "--json")
    check_interrupted(ended.code, ended.out, ended.err, tmp_path / "run")
    assert reached == ["the first is noted"]


def test_an_interrupted_study_ends_with_the_adapters_of_one_left_alone(
    cli, study_file, model_directory, tmp_path, monkeypatch
):
    # Which path of frozen products is the fastest may change between two runs; in float64 there is one.
    path = study_file(base={"model": str(model_directory("bert")), "dtype": "float64"})
    with monkeypatch.context() as patch:
        patch.setattr(
            "lorascope.cli.progress.StudyProgress.show",
            lambda self, event: os.kill(os.getpid(), signal.SIGINT) if type(event).__name__ == "StepResult" else None,
        )
        assert cli("run", path, "--out", tmp_path / "run").code == 130
    ended = cli("run", path, "--out", tmp_path / "run", "--resume", "--checkpoint-seconds", 0)
    assert ended.code == 0, ended.err
    assert cli("run", path, "--out", tmp_path / "whole").code == 0
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "trials").rglob("*.*"))
    assert len([file for file in files if file.name == "adapter_model.safetensors"]) == 2
    assert all((tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes() for file in files)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not part of a source distribution")
def test_a_study_killed_at_random_moments_differs_in_nothing():
    command = [sys.executable, "-m", "benchmarks.kill", "--kills", "4", "--per-study", "4", "--set", "seeds=[1]"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout[ended.stdout.index("{") :])["differences"] == []


def test_a_killed_study_is_resumed(cli, study_file, process, tmp_path):
    design = {"kind": "list", "trials": [{"max_steps": 3}, {"max_steps": 150, "r": 3}]}
    path = study_file(design=design)
    killed = process("run", path, "--out", tmp_path / "run")
    wait_for(killed, "cohort c2")
    wait_for(killed, "alone")
    time.sleep(0.1)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    trials = json.loads(cli("results", tmp_path / "run", "--json").out)["trials"]
    assert [trial["status"] for trial in trials] == ["done", "running"]
    kept = {file: stamp for file, stamp in tree(tmp_path / "run").items() if trials[0]["trial"] in file.parts}
    assert len(kept) > 3

    resumed = cli("run", path, "--out", tmp_path / "run", "--resume", "--json")
    assert resumed.code == 0
    assert "1 trial to run, 1 finished earlier" in resumed.err
    assert {file: stamp for file, stamp in tree(tmp_path / "run").items() if file in kept} == kept
    whole = json.loads(cli("run", path, "--out", tmp_path / "whole", "--json").out)["trials"]
    after = json.loads(resumed.out)["trials"]
    assert [(trial["trial"], trial["status"], trial["metrics"]) for trial in after] == [
        (trial["trial"], "done", trial["metrics"]) for trial in whole
    ]
    with Store.open(tmp_path / "run") as store:
        assert [step["step"] for step in store.steps(after[1]["trial"])] == list(range(150))


@pytest.mark.parametrize("command", ["run", "plan"])
def test_ctrl_c_is_one_line(command, cli, study_file, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lorascope.cli.planning.load_study", interrupt)
    ended = cli(command, study_file())
    resumable = "; what was saved is kept, go on with --resume" if command == "run" else ""
    assert (ended.code, ended.err) == (130, f"lorascope: interrupted{resumable}\n")


def test_a_packed_base_runs_and_the_results_say_so(cli, study_file, tmp_path, model_directory):
    plain = json.loads(cli("run", study_file(), "--out", tmp_path / "plain", "--json").out)["trials"]
    path = study_file(base={"model": str(model_directory("bert")), "quantization": "nf4"})
    planned = json.loads(cli("plan", path, "--json").out)["trials"]
    ended = cli("run", path, "--out", tmp_path / "nf4", "--json")
    assert ended.code == 0, ended.err
    trials = json.loads(ended.out)["trials"]
    for trial, plan, full in zip(trials, planned, plain, strict=True):
        assert (trial["status"], trial["config"]["quantization"], full["config"]["quantization"]) == ("done", "nf4", None)
        for key in ("trainable_params", "total_params", "peft_total_params"):
            assert trial[key] == plan[key] == full[key]
        assert 0 < abs(trial["metrics"]["eval_loss"] - full["metrics"]["eval_loss"]) < 0.5
        assert trial["trial"] == plan["trial"] != full["trial"]
        assert (tmp_path / "nf4" / trial["adapter"] / "adapter_config.json").is_file()
    with Store.open(tmp_path / "nf4") as store:
        losses = [step["loss"] for step in store.steps(trials[1]["trial"])]
    assert losses[-1] < losses[0]
    assert "nf4" in cli("results", tmp_path / "nf4", "--csv").out
    again = cli("run", path, "--out", tmp_path / "again", "--json")
    assert [trial["metrics"] for trial in json.loads(again.out)["trials"]] == [trial["metrics"] for trial in trials]


def test_an_ablation_over_quantization_has_a_cohort_for_each(cli, study_file, tmp_path):
    path = study_file(
        adapter={"r": 2, "targets": ["query"]}, design={"kind": "ablation", "over": {"quantization": [None, "nf4"]}}
    )
    ended = cli("run", path, "--out", tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    assert all(f"cohort c{number}: 1 trial" in ended.err for number in (1, 2))
    trials = json.loads(ended.out)["trials"]
    assert {trial["config"]["quantization"]: trial["status"] for trial in trials} == {None: "done", "nf4": "done"}
    assert len({trial["total_params"] for trial in trials}) == 1
    with Store.open(tmp_path / "run") as store:
        rows = store.trials()
    assert len({row.cohort for row in rows}) == len({row.base_checksum for row in rows}) == 2


@pytest.mark.parametrize("command", ["plan", "run"])
def test_without_bitsandbytes_a_packed_study_is_refused_before_anything_is_made(
    command, cli, study_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("lorascope.lora.quantised.find_spec", lambda name: None)
    path = study_file(design={"kind": "ablation", "over": {"quantization": [None, "nf4"]}})
    ended = cli(command, path, *(["--out", tmp_path / "run"] if command == "run" else []))
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert "nf4 needs bitsandbytes, which is not installed; pip install 'lorascope[quant]'" in ended.err
    assert not (tmp_path / "run").exists()


def test_a_packed_float64_base_is_wrong_usage(cli, study_file, model_directory):
    path = study_file(base={"model": str(model_directory("bert")), "dtype": "float64", "quantization": "nf4"})
    ended = cli("plan", path)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert 'base.quantization = "nf4": needs dtype float32 or bfloat16, not float64' in ended.err


def test_an_adapter_of_a_packed_base_scores_the_same_on_one(cli, study_file, tmp_path, data, model_directory):
    path = study_file(base={"model": str(model_directory("bert")), "quantization": "nf4"})
    trial = json.loads(cli("run", path, "--out", tmp_path / "run", "--json").out)["trials"][1]
    command = ["evaluate", tmp_path / "run" / trial["adapter"], "--task", "file", "--data", data, "--labels", "no, yes"]
    packed, full = (
        json.loads(cli(*command, "--max-length", 32, "--json", *options).out) for options in (("--quantization", "nf4"), ())
    )
    with Store.open(tmp_path / "run") as store:
        assert packed["base_checksum"] == store.trials()[1].base_checksum != full["base_checksum"]
    assert packed["metrics"] == pytest.approx(trial["metrics"], rel=1e-6)
    assert packed["metrics"] != full["metrics"]
    wrong = cli(*command, "--quantization", "int3")
    assert (wrong.code, len(wrong.err.splitlines())) == (2, 1)


SHAPLEY = {"kind": "shapley", "players": ["query", "value"]}


def test_a_shapley_study_is_planned_run_and_shown(cli, study_file, tmp_path):
    path = study_file(seeds=[1, 2], design=SHAPLEY)
    planned = json.loads(cli("plan", path, "--json").out)
    assert [trial["config"]["targets"] for trial in planned["trials"][::2]] == [[], ["query"], ["value"], ["query", "value"]]
    assert planned["shapley"]["num_coalitions"] == 4
    assert "all 4 coalitions of 2 players" in " ".join(cli("plan", path).out.split())
    ended = cli("run", path, "--out", tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    metric = document["shapley"]["metrics"]["eval_loss"]
    assert document["shapley"]["game"] == "usefulness"
    assert sum(one["estimate"] for one in metric["values"].values()) == pytest.approx(metric["full"]["estimate"])
    latency = document["shapley"]["latency"]
    assert list(latency["players"]) == ["query", "value"]
    assert (latency["num_coalitions"], latency["rounds"], latency["exact"]) == (4, 5, True)
    assert latency["what"].startswith("unmerged, one pass over one row of ")
    for player, value in metric["values"].items():
        ms = latency["players"][player]
        clear = ms["low"] is not None and ms["low"] > 0
        assert value["per_ms_latency"] == (pytest.approx(value["estimate"] / ms["ms"]) if clear else None)
    assert json.loads(cli("results", tmp_path / "run", "--json").out)["shapley"] == document["shapley"]
    shown = cli("results", tmp_path / "run").out
    texts = ("usefulness: every coalition was trained anew", "recommended:", "interaction of query and value", "●")
    for text in (*texts, "latency in ms: query"):
        assert text in shown


@pytest.mark.parametrize("game", ["reliance", "one_run"])
def test_a_game_of_masks_runs_resumes_and_is_shown_over_its_shards(game, cli, study_file, tmp_path):
    design = {**SHAPLEY, "game": game} | ({"retrained": 4, "length": 2} if game == "one_run" else {})
    path = study_file(seeds=[1, 2], design=design)
    whole = json.loads(cli("run", path, "--out", tmp_path / "run", "--json").out)["shapley"]
    assert [each["seed"] for each in whole["maps"]] == [1, 2]
    again = cli("run", path, "--out", tmp_path / "run", "--resume", "--json")
    assert json.loads(again.out)["shapley"] == whole
    for index in (1, 2):
        assert cli("run", path, "--out", tmp_path / str(index), "--shard", f"{index}/2", "--json").code == 0
    merged = json.loads(cli("results", tmp_path / "1", tmp_path / "2", "--json").out)["shapley"]
    for name, metric in whole["metrics"].items():
        for player, value in metric["values"].items():
            assert merged["metrics"][name]["values"][player]["estimate"] == pytest.approx(value["estimate"], abs=1e-4)
    shown = cli("results", tmp_path / "run").out
    agreement = ["the map against retraining", "retraining against itself with another seed", "cost of a map"]
    assert all((text in shown) == (game == "one_run") for text in agreement)


def test_maps_share_the_budget_and_the_memory_of_their_study(cli, study_file, tmp_path, monkeypatch):
    from lorascope.attribution import maps

    given = []
    monkeypatch.setattr(maps, "draw_maps", lambda *_, **options: given.append(options) or (event for event in ()))
    path = study_file(design={**SHAPLEY, "game": "reliance"})
    ended = cli("run", path, "--out", tmp_path / "run", "--budget", "1h", "--memory", "64GB", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert [trial["status"] for trial in document["trials"]] == ["done"] * len(document["trials"])
    assert given[0]["most_bytes"] == 64_000_000_000
    deadline = given[0]["deadline"]
    assert deadline.knows  # the one that measured the trials
    assert 0 < deadline.left_seconds < 3600


def test_coalitions_that_are_too_many_are_proposed_until_they_are_enough(cli, study_file, tmp_path):
    design = {"kind": "shapley", "players": ["query", "key", "value", "output"], "coalitions": 6, "width": 1e-6}
    path = study_file(design=design)
    assert "at most 6, until no interval" in " ".join(cli("plan", path).out.split())
    document = json.loads(cli("run", path, "--out", tmp_path / "run", "--json").out)
    assert len(document["trials"]) == 6
    assert {trial["status"] for trial in document["trials"]} == {"done"}
    metric = document["shapley"]["metrics"]["eval_loss"]
    assert not metric["exact"]
    assert metric["num_coalitions"] == 6
    refused = cli("run", path, "--out", tmp_path / "run")
    assert (refused.code, "holds a study already" in refused.err) == (1, True)
    refused = cli("run", path, "--out", tmp_path / "other", "--shard", "1/2")
    assert (refused.code, "proposed from the results" in refused.err) == (2, True)


SEARCH = {
    "kind": "search", "over": {"r": [1, 2, 4], "learning_rate": {"log": [1e-4, 1e-1]}}, "trials": 6, "batch": 3,
    "objective": "eval_loss", "pruner": "successive_halving",
}  # fmt: skip


def test_a_search_is_planned_run_and_shown_again(cli, study_file, tmp_path):
    path = study_file(design=SEARCH)
    planned = json.loads(cli("plan", path, "--json").out)
    assert (planned["search"]["configurations"], planned["search"]["batch"], len(planned["trials"])) == (6, 3, 3)
    assert (planned["search"]["cheapest"]["config"]["r"], planned["search"]["costliest"]["config"]["r"]) == (1, 4)
    assert "6 configurations in all, 3 at a time" in cli("plan", path).out
    ended = cli("run", path, "--out", tmp_path / "run", "--json")
    assert ended.code == 0
    document = json.loads(ended.out)
    assert [trial["trial"] for trial in document["trials"][:3]] == [trial["trial"] for trial in planned["trials"]]
    assert sorted(trial["status"] for trial in document["trials"]) == ["done"] * 2 + ["pruned"] * 4
    search = document["search"]
    done = {
        trial["trial"].partition("-s")[0]: trial["metrics"]["eval_loss"] for trial in document["trials"] if trial["metrics"]
    }
    assert search["best"] == min(done, key=done.get)
    assert [each["objective"] for each in search["configurations"][:2]] == sorted(done.values())
    assert json.loads(cli("results", tmp_path / "run", "--json").out)["search"] == search
    assert f"best: {search['best']}" in cli("results", tmp_path / "run").out


def test_a_search_is_in_one_piece(cli, study_file, tmp_path):
    ended = cli("run", study_file(design=SEARCH), "--out", tmp_path / "run", "--shard", "1/2")
    assert (ended.code, "a search cannot be cut into shards" in ended.err) == (2, True)


def test_a_packed_base_has_no_full_fine_tuning(cli, study_file):
    path = study_file(controls=[{"method": "full", "quantization": "nf4"}])
    ended = cli("plan", path)
    assert ended.code == 2
    assert "method full trains the base's weights, which nf4 packs into 4 bits" in ended.err


def test_a_run_is_tracked_where_it_is_asked_for(cli, study_file, tmp_path):
    ended = cli("run", study_file(), "--out", tmp_path / "run", "--track", "tensorboard", "--json")
    assert ended.code == 0
    trials = {trial["trial"] for trial in json.loads(ended.out)["trials"]}
    assert {path.parent.name for path in (tmp_path / "run" / "tensorboard").glob("*/events.out.tfevents.*")} == trials


def test_an_unknown_tracker_is_named_before_anything_is_made(cli, study_file, tmp_path):
    ended = cli("run", study_file(), "--out", tmp_path / "run", "--track", "tensorbord")
    assert ended.code == 2
    assert "--track" in ended.err
    assert "tensorboard" in ended.err
    assert not (tmp_path / "run").exists()
