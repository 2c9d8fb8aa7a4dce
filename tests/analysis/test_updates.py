"""What the files of an adapter say, module by module; no base is needed."""

import json
from pathlib import Path

import pytest
import torch

from lorascope.analysis.overlap import overlap_document
from lorascope.analysis.truncated import line_up
from lorascope.analysis.updates import adapter_document, places_of, read_adapters
from lorascope.errors import AdapterError, UsageError
from lorascope.lora import diagnostics, truncate
from lorascope.lora.peft_io import write_adapter
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve

FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


def document_of(directory):
    (one,) = read_adapters([directory])
    return adapter_document(one, places_of(one.modules))


def dense_of(tensors, key, scaling):
    return scaling * tensors[f"{key}.lora_B.weight"].double() @ tensors[f"{key}.lora_A.weight"].double()


def test_every_module_has_its_layer_its_name_and_its_figures(adapter, random_factors):
    tensors = random_factors(layers=11)
    document = document_of(adapter("one", tensors))
    rows = document["modules"]
    assert [row["layer"] for row in rows] == [layer for layer in range(11) for _ in range(2)]
    assert [row["kind"] for row in rows[:2]] == ["down_proj", "q_proj"]
    row = next(row for row in rows if row["module"] == "model.layers.0.self_attn.q_proj")
    dense = dense_of(tensors, FIRST, 2.0)
    assert (row["r"], row["scaling"], row["in_features"], row["out_features"], row["dtype"]) == (4, 2.0, 12, 16, "float32")
    assert row["norm"] == pytest.approx(float(dense.norm()), rel=1e-12)
    assert row["spectral_norm"] == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-12)
    assert row["nuclear_norm"] == pytest.approx(float(torch.linalg.matrix_norm(dense, "nuc")), rel=1e-12)
    assert row["mean"] == pytest.approx(float(dense.mean()), rel=1e-9)
    assert row["std"] == pytest.approx(float(dense.std(correction=0)), rel=1e-12)
    assert row["lora_A"]["std"] == pytest.approx(float(tensors[f"{FIRST}.lora_A.weight"].double().std(correction=0)))
    assert row["lora_B"]["mean"] == pytest.approx(float(tensors[f"{FIRST}.lora_B.weight"].double().mean()))
    assert (len(row["singular_values"]), len(row["energy"]), row["energy"][-1]) == (4, 4, 1.0)
    assert row["utilisation"] == pytest.approx(row["effective_rank"] / 4)
    assert row["slices"] == []


def test_the_document_says_what_the_adapter_is_and_what_it_is_over_all(adapter, random_factors):
    tensors = random_factors()
    document = document_of(adapter("one", tensors, use_rslora=True, lora_alpha=6, task_type="CAUSAL_LM", revision="abc"))
    assert (document["base"], document["revision"], document["task_type"]) == ("some/base", "abc", "CAUSAL_LM")
    assert (document["r"], document["lora_alpha"], document["use_rslora"], document["label"]) == (4, 6, True, "one")
    assert {row["scaling"] for row in document["modules"]} == {3.0}
    assert document["lora_params"] == sum(value.numel() for value in tensors.values())
    squares = [
        float(dense_of(tensors, key.removesuffix(".lora_A.weight"), 3.0).norm()) ** 2 for key in tensors if "lora_A" in key
    ]
    assert document["overall"]["norm"] == pytest.approx(sum(squares) ** 0.5)
    assert document["overall"]["numerical_rank"] == 4
    assert document["warnings"] == []
    json.dumps(document, allow_nan=False)


def test_patterns_of_rank_and_alpha_count_module_by_module(adapter, random_factors):
    tensors = random_factors()
    small = random_factors(r=2, layers=1)
    tensors |= {key: value for key, value in small.items() if key.startswith(FIRST)}
    pattern = {"layers.0.self_attn.q_proj": 2}
    document = document_of(adapter("one", tensors, r=4, rank_pattern=pattern, alpha_pattern={"layers.0.self_attn.q_proj": 5}))
    rows = {row["module"]: row for row in document["modules"]}
    assert (rows["model.layers.0.self_attn.q_proj"]["r"], rows["model.layers.0.self_attn.q_proj"]["scaling"]) == (2, 2.5)
    assert (rows["model.layers.1.self_attn.q_proj"]["r"], rows["model.layers.1.self_attn.q_proj"]["scaling"]) == (4, 2.0)


def test_an_adapter_built_with_rank_three_inside_sixteen_has_rank_three(adapter, random_factors):
    tensors = random_factors(r=16, sizes={"q_proj": (64, 48)})
    for key in [key for key in tensors if "lora_A" in key]:
        tensors[key] = torch.randn(16, 3) @ torch.randn(3, 48)
    document = document_of(adapter("one", tensors))
    assert [(row["r"], row["numerical_rank"]) for row in document["modules"]] == [(16, 3)] * 3
    assert all(row["rank_for_99"] <= 3 and row["effective_rank"] < 3.01 for row in document["modules"])


