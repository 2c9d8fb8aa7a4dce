"""Costs before a run: exact counts without any weights, and estimates that say what will not fit."""

import json

import peft
import pytest
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

from lorascope.base_model import load_base
from lorascope.config import AdapterConfig, BaseModelConfig, EvaluateConfig, TaskConfig, TrainConfig, TrialConfig
from lorascope.data.record import Example
from lorascope.errors import ModelError
from lorascope.lora.full import FullStack
from lorascope.lora.stack import Stack
from lorascope.plan import (
    LOGIT_POSITIONS,
    Load,
    Workload,
    check_lengths,
    estimate,
    fitting_lengths,
    largest_load,
    meta_model,
    parameters,
    slot_bytes,
    slot_of,
    token_bytes,
    workload,
)

AMPLE = 2**50
FORMS = [(f, "SEQ_CLS", 3) for f in ("gpt2", "bert", "distilbert", "roberta", "llama", "qwen2")] + [
    (f, "CAUSAL_LM", 0) for f in ("gpt2", "llama", "qwen2", "phi3")
]


def trial_of(directory, adapter=None, dtype="float32", quantization=None, **train):
    return TrialConfig(
        base=BaseModelConfig(model=str(directory), dtype=dtype, quantization=quantization),
        adapter=AdapterConfig(**(adapter or {})),
        train=TrainConfig(**train),
        seed=1,
    )


def cost_of(trial, task_type="CAUSAL_LM", num_labels=0, work=None, memory=AMPLE):
    model, heads = meta_model(trial, task_type, num_labels)
    return estimate(trial, model, heads, work or Workload(100, 20.0, 32), memory, 1e9)


def without_pooler(directory, tmp_path):
    """The same checkpoint as a masked-language model would have left it: no pooler."""
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if "pooler" not in name}
    save_file(tensors, path, metadata={"format": "pt"})
    return tmp_path


