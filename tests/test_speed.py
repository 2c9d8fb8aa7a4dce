"""Speed: what is timed is what was asked for, in turns, and computes what the adapter computes."""

import pytest
import torch

from lorascope import speed
from lorascope.base_model import BaseModel, head_modules
from lorascope.errors import AdapterError, RunError, UsageError
from lorascope.lora.peft_io import SavedAdapter
from lorascope.lora.quantised import NF4Linear, quantise
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.speed import Agreement, Measured, Speed, Timing, Workload, measure, phases_of

FAMILIES = [("gpt2", "CAUSAL_LM"), ("llama", "CAUSAL_LM"), ("bert", "SEQ_CLS"), ("qwen2", "SEQ_CLS"), ("roberta", "SEQ_CLS")]
FAMILIES += [("t5", "SEQ_2_SEQ_LM"), ("bart", "SEQ_2_SEQ_LM")]
SMALL = Workload(prompt_tokens=6, new_tokens=3, batch=2, repeats=2, tenants=4)


def base_of(model, task_type):
    model.config.pad_token_id = 0
    return BaseModel(model, None, task_type, head_modules(model, task_type), (), "", plain_head=True)


def saved_on(base, seed=1, bias="none"):
    """An adapter as it would be read from disk, with random numbers everywhere: no slices of fused projections."""
    targets = [one for one in resolve(base.model, ["query", "output", "down"], base.heads) if one.part is None]
    slot = Slot(f"s{seed}", seed, tuple(Placement(target, 3, 2.0) for target in targets), bias=bias)
    stack = Stack(base.model, [slot], base.heads)
    weights = stack.read(0)
    stack.detach()
    generator = torch.Generator().manual_seed(seed)
    for group in (weights.lora_B, weights.biases, weights.heads):
        for value in group.values():
            value += 0.2 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    return SavedAdapter(None, base.task_type, slot, weights, {})


def measured(base, adapters, workload=SMALL):
    running = measure(base, adapters, [f"adapter {number}" for number in range(len(adapters))], workload)
    rounds = []
    while True:
        try:
            rounds.append(next(running))
        except StopIteration as stop:
            return stop.value, rounds


@pytest.mark.parametrize(("family", "task_type"), FAMILIES)
def test_merged_and_unmerged_compute_the_same_and_the_model_is_as_it_was(family, task_type, tiny_model):
    base = base_of(tiny_model(family, task_type), task_type)
    before = {name: (type(module), id(module)) for name, module in base.model.named_modules()}
    values = {name: value.clone() for name, value in base.model.state_dict().items()}
    found, rounds = measured(base, [saved_on(base, bias="lora_only"), saved_on(base, 2)])
    assert rounds == [(1, 2), (2, 2)]
    assert len(found.agreements) == 2
    for one in found.agreements:
        assert one.difference < 1e-6 * one.effect
        assert one.effect > 1e-3
    assert {name: (type(module), id(module)) for name, module in base.model.named_modules()} == before
    assert all(torch.equal(value, values[name]) for name, value in base.model.state_dict().items())


def test_configurations_are_the_base_each_adapter_both_ways_parts_of_one_and_several_at_once(tiny_model):
    base = base_of(tiny_model("llama", "CAUSAL_LM"), "CAUSAL_LM")
    found, _ = measured(base, [saved_on(base), saved_on(base, 2), saved_on(base, 3)])
    rows = [(row.kind, row.adapters, row.modules, row.rows, row.against) for row in found.rows]
    assert rows == [
        ("base", 0, 0, 2, None),
        ("merged", 0, 6, 2, 0), ("adapter", 1, 6, 2, 0),
        ("merged", 0, 6, 2, 1), ("adapter", 1, 6, 2, 1),
        ("merged", 0, 6, 2, 2), ("adapter", 1, 6, 2, 2),
        ("modules", 1, 2, 2, 0), ("modules", 1, 3, 2, 0),
        ("together", 2, 6, 4, None), ("together", 4, 6, 8, None),
    ]  # fmt: skip
    for row in found.rows:
        assert set(row.phases) == {"prefill", "per_token"}
        assert all(len(timing.seconds) == 2 and min(timing.seconds) > 0 for timing in row.phases.values())


def test_rounds_go_through_all_configurations_and_the_first_pass_of_each_is_not_timed(tiny_model, monkeypatch):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    passes = []
    own = speed._run_classifier

    def noted(base, ids, new):
        passes.append(tuple(ids.shape))
        return {"forward": float(len(passes))}, own(base, ids, new)[1]

    monkeypatch.setattr(speed, "_run_classifier", noted)
    found, _ = measured(base, [saved_on(base)], Workload(prompt_tokens=6, batch=2, repeats=3, tenants=2))
    number = len(found.rows)
    assert len(passes) == 2 * 3 * number
    # The second pass of a configuration's turn, turn after turn.
    for position, row in enumerate(found.rows):
        expected = [float(2 * (turn * number + position) + 2) for turn in range(3)]
        assert row.phases["forward"].seconds == tuple(expected)
    assert passes[-1] == (4, 6)


