# SPDX-License-Identifier: Apache-2.0
"""Matrix products of groups of rows, each group with its own second operand: the experts' linear layers."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.gemm.gemm_nt import gemm_nt
from distributed_fi.kernels.gemm.segments import host_indptr

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def grouped_gemm_nt(
    a: Tensor,
    b: Tensor,
    m_indptr: Tensor,
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Product of each group of rows with the transpose of the group's own matrix.

    D[r] = A[r] @ B[g].T  for m_indptr[g] <= r < m_indptr[g + 1];  D[r] = 0 for r >= m_indptr[-1]

    Args:
        a: [num_rows, k], float32, bfloat16 or float16, rows in the order of their groups.
        b: [num_groups, n, k], a's dtype; the experts' weights.
        m_indptr: [num_groups + 1], int32 or int64, exclusive prefix sum of the groups' rows, on any device. Groups may
            be empty; rows from m_indptr[-1] on belong to none and may hold anything.
        out: [num_rows, n], where to write; must share no memory with a or b. None allocates.
        out_dtype: of the result; None is out's dtype where `out` is given, else a's. float32 from 16-bit
            operands skips the last rounding.
    Returns:
        [num_rows, n] in out_dtype.
    Raises:
        InvalidArgumentError: a shape, dtype or device that does not fit; m_indptr that does not ascend from 0 to at
            most num_rows.
    Notes: accumulates in float32, as `gemm_nt`. m_indptr is read by the host: one that lives on a device costs a
        synchronisation, one on the CPU none; not graph-capturable. Deterministic for given group sizes and device.
    """
    dims = Dims()
    check_tensor("a", a, ("num_rows", "k"), dims, dtype=FLOATS)
    check_tensor("b", b, ("num_groups", "n", "k"), dims, dtype=a.dtype, device=a.device)
    bounds = host_indptr("m_indptr", m_indptr, dims["num_groups"])
    if bounds[-1] > dims["num_rows"]:
        raise InvalidArgumentError("m_indptr", bounds, f"a last entry <= num_rows={dims['num_rows']}")
    shape = (dims["num_rows"], dims["n"])
    if out is None:
        out = torch.empty(shape, dtype=out_dtype or a.dtype, device=a.device)
    check_tensor("out", out, shape, Dims(), dtype=out_dtype, device=a.device)
    for group, (start, end) in enumerate(pairwise(bounds)):
        if start < end:
            gemm_nt(a[start:end], b[group], out=out[start:end])
    out[bounds[-1] :].zero_()
    return out
