"""``lorascope data`` as people and scripts meet it: documents, pages, colours, exit codes."""

import html
import json
import re
import subprocess
import sys
from itertools import pairwise

import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lorascope.cli import data as data_commands
from lorascope.cli.console import visible

ROWS = [{"prompt": f"Number {number} of <b>many</b>:\n", "completion": f" answer {number}\x1b[31m"} for number in range(12)]


@pytest.fixture
def generation(tmp_path):
    """A directory of prompt/completion rows; validation holds one row of train."""
    for split, rows in (("train", ROWS[:8]), ("validation", [*ROWS[8:], ROWS[3]])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A tokenizer's directory; it encodes any text, byte by byte."""
    directory = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, "</s>"])}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="</s>").save_pretrained(directory)
    # The configuration of a model, by which its tokenizer is found.
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    return directory


@pytest.fixture
def flags(generation, tokenizer):
    return ["--task", "file", "--data", generation, "--tokenizer", tokenizer, "--max-length", 120]


def test_an_audit_names_the_leaked_record_and_ends_with_code_3(cli, flags, generation):
    ended = cli("data", "audit", *flags)
    assert ended.code == 3
    places = f"{generation}/validation.jsonl:5, like {generation}/train.jsonl:4"
    assert re.search(r"error +│ overlap +│ validation", ended.out)
    assert places in ended.out
    assert re.search(r"┃ targets ┃ repeated ┃", ended.out)
    assert len(ended.err.splitlines()) == 1
    assert f"{places}: overlap: 1 of 5 validation records are in train; correct the data, or accept" in ended.err
    document = json.loads(cli("data", "audit", *flags, "--json").out)
    assert document["passed"] is False
    assert [(finding["kind"], finding["severity"], finding["places"]) for finding in document["findings"]] == [
        ("overlap", "error", [places])
    ]


def test_what_is_allowed_does_not_stop(cli, flags):
    ended = cli("data", "audit", *flags, "--allow", "overlap", "--json")
    assert (ended.code, ended.err) == (0, "")
    document = json.loads(ended.out)
    assert (document["passed"], document["allowed"]) == (True, ["overlap"])
    unknown = cli("data", "audit", *flags, "--allow", "overlaps")
    assert (unknown.code, unknown.out) == (2, "")
    assert "did you mean 'overlap'?" in unknown.err


def test_a_study_is_audited_before_anything_is_made(cli, study_file, generation, model_directory, tmp_path):
    sections = {
        "base": {"model": str(model_directory("gpt2"))},
        "task": {"name": "file", "data": str(generation), "max_length": 120},
        "train": {"max_steps": 0},
    }
    study = study_file(**sections)
    assert cli("data", "audit", study).code == 3
    assert cli("data", "audit", study, "--set", "task.allow=[overlap]").code == 0
    out = tmp_path / "run"
    stopped = cli("run", study, "--out", out)
    assert (stopped.code, stopped.out) == (3, "")
    assert "validation.jsonl:5" in stopped.err
    assert "--allow overlap or task.allow: [overlap]" in stopped.err
    assert not out.exists()
    accepted = cli("run", study, "--out", out, "--allow", "overlap")
    assert accepted.code == 0, accepted.err
    assert accepted.err.count("1 of 5 validation records are in train") == 1
    assert cli("run", study, "--out", out, "--resume", "--set", "task.allow=[overlap, duplicate]").code == 0


def test_a_preview_shows_each_token_and_what_is_learned(cli, flags):
    document = json.loads(cli("data", "preview", *flags, "-n", 2, "--json").out)
    assert [example["split"] for example in document["examples"]] == ["train", "train", "validation", "validation"]
    first = document["examples"][0]
    assert "".join(token["text"] for token in first["tokens"] if not token["is_special"]) == "".join(ROWS[0].values())
    learned = [token for token in first["tokens"] if token["is_target"]]
    assert "".join(token["text"] for token in learned) == " answer 0\x1b[31m</s>"
    assert learned[-1]["is_special"]
    shown = cli("data", "preview", *flags, "-n", 1)
    assert shown.code == 0
    assert "\x1b" not in shown.out
    assert re.search(r"\[\+.*0.*\\x1b.*</s>\+\]", shown.out)