@pytest.mark.parametrize(
    ("r", "alpha", "targets", "trainable", "total", "percent"),
    [
        (4, 16, ["c_attn"], 147_456, 124_587_264, 0.1184),
        (8, 16, ["c_attn"], 294_912, 124_734_720, 0.2364),
        (16, 16, ["c_attn"], 589_824, 125_029_632, 0.4717),
        (8, 16, ["c_attn", "mlp.c_proj"], 663_552, 125_103_360, 0.5304),
        (32, 32, ["c_attn", "mlp.c_proj"], 2_654_208, 127_094_016, 2.0884),
    ],
)
def test_gpt2_counts_come_out_exactly_with_config_json_alone(r, alpha, targets, trainable, total, percent, tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    cost = cost_of(trial_of(tmp_path, {"r": r, "lora_alpha": alpha, "targets": targets}))
    assert cost.trainable_params == trainable
    assert cost.total_params == cost.peft_total_params == total
    assert round(cost.trainable_percent, 4) == percent


@pytest.mark.parametrize("adapter", [{"bias": "all", "r": 3}, {"targets": "all-linear", "bias": "lora_only"}, {"targets": []}])
@pytest.mark.parametrize(("family", "task_type", "num_labels"), FORMS)
def test_the_plan_counts_what_trains_once_weights_are_loaded(family, task_type, num_labels, adapter, model_directory):
    trial = trial_of(model_directory(family), adapter)
    planned = cost_of(trial, task_type, num_labels)
    base = load_base(trial.base, task_type, [str(label) for label in range(num_labels)])
    slot = slot_of(trial, base.model, base.heads)
    assert (planned.trainable_params, planned.total_params, planned.peft_total_params) == parameters(
        base.model, slot, base.heads
    )
    stack = Stack(base.model, [slot], base.heads)
    assert stack.parameters.values_NP.shape == (1, planned.trainable_params)
    stack.detach()


FULL = {"method": "full", "targets": []}


@pytest.mark.parametrize(("family", "task_type", "num_labels"), [*FORMS, ("t5", "CAUSAL_LM", 0), ("gated-t5", "CAUSAL_LM", 0)])
def test_full_fine_tuning_trains_every_parameter_once(family, task_type, num_labels, model_directory):
    trial = trial_of(model_directory(family), FULL)
    planned = cost_of(trial, task_type, num_labels)
    base = load_base(trial.base, task_type, [str(label) for label in range(num_labels)])
    stack = FullStack(base.model, slot_of(trial, base.model, base.heads), base.heads)
    assert stack.parameters.values_NP.shape == (1, planned.trainable_params)
    stack.detach()
    assert planned.trainable_params == planned.total_params == planned.peft_total_params
    assert planned.trainable_percent == 100.0


def test_full_fine_tuning_costs_half_as_much_time_again_and_keeps_what_every_layer_is_given(model_directory):
    adapter, full = (cost_of(trial_of(model_directory("gpt2"), one)) for one in ({"targets": "all-linear"}, FULL))
    assert full.train_seconds == pytest.approx(1.5 * adapter.train_seconds)
    assert full.memory_bytes > adapter.memory_bytes
    halved = cost_of(trial_of(model_directory("gpt2"), FULL, "bfloat16"))
    assert full.memory_bytes - halved.memory_bytes == 2 * full.total_params  # the base alone: what trains is float32
    short = cost_of(trial_of(model_directory("gpt2"), FULL), memory=1)
    assert short.reason.endswith("; leave full fine-tuning out")


def test_a_pooler_that_the_checkpoint_lacks_is_counted_as_trained(model_directory, tmp_path):
    with_pooler = cost_of(trial_of(model_directory("bert")), "SEQ_CLS", 3)
    trial = trial_of(without_pooler(model_directory("bert"), tmp_path))
    planned = cost_of(trial, "SEQ_CLS", 3)
    assert planned.trainable_params - with_pooler.trainable_params == 16 * 16 + 16
    assert planned.total_params == with_pooler.total_params

    base = load_base(trial.base, "SEQ_CLS", ["a", "b", "c"])
    stack = Stack(base.model, [slot_of(trial, base.model, base.heads)], base.heads)
    assert stack.parameters.values_NP.shape == (1, planned.trainable_params)
    stack.detach()
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=list(base.heads)
    )
    trained, total = peft.get_peft_model(base.model, config).get_nb_trainable_parameters()
    assert (trained, total) == (planned.trainable_params, planned.peft_total_params)


@pytest.mark.parametrize("layout", ["sharded", "no checkpoint"])
def test_a_pooler_is_looked_for_in_sharded_checkpoints_and_taken_as_there_without_one(layout, model_directory, tmp_path):
    directory = without_pooler(model_directory("bert"), tmp_path)
    names = list(load_file(directory / "model.safetensors"))
    (directory / "model.safetensors").unlink()
    if layout == "sharded":
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    heads = meta_model(trial_of(directory), "SEQ_CLS", 3)[1]
    assert heads == (("classifier", "bert.pooler.dense") if layout == "sharded" else ("classifier",))


def test_meta_models_hold_no_weights(model_directory):
    model, _ = meta_model(trial_of(model_directory("llama")), "CAUSAL_LM", 0)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_trial_that_does_not_fit_says_so_and_why(model_directory):
    trial = trial_of(model_directory("gpt2"))
    ample, scarce = cost_of(trial), cost_of(trial, memory=2**20)
    assert (ample.fits, ample.reason) == (True, None)
    assert not scarce.fits
    assert scarce.reason.startswith("needs about 0.4 GiB of 0.0 GiB; lower micro_batch_size")
    assert cost_of(trial, memory=ample.memory_bytes).fits
    assert not cost_of(trial, memory=ample.memory_bytes - 1).fits


