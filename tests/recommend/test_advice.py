"""Own evidence outranks the rule, as far as it reaches and no farther; every key has a reason; the unknown is named."""

from dataclasses import replace

import pytest

from lorascope.recommend.advice import NO_EVIDENCE, Request, advise
from lorascope.recommend.closeness import ModelFacts, TaskFacts

ROLES = ("query", "key", "value", "output", "up", "down")
TASK = TaskFacts("sst2", "classification", ("data",))
MODEL = ModelFacts("/models/bert", "bert", (64, 2), 1_000_000)
MRPC = TaskFacts("mrpc", "classification", ("other",))
RANKS = {"r4": ({"r": 4, "lora_alpha": 8.0}, (0.80, 0.81)), "r8": ({"r": 8}, (0.85, 0.86))}
R4_IS_WORSE = {("r4", "r8"): "worse"}


def request(**more):
    return Request(TASK, MODEL, roles=ROLES, **more)


def values(advice):
    return {key: choice.value for key, choice in advice.choices.items()}


def test_without_evidence_it_is_a_rule_of_thumb_and_says_so():
    advice = advise(request(), [])
    assert advice.basis == NO_EVIDENCE == "a rule of thumb, no evidence of yours"
    assert values(advice)["r"] == 16
    assert {choice.source for choice in advice.choices.values()} == {"rule", "default"}
    assert all(choice.why for choice in advice.choices.values())
    assert list(advice.open_questions) == ["learning_rate", "rank", "targets", "lora_dropout", "bias"]
    assert advice.open_questions["rank"] == (8, 16, 32)


def test_a_study_of_the_same_task_gives_its_whole_configuration(evidence):
    advice = advise(request(), [evidence(RANKS, R4_IS_WORSE)])
    assert (values(advice)["r"], values(advice)["lora_alpha"]) == (8, 16.0)
    assert values(advice)["learning_rate"] == 1e-3
    assert values(advice)["lora_dropout"] == 0.0
    rank, dropout = advice.choices["r"], advice.choices["lora_dropout"]
    assert (rank.source, rank.study, rank.trials) == ("evidence", "runs/mine", ("r8", "r4"))
    assert "r 4 is worse (-0.0500, -0.0550 … -0.0450, 2 seeds)" in rank.why
    assert "not compared with the rule of thumb, 0.1" in dropout.why
    assert "rank" not in advice.open_questions
    assert {"learning_rate", "lora_dropout"} <= set(advice.open_questions)
    assert advice.basis == "own evidence: runs/mine (same task, same model; it tells some of what it compared apart)"


@pytest.mark.parametrize(
    ("scores", "said"),
    [(((0.8,), (0.9,)), "one seed: its best may be luck"), (((0.8, 0.9), (0.8, 0.91)), "it tells nothing apart")],
)
def test_evidence_that_luck_could_have_made_is_called_that(evidence, scores, said):
    study = evidence({"r4": ({"r": 4}, scores[0]), "r8": ({"r": 8}, scores[1])})
    assert said in advise(request(), [study]).basis


def test_of_another_task_only_what_was_compared_counts(evidence):
    advice = advise(request(), [evidence(RANKS, R4_IS_WORSE, task=MRPC)])
    assert values(advice)["r"] == 8
    assert values(advice)["lora_dropout"] == 0.1
    assert values(advice)["learning_rate"] == 2e-4
    assert any("learning rate 0.001 and compared no other" in note for note in advice.notes)
    assert advice.recipe is None
    assert "rank" in advice.open_questions
    assert "same kind of task, same model" in advice.basis


def test_the_nearer_study_goes_first_whatever_their_order(evidence):
    near = evidence(RANKS, R4_IS_WORSE, directory="runs/near")
    larger = replace(MODEL, reference="/models/large", sizes=(128, 4), num_params=9_000_000)
    far = evidence({"r4": ({"r": 32}, (0.9, 0.9)), "r8": ({"r": 64}, (0.95, 0.95))}, model=larger, directory="runs/far")
    for studies in ([near, far], [far, near]):
        advice = advise(request(), studies)
        assert values(advice)["r"] == 8
        assert [(one.study.directory, one.use) for one in advice.weighed] == [
            ("runs/near", "used: its whole configuration"),
            ("runs/far", "not used: a nearer study says it"),
        ]


def test_of_two_larger_models_the_one_nearer_in_size_goes_first(evidence):
    def larger(times):
        model = replace(MODEL, reference=f"/models/{times}", sizes=(64 * times, 2), num_params=1_000_000 * times)
        return evidence(
            {"one": ({"r": times}, (0.8, 0.8)), "two": ({"r": 2 * times}, (0.7, 0.7))}, {("two", "one"): "worse"}, model=model
        )

    advice = advise(request(), [larger(64), larger(4)])
    assert values(advice)["r"] == 4
    assert [one.place for one in advice.weighed] == [2, 2]


