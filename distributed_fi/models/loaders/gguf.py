# SPDX-License-Identifier: Apache-2.0
"""Weights of a GGUF file: only the blocks a slice covers are touched and dequantised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from distributed_fi.config import ModelConfig
from distributed_fi.errors import UnsupportedError
from distributed_fi.models.decoder_weights import EMBEDDING, FINAL_NORM, LM_HEAD, iter_tensor_shapes
from distributed_fi.models.gguf_config import gguf_config
from distributed_fi.models.loaders.checkpoint import Checkpoint
from distributed_fi.models.loaders.gguf_header import GgufTensor, read_gguf_header
from distributed_fi.models.weights import WeightSlice, check_tensors
from distributed_fi.plan.sharding import Span

ROPE_FREQS = "rope_freqs.weight"
GLOBAL_NAMES = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight", LM_HEAD: "output.weight"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Where a layer has two norms, and where it has four.
PLAIN_NORM_NAMES = {"post_attention_layernorm": "ffn_norm"}
OUT_NORM_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
PERMUTED_ARCHITECTURE = "LlamaForCausalLM"
PERMUTED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
# Values dequantised at a time, so that temporaries stay in the cache and memory does not grow.
CHUNK_VALUES = 128 * 1024


class GgufCheckpoint(Checkpoint):
    """A memory-mapped GGUF file.

    Raises:
        CorruptWeightsError: as `read_gguf_header`; or a tensor or a metadata key is missing or wrong.
        UnsupportedError: another architecture, a feature or a quantisation that is not served.
    """

    def __init__(self, path: Path):
        self._header = read_gguf_header(path)
        self._bytes = np.memmap(path, mode="r", dtype=np.uint8)
        self.bytes_read = 0
        for tensor in self._header.tensors.values():
            _check_can_dequantize(tensor)
        super().__init__(path, gguf_config(self._header, self._rope_factors()))
        expected = ((gguf_name(name, self.config), shape) for name, shape in iter_tensor_shapes(self.config))
        check_tensors(str(path), expected, {n: t.shape for n, t in self._header.tensors.items() if n != ROPE_FREQS})

    def read(self, piece: WeightSlice, out: torch.Tensor) -> None:
        tensor = self._header.tensors[gguf_name(piece.name, self.config)]
        if len(piece.shape) == 1:
            values = self._dequantized(tensor, slice(None), piece.span)[0]
            # GGUF stores 1 + weight where the model multiplies by that.
            adds_one = self.config.norm_adds_one and piece.name.endswith("norm.weight")
            out.copy_(torch.from_numpy(values - 1 if adds_one else values))
            return
        rows, cols = piece.span_of(0), piece.span_of(1)
        is_permuted = self.config.architecture == PERMUTED_ARCHITECTURE and piece.name.endswith(PERMUTED)
        stored_rows = _permuted_rows(rows, self.config.head_dim) if is_permuted else None
        chunk_rows = max(1, CHUNK_VALUES // len(cols))
        for start in range(0, len(rows), chunk_rows):
            stop = min(start + chunk_rows, len(rows))
            plain = slice(rows.start + start, rows.start + stop)
            chosen = plain if stored_rows is None else stored_rows[start:stop]
            out[start:stop].copy_(torch.from_numpy(self._dequantized(tensor, chosen, cols)))

    def _dequantized(self, tensor: GgufTensor, rows: slice | npt.NDArray[np.int64], cols: Span) -> npt.NDArray:
        """[rows, cols] in float32; a slice of columns is widened to whole blocks, then trimmed."""
        block_size, block_bytes = GGML_QUANT_SIZES[tensor.type]
        stored = self._bytes[tensor.offset : tensor.offset + tensor.num_bytes]
        stored = stored.reshape(-1, tensor.shape[-1] // block_size * block_bytes)
        first, last = cols.start // block_size, -(-cols.stop // block_size)
        blocks = np.array(stored[rows, first * block_bytes : last * block_bytes], order="C")
        self.bytes_read += blocks.nbytes
        # As one row: dequantize goes over rows in small groups, and short rows are slow.
        values = dequantize(blocks.reshape(1, -1), tensor.type).reshape(len(blocks), -1)
        return values[:, cols.start - first * block_size : cols.stop - first * block_size]

    def _rope_factors(self) -> npt.NDArray[np.float32] | None:
        tensor = self._header.tensors.get(ROPE_FREQS)
        return None if tensor is None else self._dequantized(tensor, slice(None), Span(0, tensor.shape[-1]))[0]


def read_dummy_config(path: Path) -> ModelConfig:
    """The shape in a GGUF file's header; its weights need not be there."""
    return gguf_config(read_gguf_header(path, needs_weights=False))


def gguf_name(name: str, config: ModelConfig) -> str:
    """A tensor's name in GGUF, from its Hugging Face name."""
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    layer, part = name.removeprefix("model.layers.").split(".", 1)
    part, kind = part.rsplit(".", 1)
    names = LAYER_NAMES | (OUT_NORM_NAMES if config.has_out_norms else PLAIN_NORM_NAMES)
    return f"blk.{layer}.{names[part]}.{kind}"


def _permuted_rows(rows: Span, head_dim: int) -> npt.NDArray[np.int64]:
    """Where GGUF stores rows of the query or key projection.

    Hugging Face rotates row i of a head with row i + head_dim / 2; GGUF stores such a pair side by
    side, so row (half, i) of a head lies at 2 * i + half. No row leaves its head.
    """
    head, row = np.divmod(np.arange(rows.start, rows.stop), head_dim)
    half, i = np.divmod(row, head_dim // 2)
    return head * head_dim + 2 * i + half


def _check_can_dequantize(tensor: GgufTensor) -> None:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[tensor.type][1]), dtype=np.uint8), tensor.type)
    except NotImplementedError as error:
        expected = "a type that the gguf package dequantises"
        raise UnsupportedError(f"type of {tensor.name}", tensor.type.name, expected) from error
