"""The checks of whole runs pass here, and catch what they are there for."""

import pytest

from lorascope import decode, losses
from lorascope.cohort import checkpoint
from lorascope.lora import frozen
from lorascope.lora.attention import PrefixCache
from lorascope.lora.parameters import SlotParameters


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch):
    """Which path is the fastest for models this small is chance, and trying them takes time."""
    monkeypatch.setattr(frozen, "choose", lambda *_: frozen.Choice("plain", {"plain": 1.0}, {"plain": 0.0}))


@pytest.mark.parametrize("name", ["resume", "decoding"])
def test_the_check_passes_here(name, check):
    result = check(name)
    assert result.status == "passed", result.showed
    assert result.figures["different"] == 0


def test_a_checkpoint_without_a_moment_is_caught(check, monkeypatch):
    original = SlotParameters.load_state

    def forgetting(self, state):
        original(self, state)
        self.second_moment_NP.zero_()

    monkeypatch.setattr(SlotParameters, "load_state", forgetting)
    result = check("resume")
    assert result.status == "failed"
    assert "results differ" in result.showed


def test_a_study_that_starts_again_is_caught(check, monkeypatch):
    monkeypatch.setattr(checkpoint.Checkpoints, "due", lambda self: False)
    assert check("resume").showed == "the study did not go on from its checkpoint"


def test_a_study_that_fails_is_caught(check, monkeypatch):
    def dying(*_, **__):
        raise RuntimeError("no attention here")

    monkeypatch.setattr(losses, "class_logits", dying)
    result = check("resume")
    assert result.status == "failed"


def test_another_choice_of_tokens_is_caught(check, monkeypatch):
    monkeypatch.setattr(decode.TokenChoice, "choose", lambda self, logits_NEV, *_: logits_NEV.topk(2, dim=-1).indices[..., 1])
    assert "answers are not those of generate" in check("decoding").showed


def test_positions_that_do_not_go_on_are_caught(check, monkeypatch):
    original = decode._logits

    def stuck(base, cache, ids_NT, position_NT, columns_C=None):
        return original(base, cache, ids_NT, position_NT if columns_C is not None else position_NT - 1, columns_C)

    monkeypatch.setattr(decode, "_logits", stuck)
    assert "answers are not those of generate" in check("decoding").showed


def test_a_cache_that_is_not_filled_is_caught(check, monkeypatch):
    assert callable(PrefixCache.advance)
    monkeypatch.setattr(PrefixCache, "advance", lambda self, going_on: None)
    assert check("decoding").status == "failed"


def test_prefixes_that_are_not_shared_are_caught(check, monkeypatch):
    monkeypatch.setattr(losses, "why_unsteerable", lambda model: "no reason")
    result = check("decoding")
    assert result.status == "failed"
    assert "prefixes are not shared: no reason" in result.showed
