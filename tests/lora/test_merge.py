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
from lorascope.lora import checkpoint_files
from lorascope.lora.merge import merge_files, merged_copy, verify_files
from lorascope.lora.merge_plan import module_updates
from lorascope.lora.peft_io import read_adapter
from lorascope.lora.quantised import NF4Linear


@pytest.fixture
def merge(peft_adapter, model_directory, tmp_path):
    """``merge(family, task_type, **options)``: an adapter merged into a base's files; plan, record, directory, adapter."""

    def make(family="gpt2", task_type="CAUSAL_LM", change=lambda saved: saved, base=None, config=None, **options):
        adapter, _ = peft_adapter(family, task_type, **(config or {}))
        saved = change(read_adapter(adapter))
        directory = tmp_path / "merged"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        base = base or model_directory(family)
        plan, record = merge_files(saved, base, skeleton(family, task_type, model_directory), directory, **options)
        return plan, record, directory, saved

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
    monkeypatch.setattr(checkpoint_files, "CHUNK_NUMBERS", chunk)
    plan, record, directory, saved = merge("gpt2")
    before, after = whole(model_directory("gpt2")), whole(directory)
    assert before.keys() == after.keys()
    changes = module_updates(saved, skeleton("gpt2", "CAUSAL_LM", model_directory))
    assert changes.keys() == record.modules.keys()
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
    _, _, directory, _ = merge("llama")
    one = whole(directory)
    _, record, directory, _ = merge("llama", max_shard_bytes=4000)
    assert len(record.files) > 3
    assert record.files[-1] == "model.safetensors.index.json"
    many = whole(directory)
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.05), ("float16", 0.01), ("float32", 1e-5)])
def test_a_dtype_holds_for_every_number_and_its_rounding_is_recorded(dtype, most, merge):
    _, record, directory, _ = merge("llama", dtype=dtype)
    assert {value.dtype for value in whole(directory).values()} == {getattr(torch, dtype)}
    errors = [one.error for one in record.modules.values()]
    assert 0 < max(errors) < most
    assert {one.kind for one in record.tensors} == ({"merged", "kept"} if dtype == "float32" else {"merged", "cast"})


def test_as_base_keeps_each_tensors_dtype(merge, model_directory, tmp_path):
    base = tmp_path / "mixed"
    base.mkdir()
    tensors = whole(model_directory("llama"))
    mixed = {name: value.to(torch.float32 if "norm" in name else torch.bfloat16) for name, value in tensors.items()}
    save_file(mixed, base / "model.safetensors")
    _, record, directory, _ = merge("llama", base=base)
    assert {name: value.dtype for name, value in whole(directory).items()} == {name: v.dtype for name, v in mixed.items()}
    assert {one.base_dtype for one in record.tensors} == {"float32", "bfloat16"}


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
    assert merge("llama", change=scaled_to(1e6), dtype="bfloat16")[1].modules


def test_a_base_that_holds_nan_is_refused(merge, model_directory, tmp_path):
    base = tmp_path / "nan"
    base.mkdir()
    tensors = whole(model_directory("llama"))
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.norm\.weight: the base holds NaN"):
        merge("llama", base=base)


