"""A truncated adapter loaded by PEFT gives the logits that it gives here, and those of the whole where nothing was lost."""

import peft
import pytest
import torch

from lorascope.analysis.truncated import keep_energy, line_up
from lorascope.analysis.updates import adapter_document, places_of, read_adapters
from lorascope.base_model import head_modules
from lorascope.lora.peft_io import read_adapter, write_adapter
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.lora.truncate import directions_of, truncated, write_truncated

FAMILIES = [("gpt2", "CAUSAL_LM"), ("llama", "CAUSAL_LM"), ("phi3", "CAUSAL_LM"), ("bert", "SEQ_CLS"), ("roberta", "SEQ_CLS")]
FAMILIES += [("t5", "SEQ_2_SEQ_LM"), ("bart", "SEQ_2_SEQ_LM")]
CASES = {"plain": {}, "rslora": {"use_rslora": True}, "biases": {"bias": "all"}, "own biases": {"bias": "lora_only"}}
IDS = torch.tensor([[5, 9, 33, 71, 12, 4], [8, 90, 14, 7, 66, 4]])


def logits_of(model):
    model.config.pad_token_id = 0
    more = {"decoder_input_ids": IDS[:, 1:5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **more).logits


def whole_adapter(model, task_type, directory, *, use_rslora=False, **slot_values):
    """Rank 3 inside r = 16 at every role, written; its logits."""
    heads = head_modules(model, task_type)
    scaling = 20 / (4.0 if use_rslora else 16.0)
    placements = tuple(Placement(target, 16, scaling) for target in resolve(model, ["query", "value", "down"], heads))
    slot = Slot("a", 1, placements, use_rslora=use_rslora, **slot_values)
    stack = Stack(model, [slot], heads)
    weights = stack.read(0)
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for key in weights.lora_A:
        # Slices of one fused projection share the adapter that PEFT sees: rank 3 each, side by side.
        weights.lora_A[key] = random(16, 3) @ random(3, weights.lora_A[key].shape[1]) / 8
        weights.lora_B[key] = random(weights.lora_B[key].shape[0], 3) @ random(3, 16) / 8
    for group in (weights.biases, weights.heads):
        for value in group.values():
            value += 0.2 * random(*value.shape)
    stack.write(0, weights)
    logits = logits_of(model)
    write_adapter(directory, weights, slot, model, heads=heads, base_model="", task_type=task_type)
    stack.detach()
    return logits


def cut(source, directory, ranks_of):
    saved = read_adapter(source)
    directions = directions_of(saved.weights)
    directory.mkdir()
    write_truncated(source, directory, truncated(saved, directions, ranks_of(directions)))
    return read_adapter(directory)


def ours(model, task_type, saved):
    stack = Stack(model, [saved.slot], head_modules(model, task_type))
    stack.write(0, saved.weights)
    logits = logits_of(model)
    stack.detach()
    return logits


def theirs(model, directory):
    return logits_of(peft.PeftModel.from_pretrained(model, str(directory), autocast_adapter_dtype=False).eval())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("family", "task_type"), FAMILIES)
def test_rank_three_inside_sixteen_cut_to_three_has_equal_logits(family, task_type, case, tiny_model, tmp_path):
    whole = whole_adapter(tiny_model(family, task_type), task_type, tmp_path, **CASES[case])
    saved = cut(tmp_path, tmp_path / "cut", lambda found: {key: one.numerical_rank for key, one in found.items()})
    slices = {"gpt2": 6, "phi3": 6}.get(family, 3)
    assert {placement.r for placement in saved.slot.placements} <= {3, slices}
    assert (ours(tiny_model(family, task_type), task_type, saved) - whole).abs().max() < 1e-10
    assert (theirs(tiny_model(family, task_type), tmp_path / "cut") - whole).abs().max() < 1e-10
    assert (logits_of(tiny_model(family, task_type)) - whole).abs().max() > 1e-2


@pytest.mark.parametrize("case", ["plain", "rslora", "biases"])
@pytest.mark.parametrize(("family", "task_type"), FAMILIES)
def test_a_pattern_of_ranks_with_modules_left_out_means_the_same_in_peft(family, task_type, case, tiny_model, tmp_path):
    whole = whole_adapter(tiny_model(family, task_type), task_type, tmp_path, **CASES[case])
    saved = cut(tmp_path, tmp_path / "cut", lambda found: {key: number % 4 for number, key in enumerate(found)})
    assert {placement.r for placement in saved.slot.placements} == {1, 2, 3}
    here = ours(tiny_model(family, task_type), task_type, saved)
    assert (theirs(tiny_model(family, task_type), tmp_path / "cut") - here).abs().max() < 1e-10
    assert (here - whole).abs().max() > 1e-3


@pytest.mark.parametrize(("family", "task_type"), [("llama", "CAUSAL_LM"), ("bert", "SEQ_CLS"), ("t5", "SEQ_2_SEQ_LM")])
def test_rank_three_stored_in_bfloat16_is_seen_as_three_and_cut_to_three_with_equal_logits(
    family, task_type, tiny_model, three_directions_in_bfloat16, tmp_path
):
    whole_adapter(tiny_model(family, task_type), task_type, tmp_path)
    three_directions_in_bfloat16(tmp_path, seed=8)
    (one,) = read_adapters([tmp_path])
    rows = adapter_document(one, places_of(one.modules))["modules"]
    assert {(row["r"], row["dtype"], row["numerical_rank"]) for row in rows} == {(16, "bfloat16", 3)}
    line = line_up(one.saved, "here")
    (tmp_path / "cut").mkdir()
    write_truncated(tmp_path, tmp_path / "cut", line.cut(keep_energy(line, 0.0)))
    assert {placement.r for placement in read_adapter(tmp_path / "cut").slot.placements} == {3}
    whole, found = (theirs(tiny_model(family, task_type), tmp_path / name) for name in ("", "cut"))
    moved = (whole - logits_of(tiny_model(family, task_type))).abs().max()
    # What is left out is what rounding to bfloat16 put in.
    assert (whole - found).abs().max() < 2**-6 * moved
