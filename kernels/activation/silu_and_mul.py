# SPDX-License-Identifier: Apache-2.0
"""The gated activation of Llama's MLP: a kernel of our own on CUDA tensors, torch elsewhere."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distributed_fi.kernels.activation.arguments import gate_and_up
from distributed_fi.kernels.activation.silu_and_mul_cuda import SILU_AND_MUL
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.dispatch.compiled import invalid_argument


def silu_and_mul(input: Tensor, out: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """SiLU of the first half of the last dimension times the second half.

    out = a * sigmoid(a) * b,  [a, b] = input

    Args:
        input: [..., 2 * d], float32, bfloat16 or float16: gate, then up. Any strides.
        out: [..., d], input's dtype, other memory. None allocates.
        backend: "cuda" (our kernel), "torch", or "auto": the kernel where it can be built and the rows are contiguous.
    Returns:
        [..., d] in input's dtype.
    Raises:
        InvalidArgumentError: the last dimension is odd, or a shape, dtype or device does not fit.
        UnsupportedError: the named backend cannot serve this, or a graph is captured before the kernel's first use.
    Notes: computed in float32 and rounded once. Current stream; graph-capturable; elementwise. Not differentiable
        on CUDA.
        Shazeer 2020, "GLU Variants Improve Transformer" (SwiGLU).
    """
    launcher = SILU_AND_MUL.pick(backend, input) if out is None else SILU_AND_MUL.pick(backend, input, out)
    if launcher is None:
        return _torch_silu_and_mul(input, out)
    if out is None or out.shape[:-1] != input.shape[:-1]:
        wanted = _out_shape(input)
        if out is not None:
            check_tensor("out", out, wanted, Dims())
        out = input.new_empty(wanted)
    try:
        launcher.function(out, input, launcher.pdl)
    except (TypeError, ValueError) as error:
        gate_and_up(input)
        raise invalid_argument(error) from None
    return out


def _torch_silu_and_mul(input: Tensor, out: Tensor | None) -> Tensor:
    gate, up = gate_and_up(input)
    product = F.silu(gate.float()).mul_(up).to(input.dtype)
    if out is None:
        return product
    check_tensor("out", out, product.shape, Dims(), dtype=input.dtype, device=input.device)
    return out.copy_(product)


def _out_shape(input: Tensor) -> tuple[int, ...]:
    if input.dim() == 0 or input.shape[-1] % 2:
        gate_and_up(input)
    return *input.shape[:-1], input.shape[-1] // 2


SILU_AND_MUL.register(_torch_silu_and_mul)
