"""Adapters compared with one another."""

import json

import pytest
import torch

from lorascope.analysis.overlap import overlap_document
from lorascope.analysis.updates import places_of, read_adapters
from lorascope.errors import AdapterError


def overlap_of(*directories):
    read = read_adapters(directories)
    document = overlap_document(read, places_of(module for one in read for module in one.modules))
    json.dumps(document, allow_nan=False)
    return document


def test_one_adapter_alone_overlaps_with_nothing(adapter):
    assert overlap_of(adapter("one")) is None


def test_an_adapter_overlaps_wholly_with_itself_however_it_is_scaled(adapter, random_factors):
    tensors = random_factors()
    (pair,) = overlap_of(adapter("one", tensors), adapter("two", tensors, lora_alpha=64))["pairs"]
    assert (pair["first"], pair["second"], pair["num_shared"]) == ("one", "two", 6)
    assert pair["mean"]["cosine"] == pytest.approx(1.0)
    for row in pair["modules"]:
        for side in ("left", "right"):
            assert [row[side][which] for which in ("top", "leading", "all")] == pytest.approx([1.0] * 3)
            assert row[side]["angles_degrees"] == pytest.approx([0.0] * 4, abs=1e-4)


def test_seeds_that_share_the_inputs_read_overlap_there_alone(adapter, random_factors):
    tensors, other = random_factors(), random_factors(seed=1)
    shared = {key: other[key] if "lora_B" in key else value for key, value in tensors.items()}
    (pair,) = overlap_of(adapter("one", tensors), adapter("two", shared))["pairs"]
    assert pair["mean"]["right"]["all"] == pytest.approx(1.0)
    assert pair["mean"]["left"]["all"] == pytest.approx(pair["mean"]["left"]["all_by_chance"], rel=0.5)
    assert pair["mean"]["left"]["all_by_chance"] == 4 / 16


def test_adapters_of_different_ranks_are_compared_over_a_grid_of_ranks(adapter, random_factors):
    tensors = random_factors(r=4)
    wide = {key: torch.cat([value, torch.randn_like(value)], dim=int("lora_B" in key)) for key, value in tensors.items()}
    (pair,) = overlap_of(adapter("one", tensors), adapter("two", wide, r=8, lora_alpha=16))["pairs"]
    row = next(row for row in pair["modules"] if row["kind"] == "q_proj")
    assert (len(row["left"]["similarity"]), len(row["left"]["similarity"][0])) == (4, 8)
    assert row["left"]["all_ranks"] == [4, 8]
    assert row["left"]["all"] == pytest.approx(1.0)
    assert row["left"]["similarity"][-1][-1] == pytest.approx(row["left"]["all"], abs=1e-6)
    assert row["left"]["similarity"][0][0] == pytest.approx(row["left"]["top"], abs=1e-6)
    ranks = row["left"]["leading_ranks"]
    assert row["left"]["similarity"][ranks[0] - 1][ranks[1] - 1] == pytest.approx(row["left"]["leading"], abs=1e-6)


def test_every_two_of_three_are_compared(adapter, random_factors):
    found = overlap_of(*(adapter(name, random_factors(seed=seed)) for seed, name in enumerate("abc")))
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found["warnings"] == []


def test_modules_of_one_adapter_alone_are_named_and_not_compared(adapter, random_factors):
    some = {key: value for key, value in random_factors().items() if "layers.2" not in key}
    found = overlap_of(adapter("one"), adapter("two", some))
    (pair,) = found["pairs"]
    assert pair["num_shared"] == 4
    assert pair["only_first"] == ["model.layers.2.mlp.down_proj", "model.layers.2.self_attn.q_proj"]
    assert found["warnings"] == ["one and two: 2 modules are adapted by one of them alone and not compared"]
    nothing = {key.replace("q_proj", "k_proj"): value for key, value in random_factors().items() if "q_proj" in key}
    (pair,) = overlap_of(adapter("three"), adapter("four", nothing))["pairs"]
    assert (pair["num_shared"], pair["mean"]["cosine"], pair["mean"]["left"]["all"]) == (0, None, None)


def test_an_update_of_zero_has_no_directions(adapter, random_factors):
    zero = {key: torch.zeros_like(value) if "lora_B" in key else value for key, value in random_factors().items()}
    (pair,) = overlap_of(adapter("one"), adapter("two", zero))["pairs"]
    assert {(row["cosine"], row["left"], row["right"]) for row in pair["modules"]} == {(None, None, None)}
    assert pair["mean"]["right"]["leading"] is None


def test_adapters_of_bases_of_different_sizes_are_refused(adapter, random_factors):
    other = random_factors(sizes={"self_attn.q_proj": (8, 12)})
    with pytest.raises(AdapterError, match=r"q_proj' is 16 × 12 in one, 8 × 12 in two; compare adapters of one base"):
        overlap_of(adapter("one"), adapter("two", other))


def test_different_bases_of_one_size_are_named(adapter):
    found = overlap_of(adapter("one"), adapter("two", base_model_name_or_path="other/base"))
    assert found["warnings"] == ["the adapters name different bases: other/base, some/base"]