def test_a_verdict_goes_before_a_single_seed_at_the_same_distance(evidence):
    lucky = evidence({"r4": ({"r": 64}, (0.9,)), "r8": ({"r": 32}, (0.8,))}, directory="runs/lucky")
    sure = evidence(RANKS, R4_IS_WORSE, directory="runs/sure")
    assert values(advise(request(), [lucky, sure]))["r"] == 8


def test_of_equally_sure_studies_on_one_model_the_one_with_more_seeds_goes_first(evidence):
    few = evidence(RANKS, R4_IS_WORSE, directory="runs/few", model=replace(MODEL, num_params=1_000_000))
    scores = {name: (config, (*its, *its)) for name, (config, its) in RANKS.items()}
    many = evidence(scores, R4_IS_WORSE, directory="runs/many", model=replace(MODEL, num_params=1_010_000))
    assert [one.study.directory for one in advise(request(), [few, many]).weighed] == ["runs/many", "runs/few"]


def test_another_kind_of_task_and_another_family_give_nothing_and_are_shown(evidence):
    talk = evidence(RANKS, R4_IS_WORSE, task=TaskFacts("personachat", "generation"))
    stranger = evidence(RANKS, R4_IS_WORSE, task=MRPC, model=ModelFacts("gpt2", "gpt2"))
    advice = advise(request(), [talk, stranger])
    assert advice.basis == NO_EVIDENCE
    assert [one.use for one in advice.weighed] == [
        "not used: too far, another task and another family",
        "not used: another kind of task",
    ]


def test_a_second_study_of_the_same_task_changes_what_it_says_is_worse_by_a_verdict(evidence):
    targets = {"qv": ({"r": 2}, (0.8, 0.8)), "v": ({"r": 2, "targets": ["value"]}, (0.9, 0.9))}
    first = evidence(RANKS | {"r2": ({"r": 2}, (0.1, 0.1))}, R4_IS_WORSE, directory="runs/ranks")
    second = evidence(targets, {("qv", "v"): "worse"}, directory="runs/targets")
    advice = advise(request(), [second, first])
    assert (values(advice)["r"], values(advice)["targets"]) == (8, ["value"])
    assert advice.choices["targets"].study == "runs/targets"
    assert any("were not measured together" in note for note in advice.notes)
    assert [one.use for one in advice.weighed] == ["used: its whole configuration", "used: targets"]


def test_a_second_study_without_a_verdict_leaves_what_was_measured_and_answers_the_question(evidence):
    targets = {"qv": ({}, (0.8, 0.8)), "v": ({"targets": ["value"]}, (0.9, 0.9))}
    first = evidence(RANKS, R4_IS_WORSE, directory="runs/ranks")
    advice = advise(request(), [first, evidence(targets, directory="runs/targets")])
    assert values(advice)["targets"] == ["query", "value"]
    assert "kept: your study runs/targets has targets value and does not tell it apart: query value is not" in (
        advice.choices["targets"].why
    )
    assert [one.use for one in advice.weighed] == ["used: its whole configuration", "changes nothing: targets"]
    assert "targets" not in advice.open_questions


def test_names_of_modules_are_not_taken_to_a_model_of_another_shape(evidence):
    raw = {"one": ({"targets": ["encoder.layer.11.attention.self.query"]}, (0.9, 0.9)), "two": ({}, (0.8, 0.8))}
    larger = replace(MODEL, reference="/models/large", sizes=(128, 12))
    worse = {("two", "one"): "worse"}
    advice = advise(request(), [evidence(raw, worse, model=larger)])
    assert values(advice)["targets"] == list(ROLES[:4])
    assert values(advise(request(), [evidence(raw, worse)]))["targets"] == raw["one"][0]["targets"]


def test_of_another_models_study_the_precision_stays_the_rules(evidence):
    other = replace(MODEL, reference="/models/copy")
    packed = {"one": ({"quantization": "nf4"}, (0.9, 0.9)), "two": ({"quantization": "nf4", "r": 4}, (0.8, 0.8))}
    assert values(advise(request(), [evidence(packed, model=other)]))["quantization"] is None
    assert values(advise(request(), [evidence(packed)]))["quantization"] == "nf4"


