"""``lorascope inspect --truncate``: what is written, printed and stored, and that what fails leaves nothing."""

import json
import shutil

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorascope.analysis import truncated
from lorascope.lora.peft_io import read_adapter


def scored(data):
    return ("--task", "file", "--data", data, "--labels", "no,yes", "--max-length", 32)


def logits_of(directory):
    """By PEFT, of two sentences."""
    base = read_adapter(directory).base_model
    texts = ["the film is warm", "the acting is wooden"]
    inputs = AutoTokenizer.from_pretrained(base)(texts, return_tensors="pt", padding=True)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, str(directory)).eval()(**inputs).logits


def test_rank_three_inside_eight_is_cut_to_three_by_energy_with_equal_logits_in_peft(cli, small_adapter, tmp_path):
    source, out = small_adapter(), tmp_path / "cut"
    ended = cli("inspect", source, "--truncate", 1e-9, "--out", out, "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)["truncation"]
    assert {row["rank"] for row in document["modules"]} == {3}
    assert (document["directions_before"], document["directions"]) == (32, 12)
    assert document["parameters"] == document["parameters_before"] * 3 // 8
    assert (document["bytes"], document["bytes_before"]) == (4 * document["parameters"], 4 * document["parameters_before"])
    assert "no score was measured" in document["what"]
    assert json.loads((out / "truncation.json").read_text()) == document
    card = (out / "README.md").read_text()
    assert ModelCard(card, ignore_metadata_errors=False).data.library_name == "peft"
    assert "cut from 32 to 12 directions" in card
    assert str(tmp_path) not in card
    torch.testing.assert_close(logits_of(source), logits_of(out), rtol=1e-5, atol=1e-5)
    table = cli("inspect", source, "--truncate", 0.5, "--out", tmp_path / "half")
    assert table.code == 0, table.err
    assert "rank kept of r = 8" in table.out
    assert f"written to {tmp_path / 'half'}" in table.out


@pytest.mark.parametrize("has_task", [False, True])
def test_rank_three_stored_in_bfloat16_is_seen_as_three_and_cut_to_three_with_equal_logits(
    has_task, cli, small_adapter, three_directions_in_bfloat16, data, tmp_path
):
    source, out = small_adapter(), tmp_path / "cut"
    three_directions_in_bfloat16(source, seed=2)
    (seen,) = json.loads(cli("inspect", source, "--json").out)["adapters"]
    assert {row["numerical_rank"] for row in seen["modules"]} == {3}
    assert {row["r"] for row in seen["modules"]} == {8}
    options = (*scored(data), "--metric", "eval_loss") if has_task else ()
    ended = cli("inspect", source, "--truncate", 0.02 if has_task else 0, "--out", out, *options, "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)["truncation"]
    assert document["directions_above_rounding"] == 12
    if not has_task:
        assert {row["rank"] for row in document["modules"]} == {3}
        whole, cut = (logits_of(directory) for directory in (source, out))
        # As far as the rounding of bfloat16 goes.
        assert (whole - cut).abs().max() < 2**-7 * whole.abs().max()
        assert (document["bytes"], document["bytes_before"]) == (
            4 * document["parameters"], 2 * document["parameters_before"]
        )  # fmt: skip
        again = cli("inspect", source, "--truncate", 0, "--out", tmp_path / "again")
        assert f"→ {document['bytes']:,} bytes: the new factors are stored in float32" in again.out
    assert document["directions"] <= 12


def test_the_written_adapter_scores_what_the_document_says(cli, small_adapter, data, tmp_path):
    source, out = small_adapter(), tmp_path / "cut"
    ended = cli("inspect", source, "--truncate", 0.05, "--out", out, *scored(data), "--metric", "eval_loss", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)["truncation"]
    assert (document["metric"], document["higher_is_better"], document["epsilon"]) == ("eval_loss", False, 0.05)
    before, after = document["original"]["score"], document["truncated"]["score"]
    assert after - before <= 0.05 + 1e-5
    assert document["paired"]["loss"] == pytest.approx(after - before, abs=1e-9)
    assert document["paired"]["groups"] == document["num_examples"] == 6
    assert [one["holds"] for one in document["tried"] if one["num_directions"] == document["directions"]] == [True]
    assert "directions: eval_loss" in ended.err
    for directory, score in ((source, before), (out, after)):
        again = cli("evaluate", directory, *scored(data), "--json")
        assert json.loads(again.out)["metrics"]["eval_loss"] == pytest.approx(score, rel=1e-5)
    table = cli("inspect", source, "--truncate", 0.05, "--out", tmp_path / "again", *scored(data), "--slots", 2)
    assert "accuracy: " in table.out  # the task's primary metric
    assert "read back from the written files" in table.out
    assert "rank kept of r = 8" in table.out


def test_a_cut_that_does_not_hold_ends_with_three_and_leaves_nothing(cli, small_adapter, data, tmp_path, monkeypatch):
    source, out = small_adapter(), tmp_path / "cut"
    own = truncated.read_adapter

    def damaged(directory, name):
        saved = own(directory, name)
        for value in saved.weights.heads.values():
            value *= -3
        return saved

    monkeypatch.setattr(truncated, "read_adapter", damaged)
    before = sorted(tmp_path.iterdir())
    ended = cli("inspect", source, "--truncate", 0, "--out", out, *scored(data), "--metric", "eval_loss")
    assert (ended.code, ended.out) == (3, "")
    assert "the adapter that was written loses" in ended.err.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_options_and_bases_are_refused_and_nothing_is_written(cli, small_adapter, data, tmp_path, model_directory):
    source, out = small_adapter(), tmp_path / "cut"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    cases = [
        (("--truncate", 0.1), "give a new directory with --out"),
        (("--out", out), "--out: it belongs to --truncate"),
        (("--metric", "accuracy"), "--metric: it belongs to --truncate"),
        (("--task", "file", "--data", data, "--slots", 2), "--slots: hidden states need no such bound"),
        (("--slots", 2), "--slots: the adapter's files are read alone, without a base"),
        (("--truncate", 0.1, "--out", out, "--metric", "accuracy"), "--metric: it says how to score, which needs a task"),
        (("--truncate", 1, "--out", out), "without a task it is the share of energy"),
        (("--truncate", 0.1, "--out", tmp_path / "full"), "something is there already; give a new directory"),
        (("--truncate", 0.1, "--out", out, *scored(data), "--metric", "acuracy"), "gives no acuracy; did you mean 'accuracy'"),
    ]
    for options, message in cases:
        ended = cli("inspect", source, *options)
        assert (ended.code, ended.out) == (2, ""), options
        assert message in ended.err
    wrong = tmp_path / "wrong"
    shutil.copytree(model_directory("bert"), wrong)
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    ended = cli("inspect", source, "--truncate", 0.1, "--out", out, *scored(data), "--base", wrong)
    assert (ended.code, ended.out) == (2, "")
    assert "the base model has no linear layer" in ended.err.splitlines()[-1]
    other = small_adapter("other")
    assert "one adapter is truncated at a time" in cli("inspect", source, other, "--truncate", 0.1, "--out", out).err
    assert not out.exists()


def test_a_text_model_is_held_to_what_its_answers_score(cli, small_adapter, tmp_path):
    turns = [(f"the {word} film", f"is {word}") for word in ("warm", "slow", "long", "bright", "funny")]
    rows = [{"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": reply}]} for ask, reply in turns]
    path = tmp_path / "validation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, out = small_adapter(family="llama"), tmp_path / "cut"
    options = ("--task", "file", "--data", path, "--max-length", 32, "--max-new-tokens", 4)
    ended = cli("inspect", source, "--truncate", 0.2, "--out", out, *options, "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)["truncation"]
    assert (document["metric"], document["higher_is_better"]) == ("rouge_l", True)
    again = json.loads(cli("evaluate", out, *options, "--json").out)["metrics"]
    assert again["rouge_l"] == pytest.approx(document["truncated"]["score"], abs=1e-6)
    assert document["paired"]["groups"] == 5
