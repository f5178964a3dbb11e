# SPDX-License-Identifier: Apache-2.0
"""The forms of a paged KV cache: a tuple of two tensors or one combined tensor, NHD or HND."""

from __future__ import annotations

from typing import TypeAlias

import torch

from distributed_fi.config import check_range
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor

PagedKVCache: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]

_TOKEN_DIMS: dict[str, tuple[str, str]] = {
    "NHD": ("page_size", "num_kv_heads"),
    "HND": ("num_kv_heads", "page_size"),
}


def check_kv_layout(kv_layout: str) -> None:
    if kv_layout not in _TOKEN_DIMS:
        raise InvalidArgumentError("kv_layout", kv_layout, "NHD or HND")


def split_kv_cache(kv_cache: PagedKVCache, kv_layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as views [num_pages, page_size, num_kv_heads, head_dim] of either form and layout.

    Shapes are not checked beyond what the views need: `check_kv_cache` does that, once per shape.
    """
    check_kv_layout(kv_layout)
    if isinstance(kv_cache, torch.Tensor):
        if kv_cache.dim() != 5 or kv_cache.shape[1] != 2:
            shape = ", ".join(("num_pages", "2", *_TOKEN_DIMS[kv_layout], "head_dim"))
            raise InvalidArgumentError("kv_cache", str(list(kv_cache.shape)), f"[{shape}] or a tuple (k, v)")
        k, v = kv_cache[:, 0], kv_cache[:, 1]
    elif isinstance(kv_cache, (tuple, list)) and len(kv_cache) == 2:
        k, v = kv_cache
        _check_paged("k_cache", k, kv_layout)
        _check_paged("v_cache", v, kv_layout)
    else:
        raise InvalidArgumentError("kv_cache", type(kv_cache).__name__, "a tensor or a tuple of two tensors (k, v)")
    return (k.transpose(1, 2), v.transpose(1, 2)) if kv_layout == "HND" else (k, v)


def check_kv_cache(
    k: torch.Tensor, v: torch.Tensor, kv_layout: str, dims: Dims, *, dtype: torch.dtype, device: torch.device
) -> None:
    """Check both views of split_kv_cache; messages show shapes in the caller's layout.

    `dims` may bind page_size, num_kv_heads, head_dim_qk and head_dim_vo beforehand.
    """
    for name, cache, head_dim in (("k_cache", k, "head_dim_qk"), ("v_cache", v, "head_dim_vo")):
        given = cache.transpose(1, 2) if kv_layout == "HND" else cache
        shape = ("num_pages", *_TOKEN_DIMS[kv_layout], head_dim)
        check_tensor(name, given, shape, dims, dtype=dtype, device=device)
        if cache.shape[-1] > 1 and cache.stride(-1) != 1:
            raise InvalidArgumentError(name, f"strides {given.stride()}", "the head dimension contiguous")
    check_range("page_size", k.shape[1], "an integer >= 1", k.shape[1] >= 1)


def _check_paged(name: str, cache: object, kv_layout: str) -> None:
    if not (isinstance(cache, torch.Tensor) and cache.dim() == 4):
        check_tensor(name, cache, ("num_pages", *_TOKEN_DIMS[kv_layout], "head_dim"), Dims())
