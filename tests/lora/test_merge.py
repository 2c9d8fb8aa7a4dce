"""Merging from file to file: what is on the disk is W + Δ, and what is wrong with it is in the record."""

import copy
import dataclasses
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lorascope.errors import CheckFailed, ModelError, StoreError
from lorascope.lora import stored_tensors
from lorascope.lora.merge import merge_files, merged_copy
from lorascope.lora.merge_plan import module_updates
from lorascope.lora.peft_io import read_adapter
from lorascope.lora.quantised import NF4Linear


@pytest.fixture
def merge(peft_adapter, model_directory, tmp_path):
    """``merge(family, task_type, **options)``: an adapter merged into a base's files; plan, directory, adapter."""

    def make(family="gpt2", task_type="CAUSAL_LM", change=lambda saved: saved, base=None, config=None, **options):
        adapter, _ = peft_adapter(family, task_type, **(config or {}))
        saved = change(read_adapter(adapter))
        directory = tmp_path / "merged"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        base = base or model_directory(family)
        plan = merge_files(saved, base, skeleton(family, task_type, model_directory), directory, **options)
        return plan, directory, saved

    return make


def skeleton(family, task_type, model_directory):
    auto = AutoModelForSequenceClassification if task_type == "SEQ_CLS" else AutoModelForCausalLM
    config = auto.from_pretrained(model_directory(family)).config
    if task_type == "SEQ_CLS":
        config.num_labels = 3
    with torch.device("meta"):
        return auto.from_config(config)


def whole(directory):
    return {name: value for path in directory.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_a_merged_tensor_is_the_base_and_its_update_rounded_once(chunk, merge, model_directory, monkeypatch):
    monkeypatch.setattr(stored_tensors, "CHUNK_NUMBERS", chunk)
    plan, directory, saved = merge("gpt2")
    before, after = whole(model_directory("gpt2")), whole(directory)
    assert before.keys() == after.keys()
    changes = module_updates(saved, skeleton("gpt2", "CAUSAL_LM", model_directory))
    assert len(changes) == 4
    for one in plan.tensors:
        update = changes.get(one.name.removesuffix(".weight"))
        exact = before[one.written].double() + (0 if update is None else update.full(torch.float64))
        torch.testing.assert_close(after[one.written].double(), exact, rtol=1e-7, atol=1e-9)
        if update is None:
            assert torch.equal(after[one.written], before[one.written])


def test_the_base_on_disk_keeps_every_byte(merge, model_directory):
    before = {path.name: path.read_bytes() for path in model_directory("gpt2").iterdir()}
    merge("gpt2")
    assert {path.name: path.read_bytes() for path in model_directory("gpt2").iterdir()} == before


def test_small_shards_hold_the_same_model(merge):
    _, directory, _ = merge("llama")
    one = whole(directory)
    _, directory, _ = merge("llama", max_shard_bytes=4000)
    assert (directory / "model.safetensors.index.json").is_file()
    assert len(list(directory.glob("*.safetensors"))) > 3
    many = whole(directory)
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_base_in_shards_merges_into_the_same_model(merge, model_directory, tmp_path):
    _, directory, _ = merge("llama")
    one = whole(directory)
    AutoModelForCausalLM.from_pretrained(model_directory("llama")).save_pretrained(tmp_path / "cut", max_shard_size="5KB")
    _, directory, _ = merge("llama", base=tmp_path / "cut")
    assert [path.name for path in directory.iterdir()] == ["model.safetensors"]
    found = whole(directory)
    assert one.keys() == found.keys()
    assert all(torch.equal(one[name], found[name]) for name in one)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_dtype_holds_for_every_number_which_is_rounded_once(dtype, merge, model_directory):
    plan, directory, _ = merge("llama", dtype=dtype)
    before, after = whole(model_directory("llama")), whole(directory)
    for one in plan.tensors:
        exact = before[one.written].double() + (0 if one.update is None else one.update.full(torch.float64))
        assert torch.equal(after[one.written], exact.to(getattr(torch, dtype)))
    assert plan.num_bytes == sum(value.nbytes for value in after.values())


def test_as_base_keeps_each_tensors_dtype(merge, model_directory, tmp_path):
    base = tmp_path / "mixed"
    base.mkdir()
    tensors = whole(model_directory("llama"))
    mixed = {name: value.to(torch.float32 if "norm" in name else torch.bfloat16) for name, value in tensors.items()}
    save_file(mixed, base / "model.safetensors")
    _, directory, _ = merge("llama", base=base)
    assert {name: value.dtype for name, value in whole(directory).items()} == {name: v.dtype for name, v in mixed.items()}


def scaled_to(value):
    def change(saved):
        weights = copy.deepcopy(saved.weights)
        for lora_B in weights.lora_B.values():
            lora_B *= value
        return dataclasses.replace(saved, weights=weights)

    return change


def test_a_number_that_float16_cannot_hold_is_named(merge):
    with pytest.raises(CheckFailed, match=r"merged numbers overflow float16; merge with --dtype bfloat16") as raised:
        merge("llama", change=scaled_to(1e6), dtype="float16")
    assert raised.value.where.endswith(".weight")
    assert merge("llama", change=scaled_to(1e6), dtype="bfloat16")[0].tensors


def test_a_base_that_holds_nan_is_refused(merge, model_directory, tmp_path):
    base = tmp_path / "nan"
    base.mkdir()
    tensors = whole(model_directory("llama"))
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(CheckFailed, match=r"model\.norm\.weight: the base holds NaN"):
        merge("llama", base=base)


def test_a_disk_without_room_is_said_before_anything_is_written(merge, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10 * 2**10))
    with pytest.raises(StoreError, match=r"takes [\d.]+ KiB, and 10\.0 KiB are free"):
        merge("llama")


