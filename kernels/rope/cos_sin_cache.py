# SPDX-License-Identifier: Apache-2.0
"""Rotary embedding from a table of cosines and sines: the form a model's layers use.

A kernel of our own on CUDA tensors, torch elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.dispatch.compiled import invalid_argument
from distributed_fi.kernels.rope.cos_sin_cache_cuda import ROPE_WITH_COS_SIN_CACHE
from distributed_fi.kernels.rope.rotation import copies, make_turn, turn_

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTS = (torch.int32, torch.int64)


def apply_rope_with_cos_sin_cache_inplace(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool = True,
    *,
    backend: str = "auto",
) -> None:
    """Rotary embedding of queries and keys, in place, with cosines and sines from a table.

    (a, b) -> (a cos - b sin, b cos + a sin) for each pair of dimensions, at the angle of the token's position.

    Args:
        positions: [num_tokens], int32 or int64, rows of the table.
        query: [num_tokens, num_qo_heads * head_size] or [num_tokens, num_qo_heads, head_size], float32, bfloat16
            or float16, last dim contiguous (a slice of a fused QKV projection will do); overwritten.
        key: the same with num_kv_heads; query's dtype; overwritten.
        head_size: dimensions of one head.
        cos_sin_cache: [max_position, rotary_dim], float32: cosines, then sines; from `make_cos_sin_cache`.
            rotary_dim <= head_size; the rest of a head stays as it is.
        is_neox: pairs are (i, i + rotary_dim / 2); False: (2i, 2i + 1).
        backend: "cuda" (our kernel), "torch", or "auto": the kernel where it can be built.
    Raises:
        UnsupportedError: the named backend cannot serve this, or a graph is captured before the kernel's first use.
        InvalidArgumentError: a shape, dtype or device that does not fit; on the CPU, a position outside the
            table, before anything is written. On CUDA such a position trips a device-side
            assertion instead, since looking would cost a synchronisation.
    Notes: computed in float32, rounded once to the tensors' dtype. Current stream; graph-capturable; elementwise.
    """
    launcher = ROPE_WITH_COS_SIN_CACHE.pick(backend, query, key)
    if launcher is None:
        _torch_rope(positions, query, key, head_size, cos_sin_cache, is_neox)
        return
    try:
        launcher.function(positions, query, key, head_size, cos_sin_cache, is_neox, launcher.pdl)
    except (TypeError, ValueError) as error:
        _check(positions, query, key, head_size, cos_sin_cache)
        raise invalid_argument(error) from None


def _torch_rope(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, is_neox: bool
) -> None:
    if not _fits(positions, query, key, head_size, cos_sin_cache):
        _check(positions, query, key, head_size, cos_sin_cache)
    cos, sin = _rows(cos_sin_cache, positions).chunk(2, -1)
    turn = make_turn(cos, sin, not is_neox)
    for x in (query, key):
        turn_(x if x.dim() == 3 else x.view(x.shape[0], x.shape[1] // head_size, head_size), turn)


def apply_rope_with_cos_sin_cache(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, is_neox: bool = True
) -> tuple[Tensor, Tensor]:
    """As `apply_rope_with_cos_sin_cache_inplace`, into new tensors.

    Returns:
        (query, key), rotated, of the shapes and dtypes given.
    """
    query, key = copies(query=query, key=key)
    apply_rope_with_cos_sin_cache_inplace(positions, query, key, head_size, cos_sin_cache, is_neox)
    return query, key


def _fits(positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor) -> bool:
    # The same conditions as _check, without its sentences: every layer of every step comes through here.
    if not all(isinstance(x, Tensor) for x in (positions, query, key, cos_sin_cache)) or not isinstance(head_size, int):
        return False
    return (
        query.dtype in FLOATS
        and query.dtype == key.dtype
        and positions.dtype in INTS
        and cos_sin_cache.dtype == torch.float32
        and positions.dim() == 1
        and cos_sin_cache.dim() == 2
        and 0 < cos_sin_cache.shape[1] <= head_size
        and cos_sin_cache.shape[1] % 2 == 0
        and query.device == key.device == positions.device == cos_sin_cache.device
        and all(_splits(x, positions.shape[0], head_size) for x in (query, key))
    )


def _splits(x: Tensor, num_tokens: int, head_size: int) -> bool:
    if x.dim() == 2:
        return x.shape[0] == num_tokens and x.shape[1] % head_size == 0
    return x.dim() == 3 and x.shape[0] == num_tokens and x.shape[2] == head_size


def _check(positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor) -> None:
    dims = Dims()
    if not isinstance(head_size, int) or head_size < 1:
        raise InvalidArgumentError("head_size", head_size, "an integer >= 1")
    _check_heads("query", query, head_size, dims)
    _check_heads("key", key, head_size, dims)
    if key.dtype != query.dtype or key.device != query.device:
        expected = f"query's dtype and device, {query.dtype} on {query.device}"
        raise InvalidArgumentError("key", f"{key.dtype} on {key.device}", expected)
    check_tensor("positions", positions, ("num_tokens",), dims, dtype=INTS, device=query.device)
    table = ("max_position", "rotary_dim")
    check_tensor("cos_sin_cache", cos_sin_cache, table, dims, dtype=torch.float32, device=query.device)
    if dims["rotary_dim"] % 2 or not 0 < dims["rotary_dim"] <= head_size:
        expected = f"[max_position, rotary_dim], rotary_dim even and in [2, head_size={head_size}]"
        raise InvalidArgumentError("cos_sin_cache", list(cos_sin_cache.shape), expected)


def _check_heads(name: str, x: Tensor, head_size: int, dims: Dims) -> None:
    if isinstance(x, Tensor) and x.dim() == 3:
        check_tensor(name, x, ("num_tokens", f"num_{name}_heads", head_size), dims, dtype=FLOATS)
        return
    check_tensor(name, x, ("num_tokens", f"num_{name}_heads * head_size"), dims, dtype=FLOATS)
    if x.shape[1] % head_size:
        raise InvalidArgumentError(name, list(x.shape), f"[num_tokens, a multiple of head_size={head_size}]")


def _rows(cache: Tensor, positions: Tensor) -> Tensor:
    try:
        return cache.index_select(0, positions)
    except IndexError:  # raised by the CPU kernel, which looks at every index anyhow
        worst = max(positions.tolist(), key=lambda p: abs(2 * p - (cache.shape[0] - 1)))
        raise InvalidArgumentError("positions", worst, f"positions in [0, {cache.shape[0]})") from None


ROPE_WITH_COS_SIN_CACHE.register(_torch_rope)
