# SPDX-License-Identifier: Apache-2.0
"""A paged cache as rows of one head of one token, so that one index_select gathers from any layout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from distributed_fi.kernels.kv_cache.host_array import IntArray


@dataclass(frozen=True, kw_only=True)
class CacheRows:
    """Where (page, offset, head) lies in the 2-D view that `view` makes of a cache.

    row = page * page_step + offset * offset_step + head * head_step; rows are `row_stride` elements
    apart in memory, so that NHD, HND and either half of a combined cache differ in these numbers only.
    """

    page_step: int
    offset_step: int
    head_step: int
    row_stride: int
    num_rows: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, cache: torch.Tensor) -> CacheRows:
        """Of a view [num_pages, page_size, num_kv_heads, head_dim] whose last dimension is contiguous."""
        sizes, head_dim = cache.shape[:3], cache.shape[3]
        # A dimension of size 1 has any stride; it must not shrink the common divisor.
        strides = [stride if size > 1 else 0 for size, stride in zip(sizes, cache.stride()[:3], strict=True)]
        row_stride = math.gcd(*strides) or head_dim
        page_step, offset_step, head_step = (stride // row_stride for stride in strides)
        last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) // row_stride
        return cls(
            page_step=page_step,
            offset_step=offset_step,
            head_step=head_step,
            row_stride=row_stride,
            num_rows=last + 1 if cache.numel() else 0,
            num_kv_heads=sizes[2],
            head_dim=head_dim,
        )

    def view(self, cache: torch.Tensor) -> torch.Tensor:
        return cache.as_strided((self.num_rows, self.head_dim), (self.row_stride, 1))

    def of_tokens(self, page: IntArray, offset: IntArray) -> IntArray:
        """Rows of the tokens [num_requests, num_keys], as [num_requests, num_kv_heads, num_keys], flattened."""
        token = page * self.page_step + offset * self.offset_step
        head = np.arange(self.num_kv_heads) * self.head_step
        return (token[:, None, :] + head[:, None]).reshape(-1)
