"""Every way of decoding and every sample is scored, and candidates are ranked by what the plain model finds likely."""

import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from lorascope.base_model import load_base
from lorascope.config import BaseModelConfig, DecodingConfig, EvaluateConfig
from lorascope.data.task import Example, Task
from lorascope.decode import end_tokens, generate
from lorascope.errors import RunError
from lorascope.evaluate import evaluate
from lorascope.evaluate.likelihood import ranks_gold_first
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.metrics import score_texts

GREEDY = DecodingConfig(max_new_tokens=5)
SAMPLED = DecodingConfig(strategy="top_k", top_k=20, max_new_tokens=5, samples=3)


@pytest.fixture
def base(model_directory):
    return load_base(BaseModelConfig(model=str(model_directory("gpt2")), dtype="float64"), "CAUSAL_LM")


def drawn(length, seed):
    return torch.randint(4, 150, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def examples_for(count=7, candidates=0, persona=()):
    examples = []
    for index in range(count):
        prompt, target = drawn(18 + index % 3, index % 2), drawn(4, 50 + index)
        is_target = [False] * len(prompt) + [True] * 4
        others = tuple(tuple(drawn(2 + number % 4, 100 * index + number)) for number in range(candidates - 1))
        given = (*others, tuple(target)) if candidates else ()
        example = Example(
            f"e{index}", prompt + target, is_target, None, len(prompt), ("a b",), persona=persona, candidate_ids=given
        )
        examples.append(example)
    return examples


def task_of(examples, *metric_names):
    return Task("t", "CAUSAL_LM", (), [], examples, "validation", "", "", [], True, metric_names)


def stack_of(base, num_slots=2):
    placements = tuple(Placement(target, 2, 2.0) for target in resolve(base.model, ["query", "value"], ()))
    stack = Stack(base.model, [Slot(f"s{index}", index, placements) for index in range(num_slots)])
    for index in range(num_slots):
        weights = stack.read(index)
        generator = torch.Generator().manual_seed(index)
        for value in weights.lora_B.values():
            value += torch.randn(value.shape, generator=generator, dtype=torch.float64)
        stack.write(index, weights)
    return stack


def result_of(run):
    steps = []
    while True:
        try:
            steps.append(next(run))
        except StopIteration as stop:
            return stop.value, steps


def evaluated(base, task, decodings=(GREEDY,), judge=None, num_slots=2, **settings):
    stack = stack_of(base, num_slots)
    try:
        return result_of(evaluate(stack, base, task, EvaluateConfig(decoding=list(decodings), **settings), judge))
    finally:
        stack.detach()


def loss_by_transformers(base, example, candidate):
    """Mean over the candidate's tokens, from the plain model's logits for one unpadded row."""
    prompt = example.input_ids[: example.prompt_length]
    ids = torch.tensor([[*prompt, *candidate]])
    with torch.no_grad():
        logits = base.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(candidate)).item()


@pytest.mark.parametrize("packs", [True, False])
def test_a_hit_is_a_gold_reply_that_the_plain_model_finds_likeliest_per_token(packs, base):
    examples = examples_for(9, candidates=4)
    base.packs = packs
    stack = Stack(base.model, [Slot("s", 1, ())])
    (evaluation,), steps = result_of(evaluate(stack, base, task_of(examples), EvaluateConfig(decoding=[GREEDY])))
    stack.detach()
    losses = [[loss_by_transformers(base, example, ids) for ids in example.candidate_ids] for example in examples]
    hits = [of_example[-1] < min(of_example[:-1]) for of_example in losses]
    assert [row["hit"] for row in evaluation.predictions] == hits
    assert evaluation.metrics["hits_at_1"] == sum(hits) / len(hits)
    assert 0 < sum(hits) < len(hits), "with hits only, or none, the test shows little"
    assert "ranking candidates" in {step.stage for step in steps}


def test_a_tie_is_no_hit_and_the_gold_reply_among_the_others_is_no_rival():
    one = Example("e", [5, 6], [False, True], None, 1, candidate_ids=((7,), (6,)))
    assert not ranks_gold_first([1.0, 1.0], one)
    assert ranks_gold_first([1.5, 1.0], one)
    assert ranks_gold_first([1.0, 1.0, 2.0, 1.0], replace(one, candidate_ids=((6,), (6,), (7,), (6,))))


