# SPDX-License-Identifier: Apache-2.0
"""Four-bit floats e2m1: sign, two bits of exponent, one of mantissa; two of them in a byte, the even one low.

Their magnitudes are 0, 0.5, 1, 1.5, 2, 3, 4 and 6. No table is copied to the device, so a graph may be captured.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 6.0
# The middles between neighbours. One goes to the neighbour of even code, which is the upper one at every second.
MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


def to_e2m1(x: Tensor) -> Tensor:
    """uint8 [m, k / 2]: x, float32 [m, k], rounded to the nearest, ties to even; beyond +-6 to +-6, NaN to 0."""
    magnitude = x.abs()
    code = torch.signbit(x).to(torch.uint8) << 3
    for i, middle in enumerate(MIDDLES):
        code += magnitude >= middle if i % 2 else magnitude > middle
    return code[:, 0::2] | (code[:, 1::2] << 4)


def from_e2m1(packed: Tensor) -> Tensor:
    """float32 [m, k] of packed, uint8 [m, k / 2]."""
    code = torch.stack((packed & 0xF, packed >> 4), -1).flatten(-2).int()  # [m, k]
    exponent, mantissa = code >> 1 & 3, code & 1
    doubled = torch.where(exponent == 0, mantissa, (2 + mantissa) << (exponent - 1).clamp_(min=0))
    magnitude = doubled.float() / 2
    return torch.where(code < 8, magnitude, -magnitude)
