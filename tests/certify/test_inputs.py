"""Inputs are the same every time, real where a task is given, and cut to what memory allows."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from lorascope.certify import inputs as module
from lorascope.certify.inputs import compared_positions, drawn_inputs, limited, task_inputs
from lorascope.config import TaskConfig


@pytest.fixture
def tokenizer(model_directory):
    return lambda family: AutoTokenizer.from_pretrained(model_directory(family))


@pytest.mark.parametrize(("family", "task_type"), [("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")])
def test_texts_are_drawn_the_same_every_time(tokenizer, family, task_type):
    one, again = (drawn_inputs(tokenizer(family), task_type) for _ in range(2))
    assert one.checksum() == again.checksum()
    assert len(one.examples) == module.NUM_DRAWN
    assert len({tuple(example.input_ids) for example in one.examples}) > module.NUM_DRAWN // 2
    assert "no task" in one.record()["from"]
    batch = next(one.batches(0, 160))
    places = compared_positions(batch, task_type)
    if task_type == "SEQ_CLS":
        assert places is None
        assert one.num_positions == module.NUM_DRAWN
    elif task_type == "CAUSAL_LM":
        # The prediction of every token but the first, and none of padding.
        assert len(places[0]) == int(batch.attention_mask_BT.sum()) - len(batch.rows)
    else:
        assert len(places[0]) == int(batch.target_mask_BS.sum())


def test_of_a_large_model_fewer_texts_are_drawn_and_they_are_the_first_of_the_others(tokenizer):
    every, few = (drawn_inputs(tokenizer("gpt2"), "CAUSAL_LM", number).examples for number in (10**8, 7 * 10**9))
    assert (len(every), len(few)) == (module.NUM_DRAWN, module.FEWEST_DRAWN)
    assert every[: len(few)] == few


def test_special_tokens_are_those_that_the_tokenizer_adds(tokenizer):
    encoder = tokenizer("bert")
    for example in drawn_inputs(encoder, "SEQ_CLS").examples:
        assert example.input_ids[0] == encoder.cls_token_id
        assert example.input_ids[-1] == encoder.sep_token_id


def test_a_tasks_examples_are_its_evaluation_split(tokenizer, tmp_path):
    rows = [{"text": f"the acting is {word}", "label": label} for word, label in (("wooden", "no"), ("bright", "yes"))]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TaskConfig(name="file", data=str(tmp_path), labels=["no", "yes"], max_length=32)
    found = task_inputs(config, "validation", "SEQ_CLS", tokenizer("bert"))
    assert found.task.labels == ("no", "yes")
    assert found.record() | {"checksum": "", "tokens": 0} == {
        "from": "task file, validation", "rows": 2, "positions": 2, "tokens": 0, "checksum": "",
    }  # fmt: skip


def test_rows_beyond_memory_or_positions_are_left_out_and_said_to_be(tokenizer, monkeypatch):
    drawn = drawn_inputs(tokenizer("gpt2"), "CAUSAL_LM")
    short = limited(drawn, 160, num_positions=12)
    assert short.examples
    assert all(len(example.input_ids) <= 12 for example in short.examples)
    monkeypatch.setattr(module, "_MOST_LOGITS", 5000)
    few = limited(drawn, 160, None)
    assert 1 <= len(few.examples) < len(drawn.examples)
    assert f"the first {len(few.examples)} of {module.NUM_DRAWN} rows" in few.record()["from"]
    assert len(limited(drawn, 10**9, None).examples) == 1


def test_every_position_is_compared_once(tokenizer):
    drawn = drawn_inputs(tokenizer("gpt2"), "CAUSAL_LM")
    total = sum(len(compared_positions(batch, "CAUSAL_LM")[0]) for batch in drawn.batches(0, 160))
    assert total == drawn.num_positions
    rows = torch.tensor([row for batch in drawn.batches(0, 160) for row in batch.rows])
    assert torch.equal(rows.sort().values, torch.arange(module.NUM_DRAWN))
