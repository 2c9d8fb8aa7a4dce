"""Loading a base: what is new is trained, what is broken is named, and nothing moves unseen."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
)

from lorascope.base_model import (
    check_writes,
    head_modules,
    load_base,
    load_tokenizer,
    read_config,
    skeleton,
    weights_checksum,
)
from lorascope.config import BaseModelConfig
from lorascope.data.packing import collate
from lorascope.data.task import Example
from lorascope.errors import ModelError
from lorascope.lora.quantised import NF4Linear
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.losses import padded_losses

FAMILIES = ("gpt2", "bert", "distilbert", "roberta", "llama", "qwen2")
LABELS = ["bad", "so-so", "good"]
SMALL = {
    "vocab_size": 160, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SCALED = {
    "granite": GraniteConfig(**SMALL, logits_scaling=4.0),
    "cohere": CohereConfig(**SMALL, logit_scale=0.25),
    "gemma2": Gemma2Config(**SMALL, head_dim=4, final_logit_softcapping=2.0),
}


def load(directory, task_type="SEQ_CLS", dtype="float32"):
    return load_base(BaseModelConfig(model=str(directory), dtype=dtype), task_type, LABELS if task_type == "SEQ_CLS" else ())


def test_a_base_knows_what_it_was_loaded_from(model_directory):
    config = BaseModelConfig(model=str(model_directory("gpt2")))
    assert load_base(config, "CAUSAL_LM").source == config


@pytest.fixture
def copy_of(model_directory, tmp_path):
    """``copy_of(family)``: a copy of the model's directory, to be damaged."""

    def copy(family):
        return shutil.copytree(model_directory(family), tmp_path / family)

    return copy


def refusal(action):
    with pytest.raises(ModelError) as caught:
        action()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def change_weights(directory, change):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_newly_initialised_parameter_lies_in_a_head_that_is_trained(family, model_directory):
    base = load(model_directory(family))
    checkpoint = load_file(model_directory(family) / "model.safetensors")
    prefix = f"{base.model.base_model_prefix}."
    absent = {n for n, _ in base.model.named_parameters() if n not in checkpoint and n.removeprefix(prefix) not in checkpoint}
    assert set(base.new_parameters) == absent
    assert base.new_parameters
    assert all(any(name.startswith(f"{head}.") for head in base.heads) for name in base.new_parameters)
    assert base.heads == head_modules(base.model, "SEQ_CLS")
    assert base.warnings == []
    assert base.model.config.id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_head_is_drawn_from_the_seed_and_never_from_the_global_generator(family, model_directory):
    torch.manual_seed(1)
    first = load(model_directory(family))
    torch.manual_seed(2)
    second = load(model_directory(family))
    state = torch.get_rng_state()
    layers = {name.rpartition(".")[0] for name in first.new_parameters}
    assert layers
    for head in layers:
        one, other = first.initial_head(head, 42), first.initial_head(head, 43)
        assert {f"{head}.{name}" for name in one} == {name for name in first.new_parameters if name.startswith(f"{head}.")}
        assert not torch.equal(one["weight"], other["weight"])
        again, elsewhere = first.initial_head(head, 42), second.initial_head(head, 42)
        for name, value in one.items():
            assert torch.equal(value, again[name])
            assert torch.equal(value, elsewhere[name])
        # As transformers starts a head: small weights of the model's own width, biases at zero.
        assert one["weight"].std() == pytest.approx(first.model.config.initializer_range, rel=0.5)
        assert "bias" not in one or not one["bias"].any()
    assert torch.equal(torch.get_rng_state(), state)


def test_two_heads_of_one_seed_are_drawn_apart(model_directory):
    base = load(model_directory("roberta"))
    dense, out = base.initial_head("classifier.dense", 1), base.initial_head("classifier.out_proj", 1)
    assert dense["weight"].shape == (16, 16)
    assert not torch.equal(dense["weight"][:3], out["weight"])


