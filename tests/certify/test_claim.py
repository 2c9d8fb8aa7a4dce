"""Whether there is room to run a model is known before it is loaded."""

import torch

from lorascope.base_model import skeleton
from lorascope.certify import why_tensors_only


def test_a_model_that_has_no_room_is_not_to_be_run(tiny_model):
    model = skeleton(tiny_model("llama", "CAUSAL_LM").config, "CAUSAL_LM")
    in_float32 = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert next(model.parameters()).device == torch.device("meta")
    assert why_tensors_only(model, 2 * in_float32) is None
    assert "are free" in why_tensors_only(model, in_float32)
    assert why_tensors_only(model) is None
