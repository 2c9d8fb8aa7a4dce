"""What speaks against a merge is known before a weight is written."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from lorascope.base_model import load_base
from lorascope.certify import certify, examine, read_to_merge, refused
from lorascope.config import BaseModelConfig, TaskConfig
from lorascope.errors import AdapterError, CheckFailed, DataError, UsageError
from lorascope.lora.peft_io import write_record

pytestmark = pytest.mark.filterwarnings("ignore")
NO_MODEL = "no model is needed"


def verdicts(before):
    return {check.name: check.verdict for check in before.checks}


def change(made, edit):
    path = made.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: value.contiguous() for name, value in edit(tensors).items()}, path)


def test_a_merge_of_which_nothing_is_written_yet_can_be_examined(scene):
    made = scene("bert")
    shutil.rmtree(made.merged)
    before = examine(made.claim())
    assert before.holds
    assert set(verdicts(before)) == {"adapter-whole", "adapter-fits", "base-checksum", "base-revision"}
    document = certify(scene("bert").claim(tensors_only=NO_MODEL), before=before).document
    assert document["holds"]


def test_keys_that_match_nothing_or_have_another_shape_are_told(scene):
    made = scene("llama")
    change(made, lambda tensors: {name.replace("q_proj", "query"): value for name, value in tensors.items()})
    before = examine(made.claim(tensors_only=NO_MODEL))
    assert verdicts(before)["adapter-fits"] == "fails"
    document = refused(made.claim(tensors_only=NO_MODEL), before).document
    assert (document["holds"], document["why_level"], document["modules"]) == (False, "nothing was merged", [])
    made = scene("llama", seed=2)
    change(made, lambda tensors: {name: value[:, :-1] if "lora_A" in name else value for name, value in tensors.items()})
    assert "[32, 31] in the adapter" in next(
        check.says for check in examine(made.claim(tensors_only=NO_MODEL)).checks if check.verdict == "fails"
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda name, value: {name: value * float("nan")}, "NaN or infinite numbers"),
        (lambda name, value: {name.replace(".weight", ".default.weight"): value}, "is no key of PEFT's: it matches nothing"),
        (lambda name, value: {name: value[:2] if "lora_A" in name else value}, "has rank 2 and 4 in the weights and 4 in"),
        (lambda name, value: {} if "lora_B" in name else {name: value}, "lacks lora_A or lora_B"),
    ],
    ids=["nan", "keys", "rank", "half"],
)
def test_files_that_do_not_hold_together_are_a_merge_that_does_not_hold(damage, says, scene):
    made = scene("llama")
    assert read_to_merge(made.adapter).directory == made.adapter
    change(made, lambda tensors: {key: new for name, value in tensors.items() for key, new in damage(name, value).items()})
    with pytest.raises(CheckFailed, match=says) as caught:
        read_to_merge(made.adapter)
    assert caught.value.exit_code == 3


def test_what_is_no_adapter_is_wrong_usage_and_no_failed_merge(scene, tmp_path):
    with pytest.raises(AdapterError, match="no PEFT adapter here") as caught:
        read_to_merge(tmp_path)
    assert caught.value.exit_code == 2
    made = scene("llama")
    config = json.loads((made.adapter / "adapter_config.json").read_text())
    (made.adapter / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(AdapterError, match="uses use_dora"):
        read_to_merge(made.adapter)


@pytest.mark.parametrize(("moved", "verdict"), [(False, "holds"), (True, "fails")])
def test_the_base_of_an_adapter_that_was_trained_in_four_bits_is_known_by_its_unpacked_checksum(moved, verdict, scene):
    pytest.importorskip("bitsandbytes")
    made = scene("llama")
    packed = load_base(BaseModelConfig(model=str(made.base), dtype="bfloat16", quantization="nf4"), "CAUSAL_LM")
    assert packed.unpacked_checksum != packed.checksum
    origin = {"checksum": packed.checksum, "dtype": "bfloat16", "quantization": "nf4"}
    write_record(made.adapter, [], {**origin, "unpacked_checksum": packed.unpacked_checksum})
    if moved:
        path = made.base / "model.safetensors"
        tensors = load_file(path)
        tensors["model.norm.weight"] += 0.1
        save_file(tensors, path)
    claim = made.claim(tensors_only=NO_MODEL)
    assert verdicts(examine(claim))["base-checksum"] == verdict
    write_record(made.adapter, [], origin)
    assert verdicts(examine(claim))["base-checksum"] == "not judged"


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "holds"), (0.5, "fails")])
def test_a_copy_of_the_base_in_the_adapter_has_to_be_the_base_s(shift, verdict, scene):
    made = scene("llama", dtype="bfloat16")
    name = "model.layers.0.self_attn.q_proj"
    weight = load_file(made.base / "model.safetensors")[f"{name}.weight"].float() + shift
    change(made, lambda tensors: {**tensors, f"base_model.model.{name}.base_layer.weight": weight})
    assert verdicts(examine(made.claim(tensors_only=NO_MODEL)))["base-copies"] == verdict


def test_a_task_is_read_before_anything_is_written(scene, tmp_path):
    made = scene("bert")
    labels = ["negative", "neutral", "positive"]
    with pytest.raises(DataError):
        examine(made.claim(), TaskConfig(name="file", data=str(tmp_path / "nowhere"), labels=labels))
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "ba de", "label": "negative"}) + "\n")
    task = TaskConfig(name="file", data=str(tmp_path), labels=labels)
    assert examine(made.claim(), task).inputs.num_offered == 1
    with pytest.raises(UsageError, match="3 classes in the data, 2 in the adapter"):
        examine(made.claim(labels=("a", "b")), task)


@pytest.mark.parametrize("asked", ["task", "quantise"])
def test_what_was_asked_for_and_cannot_be_compared_fails(asked, scene, tmp_path):
    made = scene("bert")
    claim = made.claim(tensors_only="the base takes 90 GB", quantise=asked == "quantise")
    task = TaskConfig(name="file", data=str(tmp_path), labels=["a", "b"]) if asked == "task" else None
    before = examine(claim, task)
    assert verdicts(before)["outputs"] == "fails"
    assert not before.holds
