# SPDX-License-Identifier: Apache-2.0
"""Gemma's RMSNorm, whose weight is stored as the distance from one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.norm.arguments import check_input_and_weight


def gemma_rmsnorm(input: Tensor, weight: Tensor, eps: float = 1e-6, out: Tensor | None = None) -> Tensor:
    """Root-mean-square normalisation of the last dimension, scaled by one plus the weight.

    out = input / sqrt(mean(input^2) + eps) * (1 + weight)

    Args:
        input: [..., hidden_size], float32, bfloat16 or float16, any strides.
        weight: [hidden_size], input's dtype.
        eps: added to the mean square.
        out: where to write; input's shape and dtype, may be `input` itself. None allocates.
    Returns:
        [..., hidden_size] in input's dtype.
    Raises:
        InvalidArgumentError: a tensor whose shape, dtype or device does not fit the others.
    Notes: computed in float32, 1 + weight included, and rounded once, as Gemma's model code does. Current stream;
        graph-capturable; rows are independent. Gemma Team 2024, "Gemma".
    """
    check_input_and_weight(input, weight)
    normed = _normed(input, weight, eps).to(input.dtype)
    if out is None:
        return normed
    check_tensor("out", out, input.shape, Dims(), dtype=input.dtype, device=input.device)
    return out.copy_(normed)


def gemma_fused_add_rmsnorm(input: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> None:
    """Residual addition and Gemma's RMSNorm, both in place.

    s = input + residual;  residual = s;  input = s / sqrt(mean(s^2) + eps) * (1 + weight)

    Args:
        input: [..., hidden_size], float32, bfloat16 or float16, any strides; overwritten with the norm.
        residual: input's shape and dtype, other memory; overwritten with the sum.
        weight: [hidden_size], input's dtype.
        eps: added to the mean square.
    Raises:
        InvalidArgumentError: a tensor whose shape, dtype or device does not fit the others.
    Notes: s is float32; `residual` receives it rounded, the norm is taken of the unrounded s and rounded once.
        Current stream; graph-capturable; rows are independent.
    """
    check_input_and_weight(input, weight)
    check_tensor("residual", residual, input.shape, Dims(), dtype=input.dtype, device=input.device)
    total = residual.float() + input
    residual.copy_(total)
    input.copy_(_normed(total, weight, eps))


def _normed(input: Tensor, weight: Tensor, eps: float) -> Tensor:
    """float32."""
    return F.rms_norm(input.float(), weight.shape, weight.float() + 1, eps)