def test_a_head_that_the_checkpoint_holds_is_where_training_starts(model_directory, tmp_path):
    source = AutoModelForSequenceClassification.from_pretrained(model_directory("bert"), num_labels=3)
    source.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_directory("bert")).save_pretrained(tmp_path)
    base = load(tmp_path)
    assert base.new_parameters == ()
    assert base.heads == ("classifier",)
    for seed in (1, 2):
        assert torch.equal(base.initial_head("classifier", seed)["weight"], source.classifier.weight)


def test_a_head_for_another_number_of_labels_starts_anew_and_says_so(model_directory, tmp_path):
    source = AutoModelForSequenceClassification.from_pretrained(model_directory("bert"), num_labels=5)
    source.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_directory("bert")).save_pretrained(tmp_path)
    base = load(tmp_path)
    assert set(base.new_parameters) == {"classifier.weight", "classifier.bias"}
    assert any("classifier.weight has another shape" in warning for warning in base.warnings)
    assert base.initial_head("classifier", 1)["weight"].shape == (3, 16)


def test_a_pooler_that_the_checkpoint_lacks_is_trained_and_a_warning_says_so(copy_of):
    directory = copy_of("bert")
    change_weights(directory, lambda tensors: [tensors.pop(name) for name in list(tensors) if "pooler" in name])
    base = load(directory)
    assert base.heads == ("classifier", "bert.pooler.dense")
    assert {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} <= set(base.new_parameters)
    assert [warning for warning in base.warnings if "bert.pooler.dense is not in the checkpoint" in warning]
    stack = Stack(base.model, [Slot("a", 1, ()), Slot("b", 2, ())], base.heads, base.initial_head)
    poolers = [stack.read(index).heads["bert.pooler.dense.weight"] for index in (0, 1)]
    stack.detach()
    assert not torch.equal(*poolers)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_classifier_without_a_pad_token_reads_a_padded_row_as_it_reads_it_alone(family, model_directory):
    directory = model_directory(family)
    assert AutoTokenizer.from_pretrained(directory).pad_token is None
    assert read_config(BaseModelConfig(model=str(directory))).pad_token_id is None
    base = load(directory, dtype="float64")
    assert base.tokenizer.pad_token_id == base.pad_id == base.tokenizer.eos_token_id
    examples = [Example("long", [5, 9, 33, 71, 12, 4], None, 0, 0), Example("short", [8, 90, 14], None, 1, 0)]

    def losses(rows):
        with torch.no_grad():
            return padded_losses(base, collate(examples, rows, base.pad_id))

    torch.testing.assert_close(losses([0, 1]), torch.cat([losses([0]), losses([1])]), rtol=0, atol=1e-10)
    assert losses([0]) != losses([1])


def test_loading_twice_gives_one_checksum_and_another_weight_another(copy_of):
    directory = copy_of("bert")
    first = load(directory)
    assert load(directory).checksum == first.checksum == weights_checksum(first.model, first.heads)

    def change(tensors):
        tensors["encoder.layer.1.output.dense.bias"][3] += 1e-6

    change_weights(directory, change)
    assert load(directory).checksum != first.checksum


def test_a_loaded_base_is_frozen_and_evaluates(model_directory):
    base = load(model_directory("gpt2"), "CAUSAL_LM", dtype="bfloat16")
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.bfloat16}
    assert (base.heads, base.new_parameters, base.warnings, base.plain_head) == ((), (), [], True)
    assert base.device == torch.device("cpu")


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "text"])
def test_damaged_weights_are_named(damage, copy_of):
    directory = copy_of("gpt2")
    path = directory / "model.safetensors"
    content = path.read_bytes()
    damaged = {"truncated": content[:-100], "header": content[:20], "empty": b"", "text": b"no weights at all\n" * 9}
    path.write_bytes(damaged[damage])
    message = refusal(lambda: load(directory))
    assert message.startswith(f"{directory}: cannot load the weights (")


def test_missing_weights_are_named(copy_of):
    directory = copy_of("gpt2")
    (directory / "model.safetensors").unlink()
    assert "cannot load the weights" in refusal(lambda: load(directory))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(number, copy_of):
    directory = copy_of("gpt2")

    def change(tensors):
        next(value for name, value in tensors.items() if name.endswith("h.1.mlp.c_fc.weight"))[2, 3] = number

    change_weights(directory, change)
    message = refusal(lambda: load(directory, "CAUSAL_LM"))
    assert "'transformer.h.1.mlp.c_fc.weight' holds NaN or infinite numbers" in message


