"""Every command that README.md and the pages of docs/ show does what they say, on small models, data and answers.

A command is taken as it stands, its placeholders filled in and small settings added. One that no test runs, here or where
``ELSEWHERE`` says, fails; what is run elsewhere is there because it needs more than this page makes.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from lorascope.cli.app import app
from lorascope.doctor import own_base, table

ROOT = Path(__file__).parents[1]
# By what a command begins with: the test that runs it.
ELSEWHERE = {
    "lorascope plan my-study.yaml": "test_readme.test_the_readmes_study_and_its_commands_run",
    "lorascope --install-completion": "cli/test_app.test_completion_is_installed_for_the_shell_at_hand",
    "lorascope run my-study.yaml": "test_readme.test_the_readmes_study_and_its_commands_run, test_tracking",
    "lorascope results runs/which-targets": "test_readme.test_the_readmes_study_and_its_commands_run",
    "lorascope evaluate runs/which-targets": "test_readme.test_the_readmes_study_and_its_commands_run",
    "lorascope plan examples/squad-gpt2.yaml": "test_readme.test_every_example_is_a_valid_study_that_can_be_planned",
    "lorascope run examples/": "test_readme and test_flagships, example by example",
}
# Values of options, and what is added so that a command ends soon.
TINY_ANSWERS = ["--max-new-tokens", "4"]
TINY_SPEED = ["--prompt-tokens", "8", "--max-new-tokens", "2", "--repeats", "1"]


def shown(text, *, inline):
    """The commands of a page: lines of its console blocks and, if asked for, what stands between backticks."""
    parts = text.split("```")
    blocks = [part.partition("\n")[2] for part in parts[1::2] if part.startswith("console\n")]
    found = [re.split(r"\s+# ", line)[0].strip() for block in blocks for line in block.splitlines()]
    if inline:
        found += [" ".join(one.split()) for one in re.findall(r"`(lorascope [^`]+)`", "".join(parts[0::2]))]
    return [one for one in found if one.startswith("lorascope ")]


def documented():
    """Pages and their commands, less those that run elsewhere."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [(page.name, one) for page in pages for one in shown(page.read_text("utf-8"), inline=page.name == "README.md")]
    return [(page, one) for page, one in dict.fromkeys(found) if not one.startswith(tuple(ELSEWHERE))]


@pytest.fixture(scope="module")
def workshop(model_directory, tmp_path_factory):
    """A finished study of a tiny BERT on SST-2's form, two adapters of PEFT's on a tiny GPT-2, and the datasets of a world."""
    home = tmp_path_factory.mktemp("workshop")
    assert CliRunner().invoke(app, ["data", "world", "--out", str(home / "world"), "--size", "20"]).exit_code == 0
    words = ("warm", "slow", "bright", "wooden", "charming", "long")
    for split in ("train", "dev"):
        rows = [f"{split} {words[n % 6]} {words[n // 6]} {'very ' * (n % 5)}{n}\t{n % 2}" for n in range(24)]
        (home / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    own = "".join(json.dumps({"text": f"the plot is {word}", "label": n % 2}) + "\n" for n, word in enumerate(words))
    (home / "own.jsonl").write_text(own, encoding="utf-8")
    study = {
        "name": "which-targets",
        "base": {"model": str(model_directory("bert"))},
        "task": {"name": "sst2", "data": str(home), "max_length": 32},
        "train": {"max_steps": 2, "batch_size": 8, "learning_rate": 1e-2},
        "seeds": [1],
        "design": {"kind": "list", "trials": [{"r": 2, "targets": [role]} for role in ("query", "key", "value")]},
    }
    (home / "my-study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    result = CliRunner().invoke(app, ["run", str(home / "my-study.yaml"), "--out", str(home / "run")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for seed, name in enumerate(("A", "B")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
            model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_directory("gpt2")), config)
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.data += torch.randn_like(parameter)
        model.save_pretrained(home / name)
    return home


