# SPDX-License-Identifier: Apache-2.0
"""LayerNorm with scale and shift."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.norm.arguments import check_input


def layernorm(input: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-6, out: Tensor | None = None) -> Tensor:
    """Layer normalisation of the last dimension.

    out = (input - mean(input)) / sqrt(var(input) + eps) * gamma + beta,  var over all hidden_size entries

    Args:
        input: [..., hidden_size], float32, bfloat16 or float16, any strides.
        gamma: [hidden_size], float32 or input's dtype.
        beta: [hidden_size], gamma's dtype.
        eps: added to the variance.
        out: where to write; input's shape and dtype, may be `input` itself. None allocates.
    Returns:
        [..., hidden_size] in input's dtype.
    Raises:
        InvalidArgumentError: a tensor whose shape, dtype or device does not fit the others.
    Notes: computed in float32 and rounded once. Current stream; graph-capturable; rows are independent.
        Ba et al. 2016, "Layer Normalization".
    """
    dims = Dims()
    check_input(input, dims)
    check_tensor("gamma", gamma, ("hidden_size",), dims, dtype=(torch.float32, input.dtype), device=input.device)
    check_tensor("beta", beta, ("hidden_size",), dims, dtype=gamma.dtype, device=input.device)
    normed = F.layer_norm(input.float(), gamma.shape, gamma.float(), beta.float(), eps).to(input.dtype)
    if out is None:
        return normed
    check_tensor("out", out, input.shape, Dims(), dtype=input.dtype, device=input.device)
    return out.copy_(normed)
