"""Whether there is room to run a model is known before it is loaded."""

import pytest
import torch

from lorascope.base_model import skeleton
from lorascope.certify import why_tensors_only


def test_a_model_that_has_no_room_is_not_to_be_run(tiny_model):
    model = skeleton(tiny_model("llama", "CAUSAL_LM").config, "CAUSAL_LM")
    in_float32 = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert next(model.parameters()).device == torch.device("meta")
    assert why_tensors_only(model, limit_bytes=2 * in_float32) is None
    assert "are free" in why_tensors_only(model, limit_bytes=in_float32)
    assert why_tensors_only(model) is None


@pytest.mark.parametrize(("cuda", "cpu", "where"), [(1, 10**9, "on cuda"), (10**9, 1, "on cpu"), (10**9, 10**9, None)])
def test_a_model_on_a_gpu_needs_room_there_and_on_its_way(cuda, cpu, where, tiny_model, monkeypatch):
    monkeypatch.setattr("lorascope.certify.claim.free_bytes", {"cuda": cuda, "cpu": cpu}.get)
    model = skeleton(tiny_model("llama", "CAUSAL_LM").config, "CAUSAL_LM")
    why = why_tensors_only(model, "cuda")
    assert why is None if where is None else why.endswith(where)
