# SPDX-License-Identifier: Apache-2.0
"""Batched matrix product."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_fi.kernels.check import Dims, check_tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def bmm(a: Tensor, b: Tensor, *, out: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
    """Product of each matrix of a batch with its own counterpart.

    D[i] = A[i] @ B[i]

    Args:
        a: [batch, m, k], float32, bfloat16 or float16, any strides.
        b: [batch, k, n], a's dtype, any strides: for a weight stored [batch, n, k], pass its transpose(1, 2).
        out: [batch, m, n], where to write; must share no memory with a or b. None allocates.
        out_dtype: of the result; None is out's dtype where `out` is given, else a's. float32 from 16-bit
            operands skips the last rounding.
    Returns:
        [batch, m, n] in out_dtype. Any size may be 0; k = 0 gives zeros.
    Raises:
        InvalidArgumentError: a shape, dtype or device that does not fit; `out` of another dtype than out_dtype.
    Notes: accumulates in float32, as `gemm_nt`. Current stream; graph-capturable; deterministic for one shape and
        device.
    """
    dims = Dims()
    check_tensor("a", a, ("batch", "m", "k"), dims, dtype=FLOATS)
    check_tensor("b", b, ("batch", "k", "n"), dims, dtype=a.dtype, device=a.device)
    dtype = out_dtype or (a.dtype if out is None else out.dtype)
    product = torch.bmm(a, b) if dtype == a.dtype else _unrounded(a, b).to(dtype)
    if out is None:
        return product
    check_tensor("out", out, product.shape, Dims(), dtype=dtype, device=a.device)
    return out.copy_(product)


def _unrounded(a: Tensor, b: Tensor) -> Tensor:
    """float32 [batch, m, n]."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())
