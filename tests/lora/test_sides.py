"""Whose rows a module of an encoder–decoder sees, found by asking the model."""

import pytest
import torch
from torch import nn

from lorascope.errors import ModelError
from lorascope.lora.layer import DropoutPlan
from lorascope.lora.sides import decoder_fed, is_encoder_decoder
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.streams import keep_mask
from lorascope.lora.targets import resolve


@pytest.mark.parametrize("family", ["t5", "gated-t5", "bart"])
def test_cross_attention_makes_keys_and_values_of_the_encoders_rows_and_queries_of_the_decoders(family, tiny_model):
    model = tiny_model(family, "SEQ_2_SEQ_LM")
    every = resolve(model, "all-linear", ())
    fed = decoder_fed(model, [target.module for target in every])
    for target in every:
        in_decoder = "decoder." in target.module
        assert (target.module in fed) == (in_decoder and target.role not in ("cross_key", "cross_value")), target


def test_every_dropout_of_the_decoder_sees_its_rows(tiny_model):
    model = tiny_model("t5", "SEQ_2_SEQ_LM")
    dropouts = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout)]
    assert decoder_fed(model, dropouts) == {name for name in dropouts if name.startswith("decoder.")}


def test_asking_leaves_no_trace(tiny_model):
    model = tiny_model("t5", "SEQ_2_SEQ_LM")
    state = torch.get_rng_state()
    decoder_fed(model, ["decoder.block.0.layer.0.SelfAttention.q"])
    assert torch.equal(torch.get_rng_state(), state)
    assert not [module for module in model.modules() if module._forward_pre_hooks]


def test_models_with_one_kind_of_rows_have_no_decoders(tiny_model):
    for family, task_type in (("gpt2", "CAUSAL_LM"), ("bert", "SEQ_CLS")):
        model = tiny_model(family, task_type)
        assert not is_encoder_decoder(model)
        assert decoder_fed(model, [name for name, _ in model.named_modules()]) == frozenset()


def test_a_module_that_is_given_no_rows_is_named(tiny_model):
    with pytest.raises(ModelError, match="'shared' is given no rows of tokens"):
        decoder_fed(tiny_model("t5", "SEQ_2_SEQ_LM"), ["shared"])


def test_a_mask_is_that_of_the_modules_own_rows_where_both_are_equally_wide(tiny_model):
    model = tiny_model("t5", "SEQ_2_SEQ_LM")
    placements = tuple(Placement(target, 2, 1.0) for target in resolve(model, ["cross_query", "cross_key"], ()))
    stack = Stack(model, [Slot("s", 7, placements, dropout=0.5)])
    # The second row of a batch: four tokens of the encoder came before it, nine of the decoder.
    stack.context.dropout = DropoutPlan(3, [[[(4, 6)]]], [[[(9, 6)]]])
    x_NBTD = torch.zeros(1, 1, 6, 16, dtype=torch.float64)
    for name, first in (("q", 9), ("k", 4)):
        module = f"decoder.block.1.layer.1.EncDecAttention.{name}"
        expected = keep_mask(0.5, 16, [[(first, 6)]], 6, 3, module, seed=7)
        assert torch.equal(stack.context.dropout_mask([0.5], module, x_NBTD)[0], expected.double())
    stack.detach()
