# SPDX-License-Identifier: Apache-2.0
"""The rotary embedding as multiplication by a complex number of modulus one, in complex128."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distributed_fi.config import RopeConfig


def frequency(rope: RopeConfig, pair_idx: int, rotary_dim: int) -> float:
    """Radians per position of one pair of dimensions, case by case as Llama 3.1's model code states it."""
    f = rope.theta ** (-2 * pair_idx / rotary_dim)
    if rope.scaling == "none":
        return f
    if rope.scaling == "linear":
        return f / rope.factor
    wavelength = 2 * math.pi / f
    if wavelength < rope.original_max_position / rope.high_freq_factor:
        return f
    if wavelength > rope.original_max_position / rope.low_freq_factor:
        return f / rope.factor
    smooth = rope.original_max_position / wavelength - rope.low_freq_factor
    smooth /= rope.high_freq_factor - rope.low_freq_factor
    return (1 - smooth) * f / rope.factor + smooth * f


def rotate(x: Tensor, positions: Tensor, rope: RopeConfig, rotary_dim: int, interleave: bool) -> Tensor:
    """float64 [num_tokens, num_heads, head_dim]: the first rotary_dim dimensions of x turned."""
    half = rotary_dim // 2
    real, imag = (
        (slice(0, rotary_dim, 2), slice(1, rotary_dim, 2)) if interleave else (slice(half), slice(half, 2 * half))
    )
    turns = torch.tensor([frequency(rope, i, rotary_dim) for i in range(half)], dtype=torch.float64)
    angles = positions.double()[:, None, None] * turns
    z = torch.complex(x[..., real].double(), x[..., imag].double()) * torch.polar(torch.ones_like(angles), angles)
    out = x.double().clone()
    out[..., real], out[..., imag] = z.real, z.imag
    return out
