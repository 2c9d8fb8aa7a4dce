"""Encoder–decoders against transformers and PEFT: losses, answers and counts, each adapter of a stack on its own."""

import json
import math

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, T5Config

from lorascope.base_model import load_base, read_config, task_type_of
from lorascope.config import (
    AdapterConfig,
    BaseModelConfig,
    DecodingConfig,
    EvaluateConfig,
    TaskConfig,
    TrainConfig,
    TrialConfig,
)
from lorascope.data.packing import collate
from lorascope.data.task import Example, Task
from lorascope.decode import end_tokens, generate
from lorascope.errors import ModelError
from lorascope.evaluate import evaluate
from lorascope.lora.linear import num_parameters
from lorascope.lora.peft_io import write_adapter
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.losses import padded_losses
from lorascope.plan import Workload, check_lengths, estimate, meta_model, workload

FAMILIES = ("t5", "gated-t5", "bart")
NEW_TOKENS = 6


@pytest.fixture
def base_of(model_directory):
    return lambda family: load_base(BaseModelConfig(model=str(model_directory(family)), dtype="float64"), "CAUSAL_LM")


def questions(count=5):
    generator = torch.Generator().manual_seed(4)
    examples = []
    for index in range(count):
        length = int(torch.randint(2, 14, (1,), generator=generator))
        ids = [*torch.randint(4, 150, (length,), generator=generator).tolist(), 1]
        answer = [*torch.randint(4, 150, (1 + index % 3,), generator=generator).tolist(), 1]
        examples.append(Example(f"q{index}", ids, None, None, len(ids), ("the",), target_ids=answer))
    return examples


def stack_of(base, num_slots):
    """Adapters on every projection, with random numbers everywhere."""
    placements = tuple(Placement(target, 2, 2.0) for target in resolve(base.model, "all-linear", ()))
    stack = Stack(base.model, [Slot(f"s{index}", index, placements, dropout=0.5) for index in range(num_slots)])
    for index in range(num_slots):
        weights = stack.read(index)
        generator = torch.Generator().manual_seed(index)
        for value in weights.lora_B.values():
            value += 0.5 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        stack.write(index, weights)
    return stack


def answers(stack, base, examples, decoding, batch_tokens=10**6):
    """Token ids by slot and example."""
    table = [[None] * len(examples) for _ in range(stack.num_slots)]
    for rows, generated in generate(stack, base, examples, decoding, batch_tokens):
        for slot, of_slot in enumerate(generated):
            for row, answer in zip(rows, of_slot, strict=True):
                table[slot][row] = list(answer.tokens)
    return table


def result_of(run):
    while True:
        try:
            next(run)
        except StopIteration as stop:
            return stop.value


