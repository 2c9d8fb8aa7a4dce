"""Every model is run alike: on one device, through the same kernels, and the merged one untouched."""

import pytest

from lorascope.certify import running
from lorascope.certify.running import load, load_untouched, state_digests
from lorascope.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("family", ["llama", "qwen2", "t5"])
def test_the_disk_gives_back_the_bits_that_were_in_memory(family, merge_faults, scene):
    made = scene(family, "large", "float16")
    document = merge_faults.merge_with_lorascope(made).document
    verdicts = {check["name"]: check["verdict"] for check in document["checks"]}
    assert verdicts["reloaded-equals-memory"] == "holds"
    model, new = load_untouched(made.merged, made.task_type)
    digests = state_digests(model)
    assert new == ()
    assert state_digests(model.float()) == digests
    next(model.parameters()).data[0, 0] += 1e-3
    assert state_digests(model) != digests


def test_a_classifier_made_in_memory_keeps_its_head_out_of_the_kernels_as_a_loaded_one_does(scene, monkeypatch):
    made, skipped = scene("bert", "large", "float16"), []
    monkeypatch.setattr(running, "install", lambda model, path, heads: skipped.append(tuple(heads)))
    running.placed(made.load("float16"), "SEQ_CLS", "cpu")
    load(made.claim(), str(made.merged), "float16")
    assert skipped == [("classifier",), ("classifier",)]


def test_a_base_goes_to_the_claim_s_device(scene, monkeypatch):
    seen = []

    def loaded(config, task_type, labels, device):
        seen.append((config.model, config.dtype, config.revision, device))
        raise ModelError("no such device here")

    monkeypatch.setattr(running, "load_base", loaded)
    with pytest.raises(ModelError):
        load(scene("bert").claim(device="cuda:1"), "lab/model", "bfloat16", "abcdef1")
    assert seen == [("lab/model", "bfloat16", "abcdef1", "cuda:1")]
