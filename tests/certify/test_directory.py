"""What lies beside the weights decides too: nothing may be wrong in it that nothing repairs."""

import json

import pytest
from transformers import AutoTokenizer, GenerationConfig

from lorascope.certify import certify, directory

pytestmark = pytest.mark.filterwarnings("ignore")

BASE = {"rope_theta": 1e4, "dtype": "float32", "architectures": None, "pad_token_id": None}
MERGED = BASE | {"dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]}


def configuration(merged, dtype="bfloat16", **options):
    return directory.configuration_check(BASE, merged, dtype, "LlamaForCausalLM", **options)


def test_only_what_a_merge_may_change_may_differ_in_the_configuration():
    assert configuration(MERGED).verdict == "holds"
    assert "rope_theta" in configuration(MERGED | {"rope_theta": 1e5}).says
    assert configuration(MERGED, "float16").verdict == "fails"
    assert configuration(MERGED | {"problem_type": "multi_label_classification"}).verdict == "fails"
    assert configuration(MERGED | {"decoder_start_token_id": 3}).verdict == "fails"


def test_code_of_the_base_s_own_may_go_and_none_may_come():
    own, other = {"AutoConfig": "configuration_mine.Mine"}, {"AutoConfig": "configuration_other.Other"}
    for merged, verdict in (({}, "holds"), ({"auto_map": own}, "holds"), ({"auto_map": other}, "fails")):
        found = directory.configuration_check(BASE | {"auto_map": own}, MERGED | merged, "bfloat16", "LlamaForCausalLM")
        assert found.verdict == verdict


@pytest.mark.parametrize("named", [None, ["LlamaForSequenceClassification"]])
def test_another_class_than_the_merge_s_fails(named):
    assert "architectures" in configuration(MERGED | {"architectures": named}).says


def test_a_classifier_pads_with_its_tokenizer_s_token_and_nothing_else():
    assert configuration(MERGED | {"pad_token_id": 2}).verdict == "fails"
    assert configuration(MERGED | {"pad_token_id": 2}, pad_ids=[None, 2]).verdict == "holds"
    assert configuration(MERGED | {"pad_token_id": 7}, pad_ids=[None, 2]).verdict == "fails"


def test_classes_must_be_in_the_adapters_order_and_back():
    config = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    assert directory.labels_check(["no", "yes"], config).verdict == "holds"
    assert directory.labels_check(["yes", "no"], config).verdict == "fails"
    assert directory.labels_check(["no", "yes"], config | {"label2id": {"no": 1, "yes": 0}}).verdict == "fails"
    assert directory.labels_check([], config) is None


def checks_of(made):
    found = certify(made.claim(tensors_only="no model is needed")).document["checks"]
    return {check["name"]: check for check in found}


def test_generation_settings_are_the_base_s(scene):
    made = scene("llama")
    path = made.merged / "generation_config.json"
    assert checks_of(made)["generation"]["verdict"] == "holds"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"eos_token_id": 99}))
    assert "eos_token_id is 99, 2 in the base" in checks_of(made)["generation"]["says"]
    path.unlink()
    assert checks_of(made)["generation"]["verdict"] == "fails"
    (made.base / "generation_config.json").unlink()
    assert checks_of(made)["generation"]["verdict"] == "holds"
    GenerationConfig(max_new_tokens=5).save_pretrained(made.merged)
    assert "max_new_tokens is 5" in checks_of(made)["generation"]["says"]


def test_a_classifier_has_no_generation_settings(scene):
    assert "generation" not in checks_of(scene("bert"))


@pytest.mark.parametrize(("name", "value"), [("eos_token", "<s>"), ("unk_token", "<pad>")])
def test_a_special_token_that_became_another_is_told(scene, name, value):
    made = scene("llama")
    path = made.merged / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert f"{name} is '{value}'" in checks_of(made)["tokenizer"]["says"]


def test_an_adapter_s_tokenizer_is_read_with_the_base_s_configuration_which_alone_tells_its_class(scene):
    made = scene("bert")
    vocabulary = AutoTokenizer.from_pretrained(made.base).get_vocab()
    words = [word for word, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
    words[:5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # which a BERT's would otherwise add
    for place in (made.adapter, made.merged):
        for path in place.glob("*token*"):
            path.unlink()
        (place / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    assert checks_of(made)["tokenizer"]["verdict"] == "holds"


def test_another_chat_template_fails(scene):
    made = scene("llama")
    tokenizer = AutoTokenizer.from_pretrained(made.merged)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(made.merged)
    assert "it has another chat template" in checks_of(made)["tokenizer"]["says"]
