"""A recommendation as people meet it: a study file that runs, reasons, the user's own studies, and what cannot be read."""

import json
import shlex
import shutil
import sqlite3

import pytest
import yaml

from lorascope.config import load_study

SMALL = ("--set", "train.max_steps=1", "--set", "seeds=[1]")
RANKS = {"kind": "list", "trials": [{"r": 2, "targets": ["query"]}, {"r": 4, "targets": ["query"], "lora_dropout": 0.2}]}


@pytest.fixture(autouse=True)
def much_memory(monkeypatch):
    """The rules do not depend on the machine that the tests run on."""
    monkeypatch.setattr("lorascope.recommend.answer.total_bytes", lambda _: 64 * 10**9)


def recommended(cli, *options):
    ended = cli("recommend", *options, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


@pytest.fixture
def options(data, model_directory):
    """The task and the model of the tiny studies."""
    return ("--task", "file", "--data", data, "--base", model_directory("bert"))


@pytest.fixture
def nowhere(tmp_path):
    """A directory without studies."""
    (tmp_path / "none").mkdir()
    return ("--runs", tmp_path / "none")


@pytest.fixture
def finished(cli, study_file, tmp_path):
    """``finished(name, **sections)``: a study that has run, below ``tmp_path/runs``."""

    def run(name="mine", **sections):
        directory = tmp_path / "runs" / name
        ended = cli("run", study_file(**{"design": RANKS, "seeds": [1, 2], **sections}), "--out", directory, *SMALL[:2])
        assert ended.code == 0, ended.err
        return directory

    return run


def test_without_studies_it_is_a_rule_of_thumb_whose_file_plans_and_runs(cli, options, nowhere, tmp_path):
    out = tmp_path / "STUDY.yaml"
    document = recommended(cli, *options, *nowhere, "--out", out)
    assert document["basis"] == "a rule of thumb, no evidence of yours"
    assert (document["kind"], document["evidence"], document["left_out"]) == ("classification", [], [])
    assert document["config"]["r"] == 16
    assert document["config"]["targets"] == ["query", "key", "value", "output"]
    assert {reason["key"] for reason in document["reasons"]} >= {
        "base.model",
        "adapter.r",
        "adapter.bias",
        "train.learning_rate",
    }
    assert all(reason["why"] for reason in document["reasons"])
    study = load_study(out)
    assert study.model_dump(mode="json") == type(study).model_validate(document["study"]).model_dump(mode="json")
    plan = json.loads(cli("plan", out, "--json").out)
    assert [trial["config"]["r"] for trial in plan["trials"]] == [16] * 3
    assert plan["trials"][0]["memory_bytes"] == document["forecast"]["memory_bytes"]
    ran = cli("run", out, "--out", tmp_path / "ran", *SMALL, "--json")
    assert [trial["status"] for trial in json.loads(ran.out)["trials"]] == ["done"]


def test_the_study_that_would_change_the_answer_is_a_command_that_plans(cli, options, nowhere, tmp_path):
    out = tmp_path / "STUDY.yaml"
    further = recommended(cli, *options, *nowhere, "--out", out)["would_change"][0]
    command = shlex.split(further["command"])
    assert command[:3] == ["lorascope", "run", str(out)]
    plan = json.loads(cli("plan", *command[2:], "--json").out)
    assert len(plan["trials"]) == further["trials"]
    assert {trial["config"]["r"] for trial in plan["trials"]} == {8, 16, 32}
    assert {trial["config"]["lora_alpha"] for trial in plan["trials"]} == {16.0, 32.0, 64.0}
    assert further["command"] in out.read_text(encoding="utf-8").replace("\n# ", "\n#")


def test_ones_own_study_outranks_the_rule_and_is_named_with_its_trials(cli, options, finished, tmp_path):
    directory = finished()
    document = recommended(cli, *options, "--runs", tmp_path / "runs", "--out", tmp_path / "STUDY.yaml")
    (study,) = document["evidence"]
    assert (study["place"], study["trials"], study["use"]) == (1, {"done": 4}, "used: its whole configuration")
    chosen = study["chosen"]
    assert (chosen["seeds"], chosen["trials"]) == (2, [f"{chosen['configuration']}-s{seed}" for seed in (1, 2)])
    rank = next(reason for reason in document["reasons"] if reason["key"] == "adapter.r")
    assert (rank["source"], rank["study"]) == ("evidence", str(directory))
    assert chosen["configuration"] in rank["configurations"]
    assert document["config"]["r"] == chosen["config"]["r"] in (2, 4)
    assert document["config"]["learning_rate"] == 1e-2
    assert document["study"]["task"]["max_length"] == 32
    assert "learning_rate" in document["would_change"][0]["design"]["over"]
    assert "r" not in document["would_change"][0]["design"]["over"]
    text = (tmp_path / "STUDY.yaml").read_text(encoding="utf-8")
    assert f"evidence: your study {directory} (same task, same model)" in text.replace("\n  # ", " ")


def test_the_answer_after_everything_was_compared_is_more_seeds(cli, options, finished, tmp_path):
    over = {"learning_rate": [1e-3], "r": [4], "targets": ["all-linear"], "lora_dropout": [0.1], "bias": ["lora_only"]}
    finished(design={"kind": "ablation", "over": over}, seeds=[1])
    further = recommended(cli, *options, "--runs", tmp_path / "runs")["would_change"][0]
    assert further["design"]["kind"] == "list"
    assert further["seeds"] == [42, 1337, 2024, 7, 99]
    assert further["trials"] == 5 * len(further["design"]["trials"]) > 5


def test_a_games_recommended_coalition_and_a_searchs_best_are_evidence(cli, options, finished, tmp_path):
    finished("game", design={"kind": "shapley", "players": ["query", "value"], "values": ["eval_loss"]})
    over = {"lora_dropout": [0.0, 0.1], "r": [2]}
    search = {"kind": "search", "over": over, "trials": 2, "objective": "eval_loss", "sampler": "random"}
    directory = finished("search", design=search, seeds=[1])
    document = recommended(cli, *options, "--runs", tmp_path / "runs")
    kinds = {one["design"]: one for one in document["evidence"]}
    assert kinds["shapley"]["metric"] == "eval_loss"
    assert kinds["shapley"]["trials"] == {"done": 8}
    assert kinds["shapley"]["chosen"]["config"]["targets"]
    found = json.loads(cli("results", directory, "--json").out)["search"]
    assert kinds["search"]["chosen"]["configuration"] == found["best"]
    assert "that random proposed" in kinds["search"]["chosen"]["why"]
    assert [one["use"].partition(":")[0] for one in document["evidence"]] == ["used", "changes nothing"]


def test_a_damaged_study_and_one_of_another_version_are_named_and_left_out(cli, options, finished, tmp_path):
    whole = finished()
    for name in ("newer", "damaged", "cut", "odd"):
        shutil.copytree(whole, whole.parent / name)
    with sqlite3.connect(whole.parent / "newer" / "study.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with sqlite3.connect(whole.parent / "odd" / "study.sqlite") as connection:
        connection.execute("UPDATE trials SET config = '{not json'")
        connection.execute("UPDATE study SET definition = json_set(definition, '$.seeds', json('[1,2,3]'))")
    connection.close()
    (whole.parent / "damaged" / "study.sqlite").write_bytes(b"no database at all" * 100)
    database = whole.parent / "cut" / "study.sqlite"
    database.write_bytes(database.read_bytes()[:5000])
    document = recommended(cli, *options, "--runs", tmp_path / "runs")
    assert [one["study"] for one in document["evidence"]] == ["tiny"]
    assert {one["directory"] for one in document["left_out"]} == {
        str(whole.parent / name) for name in ("newer", "damaged", "cut", "odd")
    }
    assert "another version" in next(one["reason"] for one in document["left_out"] if one["directory"].endswith("newer"))
    text = cli("recommend", *options, "--runs", tmp_path / "runs").out
    assert f"left out: {whole.parent / 'damaged'}: " in text


def test_a_copy_and_a_shard_count_once(cli, options, finished, tmp_path):
    whole = finished()
    shutil.copytree(whole, whole.parent / "copy")
    (study,) = recommended(cli, *options, "--runs", tmp_path / "runs")["evidence"]
    assert study["trials"] == {"done": 4}


def test_a_directory_is_the_same_data_as_the_files_in_it(cli, options, finished, data, tmp_path):
    files = {split: str(data / f"{split}.jsonl") for split in ("train", "validation")}
    finished(task={"name": "file", "data": files, "max_length": 32})
    document = recommended(cli, *options, "--runs", tmp_path / "runs")
    assert document["evidence"][0]["place"] == 1
    assert document["study"]["task"]["data"] == files


def test_a_config_alone_is_enough_of_a_model(cli, nowhere, model_directory, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(model_directory("gpt2") / "config.json", bare)
    document = recommended(cli, "--task", "squad", "--base", bare, *nowhere)
    assert document["kind"] == "question answering"
    assert document["config"]["targets"] == "all-linear"
    assert document["forecast"]["trainable_params"] > 0
    assert document["forecast"]["memory_bytes"] > 0
    assert document["forecast"]["train_seconds"] is None
    assert document["study"]["task"]["max_length"] == 128 - 32


def test_under_eight_gigabytes_the_rule_is_four_bits_and_what_it_gives_up_is_said(cli, options, nowhere):
    document = recommended(cli, *options, *nowhere, "--memory", "6GB")
    config = document["config"]
    assert (config["r"], config["lora_alpha"], config["targets"], config["quantization"]) == (4, 8.0, ["query"], "nf4")
    assert any("gives up more than this model needs" in note for note in document["notes"])
    better = recommended(cli, *options, *nowhere, "--memory", "6GB", "--goal", "better")["config"]
    assert (better["r"], better["targets"]) == (32, "all-linear")


def test_a_machine_under_eight_gigabytes_has_little_memory_without_being_told(cli, options, nowhere, monkeypatch):
    monkeypatch.setattr("lorascope.recommend.answer.total_bytes", lambda _: 6 * 10**9)
    document = recommended(cli, *options, *nowhere)
    assert (document["config"]["r"], document["config"]["targets"]) == (4, ["query"])
    assert any("with --memory 8GB it is what the rules give" in note for note in document["notes"])
    assert recommended(cli, *options, *nowhere, "--memory", "8GB")["config"]["r"] == 16


def test_a_goal_that_changes_nothing_is_a_note(cli, options, finished, tmp_path):
    finished()
    document = recommended(cli, *options, "--runs", tmp_path / "runs", "--goal", "faster")
    assert any(note.startswith("goal faster leaves ") for note in document["notes"])


def test_what_does_not_fit_is_one_line_and_nothing_is_written(cli, options, nowhere, tmp_path):
    ended = cli("recommend", *options, *nowhere, "--memory", "1MB", "--out", tmp_path / "STUDY.yaml")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "nothing fits: the smallest configuration of" in ended.err
    assert not (tmp_path / "STUDY.yaml").exists()


def test_a_budget_takes_seeds_and_then_steps(cli, options, nowhere, monkeypatch):
    monkeypatch.setattr("lorascope.plan.probe_flops", lambda *_: 1e8)
    seconds = recommended(cli, *options, *nowhere)["forecast"]["train_seconds"]
    two = recommended(cli, *options, *nowhere, "--budget", f"{2.5 * seconds:.6f}s")
    assert two["study"]["seeds"] == [42, 1337]
    none = recommended(cli, *options, *nowhere, "--budget", f"{0.5 * seconds:.6f}s")
    assert none["study"]["seeds"] == [42]
    assert none["config"]["max_steps"] < 6
    assert any("says little" in note for note in none["notes"])


def test_a_lone_file_holds_its_evaluation_out(cli, nowhere, data, model_directory):
    document = recommended(cli, "--task", "file", "--data", data / "train.jsonl", "--base", model_directory("bert"), *nowhere)
    assert document["study"]["task"]["eval_fraction"] == 0.1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--task", "sts2"), "unknown task 'sts2'; did you mean 'sst2'?"),
        (("--goal", "quicker"), "no goal 'quicker'"),
        (("--memory", "lots"), "is no amount of memory"),
        (("--budget", "soon"), "is no duration"),
        (("--runs", "no/such/place"), "no such directory"),
        (("--data", "no/such/file.jsonl"), "not on this machine"),
        (("--base", "no/such/model"), "no/such/model"),
    ],
)
def test_a_wrong_option_is_one_line(cli, options, nowhere, wrong, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ended = cli("recommend", *options, *nowhere, *wrong)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert said in ended.err


def test_an_existing_study_file_is_not_written_over(cli, options, nowhere, tmp_path):
    out = tmp_path / "STUDY.yaml"
    out.write_text("name: mine\n")
    ended = cli("recommend", *options, *nowhere, "--out", out)
    assert ended.code == 2
    assert out.read_text() == "name: mine\n"


def test_the_screen_shows_reasons_studies_costs_and_what_would_change_it(cli, options, finished, tmp_path):
    directory = finished()
    text = cli("recommend", *options, "--runs", directory).out
    for part in (
        "rests on: own evidence: ", "1 of 8: same task, same model", "4 done", "forecast: ",
        "what would change this: no study of this task and a model of this shape compared ",
        "  lorascope run STUDY.yaml --set ", "add --out STUDY.yaml",
    ):  # fmt: skip
        assert part in text, part
    yaml.safe_load(text.split("--set 'design=")[1].split("'")[0])


def test_the_help_names_the_goals(cli):
    ended = cli("recommend", "--help")
    assert ended.code == 0
    assert "default, faster, better or overfits" in " ".join(ended.out.replace("│", "").split())
