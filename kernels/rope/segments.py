# SPDX-License-Identifier: Apache-2.0
"""Rotary embedding of ragged segments, each a run of consecutive positions from its own offset."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.rope.rope import apply_llama31_rope_pos_ids_inplace, apply_rope_pos_ids_inplace
from distributed_fi.kernels.rope.rotation import copies

INTS = (torch.int32, torch.int64)


def segment_positions(indptr: Tensor, offsets: Tensor, num_tokens: int) -> Tensor:
    """Position of each token of ragged segments.

    positions[t] = offsets[i] + t - indptr[i] for indptr[i] <= t < indptr[i + 1]

    Args:
        indptr: [batch + 1], int32 or int64, exclusive prefix sum of the segments' lengths.
        offsets: [batch], int32 or int64, position of each segment's first token.
        num_tokens: indptr's last entry.
    Returns:
        [num_tokens], int64.
    Raises:
        InvalidArgumentError: a shape or dtype that does not fit; on the CPU, an indptr that does not ascend from
            0 to num_tokens. On CUDA its values are not looked at, since that would synchronise.
    """
    check_tensor("indptr", indptr, ("batch + 1",), Dims(), dtype=INTS)
    check_tensor("offsets", offsets, (indptr.shape[0] - 1,), Dims(), dtype=INTS, device=indptr.device)
    if not indptr.is_cuda:
        ascends = bool((indptr.diff() >= 0).all()) and indptr.tolist()[0] == 0
        if not ascends or indptr.tolist()[-1] != num_tokens:
            raise InvalidArgumentError("indptr", indptr.tolist(), f"ascending from 0 to num_tokens={num_tokens}")
    tokens = torch.arange(num_tokens, device=indptr.device, dtype=indptr.dtype)
    segments = torch.searchsorted(indptr[1:], tokens, right=True).clamp_(max=max(offsets.shape[0] - 1, 0))
    return tokens.long() + (offsets.long() - indptr[:-1].long())[segments]


def apply_rope_inplace(
    q: Tensor,
    k: Tensor,
    indptr: Tensor,
    offsets: Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 1.0,
    rope_theta: float = 1e4,
) -> None:
    """As `apply_rope_pos_ids_inplace`, at the positions of ragged segments.

    Args:
        indptr: [batch + 1], int32 or int64: segment i is q[indptr[i] : indptr[i + 1]], and the same of k.
        offsets: [batch], int32 or int64: position of each segment's first token.
    """
    pos_ids = segment_positions(indptr, offsets, q.shape[0])
    apply_rope_pos_ids_inplace(q, k, pos_ids, rotary_dim, interleave, rope_scale, rope_theta)


def apply_rope(
    q: Tensor,
    k: Tensor,
    indptr: Tensor,
    offsets: Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 1.0,
    rope_theta: float = 1e4,
) -> tuple[Tensor, Tensor]:
    """As `apply_rope_inplace`, into new tensors: returns (q, k) rotated, of the shapes given."""
    q, k = copies(q=q, k=k)
    apply_rope_inplace(q, k, indptr, offsets, rotary_dim, interleave, rope_scale, rope_theta)
    return q, k


def apply_llama31_rope_inplace(
    q: Tensor,
    k: Tensor,
    indptr: Tensor,
    offsets: Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 8.0,
    rope_theta: float = 5e5,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    old_context_len: int = 8192,
) -> None:
    """As `apply_llama31_rope_pos_ids_inplace`, at the positions of ragged segments (see `apply_rope_inplace`)."""
    pos_ids = segment_positions(indptr, offsets, q.shape[0])
    scaling = (rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len)
    apply_llama31_rope_pos_ids_inplace(q, k, pos_ids, rotary_dim, interleave, *scaling)


def apply_llama31_rope(
    q: Tensor,
    k: Tensor,
    indptr: Tensor,
    offsets: Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 8.0,
    rope_theta: float = 5e5,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    old_context_len: int = 8192,
) -> tuple[Tensor, Tensor]:
    """As `apply_llama31_rope_inplace`, into new tensors: returns (q, k) rotated, of the shapes given."""
    q, k = copies(q=q, k=k)
    scaling = (rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len)
    apply_llama31_rope_inplace(q, k, indptr, offsets, rotary_dim, interleave, *scaling)
    return q, k
