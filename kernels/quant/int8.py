# SPDX-License-Identifier: Apache-2.0
"""Eight-bit integers, symmetric, with float32 scales."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.quant.granularity import Granularity, scaled, unscaled


def int8_quantize(
    x: Tensor, *, granularity: Granularity = "per_token", scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A matrix in eight-bit integers and the scales that give it back.

    scale = max |x| over the entries that share it / 127;  q = round(x / scale), ties to even, clamped to [-128, 127]

    Args:
        x: [m, k], float32, bfloat16 or float16.
        granularity: what shares a scale: "per_tensor" (scale [1]), "per_token" ([m, 1]), "1x128"
            ([m, ceil(k / 128)]) or "128x128" ([ceil(m / 128), ceil(k / 128)]); the last blocks may be cut.
        scale: float32 of that shape, known beforehand ("static"); None takes it from x.
    Returns:
        (q, scale): int8 [m, k], and float32 of granularity's shape; x ~ q * scale.
    Raises:
        InvalidArgumentError: a shape, dtype, device or granularity that does not fit.
    Notes: divides in float32. A computed scale is at least 2^-126; a NaN or an infinity makes all that shares its
        scale NaN when it is given back (with a scale given, a NaN becomes 0). Current stream; graph-capturable;
        deterministic. Dettmers et al. 2022, "LLM.int8()".
    """
    quotient, scale = scaled(x, scale, granularity, 127.0)
    # What a NaN becomes as an integer depends on the device, so it becomes 0 first.
    return quotient.nan_to_num_(nan=0.0).round_().clamp_(-128, 127).to(torch.int8), scale


def int8_dequantize(
    q: Tensor,
    scale: Tensor,
    *,
    granularity: Granularity = "per_token",
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The matrix that `int8_quantize` wrote down.

    out = q * scale

    Args:
        q: [m, k], int8.
        scale: float32, of the shape that granularity gives it in `int8_quantize`.
        granularity: as there.
        out_dtype: float32, bfloat16 or float16.
    Returns:
        [m, k] in out_dtype, multiplied in float32 and rounded once.
    Raises:
        InvalidArgumentError: a shape, dtype, device or granularity that does not fit.
    """
    check_tensor("q", q, ("m", "k"), Dims(), dtype=torch.int8)
    return unscaled(q, scale, granularity, out_dtype)
