# SPDX-License-Identifier: Apache-2.0
"""The gated activations as their formulas read, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def silu_and_mul(input: Tensor) -> Tensor:
    """float64 [..., d]: a / (1 + exp(-a)) * b of input [..., 2 * d] = [a, b]."""
    d = input.shape[-1] // 2
    a, b = input[..., :d].double(), input[..., d:].double()
    return a / (1 + torch.exp(-a)) * b


def gelu_and_mul(input: Tensor) -> Tensor:
    """float64 [..., d]: a * (1 + erf(a / sqrt(2))) / 2 * b of input [..., 2 * d] = [a, b], by Python's erf."""
    d = input.shape[-1] // 2
    a, b = input[..., :d].double(), input[..., d:].double()
    normal_cdf = [(1 + math.erf(value / math.sqrt(2))) / 2 for value in a.flatten().tolist()]
    return a * torch.tensor(normal_cdf, dtype=torch.float64).view(a.shape) * b


def gelu_tanh_and_mul(input: Tensor) -> Tensor:
    """float64 [..., d]: a / (1 + exp(-2 u)) * b, u = sqrt(2 / pi) * (a + 0.044715 a^3), of [a, b]."""
    d = input.shape[-1] // 2
    a, b = input[..., :d].double(), input[..., d:].double()
    u = math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)
    return a / (1 + torch.exp(-2 * u)) * b