@pytest.mark.parametrize("family", FAMILIES)
def test_each_slot_loses_and_answers_as_its_exported_adapter_does_in_peft(family, base_of, model_directory, tmp_path):
    """Perplexity over the targets, and greedy answers token for token, one unpadded question at a time."""
    base, examples = base_of(family), questions()
    assert (base.task_type, base.plain_head) == ("SEQ_2_SEQ_LM", True)
    settings = EvaluateConfig(decoding=[DecodingConfig(max_new_tokens=NEW_TOKENS)], batch_tokens=70)
    task = Task("t", "SEQ_2_SEQ_LM", (), [], examples, "validation", "", "", [], True, ("exact_match", "f1"))
    stack = stack_of(base, 2)
    evaluations = result_of(evaluate(stack, base, task, settings))
    tokens = answers(stack, base, examples, settings.decoding[0], settings.batch_tokens)
    for index, slot in enumerate(stack.slots):
        (tmp_path / slot.name).mkdir()
        write_adapter(
            tmp_path / slot.name, stack.read(index), slot, base.model, heads=(), base_model="", task_type=base.task_type
        )
    stack.detach()
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0, eos_token_id=1, decoder_start_token_id=base.start_id,
        use_cache=False,
    )  # fmt: skip
    for index, evaluation in enumerate(evaluations):
        model = AutoModelForSeq2SeqLM.from_pretrained(model_directory(family), dtype=torch.float64)
        model = peft.PeftModel.from_pretrained(model, tmp_path / f"s{index}", autocast_adapter_dtype=False).eval()
        assert model.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
        losses, answered = [], []
        for example in examples:
            ids = torch.tensor([example.input_ids])
            with torch.no_grad():
                losses.append(model(input_ids=ids, labels=torch.tensor([example.target_ids])).loss.item())
                output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
            answered.append([token for token in output[0, 1:].tolist() if token != 1])
        counts = [len(example.target_ids) for example in examples]
        mean = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
        assert evaluation.metrics["eval_loss"] == pytest.approx(mean, rel=1e-6)
        assert evaluation.metrics["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
        assert [row["loss"] for row in evaluation.predictions] == pytest.approx(losses, abs=2e-6)
        assert tokens[index] == answered
    assert tokens[0] != tokens[1]


@pytest.mark.parametrize("strategy", ["temperature", "top_k", "nucleus"])
def test_a_drawn_answer_depends_on_slot_and_question_alone(strategy, base_of):
    base, examples = base_of("t5"), questions()
    decoding = DecodingConfig(strategy=strategy, max_new_tokens=NEW_TOKENS)
    stack = stack_of(base, 2)
    together = answers(stack, base, examples, decoding)
    assert answers(stack, base, examples, decoding, batch_tokens=1) == together
    stack.keep(["s1"])
    assert answers(stack, base, examples[::-1], decoding) == [together[1][::-1]]
    stack.detach()
    assert together[0] != together[1]
    assert len({tuple(answer) for answer in together[0]}) > 1


@pytest.mark.parametrize("packs_a_bias", [False, True])
def test_a_head_that_adds_something_is_seen_and_its_loss_is_the_models_own(packs_a_bias, base_of, model_directory, tmp_path):
    model = AutoModelForSeq2SeqLM.from_pretrained(model_directory("bart"), dtype=torch.float64)
    if packs_a_bias:
        model.final_logits_bias += torch.linspace(-2.0, 2.0, model.final_logits_bias.shape[1], dtype=torch.float64)
    for file in model_directory("bart").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(tmp_path)
    base = load_base(BaseModelConfig(model=str(tmp_path), dtype="float64"), "CAUSAL_LM")
    assert base.plain_head != packs_a_bias
    batch = collate(questions(), range(5), base.pad_id)
    with torch.no_grad():
        ours = padded_losses(base, batch).sum() / batch.target_mask_BS.sum()
        labels = batch.target_ids_BS.masked_fill(~batch.target_mask_BS, -100)
        theirs = base.model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=labels).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_the_base_decides_what_a_text_task_is(model_directory):
    configs = {family: read_config(BaseModelConfig(model=str(model_directory(family)))) for family in ("t5", "bart", "gpt2")}
    for family, form in (("t5", "SEQ_2_SEQ_LM"), ("bart", "SEQ_2_SEQ_LM"), ("gpt2", "CAUSAL_LM")):
        assert task_type_of(configs[family], "CAUSAL_LM") == form
        assert task_type_of(configs[family], "SEQ_CLS") == "SEQ_CLS"


def test_a_decoder_starts_as_the_configuration_says_a_t5_else_with_its_padding(base_of, tmp_path, model_directory):
    assert {family: base_of(family).start_id for family in FAMILIES} == {"t5": 0, "gated-t5": 0, "bart": 1}
    for family in ("t5", "bart"):
        target = tmp_path / family
        target.mkdir()
        for file in model_directory(family).iterdir():
            if file.name != "generation_config.json":
                (target / file.name).write_bytes(file.read_bytes())
        path = target / "config.json"
        path.write_text(path.read_text().replace('"decoder_start_token_id"', '"was_declared"'))
    assert load_base(BaseModelConfig(model=str(tmp_path / "t5")), "CAUSAL_LM").start_id == 0
    text = (tmp_path / "bart" / "config.json").read_text()
    (tmp_path / "bart" / "config.json").write_text(text.replace('"was_declared": 1', '"decoder_start_token_id": null'))
    with pytest.raises(ModelError, match="with which token its decoder starts"):
        load_base(BaseModelConfig(model=str(tmp_path / "bart")), "CAUSAL_LM")


def trial_of(directory, **adapter):
    base = BaseModelConfig(model=str(directory))
    return TrialConfig(base=base, adapter=AdapterConfig(**adapter), train=TrainConfig(), seed=1)


