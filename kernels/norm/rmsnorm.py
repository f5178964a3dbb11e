# SPDX-License-Identifier: Apache-2.0
"""RMSNorm, alone and behind a residual addition: a kernel of our own on CUDA tensors, torch elsewhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.dispatch.compiled import invalid_argument
from distributed_fi.kernels.norm.arguments import check_input_and_weight
from distributed_fi.kernels.norm.rmsnorm_cuda import FUSED_ADD_RMSNORM, RMSNORM


def rmsnorm(
    input: Tensor, weight: Tensor, eps: float = 1e-6, out: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Root-mean-square normalisation of the last dimension.

    out = input / sqrt(mean(input^2) + eps) * weight

    Args:
        input: [..., hidden_size], float32, bfloat16 or float16, any strides.
        weight: [hidden_size], input's dtype.
        eps: added to the mean square.
        out: where to write; input's shape and dtype, may be `input` itself. None allocates.
        backend: "cuda" (our kernel), "torch", or "auto": the kernel where it can be built and the rows are contiguous.
    Returns:
        [..., hidden_size] in input's dtype.
    Raises:
        InvalidArgumentError: a tensor whose shape, dtype or device does not fit the others.
        UnsupportedError: the named backend cannot serve this, or a graph is captured before the kernel's first use.
    Notes: computed in float32 and rounded once, at the end, weight included (Hugging Face's Llama rounds
        before it multiplies by the weight, which differs in the last bit of 16-bit types). Current stream;
        graph-capturable; rows are independent. Not differentiable on CUDA.
        Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".
    """
    launcher = RMSNORM.pick(backend, input) if out is None else RMSNORM.pick(backend, input, out)
    if launcher is None:
        return _torch_rmsnorm(input, weight, eps, out)
    if out is None:
        out = torch.empty_like(input)
    elif out.shape != input.shape:
        check_tensor("out", out, input.shape, Dims())
    try:
        launcher.function(out, input, weight, eps, launcher.pdl)
    except (TypeError, ValueError) as error:
        check_input_and_weight(input, weight)
        raise invalid_argument(error) from None
    return out


def fused_add_rmsnorm(
    input: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6, *, backend: str = "auto"
) -> None:
    """Residual addition and RMSNorm, both in place.

    s = input + residual;  residual = s;  input = s / sqrt(mean(s^2) + eps) * weight

    Args:
        input: [..., hidden_size], float32, bfloat16 or float16, any strides; overwritten with the norm.
        residual: input's shape and dtype, other memory; overwritten with the sum.
        weight: [hidden_size], input's dtype.
        eps: added to the mean square.
        backend: as for `rmsnorm`.
    Raises:
        InvalidArgumentError, UnsupportedError: as `rmsnorm`.
    Notes: s is float32. `residual` receives s rounded to its dtype; the norm is taken of the unrounded s and
        rounded once, as FlashInfer does. Current stream; graph-capturable; rows are independent.
    """
    launcher = FUSED_ADD_RMSNORM.pick(backend, input, residual)
    if launcher is None:
        _torch_fused_add_rmsnorm(input, residual, weight, eps)
        return
    if residual.shape != input.shape:
        check_tensor("residual", residual, input.shape, Dims())
    try:
        launcher.function(input, residual, weight, eps, launcher.pdl)
    except (TypeError, ValueError) as error:
        check_input_and_weight(input, weight)
        raise invalid_argument(error) from None


def _torch_rmsnorm(input: Tensor, weight: Tensor, eps: float, out: Tensor | None) -> Tensor:
    check_input_and_weight(input, weight)
    normed = F.rms_norm(input, weight.shape, weight, eps)
    if out is None:
        return normed
    check_tensor("out", out, input.shape, Dims(), dtype=input.dtype, device=input.device)
    return out.copy_(normed)


def _torch_fused_add_rmsnorm(input: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
    check_input_and_weight(input, weight)
    if residual.shape != input.shape or residual.dtype != input.dtype or residual.device != input.device:
        check_tensor("residual", residual, input.shape, Dims(), dtype=input.dtype, device=input.device)
    if input.dtype == torch.float32:
        input.copy_(F.rms_norm(residual.add_(input), weight.shape, weight, eps))
        return
    total = residual.float().add_(input)
    residual.copy_(total)
    input.copy_(F.rms_norm(total, weight.shape, weight.float(), eps))


RMSNORM.register(_torch_rmsnorm)
FUSED_ADD_RMSNORM.register(_torch_fused_add_rmsnorm)
