"""What a slot is worth: the field's own metrics on the plain model's logits, whoever its neighbours are."""

import math
from itertools import chain

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss

from lorascope.base_model import BaseModel, head_modules, load_base
from lorascope.config import BaseModelConfig, DecodingConfig, EvaluateConfig
from lorascope.data.task import Example, Task
from lorascope.decode import generate
from lorascope.errors import DataError, RunError
from lorascope.evaluate import evaluate
from lorascope.lora.layer import DropoutPlan
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.metrics import squad_exact_match, squad_f1

SETTINGS = EvaluateConfig(decoding=[DecodingConfig(max_new_tokens=4)], batch_tokens=60)


def base_of(model, task_type):
    model.config.pad_token_id = 0
    return BaseModel(model, None, task_type, head_modules(model, task_type), (), "", plain_head=True)


def task_of(examples, labels=(), generates=False):
    metric_names = ("accuracy", "f1") if labels else ("exact_match", "f1") if generates else ()
    task_type = "SEQ_CLS" if labels else "CAUSAL_LM"
    return Task("t", task_type, tuple(labels), [], examples, "validation", "", "", [], generates, metric_names)


def examples_for(task_type, count=23):
    generator = torch.Generator().manual_seed(5)
    examples = []
    for index in range(count):
        length = int(torch.randint(4, 14, (1,), generator=generator))
        ids = torch.randint(4, 150, (length,), generator=generator).tolist()
        causal = task_type == "CAUSAL_LM"
        target = [position >= length - 1 - index % 3 for position in range(length)] if causal else None
        prompt_length = length - 1 - index % 3
        examples.append(Example(f"e{index}", ids, target, None if causal else index % 2, prompt_length, ("the",)))
    return examples


def stack_of(base, num_slots, random=False):
    placements = tuple(Placement(target, 2, 2.0) for target in resolve(base.model, ["query", "value"], base.heads))
    stack = Stack(base.model, [Slot(f"s{index}", index, placements, dropout=0.3) for index in range(num_slots)], base.heads)
    for index in range(num_slots if random else 0):
        weights = stack.read(index)
        generator = torch.Generator().manual_seed(index)
        for value in weights.lora_B.values():
            value += 0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
        stack.write(index, weights)
    return stack


def result_of(run):
    """The value that the generator returns, and the progress on the way."""
    steps = []
    while True:
        try:
            steps.append(next(run))
        except StopIteration as stop:
            return stop.value, steps


def breaks(stack, index):
    name = next(spec.name for spec in stack.parameters.specs if spec.name.endswith("lora_A"))
    stack.parameters[name].data[index, 0, 0] = float("nan")


@pytest.mark.parametrize("family", ["gpt2", "bert", "distilbert", "roberta", "llama", "qwen2"])
def test_a_classifiers_metrics_are_scikit_learns_on_the_plain_models_logits(family, tiny_model):
    base = base_of(tiny_model(family, "SEQ_CLS", num_labels=2), "SEQ_CLS")
    examples = examples_for("SEQ_CLS")
    with torch.no_grad():
        logits = torch.cat([base.model(input_ids=torch.tensor([example.input_ids])).logits for example in examples])
    stack = stack_of(base, 2)
    (evaluation, other), steps = result_of(evaluate(stack, base, task_of(examples, ["no", "yes"]), SETTINGS))
    stack.detach()
    gold = [example.label for example in examples]
    guess = logits.argmax(dim=1).tolist()
    assert evaluation.metrics == pytest.approx(
        {
            "accuracy": accuracy_score(gold, guess),
            "f1": f1_score(gold, guess, zero_division=0),
            "eval_loss": log_loss(gold, logits.softmax(dim=1).numpy()),
        },
        rel=1e-6,
    )
    assert evaluation.finite
    for row, example, values in zip(evaluation.predictions, examples, logits.tolist(), strict=True):
        assert row["id"] == example.id
        assert row["logits"] == pytest.approx(values, abs=2e-6)
        assert (row["prediction"], row["label"]) == (["no", "yes"][values[1] > values[0]], ["no", "yes"][example.label])
        assert row["correct"] == (row["prediction"] == row["label"])
    assert other == evaluation
    assert [step.done for step in steps] == sorted({step.done for step in steps})
    assert (len(steps) > 1, steps[-1].done, steps[-1].total) == (True, len(examples), len(examples))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "phi3"])