def test_memory_grows_with_rows_length_and_what_trains_and_shrinks_with_the_dtype(model_directory):
    directory = model_directory("gpt2")
    plain = cost_of(trial_of(directory)).memory_bytes
    assert cost_of(trial_of(directory, batch_size=16)).memory_bytes > plain
    assert cost_of(trial_of(directory, batch_size=16, micro_batch_size=8)).memory_bytes == plain
    assert cost_of(trial_of(directory, batch_size=8, micro_batch_size=64)).memory_bytes == plain
    assert cost_of(trial_of(directory), work=Workload(100, 20.0, 64)).memory_bytes > plain
    larger = cost_of(trial_of(directory, {"r": 9}))
    numbers = larger.trainable_params - cost_of(trial_of(directory)).trainable_params
    assert larger.memory_bytes - plain == 4 * 4 * numbers
    assert cost_of(trial_of(directory, dtype="bfloat16")).memory_bytes < plain


def test_time_is_proportional_to_the_work(model_directory):
    directory = model_directory("gpt2")
    seconds = cost_of(trial_of(directory, epochs=2)).train_seconds
    assert seconds > 0
    assert cost_of(trial_of(directory, epochs=4)).train_seconds == pytest.approx(2 * seconds)
    # 100 examples in batches of 8 are 13 steps an epoch.
    assert cost_of(trial_of(directory, epochs=9, max_steps=26)).train_seconds == pytest.approx(seconds)
    assert cost_of(trial_of(directory, max_steps=0)).train_seconds == 0
    assert cost_of(trial_of(directory, epochs=2), work=Workload(100, 40.0, 64)).train_seconds == pytest.approx(2 * seconds)
    assert cost_of(trial_of(directory), work=Workload(None, None, 64)).train_seconds is None


def test_a_causal_model_holds_the_logits_of_the_positions_that_predict(model_directory):
    def logits_of(task_type, positions, item):
        trial = trial_of(model_directory("gpt2"))
        model, heads = meta_model(trial, task_type, 2)
        slot = slot_of(trial, model, heads)
        return slot_bytes(model, slot, Load(10, positions), item, 0) - 10 * token_bytes(model, slot, item)

    assert logits_of("SEQ_CLS", 10, 4) == 0
    assert logits_of("CAUSAL_LM", 10, 4) == 2 * 4 * 160 * 10
    assert logits_of("CAUSAL_LM", 10, 2) == (2 * 4 + 2 * 2) * 160 * 10
    assert logits_of("CAUSAL_LM", 10_000, 4) == 2 * 4 * 160 * LOGIT_POSITIONS


def test_rows_and_answers_that_exceed_the_models_positions_are_refused(model_directory):
    def check(family, max_length, max_new_tokens, generates=True):
        base = BaseModelConfig(model=str(model_directory(family)))
        settings = EvaluateConfig(decoding=[{"max_new_tokens": max_new_tokens}])
        check_lengths(TaskConfig(name="squad", data="x", max_length=max_length), settings, base, generates=generates)

    check("gpt2", 120, 8)
    check("gpt2", 128, 8, generates=False)
    with pytest.raises(
        ModelError, match=r"max_length 120 \+ 9 new tokens exceeds the model's 128 positions; set it to 119 or"
    ):
        check("gpt2", 120, 9)
    with pytest.raises(ModelError, match=r"^evaluate.decoding.max_new_tokens: .*; ask for fewer new tokens"):
        check("gpt2", 120, 10**9)
    check("bert", 130, 1, generates=False)
    with pytest.raises(ModelError, match=r"max_length 131 exceeds the model's 130 positions; set it to 130 or less"):
        check("bert", 131, 1, generates=False)
    check("roberta", 128, 1, generates=False)
    with pytest.raises(ModelError, match=r"max_length 129 exceeds the model's 128 positions"):
        check("roberta", 129, 1, generates=False)