def test_an_adapter_that_was_not_trained_is_named(adapter, random_factors):
    tensors = random_factors()
    tensors[f"{FIRST}.lora_B.weight"].zero_()
    some = document_of(adapter("some", tensors))
    assert some["warnings"] == ["some: 1 of 6 updates are zero: model.layers.0.self_attn.q_proj"]
    row = next(row for row in some["modules"] if row["spectral_norm"] == 0.0)
    assert (row["effective_rank"], row["numerical_rank"], row["rank_for_90"], row["energy"]) == (0.0, 0, 0, [])
    for key in [key for key in tensors if "lora_B" in key]:
        tensors[key] = torch.zeros_like(tensors[key])
    assert document_of(adapter("none", tensors))["warnings"][0].startswith("none: every update is zero")


def test_biases_and_heads_have_their_moments(adapter, random_factors):
    tensors = random_factors()
    tensors[f"{FIRST}.base_layer.bias"] = torch.tensor([1.0, 3.0])
    tensors["base_model.model.score.weight"] = torch.full((2, 5), 2.0)
    document = document_of(adapter("one", tensors, bias="lora_only"))
    (bias,), (head,) = document["biases"], document["heads"]
    assert bias == {"name": "model.layers.0.self_attn.q_proj.bias", "size": 2, "mean": 2.0, "std": 1.0, "norm": 10.0**0.5}
    assert (head["name"], head["size"], head["mean"], head["std"]) == ("score.weight", 10, 2.0, 0.0)
    assert (document["bias_params"], document["head_params"], document["bias"]) == (2, 10, "lora_only")


def test_slices_of_a_fused_projection_are_told_apart(tiny_model, tmp_path):
    model = tiny_model("gpt2", "CAUSAL_LM")
    placements = tuple(Placement(target, 2, 1.5) for target in resolve(model, ["query", "value", "down"], ()))
    slot = Slot("fused", 1, placements)
    stack = Stack(model, [slot])
    weights = stack.read(0)
    for value in weights.lora_B.values():
        value += torch.randn_like(value)
    write_adapter(tmp_path, weights, slot, model, heads=(), base_model="", task_type="CAUSAL_LM")
    stack.detach()
    rows = {row["module"]: row for row in document_of(tmp_path)["modules"]}
    fused = rows["transformer.h.0.attn.c_attn"]
    assert (fused["r"], fused["scaling"]) == (4, 1.5)
    assert [(one["start"], one["stop"], one["r"]) for one in fused["slices"]] == [(0, 16, 2), (32, 48, 2)]
    for one in fused["slices"]:
        key = f"transformer.h.0.attn.c_attn[{one['start']}:{one['stop']}]"
        dense = 1.5 * weights.lora_B[key].double() @ weights.lora_A[key].double()
        assert one["norm"] == pytest.approx(float(dense.norm()), rel=1e-9)
        assert one["singular_values"] == pytest.approx(torch.linalg.svdvals(dense)[:2].tolist(), rel=1e-9)
    assert rows["transformer.h.0.mlp.c_proj"]["slices"] == []


def test_a_lone_slice_is_one_too(adapter, random_factors):
    tensors = random_factors(sizes={"qkv": (30, 10)})
    for key in [key for key in tensors if "lora_B" in key]:
        tensors[key][:20] = 0.0
    rows = document_of(adapter("one", tensors))["modules"]
    assert [[(one["start"], one["stop"]) for one in row["slices"]] for row in rows] == [[(20, 30)]] * 3


NAMES = {
    "decoder": ["model.layers.0.self_attn.q_proj", "model.layers.10.mlp.up_proj", "lm_head"],
    "bert": [
        "bert.encoder.layer.0.attention.output.dense",
        "bert.encoder.layer.0.output.dense",
        "bert.encoder.layer.1.intermediate.dense",
    ],
    "t5": [
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.q",
    ],
    "bart": ["model.encoder.layers.0.fc1", "model.decoder.layers.0.fc1"],
}
SHORT = {
    "decoder": [(0, "q_proj"), (10, "up_proj"), (None, "lm_head")],
    "bert": [(0, "attention.output.dense"), (0, "output.dense"), (1, "intermediate.dense")],
    "t5": [(0, "encoder q"), (0, "decoder SelfAttention.q"), (0, "decoder EncDecAttention.q")],
    "bart": [(0, "encoder fc1"), (0, "decoder fc1")],
}


