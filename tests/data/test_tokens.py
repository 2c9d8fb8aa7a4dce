"""What a tokenizer says: beginnings, special tokens, and the characters that a token covers."""

import pytest
from transformers import AutoTokenizer

from lorascope.data.tokens import (
    BATCH_TEXTS,
    beginning,
    end_token,
    first_at,
    shared,
    special_ids,
    special_texts,
    tokenise,
    with_offsets,
)
from lorascope.errors import ModelError


def test_the_beginning_is_what_the_tokenizer_puts_before_a_text(causal, causal_with_bos, encoder, encoder_decoder):
    assert (beginning(causal), beginning(causal_with_bos)) == ([], [causal_with_bos.bos_token_id])
    assert beginning(encoder) == [encoder.cls_token_id]
    assert beginning(encoder_decoder) == []


def test_special_ids_are_the_named_and_the_added_ones(chat, encoder):
    assert special_ids(chat) >= {chat.eos_token_id, chat.convert_tokens_to_ids("<|im_end|>")}
    assert chat.convert_tokens_to_ids("cat") not in special_ids(chat)
    assert set(special_texts(chat)) == {"<s>", "</s>", "<|im_start|>", "<|im_end|>"}
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        end_token(encoder)


def test_a_place_within_a_token_has_no_first_token_behind_it():
    offsets = [(0, 3), (3, 4), (3, 4), (4, 9)]
    assert [first_at(offsets, position) for position in (0, 3, 4, 6, 9)] == [0, 1, 3, None, 4]


def test_one_token_is_one_object_wherever_it_occurs(metaspace):
    (first, _), (second, _) = with_offsets(["the cat é", "a dog é"], metaspace)
    assert first[-1] > 0
    assert all(one is other for one, other in zip(first[-2:], second[-2:], strict=True))
    third = tokenise(["the mat é"], metaspace)["the mat é"]
    assert (third[-2:], third[-1] is first[-1]) == (first[-2:], True)
    assert shared([7, 10**9], metaspace) == [7, 10**9]


def test_more_texts_than_one_batch_come_back_in_order(metaspace):
    texts = [f"the cat {number}" for number in range(BATCH_TEXTS + 3)]
    found = list(with_offsets(texts, metaspace))
    assert [metaspace.decode(ids) for ids, _ in found] == texts
    assert all(offsets[-1][1] == len(text) for (_, offsets), text in zip(found, texts, strict=True))


def test_the_tests_own_tokenizers_have_the_same_ids_in_every_process(model_directory):
    ids = {
        family: AutoTokenizer.from_pretrained(model_directory(family))("the river flows")["input_ids"]
        for family in ("gpt2", "t5", "bert")
    }
    assert ids == {
        "gpt2": [101, 55, 99, 51, 71, 109, 48],
        "t5": [101, 55, 99, 51, 71, 109, 48, 1],
        "bert": [2, 50, 21, 131, 88, 43, 3],
    }
