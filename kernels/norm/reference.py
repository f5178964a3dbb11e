# SPDX-License-Identifier: Apache-2.0
"""The norms as their formulas read, in float64: what the operators are tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def rmsnorm(input: Tensor, weight: Tensor, eps: float) -> Tensor:
    """float64 [..., hidden_size]: input / sqrt(mean(input^2) + eps) * weight."""
    x = input.double()
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + eps) * weight.double()


def fused_add_rmsnorm(input: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """float64 (norm of the sum, sum)."""
    total = input.double() + residual.double()
    return rmsnorm(total, weight, eps), total


def gemma_rmsnorm(input: Tensor, weight: Tensor, eps: float) -> Tensor:
    """float64 [..., hidden_size]: the norm times (1 + weight)."""
    return rmsnorm(input, weight.double() + 1, eps)


def layernorm(input: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """float64 [..., hidden_size]: (input - mean) / sqrt(variance + eps) * gamma + beta, the variance over all."""
    x = input.double()
    x = x - x.sum(-1, keepdim=True) / x.shape[-1]
    variance = (x * x).sum(-1, keepdim=True) / x.shape[-1]
    return x / torch.sqrt(variance + eps) * gamma.double() + beta.double()
