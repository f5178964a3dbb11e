# SPDX-License-Identifier: Apache-2.0
"""Matrix products as sums of products, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gemm_nt(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """float64 [m, n]: D[i, j] = sum over k of a[i, k] * b[j, k] (+ bias[j])."""
    product = (a.double()[:, None, :] * b.double()[None, :, :]).sum(-1)
    return product if bias is None else product + bias.double()


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """float64 [batch, m, n]: D[i, j, l] = sum over k of a[i, j, k] * b[i, k, l]."""
    return (a.double()[:, :, :, None] * b.double()[:, None, :, :]).sum(2)


def rows_by_weight(x: Tensor, weights: Tensor, weight_of_row: Sequence[int]) -> Tensor:
    """float64 [num_rows, n]: each row times its own weight of [num_weights, n, k], transposed; -1 is zero."""
    out = torch.zeros(x.shape[0], weights.shape[1], dtype=torch.float64)
    for row, weight in enumerate(weight_of_row):
        if weight >= 0:
            out[row] = (weights[weight].double() * x[row].double()).sum(-1)
    return out
