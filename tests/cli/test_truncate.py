"""``lorascope inspect --truncate``: what is written, printed and stored, and that what fails leaves nothing."""

import json

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorascope.analysis import truncated
from lorascope.lora.peft_io import read_adapter


def scored(data):
    return ("--task", "file", "--data", data, "--labels", "no,yes", "--max-length", 32)


def test_rank_three_inside_eight_is_cut_to_three_by_energy_with_equal_logits_in_peft(cli, small_adapter, tmp_path):
    source, out = small_adapter(), tmp_path / "cut"
    ended = cli("inspect", source, "--truncate", 1e-9, "--out", out, "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)["truncation"]
    assert {row["rank"] for row in document["modules"]} == {3}
    assert (document["directions_before"], document["directions"]) == (32, 12)
    assert document["parameters"] == document["parameters_before"] * 3 // 8
    assert "no score was measured" in document["what"]
    assert json.loads((out / "truncation.json").read_text()) == document
    card = (out / "README.md").read_text()
    assert ModelCard(card, ignore_metadata_errors=False).data.library_name == "peft"
    assert "cut from 32 to 12 directions" in card
    assert str(tmp_path) not in card
    base = read_adapter(source).base_model
    inputs = AutoTokenizer.from_pretrained(base)(
        ["the film is warm", "the acting is wooden"], return_tensors="pt", padding=True
    )
    logits = []
    for directory in (source, out):
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        with torch.no_grad():
            logits.append(peft.PeftModel.from_pretrained(model, str(directory)).eval()(**inputs).logits)
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    table = cli("inspect", source, "--truncate", 0.5, "--out", tmp_path / "half")
    assert table.code == 0, table.err
    assert "rank kept of r = 8" in table.out
    assert f"written to {tmp_path / 'half'}" in table.out


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
    assert [one["holds"] for one in document["tried"] if one["directions"] == document["directions"]] == [True]
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


def test_wrong_options_are_refused_before_anything_is_read(cli, small_adapter, data, tmp_path):
    source, out = small_adapter(), tmp_path / "cut"
    (tmp_path / "full").mkdir()
    cases = [
        (("--truncate", 0.1), "give a new directory with --out"),
        (("--out", out), "--out: it belongs to --truncate"),
        (("--metric", "accuracy"), "--metric: it belongs to --truncate"),
        (("--slots", 2), "--slots: it belongs to --truncate"),
        (("--truncate", 0.1, "--out", out, "--metric", "accuracy"), "--metric: it says how to score, which needs a task"),
        (("--truncate", 1, "--out", out), "without a task it is the share of energy"),
        (("--truncate", 0.1, "--out", tmp_path / "full"), "it exists already; give --out a new directory"),
        (("--truncate", 0.1, "--out", out, *scored(data), "--metric", "acuracy"), "gives no acuracy; did you mean 'accuracy'"),
    ]
    for options, message in cases:
        ended = cli("inspect", source, *options)
        assert (ended.code, ended.out) == (2, ""), options
        assert message in ended.err
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
