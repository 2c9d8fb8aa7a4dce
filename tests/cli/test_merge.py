"""``lorascope merge``: a directory that loads, or one line that says why there is none."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorascope.lora.peft_io import write_record


@pytest.fixture
def adapter(peft_adapter):
    return peft_adapter("llama", "CAUSAL_LM")[0]


def test_the_merged_directory_loads_and_the_document_says_what_it_is(cli, adapter, model_directory, tmp_path):
    ended = cli("merge", adapter, "--out", tmp_path / "merged", "--max-shard-size", "20KB", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["base"]["name"] == str(model_directory("llama"))
    assert document["class"] == "LlamaForCausalLM"
    assert {"model.safetensors.index.json", "merge-certificate.json"} < set(document["files"])
    assert document["files"] == sorted(path.name for path in (tmp_path / "merged").iterdir())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float32


def test_a_directory_that_holds_something_is_left_as_it_is(cli, adapter, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    ended = cli("merge", adapter, "--out", tmp_path / "merged")
    assert ended.code == 2
    assert "something is there already; give a new directory" in ended.err
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "bfloat61"], "--dtype: there is no dtype 'bfloat61'; did you mean 'bfloat16'?"),
        (["--max-shard-size", "much"], "--max-shard-size: 'much' is no amount of memory"),
        (["--base", "/nowhere"], "/nowhere: no such model directory"),
        (["--task", "sst2"], "a task needs data, and data a task; give both --task and --data, or neither"),
        (["--max-eval", 3], "--max-eval: it says on what to compare and how to score, which needs a task"),
        (["--speaker", "teacher"], "--speaker: it says on what to compare and how to score, which needs a task"),
        (["--task", "sst2", "--data", "x", "--decode", "greedy", "--decode", "top_k"], "--decode: a merge is scored with one"),
        (["--tensors-only", "--device", "cpu"], "--device: no model is run with --tensors-only"),
        (["--device", "cuda:99"], "--device: no device 'cuda:99' here"),
        (["--quantization", "int8"], "--quantization: there is no quantization 'int8'"),
        (["--quantization", "nf4", "--tensors-only"], "--tensors-only: outputs cannot be compared where no model may be run"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing(options, message, cli, adapter, tmp_path):
    before = set(tmp_path.iterdir())
    ended = cli("merge", adapter, "--out", tmp_path / "merged", *options)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert set(tmp_path.iterdir()) == before


def test_an_overflow_ends_with_three_and_no_directory_remains(cli, adapter, tmp_path):
    path = adapter / "adapter_model.safetensors"
    save_file({name: value * (1e6 if "lora_B" in name else 1) for name, value in load_file(path).items()}, path)
    before = set(tmp_path.iterdir())
    ended = cli("merge", adapter, "--out", tmp_path / "merged", "--dtype", "float16", "--json")
    assert ended.code == 3
    assert "overflow float16; merge with --dtype bfloat16 or float32" in ended.err
    document = json.loads(ended.out, parse_constant=pytest.fail)
    assert (document["files"], document["certificate"]["holds"]) == ([], False)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda name, value: {name: value * float("nan") if "lora_B" in name else value}, "holds NaN or infinite numbers"),
        (lambda name, value: {name.replace("q_proj", "query"): value}, "of the adapter's tensors match nothing in the base"),
        (lambda name, value: {name.replace(".weight", ".default.weight"): value}, "is no key of PEFT's: it matches nothing"),
    ],
    ids=["nan", "keys", "malformed keys"],
)
def test_an_adapter_that_is_none_of_this_base_ends_with_three_and_nothing_is_merged(break_it, message, cli, adapter, tmp_path):
    path = adapter / "adapter_model.safetensors"
    broken = {key: new for name, value in load_file(path).items() for key, new in break_it(name, value).items()}
    save_file(broken, path)
    before = set(tmp_path.iterdir())
    ended = cli("merge", adapter, "--out", tmp_path / "merged", "--json")
    assert ended.code == 3
    assert message in ended.err
    certificate = json.loads(ended.out, parse_constant=pytest.fail)["certificate"]
    assert any(message in check["says"] for check in certificate["checks"] if check["verdict"] == "fails")
    assert set(tmp_path.iterdir()) == before


def test_another_rank_than_the_weights_have_is_a_merge_that_does_not_hold(cli, adapter, tmp_path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    ended = cli("merge", adapter, "--out", tmp_path / "merged")
    assert ended.code == 3
    assert "has rank 4 in the weights and 8 in adapter_config.json" in ended.err


def test_a_base_of_nan_ends_with_three(cli, adapter, model_directory, tmp_path):
    base = shutil.copytree(model_directory("llama"), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, base / "model.safetensors")
    ended = cli("merge", adapter, "--out", tmp_path / "merged", "--base", base)
    assert ended.code == 3
    assert "the base holds NaN or infinite numbers" in ended.err
    assert "THE MERGE DOES NOT HOLD" in ended.out
    assert not (tmp_path / "merged").exists()


def test_a_refused_adapter_s_certificate_is_in_the_document(cli, adapter, tmp_path):
    write_record(adapter, [], {"checksum": "0" * 64, "dtype": "float32", "quantization": None})
    ended = cli("merge", adapter, "--out", tmp_path / "merged", "--json")
    assert ended.code == 3
    document = json.loads(ended.out, parse_constant=pytest.fail)
    certificate = document["certificate"]
    assert (document["files"], certificate["level"], certificate["why_level"]) == ([], "beforehand", "nothing was merged")
    assert "base-checksum: the adapter was trained on other weights" in ended.err


def test_a_missing_shard_of_the_base_is_named_and_no_directory_remains(cli, adapter, model_directory, tmp_path):
    base = shutil.copytree(model_directory("llama"), tmp_path / "base")
    weight_map = dict.fromkeys(load_file(base / "model.safetensors"), "model-00001-of-00001.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (base / "model.safetensors").unlink()
    ended = cli("merge", adapter, "--out", tmp_path / "merged", "--base", base)
    assert ended.code == 2
    assert "the shard 'model-00001-of-00001.safetensors' is missing; download or copy the whole checkpoint" in ended.err
    assert not (tmp_path / "merged").exists()


def test_the_certificate_lies_in_the_directory_and_in_the_document(cli, adapter, tmp_path):
    ended = cli("merge", adapter, "--out", tmp_path / "merged", "--dtype", "float32", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out, parse_constant=pytest.fail)
    written = json.loads((tmp_path / "merged" / "merge-certificate.json").read_text(), parse_constant=pytest.fail)
    assert written == document["certificate"]
    assert written["holds"]
    assert written["level"] == "outputs"
    assert written["merged"]["directory"] == str(tmp_path / "merged")
    rows = {(row["name"], row["against"]): row for row in written["comparisons"]}
    assert rows["merged, reloaded", "merged in memory"]["relative_difference"] <= 1e-6
    assert rows["merged, reloaded", "adapter, float32"]["relative_difference"] <= 1e-5
    assert rows["base alone, float32", "adapter, float32"]["kl"] > 1e-4


@pytest.mark.parametrize(
    ("family", "task_type"), [("gpt2", "SEQ_CLS"), ("distilbert", "SEQ_CLS"), ("t5", "SEQ_2_SEQ_LM"), ("phi3", "CAUSAL_LM")]
)
def test_merges_of_every_kind_are_certified(family, task_type, cli, peft_adapter, tmp_path):
    ended = cli("merge", peft_adapter(family, task_type)[0], "--out", tmp_path / "merged", "--dtype", "float32", "--json")
    certificate = json.loads(ended.out)["certificate"]
    assert [one for one in certificate["checks"] if one["verdict"] == "fails"] == []
    assert (ended.code, certificate["level"]) == (0, "outputs")


def test_a_screen_shows_what_was_compared_and_which_checks_hold(cli, adapter, tmp_path):
    ended = cli("merge", adapter, "--out", tmp_path / "merged")
    assert ended.code == 0, ended.err
    for text in ("the merge holds", "merged, reloaded", "merged in memory", "only-rounding", "texts of 6 to 32 tokens"):
        assert text in ended.out


@pytest.mark.parametrize("options", [[], ["--json"], ["--tensors-only"]])
def test_a_merge_that_does_nothing_ends_with_three_and_no_directory_remains(options, cli, adapter, tmp_path, monkeypatch):
    from lorascope.lora import merge_plan

    monkeypatch.setattr(merge_plan.PlannedMerge, "after", lambda self, start, stop: self.before(start, stop).to(self.dtype))
    before = set(tmp_path.iterdir())
    ended = cli("merge", adapter, "--out", tmp_path / "merged", *options)
    assert ended.code == 3
    assert "the merge does not hold" in ended.err
    assert "the update is not in the weights" in ended.err
    assert set(tmp_path.iterdir()) == before
    if "--json" in options:
        document = json.loads(ended.out)
        assert (document["certificate"]["holds"], document["files"]) == (False, [])


def test_a_base_beyond_memory_gets_a_certificate_of_its_tensors(cli, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("lorascope.certify.claim.free_bytes", lambda device: 1000)
    ended = cli("merge", adapter, "--out", tmp_path / "merged", "--json")
    assert ended.code == 0, ended.err
    certificate = json.loads(ended.out)["certificate"]
    assert certificate["level"] == "tensors"
    assert "are free" in certificate["why_level"]
    assert certificate["comparisons"] == []
    assert len(certificate["modules"]) == 4


def test_a_task_gives_inputs_and_scores(cli, peft_adapter, data, tmp_path):
    adapter = peft_adapter("bert", modules_to_save=["classifier"])[0]
    rows = [{"text": f"the film is {word}", "label": label} for word, label in (("warm", "a"), ("slow", "b"), ("long", "c"))]
    (data / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = ["--task", "file", "--data", data, "--labels", "a,b,c", "--max-length", 32]
    ended = cli("merge", adapter, "--out", tmp_path / "merged", *given, "--json")
    assert ended.code == 0, ended.err
    certificate = json.loads(ended.out)["certificate"]
    assert certificate["inputs"]["from"] == "task file, validation"
    assert all("accuracy" in row["scores"] for row in certificate["comparisons"] if row["name"] == "merged, reloaded"
               and row["against"] == "adapter, float32")  # fmt: skip
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["a", "b", "c"]
    ended = cli("merge", adapter, "--out", tmp_path / "other", "--task", "file")
    assert ended.code == 2
    assert "give both --task and --data" in ended.err


def test_a_default_length_is_no_reason_to_refuse_a_merge(cli, peft_adapter, data, tmp_path):
    rows = [{"text": f"the film is {word}", "label": label} for word, label in (("warm", "a"), ("slow", "b"), ("long", "c"))]
    (data / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = ["--task", "file", "--data", data, "--labels", "a,b,c", "--json"]
    ended = cli("merge", peft_adapter("bert")[0], "--out", tmp_path / "merged", *given)
    assert ended.code == 0, ended.err
    warnings = json.loads(ended.out)["certificate"]["warnings"]
    assert "max_length is 130: the model has 130 positions (by default it would be 512)" in warnings


def test_a_dialogue_is_scored_with_the_speaker_and_the_decoding_that_are_asked_for(cli, adapter, tmp_path, monkeypatch):
    from lorascope.certify import certificate

    row = {"question": "where", "conversation": "Teacher: where|EOM|Student: the river|EOM|Teacher: too slow"}
    (tmp_path / "validation.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    seen, compare = {}, certificate.compare_outputs

    def compared(claim, inputs, settings):
        seen.update(device=claim.device, decoding=settings.decoding[0].label, tokens=settings.decoding[0].max_new_tokens)
        return compare(claim, inputs, settings)

    monkeypatch.setattr(certificate, "compare_outputs", compared)
    given = ["--task", "teacher_student", "--data", tmp_path / "validation.jsonl", "--max-length", 96, "--max-new-tokens", 3]
    given += ["--speaker", "student", "--decode", "top_k,top_k=2", "--device", "cpu"]
    ended = cli("merge", adapter, "--out", tmp_path / "merged", *given, "--json")
    assert ended.code == 0, ended.err
    assert (seen["device"], seen["tokens"]) == ("cpu", 3)
    assert seen["decoding"].startswith("top_k")
    assert json.loads(ended.out)["certificate"]["made_with"]["device"] == "cpu"
