"""What speaks against a merge is known before a weight is written."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lorascope.base_model import load_base
from lorascope.certify import certify, examine, refused
from lorascope.config import BaseModelConfig, TaskConfig
from lorascope.errors import AdapterError, CheckFailed, DataError, ModelError, UsageError
from lorascope.lora.peft_io import read_adapter, write_record
from lorascope.lora.stored_tensors import StoredTensor

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


def test_a_tokenizer_of_the_adapter_s_with_more_tokens_than_the_base_has_embeddings_is_refused_with_a_certificate(scene):
    made = scene("llama")
    tokenizer = AutoTokenizer.from_pretrained(made.base)
    tokenizer.save_pretrained(made.adapter)
    claim = made.claim(tensors_only=NO_MODEL)
    assert examine(claim).holds
    rows = len(claim.model.get_input_embeddings().weight)
    tokenizer.add_tokens([f"<extra {number}>" for number in range(rows)])
    tokenizer.save_pretrained(made.adapter)
    (failure,) = refused(claim, examine(claim)).failures
    assert failure.startswith("adapter-fits: the adapter's vocabulary is larger than the base's")
    assert f"{len(tokenizer)} tokens, {rows} embeddings; give the base with its vocabulary grown likewise" in failure
    (made.adapter / "tokenizer.json").write_text("{")  # what comes to need it says that it is damaged
    assert examine(claim).holds


DAMAGES = {
    "nan": (lambda name, value: {name: value * float("nan")}, "holds NaN or infinite numbers"),
    "keys": (
        lambda name, value: {name.replace(".weight", ".default.weight"): value},
        "is no key of PEFT's: it matches nothing",
    ),
    "rank": (lambda name, value: {name: value[:2] if "lora_A" in name else value}, "has rank 2 in the weights and 4 in"),
    "half": (lambda name, value: {} if "q_proj.lora_B" in name else {name: value}, "with one factor alone"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_files_that_do_not_hold_together_are_refused_with_a_certificate_and_run_nowhere(kind, scene):
    damage, says = DAMAGES[kind]
    made = scene("llama")
    change(made, lambda tensors: {key: new for name, value in tensors.items() for key, new in damage(name, value).items()})
    before = examine(made.claim())
    assert verdicts(before)["adapter-whole"] == "fails"
    certificate = refused(made.claim(), before)
    assert says in certificate.failures[0]
    assert certificate.document["level"] == "beforehand"
    assert read_adapter(made.adapter, damaged=True).directory == made.adapter
    with pytest.raises(AdapterError):
        read_adapter(made.adapter)


TARGETS = {
    "names": {},
    "expression": {"target_modules": r".*\.(q|v)_proj"},
    "all linear": {
        "target_modules": "all-linear",
        "exclude_modules": r".*(k|o|up|gate|down)_proj",
    },
}


@pytest.mark.parametrize("kind", TARGETS)
def test_a_module_that_the_configuration_names_and_the_weights_lack_is_told(kind, scene):
    made = scene("llama", lora={"target_modules": ["q_proj", "v_proj"]})
    path = made.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | TARGETS[kind]))
    assert verdicts(examine(made.claim()))["adapter-whole"] == "holds"
    change(made, lambda tensors: {name: value for name, value in tensors.items() if "v_proj" not in name})
    before = examine(made.claim())
    assert verdicts(before)["adapter-whole"] == "fails"
    assert "weights hold nothing: model.layers.0.self_attn.v_proj" in refused(made.claim(), before).failures[0]


def test_layers_that_were_left_out_on_purpose_are_not_missed(scene):
    made = scene("llama", lora={"target_modules": ["q_proj"], "layers_to_transform": [1]})
    assert verdicts(examine(made.claim()))["adapter-whole"] == "holds"
    path = made.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers_to_transform": None}))
    assert verdicts(examine(made.claim()))["adapter-whole"] == "fails"


def test_an_expression_that_is_none_is_told(scene):
    made = scene("llama")
    path = made.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": "(q_proj"}))
    with pytest.raises(AdapterError, match="no valid expression"):
        examine(made.claim())


def test_a_base_of_another_name_than_the_adapter_s_is_worth_a_warning_where_no_checksum_tells(scene):
    made = scene("llama")
    (made.adapter / "lorascope.json").unlink(missing_ok=True)
    path = made.adapter / "adapter_config.json"
    told = {}
    for named in (str(made.base), "elsewhere"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": named}))
        (told[named],) = (check for check in examine(made.claim()).checks if check.name == "base-checksum")
    assert [check.verdict for check in told.values()] == ["not judged", "warning"]
    assert told["elsewhere"].says.startswith(f"the adapter was trained on elsewhere, and is merged into {made.base} here; ")


@pytest.mark.parametrize(("name", "shift", "verdict"), [
    ("transformer.wte", 0.5, "fails"), ("lm_head", 0.5, "fails"), ("transformer.wte", 0.0, "none"), ("lm_head", 0.0, "none")
])  # fmt: skip
def test_a_score_that_an_adapter_cannot_have_is_refused_before_anything_is_written(name, shift, verdict, scene, tmp_path):
    made = scene("gpt2")
    own = made.load().get_input_embeddings().weight.detach().clone()
    change(made, lambda tensors: {**tensors, f"base_model.model.{name}.weight": own + shift})
    (tmp_path / "validation.jsonl").write_text(json.dumps({"prompt": "ba de", "completion": "ba"}) + "\n")
    before = examine(made.claim(), TaskConfig(name="file", data=str(tmp_path), max_length=16))
    assert verdicts(before).get("outputs", "none") == verdict
    assert before.holds == (verdict == "none")
    assert examine(made.claim()).holds
    if verdict == "fails":
        assert "merge without it, then use the merged model with generate --base" in refused(made.claim(), before).failures[0]


def test_what_ended_the_writing_is_in_the_certificate(scene):
    made = scene("llama")
    error = CheckFailed("3 merged numbers overflow float16", where="lm_head.weight", fix="merge with --dtype bfloat16")
    certificate = refused(made.claim(), examine(made.claim()), error)
    assert certificate.failures == [
        "tensors-finite: lm_head.weight: 3 merged numbers overflow float16; merge with --dtype bfloat16"
    ]


def test_a_base_is_not_read_for_a_refusal(scene, monkeypatch):
    made = scene("llama")
    before = examine(made.claim())
    monkeypatch.setattr(StoredTensor, "read", lambda *_: pytest.fail("read"))
    assert refused(made.claim(), before).document["base"]["checksum"] is None


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
    task = TaskConfig(name="file", data=str(tmp_path), labels=labels, max_length=32)
    assert examine(made.claim(), task).inputs.num_offered == 1
    with pytest.raises(ModelError, match="max_length 512 exceeds the model's 130 positions"):
        examine(made.claim(), task.model_copy(update={"max_length": 512}))
    unsaid = TaskConfig(name="file", data=str(tmp_path), labels=labels)
    assert examine(made.claim(), unsaid).inputs.warnings == [
        "max_length is 130: the model has 130 positions (by default it would be 512)"
    ]
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
