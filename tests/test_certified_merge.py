"""The one way to a merged directory: what does not hold leaves its certificate alone, what holds is what was looked at."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lorascope import certified_merge as orchestration
from lorascope.certified_merge import MergeOrder, MergeRefused, certified_merge
from lorascope.errors import StoreError
from lorascope.lora.peft_io import read_adapter, write_record
from lorascope.merged_model import open_merge_base
from lorascope.model_card import Privacy
from lorascope.store import CERTIFICATE_FILE


@pytest.fixture
def order(peft_adapter, model_directory, tmp_path):
    """``order(edit, **values)``: of an adapter on a Llama; ``edit`` may change the base's directory before."""

    def make(edit=lambda base: None, **values):
        base = shutil.copytree(model_directory("llama"), tmp_path / "bases" / "mine")
        edit(base)
        adapter, _ = peft_adapter("llama", "CAUSAL_LM", base=base)
        saved = read_adapter(adapter)
        return MergeOrder(saved, adapter, open_merge_base(saved, str(adapter)), tensors_only=True, **values)

    return make


def no_merge(saved, adapter, base, directory, **options):
    """Writes the base."""
    from lorascope.merged_model import write_merged

    found = write_merged(saved, adapter, base, directory, **options)
    shutil.copyfile(base.directory / "model.safetensors", directory / "model.safetensors")
    return found


def test_what_holds_appears_with_its_certificate_and_with_what_the_block_adds(order, tmp_path):
    out = tmp_path / "merged"
    with certified_merge(order(), out) as done:
        assert not out.exists()
        (done.directory / "card.md").write_text("added")
    assert (out / "card.md").read_text() == "added"
    assert json.loads((out / CERTIFICATE_FILE).read_text()) == done.certificate.document
    assert done.certificate.document["merged"]["directory"] == str(out)
    assert (done.certificate.document["level"], done.certificate.document["why_level"]) == (
        "tensors", "only the tensors were asked for",
    )  # fmt: skip
    assert done.warnings == (*done.merged.warnings, *done.certificate.document["warnings"])


def test_what_does_not_hold_leaves_its_certificate_and_no_directory(order, tmp_path, monkeypatch):
    monkeypatch.setattr(orchestration, "write_merged", no_merge)
    entered = []
    with (
        pytest.raises(MergeRefused, match="the merge does not hold: update-arrived") as caught,
        certified_merge(order(), tmp_path / "exports" / "merged"),
    ):
        entered.append("the block")
    assert (caught.value.exit_code, entered) == (3, [])
    assert caught.value.merge.certificate.document["holds"] is False
    assert list((tmp_path / "exports").iterdir()) == []


def test_what_came_to_be_at_the_place_meanwhile_is_kept(order, tmp_path):
    out = tmp_path / "merged"
    with pytest.raises(StoreError, match="meanwhile, and is kept"), certified_merge(order(), out):
        out.mkdir()
        (out / "mine").write_text("mine")
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_paths_leave_configurations_before_they_are_certified(order, tmp_path, monkeypatch):
    def edit(base):
        for name, values in {
            "config.json": {
                "id2label": {"0": "/r/books/new", "1": "a"},
                "label2id": {"/r/books/new": 0, "a": 1},
                "data_dir": "/home/someone/corpora/films",
            },
            "tokenizer_config.json": {"name_or_path": "/home/someone/llama", "chat_template": "{{ '</a/b/c>' }}/x/y"},
        }.items():
            content = json.loads((base / name).read_text())
            (base / name).write_text(json.dumps(content | values))

    seen = {}

    def certify(claim, **found):
        seen.update({name: (claim.merged / name).read_bytes() for name in ("config.json", "tokenizer_config.json")})
        return certify_really(claim, **found)

    certify_really = orchestration.certify
    monkeypatch.setattr(orchestration, "certify", certify)
    out = tmp_path / "merged"
    with certified_merge(order(edit, privacy=Privacy([tmp_path], environment={})), out) as done:
        pass
    assert {name: (out / name).read_bytes() for name in seen} == seen
    tokenizer, config = (json.loads(seen[name]) for name in ("tokenizer_config.json", "config.json"))
    assert (tokenizer["name_or_path"], tokenizer["chat_template"]) == ("llama", "{{ '</a/b/c>' }}/x/y")
    assert (config["id2label"]["0"], config["data_dir"]) == ("/r/books/new", "films")
    assert str(tmp_path) not in (out / CERTIFICATE_FILE).read_text()
    assert done.certificate.document["merged"]["directory"] == "merged"


@pytest.mark.parametrize(("asked", "trained"), [(None, None), ("nf4", None), (None, "nf4")])
def test_four_bits_have_to_hold_where_they_are_asked_for_and_are_known_where_they_were_trained_on(asked, trained, order):
    made = order(quantization=asked)
    claim = replace(made, saved=replace(made.saved, origin={"quantization": trained})).claim(Path("here"), Path("there"))
    assert (claim.quantise, claim.trained_in) == (asked == "nf4", trained)


def test_an_adapter_of_another_base_is_refused_before_a_weight_is_written(order, tmp_path, monkeypatch):
    made = order()
    write_record(made.adapter, [], {"checksum": "0" * 64, "dtype": "float32", "quantization": None})
    monkeypatch.setattr(orchestration, "write_merged", pytest.fail)
    refused = pytest.raises(MergeRefused, match="base-checksum: the adapter was trained on other weights")
    with refused as caught, certified_merge(made, tmp_path / "merged"):
        pytest.fail("nothing may be added")
    document = caught.value.merge.certificate.document
    assert (caught.value.merge.merged, document["holds"], document["why_level"]) == (None, False, "nothing was merged")
    assert not (tmp_path / "merged").exists()


def test_a_base_without_room_is_certified_by_its_tensors(order, monkeypatch):
    free = iter([1000, 10**12])
    monkeypatch.setattr("lorascope.certify.claim.free_bytes", lambda device: next(free))
    made = replace(order(), tensors_only=False, device="cpu")
    assert "are free" in made.why_tensors_only
    # What was announced is what is done, whatever came free meanwhile.
    assert made.claim(Path("here"), Path("there")).tensors_only == made.why_tensors_only


@pytest.mark.parametrize(("room", "device"), [(10**12, "cuda"), (1000, "cpu")])
def test_a_gpu_that_nobody_chose_is_taken_where_the_base_has_room_on_it(room, device, order, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("lorascope.certify.claim.free_bytes", {"cuda": room, "cpu": 10**12}.get)
    assert order().claim(Path("here"), Path("there")).device == device


def test_a_number_that_cannot_be_written_leaves_a_certificate_and_no_directory(order, tmp_path):
    def edit(base):
        tensors = load_file(base / "model.safetensors")
        tensors["model.norm.weight"][3] = float("nan")
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    refused = pytest.raises(MergeRefused, match=r"tensors-finite: model\.norm\.weight: the base holds NaN")
    with refused as caught, certified_merge(order(edit), tmp_path / "merged"):
        pytest.fail("nothing may be added")
    document = caught.value.merge.certificate.document
    assert (document["holds"], document["level"], caught.value.merge.merged) == (False, "beforehand", None)
    assert not (tmp_path / "merged").exists()
