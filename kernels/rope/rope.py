# SPDX-License-Identifier: Apache-2.0
"""Rotary embedding with angles computed on the fly, for positions given per token or per segment."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_fi.config import RopeConfig
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.rope.frequencies import cos_sin, rope_frequencies
from distributed_fi.kernels.rope.rotation import copies, make_turn, turn_

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTS = (torch.int32, torch.int64)


def apply_rope_pos_ids_inplace(
    q: Tensor,
    k: Tensor,
    pos_ids: Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 1.0,
    rope_theta: float = 1e4,
) -> None:
    """Rotary embedding of queries and keys at one position per token, in place.

    (a, b) -> (a cos t - b sin t, b cos t + a sin t) for pair i of dimensions,
    t = pos_ids / rope_scale * rope_theta^(-2i / rotary_dim)

    Args:
        q: [num_tokens, num_qo_heads, head_dim], float32, bfloat16 or float16, last dim contiguous; overwritten.
        k: [num_tokens, num_kv_heads, head_dim], q's dtype, last dim contiguous; overwritten.
        pos_ids: [num_tokens], int32 or int64.
        rotary_dim: leading dimensions of a head that are rotated, even; None rotates all.
        interleave: pairs are (2i, 2i + 1); False: (i, i + rotary_dim / 2).
        rope_scale: divides the positions ("linear" scaling).
        rope_theta: the base.
    Raises:
        InvalidArgumentError: a shape, dtype, device or value that does not fit.
    Notes: angles in float64, the rotation in float32, rounded once to q's dtype. Current stream;
        graph-capturable; elementwise. Layers that share positions are served faster by
        `apply_rope_with_cos_sin_cache`. Su et al. 2021, "RoFormer".
    """
    rope = RopeConfig(theta=rope_theta, scaling="linear", factor=rope_scale)
    _rotate_(q, k, pos_ids, rotary_dim, interleave, rope)


def apply_rope_pos_ids(
    q: Tensor,
    k: Tensor,
    pos_ids: Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 1.0,
    rope_theta: float = 1e4,
) -> tuple[Tensor, Tensor]:
    """As `apply_rope_pos_ids_inplace`, into new tensors: returns (q, k) rotated, of the shapes given."""
    q, k = copies(q=q, k=k)
    apply_rope_pos_ids_inplace(q, k, pos_ids, rotary_dim, interleave, rope_scale, rope_theta)
    return q, k


def apply_llama31_rope_pos_ids_inplace(
    q: Tensor,
    k: Tensor,
    pos_ids: Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 8.0,
    rope_theta: float = 5e5,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    old_context_len: int = 8192,
) -> None:
    """Rotary embedding with Llama 3.1's scaling, at one position per token, in place.

    As `apply_rope_pos_ids_inplace` with frequencies f = rope_theta^(-2i / rotary_dim) replaced by
    s f + (1 - s) f / rope_scale,  s = clamp((old_context_len f / 2 pi - low) / (high - low), 0, 1).

    Args:
        q, k, pos_ids, rotary_dim, interleave: as for `apply_rope_pos_ids_inplace`.
        rope_scale: divides the frequencies of waves longer than old_context_len / low_freq_factor tokens.
        rope_theta: the base.
        low_freq_factor, high_freq_factor: waves that turn more than high_freq_factor times within
            old_context_len keep their frequency; between the two it is blended.
        old_context_len: context length, in tokens, that the model was trained with before it was scaled.
    Raises:
        InvalidArgumentError: a shape, dtype, device or value that does not fit.
    """
    rope = RopeConfig(
        theta=rope_theta,
        scaling="llama3",
        factor=rope_scale,
        low_freq_factor=low_freq_factor,
        high_freq_factor=high_freq_factor,
        original_max_position=old_context_len,
    )
    _rotate_(q, k, pos_ids, rotary_dim, interleave, rope)


def apply_llama31_rope_pos_ids(
    q: Tensor,
    k: Tensor,
    pos_ids: Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 8.0,
    rope_theta: float = 5e5,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    old_context_len: int = 8192,
) -> tuple[Tensor, Tensor]:
    """As `apply_llama31_rope_pos_ids_inplace`, into new tensors: returns (q, k) rotated, of the shapes given."""
    q, k = copies(q=q, k=k)
    scaling = (rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len)
    apply_llama31_rope_pos_ids_inplace(q, k, pos_ids, rotary_dim, interleave, *scaling)
    return q, k


def _rotate_(q: Tensor, k: Tensor, pos_ids: Tensor, rotary_dim: int | None, interleave: bool, rope: RopeConfig) -> None:
    dims = Dims()
    check_tensor("q", q, ("num_tokens", "num_qo_heads", "head_dim"), dims, dtype=FLOATS)
    check_tensor("k", k, ("num_tokens", "num_kv_heads", "head_dim"), dims, dtype=q.dtype, device=q.device)
    check_tensor("pos_ids", pos_ids, ("num_tokens",), dims, dtype=INTS, device=q.device)
    rotary_dim = dims["head_dim"] if rotary_dim is None else rotary_dim
    if not isinstance(rotary_dim, int) or rotary_dim % 2 or not 0 < rotary_dim <= dims["head_dim"]:
        raise InvalidArgumentError("rotary_dim", rotary_dim, f"an even integer in [2, head_dim={dims['head_dim']}]")
    frequencies = rope_frequencies(rope, rotary_dim, q.device)
    turn = make_turn(*cos_sin(frequencies, pos_ids), interleave)
    turn_(q, turn)
    turn_(k, turn)
