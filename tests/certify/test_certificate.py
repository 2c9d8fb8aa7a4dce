"""The certificate: planted faults are caught, good merges pass, and the document says what it rests on."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from lorascope.base_model import load_base
from lorascope.certify import certificate_text, certify, examine, outputs
from lorascope.certify.checkpoint import open_checkpoint
from lorascope.config import BaseModelConfig, TaskConfig
from lorascope.errors import CheckFailed, ModelError, OutOfMemory
from lorascope.lora.peft_io import write_record
from lorascope.lora.stored_tensors import StoredTensor

# Warnings of libraries, when PEFT loads what a fault has left.
pytestmark = pytest.mark.filterwarnings("ignore")

FAULTS = [
    "nothing merged", "half of the modules", "alpha doubled", "fused projection transposed", "one nan", "overflows",
    "output layer tied", "tie lost", "other base", "base has moved on", "wrong revision", "keys match nothing",
    "half of the tensors", "merged into packed base", "lost in rounding", "pad token of another", "another class named",
    "other end of text", "other start of decoder", "factors left in the file", "packed base has moved on", "experts swapped",
]  # fmt: skip
GOOD = [
    ("gpt2", "small", "float32"), ("bert", "large", "bfloat16"), ("t5", "small", "float16"), ("llama", "large", "float32"),
    ("mixtral", "small", "bfloat16"), ("gpt2-classifier", "large", "float32"),
]  # fmt: skip
SPECIAL = [
    "llama large float32 configuration names another dtype", "bert large bfloat16 head in float32",
    "qwen2 large float32 embeddings saved along", "gpt2-classifier large float32 head in the tokenizer s padding",
    "phi3 large float32 configuration as on the hub", "bert small float32 configuration as on the hub",
    "bert large float32 with a task", "llama small bfloat16 from float32",
]  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(merge_faults, name, tmp_path):
    (fault,) = [one for one in merge_faults.FAULTS if one.name == name]
    certificate = merge_faults.certify_fault(fault, tmp_path)
    assert not certificate.holds
    with pytest.raises(CheckFailed, match="the merge does not hold") as raised:
        certificate.raise_unless_it_holds(tmp_path)
    assert raised.value.exit_code == 3
    json.loads(certificate_text(certificate), parse_constant=pytest.fail)


@pytest.mark.parametrize(("family", "size", "dtype"), GOOD)
def test_a_good_merge_of_peft_s_or_ours_holds(merge_faults, scene, family, size, dtype):
    made = scene(family, size, dtype)
    by_peft = certify(made.claim())
    assert by_peft.failures == []
    ours = merge_faults.merge_with_lorascope(made)
    assert ours.failures == []
    document = json.loads(certificate_text(ours), parse_constant=pytest.fail)
    assert document["level"] == "outputs"
    assert document["effect"]["relative_difference"] > 0
    assert document["merged"]["dtype"] == dtype
    assert {"base alone, float32", "merged, reloaded"} <= {row["name"] for row in document["comparisons"]}
    assert len(document["modules"]) == len(made.deltas())


@pytest.mark.parametrize("name", SPECIAL)
def test_a_good_merge_of_a_special_base_or_adapter_holds(merge_faults, name, tmp_path):
    (good,) = [one for one in merge_faults.good_merges() if one.name == name]
    certificate = merge_faults.certify_good(good, tmp_path)
    assert certificate.failures == []
    verdicts = {check["name"]: check["verdict"] for check in certificate.document["checks"]}
    assert verdicts["reloaded-equals-memory"] == "holds"
    assert certificate.document["level"] == "outputs"


def test_an_adapter_that_cannot_be_run_fails_where_outputs_were_asked_for_and_else_is_told(scene, monkeypatch, tmp_path):
    made = scene("bert")

    def fails(*_):
        raise ModelError("no room")

    monkeypatch.setattr("lorascope.certify.running.load_base", fails)
    document = certify(made.claim()).document
    assert (document["holds"], document["level"], document["inputs"]) == (True, "tensors", None)
    assert any("tensors alone were compared" in warning for warning in document["warnings"])
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "ba de", "label": "negative"}) + "\n")
    task = TaskConfig(name="file", data=str(tmp_path), labels=["negative", "neutral", "positive"], max_length=16)
    assert certify(made.claim(), task).failures == [
        "outputs: the task's score was asked for, and cannot be had: no room (while the adapter was run unmerged in float32)"
    ]


@pytest.mark.parametrize(
    ("score", "doing"),
    [
        (0, "the adapter was scored unmerged in float32"),
        (1, "the adapter was scored unmerged in bfloat16"),
        (2, "the merged model was scored"),
    ],
)
def test_memory_that_runs_out_while_scoring_names_the_step_and_the_logits_go_on(score, doing, scene, monkeypatch, tmp_path):
    made, scores, done = scene("bert", "large", "bfloat16"), outputs.Runner.scores, []
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "ba de", "label": "negative"}) + "\n")
    task = TaskConfig(name="file", data=str(tmp_path), labels=["negative", "neutral", "positive"], max_length=16)

    def runs_out(self, base, stack=None):
        done.append(None)
        if len(done) > score:
            raise OutOfMemory("memory ran out with batches of 64 tokens", where="evaluate")
        return scores(self, base, stack)

    monkeypatch.setattr(outputs.Runner, "scores", runs_out)
    certificate = certify(made.claim(), task)
    assert len(done) == score + 1  # and is not tried again
    says = f"the task's score was asked for, and cannot be had: memory ran out (while {doing})"
    assert certificate.failures == [f"outputs: {says}"]
    verdicts = {check["name"]: check["verdict"] for check in certificate.document["checks"]}
    assert verdicts["update-arrived"] == "holds"
    assert (certificate.document["level"], verdicts["loads"]) == ("outputs", "holds")
    assert certificate.document["effect"]["relative_difference"] > 0
    rows = {row["name"]: bool(row["scores"]) for row in certificate.document["comparisons"]}
    assert rows == {
        outputs.BASE: False, outputs.REFERENCE: score > 0, outputs.UNMERGED: score > 1, outputs.RELOADED: False,
    }  # fmt: skip
    assert "score" not in verdicts


@pytest.mark.parametrize("error", [TypeError("no such argument"), KeyError("head"), OSError("no such file"), ValueError("no")])
def test_a_merged_model_that_cannot_be_scored_leaves_a_certificate(error, scene, monkeypatch, tmp_path):
    made, load = scene("bert"), outputs.load
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "ba de", "label": "negative"}) + "\n")
    task = TaskConfig(name="file", data=str(tmp_path), labels=["negative", "neutral", "positive"], max_length=16)

    def fails(claim, model, *rest):
        if model == str(claim.merged):
            raise error
        return load(claim, model, *rest)

    monkeypatch.setattr(outputs, "load", fails)
    certificate = certify(made.claim(), task)
    says = f"the task's score was asked for, and cannot be had: {error} (while the merged model was scored)"
    assert certificate.failures == [f"outputs: {says}"]
    assert certificate.document["level"] == "outputs"


def test_what_float32_costs_is_measured_although_nothing_could_be_scored(scene, monkeypatch, tmp_path):
    made = scene("bert")
    made.reweigh(lambda name: 1.01)
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "ba de", "label": "negative"}) + "\n")
    task = TaskConfig(name="file", data=str(tmp_path), labels=["negative", "neutral", "positive"], max_length=16)

    def runs_out(self, base, stack=None):
        raise OutOfMemory("memory ran out with batches of 64 tokens", where="evaluate")

    monkeypatch.setattr(outputs.Runner, "scores", runs_out)
    document = certify(made.claim(), task).document
    assert outputs.UNMERGED_FLOAT64 in {row["name"] for row in document["comparisons"]}


def test_four_bits_that_were_compared_are_not_said_to_be_missing_where_only_the_score_is(scene, monkeypatch, tmp_path):
    before = examine(scene("bert").claim())
    found = outputs.Outputs(unscored="memory ran out (while the merged model was scored)")
    monkeypatch.setattr("lorascope.certify.certificate.compare_outputs", lambda *_: found)
    asked = replace(before, asked="the task's score and the comparison in four bits")
    (failure,) = certify(scene("bert").claim(), before=asked).failures
    assert failure.startswith("outputs: the task's score was asked for, and cannot be had")


def test_the_base_and_the_merged_model_are_read_once_for_tensors_and_checksums(scene, monkeypatch):
    made, read, rows = scene("llama"), StoredTensor.read, {}

    def counted(self, start=0, stop=None):
        rows[self.file] = rows.get(self.file, 0) + self.num_bytes
        return read(self, start, stop)

    monkeypatch.setattr(StoredTensor, "read", counted)
    document = certify(made.claim(tensors_only="no model is needed")).document
    for directory, part in ((made.base, "base"), (made.merged, "merged")):
        path = directory / "model.safetensors"
        assert rows[path] == sum(value.nbytes for value in load_file(path).values())
        assert document[part]["checksum"] == open_checkpoint(directory).checksum()


def test_a_task_s_examples_are_the_inputs_and_its_score_is_compared(scene, tmp_path):
    made = scene("bert")
    rows = [{"text": f"ba de {word}", "label": label} for word, label in (("fi", "negative"), ("go", "positive")) * 4]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskConfig(name="file", data=str(tmp_path), labels=["negative", "neutral", "positive"], max_length=16)
    document = certify(made.claim(), task).document
    assert document["holds"]
    assert document["inputs"]["rows"] == 8
    scores = {row["name"]: row["scores"] for row in document["comparisons"]}
    assert scores["merged, reloaded"]["accuracy"] == scores["adapter, float32"]["accuracy"]


def test_a_model_that_may_not_be_loaded_gets_a_certificate_of_its_tensors_that_says_so(scene, monkeypatch):
    made = scene("qwen2")
    monkeypatch.setattr("lorascope.certify.certificate.compare_outputs", pytest.fail)
    certificate = certify(made.claim(tensors_only="the base takes 90 GB"))
    assert certificate.holds
    assert (certificate.document["level"], certificate.document["why_level"]) == ("tensors", "the base takes 90 GB")
    assert certificate.document["inputs"] is None
    made.reweigh(lambda name: 0.5)
    assert not certify(made.claim(tensors_only="the base takes 90 GB")).holds


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
def test_memory_that_runs_out_is_no_fault_of_the_merge(error, scene, monkeypatch):
    def runs_out(self, reference):
        raise error

    monkeypatch.setattr(outputs._Comparison, "merged", runs_out)
    certificate = certify(scene("gpt2").claim())
    assert certificate.holds
    assert certificate.document["level"] == "tensors"
    assert certificate.document["why_level"] == "memory ran out (while the merged model was run)"
    assert [row["name"] for row in certificate.document["comparisons"]] == ["base alone, float32", "adapter, float32"]
    assert any("tensors alone were compared: memory ran out" in warning for warning in certificate.document["warnings"])


@pytest.mark.parametrize(("family", "dtype"), [("bert", "float32"), ("t5", "bfloat16")])
def test_the_checksum_that_a_trial_leaves_with_its_adapter_is_that_of_its_base(scene, family, dtype):
    made = scene(family)
    claim = made.claim(tensors_only="the checksum needs no model")
    base = load_base(BaseModelConfig(model=str(made.base), dtype=dtype), claim.task_type, claim.labels)
    write_record(made.adapter, made.labels, {"checksum": base.checksum, "dtype": dtype, "quantization": None})
    (check,) = [one for one in certify(claim).document["checks"] if one["name"] == "base-checksum"]
    assert check["verdict"] == "holds"


def test_memory_and_disk_and_four_bits_are_compared(scene):
    pytest.importorskip("bitsandbytes")
    made = scene("llama")
    from peft import PeftModel

    model = PeftModel.from_pretrained(made.load(), str(made.adapter)).merge_and_unload()
    certificate = certify(made.claim(in_memory=lambda: model, quantise=True))
    assert certificate.failures == []
    rows = {(row["name"], row["against"]) for row in certificate.document["comparisons"]}
    assert ("merged, reloaded", "merged in memory") in rows
    assert ("merged and quantised (nf4)", "adapter, float32") in rows
    assert ("merged, reloaded", "adapter on the nf4 base") in rows
    assert "not the nf4 base" in certificate.document["base"]["merged_into"]


def test_a_merged_directory_that_cannot_be_read_does_not_hold(scene):
    made = scene("gpt2")
    (made.merged / "model.safetensors").unlink()
    certificate = certify(made.claim())
    assert not certificate.holds
    assert "no weights here" in certificate.failures[0]
