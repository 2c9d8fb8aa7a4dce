"""What is saved along with an adapter: told from what was trained."""

import pytest
import torch

from lorascope.lora.beside import grown_vocabulary, has_tokenizer, is_copy


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt", "spiece.model", "source.spm"])
def test_a_vocabulary_of_any_kind_is_a_tokenizer_and_its_settings_alone_are_none(file, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert not has_tokenizer(tmp_path)
    (tmp_path / file).write_text("")
    assert has_tokenizer(tmp_path)


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16])
def test_a_copy_is_told_in_any_two_dtypes_and_one_trained_number_makes_it_none(held, saved):
    full = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    own, value = full.to(held), full.to(saved, copy=True)
    assert is_copy(own, value)
    value[3, 2] += 0.25
    assert not is_copy(own, value)
    assert not is_copy(own, own[:-1])


def test_embeddings_of_more_rows_are_a_larger_vocabulary_and_other_widths_another_model(tiny_model):
    model = tiny_model("llama")
    own = model.get_input_embeddings().weight
    what, fix = grown_vocabulary({"model.embed_tokens.weight": own.new_zeros(len(own) + 2, own.shape[1])}, model)
    assert what == f"the adapter's vocabulary is larger than the base's: {len(own) + 2} tokens, {len(own)} embeddings"
    assert f"resize_token_embeddings({len(own) + 2})" in fix
    for given in (
        {"model.embed_tokens.weight": own.detach()},
        {"model.embed_tokens.weight": own.new_zeros(len(own) + 2, own.shape[1] + 1)},
        {"score.weight": own.new_zeros(len(own) + 2, own.shape[1])},
    ):
        assert grown_vocabulary(given, model) is None
