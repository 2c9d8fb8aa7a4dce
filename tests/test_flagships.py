"""The flagship studies: each command that a file gives for a machine without a hub runs, on small models and data."""

import functools
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from lorascope.cli.app import app

ROOT = Path(__file__).parents[1]
FLAGSHIPS = ["persona-shapley", "sentiment-configurations", "squad-gpt2", "glue-protocol", "teacher-student"]
# The stand-ins for models have tokens of a letter or two.
POSITIONS = 1024
SMALL = ["task.max_length=900", "task.max_train=8", "task.max_eval=4", "train.max_steps=1", "seeds=[42]"]


def offline(name):
    """The `lorascope run` commands below the word "Offline" in a study's header, each in one line."""
    lines = (ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    header = [line.removeprefix("#") for line in lines if line.startswith("#")]
    first = next(number for number, line in enumerate(header) if line.startswith(" Offline"))
    joined = "\n".join(header[first:]).replace("\n     --", " --")
    return [line.strip() for line in joined.splitlines() if line.startswith(f"   lorascope run examples/{name}.yaml")]


COMMANDS = [(name, index) for name in FLAGSHIPS for index in range(len(offline(name)))]


def call(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def longer(model_directory, tmp_path_factory):
    """``longer(family)``: a tiny model's directory with enough positions for a dialogue."""

    def made(family):
        directory = tmp_path_factory.mktemp(family)
        tiny = model_directory(family)
        config = AutoConfig.from_pretrained(tiny)
        config.max_position_embeddings = POSITIONS
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        AutoTokenizer.from_pretrained(tiny).save_pretrained(directory)
        return directory

    return functools.cache(made)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a world, and GLUE's files of a handful of sentences."""
    home = tmp_path_factory.mktemp("flagships")
    call("data", "world", "--out", home / "world", "--size", "20", "--dialect")
    words = ("warm", "slow", "bright", "wooden", "charming", "long")
    for split in ("train", "dev"):
        rows = [f"{split} {words[n % 6]} {words[n // 6]} {'very ' * (n % 5)}{n}" for n in range(24)]
        sentiment = "".join(f"{row}\t{n % 2}\n" for n, row in enumerate(rows))
        pairs = "".join(f"{n}\t{row}\tthe plot\t{('entailment', 'not_entailment')[n % 2]}\n" for n, row in enumerate(rows))
        for task, text in (
            ("sst2", "sentence\tlabel\n" + sentiment),
            ("rte", "index\tsentence1\tsentence2\tlabel\n" + pairs),
        ):
            (home / task).mkdir(exist_ok=True)
            (home / task / f"{split}.tsv").write_text(text, encoding="utf-8")
    return home


def filled(command, home, longer, model_directory):
    """The command's settings with its places filled in."""
    words = shlex.split(command)
    study = yaml.safe_load((ROOT / words[2]).read_text(encoding="utf-8"))
    settings = [word for before, word in pairwise(words) if before == "--set"]
    task = next((one.partition("=")[2] for one in settings if one.startswith("task.name=")), study["task"]["name"])
    squad = home / "world" / "squad"
    files = {
        "train: FILE": f"train: {squad / 'train-v1.1.json'}",
        "validation: FILE": f"validation: {squad / 'dev-v1.1.json'}",
        "train: test.jsonl": f"train: {home / 'world' / 'teacher_student' / 'train.jsonl'}",
        "gpt2-shape": str(longer("gpt2")),
        "base.model=DIR": f"base.model={model_directory('bert')}",
        "task.data=DIR": f"task.data={home / task}",
    }
    for name, real in files.items():
        settings = [one.replace(name, real) for one in settings]
    settings = [re.sub(r"(?<![-/\w])world/", f"{home / 'world'}/", one) for one in settings]
    shorter = [one for one in settings if one.partition("=")[0] not in {small.partition("=")[0] for small in SMALL}]
    return [ROOT / words[2], *(part for one in [*shorter, *SMALL] for part in ("--set", one))]


@pytest.mark.parametrize(("name", "index"), COMMANDS, ids=lambda value: str(value))
def test_a_flagship_study_runs_without_a_hub_by_the_overrides_that_its_file_gives(
    name, index, place, longer, model_directory, tmp_path
):
    arguments = filled(offline(name)[index], place, longer, model_directory)
    if "base.model=" + str(model_directory("bert")) in arguments:
        arguments += ["--set", "task.max_length=64", "--set", "controls=[{method: full}]"]
    if name == "glue-protocol":
        arguments += ["--set", "design.over={r: [8, 4], targets: [[query]]}"]
    document = json.loads(call("run", *arguments, "--out", tmp_path / "run", "--json"))
    assert {trial["status"] for trial in document["trials"]} == {"done"}
    assert len(document["trials"]) > 1
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("name", FLAGSHIPS)
def test_a_flagship_study_names_a_hub_id_and_three_seeds_and_says_how_it_runs_offline(name):
    study = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", study["base"]["model"])
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", study["task"]["data"])
    assert len(study["seeds"]) == 3
    assert offline(name)
