# SPDX-License-Identifier: Apache-2.0
"""The gated activations of Gemma's and T5's MLPs: GELU, exact or by tanh, times the second half."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distributed_fi.kernels.activation.arguments import gate_and_up
from distributed_fi.kernels.check import Dims, check_tensor


def gelu_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    """GELU of the first half of the last dimension times the second half.

    out = a * (1 + erf(a / sqrt(2))) / 2 * b,  [a, b] = input

    Args:
        input: [..., 2 * d], float32, bfloat16 or float16: gate, then up. Any strides.
        out: [..., d], input's dtype, other memory. None allocates.
    Returns:
        [..., d] in input's dtype.
    Raises:
        InvalidArgumentError: the last dimension is odd, or a shape, dtype or device does not fit.
    Notes: computed in float32 and rounded once. Current stream; graph-capturable; elementwise.
        Hendrycks & Gimpel 2016, "Gaussian Error Linear Units"; Shazeer 2020, "GLU Variants" (GEGLU).
    """
    return _gated(input, out, "none")


def gelu_tanh_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    """GELU by its tanh approximation of the first half of the last dimension times the second half.

    out = a * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 a^3))) / 2 * b,  [a, b] = input

    Args:
        input: [..., 2 * d], float32, bfloat16 or float16: gate, then up. Any strides.
        out: [..., d], input's dtype, other memory. None allocates.
    Returns:
        [..., d] in input's dtype.
    Raises:
        InvalidArgumentError: the last dimension is odd, or a shape, dtype or device does not fit.
    Notes: as `gelu_and_mul`; Gemma's models use this form ("gelu_pytorch_tanh").
    """
    return _gated(input, out, "tanh")


def _gated(input: Tensor, out: Tensor | None, approximate: str) -> Tensor:
    gate, up = gate_and_up(input)
    product = F.gelu(gate.float(), approximate=approximate).mul_(up).to(input.dtype)
    if out is None:
        return product
    check_tensor("out", out, product.shape, Dims(), dtype=input.dtype, device=input.device)
    return out.copy_(product)
