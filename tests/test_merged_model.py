"""A merged directory: transformers loads it as it is, with its tokenizer, labels and settings."""

import json
import shutil

import pytest
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig, pipeline

from lorascope.errors import AdapterError, ModelError, UsageError
from lorascope.lora.peft_io import read_adapter, write_adapter, write_record
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.merged_model import merged_in_memory, open_merge_base, write_merged


@pytest.fixture
def merge(tmp_path):
    """``merge(adapter, base=None, **options)``: the directory and what was written."""

    def make(adapter, base=None, **options):
        out = tmp_path / "merged"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        saved = read_adapter(adapter)
        return out, write_merged(saved, adapter, open_merge_base(saved, str(adapter), base), out, **options)

    return make


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


@pytest.fixture
def copied(model_directory, tmp_path):
    """``copied(family)``: a copy of its directory that a test may change."""

    def make(family):
        return shutil.copytree(model_directory(family), tmp_path / f"{family}-copy")

    return make


def test_a_classifier_answers_through_a_pipeline_with_the_adapters_labels(peft_adapter, merge):
    adapter, _ = peft_adapter("bert")
    write_record(adapter, ["no", "maybe", "yes"])
    out, merged = merge(adapter)
    config = config_of(out)
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    answer = pipeline("text-classification", model=str(out), device="cpu")("a charming journey")[0]
    assert answer["label"] in ("no", "maybe", "yes")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(merged.files)


