"""Invariant 5 through the files: an exported adapter scores what its trial scored, here and in PEFT."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lorascope.adapter import agreed_base
from lorascope.cohort import single
from lorascope.cohort.single import OnBase, adapter_trial, evaluate_adapter, evaluate_together, prepare
from lorascope.config import EvaluateConfig, TaskConfig
from lorascope.errors import AdapterError, DataError, UsageError
from lorascope.lora.peft_io import read_adapter
from lorascope.store import Store

CLASSES = ["negative", "positive"]


def predictions_of(directory, row):
    text = (directory / "trials" / row.trial / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def texts_of(path):
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def score(adapter, task, **options):
    settings = EvaluateConfig(decoding=[{"max_new_tokens": 4}])
    return evaluate_adapter(adapter, task, settings, OnBase(**options))


@pytest.fixture
def file_task(data_directory):
    return TaskConfig(name="file", data=str(data_directory / "validation.jsonl"), labels=CLASSES, max_length=32)


def test_an_exported_classifier_scores_what_its_trial_scored(bert_run, rows_of, file_task):
    for row in rows_of(bert_run):
        evaluation, facts = score(bert_run / row.adapter, file_task)
        assert evaluation.metrics["accuracy"] == row.metrics["accuracy"]
        assert evaluation.metrics["eval_loss"] == pytest.approx(row.metrics["eval_loss"], rel=1e-6)
        trial = [(line["id"], line["prediction"]) for line in predictions_of(bert_run, row)]
        assert [(line["id"], line["prediction"]) for line in evaluation.predictions] == trial
        assert (facts["base_checksum"], facts["num_examples"]) == (row.base_checksum, 8)


def test_a_length_that_nobody_gave_is_what_the_base_has_positions_for(bert_run, rows_of, file_task):
    row = rows_of(bert_run)[0]
    _, facts = score(bert_run / row.adapter, TaskConfig(name="file", data=file_task.data, labels=CLASSES))
    assert "max_length is 130: the model has 130 positions (by default it would be 512)" in facts["warnings"]


def test_an_exported_answerer_scores_what_its_trial_scored(squad_run, rows_of, data_directory):
    task = TaskConfig(name="squad", data=str(data_directory / "squad"), max_length=96)
    for row in rows_of(squad_run):
        evaluation, _ = score(squad_run / row.adapter, task)
        assert evaluation.metrics == pytest.approx(row.metrics, rel=1e-6)
        assert evaluation.metrics["exact_match"] == row.metrics["exact_match"]
        trial = [line["prediction"] for line in predictions_of(squad_run, row)]
        assert [line["prediction"] for line in evaluation.predictions] == trial


def test_peft_classifies_as_the_trial_did(bert_run, rows_of, model_directory, data_directory):
    tokenizer = AutoTokenizer.from_pretrained(model_directory("bert"))
    texts = texts_of(data_directory / "validation.jsonl")
    for row in rows_of(bert_run):
        base = AutoModelForSequenceClassification.from_pretrained(model_directory("bert"), num_labels=2)
        model = peft.PeftModel.from_pretrained(base, str(bert_run / row.adapter)).eval()
        trial = predictions_of(bert_run, row)
        with torch.no_grad():
            logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
        assert [CLASSES[int(values.argmax())] for values in logits] == [line["prediction"] for line in trial]
        expected = torch.tensor([line["logits"] for line in trial])
        torch.testing.assert_close(torch.stack(logits), expected, rtol=1e-4, atol=1e-4)


def test_peft_answers_as_the_trial_did(squad_run, rows_of, model_directory, data_directory):
    tokenizer = AutoTokenizer.from_pretrained(model_directory("gpt2"))
    document = json.loads((data_directory / "squad" / "dev-v1.1.json").read_text(encoding="utf-8"))
    prompts = {
        question["id"]: f"{paragraph['context']}\nQuestion: {question['question']}\nAnswer:"
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    for row in rows_of(squad_run):
        base = AutoModelForCausalLM.from_pretrained(model_directory("gpt2"))
        model = peft.PeftModel.from_pretrained(base, str(squad_run / row.adapter)).eval()
        for line in predictions_of(squad_run, row):
            inputs = tokenizer(prompts[line["id"]], return_tensors="pt")
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=4,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
            answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
            assert answer == line["prediction"]


def test_an_adapter_that_peft_wrote_is_scored(model_directory, file_task, tmp_path):
    torch.manual_seed(3)
    base = AutoModelForSequenceClassification.from_pretrained(model_directory("bert"), num_labels=2)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path / "theirs")
    evaluation, facts = score(tmp_path / "theirs", file_task)
    assert facts["base"] == str(model_directory("bert"))
    tokenizer = AutoTokenizer.from_pretrained(model_directory("bert"))
    with torch.no_grad():
        guesses = [
            int(model.eval()(**tokenizer(text, return_tensors="pt")).logits.argmax())
            for text in texts_of(Path(file_task.data))
        ]
    assert [line["prediction"] for line in evaluation.predictions] == [CLASSES[guess] for guess in guesses]


@pytest.fixture
def broken(bert_run, rows_of, tmp_path):
    """``broken(change)``: a copy of an adapter with its config and tensors changed."""
    source = bert_run / rows_of(bert_run)[0].adapter

    def make(change):
        directory = tmp_path / "adapter"
        shutil.copytree(source, directory)
        config = json.loads((directory / "adapter_config.json").read_text())
        tensors = load_file(directory / "adapter_model.safetensors")
        change(config, tensors)
        (directory / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, directory / "adapter_model.safetensors")
        return directory

    return make


def test_an_adapter_with_a_nan_is_refused(broken, file_task):
    def spoil(_, tensors):
        next(value for key, value in tensors.items() if "lora_B" in key)[0, 0] = float("nan")

    with pytest.raises(AdapterError, match=r"lora_B.weight' holds 1 NaN or infinite numbers"):
        score(broken(spoil), file_task)


def test_an_adapter_without_its_head_is_refused(broken, file_task):
    def behead(_, tensors):
        for key in [key for key in tensors if "classifier" in key]:
            del tensors[key]

    with pytest.raises(AdapterError, match=r"holds no 'classifier"):
        score(broken(behead), file_task)


def test_an_adapter_that_names_no_base_needs_one(broken, file_task, model_directory):
    directory = broken(lambda config, _: config.pop("base_model_name_or_path"))
    with pytest.raises(UsageError, match="give it with --base"):
        score(directory, file_task)
    evaluation, _ = score(directory, file_task, model=str(model_directory("bert")))
    assert len(evaluation.predictions) == 8


def test_an_adapter_of_another_base_is_refused(bert_run, rows_of, file_task, model_directory):
    with pytest.raises(AdapterError, match="no linear layer"):
        score(bert_run / rows_of(bert_run)[0].adapter, file_task, model=str(model_directory("gpt2")))


def test_a_base_with_other_weights_than_the_adapters_is_told(bert_run, rows_of, file_task, model_directory, tmp_path):
    copy = shutil.copytree(model_directory("bert"), tmp_path / "copy")
    adapter = bert_run / rows_of(bert_run)[0].adapter
    assert not any("trained on" in warning for warning in score(adapter, file_task, model=str(copy))[1]["warnings"])
    weights = load_file(copy / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"] += 1.0
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    warnings = score(adapter, file_task, model=str(copy))[1]["warnings"]
    assert f"{adapter} was trained on other weights than those of {copy} here" in warnings
    halved = score(adapter, file_task, dtype="bfloat16")[1]["warnings"]
    assert f"{adapter} was trained on a base in float32, and runs on one in bfloat16" in halved


def test_a_study_that_an_adapter_of_another_base_enters_keeps_the_warning(
    bert_run, rows_of, make_study, carry_out, model_directory, tmp_path
):
    copy = shutil.copytree(model_directory("bert"), tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"] += 1.0
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    adapter = bert_run / rows_of(bert_run)[0].adapter
    study = make_study("bert", base={"model": str(copy)})
    trial = adapter_trial(study, adapter.parent)  # a trial's directory stands for its adapter
    carry_out(study, tmp_path / "run", trials=[trial])
    with Store.open(tmp_path / "run") as store:
        told = {(row["trial"], row["where"]): row["message"] for row in store.warnings() if row["kind"] == "adapter"}
    assert told.keys() == {(trial.trial, str(adapter))}
    assert "was trained on other weights than those of" in told[trial.trial, str(adapter)]


def test_base_and_judge_go_where_they_are_asked_to(bert_run, rows_of, file_task, monkeypatch):
    asked = []
    load = single.load_base
    monkeypatch.setattr(single, "load_base", lambda *given: asked.append(given[3]) or load(*given[:3], "cpu"))
    monkeypatch.setattr(single, "packed_weights_budget", lambda device: asked.append(device) or 0)
    adapters = {"here": read_adapter(bert_run / rows_of(bert_run)[0].adapter)}
    prepare(agreed_base(adapters), file_task, EvaluateConfig(), "cuda:3")
    assert asked == ["cuda:3", "cuda:3"]


def test_the_number_of_labels_must_be_the_adapters(bert_run, rows_of, file_task):
    task = file_task.model_copy(update={"labels": [*CLASSES, "neutral"]})
    with pytest.raises(AdapterError, match="number of labels"):
        score(bert_run / rows_of(bert_run)[0].adapter, task)
    with pytest.raises(DataError, match=r"give task\.labels"):
        score(bert_run / rows_of(bert_run)[0].adapter, file_task.model_copy(update={"labels": None}))


def test_an_adapters_trial_says_what_its_file_says(bert_run, rows_of, make_study):
    done = next(row for row in rows_of(bert_run) if row.config["r"] == 4)
    trial = adapter_trial(make_study("bert", adapter={"r": 7}), bert_run / done.adapter)
    flat = trial.flat()
    assert (flat["r"], flat["lora_alpha"], flat["bias"]) == (4, 8.0, "all")
    assert flat["targets"] == [
        "attention.output.dense", "attention.self.key", "attention.self.query", "attention.self.value",
        "intermediate.dense", "output.dense",
    ]  # fmt: skip
    assert (flat["path"], trial.seed) == (str(bert_run / done.adapter), 1)


def test_adapters_scored_together_get_what_each_gets_alone(bert_run, rows_of, file_task):
    directories = [bert_run / row.adapter for row in rows_of(bert_run)]
    adapters = {str(directory): read_adapter(directory) for directory in directories}
    prepared = prepare(agreed_base(adapters), file_task, EvaluateConfig())
    assert prepared.foreseen == ("accuracy", "eval_loss")
    together = evaluate_together(prepared, adapters)
    assert len({evaluation.metrics["eval_loss"] for evaluation in together}) == len(directories) == 4
    for directory, evaluation in zip(directories, together, strict=True):
        alone, facts = score(directory, file_task)
        assert evaluation.metrics == pytest.approx(alone.metrics, rel=1e-5)
        assert facts.items() >= {key: prepared.facts[key] for key in ("base", "task", "split", "num_examples")}.items()
