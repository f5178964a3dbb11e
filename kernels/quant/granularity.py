# SPDX-License-Identifier: Apache-2.0
"""How many entries of a matrix share a scale, and what that scale is."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
Granularity = Literal["per_tensor", "per_token", "1x128", "128x128"]
GRANULARITIES = ("per_tensor", "per_token", "1x128", "128x128")
BLOCK = 128
# The smallest normal float32: a row of zeros, or of less than that, divides by it and stays finite.
MIN_SCALE = 2.0**-126


def scale_shape(granularity: Granularity, m: int, k: int) -> tuple[int, ...]:
    """[1], [m, 1], [m, ceil(k / 128)] or [ceil(m / 128), ceil(k / 128)]."""
    if granularity not in GRANULARITIES:
        raise InvalidArgumentError("granularity", granularity, f"one of {', '.join(GRANULARITIES)}")
    if granularity == "per_tensor":
        return (1,)
    if granularity == "per_token":
        return (m, 1)
    return (m if granularity == "1x128" else -(-m // BLOCK), -(-k // BLOCK))


def fitting_scale(x: Tensor, granularity: Granularity, largest: float) -> Tensor:
    """float32 scales by which x's largest magnitudes become `largest`; NaN where x has one."""
    m, k = x.shape
    shape = scale_shape(granularity, m, k)
    if x.numel() == 0:
        return torch.full(shape, MIN_SCALE, device=x.device)
    magnitude = x.float().abs()
    if granularity == "per_tensor":
        peak = magnitude.amax().view(1)
    elif granularity == "per_token":
        peak = magnitude.amax(-1, keepdim=True)
    else:
        rows, columns = shape
        height = 1 if granularity == "1x128" else BLOCK
        padded = torch.nn.functional.pad(magnitude, (0, columns * BLOCK - k, 0, rows * height - m))
        peak = padded.reshape(rows, height, columns, BLOCK).amax((1, 3))
    return (peak / largest).clamp_(min=MIN_SCALE)


def spread(scale: Tensor, granularity: Granularity, m: int, k: int) -> Tensor:
    """scale, broadcastable against [m, k]."""
    if granularity in ("per_tensor", "per_token"):
        return scale
    if granularity == "128x128":
        scale = scale.repeat_interleave(BLOCK, 0)[:m]
    return scale.repeat_interleave(BLOCK, 1)[:, :k]


def scaled(x: Tensor, scale: Tensor | None, granularity: Granularity, largest: float) -> tuple[Tensor, Tensor]:
    """(float32 x / scale, scale); computes the scale where none is given."""
    check_tensor("x", x, ("m", "k"), Dims(), dtype=FLOATS)
    shape = scale_shape(granularity, *x.shape)
    if scale is None:
        scale = fitting_scale(x, granularity, largest)
    check_tensor("scale", scale, shape, Dims(), dtype=torch.float32, device=x.device)
    return x.float() / spread(scale, granularity, *x.shape), scale


def unscaled(q: Tensor, scale: Tensor, granularity: Granularity, out_dtype: torch.dtype) -> Tensor:
    """q * scale, in float32, rounded once."""
    shape = scale_shape(granularity, *q.shape)
    check_tensor("scale", scale, shape, Dims(), dtype=torch.float32, device=q.device)
    if out_dtype not in FLOATS:
        raise InvalidArgumentError("out_dtype", str(out_dtype), "float32, bfloat16 or float16")
    return (q.float() * spread(scale, granularity, *q.shape)).to(out_dtype)