def test_a_length_that_nobody_gave_is_cut_to_the_models_positions_and_said(model_directory):
    def fitted(max_new_tokens, **given):
        base = BaseModelConfig(model=str(model_directory("gpt2")))
        settings = EvaluateConfig(decoding=[{"max_new_tokens": max_new_tokens}])
        return fitting_lengths(TaskConfig(name="squad", data="x", **given), settings, base, generates=True)

    task, notices = fitted(32)
    assert task.max_length == 96
    assert notices == ["max_length is 96: the model has 128 positions, 32 of them for the answer (by default it would be 512)"]
    assert fitted(32, max_length=96)[1] == []
    with pytest.raises(ModelError, match=r"max_length 512 \+ 32 new tokens exceeds"):
        fitted(32, max_length=512)
    with pytest.raises(ModelError, match="ask for fewer new tokens"):
        fitted(100)


def row(number, ids, num_targets=0):
    is_target = [place >= len(ids) - num_targets for place in range(len(ids))] if num_targets else None
    return Example(str(number), ids, is_target, None if num_targets else 0, 1)


def test_a_workload_is_the_mean_and_the_longest_of_the_lengths():
    examples = [row(number, [5] * length) for number, length in enumerate((3, 5, 10))]
    assert workload(examples, 300) == Workload(300, 6.0, 10, examples)


