# SPDX-License-Identifier: Apache-2.0
"""The gated activation as its formula reads, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def silu_and_mul(input: Tensor) -> Tensor:
    """float64 [..., d]: a / (1 + exp(-a)) * b of input [..., 2 * d] = [a, b]."""
    d = input.shape[-1] // 2
    a, b = input[..., :d].double(), input[..., d:].double()
    return a / (1 + torch.exp(-a)) * b