def test_a_checkpoint_of_another_shape_or_model_is_refused(copy_of, model_directory):
    directory = copy_of("bert")

    def change(tensors):
        name = "encoder.layer.0.output.dense.weight"
        tensors[name] = torch.zeros(16, 7)

    change_weights(directory, change)
    assert "encoder.layer.0.output.dense.weight' in the checkpoint has another shape" in refusal(lambda: load(directory))
    shutil.copy(model_directory("gpt2") / "model.safetensors", directory / "model.safetensors")
    assert "the checkpoint lacks" in refusal(lambda: load(directory))


def test_a_missing_or_damaged_configuration_is_named(copy_of):
    directory = copy_of("gpt2")
    (directory / "config.json").write_text("{")
    assert "cannot load the configuration" in refusal(lambda: load(directory))
    (directory / "config.json").write_text('{"model_type": "no-such-model"}')
    assert "cannot load the configuration" in refusal(lambda: load(directory))
    (directory / "config.json").unlink()
    assert "the directory has no config.json" in refusal(lambda: load(directory))


def test_a_missing_or_damaged_tokenizer_is_named(copy_of):
    directory = copy_of("gpt2")
    (directory / "tokenizer.json").write_text('{"version": "1.0"')
    assert "tokenizer" in refusal(lambda: load(directory))
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    assert "tokenizer" in refusal(lambda: load_tokenizer(BaseModelConfig(model=str(directory))))


