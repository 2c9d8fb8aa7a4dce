"""The study file: what is refused, and in which words."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorascope.config import (
    AdapterConfig,
    Study,
    load_study,
    parse_duration,
    parse_memory,
    parse_override,
    validate,
)
from lorascope.errors import UsageError

MINIMAL = "name: a\nbase: {model: gpt2}\ntask: {name: sst2, data: x}\n"


SEARCH = "design: {kind: search, objective: accuracy, over: {r: %s}}"


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
    ("text", "size"), [("8GB", 8 * 10**9), ("512MiB", 2**29), ("1.5 GiB", 3 * 2**29), ("2g", 2 * 10**9), ("1KB", 1000)]
)
def test_memory_is_written_with_its_unit(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "8", "GB", "-8GB", "0GB", "8 QB", "1e3MB", "8GBit"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(UsageError, match=r"^--memory: .* is no amount of memory; write it as 8GB"):
        parse_memory(text)
