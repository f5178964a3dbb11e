# SPDX-License-Identifier: Apache-2.0
"""MXFP4: e2m1 entries and a power of two, stored as e8m0, for each 32 of a row."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.quant.e2m1 import LARGEST, from_e2m1, to_e2m1

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 32
BIAS = 127
NAN = 255


def mxfp4_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in MXFP4.

    scale = the smallest power of two >= max |x of the block| / 6, in [2^-127, 2^127];
    q = e2m1(x / scale), rounded to the nearest, ties to even

    Args:
        x: [m, k], float32, bfloat16 or float16, k a multiple of 32.
    Returns:
        (q, scale): uint8 [m, k / 2], the even entry in the low half of a byte; float8_e8m0fnu [m, k / 32],
        row-major. x ~ q * scale.
    Raises:
        InvalidArgumentError: a shape or dtype that does not fit, k not a multiple of 32.
    Notes: the scale is rounded up, as FlashInfer does, so nothing saturates; the OCP specification's example rounds
        it down and lets entries above 6 saturate. A NaN or an infinity makes its block NaN when it is given back.
        Current stream; graph-capturable; deterministic. OCP Microscaling Formats (MX) Specification 1.0.
    """
    check_tensor("x", x, ("m", "k"), Dims(), dtype=FLOATS)
    if x.shape[1] % BLOCK:
        raise InvalidArgumentError("x", list(x.shape), f"[m, k], k a multiple of {BLOCK}")
    blocks = x.double().reshape(x.shape[0], x.shape[1] // BLOCK, BLOCK)  # in float32, 2^-127 would be subnormal
    peak = blocks.abs().amax(-1) / LARGEST
    mantissa, exponent = torch.frexp(peak)
    stored = (exponent.int() - (mantissa == 0.5).int() + BIAS).clamp_(0, 2 * BIAS)
    stored = torch.where(peak == 0, 0, stored)
    scaled = blocks * _power_of_two(BIAS - stored)[..., None]
    stored = stored.masked_fill(~peak.isfinite(), NAN)
    return to_e2m1(scaled.float().view(x.shape)), stored.to(torch.uint8).view(torch.float8_e8m0fnu)


def mxfp4_dequantize(q: Tensor, scale: Tensor, *, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix that `mxfp4_quantize` wrote down.

    out = q * scale

    Args:
        q: [m, k / 2], uint8, two entries a byte, the even one low.
        scale: [m, k / 32], float8_e8m0fnu, or uint8 with its bits.
        out_dtype: float32, bfloat16 or float16.
    Returns:
        [m, k] in out_dtype, computed in float64 and rounded once.
    Raises:
        InvalidArgumentError: a shape, dtype or device that does not fit.
    """
    check_tensor("q", q, ("m", "k / 2"), Dims(), dtype=torch.uint8)
    shape = (q.shape[0], q.shape[1] * 2 // BLOCK)
    check_tensor("scale", scale, shape, Dims(), dtype=(torch.float8_e8m0fnu, torch.uint8), device=q.device)
    stored = scale.view(torch.uint8).int()
    power = _power_of_two(stored - BIAS).masked_fill(stored == NAN, torch.nan)
    return (from_e2m1(q).double() * power.repeat_interleave(BLOCK, 1)).to(out_dtype)


def _power_of_two(exponent: Tensor) -> Tensor:
    """float64 2^exponent, written into the bits of its exponent: exact on every device, as exp2 need not be."""
    return (exponent.long() + 1023 << 52).view(torch.float64)
