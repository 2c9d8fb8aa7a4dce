"""What of a machine must not leave it: paths, tokens, passwords; and what is no path stays as it is."""

import json
from pathlib import Path

import pytest

from lorascope.model_card import BaseFacts, Privacy, public_name


def test_a_directory_is_named_by_its_last_part_and_a_hub_id_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "models" / "my base").mkdir(parents=True)
    assert public_name(str(tmp_path / "models" / "my base")) == "my base"
    monkeypatch.chdir(tmp_path)
    assert public_name("models") == "models"
    assert public_name(".") == tmp_path.name
    assert public_name("~/gone/tiny") == "tiny"
    assert public_name("/gone/tiny/") == "tiny"
    for place in ("gpt2", "Qwen/Qwen2.5-1.5B-Instruct", "https://host/org/model"):
        assert public_name(place) == place


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("read /home/someone/data/train.jsonl twice", "read train.jsonl twice"),
        ("`/home/someone/data/`: empty", "`data`: empty"),
        ("/var/lib/x, /var/lib/y", "x, y"),
        ("~/models/tiny is gone", "tiny is gone"),
        ("file:///srv/models/tiny", "tiny"),
        ("in train.jsonl:17 (/data/a/b)", "in train.jsonl:17 (b)"),
        ("path:/data/a/b and x=/data/a/c", "path:b and x=c"),
        ("--model /mnt/disk/base --out x/y", "--model base --out x/y"),
    ],
)
def test_absolute_paths_lose_all_but_their_last_part(text, clean):
    assert Privacy(environment={}).clean(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "nyu-mll/glue", "</s> and <s>", "1/2 of 3/4", "https://huggingface.co/docs/hub/model-cards", "and/or",
        "runs/study/trials/x",
        "h.0.attn.c_attn", "KL(a ‖ b) / c", "`lorascope run study.yaml --set task.data=PATH`", "query.L0-3", "50 %/epoch",
    ],
)  # fmt: skip
def test_what_is_no_path_of_this_machine_stays(text):
    assert Privacy(environment={}).clean(text) == text


def test_known_places_go_even_with_spaces_and_whatever_follows_them(tmp_path):
    home = tmp_path / "My Files"
    privacy = Privacy([home / "the base", home], environment={})
    text = f"base {home}/the base, data {home}/data/train.jsonl, not {home}ly"
    assert privacy.clean(text).startswith("base the base, data train.jsonl, not ")
    assert str(Path.home()) not in privacy.clean(f"in {Path.home()}/models/x")


def test_secrets_go(tmp_path):
    environment = {
        "HF_TOKEN": "a-secret-of-mine",
        "MY_API_KEY": "0123456789abcdef",
        "PATH": "/usr/bin:/bin",
        "A_TOKEN": "short",
    }
    privacy = Privacy(environment=environment)
    text = (
        "a-secret-of-mine 0123456789abcdef hf_abcdefghijklmnopqrstuvwx https://me:pw@host/model?token=abc&x=1 short "
        "ghp_abcdefghijklmnopqrstuvwx"
    )
    clean = privacy.clean(text)
    for secret in ("a-secret", "0123456789abcdef", "hf_abc", "me:pw", "token=abc", "ghp_abc"):
        assert secret not in clean
    assert "https://host/model?token=" in clean
    assert clean.count("short") == 1


def test_documents_are_cleaned_value_by_value():
    document = {"a/b": ["/home/me/x", 1, None, {"k": "/home/me/y"}], "n": 1.5}
    assert Privacy(environment={}).clean_values(document) == {"a/b": ["x", 1, None, {"k": "y"}], "n": 1.5}


def test_records_are_cleaned_field_by_field(facts):
    told = facts(warnings=("in /home/me/x",), base=BaseFacts("/srv/models/tiny"))
    assert Privacy(environment={}).clean_values(told) == facts(warnings=("in x",), base=BaseFacts("tiny"))


def test_text_that_is_no_prose_loses_secrets_alone():
    privacy = Privacy(environment={"A_TOKEN": "a-secret-of-mine"})
    assert privacy.without_secrets("a-secret-of-mine is [/r/books, /r/film/new]") == "[removed] is [/r/books, /r/film/new]"


def test_of_a_configuration_the_places_alone_are_cleaned_and_clean_files_keep_their_bytes(tmp_path):
    privacy = Privacy(environment={})
    document = {"_name_or_path": "/home/me/x", "base_model_name_or_path": "org/name", "tokenizer_file": "~/a/b",
                "text_config": {"cache_dir": "/home/me/y"}, "id2label": {"0": "/r/books/new"}, "profile": "/a/b",
                "chat_template": "{{ '/no/think' }}", "target_modules": r".*/a/b", "path": None}  # fmt: skip
    assert privacy.clean_places(document) == document | {
        "_name_or_path": "x", "tokenizer_file": "b", "text_config": {"cache_dir": "y"},
    }  # fmt: skip
    for content in (document, {"id2label": {"0": "/r/books/new"}}):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        before = path.read_bytes()
        privacy.clean_json(path)
        assert json.loads(path.read_text()) == privacy.clean_places(content)
        assert (path.read_bytes() == before) == (content is not document)