# Of t5-small: q is 512 to 8·64; six encoder layers have one attention, six decoder layers two.
T5_SMALL = {
    "self": (["query", "value"], 2 * 12 * 8 * (512 + 512)),
    "with cross": (["query", "value", "cross_query", "cross_value"], 2 * 18 * 8 * (512 + 512)),
    "raw": (["q", "v"], 2 * 18 * 8 * (512 + 512)),
    "all": ("all-linear", 8 * (4 * 18 * (512 + 512) + 2 * 12 * (512 + 2048))),
}


@pytest.mark.parametrize("case", T5_SMALL)
def test_t5_small_counts_come_out_exactly_with_config_json_alone(case, tmp_path):
    """60,506,624 parameters as published; r = 8 on q and v of every attention adds 294,912, as PEFT's own example counts."""
    T5Config(d_model=512, num_layers=6, d_ff=2048, num_heads=8, vocab_size=32128).save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    targets, trainable = T5_SMALL[case]
    trial = trial_of(tmp_path, r=8, targets=targets)
    cost = estimate(trial, *meta_model(trial, "CAUSAL_LM", 0), Workload(100, 20.0, 32), 2**50, 1e9)
    assert cost.trainable_params == trainable
    assert cost.total_params == cost.peft_total_params == 60_506_624 + trainable
    assert (cost.fits, cost.train_seconds > 0) == (True, True)


def test_an_output_layer_of_its_own_is_counted_with_and_without_the_checkpoint(model_directory, tmp_path):
    """T5 v1.1 has one: flan-t5-small is published with 76,961,152 parameters. transformers calls it tied all the same."""
    small = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "vocab_size": 32128}
    T5Config(**small, feed_forward_proj="gated-gelu").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "tie_word_embeddings": False}))
    trial = trial_of(tmp_path, targets=["query"])
    assert sum(p.numel() for p in meta_model(trial, "CAUSAL_LM", 0)[0].parameters()) == 76_961_152

    for file in model_directory("gated-t5").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    trial = trial_of(tmp_path, targets=["query"])
    for own_head in (False, True):
        tensors = load_file(tmp_path / "model.safetensors")
        if own_head:
            save_file({**tensors, "lm_head.weight": tensors["shared.weight"] + 1}, tmp_path / "model.safetensors")
        planned = num_parameters(meta_model(trial, "CAUSAL_LM", 0)[0])
        base = load_base(BaseModelConfig(model=str(tmp_path)), "CAUSAL_LM")
        assert planned == num_parameters(base.model)
        assert base.plain_head
    assert (
        planned == num_parameters(load_base(trial_of(model_directory("t5")).base, "CAUSAL_LM").model) + 160 * 16 + 5 * 24 * 16
    )


def test_a_plan_counts_the_tokens_of_encoder_and_decoder(model_directory):
    trial = trial_of(model_directory("t5"))
    model, heads = meta_model(trial, "CAUSAL_LM", 0)
    examples = questions(20)
    work = workload(examples, 20)
    assert work.longest_tokens == max(len(example.input_ids) + len(example.target_ids) for example in examples)
    cost = estimate(trial, model, heads, work, 2**50, 1e9)
    longer = workload([Example(e.id, e.input_ids, None, None, 0, target_ids=e.target_ids * 40) for e in examples], 20)
    more = estimate(trial, model, heads, longer, 2**50, 1e9)
    assert more.train_seconds > 2 * cost.train_seconds
    assert more.memory_bytes > cost.memory_bytes


def test_an_answer_has_positions_of_its_own(model_directory):
    """BART has 64 of them in the encoder and 64 in the decoder; a T5 counts none."""

    def check(family, max_length, new_tokens):
        settings = EvaluateConfig(decoding=[DecodingConfig(max_new_tokens=new_tokens)])
        task = TaskConfig(name="squad", data="x", max_length=max_length)
        check_lengths(task, settings, BaseModelConfig(model=str(model_directory(family))), generates=True)

    check("bart", 64, 64)
    check("t5", 4096, 512)
    for max_length, new_tokens in ((65, 4), (32, 65)):
        with pytest.raises(ModelError, match="64 positions"):
            check("bart", max_length, new_tokens)


def test_end_tokens_are_the_tokenizers(base_of):
    assert end_tokens(base_of("t5")) == [1]
