# SPDX-License-Identifier: Apache-2.0
"""The matrix product as sums of products, in float64."""

from __future__ import annotations

from torch import Tensor


def gemm_nt(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """float64 [m, n]: D[i, j] = sum over k of a[i, k] * b[j, k] (+ bias[j])."""
    product = (a.double()[:, None, :] * b.double()[None, :, :]).sum(-1)
    return product if bias is None else product + bias.double()
