"""What was saved along with an adapter counts alike in every command: its tokenizer, embeddings, a vocabulary that grew."""

import io
import json
import sys

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TEMPLATE = (
    "{% for message in messages %}{{ message.role }} : {{ message.content }}{{ eos_token if message.role == 'assistant' }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
ASK = ("--prompt", "the river", "--max-new-tokens", 6, "--json")
SHORT = ("--max-length", 64)
QUICK = ("--prompt-tokens", 6, "--max-new-tokens", 1, "--repeats", 1)


@pytest.fixture
def texts(tmp_path):
    """Prompts and completions, as a file of each split."""
    directory = tmp_path / "texts"
    directory.mkdir()
    for split in ("train", "validation"):
        rows = [{"prompt": f"the river {split}", "completion": word} for word in ("engine", "London", "paper")]
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture
def with_template(causal_adapter, model_directory):
    """``with_template(name, seed)``: an adapter beside which a trainer left a tokenizer with a chat template."""

    def make(name, seed=1, template=TEMPLATE):
        path = causal_adapter(name, seed, "llama", "q_proj")
        tokenizer = AutoTokenizer.from_pretrained(model_directory("llama"))
        tokenizer.chat_template = template
        tokenizer.save_pretrained(path)
        return path

    return make


@pytest.fixture
def with_embeddings(causal_adapter, model_directory):
    """``with_embeddings(name, rows=0, more=0.0)``: embeddings as PEFT saves them along, with more rows or other numbers."""

    def make(name, rows=0, more=0.0):
        path = causal_adapter(name, 1, "llama", "q_proj") / "adapter_model.safetensors"
        model = AutoModelForCausalLM.from_pretrained(model_directory("llama"))
        own = {"model.embed_tokens": model.get_input_embeddings(), "lm_head": model.get_output_embeddings()}
        saved = {
            f"base_model.model.{key}.weight": torch.cat([module.weight, module.weight[:rows]]).detach() + more
            for key, module in own.items()
        }
        save_file({**load_file(path), **saved}, path, metadata={"format": "pt"})
        return path.parent

    return make


def answer_of(ended):
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    return document["form"], document["prompt_tokens"], document["answers"][0]["token_ids"], document["warnings"]


def test_the_chat_template_saved_with_an_adapter_writes_its_prompts_as_those_of_the_merged_model(
    cli, with_template, tmp_path, monkeypatch
):
    path = with_template("own")
    form, length, tokens, warnings = answer_of(cli("generate", "--adapter", path, *ASK))
    assert form == "template"
    assert f"the tokenizer is the one that was saved with the adapter ({path})" in warnings
    assert cli("merge", path, "--out", tmp_path / "merged").code == 0
    assert answer_of(cli("generate", "--base", tmp_path / "merged", *ASK))[:3] == ("template", length, tokens)
    monkeypatch.setattr(sys, "stdin", io.StringIO("the river\n"))
    chatted = cli("chat", "--adapter", path, "--max-new-tokens", 6)
    assert chatted.code == 0
    assert "the model has no chat template" not in chatted.err


def test_an_adapter_and_its_merged_model_have_one_score_where_the_adapter_has_a_tokenizer(cli, with_template, tmp_path, texts):
    path = with_template("own")
    rows = [json.loads(line) for line in (texts / "validation.jsonl").read_text().splitlines()]
    chats = [{"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
             for row in rows]  # fmt: skip
    (texts / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    task = ("--task", "file", "--data", texts, *SHORT)
    scored = cli("evaluate", path, *task, "--json")
    assert scored.code == 0, scored.err
    assert any("saved with the adapter" in warning for warning in json.loads(scored.out)["warnings"])
    ended = cli("merge", path, "--out", tmp_path / "merged", *task, "--json")
    assert ended.code == 0, ended.err
    rows = {row["name"]: row["scores"] for row in json.loads(ended.out)["certificate"]["comparisons"]
            if row["against"] == "adapter, float32"}  # fmt: skip
    metrics = json.loads(scored.out)["metrics"]
    assert len(rows["merged, reloaded"].keys() & metrics.keys()) > 1
    for name in rows["merged, reloaded"].keys() & metrics.keys():
        assert rows["merged, reloaded"][name] == pytest.approx(metrics[name], rel=1e-5), name


def test_adapters_with_one_template_run_together_and_with_two_they_are_refused_by_name(cli, with_template, causal_adapter):
    one, same, other = with_template("one"), with_template("same", 2), with_template("other", 3, TEMPLATE.replace(" :", ":"))
    together = cli("generate", "--adapter", one, "--adapter", same, *ASK)
    assert together.code == 0, together.err
    plain = causal_adapter("plain", 4, "llama", "q_proj")
    for second, whose in ((other, "its tokenizer"), (plain, "the base's tokenizer")):
        ended = cli("generate", "--adapter", one, "--adapter", second, *ASK)
        assert (ended.code, ended.out) == (2, "")
        assert f"{second}: {whose} has another chat template than the one that was saved with {one}" in ended.err
        assert ended.err.count("\n") == 1


def test_embeddings_that_peft_saved_along_change_no_answer_and_stop_no_command(cli, with_embeddings, causal_adapter, texts):
    plain = answer_of(cli("generate", "--adapter", causal_adapter("plain", 1, "llama", "q_proj"), *ASK))
    path = with_embeddings("copies")
    assert answer_of(cli("generate", "--adapter", path, *ASK))[:3] == plain[:3]
    for command in (
        ("evaluate", path, "--task", "file", "--data", texts, *SHORT),
        ("inspect", path, "--task", "file", "--data", texts, *SHORT),
        ("inspect", path, "--speed", *QUICK),
    ):
        ended = cli(*command, "--json")
        assert ended.code == 0, ended.err


def test_embeddings_that_were_trained_are_refused_before_they_could_be_left_out(cli, with_embeddings, texts):
    path = with_embeddings("trained", more=0.25)
    for command in (
        ("generate", "--adapter", path, *ASK),
        ("evaluate", path, "--task", "file", "--data", texts, *SHORT),
        ("inspect", path, "--speed", *QUICK),
    ):
        ended = cli(*command)
        assert (ended.code, ended.out) == (2, "")
        assert "the adapter brings embeddings of its own ('model.embed_tokens')" in ended.err
        assert "merge it, and run the merged model alone: generate or chat with --base, without this adapter" in ended.err


def test_an_adapter_with_trained_embeddings_is_refused_on_its_own_merged_model_which_runs_alone(
    cli, with_embeddings, texts, tmp_path
):
    path, merged = with_embeddings("trained", more=0.25), tmp_path / "merged"
    assert cli("merge", path, "--out", merged).code == 0
    assert cli("generate", "--base", merged, *ASK).code == 0
    for command in (
        ("generate", "--adapter", path, *ASK),
        ("evaluate", path, "--task", "file", "--data", texts, *SHORT),
        ("inspect", path, "--speed", *QUICK),
    ):
        ended = cli(*command, "--base", merged)
        assert (ended.code, ended.out) == (2, "")
        assert "the adapter may be merged into it already; run a merged model without the adapter" in ended.err


def test_a_vocabulary_that_grew_has_one_error_in_every_command(cli, with_embeddings, texts, tmp_path):
    path = with_embeddings("grown", rows=2)
    for command, code in {
        ("generate", "--adapter", path, *ASK): 2,
        ("evaluate", path, "--task", "file", "--data", texts, *SHORT): 2,
        ("inspect", path, "--task", "file", "--data", texts, *SHORT): 2,
        ("inspect", path, "--speed", *QUICK): 2,
        ("merge", path, "--out", tmp_path / "merged"): 3,
    }.items():
        ended = cli(*command)
        assert ended.code == code, ended.err
        assert "the adapter's vocabulary is larger than the base's: " in ended.err
        assert "resize_token_embeddings(" in ended.err


def test_an_adapter_with_a_grown_vocabulary_merges_into_the_base_that_grew_likewise(cli, model_directory, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_directory("llama"))
    grown = AutoModelForCausalLM.from_pretrained(model_directory("llama"))
    rows = len(grown.get_input_embeddings().weight)
    tokenizer.add_tokens([f"zzz{number}" for number in range(rows + 3 - len(tokenizer))])
    grown.resize_token_embeddings(len(tokenizer))
    grown.save_pretrained(tmp_path / "grown")
    tokenizer.save_pretrained(tmp_path / "grown")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapter = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "grown"), config)
    adapter.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    small = cli("generate", "--adapter", tmp_path / "adapter", "--base", model_directory("llama"), *ASK)
    assert small.code == 2
    assert f"the adapter's vocabulary is larger than the base's: {rows + 3} tokens, {rows} embeddings" in small.err
    ended = cli("merge", tmp_path / "adapter", "--base", tmp_path / "grown", "--out", tmp_path / "merged")
    assert ended.code == 0, ended.err
    merged = answer_of(cli("generate", "--base", tmp_path / "merged", *ASK))
    assert answer_of(cli("generate", "--adapter", tmp_path / "adapter", "--base", tmp_path / "grown", *ASK))[:3] == merged[:3]


def test_a_cut_adapter_keeps_the_tokenizer_that_was_saved_with_it(cli, with_template, tmp_path):
    path = with_template("own")
    (tmp_path / "cut").mkdir()
    ended = cli("inspect", path, "--truncate", 0.1, "--out", tmp_path / "cut")
    assert ended.code == 0, ended.err
    assert AutoTokenizer.from_pretrained(tmp_path / "cut").chat_template == TEMPLATE
    assert answer_of(cli("generate", "--adapter", tmp_path / "cut", *ASK))[0] == "template"


def test_an_empty_directory_is_taken_by_every_command_that_writes_one(cli, causal_adapter, tmp_path):
    path = causal_adapter("one", 1)
    for number, command in enumerate((("merge", path), ("export", path), ("inspect", path, "--truncate", 0.1))):
        out = tmp_path / f"out{number}"
        out.mkdir()
        ended = cli(*command, "--out", out)
        assert ended.code == 0, ended.err
        assert any(out.iterdir())


def test_another_rank_than_the_weights_have_is_refused_by_every_reader(cli, causal_adapter):
    path = causal_adapter("one", 1)
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    for command in (("inspect", path), ("generate", "--adapter", path, *ASK)):
        ended = cli(*command)
        assert (ended.code, ended.out) == (2, "")
        assert "has rank 2 in the weights and 8 in adapter_config.json" in ended.err
