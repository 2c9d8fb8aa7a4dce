"""``lorascope generate`` as people and scripts meet it."""

import io
import json
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "who wrote the first engine paper"


@pytest.fixture
def typed(monkeypatch):
    """``typed(text)``: what stdin holds."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def check_refused(ended, what, code=2):
    assert ended.code == code, ended.err
    assert ended.err.count("\n") == 1
    assert what in ended.err
    assert ended.out == ""


def test_an_answer_is_printed_and_nothing_else(cli, causal_adapter, model_directory):
    path = causal_adapter("a", 1)
    ended = cli("generate", "--adapter", path, "--prompt", PROMPT, "--max-new-tokens", 9)
    assert ended.code == 0
    document = json.loads(cli("generate", "--adapter", path, "--prompt", PROMPT, "--max-new-tokens", 9, "--json").out)
    [answer] = document["answers"]
    assert ended.out == answer["text"] + "\n"
    assert answer["adapter"] == "a"
    assert answer["num_tokens"] == len(answer["token_ids"]) == 9 or answer["finished"]
    assert document["adapters"] == {"a": str(path)}
    assert document["base"] == str(model_directory("gpt2"))
    assert document["form"] == "raw"
    note = "the model has no chat template: the prompt is read as it is"
    assert note in ended.err
    assert note in document["warnings"]
    tokenizer = AutoTokenizer.from_pretrained(model_directory("gpt2"))
    assert document["prompt_tokens"] == len(tokenizer(PROMPT)["input_ids"])
    assert answer["text"] == tokenizer.decode(answer["token_ids"], skip_special_tokens=True)


def test_the_base_and_every_adapter_side_by_side_answer_as_each_alone(cli, causal_adapter, model_directory):
    a, b = causal_adapter("a", 1), causal_adapter("b", 2)
    common = ["--prompt", PROMPT, "--max-new-tokens", 9, "--raw", "--json"]
    ended = cli("generate", "--adapter", a, "--adapter", b, "--side-by-side", *common)
    together = {one["adapter"]: one["token_ids"] for one in json.loads(ended.out)["answers"]}
    assert list(together) == [None, "a", "b"]
    for name, arguments in {None: ["--base", model_directory("gpt2")], "a": ["--adapter", a], "b": ["--adapter", b]}.items():
        [alone] = json.loads(cli("generate", *arguments, *common).out)["answers"]
        assert (alone["adapter"], alone["token_ids"]) == (name, together[name])
    lines = cli("generate", "--adapter", a, "--adapter", b, "--prompt", PROMPT, "--raw", "--max-new-tokens", 9).out
    assert lines.startswith("[a]\n")
    assert "\n\n[b]\n" in lines, "elsewhere than on a terminal, and without --side-by-side: one below the other"


def test_every_way_to_decode_is_tried_and_drawn_from_the_seed(cli, causal_adapter):
    arguments = ["generate", "--adapter", causal_adapter("a", 1), "--prompt", PROMPT, "--max-new-tokens", 9, "--raw"]
    ways = ["greedy", "nucleus,top_p=0.9,samples=3", "top_k,top_k=5,temperature=1.4", "temperature,temperature=2"]
    arguments += [part for way in ways for part in ("--decode", way)]
    first = json.loads(cli(*arguments, "--json").out)["answers"]
    assert [one["decoding"] for one in first] == [
        "greedy max 9", *["nucleus p=0.9 max 9 ×3"] * 3, "top_k k=5 T=1.4 max 9", "temperature T=2 max 9"
    ]  # fmt: skip
    assert [one["sample"] for one in first] == [0, 0, 1, 2, 0, 0]
    assert json.loads(cli(*arguments, "--json").out)["answers"] == first
    other = json.loads(cli(*arguments, "--seed", 4, "--json").out)["answers"]
    assert other[0] == first[0]
    assert other[1:] != first[1:]
    assert "[a, nucleus p=0.9 max 9 ×3, sample 2]\n" in cli(*arguments).out


def test_a_prompt_comes_from_an_option_a_file_or_stdin(cli, typed, model_directory, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n", encoding="utf-8")
    common = ["generate", "--base", model_directory("llama"), "--max-new-tokens", 5, "--raw", "--json"]
    typed(PROMPT + "\n\n")
    documents = [
        json.loads(cli(*common, *more).out) for more in (["--prompt", PROMPT], ["--file", tmp_path / "prompt.txt"], [])
    ]
    assert documents[0] == documents[1] == documents[2]
    assert documents[0]["prompt"] == PROMPT


def test_a_template_writes_the_prompt_and_raw_leaves_it_out(cli, model_directory, tmp_path):
    AutoModelForCausalLM.from_pretrained(model_directory("llama")).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model_directory("llama"))
    tokenizer.chat_template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
    tokenizer.save_pretrained(tmp_path)
    common = ["generate", "--base", tmp_path, "--prompt", "hi", "--max-new-tokens", 5, "--json"]
    document = json.loads(cli(*common, "--system", "be kind").out)
    assert document["form"] == "template"
    assert document["prompt_tokens"] == len(tokenizer("system: be kind\nuser: hi\nassistant:")["input_ids"])
    raw = json.loads(cli(*common, "--raw").out)
    assert (raw["form"], raw["prompt_tokens"]) == ("raw", len(tokenizer("hi")["input_ids"]))
    plain = cli("generate", "--base", model_directory("llama"), "--prompt", "hi", "--system", "be kind", "--max-new-tokens", 5)
    assert "the model has no chat template: a plain format" in plain.err


def test_an_encoder_decoder_answers_too(cli, model_directory):
    arguments = ["generate", "--base", model_directory("t5"), "--prompt", PROMPT, "--max-new-tokens", 7]
    document = json.loads(cli(*arguments, "--json").out)
    ended = cli(*arguments)
    assert ended.out == document["answers"][0]["text"] + "\n"
    assert "chat template" not in ended.err


def test_an_answer_that_came_to_no_end_is_told(cli, model_directory):
    ended = cli("generate", "--base", model_directory("gpt2"), "--prompt", PROMPT, "--raw", "--max-new-tokens", 2)
    assert "the answer was cut after 2 tokens; more with --max-new-tokens" in ended.err
    long = ["--prompt", "too slow " * 20, "--decode", "temperature,temperature=5,samples=4"]
    ended = cli("generate", "--base", model_directory("gpt2"), "--raw", *long)
    assert "answers were cut after " in ended.err
    assert "tokens; the model has 128 positions" in ended.err


def test_what_cannot_be_answered_is_one_line_and_exit_code_2(cli, causal_adapter, model_directory, tmp_path, typed):
    gpt2 = model_directory("gpt2")
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    a = causal_adapter("a", 1)
    llama = causal_adapter("b", 1, "llama", "q_proj")
    asked = ["--prompt", "hi", "--raw"]
    for arguments, what in [
        (["--base", model_directory("bert"), *asked], "this model writes nothing: bert is no causal model"),
        (["--adapter", a, "--adapter", llama, *asked], "adapters of different bases"),
        (["--adapter", empty, *asked], "no PEFT adapter here"),
        (["--base", gpt2, "--prompt", "too slow " * 200, "--raw"], "tokens, and the model can read 127 and write one more"),
        (asked, "there is no model; give --base or --adapter"),
        (["--base", gpt2, "--prompt", "  "], "--prompt: the text is empty"),
        (["--base", gpt2, "--prompt", "hi", "--system", ""], "--system: the text is empty"),
        (["--base", gpt2, "--prompt", "a\udcff"], "--prompt: the text is no UTF-8"),
        (["--base", gpt2, "--file", tmp_path / "bytes"], "bytes: the text is no UTF-8"),
        (["--base", gpt2, "--file", tmp_path / "none"], "none: cannot be read"),
        (["--base", gpt2, "--file", tmp_path / "none", "--prompt", "hi"], "--prompt and --file exclude each other"),
        (["--base", gpt2, *asked, "--system", "x"], "a raw prompt has no system message"),
        (["--base", gpt2, *asked, "--side-by-side"], "there is nothing to lay beside the base"),
        (["--base", gpt2, *asked, "--decode", "greedy,top_k=3"], "top_k has no effect with strategy greedy"),
        (["--base", gpt2, *asked, "--decode", "nucleus,top_p"], "--decode: 'top_p' has no value"),
        (["--base", gpt2, *asked, "--dtype", "float8"], "dtype"),
    ]:
        check_refused(cli("generate", *arguments), what)
