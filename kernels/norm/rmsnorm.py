# SPDX-License-Identifier: Apache-2.0
"""RMSNorm, alone and behind a residual addition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.norm.arguments import check_input_and_weight


def rmsnorm(input: Tensor, weight: Tensor, eps: float = 1e-6, out: Tensor | None = None) -> Tensor:
    """Root-mean-square normalisation of the last dimension.

    out = input / sqrt(mean(input^2) + eps) * weight

    Args:
        input: [..., hidden_size], float32, bfloat16 or float16, any strides.
        weight: [hidden_size], input's dtype.
        eps: added to the mean square.
        out: where to write; input's shape and dtype, may be `input` itself. None allocates.
    Returns:
        [..., hidden_size] in input's dtype.
    Raises:
        InvalidArgumentError: a tensor whose shape, dtype or device does not fit the others.
    Notes: computed in float32 and rounded once, at the end, weight included (Hugging Face's Llama rounds
        before it multiplies by the weight, which differs in the last bit of 16-bit types). Current stream;
        graph-capturable; rows are independent. Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".
    """
    check_input_and_weight(input, weight)
    normed = F.rms_norm(input, weight.shape, weight, eps)
    if out is None:
        return normed
    check_tensor("out", out, input.shape, Dims(), dtype=input.dtype, device=input.device)
    return out.copy_(normed)


def fused_add_rmsnorm(input: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> None:
    """Residual addition and RMSNorm, both in place.

    s = input + residual;  residual = s;  input = s / sqrt(mean(s^2) + eps) * weight

    Args:
        input: [..., hidden_size], float32, bfloat16 or float16, any strides; overwritten with the norm.
        residual: input's shape and dtype, other memory; overwritten with the sum.
        weight: [hidden_size], input's dtype.
        eps: added to the mean square.
    Raises:
        InvalidArgumentError: a tensor whose shape, dtype or device does not fit the others.
    Notes: s is float32. `residual` receives s rounded to its dtype; the norm is taken of the unrounded s and
        rounded once, as FlashInfer does. Current stream; graph-capturable; rows are independent.
    """
    check_input_and_weight(input, weight)
    if residual.shape != input.shape or residual.dtype != input.dtype or residual.device != input.device:
        check_tensor("residual", residual, input.shape, Dims(), dtype=input.dtype, device=input.device)
    if input.dtype == torch.float32:
        input.copy_(F.rms_norm(residual.add_(input), weight.shape, weight, eps))
        return
    total = residual.float().add_(input)
    residual.copy_(total)
    input.copy_(F.rms_norm(total, weight.shape, weight.float(), eps))
