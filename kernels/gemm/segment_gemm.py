# SPDX-License-Identifier: Apache-2.0
"""Matrix products of segments of rows, each with a weight of its choice: a batch of requests with LoRA adapters."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.gemm.gemm_nt import gemm_nt
from distributed_fi.kernels.gemm.segments import host_indptr

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTS = (torch.int32, torch.int64)


def segment_gemm(
    x: Tensor,
    weights: Tensor,
    *,
    weight_column_major: bool,
    seg_lens: Tensor | None = None,
    seg_indptr: Tensor | None = None,
    weight_indices: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Product of each segment of rows with the weight that the segment names.

    out[r] = x[r] @ W,  W = weights[weight_indices[i]] (transposed where weight_column_major)
    for seg_indptr[i] <= r < seg_indptr[i + 1]

    Args:
        x: [num_rows, d_in], float32, bfloat16 or float16, the segments one after the other.
        weights: [num_weights, d_in, d_out], or with weight_column_major [num_weights, d_out, d_in]; x's dtype.
        weight_column_major: how weights are stored; True is the layout of a linear layer's weight.
        seg_lens: [batch], int32 or int64, rows of each segment, adding up to num_rows; give this or seg_indptr.
        seg_indptr: [batch + 1], int32 or int64, their exclusive prefix sum, from 0 to num_rows.
        weight_indices: [batch], int32 or int64, in [0, num_weights), or -1 for a segment without a weight, whose
            result is zero. None: segment i takes weight i, and there are batch weights.
        out: [num_rows, d_out], x's dtype; must share no memory with x or weights. None allocates.
    Returns:
        [num_rows, d_out] in x's dtype.
    Raises:
        InvalidArgumentError: a shape, dtype or device that does not fit; both or neither of seg_lens and
            seg_indptr; segments that do not cover x; a weight out of range.
    Notes: accumulates in float32, as `gemm_nt`. The integers are read by the host: those that live on a device cost a
        synchronisation; not graph-capturable. Semantics of FlashInfer's SegmentGEMMWrapper.run; Chen et al. 2023,
        "Punica: Multi-tenant LoRA serving".
    """
    dims = Dims()
    check_tensor("x", x, ("num_rows", "d_in"), dims, dtype=FLOATS)
    stored = ("num_weights", "d_out", "d_in") if weight_column_major else ("num_weights", "d_in", "d_out")
    check_tensor("weights", weights, stored, dims, dtype=x.dtype, device=x.device)
    bounds = _bounds(seg_lens, seg_indptr, dims["num_rows"])
    chosen = _chosen(weight_indices, len(bounds) - 1, dims["num_weights"])
    if out is None:
        out = x.new_empty(dims["num_rows"], dims["d_out"])
    check_tensor("out", out, (dims["num_rows"], dims["d_out"]), Dims(), dtype=x.dtype, device=x.device)
    linear = weights if weight_column_major else weights.transpose(1, 2)
    for start, end, weight in zip(bounds[:-1], bounds[1:], chosen, strict=True):
        if weight < 0:
            out[start:end].zero_()
        elif start < end:
            gemm_nt(x[start:end], linear[weight], out=out[start:end])
    return out


def _bounds(seg_lens: Tensor | None, seg_indptr: Tensor | None, num_rows: int) -> list[int]:
    if (seg_lens is None) == (seg_indptr is None):
        given = "neither" if seg_lens is None else "both"
        raise InvalidArgumentError("seg_lens, seg_indptr", given, "one of them")
    if seg_indptr is not None:
        bounds, name = host_indptr("seg_indptr", seg_indptr, None), "seg_indptr"
    else:
        check_tensor("seg_lens", seg_lens, ("batch",), Dims(), dtype=INTS)
        lens: list[int] = [] if seg_lens is None else seg_lens.tolist()
        if min(lens, default=0) < 0:
            raise InvalidArgumentError("seg_lens", lens, "lengths >= 0")
        bounds, name = [0, *accumulate(lens)], "seg_lens"
    if bounds[-1] != num_rows:
        raise InvalidArgumentError(name, f"segments of {bounds[-1]} rows", f"segments of all num_rows={num_rows}")
    return bounds


def _chosen(weight_indices: Tensor | None, batch: int, num_weights: int) -> list[int]:
    if weight_indices is None:
        if num_weights != batch:
            raise InvalidArgumentError("weight_indices", None, f"one of num_weights={num_weights} for each of {batch}")
        return list(range(batch))
    check_tensor("weight_indices", weight_indices, (batch,), Dims(), dtype=INTS)
    chosen: list[int] = weight_indices.tolist()
    strange = [index for index in chosen if not -1 <= index < num_weights]
    if strange:
        raise InvalidArgumentError("weight_indices", strange[0], f"weights in [0, num_weights={num_weights}), or -1")
    return chosen