def test_a_head_of_other_labels_replaces_the_bases(merge, model_directory, tmp_path):
    base = tmp_path / "classifier"
    AutoModelForSequenceClassification.from_pretrained(model_directory("bert"), num_labels=5).save_pretrained(base)
    plan, directory, saved = merge("bert", "SEQ_CLS", base=base)
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(whole(directory)[name], saved.weights.heads[name])
    assert not plan.untied


def test_a_copy_is_refused_where_the_base_is_packed_in_four_bits(peft_adapter, model_directory):
    adapter, _ = peft_adapter("llama", "CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(model_directory("llama"))
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    model.set_submodule("model.layers.0.self_attn.q_proj", NF4Linear.pack(layer))
    with pytest.raises(ModelError, match="a layer in 4 bits cannot take an update; load it without quantization"):
        merged_copy(model, read_adapter(adapter))


def test_a_copy_in_another_dtype_is_rounded_once_and_overflow_is_named(peft_adapter, model_directory):
    adapter, _ = peft_adapter("llama", "CAUSAL_LM")
    saved = read_adapter(adapter)
    model = AutoModelForCausalLM.from_pretrained(model_directory("llama"))
    copied = merged_copy(model, saved, torch.bfloat16)
    exact = merged_copy(model.double(), saved).to(torch.bfloat16)
    assert all(torch.equal(value, exact.state_dict()[name]) for name, value in copied.state_dict().items())
    with pytest.raises(CheckFailed, match="overflow float16"):
        merged_copy(model, scaled_to(1e6)(saved), torch.float16)


_MEASURE = """
    import resource, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM, LlamaConfig
    from lorascope.lora.merge import merge_files
    from lorascope.lora.peft_io import read_adapter
    base, adapter, out = map(Path, sys.argv[1:])
    saved = read_adapter(adapter)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(base))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    room = used + int(sys.stdin.read())
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    plan = merge_files(saved, base, model, out, max_shard_bytes=50_000_000)
    print(plan.num_bytes, sum(one.update is not None for one in plan.tensors))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_base_larger_than_the_memory_that_is_left_merges(tmp_path, peft_adapter):
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=160, hidden_size=512, intermediate_size=8192, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=False, dtype="float32",
    )  # fmt: skip
    base = tmp_path / "base"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config).save_pretrained(base)
    adapter, _ = peft_adapter("llama", "CAUSAL_LM", base=base)
    (tmp_path / "merged").mkdir()
    room = 150_000_000
    assert size_of(base) > 1.5 * room
    arguments = [sys.executable, "-c", textwrap.dedent(_MEASURE), base, adapter, tmp_path / "merged"]
    ended = subprocess.run(arguments, input=str(room), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert [int(number) for number in ended.stdout.split()] == [size_of(base), 10]
    assert size_of(tmp_path / "merged") == size_of(base)
    name = "model.layers.3.self_attn.q_proj"
    update = module_updates(read_adapter(adapter), AutoModelForCausalLM.from_pretrained(base))[name].full(torch.float64)
    before, after = (whole(directory)[f"{name}.weight"].double() for directory in (base, tmp_path / "merged"))
    torch.testing.assert_close(after, before + update, rtol=1e-6, atol=1e-8)


def size_of(directory):
    return sum(value.nbytes for value in whole(directory).values())