def test_a_goal_goes_a_step_beyond_what_was_measured_only_where_nobody_went(evidence):
    best_is_largest = evidence(RANKS, R4_IS_WORSE)
    better = advise(request(goal="better"), [best_is_largest])
    assert values(better)["r"] == 16
    assert better.choices["r"].source == "rule"
    assert any("were not measured" in note for note in better.notes)
    best_is_smallest = evidence({"r4": ({"r": 4}, (0.9, 0.9)), "r8": ({"r": 8}, (0.8, 0.8))}, {("r8", "r4"): "worse"})
    assert values(advise(request(goal="better"), [best_is_smallest]))["r"] == 4
    assert values(advise(request(goal="faster"), [best_is_smallest]))["r"] == 2
    assert values(advise(request(goal="faster"), [best_is_largest]))["r"] == 8
    near = {"r4": ({"r": 4}, (0.9, 0.9)), "r8": ({"r": 8}, (0.9, 0.91))}
    cheaper = advise(request(goal="faster"), [evidence(near)])
    assert (values(cheaper)["r"], values(cheaper)["targets"]) == (4, ["query", "value"])


def test_against_overfitting_dropout_rises_unless_that_was_tried(evidence):
    assert values(advise(request(goal="overfits"), [evidence(RANKS, R4_IS_WORSE)]))["lora_dropout"] == 0.3
    tried = evidence(
        {"d0": ({"lora_dropout": 0.1}, (0.9, 0.9)), "d3": ({"lora_dropout": 0.3}, (0.8, 0.8))}, {("d3", "d0"): "worse"}
    )
    assert values(advise(request(goal="overfits"), [tried]))["lora_dropout"] == 0.1


def test_a_goal_that_changes_nothing_says_so_and_why(evidence):
    def notes(goal, *studies, **more):
        return [note for note in advise(request(goal=goal, **more), studies).notes if note.startswith(f"goal {goal} leaves ")]

    assert notes("default") == notes("faster") == notes("better") == notes("overfits") == []
    best_is_smallest = evidence({"r4": ({"r": 4}, (0.9, 0.9)), "r8": ({"r": 8}, (0.8, 0.8))}, {("r8", "r4"): "worse"})
    assert notes("better", best_is_smallest) == [
        "goal better leaves r 4: your study runs/mine tried 8, and what it found stands"
    ]
    near = evidence({"r4": ({"r": 4}, (0.9, 0.9)), "r8": ({"r": 8}, (0.9, 0.91))})
    assert notes("faster", near) == [
        "goal faster leaves r 4: your study runs/mine has a cheaper one, which is taken",
        "goal faster leaves targets query value: your study runs/mine has a cheaper one, which is taken",
    ]
    least = {"r": 1, "targets": ["query"]}
    smallest = evidence({"one": (least, (0.9, 0.9)), "two": ({**least, "bias": "all"}, (0.8, 0.8))}, {("two", "one"): "worse"})
    assert notes("faster", smallest) == [
        "goal faster leaves r 1: there is no step further", "goal faster leaves targets query: there is no step further"
    ]  # fmt: skip


@pytest.mark.parametrize(("status", "rank"), [("failed", 16), ("interrupted", 16), ("diverged", 8), ("pruned", 8)])
def test_a_goal_steps_to_what_failed_before_it_was_seen_and_not_to_what_diverged(evidence, status, rank):
    study = evidence(RANKS | {"r64": ({"r": 64}, (status, status))}, R4_IS_WORSE)
    assert values(advise(request(goal="better"), [study]))["r"] == rank


def test_what_was_measured_on_another_kind_of_model_is_told(evidence):
    gpt2 = evidence(RANKS, R4_IS_WORSE, model=ModelFacts("gpt2", "gpt2", (64, 2)))
    larger = evidence(RANKS, R4_IS_WORSE, model=replace(MODEL, reference="/models/large", sizes=(128, 4)))
    for study, said in ((gpt2, "another family of models (gpt2)"), (larger, "another size of the model's family (/models/l")):
        advice = advise(request(), [study])
        assert values(advice)["learning_rate"] == 1e-3
        (note,) = [note for note in advice.notes if said in note]
        assert "learning rate 0.001 before all, were not tried" in note
        assert "learning_rate" in advice.open_questions
    assert not any("was measured on" in note for note in advise(request(), [evidence(RANKS, R4_IS_WORSE)]).notes)


def test_little_memory_gives_way_to_own_evidence(evidence):
    small = request(memory_bytes=6 * 10**9)
    assert values(advise(small, []))["targets"] == ["query"]
    assert values(advise(small, []))["quantization"] == "nf4"
    assert values(advise(small, [evidence(RANKS, R4_IS_WORSE)]))["targets"] == ["query", "value"]


def test_a_model_without_roles_is_said():
    advice = advise(Request(TASK, MODEL), [])
    assert values(advice)["targets"] == "all-linear"
    assert any("roles of this model's family are not known" in note for note in advice.notes)