def filled(command, workshop, model_directory):
    """The command's arguments: values of options by the option, places by their names, small settings added."""
    words = shlex.split(re.split(r" (?:&&|>) ", command)[0])[1:]
    trials = sorted((workshop / "run" / "trials").iterdir())
    writing = [workshop / "A", workshop / "B"]
    adapters = iter(writing if "--speed" in words else [trial / "adapter" for trial in trials])
    texts = iter(writing)
    values = {
        "--adapter": lambda: next(texts),
        "--base": lambda: model_directory("bert" if words[0] == "recommend" else "gpt2"),
        "--data": lambda: workshop,
        "--prompt": lambda: "the acting",
    }
    found = []
    for before, word in zip(["", *words], words, strict=False):
        if word == "FILE":
            found.append(workshop / "own.jsonl")
        elif before in values and not word.startswith("world/"):
            found.append(values[before]())
        elif word in ("ADAPTER", "ADAPTER…"):
            found += [next(adapters)] if word == "ADAPTER" else list(adapters)
        elif word == "some/peft/adapter":
            found.append(writing[0])
        elif word.startswith("world/"):
            found.append(workshop / word)
        elif re.match(r"runs/(<study>|which-targets|judge-world|sentiment-configurations)", word):
            inside = re.sub(r"runs/[^/]+", "runs/which-targets", word).replace("<trial>", trials[0].name)
            found.append(inside)
        elif before != "--out" and word in ("STUDY", "STUDY.yaml"):
            found.append(workshop / "my-study.yaml")
        elif word.startswith("examples/"):
            found += [ROOT / word, "--set", f"base.model={model_directory('bert')}", "--set", f"task.data={workshop}"]
        else:
            found.append(word)
    return [*map(str, found), *small(words)]


def small(words):
    """What is added to a command."""
    if words[0] in ("generate", "chat"):
        return TINY_ANSWERS
    if words[0] == "recommend":
        return [] if "--data" in words else ["--data", "."]
    if words[0] == "inspect":
        return TINY_SPEED if "--speed" in words else ["--max-length", "32"] if "--task" in words else []
    return ["--out", "fresh"] if words[0] == "run" and "--resume" not in words else []


@pytest.mark.parametrize(("page", "command"), documented(), ids=lambda text: text.removeprefix("lorascope "))
def test_a_documented_command_runs(page, command, workshop, model_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(workshop / "run", "runs/which-targets")
    Path("question.txt").write_text("the plot", encoding="utf-8")
    for name in ("train.tsv", "dev.tsv"):
        shutil.copyfile(workshop / name, name)
    # The machine's own checks are a test of their own; here the command is.
    monkeypatch.setattr(table, "CHECKS", table.CHECKS[:2])
    monkeypatch.setattr(own_base, "_TEXT", "the acting is wooden")  # what a tiny tokenizer can write
    arguments = filled(command, workshop, model_directory)
    result = CliRunner().invoke(app, arguments, input="the acting\n", catch_exceptions=False)
    assert result.exit_code == 0, (page, arguments, result.output)
    for option in ("--out", "--plot"):
        if option in arguments:
            assert Path(arguments[arguments.index(option) + 1]).exists()
    if "--json" in arguments:
        json.loads(result.stdout)


def test_the_program_that_merges_runs(workshop, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trial = next((workshop / "run" / "trials").iterdir())
    shutil.copytree(trial, "runs/study/trials/trial")
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "merge.md").read_text("utf-8"), re.DOTALL)
    exec(compile(program, "docs/merge.md", "exec"), {})
    assert {"config.json", "merge-certificate.json", "NOTES.md"} <= {path.name for path in Path("merged").iterdir()}
    assert "True" in capsys.readouterr().out


def test_what_runs_elsewhere_is_documented_still():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    every = [one for page in pages for one in shown(page.read_text("utf-8"), inline=True)]
    for beginning in ELSEWHERE:
        assert any(one.startswith(beginning) for one in every), beginning


def test_the_reference_of_the_study_file_is_what_its_schema_says():
    found = subprocess.run(
        [sys.executable, ROOT / "scripts" / "study_reference.py", "--check"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


def test_the_pages_make_a_site_whose_links_all_lead_somewhere(tmp_path):
    """``make docs``, into a directory of its own."""
    pages = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", pages)
    options = ["--fail-on-warning", "--keep-going", "--quiet"]
    command = [sys.executable, "-m", "sphinx", *options, str(pages), str(tmp_path / "site")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "site" / "getting-started.html").is_file()
