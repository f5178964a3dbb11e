# SPDX-License-Identifier: Apache-2.0
"""The gated activation of Llama's MLP."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distributed_fi.kernels.activation.arguments import gate_and_up
from distributed_fi.kernels.check import Dims, check_tensor


def silu_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    """SiLU of the first half of the last dimension times the second half.

    out = a * sigmoid(a) * b,  [a, b] = input

    Args:
        input: [..., 2 * d], float32, bfloat16 or float16: gate, then up. Any strides.
        out: [..., d], input's dtype, other memory. None allocates.
    Returns:
        [..., d] in input's dtype.
    Raises:
        InvalidArgumentError: the last dimension is odd, or a shape, dtype or device does not fit.
    Notes: computed in float32 and rounded once. Current stream; graph-capturable; elementwise.
        Shazeer 2020, "GLU Variants Improve Transformer" (SwiGLU).
    """
    gate, up = gate_and_up(input)
    product = F.silu(gate.float()).mul_(up).to(input.dtype)
    if out is None:
        return product
    check_tensor("out", out, product.shape, Dims(), dtype=input.dtype, device=input.device)
    return out.copy_(product)