def test_perplexity_is_the_exponential_of_transformers_loss_per_target_token(family, tiny_model):
    base = base_of(tiny_model(family, "CAUSAL_LM"), "CAUSAL_LM")
    silent = Example("silent", [5, 6], [True, False], None, 0)
    examples = [*examples_for("CAUSAL_LM"), silent]
    total, count, losses = 0.0, 0, {}
    for example in examples[:-1]:
        ids = torch.tensor([example.input_ids])
        labels = ids.masked_fill(~torch.tensor([example.is_target]), -100)
        with torch.no_grad():
            losses[example.id] = base.model(input_ids=ids, labels=labels).loss.item()
        tokens = sum(example.is_target[1:])
        total, count = total + losses[example.id] * tokens, count + tokens
    stack = stack_of(base, 2)
    (evaluation, other), _ = result_of(evaluate(stack, base, task_of(examples), SETTINGS))
    stack.detach()
    assert evaluation.metrics == pytest.approx({"eval_loss": total / count, "perplexity": math.exp(total / count)}, rel=1e-5)
    assert {row["id"]: row["loss"] for row in evaluation.predictions} == pytest.approx(losses, rel=1e-5)
    assert sum(row["target_tokens"] for row in evaluation.predictions) == count
    assert other.metrics == pytest.approx(evaluation.metrics, rel=1e-12)
    assert other.predictions == evaluation.predictions


@pytest.mark.parametrize(("family", "task_type"), [("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM"), ("llama", "CAUSAL_LM")])
def test_slots_evaluated_together_get_what_each_gets_alone(family, task_type, tiny_model):
    base = base_of(tiny_model(family, task_type, num_labels=2), task_type)
    task = task_of(examples_for(task_type), ["no", "yes"] if task_type == "SEQ_CLS" else ())
    stack = stack_of(base, 3, random=True)
    together, _ = result_of(evaluate(stack, base, task, SETTINGS))
    stack.detach()
    assert len({evaluation.metrics["eval_loss"] for evaluation in together}) == 3
    for index in range(3):
        stack = stack_of(base, 3, random=True)
        stack.keep([f"s{index}"])
        (alone,), _ = result_of(evaluate(stack, base, task, SETTINGS))
        stack.detach()
        assert alone.metrics == pytest.approx(together[index].metrics, rel=1e-6)
        for one, other in zip(alone.predictions, together[index].predictions, strict=True):
            assert one["id"] == other["id"]
            assert one.get("prediction") == other.get("prediction")
            assert one.get("loss") == pytest.approx(other.get("loss"), abs=2e-6)


@pytest.mark.parametrize("batch_tokens", [1, 40, 10**6])
def test_how_rows_are_batched_changes_no_metric(batch_tokens, tiny_model):
    base = base_of(tiny_model("llama", "CAUSAL_LM"), "CAUSAL_LM")
    task = task_of(examples_for("CAUSAL_LM"))
    stack = stack_of(base, 2, random=True)
    usual, _ = result_of(evaluate(stack, base, task, SETTINGS))
    cut, _ = result_of(evaluate(stack, base, task, SETTINGS.model_copy(update={"batch_tokens": batch_tokens})))
    stack.detach()
    for one, other in zip(cut, usual, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-9)
        assert [row["id"] for row in one.predictions] == [row["id"] for row in other.predictions]


@pytest.mark.parametrize(("family", "task_type"), [("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM")])
def test_a_slot_with_nan_has_no_metrics_and_its_neighbours_keep_theirs(family, task_type, tiny_model):
    base = base_of(tiny_model(family, task_type, num_labels=2), task_type)
    task = task_of(examples_for(task_type), ["no", "yes"] if task_type == "SEQ_CLS" else ())
    stack = stack_of(base, 3, random=True)
    whole, _ = result_of(evaluate(stack, base, task, SETTINGS))
    breaks(stack, 1)
    broken, _ = result_of(evaluate(stack, base, task, SETTINGS))
    stack.detach()
    assert [evaluation.finite for evaluation in broken] == [True, False, True]
    assert (broken[1].metrics, broken[1].predictions) == ({}, [])
    assert broken[0] == whole[0]
    assert broken[2] == whole[2]


def test_a_loss_beyond_what_a_float_can_raise_e_to_is_an_infinite_perplexity(tiny_model):
    base = base_of(tiny_model("gpt2", "CAUSAL_LM"), "CAUSAL_LM")
    with torch.no_grad():
        base.model.transformer.ln_f.weight *= 1e6
    stack = stack_of(base, 1)
    (evaluation,), _ = result_of(evaluate(stack, base, task_of(examples_for("CAUSAL_LM")), SETTINGS))
    stack.detach()
    assert evaluation.finite
    assert evaluation.metrics["eval_loss"] > 700
    assert evaluation.metrics["perplexity"] == math.inf


def test_dropout_is_off_while_evaluating_and_the_base_takes_no_gradient(tiny_model):
    base = base_of(tiny_model("bert", num_labels=2), "SEQ_CLS")
    task = task_of(examples_for("SEQ_CLS"), ["no", "yes"])
    stack = stack_of(base, 2, random=True)
    first, _ = result_of(evaluate(stack, base, task, SETTINGS))
    # As after a training step that was not finished.
    stack.context.dropout = DropoutPlan(0, [[[(0, 4)]]] * 2)
    again, _ = result_of(evaluate(stack, base, task, SETTINGS))
    assert first == again
    assert stack.context.dropout is None
    assert stack.base_gradients() == 0
    stack.detach()


