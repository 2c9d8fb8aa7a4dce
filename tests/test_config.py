"""The study file: what is refused, in which words, and which configurations are one."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorascope.config import (
    AdapterConfig,
    BaseModelConfig,
    Study,
    TrainConfig,
    TrialConfig,
    design_keys,
    in_layers,
    load_study,
    parse_duration,
    parse_memory,
    parse_override,
    section_of,
    split_layers,
    validate,
)
from lorascope.errors import UsageError

MINIMAL = "name: a\nbase: {model: gpt2}\ntask: {name: sst2, data: x}\n"


@pytest.fixture
def load(tmp_path):
    """``load(text, overrides=None)``: the study in a file of this text (or these bytes)."""

    def loaded(text: str | bytes, overrides=None) -> Study:
        path = tmp_path / "study.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_study(path, overrides)

    return loaded


@pytest.fixture
def refusal(load):
    """``refusal(text, overrides=None)``: the message with which the study is refused, one line."""

    def message(text: str | bytes, overrides=None) -> str:
        with pytest.raises(UsageError) as caught:
            load(text, overrides)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    return message


def trial(r=8, seed=1, model="gpt2", adapter=None, **train):
    return TrialConfig(
        base=BaseModelConfig(model=model), adapter=AdapterConfig(r=r, **(adapter or {})), train=TrainConfig(**train), seed=seed
    )


SEARCH = "design: {kind: search, objective: accuracy, over: {r: %s}}"


def test_a_minimal_study_has_the_documented_defaults(load):
    study = load(MINIMAL)
    assert study.seeds == [42, 1337, 2024]
    assert (study.adapter.r, study.adapter.alpha, study.adapter.targets) == (8, 16, ["query", "value"])
    assert (study.train.warmup_ratio, study.train.schedule, study.train.base_dropout) == (0.06, "linear", False)
    assert study.design.kind == "list"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("adapter: {rr: 3}", ["line 4", "unknown key 'adapter.rr'", "did you mean 'r'?"]),
        ("desgin: {}", ["line 4", "unknown key 'desgin'", "did you mean 'design'?"]),
        ("evaluate: {decoding: [{stratgy: greedy}]}", ["'evaluate.decoding.0.stratgy'", "did you mean 'strategy'?"]),
        ("train:\n  epochs: 1\n  leraning_rate: 1.0", ["line 6", "'train.leraning_rate'", "did you mean 'learning_rate'?"]),
        ("design: {kind: grid, ovr: {r: [1]}}", ["'design.over' is missing"]),
        ("design: {kind: list, trial: [{}]}", ["unknown key 'design.trial'", "did you mean 'trials'?"]),
        ("adapter: {r: 0}", ["line 4", "adapter.r = 0", "greater than or equal to 1"]),
        ("adapter: {r: 8.5}", ["adapter.r = 8.5"]),
        ("adapter: {r: true}", ["adapter.r = true"]),
        ("evaluate: {decoding: [{}, {}]}", ["evaluate.decoding", "names a decoding twice"]),
        ("evaluate: {judge: {model: x, lables: []}}", ["unknown key 'evaluate.judge.lables'", "did you mean 'labels'?"]),
        ("evaluate: {judge: {model: x, check: {data: y, splt: z}}}", ["'evaluate.judge.check.splt'", "did you mean 'split'?"]),
        ("evaluate: {judge: {model: x, check: {data: {tset: y}}}}", ["evaluate.judge.check.data.tset"]),
        ("evaluate: {judge: {model: x, labels: [neutral]}}", ["evaluate.judge.labels", "each of entailment, neutral and"]),
        ("evaluate: {judge: {model: x, labels: [yes, neutral, no]}}", ["evaluate.judge.labels.0"]),
        ("adapter: {lora_dropout: 1.0}", ["adapter.lora_dropout = 1.0"]),
        ("adapter: {lora_alpha: 2x}", ["adapter.lora_alpha", "'2x' is neither a number nor a multiple of r"]),
        ("adapter: {lora_alpha: 0r}", ["adapter.lora_alpha", "above zero"]),
        ("adapter: {lora_alpha: [1]}", ["adapter.lora_alpha = [1]:"]),
        ("adapter: {targets: [query, query]}", ["adapter.targets", "names a target twice"]),
        ("adapter: {targets: query}", ["adapter.targets", "valid list"]),
        ("adapter: {targets: [query, 3]}", ["adapter.targets.1 = 3", "valid string"]),
        ("adapter: {3: 4}", ["line 4", "adapter.3"]),
        ("seeds: []", ["seeds"]),
        ("seeds: [1, 1]", ["seeds", "names a seed twice"]),
        ("seeds: [-1]", ["seeds.0 = -1"]),
        ("design: {kind: shapely}", ["line 4", "design.kind is 'shapely'", "list, grid, ablation, shapley or search"]),
        ("design: {over: {}}", ["design.kind is None"]),
        ("design: {kind: grid, over: {r: []}}", ["design.over.r = []"]),
        (SEARCH % "{log: [0, 1]}", ["line 4: design.over.r = ", "log begins above zero"]),
        (SEARCH % "{lgo: [1, 2]}", ["unknown key 'design.over.r.lgo'", "did you mean 'log'?"]),
        (SEARCH % "four", ["design.over.r = ", "valid list"]),
        (SEARCH % "[]", ["design.over.r = []"]),
        ("train: 3", ["line 4", "train = 3"]),
        ("name: b", ["lines 1 and 4", "'name' is given twice"]),
        ("adapter: {r: 1, bias: all, r: 2}", ["'adapter.r' is given twice"]),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_and_key(line, words, refusal):
    message = refusal(MINIMAL + line + "\n")
    assert "study.yaml" in message
    assert [word for word in words if word not in message] == []


def test_a_split_that_is_none_is_named(refusal):
    message = refusal("name: a\nbase: {model: gpt2}\ntask: {name: sst2, data: {trian: x}}\n")
    assert "line 3: task.data.trian" in message
    assert "'train', 'validation' or 'test'" in message


def test_a_missing_key_is_named(refusal):
    assert "'name' is missing; add name" in refusal("base: {model: gpt2}\ntask: {name: sst2, data: x}\n")
    assert "line 2: 'base.model' is missing" in refusal("name: a\nbase: {dtype: float32}\ntask: {name: sst2, data: x}\n")


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "a b"])
def test_a_name_that_is_no_directory_of_its_own_is_refused(name, load, refusal):
    assert "name = " in refusal(MINIMAL, {"name": name})
    assert load(MINIMAL, {"name": "which-1.b_c"}).name == "which-1.b_c"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", ["line 1", "no valid YAML"]),
        ("a: b: c", ["line 1", "no valid YAML"]),
        ("a: 1\n\tb: 2", ["line 2", "no valid YAML"]),
        ("---\na: 1\n---\nb: 1\n", ["line 3", "no valid YAML"]),
        ("", ["mapping of keys to values"]),
        ("- 1", ["mapping of keys to values"]),
        ("just words", ["mapping of keys to values"]),
        (b"name: \xff\xfe", ["not UTF-8", "save it as UTF-8"]),
        ("a: 2001-13-45", ["no valid YAML", "month must be in 1..12"]),
        ("a: !!int abc", ["no valid YAML"]),
        ("a: !!timestamp abc", ["no valid YAML"]),
        (MINIMAL + 'design: {kind: list, trials: [{r: "\\ud83d"}]}', ["no valid YAML", "surrogates not allowed"]),
        (MINIMAL + '"\\ud83d": 1', ["no valid YAML", "surrogates not allowed"]),
        ("a: !python/object:os.system 1", ["no valid YAML"]),
        ("a: &x [*x]", ["no valid YAML"]),
        ("a: &x {b: *x}", ["no valid YAML"]),
        ("[" * 1000, ["no valid YAML"]),
    ],
)  # fmt: skip
def test_a_file_that_is_no_yaml_mapping_is_refused(text, words, refusal):
    message = refusal(text)
    assert "study.yaml" in message
    assert [word for word in words if word not in message] == []


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml: no such study file; give the path"):
        load_study(tmp_path / "nowhere.yaml")
    with pytest.raises(UsageError, match="cannot read the study file"):
        load_study(tmp_path)


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("train: {learning_rate: NUMBER}", "train.learning_rate"),
        ("train: {weight_decay: NUMBER}", "train.weight_decay"),
        ("train: {max_grad_norm: NUMBER}", "train.max_grad_norm"),
        ("adapter: {lora_alpha: NUMBER}", "adapter.lora_alpha"),
        ("adapter: {lora_dropout: NUMBER}", "adapter.lora_dropout"),
        ("task: {name: sst2, data: x, eval_fraction: NUMBER}", "task.eval_fraction"),
        ("design: {kind: list, trials: [{}, {learning_rate: NUMBER}]}", "design.trials.1.learning_rate"),
        ("design: {kind: grid, over: {learning_rate: [1.0, NUMBER]}}", "design.over.learning_rate.1"),
        ("design: {kind: ablation, over: {r: [[NUMBER]]}}", "design.over.r.0.0"),
    ],
)  # fmt: skip
def test_a_number_that_is_not_finite_is_refused_by_its_key(line, key, number, refusal):
    head = "\n".join(each for each in MINIMAL.splitlines() if not line.startswith(each[:5]))
    assert f"{key} = " in refusal(f"{head}\n{line.replace('NUMBER', number)}\n")


@pytest.mark.parametrize("value", ["2024-01-01", "!!binary aGVsbG8=", "!!set {x}", "{3: 4}"])
def test_a_design_holds_nothing_that_a_hash_cannot_tell_apart(value, refusal):
    assert "design.trials.0.r" in refusal(f"{MINIMAL}design: {{kind: list, trials: [{{r: {value}}}]}}\n")


@pytest.mark.parametrize(
    ("given", "alpha"), [("2r", 16.0), ("1r", 8.0), ("0.5r", 4.0), (32, 32.0), ("32", 32.0), ("1.6e1", 16.0)]
)
def test_lora_alpha_is_a_number_or_a_multiple_of_r(given, alpha):
    adapter = AdapterConfig(r=8, lora_alpha=given)
    assert adapter.alpha == alpha
    assert adapter.scaling == alpha / 8
    assert AdapterConfig(r=16, lora_alpha=given, use_rslora=True).scaling == AdapterConfig(r=16, lora_alpha=given).alpha / 4


def test_a_multiple_of_r_follows_the_rank():
    assert [AdapterConfig(r=r).alpha for r in (4, 8, 16)] == [8, 16, 32]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.epochs=1", ("train.epochs", 1)),
        (" train.epochs =1", ("train.epochs", 1)),
        ("adapter.targets=[query, key]", ("adapter.targets", ["query", "key"])),
        ("train.max_steps=null", ("train.max_steps", None)),
        ("train.max_steps=", ("train.max_steps", None)),
        ("base.model=a=b", ("base.model", "a=b")),
        ("train.learning_rate=1e-4", ("train.learning_rate", "1e-4")),
    ],
)
def test_an_override_is_a_key_and_a_yaml_value(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["train.epochs", "=3", " =3", "a=[", "a=*b", "a=2001-13-45", "a=!!int b", "a=\x00", "a=[[[{"])
def test_an_override_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="--set: ") as caught:
        parse_override(text)
    assert len(str(caught.value).splitlines()) == 1


def test_overrides_replace_what_the_file_says(load):
    # YAML 1.1 reads 1e-4 as text.
    overrides = dict([parse_override("train.learning_rate=1e-4"), parse_override("adapter.r=4"), parse_override("seeds=[7]")])
    study = load(MINIMAL + "adapter: {r: 2, bias: all}\n", overrides)
    assert study.train.learning_rate == 1e-4
    assert (study.adapter.r, study.adapter.bias) == (4, "all")
    assert study.seeds == [7]


def test_an_override_that_leads_nowhere_is_refused(refusal):
    assert refusal(MINIMAL, {"name.x": 3}) == "--set: 'name.x' does not lead to a key; 'name' holds no keys"
    assert refusal(MINIMAL, {"base.model.x.y": 3}).endswith("'model' holds no keys")
    assert "unknown key 'train.epoch'; did you mean 'epochs'?" in refusal(MINIMAL, {"train.epoch": 3})
    assert "unknown key ''" in refusal(MINIMAL, {"": 3})


def test_equal_configurations_have_one_name():
    written = [
        trial(adapter={"lora_alpha": "2r"}), trial(adapter={"lora_alpha": 16}), trial(adapter={"lora_alpha": 16.0}),
        trial(adapter={"lora_alpha": "16"}), trial(learning_rate=2e-4), trial(learning_rate="0.0002", epochs=3.0),
    ]  # fmt: skip
    assert len({one.trial for one in written}) == 1
    assert written[0].trial.endswith("-s1")
    assert len(written[0].configuration) == 8


def test_a_head_alone_is_one_configuration_whatever_its_rank_alpha_and_targets():
    spelt = [{}, {"lora_alpha": 3}, {"targets": []}, {"bias": "all"}, {"lora_dropout": 0.1}, {"use_rslora": True}]
    assert len({trial(r=r, adapter={"method": "head", **one}).trial for r, one in enumerate(spelt, start=1)}) == 1


def test_different_configurations_have_different_names():
    different = [
        trial(), trial(r=16), trial(adapter={"lora_alpha": 17}), trial(adapter={"targets": ["value", "query"]}),
        trial(adapter={"targets": []}), trial(adapter={"targets": "all-linear"}), trial(adapter={"bias": "all"}),
        trial(adapter={"use_rslora": True}), trial(adapter={"method": "head"}), trial(adapter={"path": "x"}),
        trial(adapter={"lora_dropout": 0.1}), trial(learning_rate=1e-4), trial(max_steps=0), trial(base_dropout=True),
        trial(model="gpt2-medium"),
    ]  # fmt: skip
    assert len({one.configuration for one in different}) == len(different)
    assert trial(seed=2).configuration == trial().configuration
    assert trial(seed=2).trial != trial().trial


def test_a_flat_configuration_has_every_key_that_a_design_may_vary():
    flat = trial(adapter={"path": "x"}).flat()
    assert sorted(flat) == sorted(design_keys())
    assert flat["lora_alpha"] == 16.0
    assert "path" not in trial().flat()
    assert {section_of(key) for key in flat} == {"adapter", "train", "base"}
    assert section_of("seeds") is None


def test_the_hash_of_a_study_ignores_its_name_and_nothing_else(load):
    changes = [
        {}, {"base.model": "b"}, {"base.dtype": "bfloat16"}, {"task.name": "rte"}, {"task.data": "y"}, {"task.max_train": 3},
        {"adapter.r": 4}, {"train.epochs": 1}, {"seeds": [42]}, {"design": {"kind": "grid", "over": {"r": [4]}}},
        {"evaluate.split": "test"}, {"evaluate.decoding": [{"max_new_tokens": 3}]}, {"evaluate.batch_tokens": 4},
    ]  # fmt: skip
    hashes = [load(MINIMAL, change).hash for change in changes]
    assert len(set(hashes)) == len(changes)
    assert load(MINIMAL, {"name": "b"}).hash == hashes[0]
    assert load(MINIMAL + "# a comment\n").hash == hashes[0]


def test_a_study_is_what_its_file_says_wherever_that_is_written(load):
    study = load(MINIMAL)
    assert load("# a comment\n" + MINIMAL) == study
    assert load(MINIMAL, {"seeds": [1]}) != study
    assert Study.model_validate(study.model_dump()) == study


def test_a_study_knows_the_line_of_every_key(load):
    study = load(MINIMAL + "design:\n  kind: list\n  trials:\n  - {r: 4}\n  - {r: 5,\n     bias: all}\n")
    places = {
        ("design",): "line 4: design",
        ("design", "trials", "1"): "line 8: design.trials[1]",
        ("design", "trials", "1", "bias"): "line 9: design.trials[1].bias",
        ("design", "trials", "1", "bias", "deeper"): "line 9: design.trials[1].bias.deeper",
    }
    assert {key: study.place(*key).partition("study.yaml, ")[2] for key in places} == places
    assert study.place("train", "epochs") == "train.epochs"


def test_validate_names_the_place_and_the_key():
    with pytest.raises(UsageError, match=r"^here: r = 0: .*; correct the value$"):
        validate(AdapterConfig, {"r": 0}, "here")
    assert validate(AdapterConfig, {"r": 3}, "here").r == 3


WORDS = st.sampled_from(
    ["name", "base", "model", "task", "data", "adapter", "r", "train", "seeds", "design", "kind", "grid", "over", "trials",
     "lora_alpha", "2r", "evaluate", "decoding", "42", "1e3", ".inf", "null", "true", "2024-13-01", "2024-01-01", "*a", "&a",
     "!!int", "!!set", "!!binary", "<<", "=", "~", '"\\ud83d"', '"\\e\\n"', "0x_", "1:30", "x y"]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | SCALARS, inner, max_size=3), max_leaves=8
)
LINES = st.lists(st.lists(WORDS | st.sampled_from([": ", "[", "]", "{", "}", ", ", "- ", "  ", "\n", "? "])).map("".join)).map(
    "\n".join
)


def assert_loads_or_is_refused_in_one_line(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        study = load_study(path)
    except UsageError as error:
        message = str(error)
        assert len(message.splitlines()) == 1
        assert str(path) in message
        message.encode()
    else:
        assert len(study.hash) == 64


@given(st.text().map(str.encode) | st.binary() | LINES.map(str.encode) | LINES.map(lambda text: (MINIMAL + text).encode()))
@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_is_a_study_or_refused_in_one_line(tmp_path_factory, content):
    assert_loads_or_is_refused_in_one_line(tmp_path_factory.getbasetemp() / "any.yaml", content)


@given(
    st.dictionaries(st.sampled_from(["adapter", "train", "seeds", "design", "evaluate", "base", "task"]), VALUES, max_size=3)
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_any_value_of_a_section_is_taken_or_refused_in_one_line(tmp_path_factory, sections):
    import yaml

    document = yaml.safe_load(MINIMAL) | sections
    text = yaml.safe_dump(document, allow_unicode=True)
    assert_loads_or_is_refused_in_one_line(tmp_path_factory.getbasetemp() / "values.yaml", text.encode())


def test_every_pair_of_small_adapters_is_equal_exactly_when_it_trains_the_same():
    """Alpha as a number, as text and as a multiple: names agree exactly where rank and alpha do."""
    spelt = [AdapterConfig(r=r, lora_alpha=alpha) for r in (4, 8) for alpha in ("1r", "2r", "4r", 8, 16.0, "32")]
    for one, other in itertools.combinations(spelt, 2):
        names = {
            TrialConfig(base=BaseModelConfig(model="m"), adapter=adapter, train=TrainConfig(), seed=0).trial
            for adapter in (one, other)
        }
        assert (len(names) == 1) == ((one.r, one.alpha) == (other.r, other.alpha))


def test_quantization_is_nf4_or_nothing_and_not_from_float64(refusal):
    base = BaseModelConfig(model="gpt2", quantization="nf4")
    assert (base.quantization, BaseModelConfig(model="gpt2").quantization) == ("nf4", None)
    text = MINIMAL.replace("base: {", "base: {dtype: float64, quantization: nf4, ")
    assert text != MINIMAL
    assert 'base.quantization = "nf4": needs dtype float32 or bfloat16, not float64' in refusal(text)
    assert "base.quantization" in refusal(text.replace("nf4", "int3"))


@given(st.sampled_from(["query", "mlp.c_proj", "layer.0.attention"]), st.integers(0, 99), st.integers(0, 99))
def test_a_restricted_name_is_read_as_it_was_written(name, one, other):
    first, last = min(one, other), max(one, other)
    assert split_layers(in_layers(name, first, last)) == (name, (first, last))
    assert split_layers(name) == (name, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("1d", 86400), (" 5m1s ", 301)],
)
def test_a_duration_is_its_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "h", "30m1h", "-5m", "0s", "1h 30m", "2 hours", "9" * 400 + "s"])
def test_what_is_no_duration_is_refused_with_the_forms_there_are(text):
    with pytest.raises(UsageError, match="is no duration; write it as 90s, 30m, 2h or 1h30m"):
        parse_duration(text)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"adapter": {"r": 4, "lora_alpha": "1.5r", "targets": "all-linear"}},
        {"adapter": {"method": "head"}},
        {"adapter": {"path": "a"}},
    ],
)
def test_a_trial_is_made_again_from_the_row_that_a_store_keeps_of_it(sections):
    adapter = AdapterConfig(**sections.get("adapter", {}))
    trial = TrialConfig(base=BaseModelConfig(model="m"), adapter=adapter, train=TrainConfig(max_steps=3), seed=7)
    assert TrialConfig.from_flat(json.loads(json.dumps(trial.flat())), 7) == trial


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("512MiB", 2**29), ("1.5 GiB", 3 * 2**29), ("2g", 2 * 10**9), ("1KB", 1000)]
)
def test_memory_is_written_with_its_unit(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "8", "GB", "-8GB", "0GB", "8 QB", "1e3MB", "8GBit"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(UsageError, match=r"^--memory: .* is no amount of memory; write it as 8GB"):
        parse_memory(text)