def test_an_unanswerable_question_is_answered_by_the_word_that_is_learned(base, monkeypatch):
    from lorascope.decode import Answer
    from lorascope.evaluate import answers

    examples = [
        replace(one, candidate_ids=((9, 2),), answers=gold) for one, gold in zip(examples_for(2), ((), ("a b",)), strict=True)
    ]
    texts = [Answer("Unanswerable.", True), Answer("unanswerable", True)]
    monkeypatch.setattr(answers, "generate", lambda *_: iter([([0, 1], [texts])]))
    (evaluation,), _ = evaluated(base, task_of(examples, "squad_v2"), num_slots=1)
    figures = {name: evaluation.metrics[name] for name in ("no_ans_exact_match", "no_ans_f1", "has_ans_exact_match", "f1")}
    assert figures == {"no_ans_exact_match": 100.0, "no_ans_f1": 100.0, "has_ans_exact_match": 0.0, "f1": 50.0}
    assert [row["prediction"] for row in evaluation.predictions] == ["Unanswerable.", "unanswerable"]


def test_examples_of_one_id_keep_their_own_figures(base):
    examples = [replace(one, id="same", candidate_ids=((9, 2),)) for one in examples_for(4)]
    (evaluation,), _ = evaluated(base, task_of(examples, "rouge_l"), num_slots=1)
    rows = evaluation.predictions
    assert len({row["no_answer_probability"] for row in rows}) == 4
    assert len({row["loss"] for row in rows}) == 4


def test_an_answer_ends_with_the_special_token_that_closes_the_targets(base):
    base.tokenizer.add_special_tokens({"additional_special_tokens": ["the"]})
    end = base.tokenizer.convert_tokens_to_ids("the")
    examples = [replace(one, input_ids=[*one.input_ids[:-1], end]) for one in examples_for(2)]
    assert end in end_tokens(base, examples)
    assert end not in end_tokens(base, examples_for(2))
    assert end not in end_tokens(base)


def test_a_judge_that_fails_costs_its_score_and_nothing_else(base):
    class Failing(Counting):
        def c_scores(self, replies, personas):
            raise RunError("memory ran out at a single pair")

    examples = examples_for(2, persona=("i cook .",))
    (evaluation,), _ = evaluated(base, task_of(examples, "rouge_l"), judge=Failing(), num_slots=1)
    assert "c_score" not in evaluation.metrics
    assert "rouge_l" in evaluation.metrics
    assert evaluation.warnings == ["greedy max 5: no C-score, for the judge failed (memory ran out at a single pair)"]


def test_a_lone_candidate_gets_its_probability_and_no_rank(base):
    examples = [replace(one, candidate_ids=((9, 2),)) for one in examples_for(3)]
    stack = Stack(base.model, [Slot("s", 1, ())])
    (evaluation,), _ = result_of(evaluate(stack, base, task_of(examples), EvaluateConfig(decoding=[GREEDY])))
    stack.detach()
    expected = [math.exp(-2 * loss_by_transformers(base, example, (9, 2))) for example in examples]
    assert [row["no_answer_probability"] for row in evaluation.predictions] == pytest.approx(expected, rel=1e-9)
    assert "hits_at_1" not in evaluation.metrics


def test_the_first_decoding_is_the_trials_and_the_others_stand_beside_it(base):
    examples = examples_for()
    alone, _ = evaluated(base, task_of(examples, "rouge_l"))
    both, steps = evaluated(base, task_of(examples, "rouge_l"), [GREEDY, SAMPLED])
    other, _ = evaluated(base, task_of(examples, "rouge_l"), [SAMPLED])
    for one, two, three in zip(alone, both, other, strict=True):
        assert two.metrics == one.metrics
        assert set(two.metrics) == {"eval_loss", "perplexity", "rouge_l"}
        assert [decoded.decoding for decoded in two.decoded] == [GREEDY, SAMPLED]
        assert two.decoded[1].metrics == three.decoded[0].metrics
        assert {"distinct_1", "distinct_2", "rouge_l"} <= set(two.decoded[0].metrics)
        assert "self_bleu" in two.decoded[1].metrics
        assert all(len(row["further"][SAMPLED.label]) == 3 for row in two.predictions)
        assert [row["samples"] for row in three.predictions] == [row["further"][SAMPLED.label] for row in two.predictions]
        assert two.decoded[1].record()["label"] == "top_k k=20 max 5 ×3"
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages == ["measuring the loss", "generating answers (greedy max 5)", f"generating answers ({SAMPLED.label})"]