def test_generated_answers_are_scored_with_squads_measures_and_keep_their_loss(model_directory):
    base = load_base(BaseModelConfig(model=str(model_directory("gpt2")), dtype="float64"), "CAUSAL_LM")
    examples = examples_for("CAUSAL_LM", 9)
    stack = stack_of(base, 3, random=True)
    stack.keep(["s0"])
    (free,), _ = result_of(evaluate(stack, base, task_of(examples), SETTINGS))
    free_answers = list(generate(stack, base, examples, SETTINGS.decoding[0], SETTINGS.batch_tokens))
    stack.detach()
    stack = stack_of(base, 3, random=True)
    breaks(stack, 1)
    evaluations, steps = result_of(evaluate(stack, base, task_of(examples, generates=True), SETTINGS))
    stack.detach()
    assert [evaluation.finite for evaluation in evaluations] == [True, False, True]
    assert (evaluations[1].metrics, evaluations[1].predictions) == ({}, [])
    assert list(dict.fromkeys(step.stage for step in steps)) == ["measuring the loss", "generating answers"]
    evaluation = evaluations[0]
    assert {name: evaluation.metrics[name] for name in free.metrics} == pytest.approx(free.metrics, rel=1e-9)
    assert [row["loss"] for row in evaluation.predictions] == pytest.approx(
        [row["loss"] for row in free.predictions], abs=2e-6
    )
    texts = [row["prediction"] for row in evaluation.predictions]
    assert len(set(texts)) > 2
    generated = chain.from_iterable(zip(rows, answers[0], strict=True) for rows, answers in free_answers)
    finished = {row: answer.finished for row, answer in generated}
    assert evaluation.decoded[0].unfinished == len(examples) - sum(finished.values()) > 0
    for name, measure in (("exact_match", squad_exact_match), ("f1", squad_f1)):
        values = [measure(text, example.answers) for text, example in zip(texts, examples, strict=True)]
        assert evaluation.metrics[name] == pytest.approx(100 * sum(values) / len(values), abs=1e-9)
        assert [row[name] for row in evaluation.predictions] == pytest.approx(values, abs=1e-6)


def test_an_answer_given_exactly_scores_a_hundred(model_directory):
    base = load_base(BaseModelConfig(model=str(model_directory("llama")), dtype="float64"), "CAUSAL_LM")
    examples = examples_for("CAUSAL_LM", 6)
    stack = stack_of(base, 1)
    (first,), _ = result_of(evaluate(stack, base, task_of(examples, generates=True), SETTINGS))
    gold = [
        Example(example.id, example.input_ids, example.is_target, None, example.prompt_length, (row["prediction"],))
        for example, row in zip(examples, first.predictions, strict=True)
    ]
    (again,), _ = result_of(evaluate(stack, base, task_of(gold, generates=True), SETTINGS))
    stack.detach()
    assert first.metrics["exact_match"] < 100
    assert again.metrics["exact_match"] == 100
    assert again.metrics["f1"] == 100


def test_a_split_without_any_target_token_is_an_error(tiny_model):
    base = base_of(tiny_model("gpt2", "CAUSAL_LM"), "CAUSAL_LM")
    bare = [Example("0", [5, 6, 7], [False] * 3, None, 0)]
    task = Task("t", "CAUSAL_LM", (), bare, bare, "validation", "s", "c", [], False, ("perplexity",))
    with pytest.raises(DataError, match="no evaluation example has a target token"):
        next(evaluate(Stack(base.model, [Slot("s", 1, ())]), base, task, EvaluateConfig()))


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "CAUSAL_LM"])
def test_where_memory_runs_out_batches_are_halved_and_the_scores_stay(task_type, tiny_model, monkeypatch):
    base = base_of(tiny_model("bert" if task_type == "SEQ_CLS" else "gpt2", task_type, num_labels=2), task_type)
    task = task_of(examples_for(task_type), ["no", "yes"] if task_type == "SEQ_CLS" else [])
    stack = stack_of(base, 2)
    settings = SETTINGS.model_copy(update={"batch_tokens": 512})
    whole, _ = result_of(evaluate(stack, base, task, settings))
    assert whole[0].batch_tokens == 512
    embedding = base.model.get_input_embeddings()
    own = embedding.forward
    most = 128

    def scarce(ids):
        if ids.numel() > most:
            raise MemoryError
        return own(ids)

    monkeypatch.setattr(embedding, "forward", scarce)
    halved, _ = result_of(evaluate(stack, base, task, settings))
    assert 64 <= halved[0].batch_tokens <= 128
    assert halved[0].metrics == pytest.approx(whole[0].metrics, rel=1e-9)
    most = 1
    with pytest.raises(RunError, match="evaluate: memory ran out with batches of 64 tokens; free some memory"):
        result_of(evaluate(stack, base, task, settings))
    stack.detach()