def test_a_disk_without_room_is_said_before_anything_is_written(merge, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(StoreError, match=r"takes .* GB, and 1e-08 GB are free"):
        merge("llama")


def faulty(directory, fault):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    fault(tensors)
    save_file(tensors, path)


def test_a_merge_that_did_nothing_has_an_error_of_one(merge, model_directory):
    plan, _, directory, _ = merge("llama")
    shutil.copy(model_directory("llama") / "model.safetensors", directory)
    record = verify_files(plan, directory)
    assert [one.error for one in record.modules.values()] == pytest.approx([1.0] * len(record.modules))
    assert all(one.error == 0 for one in record.tensors if one.kind == "kept")


def test_a_transposed_update_and_a_doubled_one_are_seen(merge):
    plan, record, directory, _ = merge("llama")
    name = "model.layers.0.self_attn.q_proj"
    doubled = next(one.update for one in plan.tensors if one.update is not None and one.update.module == name)
    faulty(directory, lambda tensors: tensors[f"{name}.weight"].add_(doubled.full()))
    found = verify_files(plan, directory).modules
    assert found[name].error == pytest.approx(1.0, rel=1e-4)
    assert all(found[other] == record.modules[other] for other in found if other != name)
    faulty(directory, lambda tensors: tensors.update({f"{name}.weight": tensors[f"{name}.weight"].T.contiguous()}))
    assert verify_files(plan, directory).modules[name].error > 0.9


def test_missing_and_unexpected_tensors_and_other_shapes_are_recorded(merge):
    plan, _, directory, _ = merge("llama")

    def fault(tensors):
        del tensors["model.norm.weight"]
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:5].clone()
        tensors["extra"] = torch.ones(2)

    faulty(directory, fault)
    record = verify_files(plan, directory)
    assert set(record.missing) == {"model.norm.weight", "lm_head.weight"}
    assert record.unexpected == ("extra",)


def test_nan_on_the_disk_is_not_finite_and_has_no_error(merge):
    plan, _, directory, _ = merge("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    faulty(directory, lambda tensors: tensors[name][0].fill_(float("nan")))
    record = {one.name: one for one in verify_files(plan, directory).tensors}
    assert not record[name].finite
    assert record[name].error is None


def test_the_record_knows_the_bytes_of_base_and_output(merge, model_directory, tmp_path):
    _, record, _, _ = merge("llama")
    _, again, _, _ = merge("llama")
    assert again.base_sha256 == record.base_sha256
    kept = [one for one in record.tensors if one.kind == "kept"]
    assert all(one.base_sha256 == one.sha256 for one in kept)
    assert all(one.base_sha256 != one.sha256 for one in record.modules.values())
    other = tmp_path / "other"
    other.mkdir()
    tensors = whole(model_directory("llama"))
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, other / "model.safetensors")
    assert merge("llama", base=other)[1].base_sha256 != record.base_sha256


def test_an_update_of_zero_is_judged_by_its_base(merge):
    _, record, _, _ = merge("llama", change=scaled_to(0))
    assert {one.update_norm for one in record.modules.values()} == {0.0}
    assert {one.error for one in record.modules.values()} == {0.0}


def test_a_head_of_other_labels_replaces_the_bases(merge, model_directory, tmp_path):
    base = tmp_path / "classifier"
    AutoModelForSequenceClassification.from_pretrained(model_directory("bert"), num_labels=5).save_pretrained(base)
    plan, record, directory, saved = merge("bert", "SEQ_CLS", base=base)
    assert torch.equal(whole(directory)["classifier.weight"], saved.weights.heads["classifier.weight"])
    replaced = {one.name: one for one in record.tensors if one.kind == "replaced"}
    assert replaced.keys() == {"classifier.weight", "classifier.bias"}
    assert all(one.error == 0 and one.base_sha256 not in (None, one.sha256) for one in replaced.values())
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
    _, record = merge_files(saved, base, model, out, max_shard_bytes=50_000_000)
    print(record.num_bytes, len(record.modules), max(one.error for one in record.modules.values()))
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
    size = (base / "model.safetensors").stat().st_size
    adapter, _ = peft_adapter("llama", "CAUSAL_LM", base=base)
    (tmp_path / "merged").mkdir()
    room = 150_000_000
    assert size > 1.5 * room
    arguments = [sys.executable, "-c", textwrap.dedent(_MEASURE), base, adapter, tmp_path / "merged"]
    ended = subprocess.run(arguments, input=str(room), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    num_bytes, modules, error = ended.stdout.split()
    assert int(num_bytes) > 1.5 * room
    assert int(modules) == 10
    assert float(error) < 1e-5
