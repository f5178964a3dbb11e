# SPDX-License-Identifier: Apache-2.0
"""Eight-bit floats, e4m3 and e5m2, with float32 scales."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.quant.granularity import Granularity, scaled, unscaled

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def fp8_quantize(
    x: Tensor,
    *,
    granularity: Granularity = "per_tensor",
    scale: Tensor | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, Tensor]:
    """A matrix in eight-bit floats and the scales that give it back.

    scale = max |x| over the entries that share it / largest (448 for e4m3, 57344 for e5m2);
    q = x / scale, clamped to +-largest, rounded to the nearest, ties to even

    Args:
        x: [m, k], float32, bfloat16 or float16.
        granularity: what shares a scale: "per_tensor" (scale [1]), "per_token" ([m, 1]), "1x128"
            ([m, ceil(k / 128)]) or "128x128" ([ceil(m / 128), ceil(k / 128)]); the last blocks may be cut.
        scale: float32 of that shape, known beforehand ("static"); None takes it from x.
        dtype: torch.float8_e4m3fn or torch.float8_e5m2.
    Returns:
        (q, scale): [m, k] in dtype, and float32 of granularity's shape; x ~ q * scale.
    Raises:
        InvalidArgumentError: a shape, dtype, device or granularity that does not fit.
    Notes: divides in float32. A computed scale is at least 2^-126, so zeros stay zeros; a NaN or an infinity makes
        all that shares its scale NaN when it is given back. Current stream; graph-capturable; deterministic.
        Micikevicius et al. 2022, "FP8 formats for deep learning"; blocks as in DeepSeek-AI 2024, "DeepSeek-V3".
    """
    if dtype not in FP8:
        raise InvalidArgumentError("dtype", str(dtype).removeprefix("torch."), "float8_e4m3fn or float8_e5m2")
    largest = torch.finfo(dtype).max
    quotient, scale = scaled(x, scale, granularity, largest)
    return quotient.clamp_(-largest, largest).to(dtype), scale


def fp8_dequantize(
    q: Tensor,
    scale: Tensor,
    *,
    granularity: Granularity = "per_tensor",
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The matrix that `fp8_quantize` wrote down.

    out = q * scale

    Args:
        q: [m, k], float8_e4m3fn or float8_e5m2.
        scale: float32, of the shape that granularity gives it in `fp8_quantize`.
        granularity: as there.
        out_dtype: float32, bfloat16 or float16.
    Returns:
        [m, k] in out_dtype, multiplied in float32 and rounded once.
    Raises:
        InvalidArgumentError: a shape, dtype, device or granularity that does not fit.
    """
    check_tensor("q", q, ("m", "k"), Dims(), dtype=FP8)
    return unscaled(q, scale, granularity, out_dtype)
