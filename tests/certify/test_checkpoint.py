"""Of a model's files it is told what does not hold together; how they are cut into files does not matter."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lorascope.certify.checkpoint import open_checkpoint
from lorascope.errors import ModelError

TENSORS = {
    "a.weight": torch.arange(24, dtype=torch.float32).reshape(6, 4),
    "b": torch.tensor(3.5, dtype=torch.float64),
    "c": torch.linspace(-1, 1, 10).to(torch.bfloat16),
    "d": torch.arange(5),
    "e": torch.zeros(0, 3),
}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "shards"])
def test_every_way_to_store_a_model_has_the_same_checksum(tmp_path, name):
    save_file(TENSORS, tmp_path / "model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    if name == "shards":
        write_shards(other)
    else:
        torch.save(TENSORS, other / name)
    assert open_checkpoint(other).checksum() == open_checkpoint(tmp_path).checksum()
    assert open_checkpoint(other).problems == ()
    assert open_checkpoint(other).main_dtype == "float32"


def write_shards(directory, **changes):
    parts = {"model-00001-of-00002.safetensors": ["a.weight", "b"], "model-00002-of-00002.safetensors": ["c", "d", "e"]}
    for file, names in parts.items():
        save_file({name: TENSORS[name] for name in names}, directory / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    index = {"metadata": {}, "weight_map": weight_map | changes}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def test_shards_that_do_not_fit_their_index_are_told(tmp_path):
    write_shards(tmp_path, x="model-00001-of-00002.safetensors")
    assert any("'x'" in problem and "does not hold it" in problem for problem in open_checkpoint(tmp_path).problems)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert any("which is not there" in problem for problem in open_checkpoint(tmp_path).problems)
    save_file({"y": torch.zeros(1)}, tmp_path / "model-00003-of-00003.safetensors")
    assert any("lies beside" in problem for problem in open_checkpoint(tmp_path).problems)


def test_a_directory_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no weights here"):
        open_checkpoint(tmp_path)
