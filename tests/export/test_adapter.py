"""An exported adapter: PEFT's files, a card that the Hub reads, a study that repeats it, and nothing of this machine."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from lorascope.cohort.run import run_study
from lorascope.config import Study
from lorascope.design import expand
from lorascope.errors import UsageError
from lorascope.export import Wishes, described, find_source, write_adapter_directory
from lorascope.lora.peft_io import read_adapter, write_record
from lorascope.model_card import chosen_licence
from lorascope.store import Store


def export(place, out, **options):
    choice = {name: options.pop(name) for name in ("best", "trial") if name in options}
    source = find_source(place, **choice)
    return write_adapter_directory(source, read_adapter(source.adapter), out, Wishes(out.name, **options))


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "my-adapter"
    export(finished, out, best=True)
    return out


@pytest.fixture
def row(finished):
    return find_source(finished, best=True).trial


def code_of(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


def test_it_holds_the_adapter_its_card_and_its_study(exported, finished, row):
    names = {path.name for path in exported.iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", "lorascope.json", "study.yaml"}
    own = finished / row.adapter
    assert (exported / "adapter_model.safetensors").read_bytes() == (own / "adapter_model.safetensors").read_bytes()
    record = json.loads((exported / "lorascope.json").read_text())
    assert record["labels"] == ["negative", "positive"]
    assert record["base"]["checksum"] == row.base_checksum
    ours, theirs = (json.loads((place / "adapter_config.json").read_text()) for place in (exported, own))
    assert {name for name in theirs if ours[name] != theirs[name]} == {"base_model_name_or_path"}


def test_the_card_names_what_the_store_knows(exported, finished, row):
    text = (exported / "README.md").read_text(encoding="utf-8")
    for told in (row.trial, row.base_checksum, row.data_checksum, "16 examples", "validation, 12 examples",
                 f"{row.trainable_params:,} (", "Wilson, 12 examples", "2 seeds", "best of 4 trials by accuracy"):  # fmt: skip
        assert told in text, told
    data = ModelCard(text).data
    values = {each.metric_name: each.metric_value for each in data.eval_results}
    assert values == pytest.approx(row.metrics, abs=1e-6)
    assert (data.pipeline_tag, data.datasets, data.license) == ("text-classification", None, "unknown")
    with Store.open(finished) as store:
        messages = [each["message"] for each in store.warnings() if each["trial"] in (None, row.trial)]
    for message in messages:
        assert " ".join(message.split()[:4]).split("/")[0] in text


def test_nothing_of_this_machine_leaves_it(exported, finished, study):
    wanted = study()
    known = [str(Path.home()), str(finished), str(finished.parent), wanted.base.model, wanted.task.data, str(exported.parent)]
    for path in exported.iterdir():
        if path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8")
            assert not [place for place in known if place in text], path.name
            assert os.sep + "tmp" + os.sep not in text
    assert (
        json.loads((exported / "adapter_config.json").read_text())["base_model_name_or_path"] == Path(wanted.base.model).name
    )


def test_secrets_in_warnings_do_not_get_into_the_card(scored, finished, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    own = find_source(finished, best=True)
    directory = scored([{"hits": [1] * 12}], [{"r": 2, "targets": ["query"]}], [1])
    with Store.open(directory) as store:
        study, name = store.study, store.trials()[0].trial
    shutil.copytree(own.adapter, directory / "trials" / name / "adapter")
    with Store.create(directory, study, resume=True) as store:
        store.add_warning(None, "tracking", 1, "x", "key 0123456789abcdef0123456789abcdef01234567 at /home/someone/.netrc/x")
    export(directory, tmp_path / "out", best=True)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "key [removed] at x" in text


def test_the_code_in_the_card_runs(exported, study, monkeypatch, capsys):
    base = Path(study().base.model)
    monkeypatch.chdir(exported.parent)
    (exported.parent / base.name).symlink_to(base)
    text = code_of((exported / "README.md").read_text(encoding="utf-8"))
    assert f'base = "{base.name}"  # a local directory when this was trained' in text
    exec(compile(text, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in ("negative", "positive")


@pytest.mark.parametrize(("family", "task_type"), [("roberta", "SEQ_CLS"), ("gpt2", "CAUSAL_LM"), ("bart", "SEQ_2_SEQ_LM")])
def test_the_code_of_every_kind_of_card_runs(family, task_type, peft_adapter, model_directory, tmp_path, monkeypatch, capsys):
    adapter, _ = peft_adapter(family, task_type)
    export(adapter, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    base = model_directory(family)
    (tmp_path / base.name).symlink_to(base)
    exec(compile(code_of((tmp_path / "out" / "README.md").read_text(encoding="utf-8")), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip().startswith("LABEL_") == (task_type == "SEQ_CLS")


def test_the_study_beside_it_trains_the_same_trial_again(exported, row, study, finished, tmp_path):
    document = yaml.safe_load((exported / "study.yaml").read_text(encoding="utf-8"))
    assert document["seeds"] == [row.seed]
    wanted = study()
    document["base"]["model"], document["task"]["data"] = wanted.base.model, wanted.task.data
    again = Study.model_validate(document)
    (trial,) = expand(again)
    assert trial.trial == row.trial
    list(run_study(again, [trial], tmp_path / "run"))
    with Store.open(tmp_path / "run") as store:
        (repeated,) = store.trials()
    assert repeated.metrics == pytest.approx(row.metrics, rel=1e-4)
    assert repeated.data_checksum == row.data_checksum


def test_a_base_has_the_name_and_the_licence_that_the_user_gives(finished, tmp_path):
    export(finished, tmp_path / "out", best=True, base_name="org/tiny", licence=chosen_licence("Apache-2.0"))
    text = (tmp_path / "out" / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.base_model, data.license) == ("org/tiny", "apache-2.0")
    assert "apache-2.0, set by who exported this" in text
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"


def test_a_bases_licence_is_quoted(peft_adapter, model_directory, tmp_path):
    base = shutil.copytree(model_directory("bert"), tmp_path / "licensed")
    (base / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    adapter, _ = peft_adapter("bert", base=base)
    export(adapter, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    # PEFT wrote a card without a licence beside the adapter.
    assert ModelCard(text).data.license == "mit"
    assert "mit, quoted from the base's README.md" in text


def test_an_adapter_of_pefts_own_says_what_is_not_known(peft_adapter, tmp_path):
    adapter, _ = peft_adapter("gpt2", "CAUSAL_LM", rank_pattern={"h.0.attn.c_attn": 2})
    (adapter / "optimizer.pt").write_bytes(b"x")
    (adapter / "training_args.bin").write_bytes(b"x")
    (adapter / "tokenizer_config.json").write_text(json.dumps({"name_or_path": "/home/someone/base"}))
    (adapter / "source.spm").write_bytes(b"words")
    facts = export(adapter, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "does not come from a study of Lorascope" in text
    assert "Nothing of it was evaluated here" in text
    assert "It does not read rank_pattern" in facts.serving[0]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    own = {"tokenizer_config.json", "source.spm"}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", *own}
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"name_or_path": "base"}
    assert "differs in 1 modules" in text


def test_the_checksum_of_a_base_before_it_was_packed_goes_with_its_adapter(finished, row, tmp_path):
    copied = shutil.copytree(finished / row.adapter, tmp_path / "elsewhere")
    origin = {"checksum": "of the packed weights", "dtype": "bfloat16", "quantization": "nf4"}
    write_record(copied, ["negative", "positive"], {**origin, "unpacked_checksum": "of the weights in full"})
    export(copied, tmp_path / "other")
    record = json.loads((tmp_path / "other" / "lorascope.json").read_text())
    assert record["base"]["unpacked_checksum"] == "of the weights in full"


def test_the_checksum_of_a_base_goes_with_an_adapter_that_left_its_study(finished, row, tmp_path):
    copied = shutil.copytree(finished / row.adapter, tmp_path / "copied")
    export(copied, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert row.base_checksum in text
    assert "came without a checksum" not in text
    write_record(copied, ["negative", "positive"])
    export(copied, tmp_path / "other")
    assert "came without a checksum" in (tmp_path / "other" / "README.md").read_text()


def test_an_adapter_that_names_no_base_needs_one(peft_adapter, model_directory, tmp_path):
    adapter, _ = peft_adapter("bert")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(UsageError, match="names no base model; give it with --base"):
        export(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(adapter, tmp_path / "out", base=str(model_directory("bert")))
    assert (tmp_path / "out" / "README.md").is_file()


def test_what_fails_leaves_nothing(finished, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lorascope.export.adapter.write_papers", full)
    with pytest.raises(Exception, match="No space left"):
        export(finished, tmp_path / "out", best=True)
    assert list(tmp_path.iterdir()) == []


def test_limits_follow_from_what_is_known(finished):
    source = find_source(finished, best=True)
    saved = read_adapter(source.adapter)
    text = " ".join(described(source, saved, Wishes("x")).limitations)
    assert "Scored on validation of file (12 examples) and on nothing else" in text
    assert "One seed" not in text
    assert "if it was picked by its score" not in text
    picked = replace(source, choice=None)
    assert "It is one of 4 trials" in " ".join(described(picked, saved, Wishes("x")).limitations)
    merged = " ".join(described(source, saved, Wishes("x", "merged")).limitations)
    assert "the certificate says how near" in merged


def test_classes_that_look_like_places_keep_their_names_in_the_card_and_the_study(scored, finished, study, tmp_path):
    """The card's code runs with them, and the study must fit its data."""
    classes, data = ["/r/books", "/r/film/new"], study().task.data
    task = {"name": "file", "data": data, "max_length": 32, "labels": classes}
    directory = scored([{"hits": [1] * 12}], [{"r": 2, "targets": ["query"]}], [1], task=task)
    with Store.open(directory) as store:
        name = store.trials()[0].trial
    adapter = directory / "trials" / name / "adapter"
    shutil.copytree(find_source(finished, best=True).adapter, adapter)
    write_record(adapter, classes)
    export(directory, tmp_path / "out", best=True)
    assert "id2label={0: '/r/books', 1: '/r/film/new'}" in code_of((tmp_path / "out" / "README.md").read_text())
    document = yaml.safe_load((tmp_path / "out" / "study.yaml").read_text())
    assert document["task"]["labels"] == classes
    assert document["task"]["data"] == Path(data).name
