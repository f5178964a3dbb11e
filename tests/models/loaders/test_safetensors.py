# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distributed_fi.errors import CorruptWeightsError, NotFoundError, UnsupportedError
from distributed_fi.models.loaders.open import open_checkpoint
from distributed_fi.models.weights import WeightSlice
from distributed_fi.plan.sharding import Span

DOWN = "model.layers.1.mlp.down_proj.weight"


def rewrite(folder: Path, change) -> Path:
    """Apply `change` to the tensors of a single-file checkpoint and save them again."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return file


@pytest.mark.parametrize("shard_size", ["20KB", "1GB"])
@pytest.mark.parametrize("dim, span", [(0, Span(3, 11)), (1, Span(5, 6)), (0, Span(0, 48)), (1, Span(7, 7))])
def test_a_slice_is_the_tensors(make_hf, shard_size: str, dim: int, span: Span) -> None:
    folder, model = make_hf(shard_size=shard_size)
    assert (folder / "model.safetensors").exists() == (shard_size == "1GB")
    whole = model.state_dict()[DOWN]
    piece = WeightSlice(DOWN, tuple(whole.shape), dim, span)
    out = torch.empty(piece.sliced_shape)
    checkpoint = open_checkpoint(str(folder))
    checkpoint.read(piece, out)
    torch.testing.assert_close(out, whole.narrow(dim, span.start, len(span)), rtol=0, atol=0)
    assert checkpoint.bytes_read == out.numel() * 4


def test_values_are_converted_to_the_dtype_asked_for(make_hf) -> None:
    folder, model = make_hf(dtype=torch.bfloat16)
    whole = model.state_dict()[DOWN].to(torch.bfloat16)
    rewrite_all = {name: t.to(torch.bfloat16) for name, t in model.state_dict().items()}
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(rewrite_all, folder / "model.safetensors")
    out = torch.empty(whole.shape)
    checkpoint = open_checkpoint(str(folder))
    checkpoint.read(WeightSlice.whole(DOWN, tuple(whole.shape)), out)
    torch.testing.assert_close(out, whole.float(), rtol=0, atol=0)
    assert checkpoint.bytes_read == out.numel() * 2


def test_a_truncated_shard_tells_both_lengths(make_hf) -> None:
    folder, _ = make_hf()
    shard = sorted(folder.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(CorruptWeightsError) as caught:
        open_checkpoint(str(folder))
    assert str(caught.value) == f"{shard}: is {len(content) - 100} bytes, its header promises {len(content)}"


def test_a_shard_cut_inside_its_header_is_corrupt(make_hf) -> None:
    folder, _ = make_hf(shard_size="1GB")
    file = folder / "model.safetensors"
    header_bytes = struct.unpack("<Q", file.read_bytes()[:8])[0]
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CorruptWeightsError, match=f"is 50 bytes, its header promises {8 + header_bytes}$"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 4096])
def test_a_file_without_a_header_is_corrupt(make_hf, content: bytes) -> None:
    folder, _ = make_hf(shard_size="1GB")
    (folder / "model.safetensors").write_bytes(content)
    problem = f"is {len(content)} bytes and does not start with a safetensors header"
    with pytest.raises(CorruptWeightsError, match=problem):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("header", [b"not JSON", b"[]", b'{"t": 1}', b'{"t": {"dtype": "F32", "shape": [1]}}'])
def test_a_garbled_header_is_corrupt(make_hf, header: bytes) -> None:
    folder, _ = make_hf(shard_size="1GB")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CorruptWeightsError, match="has a garbled safetensors header"):
        open_checkpoint(str(folder))


def test_a_header_whose_offsets_contradict_the_shape_is_corrupt(make_hf) -> None:
    folder, _ = make_hf(shard_size="1GB")
    header = json.dumps({"t": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 20]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(20))
    with pytest.raises(CorruptWeightsError, match=r"t is 20 bytes, not those of \[2, 3\] F32"):
        open_checkpoint(str(folder))


def test_a_missing_shard_is_named(make_hf) -> None:
    folder, _ = make_hf()
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(CorruptWeightsError) as caught:
        open_checkpoint(str(folder))
    assert str(caught.value) == f"{shard}: is missing, model.safetensors.index.json names it"


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', '{"metadata": {}}'])
def test_a_garbled_index_is_corrupt(make_hf, index: str) -> None:
    folder, _ = make_hf()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CorruptWeightsError, match=r"index\.json: is not JSON with a weight_map"):
        open_checkpoint(str(folder))


def test_a_missing_tensor_is_named(make_hf) -> None:
    folder, _ = make_hf(shard_size="1GB")
    rewrite(folder, lambda tensors: tensors.pop(DOWN))
    with pytest.raises(CorruptWeightsError, match=f"lacks the tensor {DOWN}$"):
        open_checkpoint(str(folder))


def test_a_tensor_of_another_shape_is_named_with_both(make_hf) -> None:
    folder, _ = make_hf(shard_size="1GB")
    rewrite(folder, lambda tensors: tensors.update({DOWN: torch.zeros(48, 76)}))
    with pytest.raises(CorruptWeightsError) as caught:
        open_checkpoint(str(folder))
    assert str(caught.value) == f"{folder}: {DOWN} is [48, 76], its config says [48, 77]"


def test_a_tensor_the_model_would_leave_out_is_refused(make_hf) -> None:
    folder, _ = make_hf(shard_size="1GB")
    bias = "model.layers.0.self_attn.q_proj.bias"
    rewrite(folder, lambda tensors: tensors.update({bias: torch.zeros(48)}))
    with pytest.raises(UnsupportedError, match=f"weights: expected only the tensors of its architecture, got {bias}"):
        open_checkpoint(str(folder))


def test_rotary_frequencies_of_old_exports_are_passed_over(make_hf) -> None:
    folder, _ = make_hf(shard_size="1GB")
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    assert open_checkpoint(str(folder)).config.num_layers == 3


def test_a_dtype_that_is_not_served_is_named(make_hf) -> None:
    folder, _ = make_hf(shard_size="1GB")
    rewrite(folder, lambda tensors: tensors.update({DOWN: torch.zeros(48, 77).to(torch.float8_e4m3fn)}))
    with pytest.raises(UnsupportedError, match=f"dtype of {DOWN}: expected one of F32, F16, BF16, got F8_E4M3"):
        open_checkpoint(str(folder))


def test_a_folder_without_safetensors_is_refused(make_hf) -> None:
    folder, _ = make_hf(shard_size="1GB")
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"model: expected a folder with one \.safetensors file.*with 0 of them"):
        open_checkpoint(str(folder))