def test_as_many_adapters_at_once_are_measured_as_were_asked_for_and_no_row_comes_twice(tiny_model):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    saved = saved_on(base)
    two = speed._some_modules(saved, 2)
    found, _ = measured(base, [two], Workload(prompt_tokens=6, repeats=1, tenants=3))
    assert [(row.kind, row.adapters, row.modules) for row in found.rows[3:]] == [
        ("modules", 1, 1), ("together", 2, 2), ("together", 3, 2)
    ]  # fmt: skip
    assert [speed._together(most) for most in (1, 2, 4, 7)] == [[], [2], [2, 4], [2, 4, 7]]


def test_a_merge_that_computes_something_else_is_no_agreement(tiny_model, monkeypatch):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    quick = Workload(prompt_tokens=6, repeats=1, tenants=1)
    assert measured(base, [saved_on(base)], quick)[0].agreements[0].holds
    monkeypatch.setattr(speed, "module_updates", lambda *_: {})
    found = measured(base, [saved_on(base)], quick)[0].agreements[0]
    assert not found.holds
    assert not Agreement(float("nan"), 1.0, 1.0).holds


def test_memory_that_runs_out_is_told_with_what_was_measured(tiny_model, monkeypatch):
    base = base_of(tiny_model("bert"), "SEQ_CLS")

    def fail(*_):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(speed, "_run_classifier", fail)
    with pytest.raises(RunError, match="memory ran out while base alone was measured; measure fewer adapters at once"):
        measured(base, [saved_on(base)])


def test_several_adapters_at_once_give_each_its_own_answers(tiny_model):
    base = base_of(tiny_model("llama", "CAUSAL_LM"), "CAUSAL_LM")
    adapters = [saved_on(base), saved_on(base, 2)]
    ids = torch.tensor([[5, 9, 33, 71]])
    alone = []
    for adapter in adapters:
        with speed._put_in(base.model, speed._stacked(base, [adapter], ["a"])), torch.no_grad():
            alone.append(base.model(input_ids=ids).logits)
    swaps = speed._stacked(base, adapters, ["a", "b"])
    with speed._put_in(base.model, swaps), torch.no_grad():
        together = base.model(input_ids=ids.repeat(2, 1)).logits
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-10)


def test_on_a_packed_base_the_merged_layers_are_in_full_and_the_others_stay_packed(tiny_model):
    pytest.importorskip("bitsandbytes")
    base = base_of(tiny_model("llama", "CAUSAL_LM", torch.float32), "CAUSAL_LM")
    saved = saved_on(base)
    quantise(base.model, [*saved.weights.lora_A, "model.layers.0.self_attn.k_proj"])
    swaps = speed._merged(base, saved)
    assert swaps.keys() == saved.weights.lora_A.keys()
    assert not any(isinstance(module, NF4Linear) for module in swaps.values())
    assert isinstance(base.model.get_submodule("model.layers.0.self_attn.k_proj"), NF4Linear)
    found, _ = measured(base, [saved])
    assert found.agreements[0].difference < 1e-3 * found.agreements[0].effect


def test_a_packed_layer_that_was_stored_the_other_way_round_is_merged_too(tiny_model):
    pytest.importorskip("bitsandbytes")
    base = base_of(tiny_model("gpt2", "CAUSAL_LM", torch.float32), "CAUSAL_LM")
    saved = saved_on(base)
    quantise(base.model, list(saved.weights.lora_A))
    found, _ = measured(base, [saved])
    assert found.agreements[0].difference < 1e-3 * found.agreements[0].effect


def test_rows_longer_than_the_model_are_refused_before_anything_is_timed(tiny_model):
    base = base_of(tiny_model("gpt2", "CAUSAL_LM"), "CAUSAL_LM")
    with pytest.raises(
        UsageError, match="--prompt-tokens: 120 prompt tokens \\+ 9 new tokens exceed the model's 128 positions"
    ):
        measured(base, [saved_on(base)], Workload(prompt_tokens=120, new_tokens=9))
    classifier = base_of(tiny_model("gpt2"), "SEQ_CLS")
    found, _ = measured(classifier, [saved_on(classifier)], Workload(prompt_tokens=120, new_tokens=9, repeats=1, tenants=1))
    assert phases_of(classifier) == ("forward",)
    assert {row.kind for row in found.rows} == {"base", "merged", "adapter", "modules"}


def test_an_adapter_that_does_not_fit_is_refused(tiny_model):
    base = base_of(tiny_model("bert"), "SEQ_CLS")
    other = base_of(tiny_model("llama", "CAUSAL_LM"), "CAUSAL_LM")
    with pytest.raises(AdapterError, match=r"adapter 0.*no linear layer"):
        measured(base, [saved_on(other)])


def test_ratios_are_the_median_of_each_rounds_own():
    def row(*seconds):
        return Measured("r", "adapter", 1, 1, 1, {"forward": Timing(seconds)})

    one, other = row(2.0, 30.0, 4.0), row(1.0, 10.0, 4.0)
    assert Speed(SMALL, (one, other), ()).ratio(one, other, "forward") == 2.0
    assert Timing((3.0, 1.0, 2.0, 5.0, 4.0)).median == 3.0
    assert Timing((3.0, 1.0, 2.0, 5.0, 4.0)).spread == (2.0, 4.0)
    assert Timing((3.0,)).spread == (3.0, 3.0)