def test_a_classifier_needs_a_token_to_pad_with_and_a_causal_model_does_not(copy_of):
    directory = copy_of("gpt2")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / name).is_file():
            settings = json.loads((directory / name).read_text())
            (directory / name).write_text(json.dumps({key: value for key, value in settings.items() if key != "eos_token"}))
    message = refusal(lambda: load(directory))
    assert "the tokenizer has neither a pad nor an end token; give it a pad_token" in message
    assert load(directory, "CAUSAL_LM").pad_id == 0


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(copy_of):
    directory = copy_of("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([f"word{index}" for index in range(200)])
    tokenizer.save_pretrained(directory)
    assert f"the tokenizer has id {len(tokenizer) - 1}, the model 160 embeddings" in refusal(lambda: load(directory))


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "/no/such/directory", "~/no/such/model", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(name):
    assert refusal(lambda: read_config(BaseModelConfig(model=name))).startswith(f"{name}: no such model directory")


def test_a_hub_id_that_cannot_be_reached_is_named():
    message = refusal(lambda: read_config(BaseModelConfig(model="no-such-user-of-lorascope/nothing")))
    assert "no-such-user-of-lorascope/nothing: cannot load the configuration" in message


def test_a_model_without_the_tasks_form_is_refused(model_directory):
    config = read_config(BaseModelConfig(model=str(model_directory("distilbert"))))
    assert "a distilbert model has no CAUSAL_LM form" in refusal(lambda: skeleton(config, "CAUSAL_LM"))


@pytest.mark.parametrize("family", SCALED)
def test_a_model_that_scales_its_logits_is_seen_and_its_loss_is_that_of_the_full_logits(family, model_directory, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        source = AutoModelForCausalLM.from_config(SCALED[family])
        for parameter in source.parameters():
            parameter.data = parameter.data * 5.0 if parameter.dim() == 2 else parameter.data
    source.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_directory("llama")).save_pretrained(tmp_path)
    base = load(tmp_path, "CAUSAL_LM", dtype="float64")
    assert not base.plain_head
    assert any("scales its logits" in warning for warning in base.warnings)

    placements = tuple(Placement(target, 2, 1.0) for target in resolve(base.model, ["q_proj"], ()))
    examples = [
        Example("a", [5, 9, 33, 71], [False, False, True, True], None, 2),
        Example("b", [8, 9], [False, True], None, 1),
    ]
    batch = collate(examples, [0, 1], base.pad_id)
    stack = Stack(base.model, [Slot("s", 1, placements)])
    with torch.no_grad():
        ours = padded_losses(base, batch)
        stack.detach()
        logits = base.model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[:, :-1]
        base.plain_head = True
        plain = padded_losses(base, batch)
    labels = batch.input_ids_BT.masked_fill(~batch.is_target_BT, -100)[:, 1:]
    theirs = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(dim=1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert not torch.allclose(plain, theirs, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_base_has_the_heads_and_the_new_parameters_of_the_one_in_full(family, dtype, model_directory):
    plain = load(model_directory(family), dtype=dtype)
    config = BaseModelConfig(model=str(model_directory(family)), dtype=dtype, quantization="nf4")
    packed, again = (load_base(config, "SEQ_CLS", LABELS) for _ in range(2))
    assert (packed.heads, packed.new_parameters, packed.warnings) == (plain.heads, plain.new_parameters, plain.warnings)
    assert packed.checksum == again.checksum == weights_checksum(packed.model, packed.heads) != plain.checksum
    assert (packed.unpacked_checksum, plain.unpacked_checksum) == (plain.checksum, None)
    layers = [name for name, module in packed.model.named_modules() if isinstance(module, NF4Linear)]
    assert len(layers) >= 8
    assert not any(name.startswith(packed.heads) for name in layers)
    for name in packed.new_parameters:
        owner = name.rpartition(".")[0]
        ours, theirs = packed.initial_head(owner, 5), plain.initial_head(owner, 5)
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not any(parameter.requires_grad for parameter in packed.model.parameters())
    assert all(packed.model.get_submodule(name).dtype == getattr(torch, dtype) for name in layers)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "phi3"])
def test_a_packed_causal_base_keeps_its_output_embeddings_and_its_plain_head(family, model_directory):
    base = load_base(BaseModelConfig(model=str(model_directory(family)), quantization="nf4"), "CAUSAL_LM")
    assert base.plain_head
    assert type(base.model.get_output_embeddings()) is torch.nn.Linear
    assert sum(isinstance(module, NF4Linear) for module in base.model.modules()) >= 8


def test_nan_is_found_before_it_is_packed(copy_of):
    directory = copy_of("bert")

    def spoil(tensors):
        tensors["encoder.layer.0.attention.self.query.weight"][0, 0] = float("nan")

    change_weights(directory, spoil)
    config = BaseModelConfig(model=str(directory), quantization="nf4")
    assert "query.weight' holds NaN" in refusal(lambda: load_base(config, "SEQ_CLS", LABELS))


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_checkpoint_that_is_quantised_already_is_refused(quantization, copy_of):
    directory = copy_of("llama")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}))
    base = BaseModelConfig(model=str(directory), quantization=quantization)
    for action in (lambda: load_base(base, "CAUSAL_LM"), lambda: read_config(base)):
        message = refusal(action)
        assert "the checkpoint is quantised already (bitsandbytes); give the original" in message


def test_a_packed_base_without_bitsandbytes_is_refused_before_the_weights_are_read(model_directory, monkeypatch):
    monkeypatch.setattr("lorascope.lora.quantised.find_spec", lambda name: None)
    config = BaseModelConfig(model=str(model_directory("gpt2")), quantization="nf4")
    assert "pip install 'lorascope[quant]'" in refusal(lambda: load_base(config, "CAUSAL_LM"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "phi3", "t5", "bart"])
def test_a_model_that_produces_text_writes(family, model_directory):
    check_writes(read_config(BaseModelConfig(model=str(model_directory(family)))), "here")


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_an_encoder_writes_nothing(family, model_directory):
    with pytest.raises(ModelError, match=f"here: this model writes nothing: {family} is no causal model"):
        check_writes(read_config(BaseModelConfig(model=str(model_directory(family)))), "here")


def test_a_classifier_of_a_causal_family_writes_nothing(tiny_model, tmp_path):
    tiny_model("gpt2", dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="this model writes nothing: it was saved as GPT2ForSequenceClassification"):
        check_writes(read_config(BaseModelConfig(model=str(tmp_path))), "here")
