"""Checkpoints: what safetensors and torch write is opened, what is written they read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorascope.errors import ModelError
from lorascope.lora import stored_tensors
from lorascope.lora.checkpoint_files import PlannedTensor, open_checkpoint, write_checkpoint
from lorascope.lora.stored_tensors import row_ranges

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.bool, torch.uint8]


@pytest.fixture
def tensors():
    """One tensor of every dtype and of every awkward shape."""
    generator = torch.Generator().manual_seed(1)
    made = {str(dtype): torch.randint(0, 2, (5, 3), generator=generator).to(dtype) for dtype in DTYPES}
    return made | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "cube": torch.randn(4, 3, 2, generator=generator)}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(stored_tensors, "CHUNK_NUMBERS", 4)


def planned(tensors):
    """Each tensor to be written in its own chunks."""

    def rows_of(value):
        value = value if value.dim() else value[None]
        return [value[start:stop] for start, stop in row_ranges(value.shape)]

    return {
        name: PlannedTensor(value.dtype, tuple(value.shape), lambda value=value: rows_of(value))
        for name, value in tensors.items()
    }


@pytest.mark.usefixtures("small_chunks")
def test_what_is_written_safetensors_reads(tensors, tmp_path):
    write_checkpoint(tmp_path, planned(tensors), 10**9)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors.items())


def test_shards_and_index_are_those_of_save_pretrained(tiny_model, tmp_path):
    model = tiny_model("llama", "CAUSAL_LM", dtype=torch.float32)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="5KB")
    (tmp_path / "ours").mkdir()
    write_checkpoint(tmp_path / "ours", planned(open_whole(tmp_path / "theirs")), 5000)
    ours, theirs = (sorted(path.name for path in (tmp_path / name).glob("model*")) for name in ("ours", "theirs"))
    assert ours == theirs
    index, theirs = (json.loads((tmp_path / name / "model.safetensors.index.json").read_text()) for name in ("ours", "theirs"))
    assert index["metadata"] == theirs["metadata"]
    assert index["weight_map"].keys() == theirs["weight_map"].keys()
    for path in (tmp_path / "ours").glob("*.safetensors"):
        sizes = [value.nbytes for value in load_file(path).values()]
        assert len(sizes) == 1 or sum(sizes) <= 5000
    (tmp_path / "ours" / "config.json").write_bytes((tmp_path / "theirs" / "config.json").read_bytes())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def open_whole(directory):
    return {name: stored.read() for name, stored in open_checkpoint(directory).items()}


def test_a_torch_checkpoint_is_read_where_there_is_no_safetensors(tensors, tmp_path):
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    found = open_checkpoint(tmp_path)
    assert all(torch.equal(found[name].read(), value) for name, value in tensors.items())
    save_file({"other": torch.ones(2)}, tmp_path / "model.safetensors")
    assert set(open_checkpoint(tmp_path)) == {"other"}


def test_a_torch_checkpoint_in_shards_is_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "one.bin")
    torch.save({"b": torch.zeros(3)}, tmp_path / "two.bin")
    index = {"weight_map": {"b": "two.bin", "a": "one.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert list(open_checkpoint(tmp_path)) == ["b", "a"]


def test_an_empty_directory_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        open_checkpoint(tmp_path)


def test_a_shard_that_is_missing_is_named(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors' is missing"):
        open_checkpoint(tmp_path)
    save_file({"c": torch.ones(2)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"1 tensors of the index are in no shard \(b"):
        open_checkpoint(tmp_path)
