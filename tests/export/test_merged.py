"""A merged export: transformers loads it as it is, a certificate lies beside it, and what does not hold leaves nothing."""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from lorascope.errors import CheckFailed
from lorascope.export import Wishes, find_source
from lorascope.export.merged import write_merged_directory
from lorascope.lora.merge_plan import PlannedMerge
from lorascope.lora.peft_io import read_adapter, write_record


def export(place, out, **options):
    source = find_source(place, best=options.pop("best", False))
    return write_merged_directory(source, read_adapter(source.adapter), out, Wishes(out.name, "merged", **options))


@pytest.fixture
def chat_base(model_directory, tmp_path):
    """A base with everything that a chat needs: a template, generation settings, a licence."""
    base = shutil.copytree(model_directory("llama"), tmp_path / "bases" / "chatty")
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    GenerationConfig(max_new_tokens=5, do_sample=False).save_pretrained(base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    return base


def test_it_holds_all_that_a_server_needs_and_answers_as_the_adapter_does(peft_adapter, chat_base, tmp_path):
    adapter, theirs = peft_adapter("llama", "CAUSAL_LM", base=chat_base)
    written = export(adapter, tmp_path / "out")
    out, certificate = tmp_path / "out", written.certificate
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                 "generation_config.json", "merge-certificate.json", "README.md"):  # fmt: skip
        assert (out / name).is_file(), name
    assert written.facts.serving == ()
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    assert model.generation_config.max_new_tokens == 5
    conversation = [{"role": "user", "content": "the acting"}]
    ids = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(**ids).logits, theirs(**ids).logits, rtol=1e-4, atol=1e-5)
    assert certificate["holds"] is True
    assert json.loads((out / "merge-certificate.json").read_text()) == certificate
    assert certificate["merged"]["directory"] == "out"


def test_its_card_is_that_of_a_model_of_transformers_and_the_code_in_it_runs(
    peft_adapter, chat_base, tmp_path, monkeypatch, capsys
):
    adapter, _ = peft_adapter("llama", "CAUSAL_LM", base=chat_base)
    export(adapter, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data
    assert (data.library_name, data.base_model, data.license) == ("transformers", None, "apache-2.0")
    assert "`merge-certificate.json` certifies the merge" in text
    monkeypatch.chdir(tmp_path)
    exec(compile(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_nothing_of_this_machine_leaves_it(finished, tmp_path):
    export(finished, tmp_path / "out", best=True)
    for path in (tmp_path / "out").iterdir():
        if path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8")
            assert str(tmp_path.parent) not in text, path.name
            assert str(finished.parent) not in text, path.name


def test_class_names_with_slashes_are_those_that_were_certified(peft_adapter, model_directory, tmp_path):
    adapter, _ = peft_adapter("bert")
    labels = ["/r/books/new", "yes/no", "a"]
    write_record(adapter, labels)
    written = export(adapter, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [config["id2label"][str(number)] for number in range(3)] == labels
    assert written.certificate["holds"]


def test_a_place_in_the_configuration_is_hidden_and_the_merge_holds(peft_adapter, chat_base, tmp_path):
    path = chat_base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_dir": "/home/someone/corpora/films"}))
    adapter, _ = peft_adapter("llama", "CAUSAL_LM", base=chat_base)
    written = export(adapter, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["data_dir"] == "films"
    assert written.certificate["holds"]


def test_models_are_compared_on_the_device_that_is_asked_for(peft_adapter, tmp_path, monkeypatch):
    from lorascope import certified_merge

    adapter, _ = peft_adapter("bert")
    source = find_source(adapter)
    seen = []
    examine = certified_merge.examine
    monkeypatch.setattr(certified_merge, "examine", lambda claim, *rest: seen.append(claim.device) or examine(claim, *rest))
    wishes = Wishes("out", "merged")
    write_merged_directory(source, read_adapter(adapter), tmp_path / "out", wishes, device="cpu")
    assert seen == ["cpu"]


def test_the_dtype_is_the_one_that_is_asked_for(peft_adapter, tmp_path):
    adapter, _ = peft_adapter("bert")
    source = find_source(adapter)
    written = write_merged_directory(source, read_adapter(adapter), tmp_path / "out", Wishes("out", "merged"), "float16")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").dtype == torch.float16
    assert written.certificate["merged"]["dtype"] == "float16"
    assert "The weights are in float16." in (tmp_path / "out" / "README.md").read_text()


def test_a_merge_that_does_not_hold_leaves_nothing(peft_adapter, tmp_path, monkeypatch):
    adapter, _ = peft_adapter("bert")
    monkeypatch.setattr(PlannedMerge, "after", lambda self, start, stop: self.before(start, stop).to(self.dtype))
    with pytest.raises(CheckFailed, match="the merge does not hold"):
        export(adapter, tmp_path / "exports" / "out")
    assert list((tmp_path / "exports").iterdir()) == []


def test_the_card_says_why_outputs_were_not_compared(peft_adapter, tmp_path, monkeypatch):
    adapter, _ = peft_adapter("bert")

    def runs_out(self, reference):
        raise MemoryError

    monkeypatch.setattr("lorascope.certify.outputs._Comparison.merged", runs_out)
    export(adapter, tmp_path / "halfway")
    card = (tmp_path / "halfway" / "README.md").read_text()
    why = "memory ran out (while the merged model was run)"
    assert f"its tensors were compared, the outputs of the merged model were not ({why})" in card
    monkeypatch.setattr("lorascope.certified_merge.why_tensors_only", lambda model, device: "1 GB is free")
    export(adapter, tmp_path / "unrun")
    card = (tmp_path / "unrun" / "README.md").read_text()
    assert "its tensors were compared, no model was run (1 GB is free)" in card