def test_a_head_without_names_has_as_many_labels_as_it_has_rows(peft_adapter, merge):
    adapter, _ = peft_adapter("roberta")
    out, _ = merge(adapter)
    assert config_of(out)["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert AutoModelForSequenceClassification.from_pretrained(out).classifier.out_proj.out_features == 3


def test_a_causal_classifier_can_pad(peft_adapter, merge):
    adapter, _ = peft_adapter("gpt2")
    out, merged = merge(adapter)
    tokenizer = AutoTokenizer.from_pretrained(out)
    batch = tokenizer(["the acting", "a warm bright film"], padding=True, return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model(**batch).logits.shape == (2, 3)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert any("the base has no pad token; the classifier pads with '<|endoftext|>'" in one for one in merged.warnings)


def test_generation_settings_chat_template_and_licence_come_along(peft_adapter, merge, copied):
    base = copied("llama")
    GenerationConfig(max_new_tokens=7, do_sample=False).save_pretrained(base)
    (base / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (base / "LICENSE").write_text("free")
    (base / "README.md").write_text("the base's own card")
    (base / "optimizer.pt").write_bytes(b"state")
    adapter, _ = peft_adapter("llama", "CAUSAL_LM", base=base)
    out, merged = merge(adapter)
    assert GenerationConfig.from_pretrained(out).max_new_tokens == 7
    assert AutoTokenizer.from_pretrained(out).apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert (out / "LICENSE").read_text() == "free"
    assert not {"README.md", "optimizer.pt"} & set(merged.files)
    answer = pipeline("text-generation", model=str(out), device="cpu")("the acting", max_new_tokens=3, max_length=None)
    assert answer[0]["generated_text"].startswith("the acting")


def test_a_tokenizer_that_was_saved_with_the_adapter_goes_first(peft_adapter, merge, model_directory):
    adapter, _ = peft_adapter("llama", "CAUSAL_LM")
    tokenizer = AutoTokenizer.from_pretrained(model_directory("llama"))
    tokenizer.chat_template = "ours"
    tokenizer.save_pretrained(adapter)
    out, merged = merge(adapter)
    assert AutoTokenizer.from_pretrained(out).chat_template == "ours"
    assert "the tokenizer is the one that was saved with the adapter" in merged.warnings
    tokenizer.add_tokens(["<extra>"] * 1 + [f"<extra {number}>" for number in range(200)])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(AdapterError, match=r"\d+ tokens, 160 embeddings; give the base with its vocabulary grown likewise"):
        merge(adapter)
    assert not list(out.glob("model*"))  # it is known before a weight is written


def test_a_base_whose_own_tokenizer_has_more_tokens_than_embeddings_is_refused_as_everywhere(peft_adapter, merge, copied):
    base = copied("llama")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<extra {number}>" for number in range(200)])
    tokenizer.save_pretrained(base)
    adapter, _ = peft_adapter("llama", "CAUSAL_LM", base=base)
    with pytest.raises(ModelError, match=r"the model 160 embeddings; use the tokenizer that belongs to the model"):
        merge(adapter)


@pytest.mark.parametrize("name", ["source.spm", "sentencepiece.bpe.model", "qwen.tiktoken", "vocab-src.json"])
def test_a_vocabulary_of_any_kind_comes_along(name, peft_adapter, merge, copied):
    adapter, _ = peft_adapter("llama", "CAUSAL_LM")
    base = copied("llama")
    (base / name).write_bytes(b"words")
    out, _ = merge(adapter, str(base))
    assert (out / name).read_bytes() == b"words"


def test_a_base_without_a_tokenizer_merges_and_says_so(peft_adapter, merge, copied):
    base = copied("llama")
    for path in base.glob("*token*"):
        path.unlink()
    adapter, _ = peft_adapter("llama", "CAUSAL_LM", base=base)
    _, merged = merge(adapter)
    assert "the base has no tokenizer; none is written" in merged.warnings


def narrow(base, names=("",), dtype=torch.bfloat16):
    """Write the base's tensors whose names begin so in another dtype."""
    path = base / "model.safetensors"
    tensors = load_file(path)
    save_file({name: value.to(dtype) if name.startswith(names) else value for name, value in tensors.items()}, path)


@pytest.mark.parametrize(("files", "named"), [("float32", "float16"), ("bfloat16", "float32"), ("mixed", "float32")])
def test_the_configuration_names_the_dtype_of_most_of_the_numbers_and_memory_holds_the_same(
    files, named, peft_adapter, merge, copied
):
    base = copied("llama")
    if files != "float32":
        narrow(base, ("",) if files == "bfloat16" else ("model.layers.0", "model.embed", "lm_head"))
    config = config_of(base)
    (base / "config.json").write_text(json.dumps(config | {"dtype": named}))
    adapter, _ = peft_adapter("llama", "CAUSAL_LM", base=base)
    out, merged = merge(adapter)
    main = "float32" if files == "float32" else "bfloat16"
    assert config_of(out)["dtype"] == main
    made = merged_in_memory(read_adapter(adapter), merged.base)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == made.dtype == getattr(torch, main)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in made.state_dict().items())


def test_a_causal_classifier_pads_as_its_tokenizer_does(peft_adapter, merge, copied):
    base = copied("llama")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = "<unk>"
    tokenizer.save_pretrained(base)
    (base / "config.json").write_text(json.dumps(config_of(base) | {"pad_token_id": 7}))
    adapter, _ = peft_adapter("llama", base=base)
    out, merged = merge(adapter)
    assert config_of(out)["pad_token_id"] == tokenizer.pad_token_id != 7
    assert any("pads with 7 by config.json, its tokenizer otherwise" in one for one in merged.warnings)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_dtype_stands_in_the_configuration(key, peft_adapter, merge, copied):
    base = copied("llama")
    config = config_of(base)
    config[key] = config.pop("dtype")
    (base / "config.json").write_text(json.dumps(config))
    adapter, _ = peft_adapter("llama", "CAUSAL_LM", base=base)
    out, _ = merge(adapter, dtype="bfloat16")
    assert config_of(out)[key] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_a_checkpoint_of_torchs_own_merges_and_says_so(peft_adapter, merge, copied):
    base = copied("llama")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    adapter, _ = peft_adapter("llama", "CAUSAL_LM")
    out, merged = merge(adapter, str(base))
    assert any("no safetensors; its pytorch_model.bin is read through torch" in one for one in merged.warnings)
    ours = load_file(out / "model.safetensors")
    out, _ = merge(adapter)
    theirs = load_file(out / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_an_adapter_of_four_bits_says_what_it_was_merged_into(peft_adapter, merge):
    adapter, _ = peft_adapter("llama", "CAUSAL_LM")
    write_record(adapter, [], {"checksum": "", "dtype": "bfloat16", "quantization": "nf4"})
    _, merged = merge(adapter)
    assert any("trained on the base in NF4; it is merged into the base in full" in one for one in merged.warnings)


def test_a_base_that_is_quantised_on_disk_is_refused(peft_adapter, merge, copied):
    base = copied("llama")
    adapter, _ = peft_adapter("llama", "CAUSAL_LM", base=base)
    config = config_of(base) | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantised already"):
        merge(adapter)


def test_an_adapter_that_names_no_base_needs_one(peft_adapter, merge, model_directory):
    adapter, _ = peft_adapter("llama", "CAUSAL_LM")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(UsageError, match="names no base model; give it with --base"):
        merge(adapter)
    _, merged = merge(adapter, str(model_directory("llama")))
    assert merged.base.name == str(model_directory("llama"))


def test_an_adapter_of_another_base_does_not_fit(peft_adapter, merge, model_directory):
    adapter, _ = peft_adapter("llama", "CAUSAL_LM")
    with pytest.raises(AdapterError, match="the base model has no linear layer"):
        merge(adapter, str(model_directory("gpt2")))


def test_an_adapter_without_the_head_that_the_base_lacks_is_refused(peft_adapter, merge):
    adapter, _ = peft_adapter("bert")
    path = adapter / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "classifier" not in name}, path)
    with pytest.raises(AdapterError, match=r"holds no 'classifier\.weight', which the base's checkpoint does not have either"):
        merge(adapter)


def test_an_adapter_without_a_task_type_is_of_the_bases_own_class(peft_adapter, merge):
    adapter, _ = peft_adapter("llama", "CAUSAL_LM")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": None}))
    out, merged = merge(adapter)
    assert config_of(out)["architectures"] == ["LlamaForCausalLM"]
    assert merged.base.task_type == "CAUSAL_LM"


def test_an_adapter_of_a_kind_that_is_not_trained_here_merges_with_its_labels(peft_adapter, merge):
    adapter, _ = peft_adapter("bert")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": "TOKEN_CLS"}))
    out, merged = merge(adapter)
    assert config_of(out)["architectures"] == ["BertForTokenClassification"]
    assert len(config_of(out)["id2label"]) == 3
    assert merged.base.task_type is None


def test_a_hub_id_is_found_in_the_cache(peft_adapter, merge, model_directory, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub"
    snapshot = cache / "models--someone--tiny" / "snapshots" / commit
    shutil.copytree(model_directory("llama"), snapshot)
    (cache / "models--someone--tiny" / "refs").mkdir()
    (cache / "models--someone--tiny" / "refs" / "main").write_text(commit)
    assert HF_HUB_CACHE
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    adapter, _ = peft_adapter("llama", "CAUSAL_LM")
    _, merged = merge(adapter, "someone/tiny")
    assert (merged.base.commit, merged.base.revision) == (commit, None)
    path = adapter / "adapter_config.json"
    named = {"base_model_name_or_path": "someone/tiny", "revision": commit}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    _, merged = merge(adapter, "someone/tiny")
    assert (merged.base.commit, merged.base.revision) == (commit, commit)
    with pytest.raises(ModelError, match=r"someone/other: cannot load|someone/other: cannot get"):
        merge(adapter, "someone/other")


@pytest.mark.parametrize(("family", "task_type"), [("gpt2", "SEQ_CLS"), ("bert", "SEQ_CLS"), ("llama", "CAUSAL_LM")])
@pytest.mark.parametrize("dtype", ["as-base", "bfloat16"])
def test_what_is_merged_in_memory_is_what_comes_back_from_the_disk(family, task_type, dtype, peft_adapter, merge):
    adapter, _ = peft_adapter(family, task_type)
    out, merged = merge(adapter, dtype=dtype)
    made = merged_in_memory(read_adapter(adapter), merged.base, dtype)
    loaded = type(made).from_pretrained(out).state_dict()
    assert made.state_dict().keys() == loaded.keys()
    assert all(torch.equal(value, loaded[name]) for name, value in made.state_dict().items())
    frequencies = {name: value for name, value in made.named_buffers() if name.endswith("inv_freq")}
    assert {value.dtype for value in frequencies.values()} == ({torch.float32} if family == "llama" else set())


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_slices_of_a_fused_projection_merge_into_what_the_stack_computed(family, model_directory, merge, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_directory(family)).eval()
    ids = torch.tensor([[5, 9, 33, 71, 12, 4]])
    placements = tuple(Placement(target, 3, 2.0) for target in resolve(model, ["query", "value", "down"], ()))
    slot = Slot("slices", 1, placements)
    stack = Stack(model, [slot])
    weights = stack.read(0)
    generator = torch.Generator().manual_seed(1)
    for lora_B in weights.lora_B.values():
        lora_B += 0.1 * torch.randn(lora_B.shape, generator=generator)
    stack.write(0, weights)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    (tmp_path / "slices").mkdir()
    base = str(model_directory(family))
    write_adapter(tmp_path / "slices", weights, slot, model, heads=(), base_model=base, task_type="CAUSAL_LM")
    stack.detach()
    out, _ = merge(tmp_path / "slices")
    with torch.no_grad():
        found, untouched = (AutoModelForCausalLM.from_pretrained(path)(input_ids=ids).logits for path in (out, base))
    assert (found - expected).norm() < 1e-5 * expected.norm() < 0.1 * (untouched - expected).norm()
