"""What safetensors and torch wrote is read a few rows at a time, number for number; a damaged file is named."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lorascope.errors import ModelError
from lorascope.lora import stored_tensors
from lorascope.lora.stored_tensors import StoredTensor, read_header, read_index, read_torch_file, row_ranges

DTYPES = [
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.bool, torch.uint8,
    torch.uint16, torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip


@pytest.fixture
def tensors():
    """One tensor of every dtype and of every awkward shape."""
    generator = torch.Generator().manual_seed(1)
    made = {str(dtype): torch.randint(0, 2, (5, 3), generator=generator).to(dtype) for dtype in DTYPES}
    return made | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "cube": torch.randn(4, 3, 2, generator=generator)}


def bits(value):
    """The tensor as what numpy has, for the dtypes that it does not."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.dtype.itemsize]
    return value.contiguous().view(width) if value.dim() else value.reshape(1).view(width)


def test_tensors_are_those_that_safetensors_wrote(tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    stored = read_header(tmp_path / "model.safetensors")
    assert stored.keys() == tensors.keys()
    for name, value in tensors.items():
        found = stored[name].read()
        assert (found.dtype, found.shape, stored[name].num_bytes) == (value.dtype, value.shape, value.nbytes)
        assert torch.equal(bits(found), bits(value)), name


def test_runs_of_rows_put_together_are_the_tensor(tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_tensors, "CHUNK_NUMBERS", 4)
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    for stored in (read_header(tmp_path / "model.safetensors"), read_torch_file(tmp_path / "pytorch_model.bin")):
        for name in ("torch.float32", "torch.bfloat16", "cube"):
            runs = list(stored[name].chunks())
            assert len(runs) > 1
            assert torch.equal(torch.cat([stored[name].read(*rows) for rows in runs]), tensors[name])
        assert [stored["scalar"].read(*rows) for rows in stored["scalar"].chunks()] == [tensors["scalar"]]
        assert list(stored["empty"].chunks()) == []
    assert list(row_ranges((4, 3, 2))) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert list(row_ranges(())) == [(0, 1)]
    assert list(row_ranges((5, 2))) == [(0, 2), (2, 4), (4, 5)]


def test_a_file_that_is_cut_short_or_none_at_all_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(50)}, path)
    whole = path.read_bytes()
    for content in (b"", whole[:6], whole[:40], whole[:-4], b"\xff" * 64, b"{}"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.safetensors: the checkpoint cannot be read"):
            read_header(path)
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ModelError, match=r"pytorch_model\.bin: the checkpoint cannot be read"):
            read_torch_file(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("offsets", [[-8, 0], [0, 4], [8, 24], [0]])
def test_a_header_that_points_beside_its_tensor_is_refused(offsets, tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ModelError, match="cannot be read"):
        read_header(path)


def test_a_file_that_shrinks_or_goes_after_it_was_opened_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(50)}, path)
    stored = read_header(path)["a"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"model\.safetensors: the checkpoint cannot be read \(it ends too early\)"):
        stored.read()
    path.unlink()
    with pytest.raises(ModelError, match=r"No such file.*download or copy it again"):
        stored.read()
    assert stored == StoredTensor(path, torch.float32, (50,), stored.offset)


@pytest.mark.parametrize("text", ["", "{}", '{"weight_map": 3}', "[]"])
def test_a_damaged_index_is_named(text, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"index\.json: the checkpoint cannot be read"):
        read_index(path)