def test_colours_keep_every_token_apart(flags, cli):
    document = json.loads(cli("data", "preview", *flags, "-n", 1, "--json").out)
    example = document["examples"][0]
    text = data_commands._coloured(example)
    assert text.plain == "".join(visible(token["text"]) for token in example["tokens"])
    styles = [span.style for span in text.spans]
    assert all(one != other for one, other in pairwise(styles))
    assert len(styles) == len(example["tokens"])
    console = Console(force_terminal=True, color_system="256", width=80)
    with console.capture() as captured:
        data_commands._print_examples(console, document)
    assert re.search(r"\x1b\[30;48;5;\d+m learned \x1b\[0m", captured.get())


def test_a_cut_is_shown_where_it_was_made(cli, tmp_path, tokenizer):
    rows = [{"prompt": f"{number} the acting " * 9, "completion": " the plot"} for number in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ["--task", "file", "--data", tmp_path / "a.jsonl", "--tokenizer", tokenizer]
    whole = json.loads(cli("data", "preview", *options, "--json").out)["examples"][0]
    cut = json.loads(cli("data", "preview", *options, "--max-length", 16, "--json").out)["examples"][0]
    assert sum(token["num_cut"] for token in whole["tokens"]) + whole["num_cut_after"] == 0
    assert len(cut["tokens"]) == 16
    assert cut["tokens"][0]["num_cut"] == len(whole["tokens"]) - 16
    assert f"{{{len(whole['tokens']) - 16} tokens cut}}" in cli("data", "preview", *options, "--max-length", 16).out


def test_a_page_needs_nothing_else_and_holds_the_data_as_text(cli, flags, tmp_path):
    page = tmp_path / "page.html"
    assert cli("data", "audit", *flags, "--html", page).code == 3
    text = page.read_text(encoding="utf-8")
    assert "<b>many" not in text
    assert not re.search(r"(?:src|href)=|@import|url\(|<script", text)
    assert "prefers-color-scheme: dark" in text
    assert "validation.jsonl:5, like" in text
    assert '<th class="number">repeated targets</th>' in text
    tokens = re.findall(r'<span class="t([^"]*)">([^<]*)</span>', text.partition("</header>")[2])
    assert html.unescape("".join(shown for _, shown in tokens)).startswith("Number 0 of <b>many</b>:↵\n answer 0\\x1b[31m</s>")
    assert {"learned", "special", "odd"} <= {word for words, _ in tokens for word in words.split()}
    assert cli("data", "preview", *flags, "--html", page).code == 0
    assert "Findings" not in page.read_text(encoding="utf-8")


def test_records_are_looked_at_without_a_tokenizer_and_this_is_said(cli, generation):
    flags = ["--task", "file", "--data", generation]
    ended = cli("data", "audit", *flags)
    assert ended.code == 3
    assert "tokens are not checked: the checks of tokens need --base or --tokenizer" in ended.out
    shown = cli("data", "preview", *flags, "-n", 1)
    assert (shown.code, "[+ answer 0" in shown.out) == (0, True)
    lone = json.loads(cli("data", "preview", "--task", "file", "--data", generation / "train.jsonl", "--json").out)
    assert [(split["split"], split["num_records"]) for split in lone["splits"]] == [("train", 8)]


def test_a_study_whose_base_is_elsewhere_is_looked_at_as_far_as_it_goes(cli, study_file, tmp_path):
    study = study_file(base={"model": str(tmp_path / "no-model")})
    document = json.loads(cli("data", "preview", study, "--json").out)
    assert document["tokens"].startswith("not checked: ")
    assert [split["num_examples"] for split in document["splits"]] == [None, None]
    missing = cli("data", "preview", study, "--tokenizer", tmp_path / "nowhere")
    assert (missing.code, missing.out) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no data to look at; give a study file, or --task and --data"),
        (("--task", "file"), "no data to look at"),
        (("STUDY", "--split", "train"), "--split and a study file exclude each other"),
        (("--task", "file", "--data", "x", "--set", "a=1"), "there is no study file to override"),
        (("--task", "file", "--data", "x", "--split", "dev"), "no split 'dev'"),
        (("--task", "fil", "--data", "x"), "did you mean 'file'?"),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, cli, study_file):
    arguments = [study_file() if argument == "STUDY" else argument for argument in arguments]
    ended = cli("data", "audit", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1


def test_help_and_records_need_no_torch(generation):
    script = (
        "import sys; from lorascope.cli import main\n"
        "try:\n    main()\nfinally:\n    sys.stderr.write(str('torch' in sys.modules))"
    )
    for arguments in (["data", "--help"], ["data", "preview", "--task", "file", "--data", str(generation)]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        assert done.stderr == "False"


@pytest.mark.parametrize("kept", [("train",), ("validation",), ("test",), ("train", "validation")])
def test_without_a_split_named_whatever_splits_there_are_are_shown(kept, cli, tmp_path):
    for split in kept:
        lines = "".join(json.dumps(row) + "\n" for row in (ROWS[:5] if split == "train" else ROWS[5:]))
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    document = json.loads(cli("data", "preview", "--task", "file", "--data", tmp_path, "--json").out)
    assert set(document["counts"]) == set(kept)
    named = cli("data", "preview", "--task", "file", "--data", tmp_path, "--split", "validation")
    assert (named.code == 0) == (set(kept) == {"train", "validation"})


def test_a_world_is_written_whole_and_read_by_the_other_commands(cli, tmp_path):
    ended = cli("data", "world", "--out", tmp_path / "world", "--size", 12, "--seed", 4, "--json")
    assert ended.code == 0
    document = json.loads(ended.out)
    assert document["counts"]["train"]["dialogues"] == 12
    assert document["files"] == sorted(str(path.relative_to(tmp_path / "world")) for path in (tmp_path / "world").rglob("*.*"))
    audited = cli("data", "audit", "--task", "personachat", "--data", tmp_path / "world" / "personachat")
    assert audited.code == 0
    assert "nothing found" in audited.out
    again = cli("data", "world", "--out", tmp_path / "world")
    assert again.code == 2
    assert "something is there already; give a new directory" in again.err


def test_a_world_in_dialect_names_the_command_that_makes_it(cli, tmp_path):
    ended = cli("data", "world", "--out", tmp_path / "world", "--size", 10, "--dialect", "--json")
    assert json.loads(ended.out)["dialect"] is True
    assert "`lorascope data world --seed 0 --size 10 --dialect`" in (tmp_path / "world" / "README.md").read_text()


def test_what_came_to_be_where_a_world_goes_is_kept(cli, tmp_path, monkeypatch):
    world, out = data_commands.world, tmp_path / "world"

    def meanwhile(*given, **options):
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        return world(*given, **options)

    monkeypatch.setattr(data_commands, "world", meanwhile)
    ended = cli("data", "world", "--out", out, "--size", 10)
    assert ended.code != 0
    assert "something came to be there meanwhile, and is kept" in ended.err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("seed", "warned"), [(999, False), (1000, True)])
def test_a_world_that_the_embedded_base_may_have_read_is_told_of(seed, warned, cli, tmp_path):
    ended = cli("data", "world", "--out", tmp_path / "world", "--size", 10, "--seed", seed, "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["seed"] == seed
    assert (f"--seed {seed}: lorascope:small may have read this world's train split" in ended.err) == warned


def test_a_world_is_shown_as_a_table(cli, tmp_path):
    ended = cli("data", "world", "--out", tmp_path / "world", "--size", 10)
    assert re.search(r"│ train +│ +10 │", ended.out)
    assert "README.md says what is where" in ended.out