@pytest.mark.parametrize("family", NAMES)
def test_names_are_as_short_as_they_can_be(family):
    places = places_of(NAMES[family])
    assert [(places[name].layer, places[name].kind) for name in NAMES[family]] == SHORT[family]


def test_no_two_modules_share_a_place():
    tricky = ["a.0.x", "b.0.x", "a.0.y.x", "x", "a.1.x", "a.0.b.0.x", "a.0.b.1.x", "a x", "c.d.0.x", "c.e.0.x"]
    places = places_of(tricky)
    assert len({(place.layer, place.kind) for place in places.values()}) == len(tricky)


def test_labels_are_the_ends_of_paths_that_tell_adapters_apart(adapter):
    paths = [adapter("run/trials/aa-s1/adapter"), adapter("run/trials/aa-s2/adapter"), adapter("theirs")]
    assert [one.label for one in read_adapters(paths)] == ["aa-s1", "aa-s2", "theirs"]
    paths = [adapter("one/trials/bb-s1/adapter"), adapter("two/trials/bb-s1/adapter")]
    assert [one.label for one in read_adapters(paths)] == ["one/trials/bb-s1", "two/trials/bb-s1"]


def test_a_trials_directory_stands_for_its_adapter(adapter):
    directory = adapter("trials/cc-s1/adapter")
    (one,) = read_adapters([directory.parent])
    assert (one.label, one.directory) == ("cc-s1", directory)


def test_an_adapter_that_is_given_twice_is_refused(adapter):
    directory = adapter("one")
    with pytest.raises(UsageError, match="given twice"):
        read_adapters([directory, directory.parent / "." / "one"])


@pytest.mark.parametrize("shape", [(16, 3), (0, 4)])
def test_factors_that_do_not_belong_together_are_refused(shape, adapter, random_factors):
    tensors = random_factors()
    tensors[f"{FIRST}.lora_B.weight"] = torch.zeros(shape)
    with pytest.raises(AdapterError, match=r"model\.layers\.0\.self_attn\.q_proj.*(do not belong together|rank 4 and 3 in)"):
        read_adapters([adapter("one", tensors)])


def test_convolutions_are_left_out_and_counted_and_refused_where_they_would_be_run(adapter, random_factors):
    tensors = random_factors()
    tensors[f"{FIRST}.lora_A.weight"] = torch.zeros(4, 3, 3, 3)
    tensors[f"{FIRST}.lora_B.weight"] = torch.zeros(16, 4, 1, 1)
    directory = adapter("one", tensors)
    document = document_of(directory)
    assert (len(document["modules"]), document["warnings"]) == (5, ["one: left out: 1 × convolution"])
    with pytest.raises(AdapterError, match="is no linear layer"):
        read_adapters([directory], factors_only=False)
    alone = {key: value for key, value in tensors.items() if key.startswith(FIRST)}
    with pytest.raises(AdapterError, match="no factors of linear layers or embeddings"):
        document_of(adapter("alone", alone))


def test_factors_in_a_file_of_before_safetensors_are_read_and_nothing_in_it_is_carried_out(adapter, random_factors):
    directory = adapter("one")
    expected = document_of(directory)
    (directory / "adapter_model.safetensors").unlink()
    torch.save(random_factors(), directory / "adapter_model.bin")
    assert document_of(directory) == expected
    with pytest.raises(AdapterError, match="the adapter's weights are missing"):
        read_adapters([directory], factors_only=False)
    torch.save({"a": Path()}, directory / "adapter_model.bin")
    with pytest.raises(AdapterError, match="no file of tensors alone"):
        document_of(directory)


REFUSED = {
    "use_qalora": True,
    "target_parameters": ["experts.gate_up_proj"],
}


@pytest.mark.parametrize("key", REFUSED)
def test_kinds_whose_factors_are_no_update_are_refused_for_looking_at_too(key, adapter):
    with pytest.raises(AdapterError, match=f"the adapter uses {key}"):
        document_of(adapter("one", **{key: REFUSED[key]}))


def test_every_update_is_taken_apart_once_however_many_look_at_it(adapter, random_factors, monkeypatch):
    taken = []
    own = truncate.decompose

    def counting(*factors):
        taken.append(factors)
        return own(*factors)

    for module in (truncate, diagnostics):
        monkeypatch.setattr(module, "decompose", counting)
    read = read_adapters([adapter("one"), adapter("two", random_factors(seed=1)), adapter("three", random_factors(seed=2))])
    places = places_of(module for one in read for module in one.modules)
    for one in read:
        adapter_document(one, places)
        line_up(one.saved, one.label, directions=one.directions)
    assert overlap_document(read, places) is not None
    assert len(taken) == sum(len(one.modules) for one in read)