def test_examples_at_hand_are_counted_as_they_are_stored(model_directory):
    """Four questions of one context: a causal model stores the context once."""
    directory = model_directory("gpt2")
    trunk = list(range(20, 60))
    examples = [row(number, [*trunk, 100 + number, 3, 4], 2) for number in range(4)]
    known, unknown = (
        cost_of(trial_of(directory, batch_size=4), work=work).memory_bytes
        for work in (workload(examples, 4), Workload(4, 43.0, 43))
    )
    model, _ = meta_model(trial_of(directory), "CAUSAL_LM", 0)
    slot = slot_of(trial_of(directory), model, ())
    token = token_bytes(model, slot, 4)
    assert unknown - known == (4 * 43 - (40 + 4 * 3)) * token + (4 * 43 // 4 - 4 * 2) * 2 * 4 * 160


@pytest.mark.parametrize("packs", [False, True])
def test_the_largest_load_is_found_wherever_it_is(packs):
    """Two short batches, one with a long row, one with many targets; a position weighs as much as it is said to."""
    examples = [row(number, [7 + number] * length, 2) for number, length in enumerate((3, 3, 4, 4, 30, 2))]
    examples += [row(9, [90, *range(91, 99)], 8), row(10, [80, *range(81, 89)], 8)]
    steps = [[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]
    options = {"num_slots": 1, "packs": packs}
    load, step = largest_load(examples, steps, None, **options, position_tokens=0.0)
    assert (load.tokens, step) == (32 if packs else 60, steps[2])
    load, step = largest_load(examples, steps, None, **options, position_tokens=50.0)
    assert (load, step) == (Load(18, 16), steps[3])
    load, step = largest_load(examples, steps, 1, **options, position_tokens=0.0)
    assert (load.tokens, step) == (30, steps[2])


def test_seeds_that_train_together_are_cut_at_the_same_places():
    examples = [row(number, [7] * length) for number, length in enumerate((2, 2, 2, 20, 2, 2))]
    load, _ = largest_load(examples, [[[0, 1, 2], [3, 4, 5]]], None, num_slots=1, packs=False, position_tokens=0.0)
    assert load.tokens == 3 * 20
    load, _ = largest_load(examples, [[[0, 1, 2]], [[3, 4, 5]]], 1, num_slots=1, packs=False, position_tokens=0.0)
    assert load.tokens == 20


@pytest.mark.parametrize(
    ("family", "inner", "heads", "factor"),
    [("gpt2", 64, 16, 1), ("distilbert", 24, 16, 1), ("bert", 24, 16, 1), ("llama", 24, 16, 3), ("phi3", 24, 16, 3)],
)
def test_activations_are_counted_by_each_familys_own_names(family, inner, heads, factor, model_directory):
    trial = trial_of(model_directory(family), {"targets": ["query", "value"]})
    model, found = meta_model(trial, "CAUSAL_LM" if family == "phi3" else "SEQ_CLS", 2)
    # Two layers: two norms, attention, the activation's inputs, and one input that query and value share.
    kept = 2 * (2 * 16 + 4 * heads + factor * inner) + 2 * 16
    assert token_bytes(model, slot_of(trial, model, found), 2) == (kept + 3 * inner) * 2


def test_dropout_keeps_a_mask_for_every_adapted_layer(model_directory):
    sizes = {}
    for dropout in (0.0, 0.1):
        trial = trial_of(model_directory("llama"), {"targets": ["query", "down"], "lora_dropout": dropout})
        model, heads = meta_model(trial, "CAUSAL_LM", 0)
        sizes[dropout] = token_bytes(model, slot_of(trial, model, heads), 2)
    assert sizes[0.1] - sizes[0.0] == 2 * 4 * (16 + 24)


def test_the_head_alone_needs_a_head_and_trains_nothing_else(model_directory):
    trial = trial_of(model_directory("distilbert"), {"method": "head", "bias": "all"})
    model, heads = meta_model(trial, "SEQ_CLS", 3)
    assert cost_of(trial, "SEQ_CLS", 3).trainable_params == sum(
        parameter.numel() for name, parameter in model.named_parameters() if name.startswith(heads)
    )
    causal = trial_of(model_directory("gpt2"), {"method": "head"})
    with pytest.raises(ModelError, match="no head to train"):
        cost_of(causal)


def test_rslora_divides_by_the_root_of_the_rank(model_directory):
    for use_rslora, scaling in ((False, 2.0), (True, 8.0)):
        trial = trial_of(model_directory("gpt2"), {"r": 16, "lora_alpha": 32, "use_rslora": use_rslora, "lora_dropout": 0.25})
        model, heads = meta_model(trial, "CAUSAL_LM", 0)
        slot = slot_of(trial, model, heads)
        assert {placement.scaling for placement in slot.placements} == {scaling}
        assert (slot.use_rslora, slot.dropout, slot.seed, slot.name) == (use_rslora, 0.25, 1, trial.trial)


def test_a_target_that_the_model_lacks_is_named_before_anything_is_loaded(tmp_path):
    GPT2Config(n_layer=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no target 'q_proj'"):
        cost_of(trial_of(tmp_path, {"targets": ["q_proj"]}))


@pytest.mark.parametrize(("family", "task_type", "num_labels"), FORMS)
def test_a_packed_base_counts_like_one_in_full(family, task_type, num_labels, model_directory):
    adapter = {"targets": "all-linear", "bias": "all", "r": 3}
    labels = [str(label) for label in range(num_labels)]
    counted = []
    for quantization in (None, "nf4"):
        trial = trial_of(model_directory(family), adapter, quantization=quantization)
        cost = cost_of(trial, task_type, num_labels)
        base = load_base(trial.base, task_type, labels)
        counts = (cost.trainable_params, cost.total_params, cost.peft_total_params)
        assert parameters(base.model, slot_of(trial, base.model, base.heads), base.heads) == counts
        counted.append(counts)
    assert counted[0] == counted[1]


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 32), ("bfloat16", 16)])
def test_memory_knows_the_bits_of_a_packed_weight(dtype, bits, tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    plain, packed = (cost_of(trial_of(tmp_path, None, dtype, quantization)).memory_bytes for quantization in (None, "nf4"))
    blocks, largest = 12 * (768 * 2304 + 768 * 768 + 2 * 768 * 3072), 768 * 3072
    assert plain - packed == blocks * (bits - 4.5) / 8 - 4 * largest


def test_a_plan_that_needs_bitsandbytes_says_so(model_directory, monkeypatch):
    monkeypatch.setattr("lorascope.lora.quantised.find_spec", lambda name: None)
    assert cost_of(trial_of(model_directory("gpt2"))).fits
    with pytest.raises(ModelError, match="bitsandbytes, which is not installed"):
        cost_of(trial_of(model_directory("gpt2"), quantization="nf4"))
