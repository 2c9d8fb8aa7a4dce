"""An adapter that PEFT alone made is talked to here: its greedy answers are those of ``model.generate`` of PEFT's model."""

import json

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
)

from lorascope.config import DecodingConfig
from lorascope.inference import Dialogue, open_session

TARGETS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "v_proj", "down_proj"], "t5": ["q", "v"]}
PROMPTS = ("who wrote the first engine paper", "a", "it is a bright funny film with a warm heart and too long")
NEW_TOKENS = 24
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def made_by_peft(family, base_directory, directory, seed, **more):
    """A trained adapter as PEFT saves it, and PEFT's model that loads it again."""
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    kind = "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        more |= {"fan_in_fan_out": family == "gpt2"}
        config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS[family], task_type=kind, **more)
        model = peft.get_peft_model(auto.from_pretrained(base_directory), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return peft.PeftModel.from_pretrained(auto.from_pretrained(base_directory), directory).eval()


def generated(model, ids, family):
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
        eos_token_id=model.generation_config.eos_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id if family == "t5" else None,
    )
    ids = torch.tensor([ids])
    # Left to itself, transformers makes room for as many decoder layers as a T5's encoder has.
    cache = {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())} if family == "t5" else {}
    with torch.no_grad():
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, **cache)
    tokens = output[0, 1 if family == "t5" else ids.shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    return tokens[: tokens.index(end)] if end in tokens else tokens


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("more", [{}, {"use_rslora": True, "bias": "lora_only"}], ids=["plain", "rslora and biases"])
def test_greedy_answers_are_those_of_pefts_generate_token_for_token(family, more, model_directory, tmp_path):
    base = model_directory(family)
    models = {name: made_by_peft(family, base, tmp_path / name, seed, **more) for seed, name in enumerate("ab", 1)}
    tokenizer = AutoTokenizer.from_pretrained(base)
    decoding = DecodingConfig(max_new_tokens=NEW_TOKENS)
    with open_session(None, {name: tmp_path / name for name in models}) as session:
        for text in PROMPTS:
            ids = tokenizer(text)["input_ids"]
            prompt = session.turns.raw(text)
            assert prompt.ids == ids
            pieces = list(session.stream(prompt, decoding, ["a", "b"]))
            for slot, (name, model) in enumerate(models.items()):
                expected = generated(model, ids, family)
                [answer] = [piece.answer for piece in pieces if piece.slot == slot and piece.answer is not None]
                assert list(answer.tokens) == expected, name
                shown = "".join(piece.text for piece in pieces if piece.slot == slot)
                assert shown == tokenizer.decode(expected, skip_special_tokens=True)


def test_an_output_layer_that_peft_trained_whole_writes_beside_the_bases_own(model_directory, tmp_path):
    base = model_directory("llama")
    model = made_by_peft("llama", base, tmp_path / "a", 3, modules_to_save=["lm_head"])
    plain = AutoModelForCausalLM.from_pretrained(base)
    with open_session(None, {"a": tmp_path / "a"}) as session:
        prompt = session.turns.raw(PROMPTS[0])
        pieces = list(session.stream(prompt, DecodingConfig(max_new_tokens=NEW_TOKENS), ["base", "a"]))
    written = [list(piece.answer.tokens) for piece in pieces if piece.answer is not None]
    expected = [generated(one, prompt.ids, "llama") for one in (plain, model)]
    assert sorted(written) == sorted(expected)
    assert expected[0] != expected[1]


def test_a_chat_with_a_template_is_pefts_generate_on_the_whole_conversation_turn_by_turn(model_directory, tmp_path):
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(model_directory("llama")).save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(model_directory("llama"))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    model = made_by_peft("llama", base, tmp_path / "a", 5)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    messages = []
    with open_session(None, {"a": tmp_path / "a"}) as session:
        dialogue = Dialogue(session, "a", DecodingConfig(max_new_tokens=NEW_TOKENS))
        for text in ("the river", "and London"):
            messages.append({"role": "user", "content": text})
            ids = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
            expected = tokenizer.decode(generated(model, ids, "llama"), skip_special_tokens=True).strip()
            shown = "".join(piece.text for piece in dialogue.ask(text))
            assert dialogue.asked.ids == ids
            assert shown == expected
            assert shown, "there is something to compare"
            messages.append({"role": "assistant", "content": shown})
    assert dialogue.messages == messages
