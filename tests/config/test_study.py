"""Which configurations are one, and what they are called."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.config import (
    AdapterConfig,
    BaseModelConfig,
    TrainConfig,
    TrialConfig,
    design_keys,
    in_layers,
    section_of,
    split_layers,
)

MINIMAL = "name: a\nbase: {model: gpt2}\ntask: {name: sst2, data: x}\n"


def trial(r=8, seed=1, model="gpt2", adapter=None, **train):
    return TrialConfig(
        base=BaseModelConfig(model=model), adapter=AdapterConfig(r=r, **(adapter or {})), train=TrainConfig(**train), seed=seed
    )


def test_equal_configurations_have_one_name():
    written = [
        trial(adapter={"lora_alpha": "2r"}), trial(adapter={"lora_alpha": 16}), trial(adapter={"lora_alpha": 16.0}),
        trial(adapter={"lora_alpha": "16"}), trial(learning_rate=2e-4), trial(learning_rate="0.0002", epochs=3.0),
    ]  # fmt: skip
    assert len({one.trial for one in written}) == 1
    assert written[0].trial.endswith("-s1")
    assert len(written[0].configuration) == 8


def test_a_head_alone_is_one_configuration_whatever_its_rank_alpha_and_targets():
    spelt = [{}, {"lora_alpha": 3}, {"targets": []}, {"bias": "all"}, {"lora_dropout": 0.1}, {"use_rslora": True}]
    assert len({trial(r=r, adapter={"method": "head", **one}).trial for r, one in enumerate(spelt, start=1)}) == 1


def test_different_configurations_have_different_names():
    different = [
        trial(), trial(r=16), trial(adapter={"lora_alpha": 17}), trial(adapter={"targets": ["value", "query"]}),
        trial(adapter={"targets": []}), trial(adapter={"targets": "all-linear"}), trial(adapter={"bias": "all"}),
        trial(adapter={"use_rslora": True}), trial(adapter={"method": "head"}), trial(adapter={"path": "x"}),
        trial(adapter={"lora_dropout": 0.1}), trial(learning_rate=1e-4), trial(max_steps=0), trial(base_dropout=True),
        trial(model="gpt2-medium"),
    ]  # fmt: skip
    assert len({one.configuration for one in different}) == len(different)
    assert trial(seed=2).configuration == trial().configuration
    assert trial(seed=2).trial != trial().trial


def test_a_flat_configuration_has_every_key_that_a_design_may_vary():
    flat = trial(adapter={"path": "x"}).flat()
    assert sorted(flat) == sorted(design_keys())
    assert flat["lora_alpha"] == 16.0
    assert "path" not in trial().flat()
    assert {section_of(key) for key in flat} == {"adapter", "train", "base"}
    assert section_of("seeds") is None


def test_the_hash_of_a_study_ignores_its_name_and_nothing_else(load):
    changes = [
        {}, {"base.model": "b"}, {"base.dtype": "bfloat16"}, {"task.name": "rte"}, {"task.data": "y"}, {"task.max_train": 3},
        {"adapter.r": 4}, {"train.epochs": 1}, {"seeds": [42]}, {"design": {"kind": "grid", "over": {"r": [4]}}},
        {"evaluate.split": "test"}, {"evaluate.decoding": [{"max_new_tokens": 3}]}, {"evaluate.batch_tokens": 4},
    ]  # fmt: skip
    hashes = [load(MINIMAL, change).hash for change in changes]
    assert len(set(hashes)) == len(changes)
    assert load(MINIMAL, {"name": "b"}).hash == hashes[0]
    assert load(MINIMAL + "# a comment\n").hash == hashes[0]


def test_every_pair_of_small_adapters_is_equal_exactly_when_it_trains_the_same():
    """Alpha as a number, as text and as a multiple: names agree exactly where rank and alpha do."""
    spelt = [AdapterConfig(r=r, lora_alpha=alpha) for r in (4, 8) for alpha in ("1r", "2r", "4r", 8, 16.0, "32")]
    for one, other in itertools.combinations(spelt, 2):
        names = {
            TrialConfig(base=BaseModelConfig(model="m"), adapter=adapter, train=TrainConfig(), seed=0).trial
            for adapter in (one, other)
        }
        assert (len(names) == 1) == ((one.r, one.alpha) == (other.r, other.alpha))


@given(st.sampled_from(["query", "mlp.c_proj", "layer.0.attention"]), st.integers(0, 99), st.integers(0, 99))
def test_a_restricted_name_is_read_as_it_was_written(name, one, other):
    first, last = min(one, other), max(one, other)
    assert split_layers(in_layers(name, first, last)) == (name, (first, last))
    assert split_layers(name) == (name, None)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"adapter": {"r": 4, "lora_alpha": "1.5r", "targets": "all-linear"}},
        {"adapter": {"method": "head"}},
        {"adapter": {"path": "a"}},
    ],
)
def test_a_trial_is_made_again_from_the_row_that_a_store_keeps_of_it(sections):
    adapter = AdapterConfig(**sections.get("adapter", {}))
    trial = TrialConfig(base=BaseModelConfig(model="m"), adapter=adapter, train=TrainConfig(max_steps=3), seed=7)
    assert TrialConfig.from_flat(json.loads(json.dumps(trial.flat())), 7) == trial
