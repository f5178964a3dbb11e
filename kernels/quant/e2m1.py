# SPDX-License-Identifier: Apache-2.0
"""Four-bit floats e2m1: sign, two bits of exponent, one of mantissa; two of them in a byte, the even one low."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST = MAGNITUDES[-1]
# A magnitude above edge i has at least code i + 1. An edge is the middle of two neighbours, which goes to the even
# code: above every second edge the middle itself belongs to the larger one.
EDGES = tuple(
    float(np.nextafter(np.float32((a + b) / 2), np.float32(0))) if i % 2 else (a + b) / 2
    for i, (a, b) in enumerate(pairwise(MAGNITUDES))
)


def to_e2m1(x: Tensor) -> Tensor:
    """uint8 [m, k / 2]: x, float32 [m, k], rounded to the nearest, ties to even; beyond +-6 to +-6, NaN to 6."""
    code = torch.bucketize(x.abs().contiguous(), torch.tensor(EDGES, device=x.device), out_int32=True)
    code = code + 8 * torch.signbit(x)
    return (code[:, 0::2] | (code[:, 1::2] << 4)).to(torch.uint8)


def from_e2m1(packed: Tensor) -> Tensor:
    """float32 [m, k] of packed, uint8 [m, k / 2]."""
    values = torch.tensor((*MAGNITUDES, *(-v for v in MAGNITUDES)), device=packed.device)
    codes = torch.stack((packed & 0xF, packed >> 4), -1).flatten(-2)  # [m, k]
    return values[codes.int()]
