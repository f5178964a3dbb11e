# SPDX-License-Identifier: Apache-2.0
"""Paged KV cache, token by token: what the operators are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def append_reference(
    cache: torch.Tensor,
    tokens: torch.Tensor,
    batch_indices: Sequence[int],
    positions: Sequence[int],
    page_lists: Sequence[Sequence[int]],
) -> torch.Tensor:
    """A copy of cache [num_pages, page_size, num_kv_heads, head_dim] with tokens [nnz, num_kv_heads, head_dim]."""
    filled = cache.clone()
    for token, request, position in zip(tokens, batch_indices, positions, strict=True):
        page, offset = divmod(position, cache.shape[1])
        filled[page_lists[request][page], offset] = token
    return filled


def gather_reference(cache: torch.Tensor, pages: Sequence[int], length: int) -> torch.Tensor:
    """The first `length` tokens [length, num_kv_heads, head_dim] that the pages hold."""
    page_size = cache.shape[1]
    tokens = [cache[pages[i // page_size], i % page_size] for i in range(length)]
    return torch.stack(tokens) if tokens else cache.new_empty((0, *cache.shape[2:]))
