# SPDX-License-Identifier: Apache-2.0
"""Matrix product with a transposed second operand, the layout of a linear layer's weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distributed_fi.kernels.check import Dims, check_tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def gemm_nt(
    a: Tensor,
    b: Tensor,
    *,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Product of a matrix with the transpose of another.

    D = A @ B.T (+ bias)

    Args:
        a: [m, k], float32, bfloat16 or float16.
        b: [n, k], a's dtype; a linear layer's weight.
        bias: [n], a's dtype, added to each row.
        out: [m, n], where to write; must share no memory with a, b or bias. None allocates.
        out_dtype: of the result; None is out's dtype where `out` is given, else a's. float32 from 16-bit
            operands skips the last rounding.
    Returns:
        [m, n] in out_dtype. Any of m, n, k may be 0; k = 0 gives zeros, or the bias.
    Raises:
        InvalidArgumentError: a shape, dtype or device that does not fit; `out` of another dtype than out_dtype.
    Notes: accumulates in float32. On CUDA, torch's
        `backends.cuda.matmul.allow_{bf16,fp16}_reduced_precision_reduction` decide whether the partial sums of a
        split k are rounded to 16 bits. Current stream; graph-capturable; deterministic for one shape and device,
        but the order of summation may change with m.
    """
    _check(a, b, bias)
    dtype = out_dtype or (a.dtype if out is None else out.dtype)
    product = F.linear(a, b, bias) if dtype == a.dtype else _unrounded(a, b, bias).to(dtype)
    if out is None:
        return product
    check_tensor("out", out, product.shape, Dims(), dtype=dtype, device=a.device)
    return out.copy_(product)


def _unrounded(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """float32 [m, n]."""
    if a.is_cuda and a.dtype != torch.float32:
        product = torch.mm(a, b.t(), out_dtype=torch.float32)
        return product if bias is None else product.add_(bias)
    return F.linear(a.float(), b.float(), None if bias is None else bias.float())


def _check(a: Tensor, b: Tensor, bias: Tensor | None) -> None:
    # Seven of these a layer: look first, explain after.
    if (
        bias is None
        and isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.dim() == b.dim() == 2
        and a.shape[1] == b.shape[1]
        and a.dtype in FLOATS
        and a.dtype == b.dtype
        and a.device == b.device
    ):
        return
    dims = Dims()
    check_tensor("a", a, ("m", "k"), dims, dtype=FLOATS)
    check_tensor("b", b, ("n", "k"), dims, dtype=a.dtype, device=a.device)
    if bias is not None:
        check_tensor("bias", bias, ("n",), dims, dtype=a.dtype, device=a.device)
