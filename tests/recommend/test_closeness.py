"""The order of nearness: first the task, then the model."""

import math
from dataclasses import replace

from lorascope.recommend.closeness import ORDER, ModelFacts, TaskFacts, closeness, size_distance, sizes_of

TASK = TaskFacts("sst2", "classification", ("data",))
MODEL = ModelFacts("/a", "bert", (64, 2), 1000)


def test_the_order_goes_from_the_same_task_and_model_to_another_family():
    copy, larger, stranger = (
        replace(MODEL, reference="/b"),
        ModelFacts("/c", "bert", (128, 2)),
        ModelFacts("/d", "gpt2", (64, 2)),
    )
    other = TaskFacts("mrpc", "classification", ("else",))
    places = [closeness(TASK, MODEL, task, model) for task in (TASK, other) for model in (MODEL, copy, larger, stranger)]
    assert places == list(range(len(ORDER)))
    assert closeness(TASK, MODEL, TaskFacts("squad", "question answering"), MODEL) is None


def test_a_model_of_which_nothing_is_known_is_of_another_family():
    assert closeness(TASK, MODEL, TASK, ModelFacts("/gone")) == 3
    assert closeness(TASK, ModelFacts("/gone"), TASK, ModelFacts("/away")) == 3
    assert closeness(TASK, ModelFacts("/gone"), TASK, ModelFacts("/gone")) == 0


def test_the_users_own_files_are_the_same_task_only_where_they_are_the_same_files():
    mine, others = TaskFacts("file", "generation", ("/one.jsonl",)), TaskFacts("file", "generation", ("/two.jsonl",))
    assert mine.is_same(mine)
    assert not mine.is_same(others)
    assert TASK.is_same(replace(TASK, data=("elsewhere",)))
    assert not TaskFacts("teacher_student", "generation", speaker="student").is_same(
        TaskFacts("teacher_student", "generation")
    )


def test_sizes_are_read_by_each_familys_own_names():
    bert = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 9}
    gpt2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": None, "vocab_size": 9}
    assert sizes_of(bert) == (64, 2, None, 4, 128, 9)
    assert sizes_of(gpt2) == (64, 2, None, 4, None, 9)


def test_sizes_are_as_far_apart_as_one_is_doubled_to_be_the_other():
    assert size_distance(MODEL, ModelFacts("/c", num_params=4000)) == 2.0
    assert size_distance(MODEL, ModelFacts("/c", num_params=250)) == 2.0
    assert size_distance(MODEL, ModelFacts("/c")) == math.inf
