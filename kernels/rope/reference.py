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
    if rope.scaling == "yarn":
        return yarn_frequency(rope, pair_idx, rotary_dim)
    wavelength = 2 * math.pi / f
    if wavelength < rope.original_max_position / rope.high_freq_factor:
        return f
    if wavelength > rope.original_max_position / rope.low_freq_factor:
        return f / rope.factor
    smooth = rope.original_max_position / wavelength - rope.low_freq_factor
    smooth /= rope.high_freq_factor - rope.low_freq_factor
    return (1 - smooth) * f / rope.factor + smooth * f


def yarn_frequency(rope: RopeConfig, pair_idx: int, rotary_dim: int) -> float:
    """Radians per position of one pair, case by case: as trained, slowed down, or between the two."""
    f = rope.theta ** (-2 * pair_idx / rotary_dim)

    def pair_of(turns: float) -> float:  # theta^(-2 pair / rotary_dim) * original_max_position = 2 pi turns
        wanted = 2 * math.pi * turns / rope.original_max_position
        return -rotary_dim / 2 * math.log(wanted, rope.theta)

    fast, slow = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        fast, slow = math.floor(fast), math.ceil(slow)
    if pair_idx <= fast:
        return f
    if pair_idx >= slow:
        return f / rope.factor
    share = (pair_idx - max(fast, 0)) / (slow - max(fast, 0))
    return (1 - share) * f + share * f / rope.factor


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
