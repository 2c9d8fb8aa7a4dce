"""One base, several saved adapters: who answers, with which prompt, and what is refused before anything is loaded."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch

from lorascope.base_model import load_base, weights_checksum
from lorascope.config import BaseModelConfig, DecodingConfig
from lorascope.data.record import Example, Segment
from lorascope.data.turns import Prompt
from lorascope.decode import generate
from lorascope.errors import AdapterError, ModelError, UsageError
from lorascope.inference import Dialogue, open_session
from lorascope.lora.peft_io import write_adapter
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve

PROMPT = "who wrote the first engine paper"
SHORT = DecodingConfig(max_new_tokens=8)


@pytest.fixture
def adapter(model_directory, tmp_path):
    """``adapter(name, seed, targets, family="gpt2")``: a directory with an adapter that changes every answer."""

    def make(name, seed, targets=("query", "value"), family="gpt2", base_model=None, task_type=None):
        base = load_base(BaseModelConfig(model=str(model_directory(family))), "CAUSAL_LM")
        placements = tuple(Placement(one, 2 + seed, 2.0) for one in resolve(base.model, list(targets), base.heads))
        slot = Slot(name, seed, placements)
        stack = Stack(base.model, [slot])
        weights = stack.read(0)
        generator = torch.Generator().manual_seed(seed)
        for value in weights.lora_B.values():
            value += torch.randn(value.shape, generator=generator)
        stack.detach()
        directory = tmp_path / name
        directory.mkdir(parents=True)
        named = str(model_directory(family)) if base_model is None else base_model
        kind = task_type or base.task_type
        write_adapter(directory, weights, slot, base.model, heads=(), base_model=named, task_type=kind)
        return directory

    return make


def answers(session, names, text=PROMPT, decoding=SHORT, **more):
    """Answers by slot and sample."""
    with closing(session.stream(session.turns.raw(text), decoding, names, **more)) as pieces:
        return {(piece.slot, piece.question): piece.answer for piece in pieces if piece.answer is not None}


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_side_by_side_everyone_answers_as_alone_and_the_base_is_untouched(family, adapter, model_directory):
    paths = {"a": adapter("a", 1, family=family), "b": adapter("b", 2, ["down"], family=family)}
    with open_session(None, paths) as session:
        checksum = weights_checksum(session.base.model, ())
        assert session.names == ("base", "a", "b")
        together = answers(session, ["base", "a", "b"])
        assert len({one.tokens for one in together.values()}) == 3, "the adapters say something else"
        for index, name in enumerate(session.names):
            assert answers(session, [name])[0, 0].tokens == together[index, 0].tokens
        assert [one.tokens for one in answers(session, ["b", "base"]).values()] == [
            together[2, 0].tokens, together[0, 0].tokens
        ]  # fmt: skip
    for name, path in paths.items():
        with open_session(str(model_directory(family)), {name: path}) as alone:
            assert answers(alone, [name])[0, 0].tokens == together[session.names.index(name), 0].tokens
    with open_session(str(model_directory(family)), {}) as plain:
        assert plain.names == ("base",)
        assert answers(plain, ["base"])[0, 0].tokens == together[0, 0].tokens
        assert weights_checksum(plain.base.model, ()) == checksum


def test_an_answer_is_what_evaluation_generates(adapter):
    with open_session(None, {"a": adapter("a", 1)}) as session:
        streamed = answers(session, ["a"])[0, 0]
        prompt = session.turns.raw(PROMPT)
        example = Example("x", prompt.ids, [False] * len(prompt.ids), None, len(prompt.ids))
        with session._stack.running([1]):
            [(_, [[whole]])] = list(generate(session._stack, session.base, [example], SHORT, 10**6))
    assert (streamed.text.strip(), streamed.tokens, streamed.finished) == (whole.text, whole.tokens, whole.finished)


def test_a_raw_prompt_and_its_answer_make_one_text(model_directory):
    with open_session(str(model_directory("gpt2")), {}) as session:
        prompt, answer = session.turns.raw(PROMPT), answers(session, ["base"])[0, 0]
        decoded = session.base.tokenizer.decode([*prompt.ids, *answer.tokens], skip_special_tokens=True)
        assert PROMPT + answer.text == decoded


def test_drawn_answers_depend_on_the_seed_alone(adapter):
    drawn = DecodingConfig(strategy="temperature", temperature=1.5, samples=3, max_new_tokens=8)
    with open_session(None, {"a": adapter("a", 1), "b": adapter("b", 2)}) as session:
        first = answers(session, ["a"], decoding=drawn, seed=5)
        assert len({one.tokens for one in first.values()}) == 3
        assert answers(session, ["base", "b", "a"], decoding=drawn, seed=5)[2, 1].tokens == first[0, 1].tokens
        assert answers(session, ["a"], decoding=drawn, seed=6) != first
        assert answers(session, ["a"], decoding=drawn, seed=5, name="another turn") != first
        greedy = answers(session, ["a"], seed=5)
        assert answers(session, ["a"], seed=6) == greedy


def test_an_answer_has_the_room_that_the_positions_leave(model_directory):
    with open_session(str(model_directory("gpt2")), {}) as session:
        assert session.num_positions == 128
        long = DecodingConfig(max_new_tokens=100)
        prompt = Prompt([50, 60, 70, 80] * 30, "raw")
        session.base.model.generation_config.eos_token_id = None
        session.base.tokenizer.eos_token = None
        [last] = [piece.answer for piece in session.stream(prompt, long, ["base"]) if piece.answer]
        assert len(last.tokens) == 8
        assert not last.finished
        too_long = Prompt([50, 60, 70, 80] * 32, "raw")
        with pytest.raises(UsageError, match=r"the prompt has 128 tokens, and the model can read 127 and write one more"):
            next(session.stream(too_long, long, ["base"]))


def test_an_encoder_with_positions_reads_no_more_than_it_has(model_directory):
    with open_session(str(model_directory("bart")), {}) as session:
        assert session.num_positions == 64
        prompt = session.turns.raw("too slow " * 60)
        with pytest.raises(UsageError, match=r"the prompt has \d+ tokens"):
            next(session.stream(prompt, SHORT, ["base"]))
        assert session.room(session.turns.raw("too slow"), DecodingConfig(max_new_tokens=100)) == 64


def test_a_dialogue_goes_on_with_another_adapter_reads_what_was_said_and_forgets(adapter):
    with open_session(None, {"a": adapter("a", 1), "b": adapter("b", 2)}) as session:
        dialogue = Dialogue(session, "a", SHORT, system="be brief")
        first = "".join(piece.text for piece in dialogue.ask("the first"))
        assert dialogue.messages == [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "the first"},
            {"role": "assistant", "content": first},
        ]
        dialogue.speaker = "b"
        second = "".join(piece.text for piece in dialogue.ask("the other"))
        assert dialogue.speakers == ["a", "b"]
        asked = session.base.tokenizer.decode(dialogue.asked.ids)
        end = session.base.tokenizer.eos_token
        # The tokenizer knows no U.
        assert asked == f"be brief\nser: the first\nAssistant: {first}{end}ser: the other\nAssistant:"
        expected = answers_to(session, dialogue.asked, "b")
        assert second == expected
        compared = list(dialogue.compare("and now"))
        assert {piece.slot for piece in compared} == {0, 1, 2}
        assert len(dialogue.said) == 4, "comparing is not talking"
        assert dialogue.undo()
        assert [message["content"] for message in dialogue.messages] == ["be brief", "the first", first]
        dialogue.reset()
        assert dialogue.messages == [{"role": "system", "content": "be brief"}]
        assert not dialogue.undo()


def answers_to(session, prompt, name):
    return "".join(piece.text for piece in session.stream(prompt, SHORT, [name]))


def test_an_answer_that_is_broken_off_stays_as_far_as_it_came(adapter):
    with open_session(None, {"a": adapter("a", 1)}) as session:
        dialogue = Dialogue(session, "a", DecodingConfig(max_new_tokens=20))
        text = ""
        pieces = dialogue.ask("the first")
        while len(text) < 4:
            text += next(pieces).text
        pieces.close()
        assert dialogue.said == [Segment("the first", role="user"), Segment(text, role="assistant")]
        assert next(dialogue.ask("the next")) is not None, "and the session goes on"


def test_of_several_samples_the_first_one_stays(adapter):
    drawn = DecodingConfig(strategy="temperature", temperature=1.5, samples=2, max_new_tokens=8)
    with open_session(None, {"a": adapter("a", 1)}) as session:
        dialogue = Dialogue(session, "a", drawn)
        texts = {0: "", 1: ""}
        for piece in dialogue.ask("the first"):
            texts[piece.question] += piece.text
        assert texts[0] != texts[1]
        assert dialogue.said[-1].text == texts[0]


def test_a_history_that_no_longer_fits_is_cut_from_the_front(model_directory):
    with open_session(str(model_directory("gpt2")), {}) as session:
        dialogue = Dialogue(session, "base", DecodingConfig(max_new_tokens=30), system="brief")
        dialogue.said = [Segment(f"{'too slow ' * 3}{index}", role=("user", "assistant")[index % 2]) for index in range(8)]
        dialogue.speakers = ["base"] * 4
        list(dialogue.ask("the last"))
        assert dialogue.asked.num_left_out > 0
        text = session.base.tokenizer.decode(dialogue.asked.ids)
        assert text.startswith("brief\n")
        assert text.endswith("ser: the last\nAssistant:")
        assert "too slow 0" not in text
        assert len(dialogue.asked.ids) <= 128 - 30
        assert len(dialogue.said) in (8, 10), "what was said is kept, though it is not read"
        with pytest.raises(UsageError, match=r"the prompt has \d+ tokens"):
            list(dialogue.ask("too slow " * 40))


def test_adapters_of_different_bases_are_refused_unless_a_base_is_named(adapter, model_directory):
    paths = {"a": adapter("a", 1), "b": adapter("b", 2, base_model="somewhere/else")}
    with pytest.raises(
        UsageError, match=r"b: adapters of different bases: .*a is of .*gpt2.*, this one of somewhere/else; leave one out"
    ):
        open_session(None, paths)
    with open_session(str(model_directory("gpt2")), paths) as session:
        assert any("b was trained on somewhere/else" in warning for warning in session.warnings)
        assert not any("a was trained" in warning for warning in session.warnings)
    revised = json.loads((paths["a"] / "adapter_config.json").read_text())
    twin = paths["a"].parent / "twin"
    shutil.copytree(paths["a"], twin)
    (twin / "adapter_config.json").write_text(json.dumps(revised | {"revision": "v2"}))
    with pytest.raises(UsageError, match=r"this one of .* \(v2\)"):
        open_session(None, {"a": paths["a"], "twin": twin})


def test_what_cannot_answer_is_refused_by_name(adapter, model_directory, tmp_path):
    gpt2, bert = str(model_directory("gpt2")), str(model_directory("bert"))
    (tmp_path / "empty").mkdir()
    good = adapter("good", 1)
    other = adapter("other", 1, family="llama", base_model=gpt2)
    judging = adapter("judging", 1, task_type="SEQ_CLS")
    gone = adapter("gone", 1, base_model=str(tmp_path / "gone-base"))
    nameless = adapter("nameless", 1, base_model="")
    (nameless / "adapter_config.json").write_text(
        json.dumps(json.loads((good / "adapter_config.json").read_text()) | {"base_model_name_or_path": None})
    )
    for base, paths, kind, what in [
        (None, {}, UsageError, "there is no model; give --base or --adapter"),
        (bert, {}, ModelError, "this model writes nothing: bert is no causal model"),
        (gpt2, {"empty": tmp_path / "empty"}, AdapterError, "no PEFT adapter here"),
        (gpt2, {"whole": Path(gpt2)}, AdapterError, "this is a whole model, no adapter; give it with --base"),
        (str(good), {}, UsageError, "this is an adapter, no whole model; give the base that it was trained on"),
        (None, {"other": other}, AdapterError, "the base model has no linear layer"),
        (None, {"judging": judging}, AdapterError, "this adapter writes nothing: it was trained for SEQ_CLS"),
        (None, {"gone": gone}, AdapterError, "gone-base is not there; say where with --base"),
        (None, {"nameless": nameless}, UsageError, "the adapter names no base model; give it with --base"),
    ]:
        with pytest.raises(kind, match=what):
            open_session(base, paths)
    with (
        open_session(None, {"good": good}) as session,
        pytest.raises(UsageError, match="no adapter 'god'; did you mean 'good'"),
    ):
        next(session.stream(session.turns.raw(PROMPT), SHORT, ["god"]))


def test_a_base_that_lacks_a_part_writes_nothing_without_an_adapter_that_brings_it(model_directory, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_directory("llama"))
    model.model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_directory("llama")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"the checkpoint holds no 'lm_head.weight', so that the model would write noise"):
        open_session(str(tmp_path), {})
