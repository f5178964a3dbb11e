# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from transformers import AutoModelForCausalLM

from distributed_fi.errors import CorruptWeightsError, UnsupportedError
from distributed_fi.models.decoder_weights import iter_tensor_shapes
from distributed_fi.models.loaders.gguf import GgufCheckpoint
from distributed_fi.models.loaders.gguf_header import read_gguf_header
from distributed_fi.models.loaders.open import open_checkpoint
from distributed_fi.models.weights import WeightSlice
from distributed_fi.plan.sharding import Span

DOWN = "model.layers.1.mlp.down_proj.weight"  # [64, 96]: three blocks of 32 a row


def read(checkpoint: GgufCheckpoint, piece: WeightSlice) -> torch.Tensor:
    out = torch.full(piece.sliced_shape, torch.nan)
    checkpoint.read(piece, out)
    return out


def test_every_tensor_is_the_one_that_transformers_reads(make_gguf) -> None:
    path, _ = make_gguf("Q8_0")
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).state_dict()
    checkpoint = GgufCheckpoint(path)
    for name, shape in iter_tensor_shapes(checkpoint.config):
        torch.testing.assert_close(read(checkpoint, WeightSlice.whole(name, shape)), theirs[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("dim, span", [(0, Span(5, 12)), (1, Span(0, 33)), (1, Span(40, 60)), (1, Span(64, 96))])
def test_a_slice_of_any_type_is_the_tensors(make_gguf, kind: str, dim: int, span: Span) -> None:
    path, matrices = make_gguf(kind)
    quant = GGMLQuantizationType[kind]
    whole = torch.from_numpy(dequantize(quantize(matrices["blk.1.ffn_down.weight"], quant), quant).copy())
    out = read(GgufCheckpoint(path), WeightSlice(DOWN, (64, 96), dim, span))
    torch.testing.assert_close(out, whole.narrow(dim, span.start, len(span)), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ2_S", "TQ1_0"])
@pytest.mark.parametrize("dim, span", [(0, Span(5, 12)), (1, Span(200, 300)), (1, Span(256, 512))])
def test_a_slice_of_a_type_with_large_blocks_is_the_tensors(make_gguf, kind: str, dim: int, span: Span) -> None:
    path, _ = make_gguf(kind, wide=True)
    stored = next(t for t in GGUFReader(path).tensors if t.name == "blk.1.ffn_down.weight")
    whole = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
    out = read(GgufCheckpoint(path), WeightSlice(DOWN, (256, 512), dim, span))
    torch.testing.assert_close(out, whole.narrow(dim, span.start, len(span)), rtol=0, atol=0)


def test_only_the_blocks_of_a_slice_are_read(make_gguf) -> None:
    path, _ = make_gguf("Q4_0")
    checkpoint = GgufCheckpoint(path)
    _, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType.Q4_0]
    read(checkpoint, WeightSlice(DOWN, (64, 96), 0, Span(5, 12)))
    assert checkpoint.bytes_read == 7 * 3 * block_bytes
    read(checkpoint, WeightSlice(DOWN, (64, 96), 1, Span(40, 60)))
    assert checkpoint.bytes_read == (7 * 3 + 64 * 1) * block_bytes


def test_bytes_outside_a_slice_do_not_matter(make_gguf) -> None:
    path, _ = make_gguf("Q4_0")
    piece = WeightSlice("model.layers.0.self_attn.k_proj.weight", (32, 64), 0, Span(16, 32))
    before = read(GgufCheckpoint(path), piece)
    stored = read_gguf_header(path).tensors["blk.0.attn_k.weight"]
    content = bytearray(path.read_bytes())
    half = stored.num_bytes // 2
    content[stored.offset : stored.offset + half] = b"\xff" * half  # head 0, of which the slice has no row
    path.write_bytes(content)
    torch.testing.assert_close(read(GgufCheckpoint(path), piece), before, rtol=0, atol=0)


def test_a_large_tensor_read_in_chunks_is_whole(make_gguf, monkeypatch) -> None:
    path, matrices = make_gguf("F32")
    monkeypatch.setattr("distributed_fi.models.loaders.gguf.CHUNK_VALUES", 96 * 5)
    out = read(GgufCheckpoint(path), WeightSlice.whole(DOWN, (64, 96)))
    torch.testing.assert_close(out, torch.from_numpy(matrices["blk.1.ffn_down.weight"]), rtol=0, atol=0)


def test_a_type_that_cannot_be_dequantised_is_refused(make_gguf) -> None:
    odd = {"blk.0.extra": np.zeros((4,), dtype=np.int32)}
    path, _ = make_gguf(extra=odd)
    with pytest.raises(UnsupportedError, match=r"type of blk\.0\.extra: expected a type that the gguf.*got I32"):
        open_checkpoint(str(path))


def test_a_missing_tensor_is_named(make_gguf) -> None:
    path, _ = make_gguf(drop=("blk.1.ffn_up.weight",))
    with pytest.raises(CorruptWeightsError, match=r"lacks the tensor blk\.1\.ffn_up\.weight$"):
        open_checkpoint(str(path))


def test_a_tensor_of_another_shape_is_named_with_both(make_gguf) -> None:
    path, _ = make_gguf(metadata={"feed_forward_length": 128})
    with pytest.raises(
        CorruptWeightsError, match=r"blk\.0\.ffn_gate\.weight is \[96, 64\], its config says \[128, 64\]"
    ):
        open_checkpoint(str(path))


def test_a_bias_is_refused(make_gguf) -> None:
    path, _ = make_gguf(extra={"blk.0.attn_q.bias": np.zeros(64, dtype=np.float32)})
    with pytest.raises(UnsupportedError, match=r"only the tensors of its architecture, got blk\.0\.attn_q\.bias"):
        open_checkpoint(str(path))
