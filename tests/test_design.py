"""From a design to its trials: what varies, what stays, how often each configuration counts, and how shards cut them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.config import BaseModelConfig, Study, TaskConfig, load_study
from lorascope.design import expand, factors, parse_shard, shard
from lorascope.errors import UsageError


def study(design, adapter=None, seeds=(1,), **train):
    return Study(
        name="s", base=BaseModelConfig(model="m"), task=TaskConfig(name="sst2", data="x"), adapter=adapter or {},
        train=train, seeds=list(seeds), design=design,
    )  # fmt: skip


def varied(trials, *keys):
    return [tuple(trial.flat()[key] for key in keys) for trial in trials]


def test_a_list_is_its_trials_each_over_the_sections_of_the_study():
    design = {"kind": "list", "trials": [{}, {"r": 4, "targets": ["query"]}, {"learning_rate": 1e-3, "dtype": "bfloat16"}]}
    trials = expand(study(design, {"r": 2, "bias": "all"}))
    assert varied(trials, "r", "targets", "bias", "learning_rate", "dtype") == [
        (2, ["query", "value"], "all", 2e-4, "float32"),
        (4, ["query"], "all", 2e-4, "float32"),
        (2, ["query", "value"], "all", 1e-3, "bfloat16"),
    ]
    assert [trial.adapter.alpha for trial in trials] == [4, 8, 4]


def test_a_grid_is_every_combination():
    trials = expand(study({"kind": "grid", "over": {"r": [4, 8, 16], "learning_rate": [1e-4, "3e-4"]}}))
    assert varied(trials, "r", "learning_rate") == [(r, rate) for r in (4, 8, 16) for rate in (1e-4, 3e-4)]


def test_an_ablation_changes_one_factor_at_a_time_around_the_baseline():
    trials = expand(study({"kind": "ablation", "over": {"lora_dropout": [0.0, 0.1], "bias": ["none", "lora_only"]}}))
    assert varied(trials, "lora_dropout", "bias") == [(0.0, "none"), (0.1, "none"), (0.0, "lora_only")]


@pytest.mark.parametrize(("alpha", "expected"), [(16, [16, 8, 32]), (4.0, [4, 2, 8]), ("2r", [16, 8, 32]), ("1r", [8, 4, 16])])
@pytest.mark.parametrize("ranks", [[4, 8, 16], [4.0, 8.0, 16.0]])
def test_in_an_ablation_over_r_alpha_keeps_the_baselines_ratio(alpha, expected, ranks):
    trials = expand(study({"kind": "ablation", "over": {"r": ranks}}, {"lora_alpha": alpha}))
    assert varied(trials, "r", "lora_alpha") == list(zip([8, 4, 16], expected, strict=True))


def test_an_ablation_covers_every_factor_of_a_configuration():
    over = {
        "r": [4, 16],
        "lora_alpha": [8, 32],
        "lora_dropout": [0.1, 0.3],
        "bias": ["lora_only"],
        "targets": [["query", "value"], ["query", "key", "value", "output"], "all-linear"],
        "learning_rate": [1e-3],
        "quantization": ["nf4"],
    }
    ablation = study({"kind": "ablation", "over": over}, {"r": 8, "lora_alpha": 16})
    trials = expand(ablation)
    baseline = trials[0].flat()
    changed = [{key for key in baseline if trial.flat()[key] != baseline[key]} for trial in trials[1:]]
    assert changed == [
        {"r", "lora_alpha"}, {"r", "lora_alpha"}, {"lora_alpha"}, {"lora_alpha"}, {"lora_dropout"}, {"lora_dropout"}, {"bias"},
        {"targets"}, {"targets"}, {"learning_rate"}, {"quantization"},
    ]  # fmt: skip
    assert [trial.adapter.alpha for trial in trials[1:3]] == [8.0, 32.0]
    table = factors(ablation)
    assert [row[:2] for row in table] == [("baseline", None), *((key, value) for key in over for value in over[key])]
    assert [row[2] for row in table if row[2] != table[0][2]] == [trial.configuration for trial in trials[1:]]
    assert table[8][1:] == (["query", "value"], table[0][2])  # the baseline's own value


def test_designs_of_other_kinds_have_no_factors():
    assert factors(study({"kind": "grid", "over": {"r": [4]}})) == []


def with_controls(*controls, **sections):
    return study({"kind": "list", "trials": [{"r": 4}]}, seeds=[1, 2]).model_copy(
        update={"controls": list(controls), **sections}
    )


def test_controls_follow_the_design_with_every_seed_and_every_value_of_their_lists():
    trials = expand(with_controls({"method": "full", "learning_rate": [1e-5, 3e-5]}, {"method": "head", "epochs": 2}))
    assert varied(trials, "method", "learning_rate", "epochs")[::2] == [
        ("lora", 2e-4, 3), ("full", 1e-5, 3), ("full", 3e-5, 3), ("head", 2e-4, 2),
    ]  # fmt: skip
    assert [trial.seed for trial in trials] == [1, 2] * 4
    assert {trial.train.batch_size for trial in trials} == {8}


@pytest.mark.parametrize("control", [{"r": 64}, {"method": "lora"}, {"learning_rate": [1e-3]}])
def test_a_control_that_is_neither_full_nor_a_head_is_refused(control):
    with pytest.raises(UsageError, match=r"^controls\[1\]: a control has method .*; give it method: full or method: head"):
        expand(with_controls({"method": "head"}, control))


def test_full_fine_tuning_of_a_packed_base_is_refused_where_it_is_asked_for():
    packed = {"base": BaseModelConfig(model="m", quantization="nf4")}
    with pytest.raises(
        UsageError, match=r"^controls\[0\]: method full trains the base's weights, which nf4 packs into 4 bits; "
    ):
        expand(with_controls({"method": "full"}, **packed))
    with pytest.raises(UsageError, match=r"^design\.trials\[0\]: method full"):
        expand(study({"kind": "list", "trials": [{"method": "full", "quantization": "nf4"}]}))
    trials = expand(with_controls({"method": "full", "quantization": None}, {"method": "head"}, **packed))
    assert varied(trials, "method", "quantization")[::2] == [("lora", "nf4"), ("full", None), ("head", "nf4")]


def test_an_ablation_over_alpha_keeps_the_rank():
    trials = expand(study({"kind": "ablation", "over": {"lora_alpha": [8, 16, 32], "r": [16]}}))
    assert varied(trials, "r", "lora_alpha") == [(8, 16.0), (8, 8.0), (8, 32.0), (16, 32.0)]


def test_alpha_given_beside_r_is_taken_as_given():
    for design in ({"kind": "grid", "over": {"r": [4], "lora_alpha": [16]}}, {"trials": [{"r": 4, "lora_alpha": 16}]}):
        trials = expand(study({"kind": "list"} | design))
        assert varied(trials, "r", "lora_alpha") == [(4, 16.0)]


def test_seeds_multiply_every_configuration():
    trials = expand(study({"kind": "grid", "over": {"r": [4, 8]}}, seeds=[42, 1337, 2024]))
    assert [(trial.adapter.r, trial.seed) for trial in trials] == [(r, seed) for r in (4, 8) for seed in (42, 1337, 2024)]
    assert len({trial.trial for trial in trials}) == 6
    assert len({trial.configuration for trial in trials}) == 2


def test_equal_configurations_count_once():
    design = {"kind": "list", "trials": [{}, {"r": 8}, {"lora_alpha": 16}, {"lora_alpha": "2r"}, {"epochs": 3.0}, {"r": 4}]}
    assert varied(expand(study(design, seeds=[1, 2])), "r") == [(8,), (8,), (4,), (4,)]
    ablation = {"kind": "ablation", "over": {"r": [8, 8, 4], "lora_alpha": [16]}}
    assert varied(expand(study(ablation)), "r") == [(8,), (4,)]


def test_an_adapter_that_comes_trained_is_evaluated_once_whatever_the_seeds():
    trials = expand(study({"kind": "list", "trials": [{"path": "adapter"}, {}]}, seeds=[7, 8]))
    assert [(trial.adapter.path, trial.seed) for trial in trials] == [("adapter", 7), (None, 7), (None, 8)]


@pytest.mark.parametrize(
    ("design", "where"),
    [
        ({"kind": "list", "trials": [{}, {"learning_rte": 1}]}, r"design\.trials\[1\]"),
        ({"kind": "grid", "over": {"learning_rte": [1]}}, r"design\.over"),
        ({"kind": "ablation", "over": {"learning_rte": [1]}}, r"design\.over\.learning_rte"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_a_suggestion(design, where):
    with pytest.raises(UsageError, match=rf"^{where}: no section has a key 'learning_rte'; did you mean 'learning_rate'\?$"):
        expand(study(design))


@pytest.mark.parametrize(
    ("design", "message"),
    [
        ({"kind": "list", "trials": [{}, {"r": 4}, {"r": 0}]}, r"^design\.trials\[2\]: r = 0: "),
        ({"kind": "list", "trials": [{"lora_alpha": "2x"}]}, r"^design\.trials\[0\]: lora_alpha = \"2x\": "),
        ({"kind": "grid", "over": {"r": [4], "schedule": ["linear", "square"]}}, r"^design\.over: schedule = \"square\": "),
        ({"kind": "ablation", "over": {"r": [4, "x"]}}, r"^design\.over\.r: r = \"x\": "),
    ],
)
def test_a_bad_value_is_named_with_its_place(design, message):
    with pytest.raises(UsageError, match=message) as caught:
        expand(study(design))
    assert "\n" not in str(caught.value)


def test_in_a_study_from_a_file_the_line_is_named_too(tmp_path):
    path = tmp_path / "study.yaml"
    head = "name: a\nbase: {model: m}\ntask: {name: sst2, data: x}\n"
    path.write_text(head + "design:\n  kind: list\n  trials:\n    - {r: 4}\n    - {r: 0}\n")
    with pytest.raises(UsageError, match=r"study\.yaml, line 8: design\.trials\[1\]: r = 0: "):
        expand(load_study(path))


@given(st.integers(1, 40), st.integers(1, 12))
def test_shards_are_disjoint_and_complete(num_trials, count):
    trials = expand(study({"kind": "grid", "over": {"r": list(range(1, num_trials + 1))}}))
    parts = [shard(trials, index, count) for index in range(1, count + 1)]
    names = [trial.trial for part in parts for trial in part]
    assert len(names) == num_trials
    assert set(names) == {trial.trial for trial in trials}
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_shard_is_written_as_i_of_n():
    assert parse_shard("2/4") == (2, 4)
    assert parse_shard("1/1") == (1, 1)


@pytest.mark.parametrize("text", ["", "2", "0/4", "5/4", "-1/4", "1/0", "1/4/2", "a/b", "1.0/2", "1 of 4", "²/4", " 1/4"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UsageError, match=r"--shard: .* is no shard; write I/N"):
        parse_shard(text)