def test_length_and_cut_answers_are_counted_over_all_samples(base):
    examples = examples_for()
    (evaluation,), _ = evaluated(base, task_of(examples, "rouge_l"), [SAMPLED], num_slots=1)
    stack = stack_of(base, 1)
    answers = [one for _, (of_slot,) in generate(stack, base, examples, SAMPLED, 8192) for one in of_slot]
    stack.detach()
    (decoded,) = evaluation.decoded
    assert len(answers) == 3 * len(examples)
    assert decoded.tokens_per_answer == pytest.approx(sum(len(one.tokens) for one in answers) / len(answers))
    assert decoded.unfinished == sum(not one.finished for one in answers) > 0
    assert decoded.answers_per_second > 0


def test_every_sample_has_a_stream_of_its_own_whatever_the_batches_and_the_number_of_samples(base):
    examples = examples_for()
    tables = []
    for samples, batch_tokens, packs in ((3, 8192, True), (3, 30, True), (3, 8192, False), (1, 8192, True)):
        base.packs = packs
        decoding = SAMPLED.model_copy(update={"samples": samples})
        evaluations, _ = evaluated(base, task_of(examples, "rouge_l"), [decoding], batch_tokens=batch_tokens)
        tables.append([[row.get("samples", [row["prediction"]]) for row in one.predictions] for one in evaluations])
    assert tables[0] == tables[1] == tables[2]
    assert [[samples[:1] for samples in of_slot] for of_slot in tables[0]] == tables[3]
    flat = [tuple(samples) for of_slot in tables[0] for samples in of_slot]
    assert any(len(set(samples)) == 3 for samples in flat)


def test_scores_are_those_of_the_texts_in_the_predictions(base):
    examples = examples_for()
    evaluations, _ = evaluated(base, task_of(examples, "token_f1", "distinct_1"), [SAMPLED])
    for evaluation in evaluations:
        samples = [row["samples"] for row in evaluation.predictions]
        expected = score_texts(["token_f1", "distinct_1"], samples, [example.answers for example in examples])
        assert {name: evaluation.metrics[name] for name in expected.metrics} == pytest.approx(expected.metrics)


def test_a_turn_ends_with_its_end_token_and_before_the_next_speaker(base, monkeypatch):
    from lorascope.decode import Answer
    from lorascope.evaluate import answers

    texts = [
        Answer("fine .", True),
        Answer("fine .", False),
        Answer("fine .\nUser: and you ?", True),
        Answer("Teacher: hm", True),
    ]
    examples = examples_for(4)
    monkeypatch.setattr(answers, "generate", lambda *_: iter([([0, 1, 2, 3], [texts])]))
    (evaluation,), _ = evaluated(base, task_of(examples, "turn_end"), num_slots=1)
    assert evaluation.metrics["turn_end"] == pytest.approx(1 / 4)
    assert [row["turn_end"] for row in evaluation.predictions] == [1.0, 0.0, 0.0, 0.0]


class Counting:
    """A judge that counts letters: what is asked of it, and in which order, is what is tested."""

    facts: ClassVar = {"model": "counting"}

    def judging(self, pairs):
        self.num_pairs = len(pairs)
        yield len(pairs), len(pairs)

    def c_scores(self, replies, personas):
        return [len(reply) + 100 * len(persona) for reply, persona in zip(replies, personas, strict=True)]


def test_a_judge_sees_every_sample_with_its_own_persona(base):
    with_one, with_two = examples_for(2, persona=("i cook .",)), examples_for(2, persona=("i cook .", "i sing ."))
    examples = [with_one[0], replace(with_two[1], id="other")]
    judge = Counting()
    (evaluation,), steps = evaluated(base, task_of(examples, "rouge_l"), [SAMPLED], judge, num_slots=1)
    assert judge.num_pairs == 3 * (1 + 2)
    assert ("judging replies", 9, 9) in {(step.stage, step.done, step.total) for step in steps}
    means = [
        sum(len(text) + 100 * size for text in row["samples"]) / 3
        for row, size in zip(evaluation.predictions, (1, 2), strict=True)
    ]
    assert [row["c_score"] for row in evaluation.predictions] == pytest.approx(means, abs=1e-6)
    assert evaluation.metrics["c_score"] == pytest.approx(sum(means) / 2)
    (without,), _ = evaluated(base, task_of(examples, "rouge_l"), [SAMPLED], num_slots=1)
    assert "c_score" not in without.metrics
